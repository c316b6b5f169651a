//! `herd [SUBSCRIBERS [ROUTES]]`: so many (1,000) subscribers of so many (10,000) routes come back all at once, and what
//! that does to writes, while one hub writes on. No heartbeat may be so late that a replica asks for votes.
//!
//! The subscribers are a process of their own, of the lowest priority: they would be on other machines, and here they
//! shall take from the replicas only what those do not want.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::fixture::{Cluster, Replica};
use holdfast_tests::herd::{Came, Herd};
use holdfast_tests::writes::{WriteLoad, WriteLoadOptions, microseconds};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const SUBSCRIBERS: usize = 1_000;
const ROUTES: usize = 10_000;
/// About 40 writes in a second: more than a hub with 10,000 users has.
const HUB: WriteLoadOptions = WriteLoadOptions {
    writers: 2,
    pause: Duration::from_millis(50),
    routes_each: 100,
};
/// So many writes make the quiet value.
const QUIET: u64 = 400;
/// So often everybody comes back; the values of writes are of all of them together.
const TIMES: usize = 5;
/// The first argument of the process of the subscribers.
const MEMBERS: &str = "--members";
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> Result<()> {
    if std::env::args().nth(1).is_some_and(|argument| argument == MEMBERS) {
        return be_members().await;
    }
    let [subscribers, routes] = sizes()?;
    let mut cluster = Cluster::start(3).await?;
    fill(&cluster, routes).await?;
    let (revision, _) = cluster.agree().await?;
    let empty = memory(&mut cluster)?;
    println!(
        "3 replicas at revision {revision} with {routes} routes; resident {}",
        mib(&empty)
    );

    let mut members = Members::start(subscribers, &cluster.endpoints())?;
    let came = members.came().await?;
    println!(
        "{subscribers} subscribers came with nothing; nobody writes: {}",
        told(&came)
    );

    let load = WriteLoad::start(&Arc::new(cluster.writer("hub", Duration::ZERO)?), "hub", HUB);
    let connected = memory(&mut cluster)?;
    load.goes_on(QUIET).await?;
    let quiet = load.take_latencies();
    println!("nobody comes or goes: resident {}; {}", mib(&connected), writes(&quiet));

    let mut worst = 0.0_f64;
    let before = term(&cluster).await?;
    for (keeps_table, how) in [(true, "with the table they have"), (false, "with nothing")] {
        load.take_latencies();
        let mut meanwhile = microseconds();
        for time in 1..=TIMES {
            let leader = cluster.leader().await?;
            let revision = cluster.replicas[leader].status().await?.revision;
            load.take_latencies();
            let came = members.come_back(keeps_table, revision).await?;
            meanwhile.add(load.take_latencies())?;
            println!("{subscribers} come back at once {how}, {time}: {}", told(&came));
        }
        let ratio = meanwhile.value_at_quantile(0.99) as f64 / quiet.value_at_quantile(0.99) as f64;
        worst = worst.max(ratio);
        println!(
            "meanwhile: {}; p99 {ratio:.1} times the quiet one; resident {}",
            writes(&meanwhile),
            mib(&memory(&mut cluster)?)
        );
    }
    let after = term(&cluster).await?;
    ensure!(
        after == before,
        "the term went from {before} to {after}: heartbeats were late"
    );
    println!("term {after} before and after: no heartbeat was too late");
    load.goes_on(QUIET).await?;
    println!("{QUIET} writes later: resident {}", mib(&memory(&mut cluster)?));
    let failed = load.failed();
    load.stop().await;
    ensure!(failed == 0, "{failed} writes were given up");
    cluster.finish().await?;
    println!("The write p99 was at worst {worst:.1} times its quiet value.");
    Ok(())
}

/// The process of the subscribers: it is told `true 12` or `false 12` (with the table or with nothing, to revision 12),
/// and answers with milliseconds until half of them and all of them are current, snapshots and bytes.
struct Members {
    _process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Members {
    fn start(number: usize, endpoints: &[String]) -> Result<Self> {
        let mut process = Command::new("nice")
            .args(["-n", "19"])
            .arg(std::env::current_exe()?)
            .args([MEMBERS, &number.to_string(), &endpoints.join(",")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = process.stdin.take().context("no pipe")?;
        let answers = BufReader::new(process.stdout.take().context("no pipe")?).lines();
        Ok(Members {
            _process: process,
            orders,
            answers,
        })
    }

    async fn come_back(&mut self, keeps_table: bool, revision: u64) -> Result<[u64; 4]> {
        self.orders
            .write_all(format!("{keeps_table} {revision}\n").as_bytes())
            .await?;
        self.came().await
    }

    async fn came(&mut self) -> Result<[u64; 4]> {
        let answer = self.answers.next_line().await?.context("the subscribers have ended")?;
        let numbers = answer.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        numbers.try_into().ok().context("four numbers")
    }
}

async fn be_members() -> Result<()> {
    raise_open_files()?;
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [number, endpoints] = &arguments[..] else {
        bail!("{MEMBERS} NUMBER ENDPOINTS");
    };
    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
    let herd = Herd::start(number.parse()?, &endpoints)?;
    answer(&herd.came(PATIENCE).await?);
    // Blocks this thread alone: the herd is on the others.
    for order in std::io::stdin().lines() {
        let order = order?;
        let (keeps_table, revision) = order.split_once(' ').context("an order has two words")?;
        answer(
            &herd
                .come_back(keeps_table.parse()?, revision.parse()?, PATIENCE)
                .await?,
        );
    }
    Ok(())
}

fn answer(came: &Came) {
    let at = |place: usize| came.took[place.min(came.took.len() - 1)].as_millis();
    let (half, all) = (at(came.took.len() / 2), at(came.took.len()));
    println!("{half} {all} {} {}", came.snapshots, came.bytes);
}

fn sizes() -> Result<[usize; 2]> {
    let mut sizes = [SUBSCRIBERS, ROUTES];
    for (size, given) in sizes.iter_mut().zip(std::env::args().skip(1)) {
        *size = given.parse().with_context(|| format!("{given:?} is no number"))?;
    }
    Ok(sizes)
}

/// Every subscriber has a connection at each end.
fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

async fn fill(cluster: &Cluster, routes: usize) -> Result<()> {
    let changes = (0..routes).map(|number| {
        let data = format!(r#"{{"user":"user-{number:06}","server_name":""}}"#);
        let spec = format!("/user/user-{number:06}/");
        let target = format!("http://10.{}.{}.7:8888", number / 250 % 250, number % 250);
        Ok(Change::Put(Route::parse(&spec, &target, &data, "")?))
    });
    let batch = Batch::new(Namespace::default(), changes.collect::<Result<_>>()?, Vec::new())?;
    cluster.writer("default", Duration::ZERO)?.write(batch).await?;
    Ok(())
}

/// The highest term that any replica knows.
async fn term(cluster: &Cluster) -> Result<u64> {
    let mut highest = 0;
    for replica in &cluster.replicas {
        highest = highest.max(replica.status().await?.term);
    }
    Ok(highest)
}

/// The resident memory of every replica, in MiB.
fn memory(cluster: &mut Cluster) -> Result<Vec<u64>> {
    cluster.replicas.iter_mut().map(resident).collect()
}

fn resident(replica: &mut Replica) -> Result<u64> {
    let pid = replica.process.pid().context("a replica has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("no VmRSS")?;
    Ok(kib / 1024)
}

fn mib(all: &[u64]) -> String {
    let all: Vec<_> = all.iter().map(u64::to_string).collect();
    format!("{} MiB", all.join(", "))
}

fn told([half, all, snapshots, bytes]: &[u64; 4]) -> String {
    let megabytes = *bytes as f64 / 1e6;
    format!("all current after {all} ms (p50 {half} ms), {snapshots} snapshots, {megabytes:.1} MB")
}

fn writes(times: &Histogram<u64>) -> String {
    let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1000.0;
    format!(
        "{} writes, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

//! Whoever breaks things: one after the other, each for so many writes, so that a quorum is always left.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::apart::network::{Cut, End};
use holdfast_tests::clients::Clients;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, run, until};
use nix::sys::signal::Signal;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use tokio::time::{Instant, interval};

/// A fault lasts for so many writes,
const WRITES: std::ops::Range<u64> = 30..1000;
/// or so long if writes are slow meanwhile; but for a few writes in any case.
const LONG: Duration = Duration::from_secs(4);
const WRITES_LEAST: u64 = 10;
/// So many writes go well before the next fault.
const QUIET: std::ops::Range<u64> = 10..100;
/// Of a hundred packets, how many get lost.
const LOSS: std::ops::RangeInclusive<u8> = 5..=30;
/// Between two looks whether anything was written.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The replicas that come and go beside the three.
const GUESTS: [&str; 2] = ["r3", "r4"];

/// What can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a start after a while.
    Kill,
    /// All of them at once, and a start at once.
    KillAll,
    /// SIGSTOP, and SIGCONT after a while.
    Pause,
    /// One replica and the two others do not hear each other. Clients reach all of them.
    Isolate,
    /// Nobody and one replica hear each other, clients included.
    Vanish,
    /// One replica is not heard by another.
    OneWay,
    /// One replica hears nobody, and is heard.
    Deaf,
    /// Two do not hear each other, and both hear the third.
    Bridge,
    /// Every way loses packets.
    Loss,
    /// One replica's disk is lost with all that is on it. It has to be a voter again by itself, under a new id.
    LoseDisk,
    /// Two more replicas join, get votes, perhaps the lead, and are removed.
    Churn,
    /// The leadership is moved, to another one or to a named one.
    Move,
}

const ALL: [Fault; 12] = [
    Fault::Kill,
    Fault::KillAll,
    Fault::Pause,
    Fault::Isolate,
    Fault::Vanish,
    Fault::OneWay,
    Fault::Deaf,
    Fault::Bridge,
    Fault::Loss,
    Fault::LoseDisk,
    Fault::Churn,
    Fault::Move,
];

/// Breaks and mends a cluster.
pub struct Nemesis {
    random: SmallRng,
    began: Instant,
    waiting: Vec<Fault>,
    done: Vec<Done>,
}

/// A fault that is over.
struct Done {
    fault: Fault,
    /// The longest time without an acknowledged write.
    gap: Duration,
    /// How long the members took to be what they should be, if they changed.
    members: Option<Duration>,
}

/// The ids and names of members with a vote, and without.
type Members = [BTreeSet<(u64, String)>; 2];

impl Nemesis {
    pub fn new(random: SmallRng) -> Self {
        Nemesis {
            random,
            began: Instant::now(),
            waiting: Vec::new(),
            done: Vec::new(),
        }
    }

    /// True once every kind of fault has had its turn.
    pub fn has_done_all(&self) -> bool {
        ALL.iter()
            .all(|fault| self.done.iter().any(|done| done.fault == *fault))
    }

    /// Breaks something, lets the clients write, mends it, and lets them write again. Every kind of fault has its turn
    /// before one has another.
    ///
    /// # Errors
    /// The clients could not write though a quorum was there, or the cluster did not recover.
    pub async fn strike(&mut self, cluster: &mut Cluster, clients: &Clients) -> Result<()> {
        if self.waiting.is_empty() {
            self.waiting = ALL.to_vec();
            self.waiting.shuffle(&mut self.random);
        }
        let Some(fault) = self.waiting.pop() else {
            return Ok(());
        };
        // The leader every second time, and otherwise anybody, which may be the leader.
        let victim = match self.random.random() {
            true => cluster.leader().await?,
            false => self.random.random_range(0..3),
        };
        let other = (victim + self.random.random_range(1..3)) % 3;
        eprintln!(
            "[{:5.1} s] {fault:?}: r{victim}, r{other}; {} writes so far",
            self.began.elapsed().as_secs_f64(),
            clients.acknowledged()
        );
        let struck = Instant::now();
        let writes = self.random.random_range(WRITES);
        let (gap, members) = gap_until(clients, async {
            self.break_it(fault, victim, other, cluster)?;
            let members = self.change_members(fault, victim, cluster).await?;
            writes_go_on(clients, writes, LONG).await?;
            Ok(members)
        })
        .await?;
        let within = |took: Duration| format!("; the members were changed after {:.1} s", took.as_secs_f64());
        eprintln!(
            "          for {:.1} s; the longest time without a write {} ms{}",
            struck.elapsed().as_secs_f64(),
            gap.as_millis(),
            members.map_or_else(String::new, within)
        );
        self.done.push(Done { fault, gap, members });
        mend(fault, victim, cluster)?;
        cluster.ready().await?;
        let writes = self.random.random_range(QUIET);
        writes_go_on(clients, writes, SOON).await
    }

    fn break_it(&mut self, fault: Fault, victim: usize, other: usize, cluster: &mut Cluster) -> Result<()> {
        let (one, two) = (End::Replica(victim), End::Replica(other));
        let third = End::Replica(3 - victim - other);
        let cuts = match fault {
            Fault::Kill => {
                cluster.replicas[victim].process.kill();
                return Ok(());
            }
            Fault::KillAll => {
                // Those that were guests have no part in it any more.
                for replica in &mut cluster.replicas[..3] {
                    replica.process.kill();
                }
                for replica in &mut cluster.replicas[..3] {
                    replica.process.start()?;
                }
                return Ok(());
            }
            Fault::Pause => {
                cluster.replicas[victim].process.signal(Signal::SIGSTOP);
                return Ok(());
            }
            Fault::Isolate => [two, third].map(|end| Cut::between(one, end)).concat(),
            Fault::Vanish => [two, third, End::Clients].map(|end| Cut::between(one, end)).concat(),
            Fault::OneWay => vec![Cut::one_way(one, two)],
            Fault::Deaf => [two, third].map(|end| Cut::one_way(end, one)).to_vec(),
            Fault::Bridge => Cut::between(one, two).to_vec(),
            Fault::Loss => {
                let percent = self.random.random_range(LOSS);
                let ways = [(one, two), (two, third), (third, one)];
                ways.map(|(from, to)| Cut::loss(from, to, percent)).concat()
            }
            Fault::LoseDisk | Fault::Churn | Fault::Move => return Ok(()),
        };
        cluster.network()?.cut(&cuts)
    }

    /// How long it took until the members were what they should be.
    async fn change_members(&mut self, fault: Fault, victim: usize, cluster: &mut Cluster) -> Result<Option<Duration>> {
        let began = Instant::now();
        match fault {
            Fault::LoseDisk => lose_disk(victim, cluster).await?,
            Fault::Churn => self.come_and_go(cluster).await?,
            Fault::Move => self.move_leadership(cluster).await?,
            _ => return Ok(None),
        }
        Ok(Some(began.elapsed()))
    }

    async fn come_and_go(&mut self, cluster: &mut Cluster) -> Result<()> {
        for name in GUESTS {
            let known = cluster
                .replicas
                .iter()
                .position(|replica| replica.process.name() == name);
            let at = match known {
                Some(at) => at,
                None => cluster.add_replica(name)?,
            };
            cluster.replicas[at].process.start()?;
            let peer = cluster.replicas[at].peer();
            ask(cluster, &["members", "add", &peer], |members| {
                members.iter().any(|some| named(some, name))
            })
            .await?;
        }
        ask(cluster, &["members", "promote", GUESTS[0], GUESTS[1]], |[voters, _]| {
            GUESTS.iter().all(|guest| named(voters, guest))
        })
        .await?;
        if self.random.random() {
            move_to(cluster, Some(GUESTS[0])).await?;
        }
        ask(cluster, &["members", "remove", GUESTS[0], GUESTS[1]], |members| {
            let mut left = members.iter().flatten();
            !left.any(|(_, name)| GUESTS.contains(&name.as_str()))
        })
        .await?;
        for replica in &mut cluster.replicas[3..] {
            replica.process.kill();
            replica.wipe()?;
        }
        Ok(())
    }

    async fn move_leadership(&mut self, cluster: &mut Cluster) -> Result<()> {
        let leader = cluster.leader().await?;
        let other = format!("r{}", (leader + self.random.random_range(1..3)) % 3);
        let to = self.random.random::<bool>().then_some(other.as_str());
        move_to(cluster, to).await
    }
}

/// A replica loses its disk, and must be a voter again by itself, under an id that was never given before.
async fn lose_disk(victim: usize, cluster: &mut Cluster) -> Result<()> {
    let before = cluster.members().await?;
    let newest = before.iter().flatten().map(|(id, _)| *id).max();
    let replica = &mut cluster.replicas[victim];
    replica.process.kill();
    replica.wipe()?;
    replica.process.start()?;
    let name = format!("r{victim}");
    until(format!("{name} votes under a new id"), SOON, async || {
        let [voters, learners] = cluster.members().await?;
        let is_new = voters.iter().any(|(id, voter)| *voter == name && Some(*id) > newest);
        ensure!(
            is_new && voters.len() == 3 && learners.is_empty(),
            "{voters:?} {learners:?}, {before:?} before"
        );
        Ok(())
    })
    .await
}

/// Asks for a change of members until it has happened.
async fn ask(cluster: &mut Cluster, arguments: &[&str], is_done: impl Fn(&Members) -> bool) -> Result<()> {
    let endpoints = cluster.endpoints()[..3].join(",");
    until(format!("{arguments:?}"), SOON, async || {
        let finished = run(arguments.iter().chain(&["--endpoints", &endpoints])).await?;
        let members = cluster.members().await?;
        ensure!(is_done(&members), "{finished:?} {members:?}");
        Ok(())
    })
    .await
}

async fn move_to(cluster: &Cluster, to: Option<&str>) -> Result<()> {
    let endpoints = cluster.endpoints()[..3].join(",");
    let to = to.map_or(vec![], |to| vec!["--to", to]);
    until("the leadership moves", SOON, async || {
        let arguments = ["leader", "move", "--endpoints", &endpoints];
        let finished = run(arguments.iter().chain(&to)).await?;
        ensure!(finished.code == Some(0), "{finished:?}");
        Ok(())
    })
    .await
}

fn named(members: &BTreeSet<(u64, String)>, name: &str) -> bool {
    members.iter().any(|(_, member)| member == name)
}

fn mend(fault: Fault, victim: usize, cluster: &mut Cluster) -> Result<()> {
    match fault {
        Fault::Kill => cluster.replicas[victim].process.start(),
        Fault::KillAll => Ok(()),
        Fault::Pause => {
            cluster.replicas[victim].process.signal(Signal::SIGCONT);
            Ok(())
        }
        _ => cluster.network()?.heal(),
    }
}

/// Returns what `done` does, and the longest time without an acknowledged write until then.
async fn gap_until<T>(clients: &Clients, done: impl Future<Output = Result<T>>) -> Result<(Duration, T)> {
    let (mut written, mut since) = (clients.acknowledged(), Instant::now());
    let mut gap = Duration::ZERO;
    let mut look = interval(LOOK_EVERY);
    let mut done = std::pin::pin!(done);
    loop {
        tokio::select! {
            done = &mut done => return Ok((gap.max(since.elapsed()), done?)),
            _ = look.tick() => {
                gap = gap.max(since.elapsed());
                if clients.acknowledged() > written {
                    (written, since) = (clients.acknowledged(), Instant::now());
                }
            }
        }
    }
}

/// Returns after so many more writes, or after `long` and a few.
async fn writes_go_on(clients: &Clients, writes: u64, long: Duration) -> Result<()> {
    let (before, began) = (clients.acknowledged(), Instant::now());
    until(format!("{writes} writes"), SOON, async || {
        let done = clients.acknowledged() - before;
        let is_enough = done >= writes || (done >= WRITES_LEAST && began.elapsed() >= long);
        ensure!(is_enough, "{done} writes");
        Ok(())
    })
    .await
}

impl fmt::Display for Nemesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} faults", self.done.len())?;
        for fault in ALL {
            let of = || self.done.iter().filter(|done| done.fault == fault);
            let Some(gap) = of().map(|done| done.gap).max() else {
                continue;
            };
            write!(
                f,
                ", {fault:?} {} ({} ms without a write at most",
                of().count(),
                gap.as_millis()
            )?;
            if let Some(members) = of().filter_map(|done| done.members).max() {
                write!(
                    f,
                    ", the members were changed after at most {:.1} s",
                    members.as_secs_f64()
                )?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

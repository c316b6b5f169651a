//! Everything is killed in turn while users work.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_table::{Batch, Change, Namespace};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::Cluster;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::prober::{Prober, ProberOptions, Subject};
use holdfast_tests::writes::{WriteLoad, WriteLoadOptions};
use nix::sys::signal::Signal;
use tokio::time::sleep;

use crate::hub::Hub;
use crate::report::Report;
use crate::{Flags, pause};

/// The users whose servers are real.
pub const USERS: [&str; 3] = ["alice", "bob", "carol"];
/// Another one, who comes at the end.
const LATE_USER: &str = "dora";
/// Routes in all.
pub const ROUTES: usize = 2_000;
/// Synthetic routes are in a namespace of their own: the hub removes what it does not know from its own.
const NAMESPACE: &str = "synthetic";
/// The outage of all replicas.
const OUTAGE: Duration = Duration::from_secs(10);
/// A real user is asked for once in so many synthetic ones.
const REAL_USER_EVERY: usize = 10;

const WRITES: WriteLoadOptions = WriteLoadOptions {
    writers: 1,
    pause: Duration::from_millis(3),
    routes_each: 50,
};

struct Replay {
    report: Report,
    // Before the cluster, in whose folder it notes what it has to end.
    hub: Hub,
    cluster: Cluster,
    prober: Prober,
    writes: WriteLoad,
    _echo: Echo,
}

/// Replays it all.
///
/// # Errors
/// A part does not start, or users noticed something.
pub async fn replay(flags: Flags) -> Result<()> {
    let mut replay = Replay::start().await?;
    // They are shown below, and not because of a Ctrl-C.
    replay.cluster.keep_quiet();
    let steps = replay.run().await;
    replay.report.print();
    if let Err(error) = &steps {
        eprintln!("\n{}", replay.cluster.logs());
        eprintln!("incident: stopped early: {error:#}");
    }
    let is_flawless = steps.is_ok() && replay.report.is_flawless();
    println!(
        "\n{}",
        if is_flawless {
            "No user noticed anything."
        } else {
            "Users noticed something: see above."
        }
    );
    if flags.pause {
        pause(&replay.addresses()).await;
    }
    steps?;
    ensure!(is_flawless, "users noticed something");
    Ok(())
}

impl Replay {
    async fn start() -> Result<Self> {
        let report = Report::new();
        let mut cluster = Cluster::start_with_proxies(3, 2).await?;
        report.say("3 replicas and 2 proxies run");

        let hub_folder = cluster.folder().join("hub");
        std::fs::create_dir(&hub_folder)?;
        let settings = [
            ("INCIDENT_ENDPOINTS", cluster.endpoints().join(",")),
            ("INCIDENT_POLL_SECONDS", "10".to_owned()),
        ];
        let public_url = format!("http://{}", cluster.proxies[0].address());
        let mut hub = Hub::new(&hub_folder, &public_url, &settings)?;
        hub.start().await?;
        report.say("a JupyterHub runs, and finds its routes in the cluster");
        hub.start_servers(&USERS).await?;
        report.say(format!("it has started the servers of {}", USERS.join(", ")));

        let echo = Echo::start().await?;
        let names = synthetic_users();
        let changes = names.iter().map(|name| Ok(Change::Put(echo.route(name, NAMESPACE)?)));
        let batch = Batch::new(
            Namespace::parse(NAMESPACE)?,
            changes.collect::<Result<_>>()?,
            Vec::new(),
        )?;
        let writer = Arc::new(cluster.writer(NAMESPACE, Duration::ZERO)?);
        let answer = writer.write(batch).await.context("the synthetic routes")?;
        report.say(format!(
            "{} synthetic routes make {ROUTES} (revision {})",
            names.len(),
            answer.revision
        ));

        cluster.agree().await?;
        let mut prober = Prober::new(subjects(&names), ProberOptions::default());
        for proxy in &cluster.proxies {
            prober.add_proxy(proxy.process.name(), &proxy.address());
        }
        let writes = WriteLoad::start(&writer, NAMESPACE, WRITES);
        let replay = Replay {
            report,
            cluster,
            prober,
            writes,
            hub,
            _echo: echo,
        };
        replay.prober.round().await?;
        replay.prober.take();
        replay.writes.watch_gap();
        Ok(replay)
    }

    async fn run(&mut self) -> Result<()> {
        self.report
            .say("a client asks for every user's route through both proxies, and holds WebSockets");
        self.end_of_step("nothing happens").await?;

        self.kill_proxy(0, "kill -9 a proxy, start it again").await?;
        self.new_proxy("a new proxy with an empty disk").await?;
        let leader = self.cluster.leader().await?;
        self.kill_replica(leader, "kill -9 the leader, start it again").await?;
        let follower = self.cluster.follower().await?;
        self.kill_replica(follower, "kill -9 a follower, start it again")
            .await?;
        self.stop_replicas("stop all replicas for 10 s, restart a proxy")
            .await?;
        self.restart_hub("stop and start the hub").await?;

        let (revision, digest) = self.stop_writing_and_agree().await?;
        self.report.say(format!(
            "all replicas and proxies are at revision {revision}, digest {}",
            &digest[..16]
        ));
        self.find_nobody_stuck().await
    }

    async fn kill_proxy(&mut self, at: usize, step: &str) -> Result<()> {
        let process = &mut self.cluster.proxies[at].process;
        let pid = process.pid().unwrap_or(0);
        self.report.say(format!("kill -9 proxy {} (pid {pid})", process.name()));
        self.prober.expect_down(at);
        process.kill();
        self.prober.expect_up(at);
        process.start()?;
        self.cluster.proxies[at].ready().await?;
        self.report.say("it is ready again, with the table from its disk");
        self.end_of_step(step).await
    }

    async fn new_proxy(&mut self, step: &str) -> Result<()> {
        let at = self.cluster.add_proxy()?;
        let proxy = &mut self.cluster.proxies[at];
        self.report
            .say(format!("start a new proxy {}, which has nothing", proxy.process.name()));
        self.prober.add_proxy(proxy.process.name(), &proxy.address());
        proxy.process.start()?;
        proxy.ready().await?;
        self.report.say("it has the table and is ready");
        self.end_of_step(step).await
    }

    async fn kill_replica(&mut self, at: usize, step: &str) -> Result<()> {
        let process = &mut self.cluster.replicas[at].process;
        let pid = process.pid().unwrap_or(0);
        self.report
            .say(format!("kill -9 replica {} (pid {pid})", process.name()));
        process.kill();
        // Users go on for a whole round while it is dead.
        self.prober.round().await?;
        self.cluster.replicas[at].process.start()?;
        self.cluster.replicas[at].ready().await?;
        self.report.say("it is started again and ready");
        self.end_of_step(step).await
    }

    async fn stop_replicas(&mut self, step: &str) -> Result<()> {
        for replica in &mut self.cluster.replicas {
            replica.process.signal(Signal::SIGTERM);
        }
        for replica in &mut self.cluster.replicas {
            replica.process.ended(SOON).await?;
        }
        self.report.say("all three replicas are stopped");
        // Counted from here on, whatever is done meanwhile.
        let outage = sleep(OUTAGE);

        let (proxy, at) = (&mut self.cluster.proxies[1], 1);
        self.report
            .say(format!("restart proxy {} meanwhile", proxy.process.name()));
        self.prober.expect_down(at);
        proxy.process.terminate(SOON).await?;
        self.prober.expect_up(at);
        proxy.process.start()?;
        proxy.ready().await?;
        self.report
            .say("it is ready, with the table from its disk and no replica to ask");
        self.prober.round().await?;

        outage.await;
        for replica in &mut self.cluster.replicas {
            replica.process.start()?;
        }
        self.cluster.ready().await?;
        self.report.say("all three replicas are started again and ready");
        self.end_of_step(step).await
    }

    async fn restart_hub(&mut self, step: &str) -> Result<()> {
        self.hub.stop().await?;
        self.report.say("the hub is stopped, its users' servers live on");
        self.prober.round().await?;
        self.hub.start().await?;
        self.report.say("the hub runs again and has compared its routes");
        self.hub.start_servers(&[LATE_USER]).await?;
        for proxy in &self.cluster.proxies {
            let answer = holdfast_tests::http::get(&proxy.address(), &format!("/user/{LATE_USER}/api")).await?;
            let identity = answer.header(holdfast_tests::echo::IDENTITY);
            ensure!(
                answer.status == 200 && identity == LATE_USER,
                "{LATE_USER} through {}: {} by {identity:?}",
                proxy.process.name(),
                answer.status
            );
        }
        self.report.say(format!(
            "it has started {LATE_USER}'s server, and every proxy serves it at once"
        ));
        self.end_of_step(step).await
    }

    /// What took most of those 52 minutes: users between a hub, a table and servers that do not agree.
    async fn find_nobody_stuck(&self) -> Result<()> {
        let arguments = [
            "reconcile".to_owned(),
            format!("--hub-url=http://{}", self.hub.address()),
            format!("--token-file={}", self.hub.token_file()?.display()),
            format!("--endpoints={}", self.cluster.endpoints().join(",")),
            "--output=json".to_owned(),
        ];
        let finished = holdfast_tests::fixture::run(arguments).await?;
        ensure!(finished.code == Some(0), "holdfast reconcile: {finished:?}");
        let report: serde_json::Value = serde_json::from_str(&finished.stdout)?;
        let compared = |what: &str| report[what].as_u64().with_context(|| format!("{what} in {report}"));
        self.report.say(format!(
            "holdfast reconcile finds no stuck user: the hub, its {} routes, {} servers and {} proxies agree",
            compared("routes")?,
            compared("servers")?,
            compared("proxies")?,
        ));
        Ok(())
    }

    /// Lets users go on for a whole round through every proxy, then takes down what was seen.
    async fn end_of_step(&mut self, step: &str) -> Result<()> {
        self.prober.round().await?;
        // A step is not over before writes go through again, or their gap would be counted for the next one.
        let before = self.writes.acknowledged();
        holdfast_tests::fixture::until("writes are acknowledged", SOON, async || {
            (self.writes.acknowledged() > before).then_some(()).ok_or("none")
        })
        .await?;
        let (seen, gap) = (self.prober.take(), self.writes.gap());
        self.writes.watch_gap();
        self.report.say(format!("{step}: {seen}"));
        self.report.step(step, seen, Some(gap));
        Ok(())
    }

    async fn stop_writing_and_agree(&mut self) -> Result<(u64, String)> {
        let idle = WriteLoad::start(
            &Arc::new(self.cluster.writer(NAMESPACE, Duration::ZERO)?),
            NAMESPACE,
            WriteLoadOptions { writers: 0, ..WRITES },
        );
        std::mem::replace(&mut self.writes, idle).stop().await;
        self.cluster.agree().await
    }

    fn addresses(&self) -> String {
        let proxies: Vec<_> = self
            .cluster
            .proxies
            .iter()
            .map(|proxy| format!("http://{}", proxy.address()))
            .collect();
        format!(
            "Log in at {} as alice, bob or anybody, with any password.\nAPI: {}\nHub: http://{}\nLogs and data: {}",
            proxies.join(" or "),
            self.cluster.endpoints().join(","),
            self.hub.address(),
            self.cluster.folder().display(),
        )
    }
}

/// The users whose servers are the echo server's.
pub fn synthetic_users() -> Vec<String> {
    (0..ROUTES - USERS.len())
        .map(|number| format!("synthetic-{number:04}"))
        .collect()
}

/// Everybody, the real users again and again among the synthetic ones, who are last.
pub fn subjects(synthetic: &[String]) -> Vec<Subject> {
    let mut subjects = Vec::new();
    let mut real = USERS.iter().cycle();
    for (at, name) in synthetic.iter().enumerate() {
        if at % REAL_USER_EVERY == 0
            && let Some(user) = real.next()
        {
            subjects.push(Subject {
                path: format!("/user/{user}/api"),
                identity: (*user).to_owned(),
            });
        }
        subjects.push(Subject {
            path: format!("/user/{name}/api"),
            identity: name.clone(),
        });
    }
    subjects
}

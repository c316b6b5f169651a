//! Processes die while users work: nobody is sent to another server, or told that theirs does not exist.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::Cluster;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::prober::{Prober, ProberOptions, Subject};
use holdfast_tests::writes::{WriteLoad, WriteLoadOptions};

const USERS: usize = 300;

struct Scene {
    cluster: Cluster,
    prober: Prober,
    load: WriteLoad,
    _echo: Echo,
}

impl Scene {
    /// Three replicas, two proxies, users at work through both, and a hub's load of writes.
    async fn start() -> Result<Self> {
        let echo = Echo::start().await?;
        let mut cluster = Cluster::start_with_proxies(3, 2).await?;
        let names: Vec<_> = (0..USERS).map(|number| format!("user-{number}")).collect();
        let mut changes = vec![Change::Put(Route::parse("/", &echo.default_target(), "{}", "")?)];
        for name in &names {
            changes.push(Change::Put(echo.route(name, "")?));
        }
        let writer = Arc::new(cluster.writer("default", Duration::ZERO)?);
        writer
            .write(Batch::new(Namespace::default(), changes, Vec::new())?)
            .await?;
        let (revision, _) = cluster.agree().await?;
        for proxy in &cluster.proxies {
            proxy.cached(revision).await?;
        }

        let subjects = names.into_iter().map(|name| Subject {
            path: format!("/user/{name}/x?y=1"),
            identity: name,
        });
        let mut prober = Prober::new(subjects.collect(), ProberOptions::default());
        for proxy in &cluster.proxies {
            prober.add_proxy(proxy.process.name(), &proxy.address());
        }
        let options = WriteLoadOptions {
            writers: 1,
            pause: Duration::from_millis(5),
            routes_each: 50,
        };
        let load = WriteLoad::start(&writer, "default", options);
        prober.round().await?;
        Ok(Scene {
            cluster,
            prober,
            load,
            _echo: echo,
        })
    }

    async fn finish(self) -> Result<()> {
        self.prober.round().await?;
        let seen = self.prober.take();
        eprintln!("{seen}");
        for (proxy, after) in &seen.first_right {
            eprintln!("{proxy}: first right answer after {after:?}");
        }
        seen.flawless()?;
        ensure!(seen.echoes > 0, "no WebSocket was ever open");
        self.load.stop().await;
        self.cluster.finish().await
    }
}

#[tokio::test]
async fn p4_nobody_is_misled_when_a_proxy_is_killed_and_started_again() -> Result<()> {
    let mut scene = Scene::start().await?;
    for at in [0, 1, 0] {
        scene.prober.expect_down(at);
        scene.cluster.proxies[at].process.kill();
        scene.prober.round().await?;
        scene.prober.expect_up(at);
        scene.cluster.proxies[at].process.start()?;
        scene.cluster.proxies[at].ready().await?;
        scene.prober.round().await?;
    }
    scene.finish().await
}

#[tokio::test]
async fn p2_nobody_is_misled_by_new_proxies_with_empty_disks() -> Result<()> {
    let mut scene = Scene::start().await?;
    for _ in 0..2 {
        let at = scene.cluster.add_proxy()?;
        let proxy = &mut scene.cluster.proxies[at];
        // Asked from before its first moment on.
        scene.prober.add_proxy(proxy.process.name(), &proxy.address());
        proxy.process.start()?;
        scene.prober.round().await?;
    }
    scene.prober.expect_down(0);
    scene.cluster.proxies[0].process.kill();
    scene.cluster.proxies[0].wipe()?;
    scene.prober.expect_up(0);
    scene.cluster.proxies[0].process.start()?;
    scene.finish().await
}

#[tokio::test]
async fn p1_nobody_notices_when_the_leader_is_killed_and_started_again() -> Result<()> {
    let mut scene = Scene::start().await?;
    for _ in 0..3 {
        let leader = scene.cluster.leader().await?;
        scene.cluster.replicas[leader].process.kill();
        scene.prober.round().await?;
        scene.cluster.replicas[leader].process.start()?;
        scene.cluster.replicas[leader].ready().await?;
    }
    scene.finish().await
}

#[tokio::test]
async fn p1_nobody_notices_when_a_follower_is_killed_and_started_again() -> Result<()> {
    let mut scene = Scene::start().await?;
    for _ in 0..2 {
        let follower = scene.cluster.follower().await?;
        scene.cluster.replicas[follower].process.kill();
        scene.prober.round().await?;
        scene.cluster.replicas[follower].process.start()?;
        scene.cluster.replicas[follower].ready().await?;
    }
    scene.finish().await
}

#[tokio::test]
async fn p1_nobody_notices_when_all_replicas_are_gone_and_proxies_restart_meanwhile() -> Result<()> {
    let mut scene = Scene::start().await?;
    for replica in &mut scene.cluster.replicas {
        replica.process.kill();
    }
    for at in [0, 1] {
        scene.prober.expect_down(at);
        if at == 0 {
            scene.cluster.proxies[at].process.kill();
        } else {
            scene.cluster.proxies[at].process.terminate(SOON).await?;
        }
        scene.prober.expect_up(at);
        scene.cluster.proxies[at].process.start()?;
        scene.prober.round().await?;
    }
    for replica in &mut scene.cluster.replicas {
        replica.process.start()?;
    }
    scene.cluster.ready().await?;
    scene.finish().await
}

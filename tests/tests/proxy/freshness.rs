//! A proxy knows what it has, and how old that is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_client::{Answer, RouteWriter};
use holdfast_table::RouteSpec;
use holdfast_tests::echo::{Echo, IDENTITY};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::http;
use nix::sys::signal::Signal;

/// The hub's.
const WAIT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn p8_when_a_write_returns_every_live_proxy_serves_it() -> Result<()> {
    let echo = Echo::start().await?;
    let cluster = Cluster::start_with_proxies(3, 2).await?;
    let writer = cluster.writer("default", WAIT)?;
    for number in 0..50 {
        let user = format!("user-{number}");
        // First to a server, then to another one, then away.
        for identity in [Some("first"), Some("second"), None] {
            let answer = match identity {
                Some(identity) => {
                    let spec = format!("/user/{user}/");
                    let route = holdfast_table::Route::parse(&spec, &echo.target(identity), "{}", "")?;
                    writer.put(route).await?
                }
                None => writer.delete(RouteSpec::parse(&format!("/user/{user}/"))?).await?,
            };
            ensure!(answer.changed && answer.proxies_live == 2, "{answer:?}");
            ensure!(
                answer.proxies_synced == 2 && answer.proxies_lagging.is_empty(),
                "{answer:?}"
            );
            for proxy in &cluster.proxies {
                let answer = http::get(&proxy.address(), &format!("/user/{user}/x")).await?;
                let (status, found) = (answer.status, answer.header(IDENTITY));
                match identity {
                    Some(identity) => ensure!(status == 200 && found == identity, "{status} by {found:?}"),
                    None => ensure!(status == 404, "{status} by {found:?}"),
                }
            }
        }
    }
    cluster.finish().await
}

#[tokio::test]
async fn p8_a_write_names_the_proxy_that_lags() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start_with_proxies(3, 2).await?;
    let writer = cluster.writer("default", WAIT)?;
    cluster.proxies[1].process.signal(Signal::SIGSTOP);
    let answer = writer.put(echo.route("alice", "")?).await;
    cluster.proxies[1].process.signal(Signal::SIGCONT);
    let answer = answer?;
    ensure!(answer.changed, "{answer:?}");
    ensure!(answer.proxies_live == 2 && answer.proxies_synced == 1, "{answer:?}");
    ensure!(answer.proxies_lagging == ["p1"], "{answer:?}");
    cluster.finish().await
}

/// Three replicas: `p0` follows the leader, `p1` one of the other two, and the write waits for both.
struct Scene {
    echo: Echo,
    cluster: Cluster,
    writer: RouteWriter,
    written: usize,
}

impl Scene {
    async fn start() -> Result<Self> {
        let mut cluster = Cluster::start(3).await?;
        let leader = cluster.leader().await?;
        let (leaders, others): (Vec<_>, Vec<_>) = (0..3).partition(|at| *at == leader);
        for endpoints in [leaders, others] {
            let endpoints: Vec<_> = endpoints.iter().map(|at| cluster.replicas[*at].endpoint()).collect();
            let at = cluster.add_proxy()?;
            let process = &mut cluster.proxies[at].process;
            process.set_flag("--endpoints", endpoints.join(","));
            process.start()?;
            cluster.proxies[at].ready().await?;
        }
        Ok(Scene {
            echo: Echo::start().await?,
            writer: cluster.writer("default", WAIT)?,
            cluster,
            written: 0,
        })
    }

    /// The place of the replica that `p1` follows.
    async fn followed(&self) -> Result<usize> {
        let status = self.cluster.proxies[1].status().await?;
        let name = status["replica"].as_str().context("p1 follows nobody")?.to_owned();
        let mut replicas = self.cluster.replicas.iter();
        replicas
            .position(|replica| replica.process.name() == name)
            .with_context(|| format!("p1 follows {name}"))
    }

    /// Writes one more route. Whatever the answer says of `p1` must be so.
    async fn write(&mut self) -> Result<Answer> {
        self.written += 1;
        let name = format!("user-{}", self.written);
        let answer = self.writer.put(self.echo.route(&name, "")?).await?;
        let path = format!("/user/{name}/x");
        let served = http::get(&self.cluster.proxies[1].address(), &path).await?.status == 200;
        ensure!(answer.proxies_live == 2, "{answer:?}, served by p1: {served}");
        match answer.proxies_synced {
            2 => ensure!(
                served && answer.proxies_lagging.is_empty(),
                "{answer:?}, served: {served}"
            ),
            _ => ensure!(answer.proxies_lagging == ["p1"], "{answer:?}"),
        }
        Ok(answer)
    }

    /// Writes until both proxies have what was written last; so that the leader knows where they are, too.
    async fn written_to_both(&mut self) -> Result<()> {
        until("both proxies are counted", SOON, async || {
            let answer = self.writer.put(self.echo.route("nobody", "")?).await?;
            ensure!(
                (answer.proxies_live, answer.proxies_synced) == (2, 2) && answer.proxies_lagging.is_empty(),
                "{answer:?}"
            );
            Ok(())
        })
        .await?;
        self.write().await?;
        Ok(())
    }
}

#[tokio::test]
async fn p8_a_write_does_not_forget_the_proxies_of_a_replica_that_dies() -> Result<()> {
    let mut scene = Scene::start().await?;
    for _ in 0..5 {
        scene.written_to_both().await?;
        let victim = scene.followed().await?;
        scene.cluster.replicas[victim].process.kill();
        scene.write().await?;
        scene.written_to_both().await?;
        scene.cluster.replicas[victim].process.start()?;
        scene.cluster.replicas[victim].ready().await?;
    }
    scene.cluster.finish().await
}

#[tokio::test]
async fn p8_a_write_does_not_forget_the_proxies_of_a_replica_that_is_stopped() -> Result<()> {
    let mut scene = Scene::start().await?;
    for _ in 0..2 {
        scene.written_to_both().await?;
        let victim = scene.followed().await?;
        scene.cluster.replicas[victim].process.signal(Signal::SIGTERM);
        while scene.cluster.replicas[victim].process.is_running() {
            scene.write().await?;
        }
        scene.write().await?;
        scene.cluster.replicas[victim].process.start()?;
        scene.cluster.replicas[victim].ready().await?;
    }
    scene.cluster.finish().await
}

#[tokio::test]
async fn p8_a_write_names_the_proxies_of_a_replica_that_hangs_until_they_follow_another_one() -> Result<()> {
    let mut scene = Scene::start().await?;
    scene.written_to_both().await?;
    let victim = scene.followed().await?;
    scene.cluster.replicas[victim].process.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let answer = scene.write().await?;
    let took = began.elapsed();
    ensure!(
        answer.proxies_synced == 1 && answer.proxies_lagging == ["p1"],
        "{answer:?}"
    );
    ensure!(took < 3 * WAIT, "{took:?}");
    until("p1 has left it", SOON, async || {
        let answer = scene.write().await?;
        ensure!(answer.proxies_synced == 2, "{answer:?}");
        anyhow::Ok(())
    })
    .await?;
    ensure!(scene.followed().await? != victim, "it hangs");
    scene.cluster.replicas[victim].process.signal(Signal::SIGCONT);
    scene.cluster.finish().await
}

#[tokio::test]
async fn p7_a_proxy_says_how_old_its_table_is() -> Result<()> {
    let mut cluster = Cluster::start_with_proxies(3, 1).await?;
    let staleness = async |cluster: &Cluster| {
        let status = cluster.proxies[0].status().await?;
        let connected = status["connected"].as_bool().unwrap_or_default();
        anyhow::Ok((connected, status["staleness_ms"].as_u64()))
    };
    until("it is fresh", SOON, async || match staleness(&cluster).await? {
        (true, Some(ms)) if ms < 2_000 => Ok(()),
        other => Err(anyhow::anyhow!("{other:?}")),
    })
    .await?;
    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    until("it is 4 s old and says so", SOON, async || {
        match staleness(&cluster).await? {
            (false, Some(ms)) if ms >= 4_000 => Ok(()),
            other => Err(anyhow::anyhow!("{other:?}")),
        }
    })
    .await?;
    ensure!(
        cluster.proxies[0].ready().await.is_ok(),
        "old knowledge is better than none"
    );
    // Nor does it forget when it starts again.
    for is_killed in [true, false] {
        let process = &mut cluster.proxies[0].process;
        if is_killed {
            process.kill();
        } else {
            process.terminate(SOON).await?;
        }
        process.start()?;
        cluster.proxies[0].ready().await?;
        let (connected, ms) = staleness(&cluster).await?;
        ensure!(!connected && ms >= Some(4_000), "{ms:?} after a restart");
    }
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    until("it is fresh again", SOON, async || match staleness(&cluster).await? {
        (true, Some(ms)) if ms < 2_000 => Ok(()),
        other => Err(anyhow::anyhow!("{other:?}")),
    })
    .await?;
    cluster.finish().await
}

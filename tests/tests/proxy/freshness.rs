//! A proxy knows what it has, and how old that is.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_table::RouteSpec;
use holdfast_tests::echo::{Echo, IDENTITY};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::http;

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
    cluster.proxies[1].process.signal(nix::sys::signal::Signal::SIGSTOP);
    let answer = writer.put(echo.route("alice", "")?).await;
    cluster.proxies[1].process.signal(nix::sys::signal::Signal::SIGCONT);
    let answer = answer?;
    ensure!(answer.changed, "{answer:?}");
    ensure!(answer.proxies_live == 2 && answer.proxies_synced == 1, "{answer:?}");
    ensure!(answer.proxies_lagging == ["p1"], "{answer:?}");
    cluster.finish().await
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

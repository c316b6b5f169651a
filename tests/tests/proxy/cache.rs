//! With and without a table on disk.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_table::{Batch, Change, Namespace, Route, RouteSpec};
use holdfast_tests::echo::{Echo, IDENTITY};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Proxy, stays, until};
use holdfast_tests::http;

const ROUTES: usize = 500;

async fn put_all(cluster: &Cluster, echo: &Echo) -> Result<()> {
    let mut changes = vec![Change::Put(Route::parse("/", &echo.default_target(), "{}", "")?)];
    for user in users() {
        changes.push(Change::Put(echo.route(&user, "")?));
    }
    let batch = Batch::new(Namespace::default(), changes, Vec::new())?;
    cluster.writer("default", Duration::ZERO)?.write(batch).await?;
    Ok(())
}

fn users() -> impl Iterator<Item = String> {
    (0..ROUTES).map(|number| format!("user-{number}"))
}

async fn serves_all(proxy: &Proxy) -> Result<()> {
    for user in users() {
        let answer = http::get(&proxy.address(), &format!("/user/{user}/x")).await?;
        let identity = answer.header(IDENTITY);
        ensure!(
            answer.status == 200 && identity == user,
            "{user}: {} by {identity:?}",
            answer.status
        );
    }
    Ok(())
}

#[tokio::test]
async fn p1_a_proxy_restarted_with_its_cache_serves_every_route_while_all_replicas_are_down() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start(3).await?;
    put_all(&cluster, &echo).await?;
    let at = cluster.add_proxy()?;
    cluster.proxies[at].process.start()?;
    cluster.proxies[at].ready().await?;
    let (revision, digest) = cluster.agree().await?;
    cluster.proxies[at].cached(revision).await?;

    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    serves_all(&cluster.proxies[at]).await?;
    for is_killed in [true, false] {
        let process = &mut cluster.proxies[at].process;
        if is_killed {
            process.kill();
        } else {
            process.terminate(SOON).await?;
        }
        process.start()?;
        cluster.proxies[at].ready().await?;
        serves_all(&cluster.proxies[at]).await?;
        let status = cluster.proxies[at].status().await?;
        ensure!(status["source"] == "cache" && status["connected"] == false, "{status}");
        ensure!(status["revision"] == revision && status["digest"] == digest, "{status}");
    }

    // And it goes on from there when the replicas are back.
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    cluster
        .writer("default", Duration::ZERO)?
        .put(echo.route("late", "")?)
        .await?;
    cluster.agree().await?;
    serves_all(&cluster.proxies[at]).await?;
    cluster.finish().await
}

#[tokio::test]
async fn p2_a_proxy_without_a_table_answers_503_and_is_not_ready() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start(3).await?;
    put_all(&cluster, &echo).await?;
    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    let at = cluster.add_proxy()?;
    cluster.proxies[at].process.start()?;
    let (public, admin) = (cluster.proxies[at].address(), cluster.proxies[at].admin());
    until("the proxy lives", SOON, async || {
        let answer = http::get(&admin, "/livez").await?;
        ensure!(answer.status == 200, "{}", answer.status);
        http::get(&public, "/").await
    })
    .await?;
    stays(
        "it denies nothing and promises nothing",
        Duration::from_secs(2),
        async || {
            for path in ["/", "/hub/home", "/user/user-1/", "/user/nobody/lab?x=1"] {
                let answer = http::get(&public, path).await?;
                ensure!(answer.status == 503, "{path}: {}", answer.status);
                ensure!(
                    answer.header("retry-after").parse::<u32>().is_ok(),
                    "{path}: {:?}",
                    answer.headers
                );
            }
            let health = http::get(&public, "/_chp_healthz").await?;
            ensure!(health.status == 503, "/_chp_healthz: {}", health.status);
            let ready = http::get(&admin, "/readyz").await?;
            ensure!(ready.status == 503, "/readyz: {}", ready.status);
            Ok(())
        },
    )
    .await?;
    let status = cluster.proxies[at].status().await?;
    ensure!(status["digest"].is_null() && status["source"] == "none", "{status}");

    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    cluster.proxies[at].ready().await?;
    serves_all(&cluster.proxies[at]).await?;
    let health = http::get(&public, "/_chp_healthz").await?;
    ensure!(
        health.status == 200 && health.json()? == serde_json::json!({"status": "OK"}),
        "{health:?}"
    );
    cluster.finish().await
}

#[tokio::test]
async fn p4_a_proxy_with_an_old_copy_asks_before_it_serves() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start(3).await?;
    put_all(&cluster, &echo).await?;
    let at = cluster.add_proxy()?;
    cluster.proxies[at].process.start()?;
    cluster.proxies[at].ready().await?;
    let (revision, _) = cluster.agree().await?;
    cluster.proxies[at].cached(revision).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    for round in 0..5 {
        cluster.proxies[at].process.kill();
        // Meanwhile a user comes, and another one's server moves away and leaves its address to a third.
        let (new, moved) = (format!("new-{round}"), format!("moved-to-{round}"));
        writer.put(echo.route(&new, "")?).await?;
        writer
            .put(Route::parse("/user/user-1/", &echo.target(&moved), "{}", "")?)
            .await?;
        cluster.proxies[at].process.start()?;
        let address = cluster.proxies[at].address();
        let first = until("the first answer", SOON, async || {
            http::get(&address, "/user/user-1/x").await
        })
        .await?;
        ensure!(
            first.header(IDENTITY) == moved,
            "{} by {}",
            first.status,
            first.header(IDENTITY)
        );
        let first = http::get(&address, &format!("/user/{new}/x")).await?;
        ensure!(
            first.header(IDENTITY) == new,
            "{} by {}",
            first.status,
            first.header(IDENTITY)
        );
    }
    cluster.finish().await
}

/// One replica alone is not believed that every route is gone; all of them are, at once.
#[tokio::test]
async fn a_purge_reaches_a_proxy_that_was_away() -> Result<()> {
    // More than are deleted by name.
    const MANY: usize = 1_500;
    let mut cluster = Cluster::start(3).await?;
    let specs = (0..MANY).map(|number| format!("/user/user-{number}/"));
    let puts = specs
        .clone()
        .map(|spec| Ok(Change::Put(Route::parse(&spec, "http://127.0.0.1:1", "{}", "")?)));
    let puts = Batch::new(Namespace::default(), puts.collect::<Result<_>>()?, Vec::new())?;
    cluster.writer("default", Duration::ZERO)?.write(puts).await?;
    let at = cluster.add_proxy()?;
    cluster.proxies[at].process.start()?;
    cluster.proxies[at].ready().await?;
    let (revision, _) = cluster.agree().await?;
    cluster.proxies[at].cached(revision).await?;
    cluster.proxies[at].process.terminate(SOON).await?;

    let deletes = specs.map(|spec| Ok(Change::Delete(RouteSpec::parse(&spec)?)));
    let deletes = Batch::new(Namespace::default(), deletes.collect::<Result<_>>()?, Vec::new())?;
    let answer = cluster
        .writer("default", Duration::ZERO)?
        .write(deletes.expecting(MANY))
        .await?;
    ensure!(answer.changed && answer.held == 0, "{answer:?}");
    cluster.proxies[at].process.start()?;
    until("the proxy has no route", Duration::from_secs(8), async || {
        let status = cluster.proxies[at].status().await?;
        ensure!(status["routes"] == 0 && status["source"] == "stream", "{status}");
        Ok(())
    })
    .await?;
    let log = cluster.proxies[at].process.log_tail(100);
    ensure!(log.contains("once another replica says so too"), "{log}");
    cluster.agree().await?;
    cluster.finish().await
}

#[tokio::test]
async fn p1_an_empty_table_is_a_table() -> Result<()> {
    let mut cluster = Cluster::start_with_proxies(1, 1).await?;
    let answer = http::get(&cluster.proxies[0].address(), "/user/nobody/").await?;
    ensure!(answer.status == 404, "{}", answer.status);
    cluster.agree().await?;
    cluster.finish().await
}

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_client::{Endpoints, RouteReader, RouteWriter, WriterOptions};
use holdfast_table::{Namespace, Route};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::until;

use crate::Guarded;

fn route(user: &str) -> Result<Route> {
    Ok(Route::parse(
        &format!("/user/{user}/"),
        "http://10.0.0.1:8888",
        "{}",
        "default",
    )?)
}

#[tokio::test]
async fn with_tls_and_a_token_everything_works_through_any_replica() -> Result<()> {
    let mut guarded = Guarded::start(3).await?;
    guarded.start_proxy().await?;
    let follower = guarded.cluster.follower().await?;
    let only = guarded.cluster.replicas[follower].endpoint();

    // A follower forwards, and has neither a certificate nor a token for that.
    let options = WriterOptions {
        namespace: Namespace::default(),
        timeout: SOON,
        wait_for_proxies: Duration::from_secs(5),
    };
    let writer = || -> Result<RouteWriter> {
        let endpoints = Endpoints::parse(&[&only])?.with(guarded.credentials())?;
        Ok(RouteWriter::new(endpoints, options.clone()))
    };
    let answer = writer()?.put(route("alice")?).await?;
    ensure!((answer.proxies_live, answer.proxies_synced) == (1, 1), "{answer:?}");
    let reader = RouteReader::new(Endpoints::parse(&[&only])?.with(guarded.credentials())?, SOON);
    ensure!(reader.get(&route("alice")?.spec).await?.is_some());

    for command in [
        &["status"][..],
        &["routes", "put", "/user/bob/", "http://10.0.0.2:8888"],
        &["routes", "list"],
        &["held"],
        &["members", "list"],
        &["export"],
        &["leader", "move"],
    ] {
        let finished = guarded.ask(command, &[]).await?;
        ensure!(finished.code == Some(0), "{command:?}: {finished:?}");
    }
    let saved = guarded.cluster.folder().join("saved");
    let finished = guarded.ask(&["backup", &saved.display().to_string()], &[]).await?;
    ensure!(finished.code == Some(0) && saved.exists(), "{finished:?}");

    let leader = guarded.cluster.leader().await?;
    guarded.cluster.replicas[leader].process.kill();
    let writer = guarded.cluster.writer("default", Duration::from_secs(1))?;
    until("a write is through", SOON, async || {
        writer.put(route("carol")?).await.map_err(anyhow::Error::from)
    })
    .await?;
    guarded.cluster.replicas[leader].process.start()?;
    guarded.cluster.ready().await?;
    ensure!(guarded.cluster.routes("default").await?.len() == 3);
    guarded.cluster.finish().await
}

#[tokio::test]
async fn a_proxy_that_is_locked_out_serves_what_it_has() -> Result<()> {
    let mut guarded = Guarded::start(1).await?;
    let writer = guarded.cluster.writer("default", Duration::from_secs(5))?;
    let at = guarded.start_proxy().await?;
    let revision = writer.put(route("alice")?).await?.revision;
    let proxy = &mut guarded.cluster.proxies[at];
    proxy.cached(revision.0).await?;
    proxy.process.terminate(SOON).await?;

    let wrong = guarded.cluster.folder().join("wrong");
    std::fs::write(&wrong, "another\n")?;
    let proxy = &mut guarded.cluster.proxies[at];
    proxy.process.set_flag("--endpoints-token-file", &wrong);
    proxy.process.start()?;
    proxy.ready().await?;
    let status = proxy.status().await?;
    ensure!(
        status["revision"] == revision.0 && status["source"] == "cache" && status["connected"] == false,
        "{status}"
    );
    until("its log says why", SOON, async || {
        let log = guarded.cluster.proxies[at].process.log();
        ensure!(log.contains("the token is none of this replica's"), "{log}");
        Ok(())
    })
    .await?;

    // Mended while it runs.
    std::fs::copy(&guarded.token, &wrong)?;
    until("it follows", SOON, async || {
        let status = guarded.cluster.proxies[at].status().await?;
        ensure!(status["connected"] == true, "{status}");
        Ok(())
    })
    .await?;
    guarded.cluster.finish().await
}

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_table::{Route, RouteSpec};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Process, holdfast, until};
use serde_json::Value;

async fn shows(watch: &Process, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<()> {
    until(what, SOON, async || {
        let log = watch.log();
        let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.any(|event| is_it(&event)).then_some(()).context(log.clone())
    })
    .await
}

#[tokio::test]
async fn watch_shows_every_change_also_after_its_replica_died() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let endpoints = cluster.endpoints().join(",");
    let mut watch = Process::new("watch", holdfast()?, cluster.folder()).args([
        "routes",
        "watch",
        "-o",
        "json",
        "--endpoints",
        &endpoints,
    ]);
    watch.start()?;
    shows(&watch, "where it starts", |event| event["event"] == "start").await?;

    let writer = cluster.writer("default", Duration::ZERO)?;
    for victim in 0..3 {
        let spec = format!("/user/alice-{victim}/");
        writer
            .put(Route::parse(&spec, "http://10.0.0.1:8888", r#"{"user":"alice"}"#, "")?)
            .await?;
        shows(&watch, "the new route", |event| {
            event["event"] == "put" && event["route"]["routespec"] == *spec && event["route"]["data"]["user"] == "alice"
        })
        .await?;
        writer.delete(RouteSpec::parse(&spec)?).await?;
        shows(&watch, "the deletion", |event| {
            event["event"] == "delete" && event["routespec"] == *spec
        })
        .await?;
        cluster.replicas[victim].process.kill();
        cluster.replicas[victim].process.start()?;
        cluster.replicas[victim].ready().await?;
    }
    ensure!(watch.is_running(), "{}", watch.log());
    watch.kill();
    cluster.finish().await
}

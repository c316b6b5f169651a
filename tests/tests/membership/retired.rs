//! A replica whose id was taken from it can do no harm.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_client::{Endpoints, RouteReader};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, stays, until};
use holdfast_tests::http;
use holdfast_tests::writes::WriteLoad;
use holdfast_wire::proto::Role;

use crate::voters;

/// Many election timeouts.
const LONG: Duration = Duration::from_secs(4);

#[tokio::test]
async fn p5_a_replaced_replica_on_its_old_directory_is_refused_and_says_so() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let peers = cluster.peers();
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(200).await?;
    // The leader: nobody else could do so much harm.
    let victim = cluster.leader().await?;
    let name = format!("r{victim}");
    cluster.replicas[victim].process.kill();
    let kept = cluster.folder().join("kept");
    std::fs::rename(&cluster.replicas[victim].data_dir, &kept)?;
    cluster.replicas[victim].process.start()?;
    until(format!("{name} is replaced"), SOON, async || {
        let now = voters(&cluster, &["r0", "r1", "r2"]).await?;
        ensure!(now.iter().any(|(id, _)| *id == 4), "{now:?}");
        Ok(())
    })
    .await?;
    cluster.ready().await?;

    // The old disk turns up again, in a process of its own, beside the replica that took its place.
    let at = cluster.add_replica(&name)?;
    std::fs::rename(&kept, &cluster.replicas[at].data_dir)?;
    cluster.replicas[at].process.set_flag("--peers", &peers);
    let leader = cluster.leader().await?;
    let before = cluster.replicas[leader].status().await?;
    cluster.replicas[at].process.start()?;
    let old = &cluster.replicas[at];
    until("it knows that it is retired", SOON, async || {
        let status = old.status().await?;
        ensure!(status.role() == Role::Retired && !status.ready, "{status:?}");
        ensure!(status.problem.contains("empty data directory"), "{status:?}");
        Ok(())
    })
    .await?;
    let readyz = http::get(&format!("127.0.0.1:{}", old.admin_port), "/readyz").await?;
    let text = String::from_utf8_lossy(&readyz.body).into_owned();
    ensure!(
        readyz.status == 503 && text.contains("retired"),
        "{} {text}",
        readyz.status
    );
    ensure!(
        old.process.log().contains("is retired: its id"),
        "its log does not say so"
    );
    let listed = RouteReader::new(Endpoints::parse(&[old.endpoint()])?, Duration::from_secs(2))
        .list(None, "")
        .await;
    ensure!(listed.is_err(), "it lists {listed:?}");
    stays("the others are not disturbed", LONG, async || {
        for replica in &cluster.replicas[..3] {
            let status = replica.status().await?;
            ensure!(
                (status.term, status.leader_id) == (before.term, before.leader_id),
                "{}: term {} and leader {}, before {} and {}",
                status.name,
                status.term,
                status.leader_id,
                before.term,
                before.leader_id
            );
        }
        Ok(())
    })
    .await?;
    let mut refused = 0.0;
    for replica in &cluster.replicas[..3] {
        let metrics = http::get(&format!("127.0.0.1:{}", replica.admin_port), "/metrics")
            .await?
            .body;
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("holdfast_replica_peer_calls_refused_total{reason=\"retired\"}"));
        refused += line
            .and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .unwrap_or(0.0);
    }
    ensure!(refused > 0.0, "nobody has counted its calls");
    cluster.replicas.pop().context("the old one")?.process.kill();
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

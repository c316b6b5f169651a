//! A slow disk costs its replica's own pace, and neither the others' nor what was written.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, run, until};
use holdfast_tests::writes::WriteLoad;

use crate::with_disks;

/// Much longer than a write takes, on a busy machine too.
const SYNC_TAKES: Duration = Duration::from_millis(300);
/// Slow enough to be told; a start syncs a few dozen times.
const SYNC_TAKES_AT_START: Duration = Duration::from_millis(100);
/// Of a slow replica: all that it ever syncs.
const ANYTHING: &str = "-data/";
/// Of four writers that would all wait for the slow disk, longer than the fixture does.
const WRITES: u64 = 600;

/// What `holdfast status` prints once all is well.
async fn status(cluster: &Cluster) -> Result<String> {
    let endpoints = cluster.endpoints().join(",");
    until("all is well", SOON, async || {
        let finished = run(["status", "--endpoints", &endpoints]).await?;
        ensure!(finished.code == Some(0), "{finished:?}");
        Ok(finished.stdout)
    })
    .await
}

/// Whether it notes a slow disk of this replica, whose name comes after its endpoint.
fn is_told_of(status: &str, name: &str) -> bool {
    let line = status.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
    line.is_some_and(|line| line.contains("slow disk: "))
}

#[tokio::test]
async fn writes_do_not_wait_for_one_slow_follower() -> Result<()> {
    let (mut cluster, disks) = with_disks()?;
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(100).await?;
    load.take_latencies();
    load.goes_on(WRITES).await?;
    let quiet = load.take_latencies();
    let follower = cluster.follower().await?;
    disks[follower].slow_down(SYNC_TAKES, ANYTHING)?;
    load.goes_on(WRITES).await?;
    let slow = load.take_latencies();
    let median = Duration::from_micros(slow.value_at_quantile(0.5));
    eprintln!(
        "half of {WRITES} writes within {:?}; with a follower whose syncs take {SYNC_TAKES:?}, within {median:?}",
        Duration::from_micros(quiet.value_at_quantile(0.5))
    );
    ensure!(median < SYNC_TAKES, "writes waited for the slow disk: {median:?}");
    load.is_kept(&cluster).await?;

    disks[follower].mend()?;
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_disk_that_is_slow_from_the_start_is_told_of_and_its_replica_leads_and_dies_without_a_loss() -> Result<()> {
    let (mut cluster, disks) = with_disks()?;
    disks[0].slow_down(SYNC_TAKES_AT_START, ANYTHING)?;
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    let told = status(&cluster).await?;
    ensure!(is_told_of(&told, "r0"), "{told}");
    for quick in [1, 2] {
        // Unless this machine's own disk is slow as well.
        let slow = cluster.replicas[quick].status().await?.disk_slow;
        ensure!(is_told_of(&told, &format!("r{quick}")) == slow, "r{quick}: {told}");
    }
    let log = cluster.replicas[0].process.log();
    ensure!(
        log.contains("the disk is slow") && log.contains("1s..1.5s"),
        "it does not say that it waits longer before it asks for votes:\n{log}"
    );

    // It was the first to lead, but that is not promised.
    if cluster.leader().await? != 0 {
        let endpoints = cluster.endpoints().join(",");
        let moved = run(["leader", "move", "--to", "r0", "--endpoints", &endpoints]).await?;
        ensure!(moved.code == Some(0), "{moved:?}");
    }
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(100).await?;
    load.is_kept(&cluster).await?;

    cluster.replicas[0].process.kill();
    load.goes_on(100).await?;
    load.is_kept(&cluster).await?;
    cluster.replicas[0].process.start()?;
    cluster.replicas[0].ready().await?;
    load.goes_on(100).await?;
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

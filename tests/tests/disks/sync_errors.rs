//! A sync fails, and what it should have kept is gone, as after a real failure.

use anyhow::{Result, ensure};
use holdfast_tests::apart::disks::FailingSyncs;
use holdfast_tests::fixture::Cluster;

use crate::{ends_for_its_disk, load, nothing_is_lost, writes_go_on};

/// The write-ahead log: votes and entries. Its files' names are numbers.
const WRITE_AHEAD_LOG: &str = "/db/0";

async fn cluster() -> Result<(Cluster, Vec<FailingSyncs>)> {
    let mut cluster = Cluster::prepare(3)?;
    let mut syncs = Vec::new();
    for at in 0..3 {
        let folder = cluster.folder().join(format!("r{at}-syncs"));
        std::fs::create_dir(&folder)?;
        let failing = FailingSyncs::compile(&folder)?;
        for (name, value) in failing.environment() {
            cluster.replicas[at].process.set_env(name, value);
        }
        cluster.replicas[at].process.start()?;
        syncs.push(failing);
    }
    cluster.ready().await?;
    Ok((cluster, syncs))
}

#[tokio::test]
async fn p3_a_replica_whose_sync_fails_ends_at_once_and_nothing_acknowledged_is_lost() -> Result<()> {
    let (mut cluster, syncs) = cluster().await?;
    let load = load(&cluster)?;
    writes_go_on(&load, 100).await?;
    for leads in [false, true] {
        let victim = match leads {
            true => cluster.leader().await?,
            false => cluster.follower().await?,
        };
        syncs[victim].fail(WRITE_AHEAD_LOG)?;
        ends_for_its_disk(&mut cluster, victim).await?;
        writes_go_on(&load, 100).await?;
        nothing_is_lost(&cluster, &load).await?;
        syncs[victim].succeed()?;
        cluster.replicas[victim].process.start()?;
        cluster.replicas[victim].ready().await?;
        writes_go_on(&load, 100).await?;
    }
    ensure!(load.failed() == 0, "{} writes were given up", load.failed());
    nothing_is_lost(&cluster, &load).await?;
    load.stop().await;
    cluster.finish().await
}

#[tokio::test]
async fn p3_nothing_acknowledged_is_lost_when_the_syncs_of_all_replicas_fail() -> Result<()> {
    let (mut cluster, syncs) = cluster().await?;
    let load = load(&cluster)?;
    for _ in 0..3 {
        writes_go_on(&load, 100).await?;
        for failing in &syncs {
            failing.fail(WRITE_AHEAD_LOG)?;
        }
        for at in 0..3 {
            ends_for_its_disk(&mut cluster, at).await?;
        }
        for failing in &syncs {
            failing.succeed()?;
        }
        for replica in &mut cluster.replicas {
            replica.process.start()?;
        }
        cluster.ready().await?;
        nothing_is_lost(&cluster, &load).await?;
    }
    load.stop().await;
    cluster.finish().await
}

//! A sync fails, and what it should have kept is gone, as after a real failure; or a write fails.

use anyhow::Result;
use holdfast_tests::apart::disks::{Call, FailingDisk};
use holdfast_tests::fixture::Cluster;

use crate::{Disk, all_at_once, one_after_the_other, with_disks, write_much};

/// Votes and entries. Its files' names are numbers.
const WRITE_AHEAD_LOG: &str = "/db/0";
/// Which tables there are.
const MANIFEST: &str = "/db/MANIFEST";
/// What was in memory once it is too much for that.
const TABLES: &str = ".sst";

struct Failing {
    disk: FailingDisk,
    call: Call,
    part: &'static str,
}

impl Disk for Failing {
    fn fail(&self) -> Result<()> {
        self.disk.fail(self.call, self.part)
    }

    fn mend(&self) -> Result<()> {
        self.disk.mend()
    }

    async fn provoke(&self, cluster: &Cluster) -> Result<()> {
        match self.part {
            WRITE_AHEAD_LOG => Ok(()),
            _ => write_much(cluster).await,
        }
    }
}

async fn cluster(call: Call, part: &'static str) -> Result<(Cluster, Vec<Failing>)> {
    let (mut cluster, disks) = with_disks()?;
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    let disks = disks.into_iter().map(|disk| Failing { disk, call, part });
    Ok((cluster, disks.collect()))
}

#[tokio::test]
async fn p3_a_replica_whose_sync_fails_ends_at_once_and_nothing_acknowledged_is_lost() -> Result<()> {
    let (cluster, disks) = cluster(Call::Sync, WRITE_AHEAD_LOG).await?;
    one_after_the_other(cluster, &disks).await
}

#[tokio::test]
async fn p3_a_replica_whose_write_fails_ends_at_once_and_nothing_acknowledged_is_lost() -> Result<()> {
    let (cluster, disks) = cluster(Call::Write, WRITE_AHEAD_LOG).await?;
    one_after_the_other(cluster, &disks).await
}

#[tokio::test]
async fn p3_nothing_acknowledged_is_lost_when_the_syncs_of_all_replicas_fail() -> Result<()> {
    let (cluster, disks) = cluster(Call::Sync, WRITE_AHEAD_LOG).await?;
    all_at_once(cluster, &disks).await
}

#[tokio::test]
async fn p3_a_replica_that_cannot_say_which_tables_it_has_ends_and_nothing_acknowledged_is_lost() -> Result<()> {
    let (cluster, disks) = cluster(Call::Sync, MANIFEST).await?;
    one_after_the_other(cluster, &disks).await
}

#[tokio::test]
async fn p3_a_replica_that_cannot_write_tables_ends_and_nothing_acknowledged_is_lost() -> Result<()> {
    let (cluster, disks) = cluster(Call::Write, TABLES).await?;
    one_after_the_other(cluster, &disks).await
}

#[tokio::test]
async fn p3_nothing_acknowledged_is_lost_when_no_replica_can_say_which_tables_it_has() -> Result<()> {
    let (cluster, disks) = cluster(Call::Write, MANIFEST).await?;
    all_at_once(cluster, &disks).await
}

#[tokio::test]
async fn p3_nothing_acknowledged_is_lost_when_no_replica_keeps_its_tables() -> Result<()> {
    let (cluster, disks) = cluster(Call::Sync, TABLES).await?;
    all_at_once(cluster, &disks).await
}

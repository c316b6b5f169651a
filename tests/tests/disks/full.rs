//! A full disk takes its replica out of the cluster, and nothing else.

use anyhow::Result;
use holdfast_tests::apart::apart;
use holdfast_tests::apart::disks::SmallDisk;
use holdfast_tests::fixture::Cluster;

use crate::{Disk, all_at_once, one_after_the_other, write_much};

/// More than all tests here write, so that only those get full that are made to.
const MIB: u32 = 1024;

impl Disk for SmallDisk {
    fn fail(&self) -> Result<()> {
        self.fill()
    }

    fn mend(&self) -> Result<()> {
        self.free()
    }

    /// What RocksDB reserved for its log before the disk was full still takes some tens of MiB.
    async fn provoke(&self, cluster: &Cluster) -> Result<()> {
        write_much(cluster).await
    }
}

async fn cluster() -> Result<(Cluster, Vec<SmallDisk>)> {
    let mut cluster = Cluster::prepare(3)?;
    let mut disks = Vec::new();
    for replica in &mut cluster.replicas {
        disks.push(SmallDisk::mount(&replica.data_dir, MIB)?);
        replica.process.start()?;
    }
    cluster.ready().await?;
    Ok((cluster, disks))
}

#[test]
fn a_replica_with_a_full_disk_ends_and_comes_back_when_there_is_space() -> Result<()> {
    apart(async || {
        let (cluster, disks) = cluster().await?;
        one_after_the_other(cluster, &disks).await
    })
}

#[test]
fn p3_nothing_acknowledged_is_lost_when_all_disks_are_full() -> Result<()> {
    apart(async || {
        let (cluster, disks) = cluster().await?;
        all_at_once(cluster, &disks).await
    })
}

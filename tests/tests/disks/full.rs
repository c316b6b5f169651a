//! A full disk takes its replica out of the cluster, and nothing else.

use anyhow::{Result, ensure};
use holdfast_tests::apart::apart;
use holdfast_tests::apart::disks::SmallDisk;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};

use crate::{ends_for_its_disk, load, nothing_is_lost, writes_go_on};

const MIB: u32 = 64;

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
        let (mut cluster, disks) = cluster().await?;
        let load = load(&cluster)?;
        writes_go_on(&load, 100).await?;
        for leads in [false, true] {
            let victim = match leads {
                true => cluster.leader().await?,
                false => cluster.follower().await?,
            };
            disks[victim].fill()?;
            ends_for_its_disk(&mut cluster, victim).await?;
            writes_go_on(&load, 100).await?;
            nothing_is_lost(&cluster, &load).await?;
            // Its end gave some space back. Started too early it ends again, and harms nobody.
            disks[victim].fill()?;
            cluster.replicas[victim].process.start()?;
            let ended = cluster.replicas[victim].process.ended(SOON).await?;
            ensure!(!ended.success(), "{ended}");
            writes_go_on(&load, 10).await?;

            disks[victim].free()?;
            cluster.replicas[victim].process.start()?;
            cluster.replicas[victim].ready().await?;
            writes_go_on(&load, 100).await?;
        }
        ensure!(load.failed() == 0, "{} writes were given up", load.failed());
        nothing_is_lost(&cluster, &load).await?;
        load.stop().await;
        cluster.finish().await
    })
}

#[test]
fn p3_nothing_acknowledged_is_lost_when_all_disks_are_full() -> Result<()> {
    apart(async || {
        let (mut cluster, disks) = cluster().await?;
        let load = load(&cluster)?;
        writes_go_on(&load, 100).await?;
        for disk in &disks {
            disk.fill()?;
        }
        // Without a quorum nothing is written any more, so the third need not notice.
        let quorum_lost = until("two have ended", SOON, async || {
            let ended = (0..3).filter(|at| cluster.replicas[*at].process.exited().is_some());
            let ended: Vec<usize> = ended.collect();
            if ended.len() >= 2 { Ok(ended) } else { Err(ended) }
        });
        for at in quorum_lost.await? {
            ends_for_its_disk(&mut cluster, at).await?;
        }
        for disk in &disks {
            disk.free()?;
        }
        for replica in &mut cluster.replicas {
            replica.process.kill();
            replica.process.start()?;
        }
        cluster.ready().await?;
        nothing_is_lost(&cluster, &load).await?;
        writes_go_on(&load, 100).await?;
        load.stop().await;
        cluster.finish().await
    })
}

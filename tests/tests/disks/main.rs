//! Disks that are full, and disks that do not take or keep what they were given.

mod failing;
mod full;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::writes::WriteLoad;

/// What a replica ends with when its disk fails.
const DISK_FAILED: i32 = 74;

/// The disk of one replica.
trait Disk {
    /// From here on it fails; asked for again, it fails no less.
    fn fail(&self) -> Result<()>;

    /// From here on it does not.
    fn mend(&self) -> Result<()>;

    /// Has the replicas write what it would not take, where a few small writes are not enough.
    async fn provoke(&self, _: &Cluster) -> Result<()> {
        Ok(())
    }
}

/// A follower's disk fails, and then the leader's: that replica ends, the others go on, and it comes back when the disk is
/// well again.
async fn one_after_the_other(mut cluster: Cluster, disks: &[impl Disk]) -> Result<()> {
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(100).await?;
    for leads in [false, true] {
        let victim = match leads {
            true => cluster.leader().await?,
            false => cluster.follower().await?,
        };
        disks[victim].fail()?;
        ends_for_its_disk(&mut cluster, victim, disks).await?;
        load.goes_on(100).await?;
        load.is_kept(&cluster).await?;
        // Started too early it ends again, and harms nobody. Its end may have given some space back.
        disks[victim].fail()?;
        cluster.replicas[victim].process.start()?;
        let ended = cluster.replicas[victim].process.ended(SOON).await?;
        let log = cluster.replicas[victim].process.log_tail(20);
        ensure!(ended.code() == Some(DISK_FAILED), "{ended}\n{log}");
        load.goes_on(10).await?;

        disks[victim].mend()?;
        cluster.replicas[victim].process.start()?;
        cluster.replicas[victim].ready().await?;
        load.goes_on(100).await?;
    }
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

/// All disks fail at once, and all replicas start again when they are well.
async fn all_at_once(mut cluster: Cluster, disks: &[impl Disk]) -> Result<()> {
    let load = WriteLoad::on(&cluster)?;
    for _ in 0..2 {
        load.goes_on(100).await?;
        for disk in disks {
            disk.fail()?;
        }
        // Without a quorum nothing is written any more, so the third need not notice.
        let ended = until("two have ended", SOON, async || {
            disks[0].provoke(&cluster).await?;
            let ended = (0..3).filter(|at| cluster.replicas[*at].process.exited().is_some());
            let ended: Vec<usize> = ended.collect();
            ensure!(ended.len() >= 2, "only {ended:?}");
            Ok(ended)
        })
        .await?;
        for at in ended {
            ends_for_its_disk(&mut cluster, at, disks).await?;
        }
        for disk in disks {
            disk.mend()?;
        }
        for replica in &mut cluster.replicas {
            replica.process.kill();
            replica.process.start()?;
        }
        cluster.ready().await?;
        load.is_kept(&cluster).await?;
    }
    load.goes_on(100).await?;
    load.stop().await;
    cluster.finish().await
}

/// Waits until this replica has ended because of its disk, and says so.
async fn ends_for_its_disk(cluster: &mut Cluster, at: usize, disks: &[impl Disk]) -> Result<()> {
    let name = cluster.replicas[at].process.name().to_owned();
    let ended = until(format!("{name} ends"), SOON, async || {
        disks[at].provoke(cluster).await?;
        let ended = cluster.replicas[at].process.exited();
        ended.ok_or_else(|| anyhow::anyhow!("it runs"))
    })
    .await?;
    let process = &cluster.replicas[at].process;
    let log = process.log();
    ensure!(
        ended.code() == Some(DISK_FAILED)
            && (log.contains("the disk did not take a write") || log.contains("the disk failed")),
        "{name}: {ended}\n{}",
        process.log_tail(20)
    );
    Ok(())
}

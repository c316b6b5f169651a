//! Disks that are full, disks that do not take or keep what they were given, and slow ones.

mod failing;
mod full;
mod slow;

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_client::{Endpoints, RouteWriter, WriterOptions};
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::apart::disks::FailingDisk;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::writes::WriteLoad;

/// What a replica ends with when its disk fails.
const DISK_FAILED: i32 = 74;

/// Routes of one batch that has to leave the memory soon: 3 MB, of 16 MiB that are kept there.
const HEAVY_ROUTES: usize = 50;
const HEAVY_DATA: usize = 60_000;

/// The disk of one replica.
trait Disk {
    /// From here on it fails; asked for again, it fails no less.
    fn fail(&self) -> Result<()>;

    /// From here on it does not.
    fn mend(&self) -> Result<()>;

    /// Has the replicas write what it would not take, where a few small writes are not enough.
    async fn provoke(&self, cluster: &Cluster) -> Result<()>;
}

/// Three replicas that are not started yet, each with a disk that does what it is told to.
fn with_disks() -> Result<(Cluster, Vec<FailingDisk>)> {
    let mut cluster = Cluster::prepare(3)?;
    let mut disks = Vec::new();
    for at in 0..3 {
        let folder = cluster.folder().join(format!("r{at}-disk"));
        std::fs::create_dir(&folder)?;
        let disk = FailingDisk::compile(&folder)?;
        for (name, value) in disk.environment() {
            cluster.replicas[at].process.set_env(name, value);
        }
        disks.push(disk);
    }
    Ok((cluster, disks))
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

/// Fills the replicas' memory and their log, so that they write tables. Nobody counts on what it writes: it may be refused, or never answered.
async fn write_much(cluster: &Cluster) -> Result<()> {
    let data = format!(r#"{{"x":"{}"}}"#, "y".repeat(HEAVY_DATA));
    // Another one every time, for what changes nothing is not written.
    let target = format!("http://127.0.0.1:9/{}", rand::random::<u64>());
    let changes =
        (0..HEAVY_ROUTES).map(|at| Ok(Change::Put(Route::parse(&format!("/heavy/{at}/"), &target, &data, "")?)));
    let batch = Batch::new(Namespace::default(), changes.collect::<Result<_>>()?, Vec::new())?;
    let options = WriterOptions {
        timeout: Duration::from_secs(2),
        ..WriterOptions::default()
    };
    let _ = RouteWriter::new(Endpoints::parse(&cluster.endpoints())?, options)
        .write(batch)
        .await;
    Ok(())
}

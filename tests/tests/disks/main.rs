//! Disks that are full, and disks that do not keep what they were given.

mod full;
mod sync_errors;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::writes::{WriteLoad, WriteLoadOptions, check};

/// What a replica ends with when its disk fails.
const DISK_FAILED: i32 = 74;

fn load(cluster: &Cluster) -> Result<WriteLoad> {
    let options = WriteLoadOptions {
        writers: 4,
        pause: Duration::from_millis(1),
        routes_each: 200,
    };
    let writer = Arc::new(cluster.writer("default", Duration::ZERO)?);
    Ok(WriteLoad::start(&writer, "default", options))
}

/// Waits until so many more writes have been acknowledged.
async fn writes_go_on(load: &WriteLoad, more: u64) -> Result<()> {
    let enough = load.acknowledged() + more;
    until(format!("{more} more writes"), SOON, async || {
        let acknowledged = load.acknowledged();
        if acknowledged >= enough {
            Ok(())
        } else {
            Err(acknowledged)
        }
    })
    .await
}

/// All that was acknowledged is there, while writes go on.
async fn nothing_is_lost(cluster: &Cluster, load: &WriteLoad) -> Result<()> {
    let before = load.fates();
    let found = cluster.routes("default").await?;
    check(&before, &load.fates(), &found)
}

/// Waits until this replica has ended because of its disk, and says so.
async fn ends_for_its_disk(cluster: &mut Cluster, at: usize) -> Result<()> {
    let process = &mut cluster.replicas[at].process;
    let ended = process.ended(SOON).await?;
    let log = process.log();
    ensure!(
        ended.code() == Some(DISK_FAILED)
            && (log.contains("the disk did not take a write") || log.contains("the disk failed")),
        "{}: {ended}\n{}",
        process.name(),
        process.log_tail(20)
    );
    Ok(())
}

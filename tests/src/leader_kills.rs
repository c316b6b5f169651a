//! The leader is killed again and again, and writes are counted: how long there was none, and whether one is lost.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use crate::fixture::Cluster;
use crate::writes::{WriteLoad, check, microseconds};

/// So many writes from one kill's end to the next kill.
const WRITES_BETWEEN: std::ops::Range<u64> = 20..200;
/// So many writes show that they go on. More than can have been answered by a leader that is dead by now.
const WRITES_AFTER: u64 = 20;

/// What was seen.
#[derive(Clone, Debug)]
pub struct LeaderKills {
    /// The longest time without an acknowledged write around each kill, in microseconds.
    pub gaps: Histogram<u64>,
    /// How long each acknowledged write took, in microseconds, kills included.
    pub writes: Histogram<u64>,
}

/// Starts three replicas and kills the leader `kills` times with `kill -9`, each time after a random number of writes.
/// `progress` is told the number of each kill, its gap in between.
///
/// # Errors
/// A route that was acknowledged is lost, a write was given up, or the cluster did not recover in time.
pub async fn kill_leaders(
    kills: usize,
    mut random: SmallRng,
    mut progress: impl FnMut(usize, Duration),
) -> Result<LeaderKills> {
    let mut cluster = Cluster::start(3).await?;
    let load = WriteLoad::on(&cluster)?;
    let mut gaps = microseconds();
    for kill in 1..=kills {
        load.goes_on(random.random_range(WRITES_BETWEEN)).await?;
        let leader = cluster.leader().await?;
        let before = load.fates();
        load.watch_gap();
        cluster.replicas[leader].process.kill();
        load.goes_on(WRITES_AFTER).await?;
        let gap = load.gap();
        gaps.saturating_record(u64::try_from(gap.as_micros())?);
        let found = cluster.routes("default").await?;
        check(&before, &load.fates(), &found)?;
        cluster.replicas[leader].process.start()?;
        cluster.replicas[leader].ready().await?;
        progress(kill, gap);
    }
    let writes = load.take_latencies();
    load.ends_well(&cluster).await?;
    cluster.finish().await?;
    Ok(LeaderKills { gaps, writes })
}

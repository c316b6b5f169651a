//! The short form of `make faults`.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::seed;
use holdfast_tests::leader_kills::kill_leaders;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

const KILLS: usize = 10;
/// Far above what is measured, so that a machine under load is no failure; far below a human's patience.
const GAP_MAX: Duration = Duration::from_secs(10);

#[tokio::test]
async fn p3_no_write_is_lost_and_writes_go_on_after_10_kills_of_the_leader() -> Result<()> {
    let random = SmallRng::seed_from_u64(seed());
    let seen = kill_leaders(KILLS, random, |kill, gap| {
        eprintln!("kill {kill}: no write for {gap:?}")
    })
    .await?;
    ensure!(seen.gaps.len() == KILLS as u64, "{} gaps", seen.gaps.len());
    let longest = Duration::from_micros(seen.gaps.max());
    ensure!(longest < GAP_MAX, "no write was acknowledged for {longest:?}");
    Ok(())
}

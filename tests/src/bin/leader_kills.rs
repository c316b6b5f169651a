//! `leader_kills [NUMBER]`: kills the leader so often (200 times) under writes and prints how long there were none.

use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use holdfast_tests::fixture::seed;
use holdfast_tests::leader_kills::kill_leaders;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

const KILLS: usize = 200;
const TOLD_EVERY: usize = 20;

#[tokio::main]
async fn main() -> Result<()> {
    let kills = match std::env::args().nth(1) {
        Some(number) => number
            .parse()
            .with_context(|| format!("{number:?} is no number of kills"))?,
        None => KILLS,
    };
    let mut longest = Duration::ZERO;
    let tell = |kill: usize, gap: Duration| {
        longest = longest.max(gap);
        if kill.is_multiple_of(TOLD_EVERY) {
            println!("{kill} kills, longest gap so far {} ms", longest.as_millis());
        }
    };
    let seen = kill_leaders(kills, SmallRng::seed_from_u64(seed()), tell).await?;
    println!(
        "{} kills -9 of the leader, {} writes acknowledged, 0 of them lost, 0 given up\n\
         write gap    p50 {}, p99 {}, max {}\n\
         every write  p50 {}, p99 {}, max {}",
        seen.gaps.len(),
        seen.writes.len(),
        at(&seen.gaps, 0.5),
        at(&seen.gaps, 0.99),
        at(&seen.gaps, 1.0),
        at(&seen.writes, 0.5),
        at(&seen.writes, 0.99),
        at(&seen.writes, 1.0),
    );
    Ok(())
}

fn at(microseconds: &Histogram<u64>, quantile: f64) -> String {
    format!("{:.1} ms", microseconds.value_at_quantile(quantile) as f64 / 1000.0)
}

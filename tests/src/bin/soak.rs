//! `soak [MINUTES]`: everything that leaks in proxies, for so long (30 minutes), and whether descriptors and memory stay flat.

use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::soak::soak;

const MINUTES: f64 = 30.0;

#[tokio::main]
async fn main() -> Result<()> {
    let minutes = match std::env::args().nth(1) {
        Some(number) => number
            .parse()
            .with_context(|| format!("{number:?} is no number of minutes"))?,
        None => MINUTES,
    };
    let soaked = soak(Duration::from_secs_f64(minutes * 60.0), |told| println!("{told}")).await?;
    println!("{soaked}");
    soaked.flat()?;
    println!("flat");
    Ok(())
}

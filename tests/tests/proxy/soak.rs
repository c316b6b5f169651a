//! Nothing leaks: `make soak` in small.

use std::time::Duration;

use anyhow::Result;
use holdfast_tests::soak::soak;

#[tokio::test]
async fn descriptors_and_memory_are_flat_under_everything_that_leaks() -> Result<()> {
    let soaked = soak(Duration::from_secs(20), |_| {}).await?;
    println!("{soaked}");
    soaked.flat()
}

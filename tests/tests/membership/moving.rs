//! The leadership moves, and no write fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::Cluster;
use holdfast_tests::writes::WriteLoad;
use serde_json::Value;

use crate::ask;

const MOVES: usize = 20;

#[tokio::test]
async fn p9_the_leadership_moves_under_writes_and_none_fails() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let load = WriteLoad::on(&cluster)?;
    load.goes_on(200).await?;
    load.watch_gap();
    load.goes_on(500).await?;
    let quiet = load.gap();
    let mut gaps = Vec::new();
    for number in 0..MOVES {
        let leader = cluster.leader().await?;
        let target = format!("r{}", (leader + 1 + number % 2) % 3);
        load.goes_on(50).await?;
        load.watch_gap();
        let named = ["leader", "move", "-o", "json", "--to", target.as_str()];
        // Every fourth time wherever it likes.
        let finished = ask(&cluster, if number % 4 == 3 { &named[..4] } else { &named }).await?;
        ensure!(finished.code == Some(0), "{finished:?}");
        let moved: Value = serde_json::from_str(&finished.stdout)?;
        ensure!(moved["from"] == format!("r{leader}"), "{moved}");
        ensure!(number % 4 == 3 || moved["to"] == target, "{moved}");
        load.goes_on(50).await?;
        gaps.push((load.gap(), moved["took_ms"].as_u64().unwrap_or(0)));
        let now = cluster.leader().await?;
        ensure!(moved["to"] == format!("r{now}"), "{moved}, and r{now} leads");
    }
    gaps.sort();
    let (median, longest) = (gaps[MOVES / 2], gaps[MOVES - 1]);
    eprintln!(
        "{MOVES} moves of the leader: longest time without an acknowledged write: median {:?}, at most {:?} ({quiet:?} \
         without any move); the leader was away for {} ms then",
        median.0, longest.0, longest.1
    );
    ensure!(longest.0 < Duration::from_secs(2), "{gaps:?}");
    load.ends_well(&cluster).await?;
    cluster.finish().await
}

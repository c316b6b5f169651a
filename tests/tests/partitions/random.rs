//! Everything at once: clients who write, read and follow, and somebody who breaks things at random.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::apart::apart;
use holdfast_tests::clients::{Clients, Crowd};
use holdfast_tests::fixture::cluster::hex;
use holdfast_tests::fixture::{Cluster, seed};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::nemesis::Nemesis;

const CROWD: Crowd = Crowd {
    writers: 5,
    readers: 5,
    subscribers: 5,
};

/// How long things break: `HOLDFAST_FAULT_SECONDS`, at most 240 because of the patience that tests have.
fn how_long() -> Duration {
    let given = std::env::var("HOLDFAST_FAULT_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(50).min(240))
}

#[test]
fn promises_hold_for_real_processes_under_random_faults() -> Result<()> {
    apart(async || {
        let mut random = SmallRng::seed_from_u64(seed());
        let mut cluster = Cluster::prepare_apart(3)?;
        for replica in &mut cluster.replicas {
            replica.process.start()?;
        }
        cluster.ready().await?;
        let clients = Clients::start(&cluster.endpoints(), CROWD, &mut random)?;
        let mut nemesis = Nemesis::new(SmallRng::seed_from_u64(random.random()));
        let end = Instant::now() + how_long();
        while Instant::now() < end || !nemesis.has_done_all() {
            nemesis.strike(&mut cluster, &clients).await?;
        }
        let history = clients.finish().await?;
        let (revision, digest) = cluster.agree().await?;
        let counts = history.check().context("promises were broken")?;
        ensure!(
            (counts.revisions, hex(&counts.digest)) == (revision, digest.clone()),
            "all replicas have revision {revision} with digest {digest}, the replay has {} with {}",
            counts.revisions,
            hex(&counts.digest)
        );
        eprintln!("{nemesis}\n{counts}\n0 violations");
        cluster.finish().await
    })
}

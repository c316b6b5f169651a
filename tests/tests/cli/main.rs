//! The commands, as an operator runs them.

mod completion;
mod import;
mod reconcile;
mod routes;
mod stand_in;
mod status;
mod up;
mod watch;

use anyhow::Result;
use holdfast_tests::fixture::{Cluster, Finished, run};

/// Runs a command against the cluster.
async fn ask(cluster: &Cluster, arguments: &[&str]) -> Result<Finished> {
    let endpoints = cluster.endpoints().join(",");
    run(arguments.iter().copied().chain(["--endpoints", &endpoints])).await
}

//! Members come, go and are replaced, under writes.

mod forwarded;
mod interrupted;
mod moved;
mod moving;
mod refused;
mod replaced;
mod retired;
mod scaled;

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Finished, run, until};
use serde_json::Value;

/// Runs a command against the cluster.
async fn ask(cluster: &Cluster, arguments: &[&str]) -> Result<Finished> {
    let endpoints = cluster.endpoints().join(",");
    run(arguments.iter().copied().chain(["--endpoints", &endpoints])).await
}

/// A command that has to be refused, with these words.
async fn ask_in_vain(cluster: &Cluster, arguments: &[&str], words: &[&str]) -> Result<()> {
    let finished = ask(cluster, arguments).await?;
    ensure!(finished.code == Some(1), "{arguments:?}: {finished:?}");
    for word in words {
        ensure!(
            finished.stderr.contains(word),
            "{arguments:?}: {word:?} is not in {}",
            finished.stderr
        );
    }
    Ok(())
}

/// The answer of `holdfast members list -o json`.
async fn members(cluster: &Cluster) -> Result<Value> {
    let finished = ask(cluster, &["members", "list", "-o", "json"]).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    Ok(serde_json::from_str(&finished.stdout)?)
}

/// The ids and names of those with a vote, and of those without.
async fn roles(cluster: &Cluster) -> Result<(BTreeSet<(u64, String)>, BTreeSet<(u64, String)>)> {
    let list = members(cluster).await?;
    let all = list["members"].as_array().ok_or_else(|| anyhow!("{list}"))?;
    let of = |learner: bool| {
        all.iter()
            .filter(|member| (member["role"] == "learner") == learner)
            .map(|member| {
                let name = member["name"].as_str().unwrap_or_default();
                (member["id"].as_u64().unwrap_or(0), name.to_owned())
            })
            .collect()
    };
    Ok((of(false), of(true)))
}

/// Waits until exactly these have a vote, and nobody is a learner.
async fn voters(cluster: &Cluster, names: &[&str]) -> Result<BTreeSet<(u64, String)>> {
    let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    until(format!("{names:?} and nobody else are voters"), SOON, async || {
        let (voters, learners) = roles(cluster).await?;
        let found: BTreeSet<String> = voters.iter().map(|(_, name)| name.clone()).collect();
        ensure!(
            found == wanted && voters.len() == names.len() && learners.is_empty(),
            "voters {voters:?}, learners {learners:?}"
        );
        Ok(voters)
    })
    .await
}

//! A quorum is lost for good: the table comes back from a backup, from a survivor, or from a proxy's copy.

mod backup;
mod damaged;
mod manual;
mod recover;
mod replaces;
mod succession;
mod two_wiped;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Finished, run, until};
use holdfast_tests::prober::{Prober, ProberOptions, Subject};
use serde_json::Value;

const USERS: usize = 50;

/// Three replicas, proxies, and users at work who must not notice anything.
struct Scene {
    cluster: Cluster,
    prober: Prober,
    echo: Echo,
}

impl Scene {
    async fn start(proxies: usize) -> Result<Self> {
        let echo = Echo::start().await?;
        let mut cluster = Cluster::start_with_proxies(3, proxies).await?;
        let names: Vec<_> = (0..USERS).map(|number| format!("user-{number}")).collect();
        let mut changes = vec![Change::Put(Route::parse("/", &echo.default_target(), "{}", "")?)];
        for name in &names {
            changes.push(Change::Put(echo.route(name, "")?));
        }
        let batch = Batch::new(Namespace::default(), changes, Vec::new())?;
        cluster.writer("default", Duration::ZERO)?.write(batch).await?;
        let (revision, _) = cluster.agree().await?;
        let subjects = names.into_iter().map(|name| Subject {
            path: format!("/user/{name}/x"),
            identity: name,
        });
        let mut prober = Prober::new(subjects.collect(), ProberOptions::default());
        for proxy in &cluster.proxies {
            proxy.cached(revision).await?;
            prober.add_proxy(proxy.process.name(), &proxy.address());
        }
        prober.round().await?;
        Ok(Scene { cluster, prober, echo })
    }

    fn kill_replicas(&mut self) {
        for replica in &mut self.cluster.replicas {
            replica.process.kill();
        }
    }

    /// Waits until the blank replicas `others` have joined `first`, each with a vote.
    async fn join(&mut self, others: &[usize]) -> Result<()> {
        for at in others {
            self.cluster.replicas[*at].process.start()?;
        }
        self.cluster.ready().await?;
        let cluster = &self.cluster;
        until("all three have a vote", SOON, async || {
            for replica in &cluster.replicas {
                let status = replica.status().await?;
                let voters = status.members.iter().filter(|member| member.voter).count();
                ensure!(voters == 3 && status.members.len() == 3, "{:?}", status.members);
            }
            Ok(())
        })
        .await
    }

    /// Users noticed nothing, and all agree.
    async fn finish(self) -> Result<()> {
        self.prober.round().await?;
        let seen = self.prober.take();
        eprintln!("{seen}");
        seen.flawless()?;
        self.cluster.finish().await
    }
}

/// Runs a command that must succeed, and reads its JSON.
async fn json(arguments: &[&str]) -> Result<Value> {
    let finished = run(arguments.iter().copied().chain(["-o", "json"])).await?;
    ensure!(finished.code == Some(0), "{arguments:?}: {finished:?}");
    serde_json::from_str(&finished.stdout).with_context(|| format!("{finished:?}"))
}

/// Runs a command that must fail, and name all of `parts`.
async fn fails(arguments: &[&str], parts: &[&str]) -> Result<Finished> {
    let finished = run(arguments).await?;
    ensure!(finished.code == Some(1), "{arguments:?}: {finished:?}");
    for part in parts {
        ensure!(finished.stderr.contains(part), "{part:?} is not said: {finished:?}");
    }
    Ok(finished)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// The epoch and the id of the cluster that a proxy follows.
async fn proxy_epoch(cluster: &Cluster, at: usize) -> Result<(u64, String)> {
    let status = cluster.proxies[at].status().await?;
    let epoch = status["epoch"].as_u64().with_context(|| status.to_string())?;
    let cluster_id = status["cluster_id"].as_str().with_context(|| status.to_string())?;
    Ok((epoch, cluster_id.to_owned()))
}

//! Holdfast: replicas that keep the table, and one proxy that follows them.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use holdfast_client::RouteWriter;
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::fixture::{Cluster, free_port, holdfast, until};
use tokio::process::Command;

use super::{By, Routes};

/// Routes in one batch while all are loaded.
const BATCH: usize = 10_000;
/// For a million of them.
const LOADED_WITHIN: Duration = Duration::from_secs(300);
const ENDPOINTS: &str = "--endpoints";

/// A cluster with one proxy.
pub struct Holdfast {
    /// The cluster.
    pub cluster: Cluster,
    writer: RouteWriter,
}

/// What a proxy starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Its copy on disk; it reaches no replica.
    FromCache,
    /// What a replica sends it; it has no copy.
    FromReplica,
}

impl Holdfast {
    /// Starts the cluster with everything at its default and gives it the routes.
    ///
    /// # Errors
    /// It does not take them in time.
    pub(super) async fn start(routes: &Routes, replicas: usize) -> Result<Self> {
        let mut cluster = Cluster::start_with_proxies(replicas, 1).await?;
        // Errors are told with the benchmark's own.
        cluster.keep_quiet();
        let writer = cluster.writer("default", Duration::ZERO)?;
        let holdfast = Holdfast { cluster, writer };
        for first in (0..routes.count()).step_by(BATCH) {
            holdfast.put(routes, first..routes.count().min(first + BATCH)).await?;
        }
        let proxy = &holdfast.cluster.proxies[0];
        until("the proxy has all routes", LOADED_WITHIN, async || {
            let status = proxy.status().await?;
            ensure!(status["routes"] == routes.count(), "{status}");
            Ok(())
        })
        .await?;
        Ok(holdfast)
    }

    /// Where users reach the proxy.
    pub(super) fn address(&self) -> String {
        self.cluster.proxies[0].address()
    }

    /// The proxy's.
    pub(super) fn pids(&mut self) -> Result<Vec<u32>> {
        let process = &mut self.cluster.proxies[0].process;
        let pid = process.pid();
        Ok(vec![pid.with_context(|| process.log_tail(10))?])
    }

    /// Kills the proxy; its next start is from there.
    pub(super) fn stop(&mut self, from: Table) -> Result<()> {
        let endpoints = match from {
            Table::FromCache => format!("127.0.0.1:{}", free_port()),
            Table::FromReplica => self.cluster.endpoints().join(","),
        };
        let proxy = &mut self.cluster.proxies[0];
        proxy.process.kill();
        proxy.process.set_flag(ENDPOINTS, endpoints);
        if from == Table::FromReplica {
            proxy.wipe()?;
        }
        Ok(())
    }

    /// Starts the proxy.
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.cluster.proxies[0].process.start()
    }

    pub(super) async fn add(&self, routes: &Routes, route: usize, by: By) -> Result<()> {
        match by {
            By::Call => self.put(routes, route..route + 1).await,
            By::Command => {
                let output = Command::new(holdfast()?)
                    .args(["routes", "put", &routes.prefix(route), &routes.url(route)])
                    .args([ENDPOINTS, &self.cluster.endpoints().join(",")])
                    .args(["--data", &data(route)])
                    .kill_on_drop(true)
                    .output()
                    .await?;
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Ok(())
            }
        }
    }

    /// One batch: on the disks of a quorum when this returns.
    async fn put(&self, routes: &Routes, range: Range<usize>) -> Result<()> {
        let put = |route| {
            let (prefix, url) = (routes.prefix(route), routes.url(route));
            anyhow::Ok(Change::Put(Route::parse(&prefix, &url, &data(route), "")?))
        };
        let changes = range.map(put).collect::<Result<_>>()?;
        let batch = Batch::new(Namespace::default(), changes, Vec::new())?;
        self.writer.write(batch).await?;
        Ok(())
    }
}

/// Waits until the proxy's copy on disk has all that the replicas have.
///
/// # Errors
/// It has not, in time.
pub async fn cached(cluster: &mut Cluster) -> Result<()> {
    let (revision, _) = cluster.agree().await?;
    cluster.proxies[0].cached(revision).await
}

/// What a hub keeps with a route.
fn data(route: usize) -> String {
    format!(r#"{{"user": "user-{route}", "server_name": ""}}"#)
}

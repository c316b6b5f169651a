//! A hub that lost its database cannot empty the table unnoticed (P10).

mod ends;
mod operator;
mod unmodified;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_client::Answer;
use holdfast_table::{Batch, Change, Namespace, Route, RouteSpec};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::{Cluster, run};
use holdfast_tests::http;
use serde_json::Value;

/// The hub's.
const WAIT: Duration = Duration::from_secs(1);

fn name(number: usize) -> String {
    format!("user-{number}")
}

fn spec(number: usize) -> Result<RouteSpec> {
    Ok(RouteSpec::parse(&format!("/user/{}/", name(number)))?)
}

/// The hub's own route, and one for each of so many users.
async fn fill(cluster: &Cluster, echo: &Echo, users: usize) -> Result<()> {
    let mut changes = vec![Change::Put(Route::parse("/", &echo.default_target(), "{}", "")?)];
    for number in 0..users {
        changes.push(Change::Put(echo.route(&name(number), "")?));
    }
    write(cluster, changes).await?;
    Ok(())
}

/// What a hub does that knows none of so many users: one batch.
async fn forget(cluster: &Cluster, users: usize) -> Result<Answer> {
    let deletes = (0..users).map(|number| Ok(Change::Delete(spec(number)?)));
    write(cluster, deletes.collect::<Result<_>>()?).await
}

async fn write(cluster: &Cluster, changes: Vec<Change>) -> Result<Answer> {
    let batch = Batch::new(Namespace::default(), changes, Vec::new())?;
    Ok(cluster.writer("default", WAIT)?.write(batch).await?)
}

async fn listed(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let routes = cluster.routes("default").await?;
    Ok(routes.iter().map(|route| route.spec.to_string()).collect())
}

/// Runs a command against the cluster; it has to end with this code.
async fn ask(cluster: &Cluster, arguments: &[&str], code: i32) -> Result<String> {
    let endpoints = cluster.endpoints().join(",");
    let finished = run(arguments.iter().copied().chain(["--endpoints", &endpoints])).await?;
    ensure!(finished.code == Some(code), "{arguments:?}: {finished:?}");
    Ok(finished.stdout)
}

/// The routespecs that `holdfast held` lists.
async fn held(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let listing: Value = serde_json::from_str(&ask(cluster, &["held", "-o", "json"], 0).await?)?;
    let rows = listing["held"].as_array().with_context(|| listing.to_string())?;
    let specs = rows
        .iter()
        .map(|row| row["route"]["routespec"].as_str().map(str::to_owned));
    specs.collect::<Option<_>>().with_context(|| listing.to_string())
}

/// Who answers for a user, at every proxy.
async fn answers(cluster: &Cluster, number: usize) -> Result<BTreeSet<(u16, String)>> {
    let mut seen = BTreeSet::new();
    for proxy in &cluster.proxies {
        let answer = http::get(&proxy.address(), &format!("/user/{}/x", name(number))).await?;
        seen.insert((answer.status, answer.header(holdfast_tests::echo::IDENTITY).to_owned()));
    }
    Ok(seen)
}

fn only(status: u16, identity: &str) -> BTreeSet<(u16, String)> {
    BTreeSet::from([(status, identity.to_owned())])
}

//! When a route was last active, as every replica lists it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_client::{Endpoints, RouteReader};
use holdfast_table::{Route, RouteSpec};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Replica, until};
use holdfast_tests::http;
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::{ReportActivityRequest, RouteActivity};
use holdfast_wire::timestamp::now_ms;
use tonic::Status;

const ALICE: &str = "/user/alice/";
const BOB: &str = "/user/bob/";

/// A moment grows so much older on its way from replica to replica, once or twice.
const SLACK_MS: u64 = 4_500;

/// The revision that wrote the route, and when it was last active.
async fn listed(replica: &Replica, spec: &str) -> Result<(u64, u64)> {
    let reader = RouteReader::new(Endpoints::parse(&[replica.endpoint()])?, SOON);
    let listing = reader.list(None, spec).await?;
    let mut routes = listing.routes.iter().zip(&listing.last_activity_ms);
    let (entry, unix_ms) = routes.next().context("there is no such route")?;
    Ok((entry.modified.0, *unix_ms))
}

/// Waits until every replica that runs says that the route was active after `moment`; returns the latest answer.
async fn known_by_all(cluster: &mut Cluster, spec: &str, moment: u64) -> Result<u64> {
    let mut latest = 0;
    for replica in &mut cluster.replicas {
        if replica.process.is_running() {
            let found = until("the activity is known", SOON, async || {
                let (_, found) = listed(replica, spec).await?;
                ensure!(found > moment, "it is {found}, not after {moment}");
                Ok(found)
            });
            latest = latest.max(found.await?);
        }
    }
    Ok(latest)
}

async fn later_than(moment: u64) -> Result<()> {
    until("a later moment", SOON, async || {
        ensure!(now_ms() > moment);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_users_do_at_any_proxy_is_known_to_every_replica_and_outlives_them() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start_with_proxies(3, 2).await?;
    let start = now_ms();
    let writer = cluster.writer("default", Duration::from_secs(5))?;
    writer.put(echo.route("alice", "")?).await?;
    let mut known = known_by_all(&mut cluster, ALICE, start - SLACK_MS).await?;

    for at in [0, 1, 0] {
        later_than(known + 2 * SLACK_MS).await?;
        let before = now_ms();
        let answer = http::get(&cluster.proxies[at].address(), "/user/alice/x").await?;
        ensure!(answer.status == 200, "{}", answer.status);
        known = known_by_all(&mut cluster, ALICE, before - SLACK_MS).await?;
        ensure!(known <= now_ms(), "{known} is yet to come");
        if at == 1 {
            let leader = cluster.leader().await?;
            cluster.replicas[leader].process.kill();
        }
    }

    // No replica remembers, and nobody asks for anything: the proxies tell.
    for replica in &mut cluster.replicas {
        replica.process.kill();
    }
    for replica in &mut cluster.replicas {
        replica.process.start()?;
    }
    cluster.ready().await?;
    let again = known_by_all(&mut cluster, ALICE, known - SLACK_MS).await?;
    ensure!(again < known + SLACK_MS, "{known} became {again}");
    cluster.finish().await
}

fn told(spec: &str, mod_revision: u64, age_ms: u64) -> RouteActivity {
    RouteActivity {
        routespec: spec.into(),
        mod_revision,
        age_ms,
    }
}

async fn report(replica: &Replica, routes: Vec<RouteActivity>) -> Result<Result<(), Status>> {
    let mut client = RoutesClient::connect(format!("http://{}", replica.endpoint())).await?;
    let answer = client.report_activity(ReportActivityRequest { routes }).await;
    Ok(answer.map(|_| ()))
}

#[tokio::test]
async fn what_is_told_of_a_version_makes_no_other_one_active_and_none_idle() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    let route = |spec| Route::parse(spec, "http://10.0.0.1:8888", "", "");
    let start = now_ms();
    writer.put(route(ALICE)?).await?;
    let (first, _) = listed(&cluster.replicas[0], ALICE).await?;
    writer.delete(RouteSpec::parse(ALICE)?).await?;
    writer.put(route(ALICE)?).await?;
    writer.put(route(BOB)?).await?;
    let written = known_by_all(&mut cluster, ALICE, start - SLACK_MS).await?;
    later_than(written + 2 * SLACK_MS).await?;

    let (second, _) = listed(&cluster.replicas[0], ALICE).await?;
    ensure!(second > first, "{second} {first}");
    let (bobs, _) = listed(&cluster.replicas[0], BOB).await?;
    let now = now_ms();
    for replica in &cluster.replicas {
        // By who is late, who has heard of nothing, and who is slow: none of it is news.
        let stale = [first, second + 1_000].map(|version| told(ALICE, version, 0));
        let old = [10_000, 3_600_000, u64::MAX].map(|age_ms| told(ALICE, second, age_ms));
        let gone = told("/user/nobody/", second, 0);
        let routes = stale.into_iter().chain(old).chain([gone]).collect();
        report(replica, routes).await??;
        // Whole or not at all.
        let many = (0..10_001).map(|_| told(ALICE, second, 0)).collect();
        for (routes, named) in [
            (many, "10001"),
            (vec![told(ALICE, second, 0), told("bad", 1, 0)], "bad"),
        ] {
            let refused = report(replica, routes).await?.err().context("it was taken in")?;
            ensure!(Reason::from_status(&refused) == Some(Reason::Invalid), "{refused:?}");
            ensure!(refused.message().contains(named), "{refused:?}");
        }
    }
    // What was told before it is settled when this is.
    report(&cluster.replicas[1], vec![told(BOB, bobs, 0)]).await??;
    known_by_all(&mut cluster, BOB, now - SLACK_MS).await?;
    for replica in &cluster.replicas {
        let (_, active) = listed(replica, ALICE).await?;
        ensure!(active.abs_diff(written) <= SLACK_MS, "{written} became {active}");
    }
    cluster.finish().await
}

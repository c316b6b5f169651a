//! A proxy of ten thousand routes is killed again and again while a client hammers its port.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use holdfast_tests::prober::{Prober, ProberOptions, Subject};

const ROUTES: usize = 10_000;
/// `HOLDFAST_RESTARTS` says another number.
const RESTARTS: usize = 30;
/// Right answers between a start and the next kill.
const ANSWERS: u64 = 50;

#[tokio::test]
async fn p1_p4_thirty_restarts_at_ten_thousand_routes_give_no_wrong_and_no_no_route_answer() -> Result<()> {
    let restarts = match std::env::var("HOLDFAST_RESTARTS") {
        Ok(number) => number.parse().context("HOLDFAST_RESTARTS")?,
        Err(_) => RESTARTS,
    };
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start_with_proxies(3, 1).await?;
    let users: Vec<_> = (0..ROUTES).map(|number| format!("user-{number}")).collect();
    let mut changes = vec![Change::Put(Route::parse("/", &echo.default_target(), "{}", "")?)];
    for user in &users {
        changes.push(Change::Put(echo.route(user, "")?));
    }
    let batch = Batch::new(Namespace::default(), changes, Vec::new())?;
    cluster.writer("default", Duration::ZERO)?.write(batch).await?;
    let (revision, _) = cluster.agree().await?;
    cluster.proxies[0].cached(revision).await?;

    // No two that follow each other are of one user's neighbourhood.
    let subjects = users.into_iter().enumerate().map(|(number, user)| {
        let other = (number * 7919) % ROUTES;
        (
            other,
            Subject {
                path: format!("/user/{user}/x?y=1"),
                identity: user,
            },
        )
    });
    let mut subjects: Vec<_> = subjects.collect();
    subjects.sort_by_key(|(other, _)| *other);
    let options = ProberOptions {
        sockets: 0,
        ..ProberOptions::default()
    };
    let mut prober = Prober::new(subjects.into_iter().map(|(_, subject)| subject).collect(), options);
    let proxy = prober.add_proxy("p0", &cluster.proxies[0].address());
    answers(&prober, 1).await?;
    prober.take();

    let mut total = (0, 0, 0);
    let mut firsts = Vec::new();
    for restart in 1..=restarts {
        prober.expect_down(proxy);
        cluster.proxies[0].process.kill();
        // Asked from now on, long before it listens again.
        prober.expect_up(proxy);
        cluster.proxies[0].process.start()?;
        answers(&prober, ANSWERS)
            .await
            .with_context(|| format!("restart {restart}"))?;
        let seen = prober.take();
        seen.flawless().with_context(|| format!("restart {restart}"))?;
        ensure!(seen.first_right.len() == 1, "restart {restart}: {seen:?}");
        firsts.push(seen.first_right[0].1);
        total = (total.0 + seen.requests, total.1 + seen.not_yet, total.2 + seen.cut);
    }
    firsts.sort();
    println!(
        "{restarts} kills -9 at {ROUTES} routes under {} requests: 0 wrong, 0 no-route, 0 failed once it answers; {} came before it \
         listened or was sure, {} were under way when it died\nstart to first right answer: p50 {:?}, max {:?}",
        total.0,
        total.1,
        total.2,
        firsts[firsts.len() / 2],
        firsts[firsts.len() - 1],
    );
    cluster.finish().await
}

/// Returns when the proxy is up and so many more requests have had an answer.
async fn answers(prober: &Prober, count: u64) -> Result<()> {
    until(format!("{count} right answers"), SOON, async || {
        let seen = prober.seen();
        let taken = seen.requests - seen.not_yet - seen.cut;
        match taken >= count && !seen.first_right.is_empty() {
            true => Ok(()),
            false => Err(seen),
        }
    })
    .await
}

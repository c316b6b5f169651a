//! Requests per second, as many as can be, and what each costs the proxy.

use std::time::Duration;

use anyhow::Result;
use holdfast_benches::proxies::{Routes, SMALL};
use holdfast_benches::targets::{LARGE, Targets};
use holdfast_benches::usage::cpu_of_all;
use holdfast_benches::wrk;

use crate::{Bench, SHARED, at_least_a_second};

const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(4);
/// Before the first round: connections to the targets, and the pages of the table.
const WARM: Duration = Duration::from_secs(1);

/// Many routes to few targets, as in a test of the lookup alone.
pub async fn shared(bench: &mut Bench) -> Result<()> {
    for (count, what) in [
        (1_000, "1,000 routes to 16 targets"),
        (10_000, "10,000 routes to 16 targets"),
        (100_000, "100,000 routes to 16 targets"),
    ] {
        ask(bench, what, count, SHARED, SMALL).await?;
    }
    Ok(())
}

/// A target of its own for each route, as a hub has them.
pub async fn own(bench: &mut Bench) -> Result<()> {
    for (count, what) in [
        (1_000, "1,000 routes to 1,000 targets"),
        (5_000, "5,000 routes to 5,000 targets"),
    ] {
        let targets = bench.run.times(count);
        // All targets are one process, and each listens, and has a connection or more with each proxy.
        let needed = (targets * (bench.kinds.len() + 2)) as u64;
        if needed > bench.open_files {
            let allowed = bench.open_files;
            let why = format!("{what}: needs {needed} open files, {allowed} are allowed (ulimit -Hn)");
            bench.missed.push(why);
            continue;
        }
        ask(bench, what, count, targets, SMALL).await?;
    }
    Ok(())
}

/// Answers of 10 KiB.
pub async fn large(bench: &mut Bench) -> Result<()> {
    ask(bench, "10 KiB answers, 10,000 routes", 10_000, SHARED, LARGE).await
}

async fn ask(bench: &mut Bench, what: &str, count: usize, targets: usize, rest: &str) -> Result<()> {
    let targets = Targets::start(targets)?;
    let routes = Routes::new(bench.run.times(count), targets.addresses());
    let kinds = bench.kinds();
    let proxies = bench.proxies(what, &kinds, &routes, 1).await?;
    let time = at_least_a_second(bench.run.time(ROUND));
    for proxy in &proxies {
        // A failure shows again when it is measured.
        let _ = wrk::ask(proxy.address(), proxy.routes(), rest, CONNECTIONS, WARM).await;
    }
    bench
        .rounds(what, proxies, async |proxy| {
            let pids = proxy.pids()?;
            let before = cpu_of_all(&pids)?;
            let done = wrk::ask(proxy.address(), proxy.routes(), rest, CONNECTIONS, time).await?;
            let used = cpu_of_all(&pids)? - before;
            let mut figures = vec![(what.to_owned(), done.per_second())];
            if !pids.is_empty() {
                let per_request = used.as_secs_f64() * 1e6 / done.requests;
                figures.push((format!("{what}: CPU per request"), per_request));
            }
            Ok(figures)
        })
        .await
}

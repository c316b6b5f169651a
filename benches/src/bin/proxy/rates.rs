//! Requests per second, as many as can be, and what each costs the proxy.

use std::time::Duration;

use anyhow::Result;
use holdfast_benches::proxies::{Proxy, Routes, SMALL};
use holdfast_benches::targets::{LARGE, Targets};
use holdfast_benches::usage::cpu_of_all;
use holdfast_benches::wrk;

use crate::{Bench, SHARED, at_least_a_second};

const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(4);
/// Before the first round: connections to the targets, and the pages of the table.
const WARM: Duration = Duration::from_secs(1);
/// Targets of their own in one process, unless it may have too few files open for so many.
const APART: usize = 1_000;
/// What a process has open beside its targets.
const SPARE: usize = 100;

/// Many routes to few targets, as in a test of the lookup alone.
pub async fn shared(bench: &mut Bench) -> Result<()> {
    for (count, what) in [
        (1_000, "1,000 routes to 16 targets"),
        (10_000, "10,000 routes to 16 targets"),
        (100_000, "100,000 routes to 16 targets"),
    ] {
        ask(bench, what, count, &Targets::start(SHARED)?, SMALL).await?;
    }
    Ok(())
}

/// A target of its own for each route, as a hub has them.
pub async fn own(bench: &mut Bench) -> Result<()> {
    for (count, what) in [
        (1_000, "1,000 routes to 1,000 targets"),
        (5_000, "5,000 routes to 5,000 targets"),
    ] {
        // Each target listens, and has a connection or two with each proxy.
        let needed = 1 + 2 * bench.kinds.len();
        let allowed = usize::try_from(bench.open_files)?.saturating_sub(SPARE) / needed;
        let targets = Targets::spread(bench.run.times(count), allowed.clamp(1, APART))?;
        ask(bench, what, count, &targets, SMALL).await?;
    }
    Ok(())
}

/// Answers of 10 KiB.
pub async fn large(bench: &mut Bench) -> Result<()> {
    ask(
        bench,
        "10 KiB answers, 10,000 routes",
        10_000,
        &Targets::start(SHARED)?,
        LARGE,
    )
    .await
}

async fn ask(bench: &mut Bench, what: &str, count: usize, targets: &Targets, rest: &str) -> Result<()> {
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
            let (per_second, cpu) = asked(proxy, rest, time).await?;
            let mut figures = vec![(what.to_owned(), per_second)];
            figures.extend(cpu.map(|cpu| (format!("{what}: CPU per request"), cpu)));
            Ok(figures)
        })
        .await
}

/// Requests per second, and the microseconds of CPU that each costs the proxy; none if there is no proxy.
pub async fn asked(proxy: &mut Proxy, rest: &str, time: Duration) -> Result<(f64, Option<f64>)> {
    let pids = proxy.pids()?;
    let before = cpu_of_all(&pids)?;
    let done = wrk::ask(proxy.address(), proxy.routes(), rest, CONNECTIONS, time).await?;
    let used = cpu_of_all(&pids)? - before;
    let cpu = (!pids.is_empty()).then(|| used.as_secs_f64() * 1e6 / done.requests);
    Ok((done.per_second(), cpu))
}

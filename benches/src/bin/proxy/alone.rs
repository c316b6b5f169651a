//! Holdfast with a million routes, where nobody else is asked any more: what the number of routes costs it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use holdfast_benches::proxies::holdfast::{Table as From, cached};
use holdfast_benches::proxies::{By, Kind, Proxy, Routes, SMALL};
use holdfast_benches::targets::Targets;
use holdfast_benches::usage::memory_mib;
use holdfast_benches::{median, wrk};
use holdfast_table::{Delta, Entry, Epoch, RequestPath, Revision, Route, Table};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::spawn_blocking;

use crate::rates::asked;
use crate::{Bench, SHARED, at_least_a_second};

const FEW: usize = 10;
const SOME: usize = 1_000;
const MANY: usize = 1_000_000;
const LOOKUPS: usize = 1_000_000;
const ADDED: usize = 10_000;
/// Lookups between two looks at the clock, of paths that were made before.
const AT_A_TIME: usize = 10_000;
const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(4);
const WARM: Duration = Duration::from_secs(1);

pub async fn measure(bench: &mut Bench) -> Result<()> {
    in_a_table(bench).await?;
    let targets = Targets::start(SHARED)?;
    let many = bench.run.times(MANY);
    let mut few = proxy(bench, "alone, 10 routes", FEW, &targets).await?;
    let mut some = proxy(bench, "alone, 1,000 routes", SOME, &targets).await?;
    let mut all = proxy(bench, "alone, 1,000,000 routes", many, &targets).await?;
    let time = at_least_a_second(bench.run.time(ROUND));
    for proxy in [&few, &all] {
        wrk::ask(proxy.address(), proxy.routes(), SMALL, CONNECTIONS, WARM).await?;
    }
    let (mut rates, mut added) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for round in 0..bench.run.rounds(crate::ROUNDS) {
        bench.run.progress(format!("alone: round {}", round + 1));
        for (proxy, what, found) in [
            (&mut few, "alone, 10 routes", &mut rates.0),
            (&mut all, "alone, 1,000,000 routes", &mut rates.1),
        ] {
            let (per_second, cpu) = asked(proxy, SMALL, time).await?;
            add(bench, what, per_second);
            add(
                bench,
                &format!("{what}: CPU per request"),
                cpu.context("Holdfast has a process")?,
            );
            found.push(per_second);
        }
        for (proxy, what, found) in [
            (&mut some, "alone, 1,000 routes: one more by command", &mut added.0),
            (&mut all, "alone, 1,000,000 routes: one more by command", &mut added.1),
        ] {
            for _ in 0..3 {
                let took = proxy.add_route(By::Command).await?.context("Holdfast takes routes")?;
                add(bench, what, took.as_secs_f64() * 1e3);
                found.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    let ratio = |(few, many): &(Vec<f64>, Vec<f64>)| median(many) / median(few);
    add(bench, "alone, 1,000,000 routes to 10: requests/s", ratio(&rates));
    add(bench, "alone, 1,000,000 routes to 1,000: one more", ratio(&added));
    let none = memory_mib(&few.pids()?)?;
    let memory = memory_mib(&all.pids()?)?;
    add(bench, "alone, 1,000 routes: memory", memory_mib(&some.pids()?)?);
    add(bench, "alone, 1,000,000 routes: memory", memory);
    let per_route = (memory - none) * 1024.0 * 1024.0 / many as f64;
    add(bench, "alone, 1,000,000 routes: memory per route", per_route);
    for _ in 0..bench.run.rounds(crate::ROUNDS) {
        starts(bench, "alone, 1,000 routes", &mut some).await?;
        starts(bench, "alone, 1,000,000 routes", &mut all).await?;
    }
    Ok(())
}

/// Kills the proxy, and has it start from its copy on disk alone, then from a replica alone.
async fn starts(bench: &mut Bench, what: &str, proxy: &mut Proxy) -> Result<()> {
    bench.run.progress(format!("{what}: starts again"));
    cached(proxy.cluster().context("Holdfast has a cluster")?).await?;
    for (from, said) in [
        (From::FromCache, "from its cache"),
        (From::FromReplica, "from a replica"),
    ] {
        let took = proxy.restart(from).await?;
        add(bench, &format!("{what}: start {said}"), took.as_secs_f64() * 1e3);
    }
    Ok(())
}

fn add(bench: &mut Bench, row: &str, value: f64) {
    bench.comparison.add(row, Kind::Holdfast, value);
}

async fn proxy(bench: &Bench, what: &str, count: usize, targets: &Targets) -> Result<Proxy> {
    bench.run.progress(format!("{what}: starts"));
    Proxy::start(Kind::Holdfast, &Routes::new(count, targets.addresses()), 3).await
}

/// The table by itself, without a request around the lookup or a stream around the change.
async fn in_a_table(bench: &mut Bench) -> Result<()> {
    let rounds = bench.run.rounds(crate::ROUNDS);
    for (count, told) in [(SOME, "1,000"), (bench.run.times(MANY), "1,000,000")] {
        bench.run.progress(format!("alone: a table of {told} routes"));
        let lookups = bench.run.times(LOOKUPS);
        let found = spawn_blocking(move || {
            let table = table(count)?;
            (0..rounds)
                .map(|round| Ok((look_up(&table, lookups, round as u64)?, put(&table)?)))
                .collect()
        });
        let found: Result<Vec<(f64, f64)>> = found.await?;
        for (nanoseconds, microseconds) in found? {
            add(
                bench,
                &format!("a path looked up in a table of {told} routes"),
                nanoseconds,
            );
            add(bench, &format!("one more in a table of {told} routes"), microseconds);
        }
    }
    Ok(())
}

fn table(count: usize) -> Result<Table> {
    let entries = (0..count).map(entry).collect::<Result<Vec<_>>>()?;
    Ok(Table::from_entries(Epoch(1), Revision(1), entries))
}

fn entry(number: usize) -> Result<Entry> {
    let (spec, data) = (
        format!("/user/user-{number}/"),
        format!(r#"{{"user": "user-{number}"}}"#),
    );
    Ok(Entry {
        route: Route::parse(&spec, "http://10.1.2.3:8888", &data, "")?,
        modified: Revision(1),
    })
}

/// Nanoseconds for the reading of a path and its lookup.
fn look_up(table: &Table, lookups: usize, seed: u64) -> Result<f64> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut took = Duration::ZERO;
    for _ in 0..lookups / AT_A_TIME {
        let paths: Vec<_> = (0..AT_A_TIME)
            .map(|_| format!("/user/user-{}{SMALL}", random.random_range(0..table.len())))
            .collect();
        let began = Instant::now();
        for path in &paths {
            let path = RequestPath::parse(path)?;
            black_box(table.lookup(None, &path)).context("a route is missing")?;
        }
        took += began.elapsed();
    }
    Ok(took.as_secs_f64() * 1e9 / lookups as f64)
}

/// Microseconds for one more route, with the copy that lets others read the table meanwhile.
fn put(table: &Table) -> Result<f64> {
    let deltas: Vec<_> = (0..ADDED)
        .map(|number| {
            let revision = 1 + number as u64;
            Ok(Delta {
                from: Revision(revision),
                to: Revision(revision + 1),
                puts: vec![Arc::new(entry(table.len() + number)?)],
                deletes: Vec::new(),
            })
        })
        .collect::<Result<_>>()?;
    let mut current = Arc::new(table.clone());
    let began = Instant::now();
    for delta in &deltas {
        let mut next = Table::clone(&current);
        next.apply_delta(delta)?;
        current = Arc::new(next);
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / ADDED as f64)
}

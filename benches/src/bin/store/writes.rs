//! Durable writes: one writer, many, and batches. All go to the leader directly.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use holdfast_benches::Run;
use holdfast_benches::comparison::Comparison;
use holdfast_benches::load::{Until, closed, connections};
use holdfast_benches::payload::Payloads;
use holdfast_benches::stores::Store;
use holdfast_benches::usage::cpu_of_all;

/// Written once before anything is measured, then over and over, each time with another value.
const ROUTES: u64 = 10_000;
pub const BATCH: u64 = 100;
pub const BATCHES_IN_FLIGHT: usize = 16;
const ONE_WRITER: Duration = Duration::from_secs(2);
const MANY: Duration = Duration::from_secs(3);
const BATCHES: Duration = Duration::from_secs(3);

/// One writer, one write at a time.
pub async fn one(run: &Run, store: &mut Store, comparison: &mut Comparison) -> Result<()> {
    let (leader, payloads) = prepare(store).await?;
    let connections = connections(store, leader, 1).await?;
    let done = closed(&connections, 1, 1, &payloads, Until::Time(run.time(ONE_WRITER))).await?;
    comparison.add("1 writer: p50", store.system(), done.latencies.ms(50.0));
    Ok(())
}

/// Many writers, one write at a time each.
pub async fn many(run: &Run, store: &mut Store, comparison: &mut Comparison) -> Result<()> {
    let system = store.system();
    let (leader, payloads) = prepare(store).await?;
    for writers in [64, 256] {
        let connections = connections(store, leader, writers).await?;
        let (members, client) = (store.pids(), [std::process::id()]);
        let before = (cpu_of_all(&members)?, cpu_of_all(&client)?);
        let done = closed(&connections, writers, 1, &payloads, Until::Time(run.time(MANY))).await?;
        let used = (cpu_of_all(&members)? - before.0, cpu_of_all(&client)? - before.1);
        let per_write = |cpu: Duration| cpu.as_secs_f64() * 1e6 / done.writes as f64;
        let mut add = |figure: &str, value| comparison.add(&format!("{writers} writers{figure}"), system, value);
        add("", done.per_second());
        add(": p50", done.latencies.ms(50.0));
        add(": p99", done.latencies.ms(99.0));
        add(": CPU of all members per write", per_write(used.0));
        add(": CPU of the client per write", per_write(used.1));
    }
    Ok(())
}

/// Batches, several in flight.
pub async fn batches(run: &Run, store: &mut Store, comparison: &mut Comparison) -> Result<()> {
    let system = store.system();
    let (leader, payloads) = prepare(store).await?;
    let connections = connections(store, leader, BATCHES_IN_FLIGHT).await?;
    let members = store.pids();
    let before = cpu_of_all(&members)?;
    let time = Until::Time(run.time(BATCHES));
    let done = closed(&connections, BATCHES_IN_FLIGHT, BATCH, &payloads, time).await?;
    let used = cpu_of_all(&members)? - before;
    let name = "batches of 100, 16 in flight";
    comparison.add(name, system, done.per_second() * BATCH as f64);
    let per_route = used.as_secs_f64() * 1e6 / (done.writes * BATCH) as f64;
    comparison.add(&format!("{name}: CPU of all members per route"), system, per_route);
    Ok(())
}

/// Finds the leader and writes every route once, so that what is measured is a table in use, and a store that is warm.
async fn prepare(store: &mut Store) -> Result<(usize, Arc<Payloads>)> {
    let leader = store.leader().await?;
    let payloads = Arc::new(Payloads::over(ROUTES));
    let connections = connections(store, leader, BATCHES_IN_FLIGHT).await?;
    let all = Until::Writes(ROUTES / BATCH);
    closed(&connections, BATCHES_IN_FLIGHT, BATCH, &payloads, all).await?;
    Ok((leader, payloads))
}

//! Many routes: how long they take to load, what memory they need, and how soon a newcomer has them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_benches::Run;
use holdfast_benches::comparison::Comparison;
use holdfast_benches::figures::median;
use holdfast_benches::load::{Done, Until, closed, connections};
use holdfast_benches::payload::Payloads;
use holdfast_benches::stores::{Connection, Session, Store, System, Write};
use holdfast_benches::usage::resident_mib;
use tokio::time::sleep;

use crate::writes::{BATCH, BATCHES_IN_FLIGHT};

/// Held when memory is looked at.
const SOME: usize = 10_000;
const MANY: usize = 100_000;
const LARGE_BATCH: u64 = 10_000;
/// Memory is looked at after a pause, when what was only passing has gone.
const SETTLE: Duration = Duration::from_secs(1);

pub async fn measure(run: &Run, store: &mut Store, comparison: &mut Comparison) -> Result<()> {
    let system = store.system();
    let (some, many) = (run.times(SOME) as u64, run.times(MANY) as u64);
    let leader = store.leader().await?;
    let payloads = Arc::new(Payloads::over(many));
    let writers = connections(store, leader, BATCHES_IN_FLIGHT).await?;

    comparison.add("memory of the largest member, empty", system, memory(store).await?);
    let first = load(&writers, some, &payloads).await?;
    comparison.add(
        "memory of the largest member, 10,000 routes",
        system,
        memory(store).await?,
    );
    let rest = load(&writers, many - some, &payloads).await?;
    comparison.add(
        "memory of the largest member, 100,000 routes",
        system,
        memory(store).await?,
    );
    let took = first.took + rest.took;
    comparison.add("load 100,000 routes in batches of 100", system, took.as_secs_f64());

    let (mut decoded, mut tables) = (Vec::new(), Vec::new());
    for member in 0..store.endpoints().len() {
        // Something new before each, so that nobody is served what was made for another.
        touch(&writers[0], &payloads).await?;
        store.healthy().await?;
        let began = Instant::now();
        let routes = store.connect(member).await?.fetch().await?;
        decoded.push(began.elapsed().as_secs_f64());
        ensure!(routes as u64 == many, "{routes} routes instead of {many}");

        touch(&writers[0], &payloads).await?;
        store.healthy().await?;
        let began = Instant::now();
        store.fetch_table(member, usize::try_from(many)?).await?;
        tables.push(began.elapsed().as_secs_f64());
    }
    let fresh = "fresh subscriber, 100,000 routes";
    comparison.add(&format!("{fresh} received and decoded"), system, median(&decoded));
    comparison.add(&format!("{fresh} in a table to look up in"), system, median(&tables));

    // etcd takes 128 operations in a transaction.
    if system == System::Holdfast {
        let batches = many.div_ceil(LARGE_BATCH);
        let done = closed(&writers[..1], 1, many / batches, &payloads, Until::Writes(batches)).await?;
        comparison.add(
            "load 100,000 routes in batches of 10,000",
            system,
            done.took.as_secs_f64(),
        );
    }
    Ok(())
}

async fn load(writers: &[Connection], routes: u64, payloads: &Arc<Payloads>) -> Result<Done> {
    let batches = Until::Writes(routes / BATCH);
    closed(writers, BATCHES_IN_FLIGHT, BATCH, payloads, batches).await
}

async fn touch(connection: &Connection, payloads: &Payloads) -> Result<()> {
    let write = Write {
        payloads: payloads.take(1),
        session: Session::new(),
    };
    Ok(connection.write(&write).await?)
}

async fn memory(store: &mut Store) -> Result<f64> {
    sleep(SETTLE).await;
    let each: Vec<f64> = store.pids().into_iter().map(resident_mib).collect::<Result<_>>()?;
    Ok(each.into_iter().fold(0.0, f64::max))
}

//! How many durable writes do three replicas take, how long does each take, and how long until all know of it?
//!
//! Three replicas, the load and the subscribers share one machine and its disk; that is the machine named in the output.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_benches::{Latencies, Run, median};
use holdfast_client::{Endpoints, LiveTable, RouteWriter, Subscriber, SubscriberConfig};
use holdfast_table::{Batch, Change, Namespace, Revision, Route};
use holdfast_tests::fixture::{Cluster, until};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const WRITERS: [usize; 4] = [1, 16, 64, 256];
/// A client has so many writes under way at most, so that more writers are several clients.
const WRITERS_PER_CLIENT: usize = 32;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const BATCH: u64 = 100;
const SUBSCRIBERS: usize = 1_000;
const DELTAS: usize = 100;
const ROUTES: u64 = 100_000;
const FRESH_SUBSCRIBERS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// Every write of the whole run has a route of its own.
static NEXT: AtomicU64 = AtomicU64::new(0);

#[tokio::main]
async fn main() -> Result<()> {
    let mut run = Run::start(
        "store",
        "durable writes, fan-out, a fresh subscriber; 3 replicas on one machine",
    )?;
    let cluster = Cluster::start(3).await?;
    writes(&mut run, &cluster).await?;
    batches(&mut run, &cluster).await?;
    cluster.finish().await?;
    // On their own, so that what was measured before is not in their tables.
    let cluster = Cluster::start(3).await?;
    fan_out(&mut run, &cluster).await?;
    fresh_subscriber(&mut run, &cluster).await?;
    cluster.finish().await?;
    run.finish()
}

async fn writes(run: &mut Run, cluster: &Cluster) -> Result<()> {
    run.say("\ndurable writes, one route each (rounds interleaved; medians of the rounds)");
    let mut rounds = vec![Vec::new(); WRITERS.len()];
    for _ in 0..run.times(ROUNDS) {
        for (writers, rounds) in WRITERS.into_iter().zip(&mut rounds) {
            rounds.push(write_round(cluster, writers, 1, run.time(ROUND)).await?);
        }
    }
    for (writers, rounds) in WRITERS.into_iter().zip(&rounds) {
        run.say(format!("{writers:>4} writers  {}", told(rounds, "writes/s")));
    }
    Ok(())
}

async fn batches(run: &mut Run, cluster: &Cluster) -> Result<()> {
    run.say(format!("\ndurable batches of {BATCH} routes each"));
    for writers in [1, 16] {
        let mut rounds = Vec::new();
        for _ in 0..run.times(ROUNDS) {
            rounds.push(write_round(cluster, writers, BATCH, run.time(ROUND)).await?);
        }
        let routes = median(&rounds.iter().map(|(rate, _)| rate * BATCH as f64).collect::<Vec<_>>());
        run.say(format!(
            "{writers:>4} writers  {}, {routes:.0} routes/s",
            told(&rounds, "batches/s")
        ));
    }
    Ok(())
}

fn told(rounds: &[(f64, Latencies)], unit: &str) -> String {
    let of = |figure: fn(&(f64, Latencies)) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let rates = of(|(rate, _)| *rate);
    let each: Vec<_> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    format!(
        "{:>6.0} {unit}, p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms   (rounds: {})",
        median(&rates),
        median(&of(|(_, latencies)| latencies.ms(50.0))),
        median(&of(|(_, latencies)| latencies.ms(99.0))),
        of(|(_, latencies)| latencies.ms(100.0)).into_iter().fold(0.0, f64::max),
        each.join(" ")
    )
}

/// Writes for `time`; returns acknowledged writes per second and their latencies.
async fn write_round(cluster: &Cluster, writers: usize, routes: u64, time: Duration) -> Result<(f64, Latencies)> {
    let mut clients = Vec::new();
    for _ in 0..writers.div_ceil(WRITERS_PER_CLIENT) {
        clients.push(Arc::new(cluster.writer("default", Duration::ZERO)?));
    }
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for writer in 0..writers {
        tasks.spawn(write_until(
            clients[writer % clients.len()].clone(),
            routes,
            began + time,
        ));
    }
    let mut all = Latencies::new();
    for latencies in tasks.join_all().await {
        all.merge(&latencies?);
    }
    Ok((all.count() as f64 / began.elapsed().as_secs_f64(), all))
}

async fn write_until(client: Arc<RouteWriter>, routes: u64, end: Instant) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    while Instant::now() < end {
        let batch = new_routes(routes)?;
        let began = Instant::now();
        client.write(batch).await?;
        latencies.add(began.elapsed());
    }
    Ok(latencies)
}

fn new_routes(count: u64) -> Result<Batch> {
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    let put = |number| {
        let spec = format!("/user/user-{number}/");
        let data = format!(r#"{{"user":"user-{number}","server_name":""}}"#);
        Ok(Change::Put(Route::parse(&spec, "http://10.1.2.3:8888", &data, "")?))
    };
    let changes = (first..first + count).map(put).collect::<Result<_>>()?;
    Ok(Batch::new(Namespace::default(), changes, Vec::new())?)
}

async fn fan_out(run: &mut Run, cluster: &Cluster) -> Result<()> {
    let count = run.times(SUBSCRIBERS);
    run.say(format!(
        "\none delta to {count} subscribers in one process, over {} deltas",
        run.times(DELTAS)
    ));
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let mut tables = Vec::new();
    for number in 0..count {
        tables.push(follow(cluster, number, &mut tasks, &stop)?);
    }
    let writer = cluster.writer("default", Duration::ZERO)?;
    let mut revision = writer.write(new_routes(1)?).await?.revision;
    until("everybody follows", PATIENCE, async || {
        let behind = tables.iter().filter(|table| position(table) < Some(revision)).count();
        if behind == 0 { Ok(()) } else { Err(behind) }
    })
    .await?;

    let (mut acknowledged, mut each, mut last) = (Latencies::new(), Latencies::new(), Latencies::new());
    for _ in 0..run.times(DELTAS) {
        revision = revision.next();
        let mut arrivals = JoinSet::new();
        for table in &tables {
            arrivals.spawn(arrival(table.clone(), revision));
        }
        let began = Instant::now();
        let answer = writer.write(new_routes(1)?).await?;
        acknowledged.add(began.elapsed());
        ensure!(answer.revision == revision, "somebody else writes: {answer:?}");
        let mut latest = began;
        for arrived in arrivals.join_all().await {
            let arrived = arrived?;
            each.add(arrived - began);
            latest = latest.max(arrived);
        }
        last.add(latest - began);
    }
    run.say(format!("from the call to its acknowledgement   {acknowledged}"));
    run.say(format!("from the call to one subscriber        {each}"));
    run.say(format!("from the call to all of them           {last}"));
    stop.cancel();
    tasks.join_all().await;
    Ok(())
}

async fn arrival(table: LiveTable, revision: Revision) -> Result<Instant> {
    let mut position = table.watch();
    let arrived = position.wait_for(|position| position.is_some_and(|(_, at)| at >= revision));
    tokio::time::timeout(PATIENCE, arrived)
        .await
        .context("a subscriber never saw a revision")??;
    Ok(Instant::now())
}

fn position(table: &LiveTable) -> Option<Revision> {
    table.current().as_ref().map(|table| table.revision())
}

/// Starts a subscriber with connections of its own.
fn follow(cluster: &Cluster, number: usize, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> Result<LiveTable> {
    let subscriber = Subscriber::new(SubscriberConfig {
        endpoints: Endpoints::parse(&cluster.endpoints())?,
        name: format!("subscriber-{number}"),
        proxy: false,
        cached: None,
    });
    let table = subscriber.table();
    tasks.spawn(subscriber.run(stop.clone()));
    Ok(table)
}

async fn fresh_subscriber(run: &mut Run, cluster: &Cluster) -> Result<()> {
    let routes = if run.is_quick() { ROUTES / 10 } else { ROUTES };
    let writer = cluster.writer("default", Duration::ZERO)?;
    let mut revision = Revision(0);
    let began = Instant::now();
    for _ in 0..10 {
        revision = writer.write(new_routes(routes / 10)?).await?.revision;
    }
    let wrote = began.elapsed();
    run.say(format!(
        "\na fresh subscriber's time to {routes} routes, from nothing, connection included"
    ));
    run.say(format!("written in 10 batches in {:.2} s", wrote.as_secs_f64()));
    let mut times = Latencies::new();
    for number in 0..run.times(FRESH_SUBSCRIBERS) {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let began = Instant::now();
        let table = follow(cluster, number, &mut tasks, &stop)?;
        times.add(arrival(table.clone(), revision).await? - began);
        let found = table.current().as_ref().map_or(0, |table| table.len());
        ensure!(found >= routes as usize, "{found} routes");
        stop.cancel();
        tasks.join_all().await;
    }
    run.say(format!("{times}"));
    Ok(())
}

//! Streams: how soon a thousand of them have a write, and what they cost a writer.
//!
//! Each has a connection of its own, as each proxy has, and they are spread over the members. They are read and decoded,
//! and nothing is done with what comes: the client's own work is the same for every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_benches::comparison::Comparison;
use holdfast_benches::load::{Until, closed, connections};
use holdfast_benches::payload::{Payload, Payloads};
use holdfast_benches::stores::{Connection, Follower, PATIENCE, Session, Store, System, Write};
use holdfast_benches::{Latencies, Run};
use holdfast_tests::fixture::until;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

const STREAMS: usize = 1_000;
const OPENING_AT_ONCE: usize = 32;
const WRITE_EVERY: Duration = Duration::from_millis(20);
const WRITES: usize = 200;
const ONE_WRITER: Duration = Duration::from_secs(2);
const ROUTES: u64 = 10_000;

pub async fn measure(run: &Run, store: &mut Store, comparison: &mut Comparison) -> Result<()> {
    let system = store.system();
    let payloads = Arc::new(Payloads::over(ROUTES));
    let found = follow_and_write(run, store, &payloads, false).await?;
    comparison.add("50 writes/s to 1,000 streams: p50", system, found.delivery.ms(50.0));
    comparison.add("50 writes/s to 1,000 streams: p99", system, found.delivery.ms(99.0));
    comparison.add(
        "1 writer while 1,000 streams follow: p50",
        system,
        found.one_writer.ms(50.0),
    );
    if system == System::Holdfast {
        let found = follow_and_write(run, store, &payloads, true).await?;
        comparison.add(
            "50 writes/s to 1,000 streams that acknowledge: p50",
            system,
            found.delivery.ms(50.0),
        );
        comparison.add(
            "50 writes/s to 1,000 streams that acknowledge: p99",
            system,
            found.delivery.ms(99.0),
        );
        comparison.add(
            "1 writer while 1,000 streams acknowledge: p50",
            system,
            found.one_writer.ms(50.0),
        );
    }
    Ok(())
}

struct Found {
    // From the start of a write to its arrival at a stream.
    delivery: Latencies,
    one_writer: Latencies,
}

/// When the timed writes began, shared by those who write and those who receive.
struct Timed {
    zero: Instant,
    // The first write that is timed.
    first: u64,
    // Microseconds after `zero`, by write; others are not timed.
    began: Vec<AtomicU64>,
    arrivals: AtomicU64,
}

impl Timed {
    fn new(writes: &[Payload]) -> Self {
        Timed {
            zero: Instant::now(),
            first: writes.first().map_or(0, |payload| payload.write),
            began: (0..writes.len()).map(|_| AtomicU64::new(0)).collect(),
            arrivals: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn of(&self, write: u64) -> Option<&AtomicU64> {
        self.began.get(usize::try_from(write.checked_sub(self.first)?).ok()?)
    }

    fn begin(&self, write: u64) {
        if let Some(began) = self.of(write) {
            began.store(self.now(), Ordering::Relaxed);
        }
    }

    /// How long the write took to come here, if it is one of the timed.
    fn arrive(&self, write: u64, now: u64) -> Option<Duration> {
        let began = self.of(write)?.load(Ordering::Relaxed);
        Some(Duration::from_micros(now.saturating_sub(began)))
    }
}

async fn follow_and_write(run: &Run, store: &mut Store, payloads: &Arc<Payloads>, acknowledges: bool) -> Result<Found> {
    let leader = store.leader().await?;
    let count = run.times(STREAMS);
    let writes = payloads.take(run.times(WRITES) as u64);
    let expected = (count * writes.len()) as u64;
    let timed = Arc::new(Timed::new(&writes));
    let stop = CancellationToken::new();
    let mut streams = JoinSet::new();
    for follower in open(store, count, acknowledges).await? {
        streams.spawn(receive(follower, timed.clone(), stop.clone()));
    }

    let writer = connections(store, leader, 1).await?;
    write_evenly(&writer[0], writes, &timed).await?;
    until("every stream has every write", PATIENCE, async || {
        let arrivals = timed.arrivals.load(Ordering::Relaxed);
        if arrivals == expected {
            Ok(())
        } else {
            Err(format!("{arrivals} of {expected}"))
        }
    })
    .await?;
    let one_writer = closed(&writer, 1, 1, payloads, Until::Time(run.time(ONE_WRITER)))
        .await?
        .latencies;

    stop.cancel();
    let mut delivery = Latencies::new();
    while let Some(received) = streams.join_next().await {
        received??.into_iter().for_each(|latency| delivery.add(latency));
    }
    ensure!(
        delivery.count() == expected,
        "{} of {expected} arrived",
        delivery.count()
    );
    Ok(Found { delivery, one_writer })
}

async fn open(store: &Store, count: usize, acknowledges: bool) -> Result<Vec<Follower>> {
    let members = store.endpoints().len();
    let turns = Semaphore::new(OPENING_AT_ONCE);
    let open = |number: usize| {
        let turns = &turns;
        async move {
            let _turn = turns.acquire().await?;
            let connection = store.connect(number % members).await?;
            connection.follow(&format!("stream-{number}"), acknowledges).await
        }
    };
    futures_util::future::try_join_all((0..count).map(open)).await
}

/// Starts a write every so often, whether the one before has been answered or not: a store that is slow gets no fewer.
async fn write_evenly(connection: &Connection, writes: Vec<Payload>, timed: &Arc<Timed>) -> Result<()> {
    let mut ticks = tokio::time::interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    for payload in writes {
        ticks.tick().await;
        let (connection, timed) = (connection.clone(), timed.clone());
        let write = Write {
            payloads: vec![payload],
            session: Session::new(),
        };
        under_way.spawn(async move {
            timed.begin(payload.write);
            timeout(PATIENCE, connection.write(&write)).await??;
            anyhow::Ok(())
        });
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(())
}

async fn receive(mut follower: Follower, timed: Arc<Timed>, stop: CancellationToken) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(timed.began.len());
    let mut writes = Vec::new();
    while let Some(message) = stop.run_until_cancelled(follower.next(&mut writes)).await {
        message?;
        let now = timed.now();
        let before = latencies.len();
        latencies.extend(writes.drain(..).filter_map(|write| timed.arrive(write, now)));
        let arrived = latencies.len() - before;
        if arrived > 0 {
            timed.arrivals.fetch_add(arrived as u64, Ordering::Relaxed);
        }
    }
    Ok(latencies)
}

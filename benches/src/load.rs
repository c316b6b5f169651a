//! Writers: as many as can be at once, one every so often, or steadily through trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::figures::Latencies;
use crate::payload::Payloads;
use crate::stores::{Connection, PATIENCE, Session, Store, Write};

/// Connections of all writers together; of one writer: one.
const CONNECTIONS: usize = 8;

/// Connections to one member for so many writers.
///
/// # Errors
/// It cannot be connected to.
pub async fn connections(store: &Store, member: usize, writers: usize) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for _ in 0..writers.min(CONNECTIONS) {
        connections.push(store.connect(member).await?);
    }
    Ok(connections)
}

/// What a load has done.
#[derive(Clone)]
pub struct Done {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// From the first start to the last answer.
    pub took: Duration,
    /// From each start to its answer.
    pub latencies: Latencies,
}

impl Done {
    /// Acknowledged writes per second.
    pub fn per_second(&self) -> f64 {
        self.writes as f64 / self.took.as_secs_f64()
    }
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so long.
    Time(Duration),
    /// After so many writes.
    Writes(u64),
}

/// `writers` writers, each of which writes `batch` routes, waits for the answer and starts over.
///
/// # Errors
/// The first write that fails: none should.
pub async fn closed(
    connections: &[Connection],
    writers: usize,
    batch: u64,
    payloads: &Arc<Payloads>,
    until: Until,
) -> Result<Done> {
    let began = Instant::now();
    let (end, writes) = match until {
        Until::Time(time) => (Some(began + time), u64::MAX),
        Until::Writes(writes) => (None, writes),
    };
    let turns = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let connection = connections[writer % connections.len()].clone();
        let (payloads, turns) = (payloads.clone(), turns.clone());
        tasks.spawn(async move {
            let mut session = Session::new();
            let mut latencies = Latencies::new();
            while end.is_none_or(|end| Instant::now() < end) && turns.fetch_add(1, Ordering::Relaxed) < writes {
                let write = Write {
                    payloads: payloads.take(batch),
                    session: session.clone(),
                };
                let began = Instant::now();
                timeout(PATIENCE, connection.write(&write))
                    .await
                    .context("no answer")??;
                latencies.add(began.elapsed());
                session.advance();
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Latencies::new();
    while let Some(done) = tasks.join_next().await {
        latencies.merge(&done??);
    }
    Ok(Done {
        writes: latencies.count(),
        took: began.elapsed(),
        latencies,
    })
}

/// Few writers that go on through a change of leader: a write that fails or gets no answer is tried at the next member.
pub struct Steady {
    stop: CancellationToken,
    tasks: JoinSet<Result<Vec<(Instant, Instant)>>>,
}

/// So many writers, each with a pause between two writes: a load that a quiet machine takes with ease.
const STEADY_WRITERS: usize = 4;
const STEADY_PAUSE: Duration = Duration::from_millis(1);
/// A try without an answer is given up after it.
const TRY: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(1);

impl Steady {
    /// Starts them, all at member `first`; `connections` are one for each member.
    pub fn start(connections: &[Connection], first: usize, payloads: &Arc<Payloads>) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for _ in 0..STEADY_WRITERS {
            let writer = write_steadily(connections.to_vec(), first, payloads.clone(), stop.clone());
            tasks.spawn(writer);
        }
        Steady { stop, tasks }
    }

    /// Ends them once their writes are acknowledged; returns start and end of every write, all retries included.
    ///
    /// # Errors
    /// One could not be written in time.
    pub async fn stop(mut self) -> Result<Vec<(Instant, Instant)>> {
        self.stop.cancel();
        let mut all = Vec::new();
        while let Some(writes) = self.tasks.join_next().await {
            all.extend(writes??);
        }
        Ok(all)
    }
}

async fn write_steadily(
    connections: Vec<Connection>,
    first: usize,
    payloads: Arc<Payloads>,
    stop: CancellationToken,
) -> Result<Vec<(Instant, Instant)>> {
    let mut members = connections.iter().cycle().skip(first);
    let mut member = members.next().context("no members")?;
    let mut session = Session::new();
    let mut writes = Vec::new();
    while !stop.is_cancelled() {
        let write = Write {
            payloads: payloads.take(1),
            session: session.clone(),
        };
        let began = Instant::now();
        loop {
            let failed = match timeout(TRY, member.write(&write)).await {
                Ok(Ok(())) => break,
                Ok(Err(status)) => status.to_string(),
                Err(_) => format!("no answer within {TRY:?}"),
            };
            if began.elapsed() > PATIENCE {
                bail!("not written within {PATIENCE:?}: {failed}");
            }
            member = members.next().context("no members")?;
            sleep(RETRY_AFTER).await;
        }
        writes.push((began, Instant::now()));
        session.advance();
        sleep(STEADY_PAUSE).await;
    }
    Ok(writes)
}

/// The longest of the writes that ended from `from` to `to`.
pub fn longest(writes: &[(Instant, Instant)], from: Instant, to: Instant) -> Duration {
    let ended = writes.iter().filter(|(_, ended)| (from..=to).contains(ended));
    ended.map(|(began, ended)| *ended - *began).max().unwrap_or_default()
}

/// When the first write from now on is acknowledged by one of these members, whatever it takes: a new one is started
/// every few milliseconds, at each member in turn.
///
/// # Errors
/// None was, in time.
pub async fn first_acknowledgement(connections: &[Connection], payloads: &Payloads) -> Result<Instant> {
    const EVERY: Duration = Duration::from_millis(5);
    let began = Instant::now();
    let mut tries = JoinSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut members = connections.iter().cycle();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let connection = members.next().context("no members")?.clone();
                let write = Write { payloads: payloads.take(1), session: Session::new() };
                tries.spawn(async move { connection.write(&write).await.map(|()| Instant::now()) });
            }
            Some(answer) = tries.join_next() => {
                if let Ok(acknowledged) = answer? {
                    return Ok(acknowledged);
                }
            }
        }
        if began.elapsed() > PATIENCE {
            bail!("nothing was acknowledged within {PATIENCE:?}");
        }
    }
}

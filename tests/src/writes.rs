//! A load of writes that remembers what was acknowledged, how long each write took, and how long nothing was acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use holdfast_client::RouteWriter;
use holdfast_table::Route;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::fixture::cluster::SOON;
use crate::fixture::{Cluster, until};

/// Writers that put one route after the other until they are stopped.
pub struct WriteLoad {
    ledger: Arc<Ledger>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriteLoadOptions {
    /// How many put at the same time, each its own routes.
    pub writers: usize,
    /// How long each waits from one answer to its next write.
    pub pause: Duration,
    /// How many routes each writer has: after so many it starts over, with other targets.
    pub routes_each: u64,
}

impl Default for WriteLoadOptions {
    /// As many writes as the cluster takes from four, of few routes, so that each is written again and again.
    fn default() -> Self {
        WriteLoadOptions {
            writers: 4,
            pause: Duration::from_millis(1),
            routes_each: 200,
        }
    }
}

struct Ledger {
    acknowledged: AtomicU64,
    failed: AtomicU64,
    routes: Mutex<BTreeMap<String, Fate>>,
    gap: Mutex<Option<Gap>>,
    microseconds: Mutex<Histogram<u64>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            routes: Mutex::default(),
            gap: Mutex::default(),
            microseconds: Mutex::new(microseconds()),
        }
    }
}

/// An empty histogram of times in microseconds, up to an hour.
pub fn microseconds() -> Histogram<u64> {
    Histogram::new_with_max(3_600_000_000, 3).expect("a good range")
}

/// What is known of one routespec's target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// What the last acknowledged write said.
    pub acknowledged: Option<String>,
    /// Writes after it that failed or still wait: perhaps they happened, perhaps not.
    pub perhaps: Vec<String>,
}

struct Gap {
    last: Instant,
    longest: Duration,
}

impl WriteLoad {
    /// Starts writing to `cluster`, in the default namespace.
    ///
    /// # Errors
    /// Never, for this namespace.
    pub fn on(cluster: &Cluster) -> Result<Self> {
        let writer = Arc::new(cluster.writer("default", Duration::ZERO)?);
        Ok(WriteLoad::start(&writer, "default", WriteLoadOptions::default()))
    }

    /// Starts writing `/load/<writer>/<n>/` through `writer`, whose namespace is `namespace`.
    pub fn start(writer: &Arc<RouteWriter>, namespace: &str, options: WriteLoadOptions) -> Self {
        let ledger = Arc::new(Ledger::default());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for number in 0..options.writers {
            let (ledger, writer, namespace) = (ledger.clone(), writer.clone(), namespace.to_owned());
            tasks.spawn(write(ledger, writer, namespace, number, options, stop.clone()));
        }
        WriteLoad { ledger, stop, tasks }
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.ledger.acknowledged.load(Ordering::Relaxed)
    }

    /// How many writes failed for good: their writer gave up.
    pub fn failed(&self) -> u64 {
        self.ledger.failed.load(Ordering::Relaxed)
    }

    /// Returns once so many more writes have been acknowledged.
    ///
    /// # Errors
    /// They are not, in time.
    pub async fn goes_on(&self, more: u64) -> Result<()> {
        let enough = self.acknowledged() + more;
        until(format!("{more} more writes"), SOON, async || {
            let acknowledged = self.acknowledged();
            ensure!(acknowledged >= enough, "{} are missing", enough - acknowledged);
            Ok(())
        })
        .await
    }

    /// Shows that all that was acknowledged is there, while writes go on.
    ///
    /// # Errors
    /// A route is missing or wrong, or the cluster does not list.
    pub async fn is_kept(&self, cluster: &Cluster) -> Result<()> {
        let before = self.fates();
        let found = cluster.routes("default").await?;
        check(&before, &self.fates(), &found)
    }

    /// Stops writing: all that was acknowledged is there, and no writer has given up.
    ///
    /// # Errors
    /// A route is missing or wrong, or a write was given up.
    pub async fn ends_well(self, cluster: &Cluster) -> Result<()> {
        let failed = self.failed();
        let acknowledged = self.stop().await;
        check(&acknowledged, &acknowledged, &cluster.routes("default").await?)?;
        ensure!(failed == 0, "{failed} writes were given up");
        Ok(())
    }

    /// Starts to look for the longest time without any acknowledged write.
    pub fn watch_gap(&self) {
        *lock(&self.ledger.gap) = Some(Gap {
            last: Instant::now(),
            longest: Duration::ZERO,
        });
    }

    /// The longest time without any acknowledged write since [`watch_gap`](Self::watch_gap), up to now.
    pub fn gap(&self) -> Duration {
        let gap = lock(&self.ledger.gap);
        gap.as_ref()
            .map_or(Duration::ZERO, |gap| gap.longest.max(gap.last.elapsed()))
    }

    /// How long each acknowledged write took, in microseconds, since the last time this was asked.
    pub fn take_latencies(&self) -> Histogram<u64> {
        let mut microseconds = lock(&self.ledger.microseconds);
        let taken = microseconds.clone();
        microseconds.reset();
        taken
    }

    /// What must be in the table, as far as it can be known at this moment.
    pub fn fates(&self) -> BTreeMap<String, Fate> {
        lock(&self.ledger.routes).clone()
    }

    /// Stops writing once the writes under way have their answers; returns what must be in the table.
    pub async fn stop(mut self) -> BTreeMap<String, Fate> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.fates()
    }
}

/// Compares what was acknowledged before `found` was listed with what is there.
///
/// Writes that were acknowledged meanwhile are given by `later`, taken after the listing.
///
/// # Errors
/// A route is missing, or has a target that no write can explain.
pub fn check(before: &BTreeMap<String, Fate>, later: &BTreeMap<String, Fate>, found: &[Route]) -> Result<()> {
    let found: BTreeMap<_, _> = found
        .iter()
        .map(|route| (route.spec.as_str(), route.target.as_str()))
        .collect();
    for (spec, fate) in before {
        let Some(acknowledged) = &fate.acknowledged else {
            continue;
        };
        let target = found.get(spec.as_str());
        ensure!(
            target.is_some(),
            "{spec} was acknowledged with {acknowledged} and is not there"
        );
        let is_explained = later.get(spec).is_some_and(|later| {
            // Targets count up: any one between the two is a write that happened in between.
            let newest = later
                .perhaps
                .iter()
                .chain(&later.acknowledged)
                .map(|target| version(target))
                .max();
            target.map(|target| version(target)) >= Some(version(acknowledged))
                && target.map(|target| version(target)) <= newest
        });
        ensure!(
            is_explained,
            "{spec} was acknowledged with {acknowledged} and is {target:?}"
        );
    }
    Ok(())
}

fn version(target: &str) -> u64 {
    target
        .rsplit('/')
        .next()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

async fn write(
    ledger: Arc<Ledger>,
    writer: Arc<RouteWriter>,
    namespace: String,
    number: usize,
    options: WriteLoadOptions,
    stop: CancellationToken,
) {
    // Looked at between writes only: a write that is under way gets its answer.
    for version in (1..).take_while(|_| !stop.is_cancelled()) {
        let spec = format!("/load/{number}/{}/", version % options.routes_each);
        let target = format!("http://127.0.0.1:9/{version}");
        let Ok(route) = Route::parse(&spec, &target, "{}", &namespace) else {
            return;
        };
        lock(&ledger.routes)
            .entry(spec.clone())
            .or_default()
            .perhaps
            .push(target.clone());
        let began = Instant::now();
        match writer.put(route).await {
            Ok(_) => ledger.acknowledge(&spec, target, began.elapsed()),
            Err(_) => drop(ledger.failed.fetch_add(1, Ordering::Relaxed)),
        }
        stop.run_until_cancelled(tokio::time::sleep(options.pause)).await;
    }
}

impl Ledger {
    fn acknowledge(&self, spec: &str, target: String, took: Duration) {
        lock(&self.microseconds).saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        lock(&self.routes).insert(
            spec.to_owned(),
            Fate {
                acknowledged: Some(target),
                perhaps: Vec::new(),
            },
        );
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        if let Some(gap) = lock(&self.gap).as_mut() {
            gap.longest = gap.longest.max(gap.last.elapsed());
            gap.last = Instant::now();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

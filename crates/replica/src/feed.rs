//! Hands the table to every subscriber; a slow one holds a cursor, not a queue.
//!
//! Nothing is kept per subscriber but the revision it was sent. What it lacks is looked up when it can take it: the
//! frames that all share, or everything that changed since its cursor, merged, each route once. So nobody's slowness
//! delays anybody else, or the log.

pub mod snapshot;
pub mod tape;
pub mod whereabouts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use holdfast_table::Revision;
use holdfast_wire::proto;
use tokio::sync::watch;
use tokio::time::Instant;

use snapshot::Snapshots;
use tape::Tape;

/// The most subscribers of one replica.
pub const SUBSCRIBERS_MAX: usize = 10_000;
/// The most proxies that an answer to a write names.
pub const PROXIES_NAMED_MAX: usize = 100;
/// The most proxies of one replica that the others know by name.
const PROXIES_KNOWN_MAX: usize = 1_000;

/// The subscribers of one replica, and what they share.
#[derive(Default)]
pub struct Feed {
    /// The deltas that everybody who is up to date gets.
    pub tape: Tape,
    /// What everybody else gets.
    pub snapshots: Snapshots,
    subscribers: Mutex<HashMap<u64, Subscriber>>,
    next_id: std::sync::atomic::AtomicU64,
    acknowledged: watch::Sender<()>,
}

struct Subscriber {
    name: String,
    address: String,
    proxy: bool,
    acknowledged: Option<(Revision, Bytes)>,
    serves: bool,
    since: Instant,
}

/// Keeps a subscriber listed for as long as it lives.
pub struct Registration {
    feed: Arc<Feed>,
    id: u64,
}

/// How far the live proxies are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyProgress {
    /// Connected proxies that serve a table.
    pub live: u32,
    /// Those among them that have acknowledged the revision.
    pub synced: u32,
    /// The names of the others.
    pub lagging: Vec<String>,
}

impl Subscriber {
    fn is_live_proxy(&self) -> bool {
        self.proxy && self.serves
    }
}

impl Feed {
    fn subscribers(&self) -> MutexGuard<'_, HashMap<u64, Subscriber>> {
        self.subscribers.lock().expect("nobody panics with it")
    }

    /// Lists a subscriber; `None` if there are too many.
    pub fn register(self: &Arc<Self>, start: &proto::Start, address: String) -> Option<Registration> {
        let id = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut subscribers = self.subscribers();
        if subscribers.len() >= SUBSCRIBERS_MAX {
            return None;
        }
        let subscriber = Subscriber {
            name: start.name.clone(),
            address,
            proxy: start.proxy,
            acknowledged: None,
            // A proxy that comes with a table serves users already, whatever it has acknowledged here.
            serves: start.has_table,
            since: Instant::now(),
        };
        subscribers.insert(id, subscriber);
        Some(Registration { feed: self.clone(), id })
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.subscribers().len()
    }

    /// Everybody connected, by name.
    pub fn status(&self) -> Vec<proto::SubscriberStatus> {
        let mut status: Vec<_> = self
            .subscribers()
            .values()
            .map(|subscriber| {
                let (revision, digest) = subscriber.acknowledged.clone().unwrap_or_default();
                proto::SubscriberStatus {
                    name: subscriber.name.clone(),
                    address: subscriber.address.clone(),
                    proxy: subscriber.proxy,
                    acknowledged_revision: revision.0,
                    digest,
                    connected_ms: u64::try_from(subscriber.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                }
            })
            .collect();
        status.sort_by(|a, b| a.name.cmp(&b.name));
        status
    }

    /// The names of the live proxies of this replica, at most 1,000 of them.
    pub fn proxies(&self) -> Vec<String> {
        let subscribers = self.subscribers();
        let live = subscribers.values().filter(|subscriber| subscriber.is_live_proxy());
        live.take(PROXIES_KNOWN_MAX)
            .map(|subscriber| subscriber.name.clone())
            .collect()
    }

    /// How far the live proxies of this replica are.
    pub fn progress(&self, revision: Revision) -> ProxyProgress {
        let mut progress = ProxyProgress::default();
        for subscriber in self
            .subscribers()
            .values()
            .filter(|subscriber| subscriber.is_live_proxy())
        {
            progress.live += 1;
            if subscriber
                .acknowledged
                .as_ref()
                .is_some_and(|(acknowledged, _)| *acknowledged >= revision)
            {
                progress.synced += 1;
            } else if progress.lagging.len() < PROXIES_NAMED_MAX {
                progress.lagging.push(subscriber.name.clone());
            }
        }
        progress
    }

    /// Waits, no longer than `timeout`, until every live proxy of this replica has acknowledged `revision`.
    pub async fn synced(&self, revision: Revision, timeout: Duration) -> ProxyProgress {
        let deadline = Instant::now() + timeout;
        let mut acknowledged = self.acknowledged.subscribe();
        loop {
            acknowledged.mark_unchanged();
            let progress = self.progress(revision);
            if progress.lagging.is_empty() || tokio::time::timeout_at(deadline, acknowledged.changed()).await.is_err() {
                return progress;
            }
        }
    }
}

impl Registration {
    /// Notes that the subscriber serves `revision`.
    pub fn acknowledge(&self, revision: Revision, digest: Bytes) {
        if let Some(subscriber) = self.feed.subscribers().get_mut(&self.id) {
            subscriber.acknowledged = Some((revision, digest));
            subscriber.serves = true;
        }
        self.feed.acknowledged.send_replace(());
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.feed.subscribers().remove(&self.id);
        self.feed.acknowledged.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(name: &str, has_table: bool) -> proto::Start {
        proto::Start {
            name: name.into(),
            proxy: true,
            has_table,
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_waits_for_every_live_proxy_and_names_the_one_that_lags() {
        let feed = Arc::new(Feed::default());
        let (a, b) = (
            feed.register(&start("a", true), "".into()).unwrap(),
            feed.register(&start("b", true), "".into()).unwrap(),
        );
        let _blank = feed.register(&start("blank", false), "".into()).unwrap();
        let revision = Revision(5);
        a.acknowledge(revision, Bytes::new());
        let progress = feed.synced(revision, Duration::from_secs(1)).await;
        assert_eq!(
            progress,
            ProxyProgress {
                live: 2,
                synced: 1,
                lagging: vec!["b".into()]
            }
        );
        let wait = feed.synced(revision, Duration::from_secs(60));
        let (progress, ()) = tokio::join!(wait, async { b.acknowledge(Revision(6), Bytes::new()) });
        assert_eq!((progress.live, progress.synced), (2, 2));
        let mut names = feed.proxies();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"], "and none that serves nothing yet");
        drop(b);
        assert_eq!(feed.progress(Revision(7)).lagging, ["a"]);
    }
}

//! Activity: which routes are used, and when they were last.
//!
//! Requests and tunnels touch; the subscriber reports. Moments are kept on this process's own clock, which nobody sets.
//! Only the first touch of a route in a second takes a lock: a moment is precise to a second, and reports are further
//! apart.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_client::{ActivitySource, LiveTable};
use holdfast_table::{Entry, Revision, RouteKey, RouteSpec, Table};
use holdfast_wire::convert::RouteActivity;
use tokio::time::Instant;

use crate::metrics::Timed;

const SHARDS: usize = 64;
/// Where the second of the last touch is kept: routes that share a place take the lock more often than they need to.
const PLACES: usize = 4096;
/// The bits of such a place that are the second; the others say whose it is.
const SECONDS: u64 = u32::MAX as u64;
/// What is known of routes that are gone is forgotten when it is more than what is known of the others, and this; by shard.
const GONE_MAX: usize = 50;

/// What makes a WebSocket an activity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WebsocketActivity {
    /// Any byte of the client's: as under configurable-http-proxy. A browser's answers to pings are among them.
    #[default]
    ClientData,
    /// Frames of the client's that are no pings, pongs and closes.
    FramesWithoutControl,
    /// That it is open.
    Connection,
}

impl WebsocketActivity {
    /// Reads the value of `--ws-activity`.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "client-data" => Ok(WebsocketActivity::ClientData),
            "frames-without-control" => Ok(WebsocketActivity::FramesWithoutControl),
            "connection" => Ok(WebsocketActivity::Connection),
            _ => Err("must be client-data, frames-without-control or connection".into()),
        }
    }
}

/// When the routes of the table were last active, as far as this proxy has seen.
pub(crate) struct Activity {
    table: LiveTable,
    rule: WebsocketActivity,
    start: Instant,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    touched: Box<[AtomicU64]>,
    open: Mutex<Open>,
    touches: Timed,
}

#[derive(Default)]
struct Shard {
    seen: HashMap<RouteKey, Seen>,
    /// Later than what was reported.
    changed: Vec<RouteKey>,
}

struct Seen {
    spec: RouteSpec,
    modified: Revision,
    /// Since `start`.
    at: Duration,
    /// Among the changed ones.
    changed: bool,
}

/// The tunnels that are activity for as long as they are open.
#[derive(Default)]
struct Open {
    tunnels: HashMap<u64, Arc<Entry>>,
    next: u64,
}

/// Something that a client does with a route.
#[derive(Clone)]
pub(crate) struct Use {
    activity: Arc<Activity>,
    entry: Arc<Entry>,
    /// Of this version of the route, as good as unique.
    mark: u64,
}

/// A tunnel as its route is used by it.
pub(crate) struct TunnelUse {
    used: Use,
    kind: TunnelKind,
}

enum TunnelKind {
    Bytes,
    Frames,
    Open(u64),
}

impl Activity {
    /// Of the routes of `table`; `touches` counts how often one was found active.
    pub(crate) fn new(table: LiveTable, rule: WebsocketActivity, touches: Timed) -> Self {
        Activity {
            table,
            rule,
            start: Instant::now(),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
            touched: (0..PLACES).map(|_| AtomicU64::default()).collect(),
            open: Mutex::default(),
            touches,
        }
    }

    /// Of a route that a request is about to use.
    pub(crate) fn of(self: &Arc<Self>, entry: &Arc<Entry>) -> Use {
        Use {
            activity: self.clone(),
            entry: entry.clone(),
            mark: self.hasher.hash_one((entry.route.spec.key(), entry.modified.0)),
        }
    }

    /// True once in each second for each version of a route. For most requests it is one load of a number that others
    /// have loaded.
    fn is_first_touch(&self, mark: u64, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.start).as_secs() + 1;
        let touch = (mark & !SECONDS) | (second & SECONDS);
        let place = &self.touched[mark as usize % PLACES];
        place.load(Ordering::Relaxed) != touch && place.swap(touch, Ordering::Relaxed) != touch
    }

    /// The route with this key is active, if it still leads to the same server.
    fn touch(&self, entry: &Arc<Entry>, now: Instant) {
        let began = std::time::Instant::now();
        if self.note(entry, now) {
            self.touches.done(began);
        }
    }

    /// False if the route does not lead to that server any more.
    fn note(&self, entry: &Arc<Entry>, now: Instant) -> bool {
        let key = entry.route.spec.key();
        let table = self.table.current();
        let Some(table) = &*table else { return false };
        let Some(present) = table.get(key) else { return false };
        if !Arc::ptr_eq(present, entry) && present.route.target != entry.route.target {
            return false;
        }
        let at = now.saturating_duration_since(self.start);
        let mut shard = lock(&self.shards[self.hasher.hash_one(key) as usize % SHARDS]);
        let Shard { seen, changed } = &mut *shard;
        if let Some(seen) = seen.get_mut(key) {
            let is_news = !seen.changed;
            seen.at = match seen.modified == present.modified {
                true => seen.at.max(at),
                false => at,
            };
            (seen.modified, seen.changed) = (present.modified, true);
            if is_news {
                changed.push(key.clone());
            }
            return true;
        }
        if seen.len() > 2 * table.len() / SHARDS + GONE_MAX {
            seen.retain(|key, seen| has(table, key, seen));
            changed.retain(|key| seen.contains_key(key));
        }
        let first = Seen {
            spec: entry.route.spec.clone(),
            modified: present.modified,
            at,
            changed: true,
        };
        seen.insert(key.clone(), first);
        changed.push(key.clone());
        true
    }
}

impl ActivitySource for Activity {
    fn report(&self, all: bool) -> Vec<RouteActivity> {
        let now = Instant::now();
        let open: Vec<_> = lock(&self.open).tunnels.values().cloned().collect();
        open.iter().for_each(|entry| self.touch(entry, now));
        let now = now.saturating_duration_since(self.start);
        let tell = |seen: &mut Seen| {
            seen.changed = false;
            RouteActivity {
                spec: seen.spec.clone(),
                modified: seen.modified,
                age: now.saturating_sub(seen.at),
            }
        };
        let mut report = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            let changed = std::mem::take(&mut shard.changed);
            match all {
                true => report.extend(shard.seen.values_mut().map(tell)),
                false => report.extend(changed.iter().filter_map(|key| shard.seen.get_mut(key).map(tell))),
            }
        }
        report
    }
}

impl Use {
    pub(crate) fn touch(&self) {
        let now = Instant::now();
        if self.activity.is_first_touch(self.mark, now) {
            self.activity.touch(&self.entry, now);
        }
    }

    /// For a WebSocket that is open from now on.
    pub(crate) fn tunnel(self) -> TunnelUse {
        let kind = match self.activity.rule {
            WebsocketActivity::ClientData => TunnelKind::Bytes,
            WebsocketActivity::FramesWithoutControl => TunnelKind::Frames,
            WebsocketActivity::Connection => {
                let mut open = lock(&self.activity.open);
                let id = open.next;
                open.next += 1;
                open.tunnels.insert(id, self.entry.clone());
                TunnelKind::Open(id)
            }
        };
        TunnelUse { used: self, kind }
    }
}

impl TunnelUse {
    /// The client has sent something; `data` if some of it is of a frame that is no ping, pong or close.
    pub(crate) fn client_sent(&mut self, data: bool) {
        let counts = match self.kind {
            TunnelKind::Bytes => true,
            TunnelKind::Frames => data,
            TunnelKind::Open(_) => false,
        };
        if counts {
            self.used.touch();
        }
    }
}

impl Drop for TunnelUse {
    fn drop(&mut self) {
        if let TunnelKind::Open(id) = self.kind {
            lock(&self.used.activity.open).tunnels.remove(&id);
            self.used.touch();
        }
    }
}

fn has(table: &Table, key: &RouteKey, seen: &Seen) -> bool {
    table.get(key).is_some_and(|entry| entry.modified == seen.modified)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use holdfast_table::{Epoch, Route};

    use super::*;

    const A: &str = "http://10.0.0.1:1";
    const B: &str = "http://10.0.0.2:1";

    fn table(revision: u64, routes: &[(&str, &str, u64)]) -> Table {
        let entries = routes.iter().map(|(spec, target, modified)| Entry {
            route: Route::parse(spec, target, "", "").unwrap(),
            modified: Revision(*modified),
        });
        Table::from_entries(Epoch(1), Revision(revision), entries)
    }

    fn activity(rule: WebsocketActivity, table: Table) -> (Arc<Activity>, LiveTable) {
        let live = LiveTable::from(table);
        (Arc::new(Activity::new(live.clone(), rule, Timed::default())), live)
    }

    fn used(activity: &Arc<Activity>, live: &LiveTable, spec: &str) -> Use {
        let spec = RouteSpec::parse(spec).unwrap();
        activity.of(live.load().unwrap().get(spec.key()).unwrap())
    }

    /// Routespec, version and age in seconds.
    fn report(activity: &Activity, all: bool) -> Vec<(String, u64, u64)> {
        let told = activity.report(all).into_iter();
        let mut told: Vec<_> = told
            .map(|told| (told.spec.as_str().to_owned(), told.modified.0, told.age.as_secs()))
            .collect();
        told.sort();
        told
    }

    async fn seconds(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_is_reported_once_and_all_of_it_when_asked_for() {
        let routes = [("/a/", A, 1), ("/b/", B, 2)];
        let (activity, live) = activity(WebsocketActivity::ClientData, table(2, &routes));
        let a = used(&activity, &live, "/a/");
        assert!(report(&activity, true).is_empty());
        a.touch();
        seconds(3).await;
        used(&activity, &live, "/b/").touch();
        let both = [("/a/".to_owned(), 1, 3), ("/b/".to_owned(), 2, 0)];
        assert_eq!(report(&activity, false), both);
        assert!(report(&activity, false).is_empty());
        a.touch();
        used(&activity, &live, "/a/").touch();
        assert_eq!(report(&activity, false), [("/a/".to_owned(), 1, 0)]);
        seconds(1).await;
        assert_eq!(
            report(&activity, true),
            [("/a/".to_owned(), 1, 1), ("/b/".to_owned(), 2, 1)]
        );
        assert!(report(&activity, false).is_empty(), "all of it was told");
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_touch_in_a_second_takes_a_lock() {
        let routes = [("/a/", A, 1), ("/b/", A, 1)];
        let (activity, live) = activity(WebsocketActivity::ClientData, table(1, &routes));
        used(&activity, &live, "/a/").touch();
        let locked: Vec<_> = activity.shards.iter().map(lock).collect();
        for _ in 0..1_000 {
            // Would wait for the lock for ever.
            used(&activity, &live, "/a/").touch();
        }
        assert_eq!(activity.touches.times.get(), 1);
        drop(locked);
        used(&activity, &live, "/b/").touch();
        assert_eq!(activity.touches.times.get(), 2, "another route is another matter");
        seconds(1).await;
        used(&activity, &live, "/a/").touch();
        assert_eq!(activity.touches.times.get(), 3, "so is another second");
        live.replace(table(2, &[("/a/", A, 2)]));
        used(&activity, &live, "/a/").touch();
        assert_eq!(activity.touches.times.get(), 4, "and another version");
        assert_eq!(
            report(&activity, false),
            [("/a/".to_owned(), 2, 0), ("/b/".to_owned(), 1, 1)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_route_that_was_added_again_inherits_nothing() {
        let (activity, live) = activity(WebsocketActivity::ClientData, table(1, &[("/a/", A, 1)]));
        let old = used(&activity, &live, "/a/");
        old.touch();
        seconds(10).await;
        live.replace(table(2, &[]));
        old.touch();
        live.replace(table(3, &[("/a/", B, 3)]));
        // A tunnel to the server that had the route before.
        old.touch();
        seconds(10).await;
        old.touch();
        assert_eq!(
            report(&activity, true),
            [("/a/".to_owned(), 1, 20)],
            "of no version that there is"
        );
        used(&activity, &live, "/a/").touch();
        assert_eq!(report(&activity, false), [("/a/".to_owned(), 3, 0)]);
        // The same server under another version: what it does from now on counts.
        let tunnel = used(&activity, &live, "/a/");
        live.replace(table(4, &[("/a/", B, 4)]));
        seconds(5).await;
        tunnel.touch();
        assert_eq!(report(&activity, false), [("/a/".to_owned(), 4, 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_rule_counts_what_it_says() {
        for (rule, of_nothing, of_pongs) in [
            (WebsocketActivity::ClientData, false, true),
            (WebsocketActivity::FramesWithoutControl, false, false),
            (WebsocketActivity::Connection, true, true),
        ] {
            let (activity, live) = activity(rule, table(1, &[("/a/", A, 1)]));
            let mut tunnel = used(&activity, &live, "/a/").tunnel();
            let active = || !report(&activity, false).is_empty();
            assert_eq!(active(), of_nothing, "{rule:?}");
            seconds(2).await;
            tunnel.client_sent(false);
            assert_eq!(active(), of_pongs, "{rule:?}");
            seconds(2).await;
            tunnel.client_sent(true);
            assert!(active(), "{rule:?}");
            seconds(2).await;
            drop(tunnel);
            assert_eq!(active(), of_nothing, "{rule:?}: its end is none but that it was open");
            seconds(2).await;
            assert!(!active(), "{rule:?}");
            assert!(lock(&activity.open).tunnels.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_routes_that_are_gone_does_not_add_up() {
        let (activity, live) = activity(WebsocketActivity::ClientData, table(0, &[]));
        for round in 1..=20_u64 {
            let specs: Vec<String> = (0..1_000).map(|n| format!("/{round}/{n}/")).collect();
            let routes: Vec<_> = specs.iter().map(|spec| (spec.as_str(), A, round)).collect();
            live.replace(table(round, &routes));
            specs.iter().for_each(|spec| used(&activity, &live, spec).touch());
        }
        let known = report(&activity, true).len();
        assert!(known <= 2 * 1_000 + SHARDS * (GONE_MAX + 1), "{known}");
        let told = report(&activity, false);
        assert!(told.is_empty());
    }

    #[test]
    fn a_rule_is_read() {
        assert_eq!(
            WebsocketActivity::parse("connection"),
            Ok(WebsocketActivity::Connection)
        );
        assert_eq!(
            WebsocketActivity::parse("client-data"),
            Ok(WebsocketActivity::default())
        );
        assert!(WebsocketActivity::parse("").is_err());
    }
}

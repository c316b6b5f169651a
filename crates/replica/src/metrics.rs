//! Every metric of a replica, with its unit.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_wire::proto;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

type Count = Gauge<u64, AtomicU64>;

/// What happens again and again is worth one line of the log in so much time.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(10);

const API_CALLS: [&str; 3] = ["api_route_get", "api_route_add", "api_route_delete"];

/// What a call of configurable-http-proxy's API has done.
#[derive(Clone, Copy, Debug)]
pub enum ApiCall {
    /// Shown routes.
    Get,
    /// Added or replaced one.
    Add,
    /// Removed one.
    Delete,
}

/// Counted as it happens; positions are read when somebody looks.
pub struct Metrics {
    registry: Registry,
    writes: Family<[(&'static str, &'static str); 1], Counter>,
    write_seconds: Histogram,
    snapshots_sent: Counter,
    activity_shares_failed: Counter,
    digests_differed: Counter,
    /// Of configurable-http-proxy's API: answers by status, and routes by what was done with them.
    api_answers: Mutex<BTreeMap<u16, u64>>,
    api_routes: [AtomicU64; API_CALLS.len()],
    peer_calls_refused: Family<[(&'static str, &'static str); 1], Counter>,
    api_calls_refused: Family<[(&'static str, &'static str); 1], Counter>,
    refusals_said: Mutex<HashMap<&'static str, Instant>>,
    retired: Count,
    leader: Count,
    term: Count,
    applied: Count,
    committed: Count,
    revision: Count,
    epoch: Count,
    routes: Count,
    held: Count,
    subscribers: Count,
    ready: Count,
    contact_age: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("holdfast_replica");
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Count::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let leader = gauge(&mut registry, "leader", "1 if this replica leads");
        let term = gauge(&mut registry, "term", "Raft term");
        let applied = gauge(&mut registry, "applied_index", "Last log entry in the table");
        let committed = gauge(
            &mut registry,
            "committed_index",
            "Last log entry known to be on a quorum",
        );
        let revision = gauge(&mut registry, "table_revision", "Revision of the table");
        let epoch = gauge(&mut registry, "table_epoch", "Epoch of the table");
        let routes = gauge(&mut registry, "table_routes", "Routes in the table");
        let held = gauge(
            &mut registry,
            "table_held_routes",
            "Routes among those in the table whose deletion is held until an operator decides",
        );
        let subscribers = gauge(&mut registry, "subscribers", "Connected subscribers");
        let ready = gauge(
            &mut registry,
            "ready",
            "1 once this replica has caught up since its start",
        );
        let retired = gauge(
            &mut registry,
            "retired",
            "1 if this replica's id was taken from it: it serves nothing and has to be emptied",
        );
        let peer_calls_refused = Family::default();
        registry.register(
            "peer_calls_refused",
            "Calls of peers that were meant for another replica or came from a retired one, by what was wrong",
            peer_calls_refused.clone(),
        );
        let api_calls_refused = Family::default();
        registry.register(
            "api_calls_refused",
            "Calls of hubs, proxies and operators that were not let in, by what was wrong",
            api_calls_refused.clone(),
        );
        let contact_age = Gauge::default();
        registry.register_with_unit(
            "leader_contact_age",
            "How long ago this replica last knew a quorum behind a leader; -1 if never",
            Unit::Seconds,
            contact_age.clone(),
        );
        let writes = Family::default();
        registry.register("writes", "Write calls by outcome", writes.clone());
        let write_seconds = Histogram::new(exponential_buckets(0.000_5, 2.0, 16));
        registry.register_with_unit(
            "write_duration",
            "Write calls, waiting included",
            Unit::Seconds,
            write_seconds.clone(),
        );
        let digests_differed = Counter::default();
        registry.register(
            "digests_differed",
            "Comparisons in which another replica had made another state of the same log",
            digests_differed.clone(),
        );
        let snapshots_sent = Counter::default();
        registry.register(
            "snapshots_sent",
            "Snapshots sent to subscribers",
            snapshots_sent.clone(),
        );
        let activity_shares_failed = Counter::default();
        registry.register(
            "activity_shares_failed",
            "Times another replica could not be told which routes are active; it is told again every 2 s",
            activity_shares_failed.clone(),
        );
        Metrics {
            registry,
            writes,
            write_seconds,
            snapshots_sent,
            activity_shares_failed,
            digests_differed,
            api_answers: Mutex::default(),
            api_routes: Default::default(),
            peer_calls_refused,
            api_calls_refused,
            refusals_said: Mutex::default(),
            retired,
            leader,
            term,
            applied,
            committed,
            revision,
            epoch,
            routes,
            held,
            subscribers,
            ready,
            contact_age,
        }
    }
}

impl Metrics {
    /// A write call has ended.
    pub fn write(&self, duration: Duration, ok: bool) {
        self.writes
            .get_or_create(&[("outcome", if ok { "ok" } else { "error" })])
            .inc();
        self.write_seconds.observe(duration.as_secs_f64());
    }

    /// A call of configurable-http-proxy's API was answered; `done` is what it has done.
    pub fn api_answered(&self, status: u16, done: Option<ApiCall>) {
        *self
            .api_answers
            .lock()
            .expect("nobody panics with it")
            .entry(status)
            .or_default() += 1;
        if let Some(done) = done {
            self.api_routes[done as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Under configurable-http-proxy's names, which lack what a counter's must end with.
    pub fn push_api(&self, text: &mut String) {
        for (name, count) in API_CALLS.iter().zip(&self.api_routes) {
            let count = count.load(Ordering::Relaxed);
            text.push_str(&format!("# TYPE {name} unknown\n{name} {count}\n"));
        }
        text.push_str("# TYPE requests_api unknown\n");
        for (status, count) in &*self.api_answers.lock().expect("nobody panics with it") {
            text.push_str(&format!("requests_api{{status=\"{status}\"}} {count}\n"));
        }
    }

    /// Another replica had another table at the same revision, or something else beside it after the same log entry.
    pub fn digest_differed(&self) {
        self.digests_differed.inc();
    }

    /// A subscriber was sent a whole table.
    pub fn snapshot_sent(&self) {
        self.snapshots_sent.inc();
    }

    /// So many of the other replicas could not be told which routes are active.
    pub fn activity_not_shared(&self, replicas: u64) {
        self.activity_shares_failed.inc_by(replicas);
    }

    /// A peer's call was refused for this reason; true if that is worth a line in the log.
    pub fn peer_call_refused(&self, reason: &'static str) -> bool {
        self.peer_calls_refused.get_or_create(&[("reason", reason)]).inc();
        self.is_news(reason)
    }

    /// A caller of the API was not let in for this reason; true if that is worth a line in the log.
    pub fn api_call_refused(&self, reason: &'static str) -> bool {
        self.api_calls_refused.get_or_create(&[("reason", reason)]).inc();
        self.is_news(reason)
    }

    fn is_news(&self, reason: &'static str) -> bool {
        let mut said = self.refusals_said.lock().expect("nobody panics with it");
        let news = said.get(reason).is_none_or(|at| at.elapsed() >= SAID_AGAIN_AFTER);
        if news {
            said.insert(reason, Instant::now());
        }
        news
    }

    /// Everything in the OpenMetrics text format.
    pub fn encode(&self, status: &proto::StatusResponse, subscribers: usize) -> String {
        self.leader.set(u64::from(status.role() == proto::Role::Leader));
        self.retired.set(u64::from(status.role() == proto::Role::Retired));
        self.term.set(status.term);
        self.applied.set(status.applied_index);
        self.committed.set(status.committed_index);
        self.revision.set(status.revision);
        self.epoch.set(status.epoch);
        self.routes.set(status.routes);
        self.held.set(status.held);
        self.subscribers.set(subscribers as u64);
        self.ready.set(u64::from(status.ready));
        let age = status.leader_contact_age_ms;
        self.contact_age
            .set(if age == u64::MAX { -1.0 } else { age as f64 / 1000.0 });
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        const END: &str = "# EOF\n";
        text.truncate(text.strip_suffix(END).map_or(text.len(), str::len));
        self.push_api(&mut text);
        text.push_str(END);
        text
    }
}

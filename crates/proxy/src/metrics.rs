//! Every metric, with its unit. Labels are bounded: never a user, a route or a target.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use holdfast_client::{Freshness, Source};
use holdfast_table::Table;
use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const SOURCES: [(Source, &str); 3] = [
    (Source::None, "none"),
    (Source::Cache, "cache"),
    (Source::Stream, "stream"),
];

const REJECTS: [&str; 6] = ["method", "host", "path", "upgrade", "framing", "head"];
const DROPS: [&str; 6] = ["address", "handshake", "silent", "slow", "resets", "protocol"];
const PAUSES: [&str; 2] = ["full", "failed"];
const TARGET_FAILURES: [&str; 4] = ["connect", "response", "silent", "denied"];

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Web,
    Websocket,
}

/// What was wrong with a request that was not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    Method,
    Host,
    Path,
    Upgrade,
    /// Its head or its body's length can be read in two ways.
    Framing,
    /// Its head is no HTTP, or too large.
    Head,
}

/// Why a connection of a client was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// Its address has as many as it may.
    Address,
    /// No TLS came about.
    Handshake,
    /// It said nothing for too long.
    Silent,
    /// It took too long for the head of a request.
    Slow,
    /// It took back too many requests.
    Resets,
    /// It broke the rules of HTTP/2.
    Protocol,
}

/// Why clients are not let in for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// There are as many connections as there may be.
    Full,
    /// The system gave no connection, for want of file descriptors or the like.
    Failed,
}

/// How a target failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetFailure {
    /// No connection.
    Connect,
    /// No answer, or none in HTTP, on a connection.
    Response,
    /// No answer in time.
    Silent,
    /// Not to be connected to.
    Denied,
}

impl Reject {
    /// Its name in metrics and in the access log.
    pub(crate) fn word(self) -> &'static str {
        REJECTS[self as usize]
    }
}

impl TargetFailure {
    /// Its name in metrics and in the access log.
    pub(crate) fn word(self) -> &'static str {
        TARGET_FAILURES[self as usize]
    }
}

/// Counters that requests count in, without a lock; gauges that a scrape fills in.
pub(crate) struct Metrics {
    registry: Registry,
    requests: [[Counter; CLASSES.len()]; 2],
    rejected: [Counter; REJECTS.len()],
    dropped: [Counter; DROPS.len()],
    paused: [Counter; PAUSES.len()],
    target_failures: [Counter; 4],
    pub(crate) no_route: Counter,
    pub(crate) no_table: Counter,
    pub(crate) stale_table: Counter,
    pub(crate) slow_bodies: Counter,
    pub(crate) connections: Gauge,
    pub(crate) connections_max: Gauge,
    pub(crate) active_requests: Gauge,
    pub(crate) active_websockets: Gauge,
    /// By code, from 100 to 599.
    statuses: Box<[Counter]>,
    pub(crate) lookups: Timed,
    pub(crate) active_routes: Timed,
    pub(crate) access_log_lost: Counter,
    pub(crate) cache_writes: Counter,
    pub(crate) cache_write_errors: Counter,
    pub(crate) cache_revision: Gauge,
    revision: Gauge,
    epoch: Gauge,
    routes: Gauge,
    staleness: Gauge<f64, AtomicU64>,
    sources: [Gauge; SOURCES.len()],
    connected: Gauge,
    draining: Gauge,
    pub(crate) open_files: Gauge,
    open_files_max: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("holdfast_proxy");
        let r = &mut registry;
        let requests = Family::<Labels<2>, Counter>::default();
        r.register(
            "requests",
            "Answers to requests, by kind and class of status code",
            requests.clone(),
        );
        let requests = ["web", "websocket"].map(|kind| {
            CLASSES.map(|class| requests.get_or_create_owned(&Labels([("kind", kind), ("code_class", class)])))
        });
        let rejected = by_label(
            r,
            "rejected",
            "Requests refused before they were looked up, by what was wrong with them",
            "reason",
            REJECTS,
        );
        let dropped = by_label(
            r,
            "connections_dropped",
            "Connections of clients that were closed on them, by why",
            "reason",
            DROPS,
        );
        let paused = by_label(
            r,
            "accept_paused",
            "Times that clients were not let in for a while: as many connections as there may be, or none to be had",
            "reason",
            PAUSES,
        );
        let target_failures = by_label(
            r,
            "target_failures",
            "Requests that a target failed, by how",
            "reason",
            TARGET_FAILURES,
        );
        let [no_route, no_table, stale_table] = by_label(
            r,
            "no_route",
            "Requests without a route: known to be absent, no table to look in, or one too old",
            "cause",
            ["known_absent", "no_table", "stale_table"],
        );
        let slow_bodies = Counter::default();
        r.register(
            "slow_bodies",
            "Requests given up because too little of their bodies came in time",
            slow_bodies.clone(),
        );
        let connections = gauge(r, "connections", "Connections of clients, tunnels included");
        let connections_max = gauge(r, "connections_max", "Connections of clients that there may be");
        let active_requests = gauge(r, "active_requests", "Requests whose answer is not complete yet");
        let active_websockets = gauge(r, "active_websockets", "Upgraded connections");
        let active_routes = Timed::default();
        r.register(
            "activity",
            "Times that a route was found to be active, each version of a route once a second at most",
            active_routes.times.clone(),
        );
        let access_log_lost = Counter::default();
        r.register(
            "access_log_lost",
            "Lines of the access log that were lost, because they could not be written, or not fast enough",
            access_log_lost.clone(),
        );
        let cache_writes = Counter::default();
        r.register(
            "cache_writes",
            "Copies of the table written to disk",
            cache_writes.clone(),
        );
        let cache_write_errors = Counter::default();
        r.register(
            "cache_write_errors",
            "Copies of the table that could not be written",
            cache_write_errors.clone(),
        );
        let cache_revision = gauge(r, "cache_revision", "Revision of the table's copy on disk");
        let revision = gauge(r, "table_revision", "Revision of the table that is served");
        let epoch = gauge(r, "table_epoch", "Epoch of the table that is served");
        let routes = gauge(r, "table_routes", "Routes in the table that is served");
        let staleness = Gauge::<f64, AtomicU64>::default();
        r.register_with_unit(
            "table_staleness",
            "Time since the last proof that the table is the leader's, to an earlier run too; NaN before the first one",
            Unit::Seconds,
            staleness.clone(),
        );
        let family = Family::<Labels<1>, Gauge>::default();
        r.register(
            "table_source",
            "1 for where the served table comes from",
            family.clone(),
        );
        let sources = SOURCES.map(|(_, source)| family.get_or_create_owned(&Labels([("source", source)])));
        let connected = gauge(r, "control_connected", "1 while a stream from a replica is open");
        let draining = gauge(r, "draining", "1 once the proxy drains");
        let open_files = gauge(r, "open_files", "Files and connections that the process has open");
        let open_files_max = gauge(r, "open_files_max", "Files and connections that it may have open");
        Metrics {
            requests,
            rejected,
            dropped,
            paused,
            target_failures,
            no_route,
            no_table,
            stale_table,
            slow_bodies,
            connections,
            connections_max,
            active_requests,
            active_websockets,
            statuses: (100..600).map(|_| Counter::default()).collect(),
            lookups: Timed::default(),
            active_routes,
            access_log_lost,
            cache_writes,
            cache_write_errors,
            cache_revision,
            revision,
            epoch,
            routes,
            staleness,
            sources,
            connected,
            draining,
            open_files,
            open_files_max,
            registry,
        }
    }

    pub(crate) fn answered(&self, kind: Kind, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len());
        self.requests[kind as usize][class - 1].inc();
        // A target may answer with any number.
        let at = usize::from(status.as_u16()).saturating_sub(100);
        if let Some(counter) = self.statuses.get(at) {
            counter.inc();
        }
    }

    pub(crate) fn rejected(&self, reason: Reject) {
        self.rejected[reason as usize].inc();
    }

    pub(crate) fn dropped(&self, reason: Dropped) {
        self.dropped[reason as usize].inc();
    }

    pub(crate) fn paused(&self, reason: Pause) {
        self.paused[reason as usize].inc();
    }

    pub(crate) fn target_failed(&self, how: TargetFailure) {
        self.target_failures[how as usize].inc();
    }

    pub(crate) fn open_files(&self, open: u64, most: u64) {
        self.open_files.set(signed(open));
        self.open_files_max.set(signed(most));
    }

    /// The text that Prometheus scrapes; `more` adds what others count.
    pub(crate) fn render(
        &self,
        table: Option<&Table>,
        freshness: &Freshness,
        draining: bool,
        more: impl FnOnce(&mut String),
    ) -> String {
        self.revision.set(table.map_or(0, |table| signed(table.revision().0)));
        self.epoch.set(table.map_or(0, |table| signed(table.epoch().0)));
        self.routes.set(table.map_or(0, |table| signed(table.len() as u64)));
        let staleness = freshness.age().map_or(f64::NAN, |age| age.as_secs_f64());
        self.staleness.set(staleness);
        for ((source, _), gauge) in SOURCES.iter().zip(&self.sources) {
            gauge.set(i64::from(*source == freshness.source));
        }
        self.connected.set(i64::from(freshness.connected));
        self.draining.set(i64::from(draining));
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# incomplete: a metric could not be written");
        }
        const END: &str = "# EOF\n";
        text.truncate(text.strip_suffix(END).map_or(text.len(), str::len));
        self.push_aliases(&mut text);
        more(&mut text);
        text.push_str(END);
        text
    }

    /// The names that configurable-http-proxy has for some of it; of type unknown, for they lack what a counter's must end with.
    fn push_aliases(&self, text: &mut String) {
        for (name, kind) in [("requests_web", Kind::Web), ("requests_ws", Kind::Websocket)] {
            let count: u64 = self.requests[kind as usize].iter().map(Counter::get).sum();
            text.push_str(&format!("# TYPE {name} unknown\n{name} {count}\n"));
        }
        for (name, timed) in [
            ("find_target_for_req", &self.lookups),
            ("last_activity_updating", &self.active_routes),
        ] {
            let (count, sum) = (timed.times.get(), timed.seconds.get());
            text.push_str(&format!(
                "# TYPE {name} summary\n{name}_count {count}\n{name}_sum {sum}\n"
            ));
        }
        text.push_str("# TYPE requests_proxy unknown\n");
        for (code, counter) in (100..).zip(&self.statuses) {
            match counter.get() {
                0 => {}
                count => text.push_str(&format!("requests_proxy{{status=\"{code}\"}} {count}\n")),
            }
        }
    }
}

/// The word for a source, in metrics and in `/status`.
pub(crate) fn source_word(source: Source) -> &'static str {
    SOURCES
        .iter()
        .find(|(known, _)| *known == source)
        .map_or("none", |(_, word)| word)
}

/// Counts itself in a gauge for as long as it lives.
pub(crate) struct Active(Gauge);

impl Active {
    pub(crate) fn enter(gauge: &Gauge) -> Self {
        gauge.inc();
        Active(gauge.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How often something was done, and how long that took in all.
#[derive(Clone, Default)]
pub(crate) struct Timed {
    pub(crate) times: Counter,
    seconds: Counter<f64, AtomicU64>,
}

impl Timed {
    /// Counts what was done since `began`.
    pub(crate) fn done(&self, began: Instant) {
        self.times.inc();
        self.seconds.inc_by(began.elapsed().as_secs_f64());
    }
}

/// Shared by everything in one proxy.
pub(crate) type SharedMetrics = Arc<Metrics>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels<const N: usize>([(&'static str, &'static str); N]);

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn by_label<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: [&'static str; N],
) -> [Counter; N] {
    let family = Family::<Labels<1>, Counter>::default();
    registry.register(name, help, family.clone());
    values.map(|value| family.get_or_create_owned(&Labels([(label, value)])))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn metrics_have_configurable_http_proxys_names_too_and_an_end() {
        let metrics = Metrics::new();
        for (kind, status) in [
            (Kind::Web, 200),
            (Kind::Web, 200),
            (Kind::Web, 503),
            (Kind::Websocket, 101),
            (Kind::Web, 999),
        ] {
            metrics.answered(kind, StatusCode::from_u16(status).unwrap());
        }
        metrics.active_routes.done(Instant::now());
        let began = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        for _ in 0..3 {
            metrics.lookups.done(began);
        }
        let freshness = Freshness {
            source: Source::None,
            connected: false,
            cluster_id: None,
            replica: None,
            last_contact: None,
            inherited: None,
            unreachable: false,
        };
        let text = metrics.render(None, &freshness, false, |text| text.push_str("more 1\n"));
        for line in [
            "requests_web 4",
            "requests_ws 1",
            "find_target_for_req_count 3",
            "last_activity_updating_count 1",
            "requests_proxy{status=\"200\"} 2",
            "requests_proxy{status=\"503\"} 1",
            "requests_proxy{status=\"101\"} 1",
            "holdfast_proxy_requests_total{kind=\"web\",code_class=\"5xx\"} 2",
            "holdfast_proxy_activity_total 1",
            "more 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("status=\"999\""), "{text}");
        let sum = |name: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix("_sum "));
            value.unwrap().parse::<f64>().unwrap()
        };
        assert!((0.006..6.0).contains(&sum("find_target_for_req")), "{text}");
        assert!(sum("last_activity_updating") < 1.0, "{text}");
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("\n# EOF\n"));
        let mut types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), all, "each is described once");
    }
}

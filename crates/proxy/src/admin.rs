//! What operators and their tools ask a proxy: `/livez`, `/readyz`, `/metrics`, `/status`; and `POST /drain`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_client::{Freshness, LiveTable};
use serde::Serialize;
use tokio::sync::watch;

use crate::metrics::{SharedMetrics, source_word};
use crate::signal::Signal;
use crate::staleness::Staleness;

/// What the answers are made of.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) name: Arc<str>,
    pub(crate) table: LiveTable,
    pub(crate) freshness: watch::Receiver<Freshness>,
    pub(crate) metrics: SharedMetrics,
    pub(crate) draining: Arc<Signal>,
    pub(crate) staleness: Arc<Staleness>,
    pub(crate) more_metrics: Option<MoreMetrics>,
}

/// Adds lines to the metrics.
pub(crate) type MoreMetrics = Arc<dyn Fn(&mut String) + Send + Sync>;

impl Facts {
    /// What a ready proxy has: a table, for good. One grown old is no reason to take the whole site away, unless the operator says
    /// so; a drain is. Nor are few file descriptors: it lets in no more clients than it has them for, and those that
    /// wait would fill the next proxy, and the next.
    fn checks(&self) -> Vec<(&'static str, bool)> {
        let mut checks = vec![
            ("table", self.table.current().is_some()),
            // Bound before anybody can ask.
            ("listeners", true),
            ("not-draining", !self.draining.is_raised()),
        ];
        if self.staleness.is_limited() {
            checks.push(("not-stale", !self.staleness.is_exceeded()));
        }
        checks
    }

    fn is_ready(&self) -> bool {
        self.checks().iter().all(|(_, good)| *good)
    }
}

/// The answer to `/status`.
#[derive(Serialize)]
struct Status<'a> {
    name: &'a str,
    cluster_id: Option<&'a str>,
    epoch: u64,
    revision: u64,
    digest: Option<String>,
    routes: usize,
    source: &'static str,
    connected: bool,
    replica: Option<&'a str>,
    staleness_ms: Option<u64>,
    draining: bool,
    ready: bool,
    active_requests: i64,
    active_websockets: i64,
}

pub(crate) fn router(facts: Facts, drain_on_request: bool) -> Router {
    let mut router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status));
    if drain_on_request {
        router = router.route("/drain", post(drain));
    }
    router.with_state(facts)
}

/// For those who scrape and may see nothing else.
pub(crate) fn metrics_alone(facts: Facts) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(facts)
}

async fn readyz(State(facts): State<Facts>, RawQuery(query): RawQuery) -> Response {
    let ready = facts.is_ready();
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose")));
    let mut text = String::new();
    for (check, good) in facts.checks() {
        if verbose || !good {
            let _ = writeln!(text, "[{}] {check}", if good { '+' } else { '-' });
        }
    }
    text.push_str(if ready { "ok\n" } else { "not ready\n" });
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, text).into_response()
}

async fn metrics(State(facts): State<Facts>) -> Response {
    let freshness = facts.freshness.borrow().clone();
    let table = facts.table.load();
    let draining = facts.draining.is_raised();
    let text = facts.metrics.render(table.as_deref(), &freshness, draining, |text| {
        if let Some(more) = &facts.more_metrics {
            more(text);
        }
    });
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn status(State(facts): State<Facts>) -> Response {
    let freshness = facts.freshness.borrow().clone();
    let table = facts.table.load();
    let milliseconds = |elapsed: std::time::Duration| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let status = Status {
        name: &facts.name,
        cluster_id: freshness.cluster_id.as_deref(),
        epoch: table.as_ref().map_or(0, |table| table.epoch().0),
        revision: table.as_ref().map_or(0, |table| table.revision().0),
        digest: table.as_ref().map(|table| table.digest().to_string()),
        routes: table.as_ref().map_or(0, |table| table.len()),
        source: source_word(freshness.source),
        connected: freshness.connected,
        replica: freshness.replica.as_deref(),
        staleness_ms: freshness.age().map(milliseconds),
        draining: facts.draining.is_raised(),
        ready: facts.is_ready(),
        active_requests: facts.metrics.active_requests.get(),
        active_websockets: facts.metrics.active_websockets.get(),
    };
    Json(status).into_response()
}

/// Not ready from now on, and serves on until the process is told to end: for whoever takes it out of a load balancer first.
/// Asked again, it only tells how many are left.
async fn drain(State(facts): State<Facts>) -> Response {
    if !facts.draining.is_raised() {
        tracing::info!("asked to drain: not ready any more");
    }
    facts.draining.raise();
    let left = Left {
        draining: true,
        connections: facts.metrics.connections.get(),
        active_requests: facts.metrics.active_requests.get(),
        active_websockets: facts.metrics.active_websockets.get(),
    };
    Json(left).into_response()
}

/// The answer to `POST /drain`.
#[derive(Serialize)]
struct Left {
    draining: bool,
    connections: i64,
    active_requests: i64,
    active_websockets: i64,
}

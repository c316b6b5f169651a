//! HTTP for probes and metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Context;
use super::cluster::status;

/// `/livez`, `/readyz` (also `/healthz`) and `/metrics`.
pub fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(context)
}

/// Latched: a replica that lost its quorum still hands out its table, so it stays ready until it stops.
async fn ready(State(context): State<Arc<Context>>) -> impl IntoResponse {
    if context.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    if context.retired.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", context.problem()));
    }
    if context.caught_up.load(Ordering::Relaxed) {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let waiting_for = context.introduction.waiting_for.borrow().clone();
    let reason = match waiting_for.as_str() {
        "" => "not caught up since the start".to_owned(),
        reason => format!("in no cluster yet: waiting for {reason}"),
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}

async fn metrics(State(context): State<Arc<Context>>) -> impl IntoResponse {
    let text = context.metrics.encode(&status(&context), context.feed.len());
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
}

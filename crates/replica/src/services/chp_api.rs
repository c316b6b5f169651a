//! configurable-http-proxy's REST API: an unmodified hub changes one URL, `ConfigurableHTTPProxy.api_url`.
//!
//! Paths, status codes and texts are those of CHP 5.3.0 (`lib/configproxy.js`), with three differences. A caller without
//! a token learns that before anything else. What CHP leaves without any answer (a malformed escape, DELETE without a
//! path) is answered. And a path is stored in the spelling that a hub gives it, so that the same hub finds its routes by
//! gRPC too.

pub mod form;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holdfast_table::route::{DATA_BYTES_MAX, SPEC_BYTES_MAX};
use holdfast_table::{Entry, Namespace, RouteSpec};
use holdfast_tls::{ServerTls, Tokens};
use holdfast_wire::proto::routes_server::Routes as _;
use holdfast_wire::{proto, timestamp};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::Instant;
use tonic::{Code, Status};

use self::form::Object;
use super::Context;
use super::routes::RoutesService;
use crate::listen::Address;
use crate::metrics::ApiCall;
use crate::storage::state_machine::Position;

const ROUTES: &str = "/api/routes";
/// A hub tries a call again for 30 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// A redirect to the new server follows at once.
const WAIT_FOR_PROXIES_MS: u32 = 1_000;
const BODY_BYTES_MAX: usize = DATA_BYTES_MAX + SPEC_BYTES_MAX + 1024;

/// What this API is told.
#[derive(Clone, Debug)]
pub struct ChpApiConfig {
    /// Where it is served, over HTTP/1.1.
    pub listen: Address,
    /// The certificate that callers are shown, and whether they show one; `None`: they come without TLS.
    pub tls: Option<ServerTls>,
    /// Who may call it.
    pub tokens: Tokens,
    /// Whose routes it shows and writes.
    pub namespace: Namespace,
    /// Whether the first segment of a path is a host, as under `configurable-http-proxy --host-routing`.
    pub host_routing: bool,
}

/// The whole API, as the handler of every path.
pub fn router(context: Arc<Context>, config: ChpApiConfig) -> Router {
    let api = Arc::new(ChpApi {
        routes: RoutesService(context.clone()),
        context,
        config,
    });
    Router::new().fallback(answer).with_state(api)
}

async fn answer(State(api): State<Arc<ChpApi>>, request: Request) -> Response {
    let call = match *request.method() {
        Method::GET => Some(ApiCall::Get),
        Method::POST => Some(ApiCall::Add),
        Method::DELETE => Some(ApiCall::Delete),
        _ => None,
    };
    let answer = api.answer(request).await.unwrap_or_else(IntoResponse::into_response);
    let status = answer.status();
    let done = call.filter(|_| status.is_success());
    api.context.metrics.api_answered(status.as_u16(), done);
    answer
}

struct ChpApi {
    context: Arc<Context>,
    routes: RoutesService,
    config: ChpApiConfig,
}

/// Why a call is refused, and what the caller is told.
struct Refusal(StatusCode, String);

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Refusal(status, message.into())
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::FailedPrecondition => StatusCode::CONFLICT,
            // A hub tries again what ends with 500 or more.
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal::new(code, status.message())
    }
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(status, message) = self;
        match status {
            StatusCode::SERVICE_UNAVAILABLE => (status, [(header::RETRY_AFTER, "1")], message).into_response(),
            _ => (status, message).into_response(),
        }
    }
}

impl ChpApi {
    async fn answer(&self, request: Request) -> Result<Response, Refusal> {
        let (head, body) = request.into_parts();
        if !self.config.tokens.admit(token(&head.headers)) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, ""));
        }
        let path = head.uri.path().strip_prefix(ROUTES);
        let path = path.filter(|path| path.is_empty() || path.starts_with('/'));
        let path = path.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "Not Found"))?;
        match head.method {
            Method::GET if matches!(path, "" | "/") => self.list(head.uri.query()).await,
            Method::GET => self.get(path).await,
            Method::POST => self.post(path, body).await,
            Method::DELETE => self.delete(path).await,
            _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "Method not supported")),
        }
    }

    async fn list(&self, query: Option<&str>) -> Result<Response, Refusal> {
        let inactive_since = query.map_or(Ok(None), inactive_since)?;
        let position = self.read().await?;
        let state = &position.state;
        let shown = |entry: &&Arc<Entry>| self.is_ours(entry) && !state.holds.contains(entry.route.spec.key());
        // A route that nothing is known of is not idle.
        let idle = |at_ms: u64| inactive_since.is_none_or(|since| at_ms != 0 && at_ms < since);
        let entries = state.table.iter().filter(shown);
        let entries = entries.map(|entry| (entry, self.context.activity.unix_ms(entry)));
        let entries = entries.filter(|(_, at_ms)| idle(*at_ms));
        let routes = entries.map(|(entry, at_ms)| Ok((form::path(&entry.route.spec), object(entry, at_ms)?)));
        json(&routes.collect::<Result<BTreeMap<_, _>, Refusal>>()?)
    }

    async fn get(&self, path: &str) -> Result<Response, Refusal> {
        let spec = self.spec(path)?;
        let position = self.read().await?;
        let entry = position.state.shown(spec.key()).filter(|entry| self.is_ours(entry));
        let entry = entry.ok_or_else(missing)?;
        json(&object(entry, self.context.activity.unix_ms(entry))?)
    }

    async fn post(&self, path: &str, body: Body) -> Result<Response, Refusal> {
        let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
            let message = format!("a route has at most {BODY_BYTES_MAX} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        })?;
        let refuse = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
        let body: &RawValue =
            serde_json::from_slice(&body).map_err(|error| refuse(format!("Body not valid JSON: {error}")))?;
        let data: Option<Object> = serde_json::from_str(body.get()).ok();
        let target = data.as_ref().and_then(form::target);
        let (Some(data), Some(target)) = (data, target) else {
            return Err(refuse("Must specify 'target' as string".to_owned()));
        };
        let spec = self.spec(path)?;
        let put = proto::Route {
            routespec: spec.as_str().to_owned(),
            target: target.clone(),
            data: form::data(data, &spec)?,
            ..Default::default()
        };
        self.write(proto::change::Change::Put(put)).await?;
        // CHP's words: scripts and tests wait for them.
        tracing::info!("Route added {} -> {target}", form::path(&spec));
        Ok(StatusCode::CREATED.into_response())
    }

    async fn delete(&self, path: &str) -> Result<Response, Refusal> {
        let spec = self.spec(path)?;
        let position = self.read().await?;
        let entry = position.state.shown(spec.key()).filter(|entry| self.is_ours(entry));
        let entry = entry.ok_or_else(missing)?;
        let removed = form::path(&entry.route.spec);
        self.write(proto::change::Change::Delete(entry.route.spec.as_str().to_owned()))
            .await?;
        tracing::info!("Removing route {removed}");
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    /// The routespec of a path as CHP reads it: decoded whole, so that `%2F` separates; one trailing slash counts for nothing.
    fn spec(&self, path: &str) -> Result<RouteSpec, Refusal> {
        let malformed = || Refusal::new(StatusCode::BAD_REQUEST, format!("{path:?} has a malformed escape"));
        let mut escapes = path.split('%').skip(1);
        let are_whole = |escape: &str| escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
        if !escapes.all(are_whole) {
            return Err(malformed());
        }
        let decoded = percent_decode_str(path).decode_utf8().map_err(|_| malformed())?;
        let parsed = form::spec(&decoded, self.config.host_routing);
        parsed.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        entry.route.namespace == self.config.namespace
    }

    async fn read(&self) -> Result<Arc<Position>, Refusal> {
        let read = self.context.ready()?.read(Instant::now() + CALL_TIMEOUT).await;
        read.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
    }

    /// As any other write: by the leader, on a quorum's disks, and seen by the proxies when it returns.
    async fn write(&self, change: proto::change::Change) -> Result<(), Refusal> {
        let mut request = tonic::Request::new(proto::WriteRequest {
            changes: vec![proto::Change { change: Some(change) }],
            namespace: self.config.namespace.as_str().to_owned(),
            wait_for_proxies_ms: WAIT_FOR_PROXIES_MS,
            ..Default::default()
        });
        request.set_timeout(CALL_TIMEOUT);
        self.routes.write(request).await?;
        Ok(())
    }
}

/// Of `Authorization: token ...`, in lower case, as CHP wants it.
fn token(headers: &HeaderMap) -> Option<&str> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (_, token) = given.split_once("token")?;
    let token = token.starts_with(char::is_whitespace).then_some(token)?;
    token.split_whitespace().next()
}

fn missing() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "")
}

fn object(entry: &Entry, last_activity_ms: u64) -> Result<Object, Refusal> {
    let mut object = form::object(&entry.route).map_err(|error| {
        let message = format!("data of {}: {error}", entry.route.spec);
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    if last_activity_ms != 0 {
        let moment = to_raw_value(&timestamp::to_text(last_activity_ms))?;
        object.insert("last_activity".into(), moment);
    }
    Ok(object)
}

/// The moment since which routes must have been idle to be listed, if the query names one.
fn inactive_since(query: &str) -> Result<Option<u64>, Refusal> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let named = pairs.find(|(name, _)| matches!(*name, "inactiveSince" | "inactive_since"));
    let Some((_, text)) = named else { return Ok(None) };
    let text = percent_decode_str(text).decode_utf8_lossy();
    let moment = timestamp::parse(&text).ok_or_else(|| {
        let message = format!("Invalid datestamp '{text}' must be ISO8601.");
        Refusal::new(StatusCode::BAD_REQUEST, message)
    })?;
    Ok(Some(moment))
}

fn json(answer: &impl Serialize) -> Result<Response, Refusal> {
    let body = serde_json::to_vec(answer)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_wanted_as_chp_wants_it() {
        let of = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            token(&headers).map(str::to_owned)
        };
        for good in ["token new", "token  new", "token\tnew", "x token new y"] {
            assert_eq!(of(good).as_deref(), Some("new"), "{good}");
        }
        for bad in ["Token new", "Bearer new", "token", "token ", "tokennew", ""] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(token(&HeaderMap::new()), None);
    }
}

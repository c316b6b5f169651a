//! One request from start to end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_client::{LiveTable, Refusals};
use holdfast_table::{Entry, Route, Target};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::{Body as _, Incoming};

use crate::access_log::{AccessLog, Facts, Record};
use crate::activity::{Activity, Use};
use crate::body::{Body, Upload};
use crate::client::Client;
use crate::error_pages::ErrorPager;
use crate::head::names_websocket;
use crate::headers::{self, join_lengths, strip_hop_by_hop};
use crate::metrics::{Active, Kind, Reject, SharedMetrics, TargetFailure};
use crate::pages::{Form, Problem};
use crate::policy::Policy;
use crate::redirect;
use crate::request::read;
use crate::rewrite::{self, Unaskable};
use crate::signal::Signal;
use crate::staleness::Staleness;
use crate::targets::{Lease, TargetError, Targets};
use crate::tunnel::Tunnel;
use crate::websocket;

/// Where configurable-http-proxy's health is asked for; ours tells the truth.
const HEALTH_PATH: &str = "/_chp_healthz";

/// Answers requests from the table and from the targets. Shared by all connections.
pub(crate) struct Forwarder {
    table: LiveTable,
    targets: Targets,
    /// To servers that the operator has named, so that no rule about targets concerns them.
    operators: Targets,
    /// For requests that no route takes.
    default: Option<Arc<Entry>>,
    pages: ErrorPager,
    policy: Policy,
    metrics: SharedMetrics,
    /// How long a client may take for more of a body.
    body_timeout: Duration,
    draining: Arc<Signal>,
    refusals: Refusals,
    staleness: Arc<Staleness>,
    activity: Arc<Activity>,
    access_log: Option<Arc<AccessLog>>,
}

/// What a [`Forwarder`] is made of.
pub(crate) struct Parts {
    pub(crate) table: LiveTable,
    pub(crate) targets: Targets,
    pub(crate) operators: Targets,
    pub(crate) default_target: Option<Target>,
    pub(crate) pages: ErrorPager,
    pub(crate) policy: Policy,
    pub(crate) metrics: SharedMetrics,
    pub(crate) body_timeout: Duration,
    pub(crate) draining: Arc<Signal>,
    pub(crate) refusals: Refusals,
    pub(crate) staleness: Arc<Staleness>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) access_log: Option<Arc<AccessLog>>,
}

/// Where a request goes.
struct Way<'a> {
    entry: Arc<Entry>,
    targets: &'a Targets,
}

impl Way<'_> {
    fn target(&self) -> &Target {
        &self.entry.route.target
    }
}

/// Why a request gets no answer of a target: what its user is told, and what the log says.
struct Failure {
    problem: Problem,
    error: &'static str,
    cause: Option<String>,
}

impl Failure {
    fn new(problem: Problem, error: &'static str) -> Self {
        Failure {
            problem,
            error,
            cause: None,
        }
    }
}

impl Forwarder {
    pub(crate) fn new(parts: Parts) -> Self {
        let default = parts.default_target.and_then(|target| {
            let route = Route::parse("/", target.as_str(), "", "").ok()?;
            let modified = holdfast_table::Revision(0);
            Some(Arc::new(Entry { route, modified }))
        });
        Forwarder {
            table: parts.table,
            targets: parts.targets,
            operators: parts.operators,
            default,
            pages: parts.pages,
            policy: parts.policy,
            metrics: parts.metrics,
            body_timeout: parts.body_timeout,
            draining: parts.draining,
            refusals: parts.refusals,
            staleness: parts.staleness,
            activity: parts.activity,
            access_log: parts.access_log,
        }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Answers one request; every failure is an answer too.
    pub(crate) async fn answer(&self, client: &Client, mut request: Request<Incoming>) -> Response<Body> {
        let active = Active::enter(&self.metrics.active_requests);
        headers::name_request(request.headers_mut(), &client.origin);
        let mut record = self.access_log.as_ref().map(|log| {
            let user = headers::user(request.headers(), &client.origin, &self.policy.trusted_proxies);
            log.begin(user, &request)
        });
        let form = Form::wanted(request.headers());
        let uri = self.pages.needs_uri().then(|| request.uri().clone());
        let is_told = Staleness::is_told_to(&client.origin, request.headers());
        let http1 = request.version() < Version::HTTP_2;
        let mut upgrades = request.headers().get_all(UPGRADE).iter();
        let ends_requests = http1 && upgrades.any(|upgrade| names_websocket(upgrade.as_bytes()));
        let (kind, answered) = self.dispatch(client, request, active, &mut record).await;
        let mut response = match answered {
            Ok(response) => response,
            Err(Failure { problem, error, cause }) => {
                note(&mut record, |facts| facts.failed(error, cause));
                self.explain(kind, problem, form, uri.as_ref()).await
            }
        };
        if is_told {
            self.staleness.tell(response.headers_mut());
        }
        let status = response.status();
        if let Some(mut record) = record {
            record.note(|facts| facts.status = status.as_u16());
            response.body_mut().recorded(record);
        }
        self.metrics.answered(kind, status);
        // A 400 may be half of an attempt to smuggle a request, what follows a 408 is still its body; a draining proxy
        // wants its clients elsewhere.
        let is_unread = matches!(status, StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT);
        let ends = ends_requests || is_unread || self.draining.is_raised();
        if http1 && ends && status != StatusCode::SWITCHING_PROTOCOLS {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Waits until the connections to targets are closed, once there are no requests any more.
    pub(crate) async fn close(self) {
        self.targets.close().await;
        self.operators.close().await;
    }

    async fn dispatch(
        &self,
        client: &Client,
        request: Request<Incoming>,
        active: Active,
        record: &mut Option<Box<Record>>,
    ) -> (Kind, Result<Response<Body>, Failure>) {
        if let Some(port) = client.redirect {
            let answer = redirect::to_tls(&request, port);
            return (Kind::Web, answer.map_err(|refusal| self.refused(refusal)));
        }
        if request.uri().path() == HEALTH_PATH && request.method() == Method::GET {
            return (Kind::Web, Ok(self.health()));
        }
        let kind = match websocket::is_wanted(&request) {
            true => Kind::Websocket,
            false => Kind::Web,
        };
        let answer = match self.resolve(&request) {
            Err(failure) => Err(failure),
            Ok(way) => {
                note(record, |facts| facts.entry = Some(way.entry.clone()));
                match kind {
                    Kind::Web => self.forward(client, request, &way, active, record).await,
                    Kind::Websocket => self.upgrade(client, request, &way, active, record).await,
                }
            }
        };
        (kind, answer)
    }

    fn health(&self) -> Response<Body> {
        let ready = self.table.current().is_some() && !self.draining.is_raised() && !self.staleness.is_exceeded();
        let (status, body) = match ready {
            true => (StatusCode::OK, r#"{"status":"OK"}"#),
            false => (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"unavailable"}"#),
        };
        let mut response = Response::new(Body::whole(Bytes::from_static(body.as_bytes())));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// Finds the route of a request. Whatever cannot be read is refused here, and never falls through to a shorter
    /// route, nor to the default target.
    fn resolve<B>(&self, request: &Request<B>) -> Result<Way<'_>, Failure> {
        let asked = read(request).map_err(|refusal| self.refused(refusal))?;
        let began = Instant::now();
        // The guard ends with this function: a request that lasts for hours must not keep an old table alive.
        let found = match &*self.table.current() {
            None => {
                self.metrics.no_table.inc();
                return Err(Failure::new(Problem::NoTable, "no_table"));
            }
            Some(_) if self.staleness.is_exceeded() => {
                self.metrics.stale_table.inc();
                return Err(Failure::new(Problem::StaleTable, "stale_table"));
            }
            Some(table) => table.lookup(asked.host.as_ref(), &asked.path).cloned(),
        };
        self.metrics.lookups.done(began);
        match (found, &self.default) {
            (Some(entry), _) => Ok(Way {
                entry,
                targets: &self.targets,
            }),
            (None, Some(default)) => Ok(Way {
                entry: default.clone(),
                targets: &self.operators,
            }),
            (None, None) => {
                self.metrics.no_route.inc();
                Err(Failure::new(Problem::NoRoute, "no_route"))
            }
        }
    }

    async fn forward(
        &self,
        client: &Client,
        request: Request<Incoming>,
        way: &Way<'_>,
        active: Active,
        record: &mut Option<Box<Record>>,
    ) -> Result<Response<Body>, Failure> {
        let (mut parts, body) = request.into_parts();
        let asked = self.prepare(client, &mut parts, way)?;
        let used = self.activity.of(&way.entry);
        let (body, upload) = Upload::relayed(body, self.body_timeout, &used);
        note(record, |facts| facts.upload = upload.clone());
        // Unless it is told that there is a body, hyper leaves that of a GET out.
        if upload.is_some() && !parts.headers.contains_key(CONTENT_LENGTH) {
            parts
                .headers
                .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        // As configurable-http-proxy has it: some servers ask these two for a length.
        if upload.is_none() && matches!(parts.method, Method::DELETE | Method::OPTIONS) {
            parts
                .headers
                .entry(CONTENT_LENGTH)
                .or_insert(HeaderValue::from_static("0"));
        }
        let sent = way.targets.send(way.target(), Request::from_parts(parts, body), upload);
        let (response, lease) = sent.await.map_err(|error| self.failed(way, &error))?;
        // A redirect or an error is none: a server that is gone must not look alive.
        let used = Some(used).filter(|_| response.status().as_u16() < 300);
        self.relay(way, response, lease, asked, used, active)
    }

    async fn upgrade(
        &self,
        client: &Client,
        mut request: Request<Incoming>,
        way: &Way<'_>,
        active: Active,
        record: &mut Option<Box<Record>>,
    ) -> Result<Response<Body>, Failure> {
        if !request.body().is_end_stream() {
            let problem = Problem::BadRequest("a request for an upgrade has no body");
            return Err(self.refused((Reject::Upgrade, problem)));
        }
        let http2 = request.version() == Version::HTTP_2;
        let on_client = hyper::upgrade::on(&mut request);
        let (mut parts, _) = request.into_parts();
        let asked = self.prepare(client, &mut parts, way)?;
        websocket::insert_upgrade(&mut parts.headers);
        // Nothing is sent that it could be the length of.
        parts.headers.remove(CONTENT_LENGTH);
        parts.method = Method::GET;
        let accept = http2.then(|| websocket::insert_key(&mut parts.headers));
        let sent = way
            .targets
            .upgrade(way.target(), Request::from_parts(parts, Upload::none()));
        let (mut response, lease) = sent.await.map_err(|error| self.failed(way, &error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // Over HTTP/2 it would read as if the WebSocket were open.
            if http2 && response.status().is_success() {
                return Err(self.misbehaved(way, "it took a request for a WebSocket for another one"));
            }
            return self.relay(way, response, lease, asked, None, active);
        }
        if !websocket::is_websocket(response.headers()) {
            return Err(self.misbehaved(way, "it switched to a protocol that was not asked for"));
        }
        if let Some(accept) = accept
            && !websocket::take_accept(response.headers_mut(), &accept)
        {
            return Err(self.misbehaved(way, "it switched without having read what it was asked"));
        }
        let target = hyper::upgrade::on(&mut response).await.map_err(|error| {
            let target = way.target().clone();
            let source = error.into();
            self.failed(way, &TargetError::Response { target, source })
        })?;
        let (mut parts, _) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        if http2 {
            parts.status = StatusCode::OK;
            parts.headers.remove(CONTENT_LENGTH);
        } else {
            websocket::insert_upgrade(&mut parts.headers);
        }
        parts.version = Version::HTTP_11;
        note(record, |facts| {
            (facts.upgraded, facts.status) = (true, parts.status.as_u16())
        });
        client.add_tunnel(Tunnel {
            client: on_client,
            target,
            // The line is written when the tunnel ends.
            record: record.take(),
            used: self.activity.of(&way.entry).tunnel(),
            active: Active::enter(&self.metrics.active_websockets),
        });
        Ok(Response::from_parts(parts, Body::whole(Bytes::new())))
    }

    /// Makes a request of the client's into one of ours; returns the host that was asked, where an answer may need it.
    fn prepare(
        &self,
        client: &Client,
        parts: &mut request::Parts,
        way: &Way<'_>,
    ) -> Result<Option<HeaderValue>, Failure> {
        // HTTP/2 names its host in the request's target.
        if let Some(authority) = parts.uri.authority()
            && !parts.headers.contains_key(HOST)
            && let Ok(authority) = HeaderValue::try_from(authority.as_str())
        {
            parts.headers.insert(HOST, authority);
        }
        let rewrites = self.policy.auto_rewrite || self.policy.protocol_rewrite.is_some();
        let asked = parts.headers.get(HOST).filter(|_| rewrites).cloned();
        headers::prepare(&mut parts.headers, &client.origin, &self.policy);
        // HTTP/1.0 may come without, HTTP/1.1 must not go without.
        if self.policy.change_origin || !parts.headers.contains_key(HOST) {
            let name = way.target().host().map_or("localhost", |_| way.target().authority());
            let name = HeaderValue::try_from(name).unwrap_or_else(|_| HeaderValue::from_static("localhost"));
            parts.headers.insert(HOST, name);
        }
        let key = way.entry.route.spec.key();
        match rewrite::origin_form(way.target(), key, &parts.uri, &self.policy) {
            Ok(Some(uri)) => parts.uri = uri,
            Ok(None) => {}
            Err(unaskable) => {
                let problem = match unaskable {
                    Unaskable::Path(error) => Problem::Unreadable(error),
                    Unaskable::TooLong => Problem::BadRequest("its path is too long"),
                };
                return Err(self.refused((Reject::Path, problem)));
            }
        }
        parts.version = Version::HTTP_11;
        Ok(asked)
    }

    fn relay(
        &self,
        way: &Way<'_>,
        response: Response<Incoming>,
        lease: Lease,
        asked: Option<HeaderValue>,
        used: Option<Use>,
        active: Active,
    ) -> Result<Response<Body>, Failure> {
        // Let through, it would turn the client's connection into a tunnel that nobody asked for.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.misbehaved(way, "it switched protocols without being asked"));
        }
        let (mut parts, body) = response.into_parts();
        // Where a body was framed by both, it was read as chunked: its length says nothing about it.
        if parts.headers.contains_key(TRANSFER_ENCODING) {
            parts.headers.remove(CONTENT_LENGTH);
        }
        join_lengths(&mut parts.headers);
        strip_hop_by_hop(&mut parts.headers);
        if let Some(asked) = asked
            && matches!(parts.status.as_u16(), 201 | 301 | 302 | 307 | 308)
            && let Some(location) = parts.headers.get(LOCATION).and_then(|value| value.to_str().ok())
            && let Some(location) = rewrite::location(location, way.target(), asked.to_str().ok(), &self.policy)
            && let Ok(location) = HeaderValue::try_from(location)
        {
            parts.headers.insert(LOCATION, location);
        }
        parts.version = Version::HTTP_11;
        let body = Body::relayed(body, lease, way.targets.patience, used, active);
        Ok(Response::from_parts(parts, body))
    }

    /// Says to a user what went wrong.
    async fn explain(&self, kind: Kind, problem: Problem, form: Form, uri: Option<&Uri>) -> Response<Body> {
        let own = || problem.response(form).map(Body::whole);
        match kind {
            Kind::Web => self.pages.page(&self.operators, problem, uri).await.unwrap_or_else(own),
            Kind::Websocket => own(),
        }
    }

    fn refused(&self, (reason, problem): (Reject, Problem)) -> Failure {
        self.metrics.rejected(reason);
        Failure::new(problem, reason.word())
    }

    fn failed(&self, way: &Way<'_>, error: &TargetError) -> Failure {
        if error.is_refusal() {
            self.refusals.report(&way.entry);
        }
        let cause = std::error::Error::source(error).map(innermost);
        tracing::info!(routespec = %way.entry.route.spec, cause = cause.map(tracing::field::display), "{error}");
        let (problem, word) = match (error.failure(), error) {
            (Some(how), _) => {
                self.metrics.target_failed(how);
                (Problem::TargetFailed, how.word())
            }
            (None, TargetError::Slow { .. }) => {
                self.metrics.slow_bodies.inc();
                (Problem::BodyTooSlow, "client")
            }
            (None, _) => (Problem::BadRequest("its body broke off, or cannot be read"), "client"),
        };
        Failure {
            problem,
            error: word,
            cause: self.access_log.as_ref().and(cause).map(|cause| cause.to_string()),
        }
    }

    fn misbehaved(&self, way: &Way<'_>, what: &'static str) -> Failure {
        let how = TargetFailure::Response;
        self.metrics.target_failed(how);
        tracing::warn!(routespec = %way.entry.route.spec, target = %way.target(), "refused a target's answer: {what}");
        Failure {
            cause: Some(what.to_owned()),
            ..Failure::new(Problem::TargetFailed, how.word())
        }
    }
}

fn note(record: &mut Option<Box<Record>>, note: impl FnOnce(&mut Facts)) {
    if let Some(record) = record {
        record.note(note);
    }
}

fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

//! One HTTP/1.1 request from start to end.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use holdfast_client::LiveTable;
use holdfast_table::{Entry, Host, RequestPath};
use http::header::{self, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use crate::metrics::{Active, Kind, Reject, SharedMetrics, TargetFailure};
use crate::pages::{Form, Problem};
use crate::signal::Signal;
use crate::targets::{TargetError, Targets};
use crate::tunnel::Tunnel;

/// Where configurable-http-proxy's health is asked for; ours tells the truth.
const HEALTH_PATH: &str = "/_chp_healthz";

const FORWARDED: HeaderName = header::FORWARDED;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_SCHEME: HeaderName = HeaderName::from_static("x-scheme");

/// Headers that a target may believe, so that nobody but us may write them.
const OURS: [HeaderName; 7] = [
    FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PORT,
    X_FORWARDED_PROTO,
    X_REAL_IP,
    X_SCHEME,
];

/// Headers of one hop (RFC 9110, section 7.6.1, and what older software sends).
const HOP_BY_HOP: [HeaderName; 7] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// End-to-end headers that `Connection` must not take away: a target decides by them who asks, for what, and how much.
const PROTECTED: [HeaderName; 10] = [
    HOST,
    header::COOKIE,
    header::SET_COOKIE,
    header::AUTHORIZATION,
    header::ORIGIN,
    header::REFERER,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    header::CONTENT_ENCODING,
    EXPECT,
];

/// Answers requests from the table and from the targets. Shared by all connections.
pub(crate) struct Forwarder {
    table: LiveTable,
    targets: Targets,
    metrics: SharedMetrics,
    draining: Arc<Signal>,
    /// The port that requests come in by, for those whose `Host` names none.
    port: u16,
}

/// One client's connection, as its requests need it.
pub(crate) struct Client {
    address: HeaderValue,
    /// Filled once, by the request that upgrades the connection.
    tunnel: Mutex<Option<Tunnel>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let address: IpAddr = address.ip().to_canonical();
        Client {
            // An address is made of digits, letters, dots and colons, so it always is a header's value.
            address: HeaderValue::try_from(address.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            tunnel: Mutex::new(None),
        }
    }

    /// What is to be run once the connection's last answer, a 101, is sent.
    pub(crate) fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Forwarder {
    pub(crate) fn new(
        table: LiveTable,
        targets: Targets,
        metrics: SharedMetrics,
        draining: Arc<Signal>,
        port: u16,
    ) -> Self {
        Forwarder {
            table,
            targets,
            metrics,
            draining,
            port,
        }
    }

    /// Answers one request; every failure is an answer too.
    pub(crate) async fn answer(&self, client: &Client, request: Request<Incoming>) -> Response<Body> {
        let active = Active::enter(&self.metrics.active_requests);
        let form = Form::wanted(request.headers());
        let (kind, answered) = self.dispatch(client, request, active).await;
        let mut response = answered.unwrap_or_else(|problem| problem.response(form).map(Body::whole));
        self.metrics.answered(kind, response.status());
        // A 400 may be half of an attempt to smuggle a request; a draining proxy wants its clients elsewhere.
        if response.status() == StatusCode::BAD_REQUEST
            || (self.draining.is_raised() && response.status() != StatusCode::SWITCHING_PROTOCOLS)
        {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Waits until the connections to targets are closed, once there are no requests any more.
    pub(crate) async fn close(self) {
        self.targets.close().await;
    }

    async fn dispatch(
        &self,
        client: &Client,
        request: Request<Incoming>,
        active: Active,
    ) -> (Kind, Result<Response<Body>, Problem>) {
        if request.uri().path() == HEALTH_PATH && request.method() == Method::GET {
            return (Kind::Web, Ok(self.health()));
        }
        let kind = match wants_websocket(&request) {
            true => Kind::Websocket,
            false => Kind::Web,
        };
        let answer = match self.resolve(&request) {
            Err(problem) => Err(problem),
            Ok(entry) => match kind {
                Kind::Web => self.forward(client, request, &entry, active).await,
                Kind::Websocket => self.upgrade(client, request, &entry, active).await,
            },
        };
        (kind, answer)
    }

    fn health(&self) -> Response<Body> {
        let ready = self.table.current().is_some() && !self.draining.is_raised();
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
    /// route.
    fn resolve<B>(&self, request: &Request<B>) -> Result<Arc<Entry>, Problem> {
        let refuse = |reason: Reject, problem: Problem| {
            self.metrics.rejected(reason);
            problem
        };
        let uri = request.uri();
        let origin_form = match uri.path_and_query() {
            Some(path) if request.method() != Method::CONNECT && path.as_str() != "*" => path.as_str(),
            _ => {
                return Err(refuse(
                    Reject::Method,
                    Problem::BadRequest("this is no proxy for CONNECT or '*'"),
                ));
            }
        };
        let host = read_host(request).map_err(|problem| refuse(Reject::Host, problem))?;
        let host = match host {
            Some(host) => Some(Host::parse(host).map_err(|e| refuse(Reject::Host, Problem::Unreadable(e)))?),
            None => None,
        };
        let path = RequestPath::parse(origin_form).map_err(|e| refuse(Reject::Path, Problem::Unreadable(e)))?;
        // The guard ends with this function: a request that lasts for hours must not keep an old table alive.
        match &*self.table.current() {
            None => {
                self.metrics.no_table.inc();
                Err(Problem::NoTable)
            }
            Some(table) => table.lookup(host.as_ref(), &path).cloned().ok_or_else(|| {
                self.metrics.no_route.inc();
                Problem::NoRoute
            }),
        }
    }

    async fn forward(
        &self,
        client: &Client,
        request: Request<Incoming>,
        entry: &Entry,
        active: Active,
    ) -> Result<Response<Body>, Problem> {
        let (mut parts, body) = request.into_parts();
        self.prepare(client, &mut parts, entry);
        let sent = self.targets.send(&entry.route.target, Request::from_parts(parts, body));
        let response = sent.await.map_err(|error| self.failed(entry, &error))?;
        self.relay(entry, response, active)
    }

    async fn upgrade(
        &self,
        client: &Client,
        mut request: Request<Incoming>,
        entry: &Entry,
        active: Active,
    ) -> Result<Response<Body>, Problem> {
        if !request.body().is_end_stream() {
            self.metrics.rejected(Reject::Upgrade);
            return Err(Problem::BadRequest("a request for an upgrade has no body"));
        }
        let on_client = hyper::upgrade::on(&mut request);
        let (mut parts, _) = request.into_parts();
        self.prepare(client, &mut parts, entry);
        insert_upgrade(&mut parts.headers);
        let sent = self
            .targets
            .upgrade(&entry.route.target, Request::from_parts(parts, Empty::new()));
        let mut response = sent.await.map_err(|error| self.failed(entry, &error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return self.relay(entry, response, active);
        }
        if !is_websocket(response.headers()) {
            return Err(self.misbehaved(entry, "it switched to a protocol that was not asked for"));
        }
        let target = hyper::upgrade::on(&mut response).await.map_err(|error| {
            let target = entry.route.target.clone();
            let source = error.into();
            self.failed(entry, &TargetError::Response { target, source })
        })?;
        let (mut parts, _) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        insert_upgrade(&mut parts.headers);
        parts.version = Version::HTTP_11;
        *client.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tunnel {
            client: on_client,
            target,
            active: Active::enter(&self.metrics.active_websockets),
        });
        Ok(Response::from_parts(parts, Body::whole(Bytes::new())))
    }

    /// Makes a request of the client's into one of ours: headers of this hop go, headers that targets believe are ours.
    fn prepare(&self, client: &Client, parts: &mut http::request::Parts, entry: &Entry) {
        let headers = &mut parts.headers;
        let trailers = headers
            .get_all(TE)
            .iter()
            .any(|value| tokens(value).any(|token| token.eq_ignore_ascii_case("trailers")));
        strip_hop_by_hop(headers);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        strip_aliases(headers);
        headers.remove(FORWARDED);
        headers.remove(X_SCHEME);
        headers.insert(X_FORWARDED_FOR, client.address.clone());
        headers.insert(X_REAL_IP, client.address.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        let host = headers.get(HOST).cloned();
        headers.insert(X_FORWARDED_PORT, self.port_of(host.as_ref()));
        match host {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => {
                // HTTP/1.0 may come without, HTTP/1.1 must not go without.
                let name = entry.route.target.host().map(|_| entry.route.target.authority());
                let name = HeaderValue::try_from(name.unwrap_or("localhost"));
                headers.insert(HOST, name.unwrap_or_else(|_| HeaderValue::from_static("localhost")));
                headers.remove(X_FORWARDED_HOST)
            }
        };
        parts.version = Version::HTTP_11;
    }

    fn port_of(&self, host: Option<&HeaderValue>) -> HeaderValue {
        let text = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let after_address = text.rfind(']').map_or(text, |end| &text[end..]);
        match after_address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok())
        {
            Some(port) => HeaderValue::from(port),
            None if host.is_some() => HeaderValue::from_static("80"),
            None => HeaderValue::from(self.port),
        }
    }

    fn relay(&self, entry: &Entry, response: Response<Incoming>, active: Active) -> Result<Response<Body>, Problem> {
        // Let through, it would turn the client's connection into a tunnel that nobody asked for.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.misbehaved(entry, "it switched protocols without being asked"));
        }
        let (mut parts, body) = response.into_parts();
        // Where a body was framed by both, it was read as chunked: its length says nothing about it.
        if parts.headers.contains_key(TRANSFER_ENCODING) {
            parts.headers.remove(CONTENT_LENGTH);
        }
        strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let body = Body::Relayed { body, _active: active };
        Ok(Response::from_parts(parts, body))
    }

    fn failed(&self, entry: &Entry, error: &TargetError) -> Problem {
        self.metrics.target_failed(error.failure());
        let cause = std::error::Error::source(error).map(innermost);
        let cause = cause.map(tracing::field::display);
        tracing::info!(routespec = %entry.route.spec, cause, "{error}");
        match error {
            TargetError::Unsupported { .. } => Problem::TargetUnsupported,
            _ => Problem::TargetFailed,
        }
    }

    fn misbehaved(&self, entry: &Entry, what: &'static str) -> Problem {
        self.metrics.target_failed(TargetFailure::Response);
        tracing::warn!(routespec = %entry.route.spec, target = %entry.route.target, "refused a target's answer: {what}");
        Problem::TargetFailed
    }
}

/// What is sent to a client, never held back: each frame goes on as it comes.
pub(crate) enum Body {
    /// Of our own making.
    Whole(Bytes),
    /// A target's.
    Relayed { body: Incoming, _active: Active },
}

impl Body {
    fn whole(bytes: Bytes) -> Self {
        Body::Whole(bytes)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Body::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Relayed { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Whole(bytes) => bytes.is_empty(),
            Body::Relayed { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Relayed { body, .. } => body.size_hint(),
        }
    }
}

/// The one host that a request names, `None` for HTTP/1.0 without a `Host`.
fn read_host<B>(request: &Request<B>) -> Result<Option<&str>, Problem> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Problem::BadRequest("there is more than one Host header")),
        (None, None) if request.version() < Version::HTTP_11 => None,
        (None, None) => return Err(Problem::BadRequest("there is no Host header")),
        (Some(host), None) => Some(
            host.to_str()
                .map_err(|_| Problem::BadRequest("the Host header is no text"))?,
        ),
    };
    match request.uri().authority() {
        Some(authority) if host.is_none_or(|host| !authority.as_str().eq_ignore_ascii_case(host)) => Err(
            Problem::BadRequest("the request's target names another host than the Host header"),
        ),
        _ => Ok(host),
    }
}

fn wants_websocket<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE)
        && request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && is_websocket(request.headers())
}

/// True for the one protocol that connections are upgraded to. A request that names any other is an ordinary one.
fn is_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let alone = match (protocols.next(), protocols.next()) {
        (Some(protocol), None) => protocol.as_bytes().eq_ignore_ascii_case(b"websocket"),
        _ => false,
    };
    let mut connection = headers.get_all(CONNECTION).iter().flat_map(tokens);
    alone && connection.any(|token| token.eq_ignore_ascii_case("upgrade"))
}

fn insert_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter_map(|token| HeaderName::try_from(token).ok())
            .filter(|name| !PROTECTED.contains(name) && !OURS.contains(name))
            .collect();
        headers.remove(CONNECTION);
        for name in nominated {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes headers that some servers take for one of [`OURS`]: CGI and WSGI read `x_real_ip` as `x-real-ip`.
fn strip_aliases(headers: &mut HeaderMap) {
    let is_alias = |name: &HeaderName| {
        name.as_str().contains('_') && {
            let dashed = name.as_str().replace('_', "-");
            OURS.iter().any(|ours| ours.as_str() == dashed)
        }
    };
    if headers.keys().any(is_alias) {
        let aliases: Vec<HeaderName> = headers.keys().filter(|name| is_alias(name)).cloned().collect();
        for alias in aliases {
            headers.remove(alias);
        }
    }
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value
        .to_str()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn headers_of_one_hop_are_stripped_and_no_others() {
        let mut headers = headers(&[
            ("connection", "close, X-Secret, cookie, x-forwarded-for"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-secret", "1"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-other", "2"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "x-forwarded-for", "x-other"]);
    }

    #[test]
    fn names_that_pass_for_ours_are_stripped() {
        let mut headers = headers(&[
            ("x_real_ip", "1.2.3.4"),
            ("x-forwarded_for", "1.2.3.4"),
            ("x_mine", "1"),
        ]);
        strip_aliases(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x_mine"]);
    }

    #[test]
    fn only_a_get_of_http_1_1_upgrades_and_only_to_websocket() {
        let request = |method: &str, version: Version, connection: &'static str, upgrade: &'static str| {
            let mut request = Request::new(());
            *request.method_mut() = Method::try_from(method).unwrap();
            *request.version_mut() = version;
            *request.headers_mut() = headers(&[("connection", connection), ("upgrade", upgrade)]);
            request
        };
        assert!(wants_websocket(&request(
            "GET",
            Version::HTTP_11,
            "keep-alive, Upgrade",
            "WebSocket"
        )));
        assert!(!wants_websocket(&request(
            "POST",
            Version::HTTP_11,
            "upgrade",
            "websocket"
        )));
        assert!(!wants_websocket(&request(
            "GET",
            Version::HTTP_10,
            "upgrade",
            "websocket"
        )));
        assert!(!wants_websocket(&request(
            "GET",
            Version::HTTP_11,
            "close",
            "websocket"
        )));
        assert!(!wants_websocket(&request("GET", Version::HTTP_11, "upgrade", "h2c")));
        assert!(!wants_websocket(&request(
            "GET",
            Version::HTTP_11,
            "upgrade",
            "websocket, h2c"
        )));
    }

    #[test]
    fn a_request_names_exactly_one_host() {
        let request = |uri: &str, version: Version, hosts: &[&'static str]| {
            let mut request = Request::new(());
            *request.uri_mut() = uri.parse().unwrap();
            *request.version_mut() = version;
            for host in hosts {
                request.headers_mut().append(HOST, HeaderValue::from_static(host));
            }
            read_host(&request).map(|host| host.map(str::to_owned)).ok()
        };
        assert_eq!(request("/", Version::HTTP_11, &["a:1"]), Some(Some("a:1".into())));
        assert_eq!(
            request("http://A:1/", Version::HTTP_11, &["a:1"]),
            Some(Some("a:1".into()))
        );
        assert_eq!(request("/", Version::HTTP_10, &[]), Some(None));
        assert_eq!(request("/", Version::HTTP_11, &[]), None);
        assert_eq!(request("/", Version::HTTP_11, &["a", "a"]), None);
        assert_eq!(request("http://b/", Version::HTTP_11, &["a"]), None);
        assert_eq!(request("http://b/", Version::HTTP_10, &[]), None);
    }
}

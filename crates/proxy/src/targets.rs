//! Connections to user servers.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use holdfast_table::{Scheme, Target};
use http::uri::{self, Authority, PathAndQuery};
use http::{Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::metrics::TargetFailure;

/// Our own scheme for unix sockets, with the socket's path in hexadecimal as authority: a pool is keyed by both.
const UNIX: &str = "unix";
/// Idle connections kept to one target.
const IDLE_PER_TARGET_MAX: usize = 16;
/// The most bytes in the head of an answer.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// Connections to user servers: pooled ones for requests, one of its own for each upgrade.
pub(crate) struct Targets {
    connector: Connector,
    pool: Client<Connector, Incoming>,
    /// Owns the tasks that drive the connections.
    tasks: TaskTracker,
}

/// Why a target gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// Nothing was sent.
    #[error("no connection to {target}")]
    Connect {
        target: Target,
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Perhaps something was sent, and acted upon.
    #[error("no answer from {target}")]
    Response {
        target: Target,
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Nothing was sent.
    #[error("{target}: https targets are not supported by this version of the proxy; use http on a trusted network")]
    Unsupported { target: Target },
}

impl TargetError {
    pub(crate) fn failure(&self) -> TargetFailure {
        match self {
            TargetError::Connect { .. } => TargetFailure::Connect,
            TargetError::Response { .. } => TargetFailure::Response,
            TargetError::Unsupported { .. } => TargetFailure::Unsupported,
        }
    }
}

impl Targets {
    pub(crate) fn new(connect_timeout: Duration, idle_timeout: Duration) -> Self {
        let tasks = TaskTracker::new();
        let connector = Connector::new(connect_timeout);
        let pool = Client::builder(Tracked(tasks.clone()))
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(idle_timeout)
            .pool_max_idle_per_host(IDLE_PER_TARGET_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            // A request that met a connection which the target had closed already, and of which no byte was sent, goes
            // out on another one. Anything else is never sent twice.
            .retry_canceled_requests(true)
            .set_host(false)
            .build(connector.clone());
        Targets { connector, pool, tasks }
    }

    /// Sends one request, whose URI is in origin form, and returns the head of the answer.
    pub(crate) async fn send(
        &self,
        target: &Target,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, TargetError> {
        *request.uri_mut() = address(target, request.uri())?;
        self.pool
            .request(request)
            .await
            .map_err(|error| match error.is_connect() {
                true => TargetError::Connect {
                    target: target.clone(),
                    source: error.into(),
                },
                false => TargetError::Response {
                    target: target.clone(),
                    source: error.into(),
                },
            })
    }

    /// Asks for an upgrade on a connection that carries nothing before it and, unless refused, nothing after it.
    pub(crate) async fn upgrade(
        &self,
        target: &Target,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, TargetError> {
        let uri = address(target, request.uri())?;
        let stream = self
            .connector
            .clone()
            .connect(uri)
            .await
            .map_err(|source| TargetError::Connect {
                target: target.clone(),
                source,
            })?;
        let failed = |error: hyper::Error| TargetError::Response {
            target: target.clone(),
            source: error.into(),
        };
        *request.uri_mut() = Uri::from(joined(target, request.uri())?);
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(failed)?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a target ended");
            }
        });
        sender.send_request(request).await.map_err(failed)
    }

    /// Closes idle connections and waits until the others, whose requests must have ended, are closed too.
    pub(crate) async fn close(self) {
        let Targets { connector, pool, tasks } = self;
        drop((connector, pool));
        tasks.close();
        tasks.wait().await;
    }
}

/// The URI that says to the pool where to connect, and what to ask for there.
fn address(target: &Target, incoming: &Uri) -> Result<Uri, TargetError> {
    let unsent = |error: http::Error| TargetError::Connect {
        target: target.clone(),
        source: error.into(),
    };
    let mut parts = uri::Parts::default();
    (parts.scheme, parts.authority) = match target.scheme() {
        Scheme::Https => return Err(TargetError::Unsupported { target: target.clone() }),
        Scheme::Http => {
            let authority = Authority::try_from(target.authority()).map_err(|error| unsent(error.into()))?;
            (Some(uri::Scheme::HTTP), Some(authority))
        }
        Scheme::HttpUnix => {
            let path = target.socket_path().unwrap_or_default();
            let authority = Authority::try_from(hexadecimal(&path)).map_err(|error| unsent(error.into()))?;
            let scheme = uri::Scheme::try_from(UNIX).map_err(|error| unsent(error.into()))?;
            (Some(scheme), Some(authority))
        }
    };
    parts.path_and_query = Some(joined(target, incoming)?);
    Uri::from_parts(parts).map_err(|error| unsent(error.into()))
}

/// The target's path and query, then the request's, whose bytes stay as they are.
fn joined(target: &Target, incoming: &Uri) -> Result<PathAndQuery, TargetError> {
    let root = || PathAndQuery::from_static("/");
    let own = incoming.path_and_query().cloned().unwrap_or_else(root);
    let (path, query) = (target.path(), target.query().filter(|query| !query.is_empty()));
    if path.is_empty() && query.is_none() {
        return Ok(own);
    }
    let mut text = String::with_capacity(target.as_str().len() + own.as_str().len());
    text.push_str(path);
    text.push_str(own.path());
    let queries = [query, own.query()];
    for (query, separator) in queries.into_iter().flatten().zip(['?', '&']) {
        text.push(separator);
        text.push_str(query);
    }
    PathAndQuery::try_from(text).map_err(|error| TargetError::Connect {
        target: target.clone(),
        source: error.into(),
    })
}

fn hexadecimal(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal(text: &str) -> Option<PathBuf> {
    let digits = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes = digits.map(byte).collect::<Option<Vec<u8>>>()?;
    Some(PathBuf::from(String::from_utf8(bytes).ok()?))
}

/// Opens connections, over TCP or to a unix socket, within the time that they may take.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    timeout: Duration,
}

impl Connector {
    fn new(timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        Connector { tcp, timeout }
    }

    /// The time includes the resolution of a name, which the connector's own timeout does not.
    async fn connect(mut self, uri: Uri) -> Result<Stream, Box<dyn StdError + Send + Sync>> {
        let timeout = self.timeout;
        let connected = tokio::time::timeout(timeout, async move {
            if uri.scheme_str() == Some(UNIX) {
                let path = uri.host().and_then(from_hexadecimal);
                let path = path.as_deref().unwrap_or(Path::new(""));
                return Ok(Stream::Unix(TokioIo::new(UnixStream::connect(path).await?)));
            }
            Ok(Stream::Tcp(self.tcp.call(uri).await?))
        });
        match connected.await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("not connected within {timeout:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
            }
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection to a target.
enum Stream {
    Tcp(TokioIo<TcpStream>),
    Unix(TokioIo<UnixStream>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}

/// Gives the pool's tasks an owner.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_its_bytes_behind_the_targets_path_and_query() {
        for (target, asked, expected) in [
            (
                "http://10.0.0.1:1",
                "/user/a/%2Fx?q=%20",
                "http://10.0.0.1:1/user/a/%2Fx?q=%20",
            ),
            ("http://10.0.0.1:1/", "/a//b", "http://10.0.0.1:1/a//b"),
            ("http://10.0.0.1:1/base/", "/", "http://10.0.0.1:1/base/"),
            ("http://[::1]:80/base?t=1", "/a?b", "http://[::1]:80/base/a?t=1&b"),
            ("http://h.example?t=1", "/a", "http://h.example/a?t=1"),
            (
                "http+unix://%2Frun%2Fx.sock/p",
                "/a",
                "unix://2f72756e2f782e736f636b/p/a",
            ),
        ] {
            let target = Target::parse(target).unwrap();
            let asked: Uri = asked.parse().unwrap();
            assert_eq!(address(&target, &asked).unwrap().to_string(), expected);
        }
        assert_eq!(
            from_hexadecimal("2f72756e2f782e736f636b").unwrap(),
            Path::new("/run/x.sock")
        );
    }

    #[test]
    fn https_is_said_to_be_unsupported() {
        let target = Target::parse("https://10.0.0.1:1").unwrap();
        let error = address(&target, &Uri::from_static("/")).unwrap_err();
        assert!(error.to_string().contains("https targets are not supported"), "{error}");
    }
}

//! One connection of a client from its first byte to its last, tunnels included.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::convert::Infallible;
use std::error::Error as _;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_tls::ServerIdentity;
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::task::TaskTracker;

use crate::body::Body;
use crate::client::Client;
use crate::forward::Forwarder;
use crate::head::Watch;
use crate::headers::Origin;
use crate::metrics::{Active, Dropped, Reject, SharedMetrics};
use crate::pulse::{self, Pulse};
use crate::signal::Signal;
use crate::stream::Stream;
use crate::tunnel::Tunnel;

/// The most bytes in a request's head; more get 431.
pub(crate) const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// The most bytes that are read from a client of HTTP/1.1 before its target takes them, and kept of an answer before the
/// client does. A whole head fits in.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 100;
/// The most bytes in a head of HTTP/2 that are read at all. Beyond that h2 answers by itself and tells nobody, so it is
/// let read what only just is too much.
const HEAD_BYTES_READ_MAX: u32 = 2 * HEAD_BYTES_MAX;
/// What one request, and one connection, may send before it is read.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of an answer until its client takes it.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// How often a connection of HTTP/2 is asked whether it lives, and for how long.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long who has connected just before a drain may take to begin: what it says may be on its way.
const BEGIN_GRACE: Duration = Duration::from_millis(500);
/// What a client of HTTP/2 begins with if it needs no negotiation (RFC 9113, section 3.4).
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The steps of a drain.
#[derive(Default)]
pub(crate) struct Signals {
    /// Accept nothing more; connections end with their present requests and tunnels.
    pub(crate) stop: Signal,
    /// Tunnels end as WebSockets do, each at some moment within `spread`.
    pub(crate) part: Signal,
    pub(crate) spread: Duration,
    /// End now.
    pub(crate) cut: Signal,
}

/// What those who come in by a listener find there.
#[derive(Clone)]
pub(crate) enum Entrance {
    /// Their servers.
    Users(Option<Arc<ServerIdentity>>),
    /// The way to the entrance with TLS, which is at this port.
    Redirect(u16),
}

/// How long a client may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// For a TLS handshake, and for the head of a request.
    pub(crate) header_timeout: Duration,
    /// From one request to the next.
    pub(crate) keep_alive_timeout: Duration,
    /// Without a byte either way, tunnels aside; of HTTP/2, of one request.
    pub(crate) client_timeout: Option<Duration>,
}

/// Serves connections; shared by all of them.
pub(crate) struct Server {
    forwarder: Arc<Forwarder>,
    metrics: SharedMetrics,
    signals: Arc<Signals>,
    http1: http1::Builder,
    limits: Limits,
}

impl Server {
    pub(crate) fn new(
        forwarder: Arc<Forwarder>,
        metrics: SharedMetrics,
        signals: Arc<Signals>,
        limits: Limits,
    ) -> Self {
        Server {
            forwarder,
            metrics,
            signals,
            http1: http1(limits),
            limits,
        }
    }

    /// Serves one connection; returns when it has ended, soon after `cut` at the latest.
    pub(crate) async fn serve(&self, stream: Stream, peer: Option<SocketAddr>, port: u16, entrance: Entrance) {
        let active = Active::enter(&self.metrics.connections);
        let redirect = match entrance {
            Entrance::Users(_) => None,
            Entrance::Redirect(port) => Some(port),
        };
        let tls = match entrance {
            Entrance::Users(tls) => tls,
            Entrance::Redirect(_) => None,
        };
        let secure = tls.is_some();
        let opened = {
            let mut opening = pin!(timeout(self.limits.header_timeout, open(stream, tls)));
            match self.signals.stop.unless_raised(opening.as_mut()).await {
                None => timeout(BEGIN_GRACE, opening).await.ok(),
                opened => opened,
            }
        };
        let opened = match opened {
            Some(Ok(Ok(opened))) => opened,
            Some(Ok(Err(Failure::Gone))) | None => return,
            Some(Ok(Err(Failure::Handshake(error)))) => {
                self.metrics.dropped(Dropped::Handshake);
                tracing::debug!(%error, client = ?peer, "no TLS with a client");
                return;
            }
            Some(Err(_)) => return self.metrics.dropped(Dropped::Silent),
        };
        let trusted = &self.forwarder.policy().trusted_proxies;
        let origin = Origin::new(peer.map(|peer| peer.ip()), secure, port, trusted);
        let client = Arc::new(Client::new(origin, redirect));
        match opened {
            Opened::Http1(io) => self.http1(io, client, peer).await,
            // Boxed, so that connections of HTTP/1.1, of which there are far more, do not carry its size.
            Opened::Http2(io) => Box::pin(self.http2(io, client, peer)).await,
        }
        drop(active);
    }

    async fn http1(&self, mut io: Io, client: Arc<Client>, peer: Option<SocketAddr>) {
        let seen = Arc::new(Seen::default());
        io.watch = Some(Watch::new(seen.framing.clone()));
        io.head_clock = Some(HeadClock::new(self.limits.header_timeout, seen.clone()));
        io.patience = self.limits.client_timeout.map(Patience::new);
        let (served, forwarder) = (client.clone(), self.forwarder.clone());
        let service = service_fn(move |request| {
            let (forwarder, client) = (forwarder.clone(), served.clone());
            async move { Ok::<_, Infallible>(forwarder.answer(&client, request).await) }
        });
        let connection = self.http1.serve_connection(TokioIo::new(io), service).with_upgrades();
        let mut connection = pin!(connection);
        let served = self.signals.cut.unless_raised(async {
            match self.signals.stop.unless_raised(connection.as_mut()).await {
                Some(result) => result,
                None => {
                    // hyper closes what it has not begun to read, and what is here already is read by being polled.
                    if let Poll::Ready(ended) = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx))).await {
                        return ended;
                    }
                    connection.as_mut().graceful_shutdown();
                    connection.as_mut().await
                }
            }
        });
        let Some(ended) = served.await else { return };
        self.count(&ended, &seen);
        match ended {
            Ok(()) => {
                if let Some(tunnel) = client.take_tunnel() {
                    tunnel.run(&self.signals).await;
                }
            }
            Err(error) => tracing::debug!(%error, client = ?peer, "a connection ended"),
        }
    }

    /// Counts a connection of HTTP/1.1 on which something was refused, or waited for in vain.
    fn count(&self, ended: &hyper::Result<()>, seen: &Seen) {
        let in_head = seen.in_head.load(Ordering::Relaxed);
        let is_late = seen.is_late.load(Ordering::Relaxed);
        match ended {
            _ if seen.framing.get() > 0 => self.metrics.rejected(Reject::Framing),
            Err(error) if error.is_parse() => self.metrics.rejected(Reject::Head),
            Err(error) if in_head && (is_late || error.is_timeout()) => self.metrics.dropped(Dropped::Slow),
            _ if is_late => self.metrics.dropped(Dropped::Silent),
            _ => {}
        }
    }

    async fn http2(&self, io: Io, client: Arc<Client>, peer: Option<SocketAddr>) {
        let streams = Streams {
            tasks: TaskTracker::new(),
            signals: self.signals.clone(),
            limits: self.limits,
        };
        let mut http = http2::Builder::new(streams.clone());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_READ_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_local_error_reset_streams(32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .enable_connect_protocol();
        let (served, forwarder, tunnels) = (client.clone(), self.forwarder.clone(), streams.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (forwarder, client, tunnels) = (forwarder.clone(), served.clone(), tunnels.clone());
            async move {
                let unanswered = client.unanswered();
                let may_upgrade = request.method() == Method::CONNECT;
                let response = forwarder.answer(&client, request).await;
                unanswered.answered();
                if let Some(pulse) = Pulse::present() {
                    pulse.beat();
                }
                if may_upgrade && let Some(tunnel) = client.take_tunnel() {
                    tunnels.run(tunnel);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http.serve_connection(TokioIo::new(io), service);
        self.drive(connection, &streams, &client, peer).await;
        streams.tasks.close();
        streams.tasks.wait().await;
    }

    /// Drives a connection of HTTP/2 until it has ended, or is not to go on.
    async fn drive<S>(
        &self,
        connection: http2::Connection<TokioIo<Io>, S, Streams>,
        streams: &Streams,
        client: &Client,
        peer: Option<SocketAddr>,
    ) where
        S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
        S::Future: Send + 'static,
    {
        let mut connection = pin!(connection);
        let mut draining = false;
        let ended = self.signals.cut.unless_raised(async {
            loop {
                let idle = streams.idle(client);
                let driven = async {
                    tokio::select! {
                        biased;
                        ended = connection.as_mut() => End::Ended(ended),
                        () = client.abuses() => End::Abuse,
                        () = idle => End::Idle,
                    }
                };
                let end = match draining {
                    false => self.signals.stop.unless_raised(driven).await.unwrap_or(End::Stop),
                    true => driven.await,
                };
                match end {
                    End::Ended(Ok(())) => return,
                    End::Ended(Err(error)) => {
                        if error.is_timeout() {
                            self.metrics.dropped(Dropped::Silent);
                        } else if breaks_rules(&error) {
                            self.metrics.dropped(Dropped::Protocol);
                        }
                        tracing::debug!(%error, client = ?peer, "a connection ended");
                        return;
                    }
                    End::Abuse => {
                        self.metrics.dropped(Dropped::Resets);
                        tracing::info!(client = ?peer, "a client took back too many requests: its connection is cut");
                        return;
                    }
                    // Told once that it shall end, it does not.
                    End::Idle if draining => return,
                    End::Idle | End::Stop => {
                        connection.as_mut().graceful_shutdown();
                        draining = true;
                    }
                }
            }
        });
        ended.await;
    }
}

fn http1(limits: Limits) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1
        .timer(TokioTimer::new())
        .header_read_timeout(limits.keep_alive_timeout)
        .max_header_size(HEAD_BYTES_MAX as usize)
        .max_buf_size(BUFFER_BYTES_MAX);
    http1
}

/// True if a connection of HTTP/2 was ended by us for what its client sent.
fn breaks_rules(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.is_library() && error.is_go_away())
}

/// How a connection of HTTP/2 goes on.
enum End {
    Ended(hyper::Result<()>),
    Abuse,
    Idle,
    Stop,
}

/// Owns what runs beside a connection of HTTP/2: its requests and its tunnels.
#[derive(Clone)]
struct Streams {
    tasks: TaskTracker,
    signals: Arc<Signals>,
    limits: Limits,
}

impl Streams {
    fn run(&self, tunnel: Tunnel) {
        let signals = self.signals.clone();
        self.tasks.spawn(async move { tunnel.run(&signals).await });
    }

    /// Returns when nothing has been asked for or under way for as long as there may be.
    async fn idle(&self, client: &Client) {
        loop {
            let seen = client.requests();
            sleep(match seen {
                0 => self.limits.header_timeout,
                _ => self.limits.keep_alive_timeout,
            })
            .await;
            if self.tasks.is_empty() && client.requests() == seen {
                return;
            }
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let signals = self.signals.clone();
        // What a request starts while it is driven is its WebSocket, which may be silent.
        let patience = self.limits.client_timeout.filter(|_| Pulse::present().is_none());
        match patience {
            None => self.tasks.spawn(async move {
                signals.cut.unless_raised(task).await;
            }),
            Some(limit) => self.tasks.spawn(async move {
                signals.cut.unless_raised(pulse::drive(task, limit)).await;
            }),
        };
    }
}

/// A connection that has said what it speaks.
enum Opened {
    Http1(Io),
    Http2(Io),
}

/// Why a connection did not come so far.
enum Failure {
    /// The client has left.
    Gone,
    Handshake(io::Error),
}

async fn open(mut stream: Stream, tls: Option<Arc<ServerIdentity>>) -> Result<Opened, Failure> {
    let mut first = First::default();
    if let Some(tls) = tls {
        // Boxed, because a handshake is soon over and its size would stay with the connection.
        let handshake = Box::pin(TlsAcceptor::from(tls.config()).accept(stream));
        let stream = handshake.await.map_err(Failure::Handshake)?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = Io::new(Stream::Tls(Box::new(TlsStream::Server(stream))), first);
        return Ok(match http2 {
            true => Opened::Http2(io),
            false => Opened::Http1(io),
        });
    }
    loop {
        match stream.read(&mut first.bytes[first.read..]).await {
            Ok(0) | Err(_) => return Err(Failure::Gone),
            Ok(n) => first.read += n,
        }
        if first.bytes[..first.read] != PREFACE[..first.read] {
            return Ok(Opened::Http1(Io::new(stream, first)));
        }
        if first.read == PREFACE.len() {
            return Ok(Opened::Http2(Io::new(stream, first)));
        }
    }
}

/// The first bytes of a connection, read to see what it speaks.
#[derive(Default)]
struct First {
    bytes: [u8; PREFACE.len()],
    read: usize,
    used: usize,
}

/// A connection as hyper sees it.
struct Io {
    stream: Stream,
    first: First,
    watch: Option<Watch>,
    head_clock: Option<HeadClock>,
    patience: Option<Patience>,
}

/// What the bytes of a connection of HTTP/1.1 tell of its end, and hyper does not.
#[derive(Default)]
struct Seen {
    /// Heads that were refused before hyper had them.
    framing: Counter,
    /// A head has begun and is not at its end.
    in_head: AtomicBool,
    /// A head was not there in time.
    is_late: AtomicBool,
}

/// For how long a head may be due: from its first byte on, the first one from the connection's begin on.
struct HeadClock {
    limit: Duration,
    /// With the number of the head that is due then.
    until: Option<(u64, Pin<Box<Sleep>>)>,
    seen: Arc<Seen>,
}

impl HeadClock {
    fn new(limit: Duration, seen: Arc<Seen>) -> Self {
        HeadClock {
            limit,
            until: None,
            seen,
        }
    }

    /// To be asked whenever the connection has been read from.
    fn poll(&mut self, cx: &mut Context<'_>, watch: &Watch, waits: bool) -> io::Result<()> {
        self.seen.in_head.store(watch.is_in_head(), Ordering::Relaxed);
        let due = watch.awaits_head();
        self.until.take_if(|(head, _)| Some(*head) != due);
        let Some(due) = due else { return Ok(()) };
        let limit = self.limit;
        let (_, until) = self.until.get_or_insert_with(|| (due, Box::pin(sleep(limit))));
        // What is here already is not late, whenever it is read.
        if !waits || until.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        self.seen.is_late.store(true, Ordering::Relaxed);
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// For how long a client may let nothing pass, neither way.
struct Patience {
    limit: Duration,
    until: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Patience { limit, until: None }
    }

    /// To be asked whenever the connection has been polled.
    fn poll(&mut self, cx: &mut Context<'_>, waits: bool) -> io::Result<()> {
        let limit = Instant::now() + self.limit;
        let until = self.until.get_or_insert_with(|| Box::pin(sleep_until(limit)));
        if !waits {
            until.as_mut().reset(limit);
        }
        match until.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Io {
    fn new(stream: Stream, first: First) -> Self {
        Io {
            stream,
            first,
            watch: None,
            head_clock: None,
            patience: None,
        }
    }

    fn check(&mut self, cx: &mut Context<'_>, waits: bool) -> io::Result<()> {
        match (&mut self.patience, &self.watch) {
            (Some(patience), Some(watch)) if !watch.is_over() => patience.poll(cx, waits),
            _ => Ok(()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let First { bytes, read, used } = &mut self.first;
        if used == read {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let some = (*read - *used).min(buffer.remaining());
        buffer.put_slice(&bytes[*used..*used + some]);
        *used += some;
        // With the rest, if it is here: a head that comes in two parts is parsed twice.
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        if let Some(end) = io.watch.as_mut().and_then(Watch::end) {
            buffer.put_slice(&end[..end.len().min(buffer.remaining())]);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = io.poll(cx, buffer);
        io.check(cx, polled.is_pending())?;
        if let Some(watch) = &mut io.watch {
            watch.read(&mut buffer.filled_mut()[before..]);
            if let Some(clock) = &mut io.head_clock {
                clock.poll(cx, watch, polled.is_pending())?;
            }
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let polled = Pin::new(&mut io.stream).poll_write(cx, bytes);
        io.check(cx, polled.is_pending())?;
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let polled = Pin::new(&mut io.stream).poll_write_vectored(cx, slices);
        io.check(cx, polled.is_pending())?;
        polled
    }
}

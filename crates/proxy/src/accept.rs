//! Connections of clients: accepted, served, drained.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinError, JoinSet};

use crate::forward::{Client, Forwarder};
use crate::metrics::{Active, SharedMetrics};
use crate::signal::Signal;

/// Connections that wait in the kernel to be accepted.
const BACKLOG: u32 = 4096;
/// The most bytes in a request's head; more get 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The pause after an `accept` that failed for want of something, such as file descriptors.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The public listener and all its connections.
pub(crate) struct Door {
    listener: TcpListener,
    forwarder: Arc<Forwarder>,
    metrics: SharedMetrics,
    http: http1::Builder,
    connections_max: usize,
    signals: Arc<Signals>,
}

/// The two steps of a drain.
#[derive(Default)]
pub(crate) struct Signals {
    /// Accept nothing more; connections end with their present request or tunnel.
    pub(crate) stop: Signal,
    /// End now.
    pub(crate) cut: Signal,
}

/// Binds a listener whose connections notice a peer that is gone.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it. A tunnel has no idle timeout, so this ends those whose client has vanished.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Door {
    pub(crate) fn new(
        listener: TcpListener,
        forwarder: Arc<Forwarder>,
        metrics: SharedMetrics,
        header_read_timeout: Duration,
        connections_max: usize,
        signals: Arc<Signals>,
    ) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(header_read_timeout)
            .max_header_size(HEAD_BYTES_MAX);
        Door {
            listener,
            forwarder,
            metrics,
            http,
            connections_max,
            signals,
        }
    }

    /// Accepts until `stop`; returns when every connection has ended, soon after `cut` at the latest.
    pub(crate) async fn run(self) {
        let mut connections = JoinSet::new();
        let mut pause = PAUSE_MIN;
        loop {
            tokio::select! {
                biased;
                () = self.signals.stop.raised() => break,
                Some(ended) = connections.join_next() => log_failure(ended),
                accepted = self.listener.accept(), if connections.len() < self.connections_max => match accepted {
                    Ok((stream, address)) => {
                        pause = PAUSE_MIN;
                        connections.spawn(self.connection(stream, address));
                    }
                    Err(error) if is_the_peers(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, ?pause, "cannot accept connections");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                }
            }
        }
        drop(self.listener);
        while let Some(ended) = connections.join_next().await {
            log_failure(ended);
        }
    }

    /// One connection from start to end, its tunnel included.
    fn connection(&self, stream: TcpStream, address: SocketAddr) -> impl Future<Output = ()> + Send + use<> {
        let active = Active::enter(&self.metrics.connections);
        let forwarder = self.forwarder.clone();
        let signals = self.signals.clone();
        let client = Arc::new(Client::new(address));
        let http = self.http.clone();
        async move {
            // Small frames of a WebSocket must not wait for an acknowledgement.
            let _ = stream.set_nodelay(true);
            let served = client.clone();
            let service = service_fn(move |request| {
                let (forwarder, client) = (forwarder.clone(), served.clone());
                async move { Ok::<_, Infallible>(forwarder.answer(&client, request).await) }
            });
            let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
            let mut connection = pin!(connection);
            let served = signals.cut.unless_raised(async {
                match signals.stop.unless_raised(connection.as_mut()).await {
                    Some(result) => result,
                    None => {
                        connection.as_mut().graceful_shutdown();
                        connection.as_mut().await
                    }
                }
            });
            match served.await {
                Some(Ok(())) => {
                    if let Some(tunnel) = client.take_tunnel() {
                        tunnel.run(&signals.cut).await;
                    }
                }
                Some(Err(error)) => tracing::debug!(%error, client = %address, "a connection ended"),
                None => {}
            }
            drop(active);
        }
    }
}

fn log_failure(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}

/// True if a connection ended between the kernel's accepting it and ours.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

//! Accepts connections of clients, as many as there may be.

use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::connection::{Entrance, Server, Signals};
use crate::listen::{Listener, PerAddress};
use crate::metrics::{Dropped, Pause, SharedMetrics};
use crate::policy::TrustedProxies;
use crate::stream::Stream;
use crate::workers::Workers;

/// The pause after an `accept` that failed for want of something, such as file descriptors.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// All listeners for users, and all their connections.
pub(crate) struct Door {
    pub(crate) listeners: Vec<Opening>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) server: Arc<Server>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) metrics: SharedMetrics,
    pub(crate) connections_max: usize,
    pub(crate) per_address: Arc<PerAddress>,
    /// Many users come by one address of theirs.
    pub(crate) trusted: TrustedProxies,
}

/// One listener.
pub(crate) struct Opening {
    pub(crate) listener: Listener,
    pub(crate) entrance: Entrance,
    /// Its port, for users who name none.
    pub(crate) port: u16,
}

impl Door {
    /// Accepts until `stop`; returns when every connection has ended, soon after `cut` at the latest.
    pub(crate) async fn run(self) {
        let mut connections = JoinSet::new();
        let mut pause = PAUSE_MIN;
        let mut paused: Option<Instant> = None;
        let mut next = 0;
        loop {
            let may_accept = paused.is_none() && connections.len() < self.connections_max;
            let over = async {
                match paused {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.signals.stop.raised() => break,
                Some(ended) = connections.join_next() => log_failure(ended),
                () = over => paused = None,
                (at, accepted) = self.accept(next), if may_accept => match accepted {
                    Ok((stream, peer)) => {
                        (pause, next) = (PAUSE_MIN, at + 1);
                        self.admit(stream, peer, &self.listeners[at], &mut connections);
                        if connections.len() == self.connections_max {
                            self.metrics.paused(Pause::Full);
                        }
                    }
                    Err(error) if is_the_peers(&error) => {}
                    Err(error) => {
                        self.metrics.paused(Pause::Failed);
                        tracing::warn!(%error, ?pause, "cannot accept connections");
                        paused = Some(Instant::now() + pause);
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                }
            }
        }
        drop(self.listeners);
        while let Some(ended) = connections.join_next().await {
            log_failure(ended);
        }
    }

    /// The next connection of any listener, asked in turn, and which one it was.
    async fn accept(&self, first: usize) -> (usize, io::Result<(Stream, Option<SocketAddr>)>) {
        poll_fn(|cx| {
            for n in 0..self.listeners.len() {
                let at = (first + n) % self.listeners.len();
                if let Poll::Ready(accepted) = self.listeners[at].listener.poll_accept(cx) {
                    return Poll::Ready((at, accepted));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn admit(&self, stream: Stream, peer: Option<SocketAddr>, opening: &Opening, connections: &mut JoinSet<()>) {
        let limited = peer.map(|peer| peer.ip()).filter(|ip| !self.trusted.trusts(Some(*ip)));
        let admission = limited.map(|ip| self.per_address.admit(ip));
        if matches!(admission, Some(None)) {
            return self.metrics.dropped(Dropped::Address);
        }
        let (server, entrance, port) = (self.server.clone(), opening.entrance.clone(), opening.port);
        let (worker, place) = self.workers.least_busy();
        let served = async move {
            match stream.moved_here() {
                Ok(stream) => server.serve(stream, peer, port, entrance).await,
                Err(error) => tracing::warn!(%error, "a connection cannot be served"),
            }
            drop((admission, place));
        };
        connections.spawn_on(served, worker);
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

//! Proxy: built, run, drained.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_client::{Freshness, Subscriber, SubscriberConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::accept::{self, Door, Signals};
use crate::admin::{self, Facts};
use crate::cache::{Cache, OpenError};
use crate::config::{ConfigError, ProxyConfig};
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::signal::Signal;
use crate::targets::Targets;

/// How long connections may take to notice that they are cut, and the other tasks that it is over.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long users wait at a starting proxy that has a copy of the table, for a replica to bring it up to date.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// One proxy, bound and loaded, not yet serving.
pub struct Proxy {
    config: ProxyConfig,
    public: TcpListener,
    admin: Option<TcpListener>,
    public_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    subscriber: Subscriber,
    cache: Cache,
}

/// Why a proxy cannot start. Nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Mend the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address is taken, not this machine's, or not ours to use.
    #[error("{field} \"{address}\": cannot be bound")]
    Bind {
        /// The field of [`ProxyConfig`].
        field: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Stop the other proxy, or give this one a directory of its own.
    #[error("data_dir \"{}\": is locked by another running proxy", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Give a directory that can be made and written to.
    #[error("data_dir \"{}\": cannot be made, or written to", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a proxy ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A task failed that the proxy cannot be without; a bug. Start it again: the table's copy is on disk.
    #[error("the task \"{task}\" ended")]
    Task {
        /// Which one.
        task: &'static str,
        /// How, if it did not simply return.
        source: Option<JoinError>,
    },
}

impl Proxy {
    pub(crate) async fn build(config: ProxyConfig) -> Result<Self, BuildError> {
        config.validate()?;
        let bind = |field: &'static str, address: SocketAddr| {
            let bound = accept::listen(address).and_then(|listener| {
                let address = listener.local_addr()?;
                Ok((listener, address))
            });
            bound.map_err(|source| BuildError::Bind { field, address, source })
        };
        let (public, public_address) = bind("listen", config.listen)?;
        let (admin, admin_address) = match config.listen_admin {
            Some(address) => {
                let (listener, address) = bind("listen_admin", address)?;
                (Some(listener), Some(address))
            }
            None => (None, None),
        };
        let path = config.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Cache::open(&path)).await;
        let opened = opened.unwrap_or_else(|panicked| Err(OpenError::Io(io::Error::other(panicked))));
        let path = config.data_dir.clone();
        let (cache, cached) = opened.map_err(|error| match error {
            OpenError::Locked => BuildError::Locked { path },
            OpenError::Io(source) => BuildError::DataDir { path, source },
        })?;
        let subscriber = Subscriber::new(SubscriberConfig {
            endpoints: config.endpoints.clone(),
            name: config.name.clone(),
            proxy: true,
            cached,
        });
        Ok(Proxy {
            config,
            public,
            admin,
            public_address,
            admin_address,
            subscriber,
            cache,
        })
    }

    /// Where users come in.
    pub fn public_address(&self) -> SocketAddr {
        self.public_address
    }

    /// Where operators look.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Serves until `shutdown` is cancelled, then drains: not ready at once; connections accepted for `drain_delay`
    /// more; then requests and tunnels awaited for `drain_timeout` at most. Returns as soon as there are none.
    ///
    /// Dropping the future cuts everything at once.
    ///
    /// # Errors
    /// [`RunError`]: a part failed; what could be drained was.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let Proxy {
            config,
            public,
            admin,
            public_address,
            subscriber,
            cache,
            ..
        } = self;
        let metrics = Arc::new(Metrics::new());
        let draining = Arc::new(Signal::default());
        let signals = Arc::new(Signals::default());
        let table = subscriber.table();
        let freshness = subscriber.freshness();
        let targets = Targets::new(config.connect_timeout, config.target_idle_timeout);
        let forwarder = Arc::new(Forwarder::new(
            table.clone(),
            targets,
            metrics.clone(),
            draining.clone(),
            public_address.port(),
        ));

        let end = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let ending = end.clone();
        tasks.spawn(async move {
            subscriber.run(ending).await;
            "subscriber"
        });
        let (kept, fresh, counted, ending) = (table.clone(), freshness.clone(), metrics.clone(), end.clone());
        tasks.spawn(async move {
            cache.keep(kept, fresh, counted, ending).await;
            "cache"
        });
        if let Some(listener) = admin {
            let router = admin::router(Facts {
                name: config.name.as_str().into(),
                table: table.clone(),
                freshness: freshness.clone(),
                metrics: metrics.clone(),
                draining: draining.clone(),
            });
            let ending = end.clone();
            tasks.spawn(async move {
                let served = axum::serve(listener, router).with_graceful_shutdown(ending.cancelled_owned());
                if let Err(error) = served.await {
                    tracing::error!(%error, "the admin listener failed");
                }
                "admin"
            });
        }
        let mut doors = JoinSet::new();
        let door = Door::new(
            public,
            forwarder.clone(),
            metrics,
            config.header_read_timeout,
            config.connections_max,
            signals.clone(),
        );
        // A copy may be old: routes may have come since, and addresses may belong to another user's server by now. So
        // nobody is let in before a replica has brought it up to date, if one does so at once.
        let confirmed = confirmation(freshness.clone(), table.load().is_some());
        doors.spawn(async move {
            confirmed.await;
            door.run().await;
        });
        tracing::info!(name = config.name, public = %public_address, "serving");

        let failed = tokio::select! {
            () = shutdown.cancelled() => None,
            Some(ended) = tasks.join_next() => Some(failure(ended)),
            Some(ended) = doors.join_next() => Some(failure(ended.map(|()| "public"))),
        };
        draining.raise();
        tracing::info!(delay = ?config.drain_delay, timeout = ?config.drain_timeout, "draining");
        if failed.is_none() {
            tokio::time::sleep(config.drain_delay).await;
        }
        signals.stop.raise();
        if tokio::time::timeout(config.drain_timeout, ended(&mut doors))
            .await
            .is_err()
        {
            tracing::warn!("cutting the requests and tunnels that are left");
            signals.cut.raise();
            let _ = tokio::time::timeout(END_TIMEOUT, ended(&mut doors)).await;
        }
        doors.shutdown().await;
        // Last, so that the table was followed, and readiness told, to the end.
        end.cancel();
        let closed = tokio::time::timeout(END_TIMEOUT, async {
            ended(&mut tasks).await;
            if let Some(forwarder) = Arc::into_inner(forwarder) {
                forwarder.close().await;
            }
        });
        if closed.await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        tasks.shutdown().await;
        failed.map_or(Ok(()), Err)
    }
}

/// Returns when a replica has vouched for the table that a copy held, or has not within [`CONFIRM_TIMEOUT`].
async fn confirmation(mut freshness: watch::Receiver<Freshness>, has_copy: bool) {
    if has_copy {
        let vouched = freshness.wait_for(|freshness| freshness.last_contact.is_some());
        // Then none can be asked, and an old table is better than none.
        let _ = tokio::time::timeout(CONFIRM_TIMEOUT, vouched).await;
    }
}

async fn ended<T: 'static>(tasks: &mut JoinSet<T>) {
    while tasks.join_next().await.is_some() {}
}

fn failure(ended: Result<&'static str, JoinError>) -> RunError {
    match ended {
        Ok(task) => RunError::Task { task, source: None },
        Err(error) => RunError::Task {
            task: "unknown",
            source: Some(error),
        },
    }
}

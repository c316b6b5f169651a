//! Proxy: built, run, drained.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_client::{Freshness, Reports, Subscriber, SubscriberConfig};
use holdfast_tls::{Refresh, ServerIdentity, TargetIdentity, TlsError};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::accept::{Door, Opening};
use crate::access_log::Writer;
use crate::activity::Activity;
use crate::admin::{self, Facts, MoreMetrics};
use crate::cache::{Cache, OpenError};
use crate::config::{ConfigError, ProxyConfig};
use crate::connect::Connector;
use crate::connection::{Entrance, Limits, Server, Signals};
use crate::descriptors;
use crate::error_pages::ErrorPager;
use crate::forward::{Forwarder, Parts};
use crate::listen::{self, Address, Listener, PerAddress};
use crate::metrics::Metrics;
use crate::signal::Signal;
use crate::staleness::Staleness;
use crate::targets::Targets;
use crate::workers::Workers;
use holdfast_table::Allowed;

/// What users may speak by TLS.
const PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];
/// What is spoken with targets.
const TARGET_PROTOCOLS: &[&[u8]] = &[b"http/1.1"];
/// How long connections may take to notice that they are cut, and the other tasks that it is over.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// The most time over which WebSockets are told to end, one after the other.
const SPREAD_MAX: Duration = Duration::from_secs(60);
/// How long users wait at a starting proxy that has a copy of the table, for a replica to bring it up to date.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// One proxy, bound and loaded, not yet serving.
pub struct Proxy {
    config: ProxyConfig,
    openings: Vec<Opening>,
    admin: Option<Listener>,
    scraped: Option<Listener>,
    public_addresses: Vec<Address>,
    redirect_address: Option<SocketAddr>,
    users: Option<Arc<ServerIdentity>>,
    target_identity: Arc<TargetIdentity>,
    admin_address: Option<SocketAddr>,
    subscriber: Subscriber,
    cache: Cache,
    access_log: Option<Writer>,
    more_metrics: Option<MoreMetrics>,
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
        address: Address,
        /// What the system says.
        source: io::Error,
    },
    /// Mend the file that it names.
    #[error("{field}: its certificates cannot be used")]
    Tls {
        /// The field of [`ProxyConfig`].
        field: &'static str,
        /// What is wrong with them.
        source: TlsError,
    },
    /// Give a file that can be made and written to.
    #[error("access_log \"{}\": cannot be opened", path.display())]
    AccessLog {
        /// The file.
        path: PathBuf,
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
    /// This process has too many threads or open files; raise its limits.
    #[error("the threads for {what} cannot be started")]
    Thread {
        /// What it is for.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl Proxy {
    pub(crate) async fn build(config: ProxyConfig) -> Result<Self, BuildError> {
        config.validate()?;
        let (users, target_identity) = load_certificates(&config).await?;
        let failed = |field: &'static str, address: &Address| {
            let address = address.clone();
            move |source| BuildError::Bind { field, address, source }
        };
        let mut openings = Vec::new();
        let mut public_addresses = Vec::new();
        for address in &config.listen {
            let listener = Listener::bind(address).await.map_err(failed("listen", address))?;
            let bound = listener.address().map_err(failed("listen", address))?;
            public_addresses.push(bound.map_or(address.clone(), Address::Tcp));
            openings.push(Opening {
                listener,
                entrance: Entrance::Users(users.clone()),
                port: bound.map_or(0, |bound| bound.port()),
            });
        }
        let redirect_address = match config.redirect {
            Some(redirect) => {
                let address = Address::Tcp(redirect.listen);
                let listener = Listener::bind(&address).await.map_err(failed("redirect", &address))?;
                let bound = listener.address().map_err(failed("redirect", &address))?;
                let own = openings.iter().map(|opening| opening.port).find(|port| *port != 0);
                openings.push(Opening {
                    listener,
                    entrance: Entrance::Redirect(redirect.to.or(own).unwrap_or(443)),
                    port: bound.map_or(0, |bound| bound.port()),
                });
                bound
            }
            None => None,
        };
        let (admin, admin_address) = match config.listen_admin {
            Some(address) => {
                let failed = |source| failed("listen_admin", &Address::Tcp(address))(source);
                let listener = listen::tcp(address).map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                (Some(Listener::Tcp(listener)), Some(bound))
            }
            None => (None, None),
        };
        let scraped = match &config.listen_metrics {
            Some(address) => Some(
                Listener::bind(address)
                    .await
                    .map_err(failed("listen_metrics", address))?,
            ),
            None => None,
        };
        let access_log = config.access_log.as_ref().map(|to| {
            Writer::open(to).map_err(|source| BuildError::AccessLog {
                path: to.path().to_owned(),
                source,
            })
        });
        let access_log = access_log.transpose()?;
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
            openings,
            admin,
            scraped,
            public_addresses,
            redirect_address,
            users,
            target_identity,
            admin_address,
            subscriber,
            cache,
            access_log,
            more_metrics: None,
        })
    }

    /// Has its metrics show what else this process counts: `more` adds whole lines, of names that this proxy has not.
    #[must_use]
    pub fn showing(mut self, more: impl Fn(&mut String) + Send + Sync + 'static) -> Self {
        self.more_metrics = Some(Arc::new(more));
        self
    }

    /// Where users come in, in the configuration's order.
    pub fn public_addresses(&self) -> &[Address] {
        &self.public_addresses
    }

    /// Where users without TLS are told where it is.
    pub fn redirect_address(&self) -> Option<SocketAddr> {
        self.redirect_address
    }

    /// Where operators look.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Serves until `shutdown` is cancelled, then drains: not ready at once; connections accepted for `drain_delay`
    /// more; then requests and tunnels awaited for `drain_timeout` at most. In the last half of that, a minute at most,
    /// WebSockets are closed with 1001, spread over the time. Returns as soon as nothing is left.
    ///
    /// Dropping the future cuts everything at once.
    ///
    /// # Errors
    /// [`RunError`]: a part failed; what could be drained was.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let Proxy {
            config,
            openings,
            admin,
            scraped,
            public_addresses,
            redirect_address,
            users,
            target_identity,
            admin_address,
            subscriber,
            cache,
            access_log,
            more_metrics,
        } = self;
        let end = CancellationToken::new();
        let metrics = Arc::new(Metrics::new());
        let (access_log, log_end) = match access_log.map(|writer| writer.start(metrics.access_log_lost.clone())) {
            Some(Ok((log, end))) => (Some(log), Some(end)),
            Some(Err(source)) => {
                let what = "the access log";
                return Err(RunError::Thread { what, source });
            }
            None => (None, None),
        };
        let workers = Workers::start().map_err(|source| RunError::Thread {
            what: "users' connections",
            source,
        })?;
        let workers = Arc::new(workers);
        let draining = Arc::new(Signal::default());
        let parting = (config.drain_timeout / 2).min(SPREAD_MAX);
        let signals = Arc::new(Signals {
            // The last ones need a moment to end, too.
            spread: parting.mul_f64(0.9),
            ..Signals::default()
        });
        let table = subscriber.table();
        let freshness = subscriber.freshness();
        let staleness = Arc::new(Staleness::new(table.clone(), freshness.clone(), config.max_stale));
        let activity = Arc::new(Activity::new(
            table.clone(),
            config.websocket_activity,
            metrics.active_routes.clone(),
        ));
        let subscriber = subscriber.reporting(Reports {
            source: activity.clone(),
            interval: config.activity_interval,
        });
        let own = public_addresses.iter().filter_map(|address| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) | Address::Inherited(_) => None,
        });
        let own = own.chain(redirect_address).chain(admin_address);
        let own = own.chain(config.control_ports.iter().copied()).collect();
        let replicas = config.endpoints.addresses().map(str::to_owned).collect();
        let targets = |allowed: Allowed| {
            let connector = Connector::new(allowed, target_identity.clone(), config.connect_timeout);
            Targets::new(connector, config.target_idle_timeout, config.target_timeout)
        };
        let routed = targets(Allowed::new(config.allow_targets.clone(), own, replicas));
        let operators = targets(Allowed::default());
        let sweepers = [&routed, &operators].map(|targets| targets.sweeper(end.clone()));
        let forwarder = Arc::new(Forwarder::new(Parts {
            body_timeout: config.body_timeout,
            table: table.clone(),
            targets: routed,
            operators,
            default_target: config.default_target.clone(),
            pages: ErrorPager::new(config.error_pages.clone()),
            policy: config.policy.clone(),
            metrics: metrics.clone(),
            draining: draining.clone(),
            refusals: subscriber.refusals(),
            staleness: staleness.clone(),
            activity,
            access_log,
        }));

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
        for sweeper in sweepers {
            tasks.spawn(async move {
                sweeper.await;
                "idle connections"
            });
        }
        let (interval, ending) = (config.reload_interval, end.clone());
        let users = users.map(|users| ("users", users as Arc<dyn Refresh>));
        let followed = users
            .into_iter()
            .chain([("targets", target_identity as Arc<dyn Refresh>)]);
        let followed = followed.collect();
        tasks.spawn(async move {
            holdfast_tls::follow(followed, interval, ending).await;
            "certificates"
        });
        let (watched, counted, ending) = (staleness.clone(), metrics.clone(), end.clone());
        tasks.spawn(async move {
            let watches = async { tokio::join!(watched.watch(), descriptors::watch(counted)) };
            ending.run_until_cancelled(watches).await;
            "watches"
        });
        let facts = Facts {
            name: config.name.as_str().into(),
            table: table.clone(),
            freshness: freshness.clone(),
            metrics: metrics.clone(),
            draining: draining.clone(),
            staleness: staleness.clone(),
            more_metrics,
        };
        let operators = [
            (admin, admin::router(facts.clone(), config.drain_on_request)),
            (scraped, admin::metrics_alone(facts)),
        ];
        for (listener, router) in operators {
            let Some(listener) = listener else { continue };
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
        let limits = Limits {
            header_timeout: config.header_timeout,
            keep_alive_timeout: config.keep_alive_timeout,
            client_timeout: config.client_timeout,
        };
        let server = Server::new(forwarder.clone(), metrics.clone(), signals.clone(), limits);
        let connections_max = descriptors::connections_max(config.connections_max);
        metrics
            .connections_max
            .set(i64::try_from(connections_max).unwrap_or(i64::MAX));
        let door = Door {
            listeners: openings,
            workers: workers.clone(),
            server: Arc::new(server),
            signals: signals.clone(),
            metrics,
            connections_max,
            per_address: PerAddress::new(config.connections_per_address_max),
            trusted: config.policy.trusted_proxies.clone(),
        };
        // A copy may be old: routes may have come since, and addresses may belong to another user's server by now. So
        // nobody is let in before a replica has brought it up to date, if one does so at once.
        let confirmed = confirmation(freshness.clone(), table.load().is_some());
        doors.spawn(async move {
            confirmed.await;
            door.run().await;
        });
        let public: Vec<String> = public_addresses.iter().map(Address::to_string).collect();
        tracing::info!(name = config.name, public = public.join(","), "serving");

        let failed = tokio::select! {
            () = shutdown.cancelled() => None,
            Some(ended) = tasks.join_next() => Some(failure(ended)),
            Some(ended) = doors.join_next() => Some(failure(ended.map(|()| "public"))),
        };
        // Perhaps asked for some time ago, by `POST /drain`.
        let since = draining.raise();
        let delay = config.drain_delay.saturating_sub(since.elapsed());
        tracing::info!(?delay, timeout = ?config.drain_timeout, "draining");
        if failed.is_none() {
            tokio::time::sleep(delay).await;
        }
        signals.stop.raise();
        let drained = async {
            if timeout(config.drain_timeout - parting, ended(&mut doors)).await.is_ok() {
                return true;
            }
            tracing::info!(over = ?parting, "asking the WebSockets that are left to end");
            signals.part.raise();
            timeout(parting, ended(&mut doors)).await.is_ok()
        };
        if !drained.await {
            tracing::warn!("cutting the requests and tunnels that are left");
            signals.cut.raise();
            let _ = timeout(END_TIMEOUT, ended(&mut doors)).await;
        }
        doors.shutdown().await;
        // Last, so that the table was followed, and readiness told, to the end.
        end.cancel();
        let closed = timeout(END_TIMEOUT, async {
            ended(&mut tasks).await;
            if let Some(forwarder) = Arc::into_inner(forwarder) {
                forwarder.close().await;
            }
            if let Some(workers) = Arc::into_inner(workers) {
                workers.end().await;
            }
            if let Some(end) = log_end {
                // Never said: it ends with its thread.
                let _ = end.await;
            }
        });
        if closed.await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        tasks.shutdown().await;
        failed.map_or(Ok(()), Err)
    }
}

/// Reads what TLS is made of.
async fn load_certificates(
    config: &ProxyConfig,
) -> Result<(Option<Arc<ServerIdentity>>, Arc<TargetIdentity>), BuildError> {
    let (users, targets) = (config.tls.clone(), config.target_tls.clone());
    let wrong = |field: &'static str| move |source| BuildError::Tls { field, source };
    let loaded = tokio::task::spawn_blocking(move || {
        let users = users.map(|tls| ServerIdentity::load(tls, PROTOCOLS)).transpose();
        let users = users.map_err(wrong("tls"))?;
        let targets = TargetIdentity::load(targets, TARGET_PROTOCOLS).map_err(wrong("target_tls"))?;
        Ok((users.map(Arc::new), Arc::new(targets)))
    });
    loaded.await.unwrap_or_else(|_| Err(wrong("tls")(TlsError::Cancelled)))
}

/// Returns when a replica has vouched for the table that a copy held; when none can be connected to; or after
/// [`CONFIRM_TIMEOUT`].
async fn confirmation(mut freshness: watch::Receiver<Freshness>, has_copy: bool) {
    if has_copy {
        let settled = freshness.wait_for(|freshness| freshness.last_contact.is_some() || freshness.unreachable);
        // If none can be asked, an old table is better than none.
        let _ = timeout(CONFIRM_TIMEOUT, settled).await;
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

//! Replica: build, run, drain; owns every task.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_table::{Allowed, Digest, Lineage, Revision};
use holdfast_tls::{Refresh, ServerIdentity, ServerTls, TlsError};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::activity;
use crate::config::{ConfigError, PeerAddress, ReplicaConfig};
use crate::consensus::bootstrap::{self, Introduction, Misplaced, is_member};
use crate::consensus::membership;
use crate::consensus::{Consensus, Failure, LogBound};
use crate::listen::{Address, Listener, TlsListener};
use crate::scrub::{Finding, Part, scrub};
use crate::servers::{serve_clients, serve_http, serve_peers};
use crate::services::guard::Guard;
use crate::services::{Context, admin, chp_api, proxies};
use crate::storage::identity::Identity;
use crate::storage::log::LogStore;
use crate::storage::state_machine::{Published, StateMachine};
use crate::storage::{OpenError, Store, probe};

/// How often the files of certificates are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// What callers of gRPC may speak by TLS.
const API_PROTOCOLS: &[&[u8]] = &[b"h2"];
/// What callers of the REST API may speak by TLS.
const CHP_API_PROTOCOLS: &[&[u8]] = &[b"http/1.1"];
/// What calls and streams get to end by themselves once they were told to.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a replica cannot start. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Every mistake in the configuration.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<ConfigError>),
    /// The data directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A port in use, or an address of another machine.
    #[error("{field} {address}: cannot be listened on; is another process using it?")]
    Listen {
        /// The flag without dashes.
        field: &'static str,
        /// Its value.
        address: Address,
        /// The system's word.
        source: std::io::Error,
    },
    /// Mend the file that it names.
    #[error("{field}: its certificates cannot be used")]
    Tls {
        /// The flag without dashes.
        field: &'static str,
        /// What is wrong with them.
        source: TlsError,
    },
}

impl BuildError {
    /// True if the process is to end with [`EXIT_DISK_FAILED`](crate::EXIT_DISK_FAILED).
    pub fn is_of_disk(&self) -> bool {
        matches!(self, BuildError::Open(OpenError::Disk { .. }))
    }
}

/// A replica stopped without being asked to. Its data directory is as good as at a crash: start it again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener failed.
    #[error("a server ended")]
    Server(#[from] tonic::transport::Error),
    /// The listener for probes, or for configurable-http-proxy's API, failed.
    #[error("an HTTP server ended")]
    Http(#[source] std::io::Error),
    /// Joining failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The replicas that answer are another cluster.
    #[error(
        "data-dir {data_dir:?}: belongs to cluster {cluster_id}, but {peer} is in cluster {other}; \
         give this replica the directory or the --peers of its own cluster"
    )]
    OtherCluster {
        /// The directory.
        data_dir: std::path::PathBuf,
        /// Its cluster.
        cluster_id: String,
        /// Who says otherwise.
        peer: String,
        /// The cluster there.
        other: String,
    },
    /// An operator has made another cluster of this one.
    #[error(
        "data-dir {data_dir:?}: belongs to cluster {cluster_id}, which is over: {peer} is in cluster {successor}, made from \
         it by a restore or recovery; keep the directory aside, and start this replica with an empty one: it joins"
    )]
    Superseded {
        /// The directory.
        data_dir: std::path::PathBuf,
        /// Its cluster.
        cluster_id: String,
        /// Who says so.
        peer: String,
        /// The cluster that came after it.
        successor: String,
    },
    /// The consensus did not start, or stopped.
    #[error("consensus stopped: {0}")]
    Consensus(String),
    /// The disk did not take a write, or could not be read. The process ends with [`EXIT_DISK_FAILED`](crate::EXIT_DISK_FAILED).
    #[error("the disk failed, nothing that it did not take was acknowledged; give it space or replace it: {0}")]
    Disk(String),
    /// A bug.
    #[error("a task panicked")]
    Panic(#[from] tokio::task::JoinError),
    /// This replica's state was wrong. It joins again, empty, when it is started again.
    #[error(
        "data-dir {data_dir:?}: at revision {revision} {part} has digest {ours}, the other replicas' has {theirs}; \
         start this replica again: the directory's content is set aside in it, and the replica joins anew"
    )]
    Outvoted {
        /// The directory.
        data_dir: std::path::PathBuf,
        /// What was compared.
        part: Part,
        /// Where they were compared.
        revision: Revision,
        /// This replica's digest.
        ours: Digest,
        /// The others'.
        theirs: Digest,
    },
    /// As before, but the mark for the next start could not be written.
    #[error(
        "data-dir {data_dir:?}: is not what the log says, and cannot be marked; empty it before you start this replica \
         again"
    )]
    NotSetAside {
        /// The directory.
        data_dir: std::path::PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Memory and digest disagree: start it again, and test the machine's memory.
    #[error("at revision {revision} the routes in memory do not add up to their digest; start this replica again")]
    Memory {
        /// Where it was found.
        revision: Revision,
    },
    /// Too many threads or files for this process.
    #[error("the threads of the consensus cannot be started")]
    Threads(#[source] std::io::Error),
}

impl RunError {
    /// True if the process is to end with [`EXIT_DISK_FAILED`](crate::EXIT_DISK_FAILED).
    pub fn is_of_disk(&self) -> bool {
        matches!(self, RunError::Disk(_) | RunError::Open(OpenError::Disk { .. }))
    }
}

/// The consensus and its peers have a thread of their own: a thousand streams on the others delay no heartbeat. More would
/// only hand the same work to each other.
struct RaftRuntime(Option<Runtime>);

impl RaftRuntime {
    const THREADS: usize = 1;

    fn start() -> Result<Self, RunError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(Self::THREADS)
            .thread_name("raft")
            .enable_all()
            .build();
        runtime
            .map(|runtime| RaftRuntime(Some(runtime)))
            .map_err(RunError::Threads)
    }

    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("taken by drop alone").handle()
    }

    async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, RunError>> + Send + 'static,
    ) -> Result<T, RunError> {
        self.handle().spawn(task).await?
    }
}

impl RaftRuntime {
    /// Waits until nothing of it runs: a thread that still uses the database while the process ends would crash it.
    async fn stop(mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        if let Some(runtime) = self.0.take()
            && let Err(error) = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await
        {
            tracing::error!(%error, "the threads of the consensus did not end");
        }
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        // Only a caller that did not wait for the end comes here; an async one must not block.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A replica whose directory is open and whose ports are bound.
pub struct Replica {
    config: ReplicaConfig,
    context: Arc<Context>,
    log: LogStore,
    machine: StateMachine,
    published: Published,
    client: (Listener, Option<Arc<ServerIdentity>>),
    peer: Option<TcpListener>,
    admin: Option<Listener>,
    chp_api: Option<(Listener, Option<Arc<ServerIdentity>>)>,
}

impl ReplicaConfig {
    /// Checks the configuration, opens the directory and binds the ports.
    ///
    /// # Errors
    /// [`BuildError`]: nothing was changed.
    pub async fn build(self) -> Result<Replica, BuildError> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(BuildError::Config(problems));
        }
        let client = listen("listen-client", &self.listen_client).await?;
        let client_identity = load("api-ssl-cert", self.api.tls.clone(), API_PROTOCOLS).await?;
        if self.api.is_open() && !self.listen_client.is_local() {
            tracing::warn!(
                address = %self.listen_client,
                "whoever reaches the client listener can change every route: keep users away from it, or give --api-token-file"
            );
        }
        let peer = match self.listen_peer {
            Some(address) => Some(listen_tcp("listen-peer", address).await?),
            None => None,
        };
        let admin = match self.listen_admin {
            Some(address) => Some(listen("listen-admin", &address.into()).await?),
            None => None,
        };
        let chp_api = match &self.chp_api {
            Some(api) => {
                let tls = api.tls.clone();
                let identity = load("listen-chp-api", tls, CHP_API_PROTOCOLS).await?;
                Some((listen("listen-chp-api", &api.listen).await?, identity))
            }
            None => None,
        };
        let store = Store::open(&self.data_dir)?;
        let disk_sync = probe::sync_time(&self.data_dir).map_err(|error| store.failed("probe", &error))?;
        if disk_sync >= probe::SLOW {
            let election_timeout = self.cluster.election_timeout(disk_sync);
            tracing::warn!(sync = ?disk_sync, ?election_timeout, "the disk is slow: every write waits for it");
        }
        let identity = store.identity(&self.name)?;
        let (machine, published) = StateMachine::open(store.clone())?;
        let log = LogStore::open(store.clone()).map_err(|error| store.failed("log", &error))?;
        let advertised = match &self.advertise_client {
            Some(address) => address.clone(),
            None => local_address("listen-client", &self.listen_client, &client)?.to_string(),
        };
        let introduction = Introduction::new(&self, identity, advertised);
        let context = Context::new(introduction, store, disk_sync, self.allowed());
        Ok(Replica {
            config: self,
            context: Arc::new(context),
            log,
            machine,
            published,
            client: (client, client_identity),
            peer,
            admin,
            chp_api,
        })
    }

    /// Which targets routes may have. Where the other replicas talk to clients is not known here; proxies know it.
    fn allowed(&self) -> Allowed {
        let chp_api = self.chp_api.as_ref().map(|api| &api.listen);
        let tcp = |address: &Address| match address {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        };
        let own = [Some(&self.listen_client), chp_api]
            .into_iter()
            .flatten()
            .filter_map(tcp);
        let own = own.chain(self.listen_peer).chain(self.listen_admin);
        let replicas = self.cluster.peers.iter().map(|peer| &peer.address);
        let replicas = replicas.chain(&self.advertise_client).cloned();
        Allowed::new(self.allow_targets.clone(), own.collect(), replicas.collect())
    }
}

async fn listen(field: &'static str, address: &Address) -> Result<Listener, BuildError> {
    Listener::bind(address).await.map_err(unbound(field, address))
}

async fn listen_tcp(field: &'static str, address: SocketAddr) -> Result<TcpListener, BuildError> {
    TcpListener::bind(address)
        .await
        .map_err(unbound(field, &address.into()))
}

fn unbound(field: &'static str, address: &Address) -> impl FnOnce(std::io::Error) -> BuildError {
    let address = address.clone();
    move |source| BuildError::Listen { field, address, source }
}

/// Where it listens, its port included.
fn local_address(field: &'static str, address: &Address, listener: &Listener) -> Result<Address, BuildError> {
    listener.address().map_err(unbound(field, address))
}

/// Reads what a listener's TLS is made of, if it has any.
async fn load(
    field: &'static str,
    tls: Option<ServerTls>,
    protocols: &'static [&'static [u8]],
) -> Result<Option<Arc<ServerIdentity>>, BuildError> {
    let Some(tls) = tls else { return Ok(None) };
    let wrong = |source| BuildError::Tls { field, source };
    let loaded = tokio::task::spawn_blocking(move || ServerIdentity::load(tls, protocols)).await;
    let loaded = loaded.unwrap_or(Err(TlsError::Cancelled)).map_err(wrong)?;
    Ok(Some(Arc::new(loaded)))
}

impl Replica {
    /// Where clients connect.
    pub fn client_address(&self) -> Address {
        self.client
            .0
            .address()
            .unwrap_or_else(|_| self.config.listen_client.clone())
    }

    /// Adds what it counts of configurable-http-proxy's API to metrics, as lines under that program's names.
    pub fn api_metrics(&self) -> impl Fn(&mut String) + Send + Sync + use<> {
        let context = self.context.clone();
        move |text| context.metrics.push_api(text)
    }

    /// Serves until `shutdown`, then drains: the leadership moves, streams are told to go elsewhere, calls end.
    ///
    /// # Errors
    /// [`RunError`]: it stopped by itself.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let Replica {
            config,
            context,
            log,
            machine,
            published,
            client: (client, client_identity),
            peer,
            admin,
            chp_api,
        } = self;
        tracing::info!(name = config.name, client = %client.address().unwrap_or_else(|_| config.listen_client.clone()), "replica starts");
        let lineage = published.load().state.lineage.clone();
        let mut tasks = JoinSet::new();
        let mut followed: Vec<(&'static str, Arc<dyn Refresh>)> =
            vec![("API tokens", Arc::new(config.api.tokens.clone()))];
        if let Some(identity) = &client_identity {
            followed.push(("API", identity.clone()));
        }
        let guard = Guard {
            tokens: config.api.tokens.clone(),
            metrics: context.metrics.clone(),
        };
        tasks.spawn(serve_clients(context.clone(), client, client_identity, guard));
        let raft = RaftRuntime::start()?;
        let mut peers = JoinSet::new();
        if let Some(peer) = peer {
            peers.spawn_on(serve_peers(context.clone(), peer, Handle::current()), raft.handle());
        }
        if let Some(admin) = admin {
            tasks.spawn(serve_http(context.clone(), admin, admin::router(context.clone())));
        }
        if let (Some((listener, identity)), Some(api)) = (chp_api, config.chp_api.clone()) {
            followed.push(("REST API tokens", Arc::new(api.tokens.clone())));
            let router = chp_api::router(context.clone(), api);
            match identity {
                None => drop(tasks.spawn(serve_http(context.clone(), listener, router))),
                Some(identity) => {
                    followed.push(("REST API", identity.clone()));
                    tasks.spawn(serve_http(
                        context.clone(),
                        TlsListener::new(listener, identity, context.metrics.clone()),
                        router,
                    ));
                }
            }
        }
        let following = holdfast_tls::follow(followed, RELOAD_INTERVAL, context.stopping.clone());
        context.streams.spawn(following);
        let started = async {
            let identity = bootstrap::join(&config, &context.introduction, &context.store).await?;
            let tape = context.clone();
            let recorded = published.clone();
            let record = async move { tape.feed.tape.record(recorded).await };
            context
                .streams
                .spawn(context.stopping.clone().run_until_cancelled_owned(record));
            let consensus = raft
                .run(start(
                    config.clone(),
                    context.disk_sync,
                    identity,
                    log,
                    machine,
                    published,
                ))
                .await?;
            context.consensus.send_replace(Some(consensus.clone()));
            Err::<Infallible, _>(attend(&config, &context, &consensus).await)
        };
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            error = misplaced(&config, &context, &lineage) => Err(error),
            Err(error) = started => Err(error),
            Some(ended) = tasks.join_next() => Err(early(ended)),
            Some(ended) = peers.join_next() => Err(early(ended)),
        };
        drain(&context, tasks).await;
        // Peers hold their streams open for as long as there is a listener, and need no goodbye.
        peers.shutdown().await;
        raft.stop().await;
        ended
    }
}

/// What a member does all its life; returns why it has to stop.
pub(crate) async fn attend(config: &ReplicaConfig, context: &Arc<Context>, consensus: &Consensus) -> RunError {
    tokio::select! {
        failure = consensus.failed() => match failure {
            Failure::Disk(reason) => RunError::Disk(reason),
            Failure::Other(reason) => RunError::Consensus(reason),
        },
        finding = scrub(context.clone(), consensus.clone()) => wrong(&context.store, finding),
        never = membership::run(&config.cluster, consensus) => match never {},
        never = consensus.look_after_holds() => match never {},
        never = consensus.trim_log(LogBound::DEFAULT) => match never {},
        never = serve(context, consensus) => match never {},
        never = correct_address(context, consensus) => match never {},
        never = activity::share(context.clone(), consensus.clone()) => match never {},
        never = proxies::keep_in_mind(context.clone(), consensus.clone()) => match never {},
    }
}

/// Sees to it that this replica does not come back with a state that was found to be wrong.
fn wrong(store: &Store, finding: Finding) -> RunError {
    let data_dir = store.path().to_owned();
    match finding {
        // The disk has a table of its own, with its digest; a start reads and checks it.
        Finding::Recomputed { revision } => RunError::Memory { revision },
        Finding::Outvoted {
            part,
            revision,
            ours,
            theirs,
        } => match store.set_aside_at_next_start() {
            Ok(()) => RunError::Outvoted {
                data_dir,
                part,
                revision,
                ours,
                theirs,
            },
            Err(source) => RunError::NotSetAside { data_dir, source },
        },
    }
}

/// Ready once it has caught up, until it turns out to be retired.
async fn serve(context: &Context, consensus: &Consensus) -> Infallible {
    let caught_up = async {
        consensus.recovered().await;
        context.caught_up.store(true, Ordering::Relaxed);
        tracing::info!("caught up; serving");
        std::future::pending().await
    };
    tokio::select! {
        () = consensus.retired() => {}
        never = caught_up => match never {},
    }
    consensus.withdraw();
    context.retired.cancel();
    tracing::error!("this replica is {}", context.problem());
    std::future::pending().await
}

/// Tells the members this replica's client address once, as the leader: a restored directory can only guess it.
async fn correct_address(context: &Context, consensus: &Consensus) -> Infallible {
    const AGAIN: Duration = Duration::from_secs(1);
    while !consensus
        .tell_client_address(&context.introduction.client_address)
        .await
    {
        tokio::time::sleep(AGAIN).await;
    }
    std::future::pending().await
}

/// Returns if this replica's directory turns out to be another cluster's, or its cluster to be over. Peers refuse what it
/// says in any case.
pub(crate) async fn misplaced(config: &ReplicaConfig, context: &Context, lineage: &Lineage) -> RunError {
    const AGAIN: Duration = Duration::from_secs(5);
    let named = |peer: PeerAddress| format!("{} at {}", peer.name, peer.address);
    for asked in 0_u64.. {
        let identity = context.introduction.identity.borrow().clone();
        let leaderless = context.consensus.borrow().as_ref().is_some_and(|consensus| {
            let age = consensus.leader_contact_age();
            age.is_none_or(|age| age >= AGAIN)
        });
        // While it has a leader there is no need to ask, and no reason to end.
        if is_member(&identity) && (asked == 0 || leaderless) {
            let data_dir = config.data_dir.clone();
            let cluster_id = identity.cluster_id.clone();
            match bootstrap::misplaced(config, &identity, lineage).await {
                // Only at the start: later it would hide a replica that serves streams.
                Some(Misplaced::Foreign(peer, other)) if asked == 0 => {
                    return RunError::OtherCluster {
                        data_dir,
                        cluster_id,
                        peer: named(peer),
                        other,
                    };
                }
                Some(Misplaced::Superseded(peer, successor)) => {
                    return RunError::Superseded {
                        data_dir,
                        cluster_id,
                        peer: named(peer),
                        successor,
                    };
                }
                Some(Misplaced::Foreign(..)) | None => {}
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    std::future::pending().await
}

fn early(ended: Result<Result<(), RunError>, tokio::task::JoinError>) -> RunError {
    match ended {
        Ok(Ok(())) => RunError::Consensus("a server ended early".into()),
        Ok(Err(error)) => error,
        Err(panic) => panic.into(),
    }
}

pub(crate) async fn start(
    config: ReplicaConfig,
    disk_sync: Duration,
    identity: Identity,
    log: LogStore,
    machine: StateMachine,
    published: Published,
) -> Result<Consensus, RunError> {
    let failed = |error: std::io::Error| RunError::Consensus(error.to_string());
    let leads_first_start = config
        .cluster
        .peers
        .first()
        .is_some_and(|first| first.name == config.name);
    tracing::info!(
        cluster_id = identity.cluster_id,
        node_id = identity.node_id,
        "member of a cluster"
    );
    let consensus = Consensus::start(&config.cluster, disk_sync, identity, log, machine, published)
        .await
        .map_err(failed)?;
    if leads_first_start {
        consensus.initialize().await.map_err(failed)?;
    }
    Ok(consensus)
}

async fn drain(context: &Context, mut tasks: JoinSet<Result<(), RunError>>) {
    let consensus = context.consensus.borrow().clone();
    if let Some(consensus) = &consensus {
        consensus.step_down().await;
    }
    context.stopping.cancel();
    context.streams.close();
    let ended = async {
        context.streams.wait().await;
        while tasks.join_next().await.is_some() {}
    };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("some calls did not end within {DRAIN:?} and are cut");
        tasks.shutdown().await;
    }
    if let Some(consensus) = consensus {
        consensus.shutdown().await;
    }
    tracing::info!("replica stopped");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_memory_leaves_the_disk_as_it_is_and_who_is_outvoted_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let set_aside = dir.path().join("db.set-aside-1");
        let revision = Revision(7);
        let end = |finding: Finding| {
            let store = Store::open(dir.path()).unwrap();
            let error = wrong(&store, finding);
            drop(store);
            // As the next start does.
            drop(Store::open(dir.path()).unwrap());
            assert!(!error.is_of_disk());
            error.to_string()
        };
        let memory = end(Finding::Recomputed { revision });
        assert!(
            memory.contains("revision 7") && memory.contains("start this replica again"),
            "{memory}"
        );
        assert!(!set_aside.exists(), "the disk was not found to be wrong");

        let outvoted = end(Finding::Outvoted {
            part: Part::Rest,
            revision,
            ours: Digest::default(),
            theirs: Digest::from_bytes(&[1; 32]).unwrap(),
        });
        assert!(
            outvoted.contains("what is kept beside the table has digest 0000"),
            "{outvoted}"
        );
        assert!(outvoted.contains("the other replicas' has 0101"), "{outvoted}");
        assert!(set_aside.is_dir());
    }
}

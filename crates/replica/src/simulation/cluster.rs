//! The simulated hosts that are replicas, and what everybody in the simulation knows.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_table::{Allowed, HoldPolicy};
use holdfast_wire::proto::cluster_server::ClusterServer;
use holdfast_wire::proto::raft_server::RaftServer;
use holdfast_wire::proto::routes_server::RoutesServer;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use super::disk::Medium;
use super::history::History;
use super::network;
use crate::config::{ApiAccess, ClusterConfig, PeerAddress, ReplicaConfig};
use crate::consensus::Consensus;
use crate::consensus::bootstrap::{self, Introduction};
use crate::consensus::network::MESSAGE_BYTES_MAX;
use crate::replica::{self, RunError};
use crate::services::Context;
use crate::services::cluster::ClusterService;
use crate::services::forwarded::ForwardedOnly;
use crate::services::raft::RaftService;
use crate::services::routes::RoutesService;
use crate::storage::Store;
use crate::storage::log::LogStore;
use crate::storage::state_machine::StateMachine;

const CLIENT_PORT: u16 = 7011;
const PEER_PORT: u16 = 7012;
/// So low that the few deletions of the few routes are often too many, and so short that holds end while things break.
const HOLD: HoldPolicy = HoldPolicy {
    routes_max: 1,
    percent_max: 30,
    window_ms: 1_500,
    hold_ms: 4_000,
};

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything breaks, and everybody writes.
    Faults,
    /// Nothing breaks any more; what was begun is finished.
    Healing,
}

/// What a replica is in its own eyes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Role {
    /// Believes that it leads, which others may know better.
    pub leads: bool,
    /// Is a voter by a membership that is committed, and lacks nothing.
    pub complete: bool,
}

/// What everybody in one simulation shares. It has one thread.
pub struct World {
    /// Decides everything.
    pub seed: u64,
    /// Each replica's disk.
    pub media: Vec<Medium>,
    /// What clients have seen.
    pub history: RefCell<History>,
    /// What is going on.
    pub phase: Cell<Phase>,
    /// Writers and readers that have not ended.
    pub busy: Cell<usize>,
    /// What each replica is now; nothing while it is down.
    pub roles: Vec<Cell<Role>>,
    // Each run of a replica has another number.
    started: Cell<u64>,
}

impl World {
    /// A world of so many replicas.
    pub fn new(seed: u64, replicas: usize) -> Rc<Self> {
        let media = (0..replicas as u64).map(|at| Medium::new(seed.wrapping_mul(31).wrapping_add(at)));
        Rc::new(World {
            seed,
            media: media.collect(),
            history: RefCell::default(),
            phase: Cell::new(Phase::Faults),
            busy: Cell::new(0),
            roles: vec![Cell::default(); replicas],
            started: Cell::new(0),
        })
    }

    /// A source of randomness for whoever has that name.
    pub fn rng(&self, name: &str) -> StdRng {
        let number = name.bytes().fold(self.seed, |hash, byte| {
            hash.wrapping_mul(0x100_0000_01b3).wrapping_add(byte.into())
        });
        StdRng::seed_from_u64(number)
    }

    /// The client addresses of all replicas.
    pub fn addresses(&self) -> Vec<String> {
        (0..self.media.len())
            .map(|at| format!("{}:{CLIENT_PORT}", name(at)))
            .collect()
    }

    /// Something that must never happen.
    pub fn violation(&self, text: impl Into<String>) {
        let text = text.into();
        eprintln!("violation at {:?}: {text}", turmoil::sim_elapsed().unwrap_or_default());
        self.history.borrow_mut().violations.push(text);
    }
}

/// The name of a replica, and of the host it is on.
pub fn name(at: usize) -> String {
    format!("r{at}")
}

fn config(at: usize, replicas: usize) -> ReplicaConfig {
    let peers = (0..replicas).map(|peer| PeerAddress {
        name: name(peer),
        address: format!("{}:{PEER_PORT}", name(peer)),
    });
    ReplicaConfig {
        cluster: ClusterConfig {
            peers: peers.collect(),
            heartbeat: ClusterConfig::HEARTBEAT,
            election_timeout: None,
            auto_replace: true,
            hold: Some(HOLD),
        },
        name: name(at),
        data_dir: name(at).into(),
        listen_client: SocketAddr::from(([0, 0, 0, 0], CLIENT_PORT)).into(),
        api: ApiAccess::default(),
        allow_targets: Vec::new(),
        listen_peer: Some(([0, 0, 0, 0], PEER_PORT).into()),
        listen_admin: None,
        chp_api: None,
        advertise_client: Some(format!("{}:{CLIENT_PORT}", name(at))),
    }
}

/// One run of one replica, from the start of its process to its end: `Replica::run` on other listeners and another disk.
pub async fn replica(world: Rc<World>, at: usize) -> turmoil::Result {
    let number = world.started.replace(world.started.get() + 1);
    let ended = run(&world, at).await;
    // A process that ends because its disk failed does what it should.
    if !world.media[at].failed() && !world.media[at].doomed() {
        let reason = ended.map_or_else(|problem| problem.to_string(), |()| "a server ended".into());
        world.violation(format!("{} stopped by itself in run {number}: {reason}", name(at)));
    }
    std::future::pending().await
}

async fn run(world: &World, at: usize) -> Result<(), RunError> {
    let disk = Arc::new(world.media[at].plug_in());
    let store = Store::on(disk, Path::new(&name(at)));
    let config = config(at, world.media.len());
    let identity = store.identity(&config.name)?;
    let (machine, published) = StateMachine::open(store.clone())?;
    let log = LogStore::open(store.clone()).map_err(|error| RunError::Consensus(error.to_string()))?;
    let lineage = published.load().state.lineage.clone();
    let advertised = config.advertise_client.clone().unwrap_or_default();
    let introduction = Introduction::new(&config, identity, advertised);
    let context = Arc::new(Context::new(
        introduction,
        store,
        super::disk::QUICK.end,
        Allowed::default(),
    ));
    let clients = network::listen(CLIENT_PORT).await.map_err(RunError::Http)?;
    let peers = network::listen(PEER_PORT).await.map_err(RunError::Http)?;
    let server = || {
        Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(2)))
            .http2_keepalive_timeout(Some(Duration::from_secs(3)))
    };
    let raft = RaftServer::new(RaftService(context.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let routes = RoutesServer::new(RoutesService(context.clone()));
    let cluster = ClusterServer::new(ClusterService(context.clone()));
    let forwarded_only = ForwardedOnly(context.clone());
    let serve_peers = server()
        .add_service(raft)
        .add_service(InterceptedService::new(routes.clone(), forwarded_only.clone()))
        .add_service(InterceptedService::new(cluster.clone(), forwarded_only))
        .serve_with_incoming(peers);
    let serve_clients = server()
        .add_service(routes)
        .add_service(cluster)
        .serve_with_incoming(clients);
    let started = async {
        let identity = bootstrap::join(&config, &context.introduction, &context.store).await?;
        let tape = context.feed.tape.record(published.clone());
        let member = async {
            let consensus = replica::start(
                config.clone(),
                context.disk_sync,
                identity,
                log,
                machine,
                published.clone(),
            )
            .await?;
            context.consensus.send_replace(Some(consensus.clone()));
            tokio::select! {
                error = replica::attend(&config, &context, &consensus) => Err(error),
                never = show(&world.roles[at], &context, &consensus) => match never {},
            }
        };
        tokio::select! {
            ended = member => ended,
            () = tape => Err(RunError::Consensus("the state machine is gone".into())),
        }
    };
    tokio::select! {
        ended = started => ended,
        error = replica::misplaced(&config, &context, &lineage) => Err(error),
        ended = serve_peers => Ok(ended?),
        ended = serve_clients => Ok(ended?),
    }
}

/// Tells the nemesis whom it would hit.
async fn show(role: &Cell<Role>, context: &Context, consensus: &Consensus) -> Infallible {
    loop {
        let membership = consensus.published().load().membership.clone();
        let votes = membership.voter_ids().any(|id| id == consensus.identity().node_id);
        role.set(Role {
            leads: consensus.is_leader(),
            complete: votes
                && membership.membership().get_joint_config().len() == 1
                && context.caught_up.load(Ordering::Relaxed),
        });
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

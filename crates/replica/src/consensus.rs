//! The one place that speaks to openraft: proposes, reads, leads and steps down.

pub mod bootstrap;
mod holds;
pub mod membership;
pub mod network;
mod proposals;
mod snapshots;
mod trim;
pub mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use holdfast_table::{Command, HoldPolicy, HubEpoch, Rejection, Revision, State, Written};
use holdfast_wire::proto;
use holdfast_wire::proto::command::Command as Content;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::error::{Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{Config, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;

use crate::admission::Admitted;
use crate::config::ClusterConfig;
#[cfg(test)]
use crate::simulation::planted::{Bug, planted};
use crate::storage::identity::Identity;
use crate::storage::log::{LogSize, LogStore};
use crate::storage::state_machine::{Position, Published, StateMachine};
use network::{Network, lazy_channel, raft_client};
use proposals::Proposals;
pub use trim::LogBound;
use types::{Answer, LogId, Node, TypeConfig, log_id_out};

pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// A running member of a formed cluster.
#[derive(Clone)]
pub struct Consensus {
    /// For the service that peers call, and for nobody else.
    pub raft: Raft,
    proposals: Proposals,
    hold: Option<HoldPolicy>,
    identity: Arc<Identity>,
    network: Network,
    published: Published,
    log_size: LogSize,
    last_contact: Arc<Mutex<Option<Instant>>>,
    // At most two addresses per member.
    channels: Arc<Mutex<HashMap<String, Channel>>>,
    // True while the leadership moves: what is proposed meanwhile waits.
    held: watch::Sender<bool>,
    // Held by whoever changes the members.
    change: Arc<tokio::sync::Mutex<()>>,
    waits_for: watch::Sender<String>,
}

/// Why a write has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Decided, and refused: nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Nothing was written: this replica does not lead.
    #[error("this replica does not lead")]
    NotLeader,
    /// Perhaps written, perhaps later: ask again with the same session and sequence.
    #[error("no answer in time; the write may or may not have happened")]
    Unknown,
}

/// Why the consensus has stopped by itself, in openraft's words.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The store failed.
    Disk(String),
    /// Anything else.
    Other(String),
}

/// A linearizable read could not be confirmed in time. Nothing may be concluded from it.
#[derive(Debug, thiserror::Error)]
#[error("no leader could confirm the read in time")]
pub struct ReadUnavailable;

impl Consensus {
    /// Starts openraft on an opened log and state machine, in the name of `identity`. `disk_sync` is how long its disk takes
    /// to sync.
    pub async fn start(
        cluster: &ClusterConfig,
        disk_sync: Duration,
        identity: Identity,
        log: LogStore,
        machine: StateMachine,
        published: Published,
    ) -> io::Result<Self> {
        let config = config(cluster, disk_sync, &identity.cluster_id)
            .validate()
            .map_err(io::Error::other)?;
        let network = Network::new(&identity.cluster_id, identity.node_id);
        let log_size = log.size();
        let raft = Raft::new(identity.node_id, Arc::new(config), network.clone(), log, machine)
            .await
            .map_err(io::Error::other)?;
        Ok(Consensus {
            proposals: Proposals::start(raft.clone()),
            raft,
            hold: cluster.hold,
            identity: Arc::new(identity),
            network,
            published,
            log_size,
            last_contact: Arc::default(),
            channels: Arc::default(),
            held: watch::Sender::new(false),
            change: Arc::default(),
            waits_for: watch::Sender::default(),
        })
    }

    /// Who this replica is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The state as it is here, not more.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// What openraft says of itself.
    pub fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    /// What openraft says once it says what is wanted; `None` if it has ended without.
    async fn metrics_when(&self, wanted: impl Fn(&RaftMetrics<TypeConfig>) -> bool) -> Option<RaftMetrics<TypeConfig>> {
        let mut receiver = self.raft.metrics();
        loop {
            let metrics = receiver.borrow_and_update().clone();
            if wanted(&metrics) {
                return Some(metrics);
            }
            receiver.changed().await.ok()?;
        }
    }

    /// Gives the founding members their first membership. Does nothing on a cluster that has one.
    ///
    /// Nor on a replica that joined: however empty its log is, its cluster has been formed, by others.
    pub async fn initialize(&self) -> io::Result<()> {
        if self.identity.founders.is_empty() || self.raft.is_initialized().await.map_err(io::Error::other)? {
            return Ok(());
        }
        let members: BTreeMap<u64, Node> = self
            .identity
            .founders
            .iter()
            .map(|founder| (founder.node_id, founder.node.clone().unwrap_or_default().into()))
            .collect();
        self.raft.initialize(members).await.map_err(io::Error::other)
    }

    /// The leader as far as this replica knows.
    pub fn leader(&self) -> Option<(u64, Node)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        Some((id, metrics.membership_config.get_node(&id)?.clone()))
    }

    /// True if this replica knows of a leader.
    pub fn knows_leader(&self) -> bool {
        self.raft.server_metrics().borrow_watched().current_leader.is_some()
    }

    /// True if this replica believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Returns once a member other than `tried` is known to lead.
    pub async fn led_by_another(&self, tried: Option<u64>) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let now = metrics.borrow_and_update().clone();
            // Whoever has just joined may hear a leader before it knows its address.
            let leader = now
                .current_leader
                .filter(|id| now.membership_config.get_node(id).is_some());
            if leader.is_some() && leader != tried {
                return;
            }
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Every member, this one included.
    pub fn members(&self) -> Vec<(u64, Node, bool)> {
        let metrics = self.metrics();
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        metrics
            .membership_config
            .nodes()
            .map(|(id, node)| (*id, node.clone(), voters.contains(id)))
            .collect()
    }

    /// What a call to a peer carries.
    pub fn peer(&self, id: u64, node: &Node) -> proto::Peer {
        self.network.peer(id, node)
    }

    /// Notes that a leader has spoken.
    pub fn heard_leader(&self) {
        *self.last_contact.lock().expect("nobody panics with it") = Some(Instant::now());
    }

    /// How long ago this replica last knew a quorum behind a leader; `None`: never since it started.
    pub fn leader_contact_age(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match metrics.state {
            // A quorum of itself alone: nobody acknowledges anything to it, and nothing is ever missing.
            ServerState::Leader if metrics.membership_config.voter_ids().count() == 1 => Some(Duration::ZERO),
            ServerState::Leader => metrics.last_quorum_acked.as_ref().map(|acked| acked.elapsed()),
            _ => self
                .last_contact
                .lock()
                .expect("nobody panics with it")
                .map(|at| at.elapsed()),
        }
    }

    /// What goes into the log. The one place that reads a clock and a setting for it, for `apply` has neither.
    pub fn stamped(&self, content: Content) -> proto::Command {
        proto::Command {
            command: Some(content),
            time_ms: now_ms(),
            hold_policy: self.hold.map(proto::HoldPolicy::from),
        }
    }

    /// Decides a command, as the leader. `entry` is the same command as it goes into the log; `admitted` stays with it.
    ///
    /// A command that changes nothing is answered without a log entry, after the leadership was confirmed, unless it is
    /// the retry of one that may be under way still. Dropping the future does not take the write back.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(
        &self,
        command: &Command,
        entry: &proto::Command,
        admitted: &Admitted,
        deadline: Instant,
    ) -> Result<Written, ProposeError> {
        let without_log = |state: &State| match command.batch.is_retry() {
            true => None,
            false => state.answer_without_log(command),
        };
        self.released(deadline).await?;
        if self.is_leader() && without_log(&self.published.load().state).is_some() {
            let position = self.read(deadline).await.map_err(|_| ProposeError::NotLeader)?;
            if let Some(answer) = without_log(&position.state) {
                return Ok(answer?);
            }
        }
        let command = entry.encode_to_vec().into();
        match self.proposals.decide(command, admitted.clone(), deadline).await? {
            Answer::Write(result) => Ok(result?),
            Answer::Hub(_) | Answer::Settled(..) => Err(ProposeError::Unknown),
        }
    }

    /// Lets a hub in and fences its predecessor, as the leader.
    ///
    /// # Errors
    /// [`ProposeError`]; after `Unknown` the same call gives the same epoch.
    pub async fn open_hub(
        &self,
        entry: &proto::Command,
        admitted: &Admitted,
        deadline: Instant,
    ) -> Result<HubEpoch, ProposeError> {
        self.released(deadline).await?;
        let command = entry.encode_to_vec().into();
        match self.proposals.decide(command, admitted.clone(), deadline).await? {
            Answer::Hub(result) => Ok(result?),
            Answer::Write(_) | Answer::Settled(..) => Err(ProposeError::Unknown),
        }
    }

    /// Ends holds, as the leader; returns how many it ended, and the table's revision after it.
    ///
    /// # Errors
    /// [`ProposeError`]; after `Unknown` the same call ends what is left.
    pub async fn end_holds(
        &self,
        entry: &proto::Command,
        admitted: &Admitted,
        deadline: Instant,
    ) -> Result<(usize, Revision), ProposeError> {
        self.released(deadline).await?;
        let command = entry.encode_to_vec().into();
        match self.proposals.decide(command, admitted.clone(), deadline).await? {
            Answer::Settled(ended, revision) => Ok((ended, revision)),
            Answer::Write(_) | Answer::Hub(_) => Err(ProposeError::Unknown),
        }
    }

    /// Waits while proposals are held back.
    async fn released(&self, deadline: Instant) -> Result<(), ProposeError> {
        if !*self.held.borrow() {
            return Ok(());
        }
        let mut held = self.held.subscribe();
        match timeout_at(deadline, held.wait_for(|held| !held)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ProposeError::NotLeader),
        }
    }

    /// Returns once nothing was heard for longer than any election takes, from the leader or, as the leader, from a
    /// quorum, and this call has waited as long: another replica may be better placed.
    pub async fn out_of_touch(&self) {
        const BEYOND_AN_ELECTION: Duration = Duration::from_secs(1);
        let patience = BEYOND_AN_ELECTION + Duration::from_millis(self.raft.config().election_timeout_max);
        let began = Instant::now();
        let mut left = patience;
        while !left.is_zero() {
            tokio::time::sleep(left).await;
            let age = self.leader_contact_age().unwrap_or(Duration::MAX).min(began.elapsed());
            left = patience.saturating_sub(age);
        }
    }

    /// A state that holds every write acknowledged before this call began, on the leader or on a follower.
    ///
    /// # Errors
    /// [`ReadUnavailable`]: no leader with a quorum answered before the deadline, or while this replica was in touch.
    pub async fn read(&self, deadline: Instant) -> Result<Arc<Position>, ReadUnavailable> {
        tokio::select! {
            read = self.read_in_touch(deadline) => read,
            () = self.out_of_touch() => Err(ReadUnavailable),
        }
    }

    async fn read_in_touch(&self, deadline: Instant) -> Result<Arc<Position>, ReadUnavailable> {
        const RETRY: Duration = Duration::from_millis(25);
        loop {
            // A new read index for every try: one that is used twice may be older than the call.
            if let Ok(Some(index)) = timeout_at(deadline, self.read_index_anywhere()).await {
                let left = deadline.saturating_duration_since(Instant::now());
                return self.published.at(index, left).await.ok_or(ReadUnavailable);
            }
            if Instant::now() + RETRY >= deadline {
                return Err(ReadUnavailable);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn read_index_anywhere(&self) -> Option<u64> {
        match self.read_index().await {
            Ok(log_id) => Some(log_id.index),
            Err(None) => None,
            Err(Some((id, node))) => {
                let request = proto::ReadIndexRequest {
                    peer: Some(self.peer(id, &node)),
                };
                let answer = raft_client(self.channel(&node.peer_address)?)
                    .read_index(request)
                    .await
                    .ok()?;
                Some(answer.into_inner().read_log_id?.index)
            }
        }
    }

    /// As the leader: up to where a read that begins now must have applied. Otherwise who leads, if known.
    pub async fn read_index(&self) -> Result<LogId, Option<(u64, Node)>> {
        #[cfg(test)]
        if planted(Bug::LeaseRead)
            && self.is_leader()
            && let Some(applied) = self.published.load().applied
        {
            return Ok(applied);
        }
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(*read.log_id()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(ForwardToLeader {
                leader_id: Some(id),
                leader_node: Some(node),
                ..
            }))) if id != self.identity.node_id => Err(Some((id, node))),
            Err(_) => Err(None),
        }
    }

    /// A channel to another replica's listener, the same one at every call.
    pub fn channel(&self, address: &str) -> Option<Channel> {
        let mut channels = self.channels.lock().expect("nobody panics with it");
        if let Some(channel) = channels.get(address) {
            return Some(channel.clone());
        }
        let channel = lazy_channel(address).ok()?;
        channels.insert(address.to_owned(), channel.clone());
        Some(channel)
    }

    /// Waits until this replica has applied all that the cluster had committed when it started.
    pub async fn recovered(&self) {
        const AGAIN: Duration = Duration::from_secs(5);
        while self.raft.wait_for_recovery(Some(AGAIN)).await.is_err() {
            if self.metrics().running_state.is_err() {
                return std::future::pending().await;
            }
            // An engine that has ended answers at once, again and again.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns when openraft has stopped by itself, with its reason.
    pub async fn failed(&self) -> Failure {
        // Looked at now and then: openraft's metrics change several times with every write, and whoever waits for that
        // is woken each time.
        const LOOK_EVERY: Duration = Duration::from_millis(250);
        let mut metrics = self.raft.metrics();
        loop {
            match &metrics.borrow_and_update().running_state {
                Ok(()) => {}
                Err(Fatal::StorageError(reason)) => return Failure::Disk(reason.to_string()),
                Err(reason) => return Failure::Other(format!("{reason:?}")),
            }
            tokio::time::sleep(LOOK_EVERY).await;
            // After a panic nobody is left to say anything.
            if let Some(Err(_)) = metrics.changed().now_or_never() {
                return Failure::Other("it ended without a reason; its panic is in the log".into());
            }
        }
    }

    /// Moves the leadership to the voter that is furthest and answers, if this replica has it, and waits a little for that.
    pub async fn step_down(&self) {
        let voters: BTreeSet<u64> = self.metrics().membership_config.voter_ids().collect();
        if !self.is_leader() || voters.len() == 1 {
            return;
        }
        if let Err(why) = self.move_leadership(&voters).await {
            tracing::warn!("leadership was not handed over: {why}; the others will elect");
        }
    }

    /// Moves the leadership from this replica to the one of `candidates` that answers and is furthest; returns who leads
    /// then, and how long no proposal could be decided.
    ///
    /// What is proposed meanwhile waits, and finds the new leader; what was proposed before is on the target's disk
    /// before it is asked to lead.
    ///
    /// # Errors
    /// In words; the leadership may still move, to whomever the others elect.
    pub async fn move_leadership(&self, candidates: &BTreeSet<u64>) -> Result<(u64, Duration), String> {
        const CATCH_UP: Duration = Duration::from_millis(200);
        const PATIENCE: Duration = Duration::from_secs(1);
        let target = successor(&self.metrics(), candidates).ok_or("nobody who could lead answers")?;
        let began = Instant::now();
        let _held = Held::new(&self.held);
        let even = self.metrics_when(|metrics| {
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|progress| progress.get(&target).copied().flatten());
            metrics.state != ServerState::Leader || matched.map(|matched| matched.index) >= metrics.last_log_index
        });
        // If it takes longer, the target waits for the rest itself, or declines.
        let _ = timeout(CATCH_UP, even).await;
        self.raft
            .trigger()
            .transfer_leader(target)
            .await
            .map_err(|error| error.to_string())?;
        let me = self.identity.node_id;
        let moved = self.metrics_when(|metrics| metrics.current_leader.is_some_and(|leader| leader != me));
        let moved = timeout(PATIENCE, moved).await.ok().flatten();
        let leader = moved.and_then(|metrics| metrics.current_leader);
        let leader = leader.ok_or_else(|| format!("id {target} did not take it within {PATIENCE:?}"))?;
        tracing::info!(to = leader, took = ?began.elapsed(), "leadership moved");
        Ok((leader, began.elapsed()))
    }

    /// Stops openraft; nothing is acknowledged after it.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "consensus did not stop cleanly");
        }
    }
}

/// Unix milliseconds.
fn now_ms() -> u64 {
    #[cfg(test)]
    if let Some(elapsed) = turmoil::sim_elapsed() {
        return u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Keeps proposals waiting for as long as it lives.
struct Held<'a>(&'a watch::Sender<bool>);

impl<'a> Held<'a> {
    fn new(held: &'a watch::Sender<bool>) -> Self {
        held.send_replace(true);
        Held(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// Who of `candidates` should lead after this leader; `None` if it does not lead, or none of them answers it any more.
fn successor(metrics: &RaftMetrics<TypeConfig>, candidates: &BTreeSet<u64>) -> Option<u64> {
    const ANSWERS: Duration = Duration::from_millis(500);
    if metrics.state != ServerState::Leader {
        return None;
    }
    let (replication, heartbeat) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
    let answers = |id: &u64| {
        let acked = heartbeat.get(id).and_then(Option::as_ref);
        acked.is_some_and(|acked| acked.elapsed() < ANSWERS)
    };
    let voters = metrics.membership_config.voter_ids();
    let others = voters.filter(|id| *id != metrics.id && candidates.contains(id) && answers(id));
    others.max_by_key(|id| replication.get(id).copied().flatten())
}

fn config(cluster: &ClusterConfig, disk_sync: Duration, cluster_id: &str) -> Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let election_timeout = cluster.election_timeout(disk_sync);
    let election_max = millis(election_timeout.end);
    Config {
        cluster_name: cluster_id.to_owned(),
        heartbeat_interval: millis(cluster.heartbeat),
        election_timeout_min: millis(election_timeout.start),
        election_timeout_max: election_max,
        enable_pre_vote: Some(true),
        // A leader that hears a bridge but no quorum falls silent now and then, so that the others can elect.
        quorum_loss_probe_interval: Some(3 * election_max),
        // A restarted leader asks for votes like everybody else.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        backoff: "50ms 100ms 200ms ...1s".to_owned(),
        install_snapshot_timeout: 60_000,
        max_payload_entries: 1_000,
        // The log is purged when it is told to: trim.rs.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
}

/// The answer to a peer's `ReadIndex`.
pub fn read_index_out(log_id: &LogId) -> proto::ReadIndexResponse {
    proto::ReadIndexResponse {
        read_log_id: Some(log_id_out(log_id)),
    }
}

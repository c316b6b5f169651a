//! Who is a member: what the leader does about it by itself, and what operators may ask of it.
//!
//! Joining is the leader's work: it finds the empty replica, gives it an id that nobody ever had, and tells it. A replica
//! that joins asks for nothing, so it can ask for nothing wrong. Every step is one committed change of the membership
//! or can be repeated, so a leader that dies leaves nothing that the next one does not finish.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_wire::proto;
use openraft::async_runtime::WatchReceiver as _;
use openraft::error::{ClientWriteError, Fatal, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, Instant as _, RaftMetrics, ServerState};
use tokio::time::{Instant, timeout, timeout_at};

use self::plan::{Action, Answer, Blank, Member, View, decide, keeps_quorum};
use super::Consensus;
use super::network::raft_client;
use super::types::{Node, TypeConfig};
use crate::config::{ClusterConfig, PeerAddress};

/// Between two looks at the members.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an empty replica may take to say who it is, or to take its identity.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// What one step by itself may take; the next look tries again.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// A member that has acknowledged nothing for so long does not answer. Twenty heartbeats by default.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// A learner that lacks no more entries than this has caught up.
const LAG_MAX: u64 = 1_000;
/// Between two looks whether a learner has caught up.
const CATCH_UP_STEP: Duration = Duration::from_millis(50);

/// Why the members were not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Nothing changed: another replica leads.
    #[error("this replica does not lead")]
    NotLeader,
    /// Nothing changed: it cannot be done as things are.
    #[error("{0}; nothing was changed")]
    Refused(String),
    /// Nothing changed: too few voters would be left.
    #[error("the change would lose the quorum: {0}; nothing was changed")]
    Quorum(String),
    /// Perhaps changed, perhaps later.
    #[error("{0}; the change may or may not have happened: look with `holdfast members list`")]
    Unknown(String),
}

/// Looks after the members for as long as the replica runs: as the leader it finishes what was begun, follows members to
/// other addresses, takes in empty replicas and, if `auto_replace` is set, gives them votes; as a follower without leader it asks whether it was retired.
pub async fn run(cluster: &ClusterConfig, consensus: &Consensus) -> Infallible {
    let mut led = false;
    loop {
        let members = consensus.members().into_iter();
        consensus
            .network
            .addresses
            .renew(members.map(|(id, node, _)| (id, node.peer_address)));
        let leads = consensus.is_leader();
        // A new leader has not heard from everybody yet, and would take them for missing.
        if leads && std::mem::replace(&mut led, leads) {
            let waits_for = match timeout(STEP_TIMEOUT, consensus.look_after(cluster)).await {
                Ok(Ok(waits_for)) => waits_for,
                Ok(Err(ChangeError::NotLeader)) => String::new(),
                Ok(Err(error)) => format!("another try: {error}"),
                Err(_) => "a change that takes long".to_owned(),
            };
            consensus.note(&waits_for);
        } else if !leads {
            led = false;
            consensus.note("");
            consensus.ask_whether_retired().await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A membership at rest: one set of voters, committed and applied here.
struct Settled {
    condition: Precondition<TypeConfig>,
    node_id_max: u64,
}

impl Consensus {
    /// What the leader waits for before it changes members by itself; empty if there is nothing to change.
    pub fn membership_waits_for(&self) -> String {
        self.waits_for.borrow().clone()
    }

    fn note(&self, waits_for: &str) {
        let news = self.waits_for.send_if_modified(|before| {
            let news = before != waits_for;
            waits_for.clone_into(before);
            news
        });
        if news && !waits_for.is_empty() {
            tracing::info!("members: waiting for {waits_for}");
        }
    }

    /// Does what can be done now, step by step; returns what it then waits for.
    async fn look_after(&self, cluster: &ClusterConfig) -> Result<String, ChangeError> {
        loop {
            // An operator's change is under way: it knows better.
            let Ok(_change) = self.change.try_lock() else {
                return Ok(String::new());
            };
            let view = self.view(&cluster.peers, &[]).await?;
            let action = decide(&view);
            let is_mending = matches!(action, Action::Finish | Action::Adopt { .. } | Action::Move { .. });
            if !cluster.auto_replace && !is_mending {
                return Ok(String::new());
            }
            match action {
                Action::Wait(why) => return Ok(why),
                action => {
                    // Repeated until the replica takes it, which says enough.
                    if !matches!(action, Action::Adopt { .. }) {
                        tracing::info!(?action, "members: changing by itself");
                    }
                    self.carry_out(action).await?;
                }
            }
        }
    }

    async fn carry_out(&self, action: Action) -> Result<(), ChangeError> {
        match action {
            Action::Wait(_) => Ok(()),
            Action::Finish => self.finish().await,
            Action::Adopt { node_id, node } => self.adopt(node_id, &node).await,
            Action::Move { node_id, node } => {
                let nodes = BTreeMap::from([(node_id, node)]);
                self.change(ChangeMembers::SetNodes(nodes)).await
            }
            Action::Add(node) => self.add(node).await.map(drop),
            Action::Drop(id) => self.change(ChangeMembers::RemoveNodes([id].into())).await,
            Action::Voters(voters) => self.change(ChangeMembers::ReplaceAllVoters(voters)).await,
        }
    }

    /// The cluster now; `more` are addresses to ask besides those of members that do not answer and of configured peers
    /// that are no members.
    async fn view(&self, configured: &[PeerAddress], more: &[&str]) -> Result<View, ChangeError> {
        let metrics = self.metrics();
        if metrics.state != ServerState::Leader {
            return Err(ChangeError::NotLeader);
        }
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, node)| {
            let member = Member {
                node: node.clone(),
                voter: voters.contains(id),
                alive: is_alive(&metrics, *id),
                caught_up: has_caught_up(&metrics, *id),
            };
            (*id, member)
        });
        let mut view = View {
            cluster_id: self.identity().cluster_id.clone(),
            leader: self.identity().name.clone(),
            members: members.collect(),
            joint: membership.get_joint_config().len() > 1,
            configured: configured.to_vec(),
            answers: BTreeMap::new(),
        };
        let silent = view.members.values().filter(|member| !member.alive);
        let absent = configured
            .iter()
            .filter(|peer| view.members.values().all(|member| member.node.name != peer.name));
        let names: BTreeSet<&str> = silent
            .map(|member| member.node.name.as_str())
            .chain(absent.map(|peer| peer.name.as_str()))
            .collect();
        let mut addresses: BTreeSet<String> = names
            .iter()
            .flat_map(|name| view.addresses_of(name))
            .map(str::to_owned)
            .collect();
        addresses.extend(more.iter().map(|address| (*address).to_owned()));
        let asked = addresses.into_iter().map(async |address| {
            let answer = self.identify(&address).await;
            (address, answer)
        });
        view.answers = join_all(asked).await.into_iter().collect();
        Ok(view)
    }

    async fn identify(&self, address: &str) -> Answer {
        let Some(channel) = self.channel(address) else {
            return Answer::Silent;
        };
        let mut client = raft_client(channel);
        match timeout(ANSWER_TIMEOUT, client.identify(proto::IdentifyRequest {})).await {
            Ok(Ok(answer)) => answer_in(answer.into_inner()),
            Ok(Err(_)) | Err(_) => Answer::Silent,
        }
    }

    /// Refuses while a change is under way, and until this leader has applied the membership that it changes: only then
    /// does it know every id that was ever given away.
    fn settled(&self) -> Result<Settled, ChangeError> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        let position = self.published().load();
        if membership.log_id() != position.membership.log_id() || membership.get_joint_config().len() != 1 {
            return Err(ChangeError::Refused(
                "another change of members is under way; try again".into(),
            ));
        }
        Ok(Settled {
            condition: Precondition::LastMembershipLogId {
                last_membership_log_id: *membership.log_id(),
            },
            node_id_max: position.state.node_id_max,
        })
    }

    /// The second half of a change whose leader died between the two.
    async fn finish(&self) -> Result<(), ChangeError> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        let condition = Precondition::LastMembershipLogId {
            last_membership_log_id: *membership.log_id(),
        };
        self.propose_change(ChangeMembers::AddVoterIds(BTreeSet::new()), condition)
            .await
    }

    /// As the leader, puts this replica's client address into the membership if it has another one there. False: not yet.
    pub async fn tell_client_address(&self, address: &str) -> bool {
        let own = self.identity().node_id;
        let Some((_, node, _)) = self.members().into_iter().find(|(id, ..)| *id == own) else {
            return false;
        };
        if node.client_address == address {
            return true;
        }
        let Ok(_change) = self.change.try_lock() else {
            return false;
        };
        let node = Node {
            client_address: address.to_owned(),
            ..node
        };
        let nodes = BTreeMap::from([(own, node)]);
        self.is_leader() && self.change(ChangeMembers::SetNodes(nodes)).await.is_ok()
    }

    async fn change(&self, change: ChangeMembers<u64, Node>) -> Result<(), ChangeError> {
        let settled = self.settled()?;
        self.propose_change(change, settled.condition).await
    }

    async fn propose_change(
        &self,
        change: ChangeMembers<u64, Node>,
        condition: Precondition<TypeConfig>,
    ) -> Result<(), ChangeError> {
        // Whoever loses its vote leaves altogether: a learner by accident would follow for ever.
        match self.raft.change_membership_if(change, false, [condition]).await {
            Ok(done) => {
                tracing::info!(membership = ?done.membership, "members changed");
                Ok(())
            }
            Err(error) => Err(change_error(error)),
        }
    }

    /// A new learner under a new id, and tells it.
    ///
    /// The membership comes first and is committed: only then is the id taken, whoever leads next. If this leader dies
    /// before it has told the replica, the next one does.
    async fn add(&self, node: Node) -> Result<u64, ChangeError> {
        let settled = self.settled()?;
        let id = settled.node_id_max + 1;
        let nodes = BTreeMap::from([(id, node.clone())]);
        self.propose_change(ChangeMembers::AddNodes(nodes), settled.condition)
            .await?;
        self.adopt(id, &node).await?;
        Ok(id)
    }

    async fn adopt(&self, id: u64, node: &Node) -> Result<(), ChangeError> {
        let request = proto::AdoptRequest {
            cluster_id: self.identity().cluster_id.clone(),
            node_id: id,
            to_store_uuid: node.store_uuid.clone(),
            name: node.name.clone(),
        };
        let failed = |why: &str| {
            ChangeError::Unknown(format!(
                "{} at {} did not take its identity: {why}",
                node.name, node.peer_address
            ))
        };
        let channel = self
            .channel(&node.peer_address)
            .ok_or_else(|| failed("not an address"))?;
        let mut client = raft_client(channel);
        match timeout(ANSWER_TIMEOUT, client.adopt(request)).await {
            Ok(Ok(_)) => {
                tracing::info!(
                    name = node.name,
                    node_id = id,
                    "members: an empty replica has joined as a learner"
                );
                Ok(())
            }
            Ok(Err(status)) => Err(failed(status.message())),
            Err(_) => Err(failed("no answer")),
        }
    }

    /// Asks every other member, while no leader is heard, whether this replica is one still. Who is retired is noted.
    async fn ask_whether_retired(&self) {
        if self.leader_contact_age().is_some_and(|age| age < SILENT_AFTER) {
            return;
        }
        let me = self.identity().node_id;
        let others = self.members().into_iter().filter(|(id, ..)| *id != me);
        let asked = others.map(async |(id, node, _)| {
            let request = proto::ReadIndexRequest {
                peer: Some(self.peer(id, &node)),
            };
            let mut client = raft_client(self.channel(&node.peer_address)?);
            let refused = timeout(ANSWER_TIMEOUT, client.read_index(request)).await.ok()?.err()?;
            self.network.told.heed(&refused);
            Some(())
        });
        join_all(asked).await;
    }

    /// Returns once this replica is known to be retired: a peer said so, or it has seen it in its own log.
    pub async fn retired(&self) {
        let mut told = self.network.told.subscribe();
        loop {
            if *told.borrow_and_update() || self.published().load().is_retired(self.identity().node_id) {
                return;
            }
            // Its own log is looked at now and then; a peer's word wakes at once.
            let _ = timeout(LOOK_EVERY, told.changed()).await;
        }
    }

    /// Takes no part in the consensus any more: no campaign, no heartbeat.
    pub fn withdraw(&self) {
        self.raft.runtime_config().elect(false);
        self.raft.runtime_config().heartbeat(false);
    }
}

/// What operators ask for. All of it on the leader alone, one change at a time, and within `deadline`.
impl Consensus {
    /// Adds the empty replica at `address` as a learner.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn member_add(&self, name: &str, address: &str, deadline: Instant) -> Result<(), ChangeError> {
        self.alone(deadline, async {
            let view = self.view(&[], &[address]).await?;
            let same = |member: &&Member| member.node.name == name || member.node.peer_address == address;
            if let Some((id, member)) = view.members.iter().find(|(_, member)| same(member)) {
                let node = &member.node;
                return Err(ChangeError::Refused(format!(
                    "{} at {} is a member already, with id {id}; `holdfast members replace` puts an empty replica in its place",
                    node.name, node.peer_address
                )));
            }
            match view.answers.get(address) {
                Some(Answer::Blank(blank)) if blank.name == name => {
                    let node = Node {
                        name: name.to_owned(),
                        peer_address: address.to_owned(),
                        client_address: blank.client_address.clone(),
                        store_uuid: blank.store_uuid.clone(),
                    };
                    self.add(node).await.map(drop)
                }
                Some(Answer::Blank(blank)) => Err(ChangeError::Refused(format!(
                    "the empty replica at {address} is called {:?}, not {name:?}",
                    blank.name
                ))),
                Some(Answer::Taken { name, cluster_id, .. }) => Err(ChangeError::Refused(format!(
                    "{name} at {address} has the data directory of cluster {cluster_id}; empty it first, if nothing in it is needed"
                ))),
                Some(Answer::Silent) | None => Err(ChangeError::Refused(format!(
                    "nobody answers at {address}; start `holdfast replica --name {name}` there, on an empty data directory"
                ))),
            }
        })
        .await
    }

    /// Gives learners a vote, all together.
    ///
    /// # Errors
    /// [`ChangeError`]; refused if one has not caught up by the deadline.
    pub async fn member_promote(&self, names: &[String], deadline: Instant) -> Result<(), ChangeError> {
        self.alone(deadline, async {
            let view = self.view(&[], &[]).await?;
            let mut voters = view.voter_ids();
            for name in names {
                let (id, member) = find(&view, name)?;
                if member.voter {
                    return Err(ChangeError::Refused(format!("{name} has a vote already")));
                }
                self.caught_up(id, name, deadline).await?;
                voters.insert(id);
            }
            self.new_voters(voters).await
        })
        .await
    }

    /// Takes members away, all together. A leader among them hands over first and then does not lead.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn member_remove(&self, names: &[String], deadline: Instant) -> Result<(), ChangeError> {
        self.alone(deadline, async {
            let view = self.view(&[], &[]).await?;
            let mut leaving = BTreeSet::new();
            for name in names {
                leaving.insert(find(&view, name)?.0);
            }
            let voters: BTreeSet<u64> = view.voter_ids().difference(&leaving).copied().collect();
            if voters.is_empty() {
                return Err(ChangeError::Refused("nobody with a vote would be left".into()));
            }
            keeps_quorum(&view, &voters).map_err(ChangeError::Quorum)?;
            if leaving.contains(&self.identity().node_id) {
                self.move_leadership(&voters).await.map_err(ChangeError::Refused)?;
                return Err(ChangeError::NotLeader);
            }
            let learners: BTreeSet<u64> = leaving.difference(&view.voter_ids()).copied().collect();
            let mut changes = Vec::new();
            if voters != view.voter_ids() {
                changes.push(ChangeMembers::ReplaceAllVoters(voters));
            }
            changes.push(ChangeMembers::RemoveNodes(learners));
            self.change(ChangeMembers::Batch(changes)).await
        })
        .await
    }

    /// Puts an empty replica of the same name in the place of a voter that does not answer.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn member_replace(
        &self,
        name: &str,
        configured: &[PeerAddress],
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        self.alone(deadline, async {
            let view = self.view(configured, &[]).await?;
            let old = view.voters().find(|(id, member)| member.node.name == *name || id.to_string() == *name);
            let Some((old, voter)) = old else {
                return Err(ChangeError::Refused(format!("{name} is no voter; `holdfast members list` shows them")));
            };
            let name = &voter.node.name;
            let learner = view.learners().find(|(_, learner)| learner.node.name == *name);
            let new = match learner {
                Some((id, _)) => id,
                None if voter.alive => {
                    return Err(ChangeError::Refused(format!(
                        "{name} (id {old}) answers; stop it and start it on an empty data directory first, if that is meant"
                    )));
                }
                None => {
                    let mut after = view.voter_ids();
                    after.remove(&old);
                    // The new one counts: it answers, and is asked to catch up before it counts.
                    let mut after_view = view.clone();
                    after_view.members.insert(u64::MAX, Member { alive: true, ..voter.clone() });
                    after.insert(u64::MAX);
                    keeps_quorum(&after_view, &after).map_err(ChangeError::Quorum)?;
                    let Some(node) = view.blank(name) else {
                        let why = view.why_no_blank(name);
                        return Err(ChangeError::Refused(format!("no empty replica of the name {name} answers: {why}")));
                    };
                    self.add(node).await?
                }
            };
            self.caught_up(new, name, deadline).await?;
            let mut voters = view.voter_ids();
            voters.remove(&old);
            voters.insert(new);
            self.new_voters(voters).await
        })
        .await
    }

    /// Moves the leadership to the voter called `to`, or to the one that is furthest; returns whom to, and how long no
    /// write could be decided.
    ///
    /// # Errors
    /// [`ChangeError`]; refused if that voter does not answer.
    pub async fn leader_move(&self, to: Option<&str>, deadline: Instant) -> Result<(String, Duration), ChangeError> {
        self.alone(deadline, async {
            let view = self.view(&[], &[]).await?;
            let me = self.identity().node_id;
            let candidates: BTreeSet<u64> = match to {
                None => view.voter_ids().into_iter().filter(|id| *id != me).collect(),
                Some(name) => {
                    let (id, member) = find(&view, name)?;
                    if id == me {
                        return Ok((member.node.name.clone(), Duration::ZERO));
                    }
                    if !member.voter {
                        return Err(ChangeError::Refused(format!("{name} is a learner and cannot lead")));
                    }
                    if !member.alive {
                        return Err(ChangeError::Refused(format!("{name} does not answer")));
                    }
                    [id].into()
                }
            };
            let (to, took) = self.move_leadership(&candidates).await.map_err(ChangeError::Refused)?;
            let name = view
                .members
                .get(&to)
                .map_or_else(String::new, |member| member.node.name.clone());
            Ok((name, took))
        })
        .await
    }

    /// One change at a time, and none beside the leader's own.
    async fn alone<T>(
        &self,
        deadline: Instant,
        change: impl Future<Output = Result<T, ChangeError>>,
    ) -> Result<T, ChangeError> {
        if !self.is_leader() {
            return Err(ChangeError::NotLeader);
        }
        let Ok(_change) = timeout_at(deadline, self.change.lock()).await else {
            return Err(ChangeError::Refused(
                "another change of members is under way; try again".into(),
            ));
        };
        match timeout_at(deadline, change).await {
            Ok(done) => done,
            Err(_) => Err(ChangeError::Unknown("not done within the deadline".into())),
        }
    }

    async fn new_voters(&self, voters: BTreeSet<u64>) -> Result<(), ChangeError> {
        // Looked at again: the wait for the learners may have been long.
        let view = self.view(&[], &[]).await?;
        keeps_quorum(&view, &voters).map_err(ChangeError::Quorum)?;
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    async fn caught_up(&self, id: u64, name: &str, deadline: Instant) -> Result<(), ChangeError> {
        // So that the caller hears why, and not only that its time was up.
        let last = deadline - Duration::from_millis(500).min(deadline.saturating_duration_since(Instant::now()) / 4);
        loop {
            let metrics = self.metrics();
            if metrics.state != ServerState::Leader {
                return Err(ChangeError::NotLeader);
            }
            if is_alive(&metrics, id) && has_caught_up(&metrics, id) {
                return Ok(());
            }
            if Instant::now() >= last {
                let why = match is_alive(&metrics, id) {
                    true => "has not caught up yet; ask again with a longer --timeout",
                    false => "does not answer",
                };
                return Err(ChangeError::Refused(format!("{name} (id {id}) {why}")));
            }
            tokio::time::sleep(CATCH_UP_STEP).await;
        }
    }
}

/// How long ago a member has answered this replica as the leader.
pub fn contact_age(metrics: &RaftMetrics<TypeConfig>, id: u64) -> Option<Duration> {
    let answers = metrics.heartbeat.as_ref()?;
    if id == metrics.id {
        return Some(Duration::ZERO);
    }
    Some(answers.get(&id)?.as_ref()?.elapsed())
}

fn is_alive(metrics: &RaftMetrics<TypeConfig>, id: u64) -> bool {
    contact_age(metrics, id).is_some_and(|age| age < SILENT_AFTER)
}

fn has_caught_up(metrics: &RaftMetrics<TypeConfig>, id: u64) -> bool {
    let matched = metrics
        .replication
        .as_ref()
        .and_then(|progress| progress.get(&id).copied().flatten());
    matched.is_some_and(|matched| matched.index + LAG_MAX >= metrics.last_log_index.unwrap_or(0))
}

/// The member of that name, or of that id.
fn find<'a>(view: &'a View, name: &str) -> Result<(u64, &'a Member), ChangeError> {
    let mut named = view.members.iter().filter(|(_, member)| member.node.name == name);
    match (named.next(), named.next()) {
        (Some((id, member)), None) => Ok((*id, member)),
        (Some((one, _)), Some((other, _))) => Err(ChangeError::Refused(format!(
            "two members are called {name}: say {one} or {other} instead, their ids"
        ))),
        (None, _) => {
            let by_id = name.parse().ok().and_then(|id: u64| Some((id, view.members.get(&id)?)));
            by_id.ok_or_else(|| {
                let mut known = String::new();
                for (id, member) in &view.members {
                    // Writing to a String does not fail.
                    let _ = write!(
                        known,
                        "{}{} (id {id})",
                        if known.is_empty() { "" } else { ", " },
                        member.node.name
                    );
                }
                ChangeError::Refused(format!("{name} is no member; there are {known}"))
            })
        }
    }
}

fn answer_in(answer: proto::IdentifyResponse) -> Answer {
    match answer.node_id == 0 && answer.cluster_id.is_empty() {
        true => Answer::Blank(Blank {
            name: answer.name,
            store_uuid: answer.store_uuid,
            client_address: answer.client_address,
            peers: answer.peers,
        }),
        false => Answer::Taken {
            name: answer.name,
            cluster_id: answer.cluster_id,
            store_uuid: answer.store_uuid,
            client_address: answer.client_address,
        },
    }
}

fn change_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ChangeError::NotLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            ChangeError::Unknown("another replica leads now".into())
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => {
            ChangeError::Refused("the members have changed meanwhile; look again".into())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => ChangeError::Refused(error.to_string()),
        RaftError::Fatal(Fatal::Stopped) => ChangeError::NotLeader,
        RaftError::Fatal(error) => ChangeError::Unknown(error.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! openraft's types as we fill them in, and their own form on disk and wire: nothing of openraft's is stored or sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use holdfast_table::{HubEpoch, Rejection, Revision, State, Written};
use holdfast_wire::proto;
use prost::Message as _;

openraft::declare_raft_types!(
    /// Our choice of types for openraft.
    pub TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = Node,
);

pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub type LogId = openraft::LogId<LeaderId>;
pub type Vote = openraft::Vote<LeaderId>;
pub type Entry = openraft::Entry<LeaderId, openraft::EntryPayload<Proposal, u64, Node>>;
pub type Membership = openraft::Membership<u64, Node>;
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, Node>;
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Node>;
pub type Snapshot = openraft::Snapshot<LeaderId, u64, Node, State>;

/// One log entry's content, encoded once by the leader: a protobuf `Group`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl Proposal {
    /// One entry for several commands.
    pub fn new(commands: Vec<Bytes>) -> Self {
        Proposal(proto::Group { commands }.encode_to_vec().into())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "commands of {} bytes", self.0.len())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What applying an entry answers: as much as it has commands, none for a blank or membership entry.
pub type Applied = Vec<Answer>;

/// What applying a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A batch was decided.
    Write(Result<Written, Rejection>),
    /// A hub was let in.
    Hub(Result<HubEpoch, Rejection>),
    /// So many holds were ended; the table's revision after it.
    Settled(usize, Revision),
}

/// A member's name, addresses and disk, kept in the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub peer_address: String,
    pub client_address: String,
    pub store_uuid: String,
}

impl From<Node> for proto::Node {
    fn from(node: Node) -> Self {
        proto::Node {
            name: node.name,
            peer_address: node.peer_address,
            client_address: node.client_address,
            store_uuid: node.store_uuid,
        }
    }
}

impl From<proto::Node> for Node {
    fn from(node: proto::Node) -> Self {
        Node {
            name: node.name,
            peer_address: node.peer_address,
            client_address: node.client_address,
            store_uuid: node.store_uuid,
        }
    }
}

pub fn log_id_out(log_id: &LogId) -> proto::LogId {
    let leader = log_id.committed_leader_id();
    proto::LogId {
        term: leader.term,
        node_id: leader.node_id,
        index: log_id.index,
    }
}

pub fn log_id_in(log_id: proto::LogId) -> LogId {
    LogId::new(
        LeaderId {
            term: log_id.term,
            node_id: log_id.node_id,
        },
        log_id.index,
    )
}

pub fn ballot_out(vote: &Vote) -> proto::Ballot {
    proto::Ballot {
        term: vote.leader_id.term,
        node_id: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub fn ballot_in(ballot: proto::Ballot) -> Vote {
    match ballot.committed {
        true => Vote::new_committed(ballot.term, ballot.node_id),
        false => Vote::new(ballot.term, ballot.node_id),
    }
}

pub fn membership_out(membership: &Membership) -> proto::Membership {
    let voters = |set: &BTreeSet<u64>| proto::Voters {
        node_ids: set.iter().copied().collect(),
    };
    proto::Membership {
        configs: membership.get_joint_config().iter().map(voters).collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| (*id, node.clone().into()))
            .collect(),
    }
}

/// `None` if a voter has no node: then it is no membership.
pub fn membership_in(membership: proto::Membership) -> Option<Membership> {
    let configs = membership
        .configs
        .into_iter()
        .map(|voters| voters.node_ids.into_iter().collect())
        .collect();
    let nodes: BTreeMap<u64, Node> = membership
        .nodes
        .into_iter()
        .map(|(id, node)| (id, node.into()))
        .collect();
    Membership::new(configs, nodes).ok()
}

pub fn stored_membership_out(stored: &StoredMembership) -> proto::StoredMembership {
    proto::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_out),
        membership: Some(membership_out(stored.membership())),
    }
}

pub fn stored_membership_in(stored: proto::StoredMembership) -> Option<StoredMembership> {
    let membership = membership_in(stored.membership.unwrap_or_default())?;
    Some(StoredMembership::new(stored.log_id.map(log_id_in), membership))
}

pub fn entry_out(entry: &Entry) -> proto::LogEntry {
    use openraft::EntryPayload as Payload;
    use proto::log_entry::Payload as Out;
    let payload = match &entry.payload {
        Payload::Blank => Out::Blank(proto::Blank {}),
        Payload::Normal(proposal) => Out::Group(proposal.0.clone()),
        Payload::Membership(membership) => Out::Membership(membership_out(membership)),
    };
    proto::LogEntry {
        log_id: Some(log_id_out(&entry.log_id)),
        payload: Some(payload),
    }
}

/// `None` for a message without position or content.
pub fn entry_in(entry: proto::LogEntry) -> Option<Entry> {
    use openraft::EntryPayload as Payload;
    use proto::log_entry::Payload as In;
    let payload = match entry.payload? {
        In::Blank(_) => Payload::Blank,
        In::Group(bytes) => Payload::Normal(Proposal(bytes)),
        In::Membership(membership) => Payload::Membership(membership_in(membership)?),
    };
    Some(Entry {
        log_id: log_id_in(entry.log_id?),
        payload,
    })
}

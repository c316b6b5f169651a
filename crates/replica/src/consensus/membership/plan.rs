//! What should be done about the members now: from a view of the cluster to one action. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::PeerAddress;
use crate::consensus::types::Node;

/// The cluster as its leader sees it at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Its id.
    pub cluster_id: String,
    /// The leader's name.
    pub leader: String,
    /// Every member, the leader included, by id.
    pub members: BTreeMap<u64, Member>,
    /// True between the two halves of a change.
    pub joint: bool,
    /// The leader's `--peers`.
    pub configured: Vec<PeerAddress>,
    /// Who answers where; only the addresses that matter were asked.
    pub answers: BTreeMap<String, Answer>,
}

/// A member and how it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its addresses and disk.
    pub node: Node,
    /// False: a learner.
    pub voter: bool,
    /// It has acknowledged a heartbeat lately. The leader always has.
    pub alive: bool,
    /// It has the log but for the last moments.
    pub caught_up: bool,
}

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody.
    Silent,
    /// A replica with an empty data directory.
    Blank(Blank),
    /// A replica that belongs to a cluster.
    Taken {
        /// Its name.
        name: String,
        /// Its cluster.
        cluster_id: String,
        /// Its disk.
        store_uuid: String,
        /// Where clients reach it.
        client_address: String,
    },
}

/// A replica with an empty data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blank {
    /// Its name.
    pub name: String,
    /// Its disk.
    pub store_uuid: String,
    /// Where clients reach it.
    pub client_address: String,
    /// The names in its own `--peers`.
    pub peers: Vec<String>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing can or need be done; why, in words, or empty if all is as it should be.
    Wait(String),
    /// A change was left half done: go on to its second half.
    Finish,
    /// A learner's disk has not heard yet that it belongs to the cluster.
    Adopt {
        /// Its id.
        node_id: u64,
        /// Its addresses and disk.
        node: Node,
    },
    /// A member answers at another address than it had, with its disk.
    Move {
        /// Its id.
        node_id: u64,
        /// Its new addresses and its disk.
        node: Node,
    },
    /// A blank replica becomes a learner, under a new id.
    Add(Node),
    /// A learner that will never answer again is taken away.
    Drop(u64),
    /// These are the voters from now on; voters that are not among them are taken away.
    Voters(BTreeSet<u64>),
}

/// What to do next.
///
/// It replaces a voter only while that one alone is missing, and only by an empty replica of its name; it gives votes to
/// configured peers only to all of them at once, and never to make an even number of voters.
pub fn decide(view: &View) -> Action {
    if view.joint {
        return Action::Finish;
    }
    if let Some(action) = follow_members(view).or_else(|| mend_learners(view)) {
        return action;
    }
    let missing: Vec<(u64, &Member)> = view.voters().filter(|(_, member)| !member.alive).collect();
    match missing[..] {
        [] => complete(view),
        [(id, member)] => replace(view, id, member),
        _ => {
            let names: Vec<_> = missing.iter().map(|(_, member)| member.node.name.as_str()).collect();
            Action::Wait(format!(
                "{} do not answer; one alone would be replaced if its data directory were empty. Start them again, or \
                 see `holdfast members replace --help`",
                names.join(" and ")
            ))
        }
    }
}

/// Would `voters` still have a quorum, if those that do not answer now stay away?
///
/// # Errors
/// In words: who is missing, and what to do.
pub fn keeps_quorum(view: &View, voters: &BTreeSet<u64>) -> Result<(), String> {
    let (alive, silent): (Vec<u64>, Vec<u64>) = voters
        .iter()
        .partition(|id| view.members.get(id).is_some_and(|member| member.alive));
    let needed = voters.len() / 2 + 1;
    if alive.len() >= needed {
        return Ok(());
    }
    let name = |id: &u64| {
        view.members
            .get(id)
            .map_or_else(|| format!("id {id}"), |member| member.node.name.clone())
    };
    Err(format!(
        "of the {} voters there would be then, {} must answer and only {} would; {} not; start {} first, or take {} \
         away in place of others",
        voters.len(),
        needed,
        alive.len(),
        match silent.len() {
            1 => format!("{} does", name(&silent[0])),
            _ => format!("{} do", silent.iter().map(name).collect::<Vec<_>>().join(" and ")),
        },
        if silent.len() == 1 { "it" } else { "them" },
        if silent.len() == 1 { "it" } else { "them" },
    ))
}

impl View {
    /// Those with a vote.
    pub fn voters(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.members
            .iter()
            .filter(|(_, member)| member.voter)
            .map(|(id, member)| (*id, member))
    }

    /// Those without.
    pub fn learners(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.members
            .iter()
            .filter(|(_, member)| !member.voter)
            .map(|(id, member)| (*id, member))
    }

    /// The ids of those with a vote.
    pub fn voter_ids(&self) -> BTreeSet<u64> {
        self.voters().map(|(id, _)| id).collect()
    }

    /// Where a replica of this name may be: where it was as a member, and where the configuration says.
    pub fn addresses_of(&self, name: &str) -> Vec<&str> {
        let member = self.members.values().filter(|member| member.node.name == name);
        let configured = self.configured.iter().filter(|peer| peer.name == name);
        let mut addresses: Vec<&str> = configured.map(|peer| peer.address.as_str()).collect();
        addresses.extend(member.map(|member| member.node.peer_address.as_str()));
        addresses.dedup();
        addresses
    }

    /// A member that is found with its disk at another address than its own, and not at its own.
    fn moved(&self, node: &Node) -> Option<Node> {
        let here = |address: &str| match self.answers.get(address)? {
            Answer::Taken {
                cluster_id,
                store_uuid,
                client_address,
                ..
            } if *cluster_id == self.cluster_id && *store_uuid == node.store_uuid => Some(Node {
                peer_address: address.to_owned(),
                client_address: client_address.clone(),
                ..node.clone()
            }),
            _ => None,
        };
        match here(&node.peer_address) {
            Some(_) => None,
            None => self.addresses_of(&node.name).into_iter().find_map(here),
        }
    }

    /// An empty replica of this name, as the member that it would be.
    pub fn blank(&self, name: &str) -> Option<Node> {
        self.addresses_of(name)
            .into_iter()
            .find_map(|address| match self.answers.get(address) {
                // It must expect this cluster: an empty replica that waits for others to form one with is not ours to take.
                Some(Answer::Blank(blank)) if blank.name == name && blank.peers.contains(&self.leader) => Some(Node {
                    name: blank.name.clone(),
                    peer_address: address.to_owned(),
                    client_address: blank.client_address.clone(),
                    store_uuid: blank.store_uuid.clone(),
                }),
                _ => None,
            })
    }

    /// Why there is no empty replica of this name, and what would make one, in words.
    pub fn why_no_blank(&self, name: &str) -> String {
        let addresses = self.addresses_of(name);
        let found = addresses.iter().find_map(|address| match self.answers.get(*address)? {
            Answer::Silent => None,
            Answer::Blank(blank) if blank.name != name => {
                Some(format!("an empty replica answers at {address} as {:?}", blank.name))
            }
            Answer::Blank(_) => Some(format!(
                "the empty replica at {address} does not name {} in its --peers",
                self.leader
            )),
            Answer::Taken {
                cluster_id, store_uuid, ..
            } if *cluster_id == self.cluster_id && self.members.values().any(|m| m.node.store_uuid == *store_uuid) => {
                Some(format!(
                    "the replica at {address} is that member and runs, but takes no part: look whether its machine is \
                     overloaded, and whether it reaches {}",
                    self.leader
                ))
            }
            Answer::Taken { cluster_id, .. } => Some(format!(
                "the replica at {address} has a data directory of cluster {cluster_id} that is no member here; with an \
                 empty data directory it would be taken in"
            )),
        });
        found.unwrap_or_else(|| format!("nobody answers at {}", addresses.join(" or ")))
    }
}

/// A member that is silent where it was, and answers with its disk where the configuration says.
fn follow_members(view: &View) -> Option<Action> {
    let mut silent = view.members.iter().filter(|(_, member)| !member.alive);
    silent.find_map(|(node_id, member)| {
        Some(Action::Move {
            node_id: *node_id,
            node: view.moved(&member.node)?,
        })
    })
}

/// Learners that were interrupted on their way in, or that lost their disk before they had a vote.
fn mend_learners(view: &View) -> Option<Action> {
    for (node_id, learner) in view.learners().filter(|(_, learner)| !learner.alive) {
        let node = &learner.node;
        match view.answers.get(&node.peer_address) {
            Some(Answer::Blank(blank)) if blank.store_uuid == node.store_uuid => {
                let node = node.clone();
                return Some(Action::Adopt { node_id, node });
            }
            // Its disk is another one now, so the one that was added is gone.
            Some(Answer::Blank(blank)) if blank.name == node.name => return Some(Action::Drop(node_id)),
            _ => {}
        }
        // The voter that it was to replace is back, with its disk.
        if view
            .voters()
            .any(|(_, voter)| voter.alive && voter.node.name == node.name)
        {
            return Some(Action::Drop(node_id));
        }
    }
    None
}

fn replace(view: &View, id: u64, missing: &Member) -> Action {
    let name = &missing.node.name;
    if let Some((new, learner)) = view.learners().find(|(_, learner)| learner.node.name == *name) {
        if !(learner.alive && learner.caught_up) {
            return Action::Wait(format!(
                "the new {name} (id {new}) to catch up; then it replaces id {id}"
            ));
        }
        let mut voters = view.voter_ids();
        voters.remove(&id);
        voters.insert(new);
        return Action::Voters(voters);
    }
    match view.blank(name) {
        Some(node) => Action::Add(node),
        None => Action::Wait(format!(
            "{name} (id {id}) to answer; it is replaced once a replica of its name answers with an empty data \
             directory ({})",
            view.why_no_blank(name)
        )),
    }
}

/// All voters are there: are all configured peers voters?
fn complete(view: &View) -> Action {
    let mut waits = Vec::new();
    let mut voters = view.voter_ids();
    for peer in &view.configured {
        let named = || view.members.iter().filter(|(_, member)| member.node.name == peer.name);
        if named().any(|(_, member)| member.voter) {
            continue;
        }
        match named().next() {
            Some((id, learner)) => {
                voters.insert(*id);
                if !(learner.alive && learner.caught_up) {
                    waits.push(format!("{} (id {id}) to catch up", peer.name));
                }
            }
            None => match view.blank(&peer.name) {
                Some(node) => return Action::Add(node),
                None => waits.push(format!(
                    "{} to answer with an empty data directory ({})",
                    peer.name,
                    view.why_no_blank(&peer.name)
                )),
            },
        }
    }
    if !waits.is_empty() {
        return Action::Wait(format!(
            "{}; then all of --peers get a vote at once",
            waits.join(", and ")
        ));
    }
    if voters == view.voter_ids() {
        return Action::Wait(String::new());
    }
    match voters.len() % 2 {
        1 => Action::Voters(voters),
        _ => Action::Wait(format!(
            "one more peer: {} voters would bear no more losses than {}. `holdfast members promote` does it all the same",
            voters.len(),
            voters.len() - 1
        )),
    }
}

#[cfg(test)]
mod tests;

//! How a replica comes by its identity: at the first start, or by joining.
//!
//! A cluster is formed only if every configured peer answers and every one is empty. The first replica of the list leads
//! that, and only once. No timeout ever forms a cluster: two empty replicas beside a third one that cannot be reached
//! wait, for that one may hold the table. Where there is a cluster, an empty replica waits for its leader to take it in.

use std::sync::Mutex;
use std::time::Duration;

use holdfast_table::Lineage;
use holdfast_wire::proto;
use tokio::sync::watch;
use tonic::transport::Channel;
use uuid::Uuid;

use super::network::{lazy_channel, raft_client};
use crate::config::{PeerAddress, ReplicaConfig};
use crate::storage::identity::Identity;
use crate::storage::{OpenError, Store};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// What this replica says of itself, shared with the service that answers `Identify`, `Found` and `Adopt`.
pub struct Introduction {
    /// As it is on disk.
    pub identity: watch::Sender<Identity>,
    /// The address that clients are told.
    pub client_address: String,
    /// The configured names, sorted.
    pub peers: Vec<String>,
    /// As configured.
    pub configured: Vec<PeerAddress>,
    /// Why there is no cluster yet; empty once there is.
    pub waiting_for: watch::Sender<String>,
    // An identity is read, judged and written as one step: being founded and being adopted exclude each other.
    changing: Mutex<()>,
}

impl Introduction {
    /// At start.
    pub fn new(config: &ReplicaConfig, identity: Identity, client_address: String) -> Self {
        let mut peers: Vec<String> = config.cluster.peers.iter().map(|peer| peer.name.clone()).collect();
        peers.sort();
        Introduction {
            identity: watch::Sender::new(identity),
            client_address,
            peers,
            configured: config.cluster.peers.clone(),
            waiting_for: watch::Sender::new(String::new()),
            changing: Mutex::default(),
        }
    }

    /// The answer to `Identify`.
    pub fn identify(&self) -> proto::IdentifyResponse {
        let identity = self.identity.borrow();
        proto::IdentifyResponse {
            cluster_id: if is_member(&identity) {
                identity.cluster_id.clone()
            } else {
                String::new()
            },
            node_id: identity.node_id,
            store_uuid: identity.store_uuid.clone(),
            name: identity.name.clone(),
            client_address: self.client_address.clone(),
            peers: self.peers.clone(),
            lineage: Vec::new(),
        }
    }

    /// Takes the identity that the leader of the first start gives; on disk when this returns.
    ///
    /// # Errors
    /// In words: it was meant for another store, or this replica is in a cluster already.
    pub fn found(&self, store: &Store, request: proto::FoundRequest) -> Result<(), String> {
        let _changing = self.changing.lock().expect("nobody panics with it");
        let identity = self.identity.borrow().clone();
        if request.to_store_uuid != identity.store_uuid {
            return Err(format!(
                "this is store {}, not {}",
                identity.store_uuid, request.to_store_uuid
            ));
        }
        let mine = request.founders.iter().find(|founder| {
            founder
                .node
                .as_ref()
                .is_some_and(|node| node.store_uuid == identity.store_uuid && node.name == identity.name)
        });
        let Some(node_id) = mine.map(|founder| founder.node_id) else {
            return Err(format!(
                "replica {} with store {} is not among the founders",
                identity.name, identity.store_uuid
            ));
        };
        if is_member(&identity) {
            let same = identity.cluster_id == request.cluster_id && identity.node_id == node_id;
            return if same {
                Ok(())
            } else {
                Err(format!("already a member of cluster {}", identity.cluster_id))
            };
        }
        let founded = Identity {
            cluster_id: request.cluster_id,
            node_id,
            founders: request.founders,
            ..identity
        };
        store.save_identity(&founded).map_err(|error| error.to_string())?;
        self.identity.send_replace(founded);
        Ok(())
    }

    /// Takes the identity that the leader of an existing cluster gives; on disk when this returns. It names no founders:
    /// whoever joins never forms a cluster.
    ///
    /// # Errors
    /// In words: it was meant for another store or replica, or this replica is in a cluster already.
    pub fn adopt(&self, store: &Store, request: proto::AdoptRequest) -> Result<(), String> {
        let _changing = self.changing.lock().expect("nobody panics with it");
        let identity = self.identity.borrow().clone();
        if request.to_store_uuid != identity.store_uuid || request.name != identity.name {
            return Err(format!(
                "this is {} with store {}, not {} with store {}",
                identity.name, identity.store_uuid, request.name, request.to_store_uuid
            ));
        }
        if request.cluster_id.is_empty() || request.node_id == 0 {
            return Err("an identity without a cluster or without an id".to_owned());
        }
        if is_member(&identity) {
            let same = identity.cluster_id == request.cluster_id && identity.node_id == request.node_id;
            return if same {
                Ok(())
            } else {
                Err(format!("already a member of cluster {}", identity.cluster_id))
            };
        }
        // A first start that was interrupted here is forgotten: without this replica it has never formed anything.
        let adopted = Identity {
            cluster_id: request.cluster_id,
            node_id: request.node_id,
            founders: Vec::new(),
            ..identity
        };
        store.save_identity(&adopted).map_err(|error| error.to_string())?;
        self.identity.send_replace(adopted);
        Ok(())
    }

    /// As the leader of the first start: notes which cluster it is to be, before anybody hears of it.
    fn begin_founding(&self, store: &Store, founders: Vec<proto::Founder>) -> Result<Identity, OpenError> {
        let _changing = self.changing.lock().expect("nobody panics with it");
        let identity = self.identity.borrow().clone();
        if !identity.cluster_id.is_empty() {
            return Ok(identity);
        }
        let founding = Identity {
            cluster_id: Uuid::new_v4().to_string(),
            founders,
            ..identity
        };
        // On disk first: after a crash the same cluster is formed, not a second one.
        store.save_identity(&founding)?;
        self.identity.send_replace(founding.clone());
        Ok(founding)
    }
}

/// True once the replica belongs to a cluster.
pub fn is_member(identity: &Identity) -> bool {
    identity.node_id != 0
}

/// Returns once this replica is a member: at once if it was one before.
///
/// # Errors
/// [`OpenError`]: the identity could not be written.
pub async fn join(config: &ReplicaConfig, introduction: &Introduction, store: &Store) -> Result<Identity, OpenError> {
    let mut identity = introduction.identity.subscribe();
    let leads = config
        .cluster
        .peers
        .first()
        .is_some_and(|first| first.name == config.name);
    loop {
        if is_member(&identity.borrow_and_update()) {
            introduction.waiting_for.send_replace(String::new());
            return Ok(identity.borrow().clone());
        }
        let waiting_for = match lead_first_start(config, introduction, store, leads).await? {
            None => continue,
            Some(reason) => reason,
        };
        let news = introduction.waiting_for.send_if_modified(|before| {
            let news = *before != waiting_for;
            before.clone_from(&waiting_for);
            news
        });
        if news {
            tracing::info!("no cluster yet: {waiting_for}");
        }
        // Being founded by the first replica ends the wait early.
        let _ = tokio::time::timeout(BETWEEN_TRIES, identity.changed()).await;
    }
}

async fn lead_first_start(
    config: &ReplicaConfig,
    introduction: &Introduction,
    store: &Store,
    leads: bool,
) -> Result<Option<String>, OpenError> {
    let asked = config
        .cluster
        .peers
        .iter()
        .map(async |peer| match peer.name == config.name {
            true => Ok(introduction.identify()),
            false => identify(peer).await,
        });
    let answers = futures_util::future::join_all(asked).await;
    let interrupted = introduction.identity.borrow().cluster_id.clone();
    // A peer of the very cluster that this replica began to form is no stranger.
    let mut strangers = answers
        .iter()
        .flatten()
        .filter(|answer| !answer.cluster_id.is_empty() && answer.cluster_id != interrupted);
    if let Some(answer) = strangers.next() {
        return Ok(Some(format!(
            "the leader of cluster {}, in which {} is, to take this replica in; it does so while all its other voters \
             answer (`holdfast members list` there says what it waits for). An empty replica forms no other cluster",
            answer.cluster_id, answer.name
        )));
    }
    let mut present = Vec::new();
    for (peer, answer) in config.cluster.peers.iter().zip(answers) {
        match answer {
            Ok(answer) if answer.name != peer.name => {
                return Ok(Some(format!(
                    "{} answers as {:?}, not as {:?}",
                    peer.address, answer.name, peer.name
                )));
            }
            Ok(answer) if answer.peers != introduction.peers => {
                return Ok(Some(format!(
                    "{} has another list of peers: {}",
                    peer.name,
                    answer.peers.join(",")
                )));
            }
            Ok(answer) => present.push((peer, answer)),
            Err(reason) => return Ok(Some(format!("{} at {}: {reason}", peer.name, peer.address))),
        }
    }
    if !leads {
        return Ok(Some(format!("{} to form the cluster", config.cluster.peers[0].name)));
    }
    let founders = present.iter().zip(1..).map(|((peer, answer), node_id)| proto::Founder {
        node_id,
        node: Some(proto::Node {
            name: peer.name.clone(),
            peer_address: peer.address.clone(),
            client_address: answer.client_address.clone(),
            store_uuid: answer.store_uuid.clone(),
        }),
    });
    let founding = introduction.begin_founding(store, founders.collect())?;
    if is_member(&founding) {
        return Ok(None);
    }
    for (peer, answer) in present.iter().filter(|(peer, _)| peer.name != config.name) {
        if let Err(reason) = found(peer, &founding, &answer.store_uuid).await {
            return Ok(Some(format!("{} did not take its identity: {reason}", peer.name)));
        }
    }
    let request = found_request(&founding, &founding.store_uuid);
    Ok(introduction.found(store, request).err())
}

fn found_request(founding: &Identity, to_store_uuid: &str) -> proto::FoundRequest {
    proto::FoundRequest {
        cluster_id: founding.cluster_id.clone(),
        founders: founding.founders.clone(),
        to_store_uuid: to_store_uuid.to_owned(),
    }
}

fn channel(peer: &PeerAddress) -> Result<Channel, String> {
    lazy_channel(&peer.address).map_err(|error| error.to_string())
}

async fn identify(peer: &PeerAddress) -> Result<proto::IdentifyResponse, String> {
    let mut client = raft_client(channel(peer)?);
    match tokio::time::timeout(ANSWER_TIMEOUT, client.identify(proto::IdentifyRequest {})).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(_)) | Err(_) => Err("does not answer".to_owned()),
    }
}

async fn found(peer: &PeerAddress, founding: &Identity, store_uuid: &str) -> Result<(), String> {
    let mut client = raft_client(channel(peer)?);
    match tokio::time::timeout(ANSWER_TIMEOUT, client.found(found_request(founding, store_uuid))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Why a member's data directory is not to be used where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// Every peer that answers is in another cluster: this one.
    Foreign(PeerAddress, String),
    /// A peer is in a cluster that was made from this replica's own, which is over.
    Superseded(PeerAddress, String),
}

/// Asks the peers in which cluster they are; `None` unless the answers say that this replica has no place there.
///
/// Peers of a cluster that is among the ancestors of this replica's own say nothing: they are what is left of it.
pub async fn misplaced(config: &ReplicaConfig, identity: &Identity, lineage: &Lineage) -> Option<Misplaced> {
    let others = config.cluster.peers.iter().filter(|peer| peer.name != config.name);
    let answers = others.map(async |peer| Some((peer, identify(peer).await.ok()?)));
    let answers = futures_util::future::join_all(answers).await;
    judge_place(answers.into_iter().flatten(), &identity.cluster_id, lineage)
}

fn judge_place<'a>(
    answers: impl IntoIterator<Item = (&'a PeerAddress, proto::IdentifyResponse)>,
    own: &str,
    lineage: &Lineage,
) -> Option<Misplaced> {
    let members = answers.into_iter().filter(|(_, answer)| !answer.cluster_id.is_empty());
    let (mut at_home, mut foreign) = (false, None);
    for (peer, answer) in members {
        if answer.cluster_id == own {
            at_home = true;
        } else if answer.lineage.iter().any(|ancestor| ancestor == own) {
            return Some(Misplaced::Superseded(peer.clone(), answer.cluster_id));
        } else if lineage.contains(&answer.cluster_id) {
            tracing::warn!(%peer.name, cluster = answer.cluster_id, "a replica of the cluster before this one still runs; stop it, and start it with an empty directory");
        } else {
            foreign = foreign.or(Some(Misplaced::Foreign(peer.clone(), answer.cluster_id)));
        }
    }
    foreign.filter(|_| !at_home)
}

#[cfg(test)]
mod place_tests {
    use super::*;

    fn judged(peers: &[(&str, &[&str])], own: &str, ancestors: &[&str]) -> Option<&'static str> {
        let address = PeerAddress {
            name: "r1".into(),
            address: "127.0.0.1:1".into(),
        };
        let answers = peers.iter().map(|(cluster_id, lineage)| {
            let answer = proto::IdentifyResponse {
                cluster_id: (*cluster_id).into(),
                lineage: lineage.iter().map(|id| (*id).to_owned()).collect(),
                ..Default::default()
            };
            (&address, answer)
        });
        let lineage = Lineage::new(ancestors.iter().map(|id| (*id).to_owned()));
        judge_place(answers, own, &lineage).map(|misplaced| match misplaced {
            Misplaced::Foreign(..) => "foreign",
            Misplaced::Superseded(..) => "superseded",
        })
    }

    #[test]
    fn a_member_knows_whether_its_cluster_is_over() {
        assert_eq!(judged(&[], "a", &[]), None);
        assert_eq!(judged(&[("", &[]), ("a", &[])], "a", &[]), None);
        assert_eq!(judged(&[("b", &[])], "a", &[]), Some("foreign"));
        // One of its own is enough to be in the right place, unless the cluster is over.
        assert_eq!(judged(&[("b", &[]), ("a", &[])], "a", &[]), None);
        assert_eq!(judged(&[("a", &[]), ("b", &["z", "a"])], "a", &[]), Some("superseded"));
        // What is left of the cluster before does not keep the new one from starting.
        assert_eq!(judged(&[("a", &[]), ("a", &[])], "b", &["a"]), None);
        assert_eq!(judged(&[("a", &[]), ("c", &[])], "b", &["a"]), Some("foreign"));
    }
}

//! The peers' listener as it is in production, on a real log.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_table::{Allowed, Digest, Table};
use holdfast_wire::errors::FORWARDED;
use holdfast_wire::proto::cluster_client::ClusterClient;
use holdfast_wire::proto::raft_client::RaftClient;
use holdfast_wire::proto::routes_client::RoutesClient;
use openraft::ChangeMembers;
use prost::Message;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::config::{ApiAccess, ClusterConfig, PeerAddress, ReplicaConfig};
use crate::consensus::bootstrap::Introduction;
use crate::consensus::membership::tests::leads;
use crate::consensus::types::{LeaderId, LogId, Membership, Node, StoredMembership, Vote, stored_membership_out};
use crate::replica::RunError;
use crate::servers::serve_peers;
use crate::services::cluster::status;
use crate::services::forwarded;
use crate::storage::Store;
use crate::storage::identity::Identity;
use crate::storage::log::LogStore;
use crate::storage::snapshot;
use crate::storage::state_machine::StateMachine;

const SOON: Duration = Duration::from_secs(10);
const CLUSTER: &str = "this-cluster";
const NODE_ID: u64 = 1;
/// A member once, and none any more.
const RETIRED_ID: u64 = 2;
/// A replica that this one has not heard of yet.
const NEW_ID: u64 = 3;
/// Above any that there is.
const TERM: u64 = 1_000;
/// They carry no `Peer`: whom they are for is a part of what they say.
const WITHOUT_PEER: [&str; 3] = ["Identify", "Found", "Adopt"];
/// All others, those that change nothing first.
const METHODS: [&str; 9] = [
    "ReadIndex",
    "AwaitProxies",
    "Compare",
    "ShareActivity",
    "PreVote",
    "TransferLeader",
    "Vote",
    "Append",
    "Snapshot",
];

/// A replica that leads a cluster of its own, and its peers' listener.
struct Replica {
    context: Arc<Context>,
    consensus: Consensus,
    channel: Channel,
    server: JoinSet<Result<(), RunError>>,
    _dir: TempDir,
}

/// What no refused call may change.
#[derive(Debug, PartialEq)]
struct Sight {
    vote: Vote,
    last_log_index: Option<u64>,
    revision: Revision,
    digest: Digest,
    members: BTreeSet<u64>,
    identity: Identity,
}

/// A `Peer` that is not right.
struct Wrong {
    // As which its calls are counted.
    counted: &'static str,
    reason: Reason,
    // What the refusal must say: the field, and both values.
    words: Vec<String>,
    peer: Option<proto::Peer>,
}

impl Wrong {
    /// Whether a call with it was refused, and told why.
    fn is_told(&self, method: &str, answer: Result<(), Status>) {
        let counted = self.counted;
        let refusal = answer.expect_err(&format!("{method} with a wrong {counted} was taken"));
        let told = format!("{method} with a wrong {counted}: {refusal:?}");
        assert_eq!(Reason::from_status(&refusal), Some(self.reason), "{told}");
        assert_eq!(refusal.code(), Code::FailedPrecondition, "{told}");
        for word in &self.words {
            assert!(refusal.message().contains(word), "{word} is not in {told}");
        }
    }
}

impl Replica {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let config = config(&dir, &address);
        let store = Store::open(dir.path()).unwrap();
        let identity = store.identity("r0").unwrap();
        let node = proto::Node {
            name: "r0".into(),
            peer_address: address.clone(),
            client_address: "127.0.0.1:1".into(),
            store_uuid: identity.store_uuid.clone(),
        };
        let identity = Identity {
            cluster_id: CLUSTER.into(),
            node_id: NODE_ID,
            founders: vec![proto::Founder {
                node_id: NODE_ID,
                node: Some(node),
            }],
            ..identity
        };
        store.save_identity(&identity).unwrap();
        let (machine, published) = StateMachine::open(store.clone()).unwrap();
        let log = LogStore::open(store.clone()).unwrap();
        let introduction = Introduction::new(&config, identity.clone(), "127.0.0.1:1".into());
        let context = Context::new(introduction, store, Duration::ZERO, Allowed::default());
        let context = Arc::new(context);
        let consensus = Consensus::start(&config.cluster, Duration::ZERO, identity, log, machine, published)
            .await
            .unwrap();
        consensus.initialize().await.unwrap();
        leads(&consensus).await;
        context.consensus.send_replace(Some(consensus.clone()));
        let mut server = JoinSet::new();
        server.spawn(serve_peers(context.clone(), listener, Handle::current()));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let replica = Replica {
            context,
            consensus,
            channel: channel.connect().await.unwrap(),
            server,
            _dir: dir,
        };
        let node = Node {
            name: "r1".into(),
            peer_address: "127.0.0.1:1".into(),
            store_uuid: "gone".into(),
            ..Node::default()
        };
        replica
            .change(ChangeMembers::AddNodes(BTreeMap::from([(RETIRED_ID, node)])))
            .await;
        replica
            .change(ChangeMembers::RemoveNodes(BTreeSet::from([RETIRED_ID])))
            .await;
        replica
    }

    async fn change(&self, change: ChangeMembers<u64, Node>) {
        self.consensus.raft.change_membership(change, false).await.unwrap();
        leads(&self.consensus).await;
    }

    /// A call for this very replica, by one that it has not heard of.
    fn peer(&self) -> proto::Peer {
        proto::Peer {
            cluster_id: CLUSTER.into(),
            from_node_id: NEW_ID,
            to_node_id: NODE_ID,
            to_store_uuid: self.consensus.identity().store_uuid.clone(),
        }
    }

    /// Everything that a `Peer` can have wrong.
    fn wrongs(&self) -> Vec<Wrong> {
        let store_uuid = format!("{:?}", self.consensus.identity().store_uuid);
        let wrong = |counted, words: &[&str], change: fn(&mut proto::Peer)| {
            let mut peer = self.peer();
            change(&mut peer);
            Wrong {
                counted,
                reason: Reason::Misdirected,
                words: words.iter().map(|word| (*word).to_owned()).collect(),
                peer: Some(peer),
            }
        };
        vec![
            Wrong {
                peer: None,
                ..wrong("peer", &["peer", "missing"], |_| {})
            },
            wrong(
                "cluster_id",
                &["cluster_id", "\"that-cluster\"", "\"this-cluster\""],
                |peer| {
                    peer.cluster_id = "that-cluster".into();
                },
            ),
            wrong("to_node_id", &["to_node_id", "\"7\"", "\"1\""], |peer| {
                peer.to_node_id = 7
            }),
            wrong(
                "to_store_uuid",
                &["to_store_uuid", "\"that-store\"", &store_uuid],
                |peer| {
                    peer.to_store_uuid = "that-store".into();
                },
            ),
            wrong("from_node_id", &["from_node_id", "0 is no replica's id"], |peer| {
                peer.from_node_id = 0
            }),
            Wrong {
                reason: Reason::Retired,
                ..wrong("retired", &["from_node_id", "2 was taken", "retired"], |peer| {
                    peer.from_node_id = RETIRED_ID;
                })
            },
        ]
    }

    fn sight(&self) -> Sight {
        let metrics = self.consensus.metrics();
        let state = self.consensus.published().load().state.clone();
        Sight {
            vote: metrics.vote,
            last_log_index: metrics.last_log_index,
            revision: state.table.revision(),
            digest: state.digest(),
            members: self.consensus.members().into_iter().map(|(id, ..)| id).collect(),
            identity: self.context.store.written_identity().unwrap().unwrap(),
        }
    }

    /// How many calls were refused for this reason.
    fn refused(&self, reason: &str) -> u64 {
        let text = self.context.metrics.encode(&status(&self.context), 0);
        let name = format!("holdfast_replica_peer_calls_refused_total{{reason=\"{reason}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&name));
        count.map_or(0, |count| count.parse().unwrap())
    }

    /// One call of `Raft`: as harmful as it can be, should it be taken.
    async fn call(&self, method: &str, peer: Option<proto::Peer>) -> Result<(), Status> {
        let mut client = RaftClient::new(self.channel.clone());
        let metrics = self.consensus.metrics();
        let usurper = |committed| {
            Some(proto::Ballot {
                term: TERM,
                node_id: NEW_ID,
                committed,
            })
        };
        let far = LogId::new(
            LeaderId {
                term: TERM,
                node_id: NEW_ID,
            },
            TERM,
        );
        let vote = proto::VoteRequest {
            peer: peer.clone(),
            vote: usurper(false),
            last_log_id: Some(log_id_out(&far)),
            leadership_transfer: true,
        };
        let called = async {
            match method {
                "ReadIndex" => client.read_index(proto::ReadIndexRequest { peer }).await.map(drop),
                "AwaitProxies" => {
                    let request = proto::AwaitProxiesRequest {
                        peer,
                        ..Default::default()
                    };
                    client.await_proxies(request).await.map(drop)
                }
                "Compare" => {
                    let request = proto::CompareRequest {
                        peer,
                        ..Default::default()
                    };
                    client.compare(request).await.map(drop)
                }
                "ShareActivity" => {
                    let request = proto::ShareActivityRequest {
                        peer,
                        ..Default::default()
                    };
                    client.share_activity(request).await.map(drop)
                }
                "PreVote" => client.pre_vote(vote).await.map(drop),
                "Vote" => client.vote(vote).await.map(drop),
                // Taken, it makes this replica campaign.
                "TransferLeader" => {
                    let request = proto::TransferLeaderRequest {
                        peer,
                        from_leader: Some(ballot_out(&metrics.vote)),
                        to_node_id: NODE_ID,
                        last_log_id: None,
                    };
                    client.transfer_leader(request).await.map(drop)
                }
                "Append" => {
                    let last = metrics.last_applied.as_ref().map(log_id_out);
                    let entry = proto::LogEntry {
                        log_id: last.map(|last| proto::LogId {
                            term: TERM,
                            node_id: NEW_ID,
                            index: last.index + 1,
                        }),
                        payload: Some(proto::log_entry::Payload::Blank(proto::Blank {})),
                    };
                    let request = proto::AppendRequest {
                        peer,
                        vote: usurper(true),
                        prev_log_id: last,
                        entries: vec![entry],
                        leader_commit: None,
                    };
                    let mut answers = client.append(tokio_stream::once(request)).await?.into_inner();
                    answers.message().await.map(drop)
                }
                "Snapshot" => {
                    use proto::snapshot_request::Part;
                    let membership = Membership::new_with_defaults(vec![BTreeSet::from([NODE_ID])], [NODE_ID]);
                    let membership = StoredMembership::new(Some(far), membership);
                    let header = proto::SnapshotHeader {
                        peer,
                        vote: usurper(true),
                        last_log_id: Some(log_id_out(&far)),
                        membership: Some(stored_membership_out(&membership)),
                    };
                    let state = holdfast_table::State {
                        table: Table::from_entries(Epoch(0), Revision(TERM), []),
                        ..Default::default()
                    };
                    let chunks = snapshot::encode(&state).map(|chunk| Part::Chunk(chunk.unwrap()));
                    let parts = std::iter::once(Part::Header(header)).chain(chunks);
                    let parts = parts.map(|part| proto::SnapshotRequest { part: Some(part) });
                    client.snapshot(futures_util::stream::iter(parts)).await.map(drop)
                }
                other => panic!("{other} is not called by this test: add it"),
            }
        };
        timeout(SOON, called).await.expect("an answer")
    }

    async fn stop(mut self) {
        self.context.stopping.cancel();
        self.server.shutdown().await;
        self.consensus.shutdown().await;
    }
}

fn config(dir: &TempDir, address: &str) -> ReplicaConfig {
    ReplicaConfig {
        cluster: ClusterConfig {
            peers: vec![PeerAddress {
                name: "r0".into(),
                address: address.to_owned(),
            }],
            heartbeat: ClusterConfig::HEARTBEAT,
            election_timeout: None,
            auto_replace: false,
            hold: None,
        },
        name: "r0".into(),
        data_dir: dir.path().to_owned(),
        listen_client: std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(),
        api: ApiAccess::default(),
        allow_targets: Vec::new(),
        listen_peer: None,
        listen_admin: None,
        chp_api: None,
        advertise_client: None,
    }
}

#[test]
fn no_method_is_forgotten() {
    let contract = include_str!("../../../../../proto/raft.proto");
    let methods = contract.lines().filter_map(|line| line.strip_prefix("  rpc "));
    let methods: BTreeSet<&str> = methods.filter_map(|line| line.split('(').next()).collect();
    let called: BTreeSet<&str> = METHODS.into_iter().chain(WITHOUT_PEER).collect();
    assert_eq!(called, methods);
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_call_that_is_meant_for_somebody_else_is_refused_and_changes_nothing() {
    let replica = Replica::start().await;
    let before = replica.sight();
    for wrong in replica.wrongs() {
        for method in METHODS {
            let count = replica.refused(wrong.counted);
            wrong.is_told(method, replica.call(method, wrong.peer.clone()).await);
            assert_eq!(replica.refused(wrong.counted), count + 1, "{method}");
            assert_eq!(replica.sight(), before, "{method} with a wrong {}", wrong.counted);
        }
    }

    // The same calls with nothing wrong are taken, and do their harm: it was the `Peer` alone.
    for method in METHODS {
        if let Err(status) = replica.call(method, Some(replica.peer())).await {
            let reason = Reason::from_status(&status);
            let refused = matches!(reason, Some(Reason::Misdirected | Reason::Retired));
            assert!(!refused, "{method}: {status:?}");
        }
    }
    let follows = replica.consensus.raft.wait(Some(SOON));
    let follows = follows.metrics(|metrics| metrics.vote.leader_id.term >= TERM, "it follows");
    follows.await.unwrap();
    assert_ne!(replica.sight(), before);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_what_is_kept_beside_the_table_is_told_of_one_entry_alone() {
    let replica = Replica::start().await;
    let (position, index) = scrub::newest(replica.consensus.published());
    let rest = position.state.rest_digest().to_bytes();
    let table = position.state.digest().to_bytes();
    let mut client = RaftClient::new(replica.channel.clone());
    // Of a caller that is further, that is behind, or that does not ask, as one of an older version.
    for (applied_index, told) in [
        (index, &rest[..]),
        (index + 1, &[][..]),
        (index - 1, &[][..]),
        (0, &[][..]),
    ] {
        let request = proto::CompareRequest {
            peer: Some(replica.peer()),
            epoch: position.state.table.epoch().0,
            revision: position.state.table.revision().0,
            applied_index,
        };
        let answer = timeout(SOON, client.compare(request))
            .await
            .unwrap()
            .unwrap()
            .into_inner();
        assert_eq!(answer.rest_digest, told, "after {index}, asked for {applied_index}");
        assert_eq!(answer.digest, &table[..]);
    }
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_forwarded_call_that_is_meant_for_somebody_else_is_refused_and_changes_nothing() {
    let replica = Replica::start().await;
    let before = replica.sight();
    let mut routes = RoutesClient::new(replica.channel.clone());
    let mut cluster = ClusterClient::new(replica.channel.clone());
    let deadline = Instant::now() + SOON;
    let write = proto::WriteRequest {
        changes: vec![proto::Change {
            change: Some(proto::change::Change::Put(proto::Route {
                routespec: "/user/alice/".into(),
                target: "http://10.0.0.1:8888".into(),
                ..Default::default()
            })),
        }],
        ..Default::default()
    };
    let add = proto::MemberAddRequest {
        name: "r7".into(),
        peer_address: "127.0.0.1:1".into(),
    };
    for refusal in [
        routes.write(write.clone()).await.unwrap_err(),
        cluster.member_add(add.clone()).await.unwrap_err(),
    ] {
        assert_eq!(refusal.code(), Code::PermissionDenied, "a client's call: {refusal:?}");
    }
    for wrong in replica.wrongs() {
        // What is not there at all makes a call a client's; this cannot be read.
        let header = wrong.peer.as_ref().map_or(vec![0xff], Message::encode_to_vec);
        let header = MetadataValue::from_bytes(&header);
        let mut write = forwarded::request(write.clone(), &replica.peer(), deadline);
        write.metadata_mut().insert_bin(FORWARDED, header.clone());
        let mut add = forwarded::request(add.clone(), &replica.peer(), deadline);
        add.metadata_mut().insert_bin(FORWARDED, header);
        let count = replica.refused(wrong.counted);
        wrong.is_told("Write", routes.write(write).await.map(drop));
        wrong.is_told("MemberAdd", cluster.member_add(add).await.map(drop));
        assert_eq!(replica.refused(wrong.counted), count + 2);
        assert_eq!(replica.sight(), before, "a wrong {}", wrong.counted);
    }
    let taken = routes
        .write(forwarded::request(write, &replica.peer(), deadline))
        .await
        .unwrap();
    assert_eq!(Revision(taken.into_inner().revision), Revision(before.revision.0 + 1));
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_nobody_takes_an_identity_that_is_meant_for_another_disk_or_a_second_one() {
    let replica = Replica::start().await;
    let before = replica.sight();
    let mut client = RaftClient::new(replica.channel.clone());
    let identity = replica.consensus.identity().clone();
    let adopt = proto::AdoptRequest {
        cluster_id: "that-cluster".into(),
        node_id: 9,
        to_store_uuid: identity.store_uuid.clone(),
        name: identity.name.clone(),
    };
    let found = proto::FoundRequest {
        cluster_id: "that-cluster".into(),
        founders: identity.founders.clone(),
        to_store_uuid: identity.store_uuid.clone(),
    };
    let other_store = (
        proto::AdoptRequest {
            to_store_uuid: "that-store".into(),
            ..adopt.clone()
        },
        proto::FoundRequest {
            to_store_uuid: "that-store".into(),
            ..found.clone()
        },
        ["that-store", identity.store_uuid.as_str()],
    );
    for (adopt, found, words) in [other_store, (adopt, found, ["already a member", CLUSTER])] {
        let refusals = [client.adopt(adopt).await.err(), client.found(found).await.err()];
        for refusal in refusals {
            let refusal = refusal.expect("it is refused");
            assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
            assert!(words.iter().all(|word| refusal.message().contains(word)), "{refusal:?}");
        }
        assert_eq!(replica.sight(), before);
    }
    replica.stop().await;
}

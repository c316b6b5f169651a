//! On a real log, with one voter.

use holdfast_table::HoldPolicy;
use openraft::EntryPayload;
use tempfile::TempDir;

use super::*;
use crate::consensus::types::Membership;
use crate::storage::Store;
use crate::storage::identity::Identity;
use crate::storage::log::LogStore;
use crate::storage::state_machine::StateMachine;

const SOON: Duration = Duration::from_secs(10);

fn config() -> ClusterConfig {
    ClusterConfig {
        peers: vec![PeerAddress {
            name: "r0".into(),
            address: "127.0.0.1:1".into(),
        }],
        heartbeat: ClusterConfig::HEARTBEAT,
        election_timeout: None,
        auto_replace: true,
        hold: Some(HoldPolicy::DEFAULT),
    }
}

pub fn founder() -> proto::Founder {
    proto::Founder {
        node_id: 1,
        node: Some(proto::Node {
            name: "r0".into(),
            peer_address: "127.0.0.1:1".into(),
            ..proto::Node::default()
        }),
    }
}

/// A replica with the id 1 and these founders, which has been told to initialise.
pub async fn replica(dir: &TempDir, founders: Vec<proto::Founder>) -> Consensus {
    let store = Store::open(dir.path()).unwrap();
    let identity = Identity {
        cluster_id: "c".into(),
        node_id: 1,
        founders,
        ..store.identity("r0").unwrap()
    };
    let (machine, published) = StateMachine::open(store.clone()).unwrap();
    let log = LogStore::open(store).unwrap();
    let consensus = Consensus::start(&config(), Duration::ZERO, identity, log, machine, published)
        .await
        .unwrap();
    consensus.initialize().await.unwrap();
    consensus
}

/// Returns once it leads, has applied everything, and says so: its metrics come a moment after its answers.
pub async fn leads(consensus: &Consensus) {
    let leads = consensus.metrics_when(|metrics| {
        let applied = consensus.published().load();
        metrics.state == ServerState::Leader
            && metrics.last_applied.map(|log_id| log_id.index) >= metrics.last_log_index
            && metrics.last_applied >= applied.applied
            && metrics.membership_config.log_id() == applied.membership.log_id()
    });
    timeout(SOON, leads).await.unwrap().unwrap();
}

fn configs(consensus: &Consensus) -> usize {
    consensus.metrics().membership_config.get_joint_config().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_left_half_done_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = replica(&dir, vec![founder()]).await;
    leads(&consensus).await;
    let node: Node = founder().node.unwrap().into();
    let joint = Membership::new(vec![[1].into(), [1].into()], BTreeMap::from([(1, node)])).unwrap();
    let appended = consensus.raft.append_membership(joint, EntryPayload::Blank, []).await;
    appended.unwrap();
    leads(&consensus).await;
    assert_eq!(configs(&consensus), 2);
    assert!(consensus.settled().is_err(), "no other change in the middle of one");
    assert_eq!(consensus.look_after(&config()).await.unwrap(), "");
    assert_eq!(configs(&consensus), 1);
    consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_given_once_also_after_its_replica_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = replica(&dir, vec![founder()]).await;
    leads(&consensus).await;
    for expected in 2..=4 {
        let gone = Node {
            name: "r1".into(),
            peer_address: "127.0.0.1:1".into(),
            store_uuid: format!("s{expected}"),
            ..Node::default()
        };
        // Nobody is there to take the identity, but the id is given.
        assert!(matches!(consensus.add(gone).await, Err(ChangeError::Unknown(_))));
        leads(&consensus).await;
        assert!(consensus.members().iter().any(|(id, ..)| *id == expected));
        consensus
            .change(ChangeMembers::RemoveNodes([expected].into()))
            .await
            .unwrap();
        leads(&consensus).await;
        let position = consensus.published().load();
        assert_eq!(position.state.node_id_max, expected);
        assert!(position.is_retired(expected) && !position.is_retired(expected + 1) && !position.is_retired(1));
    }
    consensus.shutdown().await;
    drop(consensus);
    let reopened = tokio::task::spawn_blocking(move || {
        loop {
            // Openraft's tasks let go of the directory a moment after they were told to.
            if let Ok(store) = Store::open(dir.path()) {
                return StateMachine::open(store).unwrap().1.load();
            }
        }
    });
    assert_eq!(timeout(SOON, reopened).await.unwrap().unwrap().state.node_id_max, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_replica_without_founders_never_forms_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = replica(&dir, Vec::new()).await;
    assert!(!consensus.raft.is_initialized().await.unwrap());
    consensus.shutdown().await;
}

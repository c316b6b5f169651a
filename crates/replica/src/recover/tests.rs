use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use futures_util::stream;
use holdfast_table::{Batch, Command, Route};
use holdfast_wire::proto;
use holdfast_wire::proto::command::Command as Content;
use openraft::async_runtime::Oneshot as _;
use openraft::storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _};
use openraft::{AsyncRuntime, TokioRuntime};
use prost::Message as _;

use super::*;
use crate::consensus::types::{Entry, LeaderId, Membership, Node, Proposal, Vote};
use crate::storage::log::LogStore;
use crate::storage::state_machine::StateMachine;

const CLUSTER: &str = "the-old-cluster";

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderId { term: 3, node_id: 2 }, index)
}

/// The entry that adds the route of user `index`; the first one is the membership.
fn entry(index: u64) -> Entry {
    let payload = match index {
        0 => {
            let nodes: BTreeMap<u64, Node> = (1..=3)
                .map(|id| {
                    let node = Node {
                        name: format!("r{}", id - 1),
                        peer_address: format!("10.0.0.{id}:7012"),
                        client_address: format!("10.0.0.{id}:7011"),
                        store_uuid: id.to_string(),
                    };
                    (id, node)
                })
                .collect();
            EntryPayload::Membership(Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).unwrap())
        }
        index => {
            let spec = format!("/user/{index}/");
            let command = Command {
                batch: Batch::put(Route::parse(&spec, "http://10.0.0.1:8888", "", "").unwrap()),
                session: Some(([7; 16], index)),
            };
            let message = proto::Command {
                command: Some(Content::Write((&command).into())),
                ..Default::default()
            };
            EntryPayload::Normal(Proposal::new(vec![message.encode_to_vec().into()]))
        }
    };
    Entry {
        log_id: log_id(index),
        payload,
    }
}

/// What a replica with so many entries leaves behind when it is killed.
async fn killed(dir: &Path, last: u64, committed: u64, applied: u64) {
    let store = Store::open(dir).unwrap();
    let identity = Identity {
        cluster_id: CLUSTER.into(),
        node_id: 2,
        ..store.identity("r1").unwrap()
    };
    store.save_identity(&identity).unwrap();
    let mut log = LogStore::open(store.clone()).unwrap();
    log.save_vote(&Vote::new(4, 1)).await.unwrap();
    let (done, wait) = <TokioRuntime as AsyncRuntime>::Oneshot::channel();
    log.append((0..=last).map(entry), IOFlushed::signal(done))
        .await
        .unwrap();
    wait.await.unwrap().unwrap();
    log.save_committed(Some(log_id(committed))).await.unwrap();
    let (mut machine, _) = StateMachine::open(store.clone()).unwrap();
    let entries = (0..=applied).map(|index| Ok((entry(index), None)));
    machine.apply(stream::iter(entries)).await.unwrap();
    store.sync().unwrap();
}

fn founder() -> Founder {
    Founder {
        name: "r1".into(),
        peer_address: "10.0.0.2:7012".into(),
        client_address: "10.0.0.2:7011".into(),
    }
}

fn open(dir: &Path) -> Survivor {
    Survivor::open(dir, WalRecovery::Strict).unwrap()
}

fn refused(dir: &Path, wal: WalRecovery) -> String {
    let error = Survivor::open(dir, wal).err().expect("it is refused");
    error.to_string()
}

/// Every file with its bytes, but RocksDB's own log and our lock.
fn image(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(image(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

fn table(dir: &Path) -> (Identity, Position) {
    let store = Store::open(dir).unwrap();
    let identity = store.written_identity().unwrap().unwrap();
    LogStore::open(store.clone()).unwrap();
    (identity, Position::stored(&store).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_shows_what_it_has_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path(), 30, 20, 12).await;
    let before = image(folder.path());
    let survivor = open(folder.path());
    let facts = survivor.facts();
    assert_eq!(
        (facts.name.as_str(), facts.node_id, facts.cluster_id.as_str()),
        ("r1", 2, CLUSTER)
    );
    let place = |index| Some(LogPlace { term: 3, index });
    assert_eq!(
        (facts.applied, facts.committed, facts.last),
        (place(12), place(20), place(30))
    );
    assert_eq!(
        (facts.entries_committed, facts.entries_uncommitted, facts.vote_term),
        (8, 10, 4)
    );
    let routes = [facts.table, facts.table_committed, facts.table_whole].map(|table| (table.revision.0, table.routes));
    assert_eq!(routes, [(12, 12), (20, 20), (30, 30)]);
    assert_eq!(facts.members.len(), 3);
    assert!(facts.members.iter().all(|member| member.voter) && facts.damage.is_none());
    // Nobody starts on it meanwhile.
    assert!(matches!(Store::open(folder.path()), Err(OpenError::Locked { .. })));
    drop(survivor);
    assert_eq!(image(folder.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_log_is_recovered_and_the_old_data_is_kept() {
    for (tail, routes, dropped) in [(Tail::Apply, 30, 0), (Tail::Discard, 20, 10)] {
        let folder = tempfile::tempdir().unwrap();
        killed(folder.path(), 30, 20, 12).await;
        let before = image(&folder.path().join("db"));
        let recovered = open(folder.path()).force_new_cluster(&founder(), &[], tail).unwrap();
        assert_eq!(
            (recovered.entries_applied, recovered.entries_dropped),
            (routes - 12, dropped)
        );
        assert_eq!((recovered.founded.routes, recovered.founded.epoch), (routes, Epoch(1)));
        assert_eq!(recovered.founded.lineage.to_vec(), [CLUSTER]);

        let (identity, position) = table(folder.path());
        assert_eq!(
            (identity.node_id, identity.cluster_id),
            (1, recovered.founded.cluster_id)
        );
        assert_eq!(position.state.table.len() as u64, routes);
        assert_eq!(position.state.table.revision(), Revision(1_000_000_000 + routes));
        assert_eq!(position.membership.nodes().count(), 1);
        // A retry of the last write is still known for what it is, and new sessions do not push it out first.
        let session = position.state.sessions.get(&[7; 16]).unwrap();
        assert_eq!(session.sequence, routes);
        assert!(session.last_used_index <= position.applied.unwrap().index);

        // The same bytes, and they can be recovered from once more.
        let kept = recovered.before.join("db");
        let after: BTreeMap<_, _> = image(&kept)
            .into_iter()
            .map(|(path, bytes)| (folder.path().join("db").join(path.strip_prefix(&kept).unwrap()), bytes))
            .collect();
        assert_eq!(after, before);
        assert_eq!(open(&recovered.before).facts().entries_uncommitted, 10);
        let again = open(folder.path())
            .force_new_cluster(&founder(), &[], Tail::Apply)
            .unwrap();
        assert_eq!(again.founded.epoch, Epoch(2));
        assert_ne!(again.before, recovered.before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_replica_an_empty_directory_and_a_blank_replica_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("r1");
    assert!(refused(&dir, WalRecovery::Strict).contains("no replica's data"));
    assert!(!dir.exists());
    let store = Store::open(&dir).unwrap();
    store.identity("r1").unwrap();
    assert!(refused(&dir, WalRecovery::Strict).contains("locked by a running replica"));
    drop(store);
    assert!(refused(&dir, WalRecovery::Strict).contains("belongs to no cluster"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_is_never_skipped() {
    for (damaged, is_tail) in [(25, true), (15, false)] {
        let folder = tempfile::tempdir().unwrap();
        killed(folder.path(), 30, 20, 12).await;
        {
            let store = Store::open(folder.path()).unwrap();
            crate::storage::log::damage(&store, damaged);
        }
        let survivor = open(folder.path());
        let facts = survivor.facts();
        let damage = facts.damage.expect("it is seen");
        assert!(damage.contains(&format!("log entry {damaged}")), "{damage}");
        assert_eq!(facts.last.unwrap().index, damaged - 1);
        let error = survivor
            .force_new_cluster(&founder(), &[], Tail::Apply)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("log entry {damaged}")), "{error}");
        assert_eq!(error.contains("--discard-uncommitted"), is_tail, "{error}");
        let discarded = open(folder.path()).force_new_cluster(&founder(), &[], Tail::Discard);
        assert_eq!(discarded.is_ok(), is_tail);
        if !is_tail {
            assert!(!folder.path().join("before-recover-1").exists());
            assert_eq!(open(folder.path()).facts().cluster_id, CLUSTER);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_was_killed_half_way_is_no_blank_replica() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path(), 30, 20, 12).await;
    let (db, old) = (folder.path().join("db"), folder.path().join("before-recover-1"));
    fs::create_dir(&old).unwrap();
    fs::rename(&db, old.join("db")).unwrap();
    let error = Store::open(folder.path()).err().unwrap().to_string();
    assert!(
        error.contains("before-recover-1") && error.contains("back into"),
        "{error}"
    );
    assert!(refused(folder.path(), WalRecovery::Strict).contains("interrupted"));
    // What it says to do.
    fs::rename(old.join("db"), &db).unwrap();
    open(folder.path())
        .force_new_cluster(&founder(), &[], Tail::Apply)
        .unwrap();
    assert_eq!(table(folder.path()).1.state.table.len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_write_ahead_log_is_read_to_the_damage_only_if_told_to() {
    // In the log entries: they are lost. In the rows that they led to: they lead there again.
    for (quarter, routes) in [(1, 0), (3, 30)] {
        let folder = tempfile::tempdir().unwrap();
        killed(folder.path(), 30, 30, 30).await;
        let files = fs::read_dir(folder.path().join("db")).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let wal = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let wal = wal.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
        let mut bytes = fs::read(&wal).unwrap();
        let at = bytes.len() / 4 * quarter;
        bytes[at] ^= 0x40;
        fs::write(&wal, &bytes).unwrap();
        let error = refused(folder.path(), WalRecovery::Strict);
        assert!(
            error.contains("is damaged") && error.contains("nothing was changed"),
            "{error}"
        );
        let survivor = Survivor::open(folder.path(), WalRecovery::PointInTime).unwrap();
        assert_eq!(survivor.facts().cluster_id, CLUSTER);
        survivor.force_new_cluster(&founder(), &[], Tail::Apply).unwrap();
        assert_eq!(table(folder.path()).1.state.table.len(), routes);
    }
}

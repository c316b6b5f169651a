//! The store as openraft wants it, and as an operator must be able to trust it.

mod crash_cut;

use std::io;

use futures_util::stream;
use holdfast_table::{Batch, Change, Command, HoldPolicy, Route, RouteSpec, State};
use holdfast_wire::proto;
use holdfast_wire::proto::command::Command as Content;
use openraft::async_runtime::Oneshot as _;
use openraft::storage::{IOFlushed, RaftLogReader as _, RaftLogStorage as _, RaftStateMachine as _};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{AsyncRuntime, EntryPayload, StorageError, TokioRuntime};
use prost::Message as _;
use tempfile::TempDir;

use super::disk::Family;
use super::log::LogStore;
use super::state_machine::{Position, StateMachine, replay};
use super::*;
use crate::consensus::types::{Entry, LeaderId, LogId, Proposal, TypeConfig, Vote};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (log, machine) = open(&dir);
        Ok((dir, log, machine))
    }
}

fn open(dir: &TempDir) -> (LogStore, StateMachine) {
    let store = Store::open(dir.path()).unwrap();
    let (machine, _) = StateMachine::open(store.clone()).unwrap();
    (LogStore::open(store).unwrap(), machine)
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderId { term: 1, node_id: 1 }, index)
}

fn entry(index: u64, spec: &str) -> Entry {
    let route = Route::parse(spec, "http://10.0.0.1:8888", "", "").unwrap();
    let command = Command {
        batch: Batch::put(route),
        session: Some(([7; 16], index)),
    };
    let message = proto::Command {
        command: Some(Content::Write((&command).into())),
        ..Default::default()
    };
    Entry {
        log_id: log_id(index),
        payload: EntryPayload::Normal(Proposal::new(vec![message.encode_to_vec().into()])),
    }
}

/// One entry of as many commands, each of which puts so many routes that no other does.
fn commands(index: u64, sizes: &[usize]) -> Entry {
    let mut names = 0..;
    let mut command = |size: usize| {
        let route = |n| Route::parse(&format!("/user/{n}/"), "http://10.0.0.1:8888", "", "").unwrap();
        let changes = names.by_ref().take(size).map(route).map(Change::Put).collect();
        let batch = Batch::new(Default::default(), changes, vec![]).unwrap();
        let message = proto::Command {
            command: Some(Content::Write((&Command { batch, session: None }).into())),
            ..Default::default()
        };
        message.encode_to_vec().into()
    };
    Entry {
        log_id: log_id(index),
        payload: EntryPayload::Normal(Proposal::new(sizes.iter().map(|size| command(*size)).collect())),
    }
}

fn put(store: &Store, family: Family, key: &[u8], value: Vec<u8>) {
    let mut batch = disk::Batch::default();
    batch.put(family, key, value);
    store.disk.write(batch).unwrap();
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (done, wait) = <TokioRuntime as AsyncRuntime>::Oneshot::channel();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    wait.await.unwrap().unwrap();
}

async fn apply(machine: &mut StateMachine, entries: Vec<Entry>) -> io::Result<()> {
    machine
        .apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None)))))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_and_applied_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<Entry> = (1..=50).map(|n| entry(n, &format!("/user/{n}/"))).collect();
    let digest = {
        let (mut log, mut machine) = open(&dir);
        append(&mut log, entries.clone()).await;
        apply(&mut machine, entries.clone()).await.unwrap();
        machine.state().table.digest()
    };
    let (mut log, machine) = open(&dir);
    assert_eq!(log.try_get_log_entries(0..100).await.unwrap(), entries);
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(50)));
    assert_eq!(
        (machine.state().table.digest(), machine.state().table.len()),
        (digest, 50)
    );
    assert_eq!(machine.state().sessions.get(&[7; 16]).unwrap().sequence, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_looks_while_an_entry_is_applied_sees_whole_commands() {
    const SIZES: [usize; 5] = [3, 2_000, 400, 1_000, 3];
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, published) = StateMachine::open(Store::open(dir.path()).unwrap()).unwrap();
    let whole: Vec<usize> = (0..=SIZES.len()).map(|n| SIZES[..n].iter().sum()).collect();
    let end = *whole.last().unwrap();
    let looker = std::thread::spawn(move || {
        loop {
            let position = published.load();
            let (routes, index) = (position.state.table.len(), position.applied.map(|log_id| log_id.index));
            assert!(whole.contains(&routes), "{routes} routes");
            assert!(routes == 0 || index == Some(1), "{routes} routes of entry {index:?}");
            if routes == end {
                return position.state.digest();
            }
        }
    });
    let entry = commands(1, &SIZES);
    let mut expected = State::default();
    let EntryPayload::Normal(proposal) = &entry.payload else {
        panic!("commands")
    };
    replay(&mut expected, 1, proposal).unwrap();
    apply(&mut machine, vec![entry]).await.unwrap();
    assert_eq!(looker.join().unwrap(), expected.digest());
    drop(machine);
    assert_eq!(open(&dir).1.state().digest(), expected.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_bounded_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _machine) = open(&dir);
    let large = |index| {
        let data = format!("{{\"x\":\"{}\"}}", "y".repeat(60_000));
        let changes = (0..100)
            .map(|n| holdfast_table::Change::Put(Route::parse(&format!("/{n}/"), "http://h:1", &data, "").unwrap()))
            .collect();
        let batch = Batch::new(Default::default(), changes, vec![]).unwrap();
        let message = proto::Command {
            command: Some(Content::Write((&Command { batch, session: None }).into())),
            ..Default::default()
        };
        Entry {
            log_id: log_id(index),
            payload: EntryPayload::Normal(Proposal::new(vec![message.encode_to_vec().into()])),
        }
    };
    append(&mut log, (1..=8).map(large).collect()).await;
    for from_disk in [false, true] {
        let mut log = if from_disk {
            LogStore::open(log.store().clone()).unwrap()
        } else {
            log.clone()
        };
        let read = log.limited_get_log_entries(1, 9).await.unwrap();
        assert!((1..8).contains(&read.len()), "{}", read.len());
        assert_eq!(log.limited_get_log_entries(8, 9).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_damaged_log_entry_is_an_error_and_never_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut log = LogStore::open(store.clone()).unwrap();
    append(&mut log, (1..=3).map(|n| entry(n, "/a/")).collect()).await;
    let mut value = store.disk.get(Family::Log, &keys::entry(2)).unwrap().unwrap();
    *value.last_mut().unwrap() ^= 1;
    put(&store, Family::Log, &keys::entry(2), value);
    let mut reopened = LogStore::open(store.clone()).unwrap();
    let error = reopened.try_get_log_entries(1..4).await.unwrap_err();
    assert!(error.to_string().contains("log entry 2: checksum"), "{error}");
    // An entry in another one's place is damage too, however well its checksum fits.
    let first = store.disk.get(Family::Log, &keys::entry(1)).unwrap().unwrap();
    put(&store, Family::Log, &keys::entry(3), first);
    assert!(LogStore::open(store).is_err());
}

/// Every row of a replica that has voted, applied, deleted and purged, with what must name it when it is damaged.
async fn rows_of_every_kind(store: &Store) -> Vec<(Family, Vec<u8>, &'static str)> {
    let mut log = LogStore::open(store.clone()).unwrap();
    let (mut machine, _) = StateMachine::open(store.clone()).unwrap();
    log.save_vote(&Vote::new(1, 1)).await.unwrap();
    let delete = |spec: &str| proto::Command {
        command: Some(Content::Write(
            (&Command {
                batch: Batch::delete(Default::default(), RouteSpec::parse(spec).unwrap()),
                session: None,
            })
                .into(),
        )),
        // A deletion counts as a loss where there is a policy.
        hold_policy: Some(HoldPolicy::DEFAULT.into()),
        ..Default::default()
    };
    let entries = vec![
        entry(1, "/user/alice/"),
        entry(2, "/user/bob/"),
        Entry {
            log_id: log_id(3),
            payload: EntryPayload::Normal(Proposal::new(vec![delete("/user/bob/").encode_to_vec().into()])),
        },
    ];
    append(&mut log, entries.clone()).await;
    log.save_committed(Some(log_id(3))).await.unwrap();
    apply(&mut machine, entries).await.unwrap();
    log.purge(log_id(1)).await.unwrap();
    let key = |spec: &str| RouteSpec::parse(spec).unwrap().key().clone();
    vec![
        (Family::Meta, keys::VOTE.to_vec(), "row vote"),
        (Family::Meta, keys::PURGED.to_vec(), "row purged"),
        (Family::Meta, keys::COMMITTED.to_vec(), "row committed"),
        (Family::Meta, keys::APPLIED.to_vec(), "row applied"),
        (
            Family::Table,
            keys::route(0, &key("/user/alice/")),
            "row route \"/user/alice",
        ),
        (
            Family::Table,
            keys::tombstone(0, &key("/user/bob/")),
            "row tombstone \"/user/bob",
        ),
        (Family::Table, keys::session(0, &[7; 16]), "row session"),
        (Family::Table, keys::loss(0, &key("/user/bob/")), "row loss \"/user/bob"),
    ]
}

/// What whoever reads the rows is told.
fn refusal(store: &Store) -> Option<String> {
    let promises = log::promises(store).err().map(|error| error.to_string());
    let position = Position::stored(store).err().map(|error| error.to_string());
    promises.or(position)
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_row_with_any_byte_changed_cut_off_or_in_another_ones_place_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let rows = rows_of_every_kind(&store).await;
    assert_eq!(refusal(&store), None);
    let read = |family, key: &[u8]| store.disk.get(family, key).unwrap().unwrap();
    for (family, key, name) in &rows {
        let good = read(*family, key);
        let mut wrong = vec![
            good[..0].to_vec(),
            good[..good.len() - 1].to_vec(),
            [&good[..], b"x"].concat(),
        ];
        for at in 0..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 1 << (at % 8);
            wrong.push(flipped);
        }
        let others = rows
            .iter()
            .filter(|(other_family, other, _)| other_family == family && other != key);
        wrong.extend(others.map(|(family, other, _)| read(*family, other)));
        for wrong in wrong {
            put(&store, *family, key, wrong);
            let error = refusal(&store).unwrap_or_else(|| panic!("believed another {name}"));
            assert!(error.contains(name), "{name}: {error}");
        }
        put(&store, *family, key, good);
    }
    assert_eq!(refusal(&store), None);
}

#[test]
fn a_directory_of_another_format_is_told_from_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let identity = store.identity("r0").unwrap();
    // In the first format, rows had no checksums.
    put(
        &store,
        Family::Meta,
        keys::VOTE,
        proto::Ballot::default().encode_to_vec(),
    );
    store
        .save_identity(&identity::Identity { format: 1, ..identity })
        .unwrap();
    let error = store.identity("r0").unwrap_err().to_string();
    assert!(error.contains("has format 1, this version reads format 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_table_that_is_not_what_its_digest_says_refuses_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (mut machine, _) = StateMachine::open(store.clone()).unwrap();
    apply(&mut machine, vec![entry(1, "/user/alice/"), entry(2, "/user/bob/")])
        .await
        .unwrap();
    let key = holdfast_table::RouteSpec::parse("/user/bob/").unwrap();
    let other = proto::Route::from(&Route::parse("/user/bob/", "http://10.6.6.6:1", "", "").unwrap());
    let row = keys::route(0, key.key());
    let good = store.disk.get(Family::Table, &row).unwrap().unwrap();
    put(&store, Family::Table, &row, sealed(&row, &other));
    let error = StateMachine::open(store.clone())
        .err()
        .expect("another target is damage")
        .to_string();
    assert!(error.contains("is damaged") && error.contains("digest"), "{error}");
    let mut gone = disk::Batch::default();
    gone.delete(Family::Table, row.clone());
    store.disk.write(gone).unwrap();
    assert!(StateMachine::open(store.clone()).is_err(), "a missing route is damage");
    put(&store, Family::Table, &row, good);
    assert!(StateMachine::open(store).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_snapshot_replaces_everything_and_is_there_after_a_restart() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_log, mut leader) = open(&source);
    apply(
        &mut leader,
        (1..=12_000).map(|n| entry(n, &format!("/user/{n}/"))).collect(),
    )
    .await
    .unwrap();
    let snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
    let digest = leader.state().table.digest();
    {
        let (_log, mut follower) = open(&target);
        apply(&mut follower, vec![entry(1, "/stale/")]).await.unwrap();
        follower
            .install_snapshot(&snapshot.meta, snapshot.snapshot)
            .await
            .unwrap();
        assert_eq!(follower.state().table.digest(), digest);
    }
    let (_log, mut follower) = open(&target);
    assert_eq!(follower.state().table.digest(), digest);
    assert_eq!(follower.applied_state().await.unwrap().0, Some(log_id(12_000)));
    apply(&mut follower, vec![entry(12_001, "/after/")]).await.unwrap();
    drop((_log, follower));
    assert_eq!(open(&target).1.state().table.len(), 12_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_first_snapshot_left_is_not_in_the_next_one() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_log, mut leader) = open(&source);
    apply(&mut leader, vec![entry(1, "/user/alice/")]).await.unwrap();
    let snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
    let store = Store::open(target.path()).unwrap();
    let gone = Route::parse("/user/gone/", "http://10.0.0.1:8888", "", "").unwrap();
    let row = keys::route(1, gone.spec.key());
    put(&store, Family::Table, &row, proto::Route::from(&gone).encode_to_vec());
    let (mut follower, _) = StateMachine::open(store.clone()).unwrap();
    follower
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
    assert_eq!(follower.state().table.len(), 1);
    let (reopened, _) = StateMachine::open(store).unwrap();
    assert_eq!(reopened.state().table.digest(), leader.state().table.digest());
}

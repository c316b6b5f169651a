use std::fs;

use holdfast_table::{Batch, Command, Entry, Route, Stamp};

use super::*;
use crate::backup::tests::{description, encoded, state};
use crate::storage::offline::WalRecovery;

fn founder() -> Founder {
    Founder {
        name: "r0".into(),
        peer_address: "10.0.0.1:7012".into(),
        client_address: "10.0.0.1:7011".into(),
    }
}

fn origin(routes: u64) -> Origin {
    crate::backup::read(&encoded(&state(routes))[..]).unwrap().into()
}

/// What is in a directory, at any depth.
fn listing(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        found.push(entry.path());
        found.extend(listing(&entry.path()));
    }
    found.sort();
    found
}

#[test]
fn a_restored_directory_is_a_new_clusters_only_member() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("some/where/r0");
    let state = state(400);
    let origin = origin(400);
    let founded = restore(origin, &[], &dir, &founder()).unwrap();
    assert_ne!(founded.cluster_id, description(&state).cluster_id);
    assert_eq!(founded.epoch, Epoch(state.table.epoch().0 + 1));
    assert_eq!(founded.revision, Revision(state.table.revision().0 + 1_000_000_000));
    assert_eq!(
        founded.lineage.to_vec(),
        ["the-first", "the-second", "the-third"].map(str::to_owned)
    );

    let store = Store::open(&dir).unwrap();
    let identity = store.identity("r0").unwrap();
    assert_eq!((identity.node_id, identity.cluster_id), (1, founded.cluster_id.clone()));
    assert!(identity.founders.is_empty() && !identity.store_uuid.is_empty());
    let (_, published) = StateMachine::open(store.clone()).unwrap();
    let position = published.load();
    let table = &position.state.table;
    assert_eq!(table.sorted(), state.table.sorted());
    assert_eq!((table.epoch(), table.revision()), (founded.epoch, founded.revision));
    assert_eq!(table.digest(), founded.digest);
    assert_eq!(position.state.lineage, founded.lineage);
    assert_eq!(position.state.sessions.len(), state.sessions.len());
    assert!(!position.state.holds.is_empty());
    assert_eq!(position.state.holds.digest(), state.holds.digest());
    assert_eq!(
        position.state.holds.losses().iter().collect::<Vec<_>>(),
        state.holds.losses().iter().collect::<Vec<_>>()
    );
    assert_eq!(position.state.node_id_max, 1);
    // What the old cluster's subscribers may ask for is not known any more: they get a snapshot.
    assert!(position.state.history.since(state.table.revision(), table).is_none());
    assert!(
        position
            .state
            .history
            .since(founded.revision, table)
            .unwrap()
            .is_empty()
    );
    let members: Vec<_> = position
        .membership
        .nodes()
        .map(|(id, node)| (*id, node.clone()))
        .collect();
    assert_eq!(members.len(), 1);
    assert_eq!((members[0].0, members[0].1.name.as_str()), (1, "r0"));
    assert_eq!(members[0].1.store_uuid, identity.store_uuid);

    // Two restores of one backup are two clusters.
    let other = restore(self::origin(400), &[], &folder.path().join("again"), &founder()).unwrap();
    assert_ne!(other.cluster_id, founded.cluster_id);
}

#[test]
fn nothing_but_the_directory_is_left_of_a_restore() {
    let folder = tempfile::tempdir().unwrap();
    restore(origin(10), &[], folder.path(), &founder()).unwrap();
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["db", "replica.lock"]);
}

#[test]
fn an_older_backup_can_take_over_from_the_clusters_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let predecessors = [
        Predecessor {
            cluster_id: "the-fourth".into(),
            epoch: Epoch(7),
        },
        Predecessor {
            cluster_id: "the-fifth".into(),
            epoch: Epoch(4),
        },
    ];
    let founded = restore(origin(10), &predecessors, folder.path(), &founder()).unwrap();
    assert_eq!(founded.epoch, Epoch(8));
    assert!(
        ["the-third", "the-fourth", "the-fifth"]
            .iter()
            .all(|id| founded.lineage.contains(id))
    );
}

#[test]
fn a_directory_that_is_not_empty_or_in_use_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("r0");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("notes.txt"), "mine").unwrap();
    let error = restore(origin(10), &[], &dir, &founder()).unwrap_err().to_string();
    assert!(
        error.contains("not empty") && error.contains("notes.txt") && error.contains("r0"),
        "{error}"
    );
    assert_eq!(listing(&dir), [dir.join("notes.txt")]);
    fs::remove_file(dir.join("notes.txt")).unwrap();

    // A volume that was just made.
    fs::create_dir(dir.join("lost+found")).unwrap();
    restore(origin(10), &[], &dir, &founder()).unwrap();
    let error = restore(origin(10), &[], &dir, &founder()).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    let running = Store::open(&dir).unwrap();
    let error = restore(origin(10), &[], &dir, &founder()).unwrap_err().to_string();
    assert!(error.contains("locked by a running replica"), "{error}");
    drop(running);

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(restore(origin(10), &[], &file.join("r0"), &founder()).is_err());
    assert!(file.is_file());
}

#[test]
fn a_restore_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a/b/r0");
    let mut far = origin(10);
    let entries: Vec<Entry> = far.state.table.iter().map(|entry| entry.as_ref().clone()).collect();
    far.state.table = Table::from_entries(Epoch(u64::MAX), Revision(5), entries.clone());
    let error = restore(far.clone(), &[], &dir, &founder()).unwrap_err().to_string();
    assert!(error.contains("epoch 18446744073709551615"), "{error}");
    far.state.table = Table::from_entries(Epoch(1), Revision(u64::MAX - 1_500_000_000), entries);
    let error = restore(far, &[], &dir, &founder()).unwrap_err().to_string();
    assert!(error.contains("revision"), "{error}");
    assert_eq!(listing(folder.path()), Vec::<PathBuf>::new());

    // Given up half-way: everything that it made is gone, and nothing else.
    fs::create_dir(folder.path().join("a")).unwrap();
    let building = Building::in_empty(&dir).unwrap();
    Store::open(&building.path()).unwrap();
    assert!(matches!(Store::open(&dir), Err(OpenError::Locked { .. })));
    drop(building);
    assert_eq!(listing(folder.path()), [folder.path().join("a")]);
}

#[test]
fn a_restore_that_was_killed_half_way_is_no_blank_replica() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("building.tmp")).unwrap();
    for error in [
        Store::open(folder.path()).err().unwrap(),
        Store::open_to_read(folder.path(), WalRecovery::Strict).err().unwrap(),
    ] {
        assert!(matches!(error, OpenError::Interrupted { .. }), "{error}");
    }
    // And is simply done again.
    restore(origin(10), &[], folder.path(), &founder()).unwrap();
    assert!(Store::open(folder.path()).is_ok());
}

#[test]
fn a_proxys_table_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let route = Route::parse("/user/alice/", "http://10.0.0.1:1", "", "").unwrap();
    let mut held = State::default();
    let batch = Batch::put(route);
    held.apply(1, &Stamp::default(), &Command { batch, session: None });
    let origin = Origin::from_table("the-cluster".into(), held.table.clone());
    let founded = restore(origin, &[], folder.path(), &founder()).unwrap();
    assert_eq!(founded.lineage.to_vec(), ["the-cluster"]);
    assert_eq!((founded.epoch, founded.revision), (Epoch(1), Revision(1_000_000_001)));
    let store = Store::open(folder.path()).unwrap();
    let (_, published) = StateMachine::open(store).unwrap();
    assert_eq!(published.load().state.table.sorted(), held.table.sorted());
}

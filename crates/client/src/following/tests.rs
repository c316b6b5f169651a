use super::*;
use crate::testing::{bookmark, chunk, delta, entry, hello as hello_frame, snapshot, table};
use holdfast_wire::proto::hello::Mode;

const CLUSTER: &str = "c-1";

fn holding(table: Table) -> Following {
    let mut following = Following::new(Some(Held {
        cluster_id: CLUSTER.into(),
        table,
    }));
    following.start("p0", true);
    following
}

fn take(following: &mut Following, frame: Frame) -> Result<Step, Breach> {
    following.take(frame, Instant::now())
}

fn take_all(following: &mut Following, frames: Vec<Frame>) -> Result<(), Breach> {
    frames
        .into_iter()
        .try_for_each(|frame| take(following, frame).map(drop))
}

fn position(following: &Following) -> Option<(u64, u64, Digest)> {
    let table = &following.held()?.table;
    Some((table.epoch().0, table.revision().0, table.digest()))
}

fn at(table: &Table) -> Option<(u64, u64, Digest)> {
    Some((table.epoch().0, table.revision().0, table.digest()))
}

#[test]
fn without_a_table_any_cluster_is_taken_and_followed() {
    let mut following = Following::new(None);
    let start = following.start("p0", true);
    assert!(!start.has_table && start.proxy && start.name == "p0");
    take_all(&mut following, snapshot(CLUSTER, &table(1, 5))).unwrap();
    assert!(matches!(take(&mut following, delta(5, 9)), Ok(Step::Moved)));
    let agreed = take(&mut following, bookmark(Revision(9), table(1, 9).digest()));
    assert!(
        matches!(agreed, Ok(Step::Agreed { leader_known: true, .. })),
        "{agreed:?}"
    );
    assert_eq!(position(&following), at(&table(1, 9)));

    let start = following.start("p0", true);
    assert_eq!(
        (start.has_table, start.cluster_id.as_str(), start.epoch, start.revision),
        (true, CLUSTER, 1, 9)
    );
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_table_stays() {
    type Damage = fn(&mut SnapshotChunk);
    let damages: [(&str, Damage); 6] = [
        ("checksum", |chunk| chunk.checksum ^= 1),
        ("decompress", |chunk| {
            chunk.routes = vec![1, 2, 3].into();
            chunk.checksum = crc32fast::hash(&chunk.routes);
        }),
        ("is no list", |chunk| {
            chunk.routes = zstd::bulk::compress(&[0xff; 40], 1).unwrap().into();
            chunk.checksum = crc32fast::hash(&chunk.routes);
        }),
        ("routes", |chunk| chunk.total += 1),
        ("digest", |chunk| {
            chunk.digest = Digest::default().to_bytes().to_vec().into()
        }),
        ("32 bytes", |chunk| chunk.digest = Default::default()),
    ];
    for (what, damage) in damages {
        let mut following = holding(table(1, 3));
        let mut frames = snapshot(CLUSTER, &table(1, 8));
        match frames.last_mut() {
            Some(Frame::SnapshotChunk(chunk)) => damage(chunk),
            other => panic!("{other:?}"),
        }
        let breach = take_all(&mut following, frames).unwrap_err();
        assert!(breach.to_string().contains(what), "{what}: {breach}");
        assert!(breach.is_alarming());
        assert_eq!(position(&following), at(&table(1, 3)));
    }
}

#[test]
fn a_chunk_that_grows_beyond_its_bound_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; CHUNK_BYTES_MAX as usize + 2], 1).unwrap();
    let bomb = SnapshotChunk {
        checksum: crc32fast::hash(&bomb),
        routes: bomb.into(),
        ..SnapshotChunk::default()
    };
    let mut following = Following::new(None);
    let frames = vec![hello_frame(Mode::Snapshot, CLUSTER, 1, 1), Frame::SnapshotChunk(bomb)];
    assert!(matches!(take_all(&mut following, frames), Err(Breach::Damaged(_))));
}

#[test]
fn a_route_twice_or_unreadable_is_refused() {
    let twice = RouteList {
        routes: vec![(&entry("/a/", 1)).into(), (&entry("/a/", 1)).into()],
    };
    let mut unreadable = twice.clone();
    unreadable.routes[0].target = "javascript:1".into();
    for list in [twice, unreadable] {
        let mut last = chunk(list, Some(&table(1, 2)));
        last.total = 2;
        let frames = vec![hello_frame(Mode::Snapshot, CLUSTER, 1, 2), Frame::SnapshotChunk(last)];
        let mut following = Following::new(None);
        assert!(matches!(
            take_all(&mut following, frames),
            Err(Breach::Damaged(_) | Breach::Unreadable(_))
        ));
        assert!(following.held().is_none());
    }
}

#[test]
fn another_cluster_is_refused_at_its_hello() {
    for mode in [Mode::Snapshot, Mode::Resume] {
        let mut following = holding(table(1, 3));
        let breach = take(&mut following, hello_frame(mode, "c-2", 9, 9)).unwrap_err();
        assert!(matches!(breach, Breach::OtherCluster { .. }) && breach.is_alarming());
        assert_eq!(position(&following), at(&table(1, 3)));
    }
}

/// A snapshot of a cluster that descends from `ancestors`.
fn restored(cluster_id: &str, ancestors: &[&str], table: &Table) -> Vec<Frame> {
    let mut frames = snapshot(cluster_id, table);
    if let Some(Frame::Hello(hello)) = frames.first_mut() {
        hello.lineage = ancestors.iter().map(|id| (*id).to_owned()).collect();
    }
    frames
}

#[test]
fn a_restored_cluster_is_followed_for_good() {
    let mut following = holding(table(1, 9));
    // What it holds is not older by revision alone: a backup is older than what its cluster did last.
    take_all(&mut following, restored("c-2", &["c-0", CLUSTER], &table(2, 4))).unwrap();
    assert_eq!(position(&following), at(&table(2, 4)));
    let start = following.start("p0", true);
    assert_eq!((start.cluster_id.as_str(), start.epoch, start.revision), ("c-2", 2, 4));

    // The old cluster is refused from then on, whatever epoch it claims.
    for (epoch, lineage) in [(1, vec![]), (2, vec![]), (9, vec!["c-0"])] {
        let breach = take_all(&mut following, restored(CLUSTER, &lineage, &table(epoch, 99))).unwrap_err();
        assert!(matches!(breach, Breach::OtherCluster { .. }), "{breach}");
        assert_eq!(position(&following), at(&table(2, 4)));
        following.start("p0", true);
    }
    take(&mut following, hello_frame(Mode::Resume, "c-2", 2, 4)).unwrap();
    take(&mut following, delta(4, 5)).unwrap();
    assert_eq!(position(&following), at(&table(2, 5)));
}

#[test]
fn a_cluster_that_only_says_that_it_comes_later_is_refused() {
    for (ancestors, epoch) in [
        (vec![], 9),
        (vec!["c-0", "c-3"], 9),
        (vec![""], 9),
        // Two clusters made from the same one have the same epoch: the first that was taken stays.
        (vec![CLUSTER], 3),
        (vec![CLUSTER], 2),
        (vec![CLUSTER], 0),
    ] {
        for mode in [Mode::Snapshot, Mode::Resume] {
            let mut following = holding(table(3, 9));
            let mut frames = restored("c-2", &ancestors, &table(epoch, 1_000));
            if let Some(Frame::Hello(hello)) = frames.first_mut() {
                hello.mode = mode.into();
            }
            let breach = take_all(&mut following, frames).unwrap_err();
            assert!(
                matches!(breach, Breach::OtherCluster { .. } | Breach::NotAhead { .. }) && breach.is_alarming(),
                "{breach}"
            );
            assert_eq!(position(&following), at(&table(3, 9)));
            assert_eq!(following.start("p0", true).cluster_id, CLUSTER);
        }
    }
}

#[test]
fn a_restored_cluster_is_not_taken_half() {
    let mut following = holding(table(1, 9));
    let mut frames = restored("c-2", &[CLUSTER], &table(2, 4));
    match frames.last_mut() {
        Some(Frame::SnapshotChunk(chunk)) => chunk.checksum ^= 1,
        other => panic!("{other:?}"),
    }
    let breach = take_all(&mut following, frames).unwrap_err();
    assert!(matches!(breach, Breach::Damaged(_)), "{breach}");
    let start = following.start("p0", true);
    assert_eq!(
        (start.cluster_id.as_str(), start.epoch, start.revision),
        (CLUSTER, 1, 9)
    );

    // Nor is it gone on from where the old one was: only a whole table will do.
    let mut hello = restored("c-2", &[CLUSTER], &table(2, 9)).swap_remove(0);
    if let Frame::Hello(hello) = &mut hello {
        hello.mode = Mode::Resume.into();
    }
    let breach = take(&mut following, hello).unwrap_err();
    assert!(matches!(breach, Breach::ResumesElsewhere { .. }), "{breach}");
    assert_eq!(position(&following), at(&table(1, 9)));
}

#[test]
fn nothing_older_is_taken_and_a_higher_epoch_is() {
    for (epoch, revision) in [(2, 6), (1, 100), (0, 7)] {
        let mut following = holding(table(2, 7));
        let breach = take_all(&mut following, snapshot(CLUSTER, &table(epoch, revision))).unwrap_err();
        assert!(matches!(breach, Breach::Older { .. }), "{breach}");
        assert_eq!(position(&following), at(&table(2, 7)));
    }
    let mut following = holding(table(2, 7));
    take_all(&mut following, snapshot(CLUSTER, &table(3, 2))).unwrap();
    assert_eq!(position(&following), at(&table(3, 2)));
}

#[test]
fn a_gap_is_refused_wherever_it_shows() {
    let gaps = [
        hello_frame(Mode::Resume, CLUSTER, 1, 4),
        delta(4, 6),
        delta(2, 6),
        delta(3, 3),
        bookmark(Revision(4), table(1, 4).digest()),
    ];
    for gap in gaps {
        let mut following = holding(table(1, 3));
        if !matches!(gap, Frame::Hello(_)) {
            take(&mut following, hello_frame(Mode::Resume, CLUSTER, 1, 3)).unwrap();
        }
        take(&mut following, gap.clone()).expect_err(&format!("{gap:?}"));
        assert_eq!(position(&following), at(&table(1, 3)));
        // The stream is over: what follows a gap is not looked at.
        take(&mut following, delta(3, 4)).unwrap_err();
        assert!(following.start("p0", true).has_table);
    }
}

#[test]
fn after_a_digest_mismatch_only_a_fresh_snapshot_will_do() {
    let mut following = holding(table(1, 3));
    take(&mut following, hello_frame(Mode::Resume, CLUSTER, 1, 3)).unwrap();
    let breach = take(&mut following, bookmark(Revision(3), table(1, 2).digest())).unwrap_err();
    assert!(matches!(breach, Breach::Digest { .. }) && breach.is_alarming());

    let start = following.start("p0", true);
    assert_eq!(
        (start.has_table, start.cluster_id.as_str(), start.revision),
        (false, CLUSTER, 3)
    );
    take(&mut following, hello_frame(Mode::Resume, CLUSTER, 1, 3)).unwrap_err();

    following.start("p0", true);
    take_all(&mut following, snapshot(CLUSTER, &table(1, 2))).unwrap_err();
    assert_eq!(position(&following), at(&table(1, 3)));

    following.start("p0", true);
    take_all(&mut following, snapshot(CLUSTER, &table(1, 3))).unwrap();
    assert!(following.start("p0", true).has_table);
}

/// A snapshot without routes, of a replica with this name.
fn emptied(replica: &str, epoch: u64, revision: u64) -> Vec<Frame> {
    let mut frames = snapshot(CLUSTER, &Table::from_entries(Epoch(epoch), Revision(revision), []));
    if let Some(Frame::Hello(hello)) = frames.first_mut() {
        hello.replica = replica.into();
    }
    frames
}

#[test]
fn that_every_route_is_gone_is_believed_of_two_replicas_and_of_none_at_the_same_revision() {
    let empty = Table::from_entries(Epoch(1), Revision(4), []);
    let mut following = holding(table(1, 3));
    for replica in ["r0", "r1", "r2"] {
        let breach = take_all(&mut following, emptied(replica, 1, 3)).unwrap_err();
        assert_eq!(breach, Breach::Emptied { routes: 3 });
        following.start("p0", true);
    }
    for _ in 0..3 {
        let breach = take_all(&mut following, emptied("r0", 1, 4)).unwrap_err();
        assert_eq!(breach, Breach::Unconfirmed { routes: 3 });
        assert!(breach.is_alarming());
        assert_eq!(position(&following), at(&table(1, 3)));
        assert_eq!(following.start("p0", true).revision, 3);
    }
    take_all(&mut following, emptied("r1", 1, 4)).unwrap();
    assert_eq!(position(&following), at(&empty));
}

#[test]
fn where_there_is_no_other_replica_one_is_believed_that_goes_on_saying_so() {
    let mut following = holding(table(1, 3));
    let first = Instant::now();
    let mut told = |after: Duration| {
        following.start("p0", true);
        let mut frames = emptied("r0", 2, 1).into_iter();
        frames.try_for_each(|frame| following.take(frame, first + after).map(drop))
    };
    for after in [
        Duration::ZERO,
        Duration::from_secs(1),
        EMPTY_AFTER - Duration::from_millis(1),
    ] {
        assert_eq!(told(after), Err(Breach::Unconfirmed { routes: 3 }), "{after:?}");
    }
    assert_eq!(told(EMPTY_AFTER), Ok(()));
    assert_eq!(
        position(&following),
        at(&Table::from_entries(Epoch(2), Revision(1), []))
    );
}

#[test]
fn a_replica_that_is_wrong_is_believed_no_sooner_for_having_been_wrong_before() {
    let ways_on = [
        vec![hello_frame(Mode::Resume, CLUSTER, 1, 3)],
        snapshot(CLUSTER, &table(1, 3)),
    ];
    for way_on in ways_on {
        let mut following = holding(table(1, 3));
        take_all(&mut following, emptied("r1", 1, 4)).unwrap_err();
        following.start("p0", true);
        take_all(&mut following, way_on).unwrap();
        for _ in 0..2 {
            following.start("p0", true);
            let breach = take_all(&mut following, emptied("r2", 1, 4)).unwrap_err();
            assert_eq!(breach, Breach::Unconfirmed { routes: 3 });
        }
    }
}

#[test]
fn routes_that_are_deleted_by_name_need_no_second_word() {
    let mut following = holding(table(1, 3));
    take(&mut following, hello_frame(Mode::Resume, CLUSTER, 1, 3)).unwrap();
    let delta = proto::Delta {
        from_revision: 3,
        to_revision: 4,
        puts: Vec::new(),
        deletes: (1..=3).map(|n| format!("/user/{n}/")).collect(),
    };
    take(&mut following, Frame::Delta(delta.encode_to_vec().into())).unwrap();
    assert_eq!(
        position(&following),
        at(&Table::from_entries(Epoch(1), Revision(4), []))
    );
}

#[test]
fn a_snapshot_in_the_middle_of_a_stream_is_taken_unless_it_is_older() {
    let mut following = holding(table(1, 3));
    take(&mut following, hello_frame(Mode::Resume, CLUSTER, 1, 3)).unwrap();
    take(&mut following, delta(3, 4)).unwrap();
    take_all(&mut following, snapshot(CLUSTER, &table(1, 9))).unwrap();
    assert_eq!(position(&following), at(&table(1, 9)));
    take(&mut following, delta(9, 10)).unwrap();
    let older = take_all(&mut following, snapshot(CLUSTER, &table(1, 8)));
    assert!(matches!(older, Err(Breach::Older { .. })), "{older:?}");
    assert_eq!(position(&following), at(&table(1, 10)));
}

#[test]
fn frames_out_of_place_are_refused() {
    let bookmark = bookmark(Revision(3), table(1, 3).digest());
    let resume = hello_frame(Mode::Resume, CLUSTER, 1, 3);
    let chunk = snapshot(CLUSTER, &table(1, 4)).pop().unwrap();
    for frames in [
        vec![delta(3, 4)],
        vec![bookmark],
        vec![chunk.clone()],
        vec![resume.clone(), resume.clone()],
        vec![resume, chunk],
        vec![hello_frame(Mode::Snapshot, CLUSTER, 1, 4), delta(3, 4)],
        vec![hello_frame(Mode::Unspecified, CLUSTER, 1, 3)],
        vec![hello_frame(Mode::Resume, "", 1, 3)],
    ] {
        let mut following = holding(table(1, 3));
        take_all(&mut following, frames).unwrap_err();
        assert_eq!(position(&following), at(&table(1, 3)));
    }
}

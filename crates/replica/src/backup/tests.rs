use std::io::Cursor;

use holdfast_table::{Batch, Change, Command, HoldPolicy, Namespace, Route, RouteSpec, Stamp};

use super::*;

/// A state with routes, deletions, sessions and ancestors; from 40 routes on, a third of them is held.
pub(crate) fn state(routes: u64) -> State {
    let mut state = State {
        lineage: Lineage::default().and("the-first").and("the-second"),
        ..State::default()
    };
    for n in 0..routes {
        let data = format!(r#"{{"user": "user-{n}"}}"#);
        let target = format!("http://10.0.{}.{}:8888", n / 250 % 250, n % 250);
        let route = Route::parse(&format!("/user/user-{n}/"), &target, &data, "").unwrap();
        let session = Some(([(n % 5) as u8; 16], n / 5 + 1));
        let batch = Batch::put(route);
        state.apply(n + 1, &Stamp::default(), &Command { batch, session });
    }
    for n in 0..routes / 10 {
        let spec = RouteSpec::parse(&format!("/user/user-{n}/")).unwrap();
        let batch = Batch::delete(Namespace::default(), spec);
        state.apply(routes + n + 1, &Stamp::default(), &Command { batch, session: None });
    }
    if routes >= 40 {
        let spec = |n: u64| RouteSpec::parse(&format!("/user/user-{n}/")).unwrap();
        let deletes = (routes / 3 * 2..routes).map(|n| Change::Delete(spec(n)));
        let batch = Batch::new(Namespace::default(), deletes.collect(), vec![]).unwrap();
        let stamp = Stamp {
            time_ms: 1_700_000_000_000,
            policy: Some(HoldPolicy::DEFAULT),
        };
        state.apply(2 * routes, &stamp, &Command { batch, session: None });
        assert!(!state.holds.is_empty());
    }
    state
}

pub(crate) fn description(state: &State) -> Description {
    Description {
        version: "0.1.0".into(),
        cluster_id: "the-third".into(),
        lineage: state.lineage.clone(),
        epoch: state.table.epoch(),
        revision: state.table.revision(),
        digest: state.table.digest(),
        routes: state.table.len() as u64,
        applied_index: 1_000,
        created_ms: 1_700_000_000_000,
        replica: "r1".into(),
        linearizable: true,
        leader_contact_age: Some(Duration::from_millis(12)),
    }
}

/// The pieces of a good backup, as they are streamed: header, parts, trailer.
fn pieces(state: &State) -> Vec<Bytes> {
    encode(&description(state), state).collect::<Result<_, _>>().unwrap()
}

pub(crate) fn encoded(state: &State) -> Vec<u8> {
    pieces(state).concat()
}

fn decoded(bytes: &[u8]) -> Result<Backup, BackupError> {
    read(Cursor::new(bytes))
}

/// Puts new checksums over frames that were tampered with, so that something deeper has to find it.
fn resealed(frames: Vec<Frame>) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &FORMAT.to_le_bytes()].concat();
    for mut frame in frames {
        if let Frame::Trailer(trailer) = &mut frame {
            trailer.checksum = blake3::hash(&bytes).as_bytes().to_vec().into();
        }
        write_frame(&mut bytes, frame);
    }
    bytes
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut reading = Reading {
        from: Cursor::new(bytes),
        at: 0,
        hasher: blake3::Hasher::new(),
    };
    reading.begin().unwrap();
    std::iter::from_fn(|| reading.frame("parts").ok())
        .map(|(_, frame)| frame)
        .collect()
}

#[test]
fn a_backup_is_the_state_with_its_sessions_holds_and_ancestors() {
    for routes in [0, 1, 200, 30_000] {
        let state = state(routes);
        let bytes = encoded(&state);
        let backup = decoded(&bytes).unwrap();
        assert_eq!(backup.description, description(&state));
        assert_eq!(backup.bytes, bytes.len() as u64);
        assert_eq!(backup.state.table.sorted(), state.table.sorted());
        assert_eq!(backup.state.table.digest(), state.table.recompute_digest());
        assert_eq!(backup.state.digest(), state.digest(), "what is held, too");
        assert_eq!(
            backup.state.holds.losses().iter().count(),
            state.holds.losses().iter().count()
        );
        assert_eq!(backup.state.lineage, state.lineage);
        let sessions = |state: &State| {
            state
                .sessions
                .iter()
                .map(|(id, s)| (*id, s.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(sessions(&backup.state), sessions(&state));
    }
    assert!(pieces(&state(30_000)).len() > 3, "a large state has several parts");
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = encoded(&state(40));
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let error = decoded(&flipped).expect_err(&format!("byte {at} bit {bit}"));
            match (at, &error) {
                (0..8, BackupError::Foreign { .. }) | (8..12, BackupError::Format { .. }) => {}
                // A length that grew leads beyond the end.
                (12.., BackupError::Damaged { .. } | BackupError::Truncated { .. }) => {}
                (at, error) => panic!("byte {at} bit {bit}: {error}"),
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_a_large_one_is_found_and_its_place_is_named() {
    let pieces = pieces(&state(30_000));
    let bytes = pieces.concat();
    let mut begin = 0;
    for (number, piece) in pieces.iter().enumerate() {
        let skip = if number == 0 { 12 } else { 0 };
        for at in [
            skip,
            skip + 4,
            skip + 8,
            skip + (piece.len() - skip) / 2,
            piece.len() - 1,
        ] {
            let mut flipped = bytes.clone();
            flipped[begin + at] ^= 0x10;
            match decoded(&flipped).unwrap_err() {
                BackupError::Damaged { at, .. } => assert_eq!(at, (begin + skip) as u64),
                BackupError::Truncated { .. } if at == skip => {}
                error => panic!("piece {number} byte {at}: {error}"),
            }
        }
        begin += piece.len();
    }
}

#[test]
fn a_file_that_was_cut_off_anywhere_is_refused() {
    let pieces = pieces(&state(40));
    let bytes = pieces.concat();
    for end in 0..bytes.len() {
        let error = decoded(&bytes[..end]).expect_err(&format!("cut at {end}"));
        assert!(
            matches!(error, BackupError::Truncated { at, .. } if at == end as u64),
            "cut at {end}: {error}"
        );
    }
    // At every boundary of a large one.
    let pieces = self::pieces(&state(30_000));
    for kept in 0..pieces.len() {
        let error = decoded(&pieces[..kept].concat()).unwrap_err();
        assert!(matches!(error, BackupError::Truncated { .. }), "{kept} pieces: {error}");
    }
}

#[test]
fn pieces_lost_doubled_swapped_or_added_are_found() {
    let pieces = pieces(&state(30_000));
    let last = pieces.len() - 1;
    for at in 0..last {
        let mut lost = pieces.clone();
        lost.remove(at);
        assert!(decoded(&lost.concat()).is_err(), "without piece {at}");
        let mut doubled = pieces.clone();
        doubled.insert(at, pieces[at].clone());
        assert!(decoded(&doubled.concat()).is_err(), "piece {at} twice");
        let mut swapped = pieces.clone();
        swapped.swap(at, at + 1);
        assert!(decoded(&swapped.concat()).is_err(), "piece {at} after the next one");
    }
    for more in [&[0][..], b"HFBACKUP", &pieces[last]] {
        let error = decoded(&[&pieces.concat(), more].concat()).unwrap_err();
        assert!(error.to_string().contains("something follows"), "{error}");
    }
}

#[test]
fn foreign_and_newer_files_are_told_apart() {
    for foreign in [&b"HOLDFAST\x01\x00\x00\x00"[..], b"{\"routes\": {}}", b"HFBACKUQ", b"x"] {
        let error = decoded(foreign).unwrap_err();
        assert!(matches!(error, BackupError::Foreign { .. }), "{foreign:?}: {error}");
    }
    let bytes = encoded(&state(3));
    for format in [0, 2, u32::MAX] {
        let mut other = bytes.clone();
        other[8..12].copy_from_slice(&format.to_le_bytes());
        let error = decoded(&other).unwrap_err();
        assert!(
            matches!(error, BackupError::Format { found } if found == format),
            "{error}"
        );
        assert!(error.to_string().contains(&format.to_string()), "{error}");
    }
}

#[test]
fn a_header_that_speaks_of_another_state_is_refused_with_all_checksums_right() {
    let good = frames(&encoded(&state(40)));
    assert!(decoded(&resealed(good.clone())).is_ok());
    type Lie = fn(&mut proto::BackupHeader);
    let lies: [(&str, Lie); 7] = [
        ("epoch", |header| header.epoch += 1),
        ("revision", |header| header.revision += 1),
        ("routes", |header| header.routes += 1),
        ("digest", |header| header.digest = vec![7; 32].into()),
        ("32 bytes", |header| header.digest = vec![7; 31].into()),
        ("no cluster", |header| header.cluster_id.clear()),
        ("lineage", |header| drop(header.lineage.pop())),
    ];
    for (what, lie) in lies {
        let mut frames = good.clone();
        match &mut frames[0] {
            Frame::Header(header) => lie(header),
            other => panic!("{other:?}"),
        }
        let error = decoded(&resealed(frames)).unwrap_err().to_string();
        assert!(
            error.contains("header at byte 12") && error.contains(what),
            "{what}: {error}"
        );
    }
}

#[test]
fn a_trailer_that_counts_wrongly_or_an_unknown_frame_is_refused() {
    let good = frames(&encoded(&state(40)));
    let mut miscounted = good.clone();
    match miscounted.last_mut() {
        Some(Frame::Trailer(trailer)) => trailer.parts = 7,
        other => panic!("{other:?}"),
    }
    let error = decoded(&resealed(miscounted)).unwrap_err().to_string();
    assert!(error.contains("counts 7 parts"), "{error}");
    let mut headless = good.clone();
    headless.remove(0);
    assert!(decoded(&resealed(headless)).is_err());
    // A frame of a kind that this version does not know must not be skipped.
    let mut bytes = [&MAGIC[..], &FORMAT.to_le_bytes()].concat();
    let unknown = [0x7a, 0];
    let length = (unknown.len() as u32).to_le_bytes();
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(length, &unknown).to_le_bytes());
    bytes.extend_from_slice(&unknown);
    let error = decoded(&bytes).unwrap_err().to_string();
    assert!(error.contains("no frame of this format"), "{error}");
    // Nor does a length make anybody allocate what is not there.
    let mut huge = [&MAGIC[..], &FORMAT.to_le_bytes()].concat();
    huge.extend_from_slice(&[0xff; 8]);
    assert!(decoded(&huge).unwrap_err().to_string().contains("beyond any bound"));
}

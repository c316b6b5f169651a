//! Sessions and history as the log drives them.

use super::*;
use crate::batch::Change;
use crate::fence::PREDECESSORS_MAX;
use crate::history::TOMBSTONES_MAX;
use crate::losses::LOSSES_MAX;
use crate::route::{Route, RouteSpec};
use crate::sessions::SESSIONS_MAX;

/// Without a policy no deletion is held.
const STAMP: Stamp = Stamp {
    time_ms: 0,
    policy: None,
};

type Spoil = fn(&mut State);

fn put(spec: &str, port: u16) -> Batch {
    Batch::put(Route::parse(spec, &format!("http://10.0.0.1:{port}"), "", "").unwrap())
}

fn delete(spec: &str) -> Batch {
    Batch::delete(Namespace::default(), RouteSpec::parse(spec).unwrap())
}

#[test]
fn a_late_duplicate_does_not_bring_a_deleted_route_back() {
    let mut state = State::default();
    let add = Command {
        batch: put("/user/a/", 1),
        session: Some(([1; 16], 1)),
    };
    let first = state.apply(1, &STAMP, &add);
    state.apply(
        2,
        &STAMP,
        &Command {
            batch: delete("/user/a/"),
            session: Some(([2; 16], 1)),
        },
    );
    let again = state.apply(3, &STAMP, &add);
    assert_eq!(again.result, first.result);
    assert_eq!(again.delta, None);
    assert!(state.table.is_empty());
    state.apply(
        4,
        &STAMP,
        &Command {
            batch: put("/user/b/", 1),
            session: Some(([1; 16], 2)),
        },
    );
    let late = state.apply(5, &STAMP, &add);
    assert_eq!(late.result, Err(Rejection::Sequence { last: 2, found: 1 }));
}

#[test]
fn a_write_that_changes_nothing_needs_no_log_entry_once_its_session_is_known() {
    let mut state = State::default();
    let session = |sequence| Some(([1; 16], sequence));
    let first = Command {
        batch: put("/a/", 1),
        session: session(1),
    };
    assert_eq!(state.answer_without_log(&first), None);
    state.apply(1, &STAMP, &first);
    let again = Command {
        batch: put("/a/", 1),
        session: session(2),
    };
    assert_eq!(
        state.answer_without_log(&again),
        Some(Ok(Written {
            revision: Revision(1),
            changed: false,
            held: 0
        }))
    );
    assert_eq!(
        state.answer_without_log(&Command {
            batch: put("/a/", 2),
            session: session(2)
        }),
        None
    );
    assert_eq!(
        state.answer_without_log(&first),
        Some(Ok(Written {
            revision: Revision(1),
            changed: true,
            held: 0
        }))
    );
    let stranger = Command {
        batch: put("/a/", 1),
        session: Some(([9; 16], 1)),
    };
    assert_eq!(state.answer_without_log(&stranger), None);
    assert_eq!(
        state.answer_without_log(&Command {
            batch: delete("/none/"),
            session: None
        }),
        Some(Ok(Written {
            revision: Revision(1),
            changed: false,
            held: 0
        }))
    );
}

#[test]
fn deletions_beyond_the_bound_move_the_horizon() {
    let mut state = State::default();
    let specs: Vec<String> = (0..=crate::history::TOMBSTONES_MAX).map(|n| format!("/{n}/")).collect();
    let batch = |change: fn(&str) -> Change| {
        Batch::new(
            Namespace::default(),
            specs.iter().map(|spec| change(spec)).collect(),
            vec![],
        )
        .unwrap()
    };
    state.apply(
        1,
        &STAMP,
        &Command {
            batch: batch(|spec| Change::Put(Route::parse(spec, "http://h:1", "", "").unwrap())),
            session: None,
        },
    );
    state.apply(
        2,
        &STAMP,
        &Command {
            batch: put("/last/", 1),
            session: None,
        },
    );
    assert!(state.history.since(Revision(1), &state.table).is_some());
    state.apply(
        3,
        &STAMP,
        &Command {
            batch: batch(|spec| Change::Delete(RouteSpec::parse(spec).unwrap())),
            session: None,
        },
    );
    assert_eq!(state.history.horizon(), Revision(3));
    assert_eq!(state.history.since(Revision(2), &state.table), None);
    assert_eq!(
        state.history.since(Revision(4), &state.table),
        None,
        "nobody is ahead of the table"
    );
    assert!(state.history.since(Revision(3), &state.table).is_some());
}

#[test]
fn a_fenced_hub_changes_nothing_more() {
    let mut state = State::default();
    let namespace = Namespace::default();
    let old = state.open_hub(&namespace, [1; 16]).unwrap();
    let write = |batch: Batch| Command { batch, session: None };
    assert!(
        state
            .apply(1, &STAMP, &write(put("/user/a/", 1).by_hub(old)))
            .result
            .is_ok()
    );
    let new = state.open_hub(&namespace, [2; 16]).unwrap();
    let late = write(delete("/user/a/").by_hub(old));
    assert!(matches!(
        state.answer_without_log(&late),
        Some(Err(Rejection::Fenced { .. }))
    ));
    let refused = state.apply(3, &STAMP, &late);
    assert!(matches!(refused.result, Err(Rejection::Fenced { .. })));
    assert_eq!((refused.delta, state.table.len()), (None, 1));
    assert!(
        state
            .apply(4, &STAMP, &write(delete("/user/a/").by_hub(new)))
            .result
            .is_ok()
    );
    let operator = state.apply(5, &STAMP, &write(put("/user/b/", 1)));
    assert!(operator.result.is_ok(), "whoever is no hub is not fenced");
}

#[test]
fn the_rest_differs_wherever_a_write_would_be_answered_otherwise() {
    let mut state = State::default();
    for n in 1..=40 {
        let command = Command {
            batch: put(&format!("/user/{n}/"), n),
            session: Some(([1; 16], u64::from(n))),
        };
        state.apply(u64::from(n), &STAMP, &command).result.unwrap();
    }
    state.open_hub(&Namespace::default(), [1; 16]).unwrap();
    let known = state.clone();
    let changes: [(&str, Spoil); 8] = [
        ("a session that is not known", |state| {
            state.sessions = Sessions::default()
        }),
        ("a session's last write", |state| {
            let session = state.sessions.get(&[1; 16]).unwrap().clone();
            state.sessions.record([1; 16], Session { sequence: 7, ..session });
        }),
        ("when a session was last used", |state| {
            let session = state.sessions.get(&[1; 16]).unwrap().clone();
            state.sessions.record(
                [1; 16],
                Session {
                    last_used_index: 7,
                    ..session
                },
            );
        }),
        ("a hub", |state| {
            state.open_hub(&Namespace::default(), [2; 16]).unwrap();
        }),
        ("a loss", |state| {
            state.holds.losses_mut().note(Loss {
                spec: RouteSpec::parse("/user/1/").unwrap(),
                namespace: Namespace::default(),
                time_ms: 1,
            });
        }),
        ("a deletion that is not remembered", |state| {
            state.history = History::new(&state.table, [], Revision(0));
        }),
        ("an ancestor", |state| state.lineage = state.lineage.and("before")),
        ("the highest id", |state| state.node_id_max += 1),
    ];
    let gone = Command {
        batch: delete("/user/1/"),
        session: None,
    };
    state.apply(41, &STAMP, &gone).result.unwrap();
    assert_ne!(state.rest_digest(), known.rest_digest(), "a deletion");
    for (what, change) in changes {
        let mut other = state.clone();
        change(&mut other);
        assert_ne!(other.rest_digest(), state.rest_digest(), "{what}");
        assert_eq!(other.digest(), state.digest(), "{what} is not of the table");
    }
}

/// It is computed every few seconds, so what it takes at most is shown.
#[test]
fn the_rest_of_a_state_at_all_its_bounds_is_hashed() {
    let mut state = State::default();
    for n in 0..SESSIONS_MAX as u64 {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let session = Session {
            sequence: 1,
            last_used_index: n,
            last_used_ms: n,
            outcome: Err(Rejection::SessionExpired),
        };
        state.sessions.record(id, session);
    }
    for n in 0..HUBS_MAX {
        let namespace = Namespace::parse(&format!("n{n}")).unwrap();
        for hub in 0..=PREDECESSORS_MAX {
            let id = [u8::try_from(hub).unwrap(); 16];
            state.open_hub(&namespace, id).unwrap();
        }
    }
    let spec = |n: usize| RouteSpec::parse(&format!("/user/user-{n:06}/")).unwrap();
    for n in 0..LOSSES_MAX {
        let loss = Loss {
            spec: spec(n),
            namespace: Namespace::default(),
            time_ms: 1,
        };
        assert!(state.holds.losses_mut().note(loss));
    }
    let tombstones = (0..TOMBSTONES_MAX).map(|n| (spec(n), Revision(n as u64 + 1)));
    state.history = History::new(&state.table, tombstones, Revision(0));
    let began = std::time::Instant::now();
    let digest = state.rest_digest();
    println!("{:?} for the rest of a state at all its bounds", began.elapsed());
    assert_ne!(digest, State::default().rest_digest());
}

/// As many new sessions as are kept write at `time_ms`.
fn crowd(state: &mut State, index: u64, time_ms: u64) {
    let stamp = Stamp { time_ms, ..STAMP };
    for n in 0..crate::sessions::SESSIONS_MAX as u64 {
        let mut id = [0xff; 16];
        id[..8].copy_from_slice(&(index + n).to_be_bytes());
        let command = Command {
            batch: put("/crowd/", 1),
            session: Some((id, 1)),
        };
        state.apply(index + n, &stamp, &command);
    }
}

#[test]
fn a_first_write_is_not_repeated_once_its_session_may_be_forgotten() {
    let write = |batch: Batch, session: SessionId| Command {
        batch,
        session: Some((session, 1)),
    };
    let at = |time_ms: u64| Stamp { time_ms, ..STAMP };
    let mut state = State::default();
    // Nobody is forgotten yet, so whoever is not known is new.
    let other = write(put("/user/b/", 1).retried(), [2; 16]);
    assert!(state.apply(1, &at(5), &other).result.unwrap().changed);
    state
        .apply(2, &at(10), &write(put("/user/a/", 1), [1; 16]))
        .result
        .unwrap();
    state.apply(
        3,
        &at(20),
        &Command {
            batch: delete("/user/a/"),
            session: None,
        },
    );
    crowd(&mut state, 10, 30);
    assert_eq!(state.sessions.get(&[1; 16]), None);

    // The answer was lost, and it comes again: the route must not come back.
    let retry = write(put("/user/a/", 1).retried(), [1; 16]);
    let refused = state.apply(50_000, &at(40), &retry);
    assert_eq!((refused.result, refused.delta), (Err(Rejection::SessionExpired), None));
    // Nor by a copy of the first attempt that comes after it.
    let late = write(put("/user/a/", 1), [1; 16]);
    assert_eq!(state.answer_without_log(&late), Some(Err(Rejection::SessionExpired)));
    assert_eq!(
        state.apply(50_001, &at(40), &late).result,
        Err(Rejection::SessionExpired)
    );

    // Others are new all the same, and are believed when they repeat once all are known that wrote lately.
    assert!(
        state
            .apply(50_002, &at(40), &write(put("/user/c/", 1), [3; 16]))
            .result
            .is_ok()
    );
    let much_later = at(40 + crate::sessions::RETRY_MS);
    let patient = write(put("/user/d/", 1).retried(), [4; 16]);
    assert!(state.apply(50_003, &much_later, &patient).result.unwrap().changed);
}

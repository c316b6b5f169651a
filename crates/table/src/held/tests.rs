//! The rules of holding, one by one. All of them together: `tests/model.rs`.

use super::*;
use crate::batch::{Batch, Change, Precondition};
use crate::revision::Revision;
use crate::route::RouteSpec;
use crate::state::{Command, Outcome, Rejection, State, Written};

const POLICY: HoldPolicy = HoldPolicy::DEFAULT;

fn route(n: usize) -> Route {
    let (spec, target) = (format!("/user/{n}/"), format!("http://10.0.0.1:{}", 1_000 + n));
    Route::parse(&spec, &target, "", "").unwrap()
}

fn spec(n: usize) -> RouteSpec {
    route(n).spec
}

fn at(time_ms: u64) -> Stamp {
    Stamp {
        time_ms,
        policy: Some(POLICY),
    }
}

fn write(state: &mut State, time_ms: u64, batch: Batch) -> Outcome {
    state.apply(1, &at(time_ms), &Command { batch, session: None })
}

fn puts(routes: impl Iterator<Item = Route>) -> Batch {
    Batch::new(Namespace::default(), routes.map(Change::Put).collect(), vec![]).unwrap()
}

fn deletes(numbers: impl Iterator<Item = usize>) -> Batch {
    let changes = numbers.map(|n| Change::Delete(spec(n))).collect();
    Batch::new(Namespace::default(), changes, vec![]).unwrap()
}

fn with(routes: usize) -> State {
    let mut state = State::default();
    write(&mut state, 0, puts((0..routes).map(route)));
    state
}

fn held(outcome: &Outcome) -> usize {
    outcome.result.as_ref().unwrap().held
}

fn versions(state: &State) -> Vec<(RouteSpec, Revision)> {
    let entries = state.holds.iter().map(|(key, _)| state.table.get(key).unwrap());
    entries
        .map(|entry| (entry.route.spec.clone(), entry.modified))
        .collect()
}

#[test]
fn a_hub_that_knows_nobody_loses_no_route() {
    let mut state = with(1_000);
    let table = state.table.clone();
    let batch = deletes(0..1_000);
    let outcome = write(&mut state, 5, batch.clone());
    let written = Written {
        revision: table.revision().next(),
        changed: true,
        held: 1_000,
    };
    assert_eq!(outcome.result, Ok(written), "acknowledged");
    let delta = outcome.delta.unwrap();
    assert!(delta.is_empty() && delta.to == written.revision, "nothing for proxies");
    assert_eq!((state.table.len(), state.table.digest()), (1_000, table.digest()));
    assert_eq!(state.holds.len(), 1_000);
    let hold = Hold {
        since_ms: 5,
        until_ms: 600_005,
    };
    assert!(state.holds.iter().all(|(_, found)| *found == hold));

    // The hub sees what it wanted, so what it says again changes nothing and is no log entry.
    let again = Command { batch, session: None };
    let unchanged = Written {
        changed: false,
        held: 0,
        ..written
    };
    assert_eq!(state.answer_without_log(&again), Some(Ok(unchanged)));
    assert_eq!(state.apply(9, &at(6), &again).result, Ok(unchanged));
}

#[test]
fn both_bounds_have_to_be_exceeded() {
    for (routes, deleted, is_held) in [
        (10, 10, false),
        (12, 10, false),
        (12, 11, true),
        (44, 11, false),
        (43, 11, true),
        (1_000, 250, false),
        (1_000, 251, true),
    ] {
        let outcome = write(&mut with(routes), 1, deletes(0..deleted));
        let expected = if is_held { deleted } else { 0 };
        assert_eq!(held(&outcome), expected, "{deleted} of {routes}");
        assert_eq!(outcome.delta.unwrap().deletes.len(), deleted - expected);
    }
}

#[test]
fn losses_add_up_within_the_window_and_a_route_that_is_back_is_none() {
    let mut state = with(20);
    for n in 0..10 {
        assert_eq!(held(&write(&mut state, n as u64, deletes(n..n + 1))), 0);
    }
    assert_eq!(held(&write(&mut state.clone(), 50_000, deletes(10..11))), 1);
    assert_eq!(
        held(&write(&mut state.clone(), 60_000, deletes(10..11))),
        0,
        "the first is too long ago"
    );
    write(&mut state, 20, Batch::put(route(0)));
    assert_eq!(held(&write(&mut state, 50_000, deletes(10..11))), 0);
    assert_eq!(held(&write(&mut state, 50_000, deletes(11..12))), 1);
    // Held ones count as well, or one batch that is held would let the next one through.
    assert_eq!(held(&write(&mut state, 50_000, deletes(12..13))), 1);
}

#[test]
fn whoever_says_how_many_it_deletes_may_but_no_more() {
    let mut state = with(1_000);
    assert_eq!(held(&write(&mut state, 1, deletes(0..400).expecting(400))), 0);
    assert_eq!(state.holds.losses().count(&Namespace::default()), 0);
    assert_eq!(
        held(&write(&mut state, 1, deletes(400..410))),
        0,
        "what was expected counts for nothing"
    );
    let too_many = deletes(410..1_000).expecting(500);
    assert_eq!(held(&write(&mut state, 1, too_many)), 590);
}

#[test]
fn of_several_batches_for_one_purpose_none_is_let_through() {
    let mut state = with(1_000);
    // A fifth each, so that the first one alone would be made.
    for part in 0..5 {
        let batch = deletes(part * 200..(part + 1) * 200).followed_by((4 - part) * 200);
        assert_eq!(held(&write(&mut state, 1, batch)), 200, "part {part}");
    }
    assert_eq!(state.table.len(), 1_000);

    let mut state = with(1_000);
    for part in 0..2 {
        let batch = deletes(part * 120..(part + 1) * 120).followed_by((1 - part) * 120);
        assert_eq!(held(&write(&mut state, 1, batch)), 0, "less than a quarter in all");
    }
    let absurd = deletes(500..501).followed_by(usize::MAX);
    assert_eq!(held(&write(&mut state, 1, absurd)), 1);
}

#[test]
fn without_a_policy_nothing_is_held() {
    let mut state = with(1_000);
    let command = Command {
        batch: deletes(0..1_000),
        session: None,
    };
    let outcome = state.apply(2, &Stamp::default(), &command);
    assert_eq!((held(&outcome), state.table.len()), (0, 0));
}

#[test]
fn a_namespace_is_judged_by_its_own_routes() {
    let mut state = with(100);
    let other = Namespace::parse("other").unwrap();
    let theirs = |n: usize| Route {
        namespace: other.clone(),
        ..route(1_000 + n)
    };
    let batch = |changes: Vec<Change>| Batch::new(other.clone(), changes, vec![]).unwrap();
    write(&mut state, 1, batch((0..12).map(|n| Change::Put(theirs(n))).collect()));
    let all = batch((0..12).map(|n| Change::Delete(theirs(n).spec)).collect());
    assert_eq!(held(&write(&mut state, 2, all)), 12, "few of all, and all of its own");
    assert_eq!(held(&write(&mut state, 3, deletes(0..20))), 0);
}

#[test]
fn to_writers_a_held_route_is_not_there_and_a_put_ends_its_hold() {
    let mut state = with(20);
    write(&mut state, 1, deletes(0..20));
    let revision = state.table.revision();
    let expecting = |revision| {
        let precondition = Precondition::RouteRevision(spec(3), revision);
        Batch::new(Namespace::default(), vec![Change::Put(route(3))], vec![precondition]).unwrap()
    };
    let refused = write(&mut state, 2, expecting(Revision(1))).result;
    assert!(matches!(
        refused,
        Err(Rejection::RouteRevision { found: Revision(0), .. })
    ));
    // The very same route as before is a new version: the hub that put it does not know of the old one.
    let outcome = write(&mut state, 2, expecting(Revision(0)));
    assert_eq!(outcome.result.unwrap().revision, revision.next());
    let entry = state.table.get(spec(3).key()).unwrap();
    assert_eq!(
        (entry.modified, state.holds.contains(spec(3).key())),
        (revision.next(), false)
    );
    assert_eq!(state.holds.len(), 19);

    // And anybody may take the place.
    let other = Namespace::parse("other").unwrap();
    let theirs = Route {
        namespace: other.clone(),
        ..route(4)
    };
    assert!(write(&mut state, 3, Batch::put(theirs)).result.is_ok());
    assert_eq!(state.table.get(spec(4).key()).unwrap().route.namespace, other);
}

#[test]
fn a_held_route_goes_when_its_target_is_given_to_another() {
    let mut state = with(20);
    write(&mut state, 1, deletes(0..20));
    let reused = Route {
        target: route(7).target,
        ..route(100)
    };
    let outcome = write(&mut state, 2, Batch::put(reused));
    assert_eq!(outcome.delta.unwrap().deletes, [spec(7)]);
    assert_eq!((state.holds.len(), state.table.len()), (19, 20));
    // Spelled otherwise it is the same server.
    let respelled = Route::parse("/user/101/", "https://10.0.0.1:1008/?x=1", "", "").unwrap();
    assert_eq!(
        write(&mut state, 3, Batch::put(respelled)).delta.unwrap().deletes,
        [spec(8)]
    );
    // The user's own new server is none.
    let moved = Route::parse("/user/9/", "http://10.9.9.9:1", "", "").unwrap();
    assert!(
        write(&mut state, 4, Batch::put(moved))
            .delta
            .unwrap()
            .deletes
            .is_empty()
    );
    assert_eq!(state.holds.len(), 17);
}

#[test]
fn a_route_whose_server_is_another_routes_is_not_held_at_all() {
    let mut state = with(40);
    // A hub under another path: each server has a new route in the same batch, or had one before.
    let moved = |n: usize| Route {
        target: route(n).target,
        ..route(100 + n)
    };
    write(&mut state, 1, puts((0..20).map(moved)));
    let puts = (20..40).map(|n| Change::Put(moved(n)));
    let changes = puts.chain((0..40).map(|n| Change::Delete(spec(n)))).collect();
    let batch = Batch::new(Namespace::default(), changes, vec![]).unwrap();
    let outcome = write(&mut state, 2, batch);
    assert_eq!((held(&outcome), state.holds.len()), (0, 0));
    assert_eq!((outcome.delta.unwrap().deletes.len(), state.table.len()), (40, 40));
}

#[test]
fn an_operator_confirms_or_rejects_versions_and_nothing_else() {
    let mut state = with(20);
    write(&mut state, 1, deletes(0..15));
    let versions = versions(&state);
    assert_eq!(versions.len(), 15);
    let before = state.table.revision();

    let nothing = state.settle(Settlement::Confirm, &[(spec(0), Revision(77)), (spec(17), before)]);
    assert_eq!((nothing.delta, state.holds.len()), (None, 15));

    let twice = [versions[0].clone(), versions[0].clone(), versions[1].clone()];
    let confirmed = state.settle(Settlement::Confirm, &twice);
    assert_eq!(confirmed.delta.unwrap().deletes.len(), 2);
    assert_eq!((state.holds.len(), state.table.len()), (13, 18));

    let rejected = state.settle(Settlement::Reject, &versions);
    assert_eq!((rejected.delta.unwrap().is_empty(), rejected.marked.len()), (true, 13));
    assert!(state.holds.is_empty());
    assert_eq!(state.table.revision(), before.next().next());
    assert_eq!(state.holds.digest(), Digest::default());
    // The hub sees them again, in the version that they had, and may delete them again: they are held again.
    let (spec, modified) = &versions[2];
    assert_eq!(state.table.get(spec.key()).unwrap().modified, *modified);
    assert_eq!(state.holds.losses().count(&Namespace::default()), 0);
    let again = write(&mut state, 2, deletes(0..20));
    assert_eq!(held(&again), 18);
}

#[test]
fn a_hold_ends_by_itself() {
    let mut state = with(20);
    write(&mut state, 1, deletes(0..12));
    write(&mut state, 500, deletes(12..14));
    assert_eq!(state.holds.first_end_ms(), Some(600_001));
    assert_eq!(state.expire(&at(600_000)).delta, None);
    let outcome = state.expire(&at(600_001));
    assert_eq!(outcome.delta.unwrap().deletes.len(), 12);
    assert_eq!((state.holds.len(), state.table.len()), (2, 8));
    assert_eq!(
        state
            .expire(&Stamp {
                time_ms: u64::MAX,
                policy: None
            })
            .delta
            .unwrap()
            .deletes
            .len(),
        2
    );
    assert_eq!(
        (state.holds.first_end_ms(), state.holds.digest()),
        (None, Digest::default())
    );
    assert_eq!(state.digest(), state.table.digest());
}

#[test]
fn holds_end_so_many_at_once_and_the_first_ones_first() {
    let mut state = with(1_500);
    write(&mut state, 1, deletes(1_000..1_500));
    write(&mut state, 2, deletes(0..1_000));
    assert_eq!(state.holds.len(), 1_500);
    let over = at(700_000);
    let gone = state.expire(&over).delta.unwrap().deletes;
    assert_eq!(gone.len(), EXPIRED_MAX);
    assert!((1_000..1_500).all(|n| gone.contains(&spec(n))));
    assert_eq!(state.expire(&over).delta.unwrap().deletes.len(), 500);
    assert_eq!(state.expire(&over).delta, None);
}

#[test]
fn holds_are_part_of_the_digest_and_come_back_from_their_rows() {
    let mut state = with(20);
    write(&mut state, 1, deletes(0..12));
    assert_ne!(state.digest(), state.table.digest());
    let rows = state.holds.iter().map(|(key, hold)| (key.clone(), *hold));
    let losses = state.holds.losses().iter().cloned();
    let copy = Holds::new(&state.table, rows, losses);
    assert_eq!((copy.digest(), copy.len()), (state.holds.digest(), 12));
    assert_eq!(copy.losses().count(&Namespace::default()), 12);
    let hold = Hold {
        since_ms: 1,
        until_ms: 2,
    };
    let other = Holds::new(
        &state.table,
        [(spec(0).key().clone(), hold), (spec(99).key().clone(), hold)],
        [],
    );
    assert_eq!(other.len(), 1, "what is not in the table is not held");
    assert_ne!(other.digest(), copy.digest());
}

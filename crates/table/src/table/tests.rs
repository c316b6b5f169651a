//! The table against a plain model: a map from key to route, searched from end to end.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::batch::{Batch, Change};
use crate::history::History;
use crate::route::{RouteSpec, Target};

const SPECS: &[&str] = &[
    "/",
    "/hub/",
    "/user/a/",
    "/user/a/srv/",
    "/user/ab/",
    "/user/%40a/",
    "/user/@a/",
    "/user/a%2Fb/",
    "/x/y/z/w/",
    "hub.org/",
    "hub.org/user/a/",
    "alice.hub.org/user/a/",
    "alice.hub.org/",
];

fn route(spec: &str, port: u16) -> Route {
    Route::parse(spec, &format!("http://10.0.0.1:{port}"), "", "").unwrap()
}

fn batches() -> impl Strategy<Value = Vec<Vec<(usize, Option<u16>)>>> {
    let change = (0..SPECS.len(), prop::option::weighted(0.7, 1u16..4));
    prop::collection::vec(prop::collection::vec(change, 0..5), 0..25)
}

fn batch(changes: &[(usize, Option<u16>)]) -> Batch {
    let mut seen = std::collections::HashSet::new();
    let changes = changes
        .iter()
        .map(|(spec, put)| match put {
            Some(port) => Change::Put(route(SPECS[*spec], *port)),
            None => Change::Delete(RouteSpec::parse(SPECS[*spec]).unwrap()),
        })
        .filter(|change| seen.insert(change.key().clone()))
        .collect();
    Batch::new(Namespace::default(), changes, vec![]).unwrap()
}

/// The slow reference: among all routes the one whose segments are the longest prefix of the request's.
fn slow_lookup<'a>(
    model: &'a BTreeMap<String, (Route, Revision)>,
    host: Option<&str>,
    path: &str,
) -> Option<&'a Route> {
    let segments = |text: &str| text.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let wanted = segments(path);
    let rank = |key: &str| {
        let (key_host, key_path) = key.split_at(key.find('/').unwrap_or(key.len()));
        let host_fits = key_host.is_empty() || Some(key_host) == host;
        let prefix = segments(key_path);
        (host_fits && wanted.starts_with(&prefix)).then_some((!key_host.is_empty(), prefix.len()))
    };
    let best = model.keys().filter_map(|key| rank(key).map(|rank| (rank, key))).max()?;
    model.get(best.1).map(|(route, _)| route)
}

proptest! {
    #[test]
    fn a_table_is_its_model_at_every_revision(batches in batches()) {
        let mut table = Table::default();
        let mut history = History::default();
        let mut model: BTreeMap<String, (Route, Revision)> = BTreeMap::new();
        let mut past = vec![table.clone()];
        for changes in &batches {
            let batch = batch(changes);
            let noop = table.is_noop(&batch);
            let before = table.clone();
            let (delta, replaced) = table.replace(&batch).unwrap();
            let next = before.revision().next();
            let mut changed = false;
            for change in batch.changes() {
                let key = change.key().as_str().to_owned();
                match change {
                    Change::Put(route) if model.get(&key).is_none_or(|(held, _)| held != route) => {
                        model.insert(key, (route.clone(), next));
                        changed = true;
                    }
                    Change::Put(_) => {}
                    Change::Delete(_) => changed |= model.remove(&key).is_some(),
                }
            }
            // Counted without holes, and only what changes something counts.
            prop_assert_eq!(table.revision(), if changed { next } else { before.revision() });
            prop_assert_eq!(noop, !changed);
            prop_assert_eq!(delta.is_empty(), !changed);

            let held: BTreeMap<String, (Route, Revision)> = table
                .iter()
                .map(|entry| (entry.route.spec.key().as_str().to_owned(), (entry.route.clone(), entry.modified)))
                .collect();
            prop_assert_eq!(&held, &model);
            prop_assert_eq!(table.digest(), table.recompute_digest());

            // A follower that takes the delta has the same table.
            let mut follower = before.clone();
            follower.apply_delta(&delta).unwrap();
            prop_assert_eq!((follower.revision(), follower.digest()), (table.revision(), table.digest()));

            history.record(&delta, &replaced);
            past.push(table.clone());
        }
        // From any earlier revision one merged delta leads to the present.
        for mut earlier in past {
            let delta = history.since(earlier.revision(), &table).unwrap();
            earlier.apply_delta(&delta).unwrap();
            prop_assert_eq!(earlier.digest(), table.digest());
            prop_assert_eq!(earlier.len(), table.len());
        }
        // A table from a snapshot is the same one, whatever the order.
        let entries: Vec<Entry> = table.sorted().iter().rev().map(|entry| Entry::clone(entry)).collect();
        let copy = Table::from_entries(table.epoch(), table.revision(), entries);
        prop_assert_eq!(copy.digest(), table.digest());

        for host in [None, Some("hub.org"), Some("alice.hub.org"), Some("other.org")] {
            for path in ["/", "/hub", "/hub/x", "/user/a", "/user/a/", "/user/a/srv/q", "/user/a/srvx", "/user/ab", "/user/abc",
                "/user/@a/lab", "/user/a%2Fb/x", "/user//a", "/x/y/z/w/v/u/t", "/x/y/z"] {
                let parsed = host.map(|host| Host::parse(host).unwrap());
                let found = table.lookup(parsed.as_ref(), &RequestPath::parse(path).unwrap());
                prop_assert_eq!(found.map(|entry| &entry.route), slow_lookup(&model, host, path), "{:?} {}", host, path);
            }
        }
    }
}

#[test]
fn a_delta_with_a_gap_is_refused_and_changes_nothing() {
    let mut ahead = Table::default();
    ahead.apply(&Batch::put(route("/a/", 1))).unwrap();
    let delta = ahead.apply(&Batch::put(route("/b/", 1))).unwrap();
    let mut behind = Table::default();
    assert!(matches!(behind.apply_delta(&delta), Err(DeltaError::Gap { .. })));
    assert_eq!((behind.len(), behind.revision()), (0, Revision(0)));
}

#[test]
fn another_namespace_can_neither_replace_nor_delete_a_route() {
    let mut table = Table::default();
    table.apply(&Batch::put(route("/user/a/", 1))).unwrap();
    let other = Namespace::parse("other").unwrap();
    let theirs = Route {
        namespace: other.clone(),
        ..route("/user/a/", 2)
    };
    let before = table.digest();
    for batch in [
        Batch::put(theirs),
        Batch::delete(other, RouteSpec::parse("/user/a/").unwrap()),
    ] {
        assert!(matches!(table.apply(&batch), Err(Rejection::Namespace { .. })));
        assert!(!table.is_noop(&batch));
    }
    assert_eq!((table.digest(), table.revision()), (before, Revision(1)));
}

#[test]
fn preconditions_hold_or_nothing_changes() {
    let mut table = Table::default();
    table.apply(&Batch::put(route("/a/", 1))).unwrap();
    let spec = |text: &str| RouteSpec::parse(text).unwrap();
    let with = |precondition| {
        Batch::new(
            Namespace::default(),
            vec![Change::Put(route("/a/", 2))],
            vec![precondition],
        )
        .unwrap()
    };
    for wrong in [
        Precondition::TableRevision(Revision(0)),
        Precondition::RouteRevision(spec("/a/"), Revision(0)),
        Precondition::RouteRevision(spec("/b/"), Revision(1)),
    ] {
        table.apply(&with(wrong)).unwrap_err();
        assert_eq!(table.revision(), Revision(1));
    }
    table
        .apply(&with(Precondition::RouteRevision(spec("/b/"), Revision(0))))
        .unwrap();
    let again = table
        .apply(&with(Precondition::RouteRevision(spec("/a/"), Revision(2))))
        .unwrap();
    assert!(again.is_empty(), "the same route again changes nothing");
}

#[test]
fn the_spelling_of_the_last_put_is_the_one_kept() {
    let mut table = Table::default();
    table.apply(&Batch::put(route("/user/%40a/", 1))).unwrap();
    table.apply(&Batch::put(route("/user/@a/", 1))).unwrap();
    assert_eq!(table.sorted()[0].route.spec.as_str(), "/user/@a/");
    assert_eq!((table.len(), table.revision()), (1, Revision(2)));
}

#[test]
fn a_target_alone_makes_a_route_differ() {
    let mut table = Table::default();
    table.apply(&Batch::put(route("/a/", 1))).unwrap();
    let slash = Route {
        target: Target::parse("http://10.0.0.1:1/").unwrap(),
        ..route("/a/", 1)
    };
    assert!(!table.apply(&Batch::put(slash)).unwrap().is_empty());
}

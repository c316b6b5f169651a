//! What an import changes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_table::batch::{BYTES_MAX, CHANGES_MAX};
use holdfast_table::{
    Batch, Change, Data, Entry, Namespace, Precondition, Revision, Route, RouteKey, RouteSpec, Target,
};

use super::source::Draft;

/// The difference between a source and the table.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub added: Vec<Route>,
    /// As it is, and as it shall be.
    pub changed: Vec<(Entry, Route)>,
    pub pruned: Vec<Entry>,
    /// Routes that are here already.
    pub unchanged: usize,
    /// Routes that are here, and not in the source.
    pub left: usize,
    /// Those of the source.
    pub namespaces: BTreeSet<Namespace>,
    /// Why it cannot be done, a route each.
    pub conflicts: Vec<String>,
}

/// Reads all drafts, into `namespace` if there is one: the routes, and everything that is wrong with the others.
pub(in crate::commands) fn parse(drafts: Vec<Draft>, namespace: Option<&Namespace>) -> (Vec<Route>, Vec<String>) {
    let mut mistakes = Vec::new();
    let mut names: HashMap<RouteKey, String> = HashMap::with_capacity(drafts.len());
    let mut routes = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let own = namespace.map_or(draft.namespace.as_str(), Namespace::as_str);
        let (spec, target) = (RouteSpec::parse(&draft.routespec), Target::parse(&draft.target));
        let (data, namespace) = (Data::parse(&draft.data), Namespace::parse(own));
        let errors = [
            spec.as_ref().err(),
            target.as_ref().err(),
            data.as_ref().err(),
            namespace.as_ref().err(),
        ];
        mistakes.extend(
            errors
                .into_iter()
                .flatten()
                .map(|error| format!("{}: {error}", draft.name)),
        );
        let (Ok(spec), Ok(target), Ok(data), Ok(namespace)) = (spec, target, data, namespace) else {
            continue;
        };
        match names.insert(spec.key().clone(), draft.name.clone()) {
            Some(other) => mistakes.push(format!("{}: is the same route as {other}", draft.name)),
            None => routes.push(Route {
                spec,
                target,
                data,
                namespace,
            }),
        }
    }
    (routes, mistakes)
}

impl Plan {
    /// What makes `table` have all of `routes`, and with `prune` nothing else in their namespaces.
    pub(super) fn new(routes: Vec<Route>, table: &[Entry], prune: bool) -> Self {
        let mut plan = Plan {
            namespaces: routes.iter().map(|route| route.namespace.clone()).collect(),
            ..Plan::default()
        };
        let mut present: BTreeMap<&RouteKey, &Entry> =
            table.iter().map(|entry| (entry.route.spec.key(), entry)).collect();
        for route in routes {
            match present.remove(route.spec.key()) {
                None => plan.added.push(route),
                Some(entry) if entry.route == route => plan.unchanged += 1,
                Some(entry) if entry.route.namespace == route.namespace => plan.changed.push((entry.clone(), route)),
                Some(entry) => plan.conflicts.push(format!(
                    "{}: belongs to namespace {} here, not to {}",
                    route.spec, entry.route.namespace, route.namespace
                )),
            }
        }
        let others = present
            .into_values()
            .filter(|entry| plan.namespaces.contains(&entry.route.namespace));
        match prune {
            true => plan.pruned = others.cloned().collect(),
            false => plan.left = others.count(),
        }
        plan
    }

    /// As few batches as the bounds allow, those of one namespace after each other, deletes last. Each changes only what
    /// is still as it was when the plan was made.
    pub(super) fn batches(&self) -> Vec<Batch> {
        let puts = self.added.iter().map(|route| (route, Revision(0)));
        let puts = puts.chain(self.changed.iter().map(|(entry, route)| (route, entry.modified)));
        let puts = puts.map(|(route, at)| {
            (
                &route.namespace,
                Change::Put(route.clone()),
                &route.spec,
                at,
                route.size(),
            )
        });
        let deletes = self.pruned.iter().map(|entry| {
            let spec = &entry.route.spec;
            (
                &entry.route.namespace,
                Change::Delete(spec.clone()),
                spec,
                entry.modified,
                spec.as_str().len(),
            )
        });
        let mut changes: Vec<_> = puts.chain(deletes).collect();
        changes.sort_by_key(|(namespace, ..)| *namespace);

        let mut batches = Vec::new();
        let mut open = Open::default();
        for (namespace, change, spec, at, size) in changes {
            // The precondition names the route once more.
            let size = size + spec.as_str().len();
            if open.namespace != Some(namespace) || open.changes.len() == CHANGES_MAX || open.bytes + size > BYTES_MAX {
                batches.extend(std::mem::take(&mut open).close());
                open.namespace = Some(namespace);
            }
            open.bytes += size;
            open.changes.push(change);
            open.preconditions.push(Precondition::RouteRevision(spec.clone(), at));
        }
        batches.extend(open.close());
        batches
    }
}

/// A batch that is being filled.
#[derive(Default)]
struct Open<'a> {
    namespace: Option<&'a Namespace>,
    changes: Vec<Change>,
    preconditions: Vec<Precondition>,
    bytes: usize,
}

impl Open<'_> {
    fn close(self) -> Option<Batch> {
        let deletes = self.changes.iter().filter(|change| matches!(change, Change::Delete(_)));
        let deletes = deletes.count();
        // Within its bounds, of one namespace, and no route twice: that is how it was filled. `--prune` was said on purpose.
        let batch = Batch::known(self.namespace?.clone(), self.changes, self.preconditions);
        Some(batch.expecting(deletes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(spec: &str, target: &str, namespace: &str) -> Route {
        Route::parse(spec, target, "", namespace).unwrap()
    }

    fn entry(spec: &str, target: &str, namespace: &str, revision: u64) -> Entry {
        Entry {
            route: route(spec, target, namespace),
            modified: Revision(revision),
        }
    }

    fn draft(routespec: &str, target: &str, data: &str, namespace: &str) -> Draft {
        Draft {
            name: routespec.to_owned(),
            routespec: routespec.to_owned(),
            target: target.to_owned(),
            data: data.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    const HERE: &str = "http://10.0.0.1:1";
    const THERE: &str = "http://10.0.0.2:1";

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let drafts = vec![
            draft("/good/", HERE, "", ""),
            draft("/no-slash", "ftp://x", "[]", "a b"),
            draft("/user/%40a/", HERE, "", ""),
            draft("/user/@a/", HERE, "", ""),
        ];
        let (routes, mistakes) = parse(drafts, None);
        assert_eq!((routes.len(), mistakes.len()), (2, 5), "{mistakes:?}");
        for field in ["routespec", "target", "data", "namespace"] {
            assert!(
                mistakes.iter().any(|mistake| mistake.contains(field)),
                "{field}: {mistakes:?}"
            );
        }
        assert!(
            mistakes[4].contains("/user/@a/") && mistakes[4].contains("/user/%40a/"),
            "{mistakes:?}"
        );
        let other = Namespace::parse("other").unwrap();
        let (routes, _) = parse(vec![draft("/a/", HERE, "", "its-own")], Some(&other));
        assert_eq!(routes[0].namespace, other);
    }

    #[test]
    fn the_difference_is_what_is_written_and_nothing_else() {
        let table = [
            entry("/same/", HERE, "", 1),
            entry("/changed/", HERE, "", 2),
            entry("/spelled/%40/", HERE, "", 3),
            entry("/left/", HERE, "", 4),
            entry("/other/", HERE, "other", 5),
        ];
        let routes = vec![
            route("/same/", HERE, ""),
            route("/changed/", THERE, ""),
            route("/spelled/@/", HERE, ""),
            route("/new/", HERE, ""),
        ];
        for prune in [false, true] {
            let plan = Plan::new(routes.clone(), &table, prune);
            assert_eq!((plan.added.len(), plan.changed.len(), plan.unchanged), (1, 2, 1));
            assert_eq!((plan.pruned.len(), plan.left), if prune { (1, 0) } else { (0, 1) });
            assert!(plan.conflicts.is_empty());
            let batches = plan.batches();
            assert_eq!(batches.len(), 1);
            assert_eq!(batches[0].deletes_expected(), usize::from(prune));
            let changed: Vec<_> = batches[0]
                .changes()
                .iter()
                .map(|change| change.key().as_str())
                .collect();
            let mut expected = vec!["/new", "/changed", "/spelled/@"];
            expected.extend(prune.then_some("/left"));
            assert_eq!(changed, expected);
            let revisions = batches[0]
                .preconditions()
                .iter()
                .map(|precondition| match precondition {
                    Precondition::RouteRevision(_, revision) => revision.0,
                    Precondition::TableRevision(_) => u64::MAX,
                });
            assert_eq!(
                revisions.collect::<Vec<_>>(),
                [&[0, 2, 3][..], if prune { &[4] } else { &[] }].concat()
            );
        }
        assert!(
            Plan::new(vec![route("/same/", HERE, "")], &table, false)
                .batches()
                .is_empty()
        );
    }

    #[test]
    fn a_route_of_another_namespace_is_not_taken_over() {
        let plan = Plan::new(
            vec![route("/other/", HERE, "")],
            &[entry("/other/", HERE, "other", 5)],
            true,
        );
        assert_eq!(
            plan.conflicts,
            ["/other/: belongs to namespace other here, not to default"]
        );
        assert!(plan.pruned.is_empty());
    }

    #[test]
    fn what_is_too_much_for_one_batch_goes_into_few() {
        let routes = |count: usize| {
            (0..count)
                .map(|n| route(&format!("/{n}/"), HERE, ""))
                .collect::<Vec<_>>()
        };
        let sizes = |plan: &Plan| {
            plan.batches()
                .iter()
                .map(|batch| batch.changes().len())
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(&Plan::new(routes(CHANGES_MAX), &[], false)), [CHANGES_MAX]);
        assert_eq!(sizes(&Plan::new(routes(CHANGES_MAX + 1), &[], false)), [CHANGES_MAX, 1]);
        let data = format!("{{\"x\":\"{}\"}}", "y".repeat(60_000));
        let large = (0..300).map(|n| Route::parse(&format!("/{n}/"), HERE, &data, "").unwrap());
        let plan = Plan::new(large.collect(), &[], false);
        assert_eq!(sizes(&plan).iter().sum::<usize>(), 300);
        assert_eq!(plan.batches().len(), 2);
        for batch in plan.batches() {
            let again = Batch::new(
                batch.namespace().clone(),
                batch.changes().to_vec(),
                batch.preconditions().to_vec(),
            );
            assert_eq!(again.unwrap(), batch);
        }
        let two = Plan::new(
            vec![route("/a/", HERE, "b"), route("/c/", HERE, ""), route("/d/", HERE, "b")],
            &[],
            false,
        );
        let spread: Vec<_> = two
            .batches()
            .iter()
            .map(|batch| batch.namespace().to_string())
            .collect();
        assert_eq!(spread, ["b", "default"]);
    }
}

//! Is there an order of the calls, each at some moment between its begin and its end, that explains every answer?
//!
//! Asked for each route on its own, which is as good as asking for all together (Herlihy and Wing), by the method of Wing
//! and Gong in Lowe's just-in-time form: all possible states are kept at once, and a call is ordered when its answer makes
//! it necessary. Revisions are not looked at.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Ask, Call, Told};

/// What one call did to one route.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// `None`: removed it.
    Write(Option<String>),
    /// `None`: it was not there.
    Read(Option<String>),
}

/// One call as far as it is about one route.
#[derive(Clone, Debug)]
struct Operation {
    step: Step,
    began: u64,
    // None: at any time from its begin on, or never.
    ended: Option<u64>,
}

/// What may be the case at one moment: what the route has, and which of the unanswered calls have had their effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Possibility {
    value: Option<String>,
    done: BTreeSet<usize>,
}

/// Checks every route; returns how many there were.
pub fn check(calls: &[&Call], wrong: &mut Vec<String>) -> usize {
    let operations = by_route(calls);
    for (route, operations) in &operations {
        if let Err(unexplained) = explain(operations) {
            wrong.push(format!("not linearizable: {route}: {unexplained}"));
        }
    }
    operations.len()
}

fn by_route(calls: &[&Call]) -> BTreeMap<String, Vec<Operation>> {
    let mut routes: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
    for call in calls {
        if let Ask::Write(changes) = &call.ask {
            for (route, value) in changes {
                routes.entry(route.clone()).or_default().push(Operation {
                    step: Step::Write(value.clone()),
                    began: call.began,
                    // It was known too late to say when; what it did is the replay's to check.
                    ended: call.ended.as_ref().map(|(at, _)| *at).filter(|_| !call.left_open),
                });
            }
        }
    }
    for call in calls {
        let Some((at, told)) = &call.ended else { continue };
        let read = |value: Option<&String>| Operation {
            step: Step::Read(value.cloned()),
            began: call.began,
            ended: Some(*at),
        };
        match (&call.ask, told) {
            (Ask::Get(route), Told::Got(found, _)) => {
                let value = found.as_ref().map(|found| &found.value);
                routes.entry(route.clone()).or_default().push(read(value));
            }
            (Ask::List, Told::Listed(content, ..)) => {
                for (route, operations) in &mut routes {
                    operations.push(read(content.get(route).map(|version| &version.value)));
                }
            }
            _ => {}
        }
    }
    for operations in routes.values_mut() {
        bound(operations);
    }
    routes
}

/// A put without an answer had its effect before the first answer that showed it, or need not have had any.
fn bound(operations: &mut Vec<Operation>) {
    let mut shown: BTreeMap<String, u64> = BTreeMap::new();
    for operation in operations.iter() {
        if let (Step::Read(Some(value)), Some(ended)) = (&operation.step, operation.ended) {
            let first = shown.entry(value.clone()).or_insert(ended);
            *first = ended.min(*first);
        }
    }
    operations.retain_mut(|operation| match &operation.step {
        Step::Write(Some(value)) if operation.ended.is_none() => {
            let shown = shown.get(value).copied();
            // One that was shown before it began stays as it is, and what showed it has no explanation.
            operation.ended = shown.filter(|shown| *shown > operation.began);
            shown.is_some()
        }
        _ => true,
    });
}

/// Finds an order, or the call whose answer no order explains.
fn explain(operations: &[Operation]) -> Result<(), String> {
    let mut moments: Vec<(u64, usize, bool)> = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        moments.push((operation.began, at, false));
        moments.extend(operation.ended.map(|ended| (ended, at, true)));
    }
    moments.sort_unstable();
    let mut pending = BTreeSet::new();
    let mut possible = HashSet::from([Possibility {
        value: None,
        done: BTreeSet::new(),
    }]);
    for (_, at, is_end) in moments {
        if !is_end {
            pending.insert(at);
            continue;
        }
        let before = std::mem::take(&mut possible);
        possible = once_done(at, &before, &pending, operations);
        if possible.is_empty() {
            let values: BTreeSet<_> = before.iter().map(|possibility| possibility.value.as_deref()).collect();
            return Err(format!(
                "{:?}, when it could only have been one of {values:?}",
                operations[at]
            ));
        }
        pending.remove(&at);
        keep_least(&mut possible, operations);
    }
    Ok(())
}

/// Every possibility in which call `at` has had its effect, reached from one of `before` by calls that are under way.
fn once_done(
    at: usize,
    before: &HashSet<Possibility>,
    pending: &BTreeSet<usize>,
    operations: &[Operation],
) -> HashSet<Possibility> {
    let mut found = HashSet::new();
    let mut open: Vec<Possibility> = before.iter().cloned().collect();
    for possibility in &mut open {
        possibility.read(pending, operations);
    }
    let mut seen: HashSet<Possibility> = open.iter().cloned().collect();
    while let Some(mut possibility) = open.pop() {
        if possibility.done.remove(&at) {
            found.insert(possibility);
            continue;
        }
        let mut has_removed = false;
        for next in pending.difference(&possibility.done) {
            let Operation { step, ended, .. } = &operations[*next];
            let Step::Write(value) = step else { continue };
            // Those that may remove the route at any time are one like the other: the first stands for them all.
            if value.is_none() && ended.is_none() && std::mem::replace(&mut has_removed, true) {
                continue;
            }
            let mut reached = Possibility {
                value: value.clone(),
                done: possibility.done.clone(),
            };
            reached.done.insert(*next);
            reached.read(pending, operations);
            if seen.insert(reached.clone()) {
                open.push(reached);
            }
        }
    }
    found
}

impl Possibility {
    /// Every read under way that this value answers has its answer here: it changes nothing, so later is never better.
    fn read(&mut self, pending: &BTreeSet<usize>, operations: &[Operation]) {
        let answered = |at: &&usize| matches!(&operations[**at].step, Step::Read(value) if *value == self.value);
        let answered: Vec<usize> = pending.iter().filter(answered).copied().collect();
        self.done.extend(answered);
    }
}

/// Forgets those that differ from another one only by calls that may never take effect and have taken it: whatever can
/// come of them can come of the other.
fn keep_least(possible: &mut HashSet<Possibility>, operations: &[Operation]) {
    let all: Vec<Possibility> = possible.iter().cloned().collect();
    possible.retain(|one| {
        !all.iter().any(|other| {
            other != one
                && other.value == one.value
                && other.done.is_subset(&one.done)
                && one
                    .done
                    .difference(&other.done)
                    .all(|extra| operations[*extra].ended.is_none())
        })
    });
}

#[cfg(test)]
mod tests {
    use super::super::Version;
    use super::*;

    /// `put 1 from..to`, `delete from..to`, `get 1 from..to`, `get - from..to`; without `to` there is no answer.
    fn history(lines: &[&str]) -> Vec<Call> {
        lines.iter().map(|line| call(line)).collect()
    }

    fn call(line: &str) -> Call {
        let words: Vec<&str> = line.split(' ').collect();
        let (from, to) = words[words.len() - 1].split_once("..").unwrap();
        let written = Told::Written {
            revision: 0,
            changed: true,
        };
        let (ask, told) = match words[0] {
            "put" => (Ask::Write(vec![("/a/".into(), Some(words[1].into()))]), written),
            "delete" => (Ask::Write(vec![("/a/".into(), None)]), written),
            _ => {
                let found = (words[1] != "-").then(|| Version {
                    value: words[1].into(),
                    modified: 0,
                });
                (Ask::Get("/a/".into()), Told::Got(found, 0))
            }
        };
        Call {
            who: "w".into(),
            ask,
            began: from.parse().unwrap(),
            ended: to.parse().ok().map(|at| (at, told)),
            left_open: to.is_empty(),
        }
    }

    fn problems(lines: &[&str]) -> String {
        let calls = history(lines);
        let mut wrong = Vec::new();
        check(&calls.iter().collect::<Vec<_>>(), &mut wrong);
        wrong.join("\n")
    }

    #[test]
    fn what_may_be_is_accepted() {
        for fine in [
            vec!["get - 1..2", "put 1 3..4", "get 1 5..6", "delete 7..8", "get - 9..10"],
            // During a write both are right, in this order.
            vec!["put 1 1..2", "put 2 3..8", "get 1 4..5", "get 2 6..7"],
            // Two at once, in either order.
            vec!["put 1 1..5", "put 2 2..6", "get 1 7..8"],
            vec!["put 1 1..5", "put 2 2..6", "get 2 7..8"],
            // Without an answer: late, or never.
            vec!["put 1 1..", "get - 2..3", "put 2 4..5", "get 1 6..7"],
            vec!["put 1 1..", "put 2 2..3", "get 2 4..5", "get 2 6..7"],
            vec!["put 1 1..2", "delete 3..", "get 1 4..5", "get - 6..7"],
            // A read that only an earlier moment explains.
            vec!["put 1 1..2", "get 1 3..8", "put 2 4..5", "get 2 6..7"],
        ] {
            assert_eq!(problems(&fine), "", "{fine:?}");
        }
    }

    #[test]
    fn what_may_not_be_is_named() {
        for planted in [
            // Lost.
            vec!["put 1 1..2", "get - 3..4"],
            // Stale.
            vec!["put 1 1..2", "put 2 3..4", "get 1 5..6"],
            // Seen, and then not seen any more.
            vec!["put 1 1..2", "put 2 3..10", "get 2 4..5", "get 1 6..7"],
            // Invented.
            vec!["get 7 1..2"],
            vec!["get 7 1..2", "put 7 3..4"],
            // Without an answer, and twice.
            vec!["put 1 1..", "get 1 2..3", "put 2 4..5", "get 1 6..7"],
            vec!["put 1 1..2", "delete 3..", "get - 4..5", "put 2 6..7", "get - 8..9"],
            // Shown before it was asked for, though it never got an answer.
            vec!["get 1 1..2", "put 1 3.."],
            // Two readers who saw two writes in two orders.
            vec!["put 1 1..9", "put 2 1..9", "get 1 2..3", "get 2 4..5", "get 1 6..7"],
        ] {
            assert!(problems(&planted).contains("not linearizable"), "{planted:?}");
        }
    }

    #[test]
    fn many_calls_at_once_are_no_search_without_end() {
        let mut lines: Vec<String> = (0..6).map(|at| format!("put {at} {}..{}", at + 1, at + 100)).collect();
        lines.extend((0..12).map(|at| format!("delete {}..", at + 20)));
        lines.extend((0..6).map(|at| format!("get {at} {}..{}", at + 200, at + 300)));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        // Nobody writes any more, and every reader sees something else.
        assert!(problems(&lines).contains("not linearizable"));
    }
}

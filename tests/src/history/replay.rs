//! The table at every revision, from the writes alone; and every answer compared with it.
//!
//! At the end every write's revision is known, so every revision has exactly one write that made it, or the cluster has
//! lost, invented or repeated one. With that order known, what is left is to compare.

use std::collections::BTreeMap;

use super::digest::{self, Sum};
use super::{Ask, Call, Content, Counts, Told, Version};

/// Every revision's changes, and by route, what it was from which revision on.
#[derive(Debug)]
pub struct Replay {
    changes: Vec<Vec<String>>,
    routes: BTreeMap<String, Vec<(u64, Option<String>)>>,
    digests: Vec<Sum>,
}

impl Replay {
    /// Puts the writes in the order of their revisions.
    pub fn of(calls: &[&Call], wrong: &mut Vec<String>) -> Self {
        let mut by_revision: BTreeMap<u64, &Call> = BTreeMap::new();
        for call in calls {
            match &call.ended {
                Some((
                    _,
                    Told::Written {
                        revision,
                        changed: true,
                    },
                )) => {
                    if let Some(other) = by_revision.insert(*revision, call) {
                        wrong.push(format!(
                            "revision {revision} was given to two writes: {other:?} and {call:?}"
                        ));
                    }
                }
                None => wrong.push(format!("never decided, after all faults had ended: {call:?}")),
                _ => {}
            }
        }
        let mut replay = Replay {
            changes: vec![Vec::new()],
            routes: BTreeMap::new(),
            digests: vec![Sum::default()],
        };
        for (revision, call) in by_revision {
            while replay.last() + 1 < revision {
                wrong.push(format!(
                    "revision {} has no write that made it: one was applied twice, or invented",
                    replay.last() + 1
                ));
                replay.push(&[]);
            }
            if let Ask::Write(changes) = &call.ask {
                replay.push(changes);
            }
        }
        replay
    }

    fn push(&mut self, changes: &[(String, Option<String>)]) {
        let revision = self.last() + 1;
        let mut sum = self.digests.last().copied().unwrap_or_default();
        for (spec, value) in changes {
            if let Some(before) = self.version(spec, revision) {
                sum = digest::add(sum, digest::negative(digest::of_route(spec, &before)));
            }
            if let Some(value) = value {
                let version = Version {
                    value: value.clone(),
                    modified: revision,
                };
                sum = digest::add(sum, digest::of_route(spec, &version));
            }
            let versions = self.routes.entry(spec.clone()).or_default();
            versions.push((revision, value.clone()));
        }
        self.changes
            .push(changes.iter().map(|(spec, _)| spec.clone()).collect());
        self.digests.push(sum);
    }

    /// The last revision.
    pub fn last(&self) -> u64 {
        self.changes.len() as u64 - 1
    }

    /// One route at a revision.
    pub fn version(&self, spec: &str, revision: u64) -> Option<Version> {
        let versions = self.routes.get(spec)?;
        let known = versions.partition_point(|(modified, _)| *modified <= revision);
        let (modified, value) = versions.get(known.checked_sub(1)?)?;
        Some(Version {
            value: value.clone()?,
            modified: *modified,
        })
    }

    /// The routes that were written after `from` and up to `to`.
    pub fn changed(&self, from: u64, to: u64) -> impl Iterator<Item = &str> {
        let of = |revision: u64| usize::try_from(revision).unwrap_or(usize::MAX).min(self.changes.len());
        let range = of(from + 1)..of(to + 1).max(of(from + 1));
        self.changes[range].iter().flatten().map(String::as_str)
    }

    /// The digest at a revision, if there is such a revision.
    pub fn digest(&self, revision: u64) -> Option<Sum> {
        self.digests.get(usize::try_from(revision).ok()?).copied()
    }

    /// What is wrong with a table that somebody was given.
    ///
    /// # Errors
    /// In words.
    pub fn compare(&self, content: &Content, revision: u64, digest: &[u8]) -> Result<(), String> {
        let expected = self
            .digest(revision)
            .ok_or_else(|| format!("nobody wrote revision {revision}"))?;
        for spec in self.routes.keys().chain(content.keys()) {
            let (found, expected) = (content.get(spec), self.version(spec, revision));
            if found != expected.as_ref() {
                return Err(format!("revision {revision} has {expected:?} at {spec}, not {found:?}"));
            }
        }
        if digest != expected {
            return Err(format!(
                "revision {revision} has the right routes and a wrong digest {digest:02x?}"
            ));
        }
        Ok(())
    }

    /// Compares every answer.
    pub fn check(&self, calls: &[&Call], wrong: &mut Vec<String>) -> Counts {
        check_order(calls, wrong);
        let mut counts = Counts {
            revisions: self.last(),
            digest: self.digests.last().copied().unwrap_or_default(),
            ..Counts::default()
        };
        for call in calls {
            let Some((_, told)) = &call.ended else { continue };
            match (&call.ask, told) {
                (Ask::Write(changes), Told::Written { revision, changed }) => {
                    counts.writes += 1;
                    counts.left_open += usize::from(call.left_open);
                    let is_there = |(spec, value): &(String, Option<String>)| {
                        self.version(spec, *revision).map(|version| version.value) == *value
                    };
                    // It was there already: at that revision the table is as it was asked for.
                    if !changed && !changes.iter().all(is_there) {
                        wrong.push(format!("acknowledged, and it is not so: {call:?}"));
                    }
                }
                (Ask::Get(spec), Told::Got(found, revision)) => {
                    counts.gets += 1;
                    let expected = self.version(spec, *revision);
                    if *found != expected || *revision > self.last() {
                        wrong.push(format!("read something else than was written, {expected:?}: {call:?}"));
                    }
                }
                (Ask::List, Told::Listed(content, revision, digest)) => {
                    counts.lists += 1;
                    if let Err(problem) = self.compare(content, *revision, digest) {
                        wrong.push(format!("a list by {}: {problem}", call.who));
                    }
                }
                _ => wrong.push(format!("an answer to another question: {call:?}")),
            }
        }
        counts
    }
}

/// What ended before something else began comes before it, whatever routes the two were about.
fn check_order(calls: &[&Call], wrong: &mut Vec<String>) {
    let place = |told: &Told| match told {
        Told::Written { revision, changed } => (*revision, *changed),
        Told::Got(_, revision) | Told::Listed(_, revision, _) => (*revision, false),
    };
    let answers = calls.iter().filter_map(|call| call.ended.as_ref());
    let mut known: Vec<(u64, u64)> = answers.map(|(at, told)| (*at, place(told).0)).collect();
    known.sort_unstable();
    // The highest revision known to anybody by then.
    let mut highest = 0;
    for (_, revision) in &mut known {
        highest = highest.max(*revision);
        *revision = highest;
    }
    for call in calls {
        let Some((_, told)) = &call.ended else { continue };
        let (revision, changed) = place(told);
        let before = known.partition_point(|(at, _)| *at < call.began);
        let Some((_, known)) = before.checked_sub(1).map(|last| known[last]) else {
            continue;
        };
        if revision < known || (changed && revision == known) {
            wrong.push(format!(
                "out of order: revision {known} was known before this began: {call:?}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::History;
    use super::*;

    fn write(history: &History, spec: &str, value: Option<&str>, revision: u64, changed: bool) {
        let call = history.begin("w", Ask::Write(vec![(spec.into(), value.map(str::to_owned))]));
        history.end(call, Told::Written { revision, changed });
    }

    fn put(history: &History, spec: &str, value: &str, revision: u64) {
        write(history, spec, Some(value), revision, true);
    }

    fn get(history: &History, spec: &str, found: Option<(&str, u64)>, revision: u64) {
        let call = history.begin("r", Ask::Get(spec.into()));
        let found = found.map(|(value, modified)| Version {
            value: value.into(),
            modified,
        });
        history.end(call, Told::Got(found, revision));
    }

    fn list(history: &History, routes: &[(&str, &str, u64)], revision: u64, digest: Option<Sum>) {
        let call = history.begin("r", Ask::List);
        let content: Content = routes
            .iter()
            .map(|(spec, value, modified)| {
                let version = Version {
                    value: (*value).into(),
                    modified: *modified,
                };
                ((*spec).to_owned(), version)
            })
            .collect();
        let digest = digest.unwrap_or_else(|| digest::of(&content)).to_vec();
        history.end(call, Told::Listed(content, revision, digest));
    }

    fn found(history: &History, words: &str) {
        let error = history.check().expect_err("a violation was planted").to_string();
        assert!(error.contains(words), "{words:?} is not in {error}");
    }

    #[test]
    fn what_may_be_is_accepted_and_counted() {
        let history = History::default();
        put(&history, "/a/", "1", 1);
        get(&history, "/a/", Some(("1", 1)), 1);
        put(&history, "/b/", "2", 2);
        list(&history, &[("/a/", "1", 1), ("/b/", "2", 2)], 2, None);
        write(&history, "/a/", None, 3, true);
        write(&history, "/a/", None, 3, false);
        get(&history, "/a/", None, 3);
        let counts = history.check().unwrap();
        let seen = (
            counts.writes,
            counts.gets,
            counts.lists,
            counts.revisions,
            counts.routes,
        );
        assert_eq!(seen, (4, 2, 1, 3, 2));
    }

    #[test]
    fn what_may_not_be_is_named() {
        let planted = |plant: fn(&History), words: &str| {
            let history = History::default();
            put(&history, "/a/", "1", 1);
            put(&history, "/b/", "2", 2);
            plant(&history);
            found(&history, words);
        };
        planted(|history| get(history, "/a/", None, 2), "something else");
        planted(|history| get(history, "/a/", Some(("1", 2)), 2), "something else");
        planted(|history| get(history, "/a/", Some(("1", 1)), 1), "out of order");
        planted(|history| put(history, "/a/", "3", 4), "revision 3 has no write");
        planted(|history| put(history, "/a/", "3", 2), "two writes");
        planted(|history| write(history, "/a/", None, 2, false), "it is not so");
        planted(|history| list(history, &[("/a/", "1", 1)], 2, None), "has Some(Version");
        planted(|history| list(history, &[], 3, None), "nobody wrote");
        planted(
            |history| list(history, &[("/a/", "1", 1), ("/b/", "2", 2)], 2, Some(Sum::default())),
            "wrong digest",
        );
        planted(
            |history| {
                history.begin("w", Ask::Write(vec![("/a/".into(), None)]));
            },
            "never decided",
        );
        planted(
            |history| {
                let told = Told::Written {
                    revision: 3,
                    changed: true,
                };
                history.repeated(0, &told);
            },
            "another answer",
        );
        planted(|history| history.violation("as told".into()), "as told");
    }
}

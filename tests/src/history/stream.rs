//! What a stream promises: ordered, each change once, whole revisions, nothing left out, resumed where it was, never back
//! in time; and the table at R is the replay of R.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

use super::replay::Replay;
use super::{Content, Version};

/// What happened to one subscriber.
#[derive(Clone, Debug)]
pub enum Event {
    /// It opened a stream and said that it holds this revision, or nothing.
    Start(Option<u64>),
    /// The replica goes on from this revision.
    Resumed {
        /// Where.
        revision: u64,
        /// Whose table.
        cluster_id: String,
    },
    /// The replica begins a snapshot.
    Snapshot {
        /// Of this revision.
        revision: u64,
        /// Whose table.
        cluster_id: String,
    },
    /// The snapshot is whole.
    Whole {
        /// Its routes.
        content: Content,
        /// What the replica says that its digest is.
        digest: Vec<u8>,
    },
    /// Changes.
    Delta {
        /// After this revision.
        from: u64,
        /// Up to this one.
        to: u64,
        /// In the order in which they came.
        puts: Vec<(String, Version)>,
        /// Likewise.
        deletes: Vec<String>,
    },
    /// The replica's table.
    Bookmark {
        /// Its revision.
        revision: u64,
        /// Its digest.
        digest: Vec<u8>,
    },
    /// Something that cannot be read.
    Unreadable(String),
}

/// What was checked.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Subscribers.
    pub subscribers: usize,
    /// Streams that began with a Hello.
    pub streams: usize,
    /// Of them, those that went on where the last one ended.
    pub resumed: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// Deltas.
    pub deltas: usize,
    /// Of them, those of more than one revision.
    pub merged: usize,
    /// Revisions that they covered.
    pub revisions: u64,
    /// Bookmarks.
    pub bookmarks: usize,
}

/// Checks everything that happened to one subscriber, and that nothing is missing at its end.
pub fn check(who: &str, events: &[Event], replay: &Replay, wrong: &mut Vec<String>) -> Counts {
    let mut subscriber = Subscriber {
        replay,
        cluster_id: None,
        held: None,
        state: State::Over,
        counts: Counts {
            subscribers: 1,
            ..Counts::default()
        },
    };
    for (at, event) in events.iter().enumerate() {
        if let Err(problem) = subscriber.take(event) {
            wrong.push(format!("{who}, event {at}: {problem}: {event:?}"));
            subscriber.state = State::Refused;
        }
    }
    match &subscriber.held {
        Some((revision, _)) if *revision == replay.last() => {}
        held => wrong.push(format!(
            "{who} was never given revision {}, only {:?}",
            replay.last(),
            held.as_ref().map(|(revision, _)| revision)
        )),
    }
    subscriber.counts
}

struct Subscriber<'a> {
    replay: &'a Replay,
    cluster_id: Option<String>,
    held: Option<(u64, Content)>,
    state: State,
    counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Over,
    Opening {
        says: Option<u64>,
    },
    Arriving {
        revision: u64,
    },
    Live,
    /// After a violation, until the next stream: what follows from it is no news.
    Refused,
}

impl Subscriber<'_> {
    fn take(&mut self, event: &Event) -> Result<(), String> {
        if let Event::Start(says) = event {
            self.state = State::Opening { says: *says };
            return Ok(());
        }
        match (self.state.clone(), event) {
            (State::Refused, _) => Ok(()),
            (State::Opening { says }, Event::Resumed { revision, cluster_id }) => {
                self.counts.streams += 1;
                self.counts.resumed += 1;
                self.state = State::Live;
                if says != Some(*revision) {
                    return Err(format!("resumed for one who holds {says:?}"));
                }
                self.is_of(cluster_id)
            }
            (State::Opening { says }, Event::Snapshot { revision, cluster_id }) => {
                self.counts.streams += 1;
                self.begin(says, *revision, cluster_id)
            }
            // So much has changed that a snapshot is smaller than a delta.
            (State::Live, Event::Snapshot { revision, cluster_id }) => {
                let held = self.held.as_ref().map(|(revision, _)| *revision);
                self.begin(held, *revision, cluster_id)
            }
            (State::Arriving { revision }, Event::Whole { content, digest }) => {
                self.counts.snapshots += 1;
                self.state = State::Live;
                self.replay.compare(content, revision, digest)?;
                self.held = Some((revision, content.clone()));
                Ok(())
            }
            (State::Arriving { .. }, Event::Bookmark { .. }) => Ok(()),
            (
                State::Live,
                Event::Delta {
                    from,
                    to,
                    puts,
                    deletes,
                },
            ) => self.delta(*from, *to, puts, deletes),
            (State::Live, Event::Bookmark { revision, digest }) => {
                self.counts.bookmarks += 1;
                let held = self.held.as_ref().map(|(revision, _)| *revision);
                if Some(*revision) > held {
                    return Err(format!("it overtakes what is held, revision {held:?}"));
                }
                match self.replay.digest(*revision) {
                    Some(expected) if expected[..] == digest[..] => Ok(()),
                    expected => Err(format!("the digest is {expected:02x?}")),
                }
            }
            (_, Event::Unreadable(problem)) => Err(problem.clone()),
            (state, _) => Err(format!("out of place, {state:?}")),
        }
    }

    fn is_of(&mut self, cluster_id: &str) -> Result<(), String> {
        match self.cluster_id.get_or_insert_with(|| cluster_id.to_owned()) {
            known if known == cluster_id => Ok(()),
            known => Err(format!("another cluster than {known}")),
        }
    }

    fn begin(&mut self, holds: Option<u64>, revision: u64, cluster_id: &str) -> Result<(), String> {
        self.state = State::Arriving { revision };
        // Who says that he holds nothing may be given older state than he had.
        if Some(revision) < holds {
            return Err(format!("back in time for one who holds {holds:?}"));
        }
        self.is_of(cluster_id)
    }

    fn delta(&mut self, from: u64, to: u64, puts: &[(String, Version)], deletes: &[String]) -> Result<(), String> {
        let Some((revision, content)) = &mut self.held else {
            return Err("there is no table that it could change".into());
        };
        if from != *revision || to <= from {
            return Err(format!("a gap or a repetition: revision {revision} is held"));
        }
        if to > self.replay.last() {
            return Err("nobody wrote that".into());
        }
        let mut named = BTreeSet::new();
        let once = puts
            .iter()
            .map(|(spec, _)| spec)
            .chain(deletes)
            .all(|spec| named.insert(spec.as_str()));
        if !once {
            return Err("one route twice".into());
        }
        for spec in deletes {
            content.remove(spec);
        }
        for (spec, version) in puts {
            if version.modified <= from || version.modified > to {
                return Err(format!("{spec} is no change of these revisions"));
            }
            content.insert(spec.clone(), version.clone());
        }
        // Every change is there and is what was written; whatever was not written has not changed.
        for spec in named.into_iter().chain(self.replay.changed(from, to)) {
            let (found, expected) = (content.get(spec), self.replay.version(spec, to));
            if found != expected.as_ref() {
                return Err(format!("{spec} is {expected:?} then, not {found:?}"));
            }
        }
        *revision = to;
        self.counts.deltas += 1;
        self.counts.merged += usize::from(to - from > 1);
        self.counts.revisions += to - from;
        Ok(())
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.subscribers += other.subscribers;
        self.streams += other.streams;
        self.resumed += other.resumed;
        self.snapshots += other.snapshots;
        self.deltas += other.deltas;
        self.merged += other.merged;
        self.revisions += other.revisions;
        self.bookmarks += other.bookmarks;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} subscribers' {} streams ({} resumed, {} snapshots), {} deltas ({} merged) of {} revisions, {} bookmarks",
            self.subscribers,
            self.streams,
            self.resumed,
            self.snapshots,
            self.deltas,
            self.merged,
            self.revisions,
            self.bookmarks
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ask, Call, Told, digest};
    use super::*;

    /// `/a/` is 1 at revision 1, `/a/` and `/b/` are 2 at revision 2, `/b/` is gone at revision 3.
    fn replay() -> Replay {
        let two = vec![("/a/".into(), Some("2".into())), ("/b/".into(), Some("2".into()))];
        let writes = [vec![("/a/".into(), Some("1".into()))], two, vec![("/b/".into(), None)]];
        let calls: Vec<Call> = (1..)
            .zip(writes)
            .map(|(revision, changes)| Call {
                who: "w".into(),
                ask: Ask::Write(changes),
                began: revision,
                ended: Some((
                    revision,
                    Told::Written {
                        revision,
                        changed: true,
                    },
                )),
                left_open: false,
            })
            .collect();
        let mut wrong = Vec::new();
        let replay = Replay::of(&calls.iter().collect::<Vec<_>>(), &mut wrong);
        assert!(wrong.is_empty(), "{wrong:?}");
        replay
    }

    fn version(value: &str, modified: u64) -> Version {
        Version {
            value: value.into(),
            modified,
        }
    }

    fn delta(from: u64, to: u64, puts: &[(&str, &str, u64)], deletes: &[&str]) -> Event {
        Event::Delta {
            from,
            to,
            puts: puts
                .iter()
                .map(|(spec, value, modified)| ((*spec).into(), version(value, *modified)))
                .collect(),
            deletes: deletes.iter().map(|spec| (*spec).into()).collect(),
        }
    }

    fn snapshot(revision: u64, routes: &[(&str, &str, u64)]) -> [Event; 2] {
        let content: Content = routes
            .iter()
            .map(|(spec, value, modified)| ((*spec).to_owned(), version(value, *modified)))
            .collect();
        let digest = digest::of(&content).to_vec();
        let begin = Event::Snapshot {
            revision,
            cluster_id: "c".into(),
        };
        [begin, Event::Whole { content, digest }]
    }

    fn resumed(revision: u64) -> Event {
        Event::Resumed {
            revision,
            cluster_id: "c".into(),
        }
    }

    fn bookmark(revision: u64) -> Event {
        let digest = replay().digest(revision).unwrap_or_default().to_vec();
        Event::Bookmark { revision, digest }
    }

    /// One who has revision 1 from a snapshot, and then these events.
    fn after_the_first(events: impl IntoIterator<Item = Event>) -> (Counts, String) {
        let mut all = vec![Event::Start(None)];
        all.extend(snapshot(1, &[("/a/", "1", 1)]));
        all.extend(events);
        let mut wrong = Vec::new();
        let counts = check("s", &all, &replay(), &mut wrong);
        (counts, wrong.join("\n"))
    }

    #[test]
    fn what_is_promised_is_accepted_and_counted() {
        let both = [("/a/", "2", 2), ("/b/", "2", 2)];
        let (counts, wrong) = after_the_first([
            bookmark(1),
            delta(1, 2, &both, &[]),
            Event::Start(Some(2)),
            resumed(2),
            delta(2, 3, &[], &["/b/"]),
            bookmark(3),
        ]);
        assert_eq!(wrong, "");
        let seen = (
            counts.streams,
            counts.resumed,
            counts.snapshots,
            counts.revisions,
            counts.bookmarks,
        );
        assert_eq!(seen, (2, 1, 1, 2, 2));
        // Both revisions in one, the route that came and went not named at all, or named as gone.
        assert_eq!(after_the_first([delta(1, 3, &[("/a/", "2", 2)], &[])]).1, "");
        let (counts, wrong) = after_the_first([delta(1, 3, &[("/a/", "2", 2)], &["/b/"])]);
        assert_eq!((counts.merged, wrong.as_str()), (1, ""));
        let [begin, whole] = snapshot(3, &[("/a/", "2", 2)]);
        assert_eq!(after_the_first([begin, whole]).1, "");
    }

    #[test]
    fn what_breaks_a_promise_is_named() {
        let both = [("/a/", "2", 2), ("/b/", "2", 2)];
        let [begin, whole] = snapshot(1, &[("/a/", "1", 1)]);
        let [_, wrong_whole] = snapshot(3, &[("/a/", "1", 1)]);
        let [begin_last, _] = snapshot(3, &[]);
        for (events, words) in [
            (vec![delta(2, 3, &[], &["/b/"])], "a gap"),
            (vec![delta(1, 2, &both, &[]), delta(1, 2, &both, &[])], "a repetition"),
            (vec![delta(1, 1, &[], &[])], "a repetition"),
            // Half a revision.
            (vec![delta(1, 2, &both[..1], &[])], "/b/ is Some"),
            (vec![delta(1, 3, &both, &[])], "/b/ is None"),
            (vec![delta(1, 2, &[("/a/", "9", 2), both[1]], &[])], "/a/ is Some"),
            (vec![delta(1, 2, &[both[0], both[0], both[1]], &[])], "twice"),
            (vec![delta(1, 2, &both, &["/a/"])], "twice"),
            (vec![delta(1, 3, &[("/a/", "1", 1)], &[])], "no change of these"),
            (vec![delta(1, 4, &[], &[])], "nobody wrote"),
            (
                vec![delta(1, 2, &both, &[]), Event::Start(Some(2)), begin.clone()],
                "back in time",
            ),
            (vec![Event::Start(Some(1)), resumed(2)], "resumed for one"),
            (vec![begin_last, wrong_whole], "revision 3 has"),
            (vec![bookmark(2)], "overtakes"),
            (
                vec![Event::Bookmark {
                    revision: 1,
                    digest: vec![0; 32],
                }],
                "the digest is",
            ),
            (vec![whole], "out of place"),
            (vec![Event::Start(Some(1)), delta(1, 2, &both, &[])], "out of place"),
            (
                vec![
                    Event::Start(Some(1)),
                    Event::Resumed {
                        revision: 1,
                        cluster_id: "other".into(),
                    },
                ],
                "another cluster",
            ),
            (vec![Event::Unreadable("a damaged chunk".into())], "a damaged chunk"),
            // Nothing wrong, but the end is missing.
            (vec![delta(1, 2, &both, &[])], "was never given revision 3"),
        ] {
            let (_, wrong) = after_the_first(events.clone());
            assert!(wrong.contains(words), "{words:?} is not in {wrong:?}: {events:?}");
        }
    }
}

//! What clients saw, and whether it could have been: written apart from the engine, from the promises alone.
//!
//! Every write is repeated until it is decided, so at the end every revision has exactly one write that made it, or the
//! cluster has invented, lost or repeated one. The revisions give the order of the writes; the rest is a comparison with
//! the table that follows from that order.
//!
//! What is held is no longer listed and still served, so there are two tables. Holds end by the leader's clock, in revisions
//! that no client asked for: what ended is told by the next table that somebody was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};

use holdfast_table::{Digest, Entry, Epoch, Revision, Route, Table};

/// The table in plain words: value and revision by key.
pub type Content = BTreeMap<String, (String, u64)>;

/// What one client asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Puts (a value that nobody else writes) and deletes, all or nothing, if the key was last written at that revision.
    Write {
        /// No value: delete.
        changes: Vec<(String, Option<String>)>,
        /// 0: the key is absent.
        expect: Option<(String, u64)>,
        /// In the name of the hub that was given this epoch; 0: of nobody.
        hub: u64,
    },
    /// To be the hub that writes, and the only one.
    Open,
    /// The same once more, from the hub that was given this epoch: a copy that comes late.
    OpenAgain(u64),
    /// One key.
    Get(String),
    /// Everything.
    List,
}

/// What it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Applied.
    Written {
        /// That carries it.
        revision: u64,
        /// False if it changed nothing.
        changed: bool,
        /// How many of its deletions are held; all, or none.
        held: u32,
    },
    /// The expectation did not hold.
    Refused,
    /// Another hub has taken over.
    Fenced,
    /// The hub's epoch.
    Opened(u64),
    /// The value of the key and its revision, at the table's.
    Got(Option<(String, u64)>, u64),
    /// The whole table, its revision and digest.
    Listed(Content, u64, Digest),
}

/// One call. Its times are places in the one order in which everything was simulated.
#[derive(Clone, Debug)]
struct Call {
    who: String,
    ask: Ask,
    began: u64,
    ended: Option<(u64, Told)>,
}

/// A table that somebody served or was sent.
pub struct Sight {
    /// By whom.
    pub who: String,
    /// Which table.
    pub revision: u64,
    /// Its content.
    pub content: Content,
    /// Its digest, as whoever had it computed it.
    pub digest: Digest,
}

/// What there was at one revision.
#[derive(Clone, Default)]
struct Moment {
    /// To those who write and read.
    listed: Content,
    /// To subscribers.
    served: Content,
    /// A hold has ended, and nobody can tell which.
    unsure: bool,
}

impl Moment {
    fn listed(&self) -> &Content {
        &self.listed
    }

    fn served(&self) -> &Content {
        &self.served
    }
}

/// Everything that happened, as far as clients can tell.
#[derive(Default)]
pub struct History {
    now: u64,
    calls: Vec<Call>,
    sights: Vec<Sight>,
    /// Found while it happened.
    pub violations: Vec<String>,
    /// Stream frames checked.
    pub frames: u64,
    /// Attempts that got no good answer and were repeated.
    pub retries: u64,
    /// Moves of the leadership that were asked for and done.
    pub moves: u64,
    trace: DefaultHasher,
}

/// Counted at the end.
#[derive(Debug, Default)]
pub struct Counts {
    /// Writes decided.
    pub writes: u64,
    /// Refused among them.
    pub refused: u64,
    /// Refused because another hub has taken over.
    pub fenced: u64,
    /// Hubs that took over.
    pub hubs: u64,
    /// Of them, those whose call came once more.
    pub late_hubs: u64,
    /// Writes whose deletions were held.
    pub held: u64,
    /// Revisions in which holds ended by themselves.
    pub let_go: u64,
    /// Reads answered.
    pub reads: u64,
    /// Tables compared.
    pub sights: u64,
}

impl History {
    fn tick(&mut self, what: impl std::hash::Hash) -> u64 {
        what.hash(&mut self.trace);
        self.now += 1;
        self.now
    }

    /// A call begins.
    pub fn begin(&mut self, who: &str, ask: Ask) -> usize {
        let began = self.tick(format!("{who} {ask:?} {:?}", turmoil::sim_elapsed()));
        self.calls.push(Call {
            who: who.to_owned(),
            ask,
            began,
            ended: None,
        });
        self.calls.len() - 1
    }

    /// It is answered.
    pub fn end(&mut self, call: usize, told: Told) {
        let at = self.tick(format!("{call} {told:?} {:?}", turmoil::sim_elapsed()));
        self.calls[call].ended = Some((at, told));
    }

    /// It is given up: a read, which has done nothing.
    pub fn give_up(&mut self, call: usize) {
        self.tick(call);
        debug_assert!(matches!(self.calls[call].ask, Ask::Get(_) | Ask::List));
    }

    /// Somebody has a table.
    pub fn saw(&mut self, sight: Sight) {
        self.tick(format!("{} {} {}", sight.who, sight.revision, sight.digest));
        self.sights.push(sight);
    }

    /// How many hubs have asked to be the one that writes.
    pub fn hubs_asked(&self) -> u64 {
        self.calls.iter().filter(|call| matches!(call.ask, Ask::Open)).count() as u64
    }

    /// The same for the same run.
    pub fn fingerprint(&self) -> u64 {
        self.trace.finish()
    }

    /// Everything that was wrong.
    pub fn check(&self) -> (Counts, Vec<String>) {
        let mut wrong = self.violations.clone();
        let mut counts = Counts::default();
        let past = self.replay(&mut counts, &mut wrong);
        self.check_order(&mut wrong);
        self.check_fence(&mut wrong);
        for call in &self.calls {
            self.check_call(call, &past, &mut counts, &mut wrong);
        }
        for sight in &self.sights {
            counts.sights += 1;
            check_table(
                &sight.who,
                sight.revision,
                &sight.content,
                sight.digest,
                &past,
                Moment::served,
                &mut wrong,
            );
        }
        (counts, wrong)
    }

    /// The tables at every revision, from the writes, and from what was served where holds ended.
    fn replay(&self, counts: &mut Counts, wrong: &mut Vec<String>) -> Vec<Moment> {
        let mut by_revision: BTreeMap<u64, &Call> = BTreeMap::new();
        for call in &self.calls {
            match &call.ended {
                Some((
                    _,
                    Told::Written {
                        revision,
                        changed: true,
                        ..
                    },
                )) => {
                    if let Some(other) = by_revision.insert(*revision, call) {
                        wrong.push(format!(
                            "revision {revision} was acknowledged to two writes: {other:?} and {call:?}"
                        ));
                    }
                }
                None if matches!(call.ask, Ask::Write { .. } | Ask::Open | Ask::OpenAgain(_)) => {
                    wrong.push(format!("stuck: never decided after all faults had ended: {call:?}"));
                }
                _ => {}
            }
        }
        let mut served: BTreeMap<u64, &Content> = BTreeMap::new();
        for sight in &self.sights {
            served.entry(sight.revision).or_insert(&sight.content);
        }
        let told = self.calls.iter().filter_map(|call| call.ended.as_ref());
        let told = told.filter_map(|(_, told)| place(told)).map(|(revision, _)| revision);
        let last = told.chain(served.keys().copied()).max().unwrap_or(0);

        let mut past = vec![Moment::default()];
        let mut held: BTreeSet<&String> = BTreeSet::new();
        // Revisions that nobody asked for, and routes that were put while they may have been let go in one of these.
        let (mut unasked, mut perhaps) = (0, 0);
        for revision in 1..=last {
            let mut next = past.last().cloned().unwrap_or_default();
            match by_revision.get(&revision) {
                Some(call) => {
                    let holds = matches!(call.ended, Some((_, Told::Written { held: 1.., .. })));
                    counts.held += u64::from(holds);
                    let changes = match &call.ask {
                        Ask::Write { changes, .. } => &changes[..],
                        _ => &[],
                    };
                    for (key, value) in changes {
                        let Some(value) = value else {
                            if next.listed.remove(key).is_some() {
                                match holds {
                                    true => drop(held.insert(key)),
                                    false => drop(next.served.remove(key)),
                                }
                            }
                            continue;
                        };
                        if held.remove(key) && unasked > 0 {
                            perhaps += 1;
                        }
                        next.listed.insert(key.clone(), (value.clone(), revision));
                        next.served.insert(key.clone(), (value.clone(), revision));
                    }
                }
                None if held.is_empty() => wrong.push(format!(
                    "revision {revision} has no write that made it, and nothing is held: one was applied twice, or invented"
                )),
                None => {
                    counts.let_go += 1;
                    unasked += 1;
                }
            }
            if unasked > 0
                && let Some(content) = served.get(&revision)
            {
                let gone: Vec<&String> = held.iter().copied().filter(|key| !content.contains_key(*key)).collect();
                if gone.len() + perhaps < unasked {
                    wrong.push(format!(
                        "{unasked} revisions up to {revision} have no writes that made them, and only {gone:?} were let go"
                    ));
                }
                for key in gone {
                    held.remove(key);
                    next.served.remove(key);
                }
                (unasked, perhaps) = (0, 0);
            }
            next.unsure = unasked > 0;
            past.push(next);
        }
        past
    }

    /// What ended before something else began comes before it.
    fn check_order(&self, wrong: &mut Vec<String>) {
        let mut ends: Vec<(u64, u64)> = Vec::new();
        for call in &self.calls {
            if let Some((at, told)) = &call.ended
                && let Some((revision, _)) = place(told)
            {
                ends.push((*at, revision));
            }
        }
        ends.sort_unstable();
        // The highest revision known to anybody by then.
        let mut highest = 0;
        for end in &mut ends {
            highest = highest.max(end.1);
            end.1 = highest;
        }
        for call in &self.calls {
            let Some((_, told)) = &call.ended else { continue };
            let Some((revision, changed)) = place(told) else {
                continue;
            };
            let known = known_by(&ends, call.began);
            if revision < known || (changed && revision == known) {
                wrong.push(format!(
                    "not linearizable: revision {known} was known before this began: {call:?}"
                ));
            }
        }
    }

    /// The hub that took over last is the only one that writes, and it took over once.
    fn check_fence(&self, wrong: &mut Vec<String>) {
        let opens: Vec<(&Call, Option<(u64, u64)>)> = self
            .calls
            .iter()
            .filter(|call| matches!(call.ask, Ask::Open))
            .map(|call| match call.ended {
                Some((at, Told::Opened(epoch))) => (call, Some((at, epoch))),
                _ => (call, None),
            })
            .collect();
        let opened = || {
            opens
                .iter()
                .filter_map(|(call, end)| end.map(|(at, epoch)| (call, at, epoch)))
        };
        for (call, at, epoch) in opened() {
            let mut later = opened().filter(|(other, ..)| other.began > at);
            if let Some((other, _, other_epoch)) = later.find(|(.., other)| *other <= epoch) {
                wrong.push(format!(
                    "hub epoch {other_epoch} after {epoch}: {call:?}, then {other:?}"
                ));
            }
        }
        // Whoever was fenced before it heard its epoch was given one all the same.
        let given = opened().map(|(.., epoch)| epoch).max().unwrap_or(0);
        if given > self.hubs_asked() {
            wrong.push(format!(
                "hub epoch {given} was given, although only {} hubs have asked",
                opens.len()
            ));
        }
        for call in &self.calls {
            let Some((ended, told)) = &call.ended else { continue };
            // When another hub had taken over before this began, and when one may have before it ended.
            let had = |hub: u64| opened().any(|(_, at, epoch)| at < call.began && epoch > hub);
            let may_have = |hub: u64| {
                let mut others = opens.iter().filter(|(open, _)| open.began < *ended);
                others.any(|(_, end)| end.is_none_or(|(_, epoch)| epoch > hub))
            };
            match (&call.ask, told) {
                (Ask::Write { hub: hub @ 1.., .. } | Ask::OpenAgain(hub), Told::Fenced) if !may_have(*hub) => {
                    wrong.push(format!("fenced although nobody has taken over: {call:?}"));
                }
                (_, Told::Fenced) => {}
                (Ask::Write { hub: hub @ 1.., .. } | Ask::OpenAgain(hub), _) if had(*hub) => {
                    wrong.push(format!("not fenced, although another hub had taken over: {call:?}"));
                }
                (Ask::OpenAgain(hub), Told::Opened(epoch)) if hub != epoch => {
                    wrong.push(format!("one hub was given two epochs: {call:?}"));
                }
                _ => {}
            }
        }
    }

    fn check_call(&self, call: &Call, past: &[Moment], counts: &mut Counts, wrong: &mut Vec<String>) {
        let Some((ended, told)) = &call.ended else { return };
        match (&call.ask, told) {
            (Ask::Write { expect, .. }, Told::Written { revision, changed, .. }) => {
                counts.writes += 1;
                let before = revision - u64::from(*changed);
                if let Some((key, expected)) = expect
                    && modified(past, before, key) != Some(*expected)
                {
                    wrong.push(format!("applied although its expectation did not hold: {call:?}"));
                }
            }
            (
                Ask::Write {
                    expect: Some((key, expected)),
                    ..
                },
                Told::Refused,
            ) => {
                counts.writes += 1;
                counts.refused += 1;
                let (from, to) = self.window(call.began, *ended, past.len() as u64);
                if (from..=to).all(|revision| modified(past, revision, key) == Some(*expected)) {
                    wrong.push(format!("refused although its expectation held all the time: {call:?}"));
                }
            }
            (Ask::Write { hub: 1.., .. }, Told::Fenced) => {
                counts.writes += 1;
                counts.fenced += 1;
            }
            (Ask::Open, Told::Opened(_) | Told::Fenced) => counts.hubs += 1,
            (Ask::OpenAgain(_), Told::Opened(_) | Told::Fenced) => counts.late_hubs += 1,
            (Ask::Get(key), Told::Got(value, revision)) => {
                counts.reads += 1;
                let expected = past.get(*revision as usize).map(|moment| moment.listed.get(key));
                if expected != Some(value.as_ref()) {
                    wrong.push(format!("read something else than was written, {expected:?}: {call:?}"));
                }
            }
            (Ask::List, Told::Listed(content, revision, digest)) => {
                counts.reads += 1;
                check_table(&call.who, *revision, content, *digest, past, Moment::listed, wrong);
            }
            _ => wrong.push(format!("an answer to another question: {call:?}")),
        }
    }

    /// The revisions that the table may have had between two times.
    fn window(&self, began: u64, ended: u64, revisions: u64) -> (u64, u64) {
        let (mut from, mut to) = (0, revisions.saturating_sub(1));
        for call in &self.calls {
            let Some((
                at,
                Told::Written {
                    revision,
                    changed: true,
                    ..
                },
            )) = &call.ended
            else {
                continue;
            };
            if *at < began {
                from = from.max(*revision);
            }
            if call.began > ended {
                to = to.min(revision - 1);
            }
        }
        (from, to)
    }
}

/// The revision that an answer tells, and whether the call has made it.
fn place(told: &Told) -> Option<(u64, bool)> {
    match told {
        Told::Written { revision, changed, .. } => Some((*revision, *changed)),
        Told::Got(_, revision) | Told::Listed(_, revision, _) => Some((*revision, false)),
        Told::Refused | Told::Fenced | Told::Opened(_) => None,
    }
}

/// The highest revision known before `began`.
fn known_by(ends: &[(u64, u64)], began: u64) -> u64 {
    let before = ends.partition_point(|(at, _)| *at < began);
    before.checked_sub(1).map_or(0, |last| ends[last].1)
}

fn modified(past: &[Moment], revision: u64, key: &str) -> Option<u64> {
    let moment = past.get(usize::try_from(revision).ok()?)?;
    Some(moment.listed.get(key).map_or(0, |(_, modified)| *modified))
}

fn check_table(
    who: &str,
    revision: u64,
    content: &Content,
    digest: Digest,
    past: &[Moment],
    side: fn(&Moment) -> &Content,
    wrong: &mut Vec<String>,
) {
    let Some(moment) = past.get(usize::try_from(revision).unwrap_or(usize::MAX)) else {
        wrong.push(format!("{who} has revision {revision}, which nobody wrote"));
        return;
    };
    let expected = side(moment);
    if expected != content {
        wrong.push(format!(
            "{who} at revision {revision} has {content:?} instead of {expected:?}"
        ));
    } else if !moment.unsure && table(revision, &moment.served).digest() != digest {
        wrong.push(format!(
            "{who} at revision {revision} has the right routes and the wrong digest {digest}"
        ));
    }
}

/// A table made from nothing but words.
fn table(revision: u64, content: &Content) -> Table {
    let entries = content.iter().filter_map(|(key, (value, modified))| {
        Some(Entry {
            route: route(key, value)?,
            modified: Revision(*modified),
        })
    });
    Table::from_entries(Epoch::default(), Revision(revision), entries)
}

/// The route that stands for a value. Each key has its own target, or what is held could not be.
pub fn route(key: &str, value: &str) -> Option<Route> {
    let target = format!("http://10.0.0.1:8888/{}", key.replace('/', "+"));
    Route::parse(key, &target, &format!("{{\"w\":\"{value}\"}}"), "").ok()
}

/// The value that a route stands for.
pub fn value(data: &str) -> String {
    data.trim_start_matches("{\"w\":\"").trim_end_matches("\"}").to_owned()
}

/// A table in plain words.
pub fn content(table: &Table) -> Content {
    let entries = table.iter().map(|entry| {
        let route = &entry.route;
        (
            route.spec.as_str().to_owned(),
            (value(route.data.as_str()), entry.modified.0),
        )
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(history: &mut History, key: &str, value: &str, revision: u64) {
        let changes = vec![(key.to_owned(), Some(value.to_owned()))];
        let ask = Ask::Write {
            changes,
            expect: None,
            hub: 0,
        };
        let call = history.begin("w", ask);
        history.end(
            call,
            Told::Written {
                revision,
                changed: true,
                held: 0,
            },
        );
    }

    fn delete(history: &mut History, key: &str, revision: u64, held: u32) {
        let ask = Ask::Write {
            changes: vec![(key.to_owned(), None)],
            expect: None,
            hub: 0,
        };
        let call = history.begin("w", ask);
        let told = Told::Written {
            revision,
            changed: true,
            held,
        };
        history.end(call, told);
    }

    fn sees(history: &mut History, revision: u64, routes: &[(&str, &str, u64)]) {
        let content: Content = routes
            .iter()
            .map(|(key, value, modified)| ((*key).to_owned(), ((*value).to_owned(), *modified)))
            .collect();
        let digest = table(revision, &content).digest();
        history.saw(Sight {
            who: "s".into(),
            revision,
            content,
            digest,
        });
    }

    fn read(history: &mut History, key: &str, found: Option<(&str, u64)>, revision: u64) {
        let call = history.begin("r", Ask::Get(key.to_owned()));
        let found = found.map(|(value, revision)| (value.to_owned(), revision));
        history.end(call, Told::Got(found, revision));
    }

    fn problems(history: &History) -> String {
        history.check().1.join("\n")
    }

    #[test]
    fn the_checker_accepts_what_may_be_and_names_what_may_not() {
        let mut good = History::default();
        write(&mut good, "/a/", "1", 1);
        read(&mut good, "/a/", Some(("1", 1)), 1);
        write(&mut good, "/a/", "2", 2);
        read(&mut good, "/b/", None, 2);
        assert_eq!(problems(&good), "");

        let mut stale = History::default();
        write(&mut stale, "/a/", "1", 1);
        write(&mut stale, "/a/", "2", 2);
        read(&mut stale, "/a/", Some(("1", 1)), 1);
        assert!(problems(&stale).contains("not linearizable"), "{}", problems(&stale));

        let mut lost = History::default();
        write(&mut lost, "/a/", "1", 1);
        read(&mut lost, "/a/", None, 1);
        assert!(problems(&lost).contains("something else"), "{}", problems(&lost));

        let mut twice = History::default();
        write(&mut twice, "/a/", "1", 1);
        write(&mut twice, "/a/", "2", 3);
        assert!(problems(&twice).contains("applied twice"), "{}", problems(&twice));

        let mut fenced = History::default();
        let open = |history: &mut History, epoch| {
            let call = history.begin("h", Ask::Open);
            history.end(call, Told::Opened(epoch));
        };
        let hub_writes = |history: &mut History, told| {
            let ask = Ask::Write {
                changes: Vec::new(),
                expect: None,
                hub: 1,
            };
            let call = history.begin("h", ask);
            history.end(call, told);
        };
        let written = || Told::Written {
            revision: 0,
            changed: false,
            held: 0,
        };
        open(&mut fenced, 1);
        hub_writes(&mut fenced, written());
        open(&mut fenced, 2);
        hub_writes(&mut fenced, Told::Fenced);
        assert_eq!(problems(&fenced), "");
        hub_writes(&mut fenced, written());
        assert!(problems(&fenced).contains("not fenced"), "{}", problems(&fenced));

        let again = |history: &mut History, hub, told| {
            let call = history.begin("h", Ask::OpenAgain(hub));
            history.end(call, told);
        };
        let mut late = History::default();
        open(&mut late, 1);
        again(&mut late, 1, Told::Opened(1));
        open(&mut late, 2);
        again(&mut late, 1, Told::Fenced);
        assert_eq!(problems(&late), "");
        again(&mut late, 1, Told::Opened(3));
        assert!(problems(&late).contains("had taken over"), "{}", problems(&late));

        let mut copied = History::default();
        open(&mut copied, 1);
        open(&mut copied, 3);
        assert!(problems(&copied).contains("only 2 hubs"), "{}", problems(&copied));

        let mut alone = History::default();
        open(&mut alone, 1);
        hub_writes(&mut alone, Told::Fenced);
        assert!(
            problems(&alone).contains("nobody has taken over"),
            "{}",
            problems(&alone)
        );

        let mut shared = History::default();
        write(&mut shared, "/a/", "1", 1);
        write(&mut shared, "/b/", "2", 1);
        assert!(problems(&shared).contains("two writes"), "{}", problems(&shared));
    }

    #[test]
    fn what_is_held_is_served_and_not_listed_until_it_is_let_go() {
        let begun = || {
            let mut history = History::default();
            write(&mut history, "/a/", "1", 1);
            write(&mut history, "/b/", "2", 2);
            delete(&mut history, "/a/", 3, 1);
            history
        };
        let mut good = begun();
        read(&mut good, "/a/", None, 3);
        sees(&mut good, 3, &[("/a/", "1", 1), ("/b/", "2", 2)]);
        sees(&mut good, 4, &[("/b/", "2", 2)]);
        read(&mut good, "/b/", Some(("2", 2)), 5);
        assert!(
            problems(&good).contains("revision 5 has no write"),
            "{}",
            problems(&good)
        );

        let mut good = begun();
        // Let go in revision 4, which nobody saw, and put in the next one.
        write(&mut good, "/a/", "3", 5);
        sees(&mut good, 5, &[("/a/", "3", 5), ("/b/", "2", 2)]);
        assert_eq!(problems(&good), "");

        let mut listed = begun();
        read(&mut listed, "/a/", Some(("1", 1)), 3);
        assert!(problems(&listed).contains("something else"), "{}", problems(&listed));

        let mut lost = begun();
        sees(&mut lost, 3, &[("/b/", "2", 2)]);
        assert!(problems(&lost).contains("instead of"), "{}", problems(&lost));

        let mut kept = begun();
        sees(&mut kept, 4, &[("/a/", "1", 1), ("/b/", "2", 2)]);
        assert!(problems(&kept).contains("were let go"), "{}", problems(&kept));

        let mut not_held = begun();
        delete(&mut not_held, "/b/", 4, 0);
        sees(&mut not_held, 4, &[("/a/", "1", 1), ("/b/", "2", 2)]);
        assert!(problems(&not_held).contains("instead of"), "{}", problems(&not_held));
    }
}

//! `State::apply` against a plain model: maps from end to end, no sharing, no digests kept, no index.
//!
//! Whatever commands come, in whatever order and however often: the answers, the table, what is held in it, its digest and
//! every delta are what the model says.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_table::history::History;
use holdfast_table::sessions::{Session, SessionId, Sessions};
use holdfast_table::{
    Batch, Change, Command, Delta, Entry, HoldPolicy, Holds, HubEpoch, Namespace, Outcome, Precondition, Rejection,
    Revision, Route, RouteSpec, Settlement, Stamp, State, Table, Written,
};
use proptest::prelude::*;

/// Spellings, and which of them are one route: told here by hand, so that the parser cannot judge itself.
const SPECS: [(&str, u8); 10] = [
    ("/", 0),
    ("/hub/", 1),
    ("/user/a/", 2),
    ("/user/a/srv/", 3),
    ("/user/%40a/", 4),
    ("/user/@a/", 4),
    ("/user/a%2Fb/", 5),
    ("hub.org/", 6),
    ("hub.org/user/a/", 7),
    ("hub.org/user/%61/", 7),
];
const NAMESPACES: [&str; 2] = ["default", "other"];
/// So low that a few deletions of few routes are many.
const POLICY: HoldPolicy = HoldPolicy {
    routes_max: 1,
    percent_max: 40,
    window_ms: 50,
    hold_ms: 100,
};
/// Few enough for two routes to meet at one target now and then.
const PORTS: std::ops::Range<u16> = 1..9;

/// What comes next, and after how many milliseconds by a clock that may go back a little.
#[derive(Clone, Debug)]
enum Step {
    Write(Wish),
    /// Of some specs, those in the version that is there, and those in one that is not.
    Settle(Settlement, Vec<(usize, bool)>),
    Expire,
}

/// A write as a careless or unlucky client would send it; resolved against the model when it is its turn.
#[derive(Clone, Debug)]
struct Wish {
    namespace: usize,
    /// Spec and port; no port: delete.
    changes: Vec<(usize, Option<u16>)>,
    preconditions: Vec<Wanted>,
    session: Option<(u8, Sequence)>,
    expected: usize,
    to_come: usize,
    guarded: bool,
    /// As long as no session is forgotten, it makes no difference.
    retry: bool,
}

#[derive(Clone, Debug)]
enum Wanted {
    TableNow,
    TableWrong(u64),
    RouteNow(usize),
    RouteWrong(usize, u64),
    Absent(usize),
}

#[derive(Clone, Debug)]
enum Sequence {
    Next,
    Again,
    Skip(u64),
    Back(u64),
}

fn steps() -> impl Strategy<Value = Vec<(i64, Step)>> {
    let spec = || 0..SPECS.len();
    let change = (spec(), prop::option::weighted(0.6, PORTS));
    let wanted = prop_oneof![
        3 => Just(Wanted::TableNow),
        1 => (0u64..9).prop_map(Wanted::TableWrong),
        4 => spec().prop_map(Wanted::RouteNow),
        1 => (spec(), 0u64..9).prop_map(|(spec, revision)| Wanted::RouteWrong(spec, revision)),
        2 => spec().prop_map(Wanted::Absent),
    ];
    let sequence = prop_oneof![
        6 => Just(Sequence::Next),
        3 => Just(Sequence::Again),
        1 => (1u64..5).prop_map(Sequence::Skip),
        1 => (1u64..5).prop_map(Sequence::Back),
    ];
    let wish = (
        prop_oneof![5 => Just(0usize), 1 => Just(1usize)],
        prop::collection::vec(change, 0..7),
        prop::collection::vec(wanted, 0..2),
        prop::option::weighted(0.5, (0u8..4, sequence)),
        (
            prop_oneof![4 => Just(0usize), 1 => 0usize..4],
            prop_oneof![4 => Just(0usize), 1 => 0usize..9],
        ),
        (prop::bool::weighted(0.8), prop::bool::weighted(0.2)),
    );
    let wish = wish.prop_map(
        |(namespace, changes, preconditions, session, deletes, (guarded, retry))| Wish {
            namespace,
            changes,
            preconditions,
            session,
            expected: deletes.0,
            to_come: deletes.1,
            guarded,
            retry,
        },
    );
    let settlement = prop_oneof![Just(Settlement::Confirm), Just(Settlement::Reject)];
    let settled = prop::collection::vec((spec(), prop::bool::weighted(0.8)), 0..4);
    let step = prop_oneof![
        8 => wish.prop_map(Step::Write),
        1 => (settlement, settled).prop_map(|(settlement, specs)| Step::Settle(settlement, specs)),
        1 => Just(Step::Expire),
    ];
    prop::collection::vec((-10i64..30, step), 1..60)
}

type Answer = Result<Written, Rejection>;

/// A route, the revision of its put, and until when it is held, and since when.
type Kept = (Route, u64, Option<(u64, u64)>);

/// The model: the meaning of a write, in the plainest words.
#[derive(Clone, Default)]
struct Model {
    revision: u64,
    /// By identity, in the spelling last put.
    routes: BTreeMap<u8, Kept>,
    /// By identity: whose it was, and when it went.
    losses: BTreeMap<u8, (usize, u64)>,
    sessions: BTreeMap<u8, (u64, Answer)>,
}

impl Model {
    /// What writers see.
    fn shown(&self, identity: u8) -> Option<&Kept> {
        self.routes.get(&identity).filter(|(.., hold)| hold.is_none())
    }

    fn modified(&self, spec: usize) -> u64 {
        self.shown(SPECS[spec].1).map_or(0, |(_, revision, _)| *revision)
    }

    fn apply(&mut self, changes: &[(usize, Option<u16>)], wish: &Resolved, now: u64) -> Answer {
        if let Some((id, sequence)) = wish.session {
            match self.sessions.get(&id) {
                None if sequence != 1 => return Err(Rejection::SessionExpired),
                Some((last, answer)) if *last == sequence => return answer.clone(),
                Some((last, _)) if *last > sequence => {
                    return Err(Rejection::Sequence {
                        last: *last,
                        found: sequence,
                    });
                }
                _ => {}
            }
        }
        let answer = self.decide(changes, wish, now);
        if let Some((id, sequence)) = wish.session {
            self.sessions.insert(id, (sequence, answer.clone()));
        }
        answer
    }

    fn decide(&mut self, changes: &[(usize, Option<u16>)], wish: &Resolved, now: u64) -> Answer {
        for (spec, expected) in &wish.preconditions {
            let found = spec.map_or(self.revision, |spec| self.modified(spec));
            if found == *expected {
                continue;
            }
            let (expected, found) = (Revision(*expected), Revision(found));
            return Err(match spec {
                None => Rejection::TableRevision { expected, found },
                Some(spec) => Rejection::RouteRevision {
                    routespec: SPECS[*spec].0.into(),
                    expected,
                    found,
                },
            });
        }
        for (spec, _) in changes {
            if let Some((route, ..)) = self.shown(SPECS[*spec].1)
                && route.namespace.as_str() != NAMESPACES[wish.namespace]
            {
                return Err(Rejection::Namespace {
                    routespec: route.spec.as_str().into(),
                    owner: route.namespace.clone(),
                });
            }
        }
        let mut puts = Vec::new();
        let mut deleted = Vec::new();
        for (spec, port) in changes {
            let identity = SPECS[*spec].1;
            let shown = self.shown(identity);
            match port {
                Some(port) => {
                    let route = route(*spec, *port, wish.namespace);
                    if shown.is_none_or(|(kept, ..)| *kept != route) {
                        puts.push((identity, route));
                    }
                }
                None => deleted.extend(shown.map(|(route, ..)| (identity, route.clone()))),
            }
        }
        if puts.is_empty() && deleted.is_empty() {
            return Ok(self.written(false, 0));
        }
        if wish.guarded {
            let window = POLICY.window_ms;
            self.losses
                .retain(|_, (_, time)| *time + window > now && *time <= now + window);
        }
        let counts = wish.guarded && deleted.len() > wish.expected;
        let lost_before = self
            .losses
            .values()
            .filter(|(whose, _)| *whose == wish.namespace)
            .count();
        let ours = |(route, _, hold): &&Kept| route.namespace.as_str() == NAMESPACES[wish.namespace] && hold.is_none();
        let had = lost_before + self.routes.values().filter(ours).count();
        let lost = lost_before + deleted.len() + wish.to_come;
        let holds = counts && lost as u64 > POLICY.routes_max && lost as u64 * 100 > had as u64 * POLICY.percent_max;

        self.revision += 1;
        let mut touched = BTreeSet::new();
        for (identity, route) in puts {
            touched.insert(route.target.as_str().to_owned());
            self.losses.remove(&identity);
            self.routes.insert(identity, (route, self.revision, None));
        }
        for (identity, route) in &deleted {
            touched.insert(route.target.as_str().to_owned());
            if counts {
                self.losses.insert(*identity, (wish.namespace, now));
            }
            match self.routes.get_mut(identity) {
                Some((.., hold)) if holds => *hold = Some((now, now + POLICY.hold_ms)),
                _ => drop(self.routes.remove(identity)),
            }
        }
        let served: BTreeSet<String> = self
            .routes
            .values()
            .filter(|(.., hold)| hold.is_none())
            .map(|(route, ..)| route.target.as_str().to_owned())
            .collect();
        self.routes.retain(|_, (route, _, hold)| {
            let target = route.target.as_str();
            hold.is_none() || !touched.contains(target) || !served.contains(target)
        });
        let held = deleted
            .iter()
            .filter(|(identity, _)| self.routes.contains_key(identity));
        Ok(self.written(true, held.count()))
    }

    fn settle(&mut self, settlement: Settlement, specs: &[(usize, u64)]) -> Answer {
        let mut changed = false;
        for (spec, modified) in specs {
            let identity = SPECS[*spec].1;
            let Some((_, revision, hold @ Some(_))) = self.routes.get_mut(&identity) else {
                continue;
            };
            if *revision != *modified {
                continue;
            }
            changed = true;
            *hold = None;
            if settlement == Settlement::Confirm {
                self.routes.remove(&identity);
            }
            self.losses.remove(&identity);
        }
        self.revision += u64::from(changed);
        Ok(self.written(changed, 0))
    }

    fn expire(&mut self, now: u64) -> Answer {
        let before = self.routes.len();
        self.routes
            .retain(|_, (.., hold)| hold.is_none_or(|(_, until)| until > now));
        let changed = self.routes.len() != before;
        self.revision += u64::from(changed);
        Ok(self.written(changed, 0))
    }

    fn written(&self, changed: bool, held: usize) -> Written {
        Written {
            revision: Revision(self.revision),
            changed,
            held,
        }
    }
}

/// A wish in numbers: which preconditions, which session and sequence.
struct Resolved {
    namespace: usize,
    preconditions: Vec<(Option<usize>, u64)>,
    session: Option<(u8, u64)>,
    expected: usize,
    to_come: usize,
    guarded: bool,
}

fn resolve(wish: &Wish, model: &Model) -> Resolved {
    let precondition = |wanted: &Wanted| match wanted {
        Wanted::TableNow => (None, model.revision),
        Wanted::TableWrong(revision) => (None, *revision),
        Wanted::RouteNow(spec) => (Some(*spec), model.modified(*spec)),
        Wanted::RouteWrong(spec, revision) => (Some(*spec), *revision),
        Wanted::Absent(spec) => (Some(*spec), 0),
    };
    let session = wish.session.as_ref().map(|(id, sequence)| {
        let last = model.sessions.get(id).map_or(0, |(last, _)| *last);
        let sequence = match sequence {
            Sequence::Next => last + 1,
            Sequence::Again => last.max(1),
            Sequence::Skip(by) => last + 1 + by,
            Sequence::Back(by) => last.saturating_sub(*by).max(1),
        };
        (*id, sequence)
    });
    Resolved {
        namespace: wish.namespace,
        preconditions: wish.preconditions.iter().map(precondition).collect(),
        session,
        expected: wish.expected,
        to_come: wish.to_come,
        guarded: wish.guarded,
    }
}

fn route(spec: usize, port: u16, namespace: usize) -> Route {
    let target = format!("http://10.0.0.1:{port}");
    Route::parse(SPECS[spec].0, &target, "", NAMESPACES[namespace]).unwrap()
}

fn spec(spec: usize) -> RouteSpec {
    RouteSpec::parse(SPECS[spec].0).unwrap()
}

fn session_id(id: u8) -> SessionId {
    [id + 1; 16]
}

/// The command as the engine takes it, and the changes that are in it: no route twice.
fn command(wish: &Wish, resolved: &Resolved) -> (Command, Vec<(usize, Option<u16>)>) {
    let mut seen = BTreeSet::new();
    let mut kept = wish.changes.clone();
    kept.retain(|(spec, _)| seen.insert(SPECS[*spec].1));
    let changes = kept.iter().map(|(at, port)| match port {
        Some(port) => Change::Put(route(*at, *port, wish.namespace)),
        None => Change::Delete(spec(*at)),
    });
    let preconditions = resolved.preconditions.iter().map(|(at, revision)| match at {
        None => Precondition::TableRevision(Revision(*revision)),
        Some(at) => Precondition::RouteRevision(spec(*at), Revision(*revision)),
    });
    let namespace = Namespace::parse(NAMESPACES[wish.namespace]).unwrap();
    let batch = Batch::new(namespace, changes.collect(), preconditions.collect()).unwrap();
    let batch = batch.expecting(wish.expected).followed_by(wish.to_come);
    let batch = if wish.retry { batch.retried() } else { batch };
    let session = resolved.session.map(|(id, sequence)| (session_id(id), sequence));
    (Command { batch, session }, kept)
}

/// The table's content in the model's words.
fn content(table: &Table) -> BTreeMap<String, (Route, u64)> {
    let entries = table.iter();
    entries
        .map(|entry| {
            (
                entry.route.spec.as_str().to_owned(),
                (entry.route.clone(), entry.modified.0),
            )
        })
        .collect()
}

fn model_content(model: &Model) -> BTreeMap<String, (Route, u64)> {
    let routes = model.routes.values();
    routes
        .map(|(route, revision, _)| (route.spec.as_str().to_owned(), (route.clone(), *revision)))
        .collect()
}

/// A digest from nothing but the model's routes.
fn model_table(model: &Model) -> Table {
    let entries = model.routes.values().rev().map(|(route, revision, _)| Entry {
        route: route.clone(),
        modified: Revision(*revision),
    });
    Table::from_entries(Default::default(), Revision(model.revision), entries)
}

/// What is held, in the model's words: by spelling, since when and until when.
fn held(state: &State) -> BTreeMap<String, (u64, u64)> {
    let holds = state.holds.iter().map(|(key, hold)| {
        let entry = state.table.get(key).expect("whatever is held is in the table");
        (entry.route.spec.as_str().to_owned(), (hold.since_ms, hold.until_ms))
    });
    holds.collect()
}

fn model_held(model: &Model) -> BTreeMap<String, (u64, u64)> {
    let kept = model.routes.values();
    kept.filter_map(|(route, _, hold)| Some((route.spec.as_str().to_owned(), (*hold)?)))
        .collect()
}

fn losses(state: &State) -> BTreeSet<(String, String, u64)> {
    let losses = state.holds.losses().iter().map(|loss| {
        let key = loss.spec.key().as_str().to_owned();
        (key, loss.namespace.as_str().to_owned(), loss.time_ms)
    });
    losses.collect()
}

fn model_losses(model: &Model) -> BTreeSet<(String, String, u64)> {
    let key = |identity: u8| SPECS.iter().position(|(_, other)| *other == identity).unwrap();
    let losses = model.losses.iter().map(|(identity, (namespace, time))| {
        let key = spec(key(*identity)).key().as_str().to_owned();
        (key, NAMESPACES[*namespace].to_owned(), *time)
    });
    losses.collect()
}

/// The state as a snapshot carries it: rows, and what is computed from them.
fn over_a_snapshot(state: &State) -> State {
    let table = &state.table;
    let entries = table
        .sorted()
        .iter()
        .rev()
        .map(|entry| Entry::clone(entry))
        .collect::<Vec<_>>();
    let copy = Table::from_entries(table.epoch(), table.revision(), entries);
    let tombstones: Vec<_> = state
        .history
        .tombstones()
        .map(|(spec, at)| (spec.clone(), at))
        .collect();
    let sessions = state
        .sessions
        .iter()
        .map(|(id, session)| (*id, Session::clone(session)));
    let sessions = Sessions::new(sessions, state.sessions.forgotten_ms());
    let held = state.holds.iter().map(|(key, hold)| (key.clone(), *hold));
    let losses = state.holds.losses().iter().cloned();
    State {
        history: History::new(&copy, tombstones, state.history.horizon()),
        holds: Holds::new(&copy, held, losses),
        table: copy,
        sessions,
        hubs: state.hubs.clone(),
        lineage: state.lineage.clone(),
        node_id_max: state.node_id_max,
    }
}

/// A step as the engine takes it.
#[derive(Debug)]
enum Taken {
    Write(Command, Stamp),
    Settle(Settlement, Vec<(RouteSpec, Revision)>),
    Expire(Stamp),
}

/// Takes a step in the model; returns it for the engine, and what that has to answer.
fn taken(step: &Step, model: &mut Model, now: u64) -> (Taken, Answer) {
    let stamp = |guarded: bool| Stamp {
        time_ms: now,
        policy: guarded.then_some(POLICY),
    };
    match step {
        Step::Write(wish) => {
            let resolved = resolve(wish, model);
            let (command, changes) = command(wish, &resolved);
            let answer = model.apply(&changes, &resolved, now);
            (Taken::Write(command, stamp(wish.guarded)), answer)
        }
        Step::Settle(settlement, specs) => {
            let version = |(at, exact): &(usize, bool)| {
                let modified = model.routes.get(&SPECS[*at].1).map_or(7, |(_, revision, _)| *revision);
                (*at, modified + u64::from(!exact))
            };
            let specs: Vec<(usize, u64)> = specs.iter().map(version).collect();
            let routes = specs.iter().map(|(at, modified)| (spec(*at), Revision(*modified)));
            let taken = Taken::Settle(*settlement, routes.collect());
            (taken, model.settle(*settlement, &specs))
        }
        Step::Expire => (Taken::Expire(stamp(true)), model.expire(now)),
    }
}

fn apply(state: &mut State, index: u64, step: &Taken) -> Outcome {
    match step {
        Taken::Write(command, stamp) => state.apply(index, stamp, command),
        Taken::Settle(settlement, routes) => state.settle(*settlement, routes),
        Taken::Expire(stamp) => state.expire(stamp),
    }
}

fn once_each(delta: &Delta) -> bool {
    let puts = delta.puts.iter().map(|entry| entry.route.spec.key().as_str());
    let keys: Vec<&str> = puts
        .chain(delta.deletes.iter().map(|spec| spec.key().as_str()))
        .collect();
    keys.iter().collect::<BTreeSet<_>>().len() == keys.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn apply_is_its_model(steps in steps(), snapshot_at in 0usize..60) {
        let mut state = State::default();
        let mut replica = State::default();
        let mut model = Model::default();
        let mut past = vec![state.table.clone()];
        let mut now = 1_000;
        for (number, (elapsed, step)) in steps.iter().enumerate() {
            let index = number as u64 + 1;
            now = u64::try_from(now as i64 + elapsed).unwrap();
            let before = (state.table.clone(), model.clone());
            let (step, expected) = taken(step, &mut model, now);
            let unlogged = match &step {
                Taken::Write(command, _) => state.answer_without_log(command),
                Taken::Settle(..) | Taken::Expire(_) => None,
            };

            let outcome = apply(&mut state, index, &step);
            prop_assert_eq!(&outcome.result, &expected, "step {}: {:?}", index, step);
            prop_assert_eq!(outcome.delta.is_some(), model.revision != before.1.revision);

            // No log entry is saved that would have mattered, and none taken that would not.
            if let Taken::Write(command, _) = &step {
                match unlogged {
                    Some(answer) => {
                        prop_assert_eq!(&answer, &expected);
                        prop_assert!(outcome.delta.is_none());
                    }
                    None => {
                        let known = |id| before.1.sessions.keys().any(|known| session_id(*known) == id);
                        let unknown = command.session.is_some_and(|(id, _)| !known(id));
                        prop_assert!(outcome.delta.is_some() || expected.is_err() || unknown, "{:?}", command);
                    }
                }
            }

            // Counted without holes.
            prop_assert_eq!(state.table.revision(), Revision(model.revision));
            prop_assert!(model.revision - before.1.revision <= 1);
            prop_assert_eq!(content(&state.table), model_content(&model));
            prop_assert_eq!(state.table.digest(), state.table.recompute_digest());
            prop_assert_eq!(state.table.digest(), model_table(&model).digest());
            prop_assert_eq!(held(&state), model_held(&model));
            prop_assert_eq!(losses(&state), model_losses(&model));
            prop_assert_eq!(state.digest(), over_a_snapshot(&state).digest());
            prop_assert_eq!(state.rest_digest(), over_a_snapshot(&state).rest_digest());
            for (id, (sequence, answer)) in &model.sessions {
                let session = state.sessions.get(&session_id(*id)).expect("known to the model");
                prop_assert_eq!((session.sequence, &session.outcome), (*sequence, answer));
            }
            prop_assert_eq!(state.sessions.len(), model.sessions.len());

            // Who follows by deltas has the same table, and another replica the same everything.
            if let Some(delta) = &outcome.delta {
                let mut follower = before.0;
                follower.apply_delta(delta).unwrap();
                prop_assert_eq!(content(&follower), content(&state.table));
                prop_assert!(once_each(delta));
                past.push(state.table.clone());
            }
            if number == snapshot_at {
                replica = over_a_snapshot(&replica);
            }
            prop_assert_eq!(&apply(&mut replica, index, &step), &outcome);
            prop_assert_eq!(replica.digest(), state.digest());
            prop_assert_eq!(replica.rest_digest(), state.rest_digest());
        }
        // From every earlier revision one delta leads to the present, with each route once.
        for (state, mut earlier) in past.iter().flat_map(|table| [(&state, table.clone()), (&replica, table.clone())]) {
            let delta = state.history.since(earlier.revision(), &state.table).expect("above the horizon");
            prop_assert!(once_each(&delta));
            if delta.to > delta.from {
                earlier.apply_delta(&delta).unwrap();
            }
            prop_assert_eq!(content(&earlier), content(&state.table));
            prop_assert_eq!(earlier.digest(), state.table.digest());
        }
        prop_assert_eq!(state.history.since(state.table.revision().next(), &state.table), None);
    }
}

/// What a hub does, as its call arrives: perhaps late, perhaps for the second time.
#[derive(Clone, Debug)]
enum HubCall {
    /// This process opens the namespace.
    Open(usize, u8),
    /// Somebody writes with the epoch that this process was given, or would have been.
    Write(usize, u8),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The model is a list of all hubs that ever opened a namespace: the last one has it, and nobody comes back.
    #[test]
    fn only_the_last_hub_of_a_namespace_writes_and_none_comes_back(
        calls in prop::collection::vec(
            (prop::bool::ANY, 0usize..2, 0u8..12).prop_map(|(opens, namespace, hub)| match opens {
                true => HubCall::Open(namespace, hub),
                false => HubCall::Write(namespace, hub),
            }),
            1..80,
        ),
        snapshot_at in 0usize..80,
    ) {
        let mut state = State::default();
        let mut opened: [Vec<u8>; 2] = Default::default();
        for (number, call) in calls.iter().enumerate() {
            if number == snapshot_at {
                state = over_a_snapshot(&state);
            }
            let (HubCall::Open(at, hub) | HubCall::Write(at, hub)) = *call;
            let namespace = Namespace::parse(NAMESPACES[at]).unwrap();
            let place = opened[at].iter().position(|earlier| *earlier == hub);
            let epoch = HubEpoch(place.unwrap_or(opened[at].len()) as u64 + 1);
            let newest = HubEpoch(opened[at].len() as u64);
            let fenced = || Rejection::Fenced { namespace: namespace.clone(), newest, found: epoch };
            match call {
                HubCall::Open(..) => {
                    let expected = match place {
                        Some(place) if place + 1 < opened[at].len() => Err(fenced()),
                        Some(_) => Ok(epoch),
                        None => {
                            opened[at].push(hub);
                            Ok(epoch)
                        }
                    };
                    prop_assert_eq!(state.open_hub(&namespace, [hub; 16]), expected, "call {}: {:?}", number, call);
                }
                HubCall::Write(..) => {
                    let batch = Batch::put(route(at, number as u16 + 1, at)).by_hub(epoch);
                    let written = state.apply(number as u64 + 1, &Stamp::default(), &Command { batch, session: None }).result;
                    let expected = match place {
                        Some(place) if place + 1 == opened[at].len() => Ok(()),
                        Some(_) => Err(fenced()),
                        None => Err(Rejection::HubUnknown { namespace: namespace.clone(), found: epoch }),
                    };
                    prop_assert_eq!(written.map(drop), expected, "call {}: {:?}", number, call);
                }
            }
        }
    }
}

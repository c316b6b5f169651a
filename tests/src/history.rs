//! What clients saw of a cluster, and whether it could have been: written from the promises, apart from the engine.
//!
//! Three independent looks at the same history: [`linear`] needs nothing but what was asked and answered when; [`replay`]
//! rebuilds every revision's table from the writes alone and compares every answer with it; [`stream`] holds every frame
//! of every stream to the contract in `routes.proto` and to the replay.

pub mod digest;
pub mod linear;
pub mod replay;
pub mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};

use self::replay::Replay;
use self::stream::Event;

/// A route in plain words: the value stands for its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Nobody else writes it.
    pub value: String,
    /// The revision that wrote it.
    pub modified: u64,
}

/// A table in plain words, by routespec.
pub type Content = BTreeMap<String, Version>;

/// What one client asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Puts, and deletes where there is no value; all or nothing.
    Write(Vec<(String, Option<String>)>),
    /// One route.
    Get(String),
    /// Everything.
    List,
}

/// What it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Applied.
    Written {
        /// That carries it; the table's where nothing changed.
        revision: u64,
        /// False if it changed nothing.
        changed: bool,
    },
    /// The route, and the table's revision.
    Got(Option<Version>, u64),
    /// The table, its revision and its digest.
    Listed(Content, u64, Vec<u8>),
}

/// One call. Times are places in the one order in which all clients began and ended their calls.
#[derive(Clone, Debug)]
pub struct Call {
    /// The client.
    pub who: String,
    /// What for.
    pub ask: Ask,
    /// When.
    pub began: u64,
    /// When it was answered, and how. `None`: it may take effect at any time from its begin on, or never.
    pub ended: Option<(u64, Told)>,
    /// True if the client once turned to something else without knowing how it ends.
    pub left_open: bool,
}

/// Everything that clients did and saw. Clones share it.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    now: u64,
    calls: Vec<Option<Call>>,
    streams: BTreeMap<String, Vec<Event>>,
    repeats: u64,
    violations: Vec<String>,
}

/// What was checked.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Writes whose end is known.
    pub writes: usize,
    /// Of them, those that were left open for a while.
    pub left_open: usize,
    /// Reads of one route.
    pub gets: usize,
    /// Reads of the table.
    pub lists: usize,
    /// Answered writes that were sent again.
    pub repeats: u64,
    /// Routes, each checked for linearizability on its own.
    pub routes: usize,
    /// Revisions that were replayed: the last one.
    pub revisions: u64,
    /// Its digest.
    pub digest: digest::Sum,
    /// What came on streams.
    pub streams: stream::Counts,
}

impl History {
    /// A call begins; returns its number.
    pub fn begin(&self, who: &str, ask: Ask) -> usize {
        let mut record = self.record();
        record.now += 1;
        let call = Call {
            who: who.to_owned(),
            ask,
            began: record.now,
            ended: None,
            left_open: false,
        };
        record.calls.push(Some(call));
        record.calls.len() - 1
    }

    /// It is answered.
    pub fn end(&self, call: usize, told: Told) {
        let mut record = self.record();
        record.now += 1;
        let now = record.now;
        if let Some(call) = &mut record.calls[call] {
            call.ended = Some((now, told));
        }
    }

    /// A read got no answer, which has no meaning.
    pub fn forget(&self, call: usize) {
        self.record().calls[call] = None;
    }

    /// A write got no answer, which has no meaning yet.
    pub fn leave_open(&self, call: usize) {
        if let Some(call) = &mut self.record().calls[call] {
            call.left_open = true;
        }
    }

    /// An answered write was sent again, under the same sequence, and answered.
    pub fn repeated(&self, call: usize, told: &Told) {
        let mut record = self.record();
        record.repeats += 1;
        let first = record.calls[call].as_ref().and_then(|call| call.ended.clone());
        if first.as_ref().map(|(_, first)| first) != Some(told) {
            let call = &record.calls[call];
            let violation = format!("a repeated write got another answer, {told:?}: {call:?}");
            record.violations.push(violation);
        }
    }

    /// Something came on a stream, or one began or ended.
    pub fn streamed(&self, who: &str, event: Event) {
        let mut record = self.record();
        match record.streams.get_mut(who) {
            Some(events) => events.push(event),
            None => drop(record.streams.insert(who.to_owned(), vec![event])),
        }
    }

    /// Something that must never happen, found while it did.
    pub fn violation(&self, violation: String) {
        self.record().violations.push(violation);
    }

    /// Checks everything; nothing may be under way any more.
    ///
    /// # Errors
    /// Every violation.
    pub fn check(&self) -> Result<Counts> {
        let record = self.record();
        let calls: Vec<&Call> = record.calls.iter().flatten().collect();
        let mut wrong = record.violations.clone();
        let replay = Replay::of(&calls, &mut wrong);
        let mut counts = replay.check(&calls, &mut wrong);
        counts.repeats = record.repeats;
        counts.routes = linear::check(&calls, &mut wrong);
        for (who, events) in &record.streams {
            counts.streams += stream::check(who, events, &replay, &mut wrong);
        }
        match wrong.len() {
            0 => Ok(counts),
            found => bail!("{found} violations in {counts}:\n{}", first_of(&wrong)),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_of(wrong: &[String]) -> String {
    const SHOWN: usize = 20;
    wrong[..wrong.len().min(SHOWN)].join("\n")
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} writes ({} of them without an answer for a while), {} answered writes sent again, {} reads, {} lists, \
             {} routes' own histories, {} revisions replayed; {}",
            self.writes, self.left_open, self.repeats, self.gets, self.lists, self.routes, self.revisions, self.streams
        )
    }
}

//! History: what changed since a revision, each route once.
//!
//! An index of the live routes by the revision that wrote them, and the newest deletions. Catching up costs the routes
//! that changed, not the changes, and any revision above the horizon will do.

use std::cmp::Ordering;
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};

use crate::delta::Delta;
use crate::revision::Revision;
use crate::route::{RouteKey, RouteSpec};
use crate::table::{Entry, Table};

/// The most deletions remembered; a subscriber from before the oldest gets a snapshot.
pub const TOMBSTONES_MAX: usize = 65_536;

/// Which routes each revision left behind.
#[derive(Clone, Debug, Default)]
pub struct History {
    puts: OrdSet<Put>,
    deletes: OrdMap<(Revision, RouteKey), RouteSpec>,
    deleted_at: HashMap<RouteKey, Revision>,
    horizon: Revision,
}

/// A live route, ordered by the revision that wrote it.
#[derive(Clone, Debug)]
struct Put(Arc<Entry>);

impl Put {
    fn place(&self) -> (Revision, &RouteKey) {
        (self.0.modified, self.0.route.spec.key())
    }
}

impl Ord for Put {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Put {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Put {}

impl PartialEq for Put {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl History {
    /// The history of a table that came as a snapshot.
    pub fn new(table: &Table, tombstones: impl IntoIterator<Item = (RouteSpec, Revision)>, horizon: Revision) -> Self {
        let mut history = History {
            horizon,
            ..History::default()
        };
        for entry in table.iter() {
            history.puts.insert(Put(entry.clone()));
        }
        for (spec, revision) in tombstones {
            history.bury(spec, revision);
        }
        history
    }

    /// Notes what a batch changed, and the versions that are no more because of it. Returns the deletions that are no longer
    /// remembered: those of routes that are back, and the oldest beyond the bound.
    pub fn record(&mut self, delta: &Delta, replaced: &[Arc<Entry>]) -> Vec<RouteKey> {
        let mut forgotten = Vec::new();
        for entry in replaced {
            self.puts.remove(&Put(entry.clone()));
        }
        for spec in &delta.deletes {
            self.bury(spec.clone(), delta.to);
        }
        for entry in &delta.puts {
            let key = entry.route.spec.key();
            if let Some(revision) = self.deleted_at.remove(key) {
                self.deletes.remove(&(revision, key.clone()));
                forgotten.push(key.clone());
            }
            self.puts.insert(Put(entry.clone()));
        }
        while self.deletes.len() > TOMBSTONES_MAX
            && let Some(((revision, key), _)) = self.deletes.get_min().cloned()
        {
            self.deletes.remove(&(revision, key.clone()));
            self.deleted_at.remove(&key);
            self.horizon = revision;
            forgotten.push(key);
        }
        forgotten
    }

    /// How many routes changed between `from` and the present of `table`; `None` if that is no longer known, or more than
    /// `max`. Costs no more than `max`.
    pub fn changed_since(&self, from: Revision, table: &Table, max: usize) -> Option<usize> {
        if !self.reaches(from, table) {
            return None;
        }
        let deletes = self.deletes.keys().rev().take_while(|(revision, _)| *revision > from);
        let puts = self.puts_since(from).take(max.saturating_add(1)).count();
        let changed = puts + deletes.take(max.saturating_add(1)).count();
        (changed <= max).then_some(changed)
    }

    /// What leads from `from` to the present of `table`; `None` if that is no longer known.
    pub fn since(&self, from: Revision, table: &Table) -> Option<Delta> {
        if !self.reaches(from, table) {
            return None;
        }
        let deletes = self
            .deletes
            .iter()
            .rev()
            .take_while(|((revision, _), _)| *revision > from);
        Some(Delta {
            from,
            to: table.revision(),
            puts: self.puts_since(from).cloned().collect(),
            deletes: deletes.map(|(_, spec)| spec.clone()).collect(),
        })
    }

    /// Newest first.
    fn puts_since(&self, from: Revision) -> impl Iterator<Item = &Arc<Entry>> {
        let puts = self.puts.iter().rev().map(|Put(entry)| entry);
        puts.take_while(move |entry| entry.modified > from)
    }

    fn reaches(&self, from: Revision, table: &Table) -> bool {
        (self.horizon..=table.revision()).contains(&from)
    }

    /// Deletions at or below this revision are forgotten.
    pub fn horizon(&self) -> Revision {
        self.horizon
    }

    /// The deletions remembered, oldest first.
    pub fn tombstones(&self) -> impl Iterator<Item = (&RouteSpec, Revision)> {
        self.deletes.iter().map(|((revision, _), spec)| (spec, *revision))
    }

    fn bury(&mut self, spec: RouteSpec, revision: Revision) {
        let key = spec.key().clone();
        self.deleted_at.insert(key.clone(), revision);
        self.deletes.insert((revision, key), spec);
    }
}

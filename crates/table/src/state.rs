//! State: all that the log decides, and the one function that changes it.

use std::sync::Arc;

use crate::batch::{Batch, Change};
use crate::delta::Delta;
use crate::digest::Digest;
use crate::fence::{HUBS_MAX, HubEpoch, HubId, Hubs};
use crate::held::{Holds, Settlement, Stamp, Verdict};
use crate::history::History;
use crate::lineage::Lineage;
use crate::losses::Loss;
use crate::revision::Revision;
use crate::route::{Namespace, Route, RouteKey, RouteSpec};
use crate::sessions::{Admission, Session, SessionId, Sessions};
use crate::table::{Entry, Table};

/// A write that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The revision that carries it; the table's present one if it changed nothing.
    pub revision: Revision,
    /// False if it changed nothing.
    pub changed: bool,
    /// How many of its deletions are held: made for whoever writes and lists, and not for proxies.
    pub held: usize,
}

/// Why a batch was not applied. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Read the route again, then decide again.
    #[error("routespec {routespec:?}: expected mod_revision {expected}, found {found}")]
    RouteRevision {
        /// Which route.
        routespec: String,
        /// What the batch asked for; 0 is "absent".
        expected: Revision,
        /// What the table has.
        found: Revision,
    },
    /// List again, then decide again.
    #[error("expected table revision {expected}, found {found}")]
    TableRevision {
        /// What the batch asked for.
        expected: Revision,
        /// What the table has.
        found: Revision,
    },
    /// Another hub's route.
    #[error("routespec {routespec:?}: belongs to namespace {owner}")]
    Namespace {
        /// Which route.
        routespec: String,
        /// Whose it is.
        owner: Namespace,
    },
    /// Open a new session, and read back before writing again.
    #[error("the session is not known: it never wrote, or was forgotten as the least recently used")]
    SessionExpired,
    /// A late duplicate, or a writer's mistake.
    #[error("sequence {found}: the session is at {last} already")]
    Sequence {
        /// The session's last.
        last: u64,
        /// The write's.
        found: u64,
    },
    /// Stop: another hub serves this namespace now.
    #[error("namespace {namespace}: a newer hub has taken over (hub epoch {}, this one's is {})", newest.0, found.0)]
    Fenced {
        /// Whose routes.
        namespace: Namespace,
        /// The newest hub's.
        newest: HubEpoch,
        /// The caller's.
        found: HubEpoch,
    },
    /// Open the namespace, and read back before writing again.
    #[error("namespace {namespace}: hub epoch {} was never given here", found.0)]
    HubUnknown {
        /// Whose routes.
        namespace: Namespace,
        /// The write's.
        found: HubEpoch,
    },
    /// Use namespaces that are there.
    #[error("hubs have opened {HUBS_MAX} namespaces, and no more are kept")]
    TooManyHubs,
    /// As a session kept it, in words, over a snapshot.
    #[error("{message}")]
    Remembered {
        /// The reason word of the proto.
        reason: String,
        /// The message.
        message: String,
    },
}

/// One log entry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to change.
    pub batch: Batch,
    /// Who asks, and the how-manieth time; `None` for a writer that does not mind a second application.
    pub session: Option<(SessionId, u64)>,
}

/// What applying a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The writer's answer.
    pub result: Result<Written, Rejection>,
    /// What changed; `None` if nothing. Of no route at all, if it is only about what is held.
    pub delta: Option<Delta>,
    /// Routes that are held from now on, or listed again: in the versions that they had.
    pub marked: Vec<RouteKey>,
    /// Routes whose loss was noted or forgotten.
    pub losses: Vec<RouteKey>,
    /// What was forgotten to keep within the bounds.
    pub forgotten: Forgotten,
}

impl Outcome {
    fn of(result: Result<Written, Rejection>) -> Self {
        Outcome {
            result,
            delta: None,
            marked: Vec::new(),
            losses: Vec::new(),
            forgotten: Forgotten::default(),
        }
    }
}

/// Deletions and sessions that are no longer remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Deleted routes.
    pub tombstones: Vec<RouteKey>,
    /// Sessions.
    pub sessions: Vec<SessionId>,
}

/// The table, its history and the writers' sessions. A clone shares everything and costs nothing.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// All routes that proxies serve.
    pub table: Table,
    /// Those among them that are deleted for everybody else.
    pub holds: Holds,
    /// What changed when.
    pub history: History,
    /// Who wrote last.
    pub sessions: Sessions,
    /// Which hub may write.
    pub hubs: Hubs,
    /// The clusters that this one was made from. No write changes it.
    pub lineage: Lineage,
    /// The highest id that was ever given to a replica; no id up to it is given again. No write changes it.
    pub node_id_max: u64,
}

impl State {
    /// The route with this key, for whoever writes and lists: there is none if it is held.
    pub fn shown(&self, key: &RouteKey) -> Option<&Arc<Entry>> {
        self.table.get(key).filter(|_| !self.holds.contains(key))
    }

    /// Of the table and of what is held in it.
    pub fn digest(&self) -> Digest {
        self.table.digest().and(self.holds.digest())
    }

    /// Of everything else that the log decides: sessions, hubs, losses, remembered deletions, ancestors, highest id.
    /// Where it differs, two replicas will sooner or later do different things with the same write or subscriber.
    ///
    /// Costs all of these, whose numbers are bounded; it is not kept with every change.
    pub fn rest_digest(&self) -> Digest {
        let mut digest = Digest::default();
        self.sessions.iter().for_each(|session| digest.add(session));
        self.hubs.iter().for_each(|hub| digest.add(hub));
        self.holds.losses().iter().for_each(|loss| digest.add(loss));
        self.history.tombstones().for_each(|tombstone| digest.add(tombstone));
        let numbers = [self.history.horizon().0, self.node_id_max, self.sessions.forgotten_ms()];
        digest.add((&self.lineage, numbers));
        digest
    }

    /// Applies the command of the log entry at `index`. Pure and total: no clock, no random, no I/O, no order of a hash map.
    pub fn apply(&mut self, index: u64, stamp: &Stamp, command: &Command) -> Outcome {
        if let Some((id, sequence)) = &command.session {
            match self.sessions.admit(id, *sequence) {
                Admission::New => {}
                Admission::Replay(result) => return Outcome::of(result),
                Admission::Refuse(rejection) => return Outcome::of(Err(rejection)),
            }
        }
        // Kept like any refusal: whatever copy of the write comes later is refused, too.
        let written = match self.is_perhaps_forgotten(stamp, command) {
            true => Err(Rejection::SessionExpired),
            false => self.write(stamp, &command.batch),
        };
        let mut outcome = written.unwrap_or_else(|rejection| Outcome::of(Err(rejection)));
        if let Some((id, sequence)) = command.session {
            let session = Session {
                sequence,
                last_used_index: index,
                last_used_ms: stamp.time_ms,
                outcome: outcome.result.clone(),
            };
            outcome.forgotten.sessions = self.sessions.record(id, session);
        }
        outcome
    }

    /// True for the retry of a session's first write that may have been applied before the session was forgotten.
    fn is_perhaps_forgotten(&self, stamp: &Stamp, command: &Command) -> bool {
        let unknown = |(id, _): &(SessionId, u64)| !self.sessions.contains(id);
        command.batch.is_retry()
            && command.session.as_ref().is_some_and(unknown)
            && self.sessions.may_have_forgotten(stamp.time_ms)
    }

    fn write(&mut self, stamp: &Stamp, batch: &Batch) -> Result<Outcome, Rejection> {
        self.fence(batch)?;
        let hidden = |key: &RouteKey| self.holds.contains(key);
        self.table.check(batch, hidden)?;
        let (mut puts, mut deleted) = (Vec::new(), Vec::new());
        for change in self.table.effective(batch, hidden) {
            match change {
                Change::Put(route) => puts.push(route.clone()),
                Change::Delete(spec) => deleted.extend(self.shown(spec.key()).cloned()),
            }
        }
        if puts.is_empty() && deleted.is_empty() {
            return Ok(Outcome::of(Ok(self.unchanged())));
        }
        let mut losses = match stamp.policy {
            Some(policy) => self.holds.losses_mut().forget_old(stamp.time_ms, policy.window_ms),
            None => Vec::new(),
        };
        let verdict = self.holds.judge(stamp, batch, deleted.len());
        if verdict != Verdict::Expected {
            for entry in &deleted {
                let spec = &entry.route.spec;
                let noted = self.holds.losses_mut().note(Loss {
                    spec: spec.clone(),
                    namespace: batch.namespace().clone(),
                    time_ms: stamp.time_ms,
                });
                losses.extend(noted.then(|| spec.key().clone()));
            }
        }
        for route in &puts {
            let key = route.spec.key();
            match self.table.get(key) {
                Some(before) => self.holds.replace(before, route),
                None => self.holds.add(route),
            }
            losses.extend(self.holds.losses_mut().forget(key).then(|| key.clone()));
        }
        for entry in &deleted {
            self.holds.remove(entry);
            if let Verdict::Held(hold) = verdict {
                self.holds.hold(entry, hold);
            }
        }
        let mut gone = Vec::new();
        for route in puts.iter().chain(deleted.iter().map(|entry| &entry.route)) {
            for key in self.holds.overtaken(route) {
                gone.extend(self.let_go(&key));
            }
        }
        let (held, deleted): (Vec<_>, Vec<_>) = deleted
            .into_iter()
            .partition(|entry| self.holds.contains(entry.route.spec.key()));
        gone.extend(deleted);
        let marked = held.iter().map(|entry| entry.route.spec.key().clone()).collect();
        let mut outcome = self.commit(puts, &gone, marked, losses);
        if let Ok(written) = &mut outcome.result {
            written.held = held.len();
        }
        Ok(outcome)
    }

    /// What an operator, or a proxy that was refused a connection, has to say about routes that are held. Those that are not,
    /// or not in that version, are passed over.
    pub fn settle(&mut self, settlement: Settlement, routes: &[(RouteSpec, Revision)]) -> Outcome {
        let (mut gone, mut marked, mut losses) = (Vec::new(), Vec::new(), Vec::new());
        for (spec, modified) in routes {
            let key = spec.key();
            if self.table.get(key).is_none_or(|entry| entry.modified != *modified) {
                continue;
            }
            let Some(entry) = self.let_go(key) else { continue };
            // Somebody knows of it: it is no reason to hold others.
            losses.extend(self.holds.losses_mut().forget(key).then(|| key.clone()));
            match settlement {
                Settlement::Confirm => gone.push(entry),
                Settlement::Reject => {
                    self.holds.add(&entry.route);
                    marked.push(key.clone());
                }
            }
        }
        self.end_holds(&gone, marked, losses)
    }

    /// Lets go of routes whose holds have ended, [`EXPIRED_MAX`](crate::held::EXPIRED_MAX) of them at once.
    pub fn expire(&mut self, stamp: &Stamp) -> Outcome {
        let ended = self.holds.ended(stamp.time_ms);
        let gone: Vec<_> = ended.iter().filter_map(|key| self.let_go(key)).collect();
        self.end_holds(&gone, Vec::new(), Vec::new())
    }

    fn end_holds(&mut self, gone: &[Arc<Entry>], marked: Vec<RouteKey>, losses: Vec<RouteKey>) -> Outcome {
        match gone.is_empty() && marked.is_empty() {
            true => Outcome::of(Ok(self.unchanged())),
            false => self.commit(Vec::new(), gone, marked, losses),
        }
    }

    /// Ends a hold; `None` if there is none.
    fn let_go(&mut self, key: &RouteKey) -> Option<Arc<Entry>> {
        let entry = self.table.get(key).filter(|_| self.holds.contains(key))?.clone();
        self.holds.remove(&entry);
        Some(entry)
    }

    fn commit(
        &mut self,
        puts: Vec<Route>,
        gone: &[Arc<Entry>],
        marked: Vec<RouteKey>,
        losses: Vec<RouteKey>,
    ) -> Outcome {
        let (delta, replaced) = self.table.commit(puts, gone);
        let forgotten = Forgotten {
            tombstones: self.history.record(&delta, &replaced),
            sessions: Vec::new(),
        };
        let written = Written {
            revision: delta.to,
            changed: true,
            held: 0,
        };
        Outcome {
            result: Ok(written),
            delta: Some(delta),
            marked,
            losses,
            forgotten,
        }
    }

    fn unchanged(&self) -> Written {
        Written {
            revision: self.table.revision(),
            changed: false,
            held: 0,
        }
    }

    /// Lets a hub write to a namespace, and nobody who opened it before.
    ///
    /// # Errors
    /// As [`Hubs::open`]: nothing changed.
    pub fn open_hub(&mut self, namespace: &Namespace, id: HubId) -> Result<HubEpoch, Rejection> {
        self.hubs.open(namespace, id)
    }

    fn fence(&self, batch: &Batch) -> Result<(), Rejection> {
        match batch.hub() {
            Some(epoch) => self.hubs.check(batch.namespace(), epoch),
            None => Ok(()),
        }
    }

    /// The answer to a command that needs no log entry, because it would change nothing and its writer is known.
    ///
    /// Its sequence is not remembered then. So this is not to be asked for a command of which an earlier copy may be
    /// under way still: that one would be applied when it comes, whatever has changed since.
    pub fn answer_without_log(&self, command: &Command) -> Option<Result<Written, Rejection>> {
        if let Some((id, sequence)) = &command.session {
            match self.sessions.admit(id, *sequence) {
                // The first write of a session takes an entry even if it changes nothing: it makes the session known.
                Admission::New if !self.sessions.contains(id) => return None,
                Admission::New => {}
                Admission::Replay(result) => return Some(result),
                Admission::Refuse(rejection) => return Some(Err(rejection)),
            }
        }
        if let Err(rejection) = self.fence(&command.batch) {
            return Some(Err(rejection));
        }
        let hidden = |key: &RouteKey| self.holds.contains(key);
        let (table, batch) = (&self.table, &command.batch);
        let is_noop = table.check(batch, hidden).is_ok() && table.effective(batch, hidden).next().is_none();
        is_noop.then(|| Ok(self.unchanged()))
    }
}

#[cfg(test)]
mod tests;

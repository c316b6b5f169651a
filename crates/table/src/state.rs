//! State: all that the log decides, and the one function that changes it.

use crate::batch::Batch;
use crate::delta::Delta;
use crate::fence::{HUBS_MAX, HubEpoch, HubId, Hubs};
use crate::history::History;
use crate::lineage::Lineage;
use crate::revision::Revision;
use crate::route::{Namespace, RouteKey};
use crate::sessions::{Admission, Session, SessionId, Sessions};
use crate::table::Table;

/// A write that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The revision that carries it; the table's present one if it changed nothing.
    pub revision: Revision,
    /// False if it changed nothing.
    pub changed: bool,
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
    /// What changed; `None` if nothing.
    pub delta: Option<Delta>,
    /// What was forgotten to keep within the bounds.
    pub forgotten: Forgotten,
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
    /// All routes.
    pub table: Table,
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
    /// Applies the command of the log entry at `index`. Pure and total: no clock, no random, no I/O, no order of a hash map.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        let mut forgotten = Forgotten::default();
        if let Some((id, sequence)) = &command.session {
            match self.sessions.admit(id, *sequence) {
                Admission::New => {}
                Admission::Replay(result) => {
                    return Outcome {
                        result,
                        delta: None,
                        forgotten,
                    };
                }
                Admission::Refuse(rejection) => {
                    return Outcome {
                        result: Err(rejection),
                        delta: None,
                        forgotten,
                    };
                }
            }
        }
        let fenced = self.fence(&command.batch);
        let applied = fenced.and_then(|()| self.table.replace(&command.batch));
        let result = match &applied {
            Ok((delta, _)) => Ok(Written {
                revision: delta.to,
                changed: !delta.is_empty(),
            }),
            Err(rejection) => Err(rejection.clone()),
        };
        let delta = match applied {
            Ok((delta, replaced)) if !delta.is_empty() => {
                forgotten.tombstones = self.history.record(&delta, &replaced);
                Some(delta)
            }
            _ => None,
        };
        if let Some((id, sequence)) = command.session {
            let session = Session {
                sequence,
                last_used_index: index,
                outcome: result.clone(),
            };
            forgotten.sessions = self.sessions.record(id, session);
        }
        Outcome {
            result,
            delta,
            forgotten,
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
        let unchanged = Written {
            revision: self.table.revision(),
            changed: false,
        };
        self.table.is_noop(&command.batch).then_some(Ok(unchanged))
    }
}

#[cfg(test)]
mod tests;

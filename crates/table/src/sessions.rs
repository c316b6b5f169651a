//! Sessions: a retry after a lost answer is applied once (Raft thesis, section 6.3).
//!
//! A writer numbers its writes. The state machine keeps the last number of each session with its outcome, so that a
//! repeated write is answered instead of applied. Numbers may be skipped, for a write that changes nothing takes no
//! log entry, but they never go back.

use imbl::{HashMap, OrdMap};

use crate::state::{Rejection, Written};

/// The most sessions kept; beyond, the one least recently used is forgotten.
pub const SESSIONS_MAX: usize = 10_000;

/// Chosen by the writer at random.
pub type SessionId = [u8; 16];

/// What is known of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Of the last write.
    pub sequence: u64,
    /// The log index of the last write.
    pub last_used_index: u64,
    /// How the last write ended.
    pub outcome: Result<Written, Rejection>,
}

/// What to do with a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Apply it.
    New,
    /// It was applied before: this was its answer.
    Replay(Result<Written, Rejection>),
    /// Refuse it.
    Refuse(Rejection),
}

/// All sessions, least recently used first out.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    by_id: HashMap<SessionId, Session>,
    by_use: OrdMap<(u64, SessionId), ()>,
}

impl Sessions {
    /// Decides about one write. The first write of a session has sequence 1.
    pub fn admit(&self, id: &SessionId, sequence: u64) -> Admission {
        match self.by_id.get(id) {
            None if sequence == 1 => Admission::New,
            None => Admission::Refuse(Rejection::SessionExpired),
            Some(session) if sequence == session.sequence => Admission::Replay(session.outcome.clone()),
            Some(session) if sequence > session.sequence => Admission::New,
            Some(session) => Admission::Refuse(Rejection::Sequence {
                last: session.sequence,
                found: sequence,
            }),
        }
    }

    /// What is known of one session.
    pub fn get(&self, id: &SessionId) -> Option<&Session> {
        self.by_id.get(id)
    }

    /// True if the session has written before.
    pub fn contains(&self, id: &SessionId) -> bool {
        self.by_id.contains_key(id)
    }

    /// Keeps the outcome of the session's newest write. Returns the sessions it forgot for it, least recently used first.
    pub fn record(&mut self, id: SessionId, session: Session) -> Vec<SessionId> {
        if let Some(before) = self.by_id.get(&id) {
            self.by_use.remove(&(before.last_used_index, id));
        }
        self.by_use.insert((session.last_used_index, id), ());
        self.by_id.insert(id, session);
        let mut forgotten = Vec::new();
        while self.by_id.len() > SESSIONS_MAX
            && let Some(((index, oldest), ())) = self.by_use.get_min().cloned()
        {
            self.by_use.remove(&(index, oldest));
            self.by_id.remove(&oldest);
            forgotten.push(oldest);
        }
        forgotten
    }

    /// Every session, least recently used first.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.by_use.keys().filter_map(|(_, id)| self.by_id.get_key_value(id))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::Revision;

    fn written(revision: u64) -> Result<Written, Rejection> {
        Ok(Written {
            revision: Revision(revision),
            changed: true,
            held: 0,
        })
    }

    fn id(n: u64) -> SessionId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        id
    }

    #[test]
    fn a_repeated_write_is_answered_and_an_older_one_refused() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&id(1), 1), Admission::New);
        sessions.record(
            id(1),
            Session {
                sequence: 1,
                last_used_index: 7,
                outcome: written(3),
            },
        );
        assert_eq!(sessions.admit(&id(1), 1), Admission::Replay(written(3)));
        assert_eq!(sessions.admit(&id(1), 4), Admission::New);
        sessions.record(
            id(1),
            Session {
                sequence: 4,
                // Two writes of one session can be in one log entry.
                last_used_index: 7,
                outcome: written(5),
            },
        );
        assert_eq!(sessions.iter().count(), 1);
        assert_eq!(
            sessions.admit(&id(1), 1),
            Admission::Refuse(Rejection::Sequence { last: 4, found: 1 })
        );
        assert_eq!(sessions.admit(&id(2), 2), Admission::Refuse(Rejection::SessionExpired));
    }

    #[test]
    fn the_least_recently_used_session_is_forgotten_and_told_so() {
        let mut sessions = Sessions::default();
        for n in 0..SESSIONS_MAX as u64 {
            sessions.record(
                id(n),
                Session {
                    sequence: 1,
                    last_used_index: n,
                    outcome: written(n),
                },
            );
        }
        sessions.record(
            id(0),
            Session {
                sequence: 2,
                last_used_index: 20_000,
                outcome: written(1),
            },
        );
        sessions.record(
            id(99_999),
            Session {
                sequence: 1,
                last_used_index: 20_001,
                outcome: written(2),
            },
        );
        assert_eq!(sessions.len(), SESSIONS_MAX);
        assert_eq!(sessions.iter().count(), SESSIONS_MAX);
        assert_eq!(sessions.admit(&id(1), 2), Admission::Refuse(Rejection::SessionExpired));
        assert_eq!(sessions.admit(&id(0), 3), Admission::New);
    }
}

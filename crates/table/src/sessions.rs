//! Sessions: a retry after a lost answer is applied once (Raft thesis, section 6.3).
//!
//! A writer numbers its writes. The state machine keeps the last number of each session with its outcome, so that a
//! repeated write is answered instead of applied. Numbers may be skipped, for a write that changes nothing takes no
//! log entry, but they never go back.
//!
//! Which sessions there ever were is not known, for writers choose their ids: the first write of a session that is not
//! kept is that of a new one, or of one that was forgotten. So it is refused if it says that it is a retry, for as long as
//! those that were forgotten may be repeated.

use imbl::{HashMap, OrdMap};

use crate::state::{Rejection, Written};

/// The most sessions kept; beyond, the one least recently used is forgotten.
pub const SESSIONS_MAX: usize = 10_000;

/// How long after a write its writer may repeat it, by the leaders' clocks. Two hours, so that it is still one if two
/// clocks are an hour apart.
pub const RETRY_MS: u64 = 2 * 60 * 60 * 1_000;

/// Chosen by the writer at random.
pub type SessionId = [u8; 16];

/// What is known of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Of the last write.
    pub sequence: u64,
    /// The log index of the last write.
    pub last_used_index: u64,
    /// When that was, by the leader's clock; Unix milliseconds.
    pub last_used_ms: u64,
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
    // The last use of any that was forgotten; 0 if none was.
    forgotten_ms: u64,
}

impl Sessions {
    /// As they were kept, and [when the last one was used](Self::forgotten_ms) that was not.
    pub fn new(sessions: impl IntoIterator<Item = (SessionId, Session)>, forgotten_ms: u64) -> Self {
        let mut kept = Sessions {
            forgotten_ms,
            ..Sessions::default()
        };
        for (id, session) in sessions {
            kept.record(id, session);
        }
        kept
    }

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

    /// True if a session that wrote less than [`RETRY_MS`] ago may not be known any more.
    pub fn may_have_forgotten(&self, now_ms: u64) -> bool {
        self.forgotten_ms > 0 && now_ms < self.forgotten_ms.saturating_add(RETRY_MS)
    }

    /// When the last one was used of those that are forgotten; 0 if none is. All that were used later are known.
    pub fn forgotten_ms(&self) -> u64 {
        self.forgotten_ms
    }

    /// Keeps the outcome of the session's newest write. Returns the sessions it forgot for it, least recently used first.
    pub fn record(&mut self, id: SessionId, session: Session) -> Vec<SessionId> {
        // The clock of a leader that was far ahead shall not be believed until its time has come.
        let latest_ms = session.last_used_ms.saturating_add(RETRY_MS / 2);
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
            if let Some(session) = self.by_id.remove(&oldest) {
                self.forgotten_ms = self.forgotten_ms.max(session.last_used_ms).min(latest_ms);
            }
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
                last_used_ms: 1_000 + 7,
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
                last_used_ms: 1_000 + 7,
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
                    last_used_ms: 1_000 + n,
                    outcome: written(n),
                },
            );
        }
        sessions.record(
            id(0),
            Session {
                sequence: 2,
                last_used_index: 20_000,
                last_used_ms: 1_000 + 20_000,
                outcome: written(1),
            },
        );
        sessions.record(
            id(99_999),
            Session {
                sequence: 1,
                last_used_index: 20_001,
                last_used_ms: 1_000 + 20_001,
                outcome: written(2),
            },
        );
        assert_eq!(sessions.len(), SESSIONS_MAX);
        assert_eq!(sessions.iter().count(), SESSIONS_MAX);
        assert_eq!(sessions.admit(&id(1), 2), Admission::Refuse(Rejection::SessionExpired));
        assert_eq!(sessions.admit(&id(0), 3), Admission::New);
    }

    #[test]
    fn it_is_known_until_when_a_retry_may_be_that_of_a_forgotten_session() {
        let used = |ms: u64| Session {
            sequence: 1,
            last_used_index: ms,
            last_used_ms: ms,
            outcome: written(1),
        };
        let mut sessions = Sessions::new((1..=SESSIONS_MAX as u64).map(|n| (id(n), used(n))), 0);
        assert!(!sessions.may_have_forgotten(0) && !sessions.may_have_forgotten(u64::MAX));
        // The newcomer is not the one that is forgotten, whatever the clock of its leader.
        let newcomer = Session {
            last_used_ms: 0,
            ..used(20_000)
        };
        assert_eq!(sessions.record(id(99_999), newcomer), [id(1)]);
        sessions.record(id(99_998), used(20_001));
        assert_eq!(sessions.forgotten_ms(), 2);
        assert!(sessions.may_have_forgotten(1) && sessions.may_have_forgotten(1 + RETRY_MS));
        assert!(!sessions.may_have_forgotten(2 + RETRY_MS));
        let kept = sessions.iter().map(|(id, session)| (*id, session.clone()));
        let copy = Sessions::new(kept, sessions.forgotten_ms());
        assert_eq!((copy.len(), copy.forgotten_ms()), (SESSIONS_MAX, 2));
    }
}

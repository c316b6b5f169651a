//! Digest: the same table, the same digest.

use std::fmt;

use crate::fence::Hub;
use crate::held::Hold;
use crate::lineage::Lineage;
use crate::losses::Loss;
use crate::revision::Revision;
use crate::route::{Namespace, RouteKey, RouteSpec};
use crate::sessions::{Session, SessionId};
use crate::table::Entry;

/// An order-independent hash of a table, or of what is kept beside it: the sum, modulo 2^256, of the BLAKE3 hashes of
/// its entries.
///
/// It changes by one hash per changed route. It finds accidents and bugs, not forgers: whoever may choose very many
/// routes could in theory find two tables with one sum.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Digest([u64; 4]);

impl Digest {
    pub(crate) fn add(&mut self, term: impl Into<Term>) {
        let Term(term) = term.into();
        let mut carry = false;
        for (limb, term) in self.0.iter_mut().zip(term) {
            (*limb, carry) = carrying(limb.overflowing_add(term), carry, u64::overflowing_add);
        }
    }

    pub(crate) fn remove(&mut self, term: impl Into<Term>) {
        let Term(term) = term.into();
        let mut borrow = false;
        for (limb, term) in self.0.iter_mut().zip(term) {
            (*limb, borrow) = carrying(limb.overflowing_sub(term), borrow, u64::overflowing_sub);
        }
    }

    /// The digest of what either one is of.
    #[must_use]
    pub fn and(mut self, other: Digest) -> Self {
        self.add(Term(other.0));
        self
    }

    /// 32 bytes, least significant first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, limb) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&limb.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`to_bytes`](Self::to_bytes); `None` unless there are exactly 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        let mut limbs = [0; 4];
        for (limb, chunk) in limbs.iter_mut().zip(bytes.chunks_exact(8)) {
            *limb = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        Some(Digest(limbs))
    }
}

fn carrying((value, first): (u64, bool), carry: bool, step: fn(u64, u64) -> (u64, bool)) -> (u64, bool) {
    let (value, second) = step(value, u64::from(carry));
    (value, first || second)
}

/// The hash of one thing, as a number.
pub(crate) struct Term([u64; 4]);

impl From<&Entry> for Term {
    fn from(entry: &Entry) -> Self {
        let route = &entry.route;
        let fields = [
            route.spec.as_str(),
            route.target.as_str(),
            route.data.as_str(),
            route.namespace.as_str(),
        ];
        Term::hash(&fields, &[entry.modified.0])
    }
}

impl From<(&RouteKey, &Hold)> for Term {
    fn from((key, hold): (&RouteKey, &Hold)) -> Self {
        Term::hash(&["held", key.as_str()], &[hold.since_ms, hold.until_ms])
    }
}

impl From<(&SessionId, &Session)> for Term {
    fn from((id, session): (&SessionId, &Session)) -> Self {
        let [is_ok, revision, changed, held] = match &session.outcome {
            Ok(written) => [1, written.revision.0, u64::from(written.changed), written.held as u64],
            // Not its words, which another version may choose otherwise.
            Err(_) => [0; 4],
        };
        Term::hash(
            &[b"session".as_slice(), id],
            &[
                session.sequence,
                session.last_used_index,
                session.last_used_ms,
                is_ok,
                revision,
                changed,
                held,
            ],
        )
    }
}

impl From<(&Namespace, &Hub)> for Term {
    fn from((namespace, hub): (&Namespace, &Hub)) -> Self {
        let mut fields = vec![b"hub".as_slice(), namespace.as_str().as_bytes(), &hub.id];
        fields.extend(hub.predecessors.iter().map(|id| id.as_slice()));
        Term::hash(&fields, &[hub.epoch.0])
    }
}

impl From<&Loss> for Term {
    fn from(loss: &Loss) -> Self {
        Term::hash(&["loss", loss.spec.as_str(), loss.namespace.as_str()], &[loss.time_ms])
    }
}

/// A route that was deleted at a revision.
impl From<(&RouteSpec, Revision)> for Term {
    fn from((spec, revision): (&RouteSpec, Revision)) -> Self {
        Term::hash(&["tombstone", spec.as_str()], &[revision.0])
    }
}

/// The ancestors in their order, and what is only a number.
impl From<(&Lineage, [u64; 3])> for Term {
    fn from((lineage, numbers): (&Lineage, [u64; 3])) -> Self {
        let fields: Vec<_> = std::iter::once("lineage").chain(lineage.iter()).collect();
        Term::hash(&fields, &numbers)
    }
}

impl Term {
    fn hash<F: AsRef<[u8]>>(fields: &[F], numbers: &[u64]) -> Self {
        // In one piece, which takes half the time that it takes a hasher in so many.
        let mut bytes = Vec::with_capacity(512);
        for field in fields {
            let field = field.as_ref();
            bytes.extend_from_slice(&(field.len() as u64).to_le_bytes());
            bytes.extend_from_slice(field);
        }
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let hash = blake3::hash(&bytes);
        let mut limbs = [0; 4];
        for (limb, chunk) in limbs.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            *limb = chunk
                .iter()
                .rev()
                .fold(0, |value, byte| (value << 8) | u64::from(*byte));
        }
        Term(limbs)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Route;
    use crate::state::{Rejection, Written};

    /// Replicas of different versions compare their digests, and a digest is on disk.
    #[test]
    fn a_digest_is_what_it_always_was() {
        let route = Route::parse("/user/alice/", "http://10.1.2.3:8888", r#"{"user": "alice"}"#, "hub").unwrap();
        let entry = Entry {
            route,
            modified: Revision(7),
        };
        let mut hasher = blake3::Hasher::new();
        for field in ["/user/alice/", "http://10.1.2.3:8888", r#"{"user": "alice"}"#, "hub"] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        let hash = *hasher.update(&7_u64.to_le_bytes()).finalize().as_bytes();
        let mut digest = Digest::default();
        digest.add(&entry);
        assert_eq!(digest.to_bytes(), hash);
        digest.remove(&entry);
        assert_eq!(digest, Digest::default());
    }

    /// Replicas of different versions compare these, too.
    #[test]
    fn a_session_is_hashed_as_it_always_was() {
        let written = Written {
            revision: Revision(5),
            changed: true,
            held: 2,
        };
        let remembered = Rejection::Remembered {
            reason: "session-expired".into(),
            message: "as another version puts it".into(),
        };
        for (outcome, numbers) in [
            (Ok(written), [3, 9, 7, 1, 5, 1, 2]),
            (Err(Rejection::SessionExpired), [3, 9, 7, 0, 0, 0, 0]),
            (Err(remembered), [3, 9, 7, 0, 0, 0, 0]),
        ] {
            let session = Session {
                sequence: 3,
                last_used_index: 9,
                last_used_ms: 7,
                outcome,
            };
            let mut hasher = blake3::Hasher::new();
            for field in [b"session".as_slice(), &[7; 16]] {
                hasher.update(&(field.len() as u64).to_le_bytes());
                hasher.update(field);
            }
            for number in numbers {
                hasher.update(&u64::to_le_bytes(number));
            }
            let mut digest = Digest::default();
            digest.add((&[7; 16], &session));
            assert_eq!(digest.to_bytes(), *hasher.finalize().as_bytes());
        }
    }
}

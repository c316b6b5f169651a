//! How a call can fail, and its gRPC status both ways, leader hint included.

use holdfast_table::Rejection;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::convert::ConvertError;

/// The trailer that says which failure it was, in one word.
pub const REASON: &str = "holdfast-reason";
/// The trailer with the leader's client address, on errors and on good answers.
pub const LEADER: &str = "holdfast-leader";
/// The request header of a call that a follower has forwarded: it is not forwarded again. Its value is the encoded `Peer`
/// that the call is meant for.
pub const FORWARDED: &str = "holdfast-forwarded-bin";

/// Which failure it was; the tables above `service Routes` in `routes.proto` and above `service Cluster` in
/// `cluster.proto` give each one's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field is wrong.
    Invalid,
    /// A precondition did not hold.
    Precondition,
    /// The route belongs to another namespace.
    Namespace,
    /// The session is not known any more.
    SessionExpired,
    /// The sequence went back.
    Sequence,
    /// A newer hub has taken the namespace over.
    Fenced,
    /// The hub epoch was never given.
    HubUnknown,
    /// No leader within the deadline: nothing was written.
    NoLeader,
    /// Perhaps written.
    Unknown,
    /// The replica has not caught up since its start.
    NotReady,
    /// Too much at once: nothing was written.
    Overloaded,
    /// The members cannot be changed in this way as they are now: nothing changed.
    Membership,
    /// The change would leave fewer live voters than a quorum: nothing changed.
    Quorum,
    /// The caller's id was taken from it; replicas alone are told so.
    Retired,
    /// The call is meant for another cluster, replica or disk, and nothing was done; replicas alone are told so.
    Misdirected,
    /// The call shows no token of the replica's, which has not looked at it.
    Token,
}

const WORDS: [(Reason, &str, Code); 16] = [
    (Reason::Invalid, "invalid", Code::InvalidArgument),
    (Reason::Precondition, "precondition", Code::FailedPrecondition),
    (Reason::Namespace, "namespace", Code::FailedPrecondition),
    (Reason::SessionExpired, "session-expired", Code::FailedPrecondition),
    (Reason::Sequence, "sequence", Code::FailedPrecondition),
    (Reason::Fenced, "fenced", Code::FailedPrecondition),
    (Reason::HubUnknown, "hub-unknown", Code::FailedPrecondition),
    (Reason::NoLeader, "no-leader", Code::Unavailable),
    (Reason::Unknown, "unknown", Code::Unavailable),
    (Reason::NotReady, "not-ready", Code::Unavailable),
    (Reason::Overloaded, "overloaded", Code::ResourceExhausted),
    (Reason::Membership, "membership", Code::FailedPrecondition),
    (Reason::Quorum, "quorum", Code::FailedPrecondition),
    (Reason::Retired, "retired", Code::FailedPrecondition),
    (Reason::Misdirected, "misdirected", Code::FailedPrecondition),
    (Reason::Token, "token", Code::Unauthenticated),
];

impl Reason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        WORDS
            .iter()
            .find(|(reason, ..)| *reason == self)
            .map_or("", |(_, word, _)| word)
    }

    /// The reason of that word.
    pub fn parse(word: &str) -> Option<Self> {
        WORDS
            .iter()
            .find(|(_, known, _)| *known == word)
            .map(|(reason, ..)| *reason)
    }

    /// What a rejected batch is called.
    pub fn of(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::RouteRevision { .. } | Rejection::TableRevision { .. } => Reason::Precondition,
            Rejection::Namespace { .. } => Reason::Namespace,
            Rejection::SessionExpired => Reason::SessionExpired,
            Rejection::Sequence { .. } => Reason::Sequence,
            Rejection::Fenced { .. } => Reason::Fenced,
            Rejection::HubUnknown { .. } => Reason::HubUnknown,
            Rejection::TooManyHubs => Reason::Overloaded,
            Rejection::Remembered { reason, .. } => Reason::parse(reason).unwrap_or(Reason::Precondition),
        }
    }

    /// A status that carries this reason.
    pub fn status(self, message: impl Into<String>) -> Status {
        let code = WORDS
            .iter()
            .find(|(reason, ..)| *reason == self)
            .map_or(Code::Unknown, |(.., code)| *code);
        let mut metadata = MetadataMap::new();
        metadata.insert(REASON, MetadataValue::from_static(self.as_str()));
        Status::with_metadata(code, message, metadata)
    }

    /// The reason that a status carries.
    pub fn from_status(status: &Status) -> Option<Self> {
        Reason::parse(status.metadata().get(REASON)?.to_str().ok()?)
    }

    /// True if the same call may succeed when it is sent again, to this replica or to another.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Reason::NoLeader | Reason::Unknown | Reason::NotReady | Reason::Overloaded
        )
    }
}

/// The status of a rejected batch.
pub fn rejected(rejection: &Rejection) -> Status {
    Reason::of(rejection).status(rejection.to_string())
}

/// The status of a request that cannot be read.
pub fn invalid(error: impl Into<ConvertError>) -> Status {
    Reason::Invalid.status(error.into().to_string())
}

/// Adds the leader's client address to trailers or headers; an address that is no header value is left out.
pub fn hint_leader(metadata: &mut MetadataMap, address: &str) {
    if let Ok(value) = MetadataValue::<Ascii>::try_from(address) {
        metadata.insert(LEADER, value);
    }
}

/// The leader's client address, if the other side named it.
pub fn leader_hint(metadata: &MetadataMap) -> Option<String> {
    metadata.get(LEADER)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_the_wire() {
        for (reason, word, code) in WORDS {
            let status = reason.status("text");
            assert_eq!((Reason::from_status(&status), status.code()), (Some(reason), code));
            assert_eq!(Reason::parse(word), Some(reason));
        }
        assert_eq!(Reason::from_status(&Status::internal("x")), None);
    }
}

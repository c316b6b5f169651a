//! Attempts: one call, tried at one replica after the other until its time is up.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::errors::Reason;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, ConnectError, Status};

use crate::backoff::{Backoff, CALL_CAP};
use crate::credentials::tls_cause;
use crate::endpoints::{Endpoints, Replica};

/// One attempt at one replica. Short, so that a replica that swallows calls leaves time for the others; long enough
/// for a replica to sit out an election on the caller's behalf.
const ATTEMPT: Duration = Duration::from_secs(4);

/// With less time left than this, another attempt is not worth its while.
const LEAST: Duration = Duration::from_millis(50);

/// What is known while a call is tried.
pub(crate) struct Attempts<'a> {
    endpoints: &'a Endpoints,
    deadline: Instant,
    backoff: Backoff,
    tried: Vec<Arc<str>>,
    // Who has refused our token.
    locked_out: Vec<Arc<str>>,
    // The last failure of each replica that says something, for the error that ends it all.
    failures: Vec<Failure>,
    pause: bool,
    perhaps_done: bool,
}

struct Failure {
    address: Arc<str>,
    text: String,
    /// Why it cannot be spoken with, and what to do.
    is_of_tls: bool,
}

/// Whom to ask, and how long to wait for an answer.
pub(crate) struct Attempt {
    pub(crate) replica: Replica,
    pub(crate) timeout: Duration,
}

/// What to make of a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another attempt may succeed.
    Retry,
    /// This is the answer. The reason, if the replica gave one.
    Final(Option<Reason>),
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(endpoints: &'a Endpoints, timeout: Duration) -> Self {
        Attempts {
            endpoints,
            deadline: Instant::now() + timeout,
            backoff: Backoff::new(CALL_CAP),
            tried: Vec::new(),
            locked_out: Vec::new(),
            failures: Vec::new(),
            pause: false,
            perhaps_done: false,
        }
    }

    /// The next attempt, after a wait if every replica had its turn; `None` once the time is up.
    ///
    /// `extra` is how much longer than usual the answer may take.
    pub(crate) async fn next(&mut self, extra: Duration) -> Option<Attempt> {
        loop {
            let replica = self.endpoints.next(&self.tried);
            if replica.is_none() {
                self.tried.clear();
            }
            if replica.is_none() || std::mem::take(&mut self.pause) {
                // Half of what is left at most, so that no wait is the last thing that happens.
                tokio::time::sleep(self.backoff.next_wait().min(self.left() / 2)).await;
            }
            let left = self.left();
            if left < LEAST {
                return None;
            }
            if let Some(replica) = replica {
                let timeout = left.min(ATTEMPT + extra);
                return Some(Attempt { replica, timeout });
            }
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Takes in why an attempt failed.
    pub(crate) fn failed(&mut self, replica: &Replica, status: &Status) -> Verdict {
        let (reason, tls_cause) = (Reason::from_status(status), tls_cause(status));
        tracing::debug!(%replica, code = ?status.code(), reason = reason.map_or("", Reason::as_str), "{}", status.message());
        let retry = match reason {
            Some(Reason::Token) => !self.is_locked_out(replica),
            Some(reason) => reason.is_retryable(),
            None => tls_cause.is_some() || is_transient(status.code()),
        };
        if !retry {
            self.endpoints.answered(replica, status.metadata());
            return Verdict::Final(reason);
        }
        self.endpoints.failed(replica, status.metadata());
        let address = replica.shared_address();
        let failure = Failure {
            address: address.clone(),
            text: match reason {
                Some(reason) => format!("{}: {}", reason.as_str(), status.message()),
                None => in_words(status),
            },
            is_of_tls: tls_cause.is_some(),
        };
        // The last attempt is cut short by the end of the time, and a connection may end before it is heard why.
        let says_little = reason.is_none() && status.code() == Code::DeadlineExceeded;
        match self.failures.iter_mut().find(|known| known.address == address) {
            Some(known) if says_little || known.is_of_tls && reason.is_none() && !failure.is_of_tls => {}
            Some(known) => *known = failure,
            None => self.failures.push(failure),
        }
        self.tried.push(address);
        self.pause |= reason == Some(Reason::Overloaded);
        self.perhaps_done |= match reason {
            Some(reason) => reason == Reason::Unknown,
            None => tls_cause.is_none() && !was_never_sent(status),
        };
        Verdict::Retry
    }

    /// Takes in that `replica` has refused our token; true once all have. One of them may read its list later than others.
    fn is_locked_out(&mut self, replica: &Replica) -> bool {
        self.locked_out.push(replica.shared_address());
        let locked_out = |replica: &Replica| self.locked_out.contains(&replica.shared_address());
        self.endpoints.replicas().iter().all(locked_out)
    }

    /// A good answer came from `replica`.
    pub(crate) fn answered(&self, replica: &Replica, metadata: &MetadataMap) {
        self.endpoints.answered(replica, metadata);
    }

    /// True if an attempt ended without its end being known: what it asked for may have been done, or may yet be.
    pub(crate) fn is_perhaps_done(&self) -> bool {
        self.perhaps_done
    }

    /// Who was tried and how each failed at last, in words.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for Failure {
            address, text: failure, ..
        } in &self.failures
        {
            let separator = if text.is_empty() { "" } else { "; " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{separator}{address}: {failure}");
        }
        if text.is_empty() {
            text.push_str("nobody was asked in time");
        }
        text
    }
}

/// Bounds one attempt in time; the deadline travels with the call, so that the replica gives up too.
pub(crate) async fn within<T>(timeout: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(timeout, call).await {
        Ok(result) => result,
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {} ms",
            timeout.as_millis()
        ))),
    }
}

/// Why a call without a reason failed, with what is known of TLS.
pub(crate) fn in_words(status: &Status) -> String {
    let text = format!("{:?}: {}", status.code(), status.message());
    match tls_cause(status) {
        Some(cause) => format!("{cause} ({text})"),
        None => text,
    }
}

/// Codes of calls that carry no reason: they come from the connection, not from Holdfast.
fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

/// True if a call has failed before there was a connection to make it by.
pub(crate) fn was_never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

//! RouteWriter: batches, sessions, retries, follows the leader.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_table::{Batch, Command, Epoch, Namespace, Revision, Route, RouteSpec};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::{self, WriteRequest};
use tokio::sync::Semaphore;
use tonic::Request;

use crate::attempts::{Attempts, Verdict, within};
use crate::endpoints::{Endpoints, MESSAGE_BYTES_MAX};

/// Writes under way at once; more wait for their turn.
const WRITES_MAX: usize = 32;
/// New sessions that one write tries before it gives up.
const RENEWALS_MAX: usize = 3;
/// The longest wait for proxies that a replica takes.
const WAIT_FOR_PROXIES_MAX: Duration = Duration::from_secs(10);

/// How a writer writes.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Of [`RouteWriter::delete`]; a route that is put carries its own.
    pub namespace: Namespace,
    /// How long a write is tried before it fails. The waits for other writes and for proxies come on top.
    pub timeout: Duration,
    /// How long an answer waits for the live proxies to serve the change, at most 10 s. Zero: it does not.
    pub wait_for_proxies: Duration,
}

impl Default for WriterOptions {
    /// The namespace `default`, 10 s, and no wait.
    fn default() -> Self {
        WriterOptions {
            namespace: Namespace::default(),
            timeout: Duration::from_secs(10),
            wait_for_proxies: Duration::ZERO,
        }
    }
}

/// Writes to the cluster. Cheap to clone; clones share connections and sessions.
///
/// A write that got no answer is sent again, to any replica, under the same session and sequence, so it is applied once.
/// Dropping a write's future does not take the write back.
#[derive(Clone, Debug)]
pub struct RouteWriter {
    endpoints: Endpoints,
    options: WriterOptions,
    sessions: Arc<Sessions>,
}

/// An acknowledged write: it is on the disks of a quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The revision that carries it; the table's present one if it changed nothing.
    pub revision: Revision,
    /// The table's epoch.
    pub epoch: Epoch,
    /// False if everything was as asked for already.
    pub changed: bool,
    /// Proxies that were live when the wait for them ended; 0 without a wait.
    pub proxies_live: u32,
    /// How many of them serve the revision; 0 without a wait.
    pub proxies_synced: u32,
    /// The names of those that do not, at most 100.
    pub proxies_lagging: Vec<String>,
    /// How many of the batch's deletions are held: acknowledged, and served on until an operator decides.
    pub held: u32,
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The cluster refused it; nothing changed. Asking for the same again is refused again.
    #[error("refused: {message}")]
    Rejected {
        /// Which refusal; `None` if the replica named none.
        reason: Option<Reason>,
        /// The replica's words, with field and value.
        message: String,
    },
    /// No replica took it in time; nothing changed. Try again later.
    #[error("nothing was written: {tried}")]
    Unavailable {
        /// Each replica tried, and how it failed.
        tried: String,
    },
    /// Perhaps written, perhaps later. Read back before deciding.
    #[error("perhaps written: {tried}")]
    Unknown {
        /// Each replica tried, and how it failed.
        tried: String,
    },
}

impl WriteError {
    /// True if the same write may succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, WriteError::Rejected { .. })
    }
}

impl RouteWriter {
    /// Connects to nobody yet.
    pub fn new(endpoints: Endpoints, options: WriterOptions) -> Self {
        RouteWriter {
            endpoints,
            options,
            sessions: Arc::default(),
        }
    }

    /// Adds or replaces one route.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn put(&self, route: Route) -> Result<Answer, WriteError> {
        self.write(Batch::put(route)).await
    }

    /// Removes one route of the options' namespace on purpose, so that it is not held; one that is not there is fine.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn delete(&self, spec: RouteSpec) -> Result<Answer, WriteError> {
        let batch = Batch::delete(self.options.namespace.clone(), spec);
        self.write(batch.expecting(1)).await
    }

    /// Applies one batch: all of it or nothing, one revision, durable on a quorum.
    ///
    /// # Errors
    /// [`WriteError::Rejected`] and [`WriteError::Unavailable`]: nothing changed.
    /// [`WriteError::Unknown`]: read back before deciding.
    pub async fn write(&self, batch: Batch) -> Result<Answer, WriteError> {
        // Never closed, so this cannot fail.
        let _turn = self.sessions.turns.acquire().await;
        // Put back only after an answer that settles its sequence: a session that may have a write under way is left
        // to be forgotten.
        let mut session = self.sessions.take();
        let mut renewals = 0;
        let mut retry = false;
        let wait = self.options.wait_for_proxies.min(WAIT_FOR_PROXIES_MAX);
        let repeatable = batch.preconditions().is_empty();
        let mut command = Command {
            batch,
            session: Some((session.id, session.sequence)),
        };
        let mut attempts = Attempts::new(&self.endpoints, self.options.timeout + wait);
        while let Some(attempt) = attempts.next(wait).await {
            let mut request = Request::new(WriteRequest {
                wait_for_proxies_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
                retry,
                ..(&command).into()
            });
            request.set_timeout(attempt.timeout);
            let mut client = RoutesClient::new(attempt.replica.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let status = match within(attempt.timeout, client.write(request)).await {
                Ok(response) => {
                    attempts.answered(&attempt.replica, response.metadata());
                    session.sequence += 1;
                    self.sessions.put_back(session);
                    return Ok(response.into_inner().into());
                }
                Err(status) => status,
            };
            match attempts.failed(&attempt.replica, &status) {
                Verdict::Retry => retry = attempts.is_perhaps_done(),
                Verdict::Final(Some(Reason::SessionExpired)) => {
                    renewals += 1;
                    // An earlier attempt may have been applied before its session was forgotten. Routes put or removed
                    // twice are the same routes; a precondition asked twice is not the same question.
                    if attempts.is_perhaps_done() && !repeatable || renewals > RENEWALS_MAX {
                        break;
                    }
                    session = Session::new();
                    // Of this session nobody has heard yet.
                    retry = false;
                    command.session = Some((session.id, session.sequence));
                }
                Verdict::Final(reason) => {
                    // Decided where sessions are known: had an earlier attempt been applied, its answer would be here.
                    let settled = matches!(
                        reason,
                        Some(Reason::Precondition | Reason::Namespace | Reason::Sequence)
                    );
                    if attempts.is_perhaps_done() && !settled {
                        break;
                    }
                    // A request that was turned away at the door is no part of its session.
                    session.sequence += u64::from(settled);
                    self.sessions.put_back(session);
                    return Err(WriteError::Rejected {
                        reason,
                        message: status.message().to_owned(),
                    });
                }
            }
        }
        let tried = attempts.summary();
        Err(if attempts.is_perhaps_done() {
            WriteError::Unknown { tried }
        } else {
            WriteError::Unavailable { tried }
        })
    }
}

impl From<proto::WriteResponse> for Answer {
    fn from(response: proto::WriteResponse) -> Self {
        Answer {
            revision: Revision(response.revision),
            epoch: Epoch(response.epoch),
            changed: response.changed,
            proxies_live: response.proxies_live,
            proxies_synced: response.proxies_synced,
            proxies_lagging: response.proxies_lagging,
            held: response.held,
        }
    }
}

/// The sessions that are not in use. A session has one write under way at most, so concurrent writes use several.
#[derive(Debug)]
struct Sessions {
    turns: Semaphore,
    idle: Mutex<Vec<Session>>,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions {
            turns: Semaphore::new(WRITES_MAX),
            idle: Mutex::default(),
        }
    }
}

impl Sessions {
    fn take(&self) -> Session {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The last one put back first, so that a quiet writer uses one session and not all of them.
        idle.pop().unwrap_or_else(Session::new)
    }

    fn put_back(&self, session: Session) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
    }
}

/// A name for a row of writes, so that the cluster knows a repeated one.
#[derive(Debug)]
struct Session {
    id: [u8; 16],
    // Of the next write.
    sequence: u64,
}

impl Session {
    fn new() -> Self {
        Session {
            id: rand::random(),
            sequence: 1,
        }
    }
}

#[cfg(test)]
mod tests;

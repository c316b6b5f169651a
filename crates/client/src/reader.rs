//! RouteReader: linearizable reads of routes, and the replicas' own accounts of themselves.

use std::time::Duration;

use holdfast_table::{Digest, Entry, Epoch, FieldError, Hold, Namespace, Revision, RouteSpec};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::cluster_client::ClusterClient;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::{GetRequest, ListRequest, ListResponse, StatusRequest, StatusResponse};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tonic::{Request, Status, Streaming};

use crate::attempts::{Attempts, Verdict, in_words, within};
use crate::endpoints::{Connection, EndpointError, Endpoints, MESSAGE_BYTES_MAX, Replica};

/// How long to wait for each page of a list.
const PAGE: Duration = Duration::from_secs(4);

/// Reads from the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RouteReader {
    endpoints: Endpoints,
    timeout: Duration,
}

/// Routes as of one revision.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The table's epoch.
    pub epoch: Epoch,
    /// The table's revision.
    pub revision: Revision,
    /// Of the whole table, whatever was asked for.
    pub digest: Digest,
    /// Sorted by routespec.
    pub routes: Vec<Entry>,
    /// When each one was last active, in the same order: Unix milliseconds, 0 where it is not known.
    pub last_activity_ms: Vec<u64>,
    /// The hold of each one, in the same order, if they are what is held; else empty.
    pub holds: Vec<Hold>,
}

/// Why a read failed. It never means that there are no routes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The replica refused it; asking for the same again is refused again.
    #[error("refused: {message}")]
    Rejected {
        /// Which refusal; `None` if the replica named none.
        reason: Option<Reason>,
        /// The replica's words.
        message: String,
    },
    /// No replica answered in time. Try again later.
    #[error("no answer: {tried}")]
    Unavailable {
        /// Each replica tried, and how it failed.
        tried: String,
    },
    /// The name of the replica to ask is no address.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl RouteReader {
    /// Connects to nobody yet. A read is tried for `timeout` before it fails.
    pub fn new(endpoints: Endpoints, timeout: Duration) -> Self {
        RouteReader { endpoints, timeout }
    }

    /// One route; `None` if there is none. Sees every write that was acknowledged before.
    ///
    /// # Errors
    /// [`ReadError`]: nothing is known about the route.
    pub async fn get(&self, spec: &RouteSpec) -> Result<Option<Entry>, ReadError> {
        self.retried(async |replica, timeout| {
            let mut request = Request::new(GetRequest {
                routespec: spec.as_str().to_owned(),
            });
            request.set_timeout(timeout);
            let response = within(timeout, routes(&replica).get(request)).await?;
            self.endpoints.answered(&replica, response.metadata());
            let route = response.into_inner().route;
            route.as_ref().map(Entry::try_from).transpose().map_err(unreadable)
        })
        .await
    }

    /// All routes of `namespace` (`None`: of every namespace) whose routespec begins with `prefix`. Sees every write
    /// that was acknowledged before; whole or an error.
    ///
    /// # Errors
    /// [`ReadError`]: nothing is known about the routes.
    pub async fn list(&self, namespace: Option<&Namespace>, prefix: &str) -> Result<Listing, ReadError> {
        self.listed(namespace, prefix, false).await
    }

    /// Likewise, the routes whose deletion is held, with their holds.
    ///
    /// # Errors
    /// [`ReadError`]: nothing is known about what is held.
    pub async fn held(&self, namespace: Option<&Namespace>, prefix: &str) -> Result<Listing, ReadError> {
        self.listed(namespace, prefix, true).await
    }

    async fn listed(&self, namespace: Option<&Namespace>, prefix: &str, held: bool) -> Result<Listing, ReadError> {
        let list = ListRequest {
            namespace: namespace.map_or("*", Namespace::as_str).to_owned(),
            prefix: prefix.to_owned(),
            held,
            as_json: false,
        };
        self.retried(async |replica, timeout| {
            let mut request = Request::new(list.clone());
            // The list may take all the time there is; each page must come within one attempt's.
            request.set_timeout(self.timeout);
            let response = within(timeout, routes(&replica).list(request)).await?;
            self.endpoints.answered(&replica, response.metadata());
            read_pages(response.into_inner()).await
        })
        .await
    }

    /// What one replica, at `address`, knows of itself and of the cluster. Asked once.
    ///
    /// # Errors
    /// [`ReadError`]: it did not answer.
    pub async fn status(&self, address: &str) -> Result<StatusResponse, ReadError> {
        status(self.endpoints.replica(address)?, self.timeout).await
    }

    /// What each of the endpoints knows, all asked at once, in the order they were configured in.
    pub async fn statuses(&self) -> Vec<(String, Result<StatusResponse, ReadError>)> {
        let mut asked = JoinSet::new();
        for (at, replica) in self.endpoints.replicas().iter().cloned().enumerate() {
            let timeout = self.timeout;
            asked.spawn(async move { (at, replica.address().to_owned(), status(replica, timeout).await) });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(at, ..)| *at);
        answers
            .into_iter()
            .map(|(_, address, answer)| (address, answer))
            .collect()
    }

    async fn retried<T>(&self, call: impl AsyncFn(Replica, Duration) -> Result<T, Status>) -> Result<T, ReadError> {
        let mut attempts = Attempts::new(&self.endpoints, self.timeout);
        while let Some(attempt) = attempts.next(Duration::ZERO).await {
            let status = match call(attempt.replica.clone(), attempt.timeout).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if let Verdict::Final(reason) = attempts.failed(&attempt.replica, &status) {
                return Err(rejected(reason, &status));
            }
        }
        Err(ReadError::Unavailable {
            tried: attempts.summary(),
        })
    }
}

async fn status(replica: Replica, timeout: Duration) -> Result<StatusResponse, ReadError> {
    let mut request = Request::new(StatusRequest {});
    request.set_timeout(timeout);
    let mut client = ClusterClient::new(replica.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match within(timeout, client.status(request)).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => match Reason::from_status(&status) {
            Some(reason) if !reason.is_retryable() => Err(rejected(Some(reason), &status)),
            _ => Err(ReadError::Unavailable {
                tried: format!("{replica}: {}", in_words(&status)),
            }),
        },
    }
}

/// Every page, or an error: half a list is worse than none.
async fn read_pages(mut pages: Streaming<ListResponse>) -> Result<Listing, Status> {
    let mut whole: Option<(Listing, u64)> = None;
    while let Some(page) = within(PAGE, async { pages.next().await.transpose() }).await? {
        let digest = Digest::from_bytes(&page.digest);
        let (listing, total) = whole.get_or_insert_with(|| {
            let listing = Listing {
                epoch: Epoch(page.epoch),
                revision: Revision(page.revision),
                digest: digest.unwrap_or_default(),
                routes: Vec::new(),
                last_activity_ms: Vec::new(),
                holds: Vec::new(),
            };
            (listing, page.total)
        });
        if (listing.epoch.0, listing.revision.0) != (page.epoch, page.revision) {
            return Err(broken("its pages are of different revisions"));
        }
        // Asked of the first page; later pages may leave it out.
        if listing.routes.is_empty() && digest.is_none() {
            return Err(broken("it has no digest"));
        }
        *total = page.total.max(*total);
        for route in &page.routes {
            listing.routes.push(Entry::try_from(route).map_err(unreadable)?);
            listing.last_activity_ms.push(route.last_activity_ms);
            listing.holds.extend(route.hold.map(Hold::from));
        }
    }
    match whole {
        None => Err(broken("it ended before its first page")),
        Some((listing, total)) if listing.routes.len() as u64 != total => Err(broken(&format!(
            "it ended after {} of {total} routes",
            listing.routes.len()
        ))),
        Some((listing, _)) => Ok(listing),
    }
}

// Not a refusal of what was asked for: another replica, or the same one in a moment, may answer well.
fn broken(problem: &str) -> Status {
    Status::unavailable(format!("a broken list: {problem}"))
}

fn unreadable(error: FieldError) -> Status {
    Status::unavailable(format!("an unreadable route: {error}"))
}

pub(crate) fn rejected(reason: Option<Reason>, status: &Status) -> ReadError {
    ReadError::Rejected {
        reason,
        message: status.message().to_owned(),
    }
}

fn routes(replica: &Replica) -> RoutesClient<Connection> {
    RoutesClient::new(replica.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests;

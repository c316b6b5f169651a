//! Operator: changes a cluster's members and its leader, and decides about what is held.

use std::time::Duration;

use holdfast_table::{Entry, Settlement};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto::cluster_client::ClusterClient;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::{
    LeaderMoveRequest, LeaderMoveResponse, MemberAddRequest, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberRemoveRequest, MemberReplaceRequest, RouteRevision, SettleHeldRequest,
    SettleHeldResponse, settle_held_request,
};
use tonic::{Request, Response, Status};

use crate::attempts::{Attempts, Verdict, within};
use crate::endpoints::{Connection, Endpoints};

/// Asks the cluster to do what an operator decides. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Operator {
    endpoints: Endpoints,
    timeout: Duration,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// Nothing changed, and asking for the same again is refused again until something else has changed.
    #[error("refused: {message}")]
    Rejected {
        /// Which refusal; `None` if the replica named none.
        reason: Option<Reason>,
        /// The replica's words.
        message: String,
    },
    /// Nothing changed: no replica took the call in time.
    #[error("no answer: {tried}")]
    Unavailable {
        /// Each replica tried, and how it failed.
        tried: String,
    },
    /// Perhaps changed, perhaps later: look before asking again.
    #[error("no clear answer: {tried}")]
    Unknown {
        /// Each replica tried, and how it failed.
        tried: String,
    },
}

impl Operator {
    /// Connects to nobody yet. A call is tried for `timeout` before it fails.
    pub fn new(endpoints: Endpoints, timeout: Duration) -> Self {
        Operator { endpoints, timeout }
    }

    /// The members, as the leader sees them if there is one.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn members(&self) -> Result<MemberListResponse, OperatorError> {
        self.call(async |mut client, timeout| client.member_list(timed(MemberListRequest {}, timeout)).await)
            .await
    }

    /// Adds an empty replica as a learner.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn add(&self, name: &str, peer_address: &str) -> Result<MemberListResponse, OperatorError> {
        let request = MemberAddRequest {
            name: name.to_owned(),
            peer_address: peer_address.to_owned(),
        };
        self.call(async |mut client, timeout| client.member_add(timed(request.clone(), timeout)).await)
            .await
    }

    /// Gives learners a vote, all together.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn promote(&self, names: &[String]) -> Result<MemberListResponse, OperatorError> {
        let request = MemberPromoteRequest { names: names.to_vec() };
        self.call(async |mut client, timeout| client.member_promote(timed(request.clone(), timeout)).await)
            .await
    }

    /// Takes members away, all together.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn remove(&self, names: &[String]) -> Result<MemberListResponse, OperatorError> {
        let request = MemberRemoveRequest { names: names.to_vec() };
        self.call(async |mut client, timeout| client.member_remove(timed(request.clone(), timeout)).await)
            .await
    }

    /// Puts an empty replica in the place of a voter that does not answer.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn replace(&self, name: &str) -> Result<MemberListResponse, OperatorError> {
        let request = MemberReplaceRequest { name: name.to_owned() };
        self.call(async |mut client, timeout| client.member_replace(timed(request.clone(), timeout)).await)
            .await
    }

    /// Moves the leadership, to the voter called `to` or to the one that is furthest.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn move_leader(&self, to: Option<&str>) -> Result<LeaderMoveResponse, OperatorError> {
        let request = LeaderMoveRequest {
            to_name: to.unwrap_or_default().to_owned(),
        };
        self.call(async |mut client, timeout| client.leader_move(timed(request.clone(), timeout)).await)
            .await
    }

    /// Confirms or rejects the deletion of routes that are held, in the versions that were looked at; others are passed over.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn settle(&self, settlement: Settlement, held: &[Entry]) -> Result<SettleHeldResponse, OperatorError> {
        let settlement = match settlement {
            Settlement::Confirm => settle_held_request::Settlement::Confirm,
            Settlement::Reject => settle_held_request::Settlement::Reject,
        };
        let version = |entry: &Entry| RouteRevision {
            routespec: entry.route.spec.as_str().to_owned(),
            mod_revision: entry.modified.0,
        };
        let request = SettleHeldRequest {
            settlement: settlement.into(),
            routes: held.iter().map(version).collect(),
        };
        let ask = async |channel: Connection, timeout| {
            let mut client = RoutesClient::new(channel);
            client.settle_held(timed(request.clone(), timeout)).await
        };
        self.asked(ask).await
    }

    async fn call<A>(
        &self,
        ask: impl AsyncFn(ClusterClient<Connection>, Duration) -> Result<Response<A>, Status>,
    ) -> Result<A, OperatorError> {
        self.asked(async |channel, timeout| ask(ClusterClient::new(channel), timeout).await)
            .await
    }

    /// Asks one replica after the other until one has taken the call. What may have been done is not asked for again:
    /// the second answer would be about what the first one did.
    async fn asked<A>(
        &self,
        ask: impl AsyncFn(Connection, Duration) -> Result<Response<A>, Status>,
    ) -> Result<A, OperatorError> {
        let mut attempts = Attempts::new(&self.endpoints, self.timeout);
        // A change takes as long as it takes: a learner has to catch up first.
        while let Some(attempt) = attempts.next(self.timeout).await {
            let asked = ask(attempt.replica.channel(), attempt.timeout);
            let status = match within(attempt.timeout, asked).await {
                Ok(answer) => {
                    attempts.answered(&attempt.replica, answer.metadata());
                    return Ok(answer.into_inner());
                }
                Err(status) => status,
            };
            if let Verdict::Final(reason) = attempts.failed(&attempt.replica, &status) {
                return Err(OperatorError::Rejected {
                    reason,
                    message: status.message().to_owned(),
                });
            }
            if attempts.is_perhaps_done() {
                return Err(OperatorError::Unknown {
                    tried: attempts.summary(),
                });
            }
        }
        Err(OperatorError::Unavailable {
            tried: attempts.summary(),
        })
    }
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

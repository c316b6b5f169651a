//! What peers call. Every call is checked: the right cluster, the right replica, the right disk.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use holdfast_table::{Digest, Epoch, Revision};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use holdfast_wire::proto::raft_server::Raft;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest, VoteRequest,
};
use openraft::storage::Snapshot;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Context, protocol_error, proxies};
use crate::activity;
use crate::consensus::types::{
    SnapshotMeta, TypeConfig, ballot_in, ballot_out, entry_in, log_id_in, log_id_out, stored_membership_in,
};
use crate::consensus::{Consensus, read_index_out};
use crate::scrub;
use crate::storage::snapshot::Decoder;
use crate::storage::state_machine::beside;

/// The service behind the peers' listener.
#[derive(Clone)]
pub struct RaftService(pub Arc<Context>);

impl RaftService {
    fn admit(&self, peer: Option<&proto::Peer>) -> Result<Consensus, Status> {
        admit(&self.0, peer)
    }
}

/// The consensus, if a call was meant for it.
///
/// # Errors
/// `misdirected` or `retired`: it is counted, and nothing was done. `not-ready`: there is no consensus.
pub fn admit(context: &Context, peer: Option<&proto::Peer>) -> Result<Consensus, Status> {
    let consensus = context.member()?;
    check(context, &consensus, peer)?;
    Ok(consensus)
}

fn check(context: &Context, consensus: &Consensus, peer: Option<&proto::Peer>) -> Result<(), Status> {
    let Some((reason, refusal)) = refusal(consensus, peer) else {
        return Ok(());
    };
    // A caller repeats itself with every heartbeat; once in a while says enough.
    if context.metrics.peer_call_refused(reason) {
        let from = peer.map_or(0, |peer| peer.from_node_id);
        tracing::warn!(from, "refused a call: {}", refusal.message());
    }
    Err(refusal)
}

/// Why a call must not be taken, and what is counted for it: the field that says so, or `retired`.
///
/// A caller with an id that nobody here has heard of is not refused: this replica may be behind, and the caller the only
/// one that can lead it on. An id that was heard of and is no member's any more is retired, and never comes back.
fn refusal(consensus: &Consensus, peer: Option<&proto::Peer>) -> Option<(&'static str, Status)> {
    let refused = |field, problem: &str| Some((field, Reason::Misdirected.status(format!("{field}: {problem}"))));
    let Some(peer) = peer else {
        return refused("peer", "is missing, or cannot be read");
    };
    let identity = consensus.identity();
    let wrong = |field, meant: &str, is: &str| refused(field, &format!("the call is for {meant:?}, this is {is:?}"));
    if peer.cluster_id != identity.cluster_id {
        return wrong("cluster_id", &peer.cluster_id, &identity.cluster_id);
    }
    if peer.to_node_id != identity.node_id {
        return wrong(
            "to_node_id",
            &peer.to_node_id.to_string(),
            &identity.node_id.to_string(),
        );
    }
    if peer.to_store_uuid != identity.store_uuid {
        return wrong("to_store_uuid", &peer.to_store_uuid, &identity.store_uuid);
    }
    if peer.from_node_id == 0 {
        return refused("from_node_id", "0 is no replica's id");
    }
    if consensus.published().load().is_retired(peer.from_node_id) {
        let message = format!(
            "from_node_id: {} was taken from its replica and is retired",
            peer.from_node_id
        );
        return Some(("retired", Reason::Retired.status(message)));
    }
    None
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn damaged(error: std::io::Error) -> Status {
    Status::data_loss(error.to_string())
}

fn append_in(request: proto::AppendRequest) -> Option<AppendEntriesRequest<TypeConfig>> {
    Some(AppendEntriesRequest {
        vote: ballot_in(request.vote?),
        prev_log_id: request.prev_log_id.map(log_id_in),
        entries: request.entries.into_iter().map(entry_in).collect::<Option<_>>()?,
        leader_commit: request.leader_commit.map(log_id_in),
    })
}

fn vote_in(request: proto::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    Ok(VoteRequest {
        vote: ballot_in(request.vote.ok_or_else(|| protocol_error("vote: is missing"))?),
        last_log_id: request.last_log_id.map(log_id_in),
        leadership_transfer: request.leadership_transfer,
    })
}

fn vote_out(response: &openraft::raft::VoteResponse<TypeConfig>) -> Response<proto::VoteResponse> {
    Response::new(proto::VoteResponse {
        vote: Some(ballot_out(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_out),
    })
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn identify(&self, _: Request<proto::IdentifyRequest>) -> Result<Response<proto::IdentifyResponse>, Status> {
        let mut answer = self.0.introduction.identify();
        if let Some(consensus) = self.0.consensus.borrow().as_ref() {
            answer.lineage = consensus.published().load().state.lineage.to_vec();
        }
        Ok(Response::new(answer))
    }

    async fn found(&self, request: Request<proto::FoundRequest>) -> Result<Response<proto::FoundResponse>, Status> {
        let refused = |reason| Status::new(Code::FailedPrecondition, reason);
        self.0
            .introduction
            .found(&self.0.store, request.into_inner())
            .map_err(refused)?;
        Ok(Response::new(proto::FoundResponse {}))
    }

    async fn adopt(&self, request: Request<proto::AdoptRequest>) -> Result<Response<proto::AdoptResponse>, Status> {
        let refused = |reason| Status::new(Code::FailedPrecondition, reason);
        self.0
            .introduction
            .adopt(&self.0.store, request.into_inner())
            .map_err(refused)?;
        Ok(Response::new(proto::AdoptResponse {}))
    }

    type AppendStream = Pin<Box<dyn Stream<Item = Result<proto::AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let consensus = self.0.member()?;
        // The stream ends at the first message that is not ours to take; the caller is told at the end of the answers.
        let refused = Arc::new(OnceLock::new());
        let (context, checked, refusal) = (self.0.clone(), consensus.clone(), refused.clone());
        let requests = request.into_inner().scan((), move |(), message| {
            let accepted = message.ok().filter(|message| {
                let checked = check(&context, &checked, message.peer.as_ref());
                checked.map_err(|status| refusal.set(status)).is_ok()
            });
            std::future::ready(accepted.and_then(append_in))
        });
        let results = consensus.raft.stream_append(requests).map(move |result| {
            use proto::append_response::Result as Out;
            let result = match result.map_err(internal)? {
                Ok(log_id) => {
                    consensus.heard_leader();
                    Out::Success(proto::Success {
                        log_id: log_id.as_ref().map(log_id_out),
                    })
                }
                Err(StreamAppendError::Conflict(log_id)) => {
                    consensus.heard_leader();
                    Out::Conflict(proto::Conflict {
                        log_id: Some(log_id_out(&log_id)),
                    })
                }
                Err(StreamAppendError::HigherVote(vote)) => Out::HigherVote(ballot_out(&vote)),
            };
            Ok(proto::AppendResponse { result: Some(result) })
        });
        let refusal = futures_util::stream::once(async move { refused.get().cloned().map(Err) });
        let results = results.chain(refusal.filter_map(std::future::ready));
        let stopping = self.0.stopping.clone().cancelled_owned();
        Ok(Response::new(results.take_until(stopping).boxed()))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let request = request.into_inner();
        let consensus = self.admit(request.peer.as_ref())?;
        Ok(vote_out(
            &consensus.raft.vote(vote_in(request)?).await.map_err(internal)?,
        ))
    }

    async fn pre_vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let request = request.into_inner();
        let consensus = self.admit(request.peer.as_ref())?;
        Ok(vote_out(
            &consensus.raft.pre_vote(vote_in(request)?).await.map_err(internal)?,
        ))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotRequest>>,
    ) -> Result<Response<proto::SnapshotResponse>, Status> {
        use proto::snapshot_request::Part;
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|request| request.part);
        let Some(Part::Header(header)) = first else {
            return Err(protocol_error("a snapshot begins with its header"));
        };
        let consensus = self.admit(header.peer.as_ref())?;
        let mut decoder = Decoder::default();
        while let Some(request) = parts.message().await? {
            let Some(Part::Chunk(chunk)) = request.part else {
                return Err(protocol_error("after a snapshot's header come chunks"));
            };
            beside(|| decoder.push(&chunk)).map_err(damaged)?;
        }
        let state = beside(|| decoder.finish()).map_err(damaged)?;
        let missing = || protocol_error("header: is incomplete");
        let meta = SnapshotMeta {
            last_log_id: header.last_log_id.map(log_id_in),
            last_membership: header.membership.and_then(stored_membership_in).ok_or_else(missing)?,
        };
        let vote = ballot_in(header.vote.ok_or_else(missing)?);
        consensus.heard_leader();
        let snapshot = Snapshot { meta, snapshot: state };
        let response = consensus
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(internal)?;
        Ok(Response::new(proto::SnapshotResponse {
            vote: Some(ballot_out(&response.vote)),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        use proto::transfer_leader_response::Declined;
        let request = request.into_inner();
        let consensus = self.admit(request.peer.as_ref())?;
        let vote = ballot_in(
            request
                .from_leader
                .ok_or_else(|| protocol_error("from_leader: is missing"))?,
        );
        let transfer = TransferLeaderRequest::new(vote, request.to_node_id, request.last_log_id.map(log_id_in));
        let declined = match consensus
            .raft
            .handle_transfer_leader(transfer)
            .await
            .map_err(internal)?
        {
            Ok(()) => None,
            Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(Declined::Vote(ballot_out(&actual))),
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => Some(Declined::Log(proto::Success {
                log_id: actual.as_ref().map(log_id_out),
            })),
        };
        Ok(Response::new(proto::TransferLeaderResponse { declined }))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        let consensus = self.admit(request.into_inner().peer.as_ref())?;
        match consensus.read_index().await {
            Ok(log_id) => Ok(Response::new(read_index_out(&log_id))),
            Err(_) => Err(Status::unavailable("this replica does not lead, or has no quorum")),
        }
    }

    async fn await_proxies(
        &self,
        request: Request<proto::AwaitProxiesRequest>,
    ) -> Result<Response<proto::AwaitProxiesResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.peer.as_ref())?;
        let wait = Duration::from_millis(request.wait_ms.into()).min(Duration::from_secs(10));
        let answer = proxies::here(&self.0, Revision(request.revision), wait).await;
        answer
            .map(Response::new)
            .ok_or_else(|| Reason::NotReady.status("this replica stops; its proxies are on their way to another one"))
    }

    async fn compare(
        &self,
        request: Request<proto::CompareRequest>,
    ) -> Result<Response<proto::CompareResponse>, Status> {
        // A replica that is a little behind gets there; one that is far behind has nothing to say.
        const PATIENCE: Duration = Duration::from_secs(1);
        let request = request.into_inner();
        let published = self.admit(request.peer.as_ref())?.published().clone();
        let (epoch, revision) = (Epoch(request.epoch), Revision(request.revision));
        let mut applied = published.applied();
        let reached = applied.wait_for(|applied| {
            *applied >= request.applied_index && published.load().state.table.revision() >= revision
        });
        let _ = tokio::time::timeout(PATIENCE, reached).await;
        let (position, index) = scrub::newest(&published);
        let state = &position.state;
        let now = (state.table.epoch(), state.table.revision()) == (epoch, revision);
        let digest = match now {
            true => Some(state.digest()),
            false => published.digest_at(epoch, revision),
        };
        let rest = match index > 0 && index == request.applied_index {
            true => scrub::rest_digest(position.clone()).await,
            false => None,
        };
        let bytes =
            |digest: Option<Digest>| digest.map_or_else(Default::default, |digest| digest.to_bytes().to_vec().into());
        Ok(Response::new(proto::CompareResponse {
            digest: bytes(digest),
            rest_digest: bytes(rest),
        }))
    }

    async fn share_activity(
        &self,
        request: Request<proto::ShareActivityRequest>,
    ) -> Result<Response<proto::ShareActivityResponse>, Status> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let now_ms = self.0.activity.now_ms();
        let request = request.into_inner();
        let consensus = self.admit(request.peer.as_ref())?;
        let published = consensus.published();
        let mut applied = published.applied();
        let reached = applied.wait_for(|_| published.load().state.table.revision().0 >= request.revision);
        if !matches!(tokio::time::timeout(PATIENCE, reached).await, Ok(Ok(_))) {
            return Err(Reason::NotReady.status("this replica is behind the caller: tell it again"));
        }
        activity::take_in(&self.0, &consensus, now_ms, request.routes).await?;
        Ok(Response::new(proto::ShareActivityResponse {
            run: self.0.activity.run,
        }))
    }
}

#[cfg(test)]
mod tests;

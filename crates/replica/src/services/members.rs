//! Calls that change the members or the leader: any replica takes them and hands them to the leader, once.

use std::time::Duration;

use holdfast_wire::errors::{self, Reason};
use holdfast_wire::proto;
use holdfast_wire::proto::cluster_client::ClusterClient;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{Context, forwarded, hinted, patience};
use crate::consensus::Consensus;
use crate::consensus::membership::{ChangeError, contact_age};
use crate::consensus::types::Node;

/// Between two looks for a leader.
const LEADER_RETRY: Duration = Duration::from_millis(50);
/// How long a list waits for a leader before it says what this replica knows.
const LIST_PATIENCE: Duration = Duration::from_secs(2);

/// A call that only the leader can answer.
pub trait LeaderCall: Clone + Send + Sync + Sized + 'static {
    type Answer: Send;

    /// Does it, on the leader.
    fn here(
        &self,
        context: &Context,
        consensus: &Consensus,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Answer, ChangeError>> + Send;

    /// Asks the leader for it.
    fn there(
        client: ClusterClient<Channel>,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

/// Answers a call here or at the leader, within the caller's deadline.
pub async fn ask<C: LeaderCall>(context: &Context, request: Request<C>) -> Result<Response<C::Answer>, Status> {
    let consensus = context.member()?;
    let deadline = Instant::now() + patience(request.metadata());
    let forwarded = request.metadata().contains_key(errors::FORWARDED);
    let call = request.into_inner();
    let answer = decide(context, &consensus, &call, deadline, forwarded).await;
    answer.map(Response::new).map_err(|status| hinted(status, &consensus))
}

/// The members as the leader sees them, or as this replica does if there is none.
pub async fn list(
    context: &Context,
    request: Request<proto::MemberListRequest>,
) -> Result<Response<proto::MemberListResponse>, Status> {
    let consensus = context.member()?;
    let deadline = Instant::now() + patience(request.metadata()).min(LIST_PATIENCE);
    let forwarded = request.metadata().contains_key(errors::FORWARDED);
    match decide(context, &consensus, &request.into_inner(), deadline, forwarded).await {
        Ok(list) => Ok(Response::new(list)),
        // The leader may find out what the caller would have to know: it is not there.
        Err(_) if !forwarded => Ok(Response::new(members(&consensus))),
        Err(status) => Err(status),
    }
}

async fn decide<C: LeaderCall>(
    context: &Context,
    consensus: &Consensus,
    call: &C,
    deadline: Instant,
    forwarded: bool,
) -> Result<C::Answer, Status> {
    loop {
        if consensus.is_leader() {
            match call.here(context, consensus, deadline).await {
                Ok(answer) => return Ok(answer),
                // It has handed over, as it was asked to or before it could act: the search goes on.
                Err(ChangeError::NotLeader) => {}
                Err(error) => return Err(refused(&error)),
            }
        } else if forwarded {
            return Err(Reason::NoLeader.status("nothing was changed: this replica does not lead"));
        } else if let Some((id, node)) = consensus.leader().filter(|(id, _)| *id != consensus.identity().node_id) {
            match forward(consensus, id, &node, call, deadline).await {
                Err(status) if Reason::from_status(&status) == Some(Reason::NoLeader) => {}
                answered => return answered,
            }
        }
        if Instant::now() + LEADER_RETRY >= deadline {
            let message = "nothing was changed: no leader within the deadline. Without a quorum no member can be added, \
                           removed or replaced; start the replicas that are down";
            return Err(Reason::NoLeader.status(message));
        }
        tokio::time::sleep(LEADER_RETRY).await;
    }
}

async fn forward<C: LeaderCall>(
    consensus: &Consensus,
    id: u64,
    node: &Node,
    call: &C,
    deadline: Instant,
) -> Result<C::Answer, Status> {
    const NOTHING: &str = "nothing was changed";
    let address = &node.peer_address;
    let channel = consensus.channel(address);
    let client = ClusterClient::new(channel.ok_or_else(|| forwarded::unreachable(address, NOTHING))?);
    let request = forwarded::request(call.clone(), &consensus.peer(id, node), deadline);
    let answer = C::there(client, request).await;
    answer
        .map(Response::into_inner)
        .map_err(|status| forwarded::failure(status, address, NOTHING))
}

fn refused(error: &ChangeError) -> Status {
    let reason = match error {
        ChangeError::NotLeader => Reason::NoLeader,
        ChangeError::Refused(_) => Reason::Membership,
        ChangeError::Quorum(_) => Reason::Quorum,
        ChangeError::Unknown(_) => Reason::Unknown,
    };
    reason.status(error.to_string())
}

/// What this replica knows of the members.
fn members(consensus: &Consensus) -> proto::MemberListResponse {
    proto::MemberListResponse {
        cluster_id: consensus.identity().cluster_id.clone(),
        leader_id: consensus.metrics().current_leader.unwrap_or(0),
        members: member_views(consensus),
        node_id_max: consensus.published().load().state.node_id_max,
        waits_for: consensus.membership_waits_for(),
    }
}

/// Every member, with what a leader knows of it besides.
///
/// Who is getting a vote has none before the others can do without those who had one: until then they may not be stopped.
pub fn member_views(consensus: &Consensus) -> Vec<proto::Member> {
    let metrics = consensus.metrics();
    let config = &metrics.membership_config;
    let (configs, since) = (config.membership().get_joint_config(), config.log_id());
    let (is_new, me) = (*since > metrics.last_applied, consensus.identity().node_id);
    let has_it = |id: u64| match metrics.replication.as_ref().filter(|_| is_new && id != me) {
        Some(progress) => progress.get(&id).is_some_and(|matched| matched >= since),
        None => true,
    };
    let votes = |id: u64| configs.iter().all(|voters| voters.contains(&id)) && has_it(id);
    let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let views = consensus.members().into_iter().map(|(node_id, node, _)| proto::Member {
        node_id,
        name: node.name,
        peer_address: node.peer_address,
        client_address: node.client_address,
        voter: votes(node_id),
        matched_index: metrics
            .replication
            .as_ref()
            .and_then(|progress| progress.get(&node_id))
            .map(|log_id| log_id.map_or(0, |log_id| log_id.index)),
        contact_age_ms: contact_age(&metrics, node_id).map(millis),
    });
    views.collect()
}

impl LeaderCall for proto::MemberListRequest {
    type Answer = proto::MemberListResponse;

    async fn here(&self, _: &Context, consensus: &Consensus, _: Instant) -> Result<Self::Answer, ChangeError> {
        Ok(members(consensus))
    }

    async fn there(
        mut client: ClusterClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.member_list(request).await
    }
}

impl LeaderCall for proto::MemberAddRequest {
    type Answer = proto::MemberListResponse;

    async fn here(&self, _: &Context, consensus: &Consensus, deadline: Instant) -> Result<Self::Answer, ChangeError> {
        consensus.member_add(&self.name, &self.peer_address, deadline).await?;
        Ok(members(consensus))
    }

    async fn there(
        mut client: ClusterClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.member_add(request).await
    }
}

impl LeaderCall for proto::MemberPromoteRequest {
    type Answer = proto::MemberListResponse;

    async fn here(&self, _: &Context, consensus: &Consensus, deadline: Instant) -> Result<Self::Answer, ChangeError> {
        consensus.member_promote(&self.names, deadline).await?;
        Ok(members(consensus))
    }

    async fn there(
        mut client: ClusterClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.member_promote(request).await
    }
}

impl LeaderCall for proto::MemberRemoveRequest {
    type Answer = proto::MemberListResponse;

    async fn here(&self, _: &Context, consensus: &Consensus, deadline: Instant) -> Result<Self::Answer, ChangeError> {
        consensus.member_remove(&self.names, deadline).await?;
        Ok(members(consensus))
    }

    async fn there(
        mut client: ClusterClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.member_remove(request).await
    }
}

impl LeaderCall for proto::MemberReplaceRequest {
    type Answer = proto::MemberListResponse;

    async fn here(
        &self,
        context: &Context,
        consensus: &Consensus,
        deadline: Instant,
    ) -> Result<Self::Answer, ChangeError> {
        let configured = &context.introduction.configured;
        consensus.member_replace(&self.name, configured, deadline).await?;
        Ok(members(consensus))
    }

    async fn there(
        mut client: ClusterClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.member_replace(request).await
    }
}

impl LeaderCall for proto::LeaderMoveRequest {
    type Answer = proto::LeaderMoveResponse;

    async fn here(&self, _: &Context, consensus: &Consensus, deadline: Instant) -> Result<Self::Answer, ChangeError> {
        let to = Some(self.to_name.as_str()).filter(|name| !name.is_empty());
        let (to_name, took) = consensus.leader_move(to, deadline).await?;
        Ok(proto::LeaderMoveResponse {
            from_name: consensus.identity().name.clone(),
            to_name,
            took_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
        })
    }

    async fn there(
        mut client: ClusterClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.leader_move(request).await
    }
}

//! What operators ask: always answered, with or without a leader.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_wire::proto;
use holdfast_wire::proto::cluster_server::Cluster;
use openraft::ServerState;
use tonic::{Request, Response, Status};

use super::backup::BackupStream;
use super::{Context, members};
use crate::storage::probe;

/// The service behind `holdfast status`, `members`, `leader` and `backup`.
#[derive(Clone)]
pub struct ClusterService(pub Arc<Context>);

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        Ok(Response::new(status(&self.0)))
    }

    type BackupStream = BackupStream;

    async fn backup(&self, request: Request<proto::BackupRequest>) -> Result<Response<BackupStream>, Status> {
        super::backup::backup(self.0.clone(), request).await
    }

    async fn member_list(
        &self,
        request: Request<proto::MemberListRequest>,
    ) -> Result<Response<proto::MemberListResponse>, Status> {
        members::list(&self.0, request).await
    }

    async fn member_add(
        &self,
        request: Request<proto::MemberAddRequest>,
    ) -> Result<Response<proto::MemberListResponse>, Status> {
        members::ask(&self.0, request).await
    }

    async fn member_promote(
        &self,
        request: Request<proto::MemberPromoteRequest>,
    ) -> Result<Response<proto::MemberListResponse>, Status> {
        members::ask(&self.0, request).await
    }

    async fn member_remove(
        &self,
        request: Request<proto::MemberRemoveRequest>,
    ) -> Result<Response<proto::MemberListResponse>, Status> {
        members::ask(&self.0, request).await
    }

    async fn member_replace(
        &self,
        request: Request<proto::MemberReplaceRequest>,
    ) -> Result<Response<proto::MemberListResponse>, Status> {
        members::ask(&self.0, request).await
    }

    async fn leader_move(
        &self,
        request: Request<proto::LeaderMoveRequest>,
    ) -> Result<Response<proto::LeaderMoveResponse>, Status> {
        members::ask(&self.0, request).await
    }
}

/// What this replica knows, without asking anybody.
pub fn status(context: &Context) -> proto::StatusResponse {
    let introduction = &context.introduction;
    let mut status = proto::StatusResponse {
        name: introduction.identity.borrow().name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: proto::Role::Pristine.into(),
        waiting_for: introduction.waiting_for.borrow().clone(),
        disk_sync_us: u64::try_from(context.disk_sync.as_micros()).unwrap_or(u64::MAX),
        disk_slow: context.disk_sync >= probe::SLOW,
        ..Default::default()
    };
    let Some(consensus) = context.consensus.borrow().clone() else {
        return status;
    };
    let identity = consensus.identity();
    let position = consensus.published().load();
    let table = &position.state.table;
    let metrics = consensus.metrics();
    status.cluster_id = identity.cluster_id.clone();
    status.node_id = identity.node_id;
    status.role = match metrics.state {
        _ if context.retired.is_cancelled() => proto::Role::Retired,
        ServerState::Leader => proto::Role::Leader,
        ServerState::Candidate => proto::Role::Candidate,
        ServerState::Follower => proto::Role::Follower,
        _ => proto::Role::Learner,
    }
    .into();
    status.leader_id = metrics.current_leader.unwrap_or(0);
    status.term = metrics.current_term;
    status.last_log_index = metrics.last_log_index.unwrap_or(0);
    status.committed_index = metrics.local_committed.map_or(0, |log_id| log_id.index);
    status.applied_index = position.applied.map_or(0, |log_id| log_id.index);
    status.epoch = table.epoch().0;
    status.revision = table.revision().0;
    status.digest = table.digest().to_bytes().to_vec().into();
    status.routes = table.len() as u64;
    status.held = position.state.holds.len() as u64;
    status.held_until_ms = position.state.holds.first_end_ms().unwrap_or(0);
    status.lineage = position.state.lineage.to_vec();
    status.ready = context.caught_up.load(Ordering::Relaxed) && !context.retired.is_cancelled();
    status.problem = context.problem();
    let age = consensus.leader_contact_age();
    status.leader_contact_age_ms = age.map_or(u64::MAX, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    status.members = members::member_views(&consensus);
    status.subscribers = context.feed.status();
    status
}

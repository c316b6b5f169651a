//! One subscriber's stream, from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use holdfast_table::{Delta, Epoch, Revision, State};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use proto::hello::Mode;
use proto::subscribe_response::Frame;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::routes::RoutesService;
use super::{Context, protocol_error};
use crate::consensus::Consensus;
use crate::feed::Registration;
use crate::storage::state_machine::Position;
use holdfast_wire::proto::routes_server::Routes;

const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a subscriber that is ahead of this replica is made to wait before it is sent elsewhere.
const BEHIND_PATIENCE: Duration = Duration::from_secs(2);
const BOOKMARK_EVERY: Duration = Duration::from_secs(1);
/// Several writes in so short a time make one delta.
const COALESCE: Duration = Duration::from_millis(2);
/// Frames on their way to one subscriber; what comes after is merged until they are gone.
const FRAMES_MAX: usize = 8;
const GO_AWAY_SPREAD_MS: u32 = 100;

type Sender = mpsc::Sender<Result<proto::SubscribeResponse, Status>>;

/// The subscriber has gone, or was sent away.
struct Ended;

pub async fn subscribe(
    context: Arc<Context>,
    request: Request<Streaming<proto::SubscribeRequest>>,
) -> Result<Response<<RoutesService as Routes>::SubscribeStream>, Status> {
    let consensus = context.ready()?;
    let address = request
        .remote_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    let mut requests = request.into_inner();
    let first = tokio::time::timeout(START_TIMEOUT, requests.message()).await;
    let first = first.map_err(|_| protocol_error("no start frame in time"))??;
    let Some(proto::subscribe_request::Frame::Start(start)) = first.and_then(|request| request.frame) else {
        return Err(protocol_error("the first frame must be start"));
    };
    let registration = context.feed.register(&start, address);
    let registration = registration.ok_or_else(|| Reason::Overloaded.status("too many subscribers on this replica"))?;
    let registration = Arc::new(registration);
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    context
        .streams
        .spawn(listen(context.clone(), registration.clone(), requests, sender.clone()));
    let stream = Stream {
        context: context.clone(),
        consensus,
        sender,
        cursor: Revision(0),
        _registration: registration,
    };
    context.streams.spawn(stream.run(start));
    Ok(Response::new(ReceiverStream::new(receiver).boxed()))
}

/// Takes acknowledgements until the subscriber goes.
async fn listen(
    context: Arc<Context>,
    registration: Arc<Registration>,
    mut requests: Streaming<proto::SubscribeRequest>,
    sender: Sender,
) {
    loop {
        let request = tokio::select! {
            () = context.stopping.cancelled() => return,
            () = sender.closed() => return,
            request = requests.message() => request,
        };
        match request {
            Ok(Some(proto::SubscribeRequest {
                frame: Some(proto::subscribe_request::Frame::Ack(ack)),
            })) => {
                registration.acknowledge(Revision(ack.revision), ack.digest);
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

struct Stream {
    context: Arc<Context>,
    consensus: Consensus,
    sender: Sender,
    cursor: Revision,
    _registration: Arc<Registration>,
}

impl Stream {
    async fn run(mut self, start: proto::Start) {
        let stopping = self.context.stopping.clone();
        tokio::select! {
            _ = self.follow(start) => {}
            () = stopping.cancelled() => {
                // Not waited for: a subscriber that takes nothing finds out by itself.
                let retry_after_ms = rand::random_range(0..GO_AWAY_SPREAD_MS);
                let _ = self.sender.try_send(Ok(frame(go_away(proto::go_away::Reason::Shutdown, retry_after_ms))));
            }
        }
    }

    async fn follow(&mut self, start: proto::Start) -> Result<(), Ended> {
        self.begin(&start).await?;
        let mut applied = self.consensus.published().applied();
        let mut bookmarks = tokio::time::interval(BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = bookmarks.tick() => {
                    let position = self.catch_up().await?;
                    self.bookmark(&position).await?;
                }
                changed = applied.changed() => {
                    changed.map_err(|_| Ended)?;
                    tokio::time::sleep(COALESCE).await;
                    applied.mark_unchanged();
                    self.catch_up().await?;
                }
                () = self.sender.closed() => return Err(Ended),
            }
        }
    }

    /// Says hello, in one of the two ways.
    async fn begin(&mut self, start: &proto::Start) -> Result<(), Ended> {
        let revision = Revision(start.revision);
        let position = self.consensus.published().load();
        let own = start.has_table
            && start.cluster_id == self.consensus.identity().cluster_id
            && Epoch(start.epoch) == position.state.table.epoch();
        if own && self.reached(revision).await.is_none() {
            self.send(go_away(proto::go_away::Reason::Behind, 0)).await?;
            return Err(Ended);
        }
        let position = self.consensus.published().load();
        let table = &position.state.table;
        let delta = worth_a_delta(&position.state, revision).filter(|_| own);
        if delta.is_none() {
            return self.snapshot().await;
        }
        self.cursor = revision;
        self.hello(Mode::Resume, table.epoch(), revision).await
    }

    /// Never older state than the subscriber has seen: not even for a moment after a restart.
    async fn reached(&self, revision: Revision) -> Option<()> {
        let deadline = Instant::now() + BEHIND_PATIENCE;
        let mut applied = self.consensus.published().applied();
        while self.consensus.published().load().state.table.revision() < revision {
            tokio::time::timeout_at(deadline, applied.changed()).await.ok()?.ok()?;
        }
        Some(())
    }

    /// Sends what the subscriber lacks, as one delta or, if too much has changed, as a snapshot.
    async fn catch_up(&mut self) -> Result<Arc<Position>, Ended> {
        loop {
            let position = self.consensus.published().load();
            let state = &position.state;
            if state.table.revision() == self.cursor {
                return Ok(position);
            }
            match worth_a_delta(state, self.cursor) {
                Some(delta) => {
                    self.send(Frame::Delta((&delta).into())).await?;
                    self.cursor = delta.to;
                }
                None => self.snapshot().await?,
            }
        }
    }

    async fn snapshot(&mut self) -> Result<(), Ended> {
        let position = self.consensus.published().load();
        let snapshot = self.context.feed.snapshot(&position.state).await.map_err(|error| {
            tracing::error!(%error, "a snapshot could not be encoded");
            Ended
        })?;
        self.hello(Mode::Snapshot, snapshot.epoch, snapshot.revision).await?;
        for chunk in &snapshot.chunks {
            self.send(Frame::SnapshotChunk(chunk.clone())).await?;
        }
        self.context.metrics.snapshot_sent();
        self.cursor = snapshot.revision;
        Ok(())
    }

    async fn hello(&self, mode: Mode, epoch: Epoch, revision: Revision) -> Result<(), Ended> {
        let identity = self.consensus.identity();
        self.send(Frame::Hello(proto::Hello {
            mode: mode.into(),
            cluster_id: identity.cluster_id.clone(),
            epoch: epoch.0,
            revision: revision.0,
            replica: identity.name.clone(),
        }))
        .await
    }

    async fn bookmark(&self, position: &Position) -> Result<(), Ended> {
        let table = &position.state.table;
        let age = self.consensus.leader_contact_age();
        self.send(Frame::Bookmark(proto::Bookmark {
            revision: table.revision().0,
            digest: table.digest().to_bytes().to_vec().into(),
            leader_contact_age_ms: age.map_or(u64::MAX, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            leader_known: age.is_some() && self.consensus.leader().is_some(),
        }))
        .await
    }

    async fn send(&self, content: Frame) -> Result<(), Ended> {
        self.sender.send(Ok(frame(content))).await.map_err(|_| Ended)
    }
}

/// What leads from `from` to the present, unless a snapshot is smaller or the only way.
fn worth_a_delta(state: &State, from: Revision) -> Option<Delta> {
    const SMALL: usize = 1_000;
    let delta = state.history.since(from, &state.table)?;
    (delta.len() <= SMALL.max(state.table.len() / 2)).then_some(delta)
}

fn go_away(reason: proto::go_away::Reason, retry_after_ms: u32) -> Frame {
    Frame::GoAway(proto::GoAway {
        reason: reason.into(),
        retry_after_ms,
    })
}

fn frame(frame: Frame) -> proto::SubscribeResponse {
    proto::SubscribeResponse { frame: Some(frame) }
}

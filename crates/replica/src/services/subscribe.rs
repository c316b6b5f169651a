//! One subscriber's stream, from its start to its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use holdfast_table::{Epoch, Revision, RouteSpec};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use proto::hello::Mode;
use proto::subscribe_response::Frame;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::routes::RoutesService;
use super::{Context, protocol_error};
use crate::chunks::Broken;
use crate::consensus::Consensus;
use crate::feed::Registration;
use crate::feed::snapshot::{EncodedSnapshot, Turn};
use crate::feed::tape;
use crate::storage::state_machine::Position;
use holdfast_wire::proto::routes_server::Routes;

#[cfg(test)]
use crate::simulation::planted::{Bug, planted};

const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a subscriber that is ahead of this replica is made to wait before it is sent elsewhere.
const BEHIND_PATIENCE: Duration = Duration::from_secs(2);
const BOOKMARK_EVERY: Duration = Duration::from_secs(1);
/// What it may take to let go of a held route whose target is gone; the next request says so again.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(5);
/// A change of so few routes is sent as a delta, however small the table is.
const SMALL: usize = 1_000;
const GO_AWAY_SPREAD_MS: u32 = 100;

/// The replica stops, or cannot make what the subscriber needs: the stream ends.
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
    let gone = CancellationToken::new();
    let acknowledgements = listen(context.clone(), registration, requests, gone.clone());
    context.streams.spawn(acknowledgements);
    let mut bookmarks = tokio::time::interval(BOOKMARK_EVERY);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = Stream {
        end: context.feed.tape.end(),
        context,
        consensus,
        start: Some(start),
        cursor: Revision(0),
        pending: VecDeque::new(),
        sending: None,
        bookmarks,
        bookmark_due: false,
        over: false,
        _gone: gone.drop_guard(),
    };
    let frames = futures_util::stream::unfold(stream, async |mut stream| {
        let frame = stream.next().await?;
        Some((Ok(proto::SubscribeResponse { frame: Some(frame) }), stream))
    });
    Ok(Response::new(frames.boxed()))
}

/// Takes acknowledgements until the subscriber goes.
async fn listen(
    context: Arc<Context>,
    registration: Registration,
    mut requests: Streaming<proto::SubscribeRequest>,
    gone: CancellationToken,
) {
    loop {
        let request = tokio::select! {
            () = context.stopping.cancelled() => return,
            () = gone.cancelled() => return,
            request = requests.message() => request,
        };
        match request {
            Ok(Some(proto::SubscribeRequest {
                frame: Some(proto::subscribe_request::Frame::Ack(ack)),
            })) => {
                registration.acknowledge(Revision(ack.revision), ack.digest);
            }
            Ok(Some(proto::SubscribeRequest {
                frame: Some(proto::subscribe_request::Frame::TargetRefused(version)),
            })) => target_refused(&context, version),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

/// Whom nobody serves any more, nobody needs to hold.
fn target_refused(context: &Arc<Context>, version: proto::RouteRevision) {
    let (Ok(consensus), Ok(spec)) = (context.member(), RouteSpec::parse(&version.routespec)) else {
        return;
    };
    let position = consensus.published().load();
    let state = &position.state;
    let held = state.table.get(spec.key()).filter(|_| state.holds.contains(spec.key()));
    if held.is_none_or(|entry| entry.modified.0 != version.mod_revision) {
        return;
    }
    let routes = RoutesService(context.clone());
    let mut request = Request::new(proto::SettleHeldRequest {
        settlement: proto::settle_held_request::Settlement::Confirm.into(),
        routes: vec![version],
    });
    request.set_timeout(LET_GO_TIMEOUT);
    context.streams.spawn(async move {
        match routes.settle_held(request).await {
            Ok(_) => {
                tracing::info!(routespec = %spec, "a held route's target refuses connections; the route is deleted")
            }
            Err(error) => tracing::debug!(routespec = %spec, %error, "a held route with a dead target stays"),
        }
    });
}

/// One subscriber's frames. Asked for the next one only when the connection takes one, by the task that serves the
/// connection: so a slow subscriber has nothing waiting for it here.
struct Stream {
    context: Arc<Context>,
    consensus: Consensus,
    end: watch::Receiver<Option<Arc<Position>>>,
    // Taken when the first frame is asked for.
    start: Option<proto::Start>,
    // What the subscriber was sent, or will have been once `pending` and `sending` are through.
    cursor: Revision,
    pending: VecDeque<Frame>,
    sending: Option<Sending>,
    bookmarks: Interval,
    bookmark_due: bool,
    over: bool,
    // Tells the task that listens to it.
    _gone: DropGuard,
}

/// A snapshot on its way.
struct Sending {
    snapshot: Arc<EncodedSnapshot>,
    // Of the next chunk.
    at: usize,
    turn: Turn,
}

impl Stream {
    async fn next(&mut self) -> Option<Frame> {
        if self.over {
            return None;
        }
        let stopping = self.context.stopping.clone();
        let frame = tokio::select! {
            biased;
            () = stopping.cancelled() => {
                let retry_after_ms = rand::random_range(0..GO_AWAY_SPREAD_MS);
                go_away(proto::go_away::Reason::Shutdown, retry_after_ms)
            }
            frame = self.frame() => frame.ok()?,
        };
        self.over = matches!(frame, Frame::GoAway(_));
        Some(frame)
    }

    async fn frame(&mut self) -> Result<Frame, Ended> {
        loop {
            if let Some(start) = self.start.take() {
                self.begin(&start).await?;
            }
            if let Some(frame) = self.pending.pop_front() {
                return Ok(frame);
            }
            if self.sending.is_some() {
                match self.chunk().await? {
                    Some(frame) => return Ok(frame),
                    None => continue,
                }
            }
            let position = self.position().await?;
            if self.cursor != position.state.table.revision() {
                match self.delta(&position) {
                    Some(frame) => return Ok(frame),
                    None => self.snapshot(&position),
                }
                continue;
            }
            if std::mem::take(&mut self.bookmark_due) {
                return Ok(self.bookmark(&position));
            }
            tokio::select! {
                changed = self.end.changed() => changed.map_err(|_| Ended)?,
                _ = self.bookmarks.tick() => self.bookmark_due = true,
            }
        }
    }

    /// The state at the end of the tape.
    async fn position(&mut self) -> Result<Arc<Position>, Ended> {
        let end = self.end.wait_for(Option::is_some).await.map_err(|_| Ended)?;
        end.clone().ok_or(Ended)
    }

    /// Says hello, in one of the two ways.
    async fn begin(&mut self, start: &proto::Start) -> Result<(), Ended> {
        let revision = Revision(start.revision);
        let position = self.position().await?;
        let own = start.cluster_id == self.consensus.identity().cluster_id
            && Epoch(start.epoch) == position.state.table.epoch();
        #[cfg(test)]
        let own = own && !(planted(Bug::BackInTime) && position.state.table.revision() < revision);
        if own && !self.reached(revision).await {
            self.pending.push_back(go_away(proto::go_away::Reason::Behind, 0));
            return Ok(());
        }
        let position = self.position().await?;
        if own {
            self.cursor = revision;
        }
        if !own || !start.has_table || !worth_a_delta(&position, revision) {
            self.snapshot(&position);
            return Ok(());
        }
        let hello = self.hello(Mode::Resume, position.state.table.epoch(), revision);
        self.pending.push_back(hello);
        Ok(())
    }

    /// Never older state than the subscriber has seen: not even for a moment after a restart.
    async fn reached(&mut self, revision: Revision) -> bool {
        let there = |end: &Option<Arc<Position>>| {
            end.as_ref()
                .is_some_and(|position| position.state.table.revision() >= revision)
        };
        let reached = tokio::time::timeout(BEHIND_PATIENCE, self.end.wait_for(there)).await;
        matches!(reached, Ok(Ok(_)))
    }

    /// Leads on from the cursor; `None` if only a snapshot does.
    fn delta(&mut self, position: &Position) -> Option<Frame> {
        if let Some(recorded) = self.context.feed.tape.after(self.cursor) {
            self.cursor = recorded.to;
            return Some(Frame::Delta(recorded.bytes));
        }
        let delta = tape::delta(&position.state, self.cursor, delta_routes_max(position))?;
        self.cursor = delta.to;
        Some(Frame::Delta(tape::encode(&delta)))
    }

    fn snapshot(&mut self, position: &Position) {
        let snapshots = &self.context.feed.snapshots;
        let snapshot = snapshots.near(&position.state, self.cursor, &self.context.streams);
        let hello = self.hello(Mode::Snapshot, snapshot.epoch, snapshot.revision);
        self.pending.push_back(hello);
        self.cursor = snapshot.revision;
        let turn = snapshots.queue(&self.context.streams);
        self.sending = Some(Sending { snapshot, at: 0, turn });
    }

    /// The next chunk of the snapshot, or a bookmark as long as it is not its turn; `None` after the last.
    async fn chunk(&mut self) -> Result<Option<Frame>, Ended> {
        let Some(sending) = &mut self.sending else {
            return Ok(None);
        };
        tokio::select! {
            biased;
            come = sending.turn.come() => come.map_err(|_| Ended)?,
            // Or the subscriber would take the silence for a dead replica.
            _ = self.bookmarks.tick() => {
                let position = self.end.borrow().clone();
                return Ok(position.map(|position| self.bookmark(&position)));
            }
        }
        let chunk = sending.snapshot.chunk(sending.at).await.map_err(|Broken| Ended)?;
        sending.at += 1;
        if chunk.is_none() {
            self.sending = None;
            self.context.metrics.snapshot_sent();
        }
        Ok(chunk.map(Frame::SnapshotChunk))
    }

    fn hello(&self, mode: Mode, epoch: Epoch, revision: Revision) -> Frame {
        let identity = self.consensus.identity();
        Frame::Hello(proto::Hello {
            mode: mode.into(),
            cluster_id: identity.cluster_id.clone(),
            epoch: epoch.0,
            revision: revision.0,
            replica: identity.name.clone(),
            lineage: self.consensus.published().load().state.lineage.to_vec(),
        })
    }

    fn bookmark(&self, position: &Position) -> Frame {
        let table = &position.state.table;
        let age = self.consensus.leader_contact_age();
        Frame::Bookmark(proto::Bookmark {
            revision: table.revision().0,
            digest: table.digest().to_bytes().to_vec().into(),
            leader_contact_age_ms: age.map_or(u64::MAX, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            leader_known: age.is_some() && self.consensus.knows_leader(),
        })
    }
}

/// False if a snapshot is smaller than what leads from `from` to the present, or the only way.
fn worth_a_delta(position: &Position, from: Revision) -> bool {
    let state = &position.state;
    let changed = state
        .history
        .changed_since(from, &state.table, delta_routes_max(position));
    changed.is_some()
}

fn delta_routes_max(position: &Position) -> usize {
    SMALL.max(position.state.table.len() / 2)
}

fn go_away(reason: proto::go_away::Reason, retry_after_ms: u32) -> Frame {
    Frame::GoAway(proto::GoAway {
        reason: reason.into(),
        retry_after_ms,
    })
}

//! A backup, streamed from memory: a clone of the published state costs nothing, and writes go on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Context, hinted, patience};
use crate::backup::{self, Description};
use crate::storage::state_machine::Position;

/// Each holds on to the routes of its moment, however slowly it is taken.
pub const BACKUPS_MAX: usize = 2;
/// Encoded and not yet taken, of one backup.
const PIECES_AHEAD: usize = 4;
/// How long a backup may be under way.
const DURATION_MAX: Duration = Duration::from_secs(600);
/// How long a leader is looked for by somebody who does not insist on one.
const STALE_PATIENCE: Duration = Duration::from_secs(1);

/// The answer of `Backup`.
pub type BackupStream = Pin<Box<dyn Stream<Item = Result<proto::BackupChunk, Status>> + Send>>;

/// Answers `Backup`.
pub async fn backup(
    context: Arc<Context>,
    request: Request<proto::BackupRequest>,
) -> Result<Response<BackupStream>, Status> {
    let consensus = context.member()?;
    let patience = patience(request.metadata());
    let stale_ok = request.into_inner().stale_ok;
    let permit = context.backups.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        Reason::Overloaded.status(format!(
            "{BACKUPS_MAX} backups of this replica are under way; wait for one"
        ))
    })?;
    // A little less than the caller's, who is to hear the reason and not his own clock.
    let wait = match stale_ok {
        true => patience.min(STALE_PATIENCE),
        false => patience.mul_f32(0.9),
    };
    let (position, linearizable) = match consensus.read(Instant::now() + wait).await {
        Ok(position) => (position, true),
        Err(_) if stale_ok => (consensus.published().load(), false),
        Err(error) => {
            let status = Reason::NoLeader.status(format!("no backup: {error}"));
            return Err(hinted(status, &consensus));
        }
    };
    let identity = consensus.identity();
    let description = Description {
        created_ms: now_ms(),
        linearizable,
        leader_contact_age: consensus.leader_contact_age(),
        ..describe(&position, &identity.cluster_id, &identity.name)
    };
    // It lists a million routes, perhaps, before the first piece.
    let begun = tokio::task::spawn_blocking(move || backup::encode(&description, &position.state));
    let pieces = begun.await.map_err(|panic| Status::internal(panic.to_string()))?;
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let stopping = context.stopping.clone();
    context.streams.spawn(send(pieces, permit, sender, stopping));
    Ok(Response::new(ReceiverStream::new(receiver).boxed()))
}

/// Encodes piece by piece, as they are taken, until all are, or the time is over.
async fn send(
    mut pieces: impl Iterator<Item = io::Result<Bytes>> + Send + 'static,
    _permit: OwnedSemaphorePermit,
    sender: mpsc::Sender<Result<proto::BackupChunk, Status>>,
    stopping: CancellationToken,
) {
    let all = async {
        loop {
            let work = tokio::task::spawn_blocking(move || (pieces.next(), pieces));
            // A panic is reported where it happened; the stream breaks, and the taker sees that its end is missing.
            let Ok((Some(piece), rest)) = work.await else { return };
            pieces = rest;
            let chunk = piece.map(|data| proto::BackupChunk { data });
            let failed = chunk.is_err();
            let chunk = chunk.map_err(|error| Status::internal(error.to_string()));
            if sender.send(chunk).await.is_err() || failed {
                return;
            }
        }
    };
    let reason = tokio::select! {
        () = all => return,
        () = stopping.cancelled() => "the replica stops; ask another one",
        () = tokio::time::sleep(DURATION_MAX) => "the backup was taken too slowly",
    };
    // A taker that has no room for the reason sees the end missing all the same.
    let _ = sender.try_send(Err(Status::unavailable(reason)));
}

/// The bound on backups at one time.
pub fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(BACKUPS_MAX))
}

fn describe(position: &Position, cluster_id: &str, replica: &str) -> Description {
    let state = &position.state;
    Description {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_id: cluster_id.to_owned(),
        lineage: state.lineage.clone(),
        epoch: state.table.epoch(),
        revision: state.table.revision(),
        digest: state.table.digest(),
        routes: state.table.len() as u64,
        applied_index: position.applied.map_or(0, |log_id| log_id.index),
        created_ms: 0,
        replica: replica.to_owned(),
        linearizable: false,
        leader_contact_age: None,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

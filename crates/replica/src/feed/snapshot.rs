//! A whole table, encoded and compressed once for all who need it, and given to so many at once.

use std::sync::Arc;
use std::time::Duration;

use holdfast_table::{Epoch, Revision, State};
use holdfast_wire::proto;
use prost::Message as _;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Uncompressed bytes of routes in one chunk, about.
const CHUNK_BYTES: usize = 1024 * 1024;
const ZSTD_LEVEL: i32 = 1;
/// Snapshots on their way at once: each one's chunks are in its connection's buffers as well.
const SENDING_MAX: usize = 64;
/// A subscriber that takes longer than this for a snapshot no longer keeps others waiting.
const TURN: Duration = Duration::from_secs(10);

/// The newest snapshot, and whose turn it is to get it.
pub struct Snapshots {
    // Held while it is encoded: whoever comes meanwhile waits and takes the same one.
    newest: tokio::sync::Mutex<Option<Arc<EncodedSnapshot>>>,
    turns: Arc<Semaphore>,
}

/// A whole table in chunks.
pub struct EncodedSnapshot {
    /// Of the table in it.
    pub epoch: Epoch,
    /// Of the table in it.
    pub revision: Revision,
    /// In order; the last one says so.
    pub chunks: Vec<proto::SnapshotChunk>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Snapshots {
            newest: tokio::sync::Mutex::default(),
            turns: Arc::new(Semaphore::new(SENDING_MAX)),
        }
    }
}

impl Snapshots {
    /// A snapshot from which deltas lead to `state`: the last one encoded if it still does and is no older than what its
    /// receiver has seen, else a new one.
    pub async fn near(&self, state: &State, seen: Revision) -> std::io::Result<Arc<EncodedSnapshot>> {
        let mut newest = self.newest.lock().await;
        let fits = |snapshot: &&Arc<EncodedSnapshot>| is_near(snapshot, state) && snapshot.revision >= seen;
        if let Some(snapshot) = newest.as_ref().filter(fits) {
            return Ok(snapshot.clone());
        }
        let table = state.clone();
        let encode = move || encode(&table);
        // A runtime of one thread is a simulation's, which would not be the same twice with a second thread.
        let encoded = match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => encode()?,
            _ => tokio::task::spawn_blocking(encode)
                .await
                .map_err(std::io::Error::other)??,
        };
        Ok(newest.insert(Arc::new(encoded)).clone())
    }

    /// Waits for the right to send a snapshot; it is given back with the guard. `tasks` owns the clock that takes it from
    /// a subscriber that does not read.
    pub async fn turn(&self, tasks: &TaskTracker) -> DropGuard {
        let permit = self.turns.clone().acquire_owned().await;
        let sent = CancellationToken::new();
        let guard = sent.clone().drop_guard();
        tasks.spawn(async move {
            let _ = tokio::time::timeout(TURN, sent.cancelled()).await;
            drop(permit);
        });
        guard
    }
}

/// A snapshot is worth sending again while few routes have changed since.
fn is_near(snapshot: &EncodedSnapshot, state: &State) -> bool {
    let table = &state.table;
    snapshot.epoch == table.epoch()
        && state
            .history
            .changed_since(snapshot.revision, table, table.len() / 10)
            .is_some()
}

fn encode(state: &State) -> std::io::Result<EncodedSnapshot> {
    let table = &state.table;
    let mut chunks = Vec::new();
    let mut list = proto::RouteList::default();
    let mut bytes = 0;
    for entry in table.iter() {
        let route = proto::Route::from(entry.as_ref());
        bytes += route.encoded_len();
        list.routes.push(route);
        if bytes >= CHUNK_BYTES {
            chunks.push(chunk(&std::mem::take(&mut list))?);
            bytes = 0;
        }
    }
    chunks.push(proto::SnapshotChunk {
        last: true,
        total: table.len() as u64,
        digest: table.digest().to_bytes().to_vec().into(),
        ..chunk(&list)?
    });
    Ok(EncodedSnapshot {
        epoch: table.epoch(),
        revision: table.revision(),
        chunks,
    })
}

fn chunk(list: &proto::RouteList) -> std::io::Result<proto::SnapshotChunk> {
    let routes = zstd::bulk::compress(&list.encode_to_vec(), ZSTD_LEVEL)?;
    Ok(proto::SnapshotChunk {
        checksum: crc32fast::hash(&routes),
        routes: routes.into(),
        ..Default::default()
    })
}

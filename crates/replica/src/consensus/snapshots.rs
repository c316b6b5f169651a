//! Snapshots on their way to peers: each state is encoded once for all who need it, beside the consensus.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use holdfast_wire::proto;
use holdfast_wire::proto::snapshot_request::Part;
use openraft::error::{NetworkError, StreamingError};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::types::{LogId, Snapshot, TypeConfig};
use crate::chunks::Chunks;
use crate::storage::snapshot::encode;

/// A snapshot that makes no progress for so long is given up: no part is made or taken, or the last one not answered.
pub const PATIENCE: Duration = Duration::from_secs(60);

type Parts = Chunks<proto::SnapshotPart>;

/// The parts of the newest snapshot, for as long as a peer is being sent them. Clones share it.
#[derive(Clone, Default)]
pub struct Snapshots {
    newest: Arc<Mutex<Option<Encoded>>>,
    // Held by who encodes.
    encoding: Arc<Mutex<()>>,
    tasks: TaskTracker,
}

struct Encoded {
    applied: Option<LogId>,
    parts: Weak<Parts>,
}

impl Snapshots {
    /// The parts of a snapshot. Dropped by all who have them, they are made no further.
    pub fn parts(&self, snapshot: &Snapshot) -> Arc<Parts> {
        let mut newest = self.newest.lock().expect("nobody panics with it");
        let applied = snapshot.meta.last_log_id;
        let shared = newest.as_ref().filter(|encoded| encoded.applied == applied);
        let shared = shared.and_then(|encoded| encoded.parts.upgrade());
        if let Some(parts) = shared.filter(|parts| !parts.is_broken()) {
            return parts;
        }
        let state = snapshot.snapshot.clone();
        let parts = Arc::new(Chunks::make(&self.encoding, &self.tasks, move |maker| {
            encode(&state).try_for_each(|part| maker.push(part?))
        }));
        *newest = Some(Encoded {
            applied,
            parts: Arc::downgrade(&parts),
        });
        parts
    }
}

/// Gives a call its requests: the header, then every part, as fast as the peer takes them.
///
/// # Errors
/// The parts cannot be made, or no progress for [`PATIENCE`].
pub async fn feed(
    header: proto::SnapshotHeader,
    parts: Arc<Parts>,
    requests: mpsc::Sender<proto::SnapshotRequest>,
) -> Result<(), StreamingError<TypeConfig>> {
    let stuck = || NetworkError::from_string(format!("the snapshot made no progress within {PATIENCE:?}"));
    let mut part = Part::Header(header);
    let mut at = 0;
    loop {
        let request = proto::SnapshotRequest { part: Some(part) };
        let sent = timeout(PATIENCE, requests.send(request)).await;
        // The call has ended, and says why.
        if sent.map_err(|_| StreamingError::Network(stuck()))?.is_err() {
            return Ok(());
        }
        let next = timeout(PATIENCE, parts.get(at)).await;
        let next = next.map_err(|_| StreamingError::Network(stuck()))?;
        match next.map_err(|broken| StreamingError::Network(NetworkError::new(&broken)))? {
            Some(next) => part = Part::Chunk(next),
            None => return Ok(()),
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use holdfast_table::{Entry, Epoch, Revision, State, Table};
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::consensus::types::{LeaderId, SnapshotMeta};
    use crate::storage::snapshot::Decoder;

    fn snapshot(routes: usize, index: u64) -> Snapshot {
        let entry = |n: usize| {
            let route = proto::Route {
                routespec: format!("/user/{n}/"),
                target: "http://10.0.0.1:8888".to_owned(),
                mod_revision: 1,
                ..proto::Route::default()
            };
            Entry::try_from(&route).unwrap()
        };
        let state = State {
            table: Table::from_entries(Epoch(1), Revision(1), (0..routes).map(entry)),
            ..State::default()
        };
        let leader = LeaderId { term: 1, node_id: 1 };
        Snapshot {
            meta: SnapshotMeta {
                last_log_id: Some(LogId::new(leader, index)),
                ..SnapshotMeta::default()
            },
            snapshot: state,
        }
    }

    async fn state(parts: &Parts) -> State {
        let mut decoder = Decoder::default();
        let mut at = 0;
        while let Some(part) = parts.get(at).await.unwrap() {
            decoder.push(&part).unwrap();
            at += 1;
        }
        decoder.finish().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn two_peers_share_one_encoding_and_the_only_worker_has_its_time_for_others() {
        const ROUTES: usize = 200_000;
        const BEAT: Duration = Duration::from_millis(10);
        const LATE: Duration = Duration::from_millis(250);
        let snapshot = snapshot(ROUTES, 7);
        let digest = snapshot.snapshot.digest();
        let snapshots = Snapshots::default();
        let mut worker = JoinSet::new();
        let encode = async move {
            let (one, other) = (snapshots.parts(&snapshot), snapshots.parts(&snapshot));
            assert!(Arc::ptr_eq(&one, &other), "encoded once");
            // There is nothing beyond the last part once that is made.
            assert!(one.get(usize::MAX).await.unwrap().is_none());
            (snapshots, snapshot, one)
        };
        let mut beaten = Instant::now();
        let encoded = worker.spawn(encode);
        let mut heart = JoinSet::new();
        heart.spawn(async move {
            let mut longest = Duration::ZERO;
            loop {
                longest = longest.max(beaten.elapsed());
                beaten = Instant::now();
                if encoded.is_finished() {
                    return longest;
                }
                sleep(BEAT).await;
            }
        });
        let longest = heart.join_next().await.unwrap().unwrap();
        assert!(longest < LATE, "no heartbeat for {longest:?}");
        let (snapshots, snapshot, parts) = worker.join_next().await.unwrap().unwrap();
        let copy = state(&parts).await;
        assert_eq!((copy.table.len(), copy.digest()), (ROUTES, digest));

        let later = Snapshot {
            meta: self::snapshot(0, 8).meta,
            ..snapshot.clone()
        };
        assert!(
            !Arc::ptr_eq(&parts, &snapshots.parts(&later)),
            "another state is another snapshot"
        );
        let again = snapshots.parts(&snapshot);
        let forgotten = Arc::downgrade(&again);
        drop(again);
        assert!(forgotten.upgrade().is_none(), "kept for nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_gets_it_all_and_one_that_takes_nothing_is_given_up() {
        const PARTS: u32 = 20;
        let header = proto::SnapshotHeader::default();
        let parts = || {
            let (maker, parts) = Chunks::begin();
            for _ in 0..PARTS {
                maker.push(proto::SnapshotPart::default()).unwrap();
            }
            maker.finish();
            Arc::new(parts)
        };
        let began = Instant::now();
        let (sender, mut requests) = mpsc::channel(1);
        let slow = async {
            let mut taken = 0;
            while requests.recv().await.is_some() {
                taken += 1;
                sleep(PATIENCE - Duration::from_secs(1)).await;
            }
            taken
        };
        let (fed, taken) = tokio::join!(feed(header.clone(), parts(), sender), slow);
        assert!(fed.is_ok());
        assert_eq!(taken, PARTS + 1);
        assert!(began.elapsed() > PATIENCE * 10);

        let (sender, _untouched) = mpsc::channel(1);
        let began = Instant::now();
        assert!(feed(header, parts(), sender).await.is_err());
        assert_eq!(began.elapsed(), PATIENCE);
    }
}

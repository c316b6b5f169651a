//! A whole table, encoded and compressed once for all who need it, and given to so many at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_table::{Epoch, Revision, State, Table};
use holdfast_wire::proto;
use prost::Message as _;
use tokio::sync::watch::error::RecvError;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::chunks::{Broken, Chunks, Maker};

/// Uncompressed bytes of routes in one chunk, about.
const CHUNK_BYTES: usize = 1024 * 1024;
const ZSTD_LEVEL: i32 = 1;
/// Snapshots on their way at once: each one's chunks are in its connection's buffers as well.
const SENDING_MAX: usize = 64;
/// A subscriber that takes longer than this for a snapshot no longer keeps others waiting.
const TURN: Duration = Duration::from_secs(10);

/// The newest snapshot, and whose turn it is to get it.
pub struct Snapshots {
    newest: Mutex<Option<Arc<EncodedSnapshot>>>,
    /// Held by who encodes.
    encoding: Arc<Mutex<()>>,
    turns: Arc<Semaphore>,
}

/// A whole table in chunks. The first ones are sent while the last ones are made.
pub struct EncodedSnapshot {
    /// Of the table in it.
    pub epoch: Epoch,
    /// Of the table in it.
    pub revision: Revision,
    // The last one says that it is.
    chunks: Chunks<proto::SnapshotChunk>,
}

impl EncodedSnapshot {
    /// The chunk at this place, as soon as it is made; `None` after the last.
    ///
    /// # Errors
    /// [`Broken`]: it will never be made. The next snapshot to be asked for is a new one.
    pub async fn chunk(&self, at: usize) -> Result<Option<proto::SnapshotChunk>, Broken> {
        self.chunks.get(at).await
    }
}

/// A place among those who wait for a snapshot, and then the right to be sent one. Dropped, it is given back.
pub struct Turn {
    come: watch::Receiver<bool>,
    _sent: DropGuard,
}

impl Turn {
    /// Returns when it is this one's turn. Given up and asked for again, the place is the same.
    ///
    /// # Errors
    /// It will never be: the replica stops.
    pub async fn come(&mut self) -> Result<(), RecvError> {
        self.come.wait_for(|come| *come).await.map(drop)
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Snapshots {
            newest: Mutex::default(),
            encoding: Arc::default(),
            turns: Arc::new(Semaphore::new(SENDING_MAX)),
        }
    }
}

impl Snapshots {
    /// A snapshot from which deltas lead to `state`: the last one if it still does and is no older than what its receiver
    /// has seen, else a new one. `tasks` owns the work that makes it.
    pub fn near(&self, state: &State, seen: Revision, tasks: &TaskTracker) -> Arc<EncodedSnapshot> {
        let mut newest = self.newest.lock().expect("nobody panics with it");
        let fits = |snapshot: &&Arc<EncodedSnapshot>| {
            is_near(snapshot, state) && snapshot.revision >= seen && !snapshot.chunks.is_broken()
        };
        if let Some(snapshot) = newest.as_ref().filter(fits) {
            return snapshot.clone();
        }
        let table = state.table.clone();
        let snapshot = EncodedSnapshot {
            epoch: table.epoch(),
            revision: table.revision(),
            chunks: Chunks::make(&self.encoding, tasks, move |maker| encode(&table, maker)),
        };
        newest.insert(Arc::new(snapshot)).clone()
    }

    /// Takes a place behind all who wait to be sent a snapshot. `tasks` owns who stands there, and the clock that takes
    /// the right from a subscriber that does not read.
    pub fn queue(&self, tasks: &TaskTracker) -> Turn {
        let sent = CancellationToken::new();
        // Where nobody waits, it is one's turn at once.
        let free = self.turns.clone().try_acquire_owned().ok();
        let (call, come) = watch::channel(free.is_some());
        let (turns, ended) = (self.turns.clone(), sent.clone());
        // Not the stream itself: one whose connection takes nothing just now would be given the right and not know.
        tasks.spawn(async move {
            let permit = match free {
                Some(permit) => Ok(permit),
                None => tokio::select! {
                    () = ended.cancelled() => return,
                    permit = turns.acquire_owned() => permit,
                },
            };
            call.send_replace(true);
            let _ = tokio::time::timeout(TURN, ended.cancelled()).await;
            drop(permit);
        });
        Turn {
            come,
            _sent: sent.drop_guard(),
        }
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

fn encode(table: &Table, maker: &Maker<proto::SnapshotChunk>) -> std::io::Result<()> {
    let mut list = proto::RouteList::default();
    let mut bytes = 0;
    for entry in table.iter() {
        let route = proto::Route::from(entry.as_ref());
        bytes += route.encoded_len();
        list.routes.push(route);
        if bytes >= CHUNK_BYTES {
            maker.push(chunk(&std::mem::take(&mut list))?)?;
            bytes = 0;
        }
    }
    maker.push(proto::SnapshotChunk {
        last: true,
        total: table.len() as u64,
        digest: table.digest().to_bytes().to_vec().into(),
        ..chunk(&list)?
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

#[cfg(test)]
mod tests {
    use holdfast_table::Entry;
    use tokio::time::{Instant, timeout};

    use super::*;

    const LARGE: usize = 20_000;

    fn state(routes: usize, revision: u64) -> State {
        let entry = |n: usize| {
            let route = proto::Route {
                routespec: format!("/user/{n}/"),
                target: "http://10.0.0.1:8888".to_owned(),
                data: format!(r#"{{"padding": "{}"}}"#, "x".repeat(100)),
                mod_revision: 1,
                ..proto::Route::default()
            };
            Entry::try_from(&route).unwrap()
        };
        let table = Table::from_entries(Epoch(1), Revision(revision), (0..routes).map(entry));
        State {
            history: holdfast_table::history::History::new(&table, [], Revision(revision)),
            table,
            ..State::default()
        }
    }

    async fn read(snapshot: &EncodedSnapshot) -> Table {
        let mut table = Table::from_entries(snapshot.epoch, snapshot.revision, []);
        let mut at = 0;
        while let Some(chunk) = snapshot.chunk(at).await.unwrap() {
            let bytes = zstd::bulk::decompress(&chunk.routes, 4 * CHUNK_BYTES).unwrap();
            let list = proto::RouteList::decode(&bytes[..]).unwrap();
            table.extend(list.routes.iter().map(|route| Entry::try_from(route).unwrap()));
            at += 1;
        }
        table
    }

    /// As many turns as there are.
    async fn sent_at_once(snapshots: &Snapshots, tasks: &TaskTracker) -> Vec<Turn> {
        let mut sending: Vec<_> = (0..SENDING_MAX).map(|_| snapshots.queue(tasks)).collect();
        for turn in &mut sending {
            turn.come().await.unwrap();
        }
        sending
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_who_come_get_one_snapshot_and_every_route_in_it() {
        let (snapshots, tasks, state) = (Snapshots::default(), TaskTracker::new(), state(LARGE, 7));
        let first = snapshots.near(&state, Revision(0), &tasks);
        let second = snapshots.near(&state, Revision(7), &tasks);
        assert!(Arc::ptr_eq(&first, &second), "made once");
        let (one, other) = tokio::join!(read(&first), read(&second));
        assert_eq!((one.len(), one.digest()), (LARGE, state.table.digest()));
        assert_eq!((one.digest(), one.revision()), (other.digest(), other.revision()));
        assert!(first.chunk(1).await.unwrap().is_some(), "in more than one chunk");
        assert!(first.chunk(1_000).await.unwrap().is_none());
        let later = snapshots.near(&state, Revision(8), &tasks);
        assert!(!Arc::ptr_eq(&first, &later), "never older than what was seen");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_that_was_not_finished_is_given_up_and_made_anew() {
        let (snapshots, tasks, state) = (Snapshots::default(), TaskTracker::new(), state(3, 7));
        let (maker, chunks) = Chunks::begin();
        maker.push(proto::SnapshotChunk::default()).unwrap();
        let unfinished = Arc::new(EncodedSnapshot {
            epoch: Epoch(1),
            revision: Revision(7),
            chunks,
        });
        *snapshots.newest.lock().unwrap() = Some(unfinished.clone());
        assert!(Arc::ptr_eq(&unfinished, &snapshots.near(&state, Revision(0), &tasks)));
        let (next, ()) = tokio::join!(unfinished.chunk(1), async { drop(maker) });
        assert!(next.is_err());
        assert!(unfinished.chunk(0).await.is_ok(), "what was made is given all the same");
        let anew = snapshots.near(&state, Revision(0), &tasks);
        assert_eq!(read(&anew).await.digest(), state.table.digest());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_sent_at_once_and_nobody_keeps_the_others_waiting_for_long() {
        // What the clock rounds to.
        const ABOUT: Duration = Duration::from_millis(10);
        let (snapshots, tasks, began) = (Snapshots::default(), TaskTracker::new(), Instant::now());
        let mut sending = sent_at_once(&snapshots, &tasks).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits while there are few");
        let mut next = snapshots.queue(&tasks);
        let early = timeout(TURN / 2, next.come()).await;
        assert!(early.is_err(), "one more than {SENDING_MAX}");

        drop(sending.pop());
        next.come().await.unwrap();
        assert!(began.elapsed() < TURN / 2 + ABOUT, "at once, when one has been sent");

        // Nobody reads any more: who came first has had the time for it.
        snapshots.queue(&tasks).come().await.unwrap();
        let waited = began.elapsed();
        assert!((TURN..TURN + ABOUT).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_sent_a_bookmark_meanwhile_keeps_its_place_and_who_has_gone_has_none() {
        const BOOKMARK: Duration = Duration::from_millis(500);
        let (snapshots, tasks) = (Snapshots::default(), TaskTracker::new());
        let mut sending = sent_at_once(&snapshots, &tasks).await;
        let mut first = snapshots.queue(&tasks);
        let mut gone = snapshots.queue(&tasks);
        let mut last = snapshots.queue(&tasks);
        assert!(timeout(BOOKMARK, first.come()).await.is_err());
        // It waits without a pause, and came later.
        let waits = async { timeout(2 * BOOKMARK, last.come()).await.is_ok() };
        let told = async {
            assert!(timeout(BOOKMARK, first.come()).await.is_err());
            drop(sending.pop());
            timeout(BOOKMARK, first.come()).await.is_ok()
        };
        assert_eq!(tokio::join!(waits, told), (false, true));

        assert!(timeout(BOOKMARK, gone.come()).await.is_err());
        drop(gone);
        drop(sending.pop());
        timeout(BOOKMARK, last.come()).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_even_ask_whether_its_turn_has_come_keeps_nobody_waiting_for_long() {
        let (snapshots, tasks) = (Snapshots::default(), TaskTracker::new());
        let sending = sent_at_once(&snapshots, &tasks).await;
        let _stuck: Vec<_> = sending.iter().map(|_| snapshots.queue(&tasks)).collect();
        let mut last = snapshots.queue(&tasks);
        assert!(timeout(TURN / 2, last.come()).await.is_err());
        drop(sending);
        timeout(2 * TURN, last.come()).await.unwrap().unwrap();
    }
}

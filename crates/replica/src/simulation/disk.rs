//! A disk that keeps its promises and not a byte more: at a crash any suffix of what was not synced is gone.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use super::planted::{Bug, planted};
use crate::storage::disk::{Batch, Change, Disk, Family, Row};
use crate::storage::keys;
use crate::storage::sync::{Queue, Syncer, Waiting};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// What survives a crash of the machine that has it, and what the machine believes meanwhile.
#[derive(Clone)]
pub struct Medium(Arc<Mutex<Content>>);

struct Content {
    rng: StdRng,
    lasting: [Rows; 3],
    readable: [Rows; 3],
    // Written, and not synced yet; the last one is number `written`.
    unsynced: VecDeque<Batch>,
    written: u64,
    waiting: Vec<Waiting>,
    syncing: bool,
    sync_takes: Range<Duration>,
    next_sync_fails: bool,
    failed: bool,
    // Of the table's rows: a new one is a snapshot that is being installed, a good moment for the power to go.
    generation: u32,
    going: Option<Going>,
    // A machine that was cut off from power writes no more, whatever it still had in mind.
    powered: u64,
    syncs: u64,
    lost: u64,
}

/// The power goes while a snapshot is installed.
#[derive(Clone, Copy)]
struct Going {
    // Batches written before it.
    before: u64,
    // The last batch that the machine lives to write; it does not live to sync it.
    last: u64,
}

/// How long a sync takes on a disk that is well.
pub const QUICK: Range<Duration> = Duration::from_micros(200)..Duration::from_millis(3);
/// And on one that is not.
pub const SLOW: Range<Duration> = Duration::from_millis(20)..Duration::from_millis(400);

impl Medium {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Medium(Arc::new(Mutex::new(Content {
            rng: StdRng::seed_from_u64(seed),
            lasting: Default::default(),
            readable: Default::default(),
            unsynced: VecDeque::new(),
            written: 0,
            waiting: Vec::new(),
            syncing: false,
            sync_takes: QUICK,
            next_sync_fails: false,
            failed: false,
            generation: 0,
            going: None,
            powered: 0,
            syncs: 0,
            lost: 0,
        })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("nobody panics with it")
    }

    /// The disk as a machine that starts now has it.
    pub fn plug_in(&self) -> SimDisk {
        SimDisk {
            medium: self.clone(),
            powered: self.content().powered,
        }
    }

    /// How long syncs take from now on.
    pub fn sync_takes(&self, range: Range<Duration>) {
        self.content().sync_takes = range;
    }

    /// The next sync is an error, and the process is expected to end.
    pub fn fail_next_sync(&self) {
        self.content().next_sync_fails = true;
    }

    /// True once a sync has failed.
    pub fn failed(&self) -> bool {
        self.content().failed
    }

    /// True if the machine should lose its power now.
    pub fn doomed(&self) -> bool {
        self.content().going.is_some()
    }

    /// Syncs done, and batches lost in crashes.
    pub fn count(&self) -> (u64, u64) {
        let content = self.content();
        (content.syncs, content.lost)
    }

    /// The power is gone, and with it any suffix of what was not synced.
    pub fn crash(&self) {
        let waiting = {
            let mut content = self.content();
            let unsynced = content.unsynced.len();
            let least = match content.going {
                // Somewhere within the snapshot, or what comes before it would hide it.
                Some(going) => unsynced.saturating_sub((content.written - going.before) as usize),
                None => 0,
            };
            let kept = match content.rng.random_range(0..3) {
                0 => least,
                1 => unsynced,
                _ => content.rng.random_range(least..=unsynced),
            };
            content.lost += (unsynced - kept) as u64;
            let upto = content.written - (unsynced - kept) as u64;
            content.make_last(upto);
            content.unsynced.clear();
            content.written = 0;
            content.readable = content.lasting.clone();
            content.syncing = false;
            content.failed = false;
            content.going = None;
            content.next_sync_fails = false;
            content.powered += 1;
            std::mem::take(&mut content.waiting)
        };
        drop(waiting);
    }

    /// Everything is gone.
    pub fn wipe(&self) {
        let mut content = self.content();
        content.lasting = Default::default();
        content.readable = Default::default();
        content.generation = 0;
    }

    /// Everything is gone but who this was.
    pub fn wipe_all_but_identity(&self) {
        let identity = self.content().lasting[0].get(keys::IDENTITY).cloned();
        self.wipe();
        let mut content = self.content();
        content.lasting[0].extend(identity.map(|identity| (keys::IDENTITY.to_vec(), identity)));
        content.readable = content.lasting.clone();
    }
}

impl Content {
    fn make_last(&mut self, upto: u64) {
        while self.written - (self.unsynced.len() as u64) < upto {
            let Some(batch) = self.unsynced.pop_front() else {
                return;
            };
            write(&mut self.lasting, &batch);
        }
    }

    fn look_for_a_snapshot(&mut self, batch: &Batch) {
        for change in batch.changes() {
            if let Change::Put(Family::Table, key, _) = change
                && let Some((generation, _)) = keys::Row::parse(key)
                && generation > self.generation
            {
                self.generation = generation;
                if self.rng.random_range(0..2) == 0 {
                    let last = self.written + self.rng.random_range(1..8);
                    let before = self.written;
                    self.going = Some(Going { before, last });
                }
            }
        }
    }

    fn sync(&mut self, upto: u64) -> io::Result<()> {
        if let Some(going) = &mut self.going {
            going.last = going.before;
            return Err(off());
        }
        if self.next_sync_fails || self.failed {
            self.failed = true;
            return Err(io::Error::other("the disk did not take it"));
        }
        self.syncs += 1;
        self.make_last(upto);
        Ok(())
    }
}

fn off() -> io::Error {
    io::Error::other("the machine is off")
}

fn write(families: &mut [Rows; 3], batch: &Batch) {
    for change in batch.changes() {
        match change {
            Change::Put(family, key, value) => drop(families[*family as usize].insert(key.clone(), value.clone())),
            Change::Delete(family, key) => drop(families[*family as usize].remove(key)),
            Change::DeleteRange(family, from, to) => {
                families[*family as usize].retain(|key, _| key < from || key >= to);
            }
        }
    }
}

/// A medium in the hands of one run of a process.
#[derive(Clone)]
pub struct SimDisk {
    medium: Medium,
    powered: u64,
}

impl SimDisk {
    fn content(&self) -> io::Result<MutexGuard<'_, Content>> {
        let content = self.medium.content();
        let on = content.powered == self.powered && content.going.is_none_or(|going| content.written < going.last);
        match on {
            true => Ok(content),
            false => Err(off()),
        }
    }

    /// Syncs for all who wait, again and again until nobody does.
    async fn sync_for_all(self) {
        loop {
            let (waiting, upto, takes) = {
                let Ok(mut content) = self.content() else { return };
                let range = content.sync_takes.clone();
                let takes = content.rng.random_range(range);
                (std::mem::take(&mut content.waiting), content.written, takes)
            };
            tokio::time::sleep(takes).await;
            {
                let Ok(mut content) = self.content() else { return };
                if content.sync(upto).is_err() {
                    // Nobody is told anything: the process ends here.
                    content.waiting.splice(0..0, waiting);
                    return;
                }
            }
            waiting.into_iter().for_each(Waiting::done);
            let Ok(mut content) = self.content() else { return };
            if content.waiting.is_empty() {
                content.syncing = false;
                return;
            }
        }
    }
}

impl Disk for SimDisk {
    fn get(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.content()?.readable[family as usize].get(key).cloned())
    }

    fn scan<'a>(&'a self, family: Family, from: &[u8]) -> Box<dyn Iterator<Item = io::Result<Row>> + 'a> {
        let rows: Vec<_> = match self.content() {
            Err(error) => vec![Err(error)],
            Ok(content) => content.readable[family as usize]
                .range(from.to_vec()..)
                .map(|(key, value)| Ok((key.clone().into(), value.clone().into())))
                .collect(),
        };
        Box::new(rows.into_iter())
    }

    fn last(&self, family: Family) -> io::Result<Option<Row>> {
        let content = self.content()?;
        let last = content.readable[family as usize].last_key_value();
        Ok(last.map(|(key, value)| (key.clone().into(), value.clone().into())))
    }

    fn write(&self, batch: Batch) -> io::Result<()> {
        let mut content = self.content()?;
        write(&mut content.readable, &batch);
        content.look_for_a_snapshot(&batch);
        content.unsynced.push_back(batch);
        content.written += 1;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut content = self.content()?;
        let written = content.written;
        content.sync(written)
    }

    fn syncer(self: Arc<Self>) -> io::Result<Syncer> {
        Ok(Syncer::of(Arc::new(Syncing {
            disk: SimDisk::clone(&self),
            tasks: Mutex::default(),
        })))
    }
}

/// Whoever syncs for all, as long as the process lives.
struct Syncing {
    disk: SimDisk,
    tasks: Mutex<JoinSet<()>>,
}

impl Queue for Syncing {
    fn push(&self, waiting: Waiting) {
        let Ok(mut content) = self.disk.content() else { return };
        if planted(Bug::AcknowledgesBeforeSync) {
            drop(content);
            waiting.done();
            let Ok(again) = self.disk.content() else { return };
            content = again;
        } else {
            content.waiting.push(waiting);
        }
        if !content.syncing && !content.failed {
            content.syncing = true;
            let mut tasks = self.tasks.lock().expect("nobody panics with it");
            while tasks.try_join_next().is_some() {}
            tasks.spawn(self.disk.clone().sync_for_all());
        }
    }
}

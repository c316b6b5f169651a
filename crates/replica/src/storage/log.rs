//! The Raft log: entries and vote, on disk before they are acknowledged.

mod size;

use std::collections::VecDeque;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Batch, Family, Row};
use super::sync::Syncer;
use super::{Store, corrupt, keys, put_row, row, unsealed};
use crate::consensus::types::{
    Entry, LogId, TypeConfig, Vote, ballot_in, ballot_out, entry_in, entry_out, log_id_in, log_id_out,
};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};

pub use size::{Amount, LogSize};

#[cfg(test)]
use crate::simulation::planted::{Bug, planted};

/// Recent entries kept in memory, in bytes: replication and apply read them without the disk.
const RECENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most bytes in one answer to a reader, so that one append request stays far below what a peer decodes.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The log of one replica. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    store: Store,
    syncer: Syncer,
    size: LogSize,
    state: Arc<Mutex<LogMemory>>,
}

#[derive(Default)]
struct LogMemory {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    recent: VecDeque<(Entry, usize)>,
    recent_bytes: usize,
}

impl LogStore {
    /// Reads vote and ends of the log, and how long it is.
    pub fn open(store: Store) -> io::Result<Self> {
        let syncer = store.disk.clone().syncer()?;
        let log = LogStore {
            store,
            syncer,
            size: LogSize::default(),
            state: Arc::default(),
        };
        let Promises { vote, purged, .. } = promises(&log.store)?;
        let last = match log.store.disk.last(Family::Log)? {
            None => purged,
            Some(row) => Some(read_entry(&row)?.log_id),
        };
        *log.memory() = LogMemory {
            vote,
            purged,
            last,
            ..LogMemory::default()
        };
        // All of it is read, for no key tells how long its value is; it is kept too short for that to take long.
        for row in log.store.disk.scan(Family::Log, &[]) {
            let (key, value) = row?;
            log.size.push(index_of(&key)?, value.len());
        }
        Ok(log)
    }

    /// How much is in it.
    pub fn size(&self) -> LogSize {
        self.size.clone()
    }

    #[cfg(test)]
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn memory(&self) -> MutexGuard<'_, LogMemory> {
        self.state.lock().expect("nobody panics with it")
    }

    /// The entries of `start..end`, no more than about `bytes_max`, but always the first one.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if let Some(entries) = self.memory().read(start, end, bytes_max) {
            return Ok(entries);
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for row in self.store.disk.scan(Family::Log, &keys::entry(start)) {
            let row = row?;
            let entry = read_entry(&row)?;
            bytes += row.1.len();
            if entry.log_id.index >= end || (bytes > bytes_max && !entries.is_empty()) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

fn delete_range(batch: &mut Batch, from: u64, to: u64) {
    // Range tombstones pile up and slow every read, so a few entries are deleted one by one.
    if to - from < 1000 {
        (from..to).for_each(|index| batch.delete(Family::Log, keys::entry(index)));
    } else {
        batch.delete_range(Family::Log, keys::entry(from), keys::entry(to));
    }
}

impl LogMemory {
    fn push(&mut self, entry: Entry, bytes: usize) {
        self.last = Some(entry.log_id);
        self.recent_bytes += bytes;
        self.recent.push_back((entry, bytes));
        while self.recent_bytes > RECENT_BYTES_MAX && self.recent.len() > 1 {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, bytes)) = self.recent.pop_front() {
            self.recent_bytes -= bytes;
        }
    }

    fn read(&self, start: u64, end: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.recent.front()?.0.log_id.index;
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let wanted = self.recent.iter().skip(skip).take_while(|(entry, size)| {
            bytes += size;
            entry.log_id.index < end && (bytes <= bytes_max || entry.log_id.index == start)
        });
        Some(wanted.map(|(entry, _)| entry.clone()).collect())
    }
}

fn index_of(key: &[u8]) -> io::Result<u64> {
    keys::entry_index(key).ok_or_else(|| corrupt("a log key that is no index"))
}

fn read_entry((key, value): &Row) -> io::Result<Entry> {
    let index = index_of(key)?;
    let damaged = |what: &str| corrupt(format!("log entry {index}: {what}"));
    let message = unsealed(key, value).map_err(damaged)?;
    let entry = entry_in(decode(message)?).ok_or_else(|| damaged("is no entry"))?;
    if entry.log_id.index != index {
        return Err(damaged(&format!("is entry {}", entry.log_id.index)));
    }
    Ok(entry)
}

/// What a replica that does not run has promised and agreed on, beside its log entries.
pub struct Promises {
    /// Its vote.
    pub vote: Option<Vote>,
    /// The last entry that it no longer keeps.
    pub purged: Option<LogId>,
    /// The last entry that it knew to be committed; there may be more.
    pub committed: Option<LogId>,
}

/// Reads the promises from disk.
pub fn promises(store: &Store) -> io::Result<Promises> {
    Ok(Promises {
        vote: store.meta(keys::VOTE)?.map(ballot_in),
        purged: store.meta(keys::PURGED)?.map(log_id_in),
        committed: store.meta(keys::COMMITTED)?.map(log_id_in),
    })
}

/// The entries on disk from `from` on, in order; ends with the first one that is damaged.
pub fn entries(store: &Store, from: u64) -> impl Iterator<Item = io::Result<Entry>> {
    let rows = store.disk.scan(Family::Log, &keys::entry(from));
    let mut ended = false;
    rows.map_while(move |row| {
        let entry = (!ended).then(|| row.and_then(|row| read_entry(&row)))?;
        ended = entry.is_err();
        Some(entry)
    })
}

/// Flips a bit of an entry, as a disk might.
#[cfg(test)]
pub fn damage(store: &Store, index: u64) {
    let mut value = store.disk.get(Family::Log, &keys::entry(index)).unwrap().unwrap();
    *value.last_mut().unwrap() ^= 1;
    let mut batch = Batch::default();
    batch.put(Family::Log, keys::entry(index), value);
    store.disk.write(batch).unwrap();
}

/// Gives a new directory a log that is empty and goes on after `last`; on disk when this returns.
pub fn seed(store: &Store, last: LogId) -> io::Result<()> {
    let leader = last.committed_leader_id();
    let vote = Vote::new_committed(leader.term, leader.node_id);
    let mut batch = Batch::default();
    put_row(&mut batch, Family::Meta, keys::VOTE, &ballot_out(&vote));
    put_row(&mut batch, Family::Meta, keys::PURGED, &log_id_out(&last));
    put_row(&mut batch, Family::Meta, keys::COMMITTED, &log_id_out(&last));
    store.disk.write(batch)?;
    store.disk.sync()
}

fn decode<M: prost::Message + Default>(bytes: &[u8]) -> io::Result<M> {
    M::decode(bytes::Bytes::copy_from_slice(bytes)).map_err(|error| corrupt(error.to_string()))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory();
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: memory.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        #[cfg(test)]
        if planted(Bug::VoteNotSynced) {
            self.memory().vote = Some(*vote);
            return Ok(());
        }
        let mut batch = Batch::default();
        put_row(&mut batch, Family::Meta, keys::VOTE, &ballot_out(vote));
        self.store.disk.write(batch)?;
        self.syncer.sync().await?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    /// Not synced: a lost position is found again by the log, which is.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut batch = Batch::default();
        match committed {
            Some(log_id) => put_row(&mut batch, Family::Meta, keys::COMMITTED, &log_id_out(&log_id)),
            None => batch.delete(Family::Meta, keys::COMMITTED),
        }
        self.store.disk.write(batch)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.store.meta(keys::COMMITTED)?.map(log_id_in))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Batch::default();
        let mut written = Vec::new();
        for entry in entries {
            let (key, value) = row(keys::entry(entry.log_id.index), &entry_out(&entry));
            let bytes = value.len();
            batch.put(Family::Log, key, value);
            written.push((entry, bytes));
        }
        self.store.disk.write(batch)?;
        let mut memory = self.memory();
        for (entry, bytes) in written {
            self.size.push(entry.log_id.index, bytes);
            memory.push(entry, bytes);
        }
        drop(memory);
        self.syncer.append(callback);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |log_id| log_id.index + 1);
        let end = self.memory().last.map_or(0, |log_id| log_id.index + 1);
        let mut batch = Batch::default();
        delete_range(&mut batch, from, end.max(from));
        self.store.disk.write(batch)?;
        self.size.truncate(from);
        let mut memory = self.memory();
        while memory
            .recent
            .back()
            .is_some_and(|(entry, _)| entry.log_id.index >= from)
        {
            if let Some((_, bytes)) = memory.recent.pop_back() {
                memory.recent_bytes -= bytes;
            }
        }
        memory.last = memory.last.min(last_log_id).or(memory.purged);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let from = self.memory().purged.map_or(0, |purged| purged.index + 1);
        let mut batch = Batch::default();
        put_row(&mut batch, Family::Meta, keys::PURGED, &log_id_out(&log_id));
        delete_range(&mut batch, from, (log_id.index + 1).max(from));
        self.store.disk.write(batch)?;
        self.size.purge(log_id.index);
        let mut memory = self.memory();
        while memory
            .recent
            .front()
            .is_some_and(|(entry, _)| entry.log_id.index <= log_id.index)
        {
            memory.drop_oldest();
        }
        memory.purged = Some(log_id);
        memory.last = memory.last.max(Some(log_id));
        Ok(())
    }
}

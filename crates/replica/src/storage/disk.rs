//! The disk as the store needs it: one order of writes over three families, and a sync that makes them last.
//!
//! Two disks keep this contract: RocksDB, and in the simulation one in memory that forgets at a crash what was not synced.

use std::io;
use std::sync::Arc;

use super::sync::Syncer;

/// What belongs together on a disk, with an order of its keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Vote, positions and identity.
    Meta,
    /// Log entries by index.
    Log,
    /// The state machine's rows.
    Table,
}

impl Family {
    /// Every one.
    pub const ALL: [Family; 3] = [Family::Meta, Family::Log, Family::Table];
}

/// A key and its value.
pub type Row = (Box<[u8]>, Box<[u8]>);

/// One change of one family.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds or replaces.
    Put(Family, Vec<u8>, Vec<u8>),
    /// Removes, if it is there.
    Delete(Family, Vec<u8>),
    /// Removes every key from the first to before the second.
    DeleteRange(Family, Vec<u8>, Vec<u8>),
}

/// Changes that are there all together or not at all, whatever happens.
#[derive(Clone, Debug, Default)]
pub struct Batch(Vec<Change>);

impl Batch {
    /// Adds or replaces one row.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: Vec<u8>) {
        self.0.push(Change::Put(family, key.into(), value));
    }

    /// Removes one row.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.0.push(Change::Delete(family, key.into()));
    }

    /// Removes the rows of `from..to`.
    pub fn delete_range(&mut self, family: Family, from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) {
        self.0.push(Change::DeleteRange(family, from.into(), to.into()));
    }

    /// How many changes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many bytes of keys and values.
    pub fn bytes(&self) -> usize {
        let bytes = |change: &Change| match change {
            Change::Put(_, key, value) | Change::DeleteRange(_, key, value) => key.len() + value.len(),
            Change::Delete(_, key) => key.len(),
        };
        self.0.iter().map(bytes).sum()
    }

    /// In their order.
    pub fn changes(&self) -> &[Change] {
        &self.0
    }
}

/// A disk. After a crash it holds a prefix of the batches written, in their order and over all families: at least all
/// that a completed sync covers.
pub trait Disk: Send + Sync + 'static {
    /// One value, as last written.
    ///
    /// # Errors
    /// The disk could not be read, or what it holds is damaged.
    fn get(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// The rows from `from` on, in the order of their keys.
    fn scan<'a>(&'a self, family: Family, from: &[u8]) -> Box<dyn Iterator<Item = io::Result<Row>> + 'a>;

    /// The row with the greatest key.
    ///
    /// # Errors
    /// Likewise.
    fn last(&self, family: Family) -> io::Result<Option<Row>>;

    /// Writes; to be read at once, and to last once it is synced.
    ///
    /// # Errors
    /// Nothing of it was written.
    fn write(&self, batch: Batch) -> io::Result<()>;

    /// Blocks until everything written before this call lasts.
    ///
    /// # Errors
    /// Nobody knows what lasts. No sync may be believed after it.
    fn sync(&self) -> io::Result<()>;

    /// What syncs for all who wait, without blocking them.
    ///
    /// # Errors
    /// It could not be started.
    fn syncer(self: Arc<Self>) -> io::Result<Syncer>;
}

//! Vote, log and table on one disk, which keeps them in order.
//!
//! After a crash the disk holds a prefix of everything written, over all families. So a vote is there before the entries
//! of its term, an entry before the batch that applied it.

pub(crate) mod disk;
pub mod identity;
pub(crate) mod keys;
pub mod log;
mod manifest;
pub mod offline;
pub mod probe;
mod records;
mod rocks;
pub mod snapshot;
pub mod state_machine;
pub(crate) mod sync;
mod synced;
mod wal;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Batch, Disk, Family};
use prost::Message;
use rocks::{Buffers, RocksDisk};
pub use sync::EXIT_DISK_FAILED;

/// In a data directory: the file that says that a process has it, the database, and the mark that it must not be opened
/// again.
const LOCK: &str = "replica.lock";
const DATABASE: &str = "db";
const SET_ASIDE: &str = "set-aside";

/// The version of everything in a data directory; a replica opens no other.
pub const FORMAT: u32 = 2;

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Missing rights, or a file in its place.
    #[error("data-dir {path:?}: cannot be made or opened; check its owner and mode")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Two replicas on one directory would destroy it.
    #[error(
        "data-dir {path:?}: is locked by a running replica; stop that one, or give this one a directory of its own"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another version of Holdfast.
    #[error("data-dir {path:?}: has format {found}, this version reads format {FORMAT}; use the version that wrote it")]
    Format {
        /// The directory.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// A directory has one owner.
    #[error("data-dir {path:?}: belongs to replica {found:?}, not to --name {name:?}; nothing was changed")]
    Name {
        /// The directory.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was configured.
        name: String,
    },
    /// There is nothing to recover.
    #[error("data-dir {path:?}: holds no replica's data")]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A restore or recover was killed half-way; nothing is lost, but a blank replica must not start here.
    #[error("data-dir {path:?}: a restore or recover was interrupted here, and {left:?} is what it left; {remedy}")]
    Interrupted {
        /// The directory.
        path: PathBuf,
        /// What is there in place of a database.
        left: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// Damage is never served and never repaired by guessing.
    #[error(
        "data-dir {path:?}: is damaged ({problem}); nothing was changed; keep it, and see docs/operating.md for what to do"
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The disk, not what is on it: full, failing, or out of the process's reach. The process ends with
    /// [`EXIT_DISK_FAILED`].
    #[error(
        "data-dir {path:?}: the disk failed ({problem}); nothing that it did not take was acknowledged; give it space or \
         replace it, and start again"
    )]
    Disk {
        /// The directory.
        path: PathBuf,
        /// What was being done, and the system's word.
        problem: String,
    },
}

impl OpenError {
    /// `part` of the directory in `path` could not be read or written.
    fn of(path: &Path, part: &str, error: &io::Error) -> Self {
        let (path, problem) = (path.to_owned(), format!("{part}: {error}"));
        match error.kind() {
            io::ErrorKind::InvalidData => OpenError::Damaged { path, problem },
            _ => OpenError::Disk { path, problem },
        }
    }
}

/// The open disk of one replica. Clones share it.
#[derive(Clone)]
pub struct Store {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    // Held, so that a second replica is told plainly; RocksDB's own lock speaks of file names.
    _lock: Option<Arc<File>>,
}

impl Store {
    /// Opens or creates the database in `path`.
    ///
    /// # Errors
    /// [`OpenError`]: another process has it, or it is damaged. Only an incomplete last record of the write-ahead log,
    /// which was never acknowledged, is dropped; anything else that is wrong refuses to open.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let directory = |source| OpenError::Directory {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(directory)?;
        let lock = File::create(path.join(LOCK)).map_err(directory)?;
        let lock = locked(path, lock)?;
        offline::refuse_interrupted(path)?;
        set_aside(path).map_err(directory)?;
        let disk = RocksDisk::open(&path.join(DATABASE), &Buffers::PRODUCTION)
            .map_err(|error| OpenError::of(path, DATABASE, &error))?;
        Ok(Store {
            disk: Arc::new(disk),
            path: path.to_owned(),
            _lock: Some(Arc::new(lock)),
        })
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the next start put the database out of the way, kept for whoever wants to know, and begin with an empty one.
    ///
    /// # Errors
    /// The system's: nothing was changed.
    pub fn set_aside_at_next_start(&self) -> io::Result<()> {
        File::create(self.path.join(SET_ASIDE))?.sync_all()?;
        File::open(&self.path)?.sync_all()
    }

    /// Blocks until everything written lasts.
    #[cfg(test)]
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    /// A store on a disk that a test brings along.
    #[cfg(test)]
    pub fn on(disk: Arc<dyn Disk>, path: &Path) -> Self {
        Store {
            disk,
            path: path.to_owned(),
            _lock: None,
        }
    }

    /// A row of [`Family::Meta`] that stands for itself; `None` if it was never written.
    ///
    /// # Errors
    /// The disk could not be read, or the row is not what was written.
    fn meta<M: Message + Default>(&self, key: &[u8]) -> io::Result<Option<M>> {
        let damaged = |problem| corrupt(format!("row {}: {problem}", String::from_utf8_lossy(key)));
        let value = self.disk.get(Family::Meta, key)?;
        value.map(|value| read_row(key, &value).map_err(damaged)).transpose()
    }

    /// True if nothing was ever written.
    fn is_blank(&self) -> io::Result<bool> {
        for family in Family::ALL {
            if self.disk.last(family)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Why `part` of what is stored is of no use.
    pub(crate) fn failed(&self, part: &str, error: &io::Error) -> OpenError {
        OpenError::of(&self.path, part, error)
    }
}

fn set_aside(path: &Path) -> io::Result<()> {
    let mark = path.join(SET_ASIDE);
    if !mark.try_exists()? {
        return Ok(());
    }
    let database = path.join(DATABASE);
    if database.try_exists()? {
        let free = |n: &u32| !path.join(format!("db.set-aside-{n}")).exists();
        let number = (1..).find(free).unwrap_or_default();
        std::fs::rename(&database, path.join(format!("db.set-aside-{number}")))?;
        // The mark goes only when the database is surely out of the way.
        File::open(path)?.sync_all()?;
        tracing::warn!(
            number,
            "the table in this directory was found to be wrong; it is set aside, the replica starts empty"
        );
    }
    std::fs::remove_file(mark)
}

/// The lock of the directory, taken.
fn locked(path: &Path, lock: File) -> Result<File, OpenError> {
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Directory {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A message as it is stored: CRC-32 of its key and of the message, then the message. So neither a changed byte nor
/// another row's value is believed.
fn sealed(key: &[u8], message: &impl Message) -> Vec<u8> {
    let mut value = Vec::with_capacity(4 + message.encoded_len());
    value.extend_from_slice(&[0; 4]);
    message.encode(&mut value).expect("a Vec takes everything");
    let checksum = checksum(key, &value[4..]);
    value[..4].copy_from_slice(&checksum.to_le_bytes());
    value
}

/// The encoded message of a value that was sealed under `key`, or why it is none.
fn unsealed<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], &'static str> {
    let (found, message) = value.split_first_chunk::<4>().ok_or("too short")?;
    match checksum(key, message) == u32::from_le_bytes(*found) {
        true => Ok(message),
        false => Err("checksum does not match"),
    }
}

fn checksum(key: &[u8], message: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(message);
    hasher.finalize()
}

/// A row to be written.
fn row(key: impl Into<Vec<u8>>, message: &impl Message) -> (Vec<u8>, Vec<u8>) {
    let key = key.into();
    let value = sealed(&key, message);
    (key, value)
}

fn put_row(batch: &mut Batch, family: Family, key: impl Into<Vec<u8>>, message: &impl Message) {
    let (key, value) = row(key, message);
    batch.put(family, key, value);
}

/// The message of a row, or why there is none in it.
fn read_row<M: Message + Default>(key: &[u8], value: &[u8]) -> Result<M, String> {
    M::decode(unsealed(key, value)?).map_err(|error| error.to_string())
}

/// Damaged data, as opposed to a disk that fails.
fn corrupt(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests;

//! A note beside RocksDB's files of what has been on disk, so that it is missed when it is gone.
//!
//! RocksDB believes what it finds. An older manifest, or one that has lost its end, is as good to it as the newest: it
//! opens with the tables that are named there, and removes the others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::corrupt;
use super::manifest::{self, Manifest};
use super::records::Records;
use super::wal::{self, TornEnd};

/// Where the note is: it goes where the database goes.
const SYNCED: &str = "synced";
/// A checksum, then the numbers.
const NOTE_BYTES: usize = 4 + 3 * 8;

/// What has been on disk. Written after every sync and synced by nobody: after a crash it may be older than the truth,
/// never newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// The number of the last write.
    pub reached: u64,
    /// The number of the manifest.
    manifest: u64,
    /// The manifest's length, in whole records.
    manifest_bytes: u64,
}

impl Note {
    /// What is noted in `db`; of nothing, if there is no note or it is damaged: then nothing is known.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(db: &Path) -> io::Result<Self> {
        match fs::read(db.join(SYNCED)) {
            Ok(bytes) => Ok(Note::parse(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Note::default()),
            Err(error) => Err(named(error)),
        }
    }

    /// Checks that nothing is missing in `db` that was on disk when this was noted, and that what RocksDB is going to
    /// read besides its tables is whole, but for the end that is returned.
    ///
    /// # Errors
    /// Of kind [`InvalidData`](io::ErrorKind::InvalidData): what is damaged; an end that was never acknowledged is none.
    /// Of any other: it cannot be read.
    pub fn check(&self, db: &Path) -> io::Result<Option<TornEnd>> {
        let found = Manifest::read(db)?.unwrap_or_default();
        if found.number < self.manifest {
            return Err(corrupt(format!(
                "the manifest is number {}, but number {} was on disk",
                found.number, self.manifest
            )));
        }
        if found.number == self.manifest && found.whole < self.manifest_bytes {
            return Err(corrupt(format!(
                "the manifest ends at byte {}, but {} bytes of it were on disk",
                found.whole, self.manifest_bytes
            )));
        }
        wal::check(db, &found, self.reached)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (checksum, numbers) = bytes.first_chunk::<NOTE_BYTES>()?.split_first_chunk::<4>()?;
        if crc32fast::hash(numbers) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let mut numbers = numbers
            .as_chunks::<8>()
            .0
            .iter()
            .map(|number| u64::from_le_bytes(*number));
        Some(Note {
            reached: numbers.next()?,
            manifest: numbers.next()?,
            manifest_bytes: numbers.next()?,
        })
    }

    fn to_bytes(self) -> Vec<u8> {
        let numbers = [self.reached, self.manifest, self.manifest_bytes]
            .map(u64::to_le_bytes)
            .concat();
        [&crc32fast::hash(&numbers).to_le_bytes()[..], &numbers].concat()
    }
}

/// Writes the note of an open database.
pub struct Synced {
    file: File,
    db: PathBuf,
    seen: Mutex<Seen>,
}

/// The manifest as it was last looked at.
#[derive(Clone, Copy, Default)]
struct Seen {
    number: u64,
    /// In whole records, on disk.
    whole: u64,
    /// With what may not be whole at its end.
    length: u64,
}

impl Synced {
    /// Opens or creates the note in `db`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(db: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(db.join(SYNCED))
            .map_err(named)?;
        Ok(Synced {
            file,
            db: db.to_owned(),
            seen: Mutex::default(),
        })
    }

    /// Notes that everything up to the write number `reached` has been synced just now.
    ///
    /// # Errors
    /// The disk's: no more than before is known to be on it.
    pub fn note(&self, reached: u64) -> io::Result<()> {
        let mut seen = self.seen.lock().expect("nobody panics with it");
        seen.look(&self.db)?;
        let note = Note {
            reached,
            manifest: seen.number,
            manifest_bytes: seen.whole,
        };
        self.file.write_all_at(&note.to_bytes(), 0)
    }
}

impl Seen {
    /// Looks at the manifest again if it is another one, or longer.
    fn look(&mut self, db: &Path) -> io::Result<()> {
        let length = fs::metadata(manifest::path(db, self.number)).map(|file| file.len());
        if length.is_ok_and(|length| length == self.length) {
            return Ok(());
        }
        // If it cannot be opened or read, because there are no more descriptors or it has just been replaced, then what was
        // known of it stays known until the next look.
        let Ok(Some(number)) = manifest::current(db) else {
            return Ok(());
        };
        let Ok(mut file) = File::open(manifest::path(db, number)) else {
            return Ok(());
        };
        let from = if number == self.number { self.whole } else { 0 };
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(from)).is_err() || file.read_to_end(&mut bytes).is_err() {
            return Ok(());
        }
        let mut records = Records::new(&bytes, usize::try_from(from).map_err(io::Error::other)?);
        // RocksDB may be writing to it at this moment; the next look finds the end of it whole.
        while let Some(Ok(_)) = records.next() {}
        // RocksDB syncs both too, but perhaps not yet: that it is this one that counts, and what is in it.
        if number != self.number {
            let Ok(folder) = File::open(db) else {
                return Ok(());
            };
            folder.sync_all()?;
        }
        file.sync_data()?;
        *self = Seen {
            number,
            whole: records.whole() as u64,
            length: from + bytes.len() as u64,
        };
        Ok(())
    }
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{SYNCED}: {error}"))
}

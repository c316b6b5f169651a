//! Reads RocksDB's write-ahead log before RocksDB does, to tell a torn end from damage.
//!
//! RocksDB takes a record whose length leads beyond the file for one that was being written when the power went, and
//! drops it with all that follows in its block: one flipped bit of a length, and acknowledged entries are gone without a
//! word. Zeros in the middle it skips; and at a type of record that is not used here it looks for ever. So every
//! checksum is checked here first, and that the writes follow each other without a hole, from those that are in tables up
//! to the last one synced. So a file that is gone is missed, too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::corrupt;
use super::manifest::Manifest;
use super::records::Records;

/// The torn end of the log: what was never acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub struct TornEnd {
    file: PathBuf,
    whole: u64,
}

impl TornEnd {
    /// Cuts it off. RocksDB forgives only some of the ways in which an end can be torn: none that leaves zeros in a record.
    ///
    /// # Errors
    /// The disk's.
    pub fn cut_off(&self) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(&self.file)?;
        file.set_len(self.whole)?;
        file.sync_all()
    }
}

/// Checks every file of the log in `db` that is still needed beside the tables of `manifest`. Everything up to the
/// write number `synced` was on disk once. Returns the end that was torn, if it was.
///
/// # Errors
/// Of kind [`InvalidData`](io::ErrorKind::InvalidData): what is damaged. An end that was never acknowledged is none.
/// Of any other: the log cannot be read.
pub fn check(db: &Path, manifest: &Manifest, synced: u64) -> io::Result<Option<TornEnd>> {
    let (mut last, mut torn) = (None, None);
    for file in files(db)?.range(manifest.oldest_wal..).map(|(_, file)| file) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(file).map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        let mut records = Records::new(&bytes, 0);
        for record in &mut records {
            let damaged = |(at, problem)| corrupt(format!("{name}: {problem} at byte {at}"));
            let (at, record) = record.map_err(damaged)?;
            let write = Write::of(&record).ok_or_else(|| damaged((at, "a write without a number")))?;
            let (expected, found) = (last.unwrap_or(manifest.in_tables) + 1, write.first);
            // What is in tables may be in the log as well.
            if found > expected || found < expected && last.is_some() {
                return Err(corrupt(format!(
                    "{name}: a hole before byte {at}: write {expected} was expected, {found} found"
                )));
            }
            last = Some(write.first + write.changes - 1);
        }
        torn = records.is_torn().then(|| TornEnd {
            file: file.clone(),
            whole: records.whole() as u64,
        });
    }
    match last.unwrap_or(manifest.in_tables) {
        last if last < synced => Err(corrupt(format!(
            "the write-ahead log ends with write {last}, but write {synced} was on disk"
        ))),
        _ => Ok(torn),
    }
}

/// The log's files by their numbers, oldest first.
pub fn files(db: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut files = BTreeMap::new();
    let entries = match fs::read_dir(db) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if path.extension().is_some_and(|extension| extension == "log")
            && let Some(number) = stem
        {
            files.insert(number, path);
        }
    }
    Ok(files)
}

/// A batch's place among all changes, with which its record begins.
struct Write {
    first: u64,
    changes: u64,
}

impl Write {
    fn of(record: &[u8]) -> Option<Self> {
        let (first, rest) = record.split_first_chunk::<8>()?;
        let (changes, _) = rest.split_first_chunk::<4>()?;
        Some(Write {
            first: u64::from_le_bytes(*first),
            changes: u64::from(u32::from_le_bytes(*changes)),
        })
    }
}

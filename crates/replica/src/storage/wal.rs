//! Reads RocksDB's write-ahead log before RocksDB does, to tell a torn end from damage.
//!
//! RocksDB takes a record whose length leads beyond the file for one that was being written when the power went, and
//! drops it with all that follows in its block: one flipped bit of a length, and acknowledged entries are gone without a
//! word. Zeros in the middle it skips; and at a type of record that is not used here it looks for ever. So every
//! checksum is checked here first, and that the writes follow each other without a hole up to the last one synced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::corrupt;

/// Records do not cross the border of a block.
const BLOCK: usize = 32 * 1024;
/// Checksum, length and type of a record.
const HEADER: usize = 7;
/// A write begins with its sequence number and the number of changes in it.
const WRITE_HEADER: usize = 12;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// Checks every file of the log in `db`, of which everything up to the sequence number `synced` was on disk once.
///
/// # Errors
/// Of kind [`InvalidData`](io::ErrorKind::InvalidData): what is damaged. An end that was never acknowledged is none.
/// Of any other: the log cannot be read.
pub fn check(db: &Path, synced: u64) -> io::Result<()> {
    let mut last = None;
    for file in files(db)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&file).map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        for write in Writes::of(&bytes) {
            let (at, write) = write.map_err(|(at, problem)| corrupt(format!("{name}: {problem} at byte {at}")))?;
            if let Some(last) = last.filter(|last| last + 1 != write.first) {
                let (expected, found) = (last + 1, write.first);
                return Err(corrupt(format!(
                    "{name}: a hole before byte {at}: write {expected} was expected, {found} found"
                )));
            }
            last = Some(write.first + write.changes - 1);
        }
    }
    match last {
        Some(last) if last < synced => Err(corrupt(format!(
            "the write-ahead log ends with write {last}, but write {synced} was on disk"
        ))),
        _ => Ok(()),
    }
}

/// The log's files, oldest first.
fn files(db: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    let entries = match fs::read_dir(db) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if path.extension().is_some_and(|extension| extension == "log")
            && let Some(number) = stem
        {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// A batch's place among all changes.
struct Write {
    first: u64,
    changes: u64,
}

/// The writes of one file, up to an end that was torn.
struct Writes<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// One record of a block.
enum Record<'a> {
    Of(u8, &'a [u8]),
    /// The file ends here, or within what comes.
    End,
}

type Damage = (usize, &'static str);

impl<'a> Writes<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Writes { bytes, at: 0 }
    }

    fn record(&mut self) -> Result<Record<'a>, Damage> {
        let left = BLOCK - self.at % BLOCK;
        if left < HEADER {
            self.at += left;
        }
        let at = self.at;
        let rest = self.bytes.get(at..).unwrap_or_default();
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(Record::End);
        };
        // A file system may give a file its new length before its new bytes.
        if *header == [0; HEADER] && rest.iter().all(|byte| *byte == 0) {
            return Ok(Record::End);
        }
        let [c0, c1, c2, c3, l0, l1, kind] = *header;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if HEADER + length > BLOCK - at % BLOCK {
            return Err((at, "a record longer than its block"));
        }
        let Some(payload) = body.get(..length) else {
            return Ok(Record::End);
        };
        if !matches!(kind, FULL..=LAST) && kind & 0x80 == 0 {
            return Err((at, "a record of no known type"));
        }
        let checksum = crc32c(&rest[HEADER - 1..HEADER + length]);
        if checksum.rotate_right(15).wrapping_add(0xa282_ead8) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err((at, "a checksum that does not match"));
        }
        self.at += HEADER + length;
        Ok(Record::Of(kind, payload))
    }

    fn write(&mut self) -> Result<Option<(usize, Write)>, Damage> {
        let mut head: Option<(usize, Vec<u8>)> = None;
        loop {
            let at = self.at;
            let (kind, payload) = match self.record()? {
                Record::End => return Ok(None),
                Record::Of(kind, payload) => (kind, payload),
            };
            match (kind, &mut head) {
                (FULL | FIRST, None) => head = Some((at, payload.to_vec())),
                (MIDDLE | LAST, Some((_, begun))) if begun.len() < WRITE_HEADER => begun.extend_from_slice(payload),
                (MIDDLE | LAST, Some(_)) => {}
                (FULL..=LAST, _) => return Err((at, "a piece of a record without the others")),
                // Says something about the log itself.
                _ => continue,
            }
            if let (FULL | LAST, Some((at, begun))) = (kind, &head) {
                let (first, rest) = begun
                    .split_first_chunk::<8>()
                    .ok_or((*at, "a write without a number"))?;
                let (changes, _) = rest.split_first_chunk::<4>().ok_or((*at, "a write without a number"))?;
                let write = Write {
                    first: u64::from_le_bytes(*first),
                    changes: u64::from(u32::from_le_bytes(*changes)),
                };
                return Ok(Some((*at, write)));
            }
        }
    }
}

impl Iterator for Writes<'_> {
    type Item = Result<(usize, Write), Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        let write = self.write().transpose();
        if matches!(write, Some(Err(_))) {
            self.at = self.bytes.len();
        }
        write
    }
}

/// CRC-32C (Castagnoli), as RocksDB uses it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

static TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}

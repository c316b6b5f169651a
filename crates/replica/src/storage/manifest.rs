//! RocksDB's manifest, its list of the files that count, read before RocksDB reads it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost::encoding::decode_varint;

use super::corrupt;
use super::records::Records;

/// Names the manifest that counts.
const CURRENT: &str = "CURRENT";

/// What is to be known of a manifest without understanding it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// A later one has a higher number.
    pub number: u64,
    /// How many bytes of it are whole records.
    pub whole: u64,
    /// The files of the write-ahead log below this number are in tables, all of them, and are not read any more.
    pub oldest_wal: u64,
    /// The highest number of a write that is in a table.
    pub in_tables: u64,
}

impl Manifest {
    /// The manifest that counts in `db`; `None` if the database is not there yet.
    ///
    /// # Errors
    /// Of kind [`InvalidData`](io::ErrorKind::InvalidData): what is damaged. A torn end is none. Of any other: it cannot
    /// be read.
    pub fn read(db: &Path) -> io::Result<Option<Self>> {
        let Some(number) = current(db)? else {
            return Ok(None);
        };
        let name = name(number);
        let bytes = match fs::read(db.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt(format!("{CURRENT} names {name}, which is missing")));
            }
            read => read.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?,
        };
        let mut manifest = Manifest {
            number,
            ..Manifest::default()
        };
        let mut records = Records::new(&bytes, 0);
        for record in &mut records {
            let (_, edit) = record.map_err(|(at, problem)| corrupt(format!("{name}: {problem} at byte {at}")))?;
            let (oldest_wal, in_tables) = head(&edit);
            manifest.oldest_wal = manifest.oldest_wal.max(oldest_wal);
            manifest.in_tables = manifest.in_tables.max(in_tables);
        }
        manifest.whole = records.whole() as u64;
        Ok(Some(manifest))
    }
}

/// The number of the manifest that counts in `db`; `None` if there is none yet.
///
/// # Errors
/// As of [`Manifest::read`].
pub fn current(db: &Path) -> io::Result<Option<u64>> {
    let line = match fs::read(db.join(CURRENT)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| io::Error::new(error.kind(), format!("{CURRENT}: {error}")))?,
    };
    let number = line
        .strip_prefix(b"MANIFEST-")
        .and_then(|rest| rest.strip_suffix(b"\n"));
    let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    let named = number.filter(|number| line == format!("{}\n", name(*number)).as_bytes());
    let nothing = || corrupt(format!("{CURRENT}: names no manifest, but \"{}\"", line.escape_ascii()));
    named.map(Some).ok_or_else(nothing)
}

/// Where the manifest of this number is.
pub fn path(db: &Path, number: u64) -> PathBuf {
    db.join(name(number))
}

fn name(number: u64) -> String {
    format!("MANIFEST-{number:06}")
}

/// Tags of what an edit of the manifest says first, in this order. Each is followed by a number, but for the two names.
const DATABASE_ID: u64 = (1 << 13) + 1;
const COMPARATOR: u64 = 1;
const LOG_NUMBER: u64 = 2;
const PREVIOUS_LOG_NUMBER: u64 = 9;
const NEXT_FILE_NUMBER: u64 = 3;
const FAMILY_MAX: u64 = 203;
const OLDEST_WAL: u64 = 10;
const LAST_SEQUENCE: u64 = 4;

/// The oldest file of the write-ahead log that is needed from an edit on, and the highest number of a write in a table;
/// 0 for what the edit is not about.
fn head(mut edit: &[u8]) -> (u64, u64) {
    let (mut oldest_wal, mut in_tables) = (0, 0);
    while let Some((tag, number)) = field(&mut edit) {
        match tag {
            OLDEST_WAL => oldest_wal = number,
            LAST_SEQUENCE => in_tables = number,
            _ => {}
        }
    }
    (oldest_wal, in_tables)
}

/// The next field with a number, if one follows. Of a name, that is its length.
fn field(edit: &mut &[u8]) -> Option<(u64, u64)> {
    let tag = decode_varint(edit).ok()?;
    match tag {
        DATABASE_ID | COMPARATOR => {
            let length = decode_varint(edit).ok()?;
            *edit = edit.get(usize::try_from(length).ok()?..)?;
            Some((tag, length))
        }
        LOG_NUMBER | PREVIOUS_LOG_NUMBER | NEXT_FILE_NUMBER | FAMILY_MAX | OLDEST_WAL | LAST_SEQUENCE => {
            Some((tag, decode_varint(edit).ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_read_exactly_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let read = |line: &str| {
            fs::write(dir.path().join(CURRENT), line).unwrap();
            current(dir.path()).map_err(|error| error.kind())
        };
        assert_eq!(current(dir.path()).unwrap(), None);
        assert_eq!(read("MANIFEST-000005\n"), Ok(Some(5)));
        assert_eq!(read("MANIFEST-1234567\n"), Ok(Some(1_234_567)));
        for damaged in [
            "",
            "MANIFEST-000005",
            "MANIFEST-5\n",
            "MANIFEST-+00005\n",
            "NANIFEST-000005\n",
        ] {
            assert_eq!(read(damaged), Err(io::ErrorKind::InvalidData), "{damaged:?}");
        }
    }

    #[test]
    fn an_edit_tells_which_log_is_needed_and_what_is_in_tables_wherever_it_does() {
        let name = [&[COMPARATOR as u8, 3][..], b"abc"].concat();
        let id = [&[0x81, 0x40, 2][..], b"id"].concat();
        let numbers = [2_u8, 0x90, 1, 9, 0, 3, 20, 203, 1, 2];
        let oldest = [OLDEST_WAL as u8, 0x87, 1];
        let last = [LAST_SEQUENCE as u8, 7];
        assert_eq!(head(&[&id[..], &name, &numbers, &oldest, &last].concat()), (135, 7));
        assert_eq!(head(&oldest), (135, 0));
        // Files come later than that.
        assert_eq!(head(&[&numbers[..], &last, &[103, 0], &oldest].concat()), (0, 7));
        assert_eq!(head(&[OLDEST_WAL as u8, 0x87]), (0, 0));
        assert_eq!(head(&[]), (0, 0));
    }
}

//! RocksDB: one database, three column families, one write-ahead log.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Direction,
    IteratorMode, MemtableFactory, Options, WriteBatch,
};

use super::disk::{Batch, Change, Disk, Family, Row};
use super::offline::WalRecovery;
use super::sync::Syncer;
use super::{corrupt, wal};

const MIB: usize = 1024 * 1024;

/// Beside RocksDB's files, so that it goes where they go: up to which write everything has been on disk.
const SYNCED: &str = "synced";

/// The production disk.
pub struct RocksDisk {
    db: DB,
    // Up to which write everything has been synced, and its checksum. Written after every sync and synced by nobody: after
    // a crash it may be older than the truth, never newer.
    // None if it was opened to be read.
    synced: Option<File>,
}

impl RocksDisk {
    /// Opens or creates the database in `path`.
    ///
    /// # Errors
    /// As of every call on the disk: [`InvalidData`](io::ErrorKind::InvalidData) is damage, anything else is a disk that
    /// fails. Only an incomplete last record of the write-ahead log, which was never acknowledged, is dropped.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let synced = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(SYNCED))
            .map_err(of_synced)?;
        let reached = synced_in(&synced).map_err(of_synced)?;
        wal::check(path, reached)?;
        let db = DB::open_cf_descriptors(&database_options(), path, families()).map_err(failed)?;
        is_whole(&db, reached)?;
        Ok(RocksDisk {
            db,
            synced: Some(synced),
        })
    }

    /// Opens what is in `path` without ever changing it.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn open_to_read(path: &Path, recovery: WalRecovery) -> io::Result<Self> {
        let mut options = database_options();
        options.create_if_missing(false);
        options.create_missing_column_families(false);
        let mut reached = 0;
        match recovery {
            WalRecovery::Strict => {
                if let Ok(synced) = File::open(path.join(SYNCED)) {
                    reached = synced_in(&synced).map_err(of_synced)?;
                }
                wal::check(path, reached)?;
            }
            WalRecovery::PointInTime => {
                options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
                // A write-ahead log that is shorter than it was known to be is just what is to be read now.
                options.set_track_and_verify_wals_in_manifest(false);
            }
        }
        let db = DB::open_cf_descriptors_read_only(&options, path, families(), false);
        let db = db.map_err(failed)?;
        is_whole(&db, reached)?;
        Ok(RocksDisk { db, synced: None })
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db
            .cf_handle(name(family))
            .expect("opened with all column families")
    }
}

impl Disk for RocksDisk {
    fn get(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.db.get_cf(self.family(family), key).map_err(failed)
    }

    fn scan<'a>(&'a self, family: Family, from: &[u8]) -> Box<dyn Iterator<Item = io::Result<Row>> + 'a> {
        let mode = IteratorMode::From(from, Direction::Forward);
        let rows = self.db.iterator_cf(self.family(family), mode);
        Box::new(rows.map(|row| row.map_err(failed)))
    }

    fn last(&self, family: Family) -> io::Result<Option<Row>> {
        let mut rows = self.db.iterator_cf(self.family(family), IteratorMode::End);
        rows.next().transpose().map_err(failed)
    }

    fn write(&self, batch: Batch) -> io::Result<()> {
        let families = Family::ALL.map(|family| self.family(family));
        // Beside its key and value, a change needs a kind, a family and two lengths.
        const FRAMING: usize = 16;
        let mut writes = WriteBatch::with_capacity_bytes(batch.bytes() + (batch.len() + 1) * FRAMING);
        for change in batch.changes() {
            match change {
                Change::Put(family, key, value) => writes.put_cf(families[*family as usize], key, value),
                Change::Delete(family, key) => writes.delete_cf(families[*family as usize], key),
                Change::DeleteRange(family, from, to) => writes.delete_range_cf(families[*family as usize], from, to),
            }
        }
        self.db.write(writes).map_err(failed)
    }

    fn sync(&self) -> io::Result<()> {
        let reached = self.db.latest_sequence_number();
        self.db.flush_wal(true).map_err(failed)?;
        match &self.synced {
            Some(synced) => synced.write_all_at(&synced_out(reached), 0),
            None => Ok(()),
        }
    }

    fn syncer(self: Arc<Self>) -> io::Result<Syncer> {
        Syncer::thread(self)
    }
}

/// RocksDB's word for it. A file that is missing is damage, however healthy the disk.
fn failed(error: rocksdb::Error) -> io::Error {
    let missing = error.as_ref().contains("No such file or directory");
    match error.kind() {
        rocksdb::ErrorKind::IOError if !missing => io::Error::other(error),
        _ => corrupt(error.into_string()),
    }
}

fn of_synced(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{SYNCED}: {error}"))
}

/// What was in the log may be in tables by now, which the check of the log does not see.
fn is_whole(db: &DB, reached: u64) -> io::Result<()> {
    match db.latest_sequence_number() {
        last if last < reached => Err(corrupt(format!(
            "the database ends with write {last}, but write {reached} was on disk"
        ))),
        _ => Ok(()),
    }
}

fn families() -> [ColumnFamilyDescriptor; 3] {
    Family::ALL.map(|family| {
        let mut options = family_options();
        match family {
            Family::Meta => options.set_write_buffer_size(MIB),
            Family::Log | Family::Table => {
                options.set_write_buffer_size(12 * MIB);
                // Written all the time and hardly ever read, so sorted only when it is.
                options.set_memtable_factory(MemtableFactory::Vector);
            }
        }
        ColumnFamilyDescriptor::new(name(family), options)
    })
}

fn synced_out(reached: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&reached.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// 0 if it is new, or was lost: then nothing is known.
fn synced_in(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 12];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
        read => read?,
    }
    let reached = u64::from_le_bytes(*bytes.first_chunk().expect("12 bytes"));
    Ok(if synced_out(reached) == bytes { reached } else { 0 })
}

fn name(family: Family) -> &'static str {
    match family {
        Family::Meta => "meta",
        Family::Log => "log",
        Family::Table => "table",
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // The default would silently drop everything after the first bad record, acknowledged entries included.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(64 * MIB as u64);
    options.set_db_write_buffer_size(16 * MIB);
    // Needed by vectors; there is no second writer that could gain by it.
    options.set_allow_concurrent_memtable_write(false);
    options.set_max_open_files(128);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(3);
    options.set_log_level(rocksdb::LogLevel::Warn);
    options
}

fn family_options() -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(8 * MIB));
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&blocks);
    options
}

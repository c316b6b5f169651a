//! RocksDB: one database, three column families, one write-ahead log.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Direction,
    IteratorMode, MemtableFactory, Options, WriteBatch,
};

use super::corrupt;
use super::disk::{Batch, Change, Disk, Family, Row};
use super::offline::WalRecovery;
use super::sync::Syncer;
use super::synced::{Note, Synced};

const MIB: usize = 1024 * 1024;

/// The production disk.
pub struct RocksDisk {
    db: DB,
    // None if it was opened to be read.
    synced: Option<Synced>,
}

/// How much may wait in memory to become a table, and in the write-ahead log; in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Of [`Family::Meta`].
    pub meta: usize,
    /// Of each of the others.
    pub rows: usize,
    /// Of all families.
    pub all: usize,
    /// Of the write-ahead log's files.
    pub wal: u64,
}

impl Buffers {
    /// What replicas have.
    pub const PRODUCTION: Buffers = Buffers {
        meta: MIB,
        rows: 12 * MIB,
        all: 16 * MIB,
        wal: 64 * MIB as u64,
    };
}

impl RocksDisk {
    /// Opens or creates the database in `path`.
    ///
    /// # Errors
    /// As of every call on the disk: [`InvalidData`](io::ErrorKind::InvalidData) is damage, anything else is a disk that
    /// fails. Only an incomplete last record of the write-ahead log, which was never acknowledged, is dropped.
    pub fn open(path: &Path, buffers: &Buffers) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let synced = Synced::open(path)?;
        let note = Note::read(path)?;
        if let Some(torn) = note.check(path)? {
            torn.cut_off()?;
        }
        let db = DB::open_cf_descriptors(&database_options(buffers), path, families(buffers)).map_err(failed)?;
        is_whole(&db, note.reached)?;
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
        let buffers = &Buffers::PRODUCTION;
        let mut options = database_options(buffers);
        options.create_if_missing(false);
        options.create_missing_column_families(false);
        let mut reached = 0;
        match recovery {
            WalRecovery::Strict => {
                let note = Note::read(path)?;
                note.check(path)?;
                reached = note.reached;
            }
            WalRecovery::PointInTime => {
                options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
                // A write-ahead log that is shorter than it was known to be is just what is to be read now.
                options.set_track_and_verify_wals_in_manifest(false);
            }
        }
        let db = DB::open_cf_descriptors_read_only(&options, path, families(buffers), false);
        let db = db.map_err(failed)?;
        is_whole(&db, reached)?;
        Ok(RocksDisk { db, synced: None })
    }

    /// Waits until no table is written and none is merged any more.
    #[cfg(test)]
    pub fn settle(&self) {
        self.db
            .wait_for_compact(&rocksdb::WaitForCompactOptions::default())
            .unwrap();
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
            Some(synced) => synced.note(reached),
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

/// RocksDB's own word for it, now that it has read everything.
fn is_whole(db: &DB, reached: u64) -> io::Result<()> {
    match db.latest_sequence_number() {
        last if last < reached => Err(corrupt(format!(
            "the database ends with write {last}, but write {reached} was on disk"
        ))),
        _ => Ok(()),
    }
}

fn families(buffers: &Buffers) -> [ColumnFamilyDescriptor; 3] {
    Family::ALL.map(|family| {
        let mut options = family_options();
        match family {
            Family::Meta => options.set_write_buffer_size(buffers.meta),
            Family::Log | Family::Table => {
                options.set_write_buffer_size(buffers.rows);
                // Written all the time and hardly ever read, so sorted only when it is.
                options.set_memtable_factory(MemtableFactory::Vector);
            }
        }
        ColumnFamilyDescriptor::new(name(family), options)
    })
}

fn name(family: Family) -> &'static str {
    match family {
        Family::Meta => "meta",
        Family::Log => "log",
        Family::Table => "table",
    }
}

fn database_options(buffers: &Buffers) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // The default would silently drop everything after the first bad record, acknowledged entries included.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(buffers.wal);
    options.set_db_write_buffer_size(buffers.all);
    // Needed by vectors; there is no second writer that could gain by it.
    options.set_allow_concurrent_memtable_write(false);
    options.set_max_open_files(128);
    options.set_max_background_jobs(2);
    // Read to its end at every start, and what is new of it with every table.
    options.set_max_manifest_file_size(4 * MIB);
    options.set_keep_log_file_num(3);
    options.set_log_level(rocksdb::LogLevel::Warn);
    options
}

fn family_options() -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(2 * MIB));
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&blocks);
    options
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{manifest, wal};
    use super::*;

    struct Rocks {
        _dir: tempfile::TempDir,
        db: PathBuf,
        disk: Option<RocksDisk>,
    }

    impl Rocks {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let db = dir.path().join("db");
            let disk = Some(RocksDisk::open(&db, &Buffers::PRODUCTION).unwrap());
            Rocks { _dir: dir, db, disk }
        }

        fn disk(&self) -> &RocksDisk {
            self.disk.as_ref().unwrap()
        }

        fn put_synced(&self, key: &str) {
            let mut batch = Batch::default();
            batch.put(Family::Meta, key, b"value".to_vec());
            self.disk().write(batch).unwrap();
            self.disk().sync().unwrap();
        }

        /// All that was written is in tables, and out of the write-ahead log.
        fn write_tables(&self) {
            for family in Family::ALL {
                self.disk().db.flush_cf(self.disk().family(family)).unwrap();
            }
            self.disk().settle();
        }

        fn manifest(&self) -> PathBuf {
            manifest::path(&self.db, manifest::current(&self.db).unwrap().unwrap())
        }

        fn newest_wal(&self) -> PathBuf {
            wal::files(&self.db).unwrap().pop_last().unwrap().1
        }

        fn close(&mut self) {
            self.disk = None;
        }

        fn reopen(&mut self) {
            self.close();
            self.disk = Some(RocksDisk::open(&self.db, &Buffers::PRODUCTION).unwrap());
        }

        /// Why it does not open: neither to serve nor to be read, nor the next time.
        fn refusal(&mut self) -> String {
            self.close();
            let open = || RocksDisk::open(&self.db, &Buffers::PRODUCTION).err();
            let read = || RocksDisk::open_to_read(&self.db, WalRecovery::Strict).err();
            let [first, second, third] = [read(), open(), open()].map(|error| {
                let error = error.expect("it is refused");
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                error.to_string()
            });
            assert!(first == second && second == third, "{first}, {second}, {third}");
            first
        }
    }

    fn set_len(file: &Path, bytes: u64) {
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(bytes).unwrap();
    }

    #[test]
    fn p3_a_manifest_that_has_lost_its_end_is_refused() {
        let mut rocks = Rocks::new();
        rocks.put_synced("a");
        let older = fs::metadata(rocks.manifest()).unwrap().len();
        rocks.write_tables();
        // Its write-ahead log alone looks whole, up to the last write.
        rocks.put_synced("b");
        set_len(&rocks.manifest(), older);
        let error = rocks.refusal();
        assert!(
            error.contains(&format!("the manifest ends at byte {older}, but ")),
            "{error}"
        );
    }

    #[test]
    fn p3_an_older_manifest_is_refused() {
        let mut rocks = Rocks::new();
        rocks.put_synced("a");
        let (older, bytes) = (rocks.manifest(), fs::read(rocks.manifest()).unwrap());
        rocks.reopen();
        rocks.put_synced("b");
        rocks.close();
        assert_ne!(rocks.manifest(), older);
        fs::write(&older, bytes).unwrap();
        let name = older.file_name().unwrap().to_str().unwrap();
        fs::write(rocks.db.join("CURRENT"), format!("{name}\n")).unwrap();
        let error = rocks.refusal();
        assert!(error.contains("the manifest is number "), "{error}");
        fs::remove_file(rocks.db.join("CURRENT")).unwrap();
        let error = rocks.refusal();
        assert!(error.contains("the manifest is number 0, but "), "{error}");
    }

    #[test]
    fn p3_a_log_that_is_gone_is_missed_unless_its_writes_are_in_tables() {
        let mut rocks = Rocks::new();
        rocks.put_synced("a");
        let first = rocks.newest_wal();
        rocks.write_tables();
        rocks.reopen();
        assert!(!first.exists());
        rocks.put_synced("b");
        let second = rocks.newest_wal();
        rocks.close();
        fs::remove_file(&second).unwrap();
        let error = rocks.refusal();
        assert_eq!(error, "the write-ahead log ends with write 1, but write 2 was on disk");
    }

    #[test]
    fn p3_a_log_that_begins_later_than_the_tables_end_is_refused_whatever_is_noted() {
        let mut rocks = Rocks::new();
        rocks.put_synced("a");
        let older = fs::metadata(rocks.manifest()).unwrap().len();
        rocks.write_tables();
        rocks.put_synced("b");
        rocks.close();
        // To this manifest the first log is the oldest one, and was never closed.
        set_len(&rocks.manifest(), older);
        fs::remove_file(rocks.db.join("synced")).unwrap();
        let error = rocks.refusal();
        assert!(
            error.contains("a hole before byte 0: write 1 was expected, 2 found"),
            "{error}"
        );
    }

    #[test]
    fn a_note_that_is_lost_or_damaged_is_of_nothing() {
        let mut rocks = Rocks::new();
        rocks.put_synced("a");
        rocks.close();
        let note = rocks.db.join("synced");
        let good = Note::read(&rocks.db).unwrap();
        assert_eq!(good.reached, 1);
        let mut bytes = fs::read(&note).unwrap();
        bytes[20] ^= 1;
        for damaged in [&bytes[..], &bytes[..12], &[]] {
            fs::write(&note, damaged).unwrap();
            assert_eq!(Note::read(&rocks.db).unwrap(), Note::default());
        }
        fs::remove_file(&note).unwrap();
        assert_eq!(Note::read(&rocks.db).unwrap(), Note::default());
        rocks.reopen();
    }
}

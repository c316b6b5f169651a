//! The table's copy on disk.
//!
//! One file, numbers little-endian:
//!
//! ```text
//! "HOLDFAST"  version u32
//! vouched: milliseconds since 1970 u64, 0 if no replica ever has                     CRC-32 of these eight bytes
//! cluster id (length u16, bytes)  epoch u64  revision u64  routes u64  digest [32]   CRC-32 of all but "vouched"
//! blocks: compressed length u32, plain length u32, zstd frame of a RouteList         CRC-32 of the block
//! end: 0u32                                                                          CRC-32 of all but "vouched"
//! ```
//!
//! A new one is written beside, synced and renamed, and the one before is kept. A file is served whole or not at all:
//! every byte is under a checksum, and the digest of the routes that were read must be the one that was written.
//!
//! "vouched" is how old the table is: the last moment for which a replica said that it was the leader's. It alone is
//! written in place, for a table may stay true for days.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_client::{Cached, Freshness, LiveTable, read_ahead};
use holdfast_table::{Digest, Entry, Epoch, Revision, Table};
use holdfast_wire::proto;
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::SharedMetrics;

const MAGIC: &[u8; 8] = b"HOLDFAST";
const VERSION: u32 = 2;
const FILE: &str = "table.cache";
const PREVIOUS: &str = "table.cache.1";
const TEMPORARY: &str = "table.cache.tmp";
const LOCK: &str = "proxy.lock";

/// Where "vouched" is: after the magic and the version.
const VOUCHED_AT: u64 = 12;
/// How old "vouched" may grow in the file while replicas vouch: by so much a killed proxy takes its copy for older than
/// it is.
const VOUCHED_EVERY: Duration = Duration::from_secs(5);

/// A block is closed when its routes take so many bytes.
const BLOCK_BYTES: usize = 256 * 1024;
/// No block is longer, compressed or not: one more route than the above, and room to spare.
const BLOCK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The least time between two copies: what changes meanwhile is what a killed proxy may have to learn again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The most time between a change and its copy, but for the time that writing takes.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A copy of a big table takes longer; so many times its duration passes before the next one.
const PAUSE_FACTOR: u32 = 10;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("is locked by another running proxy")]
    Locked,
    #[error("cannot be made, or written to")]
    Io(#[source] io::Error),
}

/// Why a file is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Missing, or no right to read it.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Some other file.
    #[error("it is no copy of a table")]
    Foreign,
    /// Written by another version.
    #[error("it has format version {0}, and this program knows none but {VERSION}")]
    Version(u32),
    /// What could not be confirmed.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// A data directory, locked for as long as this lives.
pub(crate) struct Cache {
    directory: PathBuf,
    /// What [`FILE`] holds, if it may be trusted; only then it is worth keeping as [`PREVIOUS`].
    current: Option<(Epoch, Revision)>,
    cluster_id: Option<String>,
    _lock: File,
}

impl Cache {
    /// Takes the directory, making it if need be, and reads the newest copy that is sound.
    pub(crate) fn open(directory: &Path) -> Result<(Cache, Option<Cached>), OpenError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(OpenError::Io)?;
        let lock = private(OpenOptions::new().write(true).create(true).truncate(false))
            .open(directory.join(LOCK))
            .map_err(OpenError::Io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked),
            Err(fs::TryLockError::Error(error)) => return Err(OpenError::Io(error)),
        }
        let mut cache = Cache {
            directory: directory.to_owned(),
            current: None,
            cluster_id: None,
            _lock: lock,
        };
        let cached = cache.load();
        cache.cluster_id = cached.as_ref().map(|cached| cached.cluster_id.clone());
        Ok((cache, cached))
    }

    fn load(&mut self) -> Option<Cached> {
        for name in [FILE, PREVIOUS] {
            let path = self.directory.join(name);
            match read(&path) {
                Ok(cached) => {
                    let (epoch, revision) = (cached.table.epoch(), cached.table.revision());
                    tracing::info!(file = %path.display(), %epoch, %revision, routes = cached.table.len(), "read the table's copy");
                    if name == FILE {
                        self.current = Some((epoch, revision));
                    }
                    return Some(cached);
                }
                Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(refusal) => tracing::error!(file = %path.display(), "refused the table's copy: {refusal}"),
            }
        }
        None
    }

    /// Writes a copy whenever the table has changed, at most ten times a second, and a last one when `stop` is cancelled.
    /// At once, every [`VOUCHED_EVERY`] and at the end notes when a replica has last vouched for it. A failure is
    /// counted, logged and tried again; it ends nothing.
    pub(crate) async fn keep(
        mut self,
        table: LiveTable,
        freshness: watch::Receiver<Freshness>,
        metrics: SharedMetrics,
        stop: CancellationToken,
    ) {
        let mut position = table.watch();
        if let Some((_, revision)) = self.current {
            metrics
                .cache_revision
                .set(i64::try_from(revision.0).unwrap_or(i64::MAX));
        }
        loop {
            // Before the table: one that is newer than what a replica has vouched for is no older.
            let vouched = vouched(&freshness.borrow());
            let newest = *position.borrow_and_update();
            let mut pause = Duration::ZERO;
            if newest > self.current {
                let started = Instant::now();
                self = self.copy(&table, &freshness, vouched, &metrics).await;
                pause = (started.elapsed() * PAUSE_FACTOR).clamp(PAUSE_MIN, PAUSE_MAX);
            } else if let Some(vouched) = vouched
                && newest.is_some()
            {
                self = self.note(vouched, &metrics).await;
                if self.current.is_none() {
                    continue;
                }
            }
            let failed = newest > self.current;
            // The table may have changed again while a copy was written.
            if stop.is_cancelled() && (failed || *position.borrow() <= self.current) {
                return;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => continue,
                () = tokio::time::sleep(pause) => {}
            }
            if failed {
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                changed = position.changed() => if changed.is_err() {
                    stop.cancelled().await;
                },
                () = vouched_again(freshness.clone(), vouched.is_some()) => {}
            }
        }
    }

    async fn copy(
        mut self,
        table: &LiveTable,
        freshness: &watch::Receiver<Freshness>,
        vouched: Option<SystemTime>,
        metrics: &SharedMetrics,
    ) -> Self {
        // In this order: a new cluster's id is known before its table is there, so no new table gets an old id.
        let table = table.load();
        let cluster_id = freshness.borrow().cluster_id.clone();
        self.cluster_id = cluster_id.or(self.cluster_id);
        let (Some(table), Some(cluster_id)) = (table, self.cluster_id.clone()) else {
            return self;
        };
        let keep_previous = self.current.is_some();
        let directory = self.directory.clone();
        let position = (table.epoch(), table.revision());
        let cached = Cached {
            cluster_id,
            table: Table::clone(&table),
            vouched,
        };
        match on_a_thread(move || write(&directory, &cached, keep_previous)).await {
            Ok(()) => {
                metrics.cache_writes.inc();
                metrics
                    .cache_revision
                    .set(i64::try_from(position.1.0).unwrap_or(i64::MAX));
                self.current = Some(position);
            }
            Err(error) => {
                metrics.cache_write_errors.inc();
                tracing::error!(directory = %self.directory.display(), %error, "cannot write the table's copy");
            }
        }
        self
    }

    /// Notes in the copy of the table that is served when a replica has last vouched for it, by the clock as it is set
    /// now.
    async fn note(mut self, vouched: SystemTime, metrics: &SharedMetrics) -> Self {
        let path = self.directory.join(FILE);
        let noted = on_a_thread(move || {
            let file = OpenOptions::new().write(true).open(path)?;
            file.write_all_at(&encode_vouched(Some(vouched)), VOUCHED_AT)
        });
        if let Err(error) = noted.await {
            metrics.cache_write_errors.inc();
            let directory = self.directory.display();
            tracing::error!(%directory, %error, "cannot write to the table's copy, making a new one");
            self.current = None;
        }
        self
    }
}

/// When a replica has last vouched for the table, by the clock as it is set now; `None`: none ever has.
fn vouched(freshness: &Freshness) -> Option<SystemTime> {
    SystemTime::now().checked_sub(freshness.age()?)
}

/// Returns when it is time to note it; `is_noted`: it has been before.
async fn vouched_again(mut freshness: watch::Receiver<Freshness>, is_noted: bool) {
    if is_noted {
        return tokio::time::sleep(VOUCHED_EVERY).await;
    }
    if freshness.wait_for(|freshness| freshness.age().is_some()).await.is_err() {
        std::future::pending().await
    }
}

async fn on_a_thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
}

/// Replaces the copy; `keep_previous`: the present one stays as the previous generation.
fn write(directory: &Path, cached: &Cached, keep_previous: bool) -> io::Result<()> {
    let temporary = directory.join(TEMPORARY);
    let file = private(OpenOptions::new().write(true).create(true).truncate(true)).open(&temporary)?;
    let mut out = Checked::new(BufWriter::new(file));
    encode(&mut out, cached)?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    let path = directory.join(FILE);
    if keep_previous {
        match fs::rename(&path, directory.join(PREVIOUS)) {
            // An attempt that failed after this very step.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    fs::rename(&temporary, &path)?;
    File::open(directory)?.sync_all()
}

fn encode<W: Write>(out: &mut Checked<W>, cached: &Cached) -> io::Result<()> {
    let Cached {
        cluster_id,
        table,
        vouched,
    } = cached;
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    // Beside the checksum of the whole, which would be wrong once it is noted again.
    out.inner.write_all(&encode_vouched(*vouched))?;
    let length = u16::try_from(cluster_id.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(cluster_id.as_bytes())?;
    out.write_all(&table.epoch().0.to_le_bytes())?;
    out.write_all(&table.revision().0.to_le_bytes())?;
    out.write_all(&(table.len() as u64).to_le_bytes())?;
    out.write_all(&table.digest().to_bytes())?;
    out.write_checksum()?;
    let mut list = proto::RouteList::default();
    let mut bytes = 0;
    for entry in table.iter() {
        bytes += entry.route.size();
        list.routes.push(entry.as_ref().into());
        if bytes >= BLOCK_BYTES {
            write_block(out, &list)?;
            list.routes.clear();
            bytes = 0;
        }
    }
    if !list.routes.is_empty() {
        write_block(out, &list)?;
    }
    out.write_all(&0_u32.to_le_bytes())?;
    out.write_checksum()?;
    out.flush()
}

fn encode_vouched(vouched: Option<SystemTime>) -> [u8; 12] {
    let since_1970 = vouched.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let milliseconds = since_1970.and_then(|since| u64::try_from(since.as_millis()).ok());
    let milliseconds = milliseconds.unwrap_or(0).to_le_bytes();
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&milliseconds);
    bytes[8..].copy_from_slice(&crc32fast::hash(&milliseconds).to_le_bytes());
    bytes
}

fn read_vouched<R: Read>(from: &mut R) -> Result<Option<SystemTime>, Refusal> {
    let mut from = Checked::new(from);
    let milliseconds = from.u64()?;
    from.check("the moment at which a replica vouched for it")?;
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds));
    let at = at.ok_or(Refusal::Damaged("the moment at which a replica vouched for it"))?;
    Ok(Some(at).filter(|_| milliseconds > 0))
}

fn write_block<W: Write>(out: &mut Checked<W>, list: &proto::RouteList) -> io::Result<()> {
    let plain = list.encode_to_vec();
    let compressed = zstd::bulk::compress(&plain, 1)?;
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len())
            .map(u32::to_le_bytes)
            .map_err(io::Error::other)
    };
    let mut checksum = crc32fast::Hasher::new();
    for part in [&length(&compressed)?[..], &length(&plain)?[..], &compressed] {
        checksum.update(part);
        out.write_all(part)?;
    }
    out.write_all(&checksum.finalize().to_le_bytes())
}

/// Reads a proxy's copy, checked to the last bit. A proxy may run on it meanwhile.
///
/// # Errors
/// [`Refusal`]: nothing of it may be used. The proxy keeps one generation more beside it, `table.cache.1`.
pub fn read(path: &Path) -> Result<Cached, Refusal> {
    decode(&mut Checked::new(BufReader::new(File::open(path)?)))
}

fn decode<R: Read + Send>(from: &mut Checked<R>) -> Result<Cached, Refusal> {
    if from.array::<8>().map_err(|_| Refusal::Foreign)? != *MAGIC {
        return Err(Refusal::Foreign);
    }
    match from.u32()? {
        VERSION => {}
        other => return Err(Refusal::Version(other)),
    }
    let vouched = read_vouched(&mut from.inner)?;
    let mut cluster_id = vec![0; usize::from(u16::from_le_bytes(from.array()?))];
    from.fill(&mut cluster_id)?;
    let epoch = Epoch(from.u64()?);
    let revision = Revision(from.u64()?);
    let count = from.u64()?;
    let digest = from.array::<32>()?;
    from.check("header")?;
    let cluster_id = String::from_utf8(cluster_id).map_err(|_| Refusal::Damaged("cluster id"))?;
    let mut table = Table::from_entries(epoch, revision, []);
    read_ahead(&mut table, |hand_on| read_blocks(from, hand_on))?;
    // The digest is that of what was just read, not one that was stored with it.
    if table.len() as u64 != count || Digest::from_bytes(&digest) != Some(table.digest()) {
        return Err(Refusal::Damaged("digest"));
    }
    Ok(Cached {
        cluster_id,
        table,
        vouched,
    })
}

/// Hands on the routes of each block, and checks that the file ends after the last one.
fn read_blocks<R: Read>(from: &mut Checked<R>, hand_on: &mut dyn FnMut(Vec<Entry>)) -> Result<(), Refusal> {
    while let Some(list) = read_block(from)? {
        let entries = list.routes.iter().map(Entry::try_from).collect::<Result<_, _>>();
        hand_on(entries.map_err(|_| Refusal::Damaged("a route"))?);
    }
    from.check("end")?;
    match from.inner.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(Refusal::Damaged("something follows its end")),
    }
}

/// The next block; `None` at the end.
fn read_block<R: Read>(from: &mut Checked<R>) -> Result<Option<proto::RouteList>, Refusal> {
    let length = from.u32()?;
    if length == 0 {
        return Ok(None);
    }
    let plain_length = from.u32()?;
    let bounded = |length: u32| usize::try_from(length).ok().filter(|length| *length <= BLOCK_BYTES_MAX);
    let (Some(compressed_length), Some(capacity)) = (bounded(length), bounded(plain_length)) else {
        return Err(Refusal::Damaged("length of a block"));
    };
    let mut compressed = vec![0; compressed_length];
    from.fill(&mut compressed)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&length.to_le_bytes());
    checksum.update(&plain_length.to_le_bytes());
    checksum.update(&compressed);
    if from.u32()? != checksum.finalize() {
        return Err(Refusal::Damaged("a block"));
    }
    let plain = zstd::bulk::decompress(&compressed, capacity).map_err(|_| Refusal::Damaged("a block's compression"))?;
    let list = proto::RouteList::decode(&plain[..]).map_err(|_| Refusal::Damaged("a block's routes"))?;
    Ok(Some(list))
}

/// For a file that tells where everybody's server is.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

/// Keeps the checksum of all bytes that went through.
struct Checked<T> {
    inner: T,
    checksum: crc32fast::Hasher,
}

impl<T> Checked<T> {
    fn new(inner: T) -> Self {
        Checked {
            inner,
            checksum: crc32fast::Hasher::new(),
        }
    }
}

impl<W: Write> Checked<W> {
    fn write_checksum(&mut self) -> io::Result<()> {
        let checksum = self.checksum.clone().finalize();
        self.write_all(&checksum.to_le_bytes())
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.checksum.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Checked<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Refusal> {
        self.inner.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Refusal::Damaged("it ends too early"),
            _ => Refusal::Io(error),
        })?;
        self.checksum.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.array().map(u64::from_le_bytes)
    }

    fn check(&mut self, part: &'static str) -> Result<(), Refusal> {
        let expected = self.checksum.clone().finalize();
        match self.u32()? == expected {
            true => Ok(()),
            false => Err(Refusal::Damaged(part)),
        }
    }
}

#[cfg(test)]
mod tests;

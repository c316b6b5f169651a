//! Crash-cut: what is left of the database after a power cut, or on a bad disk, and what a replica makes of it.
//!
//! A writer does what openraft does. At every completed sync the size of the write-ahead log is noted, with all that
//! was acknowledged by then. The directory as it was at some moments is copied, the end of its log is cut or scribbled
//! upon, and the copy is opened: it must hold some prefix of what was written, and no less than was acknowledged.
//!
//! Then the same with a database of many small files, any of which is cut, scribbled upon or gone.
//!
//! `HOLDFAST_CRASH_CUT_SEEDS=7` or `=10..30` says which seeds are run.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::poll;
use holdfast_table::{Digest, HoldPolicy, Loss, State};
use openraft::storage::RaftSnapshotBuilder as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::disk::{Batch as DiskBatch, Disk, Row};
use super::super::sync::{Queue, Syncer, Waiting};
use super::*;
use crate::consensus::types::Vote;

const SEEDS: Range<u64> = 1..4;
const CUTS: usize = 10;
/// Done to a file of each kind, at each moment.
const DAMAGES: usize = 3;
/// So low that single deletions are held; the time is the index of the entry.
const HOLD: HoldPolicy = HoldPolicy {
    routes_max: 2,
    percent_max: 10,
    window_ms: 40,
    hold_ms: 60,
};

/// How much happens in a run, and in which buffers.
#[derive(Clone, Copy)]
struct Plan {
    buffers: Buffers,
    steps: usize,
    moments: usize,
}

/// All in one file of the write-ahead log.
const ONE_LOG: Plan = Plan {
    buffers: Buffers::PRODUCTION,
    steps: 160,
    moments: 10,
};

/// In which tables are written and merged, and files of the write-ahead log begun and removed, all the time.
const MANY_FILES: Plan = Plan {
    buffers: Buffers {
        meta: 64 * 1024,
        rows: 64 * 1024,
        all: 96 * 1024,
        wal: 256 * 1024,
    },
    steps: 480,
    moments: 5,
};

/// RocksDB that syncs when it is told to.
struct Recording {
    disk: RocksDisk,
    waiting: Mutex<Vec<Waiting>>,
    // The planted bug.
    acknowledges_before_sync: bool,
}

impl Recording {
    fn sync_all(&self) {
        self.disk.sync().unwrap();
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        waiting.into_iter().for_each(Waiting::done);
    }
}

impl Queue for Recording {
    fn push(&self, waiting: Waiting) {
        match self.acknowledges_before_sync {
            true => waiting.done(),
            false => self.waiting.lock().unwrap().push(waiting),
        }
    }
}

impl Disk for Recording {
    fn get(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.disk.get(family, key)
    }

    fn scan<'a>(&'a self, family: Family, from: &[u8]) -> Box<dyn Iterator<Item = io::Result<Row>> + 'a> {
        self.disk.scan(family, from)
    }

    fn last(&self, family: Family) -> io::Result<Option<Row>> {
        self.disk.last(family)
    }

    fn write(&self, batch: DiskBatch) -> io::Result<()> {
        self.disk.write(batch)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    fn syncer(self: Arc<Self>) -> io::Result<Syncer> {
        Ok(Syncer::of(self))
    }
}

/// All that a replica can see of its store.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
    committed: Option<LogId>,
    applied: Option<LogId>,
    digest: Digest,
    sessions: usize,
    losses: Vec<Loss>,
}

impl Seen {
    fn take(&mut self, state: &State) {
        self.digest = state.table.recompute_digest().and(state.holds.digest());
        self.sessions = state.sessions.len();
        self.losses = state.holds.losses().iter().cloned().collect();
    }
}

/// A directory as it was when the power went, and what had been promised by then.
struct Moment {
    dir: TempDir,
    /// Of the newest file of the write-ahead log at the last completed sync.
    synced_bytes: u64,
    /// The history's index of what was acknowledged.
    acknowledged: usize,
    written: usize,
}

struct Writer {
    plan: Plan,
    rng: StdRng,
    dir: TempDir,
    disk: Arc<Recording>,
    log: LogStore,
    machine: StateMachine,
    // The model: what a replica would see after each write, in their order.
    history: Vec<Seen>,
    model: State,
    acknowledged: usize,
    synced: (PathBuf, u64),
    term: u64,
    sessions: u64,
    moments: Vec<Moment>,
}

impl Writer {
    fn new(plan: Plan, seed: u64, acknowledges_before_sync: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Recording {
            disk: RocksDisk::open(&dir.path().join("db"), &plan.buffers).unwrap(),
            waiting: Mutex::default(),
            acknowledges_before_sync,
        });
        let store = Store::on(disk.clone(), dir.path());
        store.identity("r0").unwrap();
        let (machine, _) = StateMachine::open(store.clone()).unwrap();
        let log = LogStore::open(store).unwrap();
        // Whoever the directory belongs to is on disk already.
        let synced = wal(dir.path());
        Writer {
            plan,
            rng: StdRng::seed_from_u64(seed),
            dir,
            disk,
            log,
            machine,
            history: vec![Seen::default()],
            model: State::default(),
            acknowledged: 0,
            synced,
            term: 0,
            sessions: 0,
            moments: Vec::new(),
        }
    }

    fn now(&self) -> Seen {
        self.history.last().unwrap().clone()
    }

    fn wrote(&mut self, seen: Seen) {
        self.history.push(seen);
    }

    fn next_index(&self) -> u64 {
        let now = self.now();
        now.entries
            .last()
            .map(|entry| entry.log_id)
            .or(now.purged)
            .map_or(1, |last| last.index + 1)
    }

    fn command(&mut self, index: u64) -> Entry {
        let content = match self.rng.random_range(0..12) {
            0 => Content::ExpireHeld(proto::ExpireHeld {}),
            1 => self.settlement(),
            _ => self.write(),
        };
        let message = proto::Command {
            command: Some(content),
            time_ms: index,
            hold_policy: Some(HOLD.into()),
        };
        Entry {
            log_id: LogId::new(
                LeaderId {
                    term: self.term,
                    node_id: 1,
                },
                index,
            ),
            payload: EntryPayload::Normal(Proposal::new(vec![message.encode_to_vec().into()])),
        }
    }

    /// About what is held now; until it is applied that may change.
    fn settlement(&mut self) -> Content {
        use proto::settle_held_request::Settlement;
        let settlement = match self.rng.random_range(0..2) {
            0 => Settlement::Confirm,
            _ => Settlement::Reject,
        };
        let held = self.model.holds.iter().filter_map(|(key, _)| self.model.table.get(key));
        let routes = held.map(|entry| proto::RouteRevision {
            routespec: entry.route.spec.as_str().to_owned(),
            mod_revision: entry.modified.0,
        });
        Content::SettleHeld(proto::SettleHeldRequest {
            settlement: settlement.into(),
            routes: routes.take(2).collect(),
        })
    }

    fn write(&mut self) -> Content {
        let spec = format!("/user/{}/", self.rng.random_range(0..30));
        let batch = match self.rng.random_range(0..4) {
            0 => Batch::delete(Default::default(), holdfast_table::RouteSpec::parse(&spec).unwrap()),
            _ => {
                let target = format!("http://10.0.0.1:{}", self.rng.random_range(1..9000));
                let data = format!("{{\"x\":\"{}\"}}", "y".repeat(self.rng.random_range(0..3000)));
                Batch::put(Route::parse(&spec, &target, &data, "").unwrap())
            }
        };
        self.sessions += 1;
        let session = Some((self.sessions.to_be_bytes().repeat(2).try_into().unwrap(), 1));
        Content::Write((&Command { batch, session }).into())
    }

    /// Everything, and the last moment at its end.
    async fn run(&mut self) {
        for _ in 0..self.plan.steps {
            self.step().await;
            self.maybe_moment();
        }
        self.moment();
    }

    /// One thing that openraft does to its store.
    async fn step(&mut self) {
        let mut seen = self.now();
        let last = seen.entries.last().map(|entry| entry.log_id);
        match self.rng.random_range(0..100) {
            // A new term: the vote comes before its entries.
            0..8 => {
                self.term += 1;
                let vote = Vote::new(self.term, 1);
                seen.vote = Some(vote);
                self.wrote(seen);
                let mut log = self.log.clone();
                let mut saved = Box::pin(async move { log.save_vote(&vote).await.unwrap() });
                let pending = poll!(&mut saved).is_pending();
                // The power may go while the vote is waited for.
                self.maybe_moment();
                if pending {
                    self.sync();
                    saved.await;
                }
                self.acknowledged = self.history.len() - 1;
            }
            8..58 => {
                let entries: Vec<Entry> = (self.next_index()..)
                    .take(self.rng.random_range(1..6))
                    .map(|index| self.command(index))
                    .collect();
                seen.entries.extend(entries.clone());
                self.wrote(seen);
                let (done, wait) = <TokioRuntime as AsyncRuntime>::Oneshot::channel();
                self.log.append(entries, IOFlushed::signal(done)).await.unwrap();
                if poll!(Box::pin(wait)).is_ready() {
                    self.acknowledged = self.history.len() - 1;
                }
            }
            // Another leader's log: what is not committed goes.
            58..62 => {
                let keep = seen.committed.max(seen.applied).max(seen.purged);
                seen.entries.retain(|entry| Some(entry.log_id) <= keep);
                self.wrote(seen);
                self.log.truncate_after(keep).await.unwrap();
            }
            62..70 => {
                if let Some(last) = last.filter(|last| Some(*last) > seen.committed) {
                    seen.committed = Some(last);
                    self.wrote(seen);
                    self.log.save_committed(Some(last)).await.unwrap();
                }
            }
            // A follower applies what is committed before its own disk has it.
            70..84 => {
                let ready: Vec<Entry> = seen
                    .entries
                    .iter()
                    .filter(|entry| Some(entry.log_id) > seen.applied && Some(entry.log_id) <= seen.committed)
                    .cloned()
                    .collect();
                if let Some(end) = ready.last() {
                    seen.applied = Some(end.log_id);
                    for entry in &ready {
                        replay(&mut self.model, entry);
                    }
                    seen.take(&self.model);
                    self.wrote(seen);
                    apply(&mut self.machine, ready).await.unwrap();
                }
            }
            84..88 => {
                if let Some(upto) = seen.applied.filter(|applied| Some(*applied) > seen.purged) {
                    seen.purged = Some(upto);
                    seen.entries.retain(|entry| entry.log_id > upto);
                    self.wrote(seen);
                    self.log.purge(upto).await.unwrap();
                }
            }
            // A snapshot of a leader that is further: the state is replaced whole, and is on disk when it returns.
            88..90 => {
                let mut snapshot = self
                    .machine
                    .get_snapshot_builder()
                    .await
                    .build_snapshot()
                    .await
                    .unwrap();
                let index = self.next_index() + 5;
                let entry = self.command(index);
                replay(&mut self.model, &entry);
                snapshot.meta.last_log_id = Some(entry.log_id);
                seen.applied = Some(entry.log_id);
                seen.take(&self.model);
                self.wrote(seen.clone());
                self.machine
                    .install_snapshot(&snapshot.meta, self.model.clone())
                    .await
                    .unwrap();
                self.acknowledged = self.history.len() - 1;
                // openraft drops the log that the snapshot overtook.
                self.log.truncate_after(seen.purged).await.unwrap();
                seen.entries.clear();
                self.wrote(seen.clone());
                self.log.purge(entry.log_id).await.unwrap();
                seen.purged = Some(entry.log_id);
                self.wrote(seen);
                self.sync();
            }
            _ => self.sync(),
        }
    }

    fn sync(&mut self) {
        // Everything written so far is in the file, and so will be on the disk.
        let written = wal(self.dir.path());
        self.disk.sync_all();
        self.synced = written;
        self.acknowledged = self.history.len() - 1;
    }

    fn maybe_moment(&mut self) {
        let Plan { steps, moments, .. } = self.plan;
        if self.moments.len() < moments && self.rng.random_range(0..steps / moments) == 0 {
            self.moment();
        }
    }

    fn moment(&mut self) {
        // Now and then in the middle of what RocksDB does by itself.
        if self.rng.random() {
            self.disk.disk.settle();
        }
        let dir = tempfile::tempdir().unwrap();
        copy_still(self.dir.path(), dir.path());
        let (newest, _) = wal(self.dir.path());
        let (synced, bytes) = &self.synced;
        self.moments.push(Moment {
            dir,
            synced_bytes: if newest == *synced { *bytes } else { 0 },
            acknowledged: self.acknowledged,
            written: self.history.len() - 1,
        });
    }
}

fn replay(state: &mut State, entry: &Entry) {
    if let EntryPayload::Normal(proposal) = &entry.payload {
        state_machine::replay(state, entry.log_id.index, proposal).unwrap();
    }
}

/// The newest file of the write-ahead log and its size.
fn wal(path: &Path) -> (PathBuf, u64) {
    let files = fs::read_dir(path.join("db")).unwrap().map(|file| file.unwrap().path());
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let newest = logs.max().unwrap();
    let bytes = fs::metadata(&newest).unwrap().len();
    (newest, bytes)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        match file.file_type()?.is_dir() {
            true => copy(&file.path(), &target)?,
            false => drop(fs::copy(file.path(), target)?),
        }
    }
    Ok(())
}

/// Every file below, with its size.
fn sizes(path: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let mut sizes = BTreeMap::new();
    for file in fs::read_dir(path)? {
        let file = file?;
        match file.file_type()?.is_dir() {
            true => sizes.extend(self::sizes(&file.path())?),
            false => drop(sizes.insert(file.path(), file.metadata()?.len())),
        }
    }
    Ok(sizes)
}

/// Copies a directory in which RocksDB may be at work, as it was at one moment: none of its files changed meanwhile.
fn copy_still(from: &Path, to: &Path) {
    loop {
        let before = sizes(from);
        let copied = copy(from, to);
        if copied.is_ok() && before.is_ok_and(|before| sizes(from).is_ok_and(|after| after == before)) {
            return;
        }
        fs::remove_dir_all(to).unwrap();
    }
}

/// What a replica sees when it starts on `path`.
async fn open_again(path: &Path) -> Result<Seen, String> {
    let store = Store::open(path).map_err(|error| error.to_string())?;
    store.identity("r0").map_err(|error| error.to_string())?;
    let (mut machine, _) = StateMachine::open(store.clone()).map_err(|error| error.to_string())?;
    let mut log = LogStore::open(store).map_err(|error| error.to_string())?;
    let state = log.get_log_state().await.unwrap();
    let from = state.last_purged_log_id.map_or(0, |purged| purged.index + 1);
    let entries = log
        .try_get_log_entries(from..)
        .await
        .map_err(|error| error.to_string())?;
    if entries.last().map(|entry| entry.log_id).or(state.last_purged_log_id) != state.last_log_id {
        return Err(format!(
            "SILENT: last log id {:?} is not the last entry's",
            state.last_log_id
        ));
    }
    let table = &machine.state().table;
    if table.digest() != table.recompute_digest() {
        return Err("SILENT: the digest is not the table's".into());
    }
    let mut seen = Seen {
        vote: log.read_vote().await.unwrap(),
        purged: state.last_purged_log_id,
        entries,
        committed: log.read_committed().await.map_err(|error| error.to_string())?,
        applied: machine.applied_state().await.unwrap().0,
        ..Seen::default()
    };
    seen.take(&machine.state());
    Ok(seen)
}

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// All of it.
    Gone,
    /// Gone from here on.
    Cut(u64),
    /// Random bytes over this range.
    Noise(u64, u64),
    /// Zeros over this range.
    Zeros(u64, u64),
    /// Zeros from this sector on, as a file system may leave them that had the length on disk before the bytes.
    Unwritten(u64),
    /// One bit of this byte.
    Flip(u64),
}

impl Damage {
    /// Of any kind, anywhere in a file of so many bytes.
    fn somewhere(bytes: u64, rng: &mut StdRng) -> Self {
        if bytes == 0 {
            return Damage::Gone;
        }
        let at = rng.random_range(0..bytes);
        let end = (at + rng.random_range(1..=4096)).min(bytes);
        match rng.random_range(0..6) {
            0 => Damage::Gone,
            1 => Damage::Cut(0),
            2 => Damage::Cut(at),
            3 => Damage::Noise(at, end),
            4 => Damage::Zeros(at, end),
            _ => Damage::Flip(at),
        }
    }

    fn inflict(self, file: &Path, rng: &mut StdRng) {
        let wal = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
        let over = |at: u64, bytes: Vec<u8>| wal.write_all_at(&bytes, at).unwrap();
        match self {
            Damage::Gone => fs::remove_file(file).unwrap(),
            Damage::Cut(at) => wal.set_len(at).unwrap(),
            Damage::Noise(at, end) => over(at, (at..end).map(|_| rng.random()).collect()),
            Damage::Zeros(at, end) => over(at, (at..end).map(|_| 0).collect()),
            Damage::Unwritten(at) => {
                let end = fs::metadata(file).unwrap().len();
                over(at, vec![0; usize::try_from(end - at).unwrap()]);
            }
            Damage::Flip(at) => {
                let mut byte = [0];
                wal.read_exact_at(&mut byte, at).unwrap();
                over(at, vec![byte[0] ^ (1 << rng.random_range(0..8))]);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Report {
    cuts: usize,
    scribbled_after: usize,
    scribbled_after_refused: usize,
    scribbled_before: usize,
    scribbled_before_refused: usize,
}

/// One seed; `Err` names what was lost.
async fn run(seed: u64, acknowledges_before_sync: bool) -> Result<Report, String> {
    let mut writer = Writer::new(ONE_LOG, seed, acknowledges_before_sync);
    writer.run().await;
    let mut report = Report::default();
    for (number, moment) in writer.moments.iter().enumerate() {
        let (_, bytes) = wal(moment.dir.path());
        let synced = moment.synced_bytes;
        let mut damages = vec![Damage::Cut(synced), Damage::Cut(bytes)];
        for _ in 0..CUTS {
            damages.push(Damage::Cut(writer.rng.random_range(synced..=bytes)));
            if synced < bytes {
                let at = writer.rng.random_range(synced..bytes);
                let end = writer.rng.random_range(at..bytes) + 1;
                damages.push(match writer.rng.random_range(0..3) {
                    0 => Damage::Noise(at, end),
                    1 => Damage::Zeros(at, end),
                    _ => Damage::Flip(at),
                });
            }
            let sector = synced.next_multiple_of(512) + 512 * writer.rng.random_range(0..4);
            if sector < bytes {
                damages.push(Damage::Unwritten(sector));
            }
            if synced > 0 {
                // Nearer to the end more often: there it looks most like a torn write.
                let reach = [64, 4096, 40_000, u64::MAX][writer.rng.random_range(0..4)];
                let back = writer.rng.random_range(1..=synced.min(reach));
                let at = synced - back;
                let end = (at + writer.rng.random_range(1..=4096)).min(synced);
                damages.push(match writer.rng.random_range(0..4) {
                    0 => Damage::Noise(at, end),
                    1 => Damage::Zeros(at, end),
                    _ => Damage::Flip(at),
                });
            }
        }
        for damage in damages {
            let copied = tempfile::tempdir().unwrap();
            copy(moment.dir.path(), copied.path()).unwrap();
            damage.inflict(&wal(copied.path()).0, &mut writer.rng);
            let before =
                matches!(damage, Damage::Noise(at, _) | Damage::Zeros(at, _) | Damage::Flip(at) if at < synced);
            let what = format!("seed {seed}, moment {number}, {damage:?} of {bytes} bytes, {synced} of them synced");
            let refused = match open_again(copied.path()).await {
                Err(problem) if problem.starts_with("SILENT") => return Err(format!("{what}: {problem}")),
                Err(problem) if matches!(damage, Damage::Cut(_) | Damage::Unwritten(_)) => {
                    return Err(format!("{what}: a torn end must open, but: {problem}"));
                }
                Err(_) => true,
                Ok(seen) => {
                    let good = &writer.history[moment.acknowledged..=moment.written];
                    if !good.contains(&seen) {
                        let older = writer.history.iter().position(|past| *past == seen);
                        return Err(format!(
                            "{what}: opens with {} of {} writes, {} acknowledged",
                            older.map_or_else(|| "what was never a prefix".into(), |at| at.to_string()),
                            moment.written,
                            moment.acknowledged
                        ));
                    }
                    false
                }
            };
            match damage {
                Damage::Cut(_) | Damage::Unwritten(_) => report.cuts += 1,
                _ if before => {
                    report.scribbled_before += 1;
                    report.scribbled_before_refused += usize::from(refused);
                }
                _ => {
                    report.scribbled_after += 1;
                    report.scribbled_after_refused += usize::from(refused);
                }
            }
        }
    }
    Ok(report)
}

/// The files that a database is made of, by what they are.
fn parts(path: &Path) -> BTreeMap<&'static str, Vec<PathBuf>> {
    let (newest, _) = wal(path);
    let mut parts = BTreeMap::<_, Vec<_>>::new();
    for file in sizes(&path.join("db")).unwrap().into_keys() {
        let name = file.file_name().unwrap().to_str().unwrap();
        let part = match name {
            _ if file == newest => NEWEST_WAL,
            _ if name.ends_with(".log") => OLDER_WAL,
            _ if name.ends_with(".sst") => "a table",
            _ if name.starts_with("MANIFEST-") => "the manifest",
            "CURRENT" => "the manifest's name",
            "synced" => NOTE,
            _ => continue,
        };
        parts.entry(part).or_default().push(file);
    }
    parts
}

const NEWEST_WAL: &str = "the newest log";
const OLDER_WAL: &str = "an older log";
const NOTE: &str = "the note of what was synced";

/// How often a part was damaged, and how often that was refused.
type Refusals = BTreeMap<&'static str, (usize, usize)>;

/// One seed with a database of many files; `Err` names what was lost, or opened no more.
async fn run_many_files(seed: u64) -> Result<Refusals, String> {
    let mut writer = Writer::new(MANY_FILES, seed, false);
    writer.run().await;
    let mut refusals = Refusals::new();
    for (number, moment) in writer.moments.iter().enumerate() {
        let good = &writer.history[moment.acknowledged..=moment.written];
        let as_it_was = tempfile::tempdir().unwrap();
        copy(moment.dir.path(), as_it_was.path()).unwrap();
        let killed = open_again(as_it_was.path()).await;
        if killed.as_ref().ok() != good.last() {
            let problem = killed.map_or_else(|problem| problem, |_| "lacks something".into());
            return Err(format!(
                "seed {seed}, moment {number}: killed, and not damaged: {problem}"
            ));
        }
        for (part, files) in parts(moment.dir.path()) {
            for _ in 0..DAMAGES {
                let file = &files[writer.rng.random_range(0..files.len())];
                let bytes = fs::metadata(file).unwrap().len();
                let damage = Damage::somewhere(bytes, &mut writer.rng);
                let copied = tempfile::tempdir().unwrap();
                copy(moment.dir.path(), copied.path()).unwrap();
                let below = file.strip_prefix(moment.dir.path()).unwrap();
                damage.inflict(&copied.path().join(below), &mut writer.rng);
                let what = format!("seed {seed}, moment {number}, {damage:?} of {part}, {below:?} of {bytes} bytes");
                let torn = part == NEWEST_WAL && matches!(damage, Damage::Cut(at) if at >= moment.synced_bytes);
                let (damaged, refused) = refusals.entry(part).or_default();
                *damaged += 1;
                // Whoever is refused tries again.
                for attempt in ["opens", "opens at the second start"] {
                    match open_again(copied.path()).await {
                        Err(problem) if problem.starts_with("SILENT") => return Err(format!("{what}: {problem}")),
                        Err(problem) if torn || part == NOTE => {
                            return Err(format!("{what}: nothing is lost, but: {problem}"));
                        }
                        Err(_) => *refused += 1,
                        Ok(seen) if good.contains(&seen) => break,
                        Ok(seen) => {
                            let older = writer.history.iter().position(|past| *past == seen);
                            return Err(format!(
                                "{what}: {attempt} with {} of {} writes, {} acknowledged",
                                older.map_or_else(|| "what was never a prefix".into(), |at| at.to_string()),
                                moment.written,
                                moment.acknowledged
                            ));
                        }
                    }
                }
            }
        }
    }
    Ok(refusals)
}

fn seeds() -> Range<u64> {
    let Ok(seeds) = std::env::var("HOLDFAST_CRASH_CUT_SEEDS") else {
        return SEEDS;
    };
    let number = |text: &str| text.parse::<u64>().expect("a seed");
    match seeds.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&seeds)..number(&seeds) + 1,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_what_was_acknowledged_is_there_after_a_power_cut_wherever_the_log_was_torn() {
    for seed in seeds() {
        let report = run(seed, false).await.unwrap_or_else(|lost| panic!("{lost}"));
        println!("seed {seed}: {report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_acknowledges_before_it_syncs_is_found_out() {
    for seed in seeds() {
        let lost = run(seed, true).await.expect_err("the planted bug must be found");
        println!("found: {lost}");
        assert!(lost.contains("acknowledged"), "{lost}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_whatever_file_is_damaged_nothing_acknowledged_is_lost_without_a_word() {
    for seed in seeds() {
        let refusals = run_many_files(seed).await.unwrap_or_else(|lost| panic!("{lost}"));
        println!("seed {seed}: damaged and refused: {refusals:?}");
        for part in [OLDER_WAL, "a table"] {
            assert!(refusals.contains_key(part), "seed {seed}: there was never {part}");
        }
    }
}

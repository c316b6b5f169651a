//! The state machine: the table in memory, its durable mirror in RocksDB, and whoever wants to see it change.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use holdfast_table::sessions::SessionId;
use holdfast_table::{
    Command, Digest, Epoch, HubId, Namespace, Outcome, Revision, RouteSpec, Settlement, Stamp, State,
};
use holdfast_wire::convert::{ConvertError, known_command};
use holdfast_wire::proto;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use prost::Message as _;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::watch;

use super::disk::{Batch, Family};
use super::snapshot::{self, Rows};
use super::{OpenError, Store, corrupt, keys, put_row, read_row, row};
use crate::consensus::types::{
    Answer, Applied, LogId, Proposal, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id_in, log_id_out,
    stored_membership_in, stored_membership_out,
};

#[cfg(test)]
use crate::simulation::planted::{self, Bug, planted};

/// Rows written at once while a snapshot is installed.
const INSTALL_ROWS: usize = if cfg!(test) { 3 } else { 5_000 };
/// An entry of more bytes takes long to apply: beside the other tasks of its thread, which keep the leader known as alive.
const LONG_BYTES: usize = 64 * 1024;
/// A command of more changes takes long, too: beside those who read the state.
const LONG_CHANGES: usize = 500;

/// A state and its place in the log.
#[derive(Clone, Default)]
pub struct Position {
    /// The state.
    pub state: State,
    /// The last entry in it; of this one, some commands may still be missing.
    pub applied: Option<LogId>,
    /// The last membership in it.
    pub membership: StoredMembership,
}

impl Position {
    /// True for an id that a replica once had and that is no member's any more. It is never given again.
    pub fn is_retired(&self, node_id: u64) -> bool {
        (1..=self.state.node_id_max).contains(&node_id) && self.membership.get_node(&node_id).is_none()
    }

    /// What is on the disk of a replica that does not run. Changes nothing there.
    ///
    /// # Errors
    /// [`OpenError::Damaged`]: the rows are not what was written with them.
    pub fn stored(store: &Store) -> Result<Self, OpenError> {
        let loaded = load(store).map_err(|error| store.failed("table", &error))?;
        Ok(loaded.position)
    }

    fn join(&mut self, membership: StoredMembership) {
        let ids = membership.nodes().map(|(id, _)| *id);
        self.state.node_id_max = ids.fold(self.state.node_id_max, u64::max);
        self.membership = membership;
    }
}

/// The state as it is now, for everybody but the state machine itself: never half of a command, waited for without polling.
#[derive(Clone)]
pub struct Published {
    current: Current,
    applied: watch::Receiver<u64>,
    digests: Arc<Mutex<Digests>>,
}

/// The newest position. Changed in place while nobody else holds it, which spares the copies of the nodes that change.
#[derive(Clone)]
struct Current(Arc<Mutex<Arc<Position>>>);

impl Current {
    fn new(position: Position) -> Self {
        Current(Arc::new(Mutex::new(Arc::new(position))))
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Position>> {
        self.0.lock().expect("nobody panics with it")
    }

    fn load(&self) -> Arc<Position> {
        self.lock().clone()
    }

    /// Changes the position. Whoever loads it meanwhile waits, unless it takes `long`: then they get the one before.
    fn change<T>(&self, long: bool, change: impl FnOnce(&mut Position) -> T) -> T {
        if !long {
            return change(Arc::make_mut(&mut self.lock()));
        }
        let mut next = self.load();
        let answer = change(Arc::make_mut(&mut next));
        *self.lock() = next;
        answer
    }

    fn replace(&self, position: Position) {
        *self.lock() = Arc::new(position);
    }
}

/// The digests of the newest revisions: of the table, and of what is held in it.
#[derive(Default)]
struct Digests(VecDeque<(Epoch, Revision, Digest)>);

impl Digests {
    /// Enough for the slowest answer to a comparison under the fastest writes.
    const MAX: usize = 65_536;

    fn note(&mut self, state: &State) {
        let table = &state.table;
        self.0.push_back((table.epoch(), table.revision(), state.digest()));
        if self.0.len() > Self::MAX {
            self.0.pop_front();
        }
    }

    fn at(&self, epoch: Epoch, revision: Revision) -> Option<Digest> {
        let at = self
            .0
            .binary_search_by_key(&(epoch, revision), |(epoch, revision, _)| (*epoch, *revision));
        at.ok().and_then(|at| self.0.get(at)).map(|(.., digest)| *digest)
    }
}

impl Published {
    /// The newest state.
    pub fn load(&self) -> Arc<Position> {
        self.current.load()
    }

    /// Changes with every applied batch of entries; holds the index of the last.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// The digest that the table and its holds had at a revision; `None` if that is too long ago, or has not been.
    pub fn digest_at(&self, epoch: Epoch, revision: Revision) -> Option<Digest> {
        self.digests.lock().expect("nobody panics with it").at(epoch, revision)
    }

    /// The state once the entry at `index` is applied; `None` if that takes longer than `timeout`.
    pub async fn at(&self, index: u64, timeout: Duration) -> Option<Arc<Position>> {
        let mut applied = self.applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        match tokio::time::timeout(timeout, reached).await {
            Ok(Ok(_)) => Some(self.load()),
            _ => None,
        }
    }
}

/// What openraft drives.
pub struct StateMachine {
    store: Store,
    current: Current,
    generation: u32,
    applied: watch::Sender<u64>,
    digests: Arc<Mutex<Digests>>,
}

impl StateMachine {
    /// Reads the state from disk and checks it.
    ///
    /// # Errors
    /// [`OpenError::Damaged`]: the rows are not what was written with them.
    pub fn open(store: Store) -> Result<(Self, Published), OpenError> {
        let failed = |error: io::Error| store.failed("table", &error);
        let Loaded {
            position,
            generation,
            stale,
        } = load(&store).map_err(failed)?;
        // Left from a snapshot that was interrupted, or not yet cleared away after one that was not.
        store.disk.write(stale).map_err(failed)?;
        let (applied, receiver) = watch::channel(position.applied.map_or(0, |log_id| log_id.index));
        let current = Current::new(position);
        let digests = Arc::new(Mutex::new(Digests::default()));
        let published = Published {
            current: current.clone(),
            applied: receiver,
            digests: digests.clone(),
        };
        let machine = StateMachine {
            digests,
            store,
            current,
            generation,
            applied,
        };
        Ok((machine, published))
    }

    #[cfg(test)]
    pub fn state(&self) -> State {
        self.current.load().state.clone()
    }

    fn note_digest(&self, state: &State) {
        self.digests.lock().expect("nobody panics with it").note(state);
    }

    fn publish(&self, applied: Option<LogId>) {
        self.applied.send_replace(applied.map_or(0, |log_id| log_id.index));
    }

    fn write_position(&self, batch: &mut Batch, position: &Position, generation: u32) {
        let applied = proto::AppliedState {
            log_id: position.applied.as_ref().map(log_id_out),
            membership: Some(stored_membership_out(&position.membership)),
            header: Some(snapshot::header(&position.state)),
            generation,
        };
        put_row(batch, Family::Meta, keys::APPLIED, &applied);
    }

    fn apply_entry(&self, batch: &mut Batch, log_id: LogId, proposal: &Proposal) -> io::Result<Applied> {
        let contents = contents(log_id.index, proposal)?;
        self.current.change(false, |position| position.applied = Some(log_id));
        let answers = contents.into_iter().map(|content| {
            let long = content.changes() > LONG_CHANGES;
            self.current.change(long, |position| {
                self.apply_content(&mut position.state, batch, log_id.index, content)
            })
        });
        Ok(answers.collect())
    }

    fn apply_content(&self, state: &mut State, batch: &mut Batch, index: u64, content: Content) -> Answer {
        match content {
            Content::Write(stamp, command) => {
                #[cfg(test)]
                let command = planted::as_if_new(state, command);
                let outcome = state.apply(index, &stamp, &command);
                #[cfg(test)]
                planted::forget_uses(state, self.store.path());
                let session = command.session.map(|(id, _)| id);
                self.mirror(batch, state, session, &outcome);
                Answer::Write(outcome.result)
            }
            Content::Settle(settlement, routes) => {
                let outcome = state.settle(settlement, &routes);
                self.settled(batch, state, &outcome)
            }
            Content::Expire(stamp) => {
                let outcome = state.expire(&stamp);
                self.settled(batch, state, &outcome)
            }
            // Its rows are in the header, which is written with the position.
            Content::OpenHub(namespace, hub) => {
                #[cfg(test)]
                planted::forget_hubs(state);
                Answer::Hub(state.open_hub(&namespace, hub))
            }
        }
    }

    fn settled(&self, batch: &mut Batch, state: &State, outcome: &Outcome) -> Answer {
        self.mirror(batch, state, None, outcome);
        let gone = outcome.delta.as_ref().map_or(0, |delta| delta.deletes.len());
        Answer::Settled(gone + outcome.marked.len(), state.table.revision())
    }

    fn mirror(&self, batch: &mut Batch, state: &State, session: Option<SessionId>, outcome: &Outcome) {
        let family = Family::Table;
        let generation = self.generation;
        if outcome.delta.is_some() {
            self.note_digest(state);
        }
        if let Some(delta) = &outcome.delta {
            for entry in &delta.puts {
                let key = entry.route.spec.key();
                let row = proto::Route::from(entry.as_ref());
                put_row(batch, family, keys::route(generation, key), &row);
            }
            for spec in &delta.deletes {
                let row = snapshot::tombstone_out(spec.as_str(), delta.to);
                batch.delete(family, keys::route(generation, spec.key()));
                put_row(batch, family, keys::tombstone(generation, spec.key()), &row);
            }
        }
        for key in &outcome.marked {
            #[cfg(test)]
            if planted(Bug::HoldNotStored) {
                continue;
            }
            if let Some(entry) = state.table.get(key) {
                let row = snapshot::route_out(entry, &state.holds);
                put_row(batch, family, keys::route(generation, key), &row);
            }
        }
        for key in &outcome.losses {
            let row = keys::loss(generation, key);
            match state.holds.losses().get(key) {
                Some(loss) => put_row(batch, family, row, &snapshot::loss_out(loss)),
                None => batch.delete(family, row),
            }
        }
        for key in &outcome.forgotten.tombstones {
            batch.delete(family, keys::tombstone(generation, key));
        }
        for id in &outcome.forgotten.sessions {
            batch.delete(family, keys::session(generation, id));
        }
        if let Some(id) = &session
            && let Some(session) = state.sessions.get(id)
        {
            let row = snapshot::session_out(id, session);
            put_row(batch, family, keys::session(generation, id), &row);
        }
    }

    /// Makes `position` the state of a directory that is in no cluster yet; on disk when this returns.
    pub fn seed(&mut self, position: Position) -> io::Result<()> {
        self.install(position)
    }

    fn install(&mut self, position: Position) -> io::Result<()> {
        let (disk, family) = (&self.store.disk, Family::Table);
        let generation = self.generation + 1;
        let state = &position.state;
        let routes = state.table.iter().map(|entry| {
            row(
                keys::route(generation, entry.route.spec.key()),
                &snapshot::route_out(entry, &state.holds),
            )
        });
        let losses = state
            .holds
            .losses()
            .iter()
            .map(|loss| row(keys::loss(generation, loss.spec.key()), &snapshot::loss_out(loss)));
        let tombstones = state.history.tombstones().map(|(spec, revision)| {
            let tombstone = snapshot::tombstone_out(spec.as_str(), revision);
            row(keys::tombstone(generation, spec.key()), &tombstone)
        });
        let sessions = state
            .sessions
            .iter()
            .map(|(id, session)| row(keys::session(generation, id), &snapshot::session_out(id, session)));
        let mut batch = Batch::default();
        #[cfg(test)]
        if planted(Bug::SnapshotWithoutFlip) {
            self.write_position(&mut batch, &position, generation);
            disk.write(std::mem::take(&mut batch))?;
        }
        for (key, value) in routes.chain(tombstones).chain(sessions).chain(losses) {
            batch.put(family, key, value);
            if batch.len() >= INSTALL_ROWS {
                disk.write(std::mem::take(&mut batch))?;
            }
        }
        // The one write that makes it count: before it the old generation is the state, after it the new one.
        self.write_position(&mut batch, &position, generation);
        disk.write(batch)?;
        #[cfg(test)]
        if planted(Bug::SnapshotWithoutFlip) {
            self.generation = generation;
            self.current.replace(position);
            return Ok(());
        }
        disk.sync()?;
        let mut old = Batch::default();
        old.delete_range(family, self.generation.to_be_bytes(), generation.to_be_bytes());
        disk.write(old)?;
        self.generation = generation;
        self.current.replace(position);
        Ok(())
    }
}

/// What a command asks for.
enum Content {
    Write(Stamp, Command),
    OpenHub(Namespace, HubId),
    Settle(Settlement, Vec<(RouteSpec, Revision)>),
    Expire(Stamp),
}

impl Content {
    /// How many routes it names.
    fn changes(&self) -> usize {
        match self {
            Content::Write(_, command) => command.batch.changes().len(),
            Content::Settle(_, routes) => routes.len(),
            Content::OpenHub(..) | Content::Expire(_) => 0,
        }
    }
}

/// The commands of a log entry, in their order.
fn contents(index: u64, proposal: &Proposal) -> io::Result<Vec<Content>> {
    let damaged = |problem: String| corrupt(format!("log entry {index}: {problem}"));
    let group = proto::Group::decode(proposal.0.clone()).map_err(|error| damaged(error.to_string()))?;
    let commands = group.commands.into_iter();
    commands.map(|command| content(command).map_err(&damaged)).collect()
}

fn content(command: Bytes) -> Result<Content, String> {
    use proto::command::Command as In;
    let unread = |error: ConvertError| error.to_string();
    let command = proto::Command::decode(command).map_err(|error| error.to_string())?;
    let stamp = Stamp::from(&command);
    match command.command.ok_or("no command in it")? {
        In::Write(write) => {
            let command = known_command(&write).map_err(unread)?;
            Ok(Content::Write(stamp, command))
        }
        In::OpenHub(open) => {
            let (namespace, hub) = (&open).try_into().map_err(unread)?;
            Ok(Content::OpenHub(namespace, hub))
        }
        In::SettleHeld(settle) => {
            let (settlement, routes) = (&settle).try_into().map_err(unread)?;
            Ok(Content::Settle(settlement, routes))
        }
        In::ExpireHeld(proto::ExpireHeld {}) => Ok(Content::Expire(stamp)),
    }
}

/// Applies a log entry to a state that nobody follows.
pub fn replay(state: &mut State, index: u64, proposal: &Proposal) -> io::Result<()> {
    for content in contents(index, proposal)? {
        match content {
            Content::Write(stamp, command) => drop(state.apply(index, &stamp, &command)),
            Content::OpenHub(namespace, hub) => drop(state.open_hub(&namespace, hub)),
            Content::Settle(settlement, routes) => drop(state.settle(settlement, &routes)),
            Content::Expire(stamp) => drop(state.expire(&stamp)),
        }
    }
    Ok(())
}

/// What the rows say, and those that say nothing any more.
#[derive(Default)]
struct Loaded {
    position: Position,
    generation: u32,
    stale: Batch,
}

fn load(store: &Store) -> io::Result<Loaded> {
    let Some(applied) = store.meta::<proto::AppliedState>(keys::APPLIED)? else {
        // Left from a first snapshot that was interrupted: the next one would be of the same generation.
        let mut loaded = Loaded::default();
        for row in store.disk.scan(Family::Table, &[]) {
            loaded.stale.delete(Family::Table, row?.0);
        }
        return Ok(loaded);
    };
    let header = applied.header.ok_or_else(|| corrupt("a position without its header"))?;
    let membership = applied
        .membership
        .and_then(stored_membership_in)
        .ok_or_else(|| corrupt("a position without members"))?;
    let mut rows = Rows::default();
    let mut stale = Batch::default();
    for row in store.disk.scan(Family::Table, &[]) {
        let (key, value) = row?;
        let (generation, kind) = keys::Row::parse(&key).ok_or_else(|| corrupt("a row under no known key"))?;
        if generation != applied.generation {
            stale.delete(Family::Table, key);
            continue;
        }
        let damaged = |problem: String| corrupt(format!("row {}: {problem}", keys::name(kind, &key)));
        match kind {
            keys::Row::Route => rows.push_route(&read_row(&key, &value).map_err(damaged)?)?,
            keys::Row::Loss => {
                let loss = read_row(&key, &value).map_err(damaged)?;
                rows.losses.push(snapshot::loss_in(&loss)?);
            }
            keys::Row::Tombstone => {
                let tombstone = read_row(&key, &value).map_err(damaged)?;
                rows.tombstones.push(snapshot::tombstone_in(&tombstone)?);
            }
            keys::Row::Session => {
                let session = read_row(&key, &value).map_err(damaged)?;
                rows.sessions.push(snapshot::session_in(session)?);
            }
        }
    }
    let state = snapshot::assemble(&header, rows)?;
    let mut position = Position {
        state,
        applied: applied.log_id.map(log_id_in),
        membership: StoredMembership::default(),
    };
    position.join(membership);
    Ok(Loaded {
        position,
        generation: applied.generation,
        stale,
    })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = State;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let position = self.current.load();
        Ok((position.applied, position.membership.clone()))
    }

    /// One unsynced batch with its position: the log has it on a quorum's disks, and comes before it in the write-ahead log.
    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::default();
        let mut answers = Vec::new();
        let mut long = false;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let answer = match entry.payload {
                EntryPayload::Normal(proposal) if proposal.0.len() > LONG_BYTES => {
                    long = true;
                    beside(|| self.apply_entry(&mut batch, entry.log_id, &proposal))?
                }
                EntryPayload::Normal(proposal) => self.apply_entry(&mut batch, entry.log_id, &proposal)?,
                EntryPayload::Blank => {
                    self.current
                        .change(false, |position| position.applied = Some(entry.log_id));
                    Applied::new()
                }
                EntryPayload::Membership(membership) => {
                    self.current.change(false, |position| {
                        position.applied = Some(entry.log_id);
                        position.join(StoredMembership::new(Some(entry.log_id), membership));
                    });
                    Applied::new()
                }
            };
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        #[cfg(test)]
        if planted(Bug::PositionApart) {
            self.store.disk.write(std::mem::take(&mut batch))?;
        }
        let applied = {
            let position = self.current.lock();
            self.write_position(&mut batch, &position, self.generation);
            position.applied
        };
        match long {
            true => beside(|| self.store.disk.write(batch))?,
            false => self.store.disk.write(batch)?,
        }
        // Before the writer hears of it, so that a writer's next read finds its write.
        self.publish(applied);
        answers
            .into_iter()
            .for_each(|(responder, answer)| responder.send(answer));
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.current.load())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: State) -> io::Result<()> {
        let mut position = Position {
            state,
            applied: meta.last_log_id,
            membership: StoredMembership::default(),
        };
        position.join(meta.last_membership.clone());
        beside(|| self.install(position))?;
        let position = self.current.load();
        self.note_digest(&position.state);
        self.publish(position.applied);
        Ok(())
    }

    /// An image of the present costs nothing, and is better than any older one.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let position = self.current.load();
        match position.applied {
            Some(_) => Builder(position).build_snapshot().await.map(Some),
            None => Ok(None),
        }
    }
}

/// Works for long, beside the other tasks of this thread where there are other threads for them.
pub fn beside<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}

/// A frozen view: a clone of the persistent table, whatever its size.
pub struct Builder(Arc<Position>);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = State;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let meta = SnapshotMeta {
            last_log_id: self.0.applied,
            last_membership: self.0.membership.clone(),
        };
        Ok(Snapshot {
            meta,
            snapshot: self.0.state.clone(),
        })
    }
}

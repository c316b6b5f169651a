//! Recover: what a survivor of a lost quorum has on its disk, and a new cluster made of it.
//!
//! Looking changes nothing. The new cluster is written beside what was found, which is kept.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_table::{Digest, Epoch, Lineage, Revision, State};
use openraft::EntryPayload;

use crate::consensus::types::LogId;
use crate::restore::{Founded, Founder, Founding, Origin, Predecessor, RestoreError};
use crate::storage::identity::Identity;
use crate::storage::log::{self, Promises};
use crate::storage::offline::{Building, BuildingError};
use crate::storage::state_machine::{Position, replay};
use crate::storage::{OpenError, Store};

pub use crate::storage::offline::WalRecovery;

/// A stopped replica, read and held.
pub struct Survivor {
    store: Store,
    identity: Identity,
    promises: Promises,
    applied: Position,
    committed: Reached,
    whole: Reached,
    last: Option<LogId>,
    damage: Option<Damage>,
}

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPlace {
    /// The term of the leader that wrote it. Of two survivors the one with the higher term, then index, knows more.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

impl From<&LogId> for LogPlace {
    fn from(log_id: &LogId) -> Self {
        LogPlace {
            term: log_id.committed_leader_id().term,
            index: log_id.index,
        }
    }
}

/// A table somewhere in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Its revision.
    pub revision: Revision,
    /// How many routes.
    pub routes: u64,
    /// Its digest.
    pub digest: Digest,
}

/// A member as the survivor last knew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFacts {
    /// Its id.
    pub node_id: u64,
    /// Its name.
    pub name: String,
    /// Where replicas reached it.
    pub peer_address: String,
    /// Where clients reached it.
    pub client_address: String,
    /// Whether it had a vote.
    pub voter: bool,
}

/// What a survivor has: enough to choose between two.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its id.
    pub node_id: u64,
    /// Its disk.
    pub store_uuid: String,
    /// Its cluster.
    pub cluster_id: String,
    /// The clusters before it.
    pub lineage: Lineage,
    /// Its cluster's epoch.
    pub epoch: Epoch,
    /// The term that it last voted in.
    pub vote_term: u64,
    /// The last entry of its log: the survivor with the highest one knows most.
    pub last: Option<LogPlace>,
    /// The last entry that it knew to be committed. More may have been.
    pub committed: Option<LogPlace>,
    /// The last entry in the table on its disk.
    pub applied: Option<LogPlace>,
    /// The table on its disk.
    pub table: TableFacts,
    /// The table with every entry that was known to be committed.
    pub table_committed: TableFacts,
    /// The table with every entry of its log.
    pub table_whole: TableFacts,
    /// Entries after the applied one that were known to be committed.
    pub entries_committed: u64,
    /// Entries after those: acknowledged by a quorum or not, nobody can tell from here.
    pub entries_uncommitted: u64,
    /// Who its members were.
    pub members: Vec<MemberFacts>,
    /// From where on its log cannot be read, and why; `None` if it can.
    pub damage: Option<String>,
}

/// What to do with log entries beyond those that were known to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// They are applied: whatever was acknowledged is among them.
    Apply,
    /// They are dropped: an acknowledged write may be among them.
    Discard,
}

/// What a recovery did.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The new cluster.
    pub founded: Founded,
    /// Entries of the log that were applied.
    pub entries_applied: u64,
    /// Entries of the log that were dropped.
    pub entries_dropped: u64,
    /// Where the old data is.
    pub before: PathBuf,
}

/// Why nothing was recovered. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It never belonged to a cluster.
    #[error("data-dir {path:?}: belongs to no cluster, so there is nothing in it to recover")]
    NoMember {
        /// The directory.
        path: PathBuf,
    },
    /// Entries that cannot be read must not be skipped silently.
    #[error("data-dir {path:?}: {problem}; {remedy}")]
    Log {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// The new directory.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

impl From<BuildingError> for RecoverError {
    fn from(error: BuildingError) -> Self {
        RecoverError::Restore(error.into())
    }
}

/// Where a log can be read no further.
struct Damage {
    index: u64,
    problem: String,
}

/// A state and how many entries led to it.
#[derive(Clone, Default)]
struct Reached {
    state: State,
    index: u64,
    entries: u64,
}

impl Reached {
    fn facts(&self) -> TableFacts {
        facts(&self.state)
    }
}

fn facts(state: &State) -> TableFacts {
    TableFacts {
        revision: state.table.revision(),
        routes: state.table.len() as u64,
        digest: state.table.digest(),
    }
}

impl Survivor {
    /// Reads what a stopped replica has in `data_dir`, and keeps replicas off it for as long as this lives.
    ///
    /// # Errors
    /// [`RecoverError`]: a replica runs on it, it is no replica's, or it is damaged.
    pub fn open(data_dir: &Path, wal: WalRecovery) -> Result<Self, RecoverError> {
        let store = Store::open_to_read(data_dir, wal)?;
        let no_member = || RecoverError::NoMember {
            path: data_dir.to_owned(),
        };
        let identity = store.written_identity()?.ok_or_else(no_member)?;
        if identity.node_id == 0 {
            return Err(no_member());
        }
        let applied = Position::stored(&store)?;
        let promises = log::promises(&store).map_err(|error| store.failed("log", &error))?;
        let mut survivor = Survivor {
            committed: Reached::default(),
            whole: Reached {
                state: applied.state.clone(),
                index: applied.applied.map_or(0, |log_id| log_id.index),
                entries: 0,
            },
            last: applied.applied.max(promises.purged),
            damage: None,
            store,
            identity,
            promises,
            applied,
        };
        survivor.read_log();
        Ok(survivor)
    }

    /// Applies what the log has beyond the table on disk, in memory.
    fn read_log(&mut self) {
        let known = self.promises.committed.max(self.applied.applied);
        let from = self.applied.applied.map_or(0, |log_id| log_id.index + 1);
        self.committed = self.whole.clone();
        for (expected, entry) in (from..).zip(log::entries(&self.store, from)) {
            let applied = entry.and_then(|entry| {
                if entry.log_id.index != expected {
                    let problem = format!(
                        "log entry {expected}: is missing, the next one is {}",
                        entry.log_id.index
                    );
                    return Err(io::Error::other(problem));
                }
                match &entry.payload {
                    EntryPayload::Normal(proposal) => {
                        replay(&mut self.whole.state, expected, proposal)?;
                    }
                    EntryPayload::Blank | EntryPayload::Membership(_) => {}
                }
                Ok(entry.log_id)
            });
            match applied {
                Ok(log_id) => {
                    self.whole.index = expected;
                    self.whole.entries += 1;
                    self.last = Some(log_id);
                }
                Err(error) => {
                    self.damage = Some(Damage {
                        index: expected,
                        problem: error.to_string(),
                    });
                    return;
                }
            }
            if known.is_some_and(|known| expected <= known.index) {
                self.committed = self.whole.clone();
            }
        }
        // An entry that was known to be committed and is not there is a hole like any other.
        let next = self.last.map_or(0, |last| last.index + 1);
        if known.is_some_and(|known| known.index >= next) {
            self.damage = Some(Damage {
                index: next,
                problem: format!("log entry {next}: is missing, though it was committed"),
            });
        }
    }

    /// What it has.
    pub fn facts(&self) -> Facts {
        let membership = &self.applied.membership;
        let voters: Vec<u64> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, node)| MemberFacts {
            node_id: *id,
            name: node.name.clone(),
            peer_address: node.peer_address.clone(),
            client_address: node.client_address.clone(),
            voter: voters.contains(id),
        });
        Facts {
            name: self.identity.name.clone(),
            node_id: self.identity.node_id,
            store_uuid: self.identity.store_uuid.clone(),
            cluster_id: self.identity.cluster_id.clone(),
            lineage: self.applied.state.lineage.clone(),
            epoch: self.applied.state.table.epoch(),
            vote_term: self.promises.vote.map_or(0, |vote| vote.leader_id.term),
            last: self.last.as_ref().map(LogPlace::from),
            committed: self
                .promises
                .committed
                .max(self.applied.applied)
                .as_ref()
                .map(LogPlace::from),
            applied: self.applied.applied.as_ref().map(LogPlace::from),
            table: facts(&self.applied.state),
            table_committed: self.committed.facts(),
            table_whole: self.whole.facts(),
            entries_committed: self.committed.entries,
            entries_uncommitted: self.whole.entries - self.committed.entries,
            members: members.collect(),
            damage: self.damage.as_ref().map(|damage| damage.problem.clone()),
        }
    }

    /// Makes a new cluster of one in place of what was found, which is kept beside.
    ///
    /// # Errors
    /// [`RecoverError`]: everything is as it was.
    pub fn force_new_cluster(
        self,
        founder: &Founder,
        predecessors: &[Predecessor],
        tail: Tail,
    ) -> Result<Recovered, RecoverError> {
        let path = self.store.path().to_owned();
        let known = self.promises.committed.max(self.applied.applied);
        if let Some(damage) = self.damage {
            let is_tail = known.is_none_or(|known| damage.index > known.index);
            let remedy = match (is_tail, tail) {
                (true, Tail::Discard) => None,
                (true, Tail::Apply) => Some(
                    "it was not known to be committed: recover from another survivor, or with --discard-uncommitted, \
                     which drops it and what follows",
                ),
                (false, _) => Some(
                    "it was committed, and what follows it cannot be applied: recover from another survivor, from a \
                     backup, or from a proxy's cache file",
                ),
            };
            if let Some(remedy) = remedy {
                return Err(RecoverError::Log {
                    path,
                    problem: damage.problem,
                    remedy,
                });
            }
        }
        let (reached, dropped) = match tail {
            Tail::Apply => (self.whole, 0),
            Tail::Discard => {
                let dropped = self.whole.entries - self.committed.entries;
                (self.committed, dropped)
            }
        };
        let origin = Origin {
            cluster_id: self.identity.cluster_id,
            state: reached.state,
            applied_index: reached.index,
        };
        let founding = Founding::new(origin, predecessors)?;
        let building = Building::in_place_of(&self.store)?;
        // Closed before it is moved; the directory's lock is the building's now.
        drop(self.store);
        let (founded, before) = founding.build(building, &path, founder)?;
        Ok(Recovered {
            founded,
            entries_applied: reached.entries,
            entries_dropped: dropped,
            before: before.unwrap_or(path),
        })
    }
}

#[cfg(test)]
mod tests;

//! Restore: the data directory of a new cluster of one, made from a backup, a proxy's copy or what a survivor has.
//!
//! The new cluster has an id of its own, an epoch above the old one's and a revision far ahead of it, and names the old
//! one in its lineage. So the old cluster's proxies take its table and never go back, and the old cluster's replicas
//! can neither join it nor be taken for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use holdfast_table::history::History;
use holdfast_table::{Digest, Epoch, Holds, Lineage, Revision, State, Table};
use uuid::Uuid;

use crate::backup::Backup;
use crate::consensus::types::{LeaderId, LogId, Membership, Node, StoredMembership};
use crate::storage::identity::Identity;
use crate::storage::log::{self, LogStore};
use crate::storage::offline::{Building, BuildingError};
use crate::storage::state_machine::{Position, StateMachine};
use crate::storage::{FORMAT, OpenError, Store};

/// How far the revision moves ahead. What the old cluster may have written after the backup was taken had lower ones, so
/// no version of a route is ever taken for another.
pub const REVISION_AHEAD: u64 = 1_000_000_000;

/// The member that a new cluster begins with.
const NODE_ID: u64 = 1;
/// The term in which it would have been elected.
const TERM: u64 = 1;

/// What a new cluster is made from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The cluster that it was.
    pub cluster_id: String,
    /// All that it had agreed on.
    pub state: State,
    /// The log index of the last entry in it.
    pub applied_index: u64,
}

impl From<Backup> for Origin {
    fn from(backup: Backup) -> Self {
        Origin {
            cluster_id: backup.description.cluster_id,
            applied_index: backup.description.applied_index,
            state: backup.state,
        }
    }
}

impl Origin {
    /// Of a table alone, as a proxy keeps it: without sessions, without older ancestors, and with no route held.
    pub fn from_table(cluster_id: String, table: Table) -> Self {
        let state = State {
            holds: Holds::new(&table, [], []),
            table,
            ..State::default()
        };
        Origin {
            cluster_id,
            state,
            applied_index: 0,
        }
    }
}

/// The only member of the new cluster.
#[derive(Clone, Debug)]
pub struct Founder {
    /// Its name.
    pub name: String,
    /// Where the other replicas will reach it.
    pub peer_address: String,
    /// Where clients will reach it.
    pub client_address: String,
}

/// A cluster, besides the origin, whose proxies are to follow the new one: one that was made later than the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Its id.
    pub cluster_id: String,
    /// Its epoch.
    pub epoch: Epoch,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Founded {
    /// The new cluster's id.
    pub cluster_id: String,
    /// Those before it.
    pub lineage: Lineage,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its revision.
    pub revision: Revision,
    /// Its table's digest: the same routes as before, so the same digest.
    pub digest: Digest,
    /// How many routes it has.
    pub routes: u64,
}

/// Why no directory was made. Nothing was changed, and nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory.
    #[error(transparent)]
    Building(#[from] BuildingError),
    /// Only a file that nobody of us wrote can be so far.
    #[error("{field} {value}: leaves no room for a later one")]
    Exhausted {
        /// epoch or revision.
        field: &'static str,
        /// What it is.
        value: u64,
    },
}

/// Makes `data_dir`, which must be empty or missing, the directory of a new cluster's only member.
///
/// # Errors
/// [`RestoreError`]: the directory is as it was.
pub fn restore(
    origin: Origin,
    predecessors: &[Predecessor],
    data_dir: &Path,
    founder: &Founder,
) -> Result<Founded, RestoreError> {
    let founding = Founding::new(origin, predecessors)?;
    let building = Building::in_empty(data_dir)?;
    let (founded, _) = founding.build(building, data_dir, founder)?;
    Ok(founded)
}

/// A new cluster that is in no directory yet.
pub(crate) struct Founding {
    cluster_id: String,
    state: State,
    last: LogId,
}

impl Founding {
    /// Of the origin's state.
    ///
    /// # Errors
    /// [`RestoreError::Exhausted`].
    pub(crate) fn new(origin: Origin, predecessors: &[Predecessor]) -> Result<Self, RestoreError> {
        let exhausted = |field, value| RestoreError::Exhausted { field, value };
        let Origin {
            cluster_id,
            state,
            applied_index,
        } = origin;
        let epochs = predecessors.iter().map(|predecessor| predecessor.epoch.0);
        let newest = epochs.fold(state.table.epoch().0, u64::max);
        let epoch = newest.checked_add(1).ok_or_else(|| exhausted("epoch", newest))?;
        let revision = state.table.revision().0;
        let revision = revision
            .checked_add(REVISION_AHEAD)
            // There must be room for the writes to come as well.
            .filter(|ahead| ahead.checked_add(REVISION_AHEAD).is_some())
            .ok_or_else(|| exhausted("revision", revision))?;
        let index = applied_index.max(1);
        if index > u64::MAX / 2 {
            return Err(exhausted("applied_index", index));
        }
        let table = state.table.iter().map(|entry| entry.as_ref().clone());
        let table = Table::from_entries(Epoch(epoch), Revision(revision), table);
        let lineage = state.lineage.and(&cluster_id);
        let lineage = predecessors
            .iter()
            .fold(lineage, |lineage, predecessor| lineage.and(&predecessor.cluster_id));
        let state = State {
            // Whoever follows begins with a snapshot, so nobody will ask what was deleted before.
            history: History::new(&table, [], Revision(revision)),
            table,
            lineage,
            // In the new cluster no id was ever given to anybody else.
            node_id_max: NODE_ID,
            ..state
        };
        Ok(Founding {
            cluster_id: Uuid::new_v4().to_string(),
            state,
            last: LogId::new(
                LeaderId {
                    term: TERM,
                    node_id: NODE_ID,
                },
                index,
            ),
        })
    }

    /// Writes the directory, opens it as a replica would, and only then puts it in its place. Returns what was made, and
    /// where that is which was there before.
    ///
    /// # Errors
    /// [`BuildingError`]: the directory is as it was.
    pub(crate) fn build(
        self,
        building: Building,
        data_dir: &Path,
        founder: &Founder,
    ) -> Result<(Founded, Option<PathBuf>), BuildingError> {
        let write = |source: io::Error| BuildingError::Write {
            path: data_dir.to_owned(),
            source,
        };
        self.write(&building.path(), founder).map_err(write)?;
        self.check(&building.path(), founder).map_err(write)?;
        let before = building.finish()?;
        let table = &self.state.table;
        let founded = Founded {
            cluster_id: self.cluster_id,
            epoch: table.epoch(),
            revision: table.revision(),
            digest: table.digest(),
            routes: table.len() as u64,
            lineage: self.state.lineage.clone(),
        };
        Ok((founded, before))
    }

    fn write(&self, path: &Path, founder: &Founder) -> io::Result<()> {
        let open = |error: OpenError| io::Error::other(error);
        let store = Store::open(path).map_err(open)?;
        let store_uuid = Uuid::new_v4().to_string();
        let node = Node {
            name: founder.name.clone(),
            peer_address: founder.peer_address.clone(),
            client_address: founder.client_address.clone(),
            store_uuid: store_uuid.clone(),
        };
        let membership = Membership::new(vec![BTreeSet::from([NODE_ID])], BTreeMap::from([(NODE_ID, node)]));
        let membership = membership.map_err(io::Error::other)?;
        log::seed(&store, self.last)?;
        let (mut machine, _) = StateMachine::open(store.clone()).map_err(open)?;
        machine.seed(Position {
            state: self.state.clone(),
            applied: Some(self.last),
            membership: StoredMembership::new(Some(self.last), membership),
        })?;
        // The last thing: without an identity it would be a blank replica's directory.
        let identity = Identity {
            format: FORMAT,
            store_uuid,
            name: founder.name.clone(),
            cluster_id: self.cluster_id.clone(),
            node_id: NODE_ID,
            founders: Vec::new(),
        };
        store.save_identity(&identity).map_err(open)
    }

    fn check(&self, path: &Path, founder: &Founder) -> io::Result<()> {
        let store = Store::open(path).map_err(io::Error::other)?;
        let identity = store.identity(&founder.name).map_err(io::Error::other)?;
        let (_, published) = StateMachine::open(store.clone()).map_err(io::Error::other)?;
        LogStore::open(store)?;
        let found = published.load();
        let (found, meant) = (&found.state, &self.state);
        let same = found.digest() == meant.digest()
            && (found.table.epoch(), found.table.revision()) == (meant.table.epoch(), meant.table.revision())
            && found.sessions.len() == meant.sessions.len()
            && found.lineage == meant.lineage
            && identity.cluster_id == self.cluster_id;
        match same {
            true => Ok(()),
            false => Err(io::Error::other("it does not read back what was written into it")),
        }
    }
}

#[cfg(test)]
mod tests;

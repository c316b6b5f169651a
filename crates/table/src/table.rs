//! Table: apply a Batch, look up a request.

use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use crate::batch::{Batch, Change, Precondition};
use crate::delta::Delta;
use crate::digest::Digest;
use crate::path::{Host, RequestPath};
use crate::revision::{Epoch, Revision};
use crate::route::{Namespace, Route, RouteKey};
use crate::state::Rejection;

/// A route and the revision that wrote this version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The route.
    pub route: Route,
    /// The revision that wrote it.
    pub modified: Revision,
}

/// All routes at one revision.
///
/// Persistent: a clone shares everything with its original and costs nothing, and a change costs its own size. So the
/// table that requests are served from is never changed, only replaced.
#[derive(Clone, Debug, Default)]
pub struct Table {
    epoch: Epoch,
    revision: Revision,
    digest: Digest,
    entries: HashMap<RouteKey, Arc<Entry>>,
    // How many routes have so many segments, with a host and without: a lookup probes only depths that exist.
    host_depths: OrdMap<usize, usize>,
    path_depths: OrdMap<usize, usize>,
}

/// A delta that does not fit the table. The table is unchanged; ask for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// The delta starts at another revision than the table's, or does not lead onwards.
    #[error("a delta from revision {from} to {to} does not fit a table at revision {at}")]
    Gap {
        /// The delta's start.
        from: Revision,
        /// The delta's end.
        to: Revision,
        /// The table's revision.
        at: Revision,
    },
}

impl Table {
    /// A table as a snapshot describes it.
    pub fn from_entries(epoch: Epoch, revision: Revision, entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut table = Table {
            epoch,
            revision,
            ..Table::default()
        };
        for entry in entries {
            table.insert(Arc::new(entry));
        }
        table
    }

    /// Rises only when an operator restores or recovers.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many batches have changed the table.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The digest, kept up to date with every change.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The digest computed from scratch, to be compared with [`digest`](Self::digest). Costs the whole table.
    pub fn recompute_digest(&self) -> Digest {
        let mut digest = Digest::default();
        self.entries.values().for_each(|entry| digest.add(entry));
        digest
    }

    /// How many routes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is no route.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The route with exactly this key.
    pub fn get(&self, key: &RouteKey) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    /// Every route, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// Every route, sorted by the hub's spelling.
    pub fn sorted(&self) -> Vec<Arc<Entry>> {
        let mut entries: Vec<_> = self.entries.values().cloned().collect();
        entries.sort_unstable_by(|a, b| a.route.spec.as_str().cmp(b.route.spec.as_str()));
        entries
    }

    /// Which route takes a request: whole segments, longest first, routes of the host before routes without one.
    pub fn lookup(&self, host: Option<&Host<'_>>, path: &RequestPath<'_>) -> Option<&Arc<Entry>> {
        let on_host = host.filter(|_| !self.host_depths.is_empty()).and_then(|host| {
            let full = format!("{}{}", host.as_str(), path.as_str());
            self.probe(&self.host_depths, &full, host.as_str().len(), path)
        });
        on_host.or_else(|| self.probe(&self.path_depths, path.as_str(), 0, path))
    }

    fn probe(
        &self,
        depths: &OrdMap<usize, usize>,
        full: &str,
        offset: usize,
        path: &RequestPath<'_>,
    ) -> Option<&Arc<Entry>> {
        let (deepest, _) = depths.get_max()?;
        let ends = path.boundaries(*deepest);
        let present = depths.range(..ends.len()).rev();
        present
            .map(|(depth, _)| &full[..offset + ends[*depth]])
            .find_map(|prefix| self.entries.get(prefix))
    }

    /// Applies a batch: all of it or nothing, one revision if anything changed.
    ///
    /// Pure: the same table and batch give the same result on every replica.
    ///
    /// # Errors
    /// [`Rejection`]: the table is unchanged.
    pub fn apply(&mut self, batch: &Batch) -> Result<Delta, Rejection> {
        self.replace(batch).map(|(delta, _)| delta)
    }

    /// [`apply`](Self::apply); returns the versions that are no more, too.
    pub(crate) fn replace(&mut self, batch: &Batch) -> Result<(Delta, Vec<Arc<Entry>>), Rejection> {
        self.check(batch)?;
        let from = self.revision;
        let to = from.next();
        let mut delta = Delta {
            from,
            to,
            puts: Vec::new(),
            deletes: Vec::new(),
        };
        let mut replaced = Vec::new();
        for change in batch.changes() {
            let present = self.entries.get(change.key());
            match change {
                Change::Put(route) if present.is_none_or(|entry| entry.route != *route) => {
                    let entry = Arc::new(Entry {
                        route: route.clone(),
                        modified: to,
                    });
                    replaced.extend(self.insert(entry.clone()));
                    delta.puts.push(entry);
                }
                Change::Put(_) => {}
                Change::Delete(spec) => {
                    if let Some(entry) = self.remove(spec.key()) {
                        delta.deletes.push(entry.route.spec.clone());
                        replaced.push(entry);
                    }
                }
            }
        }
        if delta.is_empty() {
            delta.to = from;
        }
        self.revision = delta.to;
        Ok((delta, replaced))
    }

    /// True if [`apply`](Self::apply) would succeed and change nothing: then the batch needs no log entry.
    pub fn is_noop(&self, batch: &Batch) -> bool {
        self.check(batch).is_ok()
            && batch
                .changes()
                .iter()
                .all(|change| match (change, self.entries.get(change.key())) {
                    (Change::Put(route), Some(entry)) => entry.route == *route,
                    (Change::Put(_), None) => false,
                    (Change::Delete(_), present) => present.is_none(),
                })
    }

    /// Follows the cluster by one delta.
    ///
    /// # Errors
    /// [`DeltaError`]: the table is unchanged.
    pub fn apply_delta(&mut self, delta: &Delta) -> Result<(), DeltaError> {
        if delta.from != self.revision || delta.to < delta.from {
            return Err(DeltaError::Gap {
                from: delta.from,
                to: delta.to,
                at: self.revision,
            });
        }
        for spec in &delta.deletes {
            self.remove(spec.key());
        }
        for entry in &delta.puts {
            self.insert(entry.clone());
        }
        self.revision = delta.to;
        Ok(())
    }

    fn check(&self, batch: &Batch) -> Result<(), Rejection> {
        for precondition in batch.preconditions() {
            match precondition {
                Precondition::TableRevision(expected) if *expected != self.revision => {
                    return Err(Rejection::TableRevision {
                        expected: *expected,
                        found: self.revision,
                    });
                }
                Precondition::TableRevision(_) => {}
                Precondition::RouteRevision(spec, expected) => {
                    let found = self.entries.get(spec.key()).map_or(Revision(0), |entry| entry.modified);
                    if found != *expected {
                        return Err(Rejection::RouteRevision {
                            routespec: spec.as_str().to_owned(),
                            expected: *expected,
                            found,
                        });
                    }
                }
            }
        }
        for change in batch.changes() {
            if let Some(entry) = self.entries.get(change.key())
                && entry.route.namespace != *batch.namespace()
            {
                return Err(Rejection::Namespace {
                    routespec: entry.route.spec.as_str().to_owned(),
                    owner: entry.route.namespace.clone(),
                });
            }
        }
        Ok(())
    }

    fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let key = entry.route.spec.key().clone();
        self.digest.add(&entry);
        let replaced = self.entries.insert(key.clone(), entry);
        match &replaced {
            Some(replaced) => self.digest.remove(replaced),
            None => *self.depths(&key).entry(key.depth()).or_insert(0) += 1,
        }
        replaced
    }

    fn remove(&mut self, key: &RouteKey) -> Option<Arc<Entry>> {
        let removed = self.entries.remove(key)?;
        self.digest.remove(&removed);
        let depth = key.depth();
        let depths = self.depths(key);
        match depths.get(&depth) {
            Some(count) if *count > 1 => drop(depths.insert(depth, count - 1)),
            _ => drop(depths.remove(&depth)),
        }
        Some(removed)
    }

    fn depths(&mut self, key: &RouteKey) -> &mut OrdMap<usize, usize> {
        if key.has_host() {
            &mut self.host_depths
        } else {
            &mut self.path_depths
        }
    }

    /// Routes of one namespace.
    pub fn count(&self, namespace: &Namespace) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.route.namespace == *namespace)
            .count()
    }
}

#[cfg(test)]
mod tests;

//! Table: apply a Batch, look up a request.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
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

/// An entry that is found by its route's key.
#[derive(Clone, Debug)]
struct Keyed(Arc<Entry>);

impl Borrow<str> for Keyed {
    fn borrow(&self) -> &str {
        self.0.route.spec.key().as_str()
    }
}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<str>::borrow(self).hash(state);
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.0.route.spec.key() == other.0.route.spec.key()
    }
}

impl Eq for Keyed {}

/// All routes at one revision.
///
/// Persistent: a clone shares everything with its original and costs nothing, and a change costs its own size. So the
/// table that requests are served from is never changed, only replaced.
#[derive(Clone, Debug, Default)]
pub struct Table {
    epoch: Epoch,
    revision: Revision,
    digest: Digest,
    // The values are in the keys: half of the places of such a map are empty, so they have to be small.
    entries: HashMap<Keyed, ()>,
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
        table.extend(entries);
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
        self.iter().for_each(|entry| digest.add(entry.as_ref()));
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
        self.find(key.as_str())
    }

    fn find(&self, key: &str) -> Option<&Arc<Entry>> {
        self.entries.get_key_value(key).map(|(Keyed(entry), ())| entry)
    }

    /// Every route, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.keys().map(|Keyed(entry)| entry)
    }

    /// Every route, sorted by the hub's spelling.
    pub fn sorted(&self) -> Vec<Arc<Entry>> {
        let mut entries: Vec<_> = self.iter().cloned().collect();
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
            .find_map(|prefix| self.find(prefix))
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
        self.check(batch, |_| false)?;
        let (mut puts, mut deleted) = (Vec::new(), Vec::new());
        for change in self.effective(batch, |_| false) {
            match change {
                Change::Put(route) => puts.push(route.clone()),
                Change::Delete(spec) => deleted.extend(self.get(spec.key()).cloned()),
            }
        }
        if !puts.is_empty() || !deleted.is_empty() {
            return Ok(self.commit(puts, &deleted));
        }
        let nothing = Delta {
            from: self.revision,
            to: self.revision,
            puts: Vec::new(),
            deletes: Vec::new(),
        };
        Ok((nothing, Vec::new()))
    }

    /// True if [`apply`](Self::apply) would succeed and change nothing: then the batch needs no log entry.
    pub fn is_noop(&self, batch: &Batch) -> bool {
        self.check(batch, |_| false).is_ok() && self.effective(batch, |_| false).next().is_none()
    }

    /// The changes of a batch that would change anything, to somebody for whom hidden routes are not there.
    pub(crate) fn effective<'a>(
        &self,
        batch: &'a Batch,
        hidden: impl Fn(&RouteKey) -> bool,
    ) -> impl Iterator<Item = &'a Change> {
        batch.changes().iter().filter(move |change| {
            let present = self.get(change.key()).filter(|_| !hidden(change.key()));
            match change {
                Change::Put(route) => present.is_none_or(|entry| entry.route != *route),
                Change::Delete(_) => present.is_some(),
            }
        })
    }

    /// Makes these changes, of routes that are all different, and a revision even if there are none. Returns the versions
    /// that are no more, too.
    pub(crate) fn commit(&mut self, puts: Vec<Route>, deleted: &[Arc<Entry>]) -> (Delta, Vec<Arc<Entry>>) {
        let (from, to) = (self.revision, self.revision.next());
        let mut replaced = Vec::new();
        for entry in deleted {
            replaced.extend(self.remove(entry.route.spec.key()));
        }
        let deletes = replaced.iter().map(|entry| entry.route.spec.clone()).collect();
        let puts = puts.into_iter().map(|route| Arc::new(Entry { route, modified: to }));
        let puts: Vec<_> = puts.collect();
        for entry in &puts {
            replaced.extend(self.insert(entry.clone()));
        }
        self.revision = to;
        let delta = Delta {
            from,
            to,
            puts,
            deletes,
        };
        (delta, replaced)
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

    /// Whether a batch may be applied, to somebody for whom hidden routes are not there.
    pub(crate) fn check(&self, batch: &Batch, hidden: impl Fn(&RouteKey) -> bool) -> Result<(), Rejection> {
        let get = |key: &RouteKey| self.get(key).filter(|_| !hidden(key));
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
                    let found = get(spec.key()).map_or(Revision(0), |entry| entry.modified);
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
            if let Some(entry) = get(change.key())
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
        self.digest.add(entry.as_ref());
        let replaced = self.get(&key).cloned();
        self.entries.insert(Keyed(entry), ());
        match &replaced {
            Some(replaced) => self.digest.remove(replaced.as_ref()),
            None => *self.depths(&key).entry(key.depth()).or_insert(0) += 1,
        }
        replaced
    }

    fn remove(&mut self, key: &RouteKey) -> Option<Arc<Entry>> {
        let (Keyed(removed), ()) = self.entries.remove_with_key(key.as_str())?;
        self.digest.remove(removed.as_ref());
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
        self.iter().filter(|entry| entry.route.namespace == *namespace).count()
    }
}

/// With more of what the same snapshot describes: the revision stays.
impl Extend<Entry> for Table {
    fn extend<I: IntoIterator<Item = Entry>>(&mut self, entries: I) {
        for entry in entries {
            self.insert(Arc::new(entry));
        }
    }
}

#[cfg(test)]
mod tests;

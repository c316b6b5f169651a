//! Batch: what a client may ask for, with its preconditions.

use std::collections::HashSet;

use crate::fence::HubEpoch;
use crate::revision::Revision;
use crate::route::{FieldError, Namespace, Route, RouteKey, RouteSpec};

/// The most changes in one batch.
pub const CHANGES_MAX: usize = 100_000;
/// The most bytes in one batch, counted over all routespecs, targets, data and namespaces.
pub const BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most preconditions in one batch.
pub const PRECONDITIONS_MAX: usize = CHANGES_MAX;

/// One change of one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds the route or replaces it whole.
    Put(Route),
    /// Removes the route; one that is not there is fine.
    Delete(RouteSpec),
}

impl Change {
    /// Which route.
    pub fn key(&self) -> &RouteKey {
        match self {
            Change::Put(route) => route.spec.key(),
            Change::Delete(spec) => spec.key(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Change::Put(route) => route.size(),
            Change::Delete(spec) => spec.as_str().len(),
        }
    }
}

/// Must hold at the moment the batch is applied, or the batch changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The route was last written at this revision; `Revision(0)`: it is absent.
    RouteRevision(RouteSpec, Revision),
    /// The table is at this revision.
    TableRevision(Revision),
}

/// Changes that are applied all together or not at all, as one revision, for one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    namespace: Namespace,
    changes: Vec<Change>,
    preconditions: Vec<Precondition>,
    hub: Option<HubEpoch>,
    deletes_expected: usize,
    deletes_to_come: usize,
    retry: bool,
}

/// Why a batch cannot be asked for. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A field of a change.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// Split it.
    #[error("changes: {0} in one batch, at most {CHANGES_MAX}: send several batches")]
    TooManyChanges(usize),
    /// Likewise.
    #[error("preconditions: {0} in one batch, at most {PRECONDITIONS_MAX}: send several batches")]
    TooManyPreconditions(usize),
    /// Split it.
    #[error("changes: {0} bytes in one batch, at most {BYTES_MAX}: send several batches")]
    TooLarge(usize),
    /// Which one should win is not ours to guess.
    #[error("routespec {0:?}: appears twice in one batch")]
    Duplicate(String),
    /// A batch writes for one namespace only.
    #[error("namespace {found:?}: route {spec:?} is in a batch for namespace {expected:?}")]
    Namespace {
        /// The route's routespec.
        spec: String,
        /// The route's namespace.
        found: String,
        /// The batch's.
        expected: String,
    },
}

impl Batch {
    /// Checks the bounds and that no route is changed twice.
    ///
    /// # Errors
    /// [`BatchError`]: nothing is changed; mend or split the batch.
    pub fn new(
        namespace: Namespace,
        changes: Vec<Change>,
        preconditions: Vec<Precondition>,
    ) -> Result<Self, BatchError> {
        if changes.len() > CHANGES_MAX {
            return Err(BatchError::TooManyChanges(changes.len()));
        }
        if preconditions.len() > PRECONDITIONS_MAX {
            return Err(BatchError::TooManyPreconditions(preconditions.len()));
        }
        let bytes = changes.iter().map(Change::size).sum();
        if bytes > BYTES_MAX {
            return Err(BatchError::TooLarge(bytes));
        }
        let mut keys = HashSet::with_capacity(changes.len());
        for change in &changes {
            if !keys.insert(change.key()) {
                return Err(BatchError::Duplicate(change.key().as_str().to_owned()));
            }
            if let Change::Put(route) = change
                && route.namespace != namespace
            {
                return Err(BatchError::Namespace {
                    spec: route.spec.as_str().to_owned(),
                    found: route.namespace.as_str().to_owned(),
                    expected: namespace.as_str().to_owned(),
                });
            }
        }
        Ok(Batch::known(namespace, changes, preconditions))
    }

    /// A batch that was [checked](Self::new) when it was written, and comes from the log.
    pub fn known(namespace: Namespace, changes: Vec<Change>, preconditions: Vec<Precondition>) -> Self {
        Batch {
            namespace,
            changes,
            preconditions,
            hub: None,
            deletes_expected: 0,
            deletes_to_come: 0,
            retry: false,
        }
    }

    /// The same batch, refused once a newer hub has taken the namespace over.
    #[must_use]
    pub fn by_hub(self, epoch: HubEpoch) -> Self {
        Batch {
            hub: Some(epoch),
            ..self
        }
    }

    /// The same batch, from somebody who knows that it removes so many routes, and means it: no more, and none of them is
    /// held.
    #[must_use]
    pub fn expecting(self, deletes: usize) -> Self {
        Batch {
            deletes_expected: deletes,
            ..self
        }
    }

    /// The same batch, one of several for one purpose: those that follow remove so many routes more, and it is judged with
    /// them.
    #[must_use]
    pub fn followed_by(self, deletes: usize) -> Self {
        Batch {
            deletes_to_come: deletes,
            ..self
        }
    }

    /// The same batch, which was sent before in the same session and sequence, and got no answer.
    #[must_use]
    pub fn retried(self) -> Self {
        Batch { retry: true, ..self }
    }

    /// Adds or replaces one route.
    pub fn put(route: Route) -> Self {
        Batch::known(route.namespace.clone(), vec![Change::Put(route)], Vec::new())
    }

    /// Removes one route.
    pub fn delete(namespace: Namespace, spec: RouteSpec) -> Self {
        Batch::known(namespace, vec![Change::Delete(spec)], Vec::new())
    }

    /// On whose behalf.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What to change.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Which hub asks; `None` for anybody else, whom no fence keeps out.
    pub fn hub(&self) -> Option<HubEpoch> {
        self.hub
    }

    /// How many routes it is known to remove; 0: nobody has said anything.
    pub fn deletes_expected(&self) -> usize {
        self.deletes_expected
    }

    /// How many routes the batches remove that belong to this one and follow it.
    pub fn deletes_to_come(&self) -> usize {
        self.deletes_to_come
    }

    /// True if it may have been applied before.
    pub fn is_retry(&self) -> bool {
        self.retry
    }

    /// What must hold.
    pub fn preconditions(&self) -> &[Precondition] {
        &self.preconditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(spec: &str, data: &str) -> Change {
        Change::Put(Route::parse(spec, "http://10.0.0.1:80", data, "").unwrap())
    }

    #[test]
    fn a_batch_over_its_bounds_is_refused_whole() {
        let many = (0..=CHANGES_MAX).map(|n| route(&format!("/{n}/"), "")).collect();
        assert_eq!(
            Batch::new(Namespace::default(), many, vec![]).unwrap_err(),
            BatchError::TooManyChanges(CHANGES_MAX + 1)
        );
        let data = format!("{{\"x\":\"{}\"}}", "y".repeat(60_000));
        let large = (0..300).map(|n| route(&format!("/{n}/"), &data)).collect();
        assert!(matches!(
            Batch::new(Namespace::default(), large, vec![]),
            Err(BatchError::TooLarge(_))
        ));
    }

    #[test]
    fn two_spellings_of_one_route_in_a_batch_are_refused() {
        let changes = vec![route("/user/%40a/", ""), route("/user/@a/", "")];
        assert_eq!(
            Batch::new(Namespace::default(), changes, vec![]).unwrap_err(),
            BatchError::Duplicate("/user/@a".into())
        );
    }

    #[test]
    fn a_route_of_another_namespace_is_refused() {
        let error = Batch::new(Namespace::parse("other").unwrap(), vec![route("/a/", "")], vec![]).unwrap_err();
        assert!(matches!(error, BatchError::Namespace { .. }), "{error}");
    }
}

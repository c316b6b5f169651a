//! Delta: what a range of revisions changed.

use std::sync::Arc;

use crate::revision::Revision;
use crate::route::RouteSpec;
use crate::table::Entry;

/// Everything that differs between the table at `from` and at `to`: each changed route once, with its latest version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The revision it can be applied to, and to no other.
    pub from: Revision,
    /// The revision it leads to.
    pub to: Revision,
    /// Routes added or replaced.
    pub puts: Vec<Arc<Entry>>,
    /// Routes removed.
    pub deletes: Vec<RouteSpec>,
}

impl Delta {
    /// How many routes it touches.
    pub fn len(&self) -> usize {
        self.puts.len() + self.deletes.len()
    }

    /// True if it touches no route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

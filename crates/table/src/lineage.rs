//! Lineage: the clusters that this one descends from, by restore or forced recovery.

use std::sync::Arc;

/// The most ancestors remembered; beyond, the oldest is forgotten, and who still holds its table must be emptied by hand.
pub const ANCESTORS_MAX: usize = 16;

/// The ids of the clusters before this one, oldest first. A clone costs nothing.
///
/// Who holds the table of an ancestor may go on with this cluster's; who holds any other cluster's may not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage(Arc<[String]>);

impl Lineage {
    /// Of these ids, oldest first; the oldest are dropped if there are too many.
    pub fn new(ancestors: impl IntoIterator<Item = String>) -> Self {
        let mut kept: Vec<String> = Vec::new();
        for ancestor in ancestors.into_iter().filter(|ancestor| !ancestor.is_empty()) {
            // Named again, it counts where it was named last.
            kept.retain(|known| *known != ancestor);
            kept.push(ancestor);
        }
        let surplus = kept.len().saturating_sub(ANCESTORS_MAX);
        Lineage(kept.drain(surplus..).collect())
    }

    /// The lineage of a cluster made from the one called `parent`, whose lineage this is.
    #[must_use]
    pub fn and(&self, parent: &str) -> Self {
        Lineage::new(self.0.iter().cloned().chain([parent.to_owned()]))
    }

    /// True if the cluster called `id` is an ancestor.
    pub fn contains(&self, id: &str) -> bool {
        self.0.iter().any(|ancestor| ancestor == id)
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Oldest first, as messages carry it.
    pub fn to_vec(&self) -> Vec<String> {
        self.0.to_vec()
    }

    /// True for a cluster that was formed by its replicas, not from another's data.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lineage_is_bounded_and_names_each_ancestor_once() {
        let lineage = Lineage::default().and("a").and("b").and("a").and("");
        assert_eq!(lineage.iter().collect::<Vec<_>>(), ["b", "a"]);
        assert!(lineage.contains("a") && !lineage.contains("c") && !lineage.contains(""));
        let long = (0..20).fold(Lineage::default(), |lineage, n| lineage.and(&n.to_string()));
        assert_eq!(long.to_vec().len(), ANCESTORS_MAX);
        assert_eq!(
            (long.contains("3"), long.contains("4"), long.contains("19")),
            (false, true, true)
        );
    }
}

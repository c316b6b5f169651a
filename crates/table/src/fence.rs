//! Fence: the newest hub of a namespace writes, and none of its predecessors.
//!
//! A hub that is restarted opens its namespace and is given an epoch. What its predecessor had still under way carries
//! an older one, and is refused by whoever applies it, however late it comes (Kleppmann's fencing token).

use imbl::OrdMap;

use crate::route::Namespace;
use crate::state::Rejection;

/// The most namespaces that hubs have opened.
pub const HUBS_MAX: usize = 1_000;

/// Chosen by a hub's process at random.
pub type HubId = [u8; 16];

/// Counts the hubs that have opened a namespace, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HubEpoch(pub u64);

/// The newest hub of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its epoch.
    pub epoch: HubEpoch,
    /// Which process it is.
    pub id: HubId,
}

/// The newest hub of each namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hubs(OrdMap<Namespace, Hub>);

impl Hubs {
    /// The hubs that a snapshot names.
    pub fn new(hubs: impl IntoIterator<Item = (Namespace, Hub)>) -> Self {
        Hubs(hubs.into_iter().collect())
    }

    /// Fences whoever opened the namespace before. Asked again by the same hub, it is the same epoch.
    ///
    /// # Errors
    /// [`Rejection::TooManyHubs`]: nothing changed.
    pub fn open(&mut self, namespace: &Namespace, id: HubId) -> Result<HubEpoch, Rejection> {
        let present = self.0.get(namespace);
        if let Some(hub) = present.filter(|hub| hub.id == id) {
            return Ok(hub.epoch);
        }
        if present.is_none() && self.0.len() >= HUBS_MAX {
            return Err(Rejection::TooManyHubs);
        }
        let epoch = HubEpoch(present.map_or(1, |hub| hub.epoch.0 + 1));
        self.0.insert(namespace.clone(), Hub { epoch, id });
        Ok(epoch)
    }

    /// Refuses a hub that is not the namespace's newest.
    ///
    /// # Errors
    /// [`Rejection::Fenced`]: another hub has taken over. [`Rejection::HubUnknown`]: the epoch was never given, as after
    /// a restore.
    pub fn check(&self, namespace: &Namespace, epoch: HubEpoch) -> Result<(), Rejection> {
        let newest = self.0.get(namespace).map_or(HubEpoch(0), |hub| hub.epoch);
        match epoch.cmp(&newest) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(Rejection::Fenced {
                namespace: namespace.clone(),
                newest,
                found: epoch,
            }),
            std::cmp::Ordering::Greater => Err(Rejection::HubUnknown {
                namespace: namespace.clone(),
                found: epoch,
            }),
        }
    }

    /// Every namespace's newest, by namespace.
    pub fn iter(&self) -> impl Iterator<Item = (&Namespace, &Hub)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_hub_writes_and_no_other() {
        let (mut hubs, here) = (Hubs::default(), Namespace::default());
        let there = Namespace::parse("other").unwrap();
        let first = hubs.open(&here, [1; 16]).unwrap();
        assert_eq!(hubs.open(&here, [1; 16]), Ok(first), "a repeated call is the same hub");
        assert_eq!(hubs.check(&here, first), Ok(()));
        let second = hubs.open(&here, [2; 16]).unwrap();
        assert!(second > first);
        assert!(matches!(hubs.check(&here, first), Err(Rejection::Fenced { .. })));
        assert_eq!(hubs.check(&here, second), Ok(()));
        assert!(matches!(hubs.check(&there, second), Err(Rejection::HubUnknown { .. })));
        let back = hubs.open(&here, [1; 16]).unwrap();
        assert!(back > second, "a hub that comes back is a new one");
        assert_eq!(Hubs::new(hubs.iter().map(|(name, hub)| (name.clone(), *hub))), hubs);
    }

    #[test]
    fn namespaces_are_bounded() {
        let mut hubs = Hubs::default();
        for n in 0..HUBS_MAX {
            hubs.open(&Namespace::parse(&format!("n{n}")).unwrap(), [1; 16])
                .unwrap();
        }
        assert_eq!(hubs.open(&Namespace::default(), [1; 16]), Err(Rejection::TooManyHubs));
        assert!(hubs.open(&Namespace::parse("n0").unwrap(), [2; 16]).is_ok());
    }
}

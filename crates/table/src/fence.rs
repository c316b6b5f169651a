//! Fence: the newest hub of a namespace writes, and none of its predecessors.
//!
//! A hub that is restarted opens its namespace and is given an epoch. What its predecessor had still under way carries
//! an older one, and is refused by whoever applies it, however late it comes (Kleppmann's fencing token). So is its call to
//! open the namespace itself: a late copy of that one must not fence the newest hub.

use imbl::OrdMap;

use crate::route::Namespace;
use crate::state::Rejection;

/// The most namespaces that hubs have opened.
pub const HUBS_MAX: usize = 1_000;

/// How many hubs before the newest one are remembered. They are written with every entry that is applied, and a copy would
/// have to be late by so many restarts of the hub to be taken for a new one.
pub const PREDECESSORS_MAX: usize = 16;

/// Chosen by a hub's process at random.
pub type HubId = [u8; 16];

/// Counts the hubs that have opened a namespace, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HubEpoch(pub u64);

/// The newest hub of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its epoch.
    pub epoch: HubEpoch,
    /// Which process it is.
    pub id: HubId,
    /// Those before it, the last one first; each had an epoch one lower.
    pub predecessors: Vec<HubId>,
}

impl Hub {
    fn first(id: HubId) -> Self {
        Hub {
            epoch: HubEpoch(1),
            id,
            predecessors: Vec::new(),
        }
    }

    fn succeeded_by(&mut self, id: HubId) -> HubEpoch {
        self.predecessors.insert(0, std::mem::replace(&mut self.id, id));
        self.predecessors.truncate(PREDECESSORS_MAX);
        self.epoch.0 += 1;
        self.epoch
    }

    /// The epoch that an earlier hub was given.
    fn epoch_of(&self, earlier: &HubId) -> Option<HubEpoch> {
        let back = self.predecessors.iter().position(|id| id == earlier)?;
        Some(HubEpoch(self.epoch.0.saturating_sub(back as u64 + 1)))
    }
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
    /// Nothing changed. [`Rejection::Fenced`]: the hub had the namespace, and another one has taken it over since.
    /// [`Rejection::TooManyHubs`].
    pub fn open(&mut self, namespace: &Namespace, id: HubId) -> Result<HubEpoch, Rejection> {
        let namespaces = self.0.len();
        let Some(hub) = self.0.get_mut(namespace) else {
            if namespaces >= HUBS_MAX {
                return Err(Rejection::TooManyHubs);
            }
            let hub = Hub::first(id);
            let epoch = hub.epoch;
            self.0.insert(namespace.clone(), hub);
            return Ok(epoch);
        };
        if hub.id == id {
            return Ok(hub.epoch);
        }
        match hub.epoch_of(&id) {
            Some(found) => Err(Rejection::Fenced {
                namespace: namespace.clone(),
                newest: hub.epoch,
                found,
            }),
            None => Ok(hub.succeeded_by(id)),
        }
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
        let third = hubs.open(&here, [3; 16]).unwrap();
        for (earlier, id) in [(first, [1; 16]), (second, [2; 16])] {
            let late = Rejection::Fenced {
                namespace: here.clone(),
                newest: third,
                found: earlier,
            };
            assert_eq!(hubs.open(&here, id), Err(late), "a late copy takes nothing over");
            assert_eq!(hubs.check(&here, third), Ok(()));
        }
        assert_eq!(
            Hubs::new(hubs.iter().map(|(name, hub)| (name.clone(), hub.clone()))),
            hubs
        );
    }

    #[test]
    fn so_many_predecessors_are_remembered_and_no_more() {
        let (mut hubs, here) = (Hubs::default(), Namespace::default());
        let id = |n: usize| [u8::try_from(n).unwrap(); 16];
        for n in 0..=PREDECESSORS_MAX + 1 {
            assert_eq!(hubs.open(&here, id(n)), Ok(HubEpoch(n as u64 + 1)));
        }
        assert!(matches!(
            hubs.open(&here, id(1)),
            Err(Rejection::Fenced { found: HubEpoch(2), .. })
        ));
        assert!(hubs.open(&here, id(0)).is_ok());
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

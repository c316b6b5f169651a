//! Held: deletions that look like an accident wait for an operator's word.
//!
//! A hub that lost its database deletes every route that it does not know. Such a deletion is acknowledged, and to whoever
//! writes and lists the route is gone; but it stays in the table, which proxies serve from, until the hold ends.

use imbl::{HashMap, OrdMap, OrdSet};

use crate::batch::Batch;
use crate::digest::Digest;
use crate::losses::{Loss, Losses};
use crate::route::{Namespace, Route, RouteKey};
use crate::table::{Entry, Table};

/// The most routes held; deletions that would be more are not held, so that who puts and deletes ever other routes does
/// not fill the memory with them.
pub const HELD_MAX: usize = 250_000;

/// The most holds that are ended at once when their time is over: by a small entry, which is not expected to take long.
pub const EXPIRED_MAX: usize = 1_000;

/// When deletions are held, and for how long. A batch that would lose its namespace more than both bounds allow within the
/// window, together with those that belong to it and follow, is held with all of its deletions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldPolicy {
    /// So many routes may always go.
    pub routes_max: u64,
    /// So many of a hundred may go, of those that the namespace had when the window began.
    pub percent_max: u64,
    /// How long a loss counts.
    pub window_ms: u64,
    /// A hold ends by itself after this, and the route goes.
    pub hold_ms: u64,
}

impl HoldPolicy {
    /// More than 10 and more than a quarter within a minute are held for ten minutes.
    pub const DEFAULT: HoldPolicy = HoldPolicy {
        routes_max: 10,
        percent_max: 25,
        window_ms: 60_000,
        hold_ms: 600_000,
    };
}

/// What the leader notes on a command when it proposes it, for `apply` has neither clock nor settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Its clock, Unix milliseconds.
    pub time_ms: u64,
    /// The policy that it goes by; `None`: no deletion is held.
    pub policy: Option<HoldPolicy>,
}

/// A deletion that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// When the route was deleted, by the leader's clock.
    pub since_ms: u64,
    /// When the route goes unless somebody decides before.
    pub until_ms: u64,
}

/// What an operator says about a route that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It was meant to be deleted: it goes now.
    Confirm,
    /// It was not: it is listed again, in the version that it had.
    Reject,
}

/// What becomes of the deletions of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They are made, and count for nothing.
    Expected,
    /// They are made, and count.
    Counted,
    /// They count, and wait.
    Held(Hold),
}

/// Which routes of a table are held, and what it takes to decide that.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    held: OrdMap<RouteKey, Hold>,
    digest: Digest,
    by_end: OrdSet<(u64, RouteKey)>,
    by_address: OrdMap<String, OrdSet<RouteKey>>,
    // Of the routes that are not held: how many lead to an address, and how many a namespace has.
    addresses: HashMap<String, usize>,
    shown: OrdMap<Namespace, usize>,
    losses: Losses,
}

impl Holds {
    /// Of a table that comes from a snapshot or the disk. A hold of a route that is not in it is left out.
    pub fn new(
        table: &Table,
        held: impl IntoIterator<Item = (RouteKey, Hold)>,
        losses: impl IntoIterator<Item = Loss>,
    ) -> Self {
        let mut holds = Holds::default();
        table.iter().for_each(|entry| holds.add(&entry.route));
        for (key, hold) in held {
            if let Some(entry) = table.get(&key) {
                holds.remove(entry);
                holds.hold(entry, hold);
            }
        }
        for loss in losses {
            holds.losses.note(loss);
        }
        holds
    }

    /// True if the route's deletion waits: to writers it is not there.
    pub fn contains(&self, key: &RouteKey) -> bool {
        self.held.contains_key(key)
    }

    /// The hold of a route.
    pub fn get(&self, key: &RouteKey) -> Option<&Hold> {
        self.held.get(key)
    }

    /// Every hold, by route.
    pub fn iter(&self) -> impl Iterator<Item = (&RouteKey, &Hold)> {
        self.held.iter()
    }

    /// How many routes are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A hash of all holds; of none it is zero.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// When the first hold ends by itself; `None` without any.
    pub fn first_end_ms(&self) -> Option<u64> {
        self.by_end.get_min().map(|(until_ms, _)| *until_ms)
    }

    /// The routes whose holds have ended by then, the first [`EXPIRED_MAX`] of them.
    pub(crate) fn ended(&self, now_ms: u64) -> Vec<RouteKey> {
        let ends = self.by_end.iter();
        let ended = ends.take_while(|(until_ms, _)| *until_ms <= now_ms);
        ended.map(|(_, key)| key.clone()).take(EXPIRED_MAX).collect()
    }

    /// What was lost lately.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    pub(crate) fn losses_mut(&mut self) -> &mut Losses {
        &mut self.losses
    }

    /// Decides about so many deletions, all that a batch really makes.
    pub(crate) fn judge(&self, stamp: &Stamp, batch: &Batch, deletions: usize) -> Verdict {
        let Some(policy) = stamp.policy.filter(|_| deletions > batch.deletes_expected()) else {
            return Verdict::Expected;
        };
        let namespace = batch.namespace();
        let before = self.losses.count(namespace);
        let lost = (before + deletions).saturating_add(batch.deletes_to_come()) as u64;
        let had = (before + self.shown.get(namespace).copied().unwrap_or(0)) as u64;
        let too_many = lost > policy.routes_max && lost.saturating_mul(100) > had.saturating_mul(policy.percent_max);
        match too_many && self.held.len() + deletions <= HELD_MAX {
            true => Verdict::Held(Hold {
                since_ms: stamp.time_ms,
                until_ms: stamp.time_ms.saturating_add(policy.hold_ms),
            }),
            false => Verdict::Counted,
        }
    }

    /// Takes in a route that is not held.
    pub(crate) fn add(&mut self, route: &Route) {
        *self.addresses.entry(route.target.address().to_owned()).or_insert(0) += 1;
        *self.shown.entry(route.namespace.clone()).or_insert(0) += 1;
    }

    /// Takes in a route, in the place of one that was held or not.
    pub(crate) fn replace(&mut self, before: &Entry, route: &Route) {
        // As almost always: of what is kept here, nothing changes.
        if !self.contains(before.route.spec.key())
            && before.route.target.address() == route.target.address()
            && before.route.namespace == route.namespace
        {
            return;
        }
        self.remove(before);
        self.add(route);
    }

    /// Holds a route that was [removed](Self::remove).
    pub(crate) fn hold(&mut self, entry: &Entry, hold: Hold) {
        let key = entry.route.spec.key();
        self.digest.add((key, &hold));
        self.held.insert(key.clone(), hold);
        self.by_end.insert((hold.until_ms, key.clone()));
        let address = entry.route.target.address().to_owned();
        self.by_address.entry(address).or_default().insert(key.clone());
    }

    /// Lets go of a route, held or not.
    pub(crate) fn remove(&mut self, entry: &Entry) {
        let (route, key) = (&entry.route, entry.route.spec.key());
        let address = route.target.address();
        let Some(hold) = self.held.remove(key) else {
            match self.addresses.get(address) {
                Some(count) if *count > 1 => drop(self.addresses.insert(address.to_owned(), count - 1)),
                _ => drop(self.addresses.remove(address)),
            }
            match self.shown.get(&route.namespace) {
                Some(count) if *count > 1 => drop(self.shown.insert(route.namespace.clone(), count - 1)),
                _ => drop(self.shown.remove(&route.namespace)),
            }
            return;
        };
        self.digest.remove((key, &hold));
        self.by_end.remove(&(hold.until_ms, key.clone()));
        if let Some(keys) = self.by_address.get_mut(address) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_address.remove(address);
            }
        }
    }

    /// The held routes that lead to the route's target, if a route that is not held does so too: whose server it is now
    /// must not be reached under the other's name.
    pub(crate) fn overtaken(&self, route: &Route) -> Vec<RouteKey> {
        let address = route.target.address();
        if self.held.is_empty() || !self.addresses.contains_key(address) {
            return Vec::new();
        }
        let keys = self.by_address.get(address).into_iter().flatten();
        keys.cloned().collect()
    }
}

#[cfg(test)]
mod tests;

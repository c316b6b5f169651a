//! Losses: the routes that each namespace has lost lately and not put again.

use imbl::{HashMap, OrdMap, OrdSet};

use crate::route::{Namespace, RouteKey, RouteSpec};

/// The most losses remembered; more at once than any hub has routes.
pub const LOSSES_MAX: usize = 250_000;

/// One deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which route.
    pub spec: RouteSpec,
    /// Whose it was.
    pub namespace: Namespace,
    /// When, by the leader's clock.
    pub time_ms: u64,
}

/// One loss of a route at most; none of a route that is back.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    by_route: HashMap<RouteKey, Loss>,
    by_time: OrdSet<(u64, RouteKey)>,
    counts: OrdMap<Namespace, usize>,
}

impl Losses {
    /// Notes a loss; false if there are too many to do so.
    pub fn note(&mut self, loss: Loss) -> bool {
        let key = loss.spec.key().clone();
        self.forget(&key);
        if self.by_route.len() >= LOSSES_MAX {
            return false;
        }
        *self.counts.entry(loss.namespace.clone()).or_insert(0) += 1;
        self.by_time.insert((loss.time_ms, key.clone()));
        self.by_route.insert(key, loss);
        true
    }

    /// Takes a loss back; false if there is none.
    pub fn forget(&mut self, key: &RouteKey) -> bool {
        let Some(loss) = self.by_route.remove(key) else {
            return false;
        };
        self.by_time.remove(&(loss.time_ms, key.clone()));
        match self.counts.get(&loss.namespace) {
            Some(count) if *count > 1 => drop(self.counts.insert(loss.namespace, count - 1)),
            _ => drop(self.counts.remove(&loss.namespace)),
        }
        true
    }

    /// Forgets what is longer ago than `window_ms`, and returns which routes that were.
    pub fn forget_old(&mut self, now_ms: u64, window_ms: u64) -> Vec<RouteKey> {
        let mut forgotten = Vec::new();
        while let Some((time_ms, key)) = self.by_time.get_min()
            && time_ms.saturating_add(window_ms) <= now_ms
        {
            let key = key.clone();
            self.forget(&key);
            forgotten.push(key);
        }
        // By a clock that was far ahead; they would be remembered until it is that late.
        while let Some((time_ms, key)) = self.by_time.get_max()
            && *time_ms > now_ms.saturating_add(window_ms)
        {
            let key = key.clone();
            self.forget(&key);
            forgotten.push(key);
        }
        forgotten
    }

    /// How many routes the namespace has lost.
    pub fn count(&self, namespace: &Namespace) -> usize {
        self.counts.get(namespace).copied().unwrap_or(0)
    }

    /// The loss of one route.
    pub fn get(&self, key: &RouteKey) -> Option<&Loss> {
        self.by_route.get(key)
    }

    /// Every loss, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Loss> {
        self.by_time.iter().filter_map(|(_, key)| self.by_route.get(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(n: u64, time_ms: u64) -> Loss {
        Loss {
            spec: RouteSpec::parse(&format!("/{n}/")).unwrap(),
            namespace: Namespace::default(),
            time_ms,
        }
    }

    fn key(n: u64) -> RouteKey {
        loss(n, 0).spec.key().clone()
    }

    #[test]
    fn a_route_is_lost_once_and_its_loss_is_forgotten_with_time() {
        let (mut losses, here) = (Losses::default(), Namespace::default());
        for n in 0..5 {
            assert!(losses.note(loss(n, n * 10)));
        }
        losses.note(loss(0, 25));
        assert_eq!(losses.count(&here), 5);
        assert!(losses.forget(&key(4)) && !losses.forget(&key(4)));
        assert_eq!(losses.forget_old(60, 40), [key(1), key(2)]);
        assert_eq!(losses.count(&here), 2);
        let left: Vec<u64> = losses.iter().map(|loss| loss.time_ms).collect();
        assert_eq!(left, [25, 30]);
        assert_eq!(losses.forget_old(10, 15), [key(3)], "the clock has gone back");
        assert_eq!(losses.count(&here), 1);
        assert_eq!(losses.count(&Namespace::parse("other").unwrap()), 0);
    }

    #[test]
    fn losses_are_bounded() {
        let mut losses = Losses::default();
        for n in 0..LOSSES_MAX as u64 {
            assert!(losses.note(loss(n, 1)));
        }
        assert!(!losses.note(loss(u64::MAX, 1)));
        assert!(losses.note(loss(0, 2)), "a known one is no further one");
        assert_eq!(losses.iter().count(), LOSSES_MAX);
    }
}

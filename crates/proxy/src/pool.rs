//! Connections to targets that wait for the next request.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;

use crate::body::Upload;

/// Idle connections kept to one target.
const IDLE_PER_TARGET_MAX: usize = 256;
/// Locks, each for a part of the targets, so that requests seldom wait for one another.
const SHARDS: usize = 16;

/// Idle connections by the target's origin.
///
/// Only what has nothing under way comes in: request sent, answer read, both to their ends, and no upgrade asked for.
pub(crate) struct Pool {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    idle_timeout: Duration,
}

/// Of each target the one used last is at the end: it is taken first, and the surplus grows old.
type Shard = HashMap<Box<str>, Vec<Idle>>;

struct Idle {
    sender: SendRequest<Upload>,
    since: Instant,
}

impl Pool {
    pub(crate) fn new(idle_timeout: Duration) -> Self {
        Pool {
            shards: Default::default(),
            hasher: RandomState::new(),
            idle_timeout,
        }
    }

    /// A connection that its target has not closed, as far as is known.
    pub(crate) fn take(&self, origin: &str) -> Option<SendRequest<Upload>> {
        let mut shard = self.shard(origin);
        let idle = shard.get_mut(origin)?;
        while let Some(Idle { sender, since }) = idle.pop() {
            if since.elapsed() > self.idle_timeout {
                // All that are left are older still.
                idle.clear();
            } else if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    pub(crate) fn put(&self, origin: &str, sender: SendRequest<Upload>) {
        if sender.is_closed() {
            return;
        }
        let since = Instant::now();
        let mut shard = self.shard(origin);
        match shard.get_mut(origin) {
            Some(idle) if idle.len() < IDLE_PER_TARGET_MAX => idle.push(Idle { sender, since }),
            Some(_) => {}
            None => drop(shard.insert(origin.into(), vec![Idle { sender, since }])),
        }
    }

    /// Closes what has been idle for too long. To be called about as often as connections grow old.
    pub(crate) fn sweep(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, idle| {
                idle.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() <= self.idle_timeout);
                !idle.is_empty()
            });
        }
    }

    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| lock(shard).clear());
    }

    fn shard(&self, origin: &str) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(origin);
        // The remainder is less than the number of shards.
        lock(&self.shards[(hash % SHARDS as u64) as usize])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

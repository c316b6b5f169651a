//! Connections to targets that wait for the next request.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
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

/// Of each target the one used last is at the end: it is taken before those used earlier, and the surplus grows old.
type Shard = HashMap<Box<str>, Vec<Idle>>;

struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection to a target that is driven by a task of its own.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Upload>,
    /// Where that task runs. From there it is asked without waking another thread.
    home: ThreadId,
}

impl Connection {
    /// One whose task was just spawned by this thread.
    pub(crate) fn new(sender: SendRequest<Upload>) -> Self {
        let home = thread::current().id();
        Connection { sender, home }
    }
}

impl Pool {
    pub(crate) fn new(idle_timeout: Duration) -> Self {
        Pool {
            shards: Default::default(),
            hasher: RandomState::new(),
            idle_timeout,
        }
    }

    /// A connection that its target has not closed, as far as is known; one of this thread's if there is any.
    pub(crate) fn take(&self, origin: &str) -> Option<Connection> {
        let here = thread::current().id();
        let mut shard = self.shard(origin);
        let idle = shard.get_mut(origin)?;
        loop {
            let ours = idle.iter().rposition(|idle| idle.connection.home == here);
            let at = ours.or(idle.len().checked_sub(1))?;
            let Idle { connection, since } = idle.remove(at);
            if since.elapsed() > self.idle_timeout {
                // Those before it are older still.
                idle.drain(..at);
            } else if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
    }

    pub(crate) fn put(&self, origin: &str, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let since = Instant::now();
        let mut shard = self.shard(origin);
        match shard.get_mut(origin) {
            Some(idle) if idle.len() < IDLE_PER_TARGET_MAX => idle.push(Idle { connection, since }),
            Some(_) => {}
            None => drop(shard.insert(origin.into(), vec![Idle { connection, since }])),
        }
    }

    /// Closes what has been idle for too long. To be called about as often as connections grow old.
    pub(crate) fn sweep(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, idle| {
                idle.retain(|idle| !idle.connection.sender.is_closed() && idle.since.elapsed() <= self.idle_timeout);
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

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
/// As many idle connections of other threads to one target are left to them: to ask by one of those wakes its thread, and
/// to open one of our own is done once.
const LEFT_TO_OTHERS: usize = 4;
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
            let theirs = || idle.len().checked_sub(1).filter(|_| idle.len() > LEFT_TO_OTHERS);
            let at = ours.or_else(theirs)?;
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

#[cfg(test)]
mod tests {
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_connection_of_this_thread_is_taken_first_and_an_old_one_never() {
        let origin = "http://10.0.0.1:80";
        let here = thread::current().id();
        let elsewhere = thread::spawn(|| thread::current().id()).join().unwrap();
        let mut open = Vec::new();
        let mut connections = Vec::new();
        let surplus = std::iter::repeat_n(elsewhere, LEFT_TO_OTHERS);
        for home in [elsewhere, here].into_iter().chain(surplus) {
            let (near, far) = duplex(64);
            let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
            open.push((connection, far));
            connections.push(Connection { sender, home });
        }
        let pool = Pool::new(Duration::from_secs(60));
        connections
            .into_iter()
            .for_each(|connection| pool.put(origin, connection));
        let homes = std::iter::from_fn(|| pool.take(origin)).map(|taken| (taken.home, taken));
        let (homes, taken): (Vec<_>, Vec<_>) = homes.unzip();
        assert_eq!(homes, [here, elsewhere]);

        let impatient = Pool::new(Duration::ZERO);
        taken
            .into_iter()
            .rev()
            .for_each(|connection| impatient.put(origin, connection));
        thread::sleep(Duration::from_millis(1));
        assert!(impatient.take(origin).is_none());
        assert!(impatient.shard(origin).get(origin).is_none_or(Vec::is_empty));
    }
}

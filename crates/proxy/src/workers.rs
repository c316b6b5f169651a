//! Workers: the threads on which users' connections are served.

use std::convert::Infallible;
use std::sync::Arc;
use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Open files that a worker takes for itself.
pub(crate) const DESCRIPTORS: u64 = 3;
/// Threads of one worker that wait for files and names.
const BLOCKING_THREADS_MAX: usize = 64;

/// Threads with a runtime of its own each, one for each processor that this process may use.
///
/// A connection stays with the worker that it was given to, and so do those to targets that its requests open: mostly, a
/// request and its answer wake no other thread. Nothing moves later, so whoever comes by a single connection of HTTP/2
/// gets a single processor. Dropped, the workers end, with all that still runs on them.
pub(crate) struct Workers {
    workers: Vec<Worker>,
    end: DropGuard,
    /// Closed when all have ended.
    ended: mpsc::Receiver<Infallible>,
}

struct Worker {
    runtime: Handle,
    /// Each connection has a clone.
    serves: Arc<()>,
}

/// One connection's place with its worker, free again when it is dropped.
pub(crate) struct Place(#[expect(dead_code, reason = "it is counted")] Arc<()>);

impl Workers {
    pub(crate) fn start() -> io::Result<Self> {
        let token = CancellationToken::new();
        let end = token.clone().drop_guard();
        let (running, ended) = mpsc::channel(1);
        let start = |number| Worker::start(number, token.clone(), running.clone());
        let workers = (0..count()).map(start).collect::<io::Result<_>>()?;
        Ok(Workers { workers, end, ended })
    }

    /// The worker that has the fewest connections.
    pub(crate) fn least_busy(&self) -> (&Handle, Place) {
        let fewest = self
            .workers
            .iter()
            .min_by_key(|worker| Arc::strong_count(&worker.serves));
        let Worker { runtime, serves } = fewest.expect("there is a processor, so there is a worker");
        (runtime, Place(serves.clone()))
    }

    /// Ends them; returns when they have.
    pub(crate) async fn end(mut self) {
        drop(self.end);
        self.ended.recv().await;
    }
}

/// How many there are.
pub(crate) fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Worker {
    fn start(number: usize, end: CancellationToken, running: mpsc::Sender<Infallible>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(format!("users-{number}")).spawn(move || {
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
            drop(running);
        })?;
        Ok(Worker {
            runtime: handle,
            serves: Arc::new(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::future::pending;
    use std::sync::mpsc::channel;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_and_end_with_their_workers() {
        let workers = Workers::start().unwrap();
        let mut connections = JoinSet::new();
        let (tell, told) = channel();
        for _ in 0..3 * count() {
            let tell = tell.clone();
            let (worker, place) = workers.least_busy();
            let served = async move {
                tell.send(thread::current().name().map(str::to_owned)).unwrap();
                pending::<()>().await;
                drop(place);
            };
            connections.spawn_on(served, worker);
        }
        drop(tell);
        let mut served = BTreeMap::new();
        for _ in 0..3 * count() {
            *served.entry(told.recv().unwrap()).or_insert(0) += 1;
        }
        assert_eq!(served.len(), count());
        assert!(served.values().all(|count| *count == 3), "{served:?}");

        workers.end().await;
        while let Some(ended) = connections.join_next().await {
            assert!(ended.unwrap_err().is_cancelled());
        }
    }
}

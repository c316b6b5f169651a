//! Workers: the threads on which users' connections are served.

use std::sync::Arc;
use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Threads with a runtime of its own each, one for each processor that this process may use.
///
/// A connection stays with the worker that it was given to, and so do those to targets that its requests open: a request
/// and its answer wake no other thread. Dropped, they end, with all that still runs on them.
pub(crate) struct Workers {
    workers: Vec<Worker>,
    _end: DropGuard,
}

struct Worker {
    runtime: Handle,
    /// Each connection has a clone.
    serves: Arc<()>,
}

impl Workers {
    pub(crate) fn start() -> io::Result<Self> {
        let end = CancellationToken::new();
        let count = thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..count).map(|number| Worker::start(number, end.clone()));
        Ok(Workers {
            workers: workers.collect::<io::Result<_>>()?,
            _end: end.drop_guard(),
        })
    }

    /// Has a connection served by the worker that has the fewest.
    pub(crate) fn spawn(&self, connections: &mut JoinSet<()>, served: impl Future<Output = ()> + Send + 'static) {
        let fewest = self
            .workers
            .iter()
            .min_by_key(|worker| Arc::strong_count(&worker.serves));
        let Some(worker) = fewest else { return };
        let serves = worker.serves.clone();
        let served = async move {
            served.await;
            drop(serves);
        };
        connections.spawn_on(served, &worker.runtime);
    }
}

impl Worker {
    fn start(number: usize, end: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(format!("users-{number}")).spawn(move || {
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
        })?;
        Ok(Worker {
            runtime: handle,
            serves: Arc::new(()),
        })
    }
}

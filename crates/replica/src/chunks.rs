//! Chunks that are made once for all who need them, on a thread of their own.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// In their order. The first ones are given away while the last ones are made.
pub struct Chunks<T>(watch::Receiver<Made<T>>);

/// Who makes them.
pub struct Maker<T>(watch::Sender<Made<T>>);

struct Made<T> {
    chunks: Vec<T>,
    whole: bool,
}

/// They could not all be made; whoever asks for new ones may have more luck.
#[derive(Debug, thiserror::Error)]
#[error("a snapshot could not be encoded")]
pub struct Broken;

impl<T: Clone + Send + Sync + 'static> Chunks<T> {
    /// Has `make` make them, on a thread that `tasks` owns. Its end is their end.
    ///
    /// `alone` is held by who makes: several at once would take each other's CPU and all memory. When nobody has these
    /// chunks any more, the thread ends with the one that it is at.
    pub fn make(
        alone: &Arc<Mutex<()>>,
        tasks: &TaskTracker,
        make: impl FnOnce(&Maker<T>) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let (maker, chunks) = Chunks::begin();
        let alone = alone.clone();
        let work = move || {
            let _alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
            // Those who waited for it may have gone, or found newer ones.
            if maker.is_unwanted() {
                return;
            }
            match make(&maker) {
                Ok(()) => maker.finish(),
                Err(_) if maker.is_unwanted() => {}
                Err(error) => tracing::error!(%error, "a snapshot could not be encoded; who takes it is let go"),
            }
        };
        // A runtime of one thread is a simulation's, which would not be the same twice with a second thread.
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => work(),
            _ => drop(tasks.spawn_blocking(work)),
        }
        chunks
    }

    /// None yet.
    pub fn begin() -> (Maker<T>, Self) {
        let (maker, chunks) = watch::channel(Made {
            chunks: Vec::new(),
            whole: false,
        });
        (Maker(maker), Chunks(chunks))
    }

    /// The chunk at this place, as soon as it is made; `None` after the last.
    ///
    /// # Errors
    /// [`Broken`]: it will never be made.
    pub async fn get(&self, at: usize) -> Result<Option<T>, Broken> {
        let mut made = self.0.clone();
        let there = made.wait_for(|made| made.chunks.len() > at || made.whole);
        Ok(there.await.map_err(|_| Broken)?.chunks.get(at).cloned())
    }

    /// True if some will never be made.
    pub fn is_broken(&self) -> bool {
        self.0.has_changed().is_err() && !self.0.borrow().whole
    }
}

impl<T> Maker<T> {
    /// Adds the next chunk.
    ///
    /// # Errors
    /// Nobody has these chunks any more: there is no need to make the rest.
    pub fn push(&self, chunk: T) -> io::Result<()> {
        if self.is_unwanted() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.0.send_modify(|made| made.chunks.push(chunk));
        Ok(())
    }

    /// That was the last one.
    pub fn finish(self) {
        self.0.send_modify(|made| made.whole = true);
    }

    fn is_unwanted(&self) -> bool {
        self.0.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn late<T>(_: T) -> io::Error {
        io::ErrorKind::TimedOut.into()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn they_are_made_while_the_only_worker_does_other_things() {
        let (go, wait) = mpsc::channel();
        let mut worker = JoinSet::new();
        worker.spawn(async move {
            let chunks = Chunks::make(&Arc::default(), &TaskTracker::new(), move |maker| {
                maker.push(1)?;
                wait.recv_timeout(SOON).map_err(late)?;
                maker.push(2)
            });
            let first = chunks.get(0).await.unwrap();
            go.send(()).unwrap();
            (first, chunks.get(1).await.unwrap(), chunks.get(2).await.unwrap())
        });
        assert_eq!(worker.join_next().await.unwrap().unwrap(), (Some(1), Some(2), None));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_has_any_more_is_not_made_to_its_end() {
        let tasks = TaskTracker::new();
        let (go, wait) = mpsc::channel();
        let (told, ended) = mpsc::channel();
        let chunks = Chunks::make(&Arc::default(), &tasks, move |maker| {
            maker.push(1)?;
            wait.recv_timeout(SOON).map_err(late)?;
            let pushed = maker.push(2);
            told.send(pushed.is_err()).map_err(late)?;
            pushed
        });
        assert_eq!(chunks.get(0).await.unwrap(), Some(1));
        drop(chunks);
        go.send(()).unwrap();
        tasks.close();
        tokio::time::timeout(SOON, tasks.wait()).await.unwrap();
        assert!(ended.recv().unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failure_breaks_them_and_what_was_made_is_given_all_the_same() {
        let tasks = TaskTracker::new();
        let chunks = Chunks::make(&Arc::default(), &tasks, |maker| {
            maker.push(1)?;
            Err(io::ErrorKind::OutOfMemory.into())
        });
        assert!(chunks.get(1).await.is_err());
        assert_eq!(chunks.get(0).await.unwrap(), Some(1));
        assert!(chunks.is_broken());
    }
}

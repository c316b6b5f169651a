//! Group commit: one thread drains all waiting appends and syncs the write-ahead log once for them all.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::disk::Disk;
use crate::consensus::types::TypeConfig;

/// The exit code of a process whose disk failed: after a failed sync nobody knows what is on it.
pub const EXIT_DISK_FAILED: u8 = 74;

/// Whoever waits for the disk.
pub enum Waiting {
    /// For entries.
    Append(IOFlushed<TypeConfig>),
    /// For a vote.
    Vote(oneshot::Sender<()>),
}

impl Waiting {
    /// Everything written before the wait began is on disk.
    pub fn done(self) {
        match self {
            Waiting::Append(flushed) => flushed.io_completed(Ok(())),
            Waiting::Vote(done) => drop(done.send(())),
        }
    }
}

/// Takes those who wait, in their order, and tells them when they are done.
pub trait Queue: Send + Sync + 'static {
    /// Does not block.
    fn push(&self, waiting: Waiting);
}

/// A handle to what syncs, which ends with the last handle.
#[derive(Clone)]
pub struct Syncer(Arc<dyn Queue>);

/// A thread of its own, which blocks in the disk.
struct Thread {
    // An Option, so that Drop can close the channel before it waits for the thread.
    queue: Mutex<Option<Sender<Waiting>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Syncer {
    /// Starts a thread that syncs `disk`.
    pub fn thread(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let (queue, waiting) = channel();
        let thread = std::thread::Builder::new()
            .name("wal-sync".into())
            .spawn(move || run(&*disk, &waiting))?;
        Ok(Syncer(Arc::new(Thread {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Of a disk that needs no thread.
    #[cfg(test)]
    pub fn of(queue: Arc<dyn Queue>) -> Self {
        Syncer(queue)
    }

    /// Completes `flushed` once everything written before this call is on disk. Does not wait.
    pub fn append(&self, flushed: IOFlushed<TypeConfig>) {
        self.0.push(Waiting::Append(flushed));
    }

    /// Returns once everything written before this call is on disk.
    pub async fn sync(&self) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.0.push(Waiting::Vote(done));
        wait.await.map_err(|_| io::Error::other("the syncing thread has ended"))
    }
}

impl Queue for Thread {
    fn push(&self, waiting: Waiting) {
        let queue = self.queue.lock().expect("nobody panics with it");
        // The thread lives as long as the queue; a refused item would drop its callback, which fails the append.
        if let Some(queue) = queue.as_ref() {
            let _ = queue.send(waiting);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.queue.lock().expect("nobody panics with it").take());
        if let Some(thread) = self.thread.lock().expect("nobody panics with it").take() {
            let _ = thread.join();
        }
    }
}

fn run(disk: &dyn Disk, waiting: &Receiver<Waiting>) {
    while let Ok(first) = waiting.recv() {
        let batch: Vec<Waiting> = std::iter::once(first).chain(waiting.try_iter()).collect();
        if let Err(error) = disk.sync() {
            // Not even an error answer goes out: the page cache may have dropped what it says it holds.
            tracing::error!(%error, "the disk did not take a write; the process ends, nothing unsynced was acknowledged");
            std::process::exit(EXIT_DISK_FAILED.into());
        }
        batch.into_iter().for_each(Waiting::done);
    }
}

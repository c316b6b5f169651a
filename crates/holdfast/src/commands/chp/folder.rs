//! Folder: where the routes are, for good or for as long as the process lives.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::commands::up::LOCK;

/// How long a process that was told to stop may take to let go of its routes.
const CLAIMED_FOR: Duration = Duration::from_secs(8);
const STEP: Duration = Duration::from_millis(20);

/// The longest path of a unix socket, in bytes.
const SOCKET_BYTES_MAX: usize = 107;

/// The directory of one process, as `holdfast up` lays it out.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    temporary: Option<TempDir>,
}

impl Folder {
    /// The given one, or a temporary one of this process alone.
    ///
    /// # Errors
    /// It cannot be made, its path is too long for a socket in it, or it holds a cluster of several replicas.
    pub(super) fn open(given: Option<&Path>) -> anyhow::Result<Self> {
        let (path, temporary) = match given {
            Some(path) => (path.to_owned(), None),
            None => {
                let temporary = tempfile::Builder::new().prefix("holdfast-chp-").tempdir();
                let temporary = temporary.with_context(|| {
                    let place = std::env::temp_dir();
                    format!(
                        "{} cannot be used: let TMPDIR name a directory that can be written, or give --data-dir",
                        place.display()
                    )
                })?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let folder = Folder { path, temporary };
        let longest = folder.socket().as_os_str().as_bytes().len();
        if longest > SOCKET_BYTES_MAX {
            let beyond = longest - SOCKET_BYTES_MAX;
            let what = if given.is_some() { "--data-dir" } else { "TMPDIR" };
            bail!(
                "{what} {:?}: is {beyond} bytes too long for a socket in it: give a shorter one",
                folder.path
            );
        }
        if folder.path.join("r1").exists() {
            bail!(
                "--data-dir {:?}: holds a cluster of several replicas, which `holdfast up` runs: give another directory",
                folder.path
            );
        }
        // Routes and their data are the hub's business alone, and so is the socket that needs no token.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder.replica());
        made.with_context(|| folder.is_unusable())?;
        Ok(folder)
    }

    /// Waits for a process that still has the directory: most likely it was told to stop. It is this process's until what
    /// is returned is dropped.
    ///
    /// # Errors
    /// It still has it after a while.
    pub(super) async fn claim(&self) -> anyhow::Result<File> {
        let path = self.path.join(LOCK);
        let lock = File::options().create(true).write(true).truncate(false).open(path);
        let lock = lock.with_context(|| self.is_unusable())?;
        let since = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if since.elapsed() < CLAIMED_FOR => sleep(STEP).await,
                Err(TryLockError::WouldBlock) => bail!(
                    "--data-dir {:?} is in use by another process of Holdfast: stop that one, or give another directory",
                    self.path
                ),
                Err(TryLockError::Error(error)) => return Err(error).with_context(|| self.is_unusable()),
            }
        }
    }

    fn is_unusable(&self) -> String {
        format!("--data-dir {:?} cannot be used: check that it is writable", self.path)
    }

    pub(super) fn replica(&self) -> PathBuf {
        self.path.join("r0")
    }

    /// Where a proxy keeps its copy of the table.
    pub(super) fn proxy(&self, number: usize) -> PathBuf {
        self.path.join(format!("p{number}"))
    }

    /// Where the replica answers commands and the proxy.
    pub(super) fn socket(&self) -> PathBuf {
        self.replica().join("client.sock")
    }

    /// The same as an endpoint.
    ///
    /// # Errors
    /// The path is no UTF-8.
    pub(super) fn endpoint(&self) -> anyhow::Result<String> {
        let socket = self.socket();
        let path = std::path::absolute(&socket)?;
        let path = path
            .to_str()
            .with_context(|| format!("{socket:?} is no UTF-8: give another directory"))?;
        Ok(format!("unix:{path}"))
    }

    /// Removes a temporary one.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(super) fn close(self) -> anyhow::Result<()> {
        let Some(temporary) = self.temporary else { return Ok(()) };
        let path = temporary.path().to_owned();
        temporary
            .close()
            .with_context(|| format!("{} cannot be removed", path.display()))
    }
}

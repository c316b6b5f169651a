//! A data directory whose replica does not run: read without a change, or made whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rocks::RocksDisk;
use super::{DATABASE, LOCK, OpenError, Store, locked};

/// What is being built, until it is renamed.
const BUILDING: &str = "building.tmp";
/// Where a recovery leaves what was there before it, with a number.
const BEFORE: &str = "before-recover-";
/// What a new file system has at its root; nobody put it there.
const LOST_AND_FOUND: &str = "lost+found";

/// How much of a damaged write-ahead log is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalRecovery {
    /// Nothing beyond an incomplete last record is ever dropped: anything else is damage.
    Strict,
    /// Everything up to the first damaged record; what follows it is lost, whether it was acknowledged or not.
    PointInTime,
}

impl Store {
    /// Opens what a stopped replica left in `path`, to be read alone, and keeps replicas off it meanwhile.
    ///
    /// # Errors
    /// [`OpenError`]: a replica runs on it, there is nothing, or it is damaged.
    pub fn open_to_read(path: &Path, wal: WalRecovery) -> Result<Self, OpenError> {
        let directory = |source| OpenError::Directory {
            path: path.to_owned(),
            source,
        };
        let lock = match File::open(path.join(LOCK)) {
            Ok(lock) => locked(path, lock)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Empty { path: path.to_owned() });
            }
            Err(error) => return Err(directory(error)),
        };
        refuse_interrupted(path)?;
        if !path.join(DATABASE).is_dir() {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        let disk = RocksDisk::open_to_read(&path.join(DATABASE), wal)
            .map_err(|error| OpenError::of(path, DATABASE, &error))?;
        Ok(Store {
            disk: Arc::new(disk),
            path: path.to_owned(),
            _lock: Some(Arc::new(lock)),
        })
    }
}

/// Refuses a directory whose database is not there because a restore or recovery was killed while it moved it.
///
/// # Errors
/// [`OpenError::Interrupted`].
pub fn refuse_interrupted(path: &Path) -> Result<(), OpenError> {
    if path.join(DATABASE).exists() {
        return Ok(());
    }
    let interrupted = |left, remedy| OpenError::Interrupted {
        path: path.to_owned(),
        left,
        remedy,
    };
    if let Some(before) = (1..)
        .map(|n| before(path, n))
        .take_while(|before| before.exists())
        .last()
    {
        let remedy = "move the `db` in it back into the data directory, and recover again";
        return Err(interrupted(before, remedy));
    }
    match path.join(BUILDING) {
        building if building.exists() => Err(interrupted(building, "remove it, and restore again")),
        _ => Ok(()),
    }
}

fn before(path: &Path, n: u32) -> PathBuf {
    path.join(format!("{BEFORE}{n}"))
}

/// Why nothing could be built in a directory. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BuildingError {
    /// A running replica, or no right to write.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is not ours to overwrite.
    #[error(
        "data-dir {path:?}: is not empty, it holds {found:?}; give an empty or new directory, nothing is overwritten"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        found: String,
    },
    /// A full disk, most likely.
    #[error("data-dir {path:?}: cannot be written")]
    Write {
        /// The directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// A data directory in the making, locked. Dropped unfinished, it leaves everything as it was.
///
/// It is built inside of the directory itself, for that may be the root of a volume, which cannot be renamed.
pub struct Building {
    path: PathBuf,
    // What did not exist before, outermost last.
    made: Vec<PathBuf>,
    owns_lock: bool,
    finished: bool,
    _lock: Option<Arc<File>>,
}

impl Building {
    /// Takes an empty or missing directory.
    ///
    /// # Errors
    /// [`BuildingError`]: it is in use, or not empty.
    pub fn in_empty(path: &Path) -> Result<Self, BuildingError> {
        let failed = |source| OpenError::Directory {
            path: path.to_owned(),
            source,
        };
        let lock_path = path.join(LOCK);
        // First of all, so that a directory in use is called that.
        if let Ok(lock) = File::open(&lock_path) {
            locked(path, lock)?;
        }
        match fs::read_dir(path) {
            Ok(entries) => {
                for entry in entries {
                    let found = entry.map_err(failed)?.file_name();
                    if ![LOCK, LOST_AND_FOUND, BUILDING].iter().any(|known| found == *known) {
                        return Err(BuildingError::NotEmpty {
                            path: path.to_owned(),
                            found: found.to_string_lossy().into_owned(),
                        });
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error).into()),
        }
        let made = path.ancestors().take_while(|ancestor| !ancestor.exists());
        let made: Vec<PathBuf> = made.map(Path::to_owned).collect();
        let owns_lock = !lock_path.exists();
        fs::create_dir_all(path).map_err(failed)?;
        let lock = File::create(&lock_path).map_err(failed)?;
        let building = Building {
            path: path.to_owned(),
            made,
            owns_lock,
            finished: false,
            _lock: Some(Arc::new(locked(path, lock)?)),
        };
        building.clear().map_err(failed)?;
        Ok(building)
    }

    /// Takes the directory that `store` was read from, in place of it.
    ///
    /// # Errors
    /// [`BuildingError`]: it cannot be written.
    pub fn in_place_of(store: &Store) -> Result<Self, BuildingError> {
        let failed = |source| OpenError::Directory {
            path: store.path.clone(),
            source,
        };
        let building = Building {
            path: store.path.clone(),
            made: Vec::new(),
            owns_lock: false,
            finished: false,
            // The same lock: it is kept until both are gone.
            _lock: store._lock.clone(),
        };
        building.clear().map_err(failed)?;
        Ok(building)
    }

    /// Where to build.
    pub fn path(&self) -> PathBuf {
        self.path.join(BUILDING)
    }

    /// Puts what was built in its place; on disk when this returns. What was there before is kept, at the path returned.
    ///
    /// # Errors
    /// [`BuildingError::Write`]: everything is as it was.
    pub fn finish(mut self) -> Result<Option<PathBuf>, BuildingError> {
        match self.exchange() {
            Ok(before) => {
                self.finished = true;
                Ok(before)
            }
            Err(source) => Err(BuildingError::Write {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn exchange(&self) -> io::Result<Option<PathBuf>> {
        let (built, database) = (self.path().join(DATABASE), self.path.join(DATABASE));
        sync_directory(&built)?;
        let old = match database.exists() {
            false => None,
            true => {
                let mut free = (1..).map(|n| before(&self.path, n)).filter(|old| !old.exists());
                let old = free
                    .next()
                    .ok_or_else(|| io::Error::other("there is no end of numbers"))?;
                fs::create_dir(&old)?;
                // A directory of its own kind, so that it can be recovered from once more.
                File::create(old.join(LOCK))?;
                fs::rename(&database, old.join(DATABASE))?;
                sync_directory(&old)?;
                Some(old)
            }
        };
        if let Err(error) = fs::rename(&built, &database) {
            if let Some(old) = &old {
                fs::rename(old.join(DATABASE), &database)?;
                fs::remove_dir_all(old)?;
            }
            return Err(error);
        }
        sync_directory(&self.path)?;
        for made in &self.made {
            made.parent().map_or(Ok(()), sync_directory)?;
        }
        Ok(old)
    }

    fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // What cannot be removed is named by the next attempt.
        let _ = self.clear();
        if self.finished {
            return;
        }
        if self.owns_lock {
            let _ = fs::remove_file(self.path.join(LOCK));
        }
        for made in &self.made {
            let _ = fs::remove_dir(made);
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    // The parent of a relative path with one part is the working directory.
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    File::open(path)?.sync_all()
}

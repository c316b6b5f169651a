//! Claim: this data directory is ours, and this is what runs on it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::supervise::States;

/// Locked by whoever runs a cluster in the directory.
pub const LOCK: &str = "up.lock";
const NOTE: &str = "up.json";

/// A data directory's lock, and the note beside it for those who look for us.
#[derive(Debug)]
pub(super) struct Claim {
    note: PathBuf,
    endpoints: Vec<String>,
    proxies: Vec<String>,
    // Held until we end, however that happens. Children do not inherit it.
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    pid: u32,
    endpoints: Vec<String>,
    proxies: Vec<String>,
    children: BTreeMap<String, u32>,
}

impl Claim {
    /// Locks the data directory, which is made if it is missing, and with it the replicas' own.
    ///
    /// # Errors
    /// Another `holdfast up` runs on it, it cannot be written, or it was made for another number of replicas.
    pub(super) fn take(plan: &Plan) -> anyhow::Result<Self> {
        let directory = &plan.data_dir;
        let unusable = || format!("--data-dir {directory:?} cannot be used: check that it is writable");
        make(directory).with_context(unusable)?;
        let lock = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(directory.join(LOCK))
            .with_context(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid =
                    running(directory).map_or_else(|| "of unknown pid".to_owned(), |pid| format!("with pid {pid}"));
                bail!(
                    "--data-dir {directory:?} is in use by a running `holdfast up` {pid}: stop that one, or give another directory"
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(unusable),
        }

        let wanted = usize::from(plan.replicas);
        let found = (0..)
            .take_while(|index| directory.join(format!("r{index}")).exists())
            .count();
        if found > 0 && found != wanted {
            bail!(
                "--replicas {wanted}: --data-dir {directory:?} holds a cluster of {found}, and its routes would be out of \
                 reach. Give --replicas {found}, or another directory"
            );
        }
        // The first one last: it is what says, above, that all of them have been made.
        for name in (0..wanted).rev().map(|index| format!("r{index}")) {
            make(&directory.join(name)).with_context(unusable)?;
        }
        Ok(Claim {
            note: directory.join(NOTE),
            endpoints: plan.endpoints(),
            proxies: plan.urls(),
            _lock: lock,
        })
    }

    /// Says which processes run now. Whoever reads it sees this note or the one before, never half of one.
    pub(super) fn note(&self, states: &States) -> anyhow::Result<()> {
        let running = states
            .iter()
            .filter_map(|(name, state)| Some((name.clone(), state.pid?)));
        let note = Note {
            pid: std::process::id(),
            endpoints: self.endpoints.clone(),
            proxies: self.proxies.clone(),
            children: running.collect(),
        };
        let new = self.note.with_extension("json.new");
        fs::write(&new, serde_json::to_string_pretty(&note)? + "\n")
            .and_then(|()| fs::rename(&new, &self.note))
            .with_context(|| format!("{} cannot be written", self.note.display()))
    }

    /// Takes the note away: nothing runs any more.
    pub(super) fn release(&self) {
        if let Err(error) = fs::remove_file(&self.note)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} cannot be removed: {error}", self.note.display());
        }
    }
}

fn make(directory: &Path) -> std::io::Result<()> {
    // Routes and their data are the hub's business alone.
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn running(directory: &Path) -> Option<u32> {
    let note: Note = serde_json::from_slice(&fs::read(directory.join(NOTE)).ok()?).ok()?;
    Some(note.pid)
}

//! PidFile: says which process runs.

use std::path::PathBuf;

use anyhow::Context;

/// A file with this process's id, for as long as it lives.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it. Not before the process is sure to serve: one that cannot start must leave the file to the one that runs.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(path: &str) -> anyhow::Result<Self> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("--pid-file {path:?} cannot be written"))?;
        Ok(PidFile(path.into()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Nobody is left to be told, and the next start overwrites it.
        let _ = std::fs::remove_file(&self.0);
    }
}

//! A file that stands under its name only when it is whole and on disk.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Reads the name of a file that is to be written; with `force` it may be there already.
pub fn parse(name: &str, force: bool) -> Result<PathBuf, String> {
    let path = PathBuf::from(name);
    match fs::symlink_metadata(&path) {
        _ if path.file_name().is_none() => Err("must be a file's name".into()),
        Ok(metadata) if metadata.is_dir() => Err("is a directory: name a file in it".into()),
        Ok(_) if !force => Err("exists already: name another file, or replace it with --force".into()),
        _ => Ok(path),
    }
}

/// Has `fill` write a file, for its owner alone, and puts it in its place, synced.
///
/// # Errors
/// What `fill` says, or why the file cannot be made. Nothing is left of it, and what was there before still is.
pub fn write<T>(path: &Path, force: bool, fill: impl FnOnce(File) -> anyhow::Result<(T, File)>) -> anyhow::Result<T> {
    let temporary = Temporary::beside(path);
    let (filled, file) = fill(temporary.file()?)?;
    let cannot = || format!("file {path:?}: cannot be written; nothing is left of it");
    file.sync_all().with_context(cannot)?;
    if !force && fs::symlink_metadata(path).is_ok() {
        bail!("file {path:?}: exists by now; name another file, or replace it with --force");
    }
    fs::rename(&temporary.0, path).with_context(cannot)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(cannot)?;
    Ok(filled)
}

/// A file beside the one that is meant; gone unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Temporary(path.with_file_name(format!(".{name}.{}.tmp", std::process::id())))
    }

    fn file(&self) -> anyhow::Result<File> {
        // It tells where everybody's server is.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.0);
        file.with_context(|| format!("file {:?}: cannot be made", self.0))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is gone already if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

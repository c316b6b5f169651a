//! Disks that get full, disks that lose what they were given, and slow ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;

use super::{finish, run};

/// A disk in memory whose space can end. Only inside [`apart`](super::apart).
pub struct SmallDisk {
    path: PathBuf,
    mib: u32,
}

impl SmallDisk {
    /// Mounts an empty disk of `mib` MiB at `path`, which it makes.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount(path: &Path, mib: u32) -> Result<Self> {
        fs::create_dir_all(path)?;
        let (size, here) = (format!("size={mib}m"), path.to_string_lossy());
        run("mount", ["-t", "tmpfs", "-o", &size, "holdfast-test", &here])?;
        Ok(SmallDisk {
            path: path.to_owned(),
            mib,
        })
    }

    /// Makes it as small as what is on it.
    ///
    /// # Errors
    /// It cannot be made smaller.
    pub fn fill(&self) -> Result<()> {
        // What is written meanwhile makes it too small to become.
        const TRIES: usize = 20;
        let mut refused = Ok(());
        for _ in 0..TRIES {
            let disk = statvfs(&self.path)?;
            let used = disk.blocks() - disk.blocks_free();
            refused = self.resize(format!("size={}", used * disk.fragment_size()));
            if refused.is_ok() {
                break;
            }
        }
        refused
    }

    /// Gives it the space back that [`fill`](Self::fill) has taken.
    ///
    /// # Errors
    /// It cannot be made larger.
    pub fn free(&self) -> Result<()> {
        self.resize(format!("size={}m", self.mib))
    }

    fn resize(&self, size: String) -> Result<()> {
        let (options, here) = (format!("remount,{size}"), self.path.to_string_lossy());
        run("mount", ["-o", &options, &here])?;
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run("umount", ["--lazy".as_ref(), self.path.as_os_str()]);
    }
}

/// What a disk can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A sync; and the file loses what no earlier one has confirmed.
    Sync,
    /// A write.
    Write,
}

/// Makes the disk of one process fail, or slow, on demand: a library that is loaded into it first (`failing_disk.c`).
pub struct FailingDisk {
    library: PathBuf,
    order: PathBuf,
}

impl FailingDisk {
    /// Compiles the library into `folder`.
    ///
    /// # Errors
    /// There is no C compiler.
    pub fn compile(folder: &Path) -> Result<Self> {
        let source = folder.join("failing_disk.c");
        fs::write(&source, include_str!("failing_disk.c"))?;
        let library = folder.join("failing_disk.so");
        let mut command = Command::new("cc");
        command.args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]);
        finish("cc", command.arg(&library).arg(&source).arg("-ldl"))?;
        Ok(FailingDisk {
            library,
            order: folder.join("failing-disk"),
        })
    }

    /// What a process must have in its environment.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [
            ("LD_PRELOAD", &self.library),
            ("HOLDFAST_TEST_FAILING_DISK", &self.order),
        ]
    }

    /// From here on every such call on a file whose path contains `part` fails with EIO.
    ///
    /// # Errors
    /// The order cannot be written.
    pub fn fail(&self, call: Call, part: &str) -> Result<()> {
        match call {
            Call::Sync => self.order("sync", part),
            Call::Write => self.order("write", part),
        }
    }

    /// From here on each sync of a file whose path contains `part` takes `longer`, in whole milliseconds.
    ///
    /// # Errors
    /// The order cannot be written.
    pub fn slow_down(&self, longer: Duration, part: &str) -> Result<()> {
        self.order(&format!("slow {}", longer.as_millis()), part)
    }

    fn order(&self, what: &str, part: &str) -> Result<()> {
        ensure!(!part.is_empty(), "which files?");
        // By a rename: nobody reads half an order.
        let new = self.order.with_extension("new");
        fs::write(&new, format!("{what} {part}"))?;
        Ok(fs::rename(new, &self.order)?)
    }

    /// From here on nothing fails, and nothing is slow.
    ///
    /// # Errors
    /// Nothing did, and nothing was.
    pub fn mend(&self) -> Result<()> {
        fs::remove_file(&self.order).context("nothing was failing or slow")
    }
}

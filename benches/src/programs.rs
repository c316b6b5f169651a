//! Programs that are measured: where they are, what version they have, and that they end with us.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::fixture::Process;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::usage::descendants;

/// Where Debian has servers, which is not on every user's PATH.
const SERVERS: &str = "/usr/sbin";

/// A program on PATH, if it is there.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from(SERVERS)])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// The first line in which a program says its version; `?` if there is none.
pub fn version(program: &Path, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else {
        return "?".to_owned();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).replace(&*program.to_string_lossy(), "");
    let line = said
        .lines()
        .map(str::trim)
        .find(|line| line.contains(|c: char| c.is_ascii_digit()));
    line.unwrap_or("?").to_owned()
}

/// Very many connections are open at once; the usual soft limit is 1024 files. Programs started from here inherit it.
/// Root gets as many as it takes where it may, others what they may have. Returns how many that is.
///
/// # Errors
/// The kernel's.
pub fn raise_open_files() -> Result<u64> {
    const MANY: u64 = 200_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let many = MANY.max(hard);
    if setrlimit(Resource::RLIMIT_NOFILE, many, many).is_ok() {
        return Ok(many);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// A process with those that it has started itself, which end with it.
pub struct Program(Process);

impl Program {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut process: Process) -> Result<Self> {
        process.start()?;
        Ok(Program(process))
    }

    /// Starts it again, once it was stopped.
    ///
    /// # Errors
    /// It cannot be started, or runs.
    pub fn start_again(&mut self) -> Result<()> {
        self.0.start()
    }

    /// `kill -9` of all of them; returns when the first of them is gone.
    pub fn stop(&mut self) {
        let Some(pid) = self.0.pid() else { return };
        // Looked up before: nobody knows the workers of a master that is gone. It goes first, or it would replace them.
        let others = descendants(pid);
        self.0.kill();
        for pid in others.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
            // Fails only if it has ended already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// The ids of all that run.
    ///
    /// # Errors
    /// It has ended; the text has the end of its log.
    pub fn pids(&mut self) -> Result<Vec<u32>> {
        self.check()?;
        let pid = self.0.pid().context("it does not run")?;
        Ok([vec![pid], descendants(pid)].concat())
    }

    /// That it has not ended.
    ///
    /// # Errors
    /// It has; the text has the end of its log.
    pub fn check(&mut self) -> Result<()> {
        const LINES: usize = 10;
        let ended = self.0.exited();
        ensure!(ended.is_none(), "ended with {ended:?}: {}", self.0.log_tail(LINES));
        Ok(())
    }

    /// Sends a signal to the first of them.
    pub fn signal(&mut self, signal: Signal) {
        self.0.signal(signal);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_tests::fixture::until;

    use super::*;

    #[tokio::test]
    async fn what_a_program_has_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        // The shell stays, since it has something to do afterwards.
        let process = Process::new("shell", "sh", folder.path()).args(["-c", "sleep 300; true"]);
        let mut program = Program::start(process).unwrap();
        let soon = Duration::from_secs(10);
        let pids = until("the shell has started its child", soon, async || {
            let pids = program.pids()?;
            ensure!(pids.len() == 2, "{pids:?}");
            anyhow::Ok(pids)
        });
        let pids = pids.await.unwrap();
        drop(program);
        let is_running = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie that its new parent has not looked at yet has ended as well.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        until("both have ended", soon, async || {
            let left: Vec<_> = pids.iter().filter(|pid| is_running(**pid)).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

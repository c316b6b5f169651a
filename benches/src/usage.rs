//! What processes use of the machine, as /proc tells it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Linux tells all programs so, whatever its own tick.
const TICKS_PER_SECOND: u64 = 100;

/// The CPU time that a process has used, in user mode and in the kernel.
///
/// # Errors
/// There is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything, spaces and parentheses included.
    let after_name = stat
        .rsplit_once(')')
        .context("an unknown format of /proc/<pid>/stat")?
        .1;
    let field = |at: usize| {
        after_name
            .split_whitespace()
            .nth(at)
            .and_then(|field| field.parse::<u64>().ok())
    };
    let ticks = field(11).zip(field(12)).map(|(user, system)| user + system);
    Ok(Duration::from_millis(
        ticks.context("an unknown format of /proc/<pid>/stat")? * 1000 / TICKS_PER_SECOND,
    ))
}

/// The CPU time that several processes have used.
///
/// # Errors
/// One is not there.
pub fn cpu_of_all(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu(*pid)).sum()
}

/// The memory that a process has in use (resident), in MiB.
///
/// # Errors
/// There is no such process.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("no VmRSS in /proc/<pid>/status")? / 1024.0)
}

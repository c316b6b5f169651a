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

/// The memory that one program's processes have in use in MiB: what several of them share is counted once.
///
/// # Errors
/// One is not there, or belongs to somebody else.
pub fn memory_mib(pids: &[u32]) -> Result<f64> {
    let of_one = |pid: &u32| {
        let file = format!("/proc/{pid}/smaps_rollup");
        let rollup = fs::read_to_string(&file).with_context(|| file.clone())?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        anyhow::Ok(kib.with_context(|| format!("no Pss in {file}"))? / 1024.0)
    };
    match pids {
        // What it shares with other programs is its own all the same.
        [pid] => resident_mib(*pid),
        pids => pids.iter().map(of_one).sum(),
    }
}

/// The processes that a process has started, and those that they have started.
pub fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let children: Vec<u32> = tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|children| {
            children
                .split_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    let further: Vec<u32> = children.iter().flat_map(|child| descendants(*child)).collect();
    [children, further].concat()
}

//! Tests that need a network or disks of their own: they run in namespaces, out of which nothing that they do is seen.
//!
//! Network interfaces, packet filters and mounts belong to the namespaces and end with them, and so does every process,
//! whatever the test dies of.

pub mod disks;
pub mod network;

use std::any::type_name;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::runtime::Builder;
use tokio::time::timeout;

/// Tells the test that it is inside: the network namespace that it was started from.
const OUTSIDE: &str = "HOLDFAST_TEST_OUTSIDE";
/// Where the test inside notes that it has run.
const NOTE: &str = "HOLDFAST_TEST_NOTE";
/// Below the test runner's own patience, so that a test that hangs says where.
const WITHIN: Duration = Duration::from_secs(270);
/// Where Debian has what administrators use; other users do not look there.
const SBIN: &str = "/usr/sbin:/sbin";

/// What is wanted, and before it what a user needs who may only be root in a namespace of his own.
const NAMESPACES: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
const WAYS: [&[&str]; 2] = [&[], &["--user", "--map-root-user"]];

/// Runs the body of the test that calls it, and no other, in namespaces of its own.
///
/// The test's executable starts itself again inside, for this one test; so `body` has to be written in the test.
///
/// # Errors
/// The body's; or the namespaces cannot be made, and the text says why. Such a test fails: it has shown nothing.
pub fn apart<F: AsyncFnOnce() -> Result<()>>(body: F) -> Result<()> {
    match std::env::var(OUTSIDE) {
        Ok(outside) => inside(&outside, body),
        Err(_) => outside(test_name(type_name::<F>())?),
    }
}

fn outside(test: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let note = folder.path().join("ran");
    let mut command = entering()?;
    command.args(["--exact", test, "--nocapture"]).env(NOTE, &note);
    let ended = command.stdin(Stdio::null()).status()?;
    ensure!(ended.success(), "{test} failed in its namespaces ({ended}): see above");
    // A runner that finds no test of this name is content with none.
    ensure!(note.exists(), "{test} was not run in its namespaces");
    Ok(())
}

fn inside(outside: &str, body: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    ensure!(here()? != Path::new(outside), "this is no network of the test's own");
    if let Some(note) = std::env::var_os(NOTE) {
        fs::write(note, [])?;
    }
    run("ip", ["link", "set", "lo", "up"])?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async { timeout(WITHIN, body()).await });
    ended.with_context(|| format!("not within {WITHIN:?}"))?
}

/// The network namespace of this process.
fn here() -> Result<PathBuf> {
    fs::read_link("/proc/self/ns/net").context("this system has no network namespaces")
}

/// This executable, to be started in namespaces of its own.
fn entering() -> Result<Command> {
    let mut refusals = String::new();
    for way in WAYS {
        let flags = way.iter().chain(&NAMESPACES);
        match run("unshare", flags.clone().chain(&["--", "true"])) {
            Ok(_) => {
                let mut command = tool("unshare");
                command.args(flags).arg("--").arg(std::env::current_exe()?);
                command.env(OUTSIDE, here()?);
                return Ok(command);
            }
            Err(refusal) => write!(refusals, "\n{refusal:#}")?,
        }
    }
    bail!(
        "this test needs network, mount and process namespaces of its own and cannot make them: run it as root, or \
         allow users to make namespaces (sysctl kernel.unprivileged_userns_clone=1){refusals}"
    )
}

/// `partitions::random::a_name::{{closure}}` is the test `random::a_name`.
fn test_name(of_closure: &str) -> Result<&str> {
    let name = of_closure
        .split_once("::")
        .and_then(|(_, rest)| rest.split_once("::{{closure}}"));
    name.map(|(name, _)| name)
        .with_context(|| format!("{of_closure} is no closure in a test"))
}

/// A program of the system.
fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:{SBIN}"));
    command
}

/// Runs a program of the system to its end and returns what it printed.
fn run<A: AsRef<std::ffi::OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    finish(name, tool(name).args(arguments))
}

fn finish(name: &str, command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{name} is needed ('make setup' installs it)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_found_by_its_closure() {
        assert_eq!(test_name("partitions::random::a::{{closure}}").unwrap(), "random::a");
        assert_eq!(test_name("partitions::a::{{closure}}::{{closure}}").unwrap(), "a");
        assert!(test_name("partitions::random::a").is_err());
    }
}

//! As many requests as can be, by wrk.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::programs;
use crate::proxies::Routes;

/// Asks for a random route each time, the same ones at every call; at the end says in one line what there was.
const SCRIPT: &str = r#"
function init(args)
    math.randomseed(1)
    host, routes, rest = args[1], tonumber(args[2]), args[3]
end
function request()
    local route = math.random(0, routes - 1)
    return "GET /user/user-" .. route .. rest .. " HTTP/1.1\r\nHost: " .. host .. "\r\n\r\n"
end
function done(summary, latency, requests)
    local e = summary.errors
    print("told", summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout, e.status)
end
"#;

/// What wrk has done.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Requests with a good answer.
    pub requests: f64,
    /// How long it took.
    pub seconds: f64,
}

impl Done {
    /// Good answers per second.
    pub fn per_second(self) -> f64 {
        self.requests / self.seconds
    }
}

/// The program.
///
/// # Errors
/// It is not installed.
pub fn program() -> Result<PathBuf> {
    programs::find("wrk").context("wrk is not installed: scripts/setup.sh installs it")
}

/// Asks `address` for random routes with one thread, one request at a time on each connection. `rest` is what comes in
/// the path after the route. Seconds are whole, one at least.
///
/// # Errors
/// An answer that was not 2xx or 3xx, a broken connection, or no wrk. Dropping the future ends it.
pub async fn ask(address: &str, routes: &Routes, rest: &str, connections: usize, time: Duration) -> Result<Done> {
    let script = tempfile::Builder::new()
        .prefix("holdfast-bench-")
        .suffix(".lua")
        .tempfile()?;
    std::fs::write(script.path(), SCRIPT)?;
    let seconds = time.as_secs().max(1);
    let output = Command::new(program()?)
        .args(["-t1", "-c", &connections.to_string(), "-d", &format!("{seconds}s")])
        .args(["--timeout", "10s", "-s"])
        .arg(script.path())
        .args([&format!("http://{address}/"), "--", address])
        .args([&routes.count().to_string(), rest])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    write!(said, "{}", String::from_utf8_lossy(&output.stderr))?;
    ensure!(output.status.success(), "wrk failed: {said}");
    parse(&said).with_context(|| format!("wrk said: {said}"))
}

fn parse(said: &str) -> Result<Done> {
    let line = said.lines().find_map(|line| line.strip_prefix("told"));
    let figures: Vec<f64> = line
        .context("no figures")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [requests, microseconds, broken, refused] = figures[..] else {
        anyhow::bail!("other figures than expected");
    };
    ensure!(broken == 0.0, "{broken} connections broke or had no answer");
    ensure!(refused == 0.0, "{refused} answers were none of a target");
    ensure!(requests > 0.0, "no answer at all");
    Ok(Done {
        requests,
        seconds: microseconds / 1e6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_no_figures() {
        let done = parse("Running\ntold\t2000\t1000000\t0\t0\n").unwrap();
        assert_eq!(done.per_second(), 2000.0);
        for said in [
            "",
            "told\t2000\t1000000\t1\t0",
            "told\t2000\t1000000\t0\t1",
            "told\t0\t1000000\t0\t0",
        ] {
            assert!(parse(said).is_err(), "{said}");
        }
    }
}

//! HAProxy: one map of prefixes names a backend, of which each target has one. The map is changed at its socket.

use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::fixture::Process;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::{By, Kind, Place, Routes};

const FILE: &str = "haproxy.cfg";
const MAP: &str = "routes.map";
const SOCKET: &str = "haproxy.sock";

pub(super) fn prepare(place: &Place, routes: &Routes) -> Result<Process> {
    let mut backends = String::new();
    for (number, target) in routes.targets().iter().enumerate() {
        writeln!(backends, "backend t{number}\n    server s {target}")?;
    }
    let config = format!(
        "global
    maxconn 8000
    stats socket unix@{SOCKET} mode 600 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 24h
    http-reuse always
    option forwardfor
frontend users
    bind {}
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Port %[dst_port]
    http-request set-header X-Forwarded-Proto http
    use_backend %[path,map_beg({MAP})]
{backends}",
        place.address()
    );
    let mut map = String::new();
    for route in 0..routes.count() {
        writeln!(map, "{} t{}", routes.prefix(route), routes.target(route))?;
    }
    fs::write(place.folder().join(MAP), map)?;
    fs::write(place.folder().join(FILE), config)?;
    Ok(place.process(Kind::Haproxy)?.args(["-db", "-f", FILE]))
}

/// In memory alone: who wants it to last writes the map's file too.
pub(super) async fn add(place: &Place, routes: &Routes, route: usize, by: By) -> Result<()> {
    let command = format!("add map {MAP} {} t{}\n", routes.prefix(route), routes.target(route));
    let mut said = String::new();
    match by {
        By::Call => {
            let mut socket = UnixStream::connect(place.folder().join(SOCKET)).await?;
            socket.write_all(command.as_bytes()).await?;
            socket.read_to_string(&mut said).await?;
        }
        By::Command => {
            let mut socat = Command::new("socat")
                .args(["-", &format!("UNIX-CONNECT:{SOCKET}")])
                .current_dir(place.folder())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .context("no socat: scripts/install_debian_proxies.sh installs it")?;
            let mut stdin = socat.stdin.take().context("no standard input")?;
            stdin.write_all(command.as_bytes()).await?;
            drop(stdin);
            let output = socat.wait_with_output().await?;
            ensure!(output.status.success(), "socat: {}", output.status);
            said = String::from_utf8(output.stdout)?;
        }
    }
    ensure!(said.trim().is_empty(), "{said}");
    Ok(())
}

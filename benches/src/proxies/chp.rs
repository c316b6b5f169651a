//! configurable-http-proxy: an empty table at every start, and one call of its REST API for each route.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::fixture::{Process, until};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::spawn_blocking;

use super::{By, Kind, Place, READY_WITHIN, Routes};
use crate::client::Client;

/// Calls at once while all routes are loaded.
const CALLS: usize = 16;

pub(super) fn prepare(place: &Place) -> Result<Process> {
    let (port, control_port) = (place.port.to_string(), place.control_port.to_string());
    Ok(place
        .process(Kind::Chp)?
        .args(["--ip", "127.0.0.1", "--port", &port])
        .args(["--api-ip", "127.0.0.1", "--api-port", &control_port])
        .args(["--log-level", "error"]))
}

pub(super) async fn load(place: &Place, routes: &Routes) -> Result<()> {
    let api = place.control_address();
    until("the REST API answers", READY_WITHIN, async || {
        TcpStream::connect(&api).await
    })
    .await?;
    let routes = routes.clone();
    spawn_blocking(move || {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = Client::open(&api)?;
                        loop {
                            let route = next.fetch_add(1, Ordering::Relaxed);
                            if route >= routes.count() {
                                return anyhow::Ok(());
                            }
                            post(&mut client, &routes, route)?;
                        }
                    })
                })
                .collect();
            callers
                .into_iter()
                .try_for_each(|caller| caller.join().ok().context("a caller panicked")?)
        })
    })
    .await?
}

pub(super) async fn add(place: &Place, routes: &Routes, route: usize, by: By) -> Result<()> {
    let api = place.control_address();
    match by {
        By::Call => {
            let routes = routes.clone();
            spawn_blocking(move || post(&mut Client::open(&api)?, &routes, route)).await?
        }
        By::Command => {
            let url = format!("http://{api}{}", path(routes, route));
            let output = Command::new("curl")
                .args(["-sS", "--fail", "--json", &body(routes, route), &url])
                .kill_on_drop(true)
                .output()
                .await
                .context("no curl: scripts/install_debian_proxies.sh installs it")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        }
    }
}

fn post(client: &mut Client, routes: &Routes, route: usize) -> Result<()> {
    let answer = client.post(&path(routes, route), &body(routes, route))?;
    ensure!(answer.status == 201, "{answer:?}");
    Ok(())
}

fn path(routes: &Routes, route: usize) -> String {
    format!("/api/routes{}", routes.prefix(route).trim_end_matches('/'))
}

fn body(routes: &Routes, route: usize) -> String {
    format!(r#"{{"target": "{}"}}"#, routes.url(route))
}

//! The same users behind configurable-http-proxy, to show what the incident was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::echo::Echo;
use holdfast_tests::fixture::chp::configurable_http_proxy;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Process, free_port, until};
use holdfast_tests::http;
use holdfast_tests::prober::{Prober, ProberOptions};

use crate::hub::Hub;
use crate::replay::{USERS, subjects, synthetic_users};
use crate::report::{Report, time};
use crate::{Flags, pause};

/// How often the hub looks after its routes: zero-to-jupyterhub's 60 s. The hub's own default is 300 s.
const POLL_SECONDS: &str = "60";
/// The routes are back within one poll, or never.
const REPAIRED_WITHIN: Duration = Duration::from_secs(120);

/// Kills configurable-http-proxy and shows what its users are told.
///
/// # Errors
/// A part does not start, or the routes do not come back at all.
pub async fn replay(flags: Flags) -> Result<()> {
    let mut report = Report::new();
    let folder = tempfile::Builder::new().prefix("incident-").tempdir()?;
    let echo = Echo::start().await?;
    let names = synthetic_users();
    // The hub is told of the synthetic routes, or it would not add them again.
    let extra: BTreeMap<_, _> = names
        .iter()
        .map(|name| (format!("/user/{name}/"), echo.target(name)))
        .collect();
    std::fs::write(folder.path().join("extra_routes.json"), serde_json::to_vec(&extra)?)?;

    let (address, api) = (
        format!("127.0.0.1:{}", free_port()),
        format!("127.0.0.1:{}", free_port()),
    );
    let settings = [
        ("INCIDENT_CHP_API", format!("http://{api}")),
        ("CONFIGPROXY_AUTH_TOKEN", "a-secret-for-the-demo".to_owned()),
        ("INCIDENT_POLL_SECONDS", POLL_SECONDS.to_owned()),
    ];
    let mut hub = Hub::new(folder.path(), &format!("http://{address}"), &settings)?;
    // The flags that zero-to-jupyterhub gives it.
    let mut chp = Process::new("configurable-http-proxy", program()?, folder.path())
        .args([
            "--ip",
            "127.0.0.1",
            "--port",
            port(&address),
            "--api-ip",
            "127.0.0.1",
            "--api-port",
            port(&api),
        ])
        .args(["--default-target".to_owned(), format!("http://{}", hub.address())])
        .args([
            "--error-target".to_owned(),
            format!("http://{}/hub/error", hub.address()),
        ])
        .env("CONFIGPROXY_AUTH_TOKEN", &settings[1].1);
    start(&mut chp, &address).await?;
    report.say("configurable-http-proxy runs");
    hub.start().await?;
    hub.start_servers(&USERS).await?;
    report.say(format!(
        "a JupyterHub runs, with the servers of {} and {} more routes",
        USERS.join(", "),
        names.len()
    ));

    // Gentle: what the proxy does not know it sends to the hub, which must stay able to repair it.
    let options = ProberOptions {
        rate: 100,
        ..ProberOptions::default()
    };
    let mut prober = Prober::new(subjects(&names), options);
    let proxy = prober.add_proxy("chp", &address);
    prober.round().await?;
    report.say("a client asks for every user's route, and holds WebSockets");
    report.step("nothing happens", prober.take(), None);

    report.say(format!(
        "kill -9 configurable-http-proxy (pid {})",
        chp.pid().unwrap_or(0)
    ));
    prober.expect_down(proxy);
    chp.kill();
    prober.expect_up(proxy);
    let killed = Instant::now();
    start(&mut chp, &address).await?;
    report.say("it is started again, answers, and its health check says 200");
    let is_repaired = wait_until_repaired(&prober).await;
    report.say(format!(
        "no route is denied any more, {} after the kill",
        time(killed.elapsed())
    ));
    report.step("kill -9 the proxy, start it again", prober.take(), None);
    report.print();
    if flags.pause {
        pause(&format!(
            "Log in at http://{address} as alice, bob or anybody, with any password."
        ))
        .await;
    }
    ensure!(is_repaired, "the routes did not come back within {REPAIRED_WITHIN:?}");
    Ok(())
}

/// Returns when a second has passed in which no existing route was denied; false if that does not come.
async fn wait_until_repaired(prober: &Prober) -> bool {
    let began = Instant::now();
    let (mut denied, mut since) = (0, Instant::now());
    until("no route is denied", REPAIRED_WITHIN, async || {
        let seen = prober.seen();
        if seen.no_route + seen.wrong + seen.failed > denied || seen.first_right.is_empty() {
            (denied, since) = (seen.no_route + seen.wrong + seen.failed, Instant::now());
        }
        let is_quiet = since.elapsed() > Duration::from_secs(1);
        if is_quiet { Ok(()) } else { Err(began.elapsed()) }
    })
    .await
    .is_ok()
}

async fn start(chp: &mut Process, address: &str) -> Result<()> {
    chp.start()?;
    until("configurable-http-proxy answers", SOON, async || {
        let answer = http::get(address, "/_chp_healthz").await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })
    .await
    .with_context(|| chp.log_tail(20))
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or(address)
}

fn program() -> Result<PathBuf> {
    configurable_http_proxy()
        .context("no configurable-http-proxy: make demo-chp installs it, or name it in HOLDFAST_CHP")
}

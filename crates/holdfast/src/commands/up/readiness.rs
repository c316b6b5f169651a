//! When `holdfast up` may say that it is up, and when it never will be.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use holdfast_client::{Endpoints, RouteReader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::plan::Plan;
use crate::supervise::{ChildState, States};

const STEP: Duration = Duration::from_millis(100);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to say what is waited for.
const PROGRESS: Duration = Duration::from_secs(3);
/// How long those that the others can do without hold things up.
const LAST_ONES: Duration = Duration::from_secs(5);
/// So many failed starts in a row are not bad luck.
const FAILURES_MAX: u32 = 3;
/// No route begins with this, so that the answer is short however many routes there are.
const NO_ROUTE: &str = "//";

/// Returns when the API answers a linearizable read and every proxy is ready.
///
/// Then waits a little for the last replicas and for the proxies to follow, and only warns about one that does not come:
/// the others serve.
///
/// # Errors
/// What has to run keeps failing, or says that its settings are wrong.
pub(super) async fn wait(
    plan: &Plan,
    endpoints: Endpoints,
    states: Option<watch::Receiver<States>>,
) -> anyhow::Result<()> {
    let reader = RouteReader::new(endpoints, ANSWER_TIMEOUT);
    let mut next_progress = Instant::now() + PROGRESS;
    let mut serving_since = None;
    loop {
        if let Some(states) = &states {
            give_up(plan, &states.borrow())?;
        }
        let missing = missing(plan, &reader).await;
        let late = match missing.is_empty() {
            true => late(plan, &reader).await,
            false => Vec::new(),
        };
        match (missing.is_empty(), late.is_empty()) {
            (true, true) => return Ok(()),
            (true, false) if serving_since.get_or_insert_with(Instant::now).elapsed() >= LAST_ONES => {
                tracing::warn!("up, but not complete: {}", late.join("; "));
                return Ok(());
            }
            _ => {}
        }
        if Instant::now() >= next_progress {
            tracing::info!("not up yet, waiting for: {}", [missing, late].concat().join("; "));
            next_progress = Instant::now() + PROGRESS;
        }
        sleep(STEP).await;
    }
}

fn give_up(plan: &Plan, states: &States) -> anyhow::Result<()> {
    let hopeless = |state: &ChildState| state.hopeless || state.failures >= FAILURES_MAX;
    let failed: Vec<_> = states.iter().filter(|(_, state)| hopeless(state)).collect();
    let replicas = failed.iter().filter(|(name, _)| name.starts_with('r')).count();
    let without_quorum = replicas > usize::from(plan.replicas - 1) / 2;
    if without_quorum || failed.len() > replicas {
        let failed: Vec<String> = failed
            .iter()
            .map(|(name, state)| {
                format!(
                    "{name} ended with {}",
                    state.ended.as_deref().unwrap_or("an unknown cause")
                )
            })
            .collect();
        bail!("cannot come up: {}; its own lines above say why", failed.join(", "));
    }
    Ok(())
}

async fn missing(plan: &Plan, reader: &RouteReader) -> Vec<String> {
    let mut missing = Vec::new();
    if let Err(error) = reader.list(None, NO_ROUTE).await {
        missing.push(format!("the API: {error}"));
    }
    for (name, address) in plan.proxy_probes() {
        if let Err(problem) = ready(address).await {
            missing.push(format!("{name} at http://{address}: {problem}"));
        }
    }
    missing
}

/// Replicas that do not serve yet, and proxies that follow none: until it follows, no write waits for a proxy.
async fn late(plan: &Plan, reader: &RouteReader) -> Vec<String> {
    let mut late = Vec::new();
    let mut following = Vec::new();
    for (endpoint, answer) in reader.statuses().await {
        match answer {
            Ok(status) => {
                let acknowledged = status
                    .subscribers
                    .into_iter()
                    .filter(|subscriber| !subscriber.digest.is_empty());
                following.extend(acknowledged.map(|subscriber| subscriber.name));
                match (status.ready, status.waiting_for.as_str()) {
                    (true, _) => {}
                    (false, "") => late.push(format!("{} is catching up", status.name)),
                    (false, reason) => late.push(format!("{} waits for {reason}", status.name)),
                }
            }
            Err(error) => late.push(format!("{endpoint}: {error}")),
        }
    }
    let strays = plan
        .proxy_probes()
        .into_iter()
        .filter(|(name, _)| !following.contains(name));
    late.extend(strays.map(|(name, _)| format!("{name} does not follow a replica yet")));
    late
}

/// Whether a proxy says that it can serve. It is not asked where users come in, for that may be by TLS, and with a
/// certificate of one's own.
async fn ready(address: SocketAddr) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // `HTTP/1.1 200`: more of the answer is of no interest.
        let mut status_line = [0; 12];
        stream.read_exact(&mut status_line).await?;
        Ok::<_, std::io::Error>(status_line)
    };
    match timeout(ANSWER_TIMEOUT, ask).await {
        Err(_) => Err(format!("no answer within {ANSWER_TIMEOUT:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(line)) if line.ends_with(b" 200") => Ok(()),
        Ok(Ok(line)) => Err(format!("not ready ({})", String::from_utf8_lossy(&line))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answering(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream
        };
        tokio::join!(ready(address), serve).0
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        assert_eq!(answering("HTTP/1.1 200 OK\r\n\r\n").await, Ok(()));
        assert!(
            answering("HTTP/1.1 503 Service Unavailable\r\n\r\n")
                .await
                .unwrap_err()
                .contains("503")
        );
        assert!(answering("nonsense, all of it").await.is_err());
    }
}

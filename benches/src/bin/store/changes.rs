//! A change of leader: killed, moved, or asked to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use holdfast_benches::Run;
use holdfast_benches::comparison::Comparison;
use holdfast_benches::load::{Steady, first_acknowledgement, longest};
use holdfast_benches::payload::Payloads;
use holdfast_benches::stores::{Connection, PATIENCE, Store};
use nix::sys::signal::Signal;
use tokio::time::sleep;

const ROUTES: u64 = 10_000;
const KILLS: usize = 2;
/// Before the first and between any two events.
const QUIET: Duration = Duration::from_millis(1_500);

/// `kill -9` of the leader, with every timer at its default.
pub async fn kill(run: &Run, store: &mut Store, comparison: &mut Comparison) -> Result<()> {
    let system = store.system();
    let payloads = Payloads::over(ROUTES);
    for _ in 0..run.times(KILLS) {
        let leader = store.leader().await?;
        let mut survivors = Vec::new();
        for member in (0..store.endpoints().len()).filter(|member| *member != leader) {
            survivors.push(store.connect(member).await?);
        }
        // Both have handed a write on before, as they would have in use.
        for _ in 0..2 {
            first_acknowledgement(&survivors, &payloads).await?;
        }
        sleep(run.time(QUIET)).await;
        let killed = Instant::now();
        store.process(leader).kill();
        let gap = first_acknowledgement(&survivors, &payloads).await? - killed;
        comparison.add(
            "kill -9 of the leader, to the next acknowledged write",
            system,
            gap.as_secs_f64(),
        );
        store.process(leader).start()?;
        store.healthy().await?;
    }
    Ok(())
}

/// The leader is moved by an operator's call, then the leader is asked to stop, under a steady load.
pub async fn change_leader(run: &Run, store: &mut Store, comparison: &mut Comparison) -> Result<()> {
    let system = store.system();
    let payloads = Arc::new(Payloads::over(ROUTES));
    let members = store.endpoints().len();
    let mut connections: Vec<Connection> = Vec::new();
    for member in 0..members {
        connections.push(store.connect(member).await?);
    }
    let quiet = run.time(QUIET);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;

    let leader = store.leader().await?;
    let steady = Steady::start(&connections, leader, &payloads);
    sleep(quiet).await;
    let before = Instant::now();
    sleep(quiet).await;
    let event = Instant::now();
    store.move_leader(leader, (leader + 1) % members).await?;
    sleep(quiet).await;
    let writes = steady.stop().await?;
    let after = Instant::now();
    let (none, moved) = (longest(&writes, before, event), longest(&writes, event, after));
    comparison.add("longest write, no event", system, milliseconds(none));
    comparison.add(
        "longest write, leader moved by an operator",
        system,
        milliseconds(moved),
    );

    store.healthy().await?;
    let leader = store.leader().await?;
    let steady = Steady::start(&connections, leader, &payloads);
    sleep(quiet).await;
    let event = Instant::now();
    store.process(leader).signal(Signal::SIGTERM);
    let ended = store.process(leader).ended(PATIENCE).await;
    sleep(quiet).await;
    let writes = steady.stop().await?;
    let after = Instant::now();
    ended.context("the leader does not stop")?;
    let stopped = longest(&writes, event, after);
    comparison.add("longest write, SIGTERM of the leader", system, milliseconds(stopped));
    Ok(())
}

//! Memory of what does nothing: open WebSockets, and routes.

use std::time::Duration;

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_benches::proxies::{Kind, Proxy, Routes};
use holdfast_benches::targets::{ECHO, Targets};
use holdfast_benches::usage::memory_mib;
use holdfast_tests::websocket;
use tokio::time::sleep;

use crate::{Bench, SHARED};

const WEBSOCKETS: usize = 2_000;
const OPENING_AT_ONCE: usize = 16;
/// Memory is looked at after a pause, when what was only passing has gone.
const SETTLE: Duration = Duration::from_secs(1);

/// What one more WebSocket needs, each round in a proxy that has just been started: none gives memory back.
pub async fn websockets(bench: &mut Bench) -> Result<()> {
    const WHAT: &str = "memory per idle WebSocket";
    let targets = Targets::start(SHARED)?;
    let routes = Routes::new(bench.run.times(1_000), targets.addresses());
    let count = bench.run.times(WEBSOCKETS);
    for _ in 0..bench.run.rounds(crate::ROUNDS) {
        for kind in proxied(bench) {
            for mut proxy in bench.proxies(WHAT, &[kind], &routes, 1).await? {
                match each_needs(&mut proxy, count).await {
                    Ok(mib) => bench.comparison.add(WHAT, kind, mib * 1024.0),
                    Err(error) => bench.miss(WHAT, kind, &error)?,
                }
            }
        }
    }
    Ok(())
}

async fn each_needs(proxy: &mut Proxy, count: usize) -> Result<f64> {
    let open = |number: usize| {
        let path = proxy.routes().path_to(number % proxy.routes().count(), ECHO);
        let address = proxy.address().to_owned();
        async move { websocket::open(&address, &path).await }
    };
    // What the first of them needs once is not what each needs.
    let first = open(0).await?;
    sleep(SETTLE).await;
    let opening: Vec<_> = (0..count).map(open).collect();
    let before = memory_mib(&proxy.pids()?)?;
    let streams: Vec<_> = stream::iter(opening)
        .buffer_unordered(OPENING_AT_ONCE)
        .try_collect()
        .await?;
    sleep(SETTLE).await;
    let after = memory_mib(&proxy.pids()?)?;
    drop((first, streams));
    Ok((after - before) / count as f64)
}

/// All that a proxy with many routes needs, after it has served some of them.
pub async fn routes(bench: &mut Bench) -> Result<()> {
    const WHAT: &str = "memory, 100,000 routes";
    let targets = Targets::start(SHARED)?;
    let routes = Routes::new(bench.run.times(100_000), targets.addresses());
    let kinds = proxied(bench);
    for _ in 0..bench.run.rounds(crate::ROUNDS) {
        for kind in &kinds {
            for mut proxy in bench.proxies(WHAT, &[*kind], &routes, 1).await? {
                sleep(SETTLE).await;
                let memory = memory_mib(&proxy.pids()?)?;
                bench.comparison.add(WHAT, *kind, memory);
            }
        }
    }
    Ok(())
}

fn proxied(bench: &Bench) -> Vec<Kind> {
    let mut kinds = bench.kinds();
    kinds.retain(|kind| *kind != Kind::Direct);
    kinds
}

//! WebSockets that are busy: one small frame there and back, again and again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_benches::proxies::Routes;
use holdfast_benches::targets::{ECHO, Targets};
use holdfast_benches::usage::cpu_of_all;
use holdfast_tests::websocket::{self, TEXT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime;
use tokio::task::{JoinSet, spawn_blocking};

use crate::{Bench, SHARED, at_least_a_second};

const CONNECTIONS: usize = 64;
const ROUTES: usize = 1_000;
const ROUND: Duration = Duration::from_secs(3);
const PAYLOAD: [u8; 64] = [b'.'; 64];
const WHAT: &str = "64 WebSockets";

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let targets = Targets::start(SHARED)?;
    let routes = Routes::new(bench.run.times(ROUTES), targets.addresses());
    let kinds = bench.kinds();
    let proxies = bench.proxies(WHAT, &kinds, &routes, 1).await?;
    let time = at_least_a_second(bench.run.time(ROUND));
    bench
        .rounds(WHAT, proxies, async |proxy| {
            let pids = proxy.pids()?;
            let before = cpu_of_all(&pids)?;
            let (address, routes) = (proxy.address().to_owned(), proxy.routes().clone());
            // In one thread, as wrk has one.
            let echoed = spawn_blocking(move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(echo_on_all(&address, &routes, time))
            });
            let (echoes, took) = echoed.await??;
            let used = cpu_of_all(&pids)? - before;
            let mut figures = vec![(WHAT.to_owned(), echoes as f64 / took.as_secs_f64())];
            if !pids.is_empty() {
                let per_echo = used.as_secs_f64() * 1e6 / echoes as f64;
                figures.push((format!("{WHAT}: CPU per echo"), per_echo));
            }
            Ok(figures)
        })
        .await
}

/// How many frames came back, and in what time.
async fn echo_on_all(address: &str, routes: &Routes, time: Duration) -> Result<(u64, Duration)> {
    let mut streams = Vec::new();
    for number in 0..CONNECTIONS {
        streams.push(websocket::open(address, &routes.path_to(number % routes.count(), ECHO)).await?);
    }
    let mut frame = Vec::new();
    websocket::write(&mut frame, TEXT, &PAYLOAD, true).await?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        let frame = frame.clone();
        tasks.spawn(async move {
            let mut echoes = 0;
            let mut answer = [0; 2 + PAYLOAD.len()];
            while began.elapsed() < time {
                stream.write_all(&frame).await?;
                stream.read_exact(&mut answer).await?;
                ensure!(answer.ends_with(&PAYLOAD), "another frame came back");
                echoes += 1;
            }
            Ok(echoes)
        });
    }
    let mut echoes = 0;
    while let Some(done) = tasks.join_next().await {
        echoes += done??;
    }
    Ok((echoes, began.elapsed()))
}

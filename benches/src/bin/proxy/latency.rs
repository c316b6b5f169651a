//! How long an answer takes when the proxy has time: a load that every proxy carries with ease.

use std::time::Duration;

use anyhow::Result;
use holdfast_benches::open_loop;
use holdfast_benches::proxies::Routes;
use holdfast_benches::targets::Targets;
use tokio::task::spawn_blocking;

use crate::{Bench, SHARED, at_least_a_second};

const RATE: u32 = 1_000;
const CONNECTIONS: u32 = 64;
const ROUTES: usize = 10_000;
const ROUND: Duration = Duration::from_secs(5);
const WHAT: &str = "1,000 requests/s, 10,000 routes";

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let targets = Targets::start(SHARED)?;
    let routes = Routes::new(bench.run.times(ROUTES), targets.addresses());
    let kinds = bench.kinds();
    let proxies = bench.proxies(WHAT, &kinds, &routes, 1).await?;
    let time = at_least_a_second(bench.run.time(ROUND));
    bench
        .rounds(WHAT, proxies, async |proxy| {
            let (address, routes) = (proxy.address().to_owned(), proxy.routes().clone());
            let asked = spawn_blocking(move || open_loop::ask(&address, &routes, RATE, CONNECTIONS, time));
            let latencies = asked.await??;
            Ok(vec![
                (format!("{WHAT}: p50"), latencies.ms(50.0)),
                (format!("{WHAT}: p99"), latencies.ms(99.0)),
            ])
        })
        .await
}

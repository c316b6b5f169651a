//! Requests that come when they come: each has its time, and waits from then on, whether the answers before it are
//! there or not. So what one slow answer does to those behind it is counted (no coordinated omission).

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::prctl::set_timerslack;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::client::Client;
use crate::figures::Latencies;
use crate::proxies::Routes;

/// Asks for random routes, so many a second at even times, over so many connections in turn.
///
/// # Errors
/// A wrong answer, or none.
pub fn ask(address: &str, routes: &Routes, rate: u32, connections: u32, time: Duration) -> Result<Latencies> {
    let all_connected = Barrier::new(connections as usize);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|number| {
                let all_connected = &all_connected;
                scope.spawn(move || {
                    let client = Client::open(address).and_then(|mut client| {
                        client.ask(&routes.path(0))?;
                        // The kernel may wake a sleeper 50 us late unless told otherwise.
                        set_timerslack(1)?;
                        Ok(client)
                    });
                    // Also after a failure, or the others would wait for ever.
                    all_connected.wait();
                    ask_in_turn(&mut client?, routes, number, rate, connections, time)
                })
            })
            .collect();
        let mut latencies = Latencies::new();
        for thread in threads {
            latencies.merge(&thread.join().ok().context("a client panicked")??);
        }
        Ok(latencies)
    })
}

/// Every `connections`-th request.
fn ask_in_turn(
    client: &mut Client,
    routes: &Routes,
    number: u32,
    rate: u32,
    connections: u32,
    time: Duration,
) -> Result<Latencies> {
    let mut random = SmallRng::seed_from_u64(u64::from(number));
    let mut latencies = Latencies::new();
    let between = Duration::from_secs(1) / rate;
    let began = Instant::now();
    for turn in 0.. {
        let after = between * (turn * connections + number);
        if after >= time {
            break;
        }
        let due = began + after;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let route = random.random_range(0..routes.count());
        let answer = client.ask(&routes.path(route))?;
        latencies.add(due.elapsed());
        ensure!(answer.is_right(&routes.body(route)), "route {route}: {answer:?}");
    }
    Ok(latencies)
}

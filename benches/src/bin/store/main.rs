//! How does Holdfast's store compare with etcd, at the same work, on the same machine and disk?
//!
//! In each round every part is measured on etcd and then on Holdfast, or the other way round, each time on a cluster
//! that has just been started with empty directories, so that neither meets what an earlier measurement left behind.
//! Where it says something, the same load also goes to a gRPC server without a store. The client, its connections and
//! what is written are the same for all. Members, client and streams share one machine; that is the machine named in
//! the output.

mod capacity;
mod changes;
mod disk;
mod streams;
mod writes;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use holdfast_benches::Run;
use holdfast_benches::comparison::{Beside, Comparison, Row, Target};
use holdfast_benches::programs;
use holdfast_benches::stores::{Store, System, bare};
use tokio::signal::unix::{SignalKind, signal};

const ROUNDS: usize = 5;
/// No further round is begun that would end later.
const TIME_MAX: Duration = Duration::from_secs(14 * 60);
const PARTS: [&str; 7] = ["one", "many", "batches", "streams", "capacity", "kill", "move"];

const ROWS: &[Row] = &[
    row("1 writer: p50", "ms", Target::RatioAtMost(0.65)),
    row("64 writers", "writes/s", Target::RatioAtLeast(2.5)),
    row("64 writers: p50", "ms", Target::None),
    row("64 writers: p99", "ms", Target::RatioAtMost(0.5)),
    row("64 writers: CPU of all members per write", "us", Target::None),
    row("64 writers: CPU of the client per write", "us", Target::None),
    row("256 writers", "writes/s", Target::RatioAtLeast(2.5)),
    row("256 writers: p50", "ms", Target::None),
    row("256 writers: p99", "ms", Target::RatioAtMost(0.5)),
    row("256 writers: CPU of all members per write", "us", Target::None),
    row("256 writers: CPU of the client per write", "us", Target::None),
    row("batches of 100, 16 in flight", "routes/s", Target::RatioAtLeast(2.5)),
    row(
        "batches of 100, 16 in flight: CPU of all members per route",
        "us",
        Target::None,
    ),
    row("50 writes/s to 1,000 streams: p50", "ms", Target::RatioAtMost(0.9)),
    row("50 writes/s to 1,000 streams: p99", "ms", Target::RatioAtMost(0.9)),
    row(
        "1 writer while 1,000 streams follow: p50",
        "ms",
        Target::RatioAtMost(0.7),
    ),
    row("50 writes/s to 1,000 streams that acknowledge: p50", "ms", Target::None),
    row("50 writes/s to 1,000 streams that acknowledge: p99", "ms", Target::None),
    row("1 writer while 1,000 streams acknowledge: p50", "ms", Target::None),
    row("load 100,000 routes in batches of 100", "s", Target::RatioAtMost(0.4)),
    row("load 100,000 routes in batches of 10,000", "s", Target::None),
    row(
        "fresh subscriber, 100,000 routes received and decoded",
        "s",
        Target::RatioAtMost(0.35),
    ),
    row(
        "fresh subscriber, 100,000 routes in a table to look up in",
        "s",
        Target::RatioAtMost(0.35),
    ),
    row("memory of the largest member, empty", "MiB", Target::RatioAtMost(1.0)),
    row(
        "memory of the largest member, 10,000 routes",
        "MiB",
        Target::RatioAtMost(1.0),
    ),
    row(
        "memory of the largest member, 100,000 routes",
        "MiB",
        Target::RatioAtMost(1.0),
    ),
    row(
        "kill -9 of the leader, to the next acknowledged write",
        "s",
        Target::RatioAtMost(0.35),
    ),
    row("longest write, no event", "ms", Target::None),
    row("longest write, leader moved by an operator", "ms", Target::AtMost(30.0)),
    row("longest write, SIGTERM of the leader", "ms", Target::AtMost(30.0)),
];

const fn row(name: &'static str, unit: &'static str, target: Target) -> Row {
    Row {
        name,
        unit,
        target,
        beside: Beside::Best,
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [serve, address] = arguments.as_slice()
        && serve == bare::SERVE
    {
        return bare::serve(address).await;
    }
    // Stores are killed when they are dropped, so an interrupted run must return, not die.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = compare() => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn compare() -> Result<()> {
    let mut run = Run::start(
        "store",
        "Holdfast beside etcd, 3 members each on one machine",
        &PARTS,
        &[],
    )?;
    let systems = systems(&mut run);
    programs::raise_open_files()?;
    let mut comparison = Comparison::of(ROWS, &["etcd"], System::Bare.name());
    let rounds = run.rounds(ROUNDS);
    let mut done = 0;
    let mut disk = disk::Probes::default();
    while done < rounds {
        let before = run.elapsed();
        let mut order = systems.clone();
        if done % 2 == 1 {
            order.reverse();
        }
        round(
            &run,
            &format!("round {} of {rounds}", done + 1),
            &order,
            &mut comparison,
        )
        .await?;
        disk.probe()?;
        done += 1;
        let one = run.elapsed() - before;
        if done < rounds && run.elapsed() + one > TIME_MAX {
            run.say(format!("only {done} of {rounds} rounds: one more would take too long"));
            break;
        }
    }
    run.say(format!(
        "\nmedians of {done} rounds; targets are Holdfast's share of etcd's figure, or a bound of its own"
    ));
    comparison.table().iter().for_each(|line| run.say(line));
    run.say(format!("\n{disk}"));
    run.say("\nthe figures of each round");
    comparison.rounds().iter().for_each(|line| run.say(line));
    run.finish()
}

fn systems(run: &mut Run) -> Vec<System> {
    match programs::find("etcd") {
        Some(program) => {
            run.say(format!("etcd      {}", programs::version(&program, "--version")));
            vec![System::Etcd, System::Holdfast]
        }
        None => {
            run.say("etcd      is not installed (scripts/install_etcd.sh): Holdfast alone, nothing is compared");
            vec![System::Holdfast]
        }
    }
}

async fn round(run: &Run, name: &str, order: &[System], comparison: &mut Comparison) -> Result<()> {
    for part in PARTS.into_iter().filter(|part| run.includes(part)) {
        let has_floor = ["one", "many", "batches", "streams"].contains(&part);
        for system in order.iter().copied().chain(has_floor.then_some(System::Bare)) {
            run.progress(format!("{name}: {part}, {}", system.name()));
            let mut store = Store::start(system).await?;
            let measured = match part {
                "one" => writes::one(run, &mut store, comparison).await,
                "many" => writes::many(run, &mut store, comparison).await,
                "batches" => writes::batches(run, &mut store, comparison).await,
                "streams" => streams::measure(run, &mut store, comparison).await,
                "capacity" => capacity::measure(run, &mut store, comparison).await,
                "kill" => changes::kill(run, &mut store, comparison).await,
                _ => changes::change_leader(run, &mut store, comparison).await,
            };
            measured.with_context(|| format!("{part}, {}\n{}", system.name(), store.logs()))?;
        }
    }
    Ok(())
}

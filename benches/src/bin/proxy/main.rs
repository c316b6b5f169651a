//! How does Holdfast's proxy compare with others, at the same work, on the same machine?
//!
//! For each part all proxies are started with the same routes and stay up, idle, while one after the other is measured,
//! again and again, each round in another order: so what the machine does meanwhile meets all of them alike. Load,
//! proxy and targets share the machine that the output names. "direct" is the load on a target without any proxy: the
//! limit of the setup.

mod add;
mod alone;
mod idle;
mod latency;
mod rates;
mod rows;
mod start;
mod websockets;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use holdfast_benches::comparison::Comparison;
use holdfast_benches::proxies::{Kind, Proxy, Routes};
use holdfast_benches::{Run, programs, targets, wrk};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

const ROUNDS: usize = 5;
const PARTS: [&str; 10] = [
    "shared", "own", "latency", "large", "echo", "idle", "memory", "start", "add", "alone",
];
const PEERS: [&str; 6] = [
    Kind::Nginx.name(),
    Kind::Haproxy.name(),
    Kind::Envoy.name(),
    Kind::EnvoyTree.name(),
    Kind::Traefik.name(),
    Kind::Chp.name(),
];
/// Targets that many routes share.
const SHARED: usize = 16;

/// Figures of one measurement, each with its row.
type Figures = Vec<(String, f64)>;

fn main() -> Result<()> {
    if targets::serves_part()? {
        return Ok(());
    }
    let runtime = Runtime::new()?;
    // Proxies end when they are dropped, so an interrupted run must return, not die.
    let done = runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            done = compare() => done,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    });
    // A client that still waits for an answer is not waited for.
    runtime.shutdown_background();
    done
}

async fn compare() -> Result<()> {
    let mut bench = Bench::start(programs::raise_open_files()?)?;
    for part in PARTS {
        if !bench.run.includes(part) {
            continue;
        }
        let measured = match part {
            "shared" => rates::shared(&mut bench).await,
            "own" => rates::own(&mut bench).await,
            "latency" => latency::measure(&mut bench).await,
            "large" => rates::large(&mut bench).await,
            "echo" => websockets::measure(&mut bench).await,
            "idle" => idle::websockets(&mut bench).await,
            "memory" => idle::routes(&mut bench).await,
            "start" => start::measure(&mut bench).await,
            "add" => add::measure(&mut bench).await,
            _ => alone::measure(&mut bench).await,
        };
        // What can be measured is measured and told all the same.
        if let Err(error) = measured {
            bench.fail(part, &error);
        }
    }
    bench.finish()
}

/// The run, with what was found so far.
struct Bench {
    run: Run,
    comparison: Comparison,
    kinds: Vec<Kind>,
    /// What has no figure, and why.
    missed: Vec<String>,
    /// Parts that were not measured to their end.
    failed: Vec<&'static str>,
    /// The most that one process may have.
    open_files: u64,
}

impl Bench {
    fn start(open_files: u64) -> Result<Self> {
        let mut run = Run::start("proxy", "Holdfast's proxy beside others", &PARTS, &PEERS)?;
        run.say(format!(
            "load      {}",
            programs::version(&wrk::program()?, "--version")
        ));
        run.say(
            "workers   of each proxy one per processor, as it does by itself; chp: one process; load: one thread; \
             targets: one, or where each route has its own one per 1,000",
        );
        let mut kinds = Vec::new();
        for kind in Kind::ALL {
            let name = kind.name();
            match kind.program() {
                Some(_) if !run.is_beside(name) => {}
                Some((program, version, installed_by)) => match programs::find(program) {
                    Some(program) => {
                        run.say(format!("{name:<9} {}", programs::version(&program, version)));
                        kinds.push(kind);
                    }
                    None => run.say(format!("{name:<9} IS MISSING: {installed_by} installs {program}")),
                },
                None => kinds.push(kind),
            }
        }
        Ok(Bench {
            run,
            comparison: Comparison::of(rows::ROWS, &PEERS, Kind::Direct.name()),
            kinds,
            missed: Vec::new(),
            failed: Vec::new(),
            open_files,
        })
    }

    /// Every proxy that is measured, and the direct way.
    fn kinds(&self) -> Vec<Kind> {
        self.kinds.clone()
    }

    /// Starts these. One of the peers that does not serve its routes is told at the end.
    async fn proxies(&mut self, what: &str, kinds: &[Kind], routes: &Routes, replicas: usize) -> Result<Vec<Proxy>> {
        let mut proxies = Vec::new();
        for kind in kinds {
            self.run.progress(format!("{what}: {} starts", kind.name()));
            match Proxy::start(*kind, routes, replicas).await {
                Ok(proxy) => proxies.push(proxy),
                Err(error) => self.miss(what, *kind, &error)?,
            }
        }
        Ok(proxies)
    }

    /// Measures each proxy in every round, in another order each time. A peer that fails is told at the end, and left
    /// out from then on.
    async fn rounds(
        &mut self,
        what: &str,
        mut proxies: Vec<Proxy>,
        mut measure: impl AsyncFnMut(&mut Proxy) -> Result<Figures>,
    ) -> Result<()> {
        let rounds = self.run.rounds(ROUNDS);
        for round in 0..rounds {
            let is_first = round == 0 || proxies.is_empty();
            proxies.rotate_left(usize::from(!is_first));
            let mut failed = Vec::new();
            for (at, proxy) in proxies.iter_mut().enumerate() {
                let kind = proxy.kind();
                self.run
                    .progress(format!("{what}: round {} of {rounds}, {}", round + 1, kind.name()));
                match measure(proxy).await {
                    Ok(figures) => {
                        for (row, value) in figures {
                            self.comparison.add(&row, kind, value);
                        }
                    }
                    Err(error) => {
                        self.miss(what, kind, &error)?;
                        failed.push(at);
                    }
                }
            }
            for at in failed.into_iter().rev() {
                proxies.remove(at);
            }
        }
        Ok(())
    }

    /// Keeps in mind why a peer has no figure; Holdfast and the direct way must have all.
    fn miss(&mut self, what: &str, kind: Kind, error: &anyhow::Error) -> Result<()> {
        ensure!(kind.program().is_some(), "{what}, {}: {error:#}", kind.name());
        self.tell_of(format!("{what}, {}: {error:#}", kind.name()));
        Ok(())
    }

    /// Keeps in mind why a part ended too early, which makes the run a failure in the end.
    fn fail(&mut self, part: &'static str, error: &anyhow::Error) {
        self.tell_of(format!("the rest of {part}: {error:#}"));
        self.failed.push(part);
    }

    fn tell_of(&mut self, mut why: String) {
        why.truncate(why.char_indices().nth(400).map_or(why.len(), |(at, _)| at));
        self.run.progress(format!("no figure: {why}"));
        self.missed.push(why);
    }

    fn finish(mut self) -> Result<()> {
        let run = &mut self.run;
        run.say(format!(
            "\nmedians of {} rounds; targets are Holdfast's share of the named peer's figure, or a bound of its own",
            run.rounds(ROUNDS)
        ));
        self.comparison.table().iter().for_each(|line| run.say(line));
        if !self.missed.is_empty() {
            run.say("\nno figure");
            self.missed.iter().for_each(|line| run.say(line));
        }
        run.say(format!("\nload      {} (1, 5, 15 minutes, at the end)", Run::load()));
        run.say("\nthe figures of each round");
        self.comparison.rounds().iter().for_each(|line| run.say(line));
        self.run.finish()?;
        ensure!(
            self.failed.is_empty(),
            "not measured to the end: {}",
            self.failed.join(", ")
        );
        Ok(())
    }
}

/// The least time for which something is measured that needs it to mean anything.
fn at_least_a_second(time: Duration) -> Duration {
    time.max(Duration::from_secs(1))
}

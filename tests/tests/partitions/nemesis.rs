//! Whoever breaks things: one after the other, each for so many writes, so that a quorum is always left.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::apart::network::{Cut, End};
use holdfast_tests::clients::Clients;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, until};
use nix::sys::signal::Signal;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use tokio::time::Instant;

/// A fault lasts for so many writes,
const WRITES: std::ops::Range<u64> = 30..1000;
/// or so long if writes are slow meanwhile; but for a few writes in any case.
const LONG: Duration = Duration::from_secs(4);
const WRITES_LEAST: u64 = 10;
/// So many writes go well before the next fault.
const QUIET: std::ops::Range<u64> = 10..100;
/// Of a hundred packets, how many get lost.
const LOSS: std::ops::RangeInclusive<u8> = 5..=30;

/// What can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a start after a while.
    Kill,
    /// All of them at once, and a start at once.
    KillAll,
    /// SIGSTOP, and SIGCONT after a while.
    Pause,
    /// One replica and the two others do not hear each other. Clients reach all of them.
    Isolate,
    /// Nobody and one replica hear each other, clients included.
    Vanish,
    /// One replica is not heard by another.
    OneWay,
    /// One replica hears nobody, and is heard.
    Deaf,
    /// Two do not hear each other, and both hear the third.
    Bridge,
    /// Every way loses packets.
    Loss,
}

const ALL: [Fault; 9] = [
    Fault::Kill,
    Fault::KillAll,
    Fault::Pause,
    Fault::Isolate,
    Fault::Vanish,
    Fault::OneWay,
    Fault::Deaf,
    Fault::Bridge,
    Fault::Loss,
];

/// Breaks and mends a cluster.
pub struct Nemesis {
    random: SmallRng,
    began: Instant,
    waiting: Vec<Fault>,
    done: Vec<(Fault, Duration)>,
}

impl Nemesis {
    pub fn new(random: SmallRng) -> Self {
        Nemesis {
            random,
            began: Instant::now(),
            waiting: Vec::new(),
            done: Vec::new(),
        }
    }

    /// True once every kind of fault has had its turn.
    pub fn has_done_all(&self) -> bool {
        ALL.iter().all(|fault| self.done.iter().any(|(done, _)| done == fault))
    }

    /// Breaks something, lets the clients write, mends it, and lets them write again. Every kind of fault has its turn
    /// before one has another.
    ///
    /// # Errors
    /// The clients could not write though a quorum was there, or the cluster did not recover.
    pub async fn strike(&mut self, cluster: &mut Cluster, clients: &Clients) -> Result<()> {
        if self.waiting.is_empty() {
            self.waiting = ALL.to_vec();
            self.waiting.shuffle(&mut self.random);
        }
        let Some(fault) = self.waiting.pop() else {
            return Ok(());
        };
        // The leader every second time, and otherwise anybody, which may be the leader.
        let victim = match self.random.random() {
            true => cluster.leader().await?,
            false => self.random.random_range(0..3),
        };
        let other = (victim + self.random.random_range(1..3)) % 3;
        eprintln!(
            "[{:5.1} s] {fault:?}: r{victim}, r{other}; {} writes so far",
            self.began.elapsed().as_secs_f64(),
            clients.acknowledged()
        );
        let struck = Instant::now();
        self.break_it(fault, victim, other, cluster)?;
        let writes = self.random.random_range(WRITES);
        let gap = writes_go_on(clients, writes, LONG).await?;
        self.done.push((fault, gap));
        eprintln!(
            "          for {:.1} s; the longest time without a write {} ms",
            struck.elapsed().as_secs_f64(),
            gap.as_millis()
        );
        mend(fault, victim, cluster)?;
        cluster.ready().await?;
        let writes = self.random.random_range(QUIET);
        writes_go_on(clients, writes, SOON).await?;
        Ok(())
    }

    fn break_it(&mut self, fault: Fault, victim: usize, other: usize, cluster: &mut Cluster) -> Result<()> {
        let (one, two) = (End::Replica(victim), End::Replica(other));
        let third = End::Replica(3 - victim - other);
        let cuts = match fault {
            Fault::Kill => {
                cluster.replicas[victim].process.kill();
                return Ok(());
            }
            Fault::KillAll => {
                for replica in &mut cluster.replicas {
                    replica.process.kill();
                }
                for replica in &mut cluster.replicas {
                    replica.process.start()?;
                }
                return Ok(());
            }
            Fault::Pause => {
                cluster.replicas[victim].process.signal(Signal::SIGSTOP);
                return Ok(());
            }
            Fault::Isolate => [two, third].map(|end| Cut::between(one, end)).concat(),
            Fault::Vanish => [two, third, End::Clients].map(|end| Cut::between(one, end)).concat(),
            Fault::OneWay => vec![Cut::one_way(one, two)],
            Fault::Deaf => [two, third].map(|end| Cut::one_way(end, one)).to_vec(),
            Fault::Bridge => Cut::between(one, two).to_vec(),
            Fault::Loss => {
                let percent = self.random.random_range(LOSS);
                let ways = [(one, two), (two, third), (third, one)];
                ways.map(|(from, to)| Cut::loss(from, to, percent)).concat()
            }
        };
        cluster.network()?.cut(&cuts)
    }
}

fn mend(fault: Fault, victim: usize, cluster: &mut Cluster) -> Result<()> {
    match fault {
        Fault::Kill => cluster.replicas[victim].process.start(),
        Fault::KillAll => Ok(()),
        Fault::Pause => {
            cluster.replicas[victim].process.signal(Signal::SIGCONT);
            Ok(())
        }
        _ => cluster.network()?.heal(),
    }
}

/// Returns after so many more writes, or after `long` and a few; and the longest time without one.
async fn writes_go_on(clients: &Clients, writes: u64, long: Duration) -> Result<Duration> {
    let (before, began) = (clients.acknowledged(), Instant::now());
    let (mut last, mut gap) = ((before, began), Duration::ZERO);
    until(format!("{writes} writes"), SOON, async || {
        let acknowledged = clients.acknowledged();
        gap = gap.max(last.1.elapsed());
        if acknowledged > last.0 {
            last = (acknowledged, Instant::now());
        }
        let done = acknowledged - before;
        let is_enough = done >= writes || (done >= WRITES_LEAST && began.elapsed() >= long);
        ensure!(is_enough, "{done} writes");
        Ok(())
    })
    .await?;
    Ok(gap)
}

impl fmt::Display for Nemesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} faults", self.done.len())?;
        for fault in ALL {
            let gaps: Vec<_> = self
                .done
                .iter()
                .filter(|(done, _)| *done == fault)
                .map(|(_, gap)| gap)
                .collect();
            if let Some(longest) = gaps.iter().max() {
                write!(
                    f,
                    ", {fault:?} {} ({} ms without a write at most)",
                    gaps.len(),
                    longest.as_millis()
                )?;
            }
        }
        Ok(())
    }
}

//! What goes wrong, and when; and what must be well again once it has stopped.

use std::rc::Rc;
use std::time::Duration;

use holdfast_client::{Endpoints, RouteReader};
use holdfast_table::Digest;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use turmoil::Sim;

use super::cluster::{Phase, World, name, replica};
use super::disk::{QUICK, SLOW};
use super::history::{Ask, Counts, Told};
use super::planted::{Bug, planted};
use super::{clients, network};

/// How long things break.
const FAULTS: Duration = Duration::from_secs(18);
/// How long it may take afterwards until all is well.
const HEALING: Duration = Duration::from_secs(40);
const WRITERS: usize = 4;
const READERS: usize = 2;
const FOLLOWERS: usize = 2;
const WATCHERS: usize = 2;

/// What one seed did and found.
pub struct Report {
    /// What was counted.
    pub counts: Counts,
    /// Frames of streams checked.
    pub frames: u64,
    /// Attempts repeated.
    pub retries: u64,
    /// Leaderships moved.
    pub moves: u64,
    /// What was broken, and how often.
    pub faults: Faults,
    /// The same for the same run.
    pub fingerprint: u64,
    /// Empty, if all is well.
    pub violations: Vec<String>,
}

impl Report {
    /// Everything that can be added up over seeds, with its name.
    pub fn numbers(&self) -> Vec<(&'static str, u64)> {
        let (counts, faults) = (&self.counts, &self.faults);
        vec![
            ("writes", counts.writes),
            ("refused", counts.refused),
            ("fenced", counts.fenced),
            ("hubs", counts.hubs),
            ("late hubs", counts.late_hubs),
            ("held", counts.held),
            ("let go", counts.let_go),
            ("reads", counts.reads),
            ("retries", self.retries),
            ("stream events", self.frames),
            ("tables compared", counts.sights),
            ("crashes", faults.crashes),
            ("of all at once", faults.crashes_of_all),
            ("during a snapshot", faults.crashes_at_a_snapshot),
            ("failed syncs", faults.failed_syncs),
            ("batches lost", faults.batches_lost),
            ("wiped disks", faults.wiped_disks),
            ("slow disks", faults.slow_disks),
            ("slow networks", faults.latency),
            ("partitions", faults.partitions),
            ("one-way cuts", faults.one_way),
            ("bridges", faults.bridges),
            ("late deliveries", faults.holds),
            ("leaders cut off", faults.leaders_cut_off),
            ("leaders moved", self.moves),
            ("violations", self.violations.len() as u64),
        ]
    }
}

/// How often each kind of fault was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    crashes: u64,
    crashes_of_all: u64,
    crashes_at_a_snapshot: u64,
    wiped_disks: u64,
    failed_syncs: u64,
    partitions: u64,
    leaders_cut_off: u64,
    one_way: u64,
    bridges: u64,
    holds: u64,
    slow_disks: u64,
    latency: u64,
    batches_lost: u64,
}

struct Nemesis<'s> {
    sim: Sim<'s>,
    world: Rc<World>,
    rng: StdRng,
    faults: Faults,
    // When a crashed replica starts again.
    down: Vec<Option<Duration>>,
    cuts: Vec<Cut>,
    heal_network_at: Option<Duration>,
}

/// A link that does not work.
#[derive(Clone, Copy)]
enum Cut {
    Both(usize, usize),
    OneWay(usize, usize),
    Held(usize, usize),
}

/// Runs one seed to its end.
pub fn run(seed: u64) -> Report {
    let replicas = if seed % 4 == 3 { 5 } else { 3 };
    let world = World::new(seed, replicas);
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(seed)
        .simulation_duration(FAULTS + HEALING * 2)
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(Duration::from_millis(2))
        .tcp_capacity(1 << 16)
        .enable_random_order();
    let mut nemesis = Nemesis {
        sim: builder.build(),
        rng: world.rng("nemesis"),
        faults: Faults::default(),
        down: vec![None; replicas],
        cuts: Vec::new(),
        heal_network_at: None,
        world,
    };
    nemesis.populate();
    nemesis.rage();
    nemesis.heal();
    nemesis.report()
}

impl Nemesis<'_> {
    fn populate(&mut self) {
        let replicas = self.world.media.len();
        for at in 0..replicas {
            let world = self.world.clone();
            self.sim.host(name(at), move || replica(world.clone(), at));
        }
        for number in 0..WRITERS {
            let world = self.world.clone();
            self.sim
                .host(format!("w{number}"), move || clients::writer(world.clone(), number));
        }
        for number in 0..READERS {
            let world = self.world.clone();
            self.sim
                .host(format!("g{number}"), move || clients::reader(world.clone(), number));
        }
        for number in 0..FOLLOWERS {
            let world = self.world.clone();
            self.sim
                .host(format!("f{number}"), move || clients::follower(world.clone(), number));
        }
        for number in 0..WATCHERS {
            let world = self.world.clone();
            self.sim.host(format!("s{number}"), move || {
                clients::watcher::watch(world.clone(), number)
            });
        }
        let world = self.world.clone();
        self.sim.host("o", move || clients::operator(world.clone()));
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            self.world
                .history
                .borrow_mut()
                .violations
                .push(format!("a host ended: {error}"));
        }
        let now = self.sim.elapsed();
        for at in 0..self.down.len() {
            if self.down[at].is_none() && self.world.media[at].failed() {
                self.faults.failed_syncs += 1;
                self.crash(at);
            }
            if self.down[at].is_none() && self.world.media[at].doomed() {
                self.faults.crashes_at_a_snapshot += 1;
                self.crash(at);
            }
            if self.down[at].is_some_and(|until| until <= now) {
                self.down[at] = None;
                self.sim.bounce(name(at));
            }
        }
        if self.heal_network_at.is_some_and(|at| at <= now) {
            self.heal_network();
        }
    }

    fn rage(&mut self) {
        // A cluster first, or there is nothing to break.
        let mut next = Duration::from_secs(2);
        while self.sim.elapsed() < FAULTS && !self.is_over() {
            self.step();
            if self.sim.elapsed() >= next {
                self.strike();
                next = self.sim.elapsed() + self.millis(50..1100);
            }
        }
    }

    /// True once something was wrong: what comes after it would only hide it.
    fn is_over(&self) -> bool {
        super::seeds::panic().is_some() || !self.world.history.borrow().violations.is_empty()
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    fn strike(&mut self) {
        let replicas = self.down.len();
        let victim = self.victim();
        match self.rng.random_range(0..100) {
            0..25 => self.crash(victim),
            25..29 => {
                self.faults.crashes_of_all += 1;
                (0..replicas).for_each(|at| self.crash(at));
            }
            29..37 => self.world.media[victim].fail_next_sync(),
            37..43 => {
                self.faults.slow_disks += 1;
                self.world.media[victim].sync_takes(SLOW);
            }
            43..49 => self.wipe(victim),
            49..54 => {
                self.faults.latency += 1;
                let most = self.millis(2..60);
                self.sim.set_max_message_latency(most);
                self.heal_network_later();
            }
            _ => self.cut(),
        }
    }

    /// Somebody, and a leader more often than others: most goes wrong there.
    fn victim(&mut self) -> usize {
        match (self.rng.random_range(0..2), self.leader()) {
            (0, Some(leader)) => leader,
            _ => self.rng.random_range(0..self.down.len()),
        }
    }

    fn leader(&self) -> Option<usize> {
        self.world.roles.iter().position(|role| role.get().leads)
    }

    /// A disk is lost with all that is on it. Only one at a time: no promise covers two.
    fn wipe(&mut self, at: usize) {
        if self.world.roles.iter().all(|role| role.get().complete) {
            self.faults.wiped_disks += 1;
            self.crash(at);
            self.world.media[at].wipe();
        }
    }

    fn crash(&mut self, at: usize) {
        if self.down[at].is_some() {
            return;
        }
        self.faults.crashes += 1;
        self.sim.crash(name(at));
        self.world.roles[at].take();
        let before = self.world.media[at].count().1;
        self.world.media[at].crash();
        self.faults.batches_lost += self.world.media[at].count().1 - before;
        self.world.media[at].sync_takes(QUICK);
        if planted(Bug::ReusedNodeId) {
            self.world.media[at].wipe_all_but_identity();
        }
        self.down[at] = Some(self.sim.elapsed() + self.millis(1..2500));
    }

    fn cut(&mut self) {
        if !self.cuts.is_empty() {
            return;
        }
        let mut all: Vec<usize> = (0..self.down.len()).collect();
        all.shuffle(&mut self.rng);
        // Every other time a leader is among those who are few, where clients reach it still.
        let leader = self.leader().filter(|_| self.rng.random_range(0..2) == 0);
        if let Some(leader) = leader {
            all.retain(|at| *at != leader);
            all.insert(0, leader);
            self.faults.leaders_cut_off += 1;
        }
        let minority = self.rng.random_range(1..=all.len() / 2);
        let (some, others) = all.split_at(minority);
        let pairs = || some.iter().flat_map(|a| others.iter().map(|b| (*a, *b)));
        self.cuts = match self.rng.random_range(0..4) {
            0 => {
                self.faults.partitions += 1;
                pairs().map(|(a, b)| Cut::Both(a, b)).collect()
            }
            1 => {
                self.faults.one_way += 1;
                match self.rng.random_range(0..2) {
                    0 => pairs().map(|(a, b)| Cut::OneWay(a, b)).collect(),
                    _ => pairs().map(|(a, b)| Cut::OneWay(b, a)).collect(),
                }
            }
            // One replica sees both sides, which do not see each other.
            2 => {
                self.faults.bridges += 1;
                let bridge = others[0];
                pairs()
                    .filter(|(_, b)| *b != bridge)
                    .map(|(a, b)| Cut::Both(a, b))
                    .collect()
            }
            // Everything arrives, much later.
            _ => {
                self.faults.holds += 1;
                pairs().map(|(a, b)| Cut::Held(a, b)).collect()
            }
        };
        for cut in &self.cuts {
            match *cut {
                Cut::Both(a, b) => self.sim.partition(name(a), name(b)),
                Cut::OneWay(a, b) => self.sim.partition_oneway(name(a), name(b)),
                Cut::Held(a, b) => self.sim.hold(name(a), name(b)),
            }
        }
        self.heal_network_later();
    }

    fn heal_network_later(&mut self) {
        self.heal_network_at = Some(self.sim.elapsed() + self.millis(100..5000));
    }

    fn heal_network(&mut self) {
        self.heal_network_at = None;
        self.sim.set_max_message_latency(Duration::from_millis(2));
        for cut in std::mem::take(&mut self.cuts) {
            match cut {
                Cut::Both(a, b) => self.sim.repair(name(a), name(b)),
                Cut::OneWay(a, b) => self.sim.repair_oneway(name(a), name(b)),
                Cut::Held(a, b) => self.sim.release(name(a), name(b)),
            }
        }
    }

    /// Nothing breaks any more: everybody must come to an end, and all replicas to the same table.
    fn heal(&mut self) {
        self.heal_network();
        self.world.phase.set(Phase::Healing);
        self.world.media.iter().for_each(|medium| medium.sync_takes(QUICK));
        let by = self.sim.elapsed() + HEALING;
        while self.sim.elapsed() < by
            && !self.is_over()
            && (self.world.busy.get() > 0 || self.down.iter().any(Option::is_some))
        {
            self.step();
        }
        if self.is_over() {
            return;
        }
        if self.world.busy.get() > 0 {
            let stuck = format!(
                "stuck: {} clients have no answer {HEALING:?} after the last fault",
                self.world.busy.get()
            );
            self.world.history.borrow_mut().violations.push(stuck);
        }
        let world = self.world.clone();
        self.world.busy.set(self.world.busy.get() + 1);
        self.sim.host("judge", move || judge(world.clone()));
        let before = self.world.busy.get();
        let by = self.sim.elapsed() + HEALING / 2;
        while self.sim.elapsed() < by && self.world.busy.get() == before {
            self.step();
        }
        if self.world.busy.get() == before {
            self.world
                .history
                .borrow_mut()
                .violations
                .push("stuck: the replicas do not come to one table".into());
        }
    }

    fn report(self) -> Report {
        let history = self.world.history.borrow();
        let (counts, mut violations) = history.check();
        if let Some(said) = super::seeds::panic() {
            violations.insert(0, said);
        }
        Report {
            counts,
            frames: history.frames,
            retries: history.retries,
            moves: history.moves,
            faults: self.faults,
            fingerprint: history.fingerprint(),
            violations,
        }
    }
}

/// Ends when all replicas and the list have one revision and one digest.
async fn judge(world: Rc<World>) -> turmoil::Result {
    let addresses = world.addresses();
    let endpoints = Endpoints::parse(&addresses)?.connected_by(network::channel);
    let reader = RouteReader::new(endpoints, Duration::from_secs(5));
    loop {
        let listing = reader.list(None, "").await;
        let answers = reader.statuses().await;
        if let Ok(listing) = listing {
            let same = |status: &holdfast_wire::proto::StatusResponse| {
                let digest = Digest::from_bytes(&status.digest);
                (status.revision, digest) == (listing.revision.0, Some(listing.digest))
            };
            if answers.len() == addresses.len() && answers.iter().all(|(_, answer)| answer.as_ref().is_ok_and(same)) {
                let rows = listing.routes.iter().map(|entry| {
                    let route = &entry.route;
                    let value = super::history::value(route.data.as_str());
                    (route.spec.as_str().to_owned(), (value, entry.modified.0))
                });
                let told = Told::Listed(rows.collect(), listing.revision.0, listing.digest);
                let call = world.history.borrow_mut().begin("everybody at the end", Ask::List);
                world.history.borrow_mut().end(call, told);
                world.busy.set(world.busy.get() - 1);
                return Ok(());
            }
            for (address, answer) in &answers {
                if let Ok(status) = answer
                    && status.revision == listing.revision.0
                    && Digest::from_bytes(&status.digest) != Some(listing.digest)
                {
                    world.violation(format!("{address} has another digest at revision {}", status.revision));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

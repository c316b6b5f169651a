//! Which seeds are run, each in a process of its own whose every source of randomness is the seed's.
//!
//! `HOLDFAST_SIM_SEEDS=4` or `=10..30` says which, `HOLDFAST_SIM_BUG=LeaseRead` plants a bug, `RUST_LOG=debug` tells all.

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use super::nemesis;
use super::planted::{Bug, plant};

/// Says, within a child, which one seed to run.
const CHILD: &str = "HOLDFAST_SIM_CHILD";
const SEEDS: &str = "HOLDFAST_SIM_SEEDS";
const BUG: &str = "HOLDFAST_SIM_BUG";
/// What the dice of a child are loaded with.
const RANDOM: &str = "HOLDFAST_SIM_RANDOM";

const SEEDS_DEFAULT: Range<u64> = 1..33;
/// Seeds tried until a planted bug is found.
const PLANTED_SEEDS_MAX: u64 = 40;

static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// What the first task that panicked said.
pub fn panic() -> Option<String> {
    PANIC.lock().expect("nobody panics with it").clone()
}

/// The one seed of this process, if it is a child.
fn child() -> Option<u64> {
    Some(std::env::var(CHILD).ok()?.parse().expect("a seed"))
}

/// Runs the seed of this process; panics with what was wrong.
fn run_child(seed: u64) {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        let said = panic.to_string().replace('\n', " ");
        PANIC.lock().expect("nobody panics with it").get_or_insert(said);
    }));
    let bug = std::env::var(BUG)
        .ok()
        .map(|name| Bug::parse(&name).expect("a planted bug's name"));
    plant(bug);
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(SimulatedTime)
            .with_writer(std::io::stderr)
            .init();
    }
    let report = nemesis::run(seed);
    let mut out = std::io::stdout().lock();
    let numbers: Vec<String> = report
        .numbers()
        .iter()
        .map(|(name, number)| format!("{name} {number}"))
        .collect();
    let _ = writeln!(
        out,
        "seed {seed}: {}, fingerprint {:#018x}",
        numbers.join(", "),
        report.fingerprint
    );
    let shown = report.violations.iter().take(10);
    shown.for_each(|violation| drop(writeln!(out, "seed {seed} VIOLATION: {violation}")));
    drop(out);
    assert!(
        report.violations.is_empty(),
        "seed {seed}: {} violations",
        report.violations.len()
    );
}

struct SimulatedTime;

impl tracing_subscriber::fmt::time::FormatTime for SimulatedTime {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:?}", turmoil::sim_elapsed().unwrap_or_default())
    }
}

/// Compiles the loaded dice.
fn dice(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/simulation/getrandom.c");
    let library = dir.join("getrandom.so");
    let built = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "a C compiler is needed, as for RocksDB"
    );
    library
}

/// Runs one seed in a process of its own.
fn spawn(dice: &Path, test: &str, seed: u64, bug: Option<Bug>) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args([
            "--exact",
            "--nocapture",
            "--test-threads=1",
            &format!("simulation::seeds::{test}"),
        ])
        .env("LD_PRELOAD", dice)
        .env(CHILD, seed.to_string())
        .env(RANDOM, seed.to_string())
        .stdin(Stdio::null());
    match bug {
        Some(bug) => command.env(BUG, format!("{bug:?}")),
        None => command.env_remove(BUG),
    };
    command.output().expect("a child")
}

fn report_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The lines of a child that speak of its seed.
fn told(output: &Output) -> Vec<String> {
    report_of(output)
        .lines()
        .filter_map(|line| line.find("seed ").map(|at| line[at..].to_owned()))
        .collect()
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var(SEEDS) else {
        return SEEDS_DEFAULT;
    };
    let number = |text: &str| {
        text.parse::<u64>()
            .unwrap_or_else(|_| panic!("{SEEDS}={text}: must be 7 or 1..20"))
    };
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}

/// Does it for each of them, as many at once as there are processors; the answers are in their order.
fn for_each<I: Send, T: Send>(items: impl IntoIterator<Item = I>, work: impl Fn(I) -> T + Sync) -> Vec<T> {
    let left = Mutex::new(items.into_iter().collect::<Vec<_>>().into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    let next = || left.lock().expect("nobody panics with it").next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((at, item)) = next() {
                    let answer = work(item);
                    done.lock().expect("nobody panics with it").push((at, answer));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nobody panics with it");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, answer)| answer).collect()
}

/// The numbers of all seeds, added up name by name.
fn total(lines: &[String]) -> String {
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for line in lines {
        let numbers = line.split_once(": ").map_or("", |(_, numbers)| numbers);
        for (name, number) in numbers.split(", ").filter_map(|word| word.rsplit_once(' ')) {
            let Ok(number) = number.parse::<u64>() else { continue };
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += number,
                None => sums.push((name, number)),
            }
        }
    }
    let sums: Vec<String> = sums.iter().map(|(name, sum)| format!("{name} {sum}")).collect();
    sums.join(", ")
}

#[test]
fn promises_hold_in_the_simulation() {
    if let Some(seed) = child() {
        return run_child(seed);
    }
    let dir = tempfile::tempdir().unwrap();
    let dice = dice(dir.path());
    let bug = std::env::var(BUG)
        .ok()
        .map(|name| Bug::parse(&name).expect("a planted bug's name"));
    let loud = std::env::var_os("RUST_LOG").is_some();
    let ends = for_each(seeds(), |seed| {
        let output = spawn(&dice, "promises_hold_in_the_simulation", seed, bug);
        let lines = told(&output);
        lines.iter().for_each(|line| println!("{line}"));
        if loud || lines.is_empty() {
            println!("{}{}", report_of(&output), String::from_utf8_lossy(&output.stderr));
        }
        (seed, output.status.success(), lines)
    });
    let firsts: Vec<String> = ends.iter().filter_map(|(.., lines)| lines.first().cloned()).collect();
    println!("{} seeds: {}", ends.len(), total(&firsts));
    let bad: Vec<u64> = ends
        .iter()
        .filter(|(_, good, _)| !good)
        .map(|(seed, ..)| *seed)
        .collect();
    assert!(
        bad.is_empty(),
        "violations with the seeds {bad:?}; again with {SEEDS}={}",
        bad[0]
    );
}

#[test]
fn a_seed_does_the_same_every_time() {
    if let Some(seed) = child() {
        return run_child(seed);
    }
    let dir = tempfile::tempdir().unwrap();
    let dice = dice(dir.path());
    let twice = for_each([7, 7], |seed| {
        told(&spawn(&dice, "a_seed_does_the_same_every_time", seed, None))
    });
    assert_eq!(twice[0], twice[1]);
    assert!(!twice[0].is_empty());
}

/// Each with as many seeds as it takes.
#[test]
fn planted_bugs_are_found() {
    if let Some(seed) = child() {
        return run_child(seed);
    }
    let dir = tempfile::tempdir().unwrap();
    let dice = dice(dir.path());
    let bugs = match std::env::var(BUG) {
        Ok(name) => vec![Bug::parse(&name).expect("a planted bug's name")],
        Err(_) => Bug::ALL.to_vec(),
    };
    let planted = bugs.len();
    let missed: Vec<Bug> = for_each(bugs, |bug| {
        let found = (1..=PLANTED_SEEDS_MAX).find_map(|seed| {
            let output = spawn(&dice, "planted_bugs_are_found", seed, Some(bug));
            (!output.status.success()).then(|| (seed, told(&output)))
        });
        let Some((seed, lines)) = found else {
            println!("{bug:?}: not found by seeds 1 to {PLANTED_SEEDS_MAX}");
            return Some(bug);
        };
        let first = lines.iter().find(|line| line.contains("VIOLATION"));
        let first: String = first.map_or("", String::as_str).chars().take(300).collect();
        println!("{bug:?}: found by seed {seed}: {first}");
        None
    })
    .into_iter()
    .flatten()
    .collect();
    println!("{} of {planted} planted bugs found", planted - missed.len());
    assert!(missed.is_empty(), "not found: {missed:?}");
}

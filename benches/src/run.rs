//! One run of a benchmark: its flags, and its output, which says where it came from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_tests::fixture::holdfast;

/// A run under way. Everything said is printed at once and kept for the file.
pub struct Run {
    name: &'static str,
    began: Instant,
    is_quick: bool,
    is_saved: bool,
    rounds: Option<usize>,
    parts: Vec<String>,
    peers: Vec<String>,
    output: String,
}

impl Run {
    /// Reads the flags, and says what runs on which machine.
    ///
    /// `--quick`: a few seconds, to see that everything works; the figures mean nothing. `--save`: the output also goes
    /// to `benches/runs/<date>-<name>.txt`. `--rounds <number>`: how often everything is measured. `--rows <part>,...`:
    /// only these of `parts`. `--peers <peer>,...`: only these of `peers`, where the benchmark lets choose.
    ///
    /// # Errors
    /// Another flag, or no binary to measure.
    pub fn start(name: &'static str, question: &str, parts: &[&str], peers: &[&str]) -> Result<Self> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut run = Run {
            name,
            began: Instant::now(),
            is_quick: false,
            is_saved: false,
            rounds: None,
            parts: owned(parts),
            peers: owned(peers),
            output: String::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => run.is_quick = true,
                "--save" => run.is_saved = true,
                "--rounds" => {
                    let rounds = arguments.next().and_then(|rounds| rounds.parse().ok());
                    run.rounds = Some(
                        rounds
                            .filter(|rounds| *rounds > 0)
                            .context("--rounds: a number above 0")?,
                    );
                }
                "--rows" => run.parts = chosen("--rows", arguments.next(), parts)?,
                "--peers" if !peers.is_empty() => run.peers = chosen("--peers", arguments.next(), peers)?,
                other => bail!(
                    "{other:?} is no flag of mine: --quick, --save, --rounds <number>, --rows <part>,...{}",
                    if peers.is_empty() { "" } else { ", --peers <peer>,..." }
                ),
            }
        }
        let binary = holdfast()?;
        let profile = |is_optimised| if is_optimised { "release" } else { "development" };
        run.say(format!("{name}: {question}"));
        run.say(format!("command   {}", command()));
        run.say(format!("date      {} UTC", told_by("date", &["-u", "+%F %T"])));
        run.say(format!(
            "version   {}, commit {}",
            told_by(&binary.to_string_lossy(), &["--version"]),
            told_by("git", &["describe", "--always", "--dirty"])
        ));
        let is_release = binary.components().any(|part| part.as_os_str() == "release");
        run.say(format!(
            "profile   {} (Holdfast), {} (this program)",
            profile(is_release),
            profile(!cfg!(debug_assertions))
        ));
        run.say(format!("machine   {}", machine()));
        run.say(format!(
            "load      {} (1, 5, 15 minutes, before the start)",
            Run::load()
        ));
        if run.is_quick {
            run.say("quick     these figures mean nothing");
        }
        Ok(run)
    }

    /// True if it should only be shown that everything works.
    pub fn is_quick(&self) -> bool {
        self.is_quick
    }

    /// How often to measure everything, unless the caller has said.
    pub fn rounds(&self, full: usize) -> usize {
        self.rounds.unwrap_or(if self.is_quick { 1 } else { full })
    }

    /// True if this part is wanted.
    pub fn includes(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }

    /// True if this peer is wanted.
    pub fn is_beside(&self, peer: &str) -> bool {
        self.peers.iter().any(|wanted| wanted == peer)
    }

    /// How long it has been running.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Says on standard error how far it is; no part of the output.
    pub fn progress(&self, what: impl AsRef<str>) {
        eprintln!("{:>4.0} s  {}", self.began.elapsed().as_secs_f64(), what.as_ref());
    }

    /// How long to measure what `full` is enough for.
    pub fn time(&self, full: Duration) -> Duration {
        if self.is_quick { full / 10 } else { full }
    }

    /// How often to do what is done `full` times.
    pub fn times(&self, full: usize) -> usize {
        if self.is_quick { full.div_ceil(10) } else { full }
    }

    /// Prints a line and keeps it.
    pub fn say(&mut self, line: impl AsRef<str>) {
        println!("{}", line.as_ref());
        self.output += line.as_ref();
        self.output.push('\n');
    }

    /// The machine's load now, over 1, 5 and 15 minutes.
    pub fn load() -> String {
        first_words("/proc/loadavg", 3)
    }

    /// Ends the run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.say(format!("\ntook {:.0} s", self.began.elapsed().as_secs_f64()));
        if self.is_saved {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs");
            fs::create_dir_all(&folder)?;
            let file: PathBuf = folder.join(format!("{}-{}.txt", told_by("date", &["-u", "+%F"]), self.name));
            fs::write(&file, &self.output).with_context(|| file.display().to_string())?;
            println!("saved as {}", file.display());
        }
        Ok(())
    }
}

/// What a flag's comma-separated value names.
fn chosen(flag: &str, value: Option<String>, known: &[&str]) -> Result<Vec<String>> {
    let wanted = value.unwrap_or_default();
    let names: Vec<_> = wanted.split(',').map(str::to_owned).collect();
    let unknown = names.iter().find(|name| !known.contains(&name.as_str()));
    ensure!(unknown.is_none(), "{flag} {wanted}: there are {}", known.join(","));
    Ok(names)
}

fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("of unknown model");
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kb: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kilobytes| kilobytes.parse().ok())
        .unwrap_or_default();
    format!(
        "{} CPUs, {}; {} GiB; {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.trim_start_matches([' ', '\t', ':']),
        memory_kb / (1024 * 1024),
        told_by("uname", &["-sr"])
    )
}

fn first_words(file: &str, count: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

/// This program's name and arguments, without the folder that it happens to be in.
fn command() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(name) = words.first().and_then(|path| std::path::Path::new(path).file_name()) {
        words[0] = name.to_string_lossy().into_owned();
    }
    words.join(" ")
}

/// What a command prints; `?` if it is not there.
pub fn told_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "?".to_owned(),
    }
}

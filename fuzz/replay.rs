//! Runs a check on the committed seeds and on inputs made of them: what `cargo fuzz` does, smaller, in every test run.
//!
//! `HOLDFAST_FUZZ_RUNS` says how many inputs, `HOLDFAST_SEED` which.

use std::path::Path;

/// The same in every test run, so that a change is to blame for what a test run finds. Another one finds more.
const SEED: u64 = 1;
/// Bytes that an input never grows beyond.
const INPUT_BYTES_MAX: usize = 8 * 1024;

/// Checks every seed of `fuzz/corpus/<target>`, then inputs made of them.
///
/// # Panics
/// The check did; the input is printed first. Or there are no seeds.
pub fn replay(target: &str, tokens: &[&[u8]], runs: u64, check: impl FnMut(&[u8])) {
    vary(&seeds(target), tokens, runs, check);
}

/// The files of `fuzz/corpus/<target>`.
///
/// # Panics
/// There are none.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut seeds: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
    seeds.sort();
    seeds
}

/// Checks the seeds, then `runs` inputs made of them with `tokens` put in here and there.
///
/// # Panics
/// The check did; the input is printed first.
pub fn vary(seeds: &[Vec<u8>], tokens: &[&[u8]], runs: u64, mut check: impl FnMut(&[u8])) {
    seeds.iter().for_each(|seed| tell_if_it_panics(seed, &mut check));
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("HOLDFAST_SEED").unwrap_or(SEED);
    let runs = number("HOLDFAST_FUZZ_RUNS").unwrap_or(runs);
    println!("{} seeds, then {runs} inputs with HOLDFAST_SEED={seed}", seeds.len());
    let mut random = Random(seed | 1);
    for _ in 0..runs {
        tell_if_it_panics(&input(seeds, tokens, &mut random), &mut check);
    }
}

fn tell_if_it_panics(input: &[u8], check: &mut impl FnMut(&[u8])) {
    struct Told<'a>(&'a [u8]);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                println!("the input: b\"{}\"", self.0.escape_ascii());
            }
        }
    }
    let told = Told(input);
    check(input);
    drop(told);
}

/// A seed with a few changes, of which half are tokens: noise alone is mostly refused at the first byte.
fn input(seeds: &[Vec<u8>], tokens: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(6) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(8)).min(input.len());
        match random.below(8) {
            0 => drop(input.drain(at..end)),
            1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 if at < input.len() => input[at] = random.next() as u8,
            3 => {
                let again = input[at..end].to_vec();
                input.splice(end..end, again);
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ if !tokens.is_empty() => {
                let token = tokens[random.below(tokens.len())];
                let replaced = [at, end][random.below(2)];
                input.splice(at..replaced, token.iter().copied());
            }
            _ => {}
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// Xorshift: enough for this, and no dependency of a crate that must not have one.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

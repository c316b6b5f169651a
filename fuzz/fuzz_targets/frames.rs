//! Fuzzed: a table is neither lost nor changed by what a replica says. `make test` replays the corpus and inputs made of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_client::fuzz::frames(input));

//! Fuzzed: a path is read as by a plain reader. `make test` replays the corpus and inputs made of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_table::fuzz::path(input));

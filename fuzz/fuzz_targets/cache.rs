//! Fuzzed: a copy of the table is refused or is a table. `make test` replays the corpus and inputs made of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_proxy::fuzz::cache(input));

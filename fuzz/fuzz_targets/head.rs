//! Fuzzed: the bytes of one request are one request. `make test` replays the corpus and inputs made of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_proxy::fuzz::head(input));

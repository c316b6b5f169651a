#!/usr/bin/env bash
# So many fuzzed paths, through a real proxy and through lookup alone. docs/testing.md says what is compared.
set -euo pipefail
cd "$(dirname "$0")/.."

# The whole workspace, as everywhere: another selection of crates would compile RocksDB once more.
HOLDFAST_FUZZ_RUNS=$1 cargo test --quiet --workspace --test proxy -- --exact --nocapture \
    differential::p4_the_path_that_was_matched_is_the_path_that_the_target_gets

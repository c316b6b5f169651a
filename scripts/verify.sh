#!/usr/bin/env bash
# Everything that is checked without running the product. Changes no file of the checkout; `make fix` does.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
    printf '\n=== %s\n' "$1"
}

step "format"
cargo fmt --all --check
"$HOLDFAST_VENV/bin/ruff" format --check .

step "Python lints (ruff)"
"$HOLDFAST_VENV/bin/ruff" check .

step "Python types (mypy)"
(cd python && "$HOLDFAST_VENV/bin/mypy" --cache-dir "$HOLDFAST_CACHE/mypy")

step "dependency directions"
python3 scripts/check_dependencies.py

step "licences, bans, sources (cargo deny)"
scripts/install_cargo_deny.sh
"$HOLDFAST_CACHE/tools/bin/cargo-deny" --locked check licenses bans sources

step "Rust lints (clippy)"
scripts/build.sh --locked
cargo clippy --locked --workspace --all-targets -- -D warnings

step "fuzz targets (cargo check)"
# To run them takes a nightly compiler, to compile them does not. RocksDB is not among what they link.
RUSTFLAGS="${RUSTFLAGS:-} --cfg fuzzing" cargo check --locked --manifest-path fuzz/Cargo.toml

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
cargo test --locked --workspace --doc

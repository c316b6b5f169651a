#!/usr/bin/env bash
# One benchmark, in the release profile: bench.sh store|proxy [arguments of the benchmark].
set -euo pipefail
cd "$(dirname "$0")/.."

bench=$1
shift

scripts/build_release.sh
HOLDFAST_BIN=$CARGO_TARGET_DIR/release/holdfast "$CARGO_TARGET_DIR/release/$bench" "$@"

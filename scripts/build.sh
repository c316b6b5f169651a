#!/usr/bin/env bash
# Compiles the workspace. RocksDB alone takes 8 minutes on two cores the first time, in which cargo prints nothing to a log:
# so this says every half minute how far it is.
set -euo pipefail
cd "$(dirname "$0")/.."

report_rocksdb() {
    local out newest
    # The sleep gives up the script's output, or whoever reads that would wait for it after the end.
    while sleep 30 >/dev/null 2>&1; do
        newest=
        for out in "$CARGO_TARGET_DIR"/debug/build/librocksdb-sys-*/out; do
            [ "$out" -nt "$newest" ] && newest=$out
        done
        if [ -d "$newest" ] && [ ! -e "$newest/librocksdb.a" ]; then
            echo "build: RocksDB: $(find "$newest" -name '*.o' | wc -l) of about 345 files compiled" >&2
        fi
    done
}

# Cargo tells sources apart by their time. What was built here last may be another checkout, and later than what was changed in
# this one, which would pass for built.
mkdir -p "$CARGO_TARGET_DIR"
if [ "$(cat "$CARGO_TARGET_DIR/checkout" 2>/dev/null)" != "$PWD" ]; then
    find Cargo.toml crates tests benches fuzz proto third-party -type f -exec touch {} +
    echo "$PWD" >"$CARGO_TARGET_DIR/checkout"
fi

# It takes a third of the time with it.
export PATH="$PWD/scripts/pch:$PATH"

# On a terminal cargo draws its own progress.
if [ ! -t 2 ]; then
    report_rocksdb &
    reporter=$!
    trap 'kill "$reporter" 2>/dev/null || true' EXIT
fi
# Always with the tests: the features of what they use are others than the programs' alone, and half of the crates would be
# compiled twice by who runs the demo, then the tests.
cargo build --workspace --bins --tests "$@"

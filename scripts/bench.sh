#!/usr/bin/env bash
# One benchmark, in the release profile: bench.sh store|proxy [arguments of the benchmark].
#
# A release build would compile RocksDB a second time. The development profile already compiles it optimised (Cargo.toml),
# so the release build links that same library.
set -euo pipefail
cd "$(dirname "$0")/.."

bench=$1
shift

echo "bench: building; RocksDB comes from the development profile" >&2
scripts/build.sh
# Cargo itself says which of several build folders belongs to the present lock file.
rocksdb=$(cargo build --quiet --workspace --message-format=json |
    sed -n '/"reason":"build-script-executed"/{/librocksdb-sys/s/.*"out_dir":"\([^"]*\)".*/\1/p}')
[ -e "$rocksdb/librocksdb.a" ] || {
    echo "bench: no librocksdb.a under '$rocksdb'" >&2
    exit 1
}
export ROCKSDB_LIB_DIR=$rocksdb ROCKSDB_STATIC=1

cargo build --release --workspace --bins
HOLDFAST_BIN=$CARGO_TARGET_DIR/release/holdfast "$CARGO_TARGET_DIR/release/$bench" "$@"

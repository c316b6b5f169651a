#!/usr/bin/env bash
# The release profile's programs.
#
# A release build would compile RocksDB a second time. The development profile already compiles it optimised (Cargo.toml),
# so the release build links that same library.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "build: the release profile; RocksDB comes from the development profile" >&2
scripts/build.sh
# Cargo itself says which of several build folders belongs to the present lock file.
rocksdb=$(cargo build --quiet --workspace --message-format=json |
    sed -n '/"reason":"build-script-executed"/{/librocksdb-sys/s/.*"out_dir":"\([^"]*\)".*/\1/p}')
[ -e "$rocksdb/librocksdb.a" ] || {
    echo "build: no librocksdb.a under '$rocksdb'" >&2
    exit 1
}
ROCKSDB_LIB_DIR=$rocksdb ROCKSDB_STATIC=1 cargo build --release --workspace --bins

#!/usr/bin/env bash
# cargo-deny for `make verify`, in the cache folder: it takes some minutes to compile, once.
set -euo pipefail

version=0.20.2
tool=$HOLDFAST_CACHE/tools/bin/cargo-deny
if [ "$("$tool" --version 2>/dev/null)" != "cargo-deny $version" ]; then
    echo "verify: compiling cargo-deny $version once, this takes some minutes"
    CARGO_TARGET_DIR="$HOLDFAST_CACHE/tools-target" cargo install --locked --root "$HOLDFAST_CACHE/tools" "cargo-deny@$version"
    rm -rf "$HOLDFAST_CACHE/tools-target"
fi

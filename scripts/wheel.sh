#!/usr/bin/env bash
# One wheel of JupyterHub's class and of the program that is named in HOLDFAST_BIN: wheel.sh [DIRECTORY].
# RELEASE=1 builds a program for release and takes that.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$HOLDFAST_BIN
if [ "${RELEASE:-}" = 1 ]; then
    scripts/build_release.sh
    program=$CARGO_TARGET_DIR/release/holdfast
fi
directory=${1:-$HOLDFAST_CACHE/wheels}
mkdir -p "$directory"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Without what only a debugger reads, which is most of it.
install -s "$program" "$scratch/holdfast"
HOLDFAST_WHEEL_BIN=$scratch/holdfast "$HOLDFAST_VENV/bin/python" -m pip wheel --quiet --disable-pip-version-check \
    --no-deps --wheel-dir "$scratch" ./python
wheel=$(cd "$scratch" && echo *.whl)
mv "$scratch/$wheel" "$directory/"
echo "$directory/$wheel"

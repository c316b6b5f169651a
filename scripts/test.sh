#!/usr/bin/env bash
# Every test, the cheap ones first, so that a small mistake is told before the long compilation.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
    printf '\n=== %s\n' "$1"
}

step "manifests and scripts (pytest)"
"$HOLDFAST_VENV/bin/python" -m pytest -q -p no:asyncio tests/deploy scripts --ignore tests/deploy/test_command_lines.py

step "build"
scripts/build.sh

step "configurable-http-proxy, to compare with"
HOLDFAST_CACHE=${HOLDFAST_CACHE:-$HOME/.cache/holdfast} scripts/install_chp.sh ||
    echo "test: so nothing is compared with configurable-http-proxy itself" >&2

step "Rust tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace
else
    cargo test --workspace
fi

step "the manifests' command lines (pytest)"
"$HOLDFAST_VENV/bin/python" -m pytest -q -p no:asyncio tests/deploy/test_command_lines.py

step "JupyterHub package (pytest)"
# Mostly waiting for hubs to start: three at a time take half as long, on two cores too.
(cd python && "$HOLDFAST_VENV/bin/python" -m pytest --numprocesses 3 --dist loadscope)

#!/usr/bin/env bash
# JupyterHub's proxy classes side by side, with Holdfast's program of the release profile: bench_hub.sh [arguments of the benchmark].
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/build_release.sh
# An environment of its own: a peer is a Python package, too.
venv=$HOLDFAST_CACHE/bench-hub-venv
python/make_venv.sh "$venv" benches/hub/requirements.txt || {
    echo "bench-hub: a peer cannot be installed; going on without it" >&2
    python/make_venv.sh "$venv"
}
HOLDFAST_BIN=$CARGO_TARGET_DIR/release/holdfast PYTHONPATH=python/tests "$venv/bin/python" benches/hub/main.py "$@"

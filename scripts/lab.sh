#!/usr/bin/env bash
# JupyterLab in Chromium, while everything but its own server and proxy is killed.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_chromium.sh
# An environment of its own: JupyterLab and what drives a browser are large, and no other test needs them.
venv=$HOLDFAST_CACHE/lab/venv
python/make_venv.sh "$venv" tests/lab/requirements.txt
export PYTHONPATH=python/tests
exec "$venv/bin/python" tests/lab/main.py

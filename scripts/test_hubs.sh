#!/usr/bin/env bash
# The Python tests with other versions of JupyterHub and Python than the pinned ones. HUBS and PYTHONS say which.
set -euo pipefail
cd "$(dirname "$0")/../python"

read -ra hubs <<<"${HUBS:-5.5.4 6.1.1}"
read -ra pythons <<<"${PYTHONS:-python3.10 python3.11 python3.12 python3.13}"
tested=0
failed=()
for python in "${pythons[@]}"; do
    if ! command -v "$python" >/dev/null; then
        echo "test-hubs: there is no $python: left out" >&2
        continue
    fi
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for hub in "${hubs[@]}"; do
        echo "=== JupyterHub $hub on Python $version"
        venv=$HOLDFAST_CACHE/venvs/jupyterhub-$hub-python-$version
        PYTHON=$python JUPYTERHUB=$hub ./make_venv.sh "$venv"
        "$venv/bin/python" -m pytest --numprocesses 3 --dist loadscope || failed+=("JupyterHub $hub on Python $version")
        tested=$((tested + 1))
    done
done
if [ "$tested" -eq 0 ]; then
    echo "test-hubs: none of ${pythons[*]} is installed" >&2
    exit 1
fi
printf '%s of %s combinations passed\n' "$((tested - ${#failed[@]}))" "$tested"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi

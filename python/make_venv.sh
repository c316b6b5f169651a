#!/bin/sh
# Makes the virtual environment that the Python tests and the demo run in, or leaves it as it is when it is up to date.
#
#     make_venv.sh [DIRECTORY [REQUIREMENTS_FILE...]]      default: ${XDG_CACHE_HOME:-~/.cache}/holdfast/venv
#
# Requirements files name what else shall be in it. PYTHON chooses the interpreter (default python3), JUPYTERHUB another
# version of JupyterHub than the pinned one.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast/venv}
[ $# -eq 0 ] || shift
python=${PYTHON:-python3}
jupyterhub=${JUPYTERHUB:-6.1.1}

# What the environment is made of, one line for each part. The package is installed editable, so its path counts and not
# its code.
base=$({ "$python" -VV; echo "$here $jupyterhub"; cat "$here/pyproject.toml" "$here/requirements-test.txt" "$0"; } | sha256sum)
wanted=$(echo "base $base"; for file; do echo "extra $(sha256sum <"$file")"; done)
up_to_date() {
    [ -x "$venv/bin/python" ] || return 1
    echo "$wanted" | while read -r line; do
        grep -qsxF "$line" "$venv/.holdfast-stamp" || exit 1
    done
}
up_to_date && exit 0

# Tests and demo may ask for it at the same time.
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
if command -v flock >/dev/null; then
    flock 9
fi
up_to_date && exit 0

if [ -n "$(ls -A "$venv" 2>/dev/null)" ] && [ ! -f "$venv/pyvenv.cfg" ]; then
    echo "make_venv.sh: $venv is not empty and is no virtual environment, leaving it alone" >&2
    exit 1
fi
echo "make_venv.sh: installing into $venv" >&2
# Cleared only when it has to be: somebody may be running in it.
if [ "$("$venv/bin/python" -VV 2>/dev/null)" != "$("$python" -VV)" ]; then
    "$python" -m venv --clear "$venv" || {
        echo "make_venv.sh: '$python -m venv' failed; on Debian it needs the package python3-venv" >&2
        exit 1
    }
fi
rm -f "$venv/.holdfast-stamp"
for file; do
    shift
    set -- "$@" --requirement "$file"
done
# The pins need 3.11, and are one JupyterHub's. The package itself, and JupyterHub, run on 3.10 too.
if [ -z "${JUPYTERHUB:-}" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    set -- "$@" --requirement "$here/requirements-test.txt" --editable "$here"
else
    set -- "$@" "jupyterhub==$jupyterhub" --editable "$here[dev]"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
# Written last, so that an interrupted run is done again.
echo "$wanted" >"$venv/.holdfast-stamp"

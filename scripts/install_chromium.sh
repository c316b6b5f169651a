#!/usr/bin/env bash
# Chromium for `make lab`: Debian's package.
set -euo pipefail

command -v chromium >/dev/null && exit

[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || {
    echo "lab: chromium is missing; on Debian: sudo scripts/install_chromium.sh, else put it on PATH" >&2
    exit 1
}
echo "lab: installing chromium" >&2
# A broken source that has nothing to do with this package is no reason to stop; the installation decides.
apt-get update -qq >&2 || echo "lab: apt-get update failed; going on with the lists that are there" >&2
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium </dev/null >&2
chromium --version >&2

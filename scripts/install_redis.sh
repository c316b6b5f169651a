#!/usr/bin/env bash
# Redis for `make bench-hub`: Debian's package redis-server, for its program alone. Its system service is never started.
set -euo pipefail

command -v redis-server >/dev/null && exit

[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || {
    echo "bench-hub: redis-server is missing; on Debian or Ubuntu: sudo scripts/install_redis.sh, else put it on PATH" >&2
    exit 1
}
echo "bench-hub: installing redis-server" >&2
# Masked before it is there, the service cannot be started by its own installation, nor at the next boot. Without systemd it
# is this file that a package's script asks whether it may start one.
policy=/usr/sbin/policy-rc.d
if [ -d /run/systemd/system ]; then
    systemctl mask redis-server.service >&2
elif [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
# A broken source that has nothing to do with this package is no reason to stop; the installation decides.
apt-get update -qq >&2 || echo "bench-hub: apt-get update failed; going on with the lists that are there" >&2
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server </dev/null >&2
redis-server --version >&2

#!/usr/bin/env bash
# nginx and HAProxy for `make bench-proxy`, and socat and curl that give routes to the peers: Debian's packages, for their
# programs alone. Their system services are never started.
set -euo pipefail

# Where Debian has servers, which is not on every user's PATH.
PATH="$PATH:/usr/sbin"
packages=()
for program in nginx haproxy socat curl; do
    command -v "$program" >/dev/null || packages+=("$program")
done
[ ${#packages[@]} -gt 0 ] || exit 0

[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || {
    echo "bench-proxy: ${packages[*]} missing; on Debian or Ubuntu: sudo scripts/install_debian_proxies.sh, else put them on PATH" >&2
    exit 1
}
echo "bench-proxy: installing ${packages[*]}" >&2
# Masked before they are there, the services cannot be started by their own installation, nor at the next boot. Without
# systemd it is this file that a package's script asks whether it may start one.
policy=/usr/sbin/policy-rc.d
if [ -d /run/systemd/system ]; then
    systemctl mask nginx.service haproxy.service >&2
elif [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
# A broken source that has nothing to do with these packages is no reason to stop; the installation decides.
apt-get update -qq >&2 || echo "bench-proxy: apt-get update failed; going on with the lists that are there" >&2
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >&2
for program in nginx haproxy socat curl; do
    command -v "$program" >/dev/null || {
        echo "bench-proxy: $program is still missing" >&2
        exit 1
    }
done

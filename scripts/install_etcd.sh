#!/usr/bin/env bash
# etcd for `make bench-store`: Debian's package etcd-server, for its program alone. Its system service is never started.
set -euo pipefail

command -v etcd >/dev/null && exit

[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || {
    echo "bench-store: etcd is missing; on Debian or Ubuntu: sudo scripts/install_etcd.sh, else put an etcd 3.4 on PATH" >&2
    exit 1
}
echo "bench-store: installing etcd-server" >&2
# Masked before it is there, the service cannot be started by its own installation, nor at the next boot.
if [ -d /run/systemd/system ]; then
    systemctl mask etcd.service >&2
fi
# A broken source that has nothing to do with this package is no reason to stop; the installation decides.
apt-get update -qq >&2 || echo "bench-store: apt-get update failed; going on with the lists that are there" >&2
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends etcd-server </dev/null >&2

# Without systemd the package's init script may have started it; nothing else runs on the package's own directory.
if [ ! -d /run/systemd/system ] && /etc/init.d/etcd status >/dev/null 2>&1; then
    /etc/init.d/etcd stop >&2
fi
etcd --version | head -1 >&2

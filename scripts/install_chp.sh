#!/usr/bin/env bash
# configurable-http-proxy for `make demo-chp`, `make bench-proxy` and `make bench-hub`, in the cache folder.
set -euo pipefail

version=5.3.0
fail() {
    echo "install_chp: $1; configurable-http-proxy $version needs Node.js 20 or newer, and npm (https://nodejs.org; Debian 13 has" \
        "them as nodejs and npm). Everything else works without." >&2
    exit 1
}
command -v node >/dev/null || fail "node is missing"
command -v npm >/dev/null || fail "npm is missing"
found=$(node --version)
major=${found#v}
[ "${major%%.*}" -ge 20 ] || fail "node is $found"

installed=$HOLDFAST_CACHE/chp/node_modules/configurable-http-proxy/package.json
if ! grep -qs "\"version\": \"$version\"" "$installed"; then
    npm install --no-fund --no-audit --prefix "$HOLDFAST_CACHE/chp" "configurable-http-proxy@$version"
fi

#!/usr/bin/env bash
# configurable-http-proxy for `make demo-chp`, in the cache folder.
set -euo pipefail

version=5.3.0
for tool in node npm; do
    command -v "$tool" >/dev/null || {
        echo "demo-chp: $tool is missing. configurable-http-proxy needs Node.js 20 or newer with npm" \
            "(Debian: sudo apt-get install nodejs npm); everything else works without it." >&2
        exit 1
    }
done
installed=$HOLDFAST_CACHE/chp/node_modules/configurable-http-proxy/package.json
if ! grep -qs "\"version\": \"$version\"" "$installed"; then
    npm install --no-fund --no-audit --prefix "$HOLDFAST_CACHE/chp" "configurable-http-proxy@$version"
fi

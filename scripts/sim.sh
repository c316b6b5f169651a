#!/usr/bin/env bash
# The simulation: sim.sh seeds FIRST COUNT | sim.sh planted. docs/testing.md says what is checked.
set -euo pipefail
cd "$(dirname "$0")/.."

# The whole workspace, as everywhere: another selection of crates would compile RocksDB once more.
test_of() {
    cargo test --quiet --workspace --lib -- --exact --nocapture --test-threads=1 "simulation::seeds::$1"
}

case ${1:-} in
seeds)
    export HOLDFAST_SIM_SEEDS=$2..$(($2 + $3))
    test_of promises_hold_in_the_simulation
    ;;
planted)
    if [ $# -gt 1 ]; then export HOLDFAST_SIM_BUG=$2; fi
    test_of planted_bugs_are_found
    ;;
*)
    echo "usage: sim.sh seeds FIRST COUNT | sim.sh planted [BUG]" >&2
    exit 2
    ;;
esac

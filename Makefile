# Holdfast: the only commands a newcomer needs.
#
#   make demo      replays the incident against a real JupyterHub; exits 0 if no user noticed anything
#   make test      installs what is missing, then runs every Rust and Python test
#
# Everything built or downloaded lives under one cache folder outside this checkout; deleting that folder is a full clean.

SHELL := /bin/bash
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/holdfast

export PATH := $(PATH):$(HOME)/.cargo/bin
export HOLDFAST_CACHE := $(CACHE)
export CARGO_TARGET_DIR ?= $(CACHE)/target
export HOLDFAST_VENV ?= $(CACHE)/venv
export HOLDFAST_BIN := $(CARGO_TARGET_DIR)/debug/holdfast
# A failed test's last lines say what failed: where an error was made is not worth thirty frames of it.
export RUST_LIB_BACKTRACE ?= 0

INCIDENT := $(CARGO_TARGET_DIR)/debug/incident $(if $(PAUSE),--pause)

.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-chp test test-hubs crash-cut sim sim-planted faults herd restarts fuzz-paths soak raw-table lab verify fix wheel bench bench-store bench-proxy bench-hub

help: ## lists these commands
	@grep -hE '^[a-z-]+:.* ## ' Makefile | sed -E 's/^([a-z-]+):.* ## (.*)/  make \1\t\2/' | expand -t 20

setup: ## installs what a fresh machine needs, or says what is missing
	@scripts/setup.sh

build: setup ## compiles everything (RocksDB takes 8 minutes on two cores the first time)
	@scripts/build.sh

demo: build ## replays the incident against Holdfast (PAUSE=1: stays up for a browser)
	@$(INCIDENT)

demo-chp: build ## the same client against configurable-http-proxy (needs node)
	@scripts/install_chp.sh
	@PATH="$(CACHE)/chp/node_modules/.bin:$$PATH" $(INCIDENT) --chp

test: setup ## all Rust and Python tests
	@scripts/test.sh

test-hubs: build ## the Python tests with other JupyterHubs and Pythons (HUBS="5.5.4 6.1.1" PYTHONS="python3.10 python3.13")
	@scripts/test_hubs.sh

crash-cut: setup ## power cuts and damaged files on the real RocksDB (SEEDS=20, or FIRST=7 SEEDS=1 to run one again)
	@HOLDFAST_CRASH_CUT_SEEDS=$(or $(FIRST),1)..$$(($(or $(FIRST),1) + $(or $(SEEDS),20))) \
		cargo test --quiet --workspace --lib -- --nocapture --test-threads=1 storage::tests::crash_cut

sim: setup ## the cluster in simulated time under faults (SEEDS=20, or FIRST=7 SEEDS=1 to run one again)
	@scripts/sim.sh seeds $(or $(FIRST),1) $(or $(SEEDS),20)

sim-planted: setup ## plants each known kind of bug and shows that the simulation finds it
	@scripts/sim.sh planted

faults: build ## real processes under random faults (FAULT_SECONDS=200), then the leader killed again and again (KILLS=200)
	@HOLDFAST_FAULT_SECONDS=$(or $(FAULT_SECONDS),200) \
		cargo test --quiet --workspace --test partitions -- --nocapture --test-threads=1
	@$(CARGO_TARGET_DIR)/debug/leader_kills $(or $(KILLS),200)

herd: build ## very many subscribers come back at once (SUBSCRIBERS=1000 ROUTES=10000)
	@$(CARGO_TARGET_DIR)/debug/herd $(or $(SUBSCRIBERS),1000) $(or $(ROUTES),10000)

fuzz-paths: setup ## a million fuzzed paths through a real proxy: what is matched is what is forwarded (PATHS=1000000)
	@scripts/fuzz_paths.sh $(or $(PATHS),1000000)

soak: build ## everything that leaks in proxies, for MINUTES=30: descriptors and memory must be flat
	@$(CARGO_TARGET_DIR)/debug/soak $(or $(MINUTES),30)

restarts: build ## restarts and drains under load: wrong, no-route and failed requests, time to the first right answer
	@cargo test --quiet --workspace --test proxy -- --nocapture --test-threads=1 restart

raw-table: build ## the same bytes to configurable-http-proxy (needs node) and to Holdfast, side by side; ours must be as expected
	@scripts/install_chp.sh
	@PATH="$(CACHE)/chp/node_modules/.bin:$$PATH" $(CARGO_TARGET_DIR)/debug/raw_table

lab: build ## JupyterLab in a browser (installs Chromium and JupyterLab) goes on while everything behind it is killed
	@scripts/lab.sh

verify: setup ## format, lints, docs, licences, dependency directions, then the tests; changes nothing
	@scripts/verify.sh
	@scripts/test.sh

fix: setup ## formats, and applies what the linters can repair by themselves
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(HOLDFAST_VENV)/bin/ruff check --fix .
	$(HOLDFAST_VENV)/bin/ruff format .

wheel: $(if $(RELEASE),setup,build) ## one wheel that brings JupyterHub's class and the program (RELEASE=1: built for release)
	@RELEASE=$(RELEASE) scripts/wheel.sh

bench: bench-store bench-proxy bench-hub ## all benchmarks

bench-store: setup ## Holdfast beside etcd, which it installs (ARGS="--quick", ARGS="--rows kill,move --rounds 7")
	@scripts/install_etcd.sh
	@scripts/bench.sh store $(or $(ARGS),--save)

bench-proxy: setup ## Holdfast's proxy beside five others, which it installs (ARGS="--rows shared,add --peers nginx,haproxy")
	@scripts/install_debian_proxies.sh
	@scripts/install_pypi_proxies.sh
	@scripts/install_chp.sh
	@PATH="$(CACHE)/proxies/bin:$(CACHE)/chp/node_modules/.bin:$$PATH" scripts/bench.sh proxy $(or $(ARGS),--save)

# What cannot be installed is said to be missing, in the table too; the others are measured all the same.
bench-hub: setup ## JupyterHub's proxy classes beside each other: CHP's, traefik-proxy's, ours (ARGS="--rounds 1 --rows incident")
	-@scripts/install_chp.sh
	-@scripts/install_pypi_proxies.sh
	-@scripts/install_redis.sh
	@PATH="$(CACHE)/proxies/bin:$(CACHE)/chp/node_modules/.bin:$$PATH" scripts/bench_hub.sh $(or $(ARGS),--save)

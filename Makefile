# The project's commands. Each installs what it needs (as root, on Debian 12) or says what is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export PATH := $(TARGET)/tools/bin:$(PATH):/usr/sbin

.PHONY: demo test check bench scale build fuzz cluster-up cluster-down

demo: ## Two nodes, real packets: the story of the mesh, step by step.
	@.ci/setup build test
	@cargo build --release --locked --bins
	@$(TARGET)/release/ambit-demo --binaries $(TARGET)/release

test: ## Everything: unit, property, in-memory, network-namespace and story tests, then the fuzzers for a while.
	@.ci/setup build test cluster
	@.ci/cluster-programs
	cargo build --locked --workspace --bins
	cargo nextest run --locked --workspace --no-fail-fast
	@$(TARGET)/debug/ambit-cluster down --name stories
	cargo test --locked --workspace --doc --quiet
	@$(MAKE) --no-print-directory fuzz SECONDS_EACH=10

CLUSTER ?= ambit
scale: ## The controller with 100 nodes, 10,000 pods and 1,000 services that are not there, in a real API server.
	@.ci/setup build test cluster
	@.ci/cluster-programs
	@cargo build --release --locked --bins
	@$(TARGET)/release/ambit-scale --binaries $(TARGET)/release --programs $(TARGET)/tools/kubernetes

cluster-up: ## A real Kubernetes cluster of two nodes on this machine, in namespaces of its own. Says how to reach it.
	@.ci/setup build cluster
	@.ci/cluster-programs
	@cargo build --locked --workspace --bins
	@$(TARGET)/debug/ambit-cluster up --name $(CLUSTER)

cluster-down: ## Takes it down without a trace.
	@cargo build --locked --workspace --bins
	@$(TARGET)/debug/ambit-cluster down --name $(CLUSTER)

# Private items are documented too, so links to them lead somewhere.
check: ## Format, lints, house rules, licences and advisories, documentation.
	@.ci/setup build check
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked --workspace --test tidy
	cargo fetch --locked
	cargo deny --offline --all-features check bans licenses sources
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --locked --workspace --no-deps --document-private-items --quiet

bench: ## Ambit, no mesh and Envoy in one run: ratios with medians, and JSON.
	@.ci/setup build test bench
	@cargo build --release --locked --bins
	@$(TARGET)/release/ambit-bench --binaries $(TARGET)/release --envoy $(TARGET)/tools/bin/envoy

SECONDS_EACH ?= 600
fuzz: ## The fuzz targets, each for SECONDS_EACH.
	@.ci/fuzz $(SECONDS_EACH)

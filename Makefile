# One line per habit; `make help` lists them. Every target installs what it lacks (scripts/prerequisites).
SHELL := /bin/bash
.DEFAULT_GOAL := help

IMAGES  ?= images
IMAGE   ?=
AGENTS  ?= 3
SEED    ?=
TARGET  ?=
SECONDS ?= 120
PROFILE ?= release
export PATH := $(PATH):$(HOME)/.cargo/bin
# The tests that need the real images read the folder from here.
export HEARTH_IMAGES := $(abspath $(IMAGES))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## a controller and three agents that do the main job before your eyes (IMAGE=FILE, AGENTS=N)
	@scripts/prerequisites dev
	cargo build --locked --workspace --bins
	target/debug/hearth dev --agents $(AGENTS) $(if $(IMAGE),--image $(IMAGE)) $(ARGS)

.PHONY: test
test: ## everything a change must pass: check, then all tests
	@scripts/prerequisites test check
	@$(MAKE) --no-print-directory check
	cargo build --locked --workspace --bins
	cargo test --locked --workspace --doc --quiet
	cargo nextest run --locked --workspace

.PHONY: check
check: ## format, lints, docs, licences, bans and sources
	@scripts/prerequisites check
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet
	cargo deny --locked check bans licenses sources

.PHONY: audit
audit: ## check, and known vulnerabilities where the network allows
	@scripts/prerequisites check
	cargo deny --locked check bans licenses sources
	@if cargo deny --locked fetch db 2>/dev/null; then cargo deny --locked check --disable-fetch advisories; \
	else echo "audit: the advisory database (github.com/RustSec/advisory-db) cannot be reached from here." >&2; \
	  echo "audit: advisories were NOT checked. Run \`make audit\` where the network allows it." >&2; fi

.PHONY: images
images: ## build the project's own test images into IMAGES=DIR (root; about 3 minutes, 6 GB)
	tests/images/make-images.sh $(IMAGES)

.PHONY: sim
sim: ## fleets of up to 2,000 agents and swarms of 10,000 hosts in virtual time, one line per run (SEED=N repeats one seed)
	@scripts/prerequisites dev
	$(if $(SEED),HEARTH_SEED=$(SEED)) HEARTH_SIM=full cargo test --locked --release -p hearth-tests --test sim -- --nocapture

.PHONY: golden
golden: ## compare the wire with the frozen encodings, one per message and version
	cargo test --locked -p hearth-protocol --test golden

.PHONY: bless
bless: ## accept new snapshots and golden bytes; read the diff before you commit
	BLESS=1 INSTA_UPDATE=always cargo test --locked --quiet -p hearth-protocol -p hearth-controller -p hearth-agent -p hearth
	git status --short

.PHONY: fuzz
fuzz: ## fuzz one decoder (TARGET=NAME) or each in turn, SECONDS=120 for each
	@scripts/prerequisites fuzz
	@set -e; for target in $(or $(TARGET),$$(cargo fuzz list --fuzz-dir tests/fuzz)); do \
	  echo "== $$target"; cargo fuzz run --fuzz-dir tests/fuzz -s none $$target -- -max_total_time=$(SECONDS); done

# The large catalog needs no images: ONLY narrows it down, for example ONLY=sqlite or ONLY=postgres:search.
.PHONY: bench
bench: $(if $(filter catalog,$(BENCH)),,images) ## beside nginx + curl and rsync on real images (BENCH=one-host, delta, memory, formats or catalog; ROUNDS=7)
	@scripts/prerequisites dev $(if $(filter catalog,$(BENCH)),test,bench)
	cargo build --locked --release --workspace --bins
	target/release/hearth-bench $(or $(BENCH),one-host) $(if $(filter catalog,$(BENCH)),"$(ONLY)" $(or $(ROUNDS),200),$(IMAGES) $(or $(ROUNDS),7))

# Root. SWARM=plain, crash, update or guests; HOSTS, RATE, MIB, ROUNDS, ONLY and CAP reach the program as they are:
# `target/release/hearth-bench swarm help` lists all. PROGRAMS=DIR takes programs that are built already.
# One image to hosts behind slow links, in network namespaces, beside curl and BitTorrent.
.PHONY: swarm-bench
swarm-bench: $(if $(filter update,$(SWARM)),images) ## one image to HOSTS=32 behind links of RATE=100 Mbit/s, beside curl and BitTorrent (SWARM=plain, crash, update or guests; MTU=9000: less CPU; root)
	@scripts/prerequisites dev swarm
	$(if $(PROGRAMS),,cargo build --locked --release --workspace --bins)
	IMAGES=$(IMAGES) $(or $(PROGRAMS),target/release)/hearth-bench swarm $(or $(SWARM),plain)

.PHONY: import-test
import-test: ## imports of IMPORT_MIB=2048 over http, https, ftp, s3 and by upload, each cut twice on its way (about 6 minutes)
	@scripts/prerequisites test
	HEARTH_SOURCE_MIB=$(or $(IMPORT_MIB),2048) cargo nextest run --locked -p hearth-controller -j 1 \
	  -E 'test(/::(http|https|ftp|s3)_goes_on_after/) + test(an_upload_survives_the_controller)'

.PHONY: load-test
load-test: ## 2,000 idle agents against one controller: memory, CPU, return after a restart (AGENTS_IDLE=N, MINUTES=N)
	@scripts/prerequisites dev
	cargo build --locked --release --workspace --bins
	tests/load/run.sh $(or $(AGENTS_IDLE),2000) $(or $(MINUTES),5)

.PHONY: boot-test
boot-test: images ## boot a VM from a cached image by qemu and through libvirt
	@scripts/prerequisites dev boot
	cargo build --locked --workspace --bins
	tests/boot/run.sh $(IMAGES) target/debug

.PHONY: units
units: ## check the systemd units: syntax, and exposure of at most 1.5
	@scripts/prerequisites units
	tests/systemd/verify.sh

.PHONY: packages
packages: ## Debian packages of both daemons and the command line, into target/debian (PROFILE=dev is quicker)
	@scripts/prerequisites dev packages
	cargo build --locked --profile $(PROFILE) --workspace --bins
	set -e; for package in hearth-controller hearth-agent hearth; do \
	  cargo deb --locked --no-build --profile $(PROFILE) -p $$package; done

.PHONY: systemd-test
systemd-test: packages ## install the packages under a real systemd and do the main job there (root)
	@scripts/prerequisites nspawn
	tests/systemd/run.sh $(IMAGES)

# Everything that is done with Natsway in a checkout. `make help` lists it.

.DEFAULT_GOAL := help
.PHONY: help run check test lint fmt stream-clients docs compose-test bench demo-groups tools peers cargo-deny fuzz clean python rust

PYTHON ?= python3
CARGO ?= cargo
export CARGO

tools_dir := $(or $(CARGO_TARGET_DIR),target)/tools
bench := $(or $(CARGO_TARGET_DIR),target)/release/bench
cargo_deny := $(firstword $(wildcard $(tools_dir)/bin/cargo-deny) $(shell command -v cargo-deny 2>/dev/null))

# Pinned: what measures and judges must not change by itself.
oha_version := 1.16.0
cargo_deny_version := 0.20.2

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: python ## Start a broker, the gateway and two workers; ARGS='--help' shows the settings
	@$(PYTHON) scripts/run.py $(ARGS)

check: python rust ## The inner loop, seconds: format, style, clippy and unit tests of what changed against main; BASE=<branch>
	@$(PYTHON) scripts/check_changes.py

test: python rust ## Install what the tests need and run them all
	@$(PYTHON) scripts/find_broker.py >/dev/null
	@$(PYTHON) scripts/find_nats_cli.py >/dev/null || echo 'make test: no nats command line, so the tests with it are skipped' >&2
	@$(PYTHON) scripts/find_h2spec.py >/dev/null || echo 'make test: no h2spec, so the conformance of HTTP/2 is not tested' >&2
	@$(PYTHON) scripts/find_promtool.py >/dev/null || echo 'make test: no promtool, so the tests with it are skipped' >&2
	$(CARGO) build --workspace --bins --example caller
	@$(PYTHON) scripts/run_python_tests.py
	@$(PYTHON) scripts/run_tests.py

compose-test: python ## Run docker-compose.yml and the Dockerfile as they are on a real engine, under load and faults; ARGS='--help' says what it needs
	@$(PYTHON) tests/compose/run.py $(ARGS)

stream-clients: python rust ## Real clients of streams, straight and through a gateway: curl, ws, websockets, httpx, Go, a browser, gRPC; what is not there is skipped and named
	@$(PYTHON) tests/clients/run.py

docs: python rust ## Write docs/configuration.md anew from the programs and the structs that read their files
	@$(CARGO) build --workspace --bins
	@$(PYTHON) scripts/document_settings.py

lint: python rust ## Check format, words, clippy, rustdoc and dependencies
	@$(PYTHON) scripts/check_style.py
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	@# The libraries as others build them, without what only the programs need.
	$(CARGO) clippy --package natsway-wire --package natsway-worker --package natsway-partitioned-consumer --package natsway-provisioner \
	    --lib --no-default-features -- -D warnings
	@# Of the libraries: a program's comments are its --help, where <key> is no HTML.
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --lib --all-features --no-deps
ifeq ($(cargo_deny),)
	@echo '*** SKIPPED: cargo-deny is not installed, dependencies are not checked; `make cargo-deny` installs it' >&2
else
	$(cargo_deny) --log-level error check --show-stats bans licenses sources
	@if $(cargo_deny) --log-level off fetch db 2>/dev/null; then $(cargo_deny) --log-level error check advisories; \
	else echo '*** SKIPPED: the advisory database cannot be fetched, known vulnerabilities are not checked' >&2; fi
endif

fmt: rust ## Format the code
	$(CARGO) fmt --all

bench: python rust ## Measure everything beside what people would use instead, and write the report; QUICK=1, ITERATIONS, SECONDS, ARGS='--only peers', RESUME=target/bench/...
	$(CARGO) build --release --workspace --bins
	@# What was just built, so that no compiler runs beside what is measured.
	@NATSWAY_BIN_DIR=$(abspath $(dir $(bench))) $(bench) $(if $(RESUME),resume $(RESUME),run) $(ARGS)

bench-%: rust ## A part of it alone: micro, instructions, groups, shipper, streams, apps, autoscalers, or compare with OLD= and NEW=; ARGS='--help' shows the settings
	@$(CARGO) run --release --package natsway-bench --bin bench -- $* $(OLD) $(NEW) $(ARGS)

prove-%: python rust ## Long proof of promises under faults: gateway, cluster, versions, streams, groups, shipper, provisioner, memory, http, security, apps, webhooks, or upgrade with OLD_BIN_DIR=<directory>; ARGS='--help' shows scenarios and settings
	@$(CARGO) run --release --package natsway-proofs --bin prove -- $* $(ARGS)

demo-groups: python rust ## The walk-throughs of consumer groups, static and elastic
	@$(CARGO) run --package natsway-partitioned-consumer --example walk_through

tools: python cargo-deny ## Install oha, cargo-deny and the nats command line under target/tools
	$(CARGO) install --locked --root $(tools_dir) oha@$(oha_version)
	$(PYTHON) scripts/find_nats_cli.py

peers: python ## Install Traefik and build Fabio and Consul for `make bench` to compare with (needs Go; some minutes); nginx, haproxy and caddy are packages
	@for peer in traefik fabio consul; do $(PYTHON) scripts/find_peer.py $$peer || true; done

# Not optimized: it spends its time reading files, and compiles in half the time.
cargo-deny: rust
	$(CARGO) install --locked --root $(tools_dir) --debug cargo-deny@$(cargo_deny_version)

# With the address sanitizer, which tells most; `none` is several times as fast, for code without `unsafe`.
FUZZ_SANITIZER ?= address
FUZZ_SECONDS ?= 60
fuzz_amount = $(if $(FUZZ_RUNS),-runs=$(FUZZ_RUNS),-max_total_time=$(FUZZ_SECONDS))
fuzz: rust ## Fuzz every decoder for FUZZ_SECONDS (60) or FUZZ_RUNS each, with FUZZ_SANITIZER (address); needs cargo-fuzz and a nightly toolchain
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo 'make fuzz: cargo-fuzz is missing: cargo install --locked cargo-fuzz' >&2; exit 2; }
	@rustc +nightly --version >/dev/null 2>&1 || { echo 'make fuzz: nightly is missing: rustup toolchain install nightly' >&2; exit 2; }
	@set -e; for target in $$($(CARGO) +nightly fuzz list); do \
	    echo "fuzzing $$target, $(fuzz_amount)"; \
	    mkdir -p fuzz/corpus/$$target; \
	    $(CARGO) +nightly fuzz run --sanitizer $(FUZZ_SANITIZER) $$target fuzz/corpus/$$target fuzz/seeds/$$target \
	        -- $(fuzz_amount) -timeout=10 -print_final_stats=1; \
	done

clean: ## Remove everything that was built or installed here
	$(CARGO) clean
	rm -rf scripts/__pycache__ scripts/tests/__pycache__

python:
	@command -v $(PYTHON) >/dev/null || { echo 'make: $(PYTHON) is not in PATH: install Python >= 3.9' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || { echo 'make: $(PYTHON) is too old: install Python >= 3.9' >&2; exit 2; }

rust:
	@command -v $(CARGO) >/dev/null || { echo 'make: $(CARGO) is not in PATH: install Rust from https://rustup.rs, then open a new shell' >&2; exit 2; }

# Two words for a person: `make demo` and `make test`. Both work from a clean clone on Debian 12 with cargo.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A fixed place outside the tree: a clean clone on the same machine compiles wasmtime only once, and a fresh
# machine loses nothing but time.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/runw/target
RUNW := $(CARGO_TARGET_DIR)/x86_64-unknown-linux-gnu/release/runw
SKIPS := $(CARGO_TARGET_DIR)/skipped
CONFORMANCE := python3 -B runtime-tools-conformance/tap_test.py && RUNW=$(RUNW) runtime-tools-conformance/run.py

# Real engines; `make test` drives runw by the first two of them.
ALL_PARTS := ctr cri podman docker
PARTS ?= ctr cri

# libseccomp is linked into runw; g++ builds libFuzzer; all else builds the guests and root file systems of demo and
# tests, or is the peer that they compare with (runc, crun).
PACKAGES := libseccomp-dev pkg-config gcc g++ libc6-dev busybox-static mmdebstrap dpkg-dev runc crun strace bsdutils \
	procps python3 python3-venv ca-certificates xz-utils zstd e2fsprogs

.PHONY: help setup build demo test test-all test-engines test-vm conformance fuzz replay bench order clean
help:
	@echo "make demo   build runw, run a native and a wasm container, show each step"
	@echo "make test   formatting, lints and every test; make test-all runs the long ones in full"
	@echo "make test-engines   containerd, the CRI, podman and Docker drive runw (PARTS=\"ctr cri podman docker\")"
	@echo "make test-vm   cgroup v2 alone, systemd, AppArmor and CRIU, in an emulated machine"
	@echo "make conformance   the OCI runtime-tools' validation suite alone, with runc and crun as controls"
	@echo "make bench  measures it beside crun, runc, youki and wasmtime (docs/performance.md)"
	@echo "make order  writes anew which functions and constants the linker puts side by side"
	@echo "make fuzz   ten minutes for each fuzz target; make replay only runs over their seeds"

setup:
	@command -v cargo >/dev/null || { echo "cargo is missing: install rustup, it reads rust-toolchain.toml" >&2; exit 1; }
	@missing=(); for p in $(PACKAGES); do dpkg -s $$p 2>/dev/null | grep -q '^Status: install ok installed' || missing+=($$p); done; \
	if (( $${#missing[@]} )); then \
		echo "installing $${missing[*]}"; sudo=; (( EUID == 0 )) || sudo=sudo; \
		$$sudo apt-get -q update && DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qy install --no-install-recommends $${missing[*]}; \
	fi

build: setup
	cargo build --release --locked

demo: build
	RUNW=$(RUNW) demo/demo.sh

test: build
	cargo fmt --all --check
	cargo clippy --profile unit --locked --all-targets -- -D warnings
	cargo clippy --profile unit --locked --package runw-fuzz -- -D warnings
	fuzz/run replay
	fuzz/run 20
	tests/guests/build.py >/dev/null
	@rm -f $(SKIPS)
	@status=0; RUST_TEST_THREADS=4 RUNW_TEST_SKIPS=$(SKIPS) tests/run || status=$$?; \
	RUNW=$(RUNW) RUNW_TEST_SKIPS=$(SKIPS) tests/engines/run.py $(PARTS) || status=$$?; \
	(export RUNW_TEST_SKIPS=$(SKIPS); $(CONFORMANCE)) || status=$$?; \
	if [[ -n "$(VM)" ]]; then RUNW=$(RUNW) RUNW_TEST_SKIPS=$(SKIPS) tests/vm/run.py || status=$$?; fi; \
	find /sys/fs/cgroup -depth -type d -path '*/runw-test*' -exec rmdir {} + 2>/dev/null || true; \
	if [[ -s $(SKIPS) ]]; then echo "$$(wc -l <$(SKIPS)) skipped:"; sort $(SKIPS); else echo "0 skipped"; fi; \
	(( status == 0 )) || sed -n '/^---- .* stdout ----$$/,/^failures:$$/p' $(CARGO_TARGET_DIR)/tests.log; exit $$status

# Seconds for each target.
FUZZ_SECONDS ?= 600
fuzz: setup
	fuzz/run $(FUZZ_SECONDS)
replay: setup
	fuzz/run replay

test-all: export RUNW_TEST_LONG := 1
test-all: PARTS := $(ALL_PARTS)
test-all: VM := yes
test-all: test

test-engines: PARTS := $(ALL_PARTS)
test-engines: build
	tests/guests/build.py >/dev/null
	RUNW=$(RUNW) tests/engines/run.py $(PARTS)

# FILTERS="systemd:: v2::" runs less.
test-vm: build
	RUNW=$(RUNW) tests/vm/run.py $(FILTERS)

conformance: build
	$(CONFORMANCE)

# crun, runc, youki and wasmtime beside it, each in turn; an hour with the peers to be built, a quarter without.
# ROWS="run exec" measures less; docs/performance.md says what and how.
bench: build
	@command -v wrk >/dev/null || { sudo=; (( EUID == 0 )) || sudo=sudo; $$sudo apt-get -qy install --no-install-recommends wrk; }
	RUNW=$(RUNW) benches/run.py $(ROWS)

# Which functions the linker puts side by side (benches/order/order.py).
order: ORDER_MAP := $(CARGO_TARGET_DIR)/order.map
order: setup
	cargo rustc --release --locked --bin runw -- -C strip=none -C link-arg=-Wl,--emit-relocs,-Map=$(ORDER_MAP)
	benches/order/order.py $(RUNW) $(ORDER_MAP) $$(tests/guests/build.py)/hello.wasm
	cargo build --release --locked

clean:
	cargo clean

#!/usr/bin/env python3
"""Builds the wasmtime CLI of the version that runw embeds and prints where it is.

The peer of the wasm tests and of the benchmarks. Ten minutes of compiling, once for each machine, so no test
calls this: what it said is recorded in tests/controls/wasmtime (testing.md).
"""
import fcntl, os, re, shutil, subprocess, sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("RUNW_TEST_CACHE") or Path.home() / ".cache/runw") / "peers"
VERSION = re.search(r'^wasmtime = \{ version = "=([\d.]+)"', (TREE / "Cargo.toml").read_text(), re.M)[1]
# What runw has, and WAT: no profilers, debuggers, second compilers.
FEATURES = ("run serve compile wat cranelift parallel-compilation pooling-allocator component-model component-model-async wasi-http "
            "wasi-config wasi-keyvalue wasi-tls gc gc-null addr2line backtrace demangle clap/default")


def main():
    home = PEERS / f"wasmtime-{VERSION}"
    binary = home / "bin/wasmtime"
    PEERS.mkdir(parents=True, exist_ok=True)
    with open(PEERS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            target = PEERS / "target"
            # Neither runw's own target directory nor its flags, which are for one static binary.
            env = {k: v for k, v in os.environ.items() if k not in ("RUSTFLAGS", "CARGO_BUILD_TARGET")}
            subprocess.run(["cargo", "install", "wasmtime-cli", "--version", VERSION, "--locked", "--no-default-features",
                            "--features", FEATURES, "--root", home, "--target-dir", target],
                           check=True, cwd="/", env=env, stdout=sys.stderr)
            shutil.rmtree(target)
    print(binary)


if __name__ == "__main__":
    main()

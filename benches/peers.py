#!/usr/bin/env -S python3 -B
"""Finds or builds what runw is measured against; prints where. Peers from crates.io are built once, below the cache."""
import os, re, shutil, subprocess, sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("RUNW_TEST_CACHE") or Path.home() / ".cache/runw")
PEERS = CACHE / "peers"
# The version that runw embeds, with what runw has: no profilers, debuggers, second compilers.
WASMTIME = re.search(r'^wasmtime = \{ version = "=([\d.]+)"', (TREE / "Cargo.toml").read_text(), re.M)[1]
WASMTIME_HAS = ("run serve compile wat cranelift parallel-compilation pooling-allocator component-model component-model-async wasi-http "
                "wasi-config wasi-keyvalue wasi-tls gc gc-null addr2line backtrace demangle clap/default")
# name: (crate, version, what cargo is told besides)
CRATES = {
    "wasmtime": ("wasmtime-cli", WASMTIME, ["--no-default-features", "--features", WASMTIME_HAS]),
    "youki": ("youki", "0.5.7", ["--no-default-features", "--features", "v1,v2,seccomp"]),
}


def built(name):
    """The binary, or None with the reason on stderr: a peer that cannot be had leaves its rows empty."""
    crate, version, words = CRATES[name]
    home = PEERS / f"{name}-{version}"
    binary = home / "bin" / name
    if not binary.exists():
        print(f"building {crate} {version}, once", file=sys.stderr, flush=True)
        command = ["cargo", "install", "--locked", "--root", home, "--version", version, crate, *words]
        # From / and without our flags, which are for one static binary: this project's cargo configuration is not the peer's.
        env = {key: value for key, value in os.environ.items() if key not in ("RUSTFLAGS", "CARGO_BUILD_TARGET")}
        env["CARGO_TARGET_DIR"] = str(PEERS / "target")
        done = subprocess.run(command, env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            print(f"{crate} {version} cannot be built here:", *done.stdout.splitlines()[-5:], sep="\n  ", file=sys.stderr)
            return None
    return binary


def static(source, into):
    """A C program of ours, linked static."""
    out = into / source.stem
    subprocess.run(["gcc", "-static", "-O2", "-o", out, source], check=True)
    return out


def with_libraries(program, into):
    """A program of this host for a root that has not its libraries: copied with them, behind a script."""
    path = Path(shutil.which(program) or sys.exit(f"{program} is missing"))
    home = into / program
    home.mkdir()
    shutil.copy(path, home)
    for line in subprocess.run(["ldd", path], stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines():
        words = line.split()
        if "=>" in words and len(words) > 2 and words[2].startswith("/"):
            shutil.copy(words[2], home)
        elif words and words[0].startswith("/"):
            shutil.copy(words[0], home / "loader")
    script = into / f"run-{program}"
    script.write_text(f'#!/bin/sh\nexec /work/tests/{program}/loader --library-path /work/tests/{program} /work/tests/{program}/{path.name} "$@"\n')
    script.chmod(0o755)


if __name__ == "__main__":
    for name in CRATES:
        print(built(name))

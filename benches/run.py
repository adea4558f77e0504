#!/usr/bin/env -S python3 -B
"""Measures runw side by side with its peers and writes benches/results/: raw CSV, a table, a plot.

    run.py [--rounds N] [ROW...]      rows: run life force exec wasm memory many calls size serve

RUNW is the binary under test. How and on what: docs/performance.md.
"""
import argparse, csv, os, platform, shutil, subprocess, sys, tempfile
from pathlib import Path

import peers, report, serve

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
sys.path.insert(0, str(TESTS / "engines"))
import machine, root  # noqa: E402  (the engines' root and machine are the tests')

RESULTS = HERE / "results"
DEADLINE = 3600


def inside(rounds, rows, wasmtime):
    """Runs the rows that need containers; returns their samples."""
    engines = root.make()
    guests = Path(subprocess.run([TESTS / "guests/build.py"], stdout=subprocess.PIPE, check=True, text=True).stdout.strip())
    work = Path(tempfile.mkdtemp(prefix="runw-bench-"))
    try:
        tests = work / "tests"
        tests.mkdir()
        (work / "bin").mkdir()
        (work / "images").mkdir()
        shutil.copy(os.environ["RUNW"], work / "bin/runw")
        for file in (HERE / "inside.py", HERE / "idle.wat", guests / "hello.wasm", guests / "qjs.wasm"):
            shutil.copy(file, tests)
        for source in HERE.glob("*.c"):
            peers.static(source, tests)
        for name, path in (("wasmtime", wasmtime), ("youki", peers.built("youki"))):
            if path:
                shutil.copy(path, tests / name)
        peers.with_libraries("strace", tests)
        with open(work / "output", "wb") as output:
            ended = machine.Machine(engines, work).run(["python3", "-B", "/work/tests/inside.py", str(rounds), *rows], output, DEADLINE)
        if ended != 0:
            sys.exit(f"the measurements ended with {ended}:\n" + (work / "output").read_text(errors="replace"))
        return (work / "results.csv").read_text()
    finally:
        shutil.rmtree(work)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("rows", nargs="*")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("containers of all runtimes are started as root")
    wasmtime = peers.built("wasmtime")
    rows = [row for row in args.rows if row != "serve"]
    text = inside(args.rounds, rows, wasmtime) if rows or not args.rows else ""
    if "serve" in args.rows or not args.rows:
        text += serve.measure(os.environ["RUNW"], wasmtime, args.rounds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "raw.csv").write_text("row,who,round,value\n" + text)
    samples = {}
    for row, who, _, value in csv.reader(text.splitlines()):
        samples.setdefault(row, {}).setdefault(who, []).append(float(value))
    host = f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    table = report.table(samples, host)
    (RESULTS / "table.md").write_text(table)
    (RESULTS / "plot.svg").write_text(report.plot(samples, host))
    print(table)


if __name__ == "__main__":
    main()

#!/usr/bin/env -S python3 -B
"""Drives runw by real engines and compares with what runc does under them.

    run.py [PART...] [--only WORD] [--runtime runw|runc]

A part (one file of inside/) runs in a machine of its own. Each check is run for runw; what runc did is recorded in
tests/controls/engines, keyed by packages, kernel and the checks' own text. Where the key differs it is run again;
CONTROL=1 runs and records it. RUNW is the binary under test.
"""
import argparse, hashlib, json, os, platform, shutil, signal, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import images, machine, root

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
CONTROLS = TESTS / "controls/engines"
PARTS = ["ctr", "cri", "podman", "docker"]
# Longer than any part takes under load: what is still running then hangs.
DEADLINE = 900
# The name of the record that says how a part ended which did not end well.
PART_ITSELF = "the part itself"


def key(engines, part):
    """What the record of a control depends on."""
    names = set(" ".join((root.ENGINES, root.RUNTIMES, root.NETWORK)).split())
    packages = (line.rsplit("_", 1)[0].split("_") for line in (engines / "packages").read_text().splitlines())
    text = b"".join((HERE / f).read_bytes() for f in ("images.py", "machine.sh", "inside/lib.py", "inside/common.py", f"inside/{part}.py"))
    return {"kernel": platform.release(), "checks": hashlib.sha256(text).hexdigest()[:16],
            "packages": {name: version for name, version in packages if name in names}}


def in_machine(engines, runtime, part, words):
    """Runs a part for one runtime; returns its records, by name, and what it printed."""
    work = Path(tempfile.mkdtemp(prefix="runw-engines-"))
    try:
        (work / "bin").mkdir()
        shutil.copy(os.environ["RUNW"], work / "bin/runw")
        (work / "bin/runw-wasm").symlink_to("runw")
        shutil.copytree(HERE / "inside", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(TESTS.parent / "contrib", work / "contrib")
        images.make(work / "images", engines / "usr/bin/busybox", guests() / "probe.wasm")
        with open(work / "output", "wb") as output:
            status = machine.Machine(engines, work).run(["python3", "-B", "/work/tests/main.py", runtime, part, *words], output, DEADLINE)
        output = (work / "output").read_text(errors="replace")
        results = (work / "results").read_text().splitlines() if (work / "results").exists() else []
        if status != 0:
            results.append(json.dumps({"name": PART_ITSELF, "ok": False, "seconds": 0, "saw":
                                       [f"ended with {status}" if status is not None else f"hung for {DEADLINE} s", *output.splitlines()[-30:]]}))
        return {r["name"]: r for r in map(json.loads, results)}
    finally:
        shutil.rmtree(work)


def guests():
    return Path(subprocess.run([TESTS / "guests/build.py"], stdout=subprocess.PIPE, check=True, text=True).stdout.strip())


def control(engines, part, words):
    record, now = CONTROLS / f"{part}.json", key(engines, part)
    if record.exists() and not os.environ.get("CONTROL"):
        known = json.loads(record.read_text())
        if known["key"] == now:
            return {r["name"]: r for r in known["checks"]}
    found = in_machine(engines, "runc", part, words)
    if os.environ.get("CONTROL") and not words and PART_ITSELF not in found:
        CONTROLS.mkdir(exist_ok=True)
        checks = [{k: r[k] for k in ("name", "ok", "saw")} for r in found.values()]
        record.write_text(json.dumps({"key": now, "checks": checks}, indent=1) + "\n")
    return found


def judge(mine, runc):
    """(verdict, explanation) of one check."""
    def did(who, r):
        cut = r["saw"] if len(r["saw"]) < 40 else [*r["saw"][:15], "...", *r["saw"][-20:]]
        return [f"  {who} {'saw' if r['ok'] else 'failed'}:", *("    " + line for line in cut)]

    if runc and not runc["ok"] and not mine.get("runc_fails"):
        return "FAIL", ["  the control fails, so the check shows nothing", *did("runc", runc), *did("runw", mine)]
    if mine["ok"] and (not runc or not runc["ok"] or runc["saw"] == mine["saw"]):
        return "ok", []
    if mine.get("runc_fails") and not mine["ok"]:
        return "skip", [f"  runc fails here too: {mine['runc_fails']}", *did("runw", mine)]
    return "FAIL", [*(did("runc", runc) if runc else []), *did("runw", mine)]


def verdicts(mine, runc):
    """{name: (verdict, explanation)} of a part."""
    return {n: judge(mine[n], runc.get(n)) if n in mine else ("FAIL", ["  was not run"]) for n in {**mine, **runc}}


def show(part, mine, runc):
    """Prints a part's verdicts; returns how many passed, failed and were skipped."""
    count = {"ok": 0, "FAIL": 0, "skip": 0}
    for name, (verdict, why) in verdicts(mine, runc).items():
        count[verdict] += 1
        seconds = mine.get(name, {}).get("seconds", 0)
        print(f"{verdict:4} {part}: {name} ({seconds} s)", *(why if verdict != "ok" else []), sep="\n", flush=True)
        if verdict == "skip":
            skipped(part, name, why[0].strip())
    return count


def skipped(part, name, why):
    """For what `make test` counts."""
    if path := os.environ.get("RUNW_TEST_SKIPS"):
        with open(path, "a") as file:
            file.write(f"skipped engines {part}: {name}: {why}\n")


def unable():
    """Why this machine cannot run engines, or None."""
    if os.geteuid() != 0:
        return "engines are started as root"
    if not Path("/sys/fs/cgroup/memory/cgroup.procs").exists():
        return "the checks read cgroup v1's files"
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--only", default=[], action="append")
    parser.add_argument("--runtime", default="runw", choices=["runw", "runc"])
    args = parser.parse_args()
    parts = args.parts or PARTS
    if why := unable():
        for part in parts:
            skipped(part, "all of it", why)
        print(f"engines: 0 passed, 0 failed, {len(parts)} skipped: {why}")
        return
    engines = root.make()
    guests()
    total = {"ok": 0, "FAIL": 0, "skip": 0}

    def one(part):
        runc = {} if args.runtime == "runc" else control(engines, part, args.only)
        mine = in_machine(engines, args.runtime, part, args.only)
        runc = {n: r for n, r in runc.items() if not args.only or n in mine}
        # Engines have deadlines of their own, which a busy host breaks: what fails twice fails.
        failed = [(n, why) for n, (verdict, why) in verdicts(mine, runc).items() if verdict == "FAIL"]
        if failed:
            print(*(f"{part}: {n} failed, the part is run again\n" + "\n".join(why) for n, why in failed), sep="\n", flush=True)
            mine = in_machine(engines, args.runtime, part, args.only)
        return part, mine, runc

    with ThreadPoolExecutor(2) as pool:
        def stop(*_):
            """What was made is removed all the same."""
            pool.shutdown(wait=False, cancel_futures=True)
            for first in list(machine.RUNNING):
                first.kill()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        for part, mine, runc in pool.map(one, parts):
            for verdict, n in show(part, mine, runc).items():
                total[verdict] += n
    print(f"engines: {total['ok']} passed, {total['FAIL']} failed, {total['skip']} skipped")
    sys.exit(total["FAIL"] > 0)


main()

#!/usr/bin/env python3
"""Runs the validation programs of the OCI runtime-tools against runw, and holds what they say against expectations.tsv.

    RUNW=PATH run.py [PROGRAM...]

runc and crun run beside as controls. What they say is recorded in control.tsv for one host; elsewhere it is found out
once and kept outside the tree. CONTROL=1 asks them again and writes control.tsv. RUNTIME_TOOLS=DIR takes the programs
of a checkout.
"""
import csv, fcntl, hashlib, os, shutil, subprocess, sys
from dataclasses import dataclass
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import cell, suite  # noqa: E402

PEERS = ("runc", "crun")
TRIES = 5


def status_bit(field, bit):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return bool(int(line.split()[1], 16) >> bit & 1)


# What a program may need of the host, for expectations.tsv.
HOST = {
    "v1": (cell.CGROUPS / "pids/tasks").exists(),
    "hugetlb": (cell.CGROUPS / "hugetlb/tasks").exists(),
    "net_cls": (cell.CGROUPS / "net_cls/tasks").exists(),
    "selinux": Path("/sys/fs/selinux/enforce").exists(),
    "cap_sys_resource": status_bit("CapBnd", 24),
}


@dataclass
class Expected:
    """`otherwise` is the outcome where the host lacks one of `needs`; `skip` there means not to run the program."""
    result: str
    needs: str
    otherwise: str
    reason: str

    @property
    def lacks(self):
        return [need for need in self.needs.split() if not HOST[need]]

    @property
    def outcome(self):
        return self.otherwise if self.lacks else self.result

    def is_met(self, outcome):
        return outcome == ("pass" if self.outcome == "race" else self.outcome)

    def problems(self):
        text = self.result + self.otherwise
        unknown = set(self.needs.split()) - set(HOST)
        return [problem for problem, is_so in [
            (f"needs {' '.join(unknown)}, which is nothing known", unknown),
            ("says what holds otherwise, but needs nothing", self.otherwise and not self.needs),
            ("does not say what holds without its needs", self.needs and not self.otherwise),
            ("gives no reason", text != "pass" and not self.reason),
        ] if is_so]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t", quoting=csv.QUOTE_NONE))


def expectations(names):
    rows = table(HERE / "expectations.tsv")
    found = {r["program"]: Expected(*(r[k] or "" for k in ("result", "needs", "otherwise", "reason"))) for r in rows}
    problems = [f"{name}: {problem}" for name, row in found.items() for problem in row.problems()]
    problems += [f"{name}: two rows" for name in found if [r["program"] for r in rows].count(name) > 1]
    problems += [f"{name}: no row" for name in names if name not in found]
    if not os.environ.get("RUNTIME_TOOLS"):
        problems += [f"{name}: no such program" for name in found if name not in names]
    if problems:
        sys.exit("expectations.tsv: " + "\nexpectations.tsv: ".join(problems))
    return found


def version(peer):
    asked = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", peer], capture_output=True, text=True)
    if asked.returncode == 0:
        return asked.stdout
    return subprocess.run([peer, "--version"], capture_output=True, text=True).stdout.splitlines()[0]


def controls(where, names):
    """{program: {peer: outcome}}, from the record if it is of this host."""
    peers = [peer for peer in PEERS if shutil.which(peer)]
    kernel = ".".join(os.uname().release.split(".")[:2])
    source = "trixie" if not os.environ.get("RUNTIME_TOOLS") else where.name
    host = " ".join(name for name in HOST if HOST[name])
    key = f"# {', '.join(f'{peer} {version(peer)}' for peer in peers)}; Linux {kernel} with {host}; suite of {source}\n"
    recorded = HERE / "control.tsv"
    cached = suite.HOME / f"control-{hashlib.sha256(key.encode()).hexdigest()[:16]}.tsv"
    again = bool(os.environ.get("CONTROL"))
    for path in (recorded, cached):
        if not again and path.exists() and path.read_text().startswith(key):
            return {row["program"]: row for row in table(path)}
    if not again:
        print(f"control.tsv is of another host: asking {' and '.join(peers)} of this one", file=sys.stderr)
    said = {peer: cell.run_all(where, shutil.which(peer), names) for peer in peers}
    rows = [[name, *(said[peer][name].outcome for peer in peers)] for name in names]
    lines = ["\t".join(row) + "\n" for row in [["program", *peers], *rows]]
    path = recorded if again else cached
    path.write_text(key + "".join(lines))
    return {row["program"]: row for row in table(path)}


def skipped(name, lacks):
    line = f"skipped conformance::{name}: this host has no {' '.join(lacks)}"
    print(line)
    if path := os.environ.get("RUNW_TEST_SKIPS"):
        with open(path, "a") as file:
            file.write(line + "\n")


def attempts(where, runtime, names, expected):
    """Programs have deadlines of seconds and races of their own: on a busy host the first answer is not always right."""
    results = cell.run_all(where, runtime, names)
    for name in names:
        for attempt in range(2, TRIES + 1):
            if expected[name].is_met(results[name].outcome):
                break
            print(f"{name}: {results[name].outcome}, trying again", file=sys.stderr)
            results[name] = cell.run_one(where, runtime, name)
    return results


def report(names, expected, results, control):
    """Prints what is not as expected, then the sums; returns how many are not."""
    unmet = [name for name in names if not expected[name].is_met(results[name].outcome)]
    wrong = [name for name in unmet if expected[name].outcome != "race"]
    for name in sorted(set(unmet) - set(wrong)):
        print(f"{name}: {results[name].outcome}, {TRIES} times: not judged, since its own timing decides")
    for name in wrong:
        result = results[name]
        print(f"--- {name}: {result.outcome}, expected {expected[name].outcome}\n{result.stdout}{result.stderr}")
    passed = [name for name in names if results[name].outcome == "pass"]
    owed = [name for name in names if expected[name].outcome not in ("pass", "race") and "pass" in control[name].values()]
    passes = {peer: sum(row.get(peer) == "pass" for row in control.values()) for peer in PEERS}
    print(f"conformance: {len(passed)} of {len(names)} pass, {len(wrong)} not as expected; of all programs runc passes {passes['runc']}, "
          f"crun {passes['crun']}; passed by a control and not by runw: {' '.join(owed) or 'none'}")
    return len(wrong)


def main():
    if os.geteuid():
        sys.exit("the conformance suite makes containers as root")
    runtime = shutil.which(os.environ.get("RUNW", "runw")) or sys.exit("RUNW names no program")
    where = suite.built()
    every = sorted(path.name for path in (where / "programs").iterdir())
    expected = expectations(every)
    asked = sys.argv[1:] or every
    if unknown := set(asked) - set(every):
        sys.exit(f"no such program: {' '.join(sorted(unknown))}")
    with open(suite.HOME / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        control = controls(where, every)
        names = [name for name in asked if expected[name].outcome != "skip"]
        results = attempts(where, str(Path(runtime).resolve()), names, expected)
    for name in sorted(set(asked) - set(names)):
        skipped(name, expected[name].lacks)
    sys.exit(1 if report(names, expected, results, control) else 0)


main()

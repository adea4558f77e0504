#!/usr/bin/env -S python3 -B
"""Runs tests of tests/it in a machine with systemd, cgroup v2 alone and Debian's kernel.

    run.py [FILTER...] [--runtime PATH] [--append WORDS] [-- COMMAND...]

Without filters the tests of SUITE run. RUNW is the binary under test; --runtime names a peer inside the machine instead.
--append adds to the kernel's arguments, for which the machine is booted instead of restored. COMMAND is run by a shell in
place of the tests: /mnt/host holds runw, it, guests and tree.
"""
import argparse, json, os, re, shlex, shutil, signal, subprocess, sys, tempfile
from pathlib import Path

import build, image
from qemu import Lost, Machine

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
# Words of tests' names: what depends on cgroup v2, on systemd, on a kernel with all that CRIU asks for, on AppArmor.
SUITE = ["apparmor::", "cgroups::", "checkpoint::", "rootless::", "systemd::", "unified::", "v2::", "verbs::"]
# Where the processor is emulated deadlines are so many times as long.
PATIENCE = 5
DEADLINE = 1800
# Where a user can reach it who is not root.
MINE = "/usr/local/bin/runw"
SKIPS = "/tmp/skips"


def built():
    """The test binary, which has the paths of tree and runw compiled in."""
    out = subprocess.run(["cargo", "test", "--profile", "unit", "--locked", "--test", "it", "--no-run", "--message-format=json"],
                         cwd=TREE, stdout=subprocess.PIPE, check=True, text=True).stdout
    found = [m["executable"] for m in map(json.loads, out.splitlines()) if m.get("target", {}).get("name") == "it" and m.get("executable")]
    return found[-1]


def pack(out):
    """The disk that the machine finds at /mnt/host."""
    guests = Path(subprocess.run([TREE / "tests/guests/build.py"], stdout=subprocess.PIPE, check=True, text=True).stdout.strip())
    with tempfile.TemporaryDirectory(prefix="runw-share-") as share:
        share = Path(share)
        shutil.copy(os.environ["RUNW"], share / "runw")
        shutil.copy(built(), share / "it")
        shutil.copytree(guests, share / "guests", symlinks=True)
        for d in ("src", "tests", "docs", "contrib"):
            shutil.copytree(TREE / d, share / "tree" / d, ignore=shutil.ignore_patterns("__pycache__", "target"))
        image.disk(share, out, build.SHARE_SIZE)


def tests(filters, runtime):
    runw = Path(os.environ["RUNW"])
    return f"""
        mkdir -p {shlex.quote(str(TREE.parent))} {shlex.quote(str(runw.parent))}
        ln -sT /mnt/host/tree {shlex.quote(str(TREE))}
        install /mnt/host/runw {MINE}
        ln -s {MINE} {shlex.quote(str(runw))}
        # Not /tmp, which systemd mounts nodev.
        export TMPDIR=/var/tmp RUNW_TEST_RUNTIME={shlex.quote(runtime)} RUNW_TEST_GUESTS=/mnt/host/guests
        export RUNW_TEST_SKIPS={SKIPS} RUNW_TEST_PATIENCE={PATIENCE} RUST_TEST_THREADS=3
        exec /mnt/host/it {shlex.join(filters)}
    """


def judge(output, skips):
    """(passed, failed, skipped): a test that skips itself has passed for libtest."""
    counts = re.findall(r"(\d+) passed; (\d+) failed", output)
    if not counts:
        return 0, 1, 0
    passed, failed = map(int, counts[-1])
    # `skipped MODULE::TEST: REASON`, more than once for some.
    skipped = len({line.split(": ")[0] for line in skips})
    return passed - skipped, failed, skipped


def job(append, script, *files):
    """(status, output, files) of a script in the machine, which is gone afterwards."""
    parts, recorded = build.make()
    state = None if append else recorded / "state"
    text = []

    def show(data):
        text.append(data)
        sys.stdout.buffer.write(data)
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="runw-vm-share-") as work:
        share = Path(work) / "share"
        pack(share)
        try:
            with Machine(parts, (recorded if state else parts) / "disk", share, state, append) as machine:
                status, found = machine.job(script, files, show, DEADLINE)
        except Lost as lost:
            print(f"vm: {lost}")
            status, found = 1, {}
    return status, b"".join(text).decode(errors="replace"), found


def skipped(lines):
    """For what `make test` counts."""
    if path := os.environ.get("RUNW_TEST_SKIPS"):
        with open(path, "a") as file:
            file.writelines(f"{line.replace('skipped ', 'skipped vm: ', 1)}\n" for line in lines)


def main():
    argv, command = sys.argv[1:], None
    if "--" in argv:
        argv, command = argv[:argv.index("--")], shlex.join(argv[argv.index("--") + 1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("filters", nargs="*")
    parser.add_argument("--runtime", default=MINE)
    parser.add_argument("--append", default="")
    args = parser.parse_args(argv)
    if os.geteuid() != 0:
        skipped(["skipped all of it: the machine is built as root"])
        print("vm: 0 passed, 0 failed, 1 skipped: the machine is built as root")
        return
    # So that what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if command:
        sys.exit(job(args.append, command)[0])
    _, output, files = job(args.append, tests(args.filters or SUITE, args.runtime), SKIPS)
    skips = files.get(SKIPS, b"").decode().splitlines()
    skipped(skips)
    passed, failed, left = judge(output, skips)
    print(f"vm: {passed} passed, {failed} failed, {left} skipped")
    sys.exit(failed > 0)


main()

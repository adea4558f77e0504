"""Runs validation programs, each in a cell that ends with it: processes, mounts and states cannot outlive it."""
import os, re, shutil, subprocess, sys, tempfile, threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tap

DEADLINE = 90
CGROUPS = Path("/sys/fs/cgroup")
# The programs' own fixed names, and the ids that they give to containers.
FIXED = re.compile(r"cgrouptest|testdir")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# `/` is shared, as on a host with systemd, but hands nothing up to the host. /run holds the runtimes' states, and a null
# device, since crun 1.8 gives the one that is a container's stdin to its user. Process 1 reaps, as a host's does. crun 1.8
# refuses hybrid cgroups: it is asked without the v2 tree.
CELL = """
mount --make-rslave / && mount --make-rshared / && mount -t tmpfs tmpfs /run || exit 99
mknod -m 666 /run/null c 1 3 && mount --bind /run/null /dev/null || exit 99
case $RUNTIME in */crun) [ ! -e /sys/fs/cgroup/unified/cgroup.procs ] || umount /sys/fs/cgroup/unified || exit 99;; esac
"$@" & wait $!
"""
# These share the fixed names.
one_at_a_time = threading.Lock()


@dataclass
class Result:
    """`outcome` is what expectations.tsv says: pass, skip, or fail and what failed."""
    outcome: str
    stdout: str
    stderr: str


def cgroups(names):
    found = (Path(root) / d for root, dirs, _ in os.walk(CGROUPS) for d in dirs)
    return {path for path in found if names.fullmatch(path.name)}


def remove(tops):
    """What programs forget, or could not remove when their time was over. Cgroups that are in use stay."""
    for top in tops:
        for root, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(root)
            except OSError as error:
                print(f"{root} stays: {error.strerror}", file=sys.stderr)


def run(where, runtime, name):
    scratch = tempfile.mkdtemp(prefix="runw-conformance-")
    try:
        # The container's root, which may be nobody here, must get through.
        os.chmod(scratch, 0o755)
        with open(f"{scratch}/stdout", "w+", errors="replace") as out, open(f"{scratch}/stderr", "w+", errors="replace") as err:
            cell = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", CELL, "sh", where / "programs" / name],
                cwd=where, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(os.environ, RUNTIME=str(runtime), TMPDIR=scratch))
            try:
                status = cell.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                cell.kill()
                cell.wait()
                status = None
            out.seek(0), err.seek(0)
            stdout, stderr = out.read(), err.read()
        if status == 99:
            sys.exit(f"cannot make a cell for {name}: {stderr}")
        return Result(tap.judge(status, stdout), stdout, stderr)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_one(where, runtime, name):
    if "cgroups" not in name and "resources" not in name:
        return run(where, runtime, name)
    with one_at_a_time:
        before = cgroups(FIXED)
        try:
            return run(where, runtime, name)
        finally:
            remove(cgroups(FIXED) - before)


def run_all(where, runtime, names):
    """Four at once, since they sleep most of the time."""
    before = cgroups(UUID)
    try:
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(names, pool.map(lambda name: run_one(where, runtime, name), names)))
    finally:
        remove(cgroups(UUID) - before)

"""A machine for engines: its own pid, mount, network, ipc, uts and cgroup namespaces over the cached root.

Nothing in it outlives it: its first process ends with the caller, all others with the first, the mounts with their
namespace, and what engines do to cgroups, bridges or packet filters is done to its own.
"""
import ctypes, os, signal, subprocess, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMESPACES = "--mount --uts --ipc --net --pid --cgroup".split()
PR_SET_PDEATHSIG = 1
# First processes of the machines that run: to kill them ends the machines.
RUNNING = set()


def hierarchies():
    """Mount point of each cgroup hierarchy of the host. (Others may be mounted elsewhere for a moment: CRIU does so.)"""
    fields = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [Path(f[4]) for f in fields if f[f.index("-") + 1] in ("cgroup", "cgroup2") and f[4].startswith("/sys/fs/cgroup/")]


class Machine:
    def __init__(self, root, work):
        self.work, self.root = work, root
        self.cgroups = [h / f"runw-test-engines-{os.getpid()}-{work.name}" for h in hierarchies()]

    def run(self, command, output, timeout):
        """Runs `command` as the machine's purpose, its output going to `output`; returns its exit status or None."""
        for d in ("upper", "work", "root"):
            (self.work / d).mkdir()
        argv = ["unshare", *NAMESPACES, "--fork", "--kill-child", "/bin/sh", HERE / "machine.sh", self.root, self.work, *command]
        env = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        first = None
        try:
            self.make_cgroups()
            first = subprocess.Popen(argv, preexec_fn=self.enter, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env)
            RUNNING.add(first)
            return first.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if first:
                first.kill()
                first.wait()
                RUNNING.discard(first)
            self.clear()

    def make_cgroups(self):
        for cgroup in self.cgroups:
            cgroup.mkdir()
            # A new cpuset is empty, and nothing can enter it.
            for f in ("cpuset.cpus", "cpuset.mems"):
                if (cgroup / f).exists():
                    (cgroup / f).write_text((cgroup.parent / f).read_text())

    def enter(self):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for cgroup in self.cgroups:
            (cgroup / "cgroup.procs").write_text("0")

    def clear(self):
        """The kernel ends the processes of a pid namespace; their cgroups empty a little later."""
        deadline = time.monotonic() + 10
        for cgroup in self.cgroups:
            for d, _, _ in os.walk(cgroup, topdown=False):
                while True:
                    try:
                        os.rmdir(d)
                        break
                    except OSError:
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.02)

"""What podman and Docker share: one command line, and checks that are written once. `Engine` says how each is called."""
import os, urllib.request
from pathlib import Path

from lib import at_once, cgroup_of, check, fails, on_terminal, sh, until

RUNTIME = os.environ["RUNTIME"]
BUSYBOX = "localhost/busybox:latest"
# Exits with 5 of SIGTERM, and is known to do so once it has said `up`.
LOOP = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"

# A name, options of `run`, and what a shell in the container is asked. The control tells the answers.
LIMIT = "cat /sys/fs/cgroup/{}/{}"
# A cgroup mount that is asked for read-only is so wholly under runw; runc forgets the tmpfs that holds the hierarchies.
FLAGS = [
    ("nothing asked for", [], "id; pwd; umask; hostname | wc -c; env | sort | grep -v -e HOSTNAME -e SHLVL; ls /dev; grep -E 'Cap|Seccomp:|NoNew' /proc/self/status; "
     "awk '{print $5, $6}' /proc/self/mountinfo | sort | sed 's#^/sys/fs/cgroup r[ow]#/sys/fs/cgroup#'; ls /sys/class/net; ulimit -n; cat /proc/1/comm"),
    ("--memory", ["--memory", "64m", "--memory-swap", "128m", "--memory-reservation", "32m"],
     f"{LIMIT.format('memory', 'memory.limit_in_bytes')} /sys/fs/cgroup/memory/memory.soft_limit_in_bytes"),
    ("--cpus", ["--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0"],
     f"{LIMIT.format('cpu', 'cpu.cfs_quota_us')} /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpuset/cpuset.cpus"),
    ("--pids-limit", ["--pids-limit", "6"], f"{LIMIT.format('pids', 'pids.max')}; for i in 1 2 3 4 5 6 7; do sleep 1 & done 2>/dev/null; echo not reached"),
    ("--read-only", ["--read-only"], "touch /x; touch /tmp/x && echo tmp; touch /dev/shm/x && echo shm"),
    ("--tmpfs", ["--tmpfs", "/scratch:size=1m,mode=1700", "--tmpfs", "/www"], "stat -c '%a' /scratch; df -k /scratch | tail -1 | awk '{print $2}'; grep -c ' /www tmpfs' /proc/mounts; ls /www"),
    ("-v", ["-v", "/tmp/host:/in", "-v", "/tmp/host:/ro:ro"], "cat /in/file; touch /ro/x; grep -E ' /(in|ro) ' /proc/mounts | awk '{print $2, $4}' | sort"),
    ("-v of a named volume", ["-v", "named:/www"], "cat /www/index.html; touch /www/x && echo writable"),
    ("-v with propagation", ["-v", "/tmp/shared:/in:rslave"], "awk '$5 == \"/in\" {print $7 ~ /master/}' /proc/self/mountinfo"),
    ("--cap-drop", ["--cap-drop", "all", "--cap-add", "net_bind_service"], "grep Cap /proc/self/status; chown 1 /www"),
    ("--privileged", ["--privileged"], "grep -E 'Cap(Eff|Bnd)|Seccomp:' /proc/self/status; mount -t tmpfs none /www && echo mounted; [ -w /proc/sysrq-trigger ] && echo writable"),
    ("--security-opt no-new-privileges", ["--security-opt", "no-new-privileges"], "grep NoNew /proc/self/status"),
    ("--security-opt seccomp=unconfined", ["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status"),
    ("--init", ["--init"], "tr '\\0' ' ' </proc/1/cmdline | cut -d' ' -f1 | sed 's#.*/##'"),
    ("--device", ["--device", "/dev/fuse", "--device", "/dev/full:/dev/other:r"], "ls -l /dev/fuse /dev/other | awk '{print $1, $5, $6}'; echo x >/dev/other"),
    ("--device-cgroup-rule", ["--device-cgroup-rule", "c 10:229 rwm"], "mknod /tmp/fuse c 10 229 && (exec 3<>/tmp/fuse) && echo opened; mknod /tmp/k c 1 11 && (exec 3</tmp/k); true"),
    ("--ulimit", ["--ulimit", "nofile=100:200", "--ulimit", "core=0"], "ulimit -n; ulimit -Hn; ulimit -c"),
    ("--user", ["--user", "1000:1000", "--group-add", "7"], "id; touch /x"),
    ("--workdir, --env, --hostname", ["--workdir", "/www", "--env", "A=b c", "--hostname", "named"], "pwd; echo \"$A\"; hostname"),
    ("--sysctl", ["--sysctl", "net.ipv4.ip_forward=0", "--sysctl", "kernel.shm_rmid_forced=1"], "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced"),
    ("--shm-size", ["--shm-size", "2m"], "df -k /dev/shm | tail -1 | awk '{print $2}'"),
    ("--ipc host, --pid host, --uts host", ["--ipc", "host", "--pid", "host", "--uts", "host"], "cat /proc/1/comm; hostname; ls /dev/shm"),
    ("--network none", ["--network", "none"], "ls /sys/class/net; cat /sys/class/net/lo/operstate"),
    ("--network host", ["--network", "host"], "ls /sys/class/net | grep lo"),
    ("--cgroupns private", ["--cgroupns", "private"], "grep pids /proc/self/cgroup; ls /sys/fs/cgroup/pids | grep pids.max"),
    ("--oom-score-adj", ["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj"),
    ("--mount type=tmpfs and type=bind", ["--mount", "type=tmpfs,destination=/scratch,tmpfs-size=1m", "--mount", "type=bind,source=/tmp/host,destination=/in,readonly"],
     "df -k /scratch | tail -1 | awk '{print $2}'; touch /in/x"),
    ("--blkio-weight", ["--blkio-weight", "300"], "cat /sys/fs/cgroup/blkio/blkio.bfq.weight /sys/fs/cgroup/blkio/blkio.weight 2>/dev/null"),
]


class Engine:
    """`cli` comes before the verb, `making` after the verbs that make a container: either may name the runtime."""
    def __init__(self, cli, making=(), force=()):
        self.cli, self.making, self.force = cli, making, force

    def __call__(self, *args, **kw):
        return sh(*self.cli, *args, **kw)

    def argv(self, verb, *args):
        return [*self.cli, verb, *self.making, *args]

    def make(self, verb, *args, **kw):
        return sh(*self.argv(verb, *args), **kw)

    def run(self, *args, **kw):
        return self.make("run", "--rm", *args, **kw)

    def shell(self, options, script, **kw):
        return self.run(*options, BUSYBOX, "sh", "-c", script, **kw)

    def detached(self, name, script=LOOP, options=(), ready="up", image=BUSYBOX):
        self.make("run", "-d", "--name", name, *options, image, "sh", "-c", script)
        until(f"{name} says {ready}", lambda: ready in self("logs", name))

    def inspect(self, name, what):
        return self("inspect", "--format", "{{" + what + "}}", name).strip()

    def remove(self, *names):
        self("rm", "-f", *self.force, *names)

    def prepare(self):
        """The host's side of the mounts in FLAGS, and what an engine's first container makes once for all."""
        Path("/tmp/host").mkdir()
        Path("/tmp/host/file").write_text("of the host\n")
        Path("/dev/shm/of-the-host").touch()
        Path("/tmp/shared").mkdir()
        sh("mount", "--bind", "/tmp/shared", "/tmp/shared")
        sh("mount", "--make-shared", "/tmp/shared")
        self.run(BUSYBOX, "true")


def checks(engine):
    """Registers what both must do."""
    for name, options, probe in FLAGS:
        check(f"run: {name}")(lambda options=options, probe=probe: engine.shell(options, f"exec 2>&1; {probe}; true", status=None))
    for name, function in COMMON:
        check(name)(lambda function=function: function(engine))


COMMON = []


def common(name):
    def add(function):
        COMMON.append((name, function))
        return function
    return add



@common("run and its exit status")
def _(e):
    return sorted(e.shell([], "echo out; echo err >&2; exit 3", status=3).splitlines())


@common("run on a terminal of its caller's size")
def _(e):
    return on_terminal(*e.argv("run", "--rm", "-it", BUSYBOX, "sh", "-c", "tty; stty size; echo go; read line; echo got $line; exit 4"), say="typed\n", status=4)


@common("run with standard input")
def _(e):
    return e.make("run", "--rm", "-i", BUSYBOX, "wc", "-l", stdin="a\nb\n")


@common("statuses of what cannot be run")
def _(e):
    seen = []
    for program in ("nothere", "/bin/nothere", "/etc/passwd", "/etc", "/etc/garbage"):
        status, text = fails(*e.argv("run", "--rm", BUSYBOX, program))
        seen.append(f"{program}: {status}")
    seen.append(str(fails(*e.argv("run", "--rm", "--workdir", "/etc/passwd", BUSYBOX, "true"))[0]))
    seen.append(str(fails(*e.argv("run", "--rm", "--device", "/dev/nothere", BUSYBOX, "true"))[0]))
    return seen


@common("exec: status, user, directory, environment, standard input")
def _(e):
    e.detached("exec")
    seen = [e("exec", "exec", "sh", "-c", "echo inside; exit 9", status=9),
            e("exec", "--user", "1000", "--workdir", "/home", "--env", "A=b", "exec", "sh", "-c", "id; pwd; echo $A; grep Cap /proc/self/status"),
            e("exec", "-i", "exec", "cat", stdin="in\n"), e("exec", "--privileged", "exec", "grep", "CapEff", "/proc/self/status"),
            str(fails(*e.cli, "exec", "exec", "nothere")[0]), str(fails(*e.cli, "exec", "exec", "/etc/passwd")[0])]
    e.remove("exec")
    return seen


@common("exec on a terminal")
def _(e):
    e.detached("exectty")
    seen = on_terminal(*e.cli, "exec", "-it", "exectty", "sh", "-c", "tty; stty size; echo go; read line; echo got $line; exit 6", say="typed\n", status=6)
    e.remove("exectty")
    return seen


@common("exec detached")
def _(e):
    e.detached("execd")
    e("exec", "-d", "execd", "touch", "/tmp/made")
    until("it was made", lambda: e("exec", "execd", "ls", "/tmp").strip() == "made")
    e.remove("execd")
    return "made"


@common("attach")
def _(e):
    e.make("run", "-d", "-it", "--name", "attach", BUSYBOX, "sh", "-c", "read line; echo got $line; exit 7")
    # What podman's attach ends with is its own affair.
    seen = on_terminal(*e.cli, "attach", "attach", say="typed\n", status=None, silent=True)
    e("wait", "attach")
    seen += e.inspect("attach", ".State.ExitCode")
    e.remove("attach")
    return seen


@common("create, start, wait, restart")
def _(e):
    e.make("create", "--name", "life", BUSYBOX, "sh", "-c", "echo x >>/count; wc -l </count; exit 8")
    seen = [e.inspect("life", ".State.Status")]
    e("start", "life")
    seen += [e("wait", "life"), e("start", "-a", "life", status=8)]
    e("restart", "life")
    seen += [e("wait", "life"), e("logs", "life")]
    e.remove("life")
    return seen


@common("stop: by its signal, by its deadline, kill")
def _(e):
    e.detached("polite")
    e.detached("deaf", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    e.detached("other", "trap 'exit 6' USR1; echo up; while :; do sleep 0.1; done", ["--stop-signal", "USR1"])
    e.detached("kill", "trap 'echo hup' HUP; " + LOOP)
    e("stop", "-t", "20", "polite")
    e("stop", "-t", "20", "other")
    e("stop", "-t", "1", "deaf")
    e("kill", "-s", "HUP", "kill")
    until("the signal arrived", lambda: "hup" in e("logs", "kill"))
    e("kill", "kill")
    e("wait", "kill")
    seen = [e.inspect(n, ".State.ExitCode") for n in ("polite", "deaf", "other", "kill")]
    e.remove("polite", "deaf", "other", "kill")
    return seen


@common("pause and unpause")
def _(e):
    e.detached("pause")
    pid = e.inspect("pause", ".State.Pid")
    e("pause", "pause")
    freezer = cgroup_of(pid, "freezer") / "freezer.state"
    seen = [e.inspect("pause", ".State.Status"), freezer.read_text().strip(), str(fails(*e.cli, "exec", "pause", "true")[0])]
    e("unpause", "pause")
    seen += [e.inspect("pause", ".State.Status"), freezer.read_text().strip()]
    e("pause", "pause")
    e.remove("pause")
    return seen


@common("update")
def _(e):
    e.detached("update", options=["--memory", "64m"])
    pid = e.inspect("update", ".State.Pid")
    e("update", "--memory", "96m", "--cpus", "0.5", "--pids-limit", "77", "update")
    seen = [(cgroup_of(pid, c) / f).read_text().strip() for c, f in
            (("memory", "memory.limit_in_bytes"), ("cpu", "cpu.cfs_quota_us"), ("pids", "pids.max"))]
    seen.append(str(fails(*e.cli, "update", "--memory", "4k", "update")[0]))
    e.remove("update")
    return seen


@common("out of memory")
def _(e):
    e.make("run", "-d", "--name", "oom", "--memory", "16m", BUSYBOX, "sh", "-c", "sleep 0.3; tail /dev/zero")
    e("wait", "oom")
    seen = f"{e.inspect('oom', '.State.ExitCode')} {e.inspect('oom', '.State.OOMKilled')}"
    e.remove("oom")
    return seen


@common("cp, diff and commit")
def _(e):
    e.detached("files")
    e("cp", "/tmp/host/file", "files:/www/copied")
    seen = [e("exec", "files", "cat", "/www/copied"), *sorted(e("diff", "files").splitlines())]
    e("commit", "files", "localhost/committed")
    seen.append(e.run("localhost/committed", "cat", "/www/copied"))
    e.remove("files")
    e("rmi", "localhost/committed")
    return seen


@common("a published port, and two containers in one network")
def _(e):
    e("network", "create", "both")
    e.make("run", "-d", "--name", "server", "--network", "both", "-p", "127.0.0.1:8099:80", BUSYBOX, "httpd", "-f", "-h", "/www")
    address = e.inspect("server", ".NetworkSettings.Networks.both.IPAddress")
    seen = [until("the server answers", lambda: e.run("--network", "both", BUSYBOX, "wget", "-qO-", f"http://{address}/", status=None)),
            urllib.request.urlopen("http://127.0.0.1:8099/", timeout=10).read().decode()]
    e.remove("server")
    e("network", "rm", "both")
    return seen


@common("twenty containers at once")
def _(e):
    names = [f"many{i}" for i in range(20)]
    at_once([e.argv("run", "-d", "--name", n, BUSYBOX, "sleep", "1000") for n in names])
    running = e("ps", "--format", "{{.Names}}").split()
    e.remove(*names)
    return str(sorted(running) == sorted(names))

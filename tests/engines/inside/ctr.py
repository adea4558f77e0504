"""containerd, driven by ctr: the runtime is the BinaryName of the runc options."""
import json, os, re, subprocess
from pathlib import Path

from lib import IMAGES, Failed, at_once, cgroup_of, cgroups, check, daemon, expect, fails, mounts, on_terminal, processes, sh, until

RUNTIME = os.environ["RUNTIME"]
BINARY = {"runw": "/usr/local/bin/runw", "runc": "/usr/sbin/runc"}[RUNTIME]
BUSYBOX, WASM = "localhost/busybox:latest", "localhost/wasm:latest"
# ctr sets the size only once the program runs.
SIZE = "tty; until stty size 2>/dev/null | grep '[1-9]'; do :; done"
STATE = Path("/run/containerd/runc/default")


def ctr(*args, **kw):
    return sh("ctr", *args, **kw)


def run(name, *command, options=(), image=BUSYBOX, **kw):
    return ctr("run", "--rm", "--runc-binary", BINARY, *options, image, name, *command, **kw)


def detached(name, *command, options=(), image=BUSYBOX):
    """A running container's pid."""
    command = command or ("sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done")
    ctr("run", "-d", "--runc-binary", BINARY, *options, image, name, *command)
    return task(name)[0]


def task(name):
    """(pid, status) of a task, or None."""
    rows = [line.split() for line in ctr("task", "ls").splitlines()]
    return next(((int(pid), status) for one, pid, status in rows[1:] if one == name), None)


def remove(name):
    ctr("task", "rm", "-f", name, status=None)
    ctr("container", "rm", name)


def execute(name, script, *options, **kw):
    """ctr may drop the last output of a process that ends at once, whatever the runtime: so the shell stays a moment."""
    return ctr("task", "exec", "--exec-id", os.urandom(4).hex(), *options, name, "sh", "-c", f"trap 'sleep 0.3' EXIT; {script}", **kw)


def clean():
    """After a check that failed half way."""
    for line in ctr("container", "ls", "-q").split():
        remove(line)


def start_containerd():
    one = daemon("containerd", "containerd")
    until("containerd answers", lambda: subprocess.run(["ctr", "version"], capture_output=True).returncode == 0)
    return one


def setup():
    global containerd, before
    containerd = start_containerd()
    if RUNTIME == "runw":
        Path("/usr/local/bin/runc").symlink_to("runw")
    ctr("image", "import", IMAGES / "busybox.oci.tar")
    ctr("image", "import", "--platform", "wasi/wasm", IMAGES / "wasm.oci.tar")
    before = mounts(), cgroups()


@check("run and its exit status")
def _():
    return sorted(run("run", "sh", "-c", "echo out; echo err >&2; exit 3", status=3).splitlines())


@check("run on a terminal of its caller's size")
def _():
    return on_terminal("ctr", "run", "--rm", "-t", "--runc-binary", BINARY, BUSYBOX, "tty", "sh", "-c", SIZE + "; exit 4", status=4)


@check("run with standard input")
def _():
    return run("stdin", "sh", "-c", "read a; read b; echo $b $a", stdin="one\ntwo\n")


@check("run with what a container can be given")
def _():
    probe = "hostname; id; pwd; echo $A; grep Cap /proc/self/status; touch /x 2>&1; ls /in; stat -c '%F %t:%T' /dev/full; grep pids /proc/self/cgroup"
    options = ["--hostname", "given", "--user", "1000:1000", "--cwd", "/home", "--env", "A=b", "--cap-drop", "CAP_CHOWN",
               "--read-only", "--mount", "type=bind,src=/work/images,dst=/in,options=rbind:ro", "--cgroup", "/given/one",
               "--device", "/dev/full"]
    return run("given", "sh", "-c", probe, options=options)


@check("run without pivot_root")
def _():
    return run("nopivot", "sh", "-c", "ls /; echo made >/made; cat /made", options=["--no-pivot"])


@check("run with a seccomp profile and no new privileges")
def _():
    return run("seccomp", "grep", "-E", "Seccomp:|NoNewPrivs", "/proc/self/status", options=["--seccomp"])


@check("run privileged and with the host's network")
def _():
    return run("privileged", "sh", "-c", "grep -E 'CapEff|Seccomp:' /proc/self/status; ls /sys/class/net; ls /dev | wc -l",
               options=["--privileged", "--net-host"])


@check("run with a memory and a cpu limit")
def _():
    pid = detached("limits", options=["--memory-limit", "67108864", "--cpus", "0.5"])
    seen = [cgroup_of(pid, "memory").joinpath("memory.limit_in_bytes").read_text(),
            cgroup_of(pid, "cpu").joinpath("cpu.cfs_quota_us").read_text(), cgroup_of(pid, "cpu").joinpath("cpu.cfs_period_us").read_text()]
    remove("limits")
    return [s.strip() for s in seen]


@check("exec and its exit status")
def _():
    detached("exec")
    seen = execute("exec", "echo inside; id -u; exit 9", status=9)
    remove("exec")
    return seen


@check("exec with user, directory and standard input")
def _():
    detached("execs")
    seen = execute("execs", "id -u; pwd; cat", "--user", "1000", "--cwd", "/home", stdin="in\n")
    remove("execs")
    return seen


@check("exec on a terminal")
def _():
    detached("exectty")
    seen = on_terminal("ctr", "task", "exec", "-t", "--exec-id", "one", "exectty", "sh", "-c", SIZE + "; echo go; read line; echo got $line; exit 6",
                       say="typed\n", status=6)
    remove("exectty")
    return seen


@check("exec of what is not there")
def _():
    detached("execnot")
    seen = [reason(fails("ctr", "task", "exec", "--exec-id", "one", "execnot", "nothere")[1]),
            reason(fails("ctr", "task", "exec", "--exec-id", "two", "execnot", "/etc/passwd")[1])]
    expect(task("execnot")[1] == "RUNNING", "the container did not outlive a failed exec")
    remove("execnot")
    return seen


def reason(text):
    """The runtime's own words in an error that containerd wraps."""
    found = re.search(r"(executable file not found in \$PATH|permission denied|no such file or directory|not a directory|is a directory)", text)
    if not found:
        raise Failed(f"no known reason in: {text}")
    return found[0]


@check("run of what is not there leaves nothing")
def _():
    seen = []
    for program in ("nothere", "/etc/passwd", "/bin/nothere"):
        seen.append(f"{program}: {reason(fails('ctr', 'run', '--rm', '--runc-binary', BINARY, BUSYBOX, 'not', program)[1])}")
    expect(task("not") is None, "a task is left")
    expect(not list(STATE.glob("not")), "state is left")
    return seen


@check("run of what is no program")
def _():
    status, text = fails("ctr", "run", "--rm", "--runc-binary", BINARY, BUSYBOX, "garbage", "/etc/garbage")
    return [f"status {status}", text]


@check("attach to a running container")
def _():
    on_terminal("ctr", "run", "-d", "-t", "--runc-binary", BINARY, BUSYBOX, "attach", "sh", "-c", "while ! read line; do :; done; echo got $line; exit 7")
    seen = on_terminal("ctr", "task", "attach", "attach", say="typed\n", status=7, silent=True)
    remove("attach")
    return seen


@check("create, start and list, the runtime being what is called runc in PATH")
def _():
    expect(sh("runc", "--version").startswith(RUNTIME), "another runtime is called runc")
    ctr("container", "create", BUSYBOX, "create", "sleep", "100")
    seen = [str(task("create"))]
    ctr("task", "start", "-d", "create")
    seen.append(task("create")[1])
    ctr("task", "delete", "-f", "create", status=None)
    ctr("container", "rm", "create")
    return [*seen, str(task("create"))]


@check("kill with a signal that is handled")
def _():
    detached("term")
    # The shell must have set its trap first.
    until("the trap is set", lambda: "SigCgt:\t0000000000000000" not in Path(f"/proc/{task('term')[0]}/status").read_text())
    ctr("task", "kill", "-s", "SIGTERM", "term")
    until("the task has stopped", lambda: task("term")[1] == "STOPPED")
    seen = ctr("task", "rm", "term", status=None)
    ctr("container", "rm", "term")
    return seen or "removed"


@check("kill a stopped task")
def _():
    detached("dead", "true")
    until("the task has stopped", lambda: task("dead")[1] == "STOPPED")
    seen = fails("ctr", "task", "kill", "-s", "SIGKILL", "dead")[1]
    remove("dead")
    expect("not found" in seen, seen)
    return "not found"


@check("kill all processes of a container without a pid namespace")
def _():
    detached("all", "sh", "-c", "sleep 999 & sleep 998", options=["--with-ns", "pid:/proc/1/ns/pid"])
    until("the child is there", lambda: processes("sleep", "999"))
    ctr("task", "kill", "--all", "-s", "SIGKILL", "all")
    until("both have ended", lambda: not processes("sleep", "999") and not processes("sleep", "998"))
    remove("all")
    return "both ended"


@check("pause and resume")
def _():
    pid = detached("pause")
    ctr("task", "pause", "pause")
    seen = [task("pause")[1], cgroup_of(pid, "freezer").joinpath("freezer.state").read_text().strip()]
    ctr("task", "resume", "pause")
    seen += [task("pause")[1], cgroup_of(pid, "freezer").joinpath("freezer.state").read_text().strip()]
    remove("pause")
    return seen


@check("exec in a paused container is refused, kill after resume works")
def _():
    detached("paused")
    ctr("task", "pause", "paused")
    refused = fails("ctr", "task", "exec", "--exec-id", "one", "paused", "true")[1]
    expect("paused" in refused, refused)
    ctr("task", "resume", "paused")
    seen = execute("paused", "echo again")
    remove("paused")
    return seen


@check("metrics")
def _():
    detached("metrics", options=["--memory-limit", "67108864"])
    metrics = json.loads(ctr("task", "metrics", "--format", "json", "metrics"))
    remove("metrics")
    expect(metrics["pids"]["current"] >= 1 and metrics["memory"]["usage"]["usage"] > 0 and metrics["cpu"]["usage"]["total"] > 0, str(metrics))
    return [f"limit {metrics['memory']['usage']['limit']}", *sorted(metrics)]


@check("what the runtime itself says of a container, letter by letter")
def _():
    detached("words", options=["--annotation", "com.example=<1>"])

    def ask(*words):
        text = sh(BINARY, "--root", STATE, *words, both=False)
        # Of this moment: pids, times, and what has been counted.
        text = re.sub(r'"created": ?"[^"]*Z"', '"created": "TIME"', text)
        return re.sub(r"\d+", "N", text)
    seen = [ask("state", "words"), ask("list", "-q"), ask("list", "-f", "json"), ask("ps", "-f", "json", "words")]
    # A column is as wide as its longest cell.
    seen += [" ".join(line.split()[:4]) for line in ask("list").splitlines()]
    # Besides the shell there is, or is not, a `sleep`.
    seen += [" ".join(line.split()) for line in ask("ps", "words", "-o", "pid,comm").splitlines()[:2]]
    stats = sh(BINARY, "--root", STATE, "events", "--stats", "words", both=False)
    expect(stats.count("\n") == 1, stats)
    # A count of 0 is left out, and which are 0 is chance.
    chance = {"cache", "max", "failcnt", "percpu", "percpu_kernel", "percpu_user", "kernel", "user", "periods"}
    seen.append(" ".join(key for key in re.findall(r'"(\w+)":', stats) if key not in chance))
    remove("words")
    # runc 1.1 says at which version of the specification it is.
    return re.sub(r'"ociVersion": ?"[^"]*"', '"ociVersion": "V"', "\n".join(seen))


@check("ps")
def _():
    pid = detached("ps", "sh", "-c", "sleep 500 & sleep 501")
    until("all processes", lambda: len(ctr("task", "ps", "ps").splitlines()) > 2)
    rows = ctr("task", "ps", "ps").splitlines()
    expect(rows[1].split()[0] == str(pid), f"{pid} is not first: {rows}")
    remove("ps")
    return [rows[0], f"{len(rows) - 1} processes"]


@check("out of memory is told")
def _():
    events = subprocess.Popen(["ctr", "events"], stdout=open("/tmp/events", "wb"))
    detached("oom", "sh", "-c", "sleep 0.5; tail /dev/zero", options=["--memory-limit", "16777216"])
    until("the task has stopped", lambda: task("oom")[1] == "STOPPED")
    until("the event is there", lambda: "/tasks/oom" in Path("/tmp/events").read_text())
    events.kill()
    events.wait()
    ctr("task", "rm", "oom", status=None)
    ctr("container", "rm", "oom")
    return "told"


@check("a user namespace")
def _():
    return run("userns", "sh", "-c", "cat /proc/self/uid_map; id -u; touch /made && stat -c %u /made",
               options=["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels"])


@check("checkpoint and restore")
def _():
    detached("check", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.1; done")
    ctr("container", "checkpoint", "--task", "--rw", "check", "localhost/checkpoint:one")
    remove("check")
    ctr("container", "restore", "--live", "--rw", "check", "localhost/checkpoint:one")
    first = int(execute("check", "cat /count") or 0)
    until("it counts on", lambda: int(execute("check", "cat /count") or 0) > first)
    remove("check")
    return "counts on"


@check("fifty containers at once")
def _():
    names = [f"many{i}" for i in range(50)]
    at_once([["ctr", "run", "-d", "--runc-binary", BINARY, BUSYBOX, n, "sleep", "1000"] for n in names])
    running = [line.split()[0] for line in ctr("task", "ls").splitlines() if line.endswith("RUNNING") and line.startswith("many")]
    expect(sorted(running) == sorted(names), f"running: {running}")
    at_once([["ctr", "task", "rm", "-f", n] for n in names])
    ctr("container", "rm", *names)
    return f"{len(running)} ran"


@check("containerd killed and started again with containers running")
def _():
    global containerd
    detached("outlive")
    until("the trap is set", lambda: "SigCgt:\t0000000000000000" not in Path(f"/proc/{task('outlive')[0]}/status").read_text())
    pid = task("outlive")[0]
    containerd.kill()
    containerd.wait()
    containerd = start_containerd()
    seen = [f"the same pid: {task('outlive')[0] == pid}", task("outlive")[1],
            execute("outlive", "echo still here").strip()]
    ctr("task", "kill", "-s", "SIGTERM", "outlive")
    until("the task has stopped", lambda: task("outlive")[1] == "STOPPED")
    ctr("task", "rm", "outlive", status=None)
    ctr("container", "rm", "outlive")
    return seen


@check("a wasm image of platform wasi/wasm", only="runw")
def _():
    seen = run("wasm", options=["--platform", "wasi/wasm"], image=WASM)
    expect(seen == "hello from wasm\n", seen)
    ctr("run", "--rm", "--platform", "wasi/wasm", "--runc-binary", BINARY, WASM, "wasm", "/probe.wasm", "exit", "42", status=42)
    return seen


@check("a wasm container's life", only="runw")
def _():
    pid = detached("wasmlife", "/probe.wasm", "say", "up", "sleep", "1000", options=["--platform", "wasi/wasm"], image=WASM)
    expect(ctr("task", "exec", "--exec-id", "one", "wasmlife", "/probe.wasm", "say", "second", "sleep", "1") == "second\n", "exec of a guest")
    ctr("task", "pause", "wasmlife")
    expect(task("wasmlife")[1] == "PAUSED", "paused")
    ctr("task", "resume", "wasmlife")
    metrics = json.loads(ctr("task", "metrics", "--format", "json", "wasmlife"))
    expect(metrics["pids"]["current"] >= 1, str(metrics))
    expect(str(pid) in ctr("task", "ps", "wasmlife"), "ps")
    ctr("task", "kill", "-s", "SIGTERM", "wasmlife")
    until("the task has stopped", lambda: task("wasmlife")[1] == "STOPPED")
    remove("wasmlife")
    return "lived"


@check("nothing is left behind")
def _():
    expect(ctr("task", "ls").split() == ["TASK", "PID", "STATUS"], ctr("task", "ls"))
    expect(not list(STATE.iterdir()) or [p.name for p in STATE.iterdir()] == ["seccomp~cache"], f"state: {list(STATE.iterdir())}")
    until("the shims have ended", lambda: not processes("containerd-shim"))
    expect(mounts() <= before[0], f"mounts: {mounts() - before[0]}")
    left = {c for c in cgroups() - before[1] if c.split("/")[1] not in ("default", "given", "runw-compile") or c.count("/") > 1}
    expect(not left, f"cgroups: {left}")
    return "nothing"

"""The Container Runtime Interface as the kubelet drives it: containerd's CRI over gRPC, one handler for all and one
for wasm. The messages are generated from Kubernetes' own .proto (root.py)."""
import json, os, time
from pathlib import Path

import api_pb2 as api
import grpc

from stream import RESIZE, STDERR, STDIN, STDOUT, Stream
from lib import IMAGES, Failed, cgroup_of, cgroups, check, daemon, expect, mounts, processes, sh, until

RUNTIME = os.environ["RUNTIME"]
BINARY, WASM_BINARY = {"runw": ("/usr/local/bin/runw", "/usr/local/bin/runw-wasm"), "runc": ("/usr/sbin/runc",) * 2}[RUNTIME]
SOCKET = "/run/containerd/containerd.sock"
STATE = Path("/run/containerd/runc/k8s.io")
CONFIG = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:latest"
# -998, which the kubelet's pods have, takes CAP_SYS_RESOURCE, and not every machine gives that even to root.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "first"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.first]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["run.oci.*", "module.wasm.image/*"]
options = {{ BinaryName = "{BINARY}" }}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.wasm]
runtime_type = "io.containerd.runc.v2"
options = {{ BinaryName = "{WASM_BINARY}" }}
"""
NETWORK = {"cniVersion": "1.0.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "pods", "isGateway": True, "ipam": {"type": "host-local", "subnet": "10.99.0.0/16"}}]}
READY, RUNNING, CREATED, EXITED = api.SANDBOX_READY, api.CONTAINER_RUNNING, api.CONTAINER_CREATED, api.CONTAINER_EXITED
# Exits with 5 of SIGTERM, and is known to do so once it has said `up`.
LOOP = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"


def call(method, service="RuntimeService", **fields):
    rpc = api.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    request, answer = (getattr(api, t.name) for t in (rpc.input_type, rpc.output_type))
    stub = channel.unary_unary(f"/runtime.v1.{service}/{method}", request_serializer=request.SerializeToString,
                               response_deserializer=answer.FromString)
    try:
        return stub(request(**fields), timeout=60)
    except grpc.RpcError as e:
        raise Failed(f"{method}: {e.code().name}: {e.details()}")


def refused(method, **fields):
    try:
        call(method, **fields)
    except Failed as e:
        return str(e)
    raise Failed(f"{method} was not refused")


def start_containerd():
    global channel
    one = daemon("containerd", "containerd")
    channel = grpc.insecure_channel(f"unix://{SOCKET}")

    def ready():
        try:
            return all(c.status for c in call("Status").status.conditions)
        except Failed:
            return False
    until("the CRI is ready", ready)
    return one


def setup():
    global containerd, before
    Path("/etc/containerd/config.toml").write_text(CONFIG)
    Path("/etc/cni/net.d").mkdir(parents=True, exist_ok=True)
    Path("/etc/cni/net.d/10-pods.conflist").write_text(json.dumps(NETWORK))
    containerd = start_containerd()
    for image, platform in (("busybox", "linux/amd64"), ("pause", "linux/amd64"), ("wasm", "wasi/wasm"), ("wasm-linux", "linux/amd64")):
        sh("ctr", "-n", "k8s.io", "image", "import", "--platform", platform, IMAGES / f"{image}.oci.tar")
    before = mounts(), cgroups()


def clean():
    for pod in call("ListPodSandbox").items:
        call("StopPodSandbox", pod_sandbox_id=pod.id)
        call("RemovePodSandbox", pod_sandbox_id=pod.id)


class Pod:
    """A sandbox, and its containers' lives."""
    def __init__(self, name, handler="", linux=None, **more):
        self.logs = f"/tmp/logs/{name}"
        os.makedirs(self.logs, exist_ok=True)
        self.config = api.PodSandboxConfig(
            metadata={"name": name, "uid": f"uid-{name}", "namespace": "default"}, hostname=name, log_directory=self.logs,
            linux={"cgroup_parent": f"/kubepods/{name}", **(linux or {})}, **more)
        self.id = call("RunPodSandbox", config=self.config, runtime_handler=handler).pod_sandbox_id

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if not failed:
            call("StopPodSandbox", pod_sandbox_id=self.id)
            call("RemovePodSandbox", pod_sandbox_id=self.id)

    def create(self, name, *command, image="localhost/busybox:latest", linux=None, **more):
        config = api.ContainerConfig(metadata={"name": name}, image={"image": image}, command=command, log_path=f"{name}.log",
                                     linux=linux or {}, **more)
        return call("CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self.config).container_id

    def run(self, name, *command, **more):
        one = self.create(name, *command, **more)
        call("StartContainer", container_id=one)
        return one

    def log(self, name):
        """What a container has written: [(stream, line)]."""
        rows = [line.split(" ", 3) for line in Path(self.logs, f"{name}.log").read_text().splitlines()]
        return [(stream, text) for _, stream, _, text in rows]

    def output(self, name, *command, **more):
        """What a container wrote until it ended, stderr first, and its status: the streams are two pipes, and which of
        them containerd reads first is chance."""
        one = self.run(name, *command, **more)
        seen = ended(one)
        lines = sorted(self.log(name), key=lambda line: line[0])
        return [*(text for _, text in lines), f"status {seen.exit_code}"]


def status(one, verbose=False):
    return call("ContainerStatus", container_id=one, verbose=verbose)


def ended(one):
    until("the container has ended", lambda: status(one).status.state == EXITED)
    return status(one).status


def pid_of(one):
    return json.loads(status(one, verbose=True).info["info"])["pid"]


def execute(one, *command, timeout=10):
    return call("ExecSync", container_id=one, cmd=command, timeout=timeout)


@check("a pod and two containers, one native and one wasm", only="runw")
def _():
    with Pod("pair") as pod:
        native = pod.run("native", "sh", "-c", LOOP)
        wasm = pod.run("wasm", image="localhost/wasm-linux:latest", args=["say", "from wasm", "sleep", "1000"])
        until("both speak", lambda: pod.log("native") and pod.log("wasm"))
        expect(pod.log("wasm") == [("stdout", "from wasm")], str(pod.log("wasm")))
        expect([status(c).status.state for c in (native, wasm)] == [RUNNING] * 2, "running")
        listed = call("ListContainers", filter={"pod_sandbox_id": pod.id}).containers
        expect({c.id for c in listed} == {native, wasm}, str(listed))
        inside = execute(wasm, "/probe.wasm", "say", "again", "exit", "3")
        expect((inside.stdout, inside.exit_code) == (b"again\n", 3), str(inside))
        usage = call("ContainerStats", container_id=wasm).stats
        expect(usage.memory.working_set_bytes.value > 0 and usage.cpu.usage_core_nano_seconds.value > 0, str(usage))
        began = time.monotonic()
        call("StopContainer", container_id=wasm, timeout=20)
        expect(time.monotonic() - began < 10, "a guest ends of SIGTERM")
        call("StopContainer", container_id=native, timeout=20)
        expect((status(wasm).status.exit_code, status(native).status.exit_code) == (143, 5), f"{status(wasm)} {status(native)}")
        for c in (wasm, native):
            call("RemoveContainer", container_id=c)
    return "lived together"


@check("a wasm image of platform wasi/wasm", only="runw")
def _():
    with Pod("platform") as pod:
        return pod.output("wasm", image="localhost/wasm:latest")


@check("a pod's annotation chooses for its containers, not for the sandbox", only="runw")
def _():
    with Pod("annotated", annotations={"run.oci.handler": "wasm"}) as pod:
        expect(pod.output("wasm", image="localhost/wasm-linux:latest") == ["hello from wasm", "status 0"], str(pod.log("wasm")))
        one = pod.create("native", "echo", "never")
        said = refused("StartContainer", container_id=one)
        expect("run.oci.handler" in said, said)
    return "chosen"


@check("a second handler, as a RuntimeClass names it")
def _():
    with Pod("second", handler="wasm") as pod:
        seen = pod.output("native", "echo", "native under the second handler")
        shown = call("PodSandboxStatus", pod_sandbox_id=pod.id).status
        if RUNTIME == "runw":
            expect(pod.output("guest", image="localhost/wasm-linux:latest") == ["hello from wasm", "status 0"], str(pod.log("guest")))
        return [*seen, f"handler {shown.runtime_handler}"]


@check("an unknown handler is refused")
def _():
    said = refused("RunPodSandbox", config={"metadata": {"name": "no", "uid": "no", "namespace": "no"}}, runtime_handler="nothere")
    return said.partition(":")[0]


@check("a sandbox: status, address, host name")
def _():
    with Pod("sandbox") as pod:
        shown = call("PodSandboxStatus", pod_sandbox_id=pod.id).status
        expect(shown.network.ip.startswith("10.99."), str(shown.network))
        return [f"ready {shown.state == READY}", *pod.output("inside", "sh", "-c", "hostname; ls /sys/class/net; cat /etc/hostname")]


@check("exec sync: streams and exit status")
def _():
    with Pod("exec") as pod:
        one = pod.run("c", "sh", "-c", LOOP)
        done = execute(one, "sh", "-c", "echo out; echo err >&2; exit 7")
        return [done.stdout.decode(), done.stderr.decode(), str(done.exit_code)]


@check("exec sync that takes too long")
def _():
    with Pod("late") as pod:
        one = pod.run("c", "sh", "-c", LOOP)
        said = refused("ExecSync", container_id=one, cmd=["sleep", "777"], timeout=1)
        until("it was killed", lambda: not processes("sleep", "777"))
        expect(status(one).status.state == RUNNING, "the container outlives it")
        return said.partition(":")[2].split(":")[0]


@check("exec of what is not there")
def _():
    with Pod("noexec") as pod:
        one = pod.run("c", "sh", "-c", LOOP)
        said = refused("ExecSync", container_id=one, cmd=["nothere"])
        expect('"nothere": executable file not found in $PATH' in said, said)
        return "says so"


@check("exec over a stream: input, both outputs, exit status")
def _():
    with Pod("stream") as pod:
        one = pod.run("one", "sh", "-c", LOOP)
        script = "read word; echo out $word; echo err $word >&2; exit 7"
        with Stream(call("Exec", container_id=one, cmd=["sh", "-c", script], stdin=True, stdout=True, stderr=True).url) as s:
            s.send(STDIN, "hello\n")
            yields = [f"status {s.end()}", s.text(STDOUT), s.text(STDERR)]
        with Stream(call("Exec", container_id=one, cmd=["true"], stdout=True, stderr=True).url) as s:
            return [*yields, f"status {s.end()}"]


@check("exec on a terminal over a stream: its size, a change of it, an interrupt")
def _():
    with Pod("terminal") as pod:
        one = pod.run("one", "sh", "-c", LOOP)
        script = "trap 'stty size; exit 3' INT; stty size; tty; echo ready; while :; do sleep 0.1; done"
        with Stream(call("Exec", container_id=one, cmd=["sh", "-c", script], tty=True, stdin=True, stdout=True).url) as s:
            s.wait("ready")
            first = s.text()
            s.send(RESIZE, json.dumps({"Width": 91, "Height": 19}))
            # The resize is a call of its own to the shim: an interrupt that overtook it would tell the old size.
            until("the terminal is resized", lambda: execute(one, "sh", "-c", "stty size -F /dev/pts/0").stdout == b"19 91\n")
            s.send(STDIN, "\x03")
            return [f"status {s.end()}", first, s.text()[len(first):]]


@check("attach over a stream: input reaches the container, its output the stream and the log")
def _():
    with Pod("attach") as pod:
        script = "while read word; do echo out $word; echo err $word >&2; done"
        one = pod.run("one", "sh", "-c", script, stdin=True)
        with Stream(call("Attach", container_id=one, stdin=True, stdout=True, stderr=True).url) as s:
            s.send(STDIN, "hello\n")
            s.wait("out hello", STDOUT)
            s.wait("err hello", STDERR)
        until("the log has it", lambda: sorted(pod.log("one")) == [("stderr", "err hello"), ("stdout", "out hello")])
        expect(status(one).status.state == RUNNING, "a stream that ends leaves the container")
        terminal = pod.run("terminal", "sh", "-c", "read word; echo out $word; exit 4", stdin=True, tty=True)
        with Stream(call("Attach", container_id=terminal, stdin=True, stdout=True, tty=True).url) as s:
            s.send(STDIN, "hello\n")
            s.wait("out hello")
        return f"status {ended(terminal).exit_code}"


@check("a port of a pod forwarded over a stream")
def _():
    with Pod("forward") as pod:
        pod.run("one", "sh", "-c", "echo up; while :; do echo from the pod | nc -l -p 8000; done")
        until("it listens", lambda: pod.log("one"))
        url = call("PortForward", pod_sandbox_id=pod.id, port=[8000]).url

        def answer():
            # Each channel, the data's and the errors', begins with the port. `nc` may not listen yet.
            with Stream(url, "?port=8000") as s:
                s.end()
                return s.text(0)[2:].strip()
        return until("the port answers", answer)


@check("logs: both streams, long lines, the log opened again")
def _():
    with Pod("logs") as pod:
        one = pod.run("c", "sh", "-c", "echo out; echo err >&2; while [ ! -e /go ]; do sleep 0.05; done; echo later; sleep 1000")
        until("the lines are there", lambda: len(pod.log("c")) == 2)
        first = sorted(pod.log("c"))
        os.rename(f"{pod.logs}/c.log", f"{pod.logs}/c.log.1")
        call("ReopenContainerLog", container_id=one)
        execute(one, "touch", "/go")
        until("the new log has a line", lambda: pod.log("c"))
        return [str(first), str(pod.log("c"))]


@check("stats of a container and of a pod")
def _():
    with Pod("stats") as pod:
        one = pod.run("c", "sh", "-c", LOOP)
        usage = call("ContainerStats", container_id=one).stats
        # Asked at once, containerd has answered with one of the two (seen in a run of many).
        sandbox = lambda: call("PodSandboxStats", pod_sandbox_id=pod.id).stats
        until("both processes are counted", lambda: sandbox().linux.process.process_count.value >= 2)
        listed = call("ListContainerStats", filter={"id": one}).stats
        expect(usage.memory.working_set_bytes.value > 0 and usage.cpu.usage_core_nano_seconds.value > 0, str(usage))
        return [f"{len(listed)} listed", f"writable layer {usage.writable_layer.used_bytes.value > 0}"]


def limits_of(pid):
    files = (("memory", "memory.limit_in_bytes"), ("cpu", "cpu.shares"), ("cpu", "cpu.cfs_quota_us"), ("cpuset", "cpuset.cpus"),
             ("pids", "pids.max"))
    return [f"{name} {(cgroup_of(pid, c) / name).read_text().strip()}" for c, name in files]


@check("resources at create and by update")
def _():
    with Pod("update") as pod:
        one = pod.run("c", "sh", "-c", LOOP, linux={"resources": {
            "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512, "memory_limit_in_bytes": 64 << 20, "oom_score_adj": 900,
            "cpuset_cpus": "0"}})
        pid = pid_of(one)
        seen = limits_of(pid) + [Path(f"/proc/{pid}/oom_score_adj").read_text()]
        call("UpdateContainerResources", container_id=one, linux={"cpu_quota": 75000, "cpu_shares": 256, "memory_limit_in_bytes": 96 << 20, "cpuset_cpus": "0-1"})
        after = limits_of(pid)
        told = status(one).status.resources.linux
        said = refused("UpdateContainerResources", container_id=one, linux={"memory_limit_in_bytes": 4096})
        return [*seen, *after, f"{told.cpu_quota} {told.cpu_shares} {told.memory_limit_in_bytes}", f"refused {said.split(':')[0]}", *limits_of(pid)]


@check("huge pages, supplemental groups and what a security context says")
def _():
    with Pod("context") as pod:
        context = {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1001}, "supplemental_groups": [5, 7],
                   "readonly_rootfs": True, "no_new_privs": True, "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]},
                   "seccomp": {"profile_type": api.SecurityProfile.RuntimeDefault},
                   "masked_paths": ["/proc/kcore", "/etc/group"], "readonly_paths": ["/proc/sys"]}
        return pod.output("c", "sh", "-c", "id; touch /x; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; wc -c </etc/group; echo x >/proc/sys/kernel/hostname",
                          linux={"security_context": context})


@check("a privileged container")
def _():
    with Pod("privileged", linux={"security_context": {"privileged": True}}) as pod:
        return pod.output("c", "sh", "-c", "grep CapEff /proc/self/status; mount -t tmpfs none /var && echo mounted; ls /dev/fuse; [ -w /proc/sysrq-trigger ] && echo writable",
                          linux={"security_context": {"privileged": True}})


@check("sysctls of a pod")
def _():
    with Pod("sysctls", linux={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}}) as pod:
        return pod.output("c", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shm_rmid_forced")


@check("mounts: read-only, and both ways of propagation")
def _():
    source = Path("/tmp/shared")
    source.mkdir()
    sh("mount", "--bind", source, source)
    sh("mount", "--make-shared", source)
    for d in ("late", "back"):
        (source / d).mkdir()
    try:
        with Pod("mounts", linux={"security_context": {"privileged": True}}) as pod:
            way = api.MountPropagation
            one = pod.run("c", "sh", "-c", LOOP, linux={"security_context": {"privileged": True}}, mounts=[
                {"container_path": "/ro", "host_path": str(source), "readonly": True},
                {"container_path": "/in", "host_path": str(source), "propagation": way.Value("PROPAGATION_HOST_TO_CONTAINER")},
                {"container_path": "/both", "host_path": str(source), "propagation": way.Value("PROPAGATION_BIDIRECTIONAL")}])
            sh("mount", "-t", "tmpfs", "late", source / "late")
            seen = [execute(one, "sh", "-c", "touch /ro/x 2>&1; for d in ro in both; do mountpoint -q /$d/late && echo $d; done").stdout.decode()]
            execute(one, "mount", "-t", "tmpfs", "back", "/both/back")
            return [*seen, f"came back: {str(source / 'back') in mounts()}"]
    finally:
        sh("umount", "-R", "-l", source)


@check("process ids: of the pod, of the host")
def _():
    with Pod("pids", linux={"security_context": {"namespace_options": {"pid": api.POD}}}) as pod:
        seen = pod.output("c", "sh", "-c", "cat /proc/1/comm", linux={"security_context": {"namespace_options": {"pid": api.POD}}})
    with Pod("hostpids", linux={"security_context": {"namespace_options": {"pid": api.NODE}}}) as pod:
        return seen + pod.output("c", "sh", "-c", "cat /proc/1/comm", linux={"security_context": {"namespace_options": {"pid": api.NODE}}})


@check("a pod with a user namespace")
def _():
    ids = [{"host_id": 100000, "container_id": 0, "length": 65536}]
    options = {"userns_options": {"mode": api.POD, "uids": ids, "gids": ids}}
    with Pod("userns", linux={"security_context": {"namespace_options": options}}) as pod:
        return pod.output("c", "sh", "-c", "cat /proc/self/uid_map; id -u; touch /made && stat -c %u /made", linux={"security_context": {"namespace_options": options}})


@check("the life of a container, state by state")
def _():
    with Pod("life") as pod:
        one = pod.create("c", "sh", "-c", LOOP)
        seen = [status(one).status.state]
        call("StartContainer", container_id=one)
        until("it is up", lambda: pod.log("c"))
        seen.append(status(one).status.state)
        began = time.monotonic()
        call("StopContainer", container_id=one, timeout=30)
        expect(time.monotonic() - began < 15, "the grace period was waited for")
        seen += [status(one).status.state, status(one).status.exit_code]
        call("StopContainer", container_id=one, timeout=30)
        call("RemoveContainer", container_id=one)
        return [*map(str, seen), refused("ContainerStatus", container_id=one).split(":")[1]]


@check("stop with a grace period that is not used")
def _():
    with Pod("deaf") as pod:
        one = pod.run("c", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
        until("it is up", lambda: pod.log("c"))
        began = time.monotonic()
        call("StopContainer", container_id=one, timeout=2)
        expect(2 <= time.monotonic() - began < 20, f"{time.monotonic() - began}")
        return str(status(one).status.exit_code)


@check("a container out of memory")
def _():
    with Pod("oom") as pod:
        one = pod.run("c", "sh", "-c", "sleep 0.3; tail /dev/zero", linux={"resources": {"memory_limit_in_bytes": 16 << 20}})
        shown = ended(one)
        return f"{shown.reason} {shown.exit_code}"


@check("a container whose program is not there")
def _():
    with Pod("nothere") as pod:
        one = pod.create("c", "nothere")
        said = refused("StartContainer", container_id=one)
        expect('"nothere": executable file not found in $PATH' in said, said)
        shown = status(one).status
        return f"{shown.state} {shown.exit_code} {shown.reason}"


@check("a pod stopped and removed with containers running")
def _():
    with Pod("stopped") as pod:
        ones = [pod.run(f"c{i}", "sh", "-c", LOOP) for i in range(3)]
        call("StopPodSandbox", pod_sandbox_id=pod.id)
        return [str(status(one).status.state) for one in ones] + [str(call("PodSandboxStatus", pod_sandbox_id=pod.id).status.state)]


@check("containerd killed and started again with a pod running")
def _():
    global containerd
    with Pod("outlive") as pod:
        one = pod.run("c", "sh", "-c", LOOP)
        pid = pid_of(one)
        containerd.kill()
        containerd.wait()
        containerd = start_containerd()
        seen = [str(status(one).status.state), f"the same pid: {pid_of(one) == pid}", execute(one, "echo", "still here").stdout.decode()]
        call("StopContainer", container_id=one, timeout=20)
        return [*seen, str(status(one).status.exit_code)]


@check("a mixed pod: a guest, a native init container, side-car and debug container, all annotated compat", only="runw")
def _():
    with Pod("mixed", annotations={"module.wasm.image/variant": "compat"}) as pod:
        expect(pod.output("init", "echo", "prepared") == ["prepared", "status 0"], str(pod.log("init")))
        sidecar = pod.run("sidecar", "sh", "-c", LOOP)
        app = pod.run("app", image="localhost/wasm-linux:latest", args=["say", "from wasm", "sleep", "1000"])
        until("both speak", lambda: pod.log("sidecar") and pod.log("app"))
        expect([status(c).status.state for c in (sidecar, app)] == [RUNNING] * 2, "running")
        expect(execute(sidecar, "echo", "native").stdout == b"native\n", "a native exec")
        expect(execute(app, "/probe.wasm", "say", "wasm").stdout == b"wasm\n", "a guest's exec")
        # kubectl debug --target: the guest's pid namespace, with tools of its own.
        target = {"security_context": {"namespace_options": {"pid": api.TARGET, "target_id": app}}}
        debug = pod.run("debug", "sh", "-c", "ps -o args; sleep 1000", linux=target)
        until("the debugger sees it", lambda: ("stdout", "/probe.wasm say from wasm sleep 1000") in pod.log("debug"))
        for c in (debug, app, sidecar):
            call("StopContainer", container_id=c, timeout=1)
    return "lived together"


@check("nothing is left behind")
def _():
    expect(not call("ListContainers").containers and not call("ListPodSandbox").items, "containers or pods")
    expect(not [p.name for p in STATE.iterdir() if p.name != "seccomp~cache"], f"state: {list(STATE.iterdir())}")
    until("the shims have ended", lambda: not processes("containerd-shim"))
    expect(mounts() <= before[0], f"mounts: {mounts() - before[0]}")
    # The kubelet makes and removes the parents.
    left = {c for c in cgroups() - before[1] if not c.partition("/")[2].startswith(("kubepods", "runw-compile")) or c.count("/") > 2}
    expect(not left, f"cgroups: {left}")
    return "nothing"

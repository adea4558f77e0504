"""podman and buildah, rootful, with cgroupfs and the containers.conf drop-in that runw ships."""
import json, os, re, shutil, subprocess
from pathlib import Path

import common
from common import BUSYBOX, LOOP, RUNTIME
from lib import IMAGES, cgroups, check, expect, fails, mounts, on_terminal, processes, sh, until

MAPS = ["--uidmap", "0:200000:1000", "--gidmap", "0:200000:1000"]
WASM = "localhost/wasm:latest"
# buildah asks for more open files than a machine may grant that gives no CAP_SYS_RESOURCE.
CONFIG = """[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:2048", "nproc=1024:2048"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
firewall_driver = "iptables"
"""
podman = common.Engine(["podman", "--runtime", RUNTIME], force=["-t", "0"])
common.checks(podman)


def setup():
    global before
    os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"
    Path("/etc/containers/containers.conf").write_text(CONFIG)
    shutil.copytree("/work/contrib/containers.conf.d", "/etc/containers/containers.conf.d")
    for image in ("busybox", "pause"):
        sh("podman", "load", "-i", IMAGES / f"{image}.oci.tar")
    sh("podman", "load", "-i", IMAGES / "wasm.docker.tar")
    podman.prepare()
    before = mounts(), cgroups()


def clean():
    podman("pod", "rm", "-a", "-f", "-t", "0", status=None)
    podman("rm", "-a", "-f", "-t", "0", status=None)


@check("run: --userns auto and maps by hand")
def _():
    return [podman.shell(MAPS, "cat /proc/self/uid_map; id -u; touch /made; stat -c %u /made /etc"),
            podman.shell(["--userns", "auto:size=500"], "wc -l </proc/self/uid_map; id -u")]


@check("run: an idmapped volume", runc_fails="runc 1.1 does not map the ids of a volume")
def _():
    Path("/tmp/idmap").mkdir()
    return podman.shell([*MAPS, "-v", "/tmp/idmap:/in:idmap"], "touch /in/mapped && stat -c %u /in/mapped")


@check("run: an overlay volume, an image as a volume, masked and unmasked paths")
def _():
    return [podman.shell(["-v", "/tmp/host:/in:O"], "touch /in/over && ls /in"), str(Path("/tmp/host/over").exists()),
            podman.shell(["--mount", f"type=image,source={BUSYBOX},destination=/image"], "cat /image/www/index.html"),
            podman.shell(["--security-opt", "mask=/proc/meminfo", "--security-opt", "unmask=/proc/acpi"], "wc -c </proc/meminfo")]


@check("run without cgroups")
def _():
    # runc is not among those that podman lets run so.
    if RUNTIME == "runc":
        return "as the pids group of the caller"
    mine = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":pids:" in line]
    seen = podman.shell(["--cgroups", "disabled", "--cgroupns", "host"], "grep :pids: /proc/self/cgroup").strip()
    expect(seen == mine[0], f"{seen} {mine}")
    return "as the pids group of the caller"


@check("the words of podman's errors")
def _():
    seen = []
    for program in ("nothere", "/bin/nothere", "/etc/passwd"):
        text = fails(*podman.cli, "run", "--rm", BUSYBOX, program)[1]
        seen.append(re.sub(r".*?(exec: .*)", r"\1", text.strip().splitlines()[-1]))
    return seen


@check("exec --preserve-fds")
def _():
    podman.detached("fds")
    with open("/tmp/host/file") as file:
        seen = subprocess.run(["sh", "-c", f"exec {' '.join(podman.cli)} exec --preserve-fds 1 fds cat /proc/self/fd/3 3<&0"], stdin=file,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    podman.remove("fds")
    return seen


@check("healthcheck")
def _():
    podman.detached("health", options=["--health-cmd", "test -e /tmp/well", "--health-interval", "disable", "--health-retries", "1"])
    podman("healthcheck", "run", "health", status=1)
    podman("exec", "health", "touch", "/tmp/well")
    podman("healthcheck", "run", "health")
    seen = podman.inspect("health", ".State.Health.Status")
    podman.remove("health")
    return seen


@check("stats, top, ps, logs")
def _():
    podman.detached("look", "echo err >&2; sleep 500 & " + LOOP, ["--memory", "64m"])
    stats = json.loads(podman("stats", "--no-stream", "--format", "json", "look"))[0]
    expect(int(stats["pids"]) >= 2 and "67.11MB" in stats["mem_usage"], str(stats))
    top = podman("top", "look", "args").splitlines()
    seen = [top[0], str("sleep 500" in top), podman("ps", "--format", "{{.Names}} {{.State}}"), *sorted(podman("logs", "look").splitlines())]
    podman.remove("look")
    return seen


@check("a pod shares its namespaces")
def _():
    podman("pod", "create", "--name", "pod", "--infra-image", "localhost/pause:latest", "--share", "net,ipc,uts,pid", "--hostname", "shared")
    podman("run", "-d", "--pod", "pod", "--name", "one", BUSYBOX, "sh", "-c", "echo up; httpd -f -h /www")
    until("it serves", lambda: "up" in podman("logs", "one"))
    seen = [until("it answers", lambda: podman.run("--pod", "pod", BUSYBOX, "wget", "-qO-", "http://127.0.0.1/", status=None)),
            podman.run("--pod", "pod", BUSYBOX, "sh", "-c", "hostname; cat /proc/1/comm; ps | grep -c httpd")]
    podman("pod", "pause", "pod")
    seen.append(podman("pod", "inspect", "--format", "{{.State}}", "pod"))
    podman("pod", "unpause", "pod")
    podman("pod", "stop", "-t", "1", "pod")
    podman("pod", "rm", "pod")
    return seen


@check("a pod from Kubernetes' YAML")
def _():
    yaml = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube"}, "spec": {"containers": [
        {"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", LOOP], "resources": {"limits": {"memory": "64Mi"}},
         "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}}]}}
    Path("/tmp/pod.yaml").write_text(json.dumps(yaml))
    podman("kube", "play", "/tmp/pod.yaml")
    until("it is up", lambda: "up" in podman("logs", "kube-c"))
    seen = podman("exec", "kube-c", "sh", "-c", "grep CapEff /proc/self/status; touch /x 2>&1; cat /sys/fs/cgroup/memory/memory.limit_in_bytes")
    podman("kube", "down", "--force", "/tmp/pod.yaml")
    return seen


CONTAINERFILE = f"""FROM {BUSYBOX}
RUN echo built >/built && id -u && touch /tmp/x
RUN --mount=type=tmpfs,target=/scratch touch /scratch/y && ls /scratch
USER 1000
WORKDIR /home
RUN id -u && pwd
CMD ["cat", "/built"]
"""


@check("podman build")
def _():
    Path("/tmp/build").mkdir()
    Path("/tmp/build/Containerfile").write_text(CONTAINERFILE)
    seen = podman("build", "-q", "-t", "localhost/built", "/tmp/build")
    expect(len(seen.strip()) == 64, seen)
    log = podman("build", "--no-cache", "-t", "localhost/built", "/tmp/build")
    seen = [line for line in log.splitlines() if line in ("0", "1000", "/home", "y")]
    seen.append(podman.run("localhost/built"))
    podman("rmi", "localhost/built")
    return seen


@check("buildah run")
def _():
    name = sh("buildah", "from", "--pull-never", BUSYBOX).strip()
    isolation = ("--runtime", RUNTIME if RUNTIME == "runc" else "/usr/local/bin/runw", "--isolation", "oci")
    seen = [sh("buildah", "run", *isolation, name, "--", "sh", "-c", "echo in; id -u; exit 0"),
            sh("buildah", "run", *isolation, "--user", "1000", "-v", "/tmp/host:/in:ro", name, "--", "sh", "-c", "id -u; cat /in/file; exit 3", status=3),
            on_terminal("buildah", "run", *isolation, "-t", name, "--", "sh", "-c", "tty; exit 0"),
            sh("buildah", "run", *isolation, "--network", "none", name, "--", "ls", "/sys/class/net")]
    sh("buildah", "rm", name)
    return seen


@check("checkpoint and restore")
def _():
    podman("run", "-d", "--name", "check", BUSYBOX, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
    until("it counts", lambda: "3" in podman("logs", "check").split())
    podman("container", "checkpoint", "check")
    last = int(podman("logs", "check").split()[-1])
    podman("container", "restore", "check")
    until("it counts on", lambda: str(last + 2) in podman("logs", "check").split())
    expect(podman("logs", "check").split().count("1") == 1, "it began anew")
    podman.remove("check")
    return "counts on"


@check("podman says what runtime it has")
def _():
    info = json.loads(podman("info", "--format", "json"))["host"]["ociRuntime"]
    expect(info["name"] == RUNTIME and RUNTIME in info["version"], str(info))
    return "known"


@check("a wasm image of platform wasi/wasm, by the drop-in", only="runw")
def _():
    seen = sh("podman", "run", "--rm", "--platform", "wasi/wasm", WASM, both=False)
    expect(seen == "hello from wasm\n", seen)
    sh("podman", "run", "--rm", "--platform", "wasi/wasm", WASM, "exit", "42", status=42)
    return seen


@check("a wasm container's life", only="runw")
def _():
    sh("podman", "run", "-d", "--name", "wasm", "--platform", "wasi/wasm", "--memory", "64m", "-v", "/tmp/host:/in:ro", WASM, "say", "up", "read", "/in/file", "sleep", "1000")
    until("it is up", lambda: "of the host" in podman("logs", "wasm"))
    expect(podman.inspect("wasm", ".OCIRuntime") == "runw-wasm", podman.inspect("wasm", ".OCIRuntime"))
    expect(podman("exec", "wasm", "/probe.wasm", "say", "second") == "second\n", "exec of a guest")
    podman("pause", "wasm")
    podman("unpause", "wasm")
    expect(int(json.loads(podman("stats", "--no-stream", "--format", "json", "wasm"))[0]["pids"]) >= 1, "stats")
    podman("stop", "-t", "20", "wasm")
    seen = podman.inspect("wasm", ".State.ExitCode")
    podman.remove("wasm")
    expect(seen == "143", seen)
    return "lived"


@check("crun's documented wasm commands, with the binary swapped", only="runw")
def _():
    Path("/usr/local/bin/crun-wasm").symlink_to("runw")
    sh("podman", "load", "-i", IMAGES / "wasm-linux.docker.tar")
    linux = "localhost/wasm-linux:latest"
    for options in (["--annotation", "run.oci.handler=wasm"], ["--annotation", "module.wasm.image/variant=compat"],
                    ["--annotation", "module.wasm.image/variant=compat-smart"]):
        seen = podman("run", "--rm", *options, linux)
        expect(seen == "hello from wasm\n", f"{options}: {seen}")
    # crun's own name for it, chosen by hand and by platform.
    seen = sh("podman", "--runtime", "/usr/local/bin/crun-wasm", "run", "--rm", linux, both=False)
    expect(seen == "hello from wasm\n", seen)
    expect(podman("run", "--rm", "--annotation", "module.wasm.image/variant=compat-smart", BUSYBOX, "echo", "native") == "native\n", "a native program")
    said = fails("podman", "--runtime", RUNTIME, "run", "--rm", "--annotation", "run.oci.handler=wasm", BUSYBOX, "echo", "never")[1]
    expect("is not WebAssembly" in said, said)
    return "all of them"


@check("nothing is left behind")
def _():
    expect(podman("ps", "-aq") == "", podman("ps", "-a"))
    root = Path(f"/run/{RUNTIME}")
    expect(not [p.name for p in root.iterdir() if p.name != "seccomp~cache"], f"state: {list(root.iterdir())}")
    until("conmon has ended", lambda: not processes("conmon"))
    # podman's own: the network namespace of its bridge; a pod's cgroup where it knows the hierarchy not to be its own.
    left = {m for m in mounts() - before[0] if not m.startswith("/run/netns")}
    expect(not left, f"mounts: {left}")
    own = re.compile(r"runw-compile|[^/]+/(libpod_parent(/conmon|/[0-9a-f]{64})?|buildah-.*|runw-compile)$")
    left = {c for c in cgroups() - before[1] if not own.search(c)}
    expect(not left, f"cgroups: {left}")
    return "nothing"

"""Docker: dockerd with the runtime in daemon.json, its containerd started beside it, and compose."""
import json, subprocess, urllib.request
from pathlib import Path

import common
from common import BUSYBOX, LOOP, RUNTIME
from lib import IMAGES, cgroups, check, daemon, expect, fails, mounts, processes, sh, until

WASM = "localhost/wasm-linux:latest"
# runc is there without being named.
CONFIG = {"exec-opts": ["native.cgroupdriver=cgroupfs"], "live-restore": True, "log-level": "warn", "experimental": True, "default-runtime": RUNTIME,
          "runtimes": {"runw": {"path": "/usr/local/bin/runw"}, "runw-args": {"path": "/usr/local/bin/runw", "runtimeArgs": ["--debug"]}}}
docker = common.Engine(["docker"], making=["--runtime", RUNTIME])
common.checks(docker)


def start_dockerd():
    one = daemon("dockerd", "dockerd", "--bip", "10.98.0.1/16", "--containerd", "/run/containerd/containerd.sock")
    until("dockerd answers", lambda: subprocess.run(["docker", "version"], capture_output=True).returncode == 0)
    return one


def setup():
    global dockerd, before
    Path("/etc/docker/daemon.json").write_text(json.dumps(CONFIG))
    daemon("containerd", "containerd")
    until("containerd answers", lambda: subprocess.run(["ctr", "version"], capture_output=True).returncode == 0)
    dockerd = start_dockerd()
    for image in ("busybox", "wasm-linux"):
        sh("docker", "load", "-i", IMAGES / f"{image}.docker.tar")
    docker.prepare()
    before = mounts(), cgroups()


def clean():
    if all_of_them := docker("ps", "-aq").split():
        docker.remove(*all_of_them)


@check("docker info knows the runtime")
def _():
    info = json.loads(docker("info", "--format", "{{json .}}"))
    expect(RUNTIME in info["Runtimes"], str(info["Runtimes"]))
    return info["CgroupDriver"]


@check("stats, top, ps, logs")
def _():
    docker.detached("look", "echo err >&2; sleep 500 & " + LOOP, ["--memory", "64m"])
    stats = json.loads(docker("stats", "--no-stream", "--format", "json", "look"))
    expect(int(stats["PIDs"]) >= 2 and "64MiB" in stats["MemUsage"], str(stats))
    top = docker("top", "look", "-o", "pid,args").splitlines()
    seen = [top[0].split()[0], str(any("sleep 500" in line for line in top)), docker("ps", "--format", "{{.Names}} {{.State}}"), *sorted(docker("logs", "look").splitlines())]
    docker.remove("look")
    return seen


@check("healthcheck")
def _():
    docker.detached("health", options=["--health-cmd", "test -e /tmp/well", "--health-interval", "0.2s", "--health-retries", "1"])
    until("it is unhealthy", lambda: docker.inspect("health", ".State.Health.Status") == "unhealthy")
    docker("exec", "health", "touch", "/tmp/well")
    until("it is healthy", lambda: docker.inspect("health", ".State.Health.Status") == "healthy")
    docker.remove("health")
    return "well"


@check("restart policy")
def _():
    docker.make("run", "-d", "--name", "again", "--restart", "on-failure:2", BUSYBOX, "sh", "-c", "echo x >>/count; exit 3")
    until("it has given up", lambda: docker.inspect("again", ".State.Status") == "exited")
    seen = [docker.inspect("again", ".RestartCount"), docker.inspect("again", ".State.ExitCode")]
    docker.remove("again")
    return seen


@check("the words of docker's errors")
def _():
    seen = []
    for program in ("nothere", "/bin/nothere", "/etc/passwd"):
        text = fails(*docker.argv("run", "--rm", BUSYBOX, program))[1]
        seen.append(text[text.index("exec: "):].split(": unknown")[0])
    return seen


@check("a container's namespaces shared by another")
def _():
    docker.detached("first", options=["--ipc", "shareable", "--hostname", "first"])
    seen = docker.shell(["--network", "container:first", "--pid", "container:first", "--ipc", "container:first"],
                        "cat /proc/1/comm; [ $(readlink /proc/1/ns/net) = $(readlink /proc/self/ns/net) ] && echo net; [ $(readlink /proc/1/ns/ipc) = $(readlink /proc/self/ns/ipc) ] && echo ipc")
    docker.remove("first")
    return seen


@check("dockerd stopped and started again with a container running")
def _():
    global dockerd
    docker.detached("outlive")
    pid = docker.inspect("outlive", ".State.Pid")
    dockerd.kill()
    dockerd.wait()
    dockerd = start_dockerd()
    seen = [f"the same pid: {docker.inspect('outlive', '.State.Pid') == pid}", docker("exec", "outlive", "echo", "still here")]
    docker("stop", "-t", "20", "outlive")
    seen.append(docker.inspect("outlive", ".State.ExitCode"))
    docker.remove("outlive")
    return seen


@check("docker build, with what the default runtime makes")
def _():
    Path("/tmp/build").mkdir()
    Path("/tmp/build/Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN echo built >/built\nUSER 1000\nCMD [\"cat\", \"/built\"]\n")
    sh("docker", "build", "-q", "-t", "localhost/built", "/tmp/build", env={"DOCKER_BUILDKIT": "0"})
    seen = docker.run("localhost/built")
    docker("rmi", "-f", "localhost/built")
    return seen


COMPOSE = f"""services:
  server:
    image: {BUSYBOX}
    runtime: {RUNTIME}
    command: httpd -f -h /www
    ports: ["127.0.0.1:8098:80"]
    mem_limit: 64m
    read_only: true
    init: true
    healthcheck: {{test: wget -qO- http://127.0.0.1/, interval: 0.2s, retries: 100}}
  client:
    image: {BUSYBOX}
    runtime: {RUNTIME}
    depends_on: {{server: {{condition: service_healthy}}}}
    command: wget -qO- http://server/
"""


@check("compose: up, health, a name, exec, down")
def _():
    Path("/tmp/compose").mkdir()
    Path("/tmp/compose/compose.yaml").write_text(COMPOSE)
    compose = ("compose", "--project-directory", "/tmp/compose", "--progress", "quiet")
    docker(*compose, "up", "-d", "--pull", "never")
    until("the client has ended", lambda: docker.inspect("compose-client-1", ".State.Status") == "exited")
    seen = [docker(*compose, "logs", "--no-log-prefix", "client"), urllib.request.urlopen("http://127.0.0.1:8098/", timeout=10).read().decode(),
            docker(*compose, "exec", "-T", "server", "sh", "-c", "touch /x 2>&1; cat /sys/fs/cgroup/memory/memory.limit_in_bytes")]
    docker(*compose, "down", "-t", "1")
    return seen


@check("checkpoint and restore")
def _():
    def restored():
        """The last number before, or None where dockerd refuses images that containerd has already: it uploads them as a tar,
        whose bytes, and so its name there, are the same if all was written within a second. No runtime is asked by then."""
        docker.detached("check", "i=0; echo up; while :; do i=$((i+1)); echo $i; sleep 0.1; done", ["--security-opt", "seccomp=unconfined"])
        until("it counts", lambda: "3" in docker("logs", "check").split())
        docker("checkpoint", "create", "check", "one")
        last = int(docker("logs", "check").split()[-1])
        said = docker("start", "--checkpoint", "one", "check", status=None)
        if "already exists" in said:
            docker.remove("check")
            return None
        expect("Error" not in said, said)
        return last

    last = until("dockerd uploads the images", restored)
    until("it counts on", lambda: str(last + 2) in docker("logs", "check").split())
    docker.remove("check")
    return "counts on"


@check("a runtime with arguments", only="runw")
def _():
    return sh("docker", "run", "--rm", "--runtime", "runw-args", BUSYBOX, "echo", "through the wrapper")


@check("a wasm image's life", only="runw")
def _():
    expect(docker.run(WASM) == "hello from wasm\n", "run")
    docker.run(WASM, "exit", "42", status=42)
    docker.make("run", "-d", "--name", "wasm", "--memory", "64m", "-v", "/tmp/host:/in:ro", WASM, "say", "up", "read", "/in/file", "sleep", "1000")
    until("it is up", lambda: "of the host" in docker("logs", "wasm"))
    expect(docker("exec", "wasm", "/probe.wasm", "say", "second") == "second\n", "exec of a guest")
    docker("pause", "wasm")
    docker("unpause", "wasm")
    docker("stop", "-t", "20", "wasm")
    seen = docker.inspect("wasm", ".State.ExitCode")
    docker.remove("wasm")
    expect(seen == "143", seen)
    return "lived"


@check("a wasm image of platform wasi/wasm, in dockerd's containerd image store", only="runw")
def _():
    Path("/tmp/store.json").write_text(json.dumps({**CONFIG, "features": {"containerd-snapshotter": True}, "live-restore": False}))
    socket = "unix:///run/store.sock"
    store = daemon("store", "dockerd", "--config-file", "/tmp/store.json", "--host", socket, "--data-root", "/var/lib/store", "--exec-root", "/run/store",
                   "--pidfile", "/run/store.pid", "--bridge", "none", "--iptables=false", "--containerd", "/run/containerd/containerd.sock", "--containerd-namespace", "store")
    cli = ["docker", "--host", socket]
    until("dockerd answers", lambda: subprocess.run([*cli, "version"], capture_output=True).returncode == 0)
    try:
        sh(*cli, "load", "-i", IMAGES / "wasm.oci.tar")
        seen = sh(*cli, "run", "--rm", "--network", "none", "--runtime", "runw", "--platform", "wasi/wasm", "localhost/wasm:latest")
        expect(seen == "hello from wasm\n", seen)
        return seen
    finally:
        store.terminate()
        store.wait()


@check("nothing is left behind")
def _():
    expect(docker("ps", "-aq") == "", docker("ps", "-a"))
    root = Path("/run/docker/runtime-runc/moby")
    expect(not [p.name for p in root.iterdir() if p.name != "seccomp~cache"], f"state: {list(root.iterdir())}")
    until("the shims have ended", lambda: not processes("containerd-shim"))
    left = {m for m in mounts() - before[0] if not m.startswith("/run/docker/netns/default")}
    expect(not left, f"mounts: {left}")
    left = {c for c in cgroups() - before[1] if not c.endswith(("/docker", "/runw-compile"))}
    expect(not left, f"cgroups: {left}")
    return "nothing"

"""wasi:http served by runw and by `wasmtime serve`, loaded by wrk in turn: requests per second and p99."""
import json, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
GUESTS = HERE.parent / "tests/guests/build.py"
CONNECTIONS = [1, 10, 100, 1000]
SECONDS = 2


def measure(runw, wasmtime, rounds):
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: install Debian's package")
    guest = Path(subprocess.run([GUESTS], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()) / "http.wasm"
    lines = []
    with tempfile.TemporaryDirectory(prefix="runw-bench-") as home:
        home = Path(home)
        servers = {"runw": (8090, Runw(runw, home, guest, 8090))}
        if wasmtime:
            servers["wasmtime"] = (8091, Wasmtime(wasmtime, guest, 8091))
        try:
            for connections in CONNECTIONS:
                for number in range(max(3, rounds // 6)):
                    for who, (port, _) in servers.items():
                        per_second, p99 = load(port, connections)
                        lines.append(f"serve: requests per second at {connections},{who},{number},{per_second:.2f}\n")
                        lines.append(f"serve: p99 at {connections},{who},{number},{p99:.4f}\n")
        finally:
            for _, server in servers.values():
                server.stop()
    return "".join(lines)


def load(port, connections):
    argv = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{SECONDS}s", "--latency", f"http://127.0.0.1:{port}/"]
    text = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True).stdout
    p99, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)), float(p99) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def wait(port):
    deadline = time.monotonic() + 30
    while subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"], stderr=subprocess.DEVNULL).returncode:
        if time.monotonic() > deadline:
            sys.exit(f"nobody listens on port {port}")
        time.sleep(0.05)


class Runw:
    """The host's network, since that is where `wasmtime serve` is."""

    def __init__(self, runw, home, guest, port):
        self.tool = [runw, "--root", str(home / "state")]
        rootfs = home / "bundle/rootfs"
        rootfs.mkdir(parents=True)
        for mount_point in ("proc", "dev", "sys"):
            (rootfs / mount_point).mkdir()
        shutil.copy(guest, rootfs / "http.wasm")
        subprocess.run([runw, "spec"], cwd=home / "bundle", check=True)
        config = json.loads((home / "bundle/config.json").read_text())
        config["process"].update(args=["/http.wasm"], terminal=False)
        config["annotations"] = {"dev.runw.http.address": f"127.0.0.1:{port}"}
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "network"]
        (home / "bundle/config.json").write_text(json.dumps(config))
        subprocess.run([*self.tool, "run", "-d", "-b", home / "bundle", "runw-bench-serve"], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait(port)

    def stop(self):
        subprocess.run([*self.tool, "delete", "--force", "runw-bench-serve"], check=True)


class Wasmtime:
    def __init__(self, wasmtime, guest, port):
        argv = [wasmtime, "serve", "-S", "cli", "--addr", f"127.0.0.1:{port}", guest]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait(port)

    def stop(self):
        self.process.kill()
        self.process.wait()

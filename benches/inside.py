"""The measurements, inside the machine (tests/engines/machine.py) where crun and runc of trixie are at home.

Everything that is compared runs in turn: a round is one run of each, so what the host does meanwhile meets all alike. Each
round has an order of its own: a container that has ended keeps the kernel busy for tens of milliseconds, and that would be
the same one's to bear each time.
Writes one line of CSV for each run: row, who, round, value.
"""
import json, os, random, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path("/work/tests")
BUNDLES = Path("/tmp/bundles")
NULL = open(os.devnull, "r+")
WARM_UP = 3
RUNW = "/usr/local/bin/runw"
NATIVE = {"runw": RUNW, "crun": "/usr/bin/crun", "runc": "/usr/sbin/runc", "youki": str(HERE / "youki")}
NATIVE = {name: path for name, path in NATIVE.items() if Path(path).exists()}
WASMTIME = HERE / "wasmtime"
CACHE = Path("/var/cache/runw")
CSV = open("/work/results.csv", "w")


def note(row, who, number, value):
    CSV.write(f"{row},{who},{number},{value:.4f}\n")
    CSV.flush()


def run(*argv):
    """Milliseconds from the start of a program to its end. A peer may fail now and then: the kernel sometimes refuses to seal
    the memory that runc and youki copy themselves into."""
    argv = [str(word) for word in argv]
    for _ in range(1 if argv[0] == RUNW else 3):
        begin = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, NULL.fileno(), fd) for fd in (0, 1)])
        _, status = os.waitpid(pid, 0)
        took = (time.perf_counter() - begin) * 1e3
        if not status:
            return took
        print(f"{' '.join(argv)}: status {status}", file=sys.stderr, flush=True)
    sys.exit("failed once too often")


def bundle(name, *args, files=(), annotations={}):
    home = BUNDLES / name
    shutil.rmtree(home, ignore_errors=True)
    for mount_point in ("proc", "dev", "sys"):
        (home / "rootfs" / mount_point).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, home / "rootfs")
    subprocess.run([RUNW, "spec"], cwd=home, check=True)
    config = json.loads((home / "config.json").read_text())
    config["process"].update(args=list(args), terminal=False)
    config["annotations"] = annotations
    (home / "config.json").write_text(json.dumps(config))
    return home


def rounds(row, count, competitors):
    """`competitors`: who -> a function of the round's number that returns milliseconds."""
    order = random.Random(row)
    for number in range(-WARM_UP, count):
        took = {who: competitors[who](number) for who in order.sample(list(competitors), len(competitors))}
        if number >= 0:
            for who in competitors:
                note(row, who, number, took[who])


def poll(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: did not happen")
        time.sleep(0.001)


def status(tool, name):
    shown = subprocess.run([tool, "state", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(shown.stdout)["status"] if shown.returncode == 0 else None


def native_run(count):
    home = bundle("true", "/true", files=[HERE / "true"])
    competitors = {who: lambda n, tool=tool: run(tool, "run", "-b", home, f"r{n}") for who, tool in NATIVE.items()}
    competitors["floor"] = lambda n: run(HERE / "floor", home / "rootfs", "/true")
    competitors["exec"] = lambda n: run(HERE / "true")
    # crun's runs are fast ones and slow ones, and the median of forty is anywhere between the two.
    rounds("native run", 5 * count, competitors)


def life(count):
    home = bundle("true", "/true", files=[HERE / "true"])

    def whole(tool, n):
        name = f"l{n}"
        took = run(tool, "create", "-b", home, name) + run(tool, "start", name)
        poll(lambda: status(tool, name) == "stopped", f"{tool} {name}")
        return took + run(tool, "delete", name)

    rounds("create + start + delete", count, {who: lambda n, tool=tool: whole(tool, n) for who, tool in NATIVE.items()})


def force(count):
    home = bundle("pause", "/pause", files=[HERE / "pause"])

    def one(tool, n):
        run(tool, "create", "-b", home, f"f{n}")
        run(tool, "start", f"f{n}")
        return run(tool, "delete", "--force", f"f{n}")

    rounds("delete --force", count, {who: lambda n, tool=tool: one(tool, n) for who, tool in NATIVE.items()})


def execs(count):
    home = bundle("pause", "/pause", files=[HERE / "pause", HERE / "true"])
    for tool in NATIVE.values():
        run(tool, "create", "-b", home, "e")
        run(tool, "start", "e")
    rounds("exec", count, {who: lambda n, tool=tool: run(tool, "exec", "e", "/true") for who, tool in NATIVE.items()})
    for tool in NATIVE.values():
        run(tool, "delete", "--force", "e")


def wasm(count):
    hello = bundle("hello", "/hello.wasm", files=[HERE / "hello.wasm"])
    large = bundle("large", "/qjs.wasm", "/empty.js", files=[HERE / "qjs.wasm"])
    (large / "rootfs/empty.js").write_text("")
    native = bundle("true", "/true", files=[HERE / "true"])
    rounds("warm wasm run", count, {
        "hello": lambda n: run(RUNW, "run", "-b", hello, f"w{n}"),
        "0.8 MB": lambda n: run(RUNW, "run", "-b", large, f"w{n}"),
        "native by runw": lambda n: run(RUNW, "run", "-b", native, f"w{n}"),
        "native by crun": lambda n: run(NATIVE["crun"], "run", "-b", native, f"w{n}"),
    })

    def cold(n):
        shutil.rmtree(CACHE, ignore_errors=True)
        return run(RUNW, "run", "-b", large, f"c{n}")

    competitors = {"runw": cold}
    if WASMTIME.exists():
        competitors["wasmtime compile"] = lambda n: run(WASMTIME, "compile", "-o", "/tmp/out.cwasm", HERE / "qjs.wasm")
    rounds("cold wasm run", max(5, count // 5), competitors)


def memory(counts):
    home = bundle("idle", "/idle.wat", files=[HERE / "idle.wat"], annotations={"run.oci.handler": "wasm"})
    started = 0
    for count in counts:
        for n in range(started, count):
            run(RUNW, "run", "-d", "-b", home, f"m{n}")
        started = count
        pids = [json.loads(subprocess.check_output([RUNW, "state", f"m{n}"]))["pid"] for n in range(count)]
        total = sum(pss(pid) for pid in pids)
        note("PSS of an idle wasm container in KiB", str(count), 0, total / count)
    for n in range(started):
        run(RUNW, "delete", "--force", f"m{n}")
    home = bundle("pause", "/pause", files=[HERE / "pause"])
    run(RUNW, "run", "-d", "-b", home, "alone")
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and is_runw(p)]
    note("processes of runw beside an idle native container", "runw", 0, len(left))
    run(RUNW, "delete", "--force", "alone")


def is_runw(process):
    # By the file: what is sealed runs from a mount of it that has no path.
    try:
        return os.path.samefile(process / "exe", RUNW)
    except OSError:
        return False


def pss(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    sys.exit(f"no PSS of {pid}")


def many(count):
    home = bundle("pause", "/pause", files=[HERE / "pause"])
    total = 200

    def all_of(tool):
        def worker(first):
            for n in range(first, total, 4):
                run(tool, "create", "-b", home, f"p{n}")
                run(tool, "start", f"p{n}")
        begin = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(worker, range(4)))
        took = time.perf_counter() - begin
        for n in range(total):
            run(tool, "delete", "--force", f"p{n}")
        return total / took

    for number in range(count):
        for who in ("runw", "crun"):
            note("containers per second by 4 workers", who, number, all_of(NATIVE[who]))


def calls():
    home = bundle("true", "/true", files=[HERE / "true"])
    for who, tool in NATIVE.items():
        total = 0
        creation = subprocess.Popen([HERE / "run-strace", "-f", "-o", f"/tmp/{who}-create", tool, "create", "-b", home, "s"], stdin=NULL, stdout=NULL)
        poll(lambda: status(tool, "s") == "created", f"{tool}: created")
        run(HERE / "run-strace", "-f", "-o", f"/tmp/{who}-start", tool, "start", "s")
        creation.wait()
        poll(lambda: status(tool, "s") == "stopped", f"{tool}: stopped")
        run(tool, "delete", "s")
        for verb in ("create", "start"):
            lines = Path(f"/tmp/{who}-{verb}").read_text(errors="replace").splitlines()
            total += sum(1 for line in lines if not any(mark in line for mark in ("<... ", "+++", "---")))
        note("system calls of create and start", who, 0, total)


def size(count):
    note("size of the binary in MB", "runw", 0, Path(RUNW).stat().st_size / 1e6)
    rounds("--version", count, {who: lambda n, tool=tool: run(tool, "--version") for who, tool in NATIVE.items()})


def main():
    count, *rows = sys.argv[1:]
    count = int(count)
    # crun refuses a hierarchy that has controllers on v2 beside v1's.
    subprocess.run(["umount", "/sys/fs/cgroup/unified"], check=False)
    all_rows = {
        "run": lambda: native_run(count), "life": lambda: life(count), "force": lambda: force(count), "exec": lambda: execs(count),
        "wasm": lambda: wasm(count), "memory": lambda: memory([1, 50, 200, 500]), "many": lambda: many(3), "calls": calls, "size": lambda: size(count),
    }
    for row in rows or all_rows:
        all_rows[row]()


main()

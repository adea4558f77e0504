"""What every part needs: the list of checks, commands with deadlines, polling, daemons, terminals.

Nothing here knows an engine. A check is a function that drives an engine, raises where it must not go on, and returns
what was to be seen: lines without pids, times or names of this run, since they are compared with the control's.
"""
import json, os, pty, re, select, signal, subprocess, time
from pathlib import Path

CHECKS = []
IMAGES = Path("/work/images")


class Failed(Exception):
    pass


def check(name, **marks):
    """Marks: `only` (the runtime that can be asked), `runc_fails` (why the control cannot)."""
    def add(function):
        CHECKS.append((name, function, marks))
        return function
    return add


def sh(*argv, status=0, timeout=60, stdin=None, env=None, both=True):
    """The output of a command that must end with `status` (None: any)."""
    argv = [str(a) for a in argv]
    try:
        done = subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if both else subprocess.PIPE,
                              timeout=timeout, text=True, errors="replace", env={**os.environ, **(env or {})},
                              **({} if stdin is not None else {"stdin": subprocess.DEVNULL}))
    except subprocess.TimeoutExpired as late:
        raise Failed(f"$ {' '.join(argv)}\nstill running after {timeout} s:\n{(late.stdout or b'').decode(errors='replace')}")
    if status is not None and done.returncode != status:
        raise Failed(f"$ {' '.join(argv)}\nstatus {done.returncode}, not {status}:\n{done.stdout}{done.stderr or ''}")
    return done.stdout


def fails(*argv, **kw):
    """(status, output) of a command that must fail."""
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          timeout=60, text=True, **kw)
    expect(done.returncode != 0, f"{argv} succeeded: {done.stdout}")
    return done.returncode, done.stdout


def expect(true, what):
    if not true:
        raise Failed(what)


def until(what, ready, seconds=30):
    """The first true answer of `ready`, asked again until the deadline."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        expect(time.monotonic() < deadline, f"never happened: {what}")
        time.sleep(0.05)
    return answer


def daemon(name, *argv):
    """Started, its output in /tmp/NAME.log. It ends with the machine."""
    with open(f"/tmp/{name}.log", "ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def on_terminal(*argv, say="", status=0, timeout=30, size=(33, 77), silent=False):
    """Output of a command whose stdio is a terminal of `size`. `say` is typed when it prints `go`, so that the echo has its
    place among the lines, or after a second if it is `silent`."""
    pid, master = pty.fork()
    if pid == 0:
        subprocess.run(["stty", "rows", str(size[0]), "cols", str(size[1])])
        os.execvp(argv[0], [str(a) for a in argv])
    out, began = b"", time.monotonic()
    while time.monotonic() < began + timeout:
        if select.select([master], [], [], 0.1)[0]:
            try:
                more = os.read(master, 4096)
            except OSError: # EIO: the last holder of the terminal has gone
                more = b""
            if not more:
                break
            out += more
        if say and (re.search(rb"(^|\n)go\r", out) or silent and time.monotonic() > began + 1):
            os.write(master, say.encode())
            say = ""
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise Failed(f"$ {' '.join(map(str, argv))}\nstill running after {timeout} s on a terminal:\n{out.decode(errors='replace')}")
    os.close(master)
    got = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = out.decode(errors="replace").replace("\r\n", "\n")
    expect(status in (None, got), f"$ {' '.join(map(str, argv))}\nstatus {got}, not {status}, on a terminal:\n{text}")
    return text


def at_once(commands, timeout=120):
    """Runs all of them together; all must succeed."""
    running = [subprocess.Popen([str(a) for a in c], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
               for c in commands]
    for command, one in zip(commands, running):
        out, _ = one.communicate(timeout=timeout)
        expect(one.returncode == 0, f"$ {' '.join(map(str, command))}\nstatus {one.returncode}:\n{out}")


def cgroup_of(pid, controller):
    """The directory of a process in one v1 hierarchy."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}")
    raise Failed(f"process {pid} is in no {controller} hierarchy")


def mounts():
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def cgroups():
    return {str(Path(d).relative_to("/sys/fs/cgroup")) for d, _, _ in os.walk("/sys/fs/cgroup")}


def processes(name, argument=""):
    """Pids of programs called `name` with such an argument, in this machine's pid namespace."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_called(p, name, argument)]


def is_called(process, name, argument):
    try:
        return (process / "comm").read_text().strip() == name and argument in (process / "cmdline").read_text()
    except OSError: # it has ended
        return False


def lines(text):
    """Without what is of this moment: the time in engines' log lines, the ids that they choose."""
    return re.sub(r"\b[0-9a-f]{64}\b", "ID", re.sub(r'time="[^"]*" ', "", text)).strip().splitlines()


def run(runtime, wanted, report, clean):
    """Runs the checks of the part that was imported; `report` gets one record for each, `clean` is called after failures."""
    for name, function, marks in CHECKS:
        if wanted and not any(w in name for w in wanted):
            continue
        if marks.get("only", runtime) != runtime:
            continue
        record, began = {"name": name, **{k: v for k, v in marks.items() if k != "only"}}, time.monotonic()
        try:
            seen = function()
            record.update(ok=True, saw=lines(seen if isinstance(seen, str) else "\n".join(map(str.strip, seen))))
        except Exception as e: # a check that breaks must not take the others with it
            record.update(ok=False, saw=lines(str(e)) if isinstance(e, Failed) else [f"{type(e).__name__}: {e}", *trace(e)])
            clean()
        record["seconds"] = round(time.monotonic() - began, 2)
        report(json.dumps(record))


def trace(e):
    at = e.__traceback__
    while at.tb_next:
        at = at.tb_next
    return [f"at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}"]

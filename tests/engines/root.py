#!/usr/bin/env -S python3 -B
"""Makes the root file system that holds the engines, and prints its directory.

Debian trixie's packages, unpacked and never configured, in a root of their own below $HOME/.cache/runw/engines. This
host's engines, if it has any, are neither used nor touched. onhost/criu in it runs on the host.
"""
import fcntl, hashlib, os, shutil, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve()
CACHE = Path(os.environ.get("RUNW_TEST_CACHE") or Path.home() / ".cache/runw") / "engines"

ENGINES = "containerd podman buildah docker.io docker-cli docker-compose"
RUNTIMES = "runc crun criu conmon catatonit tini"
NETWORK = "netavark aardvark-dns containernetworking-plugins iptables nftables iproute2"
# The checks themselves run inside: the CRI client is generated from the published proto.
CHECKS = "python3-grpcio python3-protobuf protobuf-compiler golang-github-kubernetes-cri-api-dev golang-gogoprotobuf-dev"
BASICS = "busybox-static bash dash sed grep gawk findutils gzip coreutils util-linux mount procps hostname tar xz-utils kmod ca-certificates netbase tzdata"
PACKAGES = " ".join((ENGINES, RUNTIMES, NETWORK, CHECKS, BASICS)).split()

# What configuring these packages would have made: alternatives, users.
LINKS = [f"usr/sbin/{ip}{verb}" for ip in ("iptables", "ip6tables") for verb in ("", "-save", "-restore")]
# criu for the host's own tests: with trixie's loader, but in the host's namespaces and files.
CRIU = "onhost/criu"
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/resolv.conf": "",
    "etc/subuid": "root:100000:65536\ncontainers:200000:6553600\n",
    "etc/subgid": "root:100000:65536\ncontainers:200000:6553600\n",
    CRIU: """#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/sbin/criu" "$@"
""",
}


def run(*cmd):
    print("+", *cmd, file=sys.stderr, flush=True)
    done = subprocess.run([str(c) for c in cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, cmd))} failed:\n{done.stdout.decode(errors='replace')}")
    return done.stdout.decode()


def mirror():
    """The machine's own Debian mirror, whatever it is called here."""
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(COMPONENT) $(CREATED_BY)").splitlines():
        uri, *rest = line.split()
        if rest == ["Debian", "main", "Packages"]:
            return uri
    sys.exit("apt knows no Debian mirror on this machine: cannot fetch trixie's engines")


def unpack(root):
    # The names of the packages carry their versions: they are the key of the recorded controls.
    run("mmdebstrap", "--mode=root", "--variant=extract", '--aptopt=APT::Install-Recommends "false"',
        f"--include={','.join(PACKAGES)}", '--extract-hook=cd "$1/var/cache/apt/archives" && ls *.deb >"$1/packages"',
        "trixie", root, mirror())
    # Links of base-files' scripts.
    for d in ("bin", "sbin", "lib", "lib64"):
        if not (root / d).exists():
            (root / d).symlink_to(f"usr/{d}")
    shutil.rmtree(root / "var/run", ignore_errors=True)
    (root / "var/run").symlink_to("/run")
    for link in LINKS:
        (root / link).unlink(missing_ok=True)
        (root / link).symlink_to("xtables-nft-multi")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / CRIU).chmod(0o755)
    protos(root)
    for waste in ("usr/share/gocode", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/include"):
        shutil.rmtree(root / waste, ignore_errors=True)


def protos(root):
    """The Python messages of the CRI, from Kubernetes' own .proto."""
    go = "/usr/share/gocode/src"
    cri = f"{go}/k8s.io/cri-api/pkg/apis/runtime/v1"
    run("/usr/sbin/chroot", root, "/usr/bin/protoc", f"-I{cri}", f"-I{go}", f"-I{go}/github.com/gogo/protobuf/protobuf",
        "--python_out=/usr/lib/python3/dist-packages", f"{cri}/api.proto", f"{go}/github.com/gogo/protobuf/gogoproto/gogo.proto")


def make():
    dest = CACHE / hashlib.sha256(HERE.read_bytes()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not dest.exists():
            tmp = CACHE / ".new"
            shutil.rmtree(tmp, ignore_errors=True)
            unpack(tmp)
            tmp.rename(dest)
    return dest


if __name__ == "__main__":
    print(make())

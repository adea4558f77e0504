#!/usr/bin/env -S python3 -B
"""Builds the machine, step by step, each kept below $HOME/.cache/runw/vm under a name made of what goes in.

Prints the directory of its parts (qemu, vmlinux, initrd) and the one of the recorded machine (disk, state).
"""
import fcntl, hashlib, os, shutil, tempfile
from pathlib import Path

import image, qemu
from qemu import Machine

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("RUNW_TEST_CACHE") or Path.home() / ".cache/runw") / "vm"
# The recorded kernel knows the size of its disks.
SHARE_SIZE = "1G"


def digest(*parts):
    return hashlib.sha256(b"\0".join(p.read_bytes() if isinstance(p, Path) else p.encode() for p in parts)).hexdigest()[:16]


def kept(name, make):
    """The directory `name`, which `make` fills if it is not there."""
    dest, new = CACHE / name, CACHE / f".new-{name}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not dest.exists():
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            make(new)
            new.rename(dest)
    return dest


def parts():
    def make(dest):
        image.pieces(dest / "qemu")
        image.vmlinux(dest / "qemu", dest / "vmlinux")
        image.guest_root(dest / "root", dest / "qemu")
        image.initramfs(dest / "root", dest / "initrd")
        image.disk(dest / "root", dest / "disk", image.DISK_SIZE)
        shutil.rmtree(dest / "root")
    return kept(f"parts-{digest(HERE / 'image.py', *sorted((HERE / 'guest').iterdir()), ' '.join(image.PACKAGES))}", make)


def recorded(parts):
    """A machine that has booted: to go on from there takes a second."""
    def make(dest):
        image.run("cp", "--sparse=always", parts / "disk", dest / "disk")
        with tempfile.TemporaryDirectory() as empty:
            image.disk(empty, dest / "share", SHARE_SIZE)
        with Machine(parts, dest / "disk", dest / "share", writes=True) as machine:
            machine.record(dest / "state")
    return kept(f"recorded-{digest(qemu.MACHINE, qemu.KERNEL, SHARE_SIZE, parts.name)}", make)


def make():
    found = parts()
    return found, recorded(found)


if __name__ == "__main__":
    print(*make(), sep="\n")

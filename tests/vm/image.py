"""What the machine is made of: QEMU and a kernel, both of Debian trixie and run from where they are unpacked; an
initramfs that finds the disk; and a disk with systemd, engines and what the tests call.
"""
import shutil, struct, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "engines"))
import root as engines
from root import mirror, run

# The cloud kernel: few modules, virtio built in. trixie's QEMU: that of Debian 12 runs cmpxchg16b wrongly.
KERNEL, QEMU = "linux-image-cloud-amd64", "qemu-system-x86"
# What tests/it call, and what a user's own systemd needs.
SYSTEM = "systemd systemd-sysv dbus dbus-user-session libpam-systemd apparmor strace python3 passwd uidmap bsdextrautils bsdutils gcc libc6-dev e2fsprogs"
ENGINES = "containerd podman passt fuse-overlayfs docker.io docker-cli"
PACKAGES = sorted({*SYSTEM.split(), *ENGINES.split(), *engines.RUNTIMES.split(), *engines.NETWORK.split(), *engines.BASICS.split()})
# Nothing runs but what a test starts.
OFF = ("docker.service docker.socket containerd.service podman.service podman.socket podman-restart.service podman-auto-update.service "
       "apparmor.service getty@tty1.service serial-getty@ttyS0.service e2scrub_reap.service nftables.service")
TIMERS = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer podman-auto-update.timer systemd-tmpfiles-clean.timer"
FILES = {
    "etc/hostname": "vm\n",
    "etc/hosts": "127.0.0.1 localhost vm\n",
    "etc/resolv.conf": "",
    "etc/fstab": "",
    # There is no udev to say who may use them.
    "etc/tmpfiles.d/devices.conf": "z /dev/fuse 0666 - - -\nz /dev/net/tun 0666 - - -\n",
    # All that a user's own systemd can be given.
    "etc/systemd/system/user@.service.d/delegate.conf": "[Service]\nDelegate=cpu cpuset io memory pids\n",
    "var/lib/systemd/linger/tester": "",
    "etc/machine-id": "5f0d6c3b9a1e4d7f8c2b6a594837160f\n",
}
DISK_SIZE = "6G"


def pieces(dest):
    """QEMU with its libraries, and the kernel with its modules."""
    run("mmdebstrap", "--mode=root", "--variant=extract", '--aptopt=APT::Install-Recommends "false"', f"--include={KERNEL},{QEMU}",
        "trixie", dest, mirror())
    for waste in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/qemu/edk2*", "usr/lib/systemd", "var"):
        for path in dest.glob(waste):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def vmlinux(pieces, out):
    """The ELF in the bzImage: QEMU enters it by PVH, and nothing is decompressed by an emulated processor.

    Linux, Documentation/arch/x86/boot.rst: the payload's place is told from the end of the setup sectors.
    """
    image = next(pieces.glob("boot/vmlinuz-*")).read_bytes()
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1f1] + 1) * 512 + offset
    # Four bytes behind the zstd frame tell its size.
    payload = image[start:start + length - 4]
    with open(out, "wb") as file:
        subprocess.run(["zstd", "-dc"], input=payload, stdout=file, check=True)


def guest_root(dest, pieces):
    # It mounts procfs and sysfs in there: if it is killed they must not stay behind for rmtree to find.
    run("unshare", "--mount", "mmdebstrap", "--mode=root", "--variant=minbase", '--aptopt=APT::Install-Recommends "false"', f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("doc", "man", "locale", "info", "gocode")),
        "trixie", dest, mirror())
    modules = next((pieces / "usr/lib/modules").iterdir())
    shutil.copytree(modules, dest / "usr/lib/modules" / modules.name, symlinks=True)
    # To unpack them is slow in the machine.
    run("find", dest / "usr/lib/modules", "-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+")
    run("/usr/sbin/chroot", dest, "depmod", modules.name)
    run("/usr/sbin/chroot", dest, "useradd", "--create-home", "--shell", "/bin/bash", "tester")
    for name, text in FILES.items():
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        (dest / name).unlink(missing_ok=True)
        (dest / name).write_text(text)
    run("install", HERE / "guest/agent.py", dest / "usr/local/sbin/agent")
    run("install", "-m644", HERE / "guest/agent.service", dest / "etc/systemd/system/agent.service")
    run("/usr/sbin/chroot", dest, "systemctl", "mask", *OFF.split(), *TIMERS.split())
    run("/usr/sbin/chroot", dest, "systemctl", "enable", "agent.service")
    (dest / "mnt/host").mkdir()
    shutil.rmtree(dest / "var/lib/apt/lists", ignore_errors=True)


def initramfs(guest, out):
    tree = out.with_suffix(".d")
    for d in ("bin", "dev", "root"):
        (tree / d).mkdir(parents=True)
    shutil.copy(guest / "usr/bin/busybox", tree / "bin/busybox")
    shutil.copy(next(guest.glob("usr/lib/modules/*/kernel/drivers/block/virtio_blk.ko")), tree)
    run("install", HERE / "guest/init", tree / "init")
    with open(out, "wb") as file:
        subprocess.run("find . | bin/busybox cpio -o -H newc", shell=True, cwd=tree, stdout=file, stderr=subprocess.DEVNULL, check=True)
    shutil.rmtree(tree)


def disk(tree, out, size):
    """An ext4 of a directory, without mounting anything."""
    out.unlink(missing_ok=True)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m0", "-d", tree, out, size)

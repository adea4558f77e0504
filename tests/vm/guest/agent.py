#!/usr/bin/python3 -B
"""The host's hand in the machine. A message is a line of JSON; `size` bytes follow where it names them.

The host sends one job: what time it is, which files to hand back, and a script for bash. Its output comes back as it
is written, then the files, then its exit status.
"""
import json, os, subprocess, time
from pathlib import Path

PORT = next(p.parent for p in Path("/sys/class/virtio-ports").glob("*/name") if p.read_text().strip() == "agent").name
# The host's disk, packed anew for each run.
SHARE, DISK = "/mnt/host", "/dev/vdb"


def send(port, message, data=b""):
    port.write(json.dumps({**message, "size": len(data)}).encode() + b"\n" + data)


def job(port):
    """The next line; there is none as long as nobody listens at the other end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = port.read(1)
        if not byte:
            time.sleep(0.02)
        line += byte or b""
    return json.loads(line)


def prepare(now):
    # A restored machine has the clock, and the first pages of the disk, of when it was recorded.
    time.clock_settime(time.CLOCK_REALTIME, now)
    subprocess.run(["blockdev", "--flushbufs", DISK], check=True)
    subprocess.run(["mount", "-o", "ro", DISK, SHARE], check=True)


def main():
    with open(f"/dev/{PORT}", "r+b", buffering=0) as port:
        # Until nothing is left to be started.
        booted = subprocess.run(["systemctl", "is-system-running", "--wait"], stdout=subprocess.PIPE, text=True).stdout.strip()
        send(port, {"kind": "ready", "system": booted})
        wanted = job(port)
        try:
            prepare(wanted["now"])
        except subprocess.CalledProcessError as error:
            send(port, {"kind": "output"}, f"{error}\n".encode())
        run = subprocess.Popen(["bash", "-c", wanted["script"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, cwd="/root", env={**os.environ, "HOME": "/root"})
        while data := run.stdout.read1(65536):
            send(port, {"kind": "output"}, data)
        for name in wanted["files"]:
            if Path(name).exists():
                send(port, {"kind": "file", "name": name}, Path(name).read_bytes())
        send(port, {"kind": "exit", "status": run.wait()})
        time.sleep(3600)


main()

"""One QEMU: started, talked with through the agent in it, recorded once, killed."""
import ctypes, json, os, shutil, signal, socket, subprocess, tempfile, time
from pathlib import Path

# Two emulated processors, and no device that no test looks at. 5-level paging makes each page walk longer.
MACHINE = ("-M q35,hpet=off,vmport=off,smm=off -accel tcg,thread=multi,tb-size=1024 -cpu max,la57=off -smp 2 -m 2048 "
           "-nodefaults -display none -no-reboot -device virtio-rng-pci -device virtio-serial-pci")
KERNEL = "console=ttyS0 quiet mitigations=off panic=-1 audit=0 lpj=4000000 tsc=reliable random.trust_cpu=on"


PR_SET_PDEATHSIG = 1


def end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Lost(Exception):
    """The machine is gone, or does not answer in time."""


class Channel:
    """Lines of JSON over a socket of QEMU's; `size` bytes follow a line that names them."""

    def __init__(self, path, alive):
        self.socket, self.rest, self.alive = socket.socket(socket.AF_UNIX), b"", alive
        while True:
            try:
                return self.socket.connect(str(path))
            except OSError:
                if not alive():
                    raise Lost("QEMU does not start")
                time.sleep(0.02)

    def send(self, message):
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, deadline):
        """The next message and its bytes."""
        while b"\n" not in self.rest:
            self.more(deadline)
        line, self.rest = self.rest.split(b"\n", 1)
        message = json.loads(line)
        size = message.get("size", 0)
        while len(self.rest) < size:
            self.more(deadline)
        data, self.rest = self.rest[:size], self.rest[size:]
        return message, data

    def more(self, deadline):
        self.socket.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            data = self.socket.recv(1 << 20)
        except TimeoutError:
            raise Lost("no answer in time")
        if not data:
            raise Lost("QEMU ended")
        self.rest += data


class Machine:
    """`parts` is where QEMU, kernel and initramfs lie. With `state` it goes on where it was recorded; else it boots, and
    what it does to its disk is kept only if `writes` says so."""

    def __init__(self, parts, disk, share, state=None, append="", writes=False):
        self.dir = Path(tempfile.mkdtemp(prefix="runw-vm-"))
        qemu, lib = parts / "qemu", parts / "qemu/usr/lib/x86_64-linux-gnu"
        drive = f"if=none,format=raw,cache=unsafe,snapshot={'off' if writes else 'on'}"
        argv = [qemu / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", lib, qemu / "usr/bin/qemu-system-x86_64",
                "-L", qemu / "usr/share/qemu", "-L", qemu / "usr/share/seabios", *MACHINE.split(),
                "-kernel", parts / "vmlinux", "-initrd", parts / "initrd", "-append", f"{KERNEL} {append}",
                "-drive", f"file={disk},id=root,{drive}", "-device", "virtio-blk-pci,drive=root",
                "-drive", f"file={share},id=share,{drive}", "-device", "virtio-blk-pci,drive=share",
                "-chardev", f"socket,id=agent,path={self.dir}/agent,server=on,wait=off", "-device", "virtserialport,chardev=agent,name=agent",
                "-qmp", f"unix:{self.dir}/qmp,server=on,wait=off", "-serial", f"file:{self.dir}/serial.log",
                *(["-incoming", f"file:{state}"] if state else [])]
        # What it changes of its disks lies in TMPDIR.
        env = {**os.environ, "QEMU_MODULE_DIR": str(lib / "qemu"), "TMPDIR": str(self.dir)}
        with open(self.dir / "qemu.log", "wb") as log:
            self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                                            preexec_fn=end_with_parent)
        alive = lambda: self.process.poll() is None
        try:
            self.agent, self.qmp = Channel(self.dir / "agent", alive), Channel(self.dir / "qmp", alive)
            deadline = time.monotonic() + 300
            self.ask("qmp_capabilities", deadline)
            if not state:
                self.agent.receive(deadline)
            else:
                # It comes back as it was recorded: stopped.
                while self.ask("query-status", deadline)["status"] == "inmigrate":
                    time.sleep(0.02)
                self.ask("cont", deadline)
        except BaseException:
            self.end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Nothing in it is worth a shutdown."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def said(self):
        """What QEMU and the kernel's console have to say of a machine that is lost."""
        return "".join((self.dir / name).read_text(errors="replace")[-4000:] for name in ("qemu.log", "serial.log"))

    def job(self, script, files, output, timeout):
        """Runs a script; calls `output` with what it prints; returns its exit status and the files."""
        deadline, found = time.monotonic() + timeout, {}
        try:
            self.agent.send({"now": time.time(), "script": script, "files": files})
            while True:
                message, data = self.agent.receive(deadline)
                if message["kind"] == "exit":
                    return message["status"], found
                if message["kind"] == "file":
                    found[message["name"]] = data
                elif message["kind"] == "output":
                    output(data)
        except Lost as lost:
            raise Lost(f"{lost}\n{self.said()}")

    def record(self, state):
        """Stops it and writes its memory and devices; its disk is then what it must go on with."""
        deadline = time.monotonic() + 300
        self.ask("stop", deadline)
        self.ask("migrate", deadline, uri=f"file:{state}")
        while (status := self.ask("query-migrate", deadline)["status"]) != "completed":
            if status == "failed":
                raise Lost("the machine cannot be recorded")
            time.sleep(0.1)
        self.ask("quit", deadline)
        self.process.wait(60)

    def ask(self, command, deadline, **arguments):
        self.qmp.send({"execute": command, "arguments": arguments})
        while True:
            answer, _ = self.qmp.receive(deadline)
            if "error" in answer:
                raise Lost(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

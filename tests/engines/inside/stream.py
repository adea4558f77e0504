"""The CRI's streams, as a kubelet passes them on: the URL that Exec, Attach and PortForward answer with, spoken to by
WebSocket (RFC 6455) and Kubernetes' v4.channel protocol: a binary message for each piece, its first byte the channel."""
import base64, json, os, socket, struct, time
from urllib.parse import urlsplit

from lib import Failed, expect

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
BINARY, CLOSE, PING = 2, 8, 9


class Stream:
    def __init__(self, url, query=""):
        at = urlsplit(url)
        self.socket = socket.create_connection((at.hostname, at.port), timeout=20)
        self.file = self.socket.makefile("rb")
        self.seen = {}
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {at.path}{query} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                             f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                             "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n").encode())
        answer = self.file.readline()
        expect(b" 101 " in answer, f"{url}: {answer}")
        while self.file.readline().strip():
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, channel, text):
        """A frame of the client's: final, binary, masked (with zeros, which change nothing)."""
        body = bytes([channel]) + (text if isinstance(text, bytes) else text.encode())
        expect(len(body) < 126, "a short message")
        self.socket.sendall(struct.pack("!BB4x", 0x80 | BINARY, 0x80 | len(body)) + body)

    def receive(self):
        """The next piece as (channel, bytes), or None at the end."""
        while True:
            head = self.file.read(2)
            if len(head) < 2:
                return None
            kind, length = head[0] & 15, head[1] & 127
            if length > 125:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
            body = self.file.read(length)
            if kind == CLOSE:
                return None
            if kind != PING and body:
                return body[0], body[1:]

    def text(self, channel=STDOUT):
        return self.seen.get(channel, b"").decode(errors="replace").replace("\r\n", "\n")

    def wait(self, what, channel=STDOUT):
        """Reads until a channel has shown `what`."""
        deadline = time.monotonic() + 20
        while what not in self.text(channel):
            expect(time.monotonic() < deadline, f"{what!r} never came, but {self.seen}")
            try:
                piece = self.receive()
            except TimeoutError:
                raise Failed(f"{what!r} never came, but {self.seen}")
            expect(piece, f"the stream ended before {what!r}: {self.seen}")
            self.seen[piece[0]] = self.seen.get(piece[0], b"") + piece[1]

    def end(self):
        """Reads to the end; the exit status (0: `Success`)."""
        while piece := self.receive():
            self.seen[piece[0]] = self.seen.get(piece[0], b"") + piece[1]
        status = json.loads(self.seen.get(ERROR, b"{}"))
        causes = status.get("details", {}).get("causes", [])
        return next((int(c["message"]) for c in causes if c["reason"] == "ExitCode"), status.get("status"))

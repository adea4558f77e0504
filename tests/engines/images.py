"""The images that the engines load: made here, from no registry.

`busybox` and `pause` are native; `wasm` holds one module and nothing else, with platform wasi/wasm. Each is written as
an OCI archive and as a docker archive.
"""
import hashlib, io, json, subprocess, tarfile

EPOCH = "1970-01-01T00:00:00Z"


def digest(blob):
    return hashlib.sha256(blob).hexdigest()


def dump(value):
    return json.dumps(value, sort_keys=True).encode()


def tar(entries):
    """A tar of (name, content): bytes are a file, a string is a link's target, None is a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.mode = 0o644 if name.startswith("etc/p") else 0o755
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def archives(name, layer, platform, **config):
    """(OCI archive, docker archive) of an image with one layer."""
    os, arch = platform.split("/")
    tag = f"localhost/{name}:latest"
    image = dump({"architecture": arch, "os": os, "created": EPOCH, "config": config,
                  "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}"]}, "history": [{"created": EPOCH}]})
    vendor = "application/vnd.oci.image"

    def descriptor(kind, blob, **more):
        return {"mediaType": f"{vendor}.{kind}", "digest": f"sha256:{digest(blob)}", "size": len(blob), **more}

    manifest = dump({"schemaVersion": 2, "mediaType": f"{vendor}.manifest.v1+json", "config": descriptor("config.v1+json", image),
                     "layers": [descriptor("layer.v1.tar", layer)]})
    names = {"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag}
    index = dump({"schemaVersion": 2, "mediaType": f"{vendor}.index.v1+json", "manifests": [
        descriptor("manifest.v1+json", manifest, platform={"os": os, "architecture": arch}, annotations=names)]})
    blobs = [(f"blobs/sha256/{digest(blob)}", blob) for blob in (manifest, image, layer)]
    oci = tar([("oci-layout", dump({"imageLayoutVersion": "1.0.0"})), ("index.json", index), *blobs])
    docker = tar([(f"{digest(image)}.json", image), (f"{digest(layer)}/layer.tar", layer), ("manifest.json", dump(
        [{"Config": f"{digest(image)}.json", "RepoTags": [tag], "Layers": [f"{digest(layer)}/layer.tar"]}]))])
    return oci, docker


def busybox_layer(busybox):
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    dirs = [(d, None) for d in ("bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var", "www")]
    links = [(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"]
    users = [("etc/passwd", b"root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n"),
             ("etc/group", b"root:x:0:\nuser:x:1000:\n"), ("etc/garbage", b"no program\n"), ("www/index.html", b"hello from the image\n")]
    return tar([*dirs, ("bin/busybox", busybox.read_bytes()), *links, *users])


def make(out, busybox, probe):
    """Writes NAME.oci.tar and NAME.docker.tar below `out`; `probe` is the guest from tests/guests."""
    out.mkdir()
    native, path = busybox_layer(busybox), ["PATH=/bin"]
    wasm = tar([("probe.wasm", probe.read_bytes())])
    for name, layer, platform, config in (
        ("busybox", native, "linux/amd64", {"Env": path, "Cmd": ["sh"]}),
        ("pause", native, "linux/amd64", {"Env": path, "Entrypoint": ["sleep", "1000000"]}),
        ("wasm", wasm, "wasi/wasm", {"Entrypoint": ["/probe.wasm"], "Cmd": ["say", "hello from wasm"]}),
        # dockerd's own image store knows no platform but linux.
        ("wasm-linux", wasm, "linux/amd64", {"Entrypoint": ["/probe.wasm"], "Cmd": ["say", "hello from wasm"]}),
    ):
        for kind, archive in zip(("oci", "docker"), archives(name, layer, platform, **config)):
            (out / f"{name}.{kind}.tar").write_bytes(archive)

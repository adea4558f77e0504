"""The Python guest: the steps of rust/probe.rs in a component made by componentize-py."""
import os
import socket
import sys
import time

from wit_world import exports
from wit_world.imports import environment


def listen(address):
    """Echoes what one client sends."""
    host, port = address.split(":")
    with socket.create_server((host, int(port))) as server:
        print("listening", flush=True)
        client, _ = server.accept()
        with client:
            while piece := client.recv(4096):
                client.sendall(piece)


def read(path):
    try:
        with open(path) as file:
            print(f"read {path}: [{file.read()}]")
    except FileNotFoundError:
        print(f"read {path}: NotFound")


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    print(f"write {path}: ok")


def main(args):
    step = args[1] if len(args) > 1 else "hello"
    if step == "hello":
        print("hello from wasm (python)")
    elif step == "args":
        for i, arg in enumerate(args):
            print(f"arg {i} [{arg}]")
    elif step == "env":
        for key, value in environment.get_environment():
            print(f"env [{key}={value}]")
    elif step == "exit":
        sys.exit(int(args[2]))
    elif step == "read":
        read(args[2])
    elif step == "write":
        write(args[2], args[3])
    elif step == "list":
        print(f"list {args[2]}: {' '.join(sorted(os.listdir(args[2])))}")
    elif step == "cat":
        sys.stdout.write(sys.stdin.read())
    elif step == "clock":
        print(f"realtime {int(time.time())}")
    elif step == "listen":
        listen(args[2])
    else:
        print(f"probe: unknown step {step}", file=sys.stderr)
        sys.exit(2)


class Run(exports.Run):
    def run(self):
        main(environment.get_arguments())

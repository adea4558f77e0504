#!/usr/bin/env python3
"""Prints every field of runtime-spec's config.json, one a line: the list that tests/rules.rs holds
docs/spec-support.md to.

    python3 tests/spec_fields.py SCHEMA-DIRECTORY > tests/spec-fields.txt

The directory is `schema` of runtime-spec (Debian: golang-github-opencontainers-specs-dev). Its newest packaged version is
1.2.1; what 1.3 adds stands below, as the oci-spec crate has it. Platforms that are refused as a whole are one line each.
"""

import json
import pathlib
import sys

WHOLE = {"vm", "windows", "solaris", "zos", "freebsd"}
LATER = [
    "freebsd",
    "linux.intelRdt.enableMonitoring",
    "linux.intelRdt.schemata",
    "linux.memoryPolicy.flags",
    "linux.memoryPolicy.mode",
    "linux.memoryPolicy.nodes",
    "linux.netDevices.*.name",
]


def main(directory):
    documents = {}

    def load(name):
        if name not in documents:
            documents[name] = json.loads((directory / name).read_text())
        return documents[name]

    def resolve(node, name):
        while "$ref" in node:
            file, _, pointer = node["$ref"].partition("#")
            name = file or name
            node = load(name)
            for part in pointer.strip("/").split("/") if pointer.strip("/") else []:
                node = node[part]
        return node, name

    def walk(node, name, path):
        node, name = resolve(node, name)
        found = set()
        for one in node.get("allOf", []) + node.get("anyOf", []) + node.get("oneOf", []):
            found |= walk(one, name, path)
        for key, child in node.get("properties", {}).items():
            inner = f"{path}.{key}" if path else key
            found |= {inner} if inner in WHOLE else walk(child, name, inner)
        for child in node.get("patternProperties", {}).values():
            found |= walk(child, name, f"{path}.*")
        if isinstance(node.get("additionalProperties"), dict):
            found |= walk(node["additionalProperties"], name, f"{path}.*")
        if isinstance(node.get("items"), dict):
            found |= walk(node["items"], name, f"{path}[]")
        if not found or (path and "properties" not in node):
            # A value, or a list or map of values.
            found = {line for line in found if line != f"{path}[]" and line != f"{path}.*"} or {path}
        return found

    fields = walk(load("config-schema.json"), "config-schema.json", "") | set(LATER)
    print("# Made by tests/spec_fields.py; one field of runtime-spec's config.json a line.")
    print("\n".join(sorted(fields)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

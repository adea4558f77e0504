"""The key-value guest: counts in both interfaces that can."""
from wit_world import exports
from wit_world.imports import atomics, store


class Run(exports.Run):
    def run(self):
        bucket = store.open("")
        count = int(bucket.get("plain") or b"0") + 1
        bucket.set("plain", str(count).encode())
        print(f"plain {count}, atomic {atomics.increment(bucket, 'atomic', 1)}")

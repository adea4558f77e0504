// The key-value guest: counts in both interfaces that can.
import { increment } from "wasi:keyvalue/atomics@0.2.0-draft";
import { open } from "wasi:keyvalue/store@0.2.0-draft";

export const run = {
  run() {
    const bucket = open("");
    const old = bucket.get("plain");
    const count = (old ? Number(new TextDecoder().decode(old)) : 0) + 1;
    bucket.set("plain", new TextEncoder().encode(String(count)));
    console.log(`plain ${count}, atomic ${increment(bucket, "atomic", 1n)}`);
  },
};

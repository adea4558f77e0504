//! The key-value guest: counts in both interfaces that can.

#[path = "../counter.rs"]
mod bindings;

use bindings::wasi::keyvalue::{atomics, store};

struct Counter;
bindings::export!(Counter with_types_in bindings);

impl bindings::exports::wasi::cli::run::Guest for Counter {
    fn run() -> Result<(), ()> {
        let bucket = store::open("").unwrap();
        let old = bucket.get("plain").unwrap().unwrap_or(b"0".to_vec());
        let count = String::from_utf8(old).unwrap().parse::<u64>().unwrap() + 1;
        bucket.set("plain", count.to_string().as_bytes()).unwrap();
        println!("plain {count}, atomic {}", atomics::increment(&bucket, "atomic", 1).unwrap());
        Ok(())
    }
}

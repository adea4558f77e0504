//! `wasi:keyvalue`: one store for all instances of a container, kept in a file where an annotation names one.

use std::net::SocketAddr;

use serde_json::json;

use crate::harness::{Bundle, Container, at, get, nothing_left, own_address, runw_only};

const GUEST: &str = include_str!("../guests/wat/keyvalue.wat");

/// Each instance serves one request.
fn counting(guest: &str, annotations: &[(&str, &str)]) -> (Bundle, SocketAddr) {
    let address = at(own_address(), 8080);
    let bundle = Bundle::new(&["/app.wat"]).without_namespace("network").edit(|c| {
        c["annotations"] = json!({"run.oci.handler": "wasm", "dev.runw.http.address": address,
            "dev.runw.http.reuse": "1"});
        for (key, value) in annotations {
            c["annotations"][format!("dev.runw.{key}")] = json!(value);
        }
    });
    std::fs::write(bundle.rootfs().join("app.wat"), guest).expect("write");
    (bundle, address)
}

/// The older draft counts without a sign.
fn of_the_first_draft() -> String {
    GUEST.replace("0.2.0-draft2", "0.2.0-draft").replace("s64", "u64")
}

fn statuses(address: SocketAddr, path: &str, count: usize) -> Vec<u16> {
    (0..count).map(|_| get(address, path).status).collect()
}

#[test]
fn instances_share_a_store_that_goes_with_the_container() {
    if runw_only("wasm") {
        return;
    }
    for guest in [GUEST.to_owned(), of_the_first_draft()] {
        for _ in 0..2 {
            let (bundle, address) = counting(&guest, &[]);
            let _c = Container::up(bundle);
            assert_eq!(statuses(address, "/", 2), [201, 202]);
            assert_eq!(statuses(address, "/default", 1), [203], "another name of the same");
            assert_eq!(statuses(address, "/other", 1), [500], "no such store");
        }
    }
}

#[test]
fn a_store_in_a_file_outlives_the_container() {
    if runw_only("wasm") {
        return;
    }
    let files = [("keyvalue.default", "/data/default"), ("keyvalue.visits", "/data/visits")];
    let (bundle, address) = counting(GUEST, &files);
    let data = bundle.outside("data");
    let bundle = bundle.bind(&data, "/data", &["rbind", "rw"]);
    std::fs::create_dir(bundle.rootfs().join("data")).expect("mkdir");
    for (expected, visit) in [([201, 202], 201), ([203, 204], 202)] {
        let mut c = Container::new(Bundle::new(&[""; 0]).edit(|c| *c = bundle.config.clone()));
        std::fs::copy(bundle.rootfs().join("app.wat"), c.bundle.rootfs().join("app.wat")).expect("copy");
        std::fs::create_dir(c.bundle.rootfs().join("data")).expect("mkdir");
        c.create();
        c.start();
        assert_eq!(statuses(address, "/", 2), expected);
        assert_eq!(statuses(address, "/visits", 1), [visit]);
        c.kill("KILL").ok();
        c.wait_stopped();
    }
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(data.join("visits")).expect("stat").mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_cannot_be_used_fails_create() {
    if runw_only("wasm") {
        return;
    }
    let outside = tempfile::tempdir().expect("tempdir");
    let (bundle, _) = counting(GUEST, &[("keyvalue.cart", "/cart")]);
    let path = bundle.rootfs().join("cart");
    let c = Container::new(bundle);
    std::os::unix::fs::symlink(outside.path().join("cart"), &path).expect("symlink");
    c.run().refused(&["dev.runw.keyvalue.cart", "/cart", "no such file"]);
    assert_eq!(std::fs::read_dir(outside.path()).expect("read").count(), 0);
    std::fs::remove_file(&path).expect("unlink");
    std::fs::write(&path, "not a store").expect("write");
    c.run().refused(&["dev.runw.keyvalue.cart", "/cart"]);
    std::fs::remove_file(&path).expect("unlink");
    std::fs::create_dir(&path).expect("mkdir");
    c.run().refused(&["dev.runw.keyvalue.cart", "/cart"]);
    nothing_left(&c);
}

#[test]
fn a_file_belongs_to_one_container_at_a_time() {
    if runw_only("wasm") {
        return;
    }
    let data = tempfile::tempdir().expect("tempdir");
    let bundle = || {
        let (bundle, address) = counting(GUEST, &[("keyvalue.default", "/data/store")]);
        std::fs::create_dir(bundle.rootfs().join("data")).expect("mkdir");
        (bundle.bind(data.path(), "/data", &["rbind", "rw"]), address)
    };
    let (first, address) = bundle();
    let _first = Container::up(first);
    Container::new(bundle().0).run().refused(&["dev.runw.keyvalue.default", "another process has it open"]);
    assert_eq!(statuses(address, "/", 1), [201]);
}

#[test]
fn stores_may_be_taken_away() {
    if runw_only("wasm") {
        return;
    }
    let (bundle, address) = counting(GUEST, &[("keyvalue", "none")]);
    let _c = Container::up(bundle);
    assert_eq!(statuses(address, "/", 1), [501], "access denied");
}

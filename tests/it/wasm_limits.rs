//! What a guest may use: each limit ends what goes beyond it, with a line that names it, and nothing else.

use std::net::SocketAddr;

use serde_json::json;

use crate::harness::{Bundle, Container, at, get, nothing_left, own_address, runw_only, until};

/// Core module and component of the same program.
const PROBES: [&str; 2] = ["probe.wasm", "probe-component.wasm"];

fn limited(bundle: Bundle, pairs: &[(&str, &str)]) -> Bundle {
    bundle.edit(|c| {
        for (key, value) in pairs {
            c["annotations"][format!("dev.runw.{key}")] = json!(value);
        }
    })
}

fn served(pairs: &[(&str, &str)], edit: impl FnOnce(&mut serde_json::Value)) -> (Container, SocketAddr) {
    let address = at(own_address(), 8080);
    let bundle = Bundle::wasm("http.wasm", &[]).without_namespace("network").edit(edit);
    let bundle = limited(bundle, &[&[("http.address", &*address.to_string())], pairs].concat());
    (Container::up(bundle), address)
}

#[test]
fn a_guest_out_of_time_ends_with_124() {
    if runw_only("wasm") {
        return;
    }
    for name in PROBES {
        for steps in [&["say", "up", "spin"][..], &["say", "up", "sleep", "100"]] {
            let c = Container::new(limited(Bundle::wasm(name, steps), &[("limits.time", "1")]));
            let out = c.run();
            assert_eq!((out.code, out.out.as_str()), (124, "up\n"), "{name} {steps:?}: {out:?}");
            assert_eq!(out.err, "the guest has run for 1 s (annotation dev.runw.limits.time)\n");
            nothing_left(&c);
        }
        let c = Container::new(limited(Bundle::wasm(name, &["exit", "0"]), &[("limits.time", "100")]));
        assert_eq!(c.run().code, 0);
    }
}

#[test]
fn a_guest_out_of_fuel_ends_with_152() {
    if runw_only("wasm") {
        return;
    }
    for name in PROBES {
        let c = Container::new(limited(
            Bundle::wasm(name, &["say", "up", "spin"]),
            &[("limits.fuel", "100000000")],
        ));
        let out = c.run();
        assert_eq!((out.code, out.out.as_str()), (152, "up\n"), "{name}: {out:?}");
        assert_eq!(out.err, "the guest has used up its fuel (annotation dev.runw.limits.fuel)\n");
        nothing_left(&c);
        // The same each time: that is what it is for.
        for (fuel, code) in [("100", 152), ("100000000", 7)] {
            let c = Container::new(limited(Bundle::wasm(name, &["exit", "7"]), &[("limits.fuel", fuel)]));
            let code = if name == "probe-component.wasm" && code == 7 { 1 } else { code };
            assert_eq!(c.run().code, code, "{name} {fuel}");
        }
    }
}

#[test]
fn a_request_out_of_time_or_fuel_fails_alone() {
    if runw_only("wasm") {
        return;
    }
    for (limit, value, status) in [("limits.time", "1", 504), ("limits.fuel", "100000000", 500)] {
        let (c, address) = served(&[(limit, value)], |_| {});
        for _ in 0..2 {
            assert_eq!(get(address, "/spin").status, status, "{limit}");
            assert_eq!(get(address, "/").body, "hello from wasm\n");
        }
        let told = "the guest has used up its fuel (annotation dev.runw.limits.fuel)\n";
        assert_eq!(
            c.err(),
            if status == 500 { told.repeat(2) } else { "Error: guest timed out\n".repeat(2) }
        );
        assert_eq!(c.status(), "running");
    }
}

/// An instance that serves many requests has it anew for each.
#[test]
fn fuel_is_for_each_request() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = served(&[("limits.fuel", "1000000"), ("http.reuse", "1000")], |_| {});
    for _ in 0..200 {
        assert_eq!(get(address, "/").status, 200);
    }
}

#[test]
fn what_a_guest_may_make_is_limited() {
    if runw_only("wasm") {
        return;
    }
    for (guest, limit, said) in [
        ("probe-component.wasm", "limits.handles", ""),
        ("probe-component.wasm", "limits.instances", "instance"),
        ("rust-p1.wasm", "limits.table", "table"),
    ] {
        let run = |value: &str| {
            let c = Container::new(limited(Bundle::wasm(guest, &["exit", "0"]), &[(limit, value)]));
            let out = c.run();
            nothing_left(&c);
            out
        };
        let out = run("1");
        assert!(out.code != 0 && out.err.contains(said), "{limit}: {out:?}");
        assert!(!run("10000").err.contains(said) || said.is_empty(), "{limit}");
    }
}

#[test]
fn memory_may_be_narrowed_below_the_container_s() {
    if runw_only("wasm") {
        return;
    }
    let grown = |annotations: &[(&str, &str)]| {
        Container::new(limited(Bundle::wasm("probe.wasm", &["grow", "64"]), annotations)).run().ok().out
    };
    let (free, narrow) = (grown(&[]), grown(&[("limits.memory", "33554432")]));
    assert!(!free.contains("refused") && narrow.contains("refused"), "{free} {narrow}");
}

fn workers(c: &Container) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", c.pid())).expect("tasks");
    let name =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.flatten().map(name).filter(|name| name == "runw-http\n").count()
}

/// A thread more than the quota feeds would only be throttled with the others.
#[test]
fn a_server_has_as_many_threads_as_its_quota_is_cpus() {
    if runw_only("wasm") {
        return;
    }
    let cpus = std::thread::available_parallelism().expect("CPUs").get();
    // None beside the main thread when that is enough.
    let least = if cpus == 1 { 0 } else { cpus };
    for (quota, want) in [(None, least), (Some(50_000), 0), (Some(100_000), 0), (Some(10_000_000), least)] {
        let (c, address) = served(&[], |c| {
            if let Some(quota) = quota {
                c["linux"]["resources"]["cpu"] = json!({"quota": quota, "period": 100_000});
            }
        });
        assert_eq!(get(address, "/").status, 200);
        assert_eq!(workers(&c), want, "{quota:?}");
    }
}

#[test]
fn an_access_log_has_a_line_for_each_request() {
    if runw_only("wasm") {
        return;
    }
    for to in ["stderr", "/tmp/access.log"] {
        let (c, address) = served(&[("http.access-log", to)], |_| {});
        let log = || match to {
            "stderr" => c.err(),
            _ => std::fs::read_to_string(c.bundle.rootfs().join("tmp/access.log")).unwrap_or_default(),
        };
        get(address, "/");
        get(address, "/no\"thing");
        until("two lines", || log().lines().count() == 2);
        let text = log();
        let lines: Vec<&str> = text.lines().collect();
        for (line, want) in
            lines.iter().zip([r#""GET / HTTP/1.1" 200 16 "#, r#""GET /no\"thing HTTP/1.1" 404 13 "#])
        {
            let (begin, end) = line.split_once(want).unwrap_or_else(|| panic!("{want} is not in {line}"));
            assert!(
                begin.starts_with("127.") && begin.contains(" - - [") && begin.ends_with(" +0000] "),
                "{line}"
            );
            assert!(end.parse::<u64>().is_ok_and(|micros| micros > 0), "{line}");
        }
    }
    let (c, address) = served(&[], |_| {});
    assert_eq!((get(address, "/").status, c.err().as_str()), (200, ""));
}

/// The image must not make runw write elsewhere.
#[test]
fn an_access_log_stays_in_the_container() {
    if runw_only("wasm") {
        return;
    }
    let outside = tempfile::tempdir().expect("tempdir");
    let bundle =
        Bundle::wasm("http.wasm", &[]).edit(|c| c["annotations"]["dev.runw.http.access-log"] = json!("/log"));
    std::os::unix::fs::symlink(outside.path().join("log"), bundle.rootfs().join("log")).expect("symlink");
    Container::new(bundle).run().refused(&["http.access-log", "/log"]);
    assert_eq!(std::fs::read_dir(outside.path()).expect("read").count(), 0);
    let fifo =
        Bundle::wasm("http.wasm", &[]).edit(|c| c["annotations"]["dev.runw.http.access-log"] = json!("/etc"));
    Container::new(fifo).run().refused(&["http.access-log", "/etc"]);
}

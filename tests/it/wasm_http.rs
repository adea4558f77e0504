//! Components that handle `wasi:http`, served: one request's trouble is that request's, and the end is orderly.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    Bundle, Container, Reply, TlsServer, ask, at, dial, get, nothing_left, own_address, reply, runw_only,
    sent, skip, until,
};

/// In the host's network, at an address of its own.
fn web(annotations: &[(&str, &str)]) -> (Bundle, SocketAddr) {
    web_of("http.wasm", annotations)
}

fn web_of(guest: &str, annotations: &[(&str, &str)]) -> (Bundle, SocketAddr) {
    let address = at(own_address(), 8080);
    let bundle = Bundle::wasm(guest, &[]).without_namespace("network").edit(|c| {
        c["annotations"]["dev.runw.http.address"] = json!(address);
        for (key, value) in annotations {
            c["annotations"][format!("dev.runw.{key}")] = json!(value);
        }
    });
    (bundle, address)
}

fn up(annotations: &[(&str, &str)]) -> (Container, SocketAddr) {
    let (bundle, address) = web(annotations);
    (Container::up(bundle), address)
}

fn request(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")
}

/// What the container's init wrote and how it ended, from a foreground `run`.
#[track_caller]
fn serving(c: &Container) -> crate::harness::Running {
    let address = c.bundle.config["annotations"]["dev.runw.http.address"].as_str().expect("an address");
    let running = c.spawn_run(&[]);
    let address: SocketAddr = address.parse().expect("an address");
    until("it serves", || TcpStream::connect(address).is_ok());
    running
}

#[test]
fn requests_are_answered_each_by_a_fresh_instance() {
    if runw_only("wasm") {
        return;
    }
    let (bundle, address) = web(&[]);
    std::fs::write(bundle.rootfs().join("page.txt"), "a page\n").expect("write");
    let c = Container::up(bundle.env(&["GREETING=hi"]));
    let mut kept = dial(address).expect("connect");
    for (path, want) in [
        ("/", "hello from wasm\n"),
        ("/count", "1\n"),
        ("/count", "1\n"),
        ("/env/GREETING", "hi"),
        ("/file/page.txt", "a page\n"),
        ("/file/proc/self/mem", "NotFound"),
        ("/print/from a request", ""),
    ] {
        let reply = ask(&mut kept, &request(address, &path.replace(' ', "_")));
        assert_eq!((reply.status, reply.body.as_str()), (200, want), "{path}");
    }
    let reply = ask(&mut kept, &request(address, "/host"));
    assert!(reply.body.contains("Http") && reply.body.contains(&address.to_string()), "{reply:?}");
    assert_eq!(ask(&mut kept, &request(address, "/nothing")).status, 404);
    c.wait_out("from_a_request");
}

#[test]
fn an_instance_is_reused_where_that_was_asked_for() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.reuse", "3")]);
    let mut kept = dial(address).expect("connect");
    let mut count = || ask(&mut kept, &request(address, "/count")).body;
    // One that is still finishing its last request when the next one comes is passed over.
    until("an instance's third request", || {
        let count = count();
        assert!(["1\n", "2\n", "3\n"].contains(&count.as_str()), "{count}");
        count == "3\n"
    });
}

/// Its status counts the requests that its instance has had.
#[test]
fn a_handler_of_0_3_is_served_by_one_instance_after_the_other() {
    if runw_only("wasm") {
        return;
    }
    for (annotations, want) in
        [(vec![], vec![201, 202, 203]), (vec![("http.reuse", "2")], vec![201, 202, 201])]
    {
        let (bundle, address) = web_of("http3.wasm", &annotations);
        let c = Container::new(bundle);
        let mut running = serving(&c);
        let mut kept = dial(address).expect("connect");
        let statuses: Vec<_> = want.iter().map(|_| ask(&mut kept, &request(address, "/")).status).collect();
        assert_eq!(statuses, want, "{}", running.err());
        c.kill("TERM").ok();
        assert_eq!(running.wait().code, 0);
    }
}

#[test]
fn bodies_stream_both_ways() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[]);
    let mut stream = dial(address).expect("connect");
    let head = format!("POST /echo HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("send");
    let piece = "x".repeat(60_000);
    let mut writer = stream.try_clone().expect("clone");
    let copy = piece.clone();
    let sender = std::thread::spawn(move || {
        for _ in 0..40 {
            writer.write_all(format!("{:x}\r\n{copy}\r\n", copy.len()).as_bytes()).expect("send");
        }
        writer.write_all(b"0\r\n\r\n").expect("send");
    });
    let reply = reply(&mut stream).expect("a response");
    sender.join().expect("the sender");
    assert_eq!((reply.status, reply.body.len()), (200, 40 * piece.len()));
}

#[test]
fn an_address_in_use_fails_create() {
    if runw_only("wasm") {
        return;
    }
    let (bundle, address) = web(&[]);
    let _taken = TcpListener::bind(address).expect("bind");
    let c = Container::new(bundle);
    c.run().refused(&[&format!("listen on {address}"), "address already in use"]);
    nothing_left(&c);
}

#[test]
fn the_address_may_come_from_the_environment() {
    if runw_only("wasm") {
        return;
    }
    let address = at(own_address(), 8081);
    let bundle = Bundle::wasm("http.wasm", &[])
        .without_namespace("network")
        .env(&[&format!("SPIN_HTTP_LISTEN_ADDR={address}")]);
    let _c = Container::up(bundle);
    assert_eq!(get(address, "/").status, 200);
}

#[test]
fn trouble_in_one_request_is_that_request_s() {
    if runw_only("wasm") {
        return;
    }
    let (bundle, address) = web(&[]);
    let c = Container::new(bundle);
    let mut running = serving(&c);
    for path in ["/trap", "/silent", "/trap"] {
        assert_eq!(get(address, path).status, 500, "{path}");
        assert_eq!(get(address, "/").status, 200);
    }
    until("a backtrace", || running.err().contains("wasm backtrace"));
    c.kill("TERM").ok();
    assert_eq!(running.wait().code, 0);
}

#[test]
fn a_busy_request_does_not_keep_others_waiting() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.request-timeout", "2")]);
    // More of them than there are CPUs.
    let busy: Vec<_> = (0..5).map(|_| sent(address, &request(address, "/spin"))).collect();
    assert_eq!(get(address, "/").body, "hello from wasm\n");
    for mut stream in busy {
        assert_eq!(reply(&mut stream).map(|reply| reply.status), Some(504));
    }
    assert_eq!(get(address, "/").status, 200);
}

#[test]
fn sigterm_lets_requests_finish_and_ends_with_0() {
    if runw_only("wasm") {
        return;
    }
    for signal in ["TERM", "INT"] {
        let (bundle, address) = web(&[]);
        let c = Container::new(bundle);
        let mut running = serving(&c);
        let idle = dial(address).expect("connect");
        let mut slow = sent(address, &request(address, "/sleep/700"));
        // The request is read before the signal is sent: the same connection's answer proves it only later, so wait
        // for an answer to one that was sent after it.
        assert_eq!(get(address, "/").status, 200);
        c.kill(signal).ok();
        let answer = reply(&mut slow).expect("the answer to a request in flight");
        assert_eq!((answer.status, answer.body.as_str()), (200, "slept\n"));
        assert_eq!(running.wait().code, 0);
        assert!(TcpStream::connect(address).is_err());
        drop(idle);
        nothing_left(&c);
    }
}

#[test]
fn the_grace_is_limited_and_a_second_signal_ends_it() {
    if runw_only("wasm") {
        return;
    }
    for (grace, signals) in [("1", 1), ("60", 2)] {
        let (bundle, address) = web(&[("http.grace", grace)]);
        let c = Container::new(bundle);
        let mut running = serving(&c);
        let _open = sent(address, &request(address, "/sleep/100000"));
        assert_eq!(get(address, "/").status, 200);
        let begun = Instant::now();
        c.kill("TERM").ok();
        if signals == 2 {
            until("it no longer listens", || TcpStream::connect(address).is_err());
            c.kill("TERM").ok();
        }
        assert_eq!(running.wait().code, 143, "{signals}");
        assert!(begun.elapsed() < Duration::from_secs(25));
    }
}

#[test]
fn a_created_server_is_ended_by_sigterm_at_once() {
    if runw_only("wasm") {
        return;
    }
    let (bundle, _) = web(&[]);
    let mut c = Container::new(bundle);
    c.create();
    let threads = std::fs::read_dir(format!("/proc/{}/task", c.pid())).expect("task").count();
    assert_eq!(threads, 1, "no thread before the filters are loaded");
    c.kill("TERM").ok();
    c.wait_stopped();
}

#[test]
fn what_clients_may_do_is_limited() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.body", "1000"), ("http.connections", "6")]);
    let post = |length: usize| format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let raw = |text: &str| reply(&mut sent(address, text)).map(|reply| reply.status);
    assert_eq!(raw(&post(1001)), Some(413));
    assert_eq!(raw("GET / HTTP/1.1\r\n\r\n"), Some(400), "no host");
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    assert_eq!(raw(&long), Some(431));
    // All places were given back.
    for _ in 0..7 {
        assert_eq!(get(address, "/").status, 200);
    }
}

#[test]
fn silent_clients_do_not_keep_their_places() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.read-timeout", "2"), ("http.connections", "3")]);
    // Silent from the beginning, half a head, half a preface, and silent after a request.
    for begun in ["", "GET / HTTP/1.1\r\nHo", "PRI * HT"] {
        assert_eq!(reply(&mut sent(address, begun)), None::<Reply>, "{begun:?}");
    }
    let mut kept = dial(address).expect("connect");
    assert_eq!(ask(&mut kept, &request(address, "/")).status, 200);
    assert_eq!(reply(&mut kept), None::<Reply>);
    // The body stops coming: the guest sees an error in it, not a wait without end.
    let mut stream = sent(address, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf");
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    for _ in 0..4 {
        assert_eq!(get(address, "/").status, 200);
    }
}

/// RFC 9113, 3.3: a client that knows.
#[test]
fn http2_without_tls() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[]);
    let url = format!("http://{address}/echo");
    let out = Command::new("curl")
        .args([
            "--silent",
            "--http2-prior-knowledge",
            "--write-out",
            " %{http_version}",
            "--data",
            "posted",
            &url,
        ])
        .output();
    let Ok(out) = out else { return skip("curl is not there") };
    assert_eq!(String::from_utf8_lossy(&out.stdout), "posted 2");
}

/// As many as the default lets in, each with a request that waits for all others to have begun.
#[test]
fn a_thousand_connections_are_served_at_once() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[]);
    let post = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst";
    let mut streams: Vec<_> = (0..1000).map(|_| dial(address).expect("connect")).collect();
    for stream in &mut streams {
        stream.write_all(post.as_bytes()).expect("send");
    }
    for stream in &mut streams {
        stream.write_all(b" last").expect("send");
        let reply = reply(stream).expect("an answer");
        assert_eq!((reply.status, reply.body.as_str()), (200, "first last"));
    }
    drop(streams);
    assert_eq!(get(address, "/").status, 200);
}

/// One instance that takes too much fails alone; what it had is given back.
#[test]
fn memory_is_the_container_s_not_each_instance_s() {
    if runw_only("wasm") {
        return;
    }
    let (bundle, address) = web(&[]);
    let limit = 96 << 20;
    let c = Container::up(bundle.edit(|c| c["linux"]["resources"]["memory"] = json!({"limit": limit})));
    for _ in 0..3 {
        assert_eq!(get(address, "/grow/200").status, 500);
        assert_eq!(get(address, "/grow/20").body, format!("{}\n", 20 << 20));
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn a_guest_sends_requests() {
    if runw_only("wasm") {
        return;
    }
    let (_peer, peer) = up(&[]);
    let (bundle, address) = web(&[]);
    std::fs::write(bundle.rootfs().join("etc/hosts"), format!("{} peer.test\n", peer.ip())).expect("hosts");
    let _c = Container::up(bundle);
    let fetched = |path: &str| get(address, path).body;
    assert_eq!(fetched(&format!("/get/http:peer.test:{}/", peer.port())), "200 hello from wasm\n");
    assert_eq!(fetched(&format!("/get/http:{peer}/nothing")), "404 no such step\n");
    assert!(fetched("/get/http:peer.test:9/").contains("ConnectionRefused"));
    for (key, value, said) in [
        ("network", "tcp,udp,names", "HttpRequestDenied"),
        ("network.connect", "192.0.2.0/24", "DestinationIpProhibited"),
    ] {
        let (_narrow, address) = up(&[(key, value)]);
        let body = get(address, &format!("/get/http:{peer}/")).body;
        assert!(body.contains(said), "{key}={value}: {body}");
    }
}

/// Against a certificate of the container's own, and no other.
#[test]
fn a_guest_sends_requests_with_tls() {
    if runw_only("wasm") {
        return;
    }
    let Some(server) = TlsServer::up("-www") else { return };
    for trusted in [true, false] {
        let (bundle, address) = web(&[]);
        server.known_to(&bundle, trusted);
        let _c = Container::up(bundle);
        let fetched =
            |name: &str| get(address, &format!("/get/https:{name}:{}/", server.address.port())).body;
        let body = fetched("tls.test");
        assert_eq!(body.starts_with("200 "), trusted, "{body}");
        let body = fetched("other.test");
        assert!(body.contains("TlsCertificateError"), "{body}");
    }
}

//! A server among clients of every kind: slow, many, terse, old, and those that ask for what it does not have.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Bundle, Container, ask, at, dial, get, own_address, reply, runw_only, sent, until};

fn up_with(bundle: Bundle, annotations: &[(&str, &str)]) -> (Container, SocketAddr) {
    let address = at(own_address(), 8080);
    let bundle = bundle.without_namespace("network").edit(|c| {
        c["annotations"]["dev.runw.http.address"] = json!(address);
        for (key, value) in annotations {
            c["annotations"][*key] = json!(value);
        }
    });
    (Container::up(bundle), address)
}

fn up(annotations: &[(&str, &str)]) -> (Container, SocketAddr) {
    let names: Vec<String> = annotations.iter().map(|(key, _)| format!("dev.runw.{key}")).collect();
    let pairs: Vec<_> = names.iter().map(String::as_str).zip(annotations.iter().map(|pair| pair.1)).collect();
    up_with(Bundle::wasm("http.wasm", &[]), &pairs)
}

/// What comes until the end.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A byte now and then keeps a head open no longer than a whole head may take.
#[test]
fn a_head_that_trickles_in_is_cut_off() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.read-timeout", "1"), ("http.connections", "4")]);
    let begun = Instant::now();
    let mut slow: Vec<_> = (0..4).map(|_| sent(address, "GET / HTTP/1.1\r\nHost: x\r\nX: ")).collect();
    let open = |stream: &mut TcpStream| stream.write_all(b"y").is_ok();
    until("all were cut off", || {
        std::thread::sleep(Duration::from_millis(100));
        // A write to a closed connection fails once the peer has said so.
        slow.iter_mut().filter_map(|stream| open(stream).then_some(())).count() == 0
    });
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(get(address, "/").status, 200);
}

#[test]
fn a_body_that_stops_ends_its_request_alone() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.read-timeout", "1")]);
    let mut slow = sent(address, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert_eq!(get(address, "/").status, 200);
    }
    let _ = rest(&mut slow);
    assert!(begun.elapsed() < Duration::from_secs(25));
}

/// Who takes nothing holds up nobody, and is cut off once it takes too long.
#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.read-timeout", "2"), ("http.requests", "2")]);
    let stuck: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = dial(address).expect("connect");
            stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
            stream
                .write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                .expect("send");
            let piece = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
            // Until neither side has room for more.
            while stream.write_all(&piece).is_ok() {}
            stream
        })
        .collect();
    let begun = Instant::now();
    until("it answers others", || dial(address).is_ok_and(|_| get(address, "/").status == 200));
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(stuck);
}

#[test]
fn a_kept_connection_carries_many_requests_and_those_sent_ahead() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[]);
    let mut stream = dial(address).expect("connect");
    for _ in 0..300 {
        assert_eq!(ask(&mut stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").status, 200);
    }
    // RFC 9112, 9.3.2: pipelined, and answered in their order.
    stream
        .write_all("GET /sleep/100 HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\nGET /none HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes())
        .expect("send");
    let bodies: Vec<_> = (0..3).map(|_| reply(&mut stream).expect("an answer").body).collect();
    assert_eq!(bodies, ["slept\n", "hello from wasm\n", "no such step\n"]);
    let mut stream = sent(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(reply(&mut stream).map(|reply| reply.status), Some(200));
    assert_eq!(rest(&mut stream), "");
    let mut old = sent(address, "GET / HTTP/1.0\r\nHost: x\r\n\r\n");
    let text = rest(&mut old);
    assert!(text.starts_with("HTTP/1.0 200") && text.ends_with("hello from wasm\n"), "{text}");
}

#[test]
fn a_client_may_ask_before_it_sends_a_body() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[("http.body", "1000")]);
    let ahead = |length: usize| {
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n")
    };
    let mut stream = sent(address, &ahead(6));
    let mut first = [0; 25];
    stream.read_exact(&mut first).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&first), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"posted").expect("send");
    assert_eq!(reply(&mut stream).expect("an answer").body, "posted");
    // What would be refused anyway is not asked for.
    let mut stream = sent(address, &ahead(1001));
    assert_eq!(reply(&mut stream).map(|reply| reply.status), Some(413));
}

#[test]
fn a_head_request_has_no_body_in_its_answer() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[]);
    let mut stream = sent(address, "HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let text = rest(&mut stream);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn targets_in_every_form() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[]);
    // RFC 9112, 3.2.2: the target's authority goes before the host field.
    let mut stream = dial(address).expect("connect");
    let body = ask(&mut stream, "GET http://one.test:81/host HTTP/1.1\r\nHost: two.test\r\n\r\n").body;
    assert!(body.contains("one.test:81") && !body.contains("two.test"), "{body}");
    let status = |text: &str| reply(&mut sent(address, text)).map(|reply| reply.status);
    assert_eq!(
        status("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"),
        Some(404),
        "the guest has no step of that name"
    );
    assert_eq!(status("GET nonsense HTTP/1.1\r\nHost: x\r\n\r\n"), Some(400));
    assert_eq!(
        status("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        Some(400)
    );
    assert_eq!(get(address, "/").status, 200);
}

/// A guest cannot speak another protocol on the connection. HTTP/2 by an upgrade may be passed over in silence (RFC
/// 9110, 7.8), and curl offers it; who wants a websocket can do nothing with another answer.
#[test]
fn websockets_and_tunnels_are_refused() {
    if runw_only("wasm") {
        return;
    }
    let (_c, address) = up(&[]);
    let upgrade = |to: &str| {
        format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {to}\r\n\r\n")
    };
    for (request, status) in [
        (upgrade("websocket"), 501),
        (upgrade("h2c"), 200),
        ("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n".to_owned(), 501),
    ] {
        let answer = reply(&mut sent(address, &request)).expect("an answer");
        assert_eq!(answer.status, status, "{request}");
    }
}

/// Each is in flight for sure: it has sent the beginning of its answer, and waits for the end of the request.
#[test]
fn responses_that_stream_are_finished_before_the_end() {
    if runw_only("wasm") {
        return;
    }
    let (c, address) = up(&[]);
    let begun = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    let mut streams: Vec<_> = (0..300).map(|_| sent(address, begun)).collect();
    for stream in &mut streams {
        let mut head = Vec::new();
        while !String::from_utf8_lossy(&head).contains("first") {
            let mut piece = [0; 512];
            let count = stream.read(&mut piece).expect("the beginning");
            assert_ne!(count, 0);
            head.extend_from_slice(&piece[..count]);
        }
    }
    c.kill("TERM").ok();
    until("it no longer listens", || TcpStream::connect(address).is_err());
    for stream in &mut streams {
        stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").expect("send");
        let text = rest(stream);
        assert!(text.contains("last") && text.ends_with("0\r\n\r\n"), "{text}");
    }
    c.wait_stopped();
}

#[test]
fn a_guest_of_0_3_has_fields_bodies_and_trailers() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::new(&["/app.wat"]);
    std::fs::write(bundle.rootfs().join("app.wat"), include_str!("wat/echo3.wat")).expect("write");
    let (_c, address) = up_with(bundle, &[("run.oci.handler", "wasm")]);
    // Trailers go only to those who say they take them, and only as announced (RFC 9110, 6.5).
    let head = "POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE, close\r\nTrailer: x-sum\r\nX-Word: kept\r\n\
        Transfer-Encoding: chunked\r\n\r\n";
    let piece = "z".repeat(50_000);
    let body = format!("{:x}\r\n{piece}\r\n5\r\nafter\r\n0\r\nX-Sum: 42\r\n\r\n", piece.len());
    let mut stream = sent(address, head);
    stream.write_all(body.as_bytes()).expect("send");
    let text = rest(&mut stream);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("x-word: kept\r\n"), "{}", &text[..400]);
    assert_eq!(text.matches('z').count(), piece.len());
    let end = &text[text.len() - 40..];
    assert!(end.contains("after\r\n0\r\nx-sum: 42\r\n\r\n"), "{end}");
}

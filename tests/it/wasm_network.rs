//! Sockets and names of a guest: inside the container's network, by the container's own files.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};

use serde_json::json;

use crate::harness::{
    Bundle, Container, Out, TlsServer, at, dial, name_server, nothing_left, own_address, runw_only, until,
};

/// The Rust guest of 0.2 in the host's network, where the test can be talked to.
fn guest(steps: &[&str]) -> Bundle {
    Bundle::wasm("rust-p2.wasm", steps).without_namespace("network")
}

fn annotated(bundle: Bundle, key: &str, value: &str) -> Bundle {
    bundle.edit(|c| c["annotations"][format!("dev.runw.{key}")] = json!(value))
}

fn etc(bundle: &Bundle, name: &str, text: &str) {
    std::fs::write(bundle.rootfs().join("etc").join(name), text).expect("write a file of the container");
}

fn run(bundle: Bundle) -> Out {
    let c = Container::new(bundle);
    let out = c.run();
    nothing_left(&c);
    out
}

#[test]
fn names_come_from_the_container_s_hosts_and_name_server() {
    if runw_only("wasm") {
        return;
    }
    let server = name_server(vec![("db.example.test", std::net::Ipv4Addr::new(192, 0, 2, 7))]);
    for (name, want) in [
        ("db", "192.0.2.7"),
        ("db.example.test", "192.0.2.7"),
        ("in-hosts", "192.0.2.8"),
        ("192.0.2.9", "192.0.2.9"),
        ("localhost", "127.0.0.1"),
        ("missing.example.test", "failed"),
    ] {
        let bundle = guest(&["lookup", name]);
        etc(&bundle, "resolv.conf", &format!("search example.test\nnameserver {server}\n"));
        etc(&bundle, "hosts", "192.0.2.8 in-hosts\n");
        let out = run(bundle).ok().out;
        assert!(out.starts_with(&format!("lookup {name}: {want}")), "{out}");
    }
}

#[test]
fn tcp_and_udp_reach_what_the_container_reaches() {
    if runw_only("wasm") {
        return;
    }
    let address = own_address();
    let listener = TcpListener::bind(at(address, 7)).expect("bind");
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        stream.write_all(text.to_uppercase().as_bytes()).expect("write");
    });
    let out = run(guest(&["connect", &format!("{address}:7"), "over tcp"])).ok().out;
    assert_eq!(out, format!("connect {address}:7: [OVER TCP]\n"));
    echo.join().expect("the echo");

    let socket = UdpSocket::bind(at(address, 8)).expect("bind");
    std::thread::spawn(move || {
        let mut text = [0; 100];
        let (count, client) = socket.recv_from(&mut text).expect("receive");
        socket.send_to(&text[..count], client).expect("send");
    });
    let out = run(guest(&["send", &format!("{address}:8"), &format!("{address}:9"), "over udp"])).ok().out;
    assert_eq!(out, format!("send {address}:8: [over udp]\n"));

    let mut running = Container::new(guest(&["listen", &format!("{address}:10")]));
    running.create().start().wait_out("listening");
    let mut stream = dial(at(address, 10)).expect("connect");
    stream.write_all(b"to the guest").expect("write");
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    assert_eq!(text, "to the guest");
    running.wait_stopped();
}

/// Nothing of the host's network is there, not even its loopback.
#[test]
fn the_network_namespace_is_the_boundary() {
    if runw_only("wasm") {
        return;
    }
    let address = own_address();
    let _listener = TcpListener::bind(at(address, 7)).expect("bind");
    let out = run(Bundle::wasm("rust-p2.wasm", &["connect", &format!("{address}:7"), "x"])).ok().out;
    assert_eq!(out, format!("connect {address}:7: ConnectionRefused\n"));
}

#[test]
fn annotations_narrow_the_network() {
    if runw_only("wasm") {
        return;
    }
    let address = own_address();
    let listener = TcpListener::bind(at(address, 7)).expect("bind");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let connect = ["connect", &format!("{address}:7"), "x"];
    for (key, value, allowed) in [
        ("network", "tcp", true),
        ("network", "udp,names", false),
        ("network", "none", false),
        ("network.connect", "127.0.0.0/8:7", true),
        ("network.connect", "127.0.0.0/8:8, 10.0.0.0/8", false),
    ] {
        let out = run(annotated(guest(&connect), key, value)).ok().out;
        let denied = out.contains("PermissionDenied");
        assert_eq!(denied, !allowed, "{key}={value}: {out}");
    }
    let bundle = annotated(guest(&["lookup", "in-hosts"]), "network", "tcp,udp");
    etc(&bundle, "hosts", "192.0.2.8 in-hosts\n");
    let out = run(bundle).ok().out;
    assert!(out.contains("failed"), "{out}");
}

#[test]
fn a_wrong_annotation_fails_create() {
    if runw_only("wasm") {
        return;
    }
    for (key, value) in [("network", "icmp"), ("nettwork", "tcp"), ("http.address", "8080")] {
        let c = Container::new(annotated(guest(&["hello"]), key, value));
        c.run().refused(&[&format!("annotation dev.runw.{key}="), value]);
        nothing_left(&c);
    }
    // Annotations are a pod's: a native container beside the guest must not mind.
    let native = annotated(Bundle::sh("echo ran"), "nettwork", "tcp");
    assert_eq!(run(native).ok().out, "ran\n");
}

/// Engines rewrite both files while the container runs.
#[test]
fn an_exec_sees_the_files_as_they_are_now() {
    if runw_only("wasm") {
        return;
    }
    let bundle = guest(&["sleep", "100"]);
    etc(&bundle, "hosts", "192.0.2.1 peer\n");
    let c = Container::up(bundle);
    let ask = || c.exec(&[], &["/app.wasm", "lookup", "peer"]).ok().out;
    assert_eq!(ask(), "lookup peer: 192.0.2.1\n");
    etc(&c.bundle, "hosts", "192.0.2.2 peer\n");
    until("the new address", || ask() == "lookup peer: 192.0.2.2\n");
}

/// The older draft is spoken in the next test; of the newer one its resources are made.
#[test]
fn a_component_may_import_either_draft_of_tls() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::new(&["/app.wat"]).edit(|c| c["annotations"]["run.oci.handler"] = "wasm".into());
    std::fs::write(bundle.rootfs().join("app.wat"), include_str!("wat/tls.wat")).expect("write");
    Container::new(bundle).run().ok();
}

/// The guest connects, wasi:tls shakes hands: with whom the container trusts, under the name that was asked for.
#[test]
fn a_guest_speaks_tls_on_a_connection_of_its_own() {
    if runw_only("wasm") {
        return;
    }
    let Some(server) = TlsServer::up("-rev") else { return };
    let address = server.address.to_string();
    let talk = |name: &str, trusted: bool, annotation: Option<&str>| {
        let bundle = Bundle::wasm("rust-tls.wasm", &[&address, name, "word"]).without_namespace("network");
        server.known_to(&bundle, trusted);
        run(match annotation {
            Some(words) => annotated(bundle, "network", words),
            None => bundle,
        })
        .ok()
        .out
    };
    assert_eq!(talk("tls.test", true, None), "answer [drow]\n");
    for (name, trusted, annotation, said) in [
        ("tls.test", false, None, "UnknownIssuer"),
        ("other.test", true, None, "not valid for name"),
        ("tls.test", true, Some("tcp"), "does not grant TLS"),
    ] {
        let out = talk(name, trusted, annotation);
        assert!(out.starts_with("failed: ") && out.contains(said), "{name} {trusted} {annotation:?}: {out}");
    }
    // Or by a file that the environment names, as OpenSSL has it.
    let bundle = Bundle::wasm("rust-tls.wasm", &[&address, "tls.test", "word"])
        .without_namespace("network")
        .env(&["SSL_CERT_FILE=/etc/own.crt"]);
    std::fs::copy(server.certificate(), bundle.rootfs().join("etc/own.crt")).expect("copy");
    assert_eq!(run(bundle).ok().out, "answer [drow]\n");
}

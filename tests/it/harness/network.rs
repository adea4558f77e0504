//! A loopback address for each test, a name server and an http client. Containers that use them share the host's
//! network namespace.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Bundle, Running, patience, skip, spawn, until};

const PATIENCE: u32 = 30;

/// An address of 127.0.0.0/8 that no other test has, so that ports need not be looked for.
pub fn own_address() -> Ipv4Addr {
    static N: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let n = u8::try_from(N.fetch_add(1, Ordering::Relaxed)).expect("fewer than 255 addresses");
    Ipv4Addr::new(127, 64 + high % 128, low, n)
}

/// Answers A queries from a table, and all else with NXDOMAIN, until the test's process ends.
pub fn name_server(table: Vec<(&'static str, Ipv4Addr)>) -> Ipv4Addr {
    let address = own_address();
    let socket = UdpSocket::bind((address, 53)).expect("bind port 53 of an own loopback address");
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let _ = socket.send_to(&answer(&query[..length], &table), client);
        }
    });
    address
}

/// RFC 1035, 4.1: the question is repeated, an answer points back at its name.
fn answer(query: &[u8], table: &[(&str, Ipv4Addr)]) -> Vec<u8> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    let (name, question) = (labels.join("."), &query[12..at + 5]);
    let known = table.iter().find(|(known, _)| *known == name);
    let address = known.filter(|_| question[question.len() - 4..] == [0, 1, 0, 1]);
    let mut reply = query[..2].to_vec();
    reply.extend([
        0x81,
        if known.is_some() { 0x80 } else { 0x83 },
        0,
        1,
        0,
        u8::from(address.is_some()),
        0,
        0,
        0,
        0,
    ]);
    reply.extend(question);
    if let Some((_, address)) = address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}

pub fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, patience(PATIENCE))?;
    stream.set_read_timeout(Some(patience(PATIENCE)))?;
    Ok(stream)
}

/// A connection on which this was sent.
pub fn sent(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = dial(address).expect("connect");
    stream.write_all(text.as_bytes()).expect("send");
    stream
}

/// One HTTP/1.1 response: status and body.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// On an open connection, which stays open.
pub fn ask(stream: &mut TcpStream, request: &str) -> Reply {
    stream.write_all(request.as_bytes()).expect("send a request");
    reply(stream).expect("a response")
}

/// `None` when the peer ended the connection instead.
pub fn reply(stream: &mut TcpStream) -> Option<Reply> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) => return None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            // socket(7): with a time-out a call that was interrupted, be it by a stop, is not restarted.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    let head = String::from_utf8(head).expect("a head of text");
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let body = match field("content-length") {
        // RFC 9110, 6.4.1: these have none.
        None if [204, 304].contains(&status) => Vec::new(),
        Some(length) => exactly(stream, length.parse().expect("a length")),
        None => chunks(stream),
    };
    Some(Reply { status, body: String::from_utf8(body).expect("a body of text"), head })
}

fn exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("the body");
    bytes
}

fn chunks(stream: &mut TcpStream) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line.push(char::from(exactly(stream, 1)[0]));
        }
        let length = usize::from_str_radix(line.trim(), 16).expect("a chunk's length");
        body.extend(exactly(stream, length));
        exactly(stream, 2);
        if length == 0 {
            return body;
        }
    }
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    let mut stream = dial(address).expect("connect");
    ask(&mut stream, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"))
}

pub fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), port)
}

/// Debian's own TLS server, with a certificate for tls.test that it signed itself.
pub struct TlsServer {
    pub address: SocketAddr,
    dir: tempfile::TempDir,
    _server: Running,
}

impl TlsServer {
    /// `answers` is s_server's word for what it does. `None`, said aloud, where there is no openssl.
    pub fn up(answers: &str) -> Option<TlsServer> {
        let dir = tempfile::tempdir().expect("a directory for the certificate");
        let openssl = |words: &str| {
            let mut command = Command::new("openssl");
            command.args(words.split_whitespace()).current_dir(dir.path());
            command
        };
        // Without the extensions of Debian's openssl.cnf, which make an authority of it.
        std::fs::write(dir.path().join("config"), "[req]\ndistinguished_name = dn\n[dn]\n").expect("write");
        let made = openssl(
            "req -x509 -config config -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=tls.test \
            -addext subjectAltName=DNS:tls.test -keyout key -out cert",
        )
        .output();
        if !made.is_ok_and(|made| made.status.success()) {
            skip("openssl cannot make a certificate");
            return None;
        }
        let address = at(own_address(), 4433);
        let serve = format!("s_server -quiet {answers} -key key -cert cert -accept {address}");
        let server = spawn(&mut openssl(&serve));
        until("the TLS server listens", || TcpStream::connect(address).is_ok());
        Some(TlsServer { address, dir, _server: server })
    }

    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert")
    }

    /// The container knows the server by two names, one of which its certificate has, and trusts it or does not.
    pub fn known_to(&self, bundle: &Bundle, trusted: bool) {
        let etc = bundle.rootfs().join("etc");
        let hosts = format!("{} tls.test other.test\n", self.address.ip());
        std::fs::write(etc.join("hosts"), hosts).expect("hosts");
        if trusted {
            std::fs::create_dir_all(etc.join("ssl/certs")).expect("mkdir");
            std::fs::copy(self.certificate(), etc.join("ssl/certs/ca-certificates.crt")).expect("copy");
        }
    }
}

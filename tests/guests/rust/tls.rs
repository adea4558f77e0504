//! The TLS guest: `ADDRESS NAME LINE` connects, makes sure of the peer's name and prints its answer to the line.

#[path = "../tls.rs"]
mod bindings;

use bindings::wasi::io::streams::{InputStream, OutputStream, StreamError};
use bindings::wasi::sockets::network::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use bindings::wasi::sockets::{instance_network::instance_network, tcp_create_socket::create_tcp_socket};
use bindings::wasi::tls::types::{ClientConnection, ClientHandshake};

struct Tls;
bindings::export!(Tls with_types_in bindings);

impl bindings::exports::wasi::cli::run::Guest for Tls {
    fn run() -> Result<(), ()> {
        let args: Vec<String> = std::env::args().collect();
        match talk(args[1].parse().unwrap(), &args[2], &args[3]) {
            Ok(answer) => println!("answer [{answer}]"),
            Err(error) => println!("failed: {error}"),
        }
        Ok(())
    }
}

fn talk(address: std::net::SocketAddrV4, name: &str, line: &str) -> Result<String, String> {
    let socket = create_tcp_socket(IpAddressFamily::Ipv4).map_err(|error| format!("{error:?}"))?;
    let ip = address.ip().octets().into();
    let remote = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: address.port(), address: ip });
    socket.start_connect(&instance_network(), remote).map_err(|error| format!("{error:?}"))?;
    socket.subscribe().block();
    let (input, output) = socket.finish_connect().map_err(|error| format!("{error:?}"))?;
    let (_connection, input, output) = secured(name, input, output)?;
    output.blocking_write_and_flush(format!("{line}\n").as_bytes()).map_err(|error| format!("{error:?}"))?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        match input.blocking_read(1000) {
            Ok(piece) => answer.extend(piece),
            Err(StreamError::Closed) => break,
            Err(error) => return Err(format!("{error:?}")),
        }
    }
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

fn secured(
    name: &str,
    input: InputStream,
    output: OutputStream,
) -> Result<(ClientConnection, InputStream, OutputStream), String> {
    let future = ClientHandshake::finish(ClientHandshake::new(name, input, output));
    future.subscribe().block();
    let done = future.get().expect("it is ready").expect("it is asked once");
    done.map_err(|error| error.to_debug_string())
}

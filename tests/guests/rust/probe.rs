//! The Rust guest, built for wasm32-wasip1 and wasm32-wasip2 from one source.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let step = args.get(1).map(String::as_str).unwrap_or("hello");
    match step {
        "hello" => println!("hello from wasm (rust)"),
        "args" => args.iter().enumerate().for_each(|(i, a)| println!("arg {i} [{a}]")),
        "env" => std::env::vars().for_each(|(k, v)| println!("env [{k}={v}]")),
        "exit" => std::process::exit(args[2].parse().unwrap()),
        "read" => match std::fs::read_to_string(&args[2]) {
            Ok(text) => println!("read {}: [{text}]", args[2]),
            Err(e) => println!("read {}: {:?}", args[2], e.kind()),
        },
        "write" => match std::fs::write(&args[2], &args[3]) {
            Ok(()) => println!("write {}: ok", args[2]),
            Err(e) => println!("write {}: {:?}", args[2], e.kind()),
        },
        "list" => {
            let mut names: Vec<String> = std::fs::read_dir(&args[2])
                .map(|d| d.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
                .unwrap_or_default();
            names.sort();
            println!("list {}: {}", args[2], names.join(" "));
        }
        "cat" => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).unwrap();
            std::io::stdout().write_all(&text).unwrap();
        }
        "clock" => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            println!("realtime {}", now.as_secs());
        }
        "panic" => panic!("asked for"),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "lookup" => match (args[2].as_str(), 0).to_socket_addrs() {
            Ok(found) => found.for_each(|address| println!("lookup {}: {}", args[2], address.ip())),
            Err(error) => println!("lookup {}: failed: {error}", args[2]),
        },
        "connect" => match TcpStream::connect(&args[2]) {
            Ok(mut stream) => {
                stream.write_all(args[3].as_bytes()).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                println!("connect {}: [{answer}]", args[2]);
            }
            Err(error) => println!("connect {}: {:?}", args[2], error.kind()),
        },
        // Echoes what one client sends.
        "listen" => {
            let listener = TcpListener::bind(&args[2]).unwrap();
            println!("listening");
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            stream.write_all(&text).unwrap();
        }
        "send" => {
            let socket = UdpSocket::bind(&args[3]).unwrap();
            match socket.send_to(args[4].as_bytes(), &args[2]) {
                Ok(_) => {
                    let mut answer = [0; 100];
                    let (count, _) = socket.recv_from(&mut answer).unwrap();
                    println!("send {}: [{}]", args[2], String::from_utf8_lossy(&answer[..count]));
                }
                Err(error) => println!("send {}: {:?}", args[2], error.kind()),
            }
        }
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(args[2].parse().unwrap())),
        other => {
            eprintln!("probe: unknown step {other}");
            std::process::exit(2);
        }
    }
}

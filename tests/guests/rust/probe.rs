//! The Rust guest, built for wasm32-wasip1 and wasm32-wasip2 from one source.

use std::io::{Read, Write};

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
        "panic" => panic!("asked for"),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(args[2].parse().unwrap())),
        other => {
            eprintln!("probe: unknown step {other}");
            std::process::exit(2);
        }
    }
}

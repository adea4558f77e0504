//! A `wasi:http/incoming-handler` of 0.2. The path says what to do.

use std::io::{Read, Write};
use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicU32, Ordering};

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};

struct Web;
wasip2::http::proxy::export!(Web);

static REQUESTS: AtomicU32 = AtomicU32::new(0);

impl wasip2::exports::http::incoming_handler::Guest for Web {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let mut words = path.trim_start_matches('/').splitn(2, '/');
        let (step, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let text = match step {
            "" => "hello from wasm\n".to_owned(),
            // Of this instance.
            "count" => format!("{}\n", REQUESTS.fetch_add(1, Ordering::SeqCst) + 1),
            "env" => std::env::var(rest).unwrap_or_else(|error| error.to_string()),
            "file" => std::fs::read_to_string(format!("/{rest}")).unwrap_or_else(|error| format!("{:?}", error.kind())),
            "write" => format!("{:?}", std::fs::write("/written", rest)),
            "host" => format!("{:?} {:?}", request.scheme(), request.authority()),
            "print" => {
                println!("{rest}");
                String::new()
            }
            "trap" => panic!("asked for"),
            "spin" => loop {
                std::hint::spin_loop();
            },
            "sleep" => {
                std::thread::sleep(std::time::Duration::from_millis(rest.parse().unwrap()));
                "slept\n".to_owned()
            }
            "grow" => {
                let many = vec![1u8; rest.parse::<usize>().unwrap() << 20];
                format!("{}\n", many.len())
            }
            "lookup" => match (rest, 0).to_socket_addrs() {
                Ok(found) => found.map(|address| format!("{}\n", address.ip())).collect(),
                Err(error) => format!("{error}\n"),
            },
            "get" => fetch(rest).unwrap_or_else(|error| format!("error: {error:?}\n")),
            "echo" => return echo(request, out),
            "silent" => return,
            _ => return answer(out, 404, b"no such step\n"),
        };
        answer(out, 200, text.as_bytes());
    }
}

fn answer(out: ResponseOutparam, status: u16, text: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).unwrap();
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    let mut stream = body.write().unwrap();
    stream.write_all(text).unwrap();
    drop(stream);
    OutgoingBody::finish(body, None).unwrap();
}

/// Begins to answer before the request has ended.
fn echo(request: IncomingRequest, out: ResponseOutparam) {
    let incoming = request.consume().unwrap();
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    {
        let (from, mut to) = (incoming.stream().unwrap(), body.write().unwrap());
        // The end of the stream is an error of its own.
        while let Ok(piece) = from.blocking_read(16384) {
            if to.write_all(&piece).is_err() {
                break;
            }
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

/// `http:host:port/path`, since a path has no room for two slashes.
fn fetch(what: &str) -> Result<String, ErrorCode> {
    let (scheme, rest) = what.split_once(':').unwrap();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&Method::Get).unwrap();
    request.set_scheme(Some(&if scheme == "https" { Scheme::Https } else { Scheme::Http })).unwrap();
    request.set_authority(Some(authority)).unwrap();
    request.set_path_with_query(Some(&format!("/{path}"))).unwrap();
    let future = outgoing_handler::handle(request, None)?;
    future.subscribe().block();
    let response = future.get().unwrap().unwrap()?;
    let body: IncomingBody = response.consume().unwrap();
    let mut text = format!("{} ", response.status());
    body.stream().unwrap().read_to_string(&mut text).map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
    Ok(text)
}

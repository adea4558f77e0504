//! A component that handles `wasi:http`, served: wasmtime-wasi-http's own handler makes and reuses instances, hyper
//! speaks HTTP/1.1 and HTTP/2 without TLS. The address is bound at create. Threads start only when it runs: until
//! then the process has one, as everything before expects.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use wasmtime::Engine;
use wasmtime_wasi_http::handler::{InstantiationError, ProxyHandler, ProxyPre};
use wasmtime_wasi_http::{Error, WasiBody};

use super::access::AccessLog;
use super::body::Watched;
use super::grants::Serve;
use super::host::{Host, State};
use super::instances::{Instances, Pulse};

/// listen(2) caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// A request's head.
const LONGEST_HEAD: usize = 64 << 10;
const STREAMS_PER_CONNECTION: u32 = 128;
/// How often an HTTP/2 client is asked whether it is still there.
const PING: Duration = Duration::from_secs(60);
/// For file operations, which block; each a thread.
const BLOCKING_THREADS: usize = 16;
/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// 128 + SIGTERM.
const CUT_SHORT: i32 = 143;

pub struct Server {
    listener: OwnedFd,
    /// A pipe, readable once the process was asked to end.
    stop: (OwnedFd, OwnedFd),
    engine: Engine,
    pre: ProxyPre<State>,
    host: Host,
    /// At the same time.
    instances: u32,
    log: Option<AccessLog>,
}

impl Server {
    /// Binds the address, so that one in use fails create.
    pub fn new(
        engine: Engine,
        pre: ProxyPre<State>,
        host: Host,
        instances: u32,
        log: Option<AccessLog>,
    ) -> Result<Server> {
        let address = host.grants.serve.address;
        let listener = listen(address).with_context(|| format!("listen on {address}"))?;
        let stop =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).context("make a pipe")?;
        Ok(Server { listener, stop, engine, pre, host, instances, log })
    }

    pub fn stop(&self) -> RawFd {
        self.stop.1.as_raw_fd()
    }

    pub fn run(self) -> Result<i32> {
        // Not std's available_parallelism, which reads files of the container.
        let may_use = rustix::thread::sched_getaffinity(None).map_or(1, |cpus| u64::from(cpus.count()));
        let threads = may_use.min(self.host.grants.cpus.unwrap_or(u64::MAX)) as usize;
        let mut builder = match threads {
            0 | 1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = builder
            .worker_threads(threads.max(1))
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("runw-http")
            .enable_all()
            .build()
            .context("start the async runtime")?;
        let status = runtime.block_on(self.serve());
        // A guest may sit in a blocking call.
        runtime.shutdown_background();
        status
    }

    async fn serve(self) -> Result<i32> {
        let settings = self.host.grants.serve.clone();
        let listener = TcpListener::from_std(self.listener.into()).context("watch the listening socket")?;
        let (asked, _keep) = self.stop;
        let asked = pipe::Receiver::from_owned_fd(asked).context("watch the pipe")?;
        let (draining, _) = watch::channel(false);
        // Each connection and each instance holds a sender: no message is ever sent.
        let (alive, mut all_gone) = mpsc::channel::<Infallible>(1);
        let pulse = Pulse::start(self.engine.clone()).context("start a thread")?;
        let instances =
            Instances::new(self.engine, self.pre, self.host, pulse, self.instances, alive.clone());
        let web = Arc::new(Web {
            requests: Semaphore::new(settings.requests),
            handler: ProxyHandler::new(instances),
            log: self.log,
            settings,
        });
        let connections = Arc::new(Semaphore::new(web.settings.connections));
        loop {
            let (permit, stream) = tokio::select! {
                biased;
                _ = asked.readable() => break,
                accepted = accept(&listener, &connections) => accepted,
            };
            let (web, draining, alive) = (web.clone(), draining.subscribe(), alive.clone());
            tokio::spawn(async move {
                web.connection(stream, draining).await;
                drop((permit, alive));
            });
        }
        let grace = web.settings.grace;
        drop((listener, web, alive));
        draining.send_replace(true);
        if timeout(grace, all_gone.recv()).await.is_ok() {
            return Ok(0);
        }
        say(&format!("requests were still being handled {} s after SIGTERM", grace.as_secs()));
        Ok(CUT_SHORT)
    }
}

fn listen(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A restarted container must not wait for the last one's connections (TIME_WAIT).
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> (OwnedSemaphorePermit, TcpStream) {
    loop {
        let permit = connections.clone().acquire_owned().await;
        match (permit, listener.accept().await) {
            (Ok(permit), Ok((stream, _))) => return (permit, stream),
            // accept(2): the client is gone, or descriptors or memory are short, which will pass.
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

struct Web {
    handler: ProxyHandler<Instances>,
    requests: Semaphore,
    log: Option<AccessLog>,
    settings: Serve,
}

impl Web {
    async fn connection(self: Arc<Self>, stream: TcpStream, mut draining: watch::Receiver<bool>) {
        // Both best effort. Guests write small pieces that should not wait for each other; and a client that
        // takes nothing any more (tcp(7), TCP_USER_TIMEOUT, in milliseconds) must not keep its place for ever.
        let _ = stream.set_nodelay(true);
        let pause = u32::try_from(self.settings.read.as_millis()).unwrap_or(u32::MAX);
        let _ = sockopt::set_tcp_user_timeout(stream.as_fd(), pause);
        let begins = tokio::select! {
            begins = timeout(self.settings.read, first_words(&stream)) => begins.unwrap_or(false),
            () = begun(&mut draining) => false,
        };
        if !begins {
            return;
        }
        let builder = self.protocols();
        let client = self.log.as_ref().and_then(|_| stream.peer_addr().ok());
        let service = service_fn(|request| {
            let web = self.clone();
            async move {
                let line = web.log.as_ref().map(|log| log.begin(client, &request));
                let response = web.handle(request).await.unwrap_or_else(short);
                Ok::<_, Infallible>(match line {
                    Some(line) => line.watch(response),
                    None => response,
                })
            }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            // What goes wrong between hyper and a client is the client's to know.
            _ = connection.as_mut() => {}
            () = begun(&mut draining) => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }

    fn protocols(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.settings.read)
            .max_buf_size(LONGEST_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(self.settings.read)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .max_header_list_size(LONGEST_HEAD as u32);
        builder
    }

    async fn handle(&self, request: Request<Incoming>) -> Result<Response<WasiBody>, StatusCode> {
        unserved(&request)?;
        let Serve { read, body: limit, .. } = self.settings;
        if limit.is_some_and(|limit| announced(&request).is_some_and(|length| length > limit)) {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let watch = |body| Watched::new(body, read, limit, || Error::ConnectionReadTimeout).boxed_unsync();
        let _place = self.requests.acquire().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        let begun = Instant::now();
        self.handler.handle((), request.map(watch)).await.map_err(|error| {
            let late = self.settings.handle.is_some_and(|limit| begun.elapsed() >= limit);
            if late { StatusCode::GATEWAY_TIMEOUT } else { status(&error) }
        })
    }
}

/// What no guest could answer.
fn unserved<B>(request: &Request<B>) -> Result<(), StatusCode> {
    let (uri, headers) = (request.uri(), request.headers());
    let websocket =
        headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if request.method() == Method::CONNECT || websocket {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    // RFC 9112, 3.2: a host, which the guest is told, and a target that is not only one.
    let nameless = uri.authority().is_none() && !headers.contains_key(header::HOST);
    if nameless || uri.path().is_empty() { Err(StatusCode::BAD_REQUEST) } else { Ok(()) }
}

/// Waits until the server drains.
async fn begun(draining: &mut watch::Receiver<bool>) {
    // An error: the sender is gone, which is the same.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// Waits until it is clear which protocol a client speaks: hyper's own look for the preface has no time limit.
/// False when the client is gone.
async fn first_words(stream: &TcpStream) -> bool {
    let mut start = [0; PREFACE.len()];
    loop {
        match stream.peek(&mut start).await {
            Ok(0) | Err(_) => return false,
            Ok(count) if count < PREFACE.len() && PREFACE.starts_with(&start[..count]) => {
                // Peeking leaves the socket readable, so there is nothing to wait for but time.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(_) => return true,
        }
    }
}

fn announced(request: &Request<Incoming>) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a client is told when there is no answer of the guest's. A trap is told on stderr by its instance.
fn status(error: &wasmtime::Error) -> StatusCode {
    match error.downcast_ref::<InstantiationError<()>>() {
        Some(error) => {
            say(&format!("a request could not be handled: {}", error.error));
            StatusCode::SERVICE_UNAVAILABLE
        }
        None => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn short(status: StatusCode) -> Response<WasiBody> {
    let body: WasiBody = Full::from(format!("{status}\n")).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

/// On the container's stderr, where its logs are.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

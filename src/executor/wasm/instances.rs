//! The instances behind a server: how many there are, how long each lives, and the pulse that lets busy ones take
//! turns. As `wasmtime serve` does: a fresh one for each request of 0.2, reuse for 0.3.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Result, Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};

use super::host::{Host, State};
use super::serve::say;
use super::world::{NO_FUEL, is_out_of_fuel};

/// `wasmtime serve`'s defaults for 0.3.
const REUSE: usize = 128;
const AT_ONCE: usize = 16;
/// How long an instance that may be used again waits for a request.
const IDLE: Duration = Duration::from_secs(1);
/// A busy request gives way to others this often.
const TICK: Duration = Duration::from_millis(10);

pub struct Instances {
    engine: Engine,
    pre: ProxyPre<State>,
    host: Host,
    pulse: Arc<Pulse>,
    places: Arc<Semaphore>,
    alive: mpsc::Sender<Infallible>,
}

impl Instances {
    pub fn new(
        engine: Engine,
        pre: ProxyPre<State>,
        host: Host,
        pulse: Arc<Pulse>,
        at_most: u32,
        alive: mpsc::Sender<Infallible>,
    ) -> Instances {
        let places = Arc::new(Semaphore::new(at_most as usize));
        Instances { engine, pre, host, pulse, places, alive }
    }
}

impl HandlerState for Instances {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Life;

    async fn instantiate(&self) -> Result<Instance<State, Expiration, Life>> {
        let place = self.places.clone().acquire_owned().await?;
        let busy = Pulse::beat(&self.pulse);
        let mut store =
            self.host.store(&self.engine).map_err(|error| wasmtime::Error::msg(format!("{error:#}")))?;
        let proxy = self.pre.instantiate_async(&mut store).await?;
        let fuel = self.host.grants.limits.fuel;
        let (reuse, at_once) = match self.pre {
            ProxyPre::P2(_) => (1, 1),
            // What is left of it is the store's, so requests with a limit take turns.
            ProxyPre::P3(_) if fuel.is_some() => (REUSE, 1),
            ProxyPre::P3(_) => (REUSE, AT_ONCE),
        };
        let serve = &self.host.grants.serve;
        let limit = serve.handle;
        let life = Life {
            reuse: serve.reuse.unwrap_or(reuse),
            at_once,
            limit,
            fuel,
            _held: (place, busy, self.alive.clone()),
        };
        let expiration = Expiration { limit, timer: None };
        Ok(Instance { store, proxy, view: State::http, expiration, state: life })
    }
}

/// One instance's.
pub struct Life {
    reuse: usize,
    at_once: usize,
    limit: Option<Duration>,
    fuel: Option<u64>,
    _held: (OwnedSemaphorePermit, Beat, mpsc::Sender<Infallible>),
}

impl WorkerState for Life {
    type StoreData = State;
    type RequestData = ();

    fn should_accept_request(&self, now: usize, so_far: usize) -> ShouldAccept {
        match () {
            () if so_far >= self.reuse => ShouldAccept::Never,
            () if now >= self.at_once => ShouldAccept::No,
            () => ShouldAccept::Yes,
        }
    }

    fn on_request_start(
        &self,
        mut store: StoreContextMut<'_, State>,
        (): (),
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        if let Some(fuel) = self.fuel {
            // It fails only where the engine does not count.
            let _ = store.set_fuel(fuel);
        }
        match self.limit {
            Some(limit) => Box::pin(tokio::time::sleep(limit)),
            None => Box::pin(std::future::pending()),
        }
    }

    fn drop(&self, store: Store<State>, result: Result<()>) {
        match result {
            Err(error) if is_out_of_fuel(&error) => say(NO_FUEL),
            Err(error) => say(&format!("Error: {error:?}")),
            Ok(()) => {}
        }
        drop(store);
    }
}

/// The future of `on_request_start` may not be polled while a guest is busy; this one always is.
pub struct Expiration {
    limit: Option<Duration>,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        status: WorkerStatus,
        since: Instant,
    ) -> Poll<()> {
        let allowed = if status == WorkerStatus::Idle { Some(IDLE) } else { self.limit };
        let Some(allowed) = allowed else { return Poll::Pending };
        let deadline = tokio::time::Instant::from_std(since + allowed);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(context)
    }
}

/// Moves the engine's epoch on while there is an instance, and sleeps otherwise. A thread, since all those of the
/// runtime may be busy in guests.
pub struct Pulse {
    beats: Arc<AtomicUsize>,
    thread: Thread,
}

/// While it lives the pulse goes.
pub struct Beat(Arc<Pulse>);

impl Pulse {
    pub fn start(engine: Engine) -> io::Result<Arc<Pulse>> {
        let beats = Arc::new(AtomicUsize::new(0));
        let seen = beats.clone();
        let tick = move || loop {
            if seen.load(SeqCst) == 0 {
                std::thread::park();
            } else {
                std::thread::sleep(TICK);
                engine.increment_epoch();
            }
        };
        let thread = std::thread::Builder::new().name("runw-pulse".to_owned()).spawn(tick)?;
        Ok(Arc::new(Pulse { beats, thread: thread.thread().clone() }))
    }

    fn beat(this: &Arc<Pulse>) -> Beat {
        if this.beats.fetch_add(1, SeqCst) == 0 {
            this.thread.unpark();
        }
        Beat(this.clone())
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.0.beats.fetch_sub(1, SeqCst);
    }
}

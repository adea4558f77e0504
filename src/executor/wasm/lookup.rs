//! `wasi:sockets/ip-name-lookup` of 0.2 and 0.3 over `names`, in the place of wasmtime-wasi's, which calls
//! getaddrinfo.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::Result;
use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as p3, types};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};

use super::host::State;
use super::names::{Failure, Names};

/// The name under which wasmtime-wasi defines it, so that ours takes its place. A test opens a trap for the other.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";

/// The stream of 0.2.
enum Answers {
    Awaited(AbortOnDropJoinHandle<Result<Vec<IpAddr>, Failure>>),
    Here(Result<std::vec::IntoIter<IpAddr>, Failure>),
}

impl Answers {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Answers::Awaited(task) = self {
            let Poll::Ready(answer) = Pin::new(task).poll(context) else { return Poll::Pending };
            *self = Answers::Here(answer.map(Vec::into_iter));
        }
        Poll::Ready(())
    }

    fn next(&mut self) -> Result<Option<IpAddr>, ErrorCode> {
        match self {
            Answers::Awaited(_) => Err(ErrorCode::WouldBlock),
            Answers::Here(Ok(addresses)) => Ok(addresses.next()),
            Answers::Here(Err(failure)) => Err(code(*failure)),
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Answers {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }
}

fn code(failure: Failure) -> ErrorCode {
    match failure {
        Failure::Denied => ErrorCode::AccessDenied,
        Failure::Invalid => ErrorCode::InvalidArgument,
        Failure::Unknown => ErrorCode::NameUnresolvable,
        Failure::Temporary => ErrorCode::TemporaryResolverFailure,
    }
}

/// For 0.2; the linker must allow shadowing.
pub fn shadow_p2(linker: &mut Linker<State>) -> Result<()> {
    let mut instance = linker.instance(INTERFACE)?;
    instance.resource("resolve-address-stream", ResourceType::host::<Answers>(), |mut store, index| {
        store.data_mut().table.delete(Resource::<Answers>::new_own(index))?;
        Ok(())
    })?;
    instance.func_wrap("resolve-addresses", |mut store, (network, name): (Resource<Network>, String)| {
        let state = store.data_mut();
        // The capability to ask at all.
        state.table.get(&network)?;
        let names = state.names.clone();
        let task = spawn(async move { names.ask(&name).await });
        Ok((Ok::<_, ErrorCode>(state.table.push(Answers::Awaited(task))?),))
    })?;
    instance.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store, (stream,): (Resource<Answers>,)| {
            let answers = store.data_mut().table.get_mut(&stream)?;
            let _ = answers.poll(&mut Context::from_waker(Waker::noop()));
            Ok((answers.next().map(|address| address.map(IpAddress::from)),))
        },
    )?;
    instance.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store, (stream,): (Resource<Answers>,)| -> Result<(Resource<DynPollable>,)> {
            Ok((subscribe(&mut store.data_mut().table, stream)?,))
        },
    )
}

/// For 0.3; the linker must allow shadowing.
pub fn shadow_p3(linker: &mut Linker<State>) -> Result<()> {
    p3::add_to_linker::<State, Lookup>(linker, |state| View(state.names.clone()))
}

struct Lookup;
struct View(Arc<Names>);

impl HasData for Lookup {
    type Data<'a> = View;
}

impl p3::Host for View {}

impl<T> p3::HostWithStore<T> for Lookup {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> Result<Result<Vec<types::IpAddress>, p3::ErrorCode>> {
        let names = store.with(|mut access| access.get().0);
        Ok(match names.ask(&name).await {
            Ok(addresses) => Ok(addresses.into_iter().map(types::IpAddress::from).collect()),
            Err(Failure::Denied) => Err(p3::ErrorCode::AccessDenied),
            Err(Failure::Invalid) => Err(p3::ErrorCode::InvalidArgument),
            Err(Failure::Unknown) => Err(p3::ErrorCode::NameUnresolvable),
            Err(Failure::Temporary) => Err(p3::ErrorCode::TemporaryResolverFailure),
        })
    }
}

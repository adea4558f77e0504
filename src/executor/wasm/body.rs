//! A body that comes over the network, watched: how much of it may come, and how long the next piece may take.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::Error;

pub struct Watched {
    body: Incoming,
    pause: Duration,
    left: Option<u64>,
    too_slow: fn() -> Error,
    /// Made when it is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub fn new(body: Incoming, pause: Duration, limit: Option<u64>, too_slow: fn() -> Error) -> Watched {
        Watched { body, pause, left: limit, too_slow, timer: None }
    }

    fn waited_too_long(&mut self, context: &mut Context<'_>) -> bool {
        let pause = self.pause;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
        timer.as_mut().poll(context).is_ready()
    }

    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), Error> {
        let (Some(left), Some(data)) = (self.left.as_mut(), frame.data_ref()) else { return Ok(()) };
        *left = left.checked_sub(data.len() as u64).ok_or(Error::HttpRequestBodySize(None))?;
        Ok(())
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let next = Instant::now() + self.pause;
                if let Some(timer) = &mut self.timer {
                    timer.as_mut().reset(next);
                }
                Poll::Ready(Some(self.count(&frame).map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.waited_too_long(context) => Poll::Ready(Some(Err((self.too_slow)()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

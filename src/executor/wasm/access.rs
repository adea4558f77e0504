//! A line for each request, where an annotation asks for it: the common log format, and after it the microseconds
//! from the request's head to the end of the response.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use rustix::fs::{Mode, OFlags};
use wasmtime_wasi_http::{Error, WasiBody};

use super::{files, grants};
use crate::log::timestamp;

pub struct AccessLog(Arc<File>);

impl AccessLog {
    pub fn open(to: &grants::AccessLog, tree: &OwnedFd) -> Result<AccessLog> {
        let file = match to {
            grants::AccessLog::Stderr => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)
                .context("duplicate stderr")?
                .into(),
            grants::AccessLog::File(path) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
                files::open(tree, path, flags, Mode::from_raw_mode(0o640))
                    .with_context(|| format!("annotation dev.runw.http.access-log: open {path}"))?
            }
        };
        Ok(AccessLog(Arc::new(file)))
    }

    pub fn begin<B>(&self, client: Option<SocketAddr>, request: &Request<B>) -> Line {
        let client = client.map_or_else(|| "-".to_owned(), |client| client.ip().to_canonical().to_string());
        let (method, version) = (request.method(), request.version());
        let target = request.uri().to_string().replace('\\', "\\\\").replace('"', "\\\"");
        let head = format!("{client} - - [{}] \"{method} {target} {version:?}\"", date(SystemTime::now()));
        Line { file: self.0.clone(), head, begun: Instant::now(), status: 0, sent: 0 }
    }
}

/// Of one request, written when its response has ended one way or another.
pub struct Line {
    file: Arc<File>,
    head: String,
    begun: Instant,
    status: u16,
    sent: u64,
}

impl Line {
    pub fn watch(mut self, response: Response<WasiBody>) -> Response<WasiBody> {
        self.status = response.status().as_u16();
        response.map(|body| Logged { body, line: self }.boxed_unsync())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Line { head, status, sent, begun, .. } = self;
        // One write, so that lines do not mix; a log that is full is no reason to fail a request.
        let line = format!("{head} {status} {sent} {}\n", begun.elapsed().as_micros());
        let _ = (&*self.file).write_all(line.as_bytes());
    }
}

struct Logged {
    body: WasiBody,
    line: Line,
}

impl Body for Logged {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(task);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.line.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// `25/Nov/2026:16:31:28 +0000`.
fn date(time: SystemTime) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = timestamp(time, false);
    let month = text[5..7].parse::<usize>().ok().and_then(|month| MONTHS.get(month - 1)).unwrap_or(&"-");
    format!("{}/{month}/{}:{} +0000", &text[8..10], &text[..4], &text[11..19])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn dates_are_apache_s() {
        let time = UNIX_EPOCH + Duration::from_secs(1_795_624_288);
        assert_eq!(date(time), "25/Nov/2026:16:31:28 +0000");
        assert_eq!(date(UNIX_EPOCH), "01/Jan/1970:00:00:00 +0000");
    }
}

//! The socket between the parent and the process it makes: small tagged packets, some with a descriptor.
//! Either side learns of the other's death by end of file; nothing here waits on anything else.

use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Larger than any message: error texts are cut to fit, `Prepared::note` is refused above it.
const PACKET: usize = 16 * 1024;

/// More than a machine has hierarchies of cgroup v1 (`Made`).
const FDS: usize = 64;

/// What is said. The comment names who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// Parent: the cgroup is made, and the process may enter it by the descriptors that come along (v1's `tasks`).
    Made = b'C',
    /// Parent: id maps, limits and the like are in place.
    Go = b'G',
    /// Intermediate: the pid of the process it made (4 bytes, native order).
    Pid = b'P',
    /// Child: it has unshared its time namespace; parent answers `Go` when the offsets are written.
    TimeOffsets = b'T',
    /// Child: a socket of its new network namespace; parent brings `lo` up by it before it heeds what comes next.
    Network = b'N',
    /// Child: mounts are made, prestart and createRuntime hooks are due; parent answers `Go`.
    Hooks = b'H',
    /// Child, in a user namespace: it wants its root and devices; parent answers with `Source`s, then `Go`.
    Sources = b'O',
    /// Child: it wants the source of one bind (its index, native order); parent answers with a `Source`.
    Bind = b'B',
    /// Parent: one source's descriptor; for `Sources` the body says which.
    Source = b'U',
    /// Parent: the mount of the container's cgroups, if the process need not make it. It comes unasked, some time after `Go`.
    Cgroups = b'V',
    /// Child: its rlimits are due; parent answers `Go`.
    Limits = b'M',
    /// Child: argv[0] was found to be wasm (with the file's descriptor); parent answers `Found`.
    Look = b'L',
    /// Parent: the artifact's descriptor and the executor's note.
    Found = b'F',
    /// Child: the seccomp notify descriptor; parent answers `Go`.
    SeccompListener = b'S',
    /// The process that becomes CRIU: its socket, and the numbers of its directories (4 bytes each, native order).
    Criu = b'K',
    /// Child: ready for `start`; parent answers `Go` once state.json says `created`.
    Ready = b'R',
    /// Either: the error, as text, and the end of the talk.
    Error = b'E',
}

impl Tag {
    fn from_byte(byte: u8) -> Option<Tag> {
        const ALL: [Tag; 17] = [
            Tag::Made,
            Tag::Go,
            Tag::Pid,
            Tag::TimeOffsets,
            Tag::Network,
            Tag::Hooks,
            Tag::Sources,
            Tag::Bind,
            Tag::Source,
            Tag::Cgroups,
            Tag::Limits,
            Tag::Look,
            Tag::Found,
            Tag::SeccompListener,
            Tag::Criu,
            Tag::Ready,
            Tag::Error,
        ];
        ALL.into_iter().find(|tag| *tag as u8 == byte)
    }
}

/// One received packet.
#[derive(Debug)]
pub struct Message {
    pub tag: Tag,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The only descriptor of most messages.
    pub fn fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }

    /// What an `Error` says.
    pub fn error(&self) -> anyhow::Error {
        anyhow!("{}", String::from_utf8_lossy(&self.body))
    }
}

/// One end of the talk.
pub struct Channel {
    socket: OwnedFd,
    /// What `Cgroups` brought while an answer was waited for.
    cgroups: Cell<Option<Message>>,
}

impl Channel {
    pub fn pair() -> Result<(Channel, Channel)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("make the socket to the container's first process")?;
        let end = |socket| Channel { socket, cgroups: Cell::default() };
        Ok((end(ours), end(theirs)))
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub fn send(&self, tag: Tag, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if body.len() >= PACKET || fds.len() > FDS {
            bail!("message of {} bytes and {} descriptors is too long", body.len(), fds.len());
        }
        if fds.is_empty() {
            // write(2) alone: under a seccomp profile it is the call least likely to be denied, and the one that is
            // never notified. A peer that is gone kills us by SIGPIPE or is an error, and both are the end.
            let packet: Vec<u8> = [&[tag as u8], body].concat();
            return self.sent(rustix::io::write(&self.socket, &packet));
        }
        let tag = [tag as u8];
        let parts = [IoSlice::new(&tag), IoSlice::new(body)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(fds));
        self.sent(sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL))
    }

    fn sent(&self, result: rustix::io::Result<usize>) -> Result<()> {
        match result {
            Ok(_) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(self
                .last_words()
                .unwrap_or_else(|| anyhow!("the other side of the sync socket went away"))),
            Err(error) => Err(error).context("write to the sync socket"),
        }
    }

    /// The error that the peer has sent already, if it has: nearer to the cause than what its end made of a step of
    /// ours.
    pub fn last_words(&self) -> Option<anyhow::Error> {
        // A peer that is gone is a message, too: the end of file.
        while self.has_message().unwrap_or(false) {
            match self.receive() {
                Ok(Some(message)) if message.tag == Tag::Error => return Some(message.error()),
                Ok(Some(_)) => {}
                _ => break,
            }
        }
        None
    }

    /// The error's whole chain in one line, cut to the packet. A peer that is gone needs no telling.
    pub fn send_error(&self, error: &anyhow::Error) {
        let text = crate::error::line(error);
        let end = (0..=text.len().min(PACKET - 1)).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        let _ = self.send(Tag::Error, &text.as_bytes()[..end], &[]);
    }

    /// `expect`, for a message without a descriptor and with read(2) alone, as a seccomp profile may demand.
    pub fn expect_plain(&self, tag: Tag) -> Result<()> {
        let mut bytes = [0; 512];
        let count = loop {
            match rustix::io::read(&self.socket, &mut bytes) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.context("read from the sync socket")?,
            }
        };
        match bytes.first() {
            Some(byte) if count > 0 && *byte == tag as u8 => Ok(()),
            _ => bail!("the other side went away while waiting for {tag:?}"),
        }
    }

    /// `None` at end of file.
    pub fn receive(&self) -> Result<Option<Message>> {
        loop {
            match self.next()? {
                Some(message) if message.tag == Tag::Cgroups => self.cgroups.set(Some(message)),
                other => return Ok(other),
            }
        }
    }

    /// What `Cgroups` brings, now or before. Nothing else is waited for at the time.
    pub fn cgroups(&self) -> Result<Option<OwnedFd>> {
        match self.cgroups.take().map_or_else(|| self.next(), |message| Ok(Some(message)))? {
            Some(mut message) if message.tag == Tag::Cgroups => Ok(message.fd()),
            other => Err(unexpected(other, Tag::Cgroups)),
        }
    }

    fn next(&self) -> Result<Option<Message>> {
        // Of the kernel's zeroes: only what is received takes memory.
        static BUFFER: Mutex<[u8; PACKET]> = Mutex::new([0; PACKET]);
        let mut bytes = BUFFER.lock().unwrap_or_else(PoisonError::into_inner);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut *bytes)];
            match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                // ECONNRESET comes once, before what is queued: the peer went without reading all that we sent.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                other => break other.context("read from the sync socket")?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            bail!("message on the sync socket was cut off");
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let tag = Tag::from_byte(bytes[0]).ok_or_else(|| anyhow!("unknown message {:#x}", bytes[0]))?;
        Ok(Some(Message { tag, body: bytes[1..received.bytes].to_vec(), fds }))
    }

    /// Whether `receive` would return at once.
    pub fn has_message(&self) -> Result<bool> {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)));
        Ok(ready.context("poll the sync socket")? > 0)
    }

    /// The answer that must come next. The peer's own error, or its death, is our error.
    pub fn expect(&self, tag: Tag) -> Result<Message> {
        match self.receive()? {
            Some(message) if message.tag == tag => Ok(message),
            other => Err(unexpected(other, tag)),
        }
    }
}

fn unexpected(message: Option<Message>, tag: Tag) -> anyhow::Error {
    match message {
        Some(message) if message.tag == Tag::Error => message.error(),
        Some(message) => anyhow!("unexpected message {:?} while waiting for {tag:?}", message.tag),
        None => anyhow!("the other side went away while waiting for {tag:?}"),
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_descriptor() {
        let (a, b) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send(Tag::Look, b"note", &[write.as_fd()]).unwrap();
        drop(write);
        let mut message = b.expect(Tag::Look).unwrap();
        assert_eq!(message.body, b"note");
        rustix::io::write(message.fd().unwrap(), b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(read, &mut byte).unwrap(), 1);
    }

    #[test]
    fn several_descriptors_come_in_their_order_and_too_many_are_refused() {
        let (a, b) = Channel::pair().unwrap();
        let pipes: Vec<_> = (0..FDS).map(|_| rustix::pipe::pipe().unwrap()).collect();
        let fds: Vec<_> = pipes.iter().map(|(_, write)| write.as_fd()).collect();
        a.send(Tag::Made, &[], &fds).unwrap();
        let message = b.expect(Tag::Made).unwrap();
        assert_eq!(message.fds.len(), FDS);
        for ((read, _), write) in pipes.iter().zip(&message.fds) {
            rustix::io::write(write, b"x").unwrap();
            assert_eq!(rustix::io::read(read, &mut [0; 2]).unwrap(), 1);
        }
        let more: Vec<_> = fds.iter().chain(&fds[..1]).copied().collect();
        assert!(a.send(Tag::Made, &[], &more).unwrap_err().to_string().contains("65 descriptors"));
    }

    #[test]
    fn what_comes_unasked_is_no_answer_and_is_kept() {
        let (a, b) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        for kept in [true, false] {
            a.send(Tag::Cgroups, &[], &[write.as_fd()]).unwrap();
            if kept {
                a.send(Tag::Go, &[], &[]).unwrap();
                b.expect(Tag::Go).unwrap();
            }
            rustix::io::write(b.cgroups().unwrap().unwrap(), b"x").unwrap();
            assert_eq!(rustix::io::read(&read, &mut [0; 2]).unwrap(), 1);
        }
        a.send(Tag::Cgroups, &[], &[]).unwrap();
        assert!(b.cgroups().unwrap().is_none());
        a.send_error(&anyhow!("why"));
        assert_eq!(b.cgroups().unwrap_err().to_string(), "why");
    }

    #[test]
    fn an_error_reaches_the_other_side_as_one_line_and_is_cut_to_fit() {
        let (a, b) = Channel::pair().unwrap();
        a.send_error(&anyhow!("no such thing").context("do it"));
        assert_eq!(b.expect(Tag::Go).unwrap_err().to_string(), "do it: no such thing");
        a.send_error(&anyhow!("é".repeat(PACKET)));
        let text = b.expect(Tag::Go).unwrap_err().to_string();
        assert!(text.len() < PACKET && text.chars().all(|c| c == 'é'));
    }

    #[test]
    fn last_words_are_heard_though_the_peer_is_gone() {
        // It read nothing of what we sent, and we write to it once more.
        for written in [0, 1] {
            let (a, b) = Channel::pair().unwrap();
            for _ in 0..written {
                a.send(Tag::Go, &[], &[]).unwrap();
            }
            b.send(Tag::Hooks, &[], &[]).unwrap();
            b.send_error(&anyhow!("why"));
            drop(b);
            assert_eq!(a.send(Tag::Go, &[], &[]).unwrap_err().to_string(), "why");
        }
        let (a, b) = Channel::pair().unwrap();
        a.send(Tag::Go, &[], &[]).unwrap();
        b.send_error(&anyhow!("why"));
        drop(b);
        assert_eq!(a.expect(Tag::Go).unwrap_err().to_string(), "why");
    }

    #[test]
    fn death_of_the_peer_is_an_error_for_who_waits() {
        let (a, b) = Channel::pair().unwrap();
        drop(a);
        assert!(b.expect(Tag::Go).unwrap_err().to_string().contains("went away"));
    }
}

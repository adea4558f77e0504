//! Just enough of rtnetlink(7) to move an interface: one request, its answers. Messages are handed on as the kernel
//! wrote them, so that attributes nobody here knows are not lost on the way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// struct nlmsghdr.
const HEADER: usize = 16;
/// The kernel fills no more in one go (netlink(7), and its NLMSG_GOODSIZE of at most 32 KiB).
const BUFFER: usize = 64 << 10;

/// A socket in the network namespace that its maker is in, for as long as it lives.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> Result<Netlink> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .context("open a netlink socket")?;
        Ok(Netlink { socket, sequence: 0 })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Changes something; `flags` beside those that every request has.
    pub fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        self.talk(kind, flags | NLM_F_ACK, body).map(drop)
    }

    /// The bodies of all that there is of a kind.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.talk(kind, NLM_F_DUMP, body)
    }

    fn talk(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let mut packet = Vec::with_capacity(HEADER + body.len());
        packet.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        packet.extend(kind.to_ne_bytes());
        packet.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        packet.extend(self.sequence.to_ne_bytes());
        packet.extend(0u32.to_ne_bytes());
        packet.extend(body);
        send(&self.socket, &packet, SendFlags::empty()).context("write to the netlink socket")?;
        let mut bodies = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let (_, length) = recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC)
                .context("read from the netlink socket")?;
            let Some(mut rest) = buffer.get(..length) else { bail!("a netlink message was cut off") };
            while let Some((message, after)) = split_message(rest) {
                rest = after;
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    // Both begin with 0 or a negative errno.
                    NLMSG_ERROR | NLMSG_DONE => return status(message.body).map(|()| bodies),
                    _ => bodies.push(message.body.to_vec()),
                }
            }
        }
    }
}

fn status(body: &[u8]) -> Result<()> {
    match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        None | Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(-code).into()),
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The first message and what follows it.
fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(align(length)..).unwrap_or_default();
    Some((Message { kind, sequence, body }, rest))
}

/// Adds one attribute (struct rtattr).
pub fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(align(message.len()), 0);
}

/// Kind and value of each attribute.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 3, b"eth0\0");
        push_attribute(&mut bytes, 8, &7u32.to_ne_bytes());
        assert_eq!(bytes.len(), 12 + 8);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"eth0\0"[..]), (8, &7u32.to_ne_bytes()[..])]);
        // Lengths that lie end the list.
        assert_eq!(attributes(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[40, 0, 1, 0, 9]).count(), 0);
    }

    #[test]
    fn the_kernel_answers_and_refuses_by_errno() {
        const RTM_GETADDR: u16 = 22;
        const RTM_SETLINK: u16 = 19;
        let mut netlink = Netlink::open().unwrap();
        netlink.dump(RTM_GETADDR, &[0; 8]).unwrap();
        let mut link = [0; 16];
        link[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = netlink.change(RTM_SETLINK, 0, &link).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(&Errno::NODEV | &Errno::PERM)), "{error:#}");
    }
}

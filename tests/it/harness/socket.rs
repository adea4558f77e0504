//! The engine's end of `--console-socket`: receives the pty master as containerd and conmon do.

use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

pub struct ConsoleSocket {
    pub path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    pub fn new(dir: &Path) -> ConsoleSocket {
        let path = dir.join("console.sock");
        let listener = UnixListener::bind(&path).expect("bind the console socket");
        ConsoleSocket { path, listener }
    }

    /// The master, and the name that came with it.
    pub fn receive(&self) -> (File, String) {
        let (stream, _) = self.listener.accept().expect("accept on the console socket");
        let mut text = [0u8; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message =
            recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .expect("recvmsg");
        let mut masters = control.drain().filter_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = masters.next().expect("no descriptor came over the console socket");
        (File::from(master), String::from_utf8_lossy(&text[..message.bytes]).into_owned())
    }

    /// Everything the terminal says until its last user is gone.
    pub fn read_to_end(master: &mut File) -> String {
        let mut all = Vec::new();
        let mut buffer = [0u8; 4096];
        // EIO is how a pty master says that no slave is open any more.
        while let Ok(n @ 1..) = master.read(&mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

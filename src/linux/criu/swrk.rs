//! The talk with one CRIU process. Knows the protocol and the process, nothing of containers.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use protobuf::Message;
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_features, Criu_notify, Criu_opts, Criu_req, Criu_req_type, Criu_resp,
};
use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, socketpair,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::Places;
use crate::linux::cgroup::Joiner;
use crate::linux::namespaces::Plan;
use crate::linux::spawn::{self, Side, Spawned};
use crate::linux::sync::{Channel, Tag};
use crate::linux::{fds, sys};

/// 3.16, of September 2021: the first that knows all we ask for. An older one would ignore what it does not know.
const OLDEST: i32 = 31600;

/// Above any answer; runc has 40 KiB.
const PACKET: usize = 64 * 1024;

/// A CRIU process that waits for requests.
pub struct Swrk {
    socket: OwnedFd,
    pub criu: Spawned,
    /// Its own numbers of the directories.
    images: i32,
    work: i32,
    /// Where CRIU says more than its answer does.
    log: PathBuf,
}

/// What is told while a request is being served; the error of the receiver ends it.
pub type Notified<'a> = dyn FnMut(&Criu_notify, Option<OwnedFd>) -> Result<()> + 'a;

/// How CRIU is started.
pub struct Launch<'a> {
    pub places: Places<'a>,
    /// The name of its log.
    pub log: &'a str,
    pub plan: Plan,
    pub joiner: Joiner,
    /// Descriptors that it gets under the numbers they have here.
    pub pass: Vec<BorrowedFd<'a>>,
    /// Whether our standard streams are its own.
    pub stdio: bool,
}

impl Swrk {
    /// `prepare` is run in the process that becomes CRIU.
    pub fn launch(launch: &Launch<'_>, prepare: impl FnOnce() -> Result<()>) -> Result<Swrk> {
        let criu = match spawn::spawn(&launch.plan, &launch.joiner, rustix::process::geteuid().is_root())? {
            Side::Parent(spawned) => spawned,
            Side::Child(channel) => {
                let error = prepare().and_then(|()| become_criu(launch, &channel));
                channel.send_error(&error.err().unwrap_or_else(|| anyhow!("CRIU came back")));
                sys::exit_now(1)
            }
        };
        let told = criu.channel.expect(Tag::Criu).and_then(|message| {
            // End of file: the execve has closed the channel.
            match criu.channel.receive()? {
                Some(error) => bail!("{}", String::from_utf8_lossy(&error.body)),
                None => Ok(message),
            }
        });
        let mut message = told.inspect_err(|_| reap(&criu))?;
        let number = |at: usize| {
            let bytes = message.body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(i32::from_ne_bytes).context("bad descriptor number")
        };
        let (images, work) = (number(0)?, number(4)?);
        let socket = message.fd().context("no socket came from the process that becomes CRIU")?;
        let log = launch.places.work.unwrap_or(launch.places.images).join(launch.log);
        let swrk = Swrk { socket, criu, images, work, log };
        swrk.check_version()?;
        Ok(swrk)
    }

    fn check_version(&self) -> Result<()> {
        let mut request = request(Criu_req_type::VERSION);
        request.set_keep_open(true);
        let answer = self.ask(&request, &mut |_, _| Ok(()))?;
        let version = &answer.version;
        let number = version.major_number() * 10000 + version.minor_number() * 100 + version.sublevel();
        ensure!(
            answer.success() && number >= OLDEST,
            "CRIU {}.{}.{} is too old: at least 3.16 is needed",
            version.major_number(),
            version.minor_number(),
            version.sublevel()
        );
        Ok(())
    }

    /// Refuses what this CRIU cannot do on this kernel.
    pub fn demand(&self, features: Criu_features, options: &Criu_opts) -> Result<()> {
        let mut request = request(Criu_req_type::FEATURE_CHECK);
        request.set_keep_open(true);
        // runc: an older CRIU crashes without.
        request.opts = Some(self.located(options.clone())?).into();
        request.features = Some(features.clone()).into();
        let answer = self.ask(&request, &mut |_, _| Ok(()))?;
        for (wanted, has, name) in [
            (features.mem_track(), answer.features.mem_track(), "memory tracking"),
            (features.lazy_pages(), answer.features.lazy_pages(), "lazy pages"),
        ] {
            ensure!(!wanted || has, "CRIU is missing features on this kernel: {name}");
        }
        Ok(())
    }

    /// Asks, and attends to what is told until the answer.
    pub fn serve(self, kind: Criu_req_type, options: Criu_opts, notified: &mut Notified<'_>) -> Result<()> {
        let options = self.located(options)?;
        let log = &self.log;
        let mut request = request(kind);
        request.opts = Some(options).into();
        let mut ours = None;
        let answer = self.ask(&request, &mut |notice, fd| {
            notified(notice, fd).map_err(|error| {
                // CRIU takes back what it has done when it is told of the failure, so it goes on to its end.
                ours = Some(error);
                anyhow!("refused")
            })
        });
        drop(self.socket);
        reap(&self.criu);
        if let Some(error) = ours {
            return Err(error);
        }
        let answer = answer.with_context(|| failed(kind, 0, log))?;
        ensure!(answer.success(), failed(kind, answer.cr_errno(), log));
        ensure!(answer.type_() == kind, "CRIU answered {:?} to {kind:?}", answer.type_());
        Ok(())
    }

    fn located(&self, mut options: Criu_opts) -> Result<Criu_opts> {
        options.set_images_dir_fd(self.images);
        options.set_work_dir_fd(self.work);
        let name = self.log.file_name().and_then(|name| name.to_str()).context("the log has no name")?;
        options.set_log_file(name.to_owned());
        Ok(options)
    }

    fn ask(&self, request: &Criu_req, notified: &mut Notified<'_>) -> Result<Criu_resp> {
        self.send(request)?;
        loop {
            let (answer, fd) = self.receive()?;
            if answer.type_() != Criu_req_type::NOTIFY || !answer.success() {
                return Ok(answer);
            }
            let mut reply = self::request(Criu_req_type::NOTIFY);
            reply.set_notify_success(notified(&answer.notify, fd).is_ok());
            self.send(&reply)?;
        }
    }

    fn send(&self, request: &Criu_req) -> Result<()> {
        let bytes = request.write_to_bytes().context("write a request to CRIU")?;
        let sent = rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL).context("ask CRIU")?;
        ensure!(sent == bytes.len(), "a request to CRIU was cut off");
        Ok(())
    }

    fn receive(&self) -> Result<(Criu_resp, Option<OwnedFd>)> {
        let mut bytes = vec![0; PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        })
        .context("read CRIU's answer")?;
        ensure!(received.bytes > 0, "CRIU ended without an answer");
        ensure!(!received.flags.contains(ReturnFlags::TRUNC), "CRIU's answer is too long");
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let answer = Criu_resp::parse_from_bytes(&bytes[..received.bytes]).context("read CRIU's answer")?;
        Ok((answer, fd))
    }
}

fn request(kind: Criu_req_type) -> Criu_req {
    let mut request = Criu_req::new();
    request.set_type(kind);
    request
}

fn reap(criu: &Spawned) {
    let _ = waitid(WaitId::PidFd(criu.pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// Returns only when it failed. CRIU takes its directories by number from whoever made its socket, and mounts in
/// them: so they are opened, and the socket is made, by itself, in its own mount namespace.
fn become_criu(launch: &Launch<'_>, channel: &Channel) -> Result<()> {
    let Places { images, work } = launch.places;
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (images, work) = (open(images)?, open(work.unwrap_or(images))?);
    let (theirs, socket) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("make the socket to CRIU")?;
    let numbers = [images.as_raw_fd().to_ne_bytes(), work.as_raw_fd().to_ne_bytes()].concat();
    channel.send(Tag::Criu, &numbers, &[theirs.as_fd()])?;
    if !launch.stdio {
        let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
    }
    // Nothing of ours, or of our caller's, outlives the execve but what it is given.
    fds::close_on_exec_from(3)?;
    for fd in launch.pass.iter().chain(&[images.as_fd(), work.as_fd(), socket.as_fd()]) {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    let error = Command::new("criu").args(["swrk", &socket.as_raw_fd().to_string()]).exec();
    match error.kind() {
        ErrorKind::NotFound => bail!("criu: executable file not found in $PATH"),
        _ => Err(error).context("run criu"),
    }
}

/// runc's words, and the first thing that CRIU complained of in its log: the answer itself says nothing.
fn failed(kind: Criu_req_type, errno: i32, log: &Path) -> String {
    let mut text = format!("criu failed: type {kind:?} errno {errno}, log file: {}", log.display());
    if let Some(complaint) = std::fs::read(log).ok().and_then(|bytes| complaint(&bytes)) {
        text = text + ": " + &complaint;
    }
    text
}

fn complaint(log: &[u8]) -> Option<String> {
    let log = String::from_utf8_lossy(log);
    let errors = log.lines().filter_map(|line| line.split_once("Error (").map(|(_, rest)| rest));
    // Without CAP_SYS_RESOURCE it cannot have more descriptors, and goes on.
    let mut errors =
        errors.filter_map(|rest| rest.split_once("): ")).filter(|(_, text)| !text.contains("rlimit: "));
    errors.next().map(|(_, text)| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_is_the_cause() {
        let log = "(00.09) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self\n(00.20) 1 fdinfo 1\n\
                   (00.21) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1 path=/out\n\
                   (00.28) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        assert_eq!(complaint(log.as_bytes()).unwrap(), "Can't lookup mount=27 for fd=1 path=/out");
        assert_eq!(complaint(b"(00.1) Warn (x.c:1): y\n"), None);
    }
}

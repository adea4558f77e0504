//! What the rooms of the house say to each other: plain data, and the one trait through which `linux`
//! drives an executor without knowing it. `cli` composes; `executor` and `linux` meet only here.

use std::collections::BTreeSet;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for another: pids are recycled, a pid with its start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// A mount that cannot be mistaken for another: mountinfo's ids are given again, the kernel's unique ones never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountId {
    /// Field 1 of `/proc/PID/mountinfo`.
    pub id: u64,
    /// STATX_MNT_ID_UNIQUE, since Linux 6.8.
    pub unique: Option<u64>,
}

/// The runtime-spec's status words, and runc's `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// What a workload asks of the container, as data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The container's files as one detached tree without kernel filesystems (`Granted::tree`).
    pub guest_tree: bool,
    /// Descriptors that must survive until `ready`; all others above the preserved ones are closed.
    pub carry: Vec<RawFd>,
    /// The workload runs in the init process itself: labels go on the live process, no_new_privs is forced,
    /// pid 1's signals and zombies are looked after, the process is titled with the guest's argv.
    pub in_process: bool,
}

/// What the container gives to a workload that asked.
#[derive(Default)]
pub struct Granted {
    /// A detached, nodev, nosuid mount of the finished root file system (see `linux::guest_tree`).
    pub tree: Option<OwnedFd>,
    /// This process's own `/proc/self/fd`, opened before pivot_root (the container may have no /proc).
    pub proc_fd: Option<OwnedFd>,
}

/// What of the network a workload that stays in our process goes on to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// It makes sockets; without, it has those that are open already.
    pub sockets: bool,
    /// It listens on TCP ports.
    pub listens: bool,
    /// The TCP ports it connects to; `None` is any.
    pub connects: Option<BTreeSet<u16>>,
}

/// What `Workload::prepare` made on the host for a file that only the child could see.
pub struct Prepared {
    pub artifact: OwnedFd,
    /// Opaque to `linux`, which carries it over the socket (at most 4 KiB).
    pub note: Vec<u8>,
}

/// Runs `job` in a confined child (no privileges, no network, seccomp, rlimits, deadline, own cgroup) and says
/// how it ended. `keep` are the descriptors the job may use. Implemented by `linux::confine`, given to
/// `executor` by `cli`. `Err` is a failure to set the child up or the job's own clear line.
pub type Confine<'a> = dyn Fn(&ConfineLimits, &[RawFd], &mut dyn FnMut() -> Result<()>) -> Result<()> + 'a;

/// Caps of a confined child; the operator's settings may change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfineLimits {
    /// Bytes: the cgroup's memory.max and, where none can be made, RLIMIT_AS beyond what is mapped already.
    pub memory: u64,
    /// Seconds of CPU time, all threads together.
    pub deadline: u64,
}

/// What runs in the container. One value, made in the parent by `executor::select` and inherited by the child
/// through the clone; each side uses the moments that are its own.
pub trait Workload {
    /// Parent, before the child exists: what may take long on the host's side (wasm: finds the compiled code, or
    /// compiles). All other moments come after it.
    fn prepare(&mut self) -> Result<()>;

    fn needs(&self) -> Needs;

    /// True when the parent could not see argv[0] (a tmpfs, a file a hook puts there): the child must `look`.
    fn undecided(&self) -> bool;

    /// Child, after pivot_root, still privileged, only when `undecided`: the file argv[0] names if it is wasm.
    /// `None` settles it as native.
    fn look(&mut self) -> Result<Option<OwnedFd>>;

    /// Parent: compiles or finds the code of the file `look` sent.
    fn prepare_found(&mut self, file: OwnedFd) -> Result<Prepared>;

    /// Child: takes what `prepare_found` made; `needs` answers anew after this.
    fn adopt(&mut self, prepared: Prepared);

    /// Child, at create, privileges dropped: everything that can fail does so now. Native resolves argv[0];
    /// wasm loads, links and pre-instantiates.
    fn ready(&mut self, granted: Granted) -> Result<()>;

    /// The environment that `ready` has settled, if it is another than `process.env`.
    fn env(&self) -> Option<&[String]>;

    /// Descriptors that must stay open while the workload runs (after `ready`; wasm: guest tree, epoll, ...).
    fn keeps(&self) -> Vec<RawFd>;

    /// Asked of an `in_process` workload after `ready`: what the kernel is to leave it of the network.
    fn network(&self) -> Network;

    /// A pipe to which SIGTERM and SIGINT are written, so that the workload can end in its own time; `None`:
    /// they end the process. A second signal ends it in any case.
    fn stop(&self) -> Option<RawFd>;

    /// Child, at start. Native returns only if execve failed; wasm returns the exit status.
    fn run(&mut self) -> Result<i32>;
}

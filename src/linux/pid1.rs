//! What a process needs that becomes the workload without an execve: the look and the manners of the guest's own
//! process. It must leave nothing of runw's argv and environment readable, and must not depend on a /proc.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::linux::sys;

/// Where the kernel thinks this process's memory areas are: the numbers that `/proc/PID/cmdline` and `environ`
/// are read by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    code: (u64, u64),
    data: (u64, u64),
    stack: u64,
    brk: u64,
    argv: (u64, u64),
    env: (u64, u64),
}

impl Area {
    /// Before pivot_root, while the host's procfs can be seen (the container may have none). `proc_self` is this
    /// process's own `/proc/self`; a clone's memory is where its parent's was, so the parent's will do.
    pub fn remember(proc_self: BorrowedFd<'_>) -> Result<Area> {
        let stat = rustix::fs::openat(proc_self, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context("cannot open /proc/self/stat")?;
        let mut text = String::new();
        std::fs::File::from(stat).read_to_string(&mut text).context("cannot read /proc/self/stat")?;
        Area::parse(&text).context("cannot understand /proc/self/stat")
    }

    /// proc_pid_stat(5). The name in field 2 may hold spaces and parentheses; fields are counted behind its end.
    fn parse(stat: &str) -> Option<Area> {
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Area {
            code: (field(26)?, field(27)?),
            stack: field(28)?,
            data: (field(45)?, field(46)?),
            brk: field(47)?,
            argv: (field(48)?, field(49)?),
            env: (field(50)?, field(51)?),
        })
    }
}

/// The last act before the guest runs, with one thread. Afterwards `std::env` shows neither runw's arguments nor
/// its environment. With `is_pid1` the process ends by the signals that would end any other.
pub fn become_init(area: &Area, argv: &[CString], is_pid1: bool) -> Result<()> {
    if is_pid1 {
        end_on_signals().context("cannot handle signals")?;
    }
    // Children that nobody waits for, adopted ones included, leave no zombie (sigaction(2), SIGCHLD).
    set_action(libc::SIGCHLD, libc::SIG_IGN).context("cannot ignore SIGCHLD")?;
    // WASI has no signals: a closed pipe must be an error the guest can see.
    set_action(libc::SIGPIPE, libc::SIG_IGN).context("cannot ignore SIGPIPE")?;
    forget_environment(area);
    set_title(area, argv);
    if let Some(name) = argv.first() {
        let name = name.to_bytes().rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        set_comm(&CString::new(name)?).context("cannot set the process name")?;
    }
    Ok(())
}

/// pid_namespaces(7): the init of a pid namespace gets only signals it has a handler for, so without these a
/// `kill -TERM` would do nothing where any other process ends. Ignored and stopping signals stay as they are, and
/// so do the four that the engine needs for traps; the kernel forces those on an init too when they are real.
fn end_on_signals() -> io::Result<()> {
    const ENDING: [i32; 17] = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGTERM,
        libc::SIGSTKFLT,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSYS,
    ];
    for signal in ENDING.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        set_action(signal, end_by_signal as *const () as libc::sighandler_t)?;
    }
    Ok(())
}

extern "C" fn end_by_signal(signal: i32) {
    sys::exit_now(128 + signal)
}

fn set_action(signal: i32, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: sigaction is plain data; all-zero is an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // The guest may be deep in its own stack when the signal comes; a thread without another one ignores this.
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `action` is live; the handler is SIG_IGN or `end_by_signal`, which only calls _exit(2), an
    // async-signal-safe function.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Nothing of the caller's environment may be found by a guest's neighbour in `/proc/PID/environ`, nor by
/// whoever breaks out of the guest in our memory.
fn forget_environment(area: &Area) {
    // SAFETY: we have one thread, so nobody reads the environment meanwhile; later readers find it empty.
    unsafe { libc::clearenv() };
    wipe(area.env);
}

fn wipe((start, end): (u64, u64)) {
    if start != 0 && start < end {
        // SAFETY: the kernel laid this range out at execve as our own writable stack memory, and nothing but the
        // C runtime's strings is in it: all become empty ones. No Rust reference into it exists, since std copies.
        unsafe { std::ptr::write_bytes(start as *mut u8, 0, (end - start) as usize) };
    }
}

fn set_title(area: &Area, argv: &[CString]) {
    let title: Vec<u8> = argv.iter().flat_map(|arg| arg.to_bytes_with_nul()).copied().collect();
    wipe(area.argv);
    if point_kernel_at(area, &title).is_err() {
        write_title_in_place(area.argv, &title);
    }
}

/// The kernel's struct prctl_mm_map, linux/prctl.h.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// A title of any length in memory of its own, and no environment at all. PR_SET_MM_MAP wants no capability for
/// that, but a kernel with CONFIG_CHECKPOINT_RESTORE.
fn point_kernel_at(area: &Area, title: &[u8]) -> io::Result<()> {
    // Never freed: the kernel reads it for as long as we live.
    let title: &'static [u8] = Box::leak(title.to_vec().into_boxed_slice());
    let start = title.as_ptr() as u64;
    let end = start + title.len() as u64;
    let map = MemoryMap {
        start_code: area.code.0,
        end_code: area.code.1,
        start_data: area.data.0,
        end_data: area.data.1,
        start_brk: area.brk,
        brk: current_brk(),
        start_stack: area.stack,
        arg_start: start,
        arg_end: end,
        env_start: end,
        env_end: end,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: `map` is a live structure of the size passed and says where our areas are already, but for the
    // title, which is leaked memory of exactly the range given. The kernel only records the numbers.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP as libc::c_ulong,
            &raw const map,
            size_of::<MemoryMap>(),
            0 as libc::c_ulong,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn current_brk() -> u64 {
    // SAFETY: brk(2) with an impossible address changes nothing and returns the present end.
    unsafe { libc::syscall(libc::SYS_brk, 0) as u64 }
}

/// Older or smaller kernels: as much of the title as runw's own arguments had room for. The last byte stays NUL,
/// or the kernel would read on into the environment (fs/proc/base.c, get_mm_cmdline).
fn write_title_in_place((start, end): (u64, u64), title: &[u8]) {
    if start == 0 || start >= end {
        return;
    }
    let room = (end - start) as usize - 1;
    let length = title.len().min(room);
    // SAFETY: as in `wipe`, and no more bytes than the range has.
    unsafe { std::ptr::copy_nonoverlapping(title.as_ptr(), start as *mut u8, length) };
}

fn set_comm(name: &CStr) -> io::Result<()> {
    // SAFETY: PR_SET_NAME reads at most 16 bytes of a NUL-terminated string that lives through the call.
    let result = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0u64, 0u64, 0u64) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! What a process needs that becomes the workload without an execve: the look and the manners of the guest's own
//! process. It must leave nothing of runw's argv and environment readable, and must not depend on a /proc.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::size_of;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};

use crate::linux::{kernel_file, sys};

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
        let text = kernel_file::read_open(stat).context("cannot read /proc/self/stat")?;
        let area = Area::parse(&text).context("cannot understand /proc/self/stat")?;
        ensure!(area.is_ours(), "/proc/self/stat is of another process, or the kernel hides its addresses");
        Ok(area)
    }

    /// execve lays out, upwards on the stack: argv's strings, the environment's, the executable's name (fs/exec.c).
    /// The address of the last is known without /proc, and memory is written by these numbers later on.
    fn is_ours(&self) -> bool {
        // SAFETY: getauxval only looks a number up.
        let name = unsafe { libc::getauxval(libc::AT_EXECFN) };
        let ordered = self.argv.0 <= self.argv.1 && self.argv.1 <= self.env.0 && self.env.0 <= self.env.1;
        self.argv.0 != 0 && ordered && self.env.1 == name
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
/// its environment. With `is_pid1` the process ends by the signals that would end any other. `stop` is told of the
/// first SIGTERM or SIGINT instead.
pub fn become_init(area: &Area, argv: &[CString], is_pid1: bool, stop: Option<RawFd>) -> Result<()> {
    if is_pid1 {
        end_on_signals().context("cannot handle signals")?;
    }
    if let Some(stop) = stop {
        STOP.store(stop, Relaxed);
        for signal in [libc::SIGTERM, libc::SIGINT] {
            set_action(signal, ask_to_stop as *const () as libc::sighandler_t)
                .context("cannot handle signals")?;
        }
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

/// The signals that end runc's init, a Go program, while it waits for `start`.
const ENDING_AT_ONCE: [i32; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGSYS,
];

/// With those and the real-time ones: all that end a process by default. Ignored and stopping signals stay as they
/// are, and so do the four that the engine needs for traps; the kernel forces those on an init too when they are real.
const ENDING: [i32; 9] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

/// pid_namespaces(7): the init of a pid namespace gets only signals it has a handler for, so without these a
/// `kill -TERM` would do nothing where any other process ends.
pub fn end_while_created() -> io::Result<()> {
    ENDING_AT_ONCE.into_iter().try_for_each(end_on)
}

fn end_on_signals() -> io::Result<()> {
    end_while_created()?;
    ENDING.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()).try_for_each(end_on)
}

fn end_on(signal: i32) -> io::Result<()> {
    set_action(signal, end_by_signal as *const () as libc::sighandler_t)
}

extern "C" fn end_by_signal(signal: i32) {
    sys::exit_now(128 + signal)
}

/// A pipe, until it was written to.
static STOP: AtomicI32 = AtomicI32::new(-1);

extern "C" fn ask_to_stop(signal: i32) {
    let stop = STOP.swap(-1, Relaxed);
    let word = [signal as u8];
    // SAFETY: write(2) is async-signal-safe and reads one live byte; a descriptor of -1 is an error. A write that
    // succeeds leaves errno alone, and after any other the process ends.
    if unsafe { libc::write(stop, word.as_ptr().cast(), word.len()) } != 1 {
        end_by_signal(signal);
    }
}

fn set_action(signal: i32, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: sigaction is plain data; all-zero is an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // The guest may be deep in its own stack when the signal comes; a thread without another one ignores this.
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `action` is live; the handler is SIG_IGN or one of ours, which call _exit(2) and write(2) only,
    // async-signal-safe functions.
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
        // SAFETY: `Area::is_ours` showed this range to be what execve laid out on our stack, writable memory with
        // nothing but the C runtime's strings in it: all become empty ones. No Rust reference into it exists, since
        // std copies.
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::{Duration, Instant};

    use super::*;

    fn proc_self() -> OwnedFd {
        rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// Forks (with glibc's care for the allocator, since tests have threads), optionally as pid 1 of a new pid
    /// namespace, runs `job`, then tells the parent through a pipe and runs `after`, which ends the process.
    fn spawn(as_pid1: bool, job: impl FnOnce() -> Result<()>, after: impl FnOnce()) -> i32 {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let name = CString::new("pid1-test").unwrap();
        // SAFETY: see above; the child only runs the closures and _exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            if as_pid1 {
                sys::unshare(libc::CLONE_NEWPID).ok();
                // SAFETY: one thread in this child; the grandchild continues below, the child only relays.
                let init = unsafe { libc::fork() };
                if init != 0 {
                    let mut status = 0;
                    let _ = set_comm(&name);
                    let _ = writer.write_all(&init.to_ne_bytes());
                    drop(writer);
                    // SAFETY: `status` is a live integer.
                    unsafe { libc::waitpid(init, &raw mut status, 0) };
                    let signal = libc::WIFSIGNALED(status);
                    sys::exit_now(if signal { 1 } else { libc::WEXITSTATUS(status) });
                }
            }
            if job().is_err() {
                sys::exit_now(2);
            }
            let _ = writer.write_all(&std::process::id().to_ne_bytes());
            drop(writer);
            after();
            sys::exit_now(0);
        }
        drop(writer);
        let mut told = Vec::new();
        reader.read_to_end(&mut told).unwrap();
        assert_eq!(told.len(), if as_pid1 { 8 } else { 4 }, "the child said less than it should");
        pid
    }

    fn wait(pid: i32) -> i32 {
        let mut status = 0;
        // SAFETY: `status` is a live integer.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
    }

    fn kill(pid: i32, signal: i32) {
        // SAFETY: integers only; the pid is of an unreaped child of ours or of its child.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn sleep_for_ever() {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn argv(args: &[&str]) -> Vec<CString> {
        args.iter().map(|arg| CString::new(*arg).unwrap()).collect()
    }

    fn child_of(pid: i32) -> i32 {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn looks_like(pid: i32, cmdline: &[u8], comm: &str) {
        assert_eq!(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap(), cmdline);
        assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), comm);
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(environ.iter().all(|&byte| byte == 0), "{}", String::from_utf8_lossy(&environ));
    }

    #[test]
    fn the_process_looks_like_the_guest_and_shows_no_environment() {
        assert!(!std::fs::read("/proc/self/environ").unwrap().is_empty());
        let long = "x".repeat(20_000);
        let area = Area::remember(proc_self().as_fd()).unwrap();
        let pid = spawn(
            false,
            || {
                become_init(
                    &area,
                    &argv(&["/app/server-with-a-long-name.wasm", "--flag", &long, ""]),
                    false,
                    None,
                )
            },
            sleep_for_ever,
        );
        let expected = format!("/app/server-with-a-long-name.wasm\0--flag\0{long}\0\0");
        looks_like(pid, expected.as_bytes(), "server-with-a-l\n");
        kill(pid, libc::SIGTERM);
        assert_eq!(wait(pid), 143);
    }

    #[test]
    fn std_env_is_empty_afterwards() {
        let area = Area::remember(proc_self().as_fd()).unwrap();
        let pid = spawn(
            false,
            || become_init(&area, &argv(&["guest"]), false, None),
            || {
                sys::exit_now(i32::from(
                    std::env::vars_os().next().is_some() || std::env::var_os("PATH").is_some(),
                ))
            },
        );
        assert_eq!(wait(pid), 0);
    }

    #[test]
    fn without_prctl_the_title_is_cut_to_the_room_there_is() {
        let area = Area::remember(proc_self().as_fd()).unwrap();
        let room = (area.argv.1 - area.argv.0) as usize;
        let pid = spawn(
            false,
            || {
                forget_environment(&area);
                wipe(area.argv);
                write_title_in_place(area.argv, "y".repeat(room + 50).as_bytes());
                Ok(())
            },
            sleep_for_ever,
        );
        let mut expected = vec![b'y'; room - 1];
        expected.push(0);
        assert_eq!(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap(), expected);
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(environ.iter().all(|&byte| byte == 0));
        kill(pid, libc::SIGKILL);
        assert_eq!(wait(pid), 137);
    }

    #[test]
    fn pid_1_ends_by_signals_even_in_a_busy_loop() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a pid namespace needs root");
            return;
        }
        for (signal, status) in [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGRTMIN() + 3, 165)] {
            let area = Area::remember(proc_self().as_fd()).unwrap();
            let busy = || loop {
                std::hint::black_box(0);
            };
            let pid = spawn(true, || become_init(&area, &argv(&["/guest.wasm"]), true, None), busy);
            let init = child_of(pid);
            looks_like(init, b"/guest.wasm\0", "guest.wasm\n");
            // SIGWINCH, like all that is ignored or stops, must not end it.
            kill(init, libc::SIGWINCH);
            kill(init, signal);
            assert_eq!(wait(pid), status);
        }
    }

    #[test]
    fn an_abort_of_pid_1_is_134() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a pid namespace needs root");
            return;
        }
        let area = Area::remember(proc_self().as_fd()).unwrap();
        let pid = spawn(true, || become_init(&area, &argv(&["g"]), true, None), || std::process::abort());
        assert_eq!(wait(pid), 134);
    }

    #[test]
    fn pid_1_leaves_no_zombies() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a pid namespace needs root");
            return;
        }
        let area = Area::remember(proc_self().as_fd()).unwrap();
        let fork_and_sleep = || {
            // SAFETY: one thread; the children only _exit. The second one is an orphan that pid 1 adopts.
            unsafe {
                if libc::fork() == 0 {
                    if libc::fork() == 0 {
                        sys::exit_now(0);
                    }
                    sys::exit_now(0);
                }
            }
            sleep_for_ever();
        };
        let pid = spawn(true, || become_init(&area, &argv(&["g"]), true, None), fork_and_sleep);
        let init = child_of(pid);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
            if children.trim().is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "zombies: {children}");
            std::thread::sleep(Duration::from_millis(10));
        }
        kill(init, libc::SIGKILL);
        wait(pid);
    }

    #[test]
    fn another_processs_area_is_refused() {
        let mut other = std::process::Command::new("sleep").arg("9").spawn().unwrap();
        let path = format!("/proc/{}", other.id());
        let dir = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let error = Area::remember(dir.as_fd()).unwrap_err();
        assert!(format!("{error:#}").contains("of another process"), "{error:#}");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn stat_is_understood_whatever_the_name_is() {
        let fields: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let area = Area::parse(&format!("7 (a) R (b) c) S {}", fields.join(" "))).unwrap();
        assert_eq!(area.code, (26, 27));
        assert_eq!(area.stack, 28);
        assert_eq!(area.data, (45, 46));
        assert_eq!((area.brk, area.argv, area.env), (47, (48, 49), (50, 51)));
        assert_eq!(Area::parse("7 (a) S 1 2 3"), None);
    }
}

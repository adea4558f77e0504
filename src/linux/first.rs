//! What runs before the C library does. A verb whose process becomes, or makes, one inside a container is executed again
//! from a read-only view of the binary (seal.rs says why), and the process that only does that needs no C library: to
//! set one up is a third of a start, and so it is paid for once instead of twice.
//!
//! Nothing here may call the C library, allocate, panic or use thread-local memory: not even memcpy(3) can be called
//! before the library has chosen one for this processor. Hence the volatile reads and writes, of which the compiler
//! makes no call. What cannot be done here in the straightforward way is left to seal.rs.

use std::arch::{asm, naked_asm};
use std::ffi::CStr;
use std::mem::MaybeUninit;

use super::seal::{MARK, VERBS};
use super::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// The program's entry point (build.rs). By the processor's ABI the stack pointer is at argc; the C library's own entry
/// point finds it unchanged, and in rdx that no function is to be called at exit.
// SAFETY: the name is ours alone, and nothing calls it but the kernel.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn runw_start() -> ! {
    naked_asm!("mov rdi, rsp", "call {first}", "xor edx, edx", "jmp _start", first = sym first)
}

/// A string as the kernel gives it, NUL-terminated.
type Text = *const u8;

const EXE: &CStr = c"/proc/self/exe";
const PATH_MAX: usize = libc::PATH_MAX as usize;
/// Room for a path with every byte escaped, and for the second layer.
const LAYERS: usize = 2 * PATH_MAX + 64;
const MARKED: usize = 64;

/// Returns when there is nothing to do, or when it cannot be done here.
unsafe extern "C" fn first(stack: *const usize) {
    // SAFETY: execve(2) leaves argc, argv, NULL, envp and NULL there.
    unsafe {
        let argv: *const Text = stack.add(1).cast();
        let envp = argv.add(*stack + 1);
        // Code that is not optimised calls memcpy.
        if !cfg!(debug_assertions) && *stack > 1 && is_called_for(argv.add(1)) && !is_sealed(envp) {
            execute_sealed(argv, envp);
        }
    }
}

/// A word that only looks like such a verb costs a needless seal.
unsafe fn is_called_for(mut words: *const Text) -> bool {
    // SAFETY: the array ends in NULL.
    unsafe {
        while !(*words).is_null() {
            if VERBS.iter().any(|verb| after(*words, verb).is_some_and(|rest| rest.read_volatile() == 0)) {
                return true;
            }
            words = words.add(1);
        }
    }
    false
}

unsafe fn is_sealed(mut envp: *const Text) -> bool {
    // SAFETY: the array ends in NULL, and each string in NUL.
    unsafe {
        while !(*envp).is_null() {
            if let Some(mut digits) = marked(*envp) {
                let mut pid = 0usize;
                while digits.read_volatile().is_ascii_digit() {
                    pid = pid.wrapping_mul(10).wrapping_add(usize::from(digits.read_volatile() - b'0'));
                    digits = digits.add(1);
                }
                return call(libc::SYS_getpid, 0, 0, 0, 0, 0) == Some(pid);
            }
            envp = envp.add(1);
        }
    }
    false
}

/// The value, if the variable is the mark.
unsafe fn marked(variable: Text) -> Option<Text> {
    // SAFETY: the caller's string.
    unsafe { after(after(variable, MARK)?, "=") }
}

/// What follows `start`, if `text` begins so.
unsafe fn after(mut text: Text, start: &str) -> Option<Text> {
    for byte in start.as_bytes() {
        // SAFETY: none of `start` is NUL, so what was equal so far has not ended yet.
        unsafe {
            if text.read_volatile() != *byte {
                return None;
            }
            text = text.add(1);
        }
    }
    Some(text)
}

/// Does not return if it succeeds. But for the mount's, the descriptors it takes are closed by the execve.
unsafe fn execute_sealed(argv: *const Text, envp: *const Text) -> Option<()> {
    // SAFETY: the arrays end in NULL. `scratch` is fresh and zeroed, and cut into four parts that do not overlap.
    unsafe {
        let mut count = 0;
        while !(*envp.add(count)).is_null() {
            count += 1;
        }
        let size = PATH_MAX + LAYERS + MARKED + (count + 2) * size_of::<Text>();
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let scratch = call(libc::SYS_mmap, 0, size, access as usize, kind as usize, usize::MAX)? as *mut u8;
        let layers = scratch.add(PATH_MAX);
        let mark = layers.add(LAYERS);
        let environment: *mut Text = mark.add(MARKED).cast();

        let path = scratch;
        let length = call(libc::SYS_readlink, EXE.as_ptr() as usize, path as usize, PATH_MAX - 1, 0, 0)?;
        let name = write_layers(layers, path, length)?;
        let (file, mount) = overlay(layers, name)?;
        write_mark(mark, call(libc::SYS_getpid, 0, 0, 0, 0, 0)?, mount);
        let mut to = environment;
        for at in 0..count {
            // Not another's mark: only the first of two would be seen.
            if marked(*envp.add(at)).is_none() {
                to.write_volatile(*envp.add(at));
                to = to.add(1);
            }
        }
        to.write_volatile(mark);
        let (argv, environment) = (argv as usize, environment as usize);
        call(
            libc::SYS_execveat,
            file,
            c"".as_ptr() as usize,
            argv,
            environment,
            libc::AT_EMPTY_PATH as usize,
        )?;
    }
    None
}

/// As runc >= 1.2: an overlay without an upper layer cannot be written to by anybody, whatever is remounted. Returns the
/// binary in there and, unless the limit on descriptors is low, a handle on the mount that outlives the execve: to close
/// the last one is a wait for RCU, which `seal::let_go` puts where somebody waits anyway.
unsafe fn overlay(layers: Text, name: Text) -> Option<(usize, usize)> {
    const CLOEXEC: usize = 1;
    const SET_STRING: usize = 1;
    const CREATE: usize = 6;
    const ATTRIBUTES: u64 = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID;
    let (kind, key) = (c"overlay".as_ptr() as usize, c"lowerdir".as_ptr() as usize);
    // SAFETY: strings end in NUL, the structures are as large as the kernel's, and read only once they are filled.
    unsafe {
        let context = call(libc::SYS_fsopen, kind, CLOEXEC, 0, 0, 0)?;
        call(libc::SYS_fsconfig, context, SET_STRING, key, layers as usize, 0)?;
        call(libc::SYS_fsconfig, context, CREATE, 0, 0, 0)?;
        let mount = call(libc::SYS_fsmount, context, CLOEXEC, ATTRIBUTES as usize, 0, 0)?;
        let flags = (libc::O_PATH | libc::O_CLOEXEC) as usize;
        let file = call(libc::SYS_openat, mount, name as usize, flags, 0, 0)?;
        // The name may have been given to another file since we were started.
        let (mut ours, mut theirs) =
            (MaybeUninit::<libc::stat>::uninit(), MaybeUninit::<libc::stat>::uninit());
        call(libc::SYS_stat, EXE.as_ptr() as usize, ours.as_mut_ptr() as usize, 0, 0, 0)?;
        call(libc::SYS_fstat, file, theirs.as_mut_ptr() as usize, 0, 0, 0)?;
        let (ours, theirs) = (ours.assume_init_ref(), theirs.assume_init_ref());
        let same = ours.st_size == theirs.st_size
            && ours.st_mtime == theirs.st_mtime
            && ours.st_mtime_nsec == theirs.st_mtime_nsec;
        // Out of the way of descriptors that a caller passes on, or means to.
        let kept = call(libc::SYS_fcntl, mount, libc::F_DUPFD as usize, 512, 0, 0);
        same.then_some((file, kept.unwrap_or(0)))
    }
}

/// `lowerdir` for the directory of a path of `length` bytes, whose last component is returned. An overlay wants two lower
/// layers: any directory that has nothing to do with ours will do for the second.
unsafe fn write_layers(mut to: *mut u8, path: *mut u8, length: usize) -> Option<Text> {
    // SAFETY: a NUL follows the path, and in `to` is room for twice as much and for the longest of these names.
    unsafe {
        let mut slash = length;
        while path.add(slash).read_volatile() != b'/' {
            slash = slash.checked_sub(1)?;
        }
        for at in 0..slash {
            let byte = path.add(at).read_volatile();
            // overlayfs.rst: a colon in a layer's path is escaped, and so is the backslash.
            if matches!(byte, b'\\' | b':' | b',') {
                to = put(to, b'\\');
            }
            to = put(to, byte);
        }
        let unrelated = |other: &&&CStr| {
            let rest = after(path, std::str::from_utf8_unchecked(other.to_bytes()));
            rest.is_none_or(|rest| rest.read_volatile() != b'/')
                && call(libc::SYS_access, other.as_ptr() as usize, 0, 0, 0, 0).is_some()
        };
        let second = [c"/run", c"/tmp", c"/sys", c"/usr"].iter().find(unrelated).filter(|_| slash > 0)?;
        to = put(to, b':');
        for byte in second.to_bytes() {
            to = put(to, *byte);
        }
        Some(path.add(slash + 1))
    }
}

/// `_RUNW_SEALED=PID.MOUNT`.
unsafe fn write_mark(to: *mut u8, pid: usize, mount: usize) {
    // SAFETY: there is room for the name and for twice the twenty digits of the largest number.
    unsafe {
        let mut to = to;
        for byte in MARK.as_bytes() {
            to = put(to, *byte);
        }
        to = put_number(put(to, b'='), pid);
        put_number(put(to, b'.'), mount);
    }
}

unsafe fn put_number(mut to: *mut u8, number: usize) -> *mut u8 {
    let mut unit = 1;
    while number / unit >= 10 {
        unit *= 10;
    }
    while unit > 0 {
        // SAFETY: the caller has room for it.
        to = unsafe { put(to, b'0' + (number / unit % 10) as u8) };
        unit /= 10;
    }
    to
}

unsafe fn put(to: *mut u8, byte: u8) -> *mut u8 {
    // SAFETY: the caller has room for it.
    unsafe {
        to.write_volatile(byte);
        to.add(1)
    }
}

/// A system call; `None` for any error.
#[inline(always)]
unsafe fn call(number: libc::c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> Option<usize> {
    let result: isize;
    // SAFETY: the caller's arguments are what the call's manual page says; the kernel changes rax, rcx and r11 alone. The
    // sixth argument is 0: the offset of mmap(2), which is the only one that has it.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") 0usize, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    usize::try_from(result).ok()
}

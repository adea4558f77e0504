//! What runs before the C library does. A verb whose process becomes, or makes, one inside a container is executed again
//! from a read-only view of the binary (seal.rs says why), and the process that only does that needs no C library: to
//! set one up is a third of a start, and so it is paid for once instead of twice.
//!
//! Nothing here may call the C library, allocate, panic or use thread-local memory: not even memcpy(3) can be called
//! before the library has chosen one for this processor. Hence the volatile reads and writes, of which the compiler
//! makes no call. What cannot be done here in the straightforward way is left to seal.rs.

use std::arch::{asm, naked_asm};

use super::seal::{MARK, VERBS};
use super::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr};

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

/// Room for the mark.
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

/// Does not return if it succeeds.
///
/// What is executed is a mount of the binary alone that is read-only and belongs to no namespace: the execve closes its only
/// handle, and from then on the kernel refuses to change it, clone it or attach it anywhere, whatever privileges a container
/// has. runc did the same before 1.2 with a path on the host, which all that watch the host's mounts could see.
unsafe fn execute_sealed(argv: *const Text, envp: *const Text) -> Option<()> {
    const ATTRIBUTES: u64 = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID;
    let (exe, empty) = (c"/proc/self/exe".as_ptr() as usize, c"".as_ptr() as usize);
    let (cwd, itself) = (libc::AT_FDCWD as usize, libc::AT_EMPTY_PATH as usize);
    // SAFETY: strings and arrays end in NUL and NULL, and the structure is as large as the kernel's. What is mapped is fresh
    // and zeroed, and cut into two parts that do not overlap: the mark, and the environment.
    unsafe {
        let flags = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as usize;
        let tree = call(libc::SYS_open_tree, cwd, exe, flags, 0, 0)?;
        let attributes = MountAttr { set: ATTRIBUTES, clear: 0, propagation: 0, userns_fd: 0 };
        let (attributes, size) = (&raw const attributes as usize, size_of_val(&attributes));
        call(libc::SYS_mount_setattr, tree, empty, itself, attributes, size)?;

        let mut count = 0;
        while !(*envp.add(count)).is_null() {
            count += 1;
        }
        let size = MARKED + (count + 2) * size_of::<Text>();
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let mark = call(libc::SYS_mmap, 0, size, access as usize, kind as usize, usize::MAX)? as *mut u8;
        let environment: *mut Text = mark.add(MARKED).cast();
        write_mark(mark, call(libc::SYS_getpid, 0, 0, 0, 0, 0)?);
        let mut to = environment;
        for at in 0..count {
            // Not another's mark: only the first of two would be seen.
            if marked(*envp.add(at)).is_none() {
                to.write_volatile(*envp.add(at));
                to = to.add(1);
            }
        }
        to.write_volatile(mark);
        call(libc::SYS_execveat, tree, empty, argv as usize, environment as usize, itself)?;
    }
    None
}

/// `_RUNW_SEALED=PID`.
unsafe fn write_mark(mut to: *mut u8, pid: usize) {
    for byte in MARK.as_bytes() {
        // SAFETY: there is room for the name and for the twenty digits of the largest number.
        to = unsafe { put(to, *byte) };
    }
    // SAFETY: as before.
    unsafe { put_number(put(to, b'='), pid) };
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

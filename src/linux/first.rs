//! What runs before the C library does: a verb whose process becomes, or makes, one inside a container is made one of a
//! read-only view of the binary (seal.rs says why). Without an execve(2), which would be half of a short verb's start:
//! what is mapped is mapped anew from there, and prctl(2) exchanges `/proc/self/exe`, as CRIU does at a restore. Only
//! here is nothing of the binary's memory written to yet.
//!
//! Nothing here may call the C library, allocate, panic or use thread-local memory: not even memcpy(3) can be called
//! before the library has chosen one for this processor. Hence the volatile reads and writes, of which the compiler
//! makes no call. What cannot be done here in the straightforward way is left to seal.rs.

use std::arch::{asm, naked_asm};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use super::seal::{MARK, VERBS};
use libc::{Elf64_Ehdr, Elf64_Phdr};

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

/// The handle on the view's mount that stays open; one of the others when there is none.
static MOUNT: AtomicI32 = AtomicI32::new(NOT_SEALED);
const NOT_SEALED: RawFd = -1;
const NO_MOUNT: RawFd = 0;

/// Whether this process is of the view, and the view's mount.
pub fn sealed() -> Option<Option<RawFd>> {
    let mount = MOUNT.load(Relaxed);
    (mount != NOT_SEALED).then(|| (mount != NO_MOUNT).then_some(mount))
}

/// Returns in any case: what could not be done here is done by seal.rs.
unsafe extern "C" fn first(stack: *const usize) {
    // SAFETY: execve(2) leaves argc, argv, NULL, envp and NULL there.
    unsafe {
        let argv: *const Text = stack.add(1).cast();
        let envp = argv.add(*stack + 1);
        // Code that is not optimised calls memcpy.
        if !cfg!(debug_assertions) && *stack > 1 && is_called_for(argv.add(1)) && !is_copy(envp) {
            seal(stack, argv, envp);
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

/// Whether seal.rs has executed us; a mark that is another's costs no more than such a copy.
unsafe fn is_copy(mut envp: *const Text) -> bool {
    // SAFETY: the array ends in NULL, and each string in NUL.
    unsafe {
        while !(*envp).is_null() {
            if after(*envp, MARK).is_some_and(|rest| rest.read_volatile() == b'=') {
                return true;
            }
            envp = envp.add(1);
        }
    }
    false
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

unsafe fn seal(stack: *const usize, argv: *const Text, envp: *const Text) -> Option<()> {
    // SAFETY: `scratch` is fresh and zeroed, and cut into two parts that do not overlap.
    unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let size = PATH_MAX + LAYERS;
        let scratch = call(libc::SYS_mmap, [0, size, access as usize, kind as usize, usize::MAX, 0])?;
        let (path, layers) = (scratch as *mut u8, (scratch + PATH_MAX) as *mut u8);
        let length = call(libc::SYS_readlink, [EXE.as_ptr() as usize, scratch, PATH_MAX - 1, 0, 0, 0])?;
        let name = write_layers(layers, path, length)?;
        let (file, mount) = overlay(layers, name)?;
        let done = map_anew(file).and_then(|map| exchange(map, file, stack, argv, envp));
        close(file);
        call(libc::SYS_munmap, [scratch, size, 0, 0, 0, 0])?;
        done?;
        MOUNT.store(mount as RawFd, Relaxed);
    }
    Some(())
}

/// prctl(2), PR_SET_MM_MAP.
#[repr(C)]
struct Map {
    start_code: usize,
    end_code: usize,
    start_data: usize,
    end_data: usize,
    start_brk: usize,
    brk: usize,
    start_stack: usize,
    arg_start: usize,
    arg_end: usize,
    env_start: usize,
    env_end: usize,
    auxv: usize,
    auxv_size: u32,
    exe_fd: u32,
}

unsafe extern "C" {
    /// The binary's own header, by the linker.
    static __ehdr_start: Elf64_Ehdr;
}

/// Maps each segment as the kernel's loader has (load_elf_binary), from `file`. The code that does it is exchanged for the
/// same code. Returns the bounds as the loader counts them.
unsafe fn map_anew(file: usize) -> Option<Map> {
    const PAGE: usize = 4096;
    // SAFETY: the segments are the binary's own, whose memory is still what the file says: nothing has been written there.
    unsafe {
        let header = &raw const __ehdr_start;
        let segments: *const Elf64_Phdr = header.byte_add((*header).e_phoff as usize).cast();
        let mut map: Map = MaybeUninit::zeroed().assume_init();
        map.start_code = usize::MAX;
        for at in 0..usize::from((*header).e_phnum) {
            let segment = &*segments.add(at);
            if segment.p_type != libc::PT_LOAD {
                continue;
            }
            let has = |flag: u32, access: i32| if segment.p_flags & flag != 0 { access as usize } else { 0 };
            let access = has(libc::PF_R, libc::PROT_READ)
                | has(libc::PF_W, libc::PROT_WRITE)
                | has(libc::PF_X, libc::PROT_EXEC);
            let (start, end) = (segment.p_vaddr as usize, (segment.p_vaddr + segment.p_filesz) as usize);
            let before = start % PAGE;
            let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as usize;
            let offset = segment.p_offset as usize - before;
            call(libc::SYS_mmap, [start - before, end - start + before, access, flags, file, offset])?;
            if segment.p_memsz > segment.p_filesz {
                // The rest of the page is the first of what is zero, and not the file's.
                (end..end.next_multiple_of(PAGE)).for_each(|byte| (byte as *mut u8).write_volatile(0));
            }
            if access & libc::PROT_EXEC as usize != 0 {
                map.start_code = map.start_code.min(start);
                map.end_code = map.end_code.max(end);
            }
            map.start_data = map.start_data.max(start);
            map.end_data = map.end_data.max(end);
        }
        Some(map)
    }
}

/// `/proc/self/exe` becomes `file`, which the kernel allows (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN) only where nothing of
/// the old one is mapped any more. All else in `Map` stays what it is.
unsafe fn exchange(
    mut map: Map,
    file: usize,
    stack: *const usize,
    argv: *const Text,
    mut envp: *const Text,
) -> Option<()> {
    // SAFETY: the arrays end in NULL, each string in NUL; execve(2) puts all strings one after the other.
    unsafe {
        map.start_brk = call(libc::SYS_brk, [0; 6])?;
        map.brk = map.start_brk;
        map.start_stack = stack as usize;
        map.arg_start = *argv as usize;
        let mut last = argv;
        while !(*last.add(1)).is_null() {
            last = last.add(1);
        }
        map.arg_end = end(*last);
        (map.env_start, map.env_end) = (map.arg_end, map.arg_end);
        while !(*envp).is_null() {
            map.env_end = end(*envp);
            envp = envp.add(1);
        }
        map.exe_fd = file as u32;
        let (option, kind) = (libc::PR_SET_MM as usize, libc::PR_SET_MM_MAP as usize);
        call(libc::SYS_prctl, [option, kind, &raw const map as usize, size_of::<Map>(), 0, 0]).map(drop)
    }
}

/// Behind the string's NUL.
unsafe fn end(mut text: Text) -> usize {
    // SAFETY: the caller's string ends in NUL.
    unsafe {
        while text.read_volatile() != 0 {
            text = text.add(1);
        }
        text.add(1) as usize
    }
}

unsafe fn close(fd: usize) {
    // SAFETY: the caller's descriptor.
    unsafe { call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]) };
}

/// As runc >= 1.2: an overlay without an upper layer cannot be written to by anybody, whatever is remounted. Returns the
/// binary in there and, unless the limit on descriptors is low, a handle on the mount: to close the last one is a wait for
/// RCU, which `seal::let_go` puts where somebody waits anyway.
unsafe fn overlay(layers: Text, name: Text) -> Option<(usize, usize)> {
    const CLOEXEC: usize = 1;
    const SET_STRING: usize = 1;
    const CREATE: usize = 6;
    const ATTRIBUTES: u64 = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID;
    let (kind, key) = (c"overlay".as_ptr() as usize, c"lowerdir".as_ptr() as usize);
    // SAFETY: the strings end in NUL.
    unsafe {
        let context = call(libc::SYS_fsopen, [kind, CLOEXEC, 0, 0, 0, 0])?;
        let mount = call(libc::SYS_fsconfig, [context, SET_STRING, key, layers as usize, 0, 0])
            .and_then(|_| call(libc::SYS_fsconfig, [context, CREATE, 0, 0, 0, 0]))
            .and_then(|_| call(libc::SYS_fsmount, [context, CLOEXEC, ATTRIBUTES as usize, 0, 0, 0]));
        close(context);
        let mount = mount?;
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
        let file = call(libc::SYS_openat, [mount, name as usize, flags, 0, 0, 0])
            .filter(|file| is_our_binary(*file));
        // Out of the way of descriptors that a caller passes on, or means to.
        let kept =
            file.and_then(|_| call(libc::SYS_fcntl, [mount, libc::F_DUPFD_CLOEXEC as usize, 512, 0, 0, 0]));
        close(mount);
        Some((file?, kept.unwrap_or(NO_MOUNT as usize)))
    }
}

/// The name may have been given to another file since we were started.
unsafe fn is_our_binary(file: usize) -> bool {
    // SAFETY: the structures are as large as the kernel's, and read only once they are filled.
    unsafe {
        let (mut ours, mut theirs) =
            (MaybeUninit::<libc::stat>::uninit(), MaybeUninit::<libc::stat>::uninit());
        let found = call(libc::SYS_stat, [EXE.as_ptr() as usize, ours.as_mut_ptr() as usize, 0, 0, 0, 0])
            .and_then(|_| call(libc::SYS_fstat, [file, theirs.as_mut_ptr() as usize, 0, 0, 0, 0]));
        let (ours, theirs) = (ours.as_ptr(), theirs.as_ptr());
        found.is_some()
            && (*ours).st_size == (*theirs).st_size
            && (*ours).st_mtime == (*theirs).st_mtime
            && (*ours).st_mtime_nsec == (*theirs).st_mtime_nsec
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
                && call(libc::SYS_access, [other.as_ptr() as usize, 0, 0, 0, 0, 0]).is_some()
        };
        let second = [c"/run", c"/tmp", c"/sys", c"/usr"].iter().find(unrelated).filter(|_| slash > 0)?;
        to = put(to, b':');
        for byte in second.to_bytes() {
            to = put(to, *byte);
        }
        Some(path.add(slash + 1))
    }
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
unsafe fn call(number: libc::c_long, [a, b, c, d, e, f]: [usize; 6]) -> Option<usize> {
    let result: isize;
    // SAFETY: the caller's arguments are what the call's manual page says; the kernel changes rax, rcx and r11 alone.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    usize::try_from(result).ok()
}

//! `linux.resources.devices` on cgroup v2: an eBPF program that the kernel asks at each open and mknod of a
//! device. `program` is pure; `attach` loads it with bpf(2) and puts it in force.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::devices::{ALL, Rule, Which};

/// struct bpf_insn of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    imm: i32,
}

// linux/bpf_common.h and linux/bpf.h; 32-bit jumps (5.1) so that no number is sign-extended.
const LOAD_WORD: u8 = 0x61;
const MOV_REG: u8 = 0xbc;
const MOV: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_EQ: u8 = 0x16;
const JUMP_NE: u8 = 0x56;
const EXIT: u8 = 0x95;

/// r0 is the answer, r1 the context and later scratch.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn insn(code: u8, dst: u8, imm: i32) -> Insn {
    Insn { code, registers: dst, offset: 0, imm }
}

/// The last rule that speaks of an access decides it, for each of read, write and mknod by itself; all that is
/// asked for must be allowed. What no rule speaks of is denied. So the rules are walked backwards: an allowing
/// one strikes its accesses off the request, a denying one that meets an access left over ends it.
pub fn program(rules: &[Rule]) -> Vec<Insn> {
    // struct bpf_cgroup_dev_ctx: u32 access << 16 | kind, u32 major, u32 minor.
    let load = |dst, offset| Insn { code: LOAD_WORD, registers: dst | 1 << 4, offset, imm: 0 };
    let mut code = vec![
        load(KIND, 0),
        Insn { code: MOV_REG, registers: ACCESS | KIND << 4, offset: 0, imm: 0 },
        insn(SHIFT_RIGHT, ACCESS, 16),
        insn(AND, KIND, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        match *rule {
            Rule::Everything { allow } => {
                answer(&mut code, allow);
                return code;
            }
            Rule::Some { allow, which, access } => one_rule(&mut code, allow, which, access),
        }
    }
    answer(&mut code, false);
    code
}

fn one_rule(code: &mut Vec<Insn>, allow: bool, which: Which, access: u8) {
    // BPF_DEVCG_DEV_BLOCK is 1, BPF_DEVCG_DEV_CHAR 2; the access bits are `devices`' own.
    let mut jumps = vec![code.len()];
    code.push(insn(JUMP_NE, KIND, if which.kind == 'b' { 1 } else { 2 }));
    for (register, number) in [(MAJOR, which.major), (MINOR, which.minor)] {
        if let Some(number) = number {
            jumps.push(code.len());
            code.push(insn(JUMP_NE, register, number.cast_signed()));
        }
    }
    if access != ALL {
        if allow {
            code.push(insn(AND, ACCESS, i32::from(!access & ALL)));
            jumps.push(code.len());
            code.push(insn(JUMP_NE, ACCESS, 0));
        } else {
            code.push(Insn { code: MOV_REG, registers: 1 | ACCESS << 4, offset: 0, imm: 0 });
            code.push(insn(AND, 1, access.into()));
            jumps.push(code.len());
            code.push(insn(JUMP_EQ, 1, 0));
        }
    }
    answer(code, allow);
    let end = code.len();
    for jump in jumps {
        // At most eight instructions further, so it fits.
        code[jump].offset = (end - jump - 1) as i16;
    }
}

fn answer(code: &mut Vec<Insn>, allow: bool) {
    code.push(insn(MOV, 0, allow.into()));
    code.push(insn(EXIT, 0, 0));
}

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_DETACH: u32 = 9;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_PROG_QUERY: u32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// More programs than this on one cgroup is not of our making.
const MOST_PROGRAMS: usize = 64;

/// The parts of union bpf_attr that are used. Zero means "not asked for" in all of them.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoadAttr {
    kind: u32,
    length: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttachAttr {
    target: i32,
    program: i32,
    kind: u32,
    flags: u32,
    replaced: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct QueryAttr {
    target: i32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// Attaches the program to the cgroup and takes off those that were there before (a cgroup that is used again).
/// The new one is on before an old one goes: programs of one cgroup must all agree (BPF_F_ALLOW_MULTI), so at no
/// moment is more allowed than by the new one.
pub fn attach(dir: &Path, rules: &[Rule]) -> Result<()> {
    let shown = dir.display();
    let cgroup = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {shown}"))?;
    let program = load(&program(rules)).context("linux.resources.devices: load the device filter")?;
    let old = attached(cgroup.as_fd())
        .with_context(|| format!("linux.resources.devices: query device filters of {shown}"))?;
    change(BPF_PROG_ATTACH, cgroup.as_fd(), program.as_fd(), BPF_F_ALLOW_MULTI)
        .with_context(|| format!("linux.resources.devices: attach the device filter to {shown}"))?;
    for old in old {
        change(BPF_PROG_DETACH, cgroup.as_fd(), old.as_fd(), 0)
            .with_context(|| format!("linux.resources.devices: detach the old device filter of {shown}"))?;
    }
    Ok(())
}

/// Before 5.11 programs are charged to RLIMIT_MEMLOCK, which is often too small even for root. It is raised for
/// the call only: the container inherits our limits.
fn load(code: &[Insn]) -> io::Result<OwnedFd> {
    match load_once(code) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let before = getrlimit(Resource::Memlock);
            if setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_err() {
                return Err(error);
            }
            let result = load_once(code);
            setrlimit(Resource::Memlock, before)?;
            result
        }
        result => result,
    }
}

fn load_once(code: &[Insn]) -> io::Result<OwnedFd> {
    // SAFETY: integers and bytes only, for which zero is a value.
    let mut attr: LoadAttr = unsafe { zeroed() };
    attr.kind = BPF_PROG_TYPE_CGROUP_DEVICE;
    attr.length = code.len() as u32;
    attr.code = code.as_ptr() as u64;
    attr.license = c"Apache".as_ptr() as u64;
    attr.name[..12].copy_from_slice(b"runw_devices");
    descriptor(bpf(BPF_PROG_LOAD, &mut attr)?)
}

fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MOST_PROGRAMS];
    // SAFETY: integers only, for which zero is a value.
    let mut attr: QueryAttr = unsafe { zeroed() };
    attr.target = cgroup.as_raw_fd();
    attr.kind = BPF_CGROUP_DEVICE;
    attr.ids = ids.as_mut_ptr() as u64;
    attr.count = MOST_PROGRAMS as u32;
    bpf(BPF_PROG_QUERY, &mut attr)?;
    // `attr` starts with the id; union bpf_attr { __u32 prog_id; __u32 next_id; __u32 open_flags; }.
    let open = |&id: &u32| descriptor(bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0])?);
    ids.iter().take(attr.count as usize).map(open).collect()
}

fn change(command: u32, cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let (target, program) = (cgroup.as_raw_fd(), program.as_raw_fd());
    let mut attr = AttachAttr { target, program, kind: BPF_CGROUP_DEVICE, flags, replaced: 0 };
    bpf(command, &mut attr).map(drop)
}

fn descriptor(raw: libc::c_long) -> io::Result<OwnedFd> {
    // SAFETY: called only with the result of a bpf command that returns a new descriptor (bpf(2) sets CLOEXEC on
    // it), which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

/// bpf(2). `T` is one of the repr(C) parts of union bpf_attr above; the kernel takes the rest as zero.
fn bpf<T: Copy>(command: u32, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is live and of the size passed; the pointers in it (instructions, licence, ids) are made by
    // the callers from locals that outlive the call, with their true lengths.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::super::devices::{MKNOD, READ, WRITE, rules};
    use super::*;

    /// The few instructions we emit, as the kernel runs them.
    fn run(code: &[Insn], kind: char, major: u32, minor: u32, access: u8) -> bool {
        let context = [u32::from(access) << 16 | if kind == 'b' { 1 } else { 2 }, major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0usize;
        loop {
            let Insn { code, registers: pair, offset, imm } = code[at];
            let (dst, src) = (usize::from(pair & 15), usize::from(pair >> 4));
            let imm = imm.cast_unsigned();
            at += 1;
            match code {
                LOAD_WORD => registers[dst] = context[offset as usize / 4],
                MOV_REG => registers[dst] = registers[src],
                MOV => registers[dst] = imm,
                AND => registers[dst] &= imm,
                SHIFT_RIGHT => registers[dst] >>= imm,
                JUMP_EQ if registers[dst] == imm => at += offset as usize,
                JUMP_NE if registers[dst] != imm => at += offset as usize,
                JUMP_EQ | JUMP_NE => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn of(devices: &str) -> Vec<Insn> {
        program(&rules(Some(&serde_json::from_str(&format!(r#"{{"devices":{devices}}}"#)).unwrap())).unwrap())
    }

    #[test]
    fn by_default_only_the_default_devices() {
        let code = program(&rules(None).unwrap());
        assert!(run(&code, 'c', 1, 3, READ | WRITE));
        assert!(run(&code, 'c', 136, 7, ALL));
        assert!(run(&code, 'b', 8, 0, MKNOD));
        assert!(!run(&code, 'b', 8, 0, READ));
        assert!(!run(&code, 'b', 8, 0, MKNOD | READ));
        assert!(!run(&code, 'c', 1, 11, READ));
        assert!(!run(&code, 'b', 1, 3, READ), "a block device with the numbers of /dev/null");
    }

    #[test]
    fn the_last_matching_rule_wins_for_each_access() {
        let code = of(r#"[{"allow":false},{"allow":true,"type":"b","major":8,"access":"rw"},
            {"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]"#);
        assert!(run(&code, 'b', 8, 0, READ | WRITE));
        assert!(run(&code, 'b', 8, 1, READ));
        assert!(!run(&code, 'b', 8, 1, WRITE));
        assert!(!run(&code, 'b', 8, 1, READ | WRITE));
        assert!(!run(&code, 'b', 9, 0, READ));
    }

    #[test]
    fn everything_allowed_with_a_hole() {
        let code = of(r#"[{"allow":true},{"allow":false,"type":"c","major":1,"minor":11}]"#);
        assert!(run(&code, 'b', 8, 0, ALL));
        assert!(!run(&code, 'c', 1, 11, READ));
        assert!(run(&code, 'c', 1, 11, MKNOD), "runc's defaults allow every mknod");
    }

    #[test]
    fn read_by_one_rule_and_write_by_another_add_up() {
        let code = of(
            r#"[{"allow":true,"type":"c","major":9,"access":"r"},{"allow":true,"type":"c","major":9,"access":"w"}]"#,
        );
        assert!(run(&code, 'c', 9, 9, READ | WRITE));
    }

    #[test]
    fn numbers_beyond_31_bits_are_compared_whole() {
        let code = of(r#"[{"allow":true,"type":"c","major":4294967295,"minor":0}]"#);
        assert!(run(&code, 'c', u32::MAX, 0, READ));
        assert!(!run(&code, 'c', 0, 0, READ));
    }

    /// A v2 cgroup of our own, gone at the end.
    struct Cgroup(std::path::PathBuf);

    impl Cgroup {
        /// None where this machine has no v2 tree that we may use.
        fn new() -> Option<Cgroup> {
            let trees = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
            let tree = trees.into_iter().find(|tree| tree.join("cgroup.subtree_control").exists())?;
            let dir = tree.join(format!("runw-test-filter-{}", std::process::id()));
            std::fs::create_dir(&dir).ok().map(|()| Cgroup(dir))
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn a_new_program_takes_the_place_of_the_old_ones() {
        let Some(cgroup) = Cgroup::new() else { return eprintln!("skipped: no cgroup v2 that may be used") };
        let dir =
            rustix::fs::open(&cgroup.0, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dir = dir.unwrap();
        // Two of others, as a cgroup that is used again may have them.
        for rules in ["[]", r#"[{"allow":true}]"#] {
            change(BPF_PROG_ATTACH, dir.as_fd(), load(&of(rules)).unwrap().as_fd(), BPF_F_ALLOW_MULTI)
                .unwrap();
        }
        assert_eq!(attached(dir.as_fd()).unwrap().len(), 2);
        for _ in 0..2 {
            attach(&cgroup.0, &rules(None).unwrap()).unwrap();
            assert_eq!(attached(dir.as_fd()).unwrap().len(), 1);
        }
    }
}

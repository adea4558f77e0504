//! `linux.seccomp` as the kernel has it: every action, the architectures of one machine, flags, and the agent.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{
    Bundle, ConsoleSocket, Container, Kind, Verdict, differs, kind, nothing_left, runw_only, skip, spawn,
    supervised, until,
};

/// An ELF program that makes one system call with zeroes as arguments and exits with its errno, 0 for success.
/// `old_gate` is int 0x80, the i386 table.
fn caller(path: &Path, number: u32, old_gate: bool) {
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    // xor edi, esi, edx, ebx, ecx with themselves; the call.
    code.extend([0x31, 0xff, 0x31, 0xf6, 0x31, 0xd2, 0x31, 0xdb, 0x31, 0xc9]);
    code.extend(if old_gate { [0xcd, 0x80] } else { [0x0f, 0x05] });
    // xor edi, edi; test eax, eax; jns over: mov edi, eax; neg edi; over: mov eax, exit_group; syscall.
    code.extend([0x31, 0xff, 0x85, 0xc0, 0x79, 0x04, 0x89, 0xc7, 0xf7, 0xdf, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]);
    let (base, size) = (0x40_0000_u64, 64 + 56 + code.len() as u64);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    // Entry, program headers right after this one, no sections; 64 bytes, one header of 56.
    [base + 120, 64, 0].iter().for_each(|word| file.extend(word.to_le_bytes()));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    [0, base, base, size, size, 0x1000].iter().for_each(|word| file.extend(word.to_le_bytes()));
    file.extend(code);
    std::fs::write(path, file).expect("write a program");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("chmod");
}

/// The exit status of that one call under `seccomp`.
fn status_of(number: u32, old_gate: bool, seccomp: Option<Value>) -> i32 {
    let bundle = Bundle::new(&["/call"]);
    caller(&bundle.rootfs().join("call"), number, old_gate);
    let c = Container::new(bundle.edit(|c| {
        if let Some(seccomp) = seccomp {
            c["linux"]["seccomp"] = seccomp;
        }
    }));
    c.run().code
}

const MKDIR: u32 = 83;
const MKDIR_I386: u32 = 39;
const X32: u32 = 1 << 30;
const EFAULT: i32 = 14;
const SIGSYS: i32 = 128 + 31;

fn not_this_machine() -> bool {
    let other = !cfg!(target_arch = "x86_64");
    if other {
        skip("the program is x86_64's");
    }
    other
}

#[test]
fn every_action() {
    if not_this_machine() {
        return;
    }
    let rule = |action: &str| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir"], "action": action}]})
    };
    // Without a tracer a traced call is ENOSYS (seccomp(2)).
    for (action, wanted) in [
        ("SCMP_ACT_ERRNO", 1),
        ("SCMP_ACT_KILL", SIGSYS),
        ("SCMP_ACT_KILL_THREAD", SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", SIGSYS),
        ("SCMP_ACT_TRAP", SIGSYS),
        ("SCMP_ACT_TRACE", libc::ENOSYS),
        ("SCMP_ACT_LOG", EFAULT),
        ("SCMP_ACT_ALLOW", EFAULT),
    ] {
        assert_eq!(status_of(MKDIR, false, Some(rule(action))), wanted, "{action}");
    }
    let mut chosen = rule("SCMP_ACT_ERRNO");
    chosen["syscalls"][0]["errnoRet"] = json!(77);
    assert_eq!(status_of(MKDIR, false, Some(chosen)), 77);
    // And as what happens to all that no rule names; the loader needs none of what is left out here.
    let mut default = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["execve", "exit_group", "mkdirat", "read", "write", "close", "futex", "rt_sigaction"],
            "action": "SCMP_ACT_ALLOW"}]});
    if kind() == Kind::Runw {
        assert_eq!(status_of(MKDIR, false, Some(default.clone())), 1);
        default["defaultErrnoRet"] = json!(99);
        assert_eq!(status_of(MKDIR, false, Some(default)), 99);
    }
}

/// One machine has three system call tables, and a profile for one of them must not leave the others open.
#[test]
fn the_other_architectures_of_the_machine() {
    if not_this_machine() {
        return;
    }
    let profile = |architectures: &[&str]| {
        Some(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]}))
    };
    let all = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
    assert_eq!(status_of(MKDIR, false, profile(&all)), 77);
    assert_eq!(status_of(X32 | MKDIR, false, profile(&all)), 77);
    // The tables that are not named cannot be used at all.
    assert_eq!(status_of(X32 | MKDIR, false, profile(&all[..1])), SIGSYS);
    // The native one need not be named.
    assert_eq!(status_of(MKDIR, false, profile(&all[1..])), 77);
    assert_eq!(status_of(MKDIR, false, profile(&[])), 77);
    if status_of(MKDIR_I386, true, None) != EFAULT {
        return skip("this kernel has no i386 system calls");
    }
    assert_eq!(status_of(MKDIR_I386, true, profile(&all)), 77);
    assert_eq!(status_of(MKDIR_I386, true, profile(&all[..1])), SIGSYS);
}

/// A call that no profile could name is ENOSYS, so that libc falls back, whatever the profile says of the rest.
#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    if not_this_machine() {
        return;
    }
    let profile = |default: &str| {
        let names =
            ["execve", "exit_group", "read", "write", "close", "futex", "rt_sigaction", "epoll_pwait2"];
        Some(json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"}]}))
    };
    if kind() == Kind::Runw {
        // A runtime of Go has more to do under the filter than these.
        assert_eq!(status_of(5000, false, profile("SCMP_ACT_ERRNO")), libc::ENOSYS);
        assert_eq!(status_of(MKDIR, false, profile("SCMP_ACT_ERRNO")), 1);
    }
    assert_eq!(status_of(5000, false, profile("SCMP_ACT_ALLOW")), libc::ENOSYS);
}

/// The flags as seccomp(2) gets them: no later look at a process shows them all.
#[test]
fn flags_reach_the_kernel() {
    if runw_only("such a supervisor: it would have to answer a threaded runtime") {
        return;
    }
    let names = |flags: &[&str]| -> Vec<String> {
        flags.iter().map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}")).collect()
    };
    const LISTENER: u64 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    const KILLABLE: u64 = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let (tsync, log, allow) = (
        libc::SECCOMP_FILTER_FLAG_TSYNC,
        libc::SECCOMP_FILTER_FLAG_LOG,
        libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    );
    // Without a list runc wants SPEC_ALLOW, and an empty one is a list.
    for (flags, wanted) in [
        (None, allow),
        (Some(names(&[])), 0),
        (Some(names(&["TSYNC"])), tsync),
        (Some(names(&["LOG", "SPEC_ALLOW"])), log | allow),
        (Some(names(&["LOG", "TSYNC", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"])), log | tsync | allow),
    ] {
        let bundle = Bundle::sh("exit 4").edit(|c| {
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
            if let Some(flags) = &flags {
                c["linux"]["seccomp"]["flags"] = json!(flags);
            }
        });
        let c = Container::new(bundle);
        let (mut running, calls) = supervised(&mut c.run_command(&[]), |_| Verdict::Pass);
        assert_eq!(running.wait().code, 4, "{flags:?}");
        let calls = calls.lock().expect("calls");
        let loaded = calls.iter().filter(|call| {
            !call.by_runtime
                && call.name == "seccomp"
                && call.args[0] == u64::from(libc::SECCOMP_SET_MODE_FILTER)
        });
        let loaded: Vec<u64> = loaded.map(|call| call.args[1]).collect();
        assert_eq!(loaded, [wanted], "{flags:?}");
        assert_eq!(wanted & (LISTENER | KILLABLE), 0, "nobody listens here");
    }
}

/// Answers every question with EXDEV.
const AGENT: &str = "while (1) { my $n = \"\\0\" x 80; ioctl(STDIN, 0xc0502100, $n) or exit 0; \
    my ($id) = unpack('Q', $n); my $r = pack('QqlL', $id, 0, -18, 0); ioctl(STDIN, 0xc0182101, $r); }";

struct Agent(Child);

impl Agent {
    fn on(listener: std::fs::File) -> Agent {
        Agent(Command::new("perl").args(["-e", AGENT]).stdin(Stdio::from(listener)).spawn().expect("perl"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn notifying(script: &str, fields: Value) -> (Container, ConsoleSocket) {
    let bundle = Bundle::sh(script);
    let socket = ConsoleSocket::new(bundle.path());
    let bundle = bundle.edit(|c| {
        c["annotations"] = json!({"org.example.key": "value"});
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket.path,
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
        let seccomp = c["linux"]["seccomp"].as_object_mut().expect("seccomp");
        seccomp.extend(fields.as_object().expect("an object").clone());
    });
    (Container::new(bundle), socket)
}

fn keys(document: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = document.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// config-linux.md, "The Container Process State": of init while it is made, of an exec while the container runs.
#[test]
fn the_agent_gets_the_container_process_state() {
    if differs(Kind::Crun, "1.8 sends another document") {
        return;
    }
    let (mut c, socket) =
        notifying("mkdir /tmp/x; exec sleep 100", json!({"listenerMetadata": "for the agent"}));
    let mut creating = spawn(&mut c.create_command(&[]));
    let (listener, text) = socket.receive();
    let _agent = Agent::on(listener);
    creating.wait().ok();
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(keys(&document), ["fds", "metadata", "ociVersion", "pid", "state"]);
    assert_eq!(document["fds"], json!(["seccompFd"]));
    assert_eq!(document["metadata"], "for the agent");
    assert_eq!(document["pid"], c.pid());
    let state = &document["state"];
    let bundle = c.bundle.path().to_str().expect("utf-8");
    let wanted = json!({"ociVersion": state["ociVersion"], "id": c.id, "status": "creating", "pid": c.pid(),
        "bundle": bundle, "annotations": {"org.example.key": "value"}});
    assert_eq!(*state, wanted);
    assert!(state["ociVersion"].is_string() && document["ociVersion"].is_string());
    c.start();
    let mut exec = spawn(&mut c.exec_command(&[], &["/bin/sh", "-c", "mkdir /tmp/y; sleep 100"]));
    let (listener, text) = socket.receive();
    let _second = Agent::on(listener);
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&document["state"]["status"], &document["state"]["pid"]),
        (&json!("running"), &json!(c.pid()))
    );
    let pid = document["pid"].as_i64().expect("a pid");
    assert_ne!(pid, i64::from(c.pid()));
    until("the answer", || exec.err().contains("cross-device"));
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("the process of the exec");
    // The shell has become its last command.
    assert!(line.contains("sleep"), "{line:?}");
    c.call(&["delete", "--force", &c.id]).ok();
    assert_eq!(exec.wait().code, 137);
    nothing_left(&c);
}

#[test]
fn an_agent_without_metadata_and_with_killable_waits() {
    if runw_only("this flag: 1.1 and 1.8 are older") {
        return;
    }
    let flags = json!({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"]});
    let (c, socket) = notifying("mkdir /tmp/x; echo status $?", flags);
    let mut running = c.spawn_run(&[]);
    let (listener, text) = socket.receive();
    let agent = Agent::on(listener);
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(keys(&document), ["fds", "ociVersion", "pid", "state"]);
    let out = running.wait();
    drop(agent);
    assert_eq!((out.code, out.out.as_str()), (0, "status 1\n"), "{out:?}");
    assert!(out.err.contains("cross-device"), "{out:?}");
    nothing_left(&c);
}

#[test]
fn an_agent_that_is_not_there() {
    let (c, socket) = notifying("true", json!({}));
    drop(socket);
    let out = c.run();
    assert_eq!(out.code, 1, "{out:?}");
    if kind() == Kind::Runw {
        out.refused(&["linux.seccomp.listenerPath", "console.sock"]);
    }
    nothing_left(&c);
}

//! A guest is a process: its streams, its end, what pid 1 owes the others, and what cannot be imported.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    Bundle, ConsoleSocket, Container, guest, nothing_left, run, runw_only, spawn_with_stdin, until,
};

const PROBES: [&str; 2] = ["probe.wasm", "probe-component.wasm"];

fn text(code: &str) -> Bundle {
    let bundle = Bundle::new(&["/app.wat"]).edit(|c| c["annotations"]["run.oci.handler"] = json!("wasm"));
    std::fs::write(bundle.rootfs().join("app.wat"), code).expect("write a guest");
    bundle
}

#[test]
fn stdin_is_a_pipe_a_file_or_closed() {
    if runw_only("wasm") {
        return;
    }
    for probe in PROBES {
        let c = Container::new(Bundle::wasm(probe, &["cat", "say", "end"]));
        let out = spawn_with_stdin(&mut c.run_command(&[]), b"by a pipe\n").wait().ok().out;
        assert_eq!(out, "by a pipe\nend\n", "{probe}");

        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"by a file\n").expect("write");
        std::io::Seek::rewind(&mut file).expect("rewind");
        let c = Container::new(Bundle::wasm(probe, &["cat", "say", "end"]));
        let out = c.run_command(&[]).stdin(file).output().expect("run");
        assert_eq!(String::from_utf8_lossy(&out.stdout), "by a file\nend\n", "{probe}");

        let c = Container::new(Bundle::wasm(probe, &["cat", "say", "end"]));
        let command = c.run_command(&[]);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "exec \"$@\" <&-", "sh"]).arg(command.get_program()).args(command.get_args());
        assert_eq!(run(&mut shell).ok().out, "end\n", "{probe}: an end of file, not another's descriptor");
        nothing_left(&c);
    }
}

#[test]
fn stdin_is_a_terminal_that_is_typed_into() {
    if runw_only("wasm") {
        return;
    }
    for probe in PROBES {
        let bundle = Bundle::wasm(probe, &["say", "type!", "cat", "say", "end"]);
        let mut c = Container::new(bundle.edit(|c| c["process"]["terminal"] = json!(true)));
        let socket = ConsoleSocket::new(c.bundle.path());
        c.create_with(&["--console-socket", socket.path.to_str().expect("utf-8")]).ok();
        let (mut master, _) = socket.receive();
        c.start();
        // A line, and the end of input.
        master.write_all(b"typed\n\x04").expect("type");
        let seen = ConsoleSocket::read_to_end(&mut master);
        // The echo, and what the guest says of it; which of them comes first is the terminal's affair.
        assert_eq!(seen.matches("typed\r\n").count(), 2, "{probe}: {seen:?}");
        assert!(seen.ends_with("end\r\n"), "{probe}: {seen:?}");
    }
}

/// Both streams, and counted in time on the CPU: what else the machine does is not the guest's.
#[test]
fn streams_run_at_50_megabytes_a_second_without_a_stall() {
    if runw_only("wasm") {
        return;
    }
    const ALL: usize = 64 << 20;
    for probe in PROBES {
        let c = Container::new(Bundle::wasm(probe, &["cat"]));
        let mut child = c.run_command(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run");
        let (mut to, mut from) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
        let writer = std::thread::spawn(move || {
            let piece = vec![b'x'; 1 << 16];
            (0..ALL / piece.len()).for_each(|_| to.write_all(&piece).expect("write"));
            to
        });
        let (mut taken, mut pauses, mut last) = (0, Vec::new(), Instant::now());
        let mut piece = vec![0; 1 << 16];
        while taken < ALL {
            let count = from.read(&mut piece).expect("read");
            assert!(count > 0 && piece[..count].iter().all(|byte| *byte == b'x'), "{probe}: after {taken}");
            pauses.push(last.elapsed());
            last = Instant::now();
            taken += count;
        }
        // Ticks are of 10 ms (sysconf(3), _SC_CLK_TCK, on every Linux that runw runs on).
        let rate = ALL as f64 / 1e6 / (cpu_ticks(c.pid()) as f64 / 100.0);
        // The first is the start of the container.
        let longest = pauses[1..].iter().max().expect("more than one piece");
        eprintln!(
            "{probe}: {rate:.0} MB/s of CPU time through stdin and stdout, the longest pause {longest:?}"
        );
        drop(writer.join().expect("the writer"));
        assert!(child.wait().expect("wait").success());
        assert!(rate > 50.0, "{probe}: {rate} MB/s");
        assert!(*longest < Duration::from_secs(20), "{probe}: a pause of {longest:?}");
    }
}

/// proc_pid_stat(5): utime and stime are fields 14 and 15, and the name in field 2 may hold spaces.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    fields[14 - 3..=15 - 3].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn a_trap_names_the_functions_it_came_through() {
    if runw_only("wasm") {
        return;
    }
    let module = r#"(module $faulty
        (func $innermost (unreachable))
        (func $middle (call $innermost))
        (func $outermost (export "_start") (call $middle)))"#;
    let out = Container::new(text(module)).run();
    assert_eq!(out.code, 134, "{out:?}");
    for word in ["unreachable", "innermost", "middle", "outermost"] {
        assert!(out.err.contains(word), "{word}: {out:?}");
    }
}

#[test]
fn each_signal_that_ends_a_process_ends_a_guest() {
    if runw_only("wasm") {
        return;
    }
    for probe in PROBES {
        for steps in [&["say", "up", "spin"][..], &["say", "up", "sleep", "100"]] {
            for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129), ("USR1", 138), ("USR2", 140)] {
                let c = Container::new(Bundle::wasm(probe, steps));
                let mut running = c.spawn_run(&[]);
                until("up", || running.out().contains("up"));
                c.kill(signal).ok();
                assert_eq!(running.wait().code, code, "{probe} {steps:?} {signal}");
            }
        }
    }
}

#[test]
fn signals_that_end_no_process_end_no_guest() {
    if runw_only("wasm") {
        return;
    }
    let c = Container::new(Bundle::wasm("probe.wasm", &["say", "up", "cat", "say", "after"]));
    let mut child = c.run_command(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run");
    let (to, mut from) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
    let mut up = [0; 3];
    from.read_exact(&mut up).expect("up");
    for signal in ["CHLD", "WINCH", "URG", "CONT", "PIPE"] {
        c.kill(signal).ok();
    }
    drop(to);
    let mut rest = String::new();
    from.read_to_string(&mut rest).expect("read");
    assert_eq!((rest.as_str(), child.wait().expect("wait").code()), ("after\n", Some(0)));
}

/// The process has nobody else to keep waiting.
#[test]
fn file_operations_of_a_command_start_no_threads() {
    if runw_only("wasm") {
        return;
    }
    for probe in PROBES {
        let steps =
            ["read", "/etc/group", "write", "/tmp/x", "1", "list", "/tmp", "say", "up", "sleep", "100"];
        let c = Container::up(Bundle::wasm(probe, &steps));
        c.wait_out("up");
        let threads = std::fs::read_dir(format!("/proc/{}/task", c.pid())).expect("tasks").count();
        assert_eq!(threads, 1, "{probe}: {}", c.out());
    }
}

#[test]
fn orphans_of_an_exec_leave_no_zombie() {
    if runw_only("wasm") {
        return;
    }
    let c = Container::up(Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]));
    c.wait_out("up");
    // The shell ends before what it started, which the container's first process inherits.
    c.sh("(for i in 1 2 3; do (true & sleep 0.1 &) ; done)");
    let pid = c.pid();
    until("all orphans are gone", || {
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children").is_empty()
    });
}

#[test]
fn an_exec_beside_a_guest_is_under_the_container_s_filter_and_limits() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]).edit(|c| {
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
        c["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        c["process"]["capabilities"] = crate::harness::cap(&["CAP_CHOWN"]);
    });
    std::fs::copy(guest("probe.wasm"), bundle.rootfs().join("bin/probe.wasm")).expect("copy");
    let c = Container::up(bundle);
    c.wait_out("up");
    let native = c.sh(
        "mkdir /tmp/x 2>&1 | sed 's/.*: //'; grep Seccomp: /proc/self/status; grep memory /proc/self/cgroup",
    );
    assert!(native.starts_with("Operation not permitted\nSeccomp:\t2\n"), "{native}");
    // The container's capabilities are an exec's, though the guest itself has fewer.
    assert_eq!(c.sh("chown 1000 /home; stat -c %u /home"), "1000\n");
    let out = c.exec(&[], &["probe.wasm", "mkdir", "/tmp/x", "grow", "200", "exit", "3"]);
    assert_eq!(out.code, 3, "{out:?}");
    assert!(out.out.starts_with("mkdir /tmp/x: EPERM\ngrow: refused at "), "{out:?}");
}

#[test]
fn a_guest_keeps_the_capabilities_it_has_a_use_for() {
    if runw_only("wasm") {
        return;
    }
    let all = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_MKNOD",
    ];
    for probe in PROBES {
        let bundle = Bundle::wasm(probe, &["say", "up", "sleep", "100"])
            .edit(|c| c["process"]["capabilities"] = crate::harness::cap(&all));
        let c = Container::up(bundle);
        c.wait_out("up");
        let status = std::fs::read_to_string(format!("/proc/{}/status", c.pid())).expect("status");
        let useful = 1 << 1 | 1 << 3 | 1 << 10;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t{useful:016x}\n")), "{probe} {set}: {status}");
        }
        let native = c.sh("grep CapEff /proc/self/status");
        assert_eq!(native, format!("CapEff:\t{:016x}\n", bits(&all)), "an exec has the container's");
    }
}

fn bits(names: &[&str]) -> u64 {
    let number = |name: &&str| match *name {
        "CAP_CHOWN" => 0,
        "CAP_DAC_OVERRIDE" => 1,
        "CAP_FOWNER" => 3,
        "CAP_KILL" => 5,
        "CAP_NET_BIND_SERVICE" => 10,
        "CAP_SYS_CHROOT" => 18,
        "CAP_MKNOD" => 27,
        other => panic!("{other}"),
    };
    names.iter().map(number).fold(0, |bits, number| bits | 1u64 << number)
}

/// What a neighbour in the pid namespace, or the host, sees of it: no way to the container's /proc.
#[test]
fn the_root_of_a_guest_s_process_is_the_guest_s_files() {
    if runw_only("wasm") {
        return;
    }
    let c = Container::up(Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]));
    c.wait_out("up");
    let root = format!("/proc/{}/root", c.pid());
    assert!(Path::new(&root).join("etc/group").exists());
    for name in ["proc", "dev", "sys"] {
        assert_eq!(std::fs::read_dir(Path::new(&root).join(name)).expect("a directory").count(), 0, "{name}");
    }
    assert_eq!(c.sh("ls -d /proc/self /dev/null"), "/dev/null\n/proc/self\n", "an exec has the container's");
}

/// The guest itself does not see it.
#[test]
fn an_exec_beside_a_guest_finds_what_was_mounted_since() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]);
    let bundle = bundle.edit(|c| c["process"]["capabilities"] = crate::harness::cap(&["CAP_SYS_ADMIN"]));
    let c = Container::up(bundle);
    c.wait_out("up");
    c.sh("mount -t tmpfs t /mnt && cp /app.wasm /bin/busybox /mnt/ && ln -s busybox /mnt/echo");
    assert_eq!(c.exec(&[], &["/mnt/app.wasm", "say", "late"]).ok().out, "late\n");
    assert_eq!(c.exec(&[], &["/mnt/echo", "native"]).ok().out, "native\n");
    assert_eq!(std::fs::read_dir(format!("/proc/{}/root/mnt", c.pid())).expect("a directory").count(), 0);
}

/// startContainer hooks run in the guest's process before it, in the container as it is.
#[test]
fn start_hooks_see_the_container_and_the_guest_is_held_all_the_same() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm(
        "probe.wasm",
        &["read", "/proc/self/mem", "read", "/tmp/hook", "say", "up", "sleep", "100"],
    );
    let bundle = bundle.edit(|c| {
        let script = "cat /proc/self/comm >/tmp/hook && ls /dev/null >>/tmp/hook";
        c["hooks"]["startContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        c["process"]["capabilities"] = crate::harness::cap(&["CAP_DAC_OVERRIDE", "CAP_MKNOD"]);
    });
    let c = Container::up(bundle);
    c.wait_out("up");
    assert!(c.out().starts_with("read /proc/self/mem: ENOENT\nread /tmp/hook: ["), "{}", c.out());
    let status = std::fs::read_to_string(format!("/proc/{}/status", c.pid())).expect("status");
    assert!(status.contains("CapEff:\t0000000000000002\n") && status.contains("Seccomp:\t2"), "{status}");
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    if runw_only("wasm") {
        return;
    }
    let c = Container::up(Bundle::wasm("probe.wasm", &["say", "up", "spin"]));
    c.wait_out("up");
    let ticks = || cpu_ticks(c.pid());
    let first = ticks();
    until("it computes", || ticks() > first);
    c.call(&["pause", &c.id]).ok();
    assert_eq!(c.status(), "paused");
    let frozen = ticks();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ticks(), frozen);
    c.call(&["resume", &c.id]).ok();
    until("it computes again", || ticks() > frozen);
    c.call(&["pause", &c.id]).ok();
    c.kill("KILL").ok();
    c.wait_stopped();
}

/// Memory that no store counts: the kernel speaks, and the status is the one engines know.
#[test]
fn out_of_memory_is_137() {
    if runw_only("wasm") {
        return;
    }
    let module = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 2)
        (data (i32.const 0) "t/big")
        (func (export "_start")
          (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 1)
            (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 1024)) (then (call $exit (i32.const 1))))
          (i32.store (i32.const 2048) (i32.const 4096)) (i32.store (i32.const 2052) (i32.const 65536))
          (loop $more
            (if (call $write (i32.load (i32.const 1024)) (i32.const 2048) (i32.const 1) (i32.const 2056))
              (then (call $exit (i32.const 2))))
            (br $more))))"#;
    let bundle = text(module)
        .edit(|c| c["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20}))
        .mount("/t", "tmpfs", Path::new("tmpfs"), &["size=1g", "mode=1777"]);
    let c = Container::new(bundle);
    let out = c.run();
    assert_eq!(out.code, 137, "{out:?}");
    nothing_left(&c);
}

#[track_caller]
fn not_linked(code: &str, words: &[&str]) {
    if runw_only("wasm") {
        return;
    }
    let c = Container::new(text(code));
    let out = c.run();
    out.refused(words);
    assert_eq!(out.err.lines().count(), 1, "{out:?}");
    nothing_left(&c);
}

fn importing(module: &str, name: &str) -> String {
    format!(
        r#"(module (import "{module}" "{name}" (func (param i32) (result i32))) (func (export "_start")))"#
    )
}

#[test]
fn an_import_of_wasi_threads_names_it_and_the_way_out() {
    not_linked(
        &importing("wasi", "thread-spawn"),
        &["wasi", "thread-spawn", "build without threads", "wasm32-wasip1"],
    );
}

#[test]
fn an_import_of_wasix_names_it_and_the_way_out() {
    not_linked(
        &importing("wasix_32v1", "proc_fork"),
        &["wasix_32v1", "proc_fork", "Wasmer", "wasm32-wasip1"],
    );
}

#[test]
fn an_import_of_wasmedge_s_sockets_names_it_and_the_way_out() {
    let code = importing("wasi_snapshot_preview1", "sock_open");
    not_linked(&code, &["wasi_snapshot_preview1", "sock_open", "WasmEdge", "wasm32-wasip2"]);
}

#[test]
fn an_import_of_a_wasmedge_plugin_names_it_and_the_way_out() {
    not_linked(&importing("wasmedge_process", "run"), &["wasmedge_process", "run", "WasmEdge", "plain WASI"]);
}

#[test]
fn an_import_of_spin_names_it_and_the_way_out() {
    let component = r#"(component
        (import "fermyon:spin/key-value@2.0.0" (instance (export "open" (func))))
        (core module $m (func (export "run") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#;
    not_linked(component, &["fermyon:spin/key-value@2.0.0", "Spin", "wasi:http"]);
    not_linked(&importing("spin_sdk", "call"), &["spin_sdk", "call", "Spin"]);
}

#[test]
fn an_import_of_wasi_preview_0_names_it_and_the_way_out() {
    not_linked(&importing("wasi_unstable", "fd_close"), &["wasi_unstable", "fd_close", "preview 0"]);
}

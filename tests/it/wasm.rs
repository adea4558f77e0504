//! Wasm containers: chosen without being told, with the life of a process.

use std::path::Path;

use serde_json::json;

use crate::harness::{
    Bundle, COLD, Container, Out, guest, nothing_left, run, runw_only, spawn_with_stdin, until, with_cache,
};

/// Core module and component of the same program.
const PROBES: [&str; 2] = ["probe.wasm", "probe-component.wasm"];

#[track_caller]
fn output(bundle: Bundle) -> String {
    Container::new(bundle).run().ok().out
}

#[test]
fn hello_in_every_language_and_world() {
    if runw_only("wasm") {
        return;
    }
    let table = [
        ("hello.wasm", "c"),
        ("hello-component.wasm", "c"),
        ("rust-p1.wasm", "rust"),
        ("rust-p2.wasm", "rust"),
        ("go.wasm", "go"),
    ];
    for (name, language) in table {
        let c = Container::new(Bundle::wasm(name, &[]));
        let out = c.run();
        assert_eq!(
            (out.code, out.out),
            (0, format!("hello from wasm ({language})\n")),
            "{name}: {}",
            out.err
        );
        nothing_left(&c);
    }
}

#[test]
fn arguments_and_environment_are_the_spec_s() {
    if runw_only("wasm") {
        return;
    }
    for name in PROBES {
        let c =
            Container::new(Bundle::wasm(name, &["env", "args", "two words", ""]).env(&["B=2", "A=1", "E="]));
        let out = run(c.run_command(&[]).env("FROM_THE_HOST", "x")).ok().out;
        assert_eq!(
            out,
            "env [B=2]\nenv [A=1]\nenv [E=]\narg 0 [/app.wasm]\narg 1 [env]\narg 2 [args]\narg 3 [two words]\narg 4 []\n",
            "{name}"
        );
    }
}

/// A library has nothing that could be started, but a function of it can be.
#[test]
fn a_reactor_is_refused_and_its_functions_can_be_called() {
    if runw_only("wasm") {
        return;
    }
    let called = |name: &str| {
        let bundle = Bundle::wasm("reactor.wasm", &[]);
        let c = Container::new(bundle.edit(|c| c["process"]["args"] = json!([name])));
        let out = c.run();
        nothing_left(&c);
        out
    };
    called("/app.wasm").refused(&["reactor", "app.wasm#"]);
    assert_eq!(called("/app.wasm#say").ok().out, "called, and initialised\n");
    called("/app.wasm#add").refused(&["add", "without parameters"]);
    called("/app.wasm#none").refused(&["no export", "none"]);
}

#[test]
fn exit_statuses() {
    if runw_only("wasm") {
        return;
    }
    for code in [0, 1, 42, 126, 255] {
        let c = Container::new(Bundle::wasm("probe.wasm", &["exit", &code.to_string()]));
        assert_eq!(c.run().code, code, "core");
    }
    // wasi:cli/exit of 0.2 knows success and failure only.
    for (code, want) in [(0, 0), (1, 1), (42, 1)] {
        let c = Container::new(Bundle::wasm("probe-component.wasm", &["exit", &code.to_string()]));
        assert_eq!(c.run().code, want, "component");
    }
    assert_eq!(Container::new(Bundle::wasm("run-error.wasm", &[])).run().code, 1, "run returned an error");
}

#[test]
fn a_trap_is_134_with_a_backtrace() {
    if runw_only("wasm") {
        return;
    }
    for (name, step) in [
        ("probe.wasm", "trap"),
        ("probe-component.wasm", "trap"),
        ("rust-p1.wasm", "panic"),
        ("rust-p2.wasm", "panic"),
    ] {
        let c = Container::new(Bundle::wasm(name, &[step]));
        let out = c.run();
        assert_eq!(out.code, 134, "{name}: {out:?}");
        assert!(out.err.contains("backtrace"), "{name}: {out:?}");
        nothing_left(&c);
    }
}

#[test]
fn stdio_reaches_the_guest() {
    if runw_only("wasm") {
        return;
    }
    for name in PROBES {
        let c = Container::new(Bundle::wasm(name, &["say", "out", "err", "to-stderr", "cat"]));
        let out = spawn_with_stdin(&mut c.run_command(&[]), b"given\nlines\n").wait();
        assert_eq!(
            (out.code, out.out.as_str(), out.err.as_str()),
            (0, "out\ngiven\nlines\n", "to-stderr\n"),
            "{name}"
        );
    }
}

#[test]
fn clocks_tell_the_time() {
    if runw_only("wasm") {
        return;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time").as_secs();
    for name in PROBES {
        let out = output(Bundle::wasm(name, &["clock"]));
        let told: u64 = out.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        assert!(told.abs_diff(now) < 60, "{name}: {out}");
    }
}

/// SIGTERM and SIGKILL end a guest, asleep or busy.
#[test]
fn signals_end_a_guest() {
    if runw_only("wasm") {
        return;
    }
    for name in PROBES {
        for steps in [["say", "up", "spin", ""], ["say", "up", "sleep", "100"]] {
            for (signal, code) in [("TERM", 143), ("KILL", 137)] {
                let steps: Vec<&str> = steps.into_iter().filter(|s| !s.is_empty()).collect();
                let c = Container::new(Bundle::wasm(name, &steps));
                let mut running = c.spawn_run(&[]);
                until("up", || running.out().contains("up"));
                c.kill(signal).ok();
                assert_eq!(running.wait().code, code, "{name} {steps:?} {signal}");
                nothing_left(&c);
            }
        }
    }
}

#[test]
fn the_whole_lifecycle() {
    if runw_only("wasm") {
        return;
    }
    let mut c = Container::new(Bundle::wasm("probe.wasm", &["say", "ran", "sleep", "100"]));
    c.create();
    assert_eq!(c.status(), "created");
    assert_eq!(c.out(), "");
    c.start().wait_out("ran");
    assert_eq!(c.status(), "running");
    let pid = c.pid();
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).expect("cmdline");
    assert_eq!(
        String::from_utf8_lossy(&title).trim_end_matches('\0').replace('\0', " "),
        "/app.wasm say ran sleep 100"
    );
    c.kill("TERM").ok();
    c.wait_stopped();
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn it_is_inside_its_namespaces_and_cgroup() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]).user_namespace().edit(|c| {
        c["linux"]["resources"]["pids"] = json!({"limit": 33});
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["process"]["capabilities"] = crate::harness::cap(&[]);
    });
    let c = Container::up(bundle);
    c.wait_out("up");
    let pid = c.pid();
    for ns in ["pid", "net", "ipc", "uts", "mnt", "user"] {
        let link = |p: &str| std::fs::read_link(format!("/proc/{p}/ns/{ns}")).expect("ns");
        assert_ne!(link(&pid.to_string()), link("self"), "{ns}");
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    for line in [
        "Uid:\t101000\t101000\t101000\t101000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    if Path::new("/sys/fs/cgroup/pids/tasks").exists() {
        assert_eq!(c.limit("pids", "pids.max"), "33");
    }
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    assert!(cgroup.lines().any(|l| l.ends_with(&c.id)), "{cgroup}");
}

#[test]
fn seccomp_holds_for_the_guest_s_process() {
    if runw_only("wasm") {
        return;
    }
    let c = Container::up(Bundle::wasm("probe.wasm", &["mkdir", "/tmp/x", "say", "up", "sleep", "100"]).edit(|c| {
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    }));
    c.wait_out("up");
    assert!(c.out().contains("mkdir /tmp/x: EPERM"), "{}", c.out());
    let status = std::fs::read_to_string(format!("/proc/{}/status", c.pid())).expect("status");
    assert!(status.contains("Seccomp:\t2"), "{status}");
}

#[test]
fn exec_native_and_wasm_in_a_wasm_container() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("probe.wasm", &["say", "up", "sleep", "100"]);
    for name in ["probe.wasm", "probe-component.wasm"] {
        std::fs::copy(guest(name), bundle.rootfs().join("bin").join(name)).expect("copy");
    }
    let c = Container::up(bundle);
    c.wait_out("up");
    assert_eq!(c.sh("echo native; id -u"), "native\n0\n");
    for name in ["probe.wasm", "probe-component.wasm"] {
        let out = c.exec(&["--env", "X=y"], &[name, "env", "say", "wasm", "read", "/etc/group", "exit", "0"]);
        assert!(
            out.clone().ok().out.contains("env [X=y]\n")
                && out.out.contains("wasm\n")
                && out.out.contains("root:x:0:"),
            "{out:?}"
        );
    }
    assert_eq!(c.exec(&[], &["probe.wasm", "exit", "42"]).code, 42);
    assert_eq!(c.exec(&[], &["probe.wasm", "trap"]).code, 134);
    assert_eq!(c.status(), "running");
}

#[test]
fn exec_wasm_in_a_native_container() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::sh("exec sleep 100");
    std::fs::copy(guest("probe.wasm"), bundle.rootfs().join("probe.wasm")).expect("copy");
    let c = Container::up(bundle);
    let out = c.exec(&[], &["/probe.wasm", "say", "hi", "read", "/proc/self/mem"]).ok();
    assert_eq!(out.out, "hi\nread /proc/self/mem: ENOENT\n");
}

fn annotated(bundle: Bundle, pairs: &[(&str, &str)]) -> Container {
    Container::new(bundle.edit(|c| {
        for (key, value) in pairs {
            c["annotations"][*key] = json!(value);
        }
    }))
}

#[test]
fn the_ladder_of_selection() {
    if runw_only("wasm") {
        return;
    }
    let hello = || Bundle::wasm("hello.wasm", &[]);
    let native = || Bundle::sh("echo native");
    assert_eq!(annotated(hello(), &[("run.oci.handler", "wasm")]).run().ok().out, "hello from wasm (c)\n");
    assert_eq!(annotated(native(), &[("run.oci.handler", "wasm-smart")]).run().ok().out, "native\n");
    assert_eq!(
        annotated(native(), &[("module.wasm.image/variant", "compat-smart")]).run().ok().out,
        "native\n"
    );
    assert_eq!(
        annotated(hello(), &[("module.wasm.image/variant", "compat")]).run().ok().out,
        "hello from wasm (c)\n"
    );
    for pairs in [[("run.oci.handler", "wasm")], [("org.opencontainers.image.architecture", "wasm")]] {
        let c = annotated(native(), &pairs);
        let out = c.run();
        assert!(out.code == 1 && out.err.contains("wasm"), "{pairs:?}: {out:?}");
        nothing_left(&c);
    }
    let c = annotated(hello(), &[("run.oci.handler", "native")]);
    assert_eq!(c.run().code, 1);
    nothing_left(&c);
}

#[test]
fn a_native_program_is_never_taken_for_wasm() {
    if runw_only("wasm") {
        return;
    }
    // Busybox goes by its own name when it begins with `busybox`.
    let bundle = Bundle::new(&["/busybox.wasm", "echo", "an ELF"]);
    std::fs::copy("/bin/busybox", bundle.rootfs().join("busybox.wasm")).expect("copy");
    assert_eq!(output(bundle), "an ELF\n");
    let bundle = Bundle::new(&["/busybox-link.wasm", "true"]);
    std::os::unix::fs::symlink("/bin/busybox", bundle.rootfs().join("busybox-link.wasm")).expect("symlink");
    assert_eq!(output(bundle), "");
}

#[test]
fn the_program_is_found_where_the_container_has_it() {
    if runw_only("wasm") {
        return;
    }
    // By PATH, without +x, behind a link, and on a mount.
    let bundle = Bundle::new(&["tool"]).env(&["PATH=/nowhere:/opt"]);
    std::fs::create_dir(bundle.rootfs().join("opt")).expect("mkdir");
    std::fs::copy(guest("hello.wasm"), bundle.rootfs().join("real")).expect("copy");
    std::fs::set_permissions(
        bundle.rootfs().join("real"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .expect("chmod");
    std::os::unix::fs::symlink("/real", bundle.rootfs().join("opt/tool")).expect("symlink");
    assert_eq!(output(bundle), "hello from wasm (c)\n");
    let bundle = Bundle::new(&["/volume/app.wasm"]);
    let dir = bundle.outside("volume");
    std::fs::copy(guest("hello.wasm"), dir.join("app.wasm")).expect("copy");
    assert_eq!(output(bundle.bind(&dir, "/volume", &["rbind", "ro"])), "hello from wasm (c)\n");
}

#[test]
fn a_program_only_the_child_can_see() {
    if runw_only("wasm") {
        return;
    }
    // The tmpfs copies what the image has below it, so the file exists only once the child has mounted it.
    let bundle = Bundle::new(&["/data/app.wasm"]).mount("/data", "tmpfs", Path::new("tmpfs"), &["tmpcopyup"]);
    std::fs::create_dir(bundle.rootfs().join("data")).expect("mkdir");
    std::fs::copy(guest("hello.wasm"), bundle.rootfs().join("data/app.wasm")).expect("copy");
    assert_eq!(output(bundle), "hello from wasm (c)\n");
}

#[test]
fn text_runs_only_when_it_was_asked_for() {
    if runw_only("wasm") {
        return;
    }
    let text = || {
        let bundle = Bundle::new(&["/app.wat"]);
        std::fs::copy(guest("text.wat"), bundle.rootfs().join("app.wat")).expect("copy");
        bundle
    };
    assert_eq!(annotated(text(), &[("run.oci.handler", "wasm")]).run().code, 7);
    let c = Container::new(text());
    assert_eq!(c.run().code, 1);
    nothing_left(&c);
}

#[track_caller]
fn refused(bundle: Bundle) -> Out {
    let mut c = Container::new(bundle);
    let out = c.create_with(&[]);
    assert_eq!(out.code, 1, "{out:?}");
    nothing_left(&c);
    out
}

#[test]
fn broken_modules_are_refused_at_create() {
    if runw_only("wasm") {
        return;
    }
    let out = refused(Bundle::wasm("unknown-import.wasm", &[]));
    assert!(out.err.contains("no-such-host") && out.err.contains("no-such-call"), "{out:?}");
    for (what, bytes) in
        [("header only", b"\0asm\x01\0\0\0".to_vec()), ("torn", b"\0asm\x01\0\0\0\x01\x7f\xff".to_vec())]
    {
        let bundle = Bundle::new(&["/app.wasm"]);
        std::fs::write(bundle.rootfs().join("app.wasm"), bytes).expect("write");
        let out = refused(bundle);
        assert!(out.err.contains("app.wasm") || out.err.contains("_start"), "{what}: {out:?}");
    }
}

fn run_with_cache(c: &Container, cache: &Path) -> Out {
    run(&mut with_cache(&c.run_command(&[]), &["--bind", cache.to_str().expect("utf-8")]))
}

fn entries(dir: &Path) -> Vec<(std::path::PathBuf, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).expect("cache").flatten() {
            let meta = entry.metadata().expect("stat");
            if meta.is_dir() {
                todo.push(entry.path());
            } else if entry.file_name().len() == 64 {
                all.push((entry.path(), meta.ino(), meta.len()));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn compiled_code_is_kept_and_a_poisoned_entry_is_a_miss() {
    if runw_only("wasm") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let cache = tempfile::tempdir().expect("tempdir");
    std::fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o700)).expect("chmod");
    for name in ["hello.wasm", "hello-component.wasm"] {
        let c = Container::new(Bundle::wasm(name, &[]));
        assert_eq!(run_with_cache(&c, cache.path()).ok().out, "hello from wasm (c)\n");
        let first = entries(cache.path());
        assert!(!first.is_empty(), "nothing was cached");
        run_with_cache(&c, cache.path()).ok();
        assert_eq!(entries(cache.path()), first, "the second start compiled again");
        for poison in [b"".to_vec(), b"not code".to_vec(), vec![0x7f; 1 << 16]] {
            for (path, _, _) in entries(cache.path()) {
                // A new inode: the old one may be mapped by a running container.
                std::fs::remove_file(&path).expect("unlink");
                std::fs::write(&path, &poison).expect("poison");
            }
            assert_eq!(run_with_cache(&c, cache.path()).ok().out, "hello from wasm (c)\n");
        }
        for (path, _, _) in entries(cache.path()) {
            // One byte in the middle: only an integrity check can tell.
            let mut bytes = std::fs::read(&path).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
            std::fs::remove_file(&path).expect("unlink");
            std::fs::write(&path, bytes).expect("poison");
        }
        assert_eq!(run_with_cache(&c, cache.path()).ok().out, "hello from wasm (c)\n");
    }
}

#[test]
fn a_cache_that_others_may_write_is_not_used() {
    if runw_only("wasm") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let cache = tempfile::tempdir().expect("tempdir");
    std::fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o777)).expect("chmod");
    let c = Container::new(Bundle::wasm("hello.wasm", &[]));
    let out = run_with_cache(&c, cache.path());
    assert!(out.code == 1 || out.out == "hello from wasm (c)\n", "{out:?}");
    assert!(
        entries(cache.path()).is_empty()
            || std::fs::metadata(cache.path()).expect("stat").permissions().mode() & 0o077 == 0
    );
    nothing_left(&c);
}

/// Code cannot be mapped from there; the operator is told, once for each container.
#[test]
fn a_cache_on_a_noexec_file_system_is_copied_from() {
    if runw_only("wasm") {
        return;
    }
    for (options, warnings) in [("noexec", 1), ("exec", 0)] {
        for name in ["hello.wasm", "hello-component.wasm"] {
            let c = Container::new(Bundle::wasm(name, &[]));
            let mount = [&["-o", options], COLD].concat();
            let out = run(&mut with_cache(&c.run_command(&[]), &mount)).ok();
            assert_eq!(out.out, "hello from wasm (c)\n", "{name} {options}");
            let told = out.err.lines().filter(|line| line.contains("level=warning")).collect::<Vec<_>>();
            assert_eq!(told.len(), warnings, "{name} {options}: {out:?}");
            assert!(told.iter().all(|line| line.contains("/var/cache/runw is on a noexec")), "{out:?}");
        }
    }
}

#[test]
fn memory_growth_ends_at_the_limit() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("probe.wasm", &["grow", "400"])
        .edit(|c| c["linux"]["resources"]["memory"] = json!({"limit": 64 << 20}));
    let c = Container::new(bundle);
    let out = c.run();
    assert!(out.code == 137 || out.out.contains("refused"), "{out:?}");
    nothing_left(&c);
}

#[test]
fn a_small_container_starts_a_large_module() {
    if runw_only("wasm") {
        return;
    }
    // Compilation is not charged to the container.
    let bundle =
        Bundle::wasm("go.wasm", &[]).edit(|c| c["linux"]["resources"]["memory"] = json!({"limit": 32 << 20}));
    assert_eq!(output(bundle), "hello from wasm (go)\n");
}

#[test]
fn a_terminal_for_a_guest() {
    if runw_only("wasm") {
        return;
    }
    let mut c = Container::new(
        Bundle::wasm("probe.wasm", &["say", "on a tty"]).edit(|c| c["process"]["terminal"] = json!(true)),
    );
    let socket = crate::harness::ConsoleSocket::new(c.bundle.path());
    c.create_with(&["--console-socket", socket.path.to_str().expect("utf-8")]).ok();
    let (mut master, _) = socket.receive();
    c.start();
    assert!(crate::harness::ConsoleSocket::read_to_end(&mut master).contains("on a tty\r\n"));
}

/// The guest asks for one name and compares.
#[test]
fn configuration_comes_from_annotations_and_a_file() {
    if runw_only("wasm") {
        return;
    }
    let run = |annotations: &[(&str, &str)], file: &str| {
        let bundle = Bundle::wasm("config.wasm", &[]);
        std::fs::write(bundle.rootfs().join("etc/app.conf"), file).expect("write");
        annotated(bundle, annotations).run()
    };
    let from_file = ("dev.runw.config-file", "/etc/app.conf");
    for (annotations, file, code) in [
        (vec![("dev.runw.config.greeting", "hi")], "", 0),
        (vec![("dev.runw.config.greeting", "no")], "", 1),
        (vec![], "", 1),
        (vec![from_file], "# of the app\ngreeting = hi\n", 0),
        (vec![from_file, ("dev.runw.config.greeting", "hi")], "greeting=no\n", 0),
    ] {
        assert_eq!(run(&annotations, file).code, code, "{annotations:?} {file:?}");
    }
    run(&[from_file], "greeting\n").refused(&["config-file", "/etc/app.conf", "line 1"]);
    run(&[("dev.runw.config-file", "/etc/none")], "").refused(&["config-file", "/etc/none", "no such file"]);
}

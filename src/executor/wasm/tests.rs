//! A guest from its bytes to its exit status, through the same moments `linux` drives. Code that forks runs in a
//! process of its own with one thread: the test harness has many, and a fork copies their locks.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Result;
use oci_spec::runtime::{Process, ProcessBuilder, UserBuilder};
use rustix::fs::{Mode, OFlags};

use crate::executor::testing::{Scratch, scratch};
use crate::executor::{Host, Selection, look};
use crate::linux::sys::{self, Cloned};
use crate::linux::{confine, sys::execve};
use crate::seam::{Confine, Granted, Workload};

const HELLO: &str = include_str!("testdata/hello.wat");

/// Runs an ignored test of this module alone; its output, and whether it passed.
fn alone(test: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("executor::wasm::tests::{test}"),
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{test}: {text}");
    text
}

struct Bundle {
    dir: Scratch,
    settings: PathBuf,
}

impl Bundle {
    fn new(name: &str) -> Bundle {
        let dir = scratch(name);
        std::fs::create_dir(dir.join("rootfs")).unwrap();
        let settings = dir.join("settings.json");
        std::fs::write(&settings, format!(r#"{{"wasm":{{"cacheDir":"{}/cache"}}}}"#, dir.display())).unwrap();
        std::fs::set_permissions(&settings, std::fs::Permissions::from_mode(0o600)).unwrap();
        Bundle { dir, settings }
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.dir.join("rootfs").join(name), bytes).unwrap();
    }

    fn process(args: &[&str]) -> Process {
        ProcessBuilder::default()
            .args(args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
            .env(vec!["GREETING=hi".to_owned(), "PATH=/bin".to_owned()])
            .cwd("/")
            .user(UserBuilder::default().uid(0u32).gid(0u32).build().unwrap())
            .build()
            .unwrap()
    }

    /// With hooks, that is: what is not there now may come later.
    fn select_late<'a>(
        &'a self,
        args: &[&str],
        annotations: &[(&str, &str)],
        confine: &'a Confine<'a>,
    ) -> Result<Box<dyn Workload + 'a>> {
        self.select_with(args, annotations, confine, true)
    }

    fn select<'a>(
        &'a self,
        args: &[&str],
        annotations: &[(&str, &str)],
        confine: &'a Confine<'a>,
    ) -> Result<Box<dyn Workload + 'a>> {
        let mut workload = self.select_with(args, annotations, confine, false)?;
        workload.prepare()?;
        Ok(workload)
    }

    fn select_with<'a>(
        &'a self,
        args: &[&str],
        annotations: &[(&str, &str)],
        confine: &'a Confine<'a>,
        hooks: bool,
    ) -> Result<Box<dyn Workload + 'a>> {
        let root = look::open_root(&self.dir.join("rootfs")).unwrap();
        let annotations: HashMap<String, String> =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let selection = Selection {
            process: &Self::process(args),
            annotations: &annotations,
            mounts: &[],
            masked: &[],
            hooks,
            stale: false,
            exec: false,
            root: root.as_fd(),
            bundle: &self.dir,
            memory: None,
            cpus: None,
            called_as: "runw",
            handler: None,
            host: Host {
                confine,
                execve,
                exit: sys::exit_now,
                rootless: false,
                settings: Some(&self.settings),
            },
        };
        super::super::select(&selection)
    }

    fn tree(&self) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(self.dir.join("rootfs"), flags, Mode::empty()).unwrap()
    }

    fn cached(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.join("cache")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().len() == 64).collect()
    }
}

const WAT: [(&str, &str); 1] = [("run.oci.handler", "wasm")];

/// ready and run in a forked child as init would; its exit status and its standard output.
fn run(bundle: &Bundle, workload: &mut dyn Workload) -> (i32, String, f64) {
    run_after(bundle, workload, &|_| Ok(()))
}

/// The same with what the child does before `ready`.
fn run_after(
    bundle: &Bundle,
    workload: &mut dyn Workload,
    first: &dyn Fn(&mut dyn Workload) -> Result<()>,
) -> (i32, String, f64) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let begun = Instant::now();
    match sys::clone3(0, None, false).unwrap() {
        Cloned::Child => {
            let _ = rustix::stdio::dup2_stdout(&writer);
            let _ = rustix::stdio::dup2_stderr(&writer);
            drop(writer);
            let fds =
                rustix::fs::open("/proc/self/fd", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            let granted = Granted { tree: Some(bundle.tree()), proc_fd: Some(fds) };
            let status = first(workload).and_then(|()| workload.ready(granted)).and_then(|()| {
                keep_only(&workload.keeps());
                workload.run()
            });
            let status = status.unwrap_or_else(|error| {
                println!("failed: {error:#}");
                255
            });
            sys::exit_now(status)
        }
        Cloned::Parent { pidfd, .. } => {
            drop(writer);
            let mut text = String::new();
            std::fs::File::from(reader).read_to_string(&mut text).unwrap();
            let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
            let status =
                rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED).unwrap().unwrap();
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            (status.exit_status().unwrap_or(-1), text, took)
        }
    }
}

fn own_cgroup() -> PathBuf {
    Path::new("/sys/fs/cgroup/memory/runw-compile").join(std::process::id().to_string())
}

/// As init does before it waits: everything but stdio and what the workload keeps is closed.
fn keep_only(keeps: &[i32]) {
    for fd in 3..64 {
        if !keeps.contains(&fd) {
            let _ = sys::close_range(fd as u32, fd as u32);
        }
    }
}

#[test]
fn core_module_says_hello_and_is_compiled_once() {
    let text = alone("forks_hello");
    println!("{text}");
}

#[test]
#[ignore = "run by core_module_says_hello_and_is_compiled_once in a process of its own"]
fn forks_hello() {
    let bundle = Bundle::new("hello");
    bundle.put("hello.wat", HELLO);
    bundle.put("file.txt", "from the tree\n");
    let forbidden: &Confine = &|_, _, _| anyhow::bail!("compiled again");
    bundle.select_with(&["/hello.wat"], &WAT, forbidden, false).unwrap();
    assert!(!bundle.dir.join("cache").exists(), "the choice has made something");
    let begun = Instant::now();
    let mut workload = bundle.select(&["/hello.wat", "world"], &WAT, &confine::run).unwrap();
    println!("cold select (compile): {:.2} ms", begun.elapsed().as_secs_f64() * 1000.0);
    assert!(workload.needs().guest_tree && workload.needs().in_process && !workload.undecided());
    assert_eq!(
        run(&bundle, workload.as_mut()).1,
        "/hello.wat\0world\0GREETING=hi\0PATH=/bin\0from the tree\n"
    );

    // A second one must not compile: the confined child would fail.
    let mut times = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        let mut workload = bundle.select(&["/hello.wat", "world"], &WAT, forbidden).unwrap();
        let select = begun.elapsed().as_secs_f64() * 1000.0;
        let (status, _, took) = run(&bundle, workload.as_mut());
        assert_eq!(status, 7);
        times.push((took, select));
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("warm fork+ready+run+exit median: {:.2} ms, select {:.2} ms", times[10].0, times[10].1);
    assert!(!own_cgroup().exists(), "a cgroup was left behind");
}

fn core(body: &str) -> String {
    format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
             (memory (export "memory") 1) {body})"#
    )
}

#[test]
fn exit_statuses_are_those_of_a_process() {
    alone("forks_statuses");
}

#[test]
#[ignore = "run by exit_statuses_are_those_of_a_process in a process of its own"]
fn forks_statuses() {
    let bundle = Bundle::new("statuses");
    let exits = |code: i32| core(&format!(r#"(func (export "_start") (call $exit (i32.const {code})))"#));
    for code in [0, 1, 42, 125, 126, 127, 137, 255] {
        bundle.put("exit.wat", exits(code));
        let mut workload = bundle.select(&["/exit.wat"], &WAT, &confine::run).unwrap();
        assert_eq!(run(&bundle, workload.as_mut()).0, code);
    }
    bundle.put("trap.wat", core(r#"(func $deep unreachable) (func (export "_start") (call $deep))"#));
    let mut workload = bundle.select(&["/trap.wat"], &WAT, &confine::run).unwrap();
    let (status, text, _) = run(&bundle, workload.as_mut());
    assert_eq!(status, 134);
    assert!(
        text.contains("wasm backtrace") && text.contains("deep") && text.contains("unreachable"),
        "{text}"
    );

    bundle.put(
        "lib.wat",
        core(r#"(func (export "two") (call $exit (i32.const 2))) (func (export "_initialize"))"#),
    );
    let mut workload = bundle.select(&["/lib.wat#two"], &WAT, &confine::run).unwrap();
    assert_eq!(run(&bundle, workload.as_mut()).0, 2);
    for (args, said) in [("/lib.wat", "reactor"), ("/lib.wat#three", "no export \"three\"")] {
        let mut workload = bundle.select(&[args], &WAT, &confine::run).unwrap();
        let (status, text, _) = run(&bundle, workload.as_mut());
        assert_eq!(status, 255);
        assert!(text.contains(said), "{text}");
    }
    bundle.put(
        "threads.wat",
        r#"(module (import "wasi" "thread-spawn" (func (param i32) (result i32))) (func (export "_start")))"#,
    );
    let mut workload = bundle.select(&["/threads.wat"], &WAT, &confine::run).unwrap();
    let (_, text, _) = run(&bundle, workload.as_mut());
    assert!(text.contains("\"wasi\" \"thread-spawn\"") && text.contains("without threads"), "{text}");
}

#[test]
fn components_are_commands_or_say_why_not() {
    alone("forks_components");
}

#[test]
#[ignore = "run by components_are_commands_or_say_why_not in a process of its own"]
fn forks_components() {
    let bundle = Bundle::new("components");
    let command = |result: i32| {
        format!(
            r#"(component
              (core module $m (func (export "run") (result i32) (i32.const {result})))
              (core instance $i (instantiate $m))
              (func $run (result (result)) (canon lift (core func $i "run")))
              (instance $cli (export "run" (func $run)))
              (export "wasi:cli/run@0.2.3" (instance $cli)))"#
        )
    };
    for status in [0, 1] {
        bundle.put("command.wat", command(status));
        let mut workload = bundle.select(&["/command.wat"], &WAT, &confine::run).unwrap();
        let (code, text, _) = run(&bundle, workload.as_mut());
        assert_eq!(code, status, "{text}");
    }
    let begun = Instant::now();
    let mut workload = bundle.select(&["/command.wat"], &WAT, &confine::run).unwrap();
    let select = begun.elapsed().as_secs_f64() * 1000.0;
    println!(
        "warm component fork+ready+run+exit: {:.2} ms, select {select:.2} ms",
        run(&bundle, workload.as_mut()).2
    );
    // WASI 0.3: the same, as an async function.
    for status in [0, 1] {
        let text = command(status).replace("(func $run (", "(func $run async (").replace("@0.2.3", "@0.3.0");
        bundle.put("command3.wat", text);
        let mut workload = bundle.select(&["/command3.wat"], &WAT, &confine::run).unwrap();
        let (code, text, _) = run(&bundle, workload.as_mut());
        assert_eq!(code, status, "{text}");
    }
    let serve = command(0).replace("wasi:cli/run@0.2.3", "wasi:http/incoming-handler@0.2.3");
    let spin = r#"(component (import "fermyon:spin/llm@2.0.0" (instance (export "f" (func)))))"#;
    let http = r#"(component (import "wasi:http/types@0.2.0" (instance (export "f" (func)))))"#;
    for (name, text, said) in [
        ("serve.wat", serve.as_str(), "export wasi:http/incoming-handler@0.2.3"),
        ("spin.wat", spin, "Spin's own"),
        ("http.wat", http, "runw offers wasi:cli, wasi:http"),
    ] {
        bundle.put(name, text);
        let mut workload = bundle.select(&[&format!("/{name}")], &WAT, &confine::run).unwrap();
        let (code, text, _) = run(&bundle, workload.as_mut());
        assert_eq!(code, 255);
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn bad_modules_and_bombs_end_with_one_clear_line() {
    alone("forks_bad");
}

#[test]
#[ignore = "run by bad_modules_and_bombs_end_with_one_clear_line in a process of its own"]
fn forks_bad() {
    let bundle = Bundle::new("bad");
    let fails = |name: &str| match bundle.select(&[name], &WAT, &confine::run) {
        Ok(_) => panic!("{name} was accepted"),
        Err(error) => format!("{error:#}"),
    };
    bundle.put("torn.wasm", b"\0asm\x01\0\0\0\x01\xff");
    let text = fails("/torn.wasm");
    assert!(text.starts_with("compile \"/torn.wasm\": ") && !text.contains('\n'), "{text}");
    bundle.put("gc.wat", "(module (type (struct)))");
    assert!(fails("/gc.wat").contains("gc"), "{}", fails("/gc.wat"));
    bundle.put("evil.cwasm", {
        let mut elf = [0u8; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[7] = 200;
        elf
    });
    assert!(fails("/evil.cwasm").contains("never run from an image"));
    assert!(bundle.cached().is_empty());
    assert!(!own_cgroup().exists(), "a cgroup was left behind");
}

#[test]
fn verdicts_do_not_need_a_name() {
    let bundle = Bundle::new("verdicts");
    bundle.put("sh", "#!/bin/sh\n");
    let never: &Confine = &|_, _, _| anyhow::bail!("compiled");
    let workload = bundle.select(&["/sh"], &[], never).unwrap();
    assert!(!workload.needs().in_process && !workload.undecided());
    bundle.put("app", b"\0asm\x01\0\0\0");
    let error = bundle.select(&["/app"], &[], never).err().map(|error| format!("{error:#}"));
    assert_eq!(error.as_deref(), Some("compile \"/app\": compiled"));
    let sandbox = [("io.kubernetes.cri.container-type", "sandbox"), ("run.oci.handler", "wasm")];
    assert!(!bundle.select(&["/app"], &sandbox, never).unwrap().needs().in_process);
}

#[test]
fn a_user_without_rights_or_proc_loads_its_code() {
    alone("forks_unprivileged");
}

#[test]
#[ignore = "run by a_user_without_rights_or_proc_loads_its_code in a process of its own"]
fn forks_unprivileged() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: changing the root directory and the user needs root");
    }
    let bundle = Bundle::new("unprivileged");
    bundle.put("hello.wat", HELLO);
    bundle.put("file.txt", "from the tree\n");
    bundle.put("ok.wat", ok_component());
    let become_nobody = |_: &mut dyn Workload| {
        // As after pivot_root into a container without /proc; `run` opened its descriptors before.
        rustix::process::chroot(bundle.dir.join("rootfs"))?;
        rustix::process::chdir("/")?;
        sys::set_groups(&[])?;
        sys::set_gid(65534)?;
        Ok(sys::set_uid(65534)?)
    };
    for (name, status) in [("/hello.wat", 7), ("/ok.wat", 0)] {
        let mut workload = bundle.select(&[name], &WAT, &confine::run).unwrap();
        let (code, text, _) = run_after(&bundle, workload.as_mut(), &become_nobody);
        assert_eq!(code, status, "{name}: {text}");
    }
}

fn ok_component() -> &'static str {
    r#"(component
        (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#
}

#[test]
fn what_only_the_child_sees_is_compiled_by_the_parent() {
    alone("forks_undecided");
}

#[test]
#[ignore = "run by what_only_the_child_sees_is_compiled_by_the_parent in a process of its own"]
fn forks_undecided() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: changing the root directory needs root");
    }
    let bundle = Bundle::new("undecided");
    let mut late = bundle.select_late(&["/bin/late.wat#go"], &WAT, &confine::run).unwrap();
    assert!(late.undecided() && late.needs() == crate::seam::Needs::default());
    let mut native = bundle.select_late(&["/bin/sh"], &[], &confine::run).unwrap();
    assert!(native.undecided());

    std::fs::create_dir(bundle.dir.join("rootfs/bin")).unwrap();
    bundle.put("bin/late.wat", core(r#"(func (export "go") (call $exit (i32.const 9)))"#));
    bundle.put("bin/sh", "#!/bin/sh\n");
    // The parent's half, with the file the child would send.
    let file =
        rustix::fs::open(bundle.dir.join("rootfs/bin/late.wat"), OFlags::RDONLY, Mode::empty()).unwrap();
    let prepared = late.prepare_found(file).unwrap();
    let sent = std::cell::RefCell::new(Some(prepared));
    let child = |workload: &mut dyn Workload| {
        let root = rustix::fs::open("/", OFlags::PATH, Mode::empty())?;
        rustix::process::chroot(bundle.dir.join("rootfs"))?;
        rustix::process::chdir("/")?;
        let found = workload.look()?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        match found {
            Some(_) => workload.adopt(sent.borrow_mut().take().unwrap()),
            None => anyhow::bail!("settled as native: {}", !workload.undecided()),
        }
        anyhow::ensure!(workload.needs().guest_tree && !workload.undecided(), "needs did not change");
        Ok(())
    };
    let (status, text, _) = run_after(&bundle, late.as_mut(), &child);
    assert_eq!(status, 9, "{text}");
    let (_, text, _) = run_after(&bundle, native.as_mut(), &child);
    assert_eq!(text, "failed: settled as native: true\n");
}

#[test]
fn too_little_address_space_is_said_at_create() {
    alone("forks_small");
}

#[test]
#[ignore = "run by too_little_address_space_is_said_at_create in a process of its own"]
fn forks_small() {
    let bundle = Bundle::new("small");
    bundle.put("hello.wat", HELLO);
    let mut workload = bundle.select(&["/hello.wat"], &WAT, &confine::run).unwrap();
    let (_, text, _) = run_after(&bundle, workload.as_mut(), &|_| {
        Ok(sys::prlimit(0, rustix::process::Resource::As as u32, 1 << 30, 1 << 30)?)
    });
    assert!(text.contains("RLIMIT_AS of 1073741824 bytes is too small"), "{text}");
}

#[test]
fn standard_input_reaches_the_guest() {
    alone("forks_stdin");
}

#[test]
#[ignore = "run by standard_input_reaches_the_guest in a process of its own"]
fn forks_stdin() {
    let bundle = Bundle::new("stdin");
    // Copies one read of standard input to standard output, without a newline, and returns.
    bundle.put(
        "cat.wat",
        r#"(module
          (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 100))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (i32.store (i32.const 4) (i32.load (i32.const 8)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))))"#,
    );
    let input = |_: &mut dyn Workload| {
        let (reader, writer) = rustix::pipe::pipe()?;
        rustix::io::write(&writer, b"no newline")?;
        Ok(rustix::stdio::dup2_stdin(&reader)?)
    };
    let mut workload = bundle.select(&["/cat.wat"], &WAT, &confine::run).unwrap();
    let (status, text, _) = run_after(&bundle, workload.as_mut(), &input);
    assert_eq!((status, text.as_str()), (0, "no newline"));
    // The harness gives /dev/null: end of file at once.
    let mut workload = bundle.select(&["/cat.wat"], &WAT, &confine::run).unwrap();
    let (status, text, _) = run(&bundle, workload.as_mut());
    assert_eq!((status, text.as_str()), (0, ""));
}

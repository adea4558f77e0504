//! What the verbs cost in system calls and in instructions: numbers that no load of the machine changes, and its ways only a
//! little. More than is allowed fails, so whoever adds calls says so here. docs/performance.md has the same against crun and
//! runc.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Bundle, Container, instructions, long, run, runw_only, skip, spawn, until};

/// Calls of the command and its children, each until it becomes a program of the container's.
fn calls(trace: &Path) -> usize {
    let text = std::fs::read_to_string(trace).expect("the trace");
    let mut ours: Option<&str> = None;
    let mut theirs = HashSet::new();
    let mut count = 0;
    for line in text.lines() {
        let (pid, call) = line.split_once(' ').expect("strace -f begins with the pid");
        let call = call.trim_start();
        if *ours.get_or_insert(pid) != pid && call.starts_with("execve(") {
            theirs.insert(pid);
        }
        let is_call = !["<...", "+++", "---"].iter().any(|mark| call.starts_with(mark));
        count += usize::from(is_call && !theirs.contains(pid));
    }
    count
}

fn traced(trace: &Path, command: &Command) -> Command {
    let mut strace = Command::new("timeout");
    strace.args(["-s", "KILL", "60", "strace", "-f", "-qq", "-o"]).arg(trace);
    strace.arg(command.get_program()).args(command.get_args());
    strace
}

fn unable() -> bool {
    if runw_only("the budget is runw's") {
        return true;
    }
    let can = run(Command::new("strace").args(["-o", "/dev/null", "/bin/true"])).code == 0;
    if !can {
        skip("strace cannot trace on this machine");
    }
    !can
}

/// A call or more for each cgroup hierarchy: making, joining, showing it. What else differs from host to host: a mount table of
/// more pages, a reaper that is quick to take the container's process away, a kernel that cannot seal by a mount.
fn hierarchies() -> usize {
    std::fs::read_to_string("/proc/self/cgroup").expect("own cgroups").lines().count()
}

fn within(what: &str, made: usize, most: usize) {
    println!("{what}: {made} system calls, {most} allowed");
    assert!(made <= most, "{what}: {made} system calls, {most} are allowed");
    // A budget that is far off holds nothing.
    assert!(made * 10 >= most * 8, "{what}: {made} system calls: lower the {most} allowed");
}

#[test]
fn native_verbs_stay_within_their_system_calls() {
    if unable() {
        return;
    }
    // The first container makes the cgroup above all of the tests'.
    Container::new(Bundle::new(&["/bin/true"])).run().ok();
    let c = Container::new(Bundle::new(&["/bin/sleep", "100"]));
    let trace = |c: &Container, verb: &str| c.bundle.path().join(format!("trace-{verb}"));
    let file = trace(&c, "create");
    let mut creating = spawn(&mut traced(&file, &c.create_command(&[])));
    until("created", || c.call(&["state", &c.id]).code == 0 && c.status() == "created");
    let start = trace(&c, "start");
    run(&mut traced(&start, &c.command(&["start", &c.id]))).ok();
    let exec = trace(&c, "exec");
    run(&mut traced(&exec, &c.exec_command(&[], &["/bin/true"]))).ok();
    c.kill("KILL").ok();
    creating.wait();
    c.wait_stopped();
    let delete = trace(&c, "delete");
    run(&mut traced(&delete, &c.command(&["delete", &c.id]))).ok();
    let n = hierarchies();
    within("create", calls(&file), 446 + 6 * n);
    within("start", calls(&start), 54);
    within("exec", calls(&exec), 210 + 2 * n);
    within("delete", calls(&delete), 55 + n);
}

#[test]
fn a_warm_wasm_run_stays_within_its_system_calls() {
    if unable() {
        return;
    }
    let c = Container::new(Bundle::wasm("hello.wasm", &[]));
    c.run().ok();
    let file = c.bundle.path().join("trace");
    run(&mut traced(&file, &c.run_command(&[]))).ok();
    within("warm wasm run", calls(&file), 695 + 6 * hierarchies());
}

/// Pages that a command and its children touched first.
fn page_faults(command: &mut Command) -> u64 {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let pid = quiet.spawn().expect("run the command").id() as i32;
    let mut status = 0;
    // SAFETY: both are live for the call, and a zeroed rusage is one.
    let (waited, used) = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid, &raw mut status, 0, &raw mut used), used)
    };
    assert!(waited > 0 && status == 0, "{command:?}: status {status:x}");
    used.ru_minflt as u64
}

/// `make order` brings them down again when functions have come and gone.
#[test]
fn verbs_stay_within_their_page_faults() {
    if runw_only("the budget is runw's") {
        return;
    }
    let mut c = Container::new(Bundle::new(&["/bin/sleep", "100"]));
    c.create();
    c.start();
    let run = Container::new(Bundle::new(&["/bin/true"]));
    for (what, mut command, most) in
        [("exec", c.exec_command(&[], &["/bin/true"]), 210), ("run", run.run_command(&[]), 230)]
    {
        // The first brings in what is not in the page cache.
        page_faults(&mut command);
        let made = page_faults(&mut command);
        println!("{what}: {made} page faults, {most} allowed");
        assert!(made <= most, "{what}: {made} page faults, {most} are allowed");
        assert!(made * 10 >= most * 6, "{what}: {made} page faults: lower the {most} allowed");
    }
}

/// The C library's memcpy, and what of it there is to do, differ a little from processor to processor.
fn executes_about(what: &str, command: &mut Command, most: u64) {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let made = instructions(quiet);
    println!("{what}: {made} instructions, {most} allowed");
    assert!(made <= most, "{what}: {made} instructions, {most} are allowed");
    assert!(made * 10 >= most * 7, "{what}: {made} instructions: lower the {most} allowed");
}

/// A step is a trap, which takes 80 microseconds on a virtual machine: the short form has the shortest verb.
#[test]
fn verbs_stay_within_their_instructions() {
    if runw_only("the budget is runw's") {
        return;
    }
    let mut c = Container::new(Bundle::new(&["/bin/sleep", "100"]));
    if long() {
        executes_about("create", &mut c.create_command(&[]), 860_000);
    } else {
        c.create();
    }
    executes_about("start", &mut c.command(&["start", &c.id]), 390_000);
    if !long() {
        return;
    }
    executes_about("exec", &mut c.exec_command(&[], &["/bin/true"]), 620_000);
    c.kill("KILL").ok();
    c.wait_stopped();
    executes_about("delete", &mut c.command(&["delete", &c.id]), 480_000);
    let c = Container::new(Bundle::wasm("hello.wasm", &[]));
    c.run().ok();
    executes_about("warm wasm run", &mut c.run_command(&[]), 2_200_000);
}

//! Terminals: the console socket of engines, and the pty of our own for a person in the foreground.

use std::io::Write;

use serde_json::json;

use crate::harness::{Bundle, ConsoleSocket, Container, Kind, differs, nothing_left, run_script, runtime};

fn tty(text: &str) -> Bundle {
    Bundle::sh(text).edit(|c| c["process"]["terminal"] = json!(true))
}

#[test]
fn console_socket_gets_the_master() {
    if differs(Kind::Crun, "1.8 sends no name") {
        return;
    }
    let mut c = Container::new(tty(
        "tty; test -t 0 && test -t 1 && test -t 2 && echo all; stty size; read x; echo got $x",
    ));
    let socket = ConsoleSocket::new(c.bundle.path());
    c.create_with(&["--console-socket", socket.path.to_str().expect("utf-8")]).ok();
    let (mut master, name) = socket.receive();
    assert!(name.contains("ptmx") || name.contains("pts"), "{name:?}");
    c.start();
    master.write_all(b"typed\n").expect("type");
    let text = ConsoleSocket::read_to_end(&mut master);
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
    assert!(text.contains("all\r\n"), "{text}");
    assert!(text.contains("got typed"), "{text}");
}

#[test]
fn console_size_is_set() {
    let bundle = tty("stty size").edit(|c| c["process"]["consoleSize"] = json!({"height": 33, "width": 121}));
    let mut c = Container::new(bundle);
    let socket = ConsoleSocket::new(c.bundle.path());
    c.create_with(&["--console-socket", socket.path.to_str().expect("utf-8")]).ok();
    let (mut master, _) = socket.receive();
    c.start();
    let text = ConsoleSocket::read_to_end(&mut master);
    assert!(text.contains("33 121"), "{text}");
}

#[test]
fn the_terminal_controls_the_session() {
    let mut c =
        Container::new(tty("trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.05; done"));
    let socket = ConsoleSocket::new(c.bundle.path());
    c.create_with(&["--console-socket", socket.path.to_str().expect("utf-8")]).ok();
    let (mut master, _) = socket.receive();
    c.start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    master.write_all(b"\x03").expect("type control-C");
    let text = ConsoleSocket::read_to_end(&mut master);
    assert!(text.contains("interrupted"), "{text}");
}

#[test]
fn exec_over_a_console_socket() {
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let socket = ConsoleSocket::new(c.bundle.path());
    let path = socket.path.to_str().expect("utf-8").to_owned();
    c.exec(&["--tty", "--detach", "--console-socket", &path], &["/bin/sh", "-c", "tty; echo execd"]).ok();
    let (mut master, _) = socket.receive();
    let text = ConsoleSocket::read_to_end(&mut master);
    assert!(text.contains("execd") && text.contains("/dev/"), "{text}");
}

/// `script` gives the runtime a terminal of its own, as a person's shell does.
fn in_a_terminal(c: &Container, words: &str) -> crate::harness::Out {
    let line = format!("stty rows 37 cols 99; {} --root {} {words}", runtime().display(), c.root().display());
    run_script(&line)
}

#[test]
fn foreground_run_has_a_pty_of_its_own() {
    if differs(Kind::Crun, "1.8 fails stty with ECHILD here") {
        return;
    }
    let c = Container::new(tty("tty; stty size; exit 6"));
    let out = in_a_terminal(&c, &format!("run --bundle {} {}", c.bundle.path().display(), c.id));
    assert_eq!(out.code, 6, "{out:?}");
    assert!(out.out.contains("/dev/pts/0") || out.out.contains("/dev/console"), "{out:?}");
    assert!(out.out.contains("37 99"), "the size of the caller's terminal is not the container's: {out:?}");
    nothing_left(&c);
}

/// From the first byte on, not only once somebody relays: a pipe gets lines without CR (runc clears ONLCR).
#[test]
fn the_pty_of_our_own_is_plain_before_the_process_starts() {
    let c = Container::new(tty("stty -a 2>/dev/null | grep -o '[-]*onlcr'"));
    assert_eq!(c.run().ok().out, "-onlcr\n");
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let out = c.exec(&["--tty"], &["/bin/sh", "-c", "stty -a 2>/dev/null | grep -o '[-]*onlcr'"]).ok().out;
    assert_eq!(out, "-onlcr\n");
}

#[test]
fn foreground_run_restores_the_caller_s_terminal() {
    let c = Container::new(tty("stty raw; echo raw"));
    let line = format!(
        "stty -a > {dir}/before; {rt} --root {root} run --bundle {dir} {id}; stty -a > {dir}/after",
        dir = c.bundle.path().display(),
        rt = runtime().display(),
        root = c.root().display(),
        id = c.id,
    );
    run_script(&line).ok();
    let read = |f: &str| std::fs::read_to_string(c.bundle.path().join(f)).expect("stty output");
    assert_eq!(read("before"), read("after"));
}

#[test]
fn foreground_exec_with_a_tty() {
    let c = Container::up(Bundle::sh("exec sleep 100"));
    let out = in_a_terminal(&c, &format!("exec --tty {} /bin/sh -c 'tty; exit 4'", c.id));
    assert_eq!(out.code, 4, "{out:?}");
    assert!(out.out.contains("/dev/"), "{out:?}");
}

#[test]
fn window_changes_reach_the_container() {
    if differs(Kind::Crun, "1.8 fails stty with ECHILD here") {
        return;
    }
    let c = Container::new(tty("trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.05; done"));
    let line = format!(
        "stty rows 20 cols 50; T=$(tty); (sleep 1.5; stty rows 41 cols 77 <$T) & {rt} --root {root} run --bundle {dir} {id}",
        rt = runtime().display(),
        root = c.root().display(),
        dir = c.bundle.path().display(),
        id = c.id,
    );
    let out = run_script(&line);
    assert!(out.out.contains("41 77"), "{out:?}");
}

//! sd_notify(3): a container that runs as a service of type `notify` reaches its manager's socket. The manager is the
//! test; runc says the same.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Bundle, Container, Kind, Running, differs, nothing_left, spawn, until};

/// Sends one datagram from the container, when /tmp/go is there; then waits for its end.
fn service(text: &str) -> Bundle {
    let script = format!(
        "until [ -e /tmp/go ]; do sleep 0.02; done; printf '{text}' >/tmp/text; \
         trap 'exit 5' TERM; /bin/say; while :; do sleep 0.05; done"
    );
    // busybox sends no datagrams.
    let code = r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/socket.h>
        #include <sys/un.h>
        int main(void) {
            struct sockaddr_un to = {.sun_family = AF_UNIX};
            const char *path = getenv("NOTIFY_SOCKET");
            if (!path) return 2;
            strncpy(to.sun_path, path, sizeof to.sun_path - 1);
            char text[4096];
            FILE *in = fopen("/tmp/text", "r");
            size_t size = fread(text, 1, sizeof text, in);
            int s = socket(AF_UNIX, SOCK_DGRAM, 0);
            return sendto(s, text, size, 0, (struct sockaddr *)&to, sizeof to) == (ssize_t)size ? 0 : 1;
        }"#;
    Bundle::sh(&script).program("say", code)
}

struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// signal(7): with a time limit a socket's call is not taken up again after a stop.
fn hear(socket: &UnixDatagram) -> String {
    let mut text = [0; 4096];
    loop {
        match socket.recv(&mut text) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return String::from_utf8_lossy(&text[..other.expect("a notification")]).into_owned(),
        }
    }
}

impl Manager {
    fn new(c: &Container) -> Manager {
        let path = c.bundle.path().join("manager.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Manager { socket, path }
    }

    fn hears(&self) -> String {
        hear(&self.socket)
    }

    fn command(&self, mut command: Command) -> Command {
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }
}

fn go(c: &Container) {
    std::fs::write(c.bundle.rootfs().join("tmp/go"), "").unwrap();
}

fn still_waits(running: &mut Running) {
    std::thread::sleep(Duration::from_millis(200));
    assert!(running.child.try_wait().unwrap().is_none(), "it did not wait for READY");
}

#[test]
fn start_waits_for_ready_and_tells_the_pid() {
    let c = Container::new(service("READY=1\\nSTATUS=fine\\n"));
    let manager = Manager::new(&c);
    let mut create = manager.command(c.create_command(&[]));
    create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(create.status().unwrap().success());
    let mut start = spawn(&mut manager.command(c.command(&["start", &c.id])));
    until("it runs", || c.status() == "running");
    still_waits(&mut start);
    go(&c);
    start.wait().ok();
    assert_eq!(manager.hears(), "READY=1\n");
    assert_eq!(manager.hears(), format!("MAINPID={}\n", c.pid()));
    c.call(&["delete", "--force", &c.id]).ok();
    nothing_left(&c);
}

#[test]
fn a_detached_run_waits_too() {
    let c = Container::new(service("READY=1"));
    let manager = Manager::new(&c);
    let mut running = spawn(&mut manager.command(c.run_command(&["--detach"])));
    until("it is there", || c.call(&["state", &c.id]).code == 0);
    until("it runs", || c.status() == "running");
    still_waits(&mut running);
    go(&c);
    running.wait().ok();
    assert_eq!((manager.hears(), manager.hears()), ("READY=1\n".into(), format!("MAINPID={}\n", c.pid())));
}

#[test]
fn a_foreground_run_is_the_main_process_itself() {
    let c = Container::new(service("READY=1\\n"));
    let manager = Manager::new(&c);
    let mut running = spawn(&mut manager.command(c.run_command(&[])));
    go(&c);
    assert_eq!(
        (manager.hears(), manager.hears()),
        ("READY=1\n".into(), format!("MAINPID={}\n", running.pid()))
    );
    let kill = Command::new("kill").args(["-TERM", &running.pid().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(running.wait().code, 5);
    nothing_left(&c);
}

#[test]
fn one_that_is_never_ready_ends_the_wait_by_its_end() {
    if differs(Kind::Runc, "in the foreground it waits for its own end") {
        return;
    }
    let c = Container::new(Bundle::sh("exit 3"));
    let manager = Manager::new(&c);
    assert_eq!(spawn(&mut manager.command(c.run_command(&[]))).wait().code, 3);
    nothing_left(&c);
    spawn(&mut manager.command(c.run_command(&["--detach"]))).wait().ok();
    c.wait_stopped();
    c.delete().ok();
}

#[test]
fn an_abstract_socket_is_a_socket() {
    let c = Container::new(service("READY=1\\n"));
    let name = format!("runw-test-{}", c.id);
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut command = c.run_command(&["--detach"]);
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    go(&c);
    spawn(&mut command).wait().ok();
    assert_eq!(hear(&socket), "READY=1\n");
}

//! Runs a program under a deadline with its output in files: a detached container keeps its stdio open, so pipes
//! would hang whoever reads to their end.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::patience;

const DEADLINE: u32 = 60;

#[derive(Debug, Clone)]
pub struct Out {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Out {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Exit 1 and one line on stderr that holds every one of `words`.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        assert_eq!(self.code, 1, "{self:#?}");
        assert!(!self.err.trim().is_empty(), "no message: {self:#?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {self:#?}");
        }
        assert!(!self.err.contains("panicked"), "{self:#?}");
    }
}

pub struct Running {
    pub child: Child,
    dir: tempfile::TempDir,
}

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub fn out_path(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.out_path()).expect("stdout file")).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("err")).expect("stderr file"))
            .into_owned()
    }

    pub fn wait(&mut self) -> Out {
        self.wait_within(DEADLINE)
    }

    /// `seconds` are told to `patience`.
    pub fn wait_within(&mut self, seconds: u32) -> Out {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                break status;
            }
            if started.elapsed() > patience(seconds) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("hung for {:?}; out {:?}, err {:?}", started.elapsed(), self.out(), self.err());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        use std::os::unix::process::ExitStatusExt;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Out { code, out: self.out(), err: self.err() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn spawn(command: &mut Command) -> Running {
    // Not /dev/null: crun 1.8 gives the caller's stdio to the container's root, the host's own device included.
    start(command, Stdio::from(tempfile::tempfile().expect("an empty file")))
}

/// For `script`, which types its end of input into the terminal; /dev/null it leaves alone.
pub fn run_script(line: &str) -> Out {
    let mut script = Command::new("script");
    script.args(["-qefc", line, "/dev/null"]).env("TERM", "xterm");
    start(&mut script, Stdio::null()).wait()
}

/// As `spawn`, with `text` on a pipe as stdin.
pub fn spawn_with_stdin(command: &mut Command, text: &[u8]) -> Running {
    let mut running = start(command, Stdio::piped());
    let mut pipe = running.child.stdin.take().expect("a stdin pipe");
    // A program that reads nothing may have ended already.
    match pipe.write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => panic!("write stdin: {error}"),
        _ => {}
    }
    running
}

/// `command` where the cache of compiled code is what mount(8) makes of `mount`: a mount namespace of its own.
pub fn with_cache(command: &Command, mount: &[&str]) -> Command {
    // As runw makes it: it refuses one that others may enter.
    let line = r#"mkdir -p -m 700 /var/cache/runw && mount $0 /var/cache/runw && exec "$@""#;
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", line, &mount.join(" ")]);
    unshare.arg(command.get_program()).args(command.get_args());
    unshare
}

/// An empty cache of this call alone.
pub const COLD: &[&str] = &["-t", "tmpfs", "-o", "mode=700", "runw-test"];

fn start(command: &mut Command, stdin: Stdio) -> Running {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| File::create(dir.path().join(name)).expect("an output file");
    let child = command
        .stdin(stdin)
        .stdout(file("out"))
        .stderr(file("err"))
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Running { child, dir }
}

pub fn run(command: &mut Command) -> Out {
    spawn(command).wait()
}

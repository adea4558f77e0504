//! One container of the runtime under test, with a state root of its own, deleted when the test ends however it ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Bundle, Kind, Out, Running, kind, pure_v2, run, runtime, spawn, until};

pub struct Container {
    pub bundle: Bundle,
    pub id: String,
    root: tempfile::TempDir,
    /// `create`'s own stdio is the container's: kept so that tests can read what it wrote.
    init: Option<Running>,
}

impl Container {
    pub fn new(bundle: Bundle) -> Container {
        bundle.save();
        let root = tempfile::Builder::new().prefix("runw-root-").tempdir().expect("a state root");
        Container { id: bundle.id.clone(), bundle, root, init: None }
    }

    pub fn root(&self) -> PathBuf {
        self.root.path().join("state")
    }

    pub fn log_path(&self) -> PathBuf {
        self.root.path().join("log.json")
    }

    /// `runtime --root R --log L --log-format json WORDS...`
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(runtime());
        command.arg("--root").arg(self.root());
        command.args(words);
        command
    }

    pub fn call<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Out {
        run(&mut self.command(words))
    }

    fn with_bundle(&self, verb: &str, flags: &[&str]) -> Command {
        let mut command = self.command(&[verb]);
        command.args(flags).arg("--bundle").arg(self.bundle.path()).arg(&self.id);
        command
    }

    /// Foreground `run`, with flags.
    pub fn run_with(&self, flags: &[&str]) -> Out {
        run(&mut self.with_bundle("run", flags))
    }

    pub fn run(&self) -> Out {
        self.run_with(&[])
    }

    pub fn spawn_run(&self, flags: &[&str]) -> Running {
        spawn(&mut self.with_bundle("run", flags))
    }

    pub fn run_command(&self, flags: &[&str]) -> Command {
        self.with_bundle("run", flags)
    }

    pub fn create_command(&self, flags: &[&str]) -> Command {
        self.with_bundle("create", flags)
    }

    pub fn create_with(&mut self, flags: &[&str]) -> Out {
        let mut running = spawn(&mut self.with_bundle("create", flags));
        let out = running.wait();
        self.init = Some(running);
        out
    }

    #[track_caller]
    pub fn create(&mut self) -> &mut Self {
        self.create_with(&[]).ok();
        self
    }

    #[track_caller]
    pub fn start(&mut self) -> &mut Self {
        self.call(&["start", &self.id]).ok();
        self
    }

    #[track_caller]
    pub fn up(bundle: Bundle) -> Container {
        let mut container = Container::new(bundle);
        container.create().start();
        container
    }

    /// What the container's processes wrote so far.
    pub fn out(&self) -> String {
        self.init.as_ref().expect("created").out()
    }

    pub fn err(&self) -> String {
        self.init.as_ref().expect("created").err()
    }

    #[track_caller]
    pub fn state(&self) -> Value {
        let out = self.call(&["state", &self.id]).ok();
        serde_json::from_str(&out.out).unwrap_or_else(|e| panic!("state is not JSON ({e}): {}", out.out))
    }

    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status").to_owned()
    }

    #[track_caller]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().expect("pid")).expect("a pid")
    }

    #[track_caller]
    pub fn wait_stopped(&self) -> &Self {
        until("the container stops", || self.status() == "stopped");
        self
    }

    #[track_caller]
    pub fn wait_out(&self, text: &str) -> &Self {
        until(&format!("{text:?} in the container's output"), || self.out().contains(text));
        self
    }

    pub fn kill(&self, signal: &str) -> Out {
        self.call(&["kill", &self.id, signal])
    }

    pub fn delete(&self) -> Out {
        self.call(&["delete", &self.id])
    }

    pub fn exec(&self, flags: &[&str], argv: &[&str]) -> Out {
        run(&mut self.exec_command(flags, argv))
    }

    pub fn exec_command(&self, flags: &[&str], argv: &[&str]) -> Command {
        let mut command = self.command(&["exec"]);
        command.args(flags).arg(&self.id).args(argv);
        command
    }

    #[track_caller]
    pub fn sh(&self, text: &str) -> String {
        self.exec(&[], &["/bin/sh", "-c", text]).ok().out
    }

    /// The cgroup directory of a v1 controller, or of `unified`; the only one there is on cgroup v2 alone.
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        let hierarchy = if pure_v2() { "" } else { controller };
        Path::new("/sys/fs/cgroup").join(hierarchy).join("runw-test").join(&self.id)
    }

    #[track_caller]
    pub fn limit(&self, controller: &str, file: &str) -> String {
        let path = self.cgroup(controller).join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let out = self.call(&["delete", "--force", &self.id]);
        // crun 1.8 says 1 when there is nothing to delete; a test that already deleted must not fail for that.
        if out.code != 0 && kind() != Kind::Crun && !std::thread::panicking() {
            panic!("delete --force at the end: {out:?}");
        }
    }
}

//! AppArmor profiles and SELinux labels of a process. A native workload gets them by its execve; one that runs in this
//! process must change over itself, or it would be unconfined although config.json names a profile. Everything is
//! written through a handle on our own procfs directory that was opened on the host (CVE-2019-16884, CVE-2025-52881).
//! Whether the kernel has these at all is `bundle`'s to ask.

use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// `process.apparmorProfile`.
pub fn apparmor(process: &Process, in_process: bool, proc_self: BorrowedFd<'_>) -> Result<()> {
    let Some(profile) = given(process.apparmor_profile()) else { return Ok(()) };
    let (file, command) = if in_process { ("current", "changeprofile") } else { ("exec", "exec") };
    let context = || format!("process.apparmorProfile: unable to apply apparmor profile {profile}");
    // Since Linux 5.8 AppArmor has a directory of its own; before, the files were whichever module's came first.
    let file = match open(proc_self, &format!("attr/apparmor/{file}")) {
        Err(Errno::NOENT) => open(proc_self, &format!("attr/{file}")),
        opened => opened,
    };
    write(file, &format!("{command} {profile}")).with_context(context)
}

/// `process.selinuxLabel` for the next execve (runc: SetExecLabel).
pub fn selinux_at_exec(process: &Process, proc_self: BorrowedFd<'_>) -> Result<()> {
    selinux(process, proc_self, "attr/exec")
}

/// `process.selinuxLabel` for this very process, which must not have been given to the guest yet (crun does so for its
/// handlers). The policy has to allow the change ("dyntransition"); that it does not is an error.
pub fn selinux_now(process: &Process, proc_self: BorrowedFd<'_>) -> Result<()> {
    selinux(process, proc_self, "attr/current")
}

fn selinux(process: &Process, proc_self: BorrowedFd<'_>, file: &str) -> Result<()> {
    let Some(label) = given(process.selinux_label()) else { return Ok(()) };
    write(open(proc_self, file), label)
        .with_context(|| format!("process.selinuxLabel: set {label} by {file}"))
}

/// Keys that `make` makes are labelled as the process will be: the container could not use them otherwise.
pub fn with_label_of_keys(
    process: &Process,
    proc_self: BorrowedFd<'_>,
    make: impl FnOnce() -> Result<()>,
) -> Result<()> {
    const FILE: &str = "attr/keycreate";
    let Some(label) = given(process.selinux_label()) else { return make() };
    match open(proc_self, FILE) {
        // Older than Linux 2.6.18; runc goes on, too.
        Err(Errno::NOENT) => return make(),
        file => write(file, label).with_context(|| format!("process.selinuxLabel: set {label} by {FILE}"))?,
    }
    make()?;
    // Back to the default, for the hooks; runc forgives a failure, and the execve does the same.
    let _ = write(open(proc_self, FILE), "");
    Ok(())
}

fn given(label: &Option<String>) -> Option<&str> {
    label.as_deref().filter(|label| !label.is_empty())
}

fn open(proc_self: BorrowedFd<'_>, file: &str) -> rustix::io::Result<OwnedFd> {
    openat(proc_self, file, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// One write(2), an empty one too: the kernel takes what it gets as the whole label.
fn write(file: rustix::io::Result<OwnedFd>, text: &str) -> Result<()> {
    rustix::io::write(file?, text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn process() -> Process {
        serde_json::from_value(json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["x"],
            "apparmorProfile": "p", "selinuxLabel": "u:r:t:s0:c1,c2"}))
        .unwrap()
    }

    /// A directory with the files of /proc/PID/attr.
    fn attr(files: &[&str]) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join("attr").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let handle = fs::File::open(dir.path()).unwrap().into();
        (dir, handle)
    }

    fn read(dir: &Path, file: &str) -> String {
        fs::read_to_string(dir.join("attr").join(file)).unwrap()
    }

    #[test]
    fn a_native_process_gets_its_profile_by_execve_and_a_guest_at_once() {
        let files = ["apparmor/exec", "apparmor/current", "exec", "current"];
        for (in_process, file, text) in
            [(false, "apparmor/exec", "exec p"), (true, "apparmor/current", "changeprofile p")]
        {
            let (dir, proc) = attr(&files);
            apparmor(&process(), in_process, proc.as_fd()).unwrap();
            for one in files {
                assert_eq!(read(dir.path(), one), if one == file { text } else { "" }, "{one}");
            }
        }
        let (dir, proc) = attr(&["exec"]);
        apparmor(&process(), false, proc.as_fd()).unwrap();
        assert_eq!(read(dir.path(), "exec"), "exec p");
    }

    #[test]
    fn selinux_labels_are_written_as_they_are() {
        let (dir, proc) = attr(&["exec", "current", "keycreate"]);
        selinux_at_exec(&process(), proc.as_fd()).unwrap();
        selinux_now(&process(), proc.as_fd()).unwrap();
        with_label_of_keys(&process(), proc.as_fd(), || {
            assert_eq!(read(dir.path(), "keycreate"), "u:r:t:s0:c1,c2");
            Ok(())
        })
        .unwrap();
        assert_eq!(read(dir.path(), "exec"), "u:r:t:s0:c1,c2");
        assert_eq!(read(dir.path(), "current"), "u:r:t:s0:c1,c2");
    }

    #[test]
    fn a_label_that_cannot_be_written_is_an_error_that_names_the_field() {
        let (_dir, proc) = attr(&["keycreate"]);
        for (done, field) in [
            (apparmor(&process(), true, proc.as_fd()), "process.apparmorProfile: "),
            (selinux_at_exec(&process(), proc.as_fd()), "process.selinuxLabel: "),
            (selinux_now(&process(), proc.as_fd()), "process.selinuxLabel: "),
        ] {
            let error = format!("{:#}", done.unwrap_err());
            assert!(error.starts_with(field) && error.contains("No such file"), "{error}");
        }
    }
}

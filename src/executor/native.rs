//! A native program: found at create as runc finds it (Go's `exec.LookPath`, run with the container user's
//! credentials), executed at start. The texts are runc's, since moby and podman derive exit codes from them.

use std::ffi::{CStr, CString};
use std::io::{self, Read};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Execve;

pub struct Native {
    argv: Vec<String>,
    pub env: Vec<String>,
    execve: Execve,
    call: Option<Call>,
}

/// The three arguments of execve, made at create so that start allocates nothing that could fail.
struct Call {
    path: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
}

/// `PATH` as runc sees it after setenv of each entry in turn: the last one.
pub fn search_path(env: &[String]) -> Option<&str> {
    search(env, "PATH")
}

fn search<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// passwd(5), read by hand: a static glibc's getpwuid would load the image's libnss_*.so into this process. The image
/// may have put anything in the file's place, so only a regular one is read, and no more than a real one is long.
fn home_of(uid: u32) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(PASSWD_CAP).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

/// Bytes of /etc/passwd that are looked at.
const PASSWD_CAP: u64 = 4 << 20;

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let home = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).copied().unwrap_or_default())
    })?;
    // It becomes a C string; an image's file may hold what it likes.
    (!home.is_empty() && !home.contains('\0')).then(|| home.to_owned())
}

impl Native {
    pub fn new(argv: Vec<String>, env: Vec<String>, execve: Execve) -> Native {
        Native { argv, env, execve, call: None }
    }

    pub fn ready(&mut self) -> Result<()> {
        let path = look_path(self.argv.first().context("process.args is empty")?, search_path(&self.env))?;
        self.add_home();
        self.call = Some(Call {
            path: CString::new(path).context("process.args[0] contains a NUL byte")?,
            argv: c_strings(&self.argv, "process.args")?,
            env: c_strings(&self.env, "process.env")?,
        });
        Ok(())
    }

    /// A process without HOME gets its user's from the container's /etc/passwd, or `/`, as runc does.
    fn add_home(&mut self) {
        if search(&self.env, "HOME").is_some_and(|home| !home.is_empty()) {
            return;
        }
        let home = home_of(rustix::process::geteuid().as_raw()).unwrap_or_else(|| "/".to_owned());
        self.env.retain(|entry| !entry.starts_with("HOME="));
        self.env.push(format!("HOME={home}"));
    }

    pub fn run(&mut self) -> Result<i32> {
        let call = self.call.as_ref().context("internal: run before ready")?;
        let argv: Vec<&CStr> = call.argv.iter().map(CString::as_c_str).collect();
        let env: Vec<&CStr> = call.env.iter().map(CString::as_c_str).collect();
        let error = (self.execve)(&call.path, &argv, &env);
        bail!("exec {}: {}", call.path.to_string_lossy(), reason(&error))
    }
}

fn c_strings(list: &[String], field: &str) -> Result<Vec<CString>> {
    list.iter()
        .enumerate()
        .map(|(at, text)| {
            CString::new(text.as_str()).map_err(|_| anyhow!("{field}[{at}] contains a NUL byte"))
        })
        .collect()
}

fn look_path(name: &str, path: Option<&str>) -> Result<String> {
    if name.contains('/') {
        executable(name).map_err(|text| anyhow!("exec: {name:?}: {text}"))?;
        return Ok(name.to_owned());
    }
    // Go's filepath.SplitList: an empty PATH has no elements, an empty element is ".".
    for dir in path.unwrap_or_default().split(':').filter(|_| path.is_some_and(|path| !path.is_empty())) {
        let candidate = format!("{}/{name}", if dir.is_empty() { "." } else { dir.trim_end_matches('/') });
        if executable(&candidate).is_ok() {
            if !candidate.starts_with('/') {
                bail!("exec: {name:?}: cannot run executable found relative to current directory");
            }
            return Ok(candidate);
        }
    }
    bail!("exec: {name:?}: executable file not found in $PATH")
}

/// Go's findExecutable. EACCES and not the mode bits alone: a file on a noexec mount has them.
fn executable(path: &str) -> std::result::Result<(), String> {
    let stat = rustix::fs::stat(path).map_err(|error| format!("stat {path}: {}", reason(&error.into())))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        // Go's word, then the kernel's, by which podman knows what its exit status must be.
        return Err("is a directory: permission denied".to_owned());
    }
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // EPERM: a seccomp profile that does not know faccessat2 (Go looks at the bits then).
        Ok(()) | Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Ok(()) | Err(Errno::NOSYS | Errno::PERM) => Err("permission denied".to_owned()),
        Err(error) => Err(reason(&error.into())),
    }
}

/// An errno as Go prints it: lower case and without the number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::testing::scratch;
    use std::os::unix::fs::PermissionsExt;

    fn fails(name: &str, path: Option<&str>) -> String {
        look_path(name, path).unwrap_err().to_string()
    }

    #[test]
    fn look_up_speaks_as_runc() {
        let dir = scratch("native");
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        for (name, mode) in [("x", 0o755), ("plain", 0o644)] {
            std::fs::write(path(name), "").unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let dir_name = dir.to_str().unwrap();
        assert_eq!(look_path(&path("x"), None).unwrap(), path("x"));
        assert_eq!(look_path("x", Some(&format!("/none:{dir_name}/:/usr"))).unwrap(), path("x"));
        let quoted = |name: &str| format!("{:?}", path(name));
        assert_eq!(
            fails(&path("no"), None),
            format!("exec: {}: stat {}: no such file or directory", quoted("no"), path("no"))
        );
        assert_eq!(fails(&path("plain"), None), format!("exec: {}: permission denied", quoted("plain")));
        assert_eq!(fails(dir_name, None), format!("exec: {dir_name:?}: is a directory: permission denied"));
        for search in [None, Some(""), Some("/none"), Some(dir_name)] {
            assert_eq!(fails("plain", search), "exec: \"plain\": executable file not found in $PATH");
        }
    }

    #[test]
    fn home_is_the_users_in_the_containers_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:1000:1000::/home/me:/bin/sh\nno:x:7:7:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/me"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }

    #[test]
    fn execve_gets_the_spec_s_environment_in_order_and_its_error_go_s_words() {
        fn refuses(path: &CStr, argv: &[&CStr], env: &[&CStr]) -> io::Error {
            assert_eq!((path, argv), (c"/proc/self/exe", &[c"/proc/self/exe", c"-x"][..]));
            assert_eq!(env, [c"B=1", c"A=2", c"HOME=/h", c"B=3"]);
            io::Error::from_raw_os_error(8)
        }
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let mut native =
            Native::new(list(&["/proc/self/exe", "-x"]), list(&["B=1", "A=2", "HOME=/h", "B=3"]), refuses);
        native.ready().unwrap();
        assert_eq!(native.run().unwrap_err().to_string(), "exec /proc/self/exe: exec format error");
        let mut torn = Native::new(list(&["/proc/self/exe", "a\0b"]), Vec::new(), refuses);
        assert_eq!(torn.ready().unwrap_err().to_string(), "process.args[1] contains a NUL byte");
    }

    #[test]
    fn the_last_path_counts() {
        let env = ["PATH=/a".to_owned(), "XPATH=/c".to_owned(), "PATH=/b".to_owned()];
        assert_eq!(search_path(&env), Some("/b"));
        assert_eq!(search_path(&[]), None);
    }
}

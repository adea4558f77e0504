//! `runw exec`: runs another process in a container.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// AF_UNIX socket that receives the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// AF_UNIX socket that receives a pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Current working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub tty: bool,
    /// User of the process, numeric
    #[arg(short, long, value_name = "UID[:GID]", value_parser = parse_user)]
    pub user: Option<User>,
    /// Additional gid
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the process in JSON, as config.json's `process`
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Detach from the process
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Set no_new_privs for the process
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability to the bounding set of the process
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Pass N additional file descriptors to the process (stdio + $LISTEN_FDS + N in total)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Run the process in an existing sub-cgroup of the container's
    #[arg(long, value_name = "[CONTROLLER,..:]PATH")]
    pub cgroup: Vec<String>,
    /// Allow exec in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// Disable the subreaper used to reap reparented processes
    #[arg(long)]
    pub no_subreaper: bool,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// The command and its arguments, unless --process is given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    /// Not given: runc keeps the container's gid.
    pub gid: Option<u32>,
}

/// Strictly numeric: what a lenient parser made of `user:group` names was CVE-2026-30892 in crun.
fn parse_user(text: &str) -> Result<User> {
    let id = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // u32::MAX is (uid_t)-1, "no change" for setresuid(2).
        let number = text.parse::<u32>().ok().filter(|id| digits && *id != u32::MAX);
        number.with_context(|| format!("user: {text:?} is not a numeric id"))
    };
    match text.split_once(':') {
        None => Ok(User { uid: id(text)?, gid: None }),
        Some((uid, gid)) => Ok(User { uid: id(uid)?, gid: Some(id(gid)?) }),
    }
}

pub fn run(_args: Args, _globals: &Globals) -> Result<u8> {
    bail!("not built yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        assert_eq!(parse_user("1000").unwrap(), User { uid: 1000, gid: None });
        assert_eq!(parse_user("0:5").unwrap(), User { uid: 0, gid: Some(5) });
        for text in
            ["", ":", "1:", ":1", "root", "1:x", "-1", "+1", "4294967295", "4294967296", "1:2:3", " 1"]
        {
            assert!(parse_user(text).is_err(), "{text:?}");
        }
    }
}

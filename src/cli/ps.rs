//! `runw ps`: the processes of a container, as ps(1) shows them or as bare numbers.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Globals, common};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Options of ps(1) (default: -ef)
    #[arg(value_name = "PS-OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<OsString>,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    let entry = globals.root.load(&args.id)?;
    let pids = match common::cgroup(&entry)? {
        Some(cgroup) => cgroup.pids()?,
        None => Vec::new(),
    };
    let text = match args.format.as_str() {
        // As Go marshals a slice that was never allocated.
        "json" if pids.is_empty() => "null\n".to_owned(),
        "json" => serde_json::to_string(&pids)? + "\n",
        "table" => table(&all_processes(args.options)?, &pids)?,
        _ => bail!("invalid format option"),
    };
    super::print(&text)?;
    Ok(0)
}

fn all_processes(mut options: Vec<OsString>) -> Result<String> {
    if options.is_empty() {
        options.push("-ef".into());
    }
    let out = Command::new("ps").args(options).stdin(Stdio::null()).output().context("cannot run ps")?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("ps failed with {}: {}", out.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The heading, and the lines of these processes; found by the heading's PID, as runc does.
fn table(text: &str, pids: &[i32]) -> Result<String> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|title| title == "PID");
    let column = column.context("couldn't find PID field in ps output")?;
    let mut out = format!("{heading}\n");
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let word = line.split_whitespace().nth(column).unwrap_or_default();
        let pid: i32 = word.parse().with_context(|| format!("unable to parse pid {word:?} of ps"))?;
        if pids.contains(&pid) {
            out.push_str(line);
            out.push('\n');
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_by_the_pid_column() {
        let text = "USER   PID CMD\nroot     1 init 7\nroot     7 sh\n\n";
        assert_eq!(table(text, &[7]).unwrap(), "USER   PID CMD\nroot     7 sh\n");
        assert_eq!(table(text, &[]).unwrap(), "USER   PID CMD\n");
        let refused = |text| table(text, &[1]).unwrap_err().to_string();
        assert_eq!(refused("USER CMD\nroot init\n"), "couldn't find PID field in ps output");
        assert_eq!(refused("CMD PID\ninit x 1\n"), "unable to parse pid \"x\" of ps");
    }
}

//! The command line: the table of verbs, what every verb is given, and the way from argv to a verb. The
//! verbs' stories are in files of their own; no kernel calls here.

pub mod argv;
pub mod cache;
pub mod checkpoint;
mod common;
pub mod completion;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod list;
pub mod pause;
pub mod ps;
pub mod restore;
pub mod resume;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;
mod version;

use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::error::Failure;
use crate::linux::namespaces;
use crate::log;
use crate::state::Root;

/// What every verb is given.
#[derive(Debug)]
pub struct Globals {
    pub root: Root,
    pub cgroup_manager: CgroupManager,
    /// Whether to make do without the cgroups and privileges of root: `--rootless`, or found out.
    pub rootless: bool,
    /// `--handler`: how to run the workload (design section 5).
    pub handler: Option<String>,
    /// The name runw was called by: `runw-wasm` and `crun-wasm` mean something.
    pub argv0: OsString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupManager {
    Cgroupfs,
    Systemd,
    Disabled,
}

/// The options before the verb: runc's and crun's.
#[derive(Debug, clap::Args)]
struct GlobalArgs {
    /// Enable debug logging
    #[arg(long)]
    debug: bool,
    /// Write log lines to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    log: Option<OsString>,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: String,
    /// error, warning or debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Root directory for the state of containers (default: /run/runw; rootless: $XDG_RUNTIME_DIR/runw)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Use systemd to manage cgroups; cgroupsPath is then of the form "slice:prefix:name"
    #[arg(long)]
    systemd_cgroup: bool,
    /// cgroupfs, systemd or disabled
    #[arg(long, value_name = "MANAGER")]
    cgroup_manager: Option<String>,
    /// Ignore cgroup permission errors: true, false or auto
    #[arg(long, value_name = "VALUE", default_value = "auto")]
    rootless: String,
    /// Run the workload as: wasm, wasm-smart or native
    #[arg(long, value_name = "HANDLER", hide = true)]
    handler: Option<String>,
    /// runc's path to the criu binary, which runc itself ignores since 1.1.6
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
}

/// One verb. Only the verb that was asked for builds its clap command: the others cost nothing at start-up.
struct Verb {
    name: &'static str,
    about: &'static str,
    augment: fn(Command) -> Command,
    run: fn(&ArgMatches, &Globals) -> Result<u8>,
    /// Put before the error of a failed run, as runc does for these verbs.
    prefix: &'static str,
    /// The exit status of a failed run.
    failed: u8,
}

macro_rules! verb {
    ($module:ident, $about:literal) => {
        verb!($module, $about, "", 1)
    };
    ($module:ident, $about:literal, $prefix:literal, $failed:literal) => {
        Verb {
            name: stringify!($module),
            about: $about,
            augment: $module::Args::augment_args,
            run: |matches, globals| $module::run($module::Args::from_arg_matches(matches)?, globals),
            prefix: $prefix,
            failed: $failed,
        }
    };
}

const VERBS: &[Verb] = &[
    verb!(cache, "show, prune or fill the cache of compiled WebAssembly"),
    verb!(checkpoint, "checkpoint a running container"),
    verb!(completion, "print a script that completes runw's command line in a shell"),
    verb!(create, "create a container", "runw create failed", 1),
    verb!(delete, "delete any resources held by a container"),
    verb!(events, "display stats of a container and when it runs out of memory"),
    // 255 tells an engine that the command never ran from a command that ended with 1 (runc's fatalWithCode).
    verb!(exec, "execute a new process inside a container", "exec failed", 255),
    verb!(features, "show the enabled features as JSON"),
    verb!(kill, "send a signal (default: SIGTERM) to a container's init process"),
    verb!(list, "list containers of the given root"),
    verb!(pause, "suspend all processes inside a container"),
    verb!(ps, "display the processes running inside a container"),
    verb!(restore, "restore a container from a checkpoint"),
    verb!(resume, "resume all processes that were paused"),
    verb!(run, "create and run a container", "runw run failed", 1),
    verb!(spec, "create a new specification file"),
    verb!(start, "execute the user defined process in a created container"),
    verb!(state, "output the state of a container"),
    verb!(update, "update the resource limits of a container"),
];

/// Reads the command line and runs what it asks for. `Ok` is the exit status.
pub fn main(args: Vec<OsString>) -> Result<u8, Failure> {
    let mut args = args.into_iter();
    let argv0 = args.next().unwrap_or_else(|| "runw".into());
    let words: Vec<OsString> = args.collect();

    let top = top_command();
    let parsed = argv::parse(&top, argv::Order::GlobalsThenVerb, &words).map_err(usage)?;
    match parsed.asked {
        argv::Asked::Version => return Ok(print(&version::text()).map(|()| 0)?),
        argv::Asked::Help => return help(parsed.words.first().map(OsString::as_os_str)),
        argv::Asked::Run => {}
    }
    let matches = top.try_get_matches_from(parsed.flags).map_err(clap_failure)?;
    let globals = GlobalArgs::from_arg_matches(&matches).map_err(clap_failure)?;
    // From here on errors go where the caller wants them, those about the rest of the command line included.
    open_log(&globals)?;
    let mut words = parsed.words.into_iter();
    let Some(name) = words.next() else { return help(None) };
    if name == "help" || name == "h" {
        return help(words.next().as_deref());
    }
    let verb = find(&name)?;
    dispatch(verb, words.as_slice(), globals, argv0)
}

fn dispatch(verb: &Verb, words: &[OsString], globals: GlobalArgs, argv0: OsString) -> Result<u8, Failure> {
    let command = verb_command(verb);
    let parsed = argv::parse(&command, argv::Order::of(&command), words).map_err(usage)?;
    if parsed.asked != argv::Asked::Run {
        return help(Some(OsStr::new(verb.name)));
    }
    argv::check_count(verb.name, &command, &parsed.words).map_err(usage)?;
    let argv = parsed.flags.into_iter().chain(["--".into()]).chain(parsed.words);
    let matches = command.try_get_matches_from(argv).map_err(clap_failure)?;
    let globals = settle(globals, argv0)?;
    (verb.run)(&matches, &globals).map_err(|error| {
        let error = if verb.prefix.is_empty() { error } else { error.context(verb.prefix) };
        Failure { error, status: verb.failed }
    })
}

fn find(name: &OsStr) -> Result<&'static Verb, Failure> {
    let unknown = || Failure::usage(format!("no such command: {}", name.display()));
    VERBS.iter().find(|verb| verb.name == name).ok_or_else(unknown)
}

fn top_command() -> Command {
    bare(GlobalArgs::augment_args(Command::new("runw")))
}

fn verb_command(verb: &Verb) -> Command {
    let command = (verb.augment)(Command::new(verb.name).bin_name(format!("runw {}", verb.name)));
    // Last: clap takes the comment on a flattened struct for the verb's own.
    bare(command.about(verb.about))
}

/// With every verb and flag, for completion.
fn whole_command() -> Command {
    top_command().subcommands(VERBS.iter().map(verb_command))
}

/// Help and version are ours (`argv` sees them in every spelling), and of a repeated flag the last wins as in Go.
fn bare(command: Command) -> Command {
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args_override_self(true)
}

fn help(about: Option<&OsStr>) -> Result<u8, Failure> {
    let mut command = match about {
        Some(name) => verb_command(find(name)?),
        None => {
            let verbs = VERBS.iter().map(|verb| Command::new(verb.name).about(verb.about));
            let about = "runw - an OCI runtime for native and WebAssembly containers";
            top_command().about(about).subcommand_required(true).subcommands(verbs)
        }
    };
    // Added only here: while parsing they would be flags of their own.
    command = command.arg(clap::arg!(-h --help "Show this help").required(false));
    if about.is_none() {
        command = command.arg(clap::arg!(-v --version "Print the version").required(false));
    }
    print(&command.render_help().to_string())?;
    Ok(0)
}

fn open_log(globals: &GlobalArgs) -> Result<()> {
    let format = match globals.log_format.as_str() {
        "text" => log::Format::Text,
        "json" => log::Format::Json,
        other => bail!("invalid log-format: {other}"),
    };
    let level = match globals.log_level.as_deref() {
        _ if globals.debug => log::Level::Debug,
        None | Some("warning" | "warn" | "info") => log::Level::Warning,
        Some("error") => log::Level::Error,
        Some("debug") => log::Level::Debug,
        Some(other) => bail!("invalid log-level: {other}"),
    };
    log::init(globals.log.as_deref(), format, level)
}

/// Turns the options into what the verbs use.
fn settle(args: GlobalArgs, argv0: OsString) -> Result<Globals> {
    let cgroup_manager = match args.cgroup_manager.as_deref() {
        Some("cgroupfs") => CgroupManager::Cgroupfs,
        Some("systemd") => CgroupManager::Systemd,
        Some("disabled") => CgroupManager::Disabled,
        Some(other) => bail!("invalid cgroup-manager: {other}, expected cgroupfs, systemd or disabled"),
        None if args.systemd_cgroup => CgroupManager::Systemd,
        None => CgroupManager::Cgroupfs,
    };
    if let Some(handler) = args.handler.as_deref()
        && !["wasm", "wasm-smart", "native"].contains(&handler)
    {
        bail!("invalid handler: {handler}, expected wasm, wasm-smart or native");
    }
    let rootless = match args.rootless.as_str() {
        "auto" => !rustix::process::geteuid().is_root() || in_user_namespace(),
        other => argv::go_bool(other).with_context(|| format!("invalid value {other:?} for --rootless"))?,
    };
    let root = Root::new(root_dir(args.root)?);
    Ok(Globals { root, cgroup_manager, rootless, handler: args.handler, argv0 })
}

/// As runc: `--root`, else `$XDG_RUNTIME_DIR/runw` for those who cannot write below /run, else /run/runw.
fn root_dir(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = given {
        return std::path::absolute(&dir).with_context(|| format!("--root {}", dir.display()));
    }
    let xdg = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute());
    // Root of a user namespace is somebody's own root unless USER says it is a root login.
    let own_root = || in_user_namespace() && std::env::var_os("USER").is_none_or(|user| user != "root");
    match xdg {
        Some(xdg) if !rustix::process::geteuid().is_root() || own_root() => {
            sticky(&Path::new(&xdg).join("runw"))
        }
        _ => Ok("/run/runw".into()),
    }
}

/// The XDG base directory specification lets files in $XDG_RUNTIME_DIR be cleaned up after six hours unless
/// they carry the sticky bit.
fn sticky(dir: &Path) -> Result<PathBuf> {
    let context = || format!("{} must be writable by the user", dir.display());
    std::fs::create_dir_all(dir).with_context(context)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1700)).with_context(context)?;
    Ok(dir.to_owned())
}

/// As far as can be known.
fn in_user_namespace() -> bool {
    namespaces::are_ids_our_own() == Some(false)
}

fn usage(message: String) -> Failure {
    Failure::usage(message)
}

/// clap's complaint as our one line: its text up to the usage, without the word `error:`.
fn clap_failure(error: clap::Error) -> Failure {
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or(&text);
    let text = text.split("\n\nFor more").next().unwrap_or(text).trim_start_matches("error: ");
    Failure::usage(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// JSON as Go writes it, whose encoder keeps out what could end a script in HTML. Such a sign stands in strings only.
fn go_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// Writes a verb's output. A reader that has gone away (`runw list | head`) wants no more, so that is success.
pub fn print(text: &str) -> Result<()> {
    write_out(text).map(|_| ())
}

/// False when nobody reads any more.
fn write_out(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write to standard output"),
    }
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;

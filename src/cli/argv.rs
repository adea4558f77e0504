//! Reads a command line the way Go's flag package and urfave/cli do, because engines were written against
//! runc: one dash or two for any flag, `--flag=v` or `--flag v` (the next word is the value whatever it looks
//! like), `--flag=false` for booleans. What comes out is spelled as clap expects it. Knows flags only through
//! the clap command it is given; what they mean is clap's and the verbs' matter.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

/// Where flags may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Up to the first other word, which is the verb; -v asks for the version.
    GlobalsThenVerb,
    /// Up to the first other word: what follows belongs to the command that `exec` runs.
    FlagsFirst,
    /// Anywhere until `--`, as urfave/cli reorders.
    Anywhere,
}

impl Order {
    /// A verb whose last argument takes the rest of the line must not look for flags in it.
    pub fn of(command: &Command) -> Order {
        let rest = command.get_positionals().any(Arg::is_trailing_var_arg_set);
        if rest { Order::FlagsFirst } else { Order::Anywhere }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Run,
    Help,
    Version,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The command's name, then flags with their values in clap's spelling.
    pub flags: Vec<OsString>,
    /// Everything that is not a flag, untouched.
    pub words: Vec<OsString>,
    pub asked: Asked,
}

/// `Err` is a message in Go's words: podman looks for `flag needs an argument`.
pub fn parse(command: &Command, order: Order, args: &[OsString]) -> Result<Parsed, String> {
    let mut parsed = Parsed { flags: vec![command.get_name().into()], words: Vec::new(), asked: Asked::Run };
    let mut args = args.iter();
    while let Some(word) = args.next() {
        if word == "--" {
            parsed.words.extend(args.by_ref().cloned());
        } else if !is_flag(word) {
            parsed.words.push(word.clone());
            if order != Order::Anywhere {
                parsed.words.extend(args.by_ref().cloned());
            }
        } else if let Some(asked) = asked(word, order) {
            parsed.asked = asked;
        } else {
            flag(command, word, &mut args, &mut parsed.flags)?;
        }
    }
    Ok(parsed)
}

/// A lone dash is a word (a file name that means standard input).
fn is_flag(word: &OsStr) -> bool {
    word.len() > 1 && word.as_bytes()[0] == b'-'
}

fn asked(word: &OsStr, order: Order) -> Option<Asked> {
    match word.to_str()? {
        // The last is argp's.
        "-h" | "-help" | "--help" | "-?" | "-usage" | "--usage" => Some(Asked::Help),
        "-v" | "-V" | "-version" | "--version" if order == Order::GlobalsThenVerb => Some(Asked::Version),
        _ => None,
    }
}

fn flag<'a>(
    command: &Command,
    word: &OsStr,
    rest: &mut impl Iterator<Item = &'a OsString>,
    out: &mut Vec<OsString>,
) -> Result<(), String> {
    let bytes = word.as_bytes();
    let body = bytes.strip_prefix(b"--").unwrap_or(&bytes[1..]);
    let (name, inline) = match body.iter().position(|byte| *byte == b'=') {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    let name = String::from_utf8_lossy(name);
    let Some(arg) = lookup(command, &name) else {
        // getopt's bundles, which crun takes: -dt, -b/dir. clap reads them.
        if bytes[1] != b'-' && bundle(command, &name) {
            out.push(word.to_owned());
            return Ok(());
        }
        return Err(format!("flag provided but not defined: -{name}"));
    };
    let long = format!("--{}", arg.get_long().unwrap_or_default());
    if !takes_value(arg) {
        let on = match inline {
            None => true,
            Some(value) => boolean(value).ok_or_else(|| {
                format!("invalid boolean value {:?} for -{name}: parse error", String::from_utf8_lossy(value))
            })?,
        };
        // The last one wins, so `--flag=false` takes an earlier `--flag` back.
        out.retain(|earlier| *earlier != *long);
        if on {
            out.push(long.into());
        }
        return Ok(());
    }
    let value = match inline {
        Some(value) => value,
        None => rest.next().ok_or_else(|| format!("flag needs an argument: -{name}"))?.as_bytes(),
    };
    // An empty value is Go's unset: engines pass --console-socket= for none.
    if !value.is_empty() {
        out.push(OsString::from_vec([long.as_bytes(), b"=", value].concat()));
    }
    Ok(())
}

fn lookup<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut letters = name.chars();
    let letter = letters.next().filter(|_| letters.next().is_none());
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(name) || (letter.is_some() && arg.get_short() == letter))
}

fn bundle(command: &Command, name: &str) -> bool {
    let mut letters = name.chars();
    while let Some(letter) = letters.next() {
        match lookup(command, letter.encode_utf8(&mut [0; 4])) {
            None => return false,
            // The rest is its value; a letter without any would swallow what follows in clap, not in Go.
            Some(arg) if takes_value(arg) => return letters.next().is_some(),
            Some(_) => {}
        }
    }
    true
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Go's strconv.ParseBool.
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A boolean flag's value: Go's words, and the `no` that crun takes for `--tty=no`.
fn boolean(value: &[u8]) -> Option<bool> {
    match std::str::from_utf8(value).ok()? {
        "yes" => Some(true),
        "no" => Some(false),
        text => go_bool(text),
    }
}

/// The number of words a verb takes, in runc's text.
pub fn check_count(verb: &str, command: &Command, words: &[OsString]) -> Result<(), String> {
    let least = command.get_positionals().filter(|arg| arg.is_required_set()).count();
    let list = |arg: &Arg| arg.get_num_args().is_some_and(|number| number.max_values() > 1);
    let rest = Order::of(command) == Order::FlagsFirst || command.get_positionals().any(list);
    let most = if rest { usize::MAX } else { command.get_positionals().count() };
    if (least..=most).contains(&words.len()) {
        return Ok(());
    }
    Err(match words.len() < least {
        _ if least == most => format!("runw: {verb:?} requires exactly {least} argument(s)"),
        true => format!("runw: {verb:?} requires a minimum of {least} argument(s)"),
        false => format!("runw: {verb:?} requires a maximum of {most} argument(s)"),
    })
}

#[cfg(test)]
#[path = "argv_tests.rs"]
mod tests;

//! What a failed command comes to: one line of text and an exit status. Nothing is printed here; `main` reports.

use std::fmt::Write as _;

/// What `main` reports and how the process then ends.
#[derive(Debug)]
pub struct Failure {
    pub error: anyhow::Error,
    pub status: u8,
}

impl Failure {
    /// A command line we cannot read: 1 as runc (urfave/cli), never clap's 2.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { error: anyhow::Error::msg(message.into()), status: 1 }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure { error, status: 1 }
    }
}

/// The error and its causes as one line: `outer: inner: root cause`.
///
/// Control characters are escaped: names from a bundle or an image stand in our messages, and must neither
/// forge a second log line nor steer the reader's terminal.
pub fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = without_number(&text);
        // Many libraries' errors say their cause in their own text already.
        if line.is_empty() {
            line = text;
        } else if !line.ends_with(&text) {
            line = line + ": " + &text;
        }
    }
    flat(&line)
}

/// `No such file or directory (os error 2)` as Go says it, `no such file or directory`: callers look for Go's
/// words (native-peers 1.8), not all of them whatever the case.
fn without_number(text: &str) -> String {
    let bare = text.strip_suffix(')').and_then(|text| text.rsplit_once(" (os error "));
    let Some((bare, _)) = bare.filter(|(_, number)| number.parse::<i32>().is_ok()) else {
        return text.to_owned();
    };
    let mut letters = bare.chars();
    let first = letters.next().map(|c| c.to_lowercase().to_string()).unwrap_or_default();
    first + letters.as_str()
}

/// `text` with its control characters escaped as Go's `%q` does.
pub fn flat(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => _ = write!(out, "\\x{:02x}", c as u32),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_are_joined_and_controls_escaped() {
        let error = std::fs::read("/nonexistent/\u{1b}[2J\nx").context("cannot read it").unwrap_err();
        assert_eq!(line(&error), "cannot read it: no such file or directory");
        let twice = anyhow::anyhow!("inner").context("outer: inner").context("top");
        assert_eq!(line(&twice), "top: outer: inner");
        let denied = anyhow::Error::from(rustix::io::Errno::ACCESS).context("exec /x");
        assert_eq!(line(&denied), "exec /x: permission denied");
        assert_eq!(without_number("a (os error x)"), "a (os error x)");
        assert_eq!(flat("a\nb\u{1b}[2J\tc\n"), "a\\nb\\x1b[2J\\tc");
    }
}

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
    flat(&format!("{error:#}"))
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
        assert_eq!(line(&error), "cannot read it: No such file or directory (os error 2)");
        assert_eq!(flat("a\nb\u{1b}[2J\tc\n"), "a\\nb\\x1b[2J\\tc");
    }
}

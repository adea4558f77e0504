//! Log lines as runc writes them, which engines parse: containerd streams the JSON records of `--log` and shows
//! the last one of level `error`; podman wants exactly one record. So: one `error` per failed command (written
//! by `main` alone), warnings, and debug lines only when asked for. Not a general logger.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warning,
    Debug,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Debug => "debug",
        }
    }
}

struct Log {
    /// `None`: standard error.
    file: Option<File>,
    format: Format,
    level: Level,
}

static LOG: OnceLock<Log> = OnceLock::new();
const DEFAULT: Log = Log { file: None, format: Format::Text, level: Level::Warning };

/// Opens the log of this process. Called once, by `main`, before anything can fail in a way worth logging.
pub fn init(target: Option<&OsStr>, format: Format, level: Level) -> Result<()> {
    let file = match target.map(log_path).transpose()?.flatten() {
        None => None,
        Some(path) => {
            // O_APPEND: the shim's log.json is written by several runtimes, one after another or at once.
            let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(&path);
            Some(opened.with_context(|| format!("cannot open log file {}", path.display()))?)
        }
    };
    // A second call would be a bug of ours that is harmless: the first log stays.
    let _ = LOG.set(Log { file, format, level });
    Ok(())
}

/// crun's `--log` prefixes, and `/dev/stderr`, which cannot be opened by name when it is a socket.
fn log_path(target: &OsStr) -> Result<Option<std::path::PathBuf>> {
    let bytes = target.as_bytes();
    for unsupported in ["journald:", "syslog:"] {
        if bytes.starts_with(unsupported.as_bytes()) {
            bail!("--log={unsupported} is not supported, use a file: --log=file:PATH");
        }
    }
    let path = OsStr::from_bytes(bytes.strip_prefix(b"file:").unwrap_or(bytes));
    let stderr = path.is_empty() || path == "/dev/stderr" || path == "/dev/fd/2" || path == "/proc/self/fd/2";
    Ok(if stderr { None } else { Some(OsString::from(path).into()) })
}

/// The one record of a failed command; also said on standard error when the log is elsewhere, as runc does.
pub fn error(message: &str) {
    let log = LOG.get().unwrap_or(&DEFAULT);
    record(Level::Error, message);
    if log.file.is_some() {
        to_stderr(&format!("{message}\n"));
    }
}

/// Something of the bundle that does not stop the container but should be known.
pub fn warn(message: &str) {
    record(Level::Warning, &crate::error::flat(message));
}

/// `message` is only built when `--debug` was given.
pub fn debug(message: impl FnOnce() -> String) {
    if LOG.get().unwrap_or(&DEFAULT).level >= Level::Debug {
        record(Level::Debug, &crate::error::flat(&message()));
    }
}

fn record(level: Level, message: &str) {
    let log = LOG.get().unwrap_or(&DEFAULT);
    if level > log.level {
        return;
    }
    let time = timestamp(SystemTime::now(), false);
    let line = match log.format {
        Format::Json => json(level, message, &time),
        Format::Text => text(level, message, &time),
    };
    match &log.file {
        // One write(2) per record, so records of concurrent runtimes do not mix. A full disk must not turn a
        // container's success into a failure, so a log that cannot be written is given up on.
        Some(file) => _ = (&*file).write_all(line.as_bytes()),
        None => to_stderr(&line),
    }
}

fn to_stderr(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn json(level: Level, msg: &str, time: &str) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        level: &'a str,
        msg: &'a str,
        time: &'a str,
    }
    // Serializing three strings cannot fail; an empty line would still be valid for every reader.
    let mut line = serde_json::to_string(&Line { level: level.as_str(), msg, time }).unwrap_or_default();
    line.push('\n');
    line
}

/// logrus' text form.
fn text(level: Level, msg: &str, time: &str) -> String {
    format!("time={} level={} msg={}\n", quote(time), level.as_str(), quote(msg))
}

/// logrus quotes a value unless every character is one of these.
fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => _ = write!(out, "\\x{:02x}", c as u32),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// RFC 3339 in UTC; `nanos` as Go's RFC3339Nano, without trailing zeros.
///
/// By hand (Howard Hinnant's `civil_from_days`): a time zone library would be the largest thing at start-up.
pub fn timestamp(time: SystemTime, nanos: bool) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let mut out = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos && since.subsec_nanos() != 0 {
        let fraction = format!(".{:09}", since.subsec_nanos());
        out.push_str(fraction.trim_end_matches('0'));
    }
    out.push('Z');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn lines_are_runcs() {
        // Both copied from the output of runc 1.1.5.
        let time = "2026-11-21T07:53:03Z";
        let message = "container does not exist";
        assert_eq!(
            json(Level::Error, message, time),
            "{\"level\":\"error\",\"msg\":\"container does not exist\",\"time\":\"2026-11-21T07:53:03Z\"}\n"
        );
        assert_eq!(
            text(Level::Error, message, time),
            "time=\"2026-11-21T07:53:03Z\" level=error msg=\"container does not exist\"\n"
        );
        assert_eq!(
            text(Level::Error, "\"state\" requires\n", time),
            "time=\"2026-11-21T07:53:03Z\" level=error msg=\"\\\"state\\\" requires\\n\"\n"
        );
        assert_eq!(quote("word"), "word");
        assert_eq!(quote(""), "\"\"");
    }

    #[test]
    fn timestamps() {
        for (secs, nanos, want) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 0, "2000-02-28T23:59:59Z"),
            (951_868_799, 0, "2000-02-29T23:59:59Z"),
            (1_795_247_583, 120_000_000, "2026-11-21T07:53:03.12Z"),
            (4_102_444_800, 1, "2100-01-01T00:00:00.000000001Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(secs, nanos), true), want);
        }
        assert_eq!(timestamp(UNIX_EPOCH + Duration::new(1, 5), false), "1970-01-01T00:00:01Z");
    }

    #[test]
    fn targets() {
        let path = |s: &str| log_path(OsStr::new(s)).unwrap().map(|p| p.display().to_string());
        assert_eq!(path("/a/log.json").as_deref(), Some("/a/log.json"));
        assert_eq!(path("file:/a/log").as_deref(), Some("/a/log"));
        assert_eq!(path("/dev/stderr"), None);
        assert_eq!(path(""), None);
        assert!(log_path(OsStr::new("journald:x")).unwrap_err().to_string().contains("journald:"));
        assert!(log_path(OsStr::new("syslog:")).is_err());
    }
}

//! One conversation with systemd: a blocking D-Bus client for its manager's calls, and no more. Must not know of
//! containers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::value::{Value, alignment, pad};

/// As runc: a systemd that does not answer must not keep an engine waiting for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// D-Bus specification, "Message Format".
const LARGEST: usize = 128 << 20;
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// What systemd or the bus said no with.
#[derive(Debug)]
pub struct Refused {
    /// `org.freedesktop.systemd1.UnitExists`
    pub name: String,
    text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.text.is_empty() { &self.name } else { &self.text })
    }
}

impl std::error::Error for Refused {}

pub struct Bus {
    socket: UnixStream,
    serial: u32,
    /// Jobs that ended while an answer was waited for: their object paths and results.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// The system's, or the user's own systemd.
    pub fn connect(user: bool) -> Result<Bus> {
        if user {
            let path = session_address().context(
                "no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR/bus leads to a socket",
            )?;
            return Bus::open(&path, true);
        }
        let public = Path::new("/run/dbus/system_bus_socket");
        match Bus::open(public, true) {
            // systemd itself, where there is no message bus (a node in a container), as runc.
            Err(error) => Bus::open(Path::new("/run/systemd/private"), false).map_err(|_| error),
            bus => bus,
        }
    }

    fn open(path: &Path, daemon: bool) -> Result<Bus> {
        let context = || format!("failed to connect to dbus at {}", path.display());
        let mut socket = UnixStream::connect(path).with_context(context)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // Without a name the other side takes the uid that the kernel says: the right one in a user namespace too.
        socket.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").with_context(context)?;
        for want in ["DATA", "OK"] {
            let line = line(&mut socket).with_context(context)?;
            ensure!(line.starts_with(want), "{}: refused: {line}", context());
        }
        let mut bus = Bus { socket, serial: 0, ended: Vec::new() };
        if daemon {
            let filter =
                format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'");
            bus.ask("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", &[])?;
            let filter = [Value::Text(filter)];
            bus.ask(
                "org.freedesktop.DBus",
                "/org/freedesktop/DBus",
                "org.freedesktop.DBus",
                "AddMatch",
                &filter,
            )?;
        }
        Ok(bus)
    }

    /// A method of the manager's; the answer's body.
    pub fn call(&mut self, member: &str, arguments: &[Value]) -> Result<Body> {
        self.ask(SYSTEMD, "/org/freedesktop/systemd1", MANAGER, member, arguments)
    }

    /// A property of the manager's that is a string.
    pub fn property(&mut self, name: &str) -> Result<String> {
        let arguments = [Value::text(MANAGER), Value::text(name)];
        let properties = "org.freedesktop.DBus.Properties";
        let mut body = self.ask(SYSTEMD, "/org/freedesktop/systemd1", properties, "Get", &arguments)?;
        let kind = body.signature()?;
        ensure!(kind == "s", "property {name} of systemd is of type {kind}");
        body.text()
    }

    /// Calls a method that begins a job, and waits for it: `done`, or why not (org.freedesktop.systemd1(5)).
    pub fn job(&mut self, member: &str, arguments: &[Value]) -> Result<String> {
        let job = self.call(member, arguments)?.text()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| *ended == job) {
                return Ok(result.clone());
            }
            self.receive(deadline).with_context(|| format!("wait for systemd's {member}"))?;
        }
    }

    fn ask(
        &mut self,
        to: &str,
        path: &str,
        interface: &str,
        member: &str,
        arguments: &[Value],
    ) -> Result<Body> {
        self.serial += 1;
        let message = method_call(self.serial, to, path, interface, member, arguments);
        let context = || format!("call {member} over D-Bus");
        self.socket.write_all(&message).with_context(context)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.receive(deadline).with_context(context)?;
            if answer.answers != Some(self.serial) {
                continue;
            }
            let Some(name) = answer.error else { return Ok(answer.body) };
            let mut body = answer.body;
            let text = body.text().unwrap_or_default();
            return Err(Refused { name, text }.into());
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message> {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "systemd does not answer");
        self.socket.set_read_timeout(Some(left))?;
        let message = Message::read(&mut self.socket)?;
        if message.member.as_deref() == Some("JobRemoved") {
            let mut body = message.body.clone();
            let _id = body.number()?;
            let path = body.text()?;
            let _unit = body.text()?;
            self.ended.push((path, body.text()?));
        }
        Ok(message)
    }
}

/// Where the user's message bus is, as sd-bus looks for it.
pub fn session_address() -> Option<PathBuf> {
    if let Ok(addresses) = std::env::var("DBUS_SESSION_BUS_ADDRESS") {
        let path = |address: &str| {
            let keys = address.strip_prefix("unix:")?;
            keys.split(',').find_map(|key| key.strip_prefix("path=")).map(PathBuf::from)
        };
        return addresses.split(';').find_map(path);
    }
    let path = Path::new(&std::env::var_os("XDG_RUNTIME_DIR")?).join("bus");
    path.exists().then_some(path)
}

/// A line of the authentication: short, and nothing may be read that follows it.
fn line(socket: &mut UnixStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        ensure!(line.len() < 512, "not a D-Bus server");
        socket.read_exact(&mut byte).map_err(timed_out)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn timed_out(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow::anyhow!("systemd does not answer"),
        ErrorKind::UnexpectedEof => anyhow::anyhow!("the connection was closed"),
        _ => error.into(),
    }
}

fn method_call(
    serial: u32,
    to: &str,
    path: &str,
    interface: &str,
    member: &str,
    arguments: &[Value],
) -> Vec<u8> {
    let mut body = Vec::new();
    arguments.iter().for_each(|argument| argument.encode(&mut body));
    let signature: String = arguments.iter().map(Value::signature).collect();
    let field = |code: u8, value: Value| Value::Struct(vec![Value::Byte(code), Value::Variant(value.into())]);
    let mut fields = vec![
        field(1, Value::Path(path.into())),
        field(2, Value::text(interface)),
        field(3, Value::text(member)),
        field(6, Value::text(to)),
    ];
    if !signature.is_empty() {
        fields.push(field(8, Value::Signature(signature)));
    }
    // Little-endian, a method call, no flags, version 1.
    let mut message = vec![b'l', 1, 0, 1];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(serial.to_le_bytes());
    Value::Array("(yv)".into(), fields).encode(&mut message);
    pad(&mut message, 8);
    message.extend(body);
    message
}

struct Message {
    /// The serial of the call that this is the answer to.
    answers: Option<u32>,
    error: Option<String>,
    member: Option<String>,
    body: Body,
}

impl Message {
    fn read(socket: &mut UnixStream) -> Result<Message> {
        let mut fixed = [0; 16];
        socket.read_exact(&mut fixed).map_err(timed_out)?;
        ensure!(fixed[0] == b'l', "an answer that is not little-endian");
        let number =
            |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
        let (body, fields) = (number(4), number(12));
        ensure!(body <= LARGEST && fields <= LARGEST, "an answer of {body} bytes");
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        socket.read_exact(&mut rest).map_err(timed_out)?;
        let body = Body { bytes: rest.split_off(fields.next_multiple_of(8)), at: 0 };
        rest.truncate(fields);
        let mut message = Message { answers: None, error: None, member: None, body };
        message.read_fields(Body { bytes: rest, at: 0 })?;
        Ok(message)
    }

    fn read_fields(&mut self, mut fields: Body) -> Result<()> {
        while fields.at < fields.bytes.len() {
            fields.align(8)?;
            let code = fields.take(1)?[0];
            match (code, fields.signature()?.as_str()) {
                (5, "u") => self.answers = Some(fields.number()?),
                (4, "s") => self.error = Some(fields.text()?),
                (3, "s") => self.member = Some(fields.text()?),
                (_, "s" | "o") => drop(fields.text()?),
                (_, "g") => drop(fields.signature()?),
                (_, "u") => drop(fields.number()?),
                (_, other) => bail!("a header field of type {other}"),
            }
        }
        Ok(())
    }
}

/// Values as they come.
#[derive(Clone)]
pub struct Body {
    bytes: Vec<u8>,
    at: usize,
}

impl Body {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let start = self.at;
        let end =
            start.checked_add(count).filter(|end| *end <= self.bytes.len()).context("a truncated answer")?;
        self.at = end;
        Ok(&self.bytes[start..end])
    }

    fn align(&mut self, to: usize) -> Result<()> {
        let gap = self.at.next_multiple_of(to) - self.at;
        self.take(gap).map(drop)
    }

    fn number(&mut self) -> Result<u32> {
        self.align(alignment("u"))?;
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A string or an object path.
    pub fn text(&mut self) -> Result<String> {
        let length = self.number()? as usize;
        self.ended_text(length)
    }

    fn signature(&mut self) -> Result<String> {
        let length = self.take(1)?[0] as usize;
        self.ended_text(length)
    }

    fn ended_text(&mut self, length: usize) -> Result<String> {
        let bytes = self.take(length)?.to_vec();
        self.take(1)?;
        String::from_utf8(bytes).context("an answer that is not UTF-8")
    }
}

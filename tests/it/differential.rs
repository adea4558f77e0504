//! Every guest says and does under runw what it does under the wasmtime CLI of the same version. What that said is
//! recorded in tests/controls/wasmtime.json, for one version and the guests of one state of their sources: what a
//! compiler makes of those may differ from machine to machine. With another key the CLI is asked, if benches/peers.py
//! has built it; CONTROL=1 asks and records.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::harness::{
    Bundle, Container, Out, at, cache, compiled, dial, guest, long, own_address, reply, runw_only, skip,
    spawn, spawn_with_stdin, until,
};

/// One program in each language and world.
const PROBES: [&str; 8] = [
    "rust-p1.wasm",
    "rust-p2.wasm",
    "probe.wasm",
    "probe-component.wasm",
    "go.wasm",
    "go-component.wasm",
    "js-command.wasm",
    "python-command.wasm",
];
/// Steps that all of them know, and one that none does.
const STEPS: [&[&str]; 12] = [
    &["args", "two words", "", "ünï", "-x", "--", "--help"],
    &["env"],
    &["exit", "0"],
    &["exit", "1"],
    &["exit", "42"],
    &["exit", "255"],
    &["read", "/data/note"],
    &["read", "/data/missing"],
    &["read", "/data/dir/with a space é"],
    &["write", "/data/new", "written"],
    &["cat"],
    &["nonsense"],
];
/// Guests and steps of one kind.
const OTHERS: [(&str, &[&str]); 28] = [
    ("hello.wasm", &[]),
    ("hello-component.wasm", &[]),
    ("rust-p1.wasm", &["panic"]),
    ("rust-p2.wasm", &["panic"]),
    ("rust-p2.wasm", &["connect", "127.0.0.1:1", "x"]),
    ("rust-p2.wasm", &["lookup", "127.0.0.9"]),
    ("go.wasm", &["panic"]),
    ("probe.wasm", &["trap"]),
    ("probe-component.wasm", &["trap"]),
    ("probe.wasm", &["say", "out", "err", "to-stderr", "cat", "exit", "126"]),
    ("probe.wasm", &["exit", "-1"]),
    ("probe.wasm", &["exit", "256"]),
    ("probe.wasm", &["write", "/data/dir/x", "1", "rename", "/data/dir/x", "/data/y", "list", "/data/dir"]),
    ("probe.wasm", &["unlink", "/data/note", "unlink", "/data/dir", "mkdir", "/data/d", "list", "/data"]),
    ("probe.wasm", &["readlink", "/data/link", "read", "/data/link", "symlink", "note", "/data/other"]),
    ("probe-component.wasm", &["readlink", "/data/link", "read", "/data/link", "symlink", "note", "/data/o"]),
    ("probe.wasm", &["read", "/data/out", "read", "/../../etc/hostname", "read", "/data/../data/note"]),
    ("probe-component.wasm", &["read", "/data/out", "read", "/../../etc/hostname", "read", "data/note"]),
    ("run-error.wasm", &[]),
    ("text.wasm", &[]),
    ("config.wasm", &[]),
    ("composed-greeted.wasm", &["you"]),
    ("rust-counter.wasm", &[]),
    ("c-counter.wasm", &[]),
    ("go-counter.wasm", &[]),
    ("qjs.wasm", &["/data/words.js", "/data/in.txt", "/data/words.json"]),
    ("sql.wasm", SQL),
    ("sql.wasm", &["/data/missing/db", "select 1"]),
];
/// Transactions with a journal, numbers of every kind, a text index, 100,000 rows without a table.
const SQL: &[&str] = &[
    "/data/db",
    "create table t(a integer primary key, b text, c real)",
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
        insert into t select i, printf('row %05d é', i), i / 7.0 from n",
    "begin; delete from t where a % 3; rollback",
    "begin; update t set b = upper(b) where a < 5; commit",
    "select count(*), sum(a), round(sum(c), 3), min(b), max(b) from t",
    "create virtual table words using fts5(text)",
    "insert into words values ('to be or not to be'), ('that is the question')",
    "select rowid, highlight(words, 0, '[', ']') from words where words match 'question OR not'",
    "select a, sum(c) over (order by a rows 2 preceding) from t where a < 4",
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000) select sum(i * i) from n",
    "pragma integrity_check",
    "vacuum",
    "select * from nothing",
];
const WEBS: [&str; 7] = [
    "http.wasm",
    "http3.wasm",
    "composed-greeted-web.wasm",
    "c-web.wasm",
    "go-web.wasm",
    "js-web.wasm",
    "python-web.wasm",
];
const REQUESTS: [(&str, &str); 8] = [
    ("GET /", ""),
    ("GET /nothing?a=b", ""),
    ("POST /", "body"),
    ("POST /echo", "sent back"),
    ("GET /env/GREETING", ""),
    ("GET /count", ""),
    ("GET /trap", ""),
    ("GET /silent", ""),
];
const ENV: [&str; 4] = ["B=2", "GREETING=hi", "EMPTY=", "Ü=with space"];
const STDIN: &[u8] = "first\nsecond é\n\0no end".as_bytes();

/// Carries its language's engine: long to compile.
fn is_large(name: &str) -> bool {
    name.starts_with("js-") || name.starts_with("python-")
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
    /// What is under /data afterwards.
    files: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Answered {
    status: u16,
    headers: Vec<String>,
    body: String,
}

/// By the version that it begins with.
fn is_core(name: &str) -> bool {
    std::fs::read(guest(name)).expect("the guest")[6] == 0
}

/// The CLI, or what it said of these guests before.
struct Control<T> {
    part: &'static str,
    recorded: Option<BTreeMap<String, T>>,
    cli: PathBuf,
    recording: bool,
}

impl<T: Serialize + DeserializeOwned> Control<T> {
    /// `None`, said aloud, where there is neither.
    fn of(part: &'static str) -> Option<Control<T>> {
        let recording = std::env::var_os("CONTROL").is_some();
        let record = read_record().filter(|record| !recording && record["key"] == key());
        let recorded = record.map(|r| serde_json::from_value(r[part].clone()).expect("a recorded part"));
        let cli = cache().join(format!("peers/wasmtime-{}/bin/wasmtime", version()));
        if recorded.is_none() && !cli.exists() {
            skip(&format!("nothing is recorded for {}, and benches/peers.py has built no CLI", key()));
            return None;
        }
        Some(Control { part, recorded, cli, recording })
    }

    fn take(&mut self, case: &str, ask: impl FnOnce(&Path) -> T) -> T {
        match &mut self.recorded {
            Some(recorded) => {
                recorded.remove(case).unwrap_or_else(|| panic!("{case} is not recorded: CONTROL=1"))
            }
            None => ask(&self.cli),
        }
    }

    /// The two tests record into one file.
    fn save(&self, said: &BTreeMap<String, T>) {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().expect("no other panicked");
        let mut record = read_record().filter(|r| r["key"] == key()).unwrap_or(json!({"key": key()}));
        record[self.part] = json!(said);
        let text = serde_json::to_string_pretty(&record).expect("json");
        std::fs::write(record_path(), text + "\n").expect("record the control");
    }

    /// Runs all cases, and tells every difference.
    fn compare(mut self, cases: Vec<Case<'_, T>>)
    where
        T: PartialEq + std::fmt::Debug,
    {
        let (mut said, mut wrong) = (BTreeMap::new(), Vec::new());
        for Case { name, theirs, ours } in cases {
            let (theirs, ours) = (self.take(&name, theirs), ours());
            if theirs != ours {
                wrong.push(format!("{name}\n  runw     {ours:?}\n  wasmtime {theirs:?}"));
            }
            said.insert(name, theirs);
        }
        if self.recording {
            self.save(&said);
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

struct Case<'a, T> {
    name: String,
    theirs: Box<dyn FnOnce(&Path) -> T + 'a>,
    ours: Box<dyn FnOnce() -> T + 'a>,
}

fn record_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controls/wasmtime.json")
}

fn read_record() -> Option<Value> {
    std::fs::read(record_path()).ok().map(|bytes| serde_json::from_slice(&bytes).expect("wasmtime.json"))
}

/// Of the engine that is compiled into runw.
fn version() -> String {
    let manifest = include_str!("../../Cargo.toml");
    let (_, rest) = manifest.split_once("\nwasmtime = { version = \"=").expect("wasmtime's version");
    rest.split('"').next().expect("a quote").to_owned()
}

/// The guests' directory is named after a digest of their sources and their compilers' versions.
fn key() -> String {
    let guests = guest("");
    format!("wasmtime {}, guests {}", version(), guests.file_name().expect("a digest").to_string_lossy())
}

/// `wasmtime` with the interfaces that runw has, and the guest compiled once for all that `kept` sees.
fn cli(program: &Path, verb: &str, name: &str, kept: &Path, flags: &[String], args: &[&str]) -> Command {
    let (code, async_) = (kept.join(name), "-Wcomponent-model-async=y");
    let command = |words: &[&str]| {
        let mut command = Command::new(program);
        command.env_clear().args(words);
        command
    };
    if !code.exists() {
        let mut compile = command(&["compile", async_, "-o"]);
        compile.arg(&code).arg(guest(name));
        spawn(&mut compile).wait_within(600).ok();
    }
    let mut command = command(&[verb, async_, "--allow-precompiled"]);
    command.arg("-Scli,inherit-network,allow-ip-name-lookup").args(flags);
    command.args(ENV.map(|pair| format!("--env={pair}")));
    // It refuses these for a core module.
    if !is_core(name) {
        command.arg("-Shttp,p3,keyvalue,config,config-var=greeting=hi,network-error-code");
    }
    command.arg(&code).args(args);
    command
}

/// The same files for both, under /data.
fn furnish(root: &Path) {
    let data = root.join("data");
    std::fs::create_dir_all(data.join("dir")).expect("mkdir");
    std::fs::write(data.join("note"), "a note\n").expect("write");
    std::fs::write(data.join("dir/with a space é"), "found").expect("write");
    std::fs::write(data.join("in.txt"), "To be, or not to be").expect("write");
    std::fs::copy(guest("words.js"), data.join("words.js")).expect("copy");
    std::os::unix::fs::symlink("note", data.join("link")).expect("symlink");
    std::os::unix::fs::symlink("/etc/hostname", data.join("out")).expect("symlink");
}

fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("list") {
        let entry = entry.expect("entry");
        let (path, kind) = (entry.path(), entry.file_type().expect("type"));
        let name = entry.file_name().into_string().expect("UTF-8");
        if kind.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, text)| (format!("{name}/{below}"), text)));
            found.insert(name, "a directory".to_owned());
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).expect("link");
            found.insert(name, format!("-> {}", target.display()));
        } else if name != "words.js" {
            let bytes = std::fs::read(&path).expect("read");
            let size = bytes.len();
            found.insert(name, String::from_utf8(bytes).unwrap_or(format!("{size} bytes")));
        }
    }
    found
}

fn said(command: &mut Command, root: &Path) -> Said {
    let Out { code, out, err } = spawn_with_stdin(command, STDIN).wait();
    Said { code, out, err: plain(&err), files: files(&root.join("data")) }
}

/// Both tell a trap with the same status and the same words. Around them each has sentences of its own: the CLI names
/// its command and the file, runw writes into a container's log. What the guest itself wrote before stays, and the trap.
fn plain(err: &str) -> String {
    let begins = |line: &&str| line.starts_with("Error: ") || line.contains("error while executing");
    let mut lines: Vec<&str> = err.lines().take_while(|line| !begins(line)).collect();
    lines.extend(err.lines().find_map(|line| line.find("wasm trap: ").map(|at| &line[at..])));
    lines.join("\n")
}

fn under_wasmtime(program: &Path, name: &str, args: &[&str], kept: &Path) -> Said {
    let root = tempfile::tempdir().expect("a root");
    furnish(root.path());
    let flags = [format!("--dir={}::/", root.path().display()), "--argv0=/app.wasm".to_owned()];
    said(&mut cli(program, "run", name, kept, &flags, args), root.path())
}

fn under_runw(name: &str, args: &[&str]) -> Said {
    let bundle = Bundle::wasm(name, args)
        .env(&ENV)
        .edit(|c| c["annotations"]["dev.runw.config.greeting"] = json!("hi"));
    furnish(&bundle.rootfs());
    let c = Container::new(bundle);
    let mut said = said(&mut c.run_command(&[]), &c.bundle.rootfs());
    // The one difference meant: the CLI takes no status from 126 on and ends with 1; a container's is exit_group(2)'s.
    if let [.., "exit", status] = args {
        let status: i32 = status.parse().expect("a number");
        if is_core(name) && !(0..126).contains(&status) {
            assert_eq!(said.code, status & 0xff, "{name} {args:?}");
            said.code = 1;
        }
    }
    said
}

#[test]
fn programs_do_what_they_do_under_the_wasmtime_cli() {
    if runw_only("wasm") {
        return;
    }
    let Some(control) = Control::of("programs") else { return };
    PROBES.iter().filter(|name| is_large(name)).for_each(|name| compiled(name));
    let kept = tempfile::tempdir().expect("a directory for compiled code");
    let steps = PROBES.iter().flat_map(|name| STEPS.iter().map(move |args| (*name, *args)));
    let case = |(name, args): (&'static str, &'static [&'static str])| Case {
        name: format!("{name} {args:?}"),
        theirs: Box::new(|cli: &Path| under_wasmtime(cli, name, args, kept.path())),
        ours: Box::new(move || under_runw(name, args)),
    };
    control.compare(steps.chain(OTHERS).map(case).collect());
}

/// What is not the guest's is left out: the date, and how the server frames a body.
fn answered(address: SocketAddr, (line, body): (&str, &str)) -> Answered {
    let mut stream = dial(address).expect("connect");
    let head = format!("{line} HTTP/1.1\r\nHost: guest.test\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all([&head, body].concat().as_bytes()).expect("send");
    let reply = reply(&mut stream).expect("a response");
    // The server's own page.
    if reply.status == 500 {
        return Answered { status: 500, headers: Vec::new(), body: String::new() };
    }
    let framing = ["date:", "content-length:", "transfer-encoding:"];
    let theirs = |line: &String| !line.is_empty() && !framing.iter().any(|word| line.starts_with(word));
    let mut headers: Vec<String> = reply.head.lines().skip(1).map(str::to_lowercase).filter(theirs).collect();
    headers.sort();
    Answered { status: reply.status, headers, body: reply.body }
}

#[test]
fn handlers_answer_as_under_wasmtime_serve() {
    if runw_only("wasm") {
        return;
    }
    let Some(control) = Control::of("webs") else { return };
    let (kept, recording) = (tempfile::tempdir().expect("a directory for compiled code"), control.recording);
    let webs: Vec<_> = WEBS.into_iter().filter(|name| !is_large(name) || long() || recording).collect();
    webs.iter().filter(|name| is_large(name)).for_each(|name| compiled(name));
    let case = |name: &'static str| Case {
        name: name.to_owned(),
        theirs: Box::new(|cli_path: &Path| {
            let address = at(own_address(), 8080);
            let flags = [format!("--addr={address}")];
            let _server = spawn(&mut cli(cli_path, "serve", name, kept.path(), &flags, &[]));
            until("wasmtime serves", || TcpStream::connect(address).is_ok());
            answers(address)
        }),
        ours: Box::new(move || {
            let address = at(own_address(), 8080);
            let bundle = Bundle::wasm(name, &[]).env(&ENV).without_namespace("network");
            let _server =
                Container::up(bundle.edit(|c| c["annotations"]["dev.runw.http.address"] = json!(address)));
            answers(address)
        }),
    };
    control.compare(webs.into_iter().map(case).collect());
}

fn answers(address: SocketAddr) -> BTreeMap<String, Answered> {
    REQUESTS.iter().map(|request| (request.0.to_owned(), answered(address, *request))).collect()
}

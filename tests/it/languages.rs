//! The same small set of guests in each language, and what docs/wasm.md's table says of them: RUNW_TEST_TABLE=1 writes
//! it, every other run compares its cells. Sizes and times are told and not judged.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{
    Bundle, COLD, Container, compiled, guest, long, runw_only, spawn, spawn_with_stdin, until, with_cache,
};

struct Column {
    name: &'static str,
    command: &'static str,
    /// What a world or a language has no word for is not there.
    listen: Option<&'static str>,
    web: Option<&'static str>,
    counter: Option<&'static str>,
    /// The component's exit has no number.
    component: bool,
    /// The language's engine is in it.
    large: bool,
}

const fn core(name: &'static str, command: &'static str) -> Column {
    Column { name, command, listen: None, web: None, counter: None, component: false, large: false }
}

/// The command; then what serves one client of TCP, what serves http and what counts in a key-value store.
const fn component(name: &'static str, [command, listen, web, counter]: [&'static str; 4]) -> Column {
    let (listen, web, counter) = (Some(listen), Some(web), Some(counter));
    Column { name, command, listen, web, counter, component: true, large: false }
}

const COLUMNS: [Column; 8] = [
    core("Rust, 0.1", "rust-p1.wasm"),
    component("Rust", ["rust-p2.wasm", "rust-p2.wasm", "http.wasm", "rust-counter.wasm"]),
    core("C, 0.1", "probe.wasm"),
    component("C", ["probe-component.wasm", "c-listen.wasm", "c-web.wasm", "c-counter.wasm"]),
    core("Go, 0.1", "go.wasm"),
    component("Go", ["go-component.wasm", "go-listen.wasm", "go-web.wasm", "go-counter.wasm"]),
    large("JavaScript", ["js-command.wasm", "js-command.wasm", "js-web.wasm", "js-counter.wasm"]),
    large("Python", ["python-command.wasm", "python-command.wasm", "python-web.wasm", "python-counter.wasm"]),
];

const fn large(name: &'static str, guests: [&'static str; 4]) -> Column {
    Column { large: true, ..component(name, guests) }
}

/// Which of a column's guests a row asks.
#[derive(Clone, Copy)]
enum Part {
    Command,
    Other,
}

/// What was asked for, and whether the guest did it: nothing if it has no means to.
type Row = (&'static str, Part, fn(&Column) -> Option<bool>);

const ROWS: [Row; 11] = [
    ("arguments", Part::Command, |c| {
        Some(says(
            c,
            &["args", "two words", ""],
            "arg 0 [/app.wasm]\narg 1 [args]\narg 2 [two words]\narg 3 []\n",
        ))
    }),
    ("environment", Part::Command, |c| {
        let bundle = Bundle::wasm(c.command, &["env"]).env(&["B=2", "A=1", "E="]);
        Some(said(&Container::new(bundle), "env [B=2]\nenv [A=1]\nenv [E=]\n"))
    }),
    ("exit status", Part::Command, |c| {
        let status = |n| Container::new(Bundle::wasm(c.command, &["exit", n])).run().code;
        Some((status("0"), status("42")) == (0, if c.component { 1 } else { 42 }))
    }),
    ("standard input", Part::Command, |c| {
        let container = Container::new(Bundle::wasm(c.command, &["cat"]));
        let out = spawn_with_stdin(&mut container.run_command(&[]), "über\nlines\n".as_bytes()).wait();
        Some((out.code, out.out.as_str()) == (0, "über\nlines\n"))
    }),
    ("read files", Part::Command, |c| Some(reads(c))),
    ("write files", Part::Command, |c| Some(writes(c))),
    ("clock", Part::Command, |c| Some(tells_the_time(c))),
    ("TCP server", Part::Command, |c| c.listen.map(echoes)),
    ("http server", Part::Other, |c| c.web.map(|web| asked(web, "/", "hello from wasm\n"))),
    ("http to another container", Part::Other, |c| {
        c.web.map(|web| asked(web, "/get/http:127.0.0.1:8081/", "200 hello from wasm\n"))
    }),
    ("key-value counter", Part::Other, |c| {
        c.counter.map(|counter| said(&Container::new(Bundle::wasm(counter, &[])), "plain 1, atomic 1\n"))
    }),
];

fn said(c: &Container, text: &str) -> bool {
    let out = c.run();
    let right = (out.code, out.out.as_str()) == (0, text);
    if !right {
        eprintln!("{:?}: {out:?}, not {text:?}", c.bundle.config["process"]["args"]);
    }
    right
}

fn says(c: &Column, args: &[&str], text: &str) -> bool {
    said(&Container::new(Bundle::wasm(c.command, args)), text)
}

fn reads(c: &Column) -> bool {
    let bundle = |args: &[&str]| {
        let bundle = Bundle::wasm(c.command, args);
        std::fs::write(bundle.rootfs().join("tmp/note"), "a note").expect("write");
        std::fs::write(bundle.rootfs().join("tmp/with a space é"), "").expect("write");
        Container::new(bundle)
    };
    let missing = bundle(&["read", "/tmp/missing"]).run().out;
    // The same file systems list in the order of their own.
    let listed = bundle(&["list", "/tmp"]).run().out;
    said(&bundle(&["read", "/tmp/note"]), "read /tmp/note: [a note]\n")
        && (missing.contains("NotFound") || missing.contains("ENOENT"))
        && ["list /tmp: note with a space é\n", "list /tmp: with a space é note\n"].contains(&listed.as_str())
}

fn writes(c: &Column) -> bool {
    let container = Container::new(Bundle::wasm(c.command, &["write", "/tmp/note", "of the guest"]));
    said(&container, "write /tmp/note: ok\n")
        && std::fs::read_to_string(container.bundle.rootfs().join("tmp/note"))
            .is_ok_and(|t| t == "of the guest")
}

fn tells_the_time(c: &Column) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time").as_secs();
    let out = Container::new(Bundle::wasm(c.command, &["clock"])).run().out;
    let told = out.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    told.is_some_and(|told| told.abs_diff(now) < 60)
}

/// In the network namespace of `other`, which has nothing but a loopback.
fn beside(other: &Container, bundle: Bundle) -> Bundle {
    bundle.namespace("network", Some(&PathBuf::from(format!("/proc/{}/ns/net", other.pid()))))
}

fn echoes(guest: &'static str) -> bool {
    let server = Container::up(Bundle::wasm(guest, &["listen", "127.0.0.1:7"]));
    let listens = || server.out().contains("listening");
    until("it listens or ends", || listens() || server.status() == "stopped");
    listens()
        && said(
            &Container::new(beside(&server, Bundle::sh("printf 'to and fro' | nc 127.0.0.1 7"))),
            "to and fro",
        )
}

/// Two containers of one guest in one network, and a native third that asks the first.
fn asked(guest: &'static str, path: &str, text: &str) -> bool {
    let first = Container::up(Bundle::wasm(guest, &[]));
    let second = beside(&first, Bundle::wasm(guest, &[])).env(&["PORT=8081"]);
    let _second = Container::up(second);
    said(&Container::new(beside(&first, Bundle::sh(&format!("wget -qO- http://127.0.0.1:8080{path}")))), text)
}

/// The size, and the CPU time to the end of `args`: of the first start with its compilation, and of a later one. Time
/// on the clock would tell of the machine's other work.
fn measured(c: &Column) -> [String; 3] {
    const LATER: u64 = 11;
    let size = std::fs::metadata(guest(c.command)).expect("the guest").len();
    let container = Container::new(Bundle::wasm(c.command, &["args"]));
    let spent = |command: &mut Command, times: u64| {
        let before = ticks_of_children();
        (0..times).for_each(|_| drop(spawn(command).wait_within(600).ok()));
        ticks_of_children() - before
    };
    let cold = spent(&mut with_cache(&container.run_command(&[]), COLD), 1);
    let warm = spent(&mut container.run_command(&[]), LATER);
    let size = match size >> 10 {
        small @ ..1000 => format!("{small} KB"),
        large => format!("{:.1} MB", large as f64 / 1024.0),
    };
    [size, format!("{:.1} s", cold as f64 / 100.0), format!("{} ms", warm * 10 / LATER)]
}

/// proc_pid_stat(5): cutime and cstime are fields 16 and 17, 100 to the second. Right while no other test runs.
fn ticks_of_children() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let fields = stat.rsplit(") ").next().expect("fields").split(' ').skip(16 - 3).take(2);
    fields.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    cells.fold(format!("| {name} |"), |line, cell| format!("{line} {cell} |"))
}

fn done(does: Option<bool>) -> &'static str {
    match does {
        None => "",
        Some(true) => "yes",
        Some(false) => "no",
    }
}

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/wasm.md");

/// Its place in the document's text.
fn told(text: &str) -> std::ops::Range<usize> {
    let begin = text.find("| Guest | ").expect("the table of languages");
    begin..begin + text[begin..].find("\n\n").expect("the table's end")
}

fn write_table() {
    let mut table = vec![
        row("Guest", COLUMNS.iter().map(|c| c.name.to_owned())),
        format!("|{}", "---|".repeat(COLUMNS.len() + 1)),
    ];
    let cells = |does: fn(&Column) -> Option<bool>| COLUMNS.iter().map(move |c| done(does(c)).to_owned());
    table.extend(ROWS.iter().map(|(name, _, does)| row(name, cells(*does))));
    let measures: Vec<_> = COLUMNS.iter().map(measured).collect();
    for (at, name) in ["size", "first start, CPU time", "later starts"].into_iter().enumerate() {
        table.push(row(name, measures.iter().map(|m| m[at].clone())));
    }
    let mut text = std::fs::read_to_string(DOCUMENT).expect("docs/wasm.md");
    text.replace_range(told(&text), &table.join("\n"));
    std::fs::write(DOCUMENT, text).expect("write the table");
}

#[test]
fn the_table_of_languages_says_what_works() {
    if runw_only("wasm") {
        return;
    }
    let writes = std::env::var_os("RUNW_TEST_TABLE").is_some();
    // An engine takes long to compile: of JavaScript and Python the short form starts one component each.
    let asked = |c: &Column, part: Part| !c.large || long() || writes || matches!(part, Part::Command);
    for c in COLUMNS.iter().filter(|c| c.large) {
        compiled(c.command);
        [c.web, c.counter].into_iter().flatten().filter(|_| asked(c, Part::Other)).for_each(compiled);
    }
    if writes {
        return write_table();
    }
    let text = std::fs::read_to_string(DOCUMENT).expect("docs/wasm.md");
    let table: Vec<Vec<&str>> =
        text[told(&text)].lines().map(|line| line.split('|').map(str::trim).skip(1).collect()).collect();
    assert!(table[0][1..].iter().zip(&COLUMNS).all(|(name, c)| *name == c.name), "{:?}", table[0]);
    let mut wrong = Vec::new();
    for (line, (name, part, does)) in table[2..].iter().zip(ROWS) {
        assert_eq!(line[0], name);
        for (told, c) in line[1..].iter().zip(&COLUMNS).filter(|(_, c)| asked(c, part)) {
            let seen = done(does(c));
            if *told != seen {
                wrong.push(format!("{name} in {}: the table says {told:?}, this run {seen:?}", c.name));
            }
        }
    }
    assert!(wrong.is_empty(), "RUNW_TEST_TABLE=1 writes what it sees\n{}", wrong.join("\n"));
}

/// Rust's part imports what C's part exports; each has a memory of its own.
#[test]
fn a_component_composed_of_two_languages_runs_and_is_served() {
    if runw_only("wasm") {
        return;
    }
    let container = Container::new(Bundle::wasm("composed-greeted.wasm", &["both"]));
    assert!(said(&container, "hello both, from component 1\n"));
    assert!(asked("composed-greeted-web.wasm", "/web", "hello web, from component 1"));
    // Not composed, it lacks its other half.
    let alone = Container::new(Bundle::wasm("rust-greeted.wasm", &[]));
    alone.run().refused(&["runw:guests/greeting"]);
}

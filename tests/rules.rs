//! Holds the structure of the house (docs/architecture.md): which room may name which, where foreign crates and
//! `unsafe` live, how long a function may be, who may print. Reads the sources; needs no binary and no root.

use std::path::{Path, PathBuf};

/// Rooms, and the rooms of the crate that each may name. `main.rs` may name all.
const ROOMS: &[(&str, &[&str])] = &[
    ("cli", &["cli", "executor", "linux", "bundle", "state", "error", "log", "seam"]),
    ("executor", &["executor", "error", "log", "seam"]),
    ("linux", &["linux", "error", "log", "seam"]),
    ("bundle", &["bundle", "error", "log", "seam"]),
    ("state", &["state", "error", "log", "seam"]),
    ("log", &["log", "error"]),
    ("error", &["error"]),
    ("seam", &["seam"]),
];

/// Foreign crates and the one place below src/ where each may be named. A `*` stands for any ending.
const HOMES: &[(&str, &str)] = &[
    ("clap", "cli/"),
    ("clap_complete", "cli/completion.rs"),
    ("wasmtime*", "executor/wasm/"),
    ("hickory*", "executor/wasm/"),
    ("hyper*", "executor/wasm/"),
    ("redb", "executor/wasm/stores.rs"),
    ("rustls", "executor/wasm/"),
    ("tokio*", "executor/wasm/"),
    ("landlock", "linux/"),
    ("libcontainer", "linux/"),
    ("libcgroups", "linux/"),
    ("libseccomp", "linux/"),
    ("nix", "linux/"),
    ("libc", "linux/"),
    ("caps", "linux/"),
    ("pathrs", "linux/"),
    ("rust_criu", "linux/criu"),
    ("protobuf", "linux/criu"),
];

/// Besides src/linux: loading compiled code is unsafe by wasmtime's contract, and so is a name for the C runtime.
const UNSAFE_FILES: &[&str] = &["executor/wasm/load.rs", "main.rs"];

const MAX_FUNCTION: usize = 60;

#[test]
fn the_house_stands() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    assert!(files.len() > 20, "only {} files found in {}", files.len(), src.display());
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        found.extend(violations(&name, &std::fs::read_to_string(&file).unwrap()));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn is_test_file(name: &str) -> bool {
    name.ends_with("_tests.rs") || name.ends_with("/tests.rs")
}

/// `file:line: what` for everything in one file that breaks a rule. `name` is the path below src/.
fn violations(name: &str, text: &str) -> Vec<String> {
    let code = blank(text);
    let lines: Vec<&str> = code.lines().collect();
    // By convention a file's tests are its end.
    let tests = lines.iter().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(lines.len());
    let is_test = |line: usize| line >= tests || is_test_file(name);
    let mut found = Vec::new();
    let mut report = |line: usize, what: String| found.push(format!("src/{name}:{}: {what}", line + 1));
    if !text.starts_with("//!") && !is_test_file(name) {
        report(0, "a module begins with `//!`: its job and what it must not do".into());
    }
    for (at, line) in lines.iter().enumerate() {
        // A file of tests may compose rooms as cli does.
        let rooms = if is_test_file(name) { Vec::new() } else { rooms(name, line) };
        for what in rooms.into_iter().chain(crates(name, line)) {
            report(at, what);
        }
        let unsafe_home = name.starts_with("linux/") || UNSAFE_FILES.contains(&name);
        if !unsafe_home && words(line).any(|word| word == "unsafe") {
            report(at, "`unsafe` outside src/linux".into());
        }
        if !is_test(at) && prints(name, line) {
            report(at, "only main, log and cli print or exit".into());
        }
    }
    for (at, length) in long_functions(&lines) {
        let before = text.lines().nth(at.wrapping_sub(1)).unwrap_or_default().trim_start();
        if !before.starts_with("// long:") {
            report(
                at,
                format!("{length} lines of code, more than {MAX_FUNCTION}, without a `// long:` reason"),
            );
        }
    }
    found
}

fn room(name: &str) -> &str {
    name.split('/').next().unwrap().trim_end_matches(".rs").trim_end_matches("_tests")
}

fn rooms(name: &str, line: &str) -> Vec<String> {
    let Some((room, may)) = ROOMS.iter().find(|(one, _)| *one == room(name)) else { return Vec::new() };
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        // `use crate::{a, b::c}` names the first word of each item; nested braces do not occur at this level.
        let named: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split(',').filter_map(|item| words(item).next()).collect(),
            None => words(rest).next().into_iter().collect(),
        };
        let known = |name: &&str| ROOMS.iter().any(|(room, _)| room == name);
        for other in named.into_iter().filter(known).filter(|other| !may.contains(other)) {
            found.push(format!("{room} must not name {other}"));
        }
    }
    found
}

fn crates(name: &str, line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (krate, home) in HOMES.iter().filter(|(_, home)| !name.starts_with(home)) {
        let is = |word: &str| match krate.strip_suffix('*') {
            Some(start) => word.starts_with(start),
            None => word == *krate,
        };
        let used = word_positions(line).any(|(at, word)| {
            let path = line[at + word.len()..].starts_with("::") && !line[..at].ends_with("::");
            let import = line[..at].trim_end().ends_with("use") || line.contains("extern crate");
            is(word) && (path || import)
        });
        if used {
            found.push(format!("{krate} is at home in src/{home}"));
        }
    }
    found
}

fn prints(name: &str, line: &str) -> bool {
    let may = name.starts_with("cli/") || ["main.rs", "log.rs", "error.rs"].contains(&name);
    let macros = ["println!", "eprintln!", "print!", "eprint!", "dbg!", "process::exit", "process::abort"];
    let at_word = |needle: &str| {
        line.match_indices(needle)
            .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    !may && macros.into_iter().any(at_word)
}

/// Functions with more lines of code (blank ones and comments do not count) than allowed.
fn long_functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        if !words(line).any(|word| word == "fn") {
            continue;
        }
        let (mut depth, mut length, mut open) = (0usize, 0, false);
        for line in &lines[start..] {
            length += usize::from(open && !line.trim().is_empty());
            for c in line.chars() {
                match c {
                    '{' => (depth, open) = (depth + 1, true),
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            // A declaration in a trait, a function type: no body.
            if (open && depth == 0) || (!open && line.contains(';')) {
                break;
            }
        }
        // The last line is the closing brace.
        if length.saturating_sub(1) > MAX_FUNCTION {
            found.push((start, length - 1));
        }
    }
    found
}

fn word_positions(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.split(move |c| !part(c)).filter(|word| !word.is_empty()).map(move |word| {
        let at = word.as_ptr() as usize - line.as_ptr() as usize;
        (at, word)
    })
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    word_positions(line).map(|(_, word)| word)
}

/// The source with comments and the contents of literals turned into spaces; lines stay where they are.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (kept, blanked) = token(rest);
        out.push_str(&rest[..kept]);
        out.extend(rest[kept..kept + blanked].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[kept + blanked..];
    }
    out
}

/// How many bytes at the start of `rest` are code, and how many after them are not.
fn token(rest: &str) -> (usize, usize) {
    let to = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len() - from, |at| at + end.len());
    if rest.starts_with("//") {
        return (0, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (0, to("*/", 0));
    }
    let hashes = rest.strip_prefix('r').map(|r| r.len() - r.trim_start_matches('#').len());
    if let Some(hashes) = hashes.filter(|n| rest[1 + n..].starts_with('"')) {
        let from = hashes + 2;
        return (0, from + to(&format!("\"{}", "#".repeat(hashes)), from));
    }
    if rest.starts_with('"') {
        return (0, quoted(rest, '"'));
    }
    // A character literal, not a lifetime.
    let chars: Vec<char> = rest.chars().take(3).collect();
    if matches!(chars[..], ['\'', '\\', _] | ['\'', _, '\'']) {
        return (0, quoted(rest, '\''));
    }
    // A whole word at once, so that the `r` of `for"` is not taken for a raw string.
    let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    (word.max(rest.chars().next().map_or(0, char::len_utf8)), 0)
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[test]
fn each_rule_bites() {
    let long = |lines: usize| format!("//! x\nfn f() {{\n{}}}\n", "    g();\n".repeat(lines));
    for (name, text, want) in [
        ("linux/a.rs", "//! x\nuse crate::executor::b;\n", "linux must not name executor"),
        ("linux/a.rs", "//! x\nuse crate::{log, state};\n", "linux must not name state"),
        ("executor/a.rs", "//! x\nfn f() { crate::linux::g() }\n", "executor must not name linux"),
        ("state.rs", "//! x\nuse crate::cli::print;\n", "state must not name cli"),
        ("state.rs", "//! x\nuse clap::Args;\n", "clap is at home in src/cli/"),
        ("executor/mod.rs", "//! x\nuse wasmtime_wasi::p1;\n", "wasmtime* is at home in src/executor/wasm/"),
        ("cli/a.rs", "//! x\nfn f() { libc::getpid(); }\n", "libc is at home in src/linux/"),
        ("cli/a.rs", "//! x\nfn f() { unsafe { g() } }\n", "`unsafe` outside src/linux"),
        ("linux/a.rs", "//! x\nfn f() { eprintln!(\"x\"); }\n", "only main, log and cli print or exit"),
        (
            "executor/a.rs",
            "//! x\nfn f() { std::process::exit(1); }\n",
            "only main, log and cli print or exit",
        ),
        ("linux/a.rs", "use x;\n", "a module begins with `//!`"),
        ("linux/a.rs", &long(61), "61 lines of code"),
    ] {
        let found = violations(name, text);
        assert!(found.len() == 1 && found[0].contains(want), "{name} {text:?}: {found:?}");
    }
    for (name, text) in [
        ("linux/a.rs", "//! x\nuse crate::seam::Process; // crate::executor\n"),
        ("linux/a.rs", "//! x\nfn f() -> &'static str { \"crate::executor unsafe println!\" }\n"),
        (
            "cli/a.rs",
            "//! x\nfn f() { let _ = (r#\"\" unsafe \"\"#, '\"', '\\'', '{', 'u'); /* unsafe */ }\n",
        ),
        ("executor/wasm/a.rs", "//! x\nuse wasmtime::Engine;\n"),
        ("linux/a.rs", "//! x\nfn f() { g() }\n#[cfg(test)]\nmod tests { fn f() { println!(); } }\n"),
        ("cli/a.rs", &long(60)),
        ("cli/a.rs", &long(80).replace("fn f", "// long: a table\nfn f")),
        ("bundle.rs", "//! x\nfn f() { my::libc::g(); }\n"),
    ] {
        assert_eq!(violations(name, text), Vec::<String>::new(), "{name} {text:?}");
    }
}

//! docs/spec-support.md is the list of what becomes of each field of config.json: it leaves none out, names tests that
//! are there, and its table of refusals is true.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Bundle, Container, Kind, hybrid, kind, nothing_left, skip};

const PAGE: &str = include_str!("../../docs/spec-support.md");
const FIELDS: &str = include_str!("../spec-fields.txt");
const REFUSED: &str = "## Refused and warned about";
/// Not the specification's, so not among its fields.
const ANNOTATIONS: &str = "## annotations";

fn fields() -> Vec<&'static str> {
    FIELDS.lines().filter(|line| !line.starts_with('#')).collect()
}

/// The cells of each row of the tables in `text`.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect()))
}

fn section<'a>(page: &'a str, head: &str) -> &'a str {
    let from = page.find(head).unwrap_or_else(|| panic!("no section {head}")) + head.len();
    let text = &page[from..];
    &text[..text.find("\n## ").unwrap_or(text.len())]
}

fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// `a.{b,c}` is `a.b` and `a.c`.
fn expand(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let (words, after) = rest.split_once('}').expect("a closing brace");
    words.split(',').flat_map(|word| expand(&format!("{before}{word}{after}"))).collect()
}

#[test]
fn each_field_of_the_specification_has_its_row() {
    let tables = PAGE.replace(section(PAGE, REFUSED), "").replace(section(PAGE, ANNOTATIONS), "");
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for row in rows(&tables).filter(|row| row[0].starts_with('`')) {
        for field in quoted(row[0]).flat_map(expand) {
            found.entry(field).or_default().extend(row.last());
        }
    }
    let fields = fields();
    assert!(fields.len() > 150, "{}", fields.len());
    let mut wrong = Vec::new();
    for field in &fields {
        match found.get(*field).map_or(0, Vec::len) {
            1 => {}
            0 => wrong.push(format!("{field} has no row")),
            _ => wrong.push(format!("{field} has several rows")),
        }
    }
    for (field, tests) in &found {
        if fields.contains(&field.as_str()) {
            wrong.extend(
                tests
                    .iter()
                    .flat_map(|cell| unknown_tests(cell))
                    .map(|test| format!("{field}: no test {test}")),
            );
        } else {
            wrong.push(format!("{field} is no field of the specification"));
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A field without a test says so with `-`.
fn unknown_tests(cell: &str) -> Vec<String> {
    let sources = sources();
    if cell == "-" {
        return Vec::new();
    }
    let names: Vec<&str> = quoted(cell).collect();
    if names.is_empty() {
        return vec![format!("in {cell:?}")];
    }
    names.into_iter().filter(|name| !sources.contains(&format!("fn {name}()"))).map(str::to_owned).collect()
}

fn sources() -> &'static str {
    static SOURCES: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    SOURCES.get_or_init(|| {
        let mut text = String::new();
        for top in ["src", "tests/it"] {
            collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(top), &mut text);
        }
        text
    })
}

fn collect(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// One row of the table: what is fed, and what is heard.
struct Case<'a> {
    field: &'a str,
    host: &'a str,
    refused: bool,
    patch: Value,
    says: &'a str,
}

fn cases() -> Vec<Case<'static>> {
    let code = |cell: &'static str| quoted(cell).next().unwrap_or_else(|| panic!("no code in {cell:?}"));
    let rows = rows(section(PAGE, REFUSED)).filter(|row| row[0].starts_with('`'));
    rows.map(|row| {
        let [field, host, is, patch, says] = row[..] else { panic!("not five cells: {row:?}") };
        let refused = match is {
            "refused" => true,
            "warned" => false,
            other => panic!("{field}: {other:?}"),
        };
        let patch = serde_json::from_str(code(patch)).unwrap_or_else(|error| panic!("{field}: {error}"));
        Case { field: code(field), host: host.trim(), refused, patch, says: code(says) }
    })
    .collect()
}

/// Whether this host is one that the row speaks of.
fn concerns(host: &str) -> bool {
    let is_there = |path: &str| Path::new(path).exists();
    match host {
        "" => true,
        "SELinux off" => !is_there("/sys/fs/selinux"),
        "AppArmor off" => !is_there("/sys/module/apparmor"),
        "no resctrl" => !is_there("/sys/fs/resctrl"),
        "cgroup v1" => hybrid(),
        other => panic!("the test does not know the host {other:?}"),
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

#[test]
fn what_is_refused_or_warned_about_says_so() {
    if kind() != Kind::Runw {
        return skip("the page is runw's");
    }
    let cases = cases();
    let refused: Vec<&str> = cases.iter().filter(|case| case.refused).map(|case| case.field).collect();
    for row in rows(PAGE).filter(|row| row[0].starts_with('`') && row[1].starts_with("**refused**")) {
        for field in quoted(row[0]).flat_map(expand) {
            assert!(refused.contains(&field.as_str()), "{field} is refused, but not shown to be");
        }
    }
    let mut wrong = Vec::new();
    for case in cases {
        assert!(fields().contains(&case.field), "{} is no field of the specification", case.field);
        if !concerns(case.host) {
            skip(&format!("{}: for hosts with {}", case.field, case.host));
            continue;
        }
        let mut c = Container::new(Bundle::sh("true").edit(|config| merge(config, &case.patch)));
        let out = if case.refused { c.create_with(&[]) } else { c.run() };
        let level = if case.refused { "level=error" } else { "level=warning" };
        // As in a log line: quotes are escaped there.
        let says = case.says.replace('"', "\\\"");
        let said = out.err.lines().any(|line| line.contains(level) && line.contains(&says));
        if (out.code == 1) != case.refused || !said {
            wrong.push(format!("{}: {out:?}", case.field));
        }
        nothing_left(&c);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

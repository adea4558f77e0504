//! `runw cache`: what is kept is shown truly, pruned in order, and filled ahead of containers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Bundle, Container, Out, guest, run, runtime, runw_only, with_cache};

struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Cache {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).expect("chmod");
        Cache(dir)
    }

    fn around(&self, command: &Command) -> Out {
        run(&mut with_cache(command, &["--bind", self.0.path().to_str().expect("utf-8")]))
    }

    fn verb(&self, words: &[&str]) -> Out {
        self.around(Command::new(runtime()).arg("cache").args(words))
    }

    fn warm(&self, guests: &[&str]) -> String {
        let paths: Vec<PathBuf> = guests.iter().map(|name| guest(name)).collect();
        self.around(Command::new(runtime()).args(["cache", "warm"]).args(paths)).ok().out
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.verb(&["list", "--format", "json"]).ok().out).expect("JSON")
    }

    /// The files' names of the entries usable or not, the last used first.
    fn names(&self, usable: bool) -> Vec<String> {
        let list = self.list();
        let entries = list["entries"].as_array().expect("entries").iter();
        let name = |entry: &Value| {
            let name = Path::new(entry["name"].as_str().unwrap_or("?"));
            name.file_name().expect("a name").to_str().expect("utf-8").to_owned()
        };
        entries.filter(|entry| entry["usable"] == usable).map(name).collect()
    }

    fn counts(&self) -> (u64, u64) {
        let list = self.list();
        (list["hits"].as_u64().expect("hits"), list["misses"].as_u64().expect("misses"))
    }

    fn path(&self, name: &str) -> PathBuf {
        let list = self.list();
        let mut entries = list["entries"].as_array().expect("entries").iter();
        let entry = entries.find(|entry| entry["name"].as_str().is_some_and(|path| path.ends_with(name)));
        self.0.path().join(entry.expect("the entry")["key"].as_str().expect("a key"))
    }

    /// As if it had been used so many hours ago.
    fn age(&self, name: &str, hours: u64) {
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        std::fs::File::open(self.path(name)).expect("open").set_modified(time).expect("utimes");
    }
}

#[test]
fn warmed_code_is_what_create_looks_for() {
    if runw_only("cache") {
        return;
    }
    let cache = Cache::new();
    for name in ["hello.wasm", "hello-component.wasm", "http3.wasm"] {
        assert!(cache.warm(&[name]).ends_with(&format!("/{name}: compiled\n")));
        assert!(cache.warm(&[name]).ends_with(&format!("/{name}: was compiled already\n")));
    }
    assert_eq!(cache.counts(), (3, 3));
    for name in ["hello.wasm", "hello-component.wasm"] {
        let c = Container::new(Bundle::wasm(name, &[]));
        assert_eq!(cache.around(&c.run_command(&[])).ok().out, "hello from wasm (c)\n");
    }
    assert_eq!(cache.counts(), (5, 3));
}

/// Only code made for it fits a container with a fuel limit.
#[test]
fn code_for_a_fuel_limit_is_warmed_apart() {
    if runw_only("cache") {
        return;
    }
    let cache = Cache::new();
    cache.warm(&["hello.wasm"]);
    cache.verb(&["warm", "--fuel", guest("hello.wasm").to_str().expect("utf-8")]).ok();
    assert_eq!(cache.counts(), (0, 2));
    let bundle =
        Bundle::wasm("hello.wasm", &[]).edit(|c| c["annotations"]["dev.runw.limits.fuel"] = "1000000".into());
    cache.around(&Container::new(bundle).run_command(&[])).ok();
    assert_eq!(cache.counts(), (1, 2));
}

#[test]
fn ten_creates_of_a_new_module_at_once_compile_once() {
    if runw_only("cache") {
        return;
    }
    let cache = Cache::new();
    std::thread::scope(|s| {
        let one = || {
            let c = Container::new(Bundle::wasm("rust-p2.wasm", &[]));
            cache.around(&c.run_command(&[]))
        };
        let all: Vec<_> = (0..10).map(|_| s.spawn(one)).collect();
        for one in all {
            assert_eq!(one.join().expect("join").ok().out, "hello from wasm (rust)\n");
        }
    });
    assert_eq!(cache.counts(), (9, 1));
}

#[test]
fn a_list_says_what_each_entry_is() {
    if runw_only("cache") {
        return;
    }
    let cache = Cache::new();
    cache.warm(&["hello.wasm", "hello-component.wasm"]);
    let list = cache.list();
    assert_eq!(list["directory"], "/var/cache/runw");
    assert_eq!(list["limit"], 1 << 30);
    let entries = list["entries"].as_array().expect("entries");
    let size = |entry: &Value| entry["size"].as_u64().expect("a size");
    assert_eq!(list["bytes"].as_u64(), Some(entries.iter().map(size).sum()));
    for (name, kind) in [("hello.wasm", "module"), ("hello-component.wasm", "component")] {
        let path = guest(name);
        let entry = entries.iter().find(|entry| entry["name"] == path.to_str().expect("utf-8")).expect(name);
        let sum = run(Command::new("sha256sum").arg(&path)).ok().out;
        assert_eq!(entry["module"].as_str(), sum.split(' ').next());
        assert_eq!(
            (&entry["kind"], &entry["usable"], &entry["fuel"]),
            (&kind.into(), &true.into(), &false.into())
        );
        assert_eq!(std::fs::metadata(cache.path(name)).expect("stat").len(), size(entry));
    }
    let table = cache.verb(&["list"]).ok().out;
    assert!(table.starts_with("MODULE ") && table.contains("2 entries, "), "{table}");
    assert!(table.contains("compiled 2 times"), "{table}");
}

#[test]
fn a_damaged_entry_is_shown_and_goes_first() {
    if runw_only("cache") {
        return;
    }
    let cache = Cache::new();
    cache.warm(&["hello.wasm", "hello-component.wasm"]);
    let path = cache.path("/hello.wasm");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[100] ^= 1;
    std::fs::remove_file(&path).expect("unlink");
    std::fs::write(&path, &bytes).expect("poison");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).expect("chmod");
    assert_eq!((cache.names(true), cache.names(false).len()), (vec!["hello-component.wasm".to_owned()], 1));
    assert!(cache.verb(&["list"]).ok().out.contains("no: damaged"));
    assert!(path.exists(), "whoever only looks changes nothing");
    assert_eq!(cache.verb(&["prune"]).ok().out, format!("removed 1 entries, {} bytes\n", bytes.len()));
    assert_eq!((cache.names(true).len(), cache.names(false).len()), (1, 0));
}

#[test]
fn pruning_takes_what_was_used_longest_ago() {
    if runw_only("cache") {
        return;
    }
    let cache = Cache::new();
    cache.warm(&["hello.wasm", "hello-component.wasm", "http3.wasm"]);
    for (name, hours) in [("/hello.wasm", 2), ("/hello-component.wasm", 5), ("/http3.wasm", 3)] {
        cache.age(name, hours);
    }
    assert_eq!(cache.names(true), ["hello.wasm", "http3.wasm", "hello-component.wasm"]);
    let bytes = cache.list()["bytes"].as_u64().expect("bytes");
    cache.verb(&["prune", "--size", &(bytes - 1).to_string()]).ok();
    assert_eq!(cache.names(true), ["hello.wasm", "http3.wasm"]);
    // A start is a use.
    let c = Container::new(Bundle::wasm("hello.wasm", &[]));
    cache.around(&c.run_command(&[])).ok();
    cache.age("/http3.wasm", 1);
    cache.verb(&["prune", "--size", "40k"]).ok();
    assert_eq!(cache.names(true), ["hello.wasm"]);
    assert!(cache.verb(&["prune"]).ok().out.starts_with("removed 0 entries"));
    assert!(cache.verb(&["prune", "--all"]).ok().out.starts_with("removed 1 entries"));
    assert_eq!(cache.names(true).len(), 0);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    if runw_only("cache") {
        return;
    }
    let cache = Cache::new();
    for (words, said) in [
        (&["nix"][..], "expected list, prune or warm"),
        (&["list", "--all"], "--all is for cache prune"),
        (&["prune", "x"], "FILE is for cache warm"),
        (&["warm"], "which files?"),
        (&["list", "--format", "xml"], "invalid format option"),
        (&["prune", "--all", "--size", "1"], "--all leaves no --size"),
        (&["warm", "/none.wasm"], "/none.wasm"),
        (&["warm", "/bin/true"], "is not WebAssembly"),
    ] {
        cache.verb(words).refused(&[said]);
    }
    assert_eq!(cache.counts(), (0, 0));
    std::fs::set_permissions(cache.0.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    cache.verb(&["list"]).refused(&["mode 0755", "code is run from it"]);
}

//! A WebAssembly guest: its code is compiled and cached on the host by the parent, loaded and linked in the
//! container at create, and run in the init process at start. The only room that names wasmtime.

mod cache;
mod compile;
mod engine;
mod guest;
mod load;
mod settings;
#[cfg(test)]
mod tests;
mod world;

pub use compile::compiled;
pub use guest::Guest;

use std::path::{Path, PathBuf};

/// What kind of code an artifact holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Core,
    Component,
}

impl Kind {
    /// The note that goes from parent to child beside the artifact.
    pub fn code(self) -> u8 {
        match self {
            Kind::Core => b'm',
            Kind::Component => b'c',
        }
    }

    /// A wrong note is caught by wasmtime itself: an artifact says what it holds.
    pub fn from_code(code: u8) -> Kind {
        if code == Kind::Component.code() { Kind::Component } else { Kind::Core }
    }
}

/// All that a guest is given, as data. Files are not in it: there is one tree, always at `/`, and what it holds
/// and whether it may be written is settled by the kernel's mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    pub args: Vec<String>,
    /// Exactly the spec's, in order; no HOME is added.
    pub env: Vec<(String, String)>,
    /// For components; a core module has no such notion and starts at "/".
    pub cwd: PathBuf,
    /// Sockets inside the container's network namespace, which is the boundary.
    pub sockets: bool,
    /// wasmtime-wasi resolves names by getaddrinfo, which in a static glibc loads `libnss_*.so` files of the
    /// image. Denied until a resolver of our own takes its place.
    pub name_lookup: bool,
    /// Bytes: the container's memory limit.
    pub memory: Option<u64>,
}

pub fn grants(args: &[String], env: &[String], cwd: &Path, memory: Option<u64>) -> Grants {
    let pair = |entry: &String| {
        // An entry without "=" is legal in environ(7) but has no form in WASI; it becomes an empty value.
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.to_owned())
    };
    Grants {
        args: args.to_vec(),
        env: env.iter().map(pair).collect(),
        cwd: cwd.to_owned(),
        sockets: true,
        name_lookup: false,
        memory,
    }
}

#[cfg(test)]
mod grants_tests {
    use super::*;

    #[test]
    fn grants_are_the_process_s_own_words() {
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let given =
            grants(&list(&["/a.wasm", "x y"]), &list(&["B=1=2", "A=", "C"]), Path::new("/w"), Some(1 << 20));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = Grants {
            args: list(&["/a.wasm", "x y"]),
            env: vec![pair("B", "1=2"), pair("A", ""), pair("C", "")],
            cwd: PathBuf::from("/w"),
            sockets: true,
            name_lookup: false,
            memory: Some(1 << 20),
        };
        assert_eq!(given, expected);
    }
}

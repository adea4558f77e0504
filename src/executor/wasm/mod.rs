//! A WebAssembly guest: its code is compiled and cached on the host by the parent, loaded and linked in the
//! container at create, and run in the init process at start. The only room that names wasmtime.

mod access;
mod body;
mod budget;
mod cache;
mod compile;
mod deadline;
mod engine;
mod files;
mod grants;
mod guest;
mod host;
mod instances;
mod kept;
mod keyvalue;
mod load;
mod lookup;
mod missing;
mod names;
mod outbound;
mod serve;
mod settings;
mod stores;
#[cfg(test)]
mod tests;
mod tls;
mod world;

pub use compile::compiled;
pub use grants::{Given, is_fuelled, ours};
pub use guest::Guest;
pub use kept::{Contents, Entry, Prune, contents, prune};

use engine::Profile;

/// wasmtime's error as anyhow's, without the `anyhow` feature that would pull more of it in.
fn plain(error: wasmtime::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// What kind of code an artifact holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Core,
    Component,
    /// A component for `Profile::Concurrent`.
    Concurrent,
}

impl Kind {
    /// The note that goes from parent to child beside the artifact.
    pub fn code(self) -> u8 {
        match self {
            Kind::Core => b'm',
            Kind::Component => b'c',
            Kind::Concurrent => b'a',
        }
    }

    /// A wrong note is caught by wasmtime itself: an artifact says what it holds.
    pub fn from_code(code: u8) -> Kind {
        [Kind::Component, Kind::Concurrent].into_iter().find(|kind| kind.code() == code).unwrap_or(Kind::Core)
    }

    /// A component, by its bytes or text. Whatever it is to import or export is in them by name, so nothing has to
    /// be parsed here, in the parent; a name that only looks like it costs some speed and nothing else.
    pub fn of_component(bytes: &[u8]) -> Kind {
        const NAMES: [&str; 3] = ["wasi:http/", "@0.3.", "[async-"];
        let names = |name: &&str| memchr::memmem::find(bytes, name.as_bytes()).is_some();
        if NAMES.iter().any(names) { Kind::Concurrent } else { Kind::Component }
    }

    fn profile(self) -> Profile {
        if self == Kind::Concurrent { Profile::Concurrent } else { Profile::Plain }
    }
}

#[cfg(test)]
mod kind_tests {
    use super::Kind;

    #[test]
    fn a_component_s_profile_follows_from_its_names() {
        for (bytes, kind) in [
            ("\0asm\x0d\0\x01\0..wasi:cli/run@0.2.3", Kind::Component),
            ("..wasi:http/incoming-handler@0.2.0..", Kind::Concurrent),
            ("..wasi:cli/run@0.3.0..", Kind::Concurrent),
            ("..[async-lift]run..", Kind::Concurrent),
        ] {
            assert_eq!(Kind::of_component(bytes.as_bytes()), kind, "{bytes:?}");
        }
        for kind in [Kind::Core, Kind::Component, Kind::Concurrent] {
            assert_eq!(Kind::from_code(kind.code()), kind);
        }
    }
}

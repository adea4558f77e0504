//! Names to addresses, in Rust alone: over the container's own resolv.conf and hosts, read through the guest's file
//! tree. glibc's getaddrinfo must never be called here: a static glibc loads the `libnss_*.so` files that the
//! image's nsswitch.conf names.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Resolver, TokioResolver};
use rustix::fs::{Mode, OFlags};

use super::files;

/// Neither file is longer in practice; more is not read.
const LONGEST: u64 = 1 << 20;
/// Answers kept, each with its own time to live.
const ANSWERS: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An annotation does not grant it.
    Denied,
    /// Not a name at all.
    Invalid,
    /// The servers say there is no such name, or it has no address.
    Unknown,
    /// No server answered, or the files cannot be read.
    Temporary,
}

pub struct Names {
    /// The guest's files.
    tree: OwnedFd,
    /// The guest itself may ask.
    granted: bool,
    known: Mutex<Option<Known>>,
}

struct Known {
    tables: Arc<Tables>,
    read_from: [Stamp; 2],
}

/// What the two files say.
struct Tables {
    hosts: HashMap<String, Vec<IpAddr>>,
    servers: TokioResolver,
}

/// Says whether a file is still what was read: engines rewrite both while the container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Names {
    pub fn new(tree: OwnedFd, granted: bool) -> Names {
        Names { tree, granted, known: Mutex::new(None) }
    }

    /// For the guest's own use.
    pub async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        if self.granted { self.resolve(name).await } else { Err(Failure::Denied) }
    }

    /// For runw's, to reach where an outgoing request goes.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        // As wasmtime-wasi does: what is valid, and punycode for the rest of the world's letters.
        let domain = match url::Host::parse(name) {
            Ok(url::Host::Domain(domain)) => domain,
            Ok(url::Host::Ipv4(address)) => return Ok(vec![address.into()]),
            Ok(url::Host::Ipv6(address)) => return Ok(vec![address.into()]),
            Err(_) => {
                let bare: Ipv6Addr = name.parse().map_err(|_| Failure::Invalid)?;
                return Ok(vec![bare.into()]);
            }
        };
        let tables = self.tables().ok_or(Failure::Temporary)?;
        // As in nsswitch.conf's usual "files dns": who is in hosts is asked of nobody else.
        if let Some(addresses) = tables.hosts.get(domain.trim_end_matches('.')) {
            return Ok(addresses.clone());
        }
        match tables.servers.lookup_ip(domain.as_str()).await {
            Ok(addresses) => Ok(addresses.iter().map(|address| address.to_canonical()).collect()),
            Err(error) if error.is_no_records_found() => Err(Failure::Unknown),
            Err(NetError::Proto(_)) => Err(Failure::Invalid),
            Err(_) => Err(Failure::Temporary),
        }
    }

    /// The bytes of a file of the container, if it is there and a regular file.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        contents(Some(open(&self.tree, path).ok()??))
    }

    /// Read again when a file changed, as glibc does since 2.26. `None`: one of them cannot be read.
    fn tables(&self) -> Option<Arc<Tables>> {
        let servers = open(&self.tree, "etc/resolv.conf").ok()?;
        let hosts = open(&self.tree, "etc/hosts").ok()?;
        let read_from = [stamp(servers.as_ref())?, stamp(hosts.as_ref())?];
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.read_from == read_from) {
            return Some(known.tables.clone());
        }
        let tables = Arc::new(Tables {
            hosts: parse_hosts(&contents(hosts)?),
            servers: resolver(&contents(servers)?)?,
        });
        *known = Some(Known { tables: tables.clone(), read_from });
        Some(tables)
    }
}

/// A missing file is an empty one.
fn open(tree: &OwnedFd, path: &str) -> std::io::Result<Option<File>> {
    match files::open(tree, path, OFlags::RDONLY, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn stamp(file: Option<&File>) -> Option<Stamp> {
    let Some(file) = file else { return Some(Stamp { inode: (0, 0), size: 0, changed: (0, 0) }) };
    let data = file.metadata().ok()?;
    Some(Stamp {
        inode: (data.dev(), data.ino()),
        size: data.len(),
        changed: (data.ctime(), data.ctime_nsec()),
    })
}

fn contents(file: Option<File>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(file) = file {
        file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    }
    Some(bytes)
}

/// hosts(5). The names are compared as `url` gives them: in lower case.
fn parse_hosts(text: &[u8]) -> HashMap<String, Vec<IpAddr>> {
    let mut table = HashMap::<String, Vec<IpAddr>>::new();
    for line in String::from_utf8_lossy(text).lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        for name in words {
            table.entry(name.trim_end_matches('.').to_lowercase()).or_default().push(address);
        }
    }
    table
}

fn resolver(resolv_conf: &[u8]) -> Option<TokioResolver> {
    let (config, mut options) = parse_resolv_conf(resolv_conf).unwrap_or_else(|_| {
        // resolv.conf(5): without a nameserver line, the one on the local machine.
        let local = NameServerConfig::udp_and_tcp(IpAddr::from([127, 0, 0, 1]));
        (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
    });
    // By itself it would open /etc/hosts by path.
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = ANSWERS;
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::executor::testing::{Scratch, scratch};

    fn names(root: &Path) -> Names {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Names::new(rustix::fs::open(root, flags, Mode::empty()).unwrap(), false)
    }

    fn etc(name: &str) -> Scratch {
        let root = scratch(name);
        std::fs::create_dir(root.join("etc")).unwrap();
        root
    }

    fn resolve(names: &Names, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(names.resolve(name))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn literals_need_no_file_and_hosts_no_server() {
        let root = etc("names-hosts");
        let names = names(&root);
        assert_eq!(resolve(&names, "192.0.2.7"), Ok(vec![ip("192.0.2.7")]));
        assert_eq!(resolve(&names, "2001:db8::1"), Ok(vec![ip("2001:db8::1")]));
        assert_eq!(resolve(&names, "a b"), Err(Failure::Invalid));
        let hosts = "192.0.2.1 Db.Example db # not.this\nbroken line\n2001:db8::2 db\n";
        std::fs::write(root.join("etc/hosts"), hosts).unwrap();
        assert_eq!(resolve(&names, "DB"), Ok(vec![ip("192.0.2.1"), ip("2001:db8::2")]));
        assert_eq!(resolve(&names, "db.example."), Ok(vec![ip("192.0.2.1")]));
        std::fs::write(root.join("etc/hosts"), "192.0.2.9 db\n").unwrap();
        assert_eq!(resolve(&names, "db"), Ok(vec![ip("192.0.2.9")]), "read again when changed");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(names.ask("192.0.2.7")), Err(Failure::Denied));
    }

    #[test]
    fn the_image_cannot_lead_the_look_up_astray() {
        let root = etc("names-astray");
        let outside = scratch("names-outside");
        std::fs::write(outside.join("hosts"), "192.0.2.1 db\n").unwrap();
        symlink(outside.join("hosts"), root.join("etc/hosts")).unwrap();
        let asked = resolve(&names(&root), "db.invalid");
        assert!(matches!(asked, Err(Failure::Temporary | Failure::Unknown)), "{asked:?}");
        std::fs::remove_file(root.join("etc/hosts")).unwrap();
        // A pipe would block for ever.
        let mode = Mode::from_raw_mode(0o644);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, root.join("etc/hosts"), kind, mode, 0).unwrap();
        assert_eq!(resolve(&names(&root), "db"), Err(Failure::Temporary));
    }

    #[test]
    fn without_a_server_the_local_one_is_asked() {
        let root = etc("names-none");
        assert!(resolver(b"").is_some());
        std::fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
            .unwrap();
        if UdpSocket::bind("127.0.0.1:53").is_err() {
            eprintln!("SKIPPED: something answers on port 53 of this machine");
            return;
        }
        assert_eq!(resolve(&names(&root), "host.test"), Err(Failure::Temporary));
    }
}

//! All that a guest is given, as data: one pure function of what the spec says. Files are not in it: there is one
//! tree, always at `/`, and what it holds and whether it may be written is settled by the kernel's mounts.
//! Annotations only narrow; the outer bound is the container itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::seam;

/// The annotations that are ours.
pub const PREFIX: &str = "dev.runw.";

/// What the spec says of a process.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    /// Bytes: the container's memory limit.
    pub memory: Option<u64>,
    /// CPUs that the container's quota is worth, rounded up.
    pub cpus: Option<u64>,
    /// Those that begin with `PREFIX`, in order.
    pub annotations: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    pub args: Vec<String>,
    /// Exactly the spec's, in order; no HOME is added.
    pub env: Vec<(String, String)>,
    /// For components; a core module has no such notion and starts at "/".
    pub cwd: PathBuf,
    /// Bytes, for the memories and tables of all instances together.
    pub memory: Option<u64>,
    pub cpus: Option<u64>,
    pub limits: Limits,
    pub network: Network,
    pub serve: Serve,
    /// `wasi:config`.
    pub config: Vec<(String, String)>,
    /// A file of the container with more of it.
    pub config_file: Option<String>,
    pub key_value: KeyValue,
}

/// `wasi:keyvalue`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub granted: bool,
    /// Names of stores, each with the file of the container it is kept in.
    pub files: Vec<(String, String)>,
}

/// How long a guest may run and what it may make. For a server: each request, each instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From start to the end.
    pub time: Option<Duration>,
    /// Instructions, roughly; code with such a limit is compiled to count them.
    pub fuel: Option<u64>,
    /// Core instances.
    pub instances: usize,
    /// Elements of a table.
    pub table: usize,
    /// Open files, streams, requests and whatever else the host holds for a component.
    pub handles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { time: None, fuel: None, instances: 10_000, table: usize::MAX, handles: 100_000 }
    }
}

/// The container's network namespace is the boundary; inside it everything is granted that nothing takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub tcp: bool,
    pub udp: bool,
    pub names: bool,
    /// Outgoing `wasi:http`.
    pub http: bool,
    /// `wasi:tls`, over what connections there are.
    pub tls: bool,
    /// Where connections and datagrams may go; `None` is anywhere.
    pub connect: Option<Vec<Reach>>,
}

/// Addresses, and one of their ports or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    address: IpAddr,
    prefix: u8,
    port: Option<u16>,
}

/// How a component that handles http is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    pub address: SocketAddr,
    pub connections: usize,
    pub requests: usize,
    /// Bytes of a request's body.
    pub body: Option<u64>,
    /// For a request's head, and between two pieces of its body.
    pub read: Duration,
    /// For the guest to handle a request, a streamed body included; `None` is as long as it likes.
    pub handle: Option<Duration>,
    /// From SIGTERM to the end.
    pub grace: Duration,
    /// Requests that one instance may answer; `None` is 1 for 0.2 and 128 for 0.3.
    pub reuse: Option<usize>,
    pub access_log: Option<AccessLog>,
}

/// Where a line goes for each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// The container's.
    Stderr,
    /// A file of the container.
    File(String),
}

impl Default for Serve {
    fn default() -> Self {
        Serve {
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            connections: 1000,
            requests: 1000,
            body: None,
            read: Duration::from_secs(60),
            handle: None,
            grace: Duration::from_secs(30),
            reuse: None,
            access_log: None,
        }
    }
}

impl Network {
    const ALL: Network = Network { tcp: true, udp: true, names: true, http: true, tls: true, connect: None };

    pub fn allows(&self, to: SocketAddr) -> bool {
        let holds = |reach: &Reach| reach.holds(to);
        self.connect.as_ref().is_none_or(|reaches| reaches.iter().any(holds))
    }

    /// The same as far as the kernel can be told: it knows kinds and ports.
    pub fn of_the_kernel(&self) -> seam::Network {
        const DNS: u16 = 53;
        let (connects, asks) = (self.tcp || self.http, self.names || self.http);
        let ports = match &self.connect {
            _ if !connects => Some(BTreeSet::new()),
            None => None,
            Some(reaches) => reaches.iter().map(|reach| reach.port).collect(),
        };
        seam::Network {
            sockets: connects || asks || self.udp,
            listens: self.tcp,
            // A long answer is asked for again by TCP (RFC 7766).
            connects: ports.map(|ports| ports.into_iter().chain(asks.then_some(DNS)).collect()),
        }
    }
}

impl Reach {
    fn holds(&self, to: SocketAddr) -> bool {
        // An IPv4 address has a second spelling on IPv6 sockets.
        let same = match (self.address, to.ip().to_canonical()) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                prefix_eq(one.to_bits().into(), other.to_bits().into(), 32 - self.prefix)
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => {
                prefix_eq(one.to_bits(), other.to_bits(), 128 - self.prefix)
            }
            _ => false,
        };
        same && self.port.is_none_or(|port| port == to.port())
    }
}

fn prefix_eq(one: u128, other: u128, ignored: u8) -> bool {
    (one ^ other).checked_shr(ignored.into()).unwrap_or_default() == 0
}

/// The engine, its stacks and page tables are counted by the same cgroup: a guest that was given all of the limit would be
/// killed before it is refused.
fn guest_s_part(limit: u64) -> u64 {
    limit - (limit / 8).min(8 << 20)
}

pub fn grants(given: &Given) -> Result<Grants> {
    let pair = |entry: &String| {
        // An entry without "=" is legal in environ(7) but has no form in WASI; it becomes an empty value.
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.to_owned())
    };
    let mut grants = Grants {
        args: given.args.clone(),
        env: given.env.iter().map(pair).collect(),
        cwd: given.cwd.clone(),
        memory: given.memory.map(guest_s_part),
        cpus: given.cpus,
        limits: Limits::default(),
        network: Network::ALL,
        serve: Serve::default(),
        config: Vec::new(),
        config_file: None,
        key_value: KeyValue { granted: true, files: Vec::new() },
    };
    from_environment(&mut grants)?;
    for (name, value) in &given.annotations {
        let key = name.strip_prefix(PREFIX).unwrap_or(name);
        annotation(&mut grants, key, value.trim()).with_context(|| format!("annotation {name}={value:?}"))?;
    }
    grants.serve.handle = grants.serve.handle.or(grants.limits.time);
    Ok(grants)
}

/// Whether code must count what it does, which the parent has to know before it compiles.
pub fn is_fuelled(annotations: &[(String, String)]) -> bool {
    annotations.iter().any(|(name, _)| name.strip_prefix(PREFIX) == Some("limits.fuel"))
}

/// What other hosts of wasm take the address from; the first that is set.
fn from_environment(grants: &mut Grants) -> Result<()> {
    for name in ["WASMTIME_HTTP_PROXY_SOCKET_ADDR", "SPIN_HTTP_LISTEN_ADDR", "PORT"] {
        let Some((_, value)) = grants.env.iter().rfind(|(key, _)| key == name) else { continue };
        grants.serve.address = match name {
            "PORT" => value.parse().ok().map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
            _ => value.parse().ok(),
        }
        .with_context(|| format!("process.env: {name}={value:?} is not an address to listen on"))?;
        break;
    }
    Ok(())
}

fn annotation(grants: &mut Grants, key: &str, value: &str) -> Result<()> {
    let number = || -> Result<usize> {
        let number = value.parse().context("not a number")?;
        ensure!(number > 0, "must be at least 1");
        Ok(number)
    };
    let seconds = || number().map(|seconds| Duration::from_secs(seconds as u64));
    let (serve, limits) = (&mut grants.serve, &mut grants.limits);
    match key {
        "limits.time" => limits.time = Some(seconds()?),
        "limits.fuel" => limits.fuel = Some(number()? as u64),
        "limits.memory" => grants.memory = grants.memory.into_iter().chain([number()? as u64]).min(),
        "limits.instances" => limits.instances = number()?,
        "limits.table" => limits.table = number()?,
        "limits.handles" => limits.handles = number()?,
        "network" => grants.network = network(value, grants.network.connect.take())?,
        "network.connect" => {
            grants.network.connect = Some(words(value).map(reach).collect::<Result<_>>()?);
        }
        "http.address" => serve.address = value.parse().context("not ADDRESS:PORT")?,
        "http.connections" => serve.connections = number()?,
        "http.requests" => serve.requests = number()?,
        "http.body" => serve.body = Some(number()? as u64),
        "http.read-timeout" => serve.read = seconds()?,
        "http.request-timeout" => serve.handle = Some(seconds()?),
        "http.grace" => serve.grace = seconds()?,
        "http.access-log" if value == "stderr" => serve.access_log = Some(AccessLog::Stderr),
        "http.access-log" => serve.access_log = Some(AccessLog::File(file(value)?)),
        "config-file" => grants.config_file = Some(file(value)?),
        "http.reuse" => serve.reuse = Some(number()?),
        "keyvalue" => {
            ensure!(value == "none", "not \"none\"");
            grants.key_value.granted = false;
        }
        _ => match key.split_once('.').filter(|(_, name)| !name.is_empty()) {
            Some(("config", name)) => grants.config.push((name.to_owned(), value.to_owned())),
            Some(("keyvalue", name)) => grants.key_value.files.push((name.to_owned(), file(value)?)),
            _ => bail!("not an annotation that runw knows (docs/wasm.md lists them)"),
        },
    }
    Ok(())
}

/// A file of the container's.
fn file(path: &str) -> Result<String> {
    ensure!(path.starts_with('/'), "must be absolute");
    Ok(path.to_owned())
}

/// `NAME=VALUE` in each line; empty ones and those that begin with `#` count for nothing.
pub fn config_lines(text: &str) -> Result<Vec<(String, String)>> {
    let lines = text.lines().enumerate().map(|(at, line)| (at, line.trim()));
    let pairs = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    pairs
        .map(|(at, line)| {
            let (name, value) = line.split_once('=').with_context(|| format!("line {}: no \"=\"", at + 1))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn network(list: &str, connect: Option<Vec<Reach>>) -> Result<Network> {
    let mut network = Network { tcp: false, udp: false, names: false, http: false, tls: false, connect };
    for word in words(list) {
        match word {
            "tcp" => network.tcp = true,
            "udp" => network.udp = true,
            "names" => network.names = true,
            "http" => network.http = true,
            "tls" => network.tls = true,
            "none" => {}
            _ => bail!("{word:?} is none of tcp, udp, names, http, tls, none"),
        }
    }
    Ok(network)
}

/// `192.0.2.1`, `10.0.0.0/8:5432`, `2001:db8::/32`, `[2001:db8::1]:443`.
fn reach(text: &str) -> Result<Reach> {
    let wrong = || format!("{text:?} is not ADDRESS[/PREFIX][:PORT]");
    let (net, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((net, "")) => (net, None),
        Some((net, port)) => (net, Some(port.strip_prefix(':').with_context(wrong)?)),
        // More than one colon is an IPv6 address, which has no port outside brackets.
        None if text.matches(':').count() > 1 => (text, None),
        None => text.split_once(':').map_or((text, None), |(net, port)| (net, Some(port))),
    };
    let (address, prefix) = net.split_once('/').map_or((net, None), |(net, prefix)| (net, Some(prefix)));
    let address: IpAddr = address.parse().with_context(wrong)?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Ok(longest), str::parse).with_context(wrong)?;
    ensure!(prefix <= longest, wrong());
    let port = port.map(str::parse).transpose().with_context(wrong)?;
    Ok(Reach { address, prefix, port })
}

/// What concerns a guest among a container's annotations.
pub fn ours<'a>(annotations: impl IntoIterator<Item = (&'a String, &'a String)>) -> Vec<(String, String)> {
    let mut ours: Vec<(String, String)> = annotations
        .into_iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    ours.sort();
    ours
}

impl Given {
    pub fn new(args: &[String], env: &[String], cwd: &Path) -> Given {
        Given { args: args.to_vec(), env: env.to_vec(), cwd: cwd.to_owned(), ..Given::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    fn annotated(pairs: &[(&str, &str)]) -> Result<Grants> {
        let annotations =
            pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect();
        grants(&Given { annotations, ..Given::default() })
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn grants_are_the_process_s_own_words() {
        let given = Given {
            memory: Some(1 << 20),
            ..Given::new(&list(&["/a.wasm", "x y"]), &list(&["B=1=2", "A=", "C"]), Path::new("/w"))
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = Grants {
            args: list(&["/a.wasm", "x y"]),
            env: vec![pair("B", "1=2"), pair("A", ""), pair("C", "")],
            cwd: PathBuf::from("/w"),
            memory: Some((1 << 20) - (1 << 17)),
            cpus: None,
            limits: Limits::default(),
            network: Network::ALL,
            serve: Serve::default(),
            config: Vec::new(),
            config_file: None,
            key_value: KeyValue { granted: true, files: Vec::new() },
        };
        assert_eq!(grants(&given).unwrap(), expected);
    }

    #[test]
    fn the_address_is_the_first_that_is_set() {
        let from = |env: &[&str]| {
            grants(&Given { env: list(env), ..Given::default() }).map(|grants| grants.serve.address)
        };
        assert_eq!(from(&["A=1"]).unwrap(), address("0.0.0.0:8080"));
        assert_eq!(from(&["PORT=80"]).unwrap(), address("0.0.0.0:80"));
        assert_eq!(
            from(&["PORT=80", "SPIN_HTTP_LISTEN_ADDR=127.0.0.1:3000"]).unwrap(),
            address("127.0.0.1:3000")
        );
        let all = ["SPIN_HTTP_LISTEN_ADDR=1.1.1.1:1", "WASMTIME_HTTP_PROXY_SOCKET_ADDR=[::1]:9"];
        assert_eq!(from(&all).unwrap(), address("[::1]:9"));
        let error = from(&["PORT=http"]).unwrap_err().to_string();
        assert_eq!(error, r#"process.env: PORT="http" is not an address to listen on"#);
        let given = Given {
            env: list(&["PORT=80"]),
            annotations: vec![(format!("{PREFIX}http.address"), "127.0.0.1:90".to_owned())],
            ..Given::default()
        };
        assert_eq!(grants(&given).unwrap().serve.address, address("127.0.0.1:90"));
    }

    #[test]
    fn a_network_is_narrowed_by_kind_and_by_address() {
        let network = |kinds: &str| annotated(&[("network", kinds)]).unwrap().network;
        assert_eq!(network("tcp, names"), Network { udp: false, http: false, tls: false, ..Network::ALL });
        let none = Network { tcp: false, udp: false, names: false, http: false, tls: false, connect: None };
        assert_eq!((network("none"), network("")), (none.clone(), none));
        let connect =
            annotated(&[("network.connect", "10.0.0.0/8:5432, 192.0.2.1,[2001:db8::/32]:443,fe80::1")]);
        let connect = connect.unwrap().network;
        for (to, allowed) in [
            ("10.9.9.9:5432", true),
            ("10.9.9.9:5433", false),
            ("11.0.0.1:5432", false),
            ("192.0.2.1:1", true),
            ("192.0.2.2:1", false),
            ("[::ffff:192.0.2.1]:1", true),
            ("[2001:db8::9]:443", true),
            ("[2001:db9::9]:443", false),
            ("[fe80::1]:9", true),
        ] {
            assert_eq!(connect.allows(address(to)), allowed, "{to}");
        }
        assert!(annotated(&[("network.connect", "0.0.0.0/0")]).unwrap().network.allows(address("9.9.9.9:9")));
        assert!(!annotated(&[("network.connect", "")]).unwrap().network.allows(address("9.9.9.9:9")));
    }

    #[test]
    fn the_kernel_is_told_kinds_and_ports() {
        let kernel = |pairs: &[(&str, &str)]| annotated(pairs).unwrap().network.of_the_kernel();
        let network = |sockets, listens, ports: Option<&[u16]>| seam::Network {
            sockets,
            listens,
            connects: ports.map(|ports| ports.iter().copied().collect()),
        };
        assert_eq!(kernel(&[]), network(true, true, None));
        assert_eq!(kernel(&[("network", "none")]), network(false, false, Some(&[])));
        assert_eq!(kernel(&[("network", "udp")]), network(true, false, Some(&[])));
        assert_eq!(kernel(&[("network", "names")]), network(true, false, Some(&[53])));
        assert_eq!(kernel(&[("network", "http")]), network(true, false, None));
        let connect = |to| ("network.connect", to);
        assert_eq!(kernel(&[connect("10.0.0.0/8:5432")]), network(true, true, Some(&[53, 5432])));
        assert_eq!(
            kernel(&[("network", "tcp"), connect("10.0.0.1:1,10.0.0.2:2")]),
            network(true, true, Some(&[1, 2]))
        );
        // An entry without a port is all ports, though not of all addresses.
        assert_eq!(kernel(&[connect("10.0.0.1:1,10.0.0.2")]), network(true, true, None));
    }

    #[test]
    fn limits_only_narrow() {
        let limit = |memory: Option<u64>| {
            let annotations = vec![(format!("{PREFIX}limits.memory"), "1000".to_owned())];
            grants(&Given { memory, annotations, ..Given::default() }).unwrap().memory
        };
        assert_eq!([limit(None), limit(Some(2000)), limit(Some(500))], [Some(1000), Some(1000), Some(438)]);
        let both = annotated(&[("limits.time", "5"), ("http.request-timeout", "3")]).unwrap();
        assert_eq!(both.serve.handle, Some(Duration::from_secs(3)));
        let one = annotated(&[("limits.time", "5")]).unwrap();
        assert_eq!((one.serve.handle, one.limits.time), (Some(Duration::from_secs(5)), one.serve.handle));
        assert!(is_fuelled(&[(format!("{PREFIX}limits.fuel"), "1".to_owned())]));
        assert!(!is_fuelled(&[("limits.fuel".to_owned(), "1".to_owned())]));
    }

    #[test]
    fn config_has_a_name_and_a_value_in_each_line() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let lines = config_lines("# first\n\n a = 1=2 \nb=\n").unwrap();
        assert_eq!(lines, [pair("a", "1=2"), pair("b", "")]);
        assert_eq!(config_lines("a=1\nb\n").unwrap_err().to_string(), "line 2: no \"=\"");
    }

    #[test]
    fn a_wrong_annotation_is_named() {
        for (key, value) in [
            ("network", "icmp"),
            ("network.connect", "10.0.0.0/33"),
            ("network.connect", "example.com"),
            ("network.connect", "[::1"),
            ("http.address", "8080"),
            ("http.requests", "0"),
            ("http.grace", "-1"),
            ("htttp.grace", "1"),
            ("config.", "x"),
            ("limits.time", "soon"),
            ("limits.fuel", "0"),
            ("limits.memory", "1g"),
            ("http.access-log", "access.log"),
            ("keyvalue", "some"),
            ("keyvalue.", "/f"),
            ("keyvalue.cart", "f"),
            ("config-file", "etc/app"),
        ] {
            let error = format!("{:#}", annotated(&[(key, value)]).unwrap_err());
            assert!(error.contains(&format!("annotation {PREFIX}{key}={value:?}")), "{error}");
        }
    }
}

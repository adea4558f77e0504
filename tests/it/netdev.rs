//! `linux.netDevices`: interfaces of a network namespace of the test's own move into a container's.

use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Container, Out, Running, nothing_left, run, runw_only, skip, spawn, until};

/// A network namespace, alive as long as its one process.
struct Network(Running);

impl Network {
    /// `None`, and said, where there are no such namespaces, no ip(8) or no veth.
    fn new() -> Option<Network> {
        if runw_only("linux.netDevices") {
            return None;
        }
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sleep", "100"]);
        let network = Network(spawn(&mut holder));
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        let pid = network.0.pid().to_string();
        until("a network namespace", || {
            link(&pid).is_ok_and(|own| Some(own) != link("self").ok())
                && std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == b"sleep\n")
        });
        let made = network.ip("link add v0 type veth peer name v1");
        if made.code != 0 {
            skip(&format!("no veth: {}", made.err));
            return None;
        }
        Some(network)
    }

    fn path(&self) -> std::path::PathBuf {
        format!("/proc/{}/ns/net", self.0.pid()).into()
    }

    /// The same command inside.
    fn run(&self, command: &Command) -> Out {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.path().display()));
        inside.arg(command.get_program()).args(command.get_args());
        run(&mut inside)
    }

    fn ip(&self, words: &str) -> Out {
        let mut command = Command::new("ip");
        command.args(words.split_whitespace());
        self.run(&command)
    }

    fn create(&self, c: &Container) -> Out {
        self.run(&c.run_command(&["--detach"]))
    }

    fn has(&self, name: &str) -> bool {
        self.ip(&format!("link show {name}")).code == 0
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.child.kill();
        let _ = self.0.child.wait();
    }
}

fn with_devices(bundle: Bundle, devices: serde_json::Value) -> Container {
    Container::new(bundle.edit(|c| c["linux"]["netDevices"] = devices))
}

#[test]
fn a_device_moves_with_its_addresses_and_is_up() {
    let Some(network) = Network::new() else { return };
    for words in [
        "addr add 10.1.2.3/24 dev v0",
        "addr add 10.9.9.9 peer 10.9.9.8/32 dev v0",
        "addr add 169.254.1.1/16 scope link dev v0",
        "link set v0 up mtu 1400",
        "link set v1 up",
    ] {
        network.ip(words).ok();
    }
    // Where the kernel has it: going down is what would lose it.
    let six = network.ip("-6 addr add 2001:db8::3/64 dev v0 nodad").code == 0;
    let mac =
        network.ip("-br link show v0").ok().out.split_whitespace().nth(2).expect("an address").to_owned();
    for user_namespace in [false, true] {
        let bundle = Bundle::sh("ip addr show eth7; exec sleep 100");
        let bundle = if user_namespace { bundle.user_namespace() } else { bundle };
        let c = with_devices(bundle, json!({"v0": {"name": "eth7"}}));
        network.create(&c).ok();
        assert!(!network.has("v0"));
        let out = c.sh("ip addr show eth7");
        for word in ["UP", "mtu 1400", &mac, "inet 10.1.2.3/24", "inet 10.9.9.9 peer 10.9.9.8/32"] {
            assert!(out.contains(word), "{word}: {out}");
        }
        assert!(out.contains("2001:db8::3/64") == six, "{out}");
        assert!(!out.contains("169.254.1.1"), "only global addresses mean something elsewhere: {out}");
        if user_namespace {
            return;
        }
        // Back, for the next round: a veth would end with its namespace.
        let mut back = Command::new("nsenter");
        back.arg(format!("--net=/proc/{}/ns/net", c.pid()));
        back.args(["ip", "link", "set", "eth7", "name", "v0", "netns", &network.0.pid().to_string()]);
        run(&mut back).ok();
        for words in ["addr add 10.1.2.3/24 dev v0", "addr add 10.9.9.9 peer 10.9.9.8/32 dev v0"] {
            network.ip(words).ok();
        }
        if six {
            network.ip("-6 addr add 2001:db8::3/64 dev v0 nodad").ok();
        }
    }
}

#[test]
fn a_joined_network_gets_it_too_and_keeps_it() {
    let (Some(network), Some(other)) = (Network::new(), Network::new()) else { return };
    // The same names are taken there: also the same numbers, so the kernel gives the moved one another.
    network.ip("addr add 10.1.2.3/24 dev v1").ok();
    let bundle = Bundle::sh("ip addr show moved").namespace("network", Some(&other.path()));
    let c = with_devices(bundle, json!({"v1": {"name": "moved"}}));
    network.create(&c).ok();
    c.wait_stopped();
    assert!(other.ip("addr show moved").ok().out.contains("10.1.2.3/24"));
    assert!(other.ip("addr show v1").ok().out.contains("v1@"));
    assert!(!network.has("v1"));
}

#[test]
fn what_cannot_be_moved_is_named_and_nothing_else_moves() {
    let Some(network) = Network::new() else { return };
    let c = with_devices(Bundle::sh("true"), json!({"v0": {}, "nosuch0": {"name": "eth0"}}));
    network.create(&c).refused(&["linux.netDevices.nosuch0: no such device"]);
    nothing_left(&c);
    assert!(network.has("v0"));
    // `lo` is there already, and may not go anywhere itself.
    let up = |device: &str| {
        network
            .ip(&format!("-br link show {device}"))
            .ok()
            .out
            .split(['<', ',', '>'])
            .any(|flag| flag == "UP")
    };
    network.ip("link set v0 up").ok();
    network.ip("link set lo up").ok();
    for (device, name, why) in
        [("v0", "lo", "\\\"lo\\\" is taken"), ("lo", "lo2", "move it to the container's network")]
    {
        let c = with_devices(Bundle::sh("true"), json!({device: {"name": name}}));
        network.create(&c).refused(&[&format!("linux.netDevices.{device}: {why}")]);
        nothing_left(&c);
        assert!(up(device), "{device}");
    }
}

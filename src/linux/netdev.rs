//! `linux.netDevices`: interfaces of the runtime's network namespace are moved into the container's, keep their addresses
//! and are up there. Done by the parent, who may act in both; as runc does, but that nothing is set down first: the
//! kernel does so as it moves an interface, and one that it does not move stays as it was. IPv6 addresses would be gone.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxNetDevice, Spec};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;

use super::namespaces::{self, Plan};
use super::netlink::{Netlink, attributes, push_attribute};

const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// struct ifaddrmsg.
const ADDRESS_HEADER: usize = 8;

/// Moves the spec's, if it has any, to where `pid`, the container's init, is or will be.
pub fn move_into(spec: &Spec, plan: &Plan, pid: i32) -> Result<()> {
    match spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref()) {
        Some(devices) if !devices.is_empty() => move_all(devices, plan.network_of(pid)?.as_fd()),
        _ => Ok(()),
    }
}

/// Moves them all. None is touched when one is missing: what went into a new namespace is lost with it.
fn move_all(devices: &HashMap<String, LinuxNetDevice>, netns: BorrowedFd<'_>) -> Result<()> {
    let mut here = Netlink::open()?;
    let mut there = namespaces::in_network(netns, Netlink::open)?;
    let mut found = Vec::new();
    for (name, device) in devices {
        let index = name_to_index(here.as_fd(), name).with_context(|| format!("linux.netDevices.{name}"))?;
        let new_name = device.name().as_deref().filter(|new| !new.is_empty()).unwrap_or(name);
        // The kernel moves first and renames then: a name that is taken would be noticed too late.
        let free = name_to_index(there.as_fd(), new_name) == Err(Errno::NODEV);
        ensure!(free, "linux.netDevices.{name}: {new_name:?} is taken in the container's network namespace");
        found.push((name, new_name, index));
    }
    found.sort_unstable();
    for (name, new_name, index) in found {
        move_one(&mut here, &mut there, index, new_name, netns)
            .with_context(|| format!("linux.netDevices.{name}"))?;
    }
    Ok(())
}

fn move_one(
    here: &mut Netlink,
    there: &mut Netlink,
    index: u32,
    name: &str,
    netns: BorrowedFd<'_>,
) -> Result<()> {
    let addresses = here.dump(RTM_GETADDR, &[0; ADDRESS_HEADER]).context("read the addresses")?;
    // Name and namespace in one request: the new name may be taken here, and the old one there.
    let mut request = link(index, false);
    push_attribute(&mut request, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    push_attribute(&mut request, IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
    here.change(RTM_SETLINK, 0, &request)
        .with_context(|| format!("move it to the container's network namespace as {name}"))?;
    // The number may be another's there, then the kernel has given a new one.
    let moved = name_to_index(there.as_fd(), name).context("find it in the container")?;
    for address in addresses.iter().filter(|address| index_of(address) == Some(index)) {
        if let Some(request) = kept(address, moved) {
            there.change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &request).context("restore an address")?;
        }
    }
    there.change(RTM_SETLINK, 0, &link(moved, true)).context("set it up")
}

/// struct ifinfomsg, for an interface that is to go up, or to keep its flags.
fn link(index: u32, up: bool) -> Vec<u8> {
    const IFF_UP: u32 = 1;
    let flags = if up { IFF_UP } else { 0 };
    let change = flags;
    [0, index, flags, change].into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn index_of(address: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*address.get(4..)?.first_chunk()?))
}

/// The request for this address on the moved interface. config-linux.md: permanent ones of global scope are kept, the
/// others mean something only where they were made.
fn kept(address: &[u8], index: u32) -> Option<Vec<u8>> {
    let [family, prefix, flags, scope] = *address.first_chunk()?;
    if flags & IFA_F_PERMANENT == 0 || scope != RT_SCOPE_UNIVERSE {
        return None;
    }
    let mut request = vec![family, prefix, flags, scope];
    request.extend(index.to_ne_bytes());
    for (kind, value) in attributes(&address[ADDRESS_HEADER..]) {
        // The label holds the old name; the times are the kernel's account of a permanent address.
        if kind != IFA_LABEL && kind != IFA_CACHEINFO {
            push_attribute(&mut request, kind, value);
        }
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(flags: u8, scope: u8) -> Vec<u8> {
        let mut message = vec![2, 24, flags, scope];
        message.extend(7u32.to_ne_bytes());
        push_attribute(&mut message, 1, &[10, 0, 0, 1]);
        push_attribute(&mut message, IFA_LABEL, b"eth0\0");
        push_attribute(&mut message, 8, &0x280u32.to_ne_bytes());
        message
    }

    #[test]
    fn permanent_global_addresses_are_kept_without_the_old_name() {
        let address_of = address(IFA_F_PERMANENT, RT_SCOPE_UNIVERSE);
        assert_eq!(index_of(&address_of), Some(7));
        let request = kept(&address_of, 9).unwrap();
        assert_eq!(index_of(&request), Some(9));
        let kinds: Vec<u16> = attributes(&request[ADDRESS_HEADER..]).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [1, 8]);
    }

    #[test]
    fn others_are_not() {
        const RT_SCOPE_LINK: u8 = 253;
        assert_eq!(kept(&address(0, RT_SCOPE_UNIVERSE), 9), None);
        assert_eq!(kept(&address(IFA_F_PERMANENT, RT_SCOPE_LINK), 9), None);
        assert_eq!(kept(&[2, 24], 9), None);
    }
}

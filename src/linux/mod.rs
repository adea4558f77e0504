//! How a container is made, joined, limited and ended.

pub mod about;
pub mod arena;
mod attributes;
mod capabilities;
pub mod cgroup;
pub mod confine;
pub mod create;
pub mod criu;
mod enter;
pub mod exec;
pub mod fds;
mod first;
pub mod foreground;
mod guest_filter;
mod guest_landlock;
mod guest_tree;
pub mod hooks;
mod init;
#[cfg(test)]
pub mod intruder;
mod kernel_file;
mod labels;
pub mod lifecycle;
pub mod namespaces;
mod netdev;
mod netlink;
pub mod notify;
mod pid1;
mod process;
pub mod rdt;
pub mod rootfs;
pub mod seal;
mod seccomp;
mod spawn;
mod sync;
pub mod sys;
pub mod terminal;

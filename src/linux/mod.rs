//! How a container is made, joined, limited and ended.

pub mod about;
pub mod cgroup;
pub mod confine;
pub mod foreground;
pub mod guest_tree;
pub mod lifecycle;
pub mod pid1;
pub mod seccomp;
pub mod sys;
pub mod terminal;

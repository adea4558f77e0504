//! Real containers through the real binary. `RUNW_TEST_RUNTIME=/usr/bin/runc` (or crun) points the same tests at
//! a peer: what holds for runc is what runw is held to, and where a peer differs the test says why.

mod harness;

mod annotations;
mod attacks;
mod budgets;
mod cgroups;
mod checkpoint;
mod controls;
mod debian;
mod devices;
mod errors;
mod exec;
mod faults;
mod fds;
mod golden;
mod hardening;
mod hooks;
mod host_mounts;
mod lifecycle;
mod misuse;
mod mounts;
mod namespaces;
mod netdev;
mod notify;
mod option_words;
mod process;
mod races;
mod safety;
mod seccomp;
mod spec_support;
mod systemd;
mod terminal;
mod unified;
mod verbs;
mod wasm;
mod wasm_cache;
mod wasm_files;
mod wasm_hostile;
mod wasm_http;
mod wasm_keyvalue;
mod wasm_limits;
mod wasm_network;
mod wasm_process;
mod wasm_selection;
mod wasm_serve;

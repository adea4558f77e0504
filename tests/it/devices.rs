//! Device nodes: the ones every container has, the configuration's own, and what is there already.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::json;

use crate::harness::{Bundle, Container, Kind, Verdict, differs, nothing_left, run, runw_only, supervised};

fn output_of(bundle: Bundle) -> String {
    Container::new(bundle).run().ok().out
}

#[test]
fn devices_and_links_of_every_container() {
    let out = output_of(Bundle::sh(
        "for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$d; done; \
         for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done",
    ));
    let numbers = ["null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"];
    for (line, number) in out.lines().zip(numbers) {
        let (name, numbers) = number.split_once(' ').expect("two words");
        assert_eq!(line, format!("/dev/{name} character special file {numbers} 666"));
    }
    for link in [
        "fd /proc/self/fd",
        "stdin /proc/self/fd/0",
        "stdout /proc/self/fd/1",
        "stderr /proc/self/fd/2",
        "ptmx pts/ptmx",
    ] {
        assert!(out.lines().any(|l| l == link), "{link} is not in {out}");
    }
}

#[test]
fn devices_of_the_configuration() {
    let out = output_of(Bundle::sh("stat -c '%F %t:%T %a %u:%g' /dev/mine /dev/sub/dir/blk /dev/pipe").edit(|c| {
        c["linux"]["devices"] = json!([
            {"path": "/dev/mine", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/dev/sub/dir/blk", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600, "uid": 0, "gid": 0},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
        ]);
    }));
    assert_eq!(
        out,
        "character special file a:e5 640 7:8\nblock special file 7:3 600 0:0\nfifo 0:0 622 0:0\n"
    );
}

/// mknod(2): what one makes is one's own, and of the group of a directory that hands its own on.
#[test]
fn a_device_is_its_owner_s_whoever_makes_it() {
    let bundle = || {
        Bundle::sh("stat -c '%u:%g' /dev/null /dev/seven /dev/sub/zero; stat -c %a:%g /dev").edit(|c| {
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            let dev = mounts.iter_mut().find(|mount| mount["destination"] == "/dev").expect("/dev");
            dev["options"] = json!(["nosuid", "strictatime", "mode=2755", "gid=7"]);
            c["linux"]["devices"] = json!([
                {"path": "/dev/seven", "type": "c", "major": 1, "minor": 5, "uid": 0, "gid": 7},
                {"path": "/dev/sub/zero", "type": "c", "major": 1, "minor": 5, "uid": 0, "gid": 0},
            ]);
        })
    };
    for group in [0, 9] {
        let c = Container::new(bundle());
        assert_eq!(
            run(c.run_command(&[]).gid(group)).ok().out,
            "0:0\n0:7\n0:0\n2755:7\n",
            "as group {group}"
        );
    }
}

/// Also where the host has nothing at the path, or another device.
#[test]
fn a_device_in_a_user_namespace_is_the_one_asked_for() {
    if differs(Kind::Runc, "it binds what the host has at the path")
        || differs(Kind::Crun, "1.8 does so too, and makes an empty file where the host has nothing")
    {
        return;
    }
    let show = "stat -c '%F %t:%T %a %u:%g' /dev/mine /dev/zero /dev/sub/pipe; head -c3 /dev/mine | wc -c; head -c3 /dev/zero | wc -c";
    let c = Container::new(Bundle::sh(show).user_namespace().edit(|c| {
        c["linux"]["devices"] = json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o604, "uid": 10, "gid": 11},
            {"path": "/dev/zero", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o604},
        ]);
    }));
    assert_eq!(
        c.run().ok().out,
        "character special file 1:5 604 10:11\ncharacter special file 1:3 666 0:0\nfifo 0:0 604 0:0\n3\n0\n"
    );
}

#[test]
fn a_device_in_a_user_namespace_is_bound() {
    let bundle = Bundle::sh("echo x >/dev/null && head -c3 /dev/zero | wc -c").user_namespace();
    assert_eq!(Container::new(bundle).run().ok().out.trim(), "3");
}

/// A node as an image or an engine may have put it there before.
fn node(path: &Path, (major, minor): (u32, u32), mode: u32) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(mode), makedev(major, minor))
        .expect("mknod");
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
}

#[test]
fn a_node_that_is_there_already_stays_as_it_is() {
    let bundle = Bundle::sh("stat -c '%F %t:%T %a %u' /dev/mine /dev/zero; cat /dev/link").edit(|c| {
        // The image's own /dev.
        c["mounts"].as_array_mut().expect("mounts").retain(|m| {
            !m["destination"].as_str().is_some_and(|d| d.starts_with("/dev"))
        });
        let device = |path: &str| json!({"path": path, "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 5});
        c["linux"]["devices"] = json!([device("/dev/mine"), device("/dev/link")]);
    });
    let dev = bundle.rootfs().join("dev");
    node(&dev.join("mine"), (10, 200), 0o600);
    node(&dev.join("zero"), (1, 5), 0o444);
    std::os::unix::fs::symlink("text", dev.join("link")).expect("symlink");
    std::fs::write(dev.join("text"), "a file of the image\n").expect("write");
    assert_eq!(
        output_of(bundle),
        "character special file a:c8 600 0\ncharacter special file 1:5 444 0\na file of the image\n"
    );
}

#[test]
fn a_device_may_stand_outside_dev() {
    let bundle =
        Bundle::sh("stat -c '%F %t:%T %a' /opt/my/zero; head -c3 /opt/my/zero | wc -c; stat -c %a /opt/my")
            .edit(|c| {
                c["linux"]["devices"] =
                    json!([{"path": "/opt/my/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o604}]);
            });
    assert_eq!(output_of(bundle), "character special file 1:5 604\n3\n755\n");
}

/// `-v /dev:/dev`: nothing of it is made, changed or replaced.
#[test]
fn a_dev_that_is_bound_is_left_alone() {
    for destination in ["/dev", "/dev/"] {
        let bundle = Bundle::sh("ls /dev; echo x >/dev/null; cat /dev/ptmx");
        let dev = bundle.outside("dev");
        node(&dev.join("null"), (1, 3), 0o666);
        std::fs::write(dev.join("ptmx"), "the engine's\n").expect("write");
        let bundle = bundle.edit(|c| {
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|m| !m["destination"].as_str().is_some_and(|d| d.starts_with("/dev")));
            mounts.push(json!({"destination": destination, "type": "bind", "source": dev, "options": ["rbind", "rprivate"]}));
            c["linux"]["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 10, "minor": 229}]);
        });
        assert_eq!(output_of(bundle), "null\nptmx\nthe engine's\n", "{destination}");
    }
}

#[test]
fn a_read_only_dev_has_its_devices() {
    for kind in ["tmpfs", "bind"] {
        let bundle = Bundle::sh(
            "ls -d /dev/fd /dev/ptmx /dev/zero; touch /dev/x 2>/dev/null || echo refused; echo x >/dev/null && echo written",
        );
        let dev = bundle.outside("dev");
        for (name, minor) in [("null", 3), ("zero", 5)] {
            node(&dev.join(name), (1, minor), 0o666);
        }
        for (link, to) in [("fd", "/proc/self/fd"), ("ptmx", "zero")] {
            std::os::unix::fs::symlink(to, dev.join(link)).expect("symlink");
        }
        let bundle = bundle.edit(|c| {
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            if kind == "tmpfs" {
                let dev = mounts.iter_mut().find(|m| m["destination"] == "/dev").expect("/dev");
                dev["options"].as_array_mut().expect("options").push(json!("ro"));
            } else {
                mounts.retain(|m| !m["destination"].as_str().is_some_and(|d| d.starts_with("/dev")));
                mounts.push(
                    json!({"destination": "/dev", "type": "bind", "source": dev, "options": ["bind", "ro"]}),
                );
            }
        });
        let out = output_of(bundle);
        assert!(
            out.ends_with("/dev/zero\nrefused\nwritten\n") && out.contains("/dev/ptmx\n"),
            "{kind}: {out}"
        );
    }
}

/// In another container's device cgroup mknod(2) may be forbidden: then the host's node is bound.
#[test]
fn where_nodes_may_not_be_made_they_are_bound() {
    if runw_only("such a supervisor: it would have to answer a threaded runtime") {
        return;
    }
    for errno in [libc::EPERM, libc::EACCES] {
        let c = Container::new(Bundle::sh(
            "head -c3 /dev/zero | wc -c; echo x >/dev/null && echo written; grep -c ' /dev/zero ' /proc/self/mountinfo",
        ));
        let (mut running, _) = supervised(&mut c.run_command(&[]), move |call| match call.name.as_str() {
            "mknodat" if call.args[2] & u64::from(libc::S_IFMT) == u64::from(libc::S_IFCHR) => {
                Verdict::Fail(errno)
            }
            _ => Verdict::Pass,
        });
        assert_eq!(running.wait().ok().out, "3\nwritten\n1\n");
        nothing_left(&c);
    }
    // What can neither be made, as its owner has no id on the host, nor be bound is told by its name.
    let c = Container::new(
        Bundle::sh("true")
            .edit(|c| {
                c["linux"]["devices"] =
                    json!([{"path": "/dev/no-such-node", "type": "c", "major": 10, "minor": 229, "uid": 70_000}]);
            })
            .user_namespace(),
    );
    c.run().refused(&["device /dev/no-such-node"]);
    nothing_left(&c);
}

/// The kernel's own names its devpts instance; one from the configuration would be the host's.
#[test]
fn ptmx_of_the_configuration_is_not_made() {
    let ptmx = json!([{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2, "fileMode": 0o666}]);
    for bundle in [Bundle::sh("readlink /dev/ptmx"), Bundle::sh("readlink /dev/ptmx").user_namespace()] {
        assert_eq!(output_of(bundle.edit(|c| c["linux"]["devices"] = ptmx.clone())), "pts/ptmx\n");
    }
}

/// Nothing of the above reaches the host's own nodes.
#[test]
fn the_host_s_nodes_are_what_they_were() {
    let look = || {
        ["/dev/null", "/dev/zero", "/dev/ptmx", "/dev/tty"].map(|path| {
            let meta = std::fs::symlink_metadata(path).expect(path);
            (meta.file_type().is_char_device(), meta.rdev(), meta.mode(), meta.uid(), meta.gid())
        })
    };
    let before = look();
    for bundle in
        [Bundle::sh("chmod 600 /dev/zero; true"), Bundle::sh("chmod 600 /dev/zero; true").user_namespace()]
    {
        output_of(bundle);
    }
    assert_eq!(look(), before);
}

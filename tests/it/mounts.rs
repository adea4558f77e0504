//! The file systems a container sees, and every way an image could try to steer where a mount lands.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Kind, cap, differs, id_map, kind, nothing_left, run, runw_only};

/// One line of /proc/self/mountinfo as the container sees it.
struct Mount {
    options: String,
    tags: String,
    fs: String,
    super_options: String,
}

fn mount_at(mountinfo: &str, at: &str) -> Mount {
    let line = mountinfo.lines().rev().find(|l| l.split(' ').nth(4) == Some(at));
    let line = line.unwrap_or_else(|| panic!("nothing is mounted on {at}:\n{mountinfo}"));
    let (front, back) = line.split_once(" - ").expect("the separator");
    let front: Vec<&str> = front.split(' ').collect();
    let back: Vec<&str> = back.split(' ').collect();
    Mount {
        options: front[5].into(),
        tags: front[6..].join(" "),
        fs: back[0].into(),
        super_options: back[2].into(),
    }
}

fn mounts_of(bundle: Bundle) -> String {
    Container::new(bundle).run().ok().out
}

const MOUNTS: &str = "cat /proc/self/mountinfo";

#[track_caller]
fn has(options: &str, wanted: &[&str]) {
    let words: Vec<&str> = options.split(',').collect();
    for word in wanted {
        assert!(words.contains(word), "{word} is not in {options}");
    }
}

#[test]
fn the_default_configuration_s_mounts() {
    let text = mounts_of(Bundle::sh(MOUNTS));
    let table: [(&str, &str, &[&str]); 6] = [
        ("/proc", "proc", &[]),
        ("/dev", "tmpfs", &["nosuid"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec"]),
        ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    for (at, fs, options) in table {
        let m = mount_at(&text, at);
        assert_eq!(m.fs, fs, "{at}");
        has(&m.options, options);
    }
    has(&mount_at(&text, "/dev").super_options, &["mode=755", "size=65536k"]);
    has(&mount_at(&text, "/dev/pts").super_options, &["mode=620", "ptmxmode=666", "gid=5"]);
    has(&mount_at(&text, "/dev/shm").super_options, &["size=65536k"]);
}

#[test]
fn nothing_of_the_host_is_mounted() {
    let text = mounts_of(Bundle::sh(MOUNTS));
    let allowed = ["/", "/proc", "/dev", "/sys"];
    for line in text.lines() {
        let at = line.split(' ').nth(4).expect("mount point");
        let fine = allowed.iter().any(|a| at == *a || (*a != "/" && at.starts_with(&format!("{a}/"))));
        assert!(fine, "{line}");
    }
}

#[test]
fn binds_read_write_and_read_only() {
    let bundle = Bundle::sh("cat /rw/f /ro/f; echo new >/rw/f; echo no >/ro/f || echo refused");
    let (rw, ro) = (bundle.outside("rw"), bundle.outside("ro"));
    std::fs::write(rw.join("f"), "one\n").expect("write");
    std::fs::write(ro.join("f"), "two\n").expect("write");
    let c = Container::new(bundle.bind(&rw, "/rw", &["rbind"]).bind(&ro, "/ro", &["bind", "ro"]));
    let out = c.run().ok();
    assert_eq!(out.out, "one\ntwo\nrefused\n");
    assert_eq!(std::fs::read_to_string(rw.join("f")).expect("read"), "new\n");
    assert_eq!(std::fs::read_to_string(ro.join("f")).expect("read"), "two\n");
}

#[test]
fn a_single_file_is_bound() {
    let bundle = Bundle::sh("cat /etc/given /new/place; echo changed >/etc/given");
    let file = bundle.path().join("file");
    std::fs::write(&file, "content\n").expect("write");
    let c = Container::new(bundle.bind(&file, "/etc/given", &["bind"]).bind(
        &file,
        "/new/place",
        &["bind", "ro"],
    ));
    assert_eq!(c.run().ok().out, "content\ncontent\n");
    assert_eq!(std::fs::read_to_string(file).expect("read"), "changed\n");
}

#[test]
fn a_bind_s_options_are_the_mount_s() {
    let bundle = Bundle::sh(MOUNTS);
    let dir = bundle.outside("d");
    let text = mounts_of(bundle.bind(&dir, "/d", &["rbind", "nosuid", "nodev", "noexec", "ro", "noatime"]));
    has(&mount_at(&text, "/d").options, &["ro", "nosuid", "nodev", "noexec", "noatime"]);
}

/// A tmpfs inside a directory, in a mount namespace of its own, round one call of the runtime.
fn with_submount(c: &Container, dir: &Path) -> crate::harness::Out {
    let line = r#"mount -t tmpfs sub "$0/sub" && echo deep >"$0/sub/f" && exec "$@""#;
    let command = c.run_command(&[]);
    run(Command::new("unshare")
        .args(["-m", "sh", "-c", line])
        .arg(dir)
        .arg(command.get_program())
        .args(command.get_args()))
}

#[test]
fn rbind_takes_sub_mounts_and_bind_does_not() {
    for (option, wanted) in [("rbind", "deep\n"), ("bind", "none\n")] {
        let bundle = Bundle::sh("cat /d/sub/f 2>/dev/null || echo none");
        let dir = bundle.outside("d");
        std::fs::create_dir(dir.join("sub")).expect("mkdir");
        let c = Container::new(bundle.bind(&dir, "/d", &[option]));
        assert_eq!(with_submount(&c, &dir).ok().out, wanted, "{option}");
    }
}

#[test]
fn propagation_words() {
    if differs(Kind::Crun, "1.8 leaves slaves without a master here") {
        return;
    }
    let words = [
        ("rprivate", ""),
        ("private", ""),
        ("rslave", "master"),
        ("slave", "master"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
    ];
    for (word, tag) in words {
        let bundle = Bundle::sh(MOUNTS);
        let dir = bundle.outside("d");
        let c = Container::new(bundle.bind(&dir, "/d", &["rbind", word]));
        // A shared source, whatever this machine's root is: a bind of the directory on itself, made shared.
        let line = r#"mount --bind "$0" "$0" && mount --make-shared "$0" && exec "$@""#;
        let command = c.run_command(&[]);
        let out = run(Command::new("unshare")
            .args(["-m", "sh", "-c", line])
            .arg(&dir)
            .arg(command.get_program())
            .args(command.get_args()))
        .ok();
        let tags = mount_at(&out.out, "/d").tags;
        assert!(if tag.is_empty() { tags.is_empty() } else { tags.contains(tag) }, "{word}: {tags:?}");
    }
}

#[test]
fn rootfs_propagation_words() {
    for (word, tag) in [
        ("private", ""),
        ("rprivate", ""),
        ("slave", ""),
        ("rslave", ""),
        ("shared", "shared"),
        ("rshared", "shared"),
    ] {
        let text = mounts_of(Bundle::sh(MOUNTS).edit(|c| c["linux"]["rootfsPropagation"] = json!(word)));
        let tags = mount_at(&text, "/").tags;
        if !tag.is_empty() && kind() == Kind::Runw {
            assert!(tags.contains(tag), "{word}: {tags:?}");
        }
        assert!(tag == "shared" || !tags.contains("shared"), "{word}: {tags:?}");
    }
}

#[test]
fn a_tmpfs_with_its_options() {
    let text = mounts_of(Bundle::sh("stat -c '%a %u' /t; cat /proc/self/mountinfo").mount(
        "/t",
        "tmpfs",
        Path::new("tmpfs"),
        &["nosuid", "nodev", "noexec", "size=1024k", "mode=1750", "uid=3"],
    ));
    assert!(text.starts_with("1750 3\n"), "{text}");
    let m = mount_at(&text, "/t");
    has(&m.options, &["nosuid", "nodev", "noexec"]);
    has(&m.super_options, &["size=1024k", "mode=1750", "uid=3"]);
}

#[test]
fn tmpcopyup_keeps_what_the_image_has() {
    let bundle = Bundle::sh("cat /data/f /data/sub/g; touch /data/new");
    std::fs::create_dir_all(bundle.rootfs().join("data/sub")).expect("mkdir");
    std::fs::write(bundle.rootfs().join("data/f"), "f\n").expect("write");
    std::fs::write(bundle.rootfs().join("data/sub/g"), "g\n").expect("write");
    let c = Container::new(bundle.mount("/data", "tmpfs", Path::new("tmpfs"), &["tmpcopyup", "size=1m"]));
    assert_eq!(c.run().ok().out, "f\ng\n");
    assert!(!c.bundle.rootfs().join("data/new").exists());
}

#[test]
fn an_order_of_mounts_one_over_another() {
    let bundle = Bundle::sh("cat /a/b/f; ls /a");
    let dir = bundle.outside("d");
    std::fs::write(dir.join("f"), "inner\n").expect("write");
    let c =
        Container::new(bundle.mount("/a", "tmpfs", Path::new("tmpfs"), &[]).bind(&dir, "/a/b", &["bind"]));
    assert_eq!(c.run().ok().out, "inner\nb\n");
}

#[test]
fn a_read_only_root() {
    let bundle = Bundle::sh("echo x >/f 2>/dev/null || echo refused; echo x >/tmp/f 2>/dev/null || echo refused; echo x >/dev/shm/f && echo shm")
        .edit(|c| c["root"]["readonly"] = json!(true));
    assert_eq!(Container::new(bundle).run().ok().out, "refused\nrefused\nshm\n");
}

#[test]
fn a_read_only_root_cannot_be_remounted() {
    let bundle = Bundle::sh("mount -o remount,rw / 2>/dev/null && touch /f && echo writable")
        .edit(|c| c["root"]["readonly"] = json!(true));
    let c = Container::new(bundle);
    assert!(!c.run().out.contains("writable"));
}

#[test]
fn masked_paths_hide() {
    let bundle = Bundle::sh(
        "cat /secret; ls /hidden; cat /proc/kcore | head -c1 | wc -c; echo x >/secret; cat /secret",
    )
    .edit(|c| c["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/proc/kcore", "/no/such/path"]));
    std::fs::write(bundle.rootfs().join("secret"), "SECRET\n").expect("write");
    std::fs::create_dir(bundle.rootfs().join("hidden")).expect("mkdir");
    std::fs::write(bundle.rootfs().join("hidden/f"), "SECRET\n").expect("write");
    let c = Container::new(bundle);
    assert_eq!(c.run().ok().out.trim(), "0");
    assert_eq!(std::fs::read_to_string(c.bundle.rootfs().join("secret")).expect("read"), "SECRET\n");
}

#[test]
fn read_only_paths_cannot_be_written() {
    let bundle = Bundle::sh("echo x >/etc/passwd || echo file; touch /var/f || echo dir; echo 1 >/proc/sys/net/ipv4/ip_forward || echo proc; cat /etc/group >/dev/null && echo readable")
        .edit(|c| c["linux"]["readonlyPaths"] = json!(["/etc/passwd", "/var", "/proc/sys", "/no/such/path"]));
    assert_eq!(Container::new(bundle).run().ok().out, "file\ndir\nproc\nreadable\n");
}

/// A link of the image may point anywhere; the mount must land inside the root file system all the same.
#[test]
fn links_of_the_image_do_not_lead_out() {
    for link in ["/", "/etc", "../../../../../../../../..", "/proc/1/root", "/proc/self/cwd"] {
        let host = tempfile::tempdir().expect("tempdir");
        let bundle = Bundle::sh("true").mount("/trap/runw-test-target", "tmpfs", Path::new("tmpfs"), &[]);
        symlink(link, bundle.rootfs().join("trap")).expect("symlink");
        let c = Container::new(bundle);
        let out = c.run();
        assert!(
            !Path::new("/runw-test-target").exists() && !Path::new("/etc/runw-test-target").exists(),
            "{link}: {out:?}"
        );
        assert!(!out.err.contains("panic"), "{link}: {out:?}");
        nothing_left(&c);
        drop(host);
    }
}

#[test]
fn a_link_to_the_outside_resolves_inside() {
    let bundle = Bundle::sh("cat /real/dir/f");
    let dir = bundle.outside("d");
    std::fs::write(dir.join("f"), "here\n").expect("write");
    std::fs::create_dir_all(bundle.rootfs().join("real/dir")).expect("mkdir");
    symlink("/real", bundle.rootfs().join("link")).expect("symlink");
    let c = Container::new(bundle.bind(&dir, "/link/dir", &["bind"]));
    assert_eq!(c.run().ok().out, "here\n");
}

/// Debian's /var/run -> /run in an image without /run: the link is completed inside the root, and a `..` behind what
/// is missing takes its name back (runc: securejoin).
#[test]
fn a_dangling_link_to_a_mount_point_is_completed_inside() {
    if differs(Kind::Crun, "it refuses a `..` behind what is missing") {
        return;
    }
    let bundle = Bundle::sh("test -d /gone/x && test -d /new/dir && cat /else/where/file");
    let rootfs = bundle.rootfs();
    std::fs::create_dir(rootfs.join("links")).expect("mkdir");
    symlink("/gone", rootfs.join("links/gone")).expect("symlink");
    symlink("../else/where/file", rootfs.join("links/file")).expect("symlink");
    let file = bundle.outside("d").join("f");
    std::fs::write(&file, "here\n").expect("write");
    let tmpfs = Path::new("tmpfs");
    let bundle = bundle
        .mount("/links/gone/x", "tmpfs", tmpfs, &[])
        .mount("/missing/../new/dir", "tmpfs", tmpfs, &[])
        .bind(&file, "/links/file", &["bind"]);
    let c = Container::new(bundle);
    assert_eq!(c.run().ok().out, "here\n");
    assert!(rootfs.join("gone/x").is_dir() && !rootfs.join("missing").exists());
}

/// CVE-2019-16884, CVE-2023-27561, CVE-2024-45310 and their kind: a file of the image where a kernel path must be.
#[test]
fn proc_that_is_a_link_or_a_file_is_refused() {
    for plant in ["link", "file"] {
        let bundle = Bundle::sh("echo ran");
        let proc = bundle.rootfs().join("proc");
        std::fs::remove_dir(&proc).expect("rmdir");
        if plant == "link" {
            symlink("/tmp", &proc).expect("symlink");
        } else {
            std::fs::write(&proc, "x").expect("write");
        }
        let c = Container::new(bundle);
        let out = c.run();
        assert!(out.code != 0 && !out.out.contains("ran"), "{plant}: {out:?}");
        nothing_left(&c);
    }
}

#[test]
fn a_masked_path_that_is_a_link_masks_nothing_outside() {
    let outside = tempfile::tempdir().expect("tempdir");
    std::fs::write(outside.path().join("f"), "host\n").expect("write");
    let bundle = Bundle::sh("true").edit(|c| c["linux"]["maskedPaths"] = json!(["/evil/f"]));
    symlink(outside.path(), bundle.rootfs().join("evil")).expect("symlink");
    let c = Container::new(bundle);
    c.run();
    assert_eq!(std::fs::read_to_string(outside.path().join("f")).expect("read"), "host\n");
    nothing_left(&c);
}

/// CVE-2025-31133 and CVE-2025-52565: /dev/null and /dev/console of the image are not what is bound from.
#[test]
fn a_planted_dev_null_masks_with_the_real_one() {
    if differs(Kind::Runc, "1.1.5 has the hole") || differs(Kind::Crun, "1.8 has the hole") {
        return;
    }
    let bundle = Bundle::sh("head -c 100 /secret; echo planted >/secret").edit(|c| {
        c["linux"]["maskedPaths"] = json!(["/secret"]);
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| !m["destination"].as_str().is_some_and(|d| d.starts_with("/dev")));
    });
    std::fs::write(bundle.rootfs().join("secret"), "SECRET\n").expect("write");
    symlink("/etc/passwd", bundle.rootfs().join("dev/null")).expect("symlink");
    let c = Container::new(bundle);
    let out = c.run();
    assert!(!out.out.contains("SECRET"), "{out:?}");
    let passwd = std::fs::read_to_string(c.bundle.rootfs().join("etc/passwd")).expect("read");
    assert!(!passwd.contains("planted"), "the mask leads to /etc/passwd: {out:?}");
    nothing_left(&c);
}

#[test]
fn mount_points_are_made_with_sane_modes() {
    if differs(Kind::Crun, "1.8 makes them sticky") {
        return;
    }
    let bundle = Bundle::sh("stat -c '%a %F' /made /made/by /made/by/runtime /file/made");
    let dir = bundle.outside("d");
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("chmod");
    let file = bundle.path().join("f");
    std::fs::write(&file, "").expect("write");
    let out =
        mounts_of(bundle.bind(&dir, "/made/by/runtime", &["bind"]).bind(&file, "/file/made", &["bind"]));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..3], ["755 directory"; 3], "{out}");
    assert!(lines[3].ends_with("regular empty file"), "{out}");
}

#[test]
fn cgroup_mount_shows_only_the_container() {
    let bundle = Bundle::sh("cat /proc/self/mountinfo; ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; echo 1 >/sys/fs/cgroup/pids/pids.max || echo refused")
        .edit(|c| c["linux"]["resources"]["pids"] = json!({"limit": 77}));
    let mut bundle = bundle;
    let has_mount = bundle.config["mounts"].as_array().expect("mounts").iter().any(|m| m["type"] == "cgroup");
    if !has_mount {
        bundle = bundle.mount(
            "/sys/fs/cgroup",
            "cgroup",
            Path::new("cgroup"),
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        );
    }
    let out = mounts_of(bundle);
    assert!(out.contains("\n77\n"), "the container's own limit is not at the top of its cgroup mount: {out}");
    assert!(out.contains("refused"), "{out}");
}

#[test]
fn a_sticky_world_writable_source_is_no_trap() {
    let bundle = Bundle::sh("stat -c %a /t; echo x >/t/f && cat /t/f");
    let dir = bundle.outside("t");
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o1777)).expect("chmod");
    let out = mounts_of(bundle.bind(&dir, "/t", &["rbind", "rw"]).edit(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["process"]["capabilities"] = cap(&[]);
    }));
    assert_eq!(out, "1777\nx\n");
}

/// runc's own test (mounts.bats, "mount order, container bind-mount source"): the last source exists only once the
/// mounts before it are made, and the tree below it has them all.
#[test]
fn a_bind_s_source_may_be_what_the_mounts_before_it_made() {
    if differs(Kind::Crun, "it opens all sources first") {
        return;
    }
    for (user, mapped) in [(false, false), (true, false), (false, true), (true, true)] {
        if (user || mapped) && differs(Kind::Runc, "1.1 opens all sources first") {
            return;
        }
        let mut bundle =
            Bundle::sh("cat /final/in/there/f; grep -c ' /final/in/there ' /proc/self/mountinfo");
        if user {
            bundle = bundle.user_namespace();
        }
        let (first, second, root) = (bundle.outside("first"), bundle.outside("second"), bundle.rootfs());
        std::fs::create_dir_all(root.join("final")).expect("mkdir");
        std::fs::create_dir(first.join("in")).expect("mkdir");
        std::fs::create_dir(second.join("there")).expect("mkdir");
        std::fs::write(second.join("there/f"), "second\n").expect("write");
        let there = root.join("mnt/in/there");
        bundle = bundle.bind(&first, "/mnt", &["bind"]).bind(&second, "/mnt/in", &["bind"]).bind(
            &there,
            "/mnt/in/there",
            &["bind"],
        );
        let c = Container::new(bundle.bind(&root.join("mnt"), "/final", &["rbind"]).edit(|c| {
            for mount in c["mounts"].as_array_mut().expect("mounts").iter_mut().rev().take(2) {
                if mapped {
                    (mount["uidMappings"], mount["gidMappings"]) = (id_map(0, 0, 5000), id_map(0, 0, 5000));
                }
            }
        }));
        assert_eq!(c.run().ok().out, "second\n1\n", "{user} {mapped}");
    }
}

#[test]
fn copy_symlink_makes_the_link_and_nothing_else() {
    if runw_only("copy-symlink (crun: since 1.10)") {
        return;
    }
    for user in [false, true] {
        let mut bundle =
            Bundle::sh("readlink /new/link; readlink /there; cat /file; grep -c link /proc/self/mountinfo");
        if user {
            bundle = bundle.user_namespace();
        }
        let outside = bundle.outside("d");
        std::os::unix::fs::symlink("no/where", outside.join("link")).expect("symlink");
        std::os::unix::fs::symlink("no/where", bundle.rootfs().join("there")).expect("symlink");
        std::fs::write(outside.join("file"), "plain\n").expect("write");
        std::os::unix::fs::chown(bundle.rootfs(), Some(100_000), Some(100_000)).expect("chown");
        let copied = |bundle: Bundle, source: &str, to: &str| {
            bundle.bind(&outside.join(source), to, &["bind", "copy-symlink"])
        };
        let bundle = copied(copied(bundle, "link", "/new/link"), "link", "/there");
        let c = Container::new(copied(bundle, "file", "/file"));
        let out = c.run();
        assert_eq!(out.out, "no/where\nno/where\nplain\n0\n", "{user} {}", out.err);
        let c = Container::new(copied(Bundle::sh("true"), "link", "/etc/passwd"));
        c.run().refused(&["/etc/passwd"]);
    }
    let tmpfs = Bundle::sh("true").mount("/mnt", "tmpfs", Path::new("tmpfs"), &["copy-symlink"]);
    Container::new(tmpfs).run().refused(&["copy-symlink is for a bind"]);
}

#[test]
fn an_idmapped_bind() {
    if differs(Kind::Runc, "1.1 has no idmapped mounts")
        || differs(Kind::Crun, "1.8 takes them by an option of its own")
    {
        return;
    }
    let bundle = Bundle::sh("stat -c %u:%g /mnt/f; touch /mnt/new").user_namespace();
    let dir = bundle.outside("d");
    std::fs::write(dir.join("f"), "x").expect("write");
    std::os::unix::fs::chown(dir.join("f"), Some(5), Some(6)).expect("chown");
    let maps = (bundle.config["linux"]["uidMappings"].clone(), bundle.config["linux"]["gidMappings"].clone());
    let c = Container::new(bundle.edit(|c| {
        let mount: Value = json!({"destination": "/mnt", "type": "bind", "source": dir, "options": ["bind"],
            "uidMappings": maps.0, "gidMappings": maps.1});
        c["mounts"].as_array_mut().expect("mounts").push(mount);
    }));
    assert_eq!(c.run().ok().out, "5:6\n");
    assert_eq!(std::fs::metadata(c.bundle.path().join("d/new")).expect("stat").uid(), 0);
}

fn idmaps_are_ours_to_test() -> bool {
    !differs(Kind::Runc, "1.1 has no idmapped mounts")
        && !differs(Kind::Crun, "1.8 takes them by an option of its own")
}

/// A bind of a directory with the file `f` of 5:6, mapped by the options and maps given.
fn mapped_bind(script: &str, prepare: impl FnOnce(Bundle) -> Bundle, fields: &Value) -> Container {
    let bundle = prepare(Bundle::sh(script));
    let dir = bundle.outside("d");
    std::fs::create_dir(dir.join("sub")).expect("mkdir");
    std::fs::write(dir.join("f"), "x").expect("write");
    std::os::unix::fs::chown(dir.join("f"), Some(5), Some(6)).expect("chown");
    Container::new(bundle.edit(|c| {
        let mut mount = json!({"destination": "/mnt", "type": "bind", "source": dir});
        mount.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
        c["mounts"].as_array_mut().expect("mounts").push(mount);
    }))
}

fn maps(options: &[&str], uids: Value, gids: Value) -> Value {
    json!({"options": options, "uidMappings": uids, "gidMappings": gids})
}

#[test]
fn an_idmap_without_a_user_namespace() {
    if !idmaps_are_ours_to_test() {
        return;
    }
    let fields = maps(&["bind", "idmap"], id_map(0, 1000, 100), id_map(0, 2000, 100));
    let c = mapped_bind("stat -c %u:%g /mnt/f", |bundle| bundle, &fields);
    assert_eq!(c.run().ok().out, "1005:2006\n");
}

#[test]
fn a_ridmap_takes_sub_mounts_and_an_idmap_does_not() {
    if !idmaps_are_ours_to_test() {
        return;
    }
    for (option, wanted) in [("idmap", "1005 0\n"), ("ridmap", "1005 1000\n")] {
        let fields = maps(&["rbind", option], id_map(0, 1000, 100), id_map(0, 1000, 100));
        let c = mapped_bind("echo $(stat -c %u /mnt/f /mnt/sub/f)", |bundle| bundle, &fields);
        let dir = c.bundle.path().join("d");
        assert_eq!(with_submount(&c, &dir).ok().out, wanted, "{option}");
    }
}

#[test]
fn an_idmap_by_the_container_s_own_mappings() {
    if !idmaps_are_ours_to_test() {
        return;
    }
    let script = "stat -c %u:%g /mnt/f; touch /mnt/new";
    let c = mapped_bind(script, Bundle::user_namespace, &json!({"options": ["bind", "idmap"]}));
    assert_eq!(c.run().ok().out, "5:6\n");
    assert_eq!(std::fs::metadata(c.bundle.path().join("d/new")).expect("stat").uid(), 0);
    // And by those of a user namespace that is joined.
    let owner = Container::up(Bundle::sh("exec sleep 100").user_namespace());
    let path = format!("/proc/{}/ns/user", owner.pid());
    let joins = |bundle: Bundle| bundle.namespace("user", Some(Path::new(&path)));
    let c = mapped_bind(script, joins, &json!({"options": ["bind", "idmap"]}));
    assert_eq!(c.run().ok().out, "5:6\n");
}

#[test]
fn idmaps_that_cannot_be() {
    if !idmaps_are_ours_to_test() {
        return;
    }
    let map = || id_map(0, 1000, 100);
    for (fields, wanted) in [
        (json!({"options": ["bind", "idmap"]}), "must have both uid and gid mappings specified"),
        (maps(&["bind"], map(), json!([])), "must have both uid and gid mappings specified"),
        (maps(&["bind"], map(), id_map(0, 1, 0)), "gidMappings: [0].size must not be 0"),
        (
            json!({"type": "tmpfs", "uidMappings": map(), "gidMappings": map()}),
            "id-mapped mounts are only supported for bind-mounts",
        ),
        // Not every file system can be mapped: procfs belongs to a user namespace.
        (
            json!({"source": "/proc", "options": ["bind"], "uidMappings": map(), "gidMappings": map()}),
            "mount /mnt: set the id mapping",
        ),
    ] {
        let c = mapped_bind("true", |bundle| bundle, &fields);
        let out = c.run();
        assert!(out.code == 1 && out.err.contains(wanted), "{fields}: {out:?}");
        nothing_left(&c);
    }
}

#[test]
fn recursive_attributes() {
    if differs(Kind::Runc, "1.1.5 knows no rro") {
        return;
    }
    let bundle = Bundle::sh("echo x >/d/sub/f 2>/dev/null || echo refused");
    let dir = bundle.outside("d");
    std::fs::create_dir(dir.join("sub")).expect("mkdir");
    let c = Container::new(bundle.bind(&dir, "/d", &["rbind", "rro"]));
    assert_eq!(with_submount(&c, &dir).ok().out, "refused\n");
}

#[test]
fn mountinfo_has_the_order_of_the_configuration() {
    let bundle = Bundle::sh(MOUNTS);
    let source = bundle.outside("source");
    let places = ["/m/tmpfs", "/m/bind", "/m/tmpfs2", "/m/bind2"];
    let bundle = bundle
        .mount(places[0], "tmpfs", Path::new("tmpfs"), &[])
        .bind(&source, places[1], &["bind"])
        .mount(places[2], "tmpfs", Path::new("tmpfs"), &[])
        .bind(&source, places[3], &["rbind"]);
    let text = mounts_of(bundle);
    let points: Vec<&str> =
        text.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with("/m/")).collect();
    assert_eq!(points, places);
}

/// The caller's mounts round one call of the runtime: `line` sees the bundle as $0.
fn with_mounts(line: &str, c: &Container) -> crate::harness::Out {
    let command = c.run_command(&[]);
    run(Command::new("unshare")
        .args(["-m", "sh", "-ec", &format!("{line}\nexec \"$@\"")])
        .arg(c.bundle.path())
        .arg(command.get_program())
        .args(command.get_args()))
}

/// What the host's mount had when the user namespace copied it is locked: words add to it, and cannot take from it.
#[test]
fn a_user_namespace_keeps_the_flags_of_a_bind_s_source() {
    if differs(Kind::Runc, "1.1 asks for less than is locked, and fails")
        || differs(Kind::Crun, "1.8 loses them")
    {
        return;
    }
    let line = r#"mount -t tmpfs -o ro,nosuid,nodev,noexec s "$0/d""#;
    for (options, refused) in
        [(&["bind", "nosymfollow"][..], false), (&["bind", "ro"], false), (&["bind", "rw"], true)]
    {
        let bundle = Bundle::sh(MOUNTS).user_namespace();
        std::fs::create_dir(bundle.rootfs().join("d")).expect("a mount point");
        let dir = bundle.outside("d");
        let c = Container::new(bundle.bind(&dir, "/d", options));
        let out = with_mounts(line, &c);
        if refused {
            out.refused(&["mount /d", "set mount attributes"]);
        } else {
            has(&mount_at(&out.ok().out, "/d").options, &["ro", "nosuid", "nodev", "noexec"]);
        }
        nothing_left(&c);
    }
}

/// kubelet's volumes: only the host's root may go there, the container's may use what is bound.
#[test]
fn a_source_that_the_user_namespace_cannot_reach() {
    if differs(Kind::Crun, "1.8 cannot") {
        return;
    }
    let bundle = Bundle::sh("cat /vol/f /file; echo new >/vol/new; ls /vol").user_namespace();
    std::fs::create_dir(bundle.rootfs().join("vol")).expect("a mount point");
    std::fs::write(bundle.rootfs().join("file"), "").expect("a mount point");
    let closed = bundle.outside("closed");
    std::fs::create_dir(closed.join("vol")).expect("mkdir");
    std::fs::write(closed.join("vol/f"), "in the volume\n").expect("write");
    std::fs::write(closed.join("file"), "a file\n").expect("write");
    std::os::unix::fs::chown(closed.join("vol"), Some(100_000), Some(100_000)).expect("chown");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("chmod");
    let c = Container::new(bundle.bind(&closed.join("vol"), "/vol", &["rbind"]).bind(
        &closed.join("file"),
        "/file",
        &["bind", "ro"],
    ));
    assert_eq!(c.run().ok().out, "in the volume\na file\nf\nnew\n");
    assert_eq!(std::fs::metadata(closed.join("vol/new")).expect("stat").uid(), 100_000);
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers() {
    if differs(Kind::Crun, "1.8 does not look") {
        return;
    }
    let bundle = Bundle::sh("stat -c '%a %u' /tmp /var /private /new")
        .mount("/tmp", "tmpfs", Path::new("t"), &["nosuid"])
        .mount("/var", "tmpfs", Path::new("t"), &["size=64k"])
        .mount("/private", "tmpfs", Path::new("t"), &[])
        .mount("/new", "tmpfs", Path::new("t"), &[]);
    let private = bundle.rootfs().join("private");
    std::fs::create_dir(&private).expect("mkdir");
    std::fs::set_permissions(&private, PermissionsExt::from_mode(0o2750)).expect("chmod");
    std::os::unix::fs::chown(&private, Some(7), Some(7)).expect("chown");
    std::fs::set_permissions(&private, PermissionsExt::from_mode(0o2750)).expect("chmod");
    assert_eq!(mounts_of(bundle), "1777 0\n755 0\n2750 0\n1777 0\n");
    if differs(Kind::Runc, "1.1.5 chmods it back") {
        return;
    }
    let asked = Bundle::sh("stat -c %a /var /etc; ls /etc/passwd")
        .mount("/var", "tmpfs", Path::new("t"), &["mode=700"])
        .mount("/etc", "tmpfs", Path::new("t"), &["tmpcopyup", "mode=711"]);
    assert_eq!(mounts_of(asked), "700\n711\n/etc/passwd\n");
}

#[test]
fn tmpcopyup_keeps_modes_owners_links_and_times() {
    if runw_only("all of them: 1.1 fails at a FIFO, 1.8 gives the directory another mode") {
        return;
    }
    let bundle = Bundle::sh(
        "cd /data; stat -c '%n %a %u:%g %Y %F' f sub sub/g fifo; readlink link; stat -c '%a %u' .",
    );
    let data = bundle.rootfs().join("data");
    std::fs::create_dir_all(data.join("sub")).expect("mkdir");
    for (name, mode) in [("f", 0o4751), ("sub/g", 0o600)] {
        std::fs::write(data.join(name), name).expect("write");
        std::os::unix::fs::chown(data.join(name), Some(5), Some(6)).expect("chown");
        std::fs::set_permissions(data.join(name), PermissionsExt::from_mode(mode)).expect("chmod");
    }
    std::os::unix::fs::chown(data.join("sub"), Some(8), Some(9)).expect("chown");
    std::fs::set_permissions(data.join("sub"), PermissionsExt::from_mode(0o2775)).expect("chmod");
    symlink("/no/where", data.join("link")).expect("symlink");
    let touch = Command::new("sh")
        .args(["-ec", "mkfifo -m 640 fifo; touch -hd @1000000000 f sub/g"])
        .current_dir(&data)
        .status();
    assert!(touch.expect("sh").success());
    std::os::unix::fs::chown(&data, Some(3), Some(3)).expect("chown");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o751)).expect("chmod");
    let out = mounts_of(bundle.mount("/data", "tmpfs", Path::new("tmpfs"), &["tmpcopyup"]));
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[1].starts_with("sub 2775 8:9 "), "{out}");
    assert_eq!(lines[0], "f 4751 5:6 1000000000 regular file");
    assert_eq!(lines[2], "sub/g 600 5:6 1000000000 regular file");
    assert!(lines[3].starts_with("fifo 640 ") && lines[3].ends_with("fifo"), "{out}");
    assert_eq!(lines[4], "/no/where");
    // The mount's own directory is root's, with the mode of the one it covers.
    assert_eq!(lines[5], "751 0");
}

/// Read-only for the container; the runtime has still to put the next mounts into it.
#[test]
fn a_read_only_tmpfs_takes_later_mounts() {
    let bundle = Bundle::sh(
        "cat /run/secrets/token; touch /run/x 2>/dev/null || echo refused; grep ' /run ' /proc/self/mountinfo",
    );
    let dir = bundle.outside("secrets");
    std::fs::write(dir.join("token"), "secret\n").expect("write");
    let bundle = bundle.mount("/run", "tmpfs", Path::new("tmpfs"), &["nosuid", "ro", "size=64k"]).bind(
        &dir,
        "/run/secrets",
        &["bind", "ro"],
    );
    let out = mounts_of(bundle);
    assert!(out.starts_with("secret\nrefused\n"), "{out}");
    has(&mount_at(&out, "/run").options, &["ro", "nosuid"]);
}

#[test]
fn several_options_in_one_word() {
    let text = mounts_of(Bundle::sh(MOUNTS).mount(
        "/n",
        "tmpfs",
        Path::new("t"),
        &["mode=700,size=64k", "nr_inodes=50"],
    ));
    has(&mount_at(&text, "/n").super_options, &["mode=700", "size=64k", "nr_inodes=50"]);
}

/// Layers side by side below `layers`, the names of which make the option as long as asked for.
fn overlay(length: usize, options: &[&str]) -> Bundle {
    let bundle = Bundle::sh(
        "cat /o/one /o/two; echo new >/o/new 2>/dev/null || echo refused; grep ' /o ' /proc/self/mountinfo",
    );
    let layers = bundle.outside("layers");
    for dir in ["upper", "work"] {
        std::fs::create_dir(layers.join(dir)).expect("mkdir");
    }
    let lower: Vec<String> = ["one", "two"]
        .iter()
        .map(|name| {
            let dir = layers.join(format!("{name}{}", "x".repeat(length)));
            std::fs::create_dir(&dir).expect("mkdir");
            std::fs::write(dir.join(name), format!("{name}\n")).expect("write");
            dir.to_str().expect("utf-8").to_owned()
        })
        .collect();
    let words = [
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", layers.join("upper").display()),
        format!("workdir={}", layers.join("work").display()),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).chain(options.iter().copied()).collect();
    // The image's own directory, and so the bundle, may be on an overlay itself, which cannot be a layer of another.
    bundle.mount("/o", "overlay", Path::new("overlay"), &words)
}

/// fsconfig(2) takes 255 bytes, a few layers of an engine are more.
#[test]
fn an_overlay_with_short_and_long_options() {
    for (length, options, wanted) in [
        (0, &[][..], "one\ntwo\n"),
        (120, &[], "one\ntwo\n"),
        (0, &["ro", "nodev"], "one\ntwo\nrefused\n"),
        (120, &["ro", "nodev"], "one\ntwo\nrefused\n"),
    ] {
        let c = Container::new(overlay(length, options));
        // A file system of its own for the layers: they are moved onto it.
        let out = with_mounts(
            r#"mkdir "$0/fs"; mount -t tmpfs fs "$0/fs"; cp -a "$0/layers/." "$0/fs"; mount --bind "$0/fs" "$0/layers""#,
            &c,
        );
        let text = out.ok().out;
        assert!(text.starts_with(wanted), "{length} {options:?}: {text}");
        let mount = mount_at(&text, "/o");
        assert_eq!(mount.fs, "overlay");
        has(&mount.options, if options.is_empty() { &["rw"] } else { options });
    }
}

#[test]
fn a_remount_changes_what_is_there() {
    let tmpfs = Path::new("tmpfs");
    let bundle = Bundle::sh("cat /d/f; touch /d/x 2>/dev/null || echo refused; cat /proc/self/mountinfo");
    let dir = bundle.outside("d");
    std::fs::write(dir.join("f"), "kept\n").expect("write");
    let text = mounts_of(
        bundle
            .bind(&dir, "/d", &["bind"])
            .bind(&dir, "/d", &["bind", "remount", "ro", "nodev"])
            .mount("/n", "tmpfs", tmpfs, &["size=64k"])
            .mount("/n", "tmpfs", tmpfs, &["remount", "nosuid", "noatime", "size=128k"]),
    );
    assert!(text.starts_with("kept\nrefused\n"), "{text}");
    has(&mount_at(&text, "/d").options, &["ro", "nodev"]);
    assert_eq!(text.lines().filter(|line| line.contains(" /d ")).count(), 1, "{text}");
    let n = mount_at(&text, "/n");
    has(&n.options, &["nosuid", "noatime"]);
    has(&n.super_options, &["size=128k"]);
    for destination in ["/tmp", "/no/such/place"] {
        let c = Container::new(Bundle::sh("true").mount(destination, "tmpfs", tmpfs, &["remount", "ro"]));
        let out = c.run();
        assert_ne!(out.code, 0, "{out:?}");
        if kind() == Kind::Runw {
            out.refused(&[&format!("mount {destination}"), "remount"]);
        }
        nothing_left(&c);
    }
}

#[test]
fn a_mount_on_the_root_is_the_root() {
    if differs(Kind::Crun, "1.8 cannot") {
        return;
    }
    let bundle = Bundle::sh("cat /only-here; ls /proc/self/status; touch /new");
    let other = bundle.path().join("other");
    let copied = Command::new("cp").arg("-a").args([bundle.rootfs(), other.clone()]).status();
    assert!(copied.expect("cp").success());
    std::fs::write(other.join("only-here"), "the other root\n").expect("write");
    let c = Container::new(bundle.edit(|c| {
        let mount = json!({"destination": "/", "type": "bind", "source": other, "options": ["rbind"]});
        c["mounts"].as_array_mut().expect("mounts").insert(0, mount);
    }));
    assert_eq!(c.run().ok().out, "the other root\n/proc/self/status\n");
    assert!(c.bundle.path().join("other/new").exists() && !c.bundle.rootfs().join("new").exists());
    nothing_left(&c);
}

#[test]
fn pseudo_terminals_are_the_container_s_own() {
    let out = mounts_of(Bundle::sh("ls /dev/pts; readlink /dev/ptmx; echo >/dev/ptmx && echo opened"));
    assert_eq!(out, "ptmx\npts/ptmx\nopened\n");
}

#[test]
fn message_queues_are_the_ipc_namespace_s() {
    let queue = format!("/dev/mqueue/{}", crate::harness::unique("queue"));
    let script = format!("touch {queue} && cat {queue} && ls /dev/mqueue");
    let out = mounts_of(Bundle::sh(&script).edit(|c| c["process"]["capabilities"] = cap(&[])));
    assert!(out.starts_with("QSIZE:0"), "{out}");
    assert_eq!(out.lines().nth(1), queue.rsplit('/').next(), "{out}");
    assert!(!Path::new(&queue).exists());
}

/// crun's spelling, which podman passes on.
#[test]
fn an_idmap_with_its_mappings_in_the_word() {
    if differs(Kind::Runc, "1.1 has no idmapped mounts") {
        return;
    }
    let word = |text: &str| json!({"options": ["bind", text]});
    let script = "stat -c %u:%g /mnt/f";
    let c = mapped_bind(script, |bundle| bundle, &word("idmap=uids=0-1000-5#5-7000-5;gids=6-3000-1"));
    assert_eq!(c.run().ok().out, "7000:3000\n");
    // Relative to a container whose 5 is 100005 on the host: the file's 5 becomes the container's 9.
    let c = mapped_bind(script, Bundle::user_namespace, &word("idmap=uids=@5-9-1;gids=@6-1-1"));
    assert_eq!(c.run().ok().out, "9:1\n");
    if kind() != Kind::Runw {
        return;
    }
    for (text, wanted) in [
        ("idmap=uids=0-1", "is not a mapping like 0-1000-10"),
        ("idmap=uids=0-1000-10", "must have both uid and gid mappings"),
        ("ridmap=uids=@0-0-1;gids=@0-0-1", "without user namespace mappings"),
    ] {
        let c = mapped_bind("true", |bundle| bundle, &word(text));
        c.run().refused(&["mounts[", wanted]);
        nothing_left(&c);
    }
    let fields = json!({"options": ["rbind", "ridmap=uids=0-1000-100;gids=0-1000-100"]});
    let c = mapped_bind("echo $(stat -c %u /mnt/f /mnt/sub/f)", |bundle| bundle, &fields);
    let dir = c.bundle.path().join("d");
    assert_eq!(with_submount(&c, &dir).ok().out, "1005 1000\n");
}

fn cgroup_mount(script: &str, own_namespace: bool, options: &[&str]) -> Bundle {
    let bundle = Bundle::sh(script).edit(|c| {
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|m| m["type"] != "cgroup");
        c["linux"]["resources"]["pids"] = json!({"limit": 77});
    });
    let bundle = bundle.mount("/sys/fs/cgroup", "cgroup", Path::new("cgroup"), options);
    if own_namespace { bundle.namespace("cgroup", None) } else { bundle.without_namespace("cgroup") }
}

/// The v2 side of this is in `unified`.
#[test]
fn cgroup_v1_mounts_with_and_without_a_namespace() {
    if !Path::new("/sys/fs/cgroup/pids/tasks").exists() {
        return crate::harness::skip("no v1 hierarchies");
    }
    let script = "cat /sys/fs/cgroup/pids/pids.max; cat /sys/fs/cgroup/memory/cgroup.procs; \
        mkdir /sys/fs/cgroup/pids/mine 2>/dev/null && echo made; cat /proc/self/mountinfo";
    for own in [false, true] {
        for (write, options) in
            [("ro", &["nosuid", "noexec", "nodev", "relatime", "ro"][..]), ("rw", &["nosuid", "rw"])]
        {
            let out = mounts_of(cgroup_mount(script, own, options));
            // cat is a child of pid 1, the shell.
            assert!(out.starts_with("77\n1\n"), "{own} {write}: {out}");
            assert_eq!(out.contains("made\n"), write == "rw", "{own} {write}: {out}");
            has(&mount_at(&out, "/sys/fs/cgroup/pids").options, &[write, "nosuid"]);
            assert_eq!(mount_at(&out, "/sys/fs/cgroup").fs, "tmpfs");
            assert!(!out.contains("/runw-test/") || !own, "the way down to the container is shown: {out}");
        }
    }
    if kind() == Kind::Runw {
        let out = mounts_of(cgroup_mount("cat /proc/self/mountinfo", false, &["ro", "rshared"]));
        for at in ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"] {
            assert!(mount_at(&out, at).tags.contains("shared"), "{at}: {out}");
        }
    }
}

/// The parent makes them, where it can, of mounts that are shared among the host's namespaces. With a word for propagation the
/// process makes them itself.
#[test]
fn cgroup_v1_mounts_are_the_same_whoever_makes_them() {
    if !Path::new("/sys/fs/cgroup/pids/tasks").exists() {
        return crate::harness::skip("no v1 hierarchies");
    }
    let seen = |options: &[&str]| {
        let script = "cd /sys/fs/cgroup; cat /proc/self/mountinfo; echo; stat -c '%n %F %a %u:%g' . *";
        let c = Container::new(cgroup_mount(script, false, options));
        let command = c.run_command(&[]);
        let out = run(Command::new("unshare")
            .args(["-m", "--propagation", "shared"])
            .arg(command.get_program())
            .args(command.get_args()))
        .ok()
        .out;
        let (mounts, files) = out.split_once("\n\n").expect("two parts");
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let points = points.filter(|at| at.starts_with("/sys/fs/cgroup"));
        let mounts: Vec<_> = points
            .map(|at| {
                let mount = mount_at(mounts, at);
                // The number of a peer group is another one each time.
                let kind = mount.tags.split(':').next().unwrap_or_default().to_owned();
                (at.to_owned(), mount.fs, mount.options, kind)
            })
            .collect();
        (mounts, files.to_owned())
    };
    let (mounts, files) = seen(&["nosuid", "noexec", "ro"]);
    assert!(mounts.len() > 2 && files.contains("pids directory 755 0:0"), "{mounts:?} {files}");
    for (at, _, _, kind) in &mounts {
        assert_eq!(kind, if at == "/sys/fs/cgroup" { "" } else { "master" }, "{at}");
    }
    if kind() == Kind::Runw {
        assert_eq!((mounts, files), seen(&["nosuid", "noexec", "ro", "rslave"]));
    }
}

/// runc's LexicallyStripRoot (mounts.bats, "mount order, container bind-mount source").
#[test]
fn a_destination_may_be_written_as_the_host_sees_it() {
    if differs(Kind::Crun, "1.8 takes it as it is") {
        return;
    }
    let b = Bundle::sh("cat /mnt/inside/file");
    let dir = b.outside("shared");
    std::fs::write(dir.join("file"), "bound\n").expect("write");
    let rootfs = b.rootfs();
    let c = Container::new(b.bind(&dir, rootfs.join("mnt/inside").to_str().expect("UTF-8"), &["bind"]));
    assert!(c.run().ok().out.starts_with("bound\n"));
    let as_it_stands = c.bundle.path().strip_prefix("/").expect("absolute");
    assert!(!rootfs.join(as_it_stands).exists());
}

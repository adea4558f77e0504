//! The file systems a container sees, and every way an image could try to steer where a mount lands.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Kind, cap, differs, id_map, kind, nothing_left, run};

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
fn devices_and_links_of_every_container() {
    let out = mounts_of(Bundle::sh(
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
    let out = mounts_of(Bundle::sh("stat -c '%F %t:%T %a %u:%g' /dev/mine /dev/sub/dir/blk /dev/pipe").edit(|c| {
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

#[test]
fn a_device_in_a_user_namespace_is_bound() {
    let bundle = Bundle::sh("echo x >/dev/null && head -c3 /dev/zero | wc -c").user_namespace();
    assert_eq!(Container::new(bundle).run().ok().out.trim(), "3");
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

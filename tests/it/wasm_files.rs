//! What a guest reaches: the container's files with the container's permissions, and nothing of the kernel's.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, cap, guest, id_map, nothing_left, runw_only};

/// The core module and the component of one program, which takes its steps as words.
const PROBES: [&str; 2] = ["probe.wasm", "probe-component.wasm"];

/// The probe with these steps.
fn steps(probe: &str, words: &str) -> Bundle {
    Bundle::wasm(probe, &words.split_whitespace().collect::<Vec<_>>())
}

/// Judges what the steps say of each probe's container; none of them may fail to run.
fn on_each_probe(words: &str, change: impl Fn(Bundle) -> Bundle, judge: impl Fn(&Container, &str)) {
    if runw_only("wasm") {
        return;
    }
    for probe in PROBES {
        let c = Container::new(change(steps(probe, words)));
        let out = c.run().ok().out;
        println!("{probe}: {out}");
        judge(&c, &out);
    }
}

#[track_caller]
fn has_lines(out: &str, wanted: &[&str]) {
    for line in wanted {
        assert!(out.lines().any(|said| said == *line), "{line} is not in {out}");
    }
}

#[test]
fn files_of_the_root() {
    let words = "read /etc/group write /tmp/f text read /tmp/f mkdir /tmp/d rename /tmp/f /tmp/d/g list /tmp/d \
        symlink d/g /tmp/l read /tmp/l readlink /tmp/l unlink /tmp/l read /tmp/l read relative";
    let change = |bundle: Bundle| {
        std::fs::write(bundle.rootfs().join("relative"), "by no cwd").expect("write");
        bundle
    };
    on_each_probe(words, change, |c, out| {
        let wanted = [
            "write /tmp/f: ok",
            "read /tmp/f: [text]",
            "mkdir /tmp/d: ok",
            "rename /tmp/f: ok",
            "list /tmp/d: g",
            "symlink /tmp/l: ok",
            "read /tmp/l: [text]",
            "readlink /tmp/l: d/g",
            "unlink /tmp/l: ok",
            "read /tmp/l: ENOENT",
            "read relative: [by no cwd]",
        ];
        has_lines(out, &wanted);
        assert!(out.contains("root:x:0:"), "{out}");
        assert_eq!(std::fs::read_to_string(c.bundle.rootfs().join("tmp/d/g")).expect("read"), "text");
    });
}

#[test]
fn binds_are_read_and_written_and_read_only_is_honoured() {
    let words = "read /rw/f write /rw/new made read /ro/f write /ro/f no write /ro/new no list /ro";
    let change = |bundle: Bundle| {
        let (rw, ro) = (bundle.outside("rw"), bundle.outside("ro"));
        std::fs::write(rw.join("f"), "one").expect("write");
        std::fs::write(ro.join("f"), "two").expect("write");
        bundle.bind(&rw, "/rw", &["rbind"]).bind(&ro, "/ro", &["rbind", "ro"])
    };
    on_each_probe(words, change, |c, out| {
        has_lines(out, &["read /rw/f: [one]", "write /rw/new: ok", "read /ro/f: [two]", "list /ro: f"]);
        for path in ["/ro/f", "/ro/new"] {
            let line = out.lines().find(|l| l.starts_with(&format!("write {path}: "))).expect("a line");
            assert!(!line.ends_with("ok"), "{line}");
        }
        let read = |name: &str| std::fs::read_to_string(c.bundle.path().join(name)).expect("read");
        assert_eq!((read("rw/new"), read("ro/f")), ("made".into(), "two".into()));
    });
}

#[test]
fn a_read_only_root_holds() {
    let words = "write /etc/group x mkdir /d write /t/f x read /t/f";
    let change = |bundle: Bundle| {
        std::fs::create_dir(bundle.rootfs().join("t")).expect("mkdir");
        let tmpfs = Path::new("tmpfs");
        bundle.mount("/t", "tmpfs", tmpfs, &["mode=1777"]).edit(|c| c["root"]["readonly"] = json!(true))
    };
    on_each_probe(words, change, |_, out| {
        // wasmtime-wasi 48 has no name for EROFS and says EIO; what counts is that it fails.
        assert!(!out.contains("write /etc/group: ok") && !out.contains("mkdir /d: ok"), "{out}");
        assert!(out.contains("read /t/f: [x]"), "{out}");
    });
}

/// A guest that opens /proc/self/mem writes the host process's memory: it must not even find the name.
#[test]
fn proc_dev_and_sys_are_not_there() {
    let paths = [
        "/proc/self/mem",
        "proc/self/mem",
        "/proc/1/environ",
        "/proc/thread-self/mem",
        "/dev/null",
        "/dev/pts/ptmx",
        "/dev/mqueue/x",
        "/sys/kernel/uevent_seqnum",
        "/sys/fs/cgroup/pids/pids.max",
        "/etc/../proc/self/mem",
        "/../proc/self/mem",
    ];
    for step in ["read", "open-rw"] {
        let words: String = paths.iter().map(|path| format!("{step} {path} ")).collect();
        on_each_probe(
            &words,
            |bundle| bundle,
            |_, out| {
                for line in out.lines() {
                    let climbs = line.contains(" /../");
                    assert!(
                        line.ends_with(": ENOENT")
                            || (climbs && !line.ends_with("ok") && !line.contains('[')),
                        "{line}"
                    );
                }
                assert_eq!(out.lines().count(), paths.len());
            },
        );
    }
    on_each_probe(
        "list /proc list /dev list /sys",
        |bundle| bundle,
        |_, out| {
            assert_eq!(out, "list /proc:\nlist /dev:\nlist /sys:\n");
        },
    );
}

#[test]
fn links_do_not_lead_to_what_is_hidden() {
    let words = "read /a read /b read /c/passwd symlink ../proc/self/mem /tmp/m open-rw /tmp/m";
    let change = |bundle: Bundle| {
        for (target, link) in
            [("/proc/self/mem", "a"), ("proc/1/environ", "b"), ("../../../../../../../../etc", "c")]
        {
            std::os::unix::fs::symlink(target, bundle.rootfs().join(link)).expect("symlink");
        }
        bundle
    };
    on_each_probe(words, change, |_, out| {
        for line in out.lines().filter(|l| !l.starts_with("symlink")) {
            assert!(!line.contains('[') && !line.ends_with("ok"), "{line}");
        }
    });
}

#[test]
fn a_masked_path_is_hidden_from_the_guest_too() {
    let words = "read /secret list /hidden read /hidden/f read /data/under write /fixed x";
    let change = |bundle: Bundle| {
        let (root, data) = (bundle.rootfs(), bundle.outside("data"));
        std::fs::create_dir(root.join("hidden")).expect("mkdir");
        for path in [root.join("secret"), root.join("hidden/f"), root.join("fixed"), data.join("under")] {
            std::fs::write(path, "SECRET").expect("write");
        }
        bundle.bind(&data, "/data", &["rbind"]).edit(|c| {
            c["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/data/under"]);
            c["linux"]["readonlyPaths"] = json!(["/fixed"]);
        })
    };
    on_each_probe(words, change, |c, out| {
        assert!(!out.contains("SECRET") && out.contains("list /hidden:\n"), "{out}");
        assert_eq!(std::fs::read_to_string(c.bundle.rootfs().join("fixed")).expect("read"), "SECRET");
    });
}

/// `-v /:/host`: the host's own /proc comes with the rbind and must not be there either.
#[test]
fn the_host_s_root_without_its_kernel_file_systems() {
    let words = "read /host/etc/debian_version open-rw /host/proc/self/mem read /host/proc/1/cmdline \
        read /host/dev/null read /host/sys/kernel/uevent_seqnum list /host/proc list /host/sys \
        read /host/sys/fs/cgroup/pids/tasks";
    let change = |bundle: Bundle| bundle.bind(Path::new("/"), "/host", &["rbind", "ro"]);
    on_each_probe(words, change, |_, out| {
        assert!(out.contains("read /host/etc/debian_version: ["), "{out}");
        for line in out.lines().skip_while(|l| !l.starts_with("open-rw")) {
            assert!(
                line.ends_with(": ENOENT") || line == "list /host/proc:" || line == "list /host/sys:",
                "{line}"
            );
        }
    });
}

#[test]
fn a_proc_bound_by_name_is_judged_by_its_type() {
    let change = |bundle: Bundle| bundle.bind(Path::new("/proc"), "/looks/harmless", &["rbind"]);
    on_each_probe("open-rw /looks/harmless/self/mem list /looks/harmless", change, |_, out| {
        assert_eq!(out, "open-rw /looks/harmless/self/mem: ENOENT\nlist /looks/harmless:\n");
    });
}

#[test]
fn a_link_from_the_root_into_a_mount_and_a_file_mount() {
    let words = "read /link/f read /etc/given write /etc/given new list /deep/er";
    let change = |bundle: Bundle| {
        let (data, file) = (bundle.outside("data"), bundle.path().join("file"));
        std::fs::write(data.join("f"), "through").expect("write");
        std::fs::write(&file, "given").expect("write");
        std::os::unix::fs::symlink("data", bundle.rootfs().join("link")).expect("symlink");
        let bundle = bundle.bind(&data, "/data", &["rbind"]).bind(&file, "/etc/given", &["bind"]);
        bundle.bind(&data, "/deep/er", &["bind", "ro"])
    };
    on_each_probe(words, change, |c, out| {
        assert_eq!(
            out,
            "read /link/f: [through]\nread /etc/given: [given]\nwrite /etc/given: ok\nlist /deep/er: f\n"
        );
        assert_eq!(std::fs::read_to_string(c.bundle.path().join("file")).expect("read"), "new");
    });
}

#[test]
fn permissions_are_the_user_s() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let change = |bundle: Bundle| {
        let private = bundle.rootfs().join("private");
        std::fs::write(&private, "SECRET").expect("write");
        std::fs::set_permissions(&private, PermissionsExt::from_mode(0o600)).expect("chmod");
        bundle.edit(a_user)
    };
    on_each_probe("read /private write /etc/group x write /tmp/mine x", change, |c, out| {
        assert_eq!(out, "read /private: EACCES\nwrite /etc/group: EACCES\nwrite /tmp/mine: ok\n");
        assert_eq!(std::fs::metadata(c.bundle.rootfs().join("tmp/mine")).expect("stat").uid(), 1000);
    });
}

fn a_user(config: &mut Value) {
    config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    config["process"]["capabilities"] = cap(&[]);
}

#[test]
fn an_idmapped_bind_is_so_for_the_guest_too() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let change = |bundle: Bundle| {
        let dir = bundle.outside("d");
        std::fs::write(dir.join("f"), "mine").expect("write");
        std::fs::set_permissions(dir.join("f"), PermissionsExt::from_mode(0o600)).expect("chmod");
        bundle.edit(a_user).edit(|c| {
            // root's files are the user's here.
            let map = id_map(0, 1000, 1);
            let mount = json!({"destination": "/mnt", "type": "bind", "source": dir,
                "options": ["rbind", "idmap"], "uidMappings": map, "gidMappings": map});
            c["mounts"].as_array_mut().expect("mounts").push(mount);
        })
    };
    on_each_probe("read /mnt/f write /mnt/new x", change, |c, out| {
        assert_eq!(out, "read /mnt/f: [mine]\nwrite /mnt/new: ok\n");
        assert_eq!(std::fs::metadata(c.bundle.path().join("d/new")).expect("stat").uid(), 0);
    });
}

#[test]
fn without_any_proc_in_the_container() {
    let change = |bundle: Bundle| {
        bundle.user_namespace().edit(|c| {
            // Device nodes are bound in a user namespace, which needs a /dev that its root may write.
            let dev =
                json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]});
            c["mounts"] = json!([dev]);
            c["linux"]["maskedPaths"] = json!([]);
            c["linux"]["readonlyPaths"] = json!([]);
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        })
    };
    on_each_probe("say no-proc read /etc/group", change, |_, out| {
        assert!(out.starts_with("no-proc\nread /etc/group: [root"), "{out}");
    });
}

/// Kubernetes makes a subPath a bind of what is inside the volume.
#[test]
fn a_subpath_shows_only_itself() {
    let change = |bundle: Bundle| {
        let volume = bundle.outside("volume");
        std::fs::create_dir(volume.join("sub")).expect("mkdir");
        std::fs::write(volume.join("sub/f"), "inside").expect("write");
        std::fs::write(volume.join("other"), "beside").expect("write");
        let bundle = bundle.bind(&volume.join("sub"), "/data", &["rbind"]);
        bundle.bind(&volume.join("other"), "/etc/one-file", &["rbind", "ro"])
    };
    on_each_probe("list /data read /data/f read /data/../other read /etc/one-file", change, |_, out| {
        let wanted = "list /data: f\nread /data/f: [inside]\nread /data/../other: ENOENT\nread /etc/one-file: [beside]\n";
        assert_eq!(out, wanted);
    });
}

/// The kubelet's atomic writer: files are links to ..data, which is exchanged while the guest runs.
#[test]
fn a_config_map_is_read_anew_when_it_is_exchanged() {
    use std::os::unix::fs::symlink;
    if runw_only("wasm") {
        return;
    }
    for probe in PROBES {
        let bundle = steps(
            probe,
            "list /etc/config read /etc/config/key cat read /etc/config/key write /etc/config/key x",
        );
        let volume = bundle.outside("config");
        let version = |name: &str, text: &str| {
            std::fs::create_dir(volume.join(name)).expect("mkdir");
            std::fs::write(volume.join(name).join("key"), text).expect("write");
        };
        version("..one", "first");
        symlink("..one", volume.join("..data")).expect("symlink");
        symlink("..data/key", volume.join("key")).expect("symlink");
        let c = Container::new(bundle.bind(&volume, "/etc/config", &["rbind", "ro"]));
        let mut command = c.run_command(&[]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut line = || lines.next().expect("a line").expect("read");
        let listed = line();
        assert!(["..one", "..data", "key"].iter().all(|name| listed.contains(name)), "{probe}: {listed}");
        assert_eq!(line(), "read /etc/config/key: [first]", "{probe}");
        version("..two", "second");
        symlink("..two", volume.join("..new")).expect("symlink");
        std::fs::rename(volume.join("..new"), volume.join("..data")).expect("rename");
        drop(child.stdin.take());
        assert_eq!(line(), "read /etc/config/key: [second]", "{probe}");
        assert!(!line().ends_with("ok"), "{probe}: a read-only volume was written");
        assert!(child.wait().expect("wait").success());
    }
}

#[test]
fn names_may_have_spaces_and_letters_of_the_world() {
    if runw_only("wasm") {
        return;
    }
    for probe in PROBES {
        let path = "/tmp/ein Ordner/größe \u{1f980} '\"$x";
        let words =
            ["mkdir", "/tmp/ein Ordner", "write", path, "text", "read", path, "list", "/tmp/ein Ordner"];
        let c = Container::new(Bundle::wasm(probe, &words));
        let out = c.run().ok().out;
        has_lines(&out, &[&format!("write {path}: ok"), &format!("read {path}: [text]")]);
        assert!(out.contains("list /tmp/ein Ordner: größe \u{1f980} '\"$x\n"), "{probe}: {out}");
        assert_eq!(std::fs::read_to_string(c.bundle.rootfs().join(&path[1..])).expect("read"), "text");
    }
}

#[test]
fn a_full_tmpfs_is_no_space_left_and_what_was_there_stays() {
    let change = |bundle: Bundle| {
        let bundle = bundle.mount("/t", "tmpfs", Path::new("tmpfs"), &["size=4k", "mode=1777"]);
        std::fs::create_dir(bundle.rootfs().join("t")).expect("mkdir");
        bundle
    };
    let words = "write /t/one x write /t/two x read /t/one unlink /t/one write /t/two x";
    on_each_probe(words, change, |_, out| {
        let wanted = [
            "write /t/one: ok",
            "write /t/two: No space left on device",
            "read /t/one: [x]",
            "unlink /t/one: ok",
            "write /t/two: ok",
        ];
        has_lines(out, &wanted);
    });
}

#[test]
fn the_umask_is_the_spec_s() {
    use std::os::unix::fs::PermissionsExt;
    for (umask, file, directory) in [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)] {
        let change = |bundle: Bundle| bundle.edit(|c| c["process"]["user"]["umask"] = json!(umask));
        on_each_probe("write /tmp/f x mkdir /tmp/d", change, |c, _| {
            let mode = |name: &str| {
                let path = c.bundle.rootfs().join("tmp").join(name);
                std::fs::metadata(path).expect("stat").permissions().mode() & 0o777
            };
            // WASI has no modes: files are made 0666, directories 0777, less the umask.
            assert_eq!((mode("f"), mode("d")), (file, directory), "{umask:o}");
        });
    }
}

/// As engines give them: files of the host's, mounted one by one.
#[test]
fn hosts_and_resolv_conf_may_be_mounts() {
    if runw_only("wasm") {
        return;
    }
    let bundle = Bundle::wasm("rust-p2.wasm", &["lookup", "by-mount"]);
    let mut bundle = bundle.without_namespace("network");
    for (name, text) in [("hosts", "192.0.2.5 by-mount\n"), ("resolv.conf", "nameserver 127.0.0.1\n")] {
        let file = bundle.path().join(name);
        std::fs::write(&file, text).expect("write");
        bundle = bundle.bind(&file, &format!("/etc/{name}"), &["bind", "ro"]);
    }
    let out = Container::new(bundle).run().ok().out;
    assert!(out.starts_with("lookup by-mount: 192.0.2.5"), "{out}");
}

/// Real programs built from published sources: Go's own runtime (3 MB) and Debian's QuickJS.
#[test]
fn real_world_programs_read_and_write_a_bind_mount() {
    if runw_only("wasm") {
        return;
    }
    let text = "the quick brown fox jumps over the lazy dog and the cat\n".repeat(2000);
    let bundle = Bundle::wasm("go.wasm", &["sum", "/data/in.txt", "/data/sum.txt"]);
    assert!(std::fs::metadata(guest("go.wasm")).expect("stat").len() > 1 << 20);
    let data = bundle.outside("data");
    std::fs::write(data.join("in.txt"), &text).expect("write");
    let c = Container::new(bundle.bind(&data, "/data", &["rbind"]));
    assert_eq!(c.run().ok().out, "sum written\n");
    let want =
        std::process::Command::new("sha256sum").arg(data.join("in.txt")).output().expect("sha256sum").stdout;
    let sum = std::fs::read(data.join("sum.txt")).expect("the sum");
    assert_eq!(sum[..64], want[..64]);
    nothing_left(&c);

    let bundle = Bundle::wasm("qjs.wasm", &["/data/words.js", "/data/in.txt", "/data/words.json"]);
    let data = bundle.outside("data");
    std::fs::write(data.join("in.txt"), &text).expect("write");
    std::fs::copy(guest("words.js"), data.join("words.js")).expect("copy");
    let c = Container::new(bundle.bind(&data, "/data", &["rbind"]));
    assert_eq!(c.run().ok().out, "words 10 most the=6000\n");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data.join("words.json")).expect("report")).expect("json");
    assert_eq!(report[0], json!(["the", 6000]));
}

/// SQLite's locks, journal and fsync, in one container after the other; the host's own SQLite reads the file.
#[test]
fn a_database_on_a_bind_mount_outlives_its_container() {
    if runw_only("wasm") {
        return;
    }
    let dir = tempfile::tempdir().expect("a volume");
    let sql = |statements: &[&str]| {
        let bundle = Bundle::wasm("sql.wasm", &[&["/data/db"], statements].concat());
        Container::new(bundle.bind(dir.path(), "/data", &["rbind"])).run()
    };
    sql(&[
        "create table t(n)",
        "with recursive i(n) as (select 1 union all select n + 1 from i where n < 5000) insert into t select n from i",
    ])
    .ok();
    let ended = sql(&["begin", "delete from t", "rollback", "no statement"]);
    assert_eq!((ended.code, ended.err.as_str()), (1, "sql: near \"no\": syntax error\n"));
    assert_eq!(
        sql(&["pragma integrity_check", "select count(*), sum(n) from t"]).ok().out,
        "ok\n5000|12502500\n"
    );
    let look = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute('select sum(n) from t').fetchone()[0])";
    let host = std::process::Command::new("python3").args(["-c", look]).arg(dir.path().join("db")).output();
    assert_eq!(host.expect("python3").stdout, b"12502500\n");
}

use super::*;
use serde_json::{Value, json};

/// What `runc spec` writes, with a process that needs nothing.
fn base() -> Value {
    serde_json::from_str(include_str!("cli/spec/config.json")).unwrap()
}

struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let dir = std::env::temp_dir().join(format!("runw-bundle-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("rootfs")).unwrap();
        Temp(dir)
    }

    fn load(&self, config: &[u8]) -> Result<Bundle> {
        std::fs::write(self.0.join("config.json"), config).unwrap();
        Bundle::load(&self.0, None)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sets the value a JSON pointer names, making what is missing on the way.
fn set(document: &mut Value, pointer: &str, value: Value) {
    let mut at = document;
    for key in pointer.trim_start_matches('/').split('/').map(|key| key.replace("~1", "/")) {
        at = match at {
            Value::Array(items) => {
                let index = key.parse::<usize>().unwrap();
                if index == items.len() {
                    items.push(Value::Null);
                }
                &mut items[index]
            }
            other => {
                if !other.is_object() {
                    *other = json!({});
                }
                other.as_object_mut().unwrap().entry(key).or_insert(Value::Null)
            }
        };
    }
    *at = value;
}

fn namespaces(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({ "type": kind })).collect()
}

/// Changes that are refused, and what the one line says.
#[rustfmt::skip]
#[allow(clippy::too_many_lines, reason = "a table")]
// long: a table
fn refused() -> Vec<(Vec<(&'static str, Value)>, &'static str)> {
    let user_ns = || ("/linux/namespaces", namespaces(&["user", "mount", "uts"]));
    let map = |container: u32, host: u32, size: u32| json!([{"containerID": container, "hostID": host, "size": size}]);
    vec![
        (vec![("/ociVersion", json!("2.0.0"))], "ociVersion \"2.0.0\" is not supported"),
        (vec![("/ociVersion", json!("1.4.0"))], "ociVersion \"1.4.0\" is not supported"),
        (vec![("/ociVersion", json!("0.9.9"))], "ociVersion"),
        (vec![("/ociVersion", json!("one"))], "ociVersion \"one\" is not a semantic version"),
        (vec![("/ociVersion", json!(""))], "ociVersion is required"),
        (vec![("/ociVersion", json!(1))], "ociVersion: invalid type: integer"),
        (vec![("/freebsd", json!({}))], "freebsd is not supported yet"),
        (vec![("/hooks", json!({"prestart": [{"path": "/x", "env": ["NO"]}]}))], "missing '='"),
        (vec![("/root", Value::Null)], "root is required"),
        (vec![("/root/path", json!(""))], "root.path must not be empty"),
        (vec![("/root/path", json!("nowhere"))], "root.path"),
        (vec![("/root/path", json!("config.json"))], "not a directory"),
        (vec![("/root/path", json!(7))], "root.path: invalid type: integer `7`"),
        (vec![("/process", Value::Null)], "process property must not be empty"),
        (vec![("/process/args", json!([]))], "process: args must not be empty"),
        (vec![("/process/args", json!(["sh", 5]))], "process.args[1]: invalid type: integer `5`"),
        (vec![("/process/cwd", json!(""))], "process: cwd property must not be empty"),
        (vec![("/process/cwd", json!("a/b"))], "process: cwd \"a/b\" must be an absolute path"),
        (vec![("/process/env/0", json!("A"))], "process: env[0]: invalid environment variable \"A\": missing '='"),
        (vec![("/process/env/0", json!("=A"))], "name cannot be empty"),
        (vec![("/process/user/uid", json!(u32::MAX))], "process: user.uid 4294967295 is not a user id"),
        (vec![("/process/user/uid", json!(-1))], "process.user.uid: invalid value: integer `-1`"),
        (vec![("/process/user/additionalGids", json!([u32::MAX]))], "user.additionalGids"),
        (vec![("/process/user/umask", json!(0o1777))], "user.umask"),
        (vec![("/process/rlimits/1", json!({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}))],
            "process: rlimits[1]: RLIMIT_NOFILE is given twice"),
        (vec![("/process/rlimits/0/soft", json!(2000))], "rlimits[0]: RLIMIT_NOFILE soft 2000 is above hard 1024"),
        (vec![("/process/rlimits/0/type", json!("RLIMIT_X"))], "process.rlimits[0].type: unknown variant `RLIMIT_X`"),
        (vec![("/process/consoleSize", json!({"height": 70000, "width": 1}))], "consoleSize.height 70000"),
        (vec![("/process/oomScoreAdj", json!(1001))], "oomScoreAdj 1001"),
        (vec![("/process/selinuxLabel", json!("x"))], "process: selinuxLabel"),
        (vec![("/process/apparmorProfile", json!("x"))], "process: apparmorProfile"),
        (vec![("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}))], "process: invalid ioPriority.priority: 8"),
        (vec![("/process/ioPriority", json!({"class": "IOPRIO_CLASS_X"}))], "process.ioPriority.class: unknown variant"),
        (vec![("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 20}))], "invalid scheduler.nice: 20 when scheduler.policy is SCHED_BATCH"),
        (vec![("/process/scheduler", json!({"policy": "SCHED_OTHER", "priority": 1}))], "scheduler.priority can only be specified for"),
        (vec![("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 1, "period": 1}))], "can only be specified for SchedDeadline"),
        (vec![("/process/scheduler", json!({"nice": 1}))], "process.scheduler: missing field `policy`"),
        (vec![("/process/execCPUAffinity", json!({"initial": "x"}))], "process.execCPUAffinity.initial: Invalid execCPUAffinity format: x"),
        (vec![("/process/args/0", json!("a\0b"))], "process.args[0]: strings must not contain NUL bytes"),
        (vec![("/process/env/0", json!("A=\0"))], "process.env[0]: strings must not contain NUL bytes"),
        (vec![("/mounts/0/destination", json!("/\0"))], "mounts[0].destination: strings must not contain NUL bytes"),
        (vec![("/hostname", json!("a\0"))], "hostname: strings must not contain NUL bytes"),
        (vec![("/linux/sysctl", json!({"net.a\0b": "1"}))], "strings must not contain NUL bytes"),
        (vec![("/linux/namespaces", namespaces(&["mount"]))], "unable to set hostname without a private UTS namespace"),
        (vec![("/linux/namespaces", namespaces(&["mount"])), ("/hostname", json!("")), ("/domainname", json!("d"))],
            "unable to set domainname without a private UTS namespace"),
        (vec![("/hostname", json!("x".repeat(65)))], "hostname: 65 bytes"),
        (vec![("/linux/namespaces", namespaces(&["uts"]))], "without a private MNT namespace"),
        (vec![("/linux/namespaces", namespaces(&["uts", "mount", "uts"]))], "linux.namespaces[2]: the uts namespace is given twice"),
        (vec![("/linux/namespaces/0/type", json!("warp"))], "linux.namespaces[0].type: unknown variant `warp`"),
        (vec![("/linux/namespaces/0/path", json!("/nonexistent"))], "linux.namespaces[0].path /nonexistent: no such file"),
        (vec![("/linux/namespaces/0/path", json!("proc/1"))], "must be absolute"),
        (vec![user_ns()], "user namespaces enabled, but no namespace path nor linux.uidMappings specified"),
        (vec![user_ns(), ("/linux/uidMappings", map(0, 0, 1))], "nor linux.gidMappings specified"),
        (vec![user_ns(), ("/linux/uidMappings", map(0, 0, 0)), ("/linux/gidMappings", map(0, 0, 1))], "linux.uidMappings: [0].size"),
        (vec![user_ns(), ("/linux/uidMappings", map(0, 9, u32::MAX)), ("/linux/gidMappings", map(0, 0, 1))], "beyond the last id"),
        (vec![user_ns(), ("/linux/gidMappings", map(0, 0, 1)), ("/linux/uidMappings", json!([
            {"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 9, "hostID": 100, "size": 1}]))],
            "linux.uidMappings: [1] overlaps [0]"),
        (vec![("/linux/uidMappings", map(0, 0, 1))], "user namespace isn't enabled in the config"),
        (vec![("/linux/timeOffsets", json!({"boottime": {"secs": 1}}))], "time namespace isn't enabled in the config"),
        (vec![("/linux/namespaces/5", json!({"type": "time"})), ("/linux/timeOffsets", json!({"realtime": {"secs": 1}}))],
            "linux.timeOffsets: unknown clock \"realtime\""),
        (vec![("/linux/sysctl", json!({"kernel.panic": "1"}))], "sysctl \"kernel.panic\" is not in a separate kernel namespace"),
        (vec![("/linux/sysctl", json!({"kernel/hostname": "x"}))], "conflicts with the OCI \"hostname\" field"),
        (vec![("/linux/sysctl", json!({"net.x/../../../kernel/panic": "1"}))], "is not a sysctl name"),
        (vec![("/linux/sysctl", json!({"net/../../kernel/panic": "1"}))], "is not a sysctl name"),
        (vec![("/linux/sysctl", json!({"fs.mqueue.x": "1"})), ("/linux/namespaces", namespaces(&["mount", "uts"]))],
            "is not allowed in the hosts ipc namespace"),
        (vec![("/linux/sysctl", json!({"net.ipv4.x": "1"})), ("/linux/namespaces", namespaces(&["mount", "uts"]))],
            "not allowed in host network namespace"),
        (vec![("/linux/sysctl", json!({"net.ipv4.x": "1"})), ("/linux/namespaces/1/path", json!("/proc/self/ns/net"))],
            "not allowed in host network namespace"),
        (vec![("/linux/maskedPaths", json!(["proc"]))], "linux.maskedPaths: \"proc\" must be absolute"),
        (vec![("/linux/rootfsPropagation", json!("sideways"))], "linux.rootfsPropagation \"sideways\" is not known"),
        (vec![("/linux/devices", json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]))], "linux.devices[0].path"),
        (vec![("/linux/devices", json!([{"path": "/dev/x", "type": "a", "major": 1, "minor": 3}]))], "linux.devices[0].type"),
        (vec![("/linux/devices", json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 3}]))], "linux.devices[0].major"),
        (vec![("/linux/devices", json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/x", "type": "c", "major": 1, "minor": 5}]))], "linux.devices[1]: \"/dev/x\" is already another device"),
        (vec![("/linux/cgroupsPath", json!("/a/../../b"))], "linux.cgroupsPath"),
        (vec![("/linux/resources/unified", json!({"../x.y": "1"}))], "linux.resources.unified: \"../x.y\""),
        (vec![("/linux/resources/unified", json!({"nodot": "1"}))], "linux.resources.unified"),
        (vec![("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}))], "linux.seccomp.defaultAction"),
        (vec![("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}))], "linux.seccomp.listenerPath is required"),
        (vec![("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": [], "action": "SCMP_ACT_ERRNO"}]}))], "linux.seccomp.syscalls[0].names must not be empty"),
        (vec![("/linux/intelRdt", json!({"closID": "a/b"}))], "linux.intelRdt: invalid intelRdt.ClosID \"a/b\""),
        (vec![("/linux/intelRdt", json!({"closID": ".."}))], "invalid intelRdt.ClosID"),
        (vec![("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": " "}))], "linux.memoryPolicy: MPOL_BIND requires at least one node"),
        (vec![("/linux/memoryPolicy", json!({"mode": "MPOL_LOCAL", "nodes": "0"}))], "linux.memoryPolicy: MPOL_LOCAL takes no nodes"),
        (vec![("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0", "flags":
            ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}))], "mutually exclusive"),
        (vec![("/linux/memoryPolicy", json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}))],
            "MPOL_F_NUMA_BALANCING can only be used with"),
        (vec![("/linux/netDevices", json!({"eth0": {}})), ("/linux/namespaces", namespaces(&["mount", "uts"]))],
            "linux.netDevices: unable to move network devices without a private NET namespace"),
        (vec![("/linux/netDevices", json!({"eth0": {}})), ("/linux/namespaces/1/path", json!("/proc/self/ns/net"))],
            "without a private NET namespace"),
        (vec![("/linux/netDevices", json!({"a/b": {}}))], "linux.netDevices: invalid network device name \"a/b\""),
        (vec![("/linux/netDevices", json!({"eth0": {"name": "sixteen-letters-"}}))], "invalid network device name"),
        (vec![("/linux/netDevices", json!({"eth0": {"name": "x"}, "x": {}}))], "linux.netDevices: two devices would be \"x\""),
        (vec![("/annotations", json!({"run.oci.mount_context_type": "x"}))], "annotations: run.oci.mount_context_type is none of context"),
        (vec![("/linux/personality", json!({"domain": "BSD"}))], "linux.personality.domain: unknown variant `BSD`"),
        (vec![("/linux/mountLabel", json!("x"))], "linux.mountLabel"),
        (vec![("/mounts/0/destination", json!(""))], "mounts[0].destination must not be empty"),
        (vec![("/mounts/0/options", json!(["idmap"]))], "mounts[0]: id-mapped mounts are only supported for bind-mounts"),
        (vec![("/mounts/0/options", json!(["bind", "ridmap"]))], "mounts[0]: id-mapped mounts must have both uid and gid mappings"),
        (vec![("/mounts/0/options", json!(["bind"])), ("/mounts/0/uidMappings", map(0, 0, 1))], "must have both uid and gid mappings"),
        (vec![("/mounts/0/options", json!(["bind"])), ("/mounts/0/uidMappings", map(0, 0, 1)), ("/mounts/0/gidMappings", map(0, 0, 0))],
            "mounts[0]: gidMappings: [0].size must not be 0"),
        (vec![("/mounts/0/options", json!(["bind", "idmap=uids=0-1"]))], "mounts[0]: option \"idmap=uids=0-1\": \"0-1\" is not a mapping"),
        (vec![("/hooks", json!({"poststop": [{"path": "x"}]}))], "hooks.poststop[0]: path \"x\" must be absolute"),
        (vec![("/hooks", json!({"prestart": [{"path": "/x", "timeout": 0}]}))], "hooks.prestart[0]: timeout 0"),
        (vec![("/vm", json!({"kernel": {"path": "/x"}}))], "vm"),
    ]
}

#[test]
fn refusals_name_the_field() {
    let temp = Temp::new("refused");
    for (changes, want) in refused() {
        let mut config = base();
        for (pointer, value) in &changes {
            set(&mut config, pointer, value.clone());
        }
        let error = match temp.load(config.to_string().as_bytes()) {
            Ok(_) => panic!("accepted: {changes:?}"),
            Err(error) => crate::error::line(&error),
        };
        assert!(error.contains(want) && !error.contains('\n'), "{changes:?}: {error}");
    }
}

#[test]
fn a_platform_is_refused_however_it_is_spelled() {
    let temp = Temp::new("spelled");
    for name in ["freebsd", "\\u0066reebsd", "f\\u0072eebsd", "\\u0073olaris"] {
        let config = base().to_string().replacen('{', &format!("{{\"{name}\": {{}},"), 1);
        let error = temp.load(config.as_bytes()).map(drop).unwrap_err();
        assert!(crate::error::line(&error).contains("is not supported yet"), "{name}: {error:#}");
    }
    // A value is no name, nor is a name further down.
    for extra in [r#""annotations": {"freebsd": "freebsd"}"#, r#""domainname": "\u0066reebsd""#] {
        let config = base().to_string().replacen('{', &format!("{{{extra},"), 1);
        temp.load(config.as_bytes()).unwrap();
    }
}

#[test]
fn a_directory_has_one_name() {
    let temp = Temp::new("name");
    let own = temp.0.canonicalize().unwrap();
    std::fs::create_dir_all(own.join("a/b")).unwrap();
    std::os::unix::fs::symlink("a", own.join("link")).unwrap();
    for written in ["a/b", "a/b/", "a//b", "./a/b", "a/./b", "a/b/../b", "link/b", "link/../a/b"] {
        assert_eq!(directory(&own.join(written)).unwrap(), own.join("a/b"), "{written}");
    }
    assert!(is_plain(&own) && !is_plain(Path::new("a")) && !is_plain(Path::new("/a/../b")));
}

#[test]
fn accepted() {
    let temp = Temp::new("accepted");
    let bundle = temp.load(base().to_string().as_bytes()).unwrap();
    assert_eq!(bundle.rootfs, temp.0.canonicalize().unwrap().join("rootfs"));
    assert!(bundle.warnings.is_empty());
    let user = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    for changes in [
        vec![("/ociVersion", json!("1.3.0"))],
        vec![("/ociVersion", json!("1.0.0-rc5-dev"))],
        vec![(
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "1", "kernel.shmmax": "1", "kernel.domainname": "x"}),
        )],
        vec![(
            "/linux/sysctl",
            json!({"net/ipv4/conf/eth0.1/forwarding": "1", "net.ipv4.conf.eth0/1.rp_filter": "1"}),
        )],
        vec![("/linux/namespaces/0/path", json!(""))],
        vec![("/process/selinuxLabel", json!("")), ("/process/apparmorProfile", json!(""))],
        vec![
            ("/linux/namespaces/5", json!({"type": "time"})),
            ("/linux/timeOffsets", json!({"boottime": {"secs": -1}})),
        ],
        vec![
            ("/linux/namespaces/5", json!({"type": "user"})),
            ("/linux/uidMappings", user.clone()),
            ("/linux/gidMappings", user),
        ],
        vec![("/linux/namespaces/5", json!({"type": "user", "path": "/proc/self/ns/user"}))],
        vec![("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}))],
        vec![("/process/scheduler", json!({"policy": "SCHED_RR", "priority": 9, "nice": 30}))],
        vec![("/linux/memoryPolicy", json!({"mode": "MPOL_PREFERRED"}))],
        vec![("/annotations", json!({"a": "with \0 in it"}))],
        vec![("/process/args", json!(["a literal \\u0000"]))],
        vec![("/someday", json!({"new": 1}))],
    ] {
        let mut config = base();
        for (pointer, value) in &changes {
            set(&mut config, pointer, value.clone());
        }
        temp.load(config.to_string().as_bytes()).unwrap_or_else(|error| panic!("{changes:?}: {error:#}"));
    }
}

#[test]
fn other_spellings_are_settled() {
    let temp = Temp::new("settled");
    let mut config = base();
    set(&mut config, "/mounts/0/destination", json!("proc"));
    set(&mut config, "/linux/namespaces/0/path", json!(""));
    let bundle = temp.load(config.to_string().as_bytes()).unwrap();
    assert_eq!(bundle.spec.mounts().as_ref().unwrap()[0].destination(), Path::new("/proc"));
    assert_eq!(bundle.spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap()[0].path(), &None);
    assert!(bundle.warnings[0].contains("mounts[0].destination"), "{:?}", bundle.warnings);
}

#[test]
fn unknown_capabilities_are_dropped_with_a_warning() {
    let temp = Temp::new("caps");
    let mut config = base();
    set(&mut config, "/process/capabilities/bounding", json!(["CAP_KILL", "CAP_FLY"]));
    let bundle = temp.load(config.to_string().as_bytes()).unwrap();
    assert_eq!(bundle.warnings, ["process.capabilities.bounding: ignoring unknown capability \"CAP_FLY\""]);
    let sets = bundle.spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
    assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    // What else is wrong is still refused.
    set(&mut config, "/process/args", json!("sh"));
    let error = format!("{:#}", temp.load(config.to_string().as_bytes()).unwrap_err());
    assert!(error.contains("process.args: invalid type"), "{error}");
    let (process, warnings) = parse_process(
        br#"{"user":{"uid":0,"gid":0},"args":["x"],"cwd":"/","capabilities":{"ambient":["CAP_FLY"]}}"#,
    )
    .unwrap();
    assert_eq!((process.args().as_ref().unwrap().len(), warnings.len()), (1, 1));
    let (process, _) = parse_process(br#"{"args":["x"],"cwd":"/"}"#).unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    assert!(parse_process(br#"{"user":{"uid":0,"gid":0},"args":[],"cwd":"/"}"#).is_err());
}

#[test]
fn attributes_by_the_specification_s_spelling() {
    let temp = Temp::new("attributes");
    let mut config = base();
    let flags = json!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RECLAIM"]);
    set(&mut config, "/process/scheduler", json!({"policy": "SCHED_DEADLINE", "runtime": 1, "flags": flags}));
    set(&mut config, "/process/execCPUAffinity", json!({"initial": "0-1,3", "final": ""}));
    set(&mut config, "/linux/personality", json!({"domain": "LINUX", "flags": ["X"]}));
    let bundle = temp.load(config.to_string().as_bytes()).unwrap();
    let process = bundle.spec.process().as_ref().unwrap();
    assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 3);
    let affinity = process.exec_cpu_affinity().as_ref().unwrap();
    assert_eq!((affinity.initial().as_deref(), affinity.cpu_affinity_final()), (Some("0-1,3"), &None));
    assert_eq!(bundle.warnings, ["linux.personality: ignoring unsupported personality flags: [\"X\"]"]);
    set(&mut config, "/process/scheduler/flags", json!(["SCHED_FLAG_X"]));
    assert!(temp.load(config.to_string().as_bytes()).is_err());
}

#[test]
fn files_that_are_no_config() {
    let temp = Temp::new("files");
    let line = |error: anyhow::Error| crate::error::line(&error);
    let missing = line(Bundle::load(&temp.0, None).unwrap_err());
    assert!(
        missing.starts_with("JSON specification file") && missing.ends_with("config.json not found"),
        "{missing}"
    );
    let nowhere = line(Bundle::load(&temp.0.join("x"), None).unwrap_err());
    assert!(nowhere.contains("bundle") && nowhere.contains("no such file or directory"), "{nowhere}");
    for text in ["", "{", "[]", "null", "{}x", "\0"] {
        let error = line(temp.load(text.as_bytes()).unwrap_err());
        assert!(error.starts_with("config.json: "), "{text:?}: {error}");
    }
    let huge = line(temp.load(&vec![b' '; 50 << 20]).unwrap_err());
    assert!(huge.contains("config.json: 52428800 bytes are more than the 16 MiB that are read"), "{huge}");
    let deep = line(temp.load("[".repeat(100_000).as_bytes()).unwrap_err());
    assert!(deep.starts_with("config.json: "), "{deep}");
    std::fs::remove_file(temp.0.join("config.json")).unwrap();
    let fifo = temp.0.join("config.json");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let fifo = line(Bundle::load(&temp.0, None).unwrap_err());
    assert!(fifo.ends_with("not a regular file"), "{fifo}");
}

/// What the parser does not know it drops, and no check after it can tell.
#[test]
fn the_parser_knows_each_field_of_the_specification() {
    let full = include_bytes!("bundle/testdata/full.json");
    let listed = include_str!("../tests/spec-fields.txt").lines().filter(|line| !line.starts_with('#'));
    let given = fields_of(&serde_json::from_slice(full).unwrap());
    let (spec, _): (Spec, _) = parse(full).unwrap();
    let known = fields_of(&serde_json::to_value(spec).unwrap());
    // Looked for in the document itself: `unsupported::unknown_platform`, `lenient::monitoring`.
    let ours = ["freebsd", "linux.intelRdt.enableCMT", "linux.intelRdt.enableMBM"];
    for field in listed {
        assert!(given.contains(field), "{field} is not in testdata/full.json");
        assert_eq!(known.contains(field), !ours.contains(&field), "{field}");
    }
}

/// Every path of a document, as tests/spec_fields.py writes it.
fn fields_of(document: &Value) -> std::collections::BTreeSet<String> {
    // Maps with keys of the user's own, and the platforms that are one field each.
    const MAPS: &[&str] = &["linux.netDevices", "linux.resources.rdma"];
    fn walk(path: &str, value: &Value, found: &mut std::collections::BTreeSet<String>) {
        found.insert(path.to_owned());
        match value {
            Value::Array(items) => items.iter().for_each(|item| walk(&format!("{path}[]"), item, found)),
            Value::Object(fields) => {
                for (name, field) in fields {
                    let name = if MAPS.contains(&path) { "*" } else { name };
                    walk(format!("{path}.{name}").trim_start_matches('.'), field, found);
                }
            }
            _ => {}
        }
    }
    let mut found = Default::default();
    walk("", document, &mut found);
    found
}

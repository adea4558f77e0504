//! The room's own promises on plain directories, where "files" are whatever a test puts there.

use super::testing::TempTree;
use super::*;

fn hierarchy(tree: &TempTree, name: &str, controllers: &[&str], inner: &str) -> Hierarchy {
    let mount = tree.path().join(name);
    fs::create_dir_all(&mount).unwrap();
    let controllers = controllers.iter().map(|&c| c.to_owned()).collect();
    Hierarchy { controllers, dir: mount.join(inner), mount }
}

fn cgroup(v1: Vec<Hierarchy>, v2: Option<Hierarchy>) -> Cgroup {
    Cgroup { v1, v2, rootless: false, lenient: false, unit: None }
}

#[test]
fn a_failed_create_leaves_nothing() {
    let tree = TempTree::new(&[]);
    let v1 = vec![hierarchy(&tree, "pids", &["pids"], "a/b/c"), hierarchy(&tree, "cpu", &["cpu"], "a/b/c")];
    let resources = serde_json::from_str(r#"{"pids":{"limit":5}}"#).unwrap();
    let error = format!("{:#}", cgroup(v1, None).create(Some(&resources)).unwrap_err());
    assert!(error.contains("linux.resources.pids.limit") && error.contains("pids.max"), "{error}");
    assert!(tree.path().join("pids").is_dir());
    assert!(!tree.path().join("pids/a").exists() && !tree.path().join("cpu/a").exists());
}

#[test]
fn a_limit_of_a_controller_that_is_not_there_names_its_field() {
    let tree = TempTree::new(&[]);
    let v1 = vec![hierarchy(&tree, "pids", &["pids"], "x")];
    let resources = serde_json::from_str(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#).unwrap();
    let error = cgroup(v1, None).create(Some(&resources)).unwrap_err().to_string();
    assert_eq!(
        error,
        "linux.resources.hugepageLimits[2MB]: cannot set hugetlb limit: container could not join or create cgroup"
    );
    let tree = TempTree::new(&[
        ("v2/cgroup.controllers", "pids"),
        ("v2/cgroup.subtree_control", "pids"),
        ("v2/x/cgroup.controllers", "pids"),
    ]);
    let v2 = hierarchy(&tree, "v2", &[], "x");
    let resources = serde_json::from_str(r#"{"memory":{"limit":5}}"#).unwrap();
    let error = cgroup(Vec::new(), Some(v2)).create(Some(&resources)).unwrap_err().to_string();
    assert!(
        error.starts_with("linux.resources.memory.limit: controller \"memory\" is not available"),
        "{error}"
    );
}

#[test]
fn an_existing_cgroup_must_be_empty_and_not_frozen() {
    let tree = TempTree::new(&[("pids/x/cgroup.procs", ""), ("pids/x/nested/cgroup.procs", "12\n0\n13\n")]);
    let used = cgroup(vec![hierarchy(&tree, "pids", &["pids"], "x")], None);
    let error = used.create(None).unwrap_err().to_string();
    assert!(error.starts_with("container's cgroup is not empty: 2 process(es) found"), "{error}");
    assert_eq!(used.pids().unwrap(), [12, 13]);
    assert!(tree.path().join("pids/x/nested").is_dir());
    let tree = TempTree::new(&[
        ("f/x/cgroup.procs", ""),
        ("f/x/freezer.state", "FROZEN\n"),
        ("f/x/freezer.self_freezing", "1\n"),
    ]);
    let frozen = cgroup(vec![hierarchy(&tree, "f", &["freezer"], "x")], None);
    let error = frozen.create(None).unwrap_err().to_string();
    assert!(error.starts_with("container's cgroup unexpectedly frozen"), "{error}");
}

#[test]
fn removal_is_deepest_first_and_idempotent() {
    let tree = TempTree::new(&[]);
    let cgroup = cgroup(vec![hierarchy(&tree, "pids", &["pids"], "x")], None);
    fs::create_dir_all(tree.path().join("pids/x/a/b")).unwrap();
    fs::create_dir_all(tree.path().join("pids/x/c")).unwrap();
    cgroup.remove().unwrap();
    assert!(!tree.path().join("pids/x").exists());
    cgroup.remove().unwrap();
}

#[test]
fn mounts_for_a_container() {
    let tree = TempTree::new(&[("cpu,cpuacct/x/tasks", ""), ("systemd/x/tasks", "")]);
    let v1 = vec![
        hierarchy(&tree, "cpu,cpuacct", &["cpu", "cpuacct"], "x"),
        hierarchy(&tree, "systemd", &["name=systemd"], "x"),
    ];
    let mounts = cgroup(v1, None).v1_mounts().unwrap();
    assert_eq!((mounts[0].name.as_str(), mounts[0].options.join(",")), ("cpu,cpuacct", "cpu,cpuacct".into()));
    assert_eq!(mounts[0].links, ["cpu", "cpuacct"]);
    assert_eq!(
        (mounts[1].name.as_str(), mounts[1].options.join(",")),
        ("systemd", "none,name=systemd".into())
    );
    assert_eq!(mounts[1].path, tree.path().join("systemd/x"));
    assert!(mounts[1].links.is_empty());
}

#[test]
fn a_sub_cgroup_stays_below_and_may_be_of_one_controller() {
    let tree = TempTree::new(&[
        ("cpu/x/tasks", ""),
        ("pids/x/tasks", ""),
        ("cpu/x/s/tasks", ""),
        ("cpu/x/s/cgroup.procs", ""),
    ]);
    let v1 = vec![hierarchy(&tree, "cpu", &["cpu"], "x"), hierarchy(&tree, "pids", &["pids"], "x")];
    let cgroup = cgroup(v1, None);
    cgroup.joiner(&["cpu:s".into()]).unwrap().enter().unwrap();
    assert_eq!((tree.read("cpu/x/s/tasks"), tree.read("pids/x/tasks")), ("0".into(), "0".into()));
    assert!(cgroup.joiner(&["../y".into()]).is_err());
    assert!(cgroup.joiner(&["absent".into()]).is_err());
}

#[test]
fn disabled_does_nothing() {
    let disabled = Cgroup::plan("id", None, Driver::Disabled, false, None).unwrap();
    let resources = serde_json::from_str(r#"{"pids":{"limit":5}}"#).unwrap();
    disabled.create(Some(&resources)).unwrap();
    assert!(disabled.pids().unwrap().is_empty() && disabled.joiner(&[]).unwrap().into_cgroup().is_none());
    disabled.remove().unwrap();
    Cgroup::plan("id", None, Driver::Disabled, true, None).unwrap().create(Some(&resources)).unwrap();
}

/// Deeper than PATH_MAX is long and than descriptors go: a container that may make cgroups must stay deletable.
#[test]
fn cgroups_nested_without_end_are_listed_and_removed() {
    let tree = TempTree::new(&[]);
    let top = tree.path().join("top");
    std::fs::create_dir(&top).unwrap();
    let mut here = std::fs::File::open(&top).unwrap();
    let name = "x".repeat(20);
    for depth in 0..1200 {
        rustix::fs::mkdirat(&here, &name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        here = rustix::fs::openat(&here, &name, flags, rustix::fs::Mode::empty()).unwrap().into();
        if depth == 1199 {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE;
            let procs = rustix::fs::openat(&here, "cgroup.procs", flags, rustix::fs::Mode::RWXU).unwrap();
            rustix::io::write(&procs, b"0\n4242\n").unwrap();
        }
    }
    assert_eq!(tree::pids(&top).unwrap(), [4242]);
    rustix::fs::unlinkat(&here, "cgroup.procs", rustix::fs::AtFlags::empty()).unwrap();
    tree::remove(&top, Instant::now()).unwrap();
    assert!(!top.exists());
}

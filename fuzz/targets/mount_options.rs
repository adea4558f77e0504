//! The words of a mount's options: order decides as in mount(8), nothing is lost, and the kernel takes what comes out
//! and then shows just that.

#![no_main]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use runw_fuzz::linux::rootfs::options::{Options, parse, propagation};
use runw_fuzz::linux::sys::{self, MountAttr};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree,
};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    let Ok(options) = parse(&words) else {
        assert!(words.iter().any(|word| word == "remount"), "refused: {words:?}");
        return;
    };
    // The last word on a thing decides, so saying everything twice changes nothing.
    let twice = parse(&[words.clone(), words.clone()].concat()).expect("the same words");
    let attributes = |o: &Options| (o.set, o.clear, o.set_recursive, o.clear_recursive, o.bind, o.tmpcopyup);
    assert_eq!(attributes(&twice), attributes(&options), "{words:?}");
    // What is not ours goes to the file system, in its order.
    let mut rest = words.iter();
    assert!(options.data.iter().all(|word| rest.any(|given| given == word)), "{words:?} {options:?}");
    assert!(options.data.iter().all(|word| propagation(word).is_none()), "{options:?}");
    assert_eq!(options.propagation.len(), words.iter().filter(|word| propagation(word).is_some()).count());
    for (set, clear) in [(options.set, options.clear), (options.set_recursive, options.clear_recursive)] {
        valid(set, clear);
    }
    if let Some(tree) = tree() {
        kernel_agrees(tree, &options);
    }
});

/// mount_setattr(2): a bit is set or cleared; the access times are one field, cleared whenever it is set.
fn valid(set: u64, clear: u64) {
    let atime = sys::MOUNT_ATTR_ATIME;
    assert_eq!(set & clear & !atime, 0, "{set:#x} {clear:#x}");
    assert!(clear & atime == atime || (clear | set) & atime == 0, "{set:#x} {clear:#x}");
}

/// A tmpfs that is mounted nowhere; none without privileges.
fn tree() -> Option<OwnedFd> {
    static TMPFS: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let make = || {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
        fsconfig_create(context.as_fd()).ok()?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).ok()
    };
    let tmpfs = TMPFS.get_or_init(make).as_ref()?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Some(open_tree(tmpfs, "", flags).expect("a clone of a mount of our own"))
}

fn kernel_agrees(tree: OwnedFd, options: &Options) {
    let change = |recursive, attr: MountAttr| {
        let done = sys::mount_setattr(tree.as_fd(), recursive, &attr);
        done.unwrap_or_else(|failure| panic!("the kernel refuses {options:?}: {failure}"));
    };
    let plain = |set, clear| MountAttr { set, clear, ..MountAttr::default() };
    change(true, plain(options.set_recursive, options.clear_recursive));
    change(false, plain(options.set, options.clear));
    for &(recursive, propagation) in &options.propagation {
        change(recursive, MountAttr { propagation, ..MountAttr::default() });
    }
    let shown = rustix::fs::fstatvfs(&tree).expect("statvfs").f_flag.bits();
    for (attr, flag) in [
        (sys::MOUNT_ATTR_RDONLY, libc::ST_RDONLY),
        (sys::MOUNT_ATTR_NOSUID, libc::ST_NOSUID),
        (sys::MOUNT_ATTR_NODEV, libc::ST_NODEV),
        (sys::MOUNT_ATTR_NOEXEC, libc::ST_NOEXEC),
        (sys::MOUNT_ATTR_NODIRATIME, libc::ST_NODIRATIME),
        (sys::MOUNT_ATTR_NOATIME, libc::ST_NOATIME),
    ] {
        let own = (options.set | options.clear) & attr != 0;
        let wanted = if own { options.set & attr != 0 } else { options.set_recursive & attr != 0 };
        assert_eq!(shown & flag != 0, wanted, "{attr:#x} of {options:?}: {shown:#x}");
    }
}

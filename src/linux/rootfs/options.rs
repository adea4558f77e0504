//! The words of a mount's `options`, as runc reads them (libcontainer/specconv/spec_linux.go), as data.

use oci_spec::runtime::Mount;

use crate::linux::sys;

/// A parsed option list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` (false) or `rbind` (true).
    pub bind: Option<bool>,
    /// MOUNT_ATTR bits for this mount alone.
    pub set: u64,
    pub clear: u64,
    /// MOUNT_ATTR bits for the mount and all below it (`rro`, `rnosuid`, ...).
    pub set_recursive: u64,
    pub clear_recursive: u64,
    /// Propagation changes in the order given: (recursive, MS_* bit).
    pub propagation: Vec<(bool, u64)>,
    /// Superblock flags by their fsconfig(2) names.
    pub superblock: Vec<&'static str>,
    /// What is left for the filesystem.
    pub data: Vec<String>,
    /// No new mount: what is mounted there gets these options.
    pub remount: bool,
    /// runc's and crun's extension: the mount starts with a copy of what it covers.
    pub tmpcopyup: bool,
    /// crun's extension: of a bind whose source is a link, the link.
    pub copy_symlink: bool,
    /// `ridmap`: the mapping holds of all mounts below, too.
    pub idmap_recursive: bool,
}

impl Options {
    pub fn is_read_only(&self) -> bool {
        self.set & sys::MOUNT_ATTR_RDONLY != 0
    }
}

/// Words that set or clear an attribute of one mount; an `r` before them makes them recursive.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", sys::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, sys::MOUNT_ATTR_RDONLY),
    ("nosuid", sys::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, sys::MOUNT_ATTR_NOSUID),
    ("nodev", sys::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, sys::MOUNT_ATTR_NODEV),
    ("noexec", sys::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, sys::MOUNT_ATTR_NOEXEC),
    ("nodiratime", sys::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, sys::MOUNT_ATTR_NODIRATIME),
    // mount_setattr(2): the three atime modes are one field, which must be cleared to be set.
    ("relatime", sys::MOUNT_ATTR_RELATIME, sys::MOUNT_ATTR_ATIME),
    ("norelatime", 0, 0),
    ("noatime", sys::MOUNT_ATTR_NOATIME, sys::MOUNT_ATTR_ATIME),
    ("atime", sys::MOUNT_ATTR_RELATIME, sys::MOUNT_ATTR_ATIME),
    ("strictatime", sys::MOUNT_ATTR_STRICTATIME, sys::MOUNT_ATTR_ATIME),
    ("nostrictatime", sys::MOUNT_ATTR_RELATIME, sys::MOUNT_ATTR_ATIME),
    ("nosymfollow", sys::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, sys::MOUNT_ATTR_NOSYMFOLLOW),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("private", libc::MS_PRIVATE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// fsconfig(2) names of superblock flags; the negative words are the default and set nothing. Nor do flags of mount(2)
/// without such a name: each file system has settled `acl` and `iversion` for itself, `silent` was for mount(2)'s own
/// messages.
const SUPERBLOCK: &[(&str, Option<&str>)] = &[
    ("sync", Some("sync")),
    ("async", None),
    ("dirsync", Some("dirsync")),
    ("mand", Some("mand")),
    ("nomand", None),
    ("lazytime", Some("lazytime")),
    ("nolazytime", None),
    ("iversion", None),
    ("noiversion", None),
    ("acl", None),
    ("noacl", None),
    ("silent", None),
    ("loud", None),
    ("defaults", None),
];

pub fn of(mount: &Mount) -> Options {
    parse(mount.options().as_deref().unwrap_or_default())
}

/// Reads the words in order: a later one overrides an earlier, as in mount(8).
pub fn parse(words: &[String]) -> Options {
    let mut options = Options::default();
    for word in words {
        parse_word(&mut options, word);
    }
    options
}

fn parse_word(options: &mut Options, word: &str) {
    if let Some(&(_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == word) {
        change(&mut options.set, &mut options.clear, set, clear);
        return;
    }
    if let Some(propagation) = propagation(word) {
        options.propagation.push(propagation);
        return;
    }
    if let Some((_, flag)) = SUPERBLOCK.iter().find(|(name, _)| *name == word) {
        options.superblock.extend(flag);
        return;
    }
    if let Some(word) = word.strip_prefix('r')
        && let Some(&(_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == word)
    {
        change(&mut options.set_recursive, &mut options.clear_recursive, set, clear);
        return;
    }
    match word {
        "bind" => options.bind = Some(options.bind.unwrap_or(false)),
        "rbind" => options.bind = Some(true),
        "tmpcopyup" => options.tmpcopyup = true,
        "copy-symlink" => options.copy_symlink = true,
        "remount" => options.remount = true,
        "idmap" => options.idmap_recursive = false,
        "ridmap" => options.idmap_recursive = true,
        _ => options.data.push(word.to_owned()),
    }
}

/// What is left for the file system, one by one as fsconfig(2) wants it. mount(2) takes one string, and whoever writes
/// for it may have put several options into a word; its quotes keep the commas of an SELinux context.
pub fn parameters(data: &[String]) -> impl Iterator<Item = (String, Option<String>)> {
    data.iter().flat_map(|word| split(word)).map(|option| match option.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (option, None),
    })
}

fn split(word: &str) -> Vec<String> {
    let (mut options, mut quoted, mut before) = (vec![String::new()], false, None);
    for c in word.chars() {
        match c {
            '"' => quoted = !quoted,
            // Overlay's way to name a directory with a comma.
            ',' if !quoted && before != Some('\\') => options.push(String::new()),
            c => options.last_mut().unwrap_or(&mut String::new()).push(c),
        }
        before = Some(c);
    }
    options.retain(|option| !option.is_empty());
    options
}

/// A propagation word of a mount or of `rootfsPropagation`: (recursive, MS_* bit).
pub fn propagation(word: &str) -> Option<(bool, u64)> {
    let find = |word: &str| PROPAGATION.iter().find(|(name, _)| *name == word).map(|(_, bit)| *bit);
    match find(word) {
        Some(bit) => Some((false, bit)),
        None => word.strip_prefix('r').and_then(find).map(|bit| (true, bit)),
    }
}

fn change(set: &mut u64, clear: &mut u64, add: u64, remove: u64) {
    *set = (*set & !remove) | add;
    // What is cleared stays cleared for the kernel unless it is set again later; atime is a field, cleared first.
    *clear = (*clear & !add) | remove;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Options {
        parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn later_words_override_earlier_ones() {
        let options = read(&["ro", "rw"]);
        assert_eq!((options.set, options.clear), (0, sys::MOUNT_ATTR_RDONLY));
        let options = read(&["rw", "ro"]);
        assert_eq!((options.set, options.clear), (sys::MOUNT_ATTR_RDONLY, 0));
        let options = read(&["noatime", "strictatime"]);
        assert_eq!((options.set, options.clear), (sys::MOUNT_ATTR_STRICTATIME, sys::MOUNT_ATTR_ATIME));
    }

    #[test]
    fn r_makes_a_word_recursive_but_rw_and_relatime_are_words_of_their_own() {
        let options = read(&["rro", "rnosuid", "rw", "relatime"]);
        assert_eq!(options.set_recursive, sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID);
        assert_eq!(options.clear, sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_ATIME);
    }

    #[test]
    fn propagation_words_keep_their_order() {
        assert_eq!(
            read(&["rslave", "shared"]).propagation,
            [(true, libc::MS_SLAVE), (false, libc::MS_SHARED)]
        );
    }

    #[test]
    fn the_rest_is_the_filesystems() {
        let options = read(&["nosuid", "mode=755", "size=64k", "sync", "tmpcopyup"]);
        assert_eq!(options.data, ["mode=755", "size=64k"]);
        assert_eq!(options.superblock, ["sync"]);
        assert!(options.tmpcopyup);
    }

    #[test]
    fn a_word_may_hold_several_of_the_filesystem_s_options() {
        let words = ["mode=700,size=64k", "lowerdir=/a\\,b:/c", r#"context="u:r:t:s0:c1,c2",noswap"#, ""];
        let all: Vec<_> = parameters(&words.map(str::to_owned)).collect();
        let some = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        assert_eq!(
            all,
            [
                some("mode", "700"),
                some("size", "64k"),
                some("lowerdir", "/a\\,b:/c"),
                some("context", "u:r:t:s0:c1,c2"),
                ("noswap".to_owned(), None)
            ]
        );
    }

    #[test]
    fn the_last_idmap_word_counts() {
        assert!(read(&["idmap", "ridmap"]).idmap_recursive);
        assert!(!read(&["ridmap", "idmap"]).idmap_recursive);
        assert_eq!(read(&["ridmap"]).data, [""; 0]);
    }

    #[test]
    fn rbind_wins_over_bind_in_either_order() {
        assert_eq!(read(&["bind", "rbind"]).bind, Some(true));
        assert_eq!(read(&["rbind", "bind"]).bind, Some(true));
        assert_eq!(read(&["ro"]).bind, None);
    }
}

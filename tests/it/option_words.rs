//! Every option word of runc's tables on a new file system, on a bind of a mount with all flags, and on a bind of a
//! shared one with none: what /proc/self/mountinfo says of it under runw, beside what it says under runc.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Bundle, Call, Container, Verdict, run, runtime, runw_only, skip, supervised};

/// Words that every runc takes alike: whatever it makes of them is what runw must make of them.
const SETTING: [&str; 9] =
    ["noatime", "nodev", "nodiratime", "noexec", "nosuid", "nosymfollow", "relatime", "ro", "strictatime"];

const PROPAGATION: [&str; 8] =
    ["private", "rprivate", "rshared", "rslave", "runbindable", "shared", "slave", "unbindable"];

/// Words that take a flag away, and what is left then of the mount with all flags. runc 1.2 is the first that minds
/// them on a bind (1.1 leaves such a bind as it is): all flags that nobody asks for go, as with mount(8)'s `--bind -o`.
/// Of `atime` and `diratime` it says itself that it should honour them and does not yet.
const CLEARING: [(&str, &str); 9] = [
    ("atime", "rw,relatime"),
    ("dev", "rw,noatime,nodiratime"),
    ("diratime", "rw,noatime"),
    ("exec", "rw,noatime,nodiratime"),
    ("norelatime", ALL_FLAGS),
    ("nostrictatime", "rw,relatime"),
    ("rw", "rw,noatime,nodiratime"),
    ("suid", "rw,noatime,nodiratime"),
    ("symfollow", "rw,noatime,nodiratime"),
];

/// Words of the superblock: a bind has none of its own. (runc's remount for them drops the source's flags.)
const SUPERBLOCK: [&str; 15] = [
    "acl",
    "async",
    "defaults",
    "dirsync",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noiversion",
    "nolazytime",
    "nomand",
    "silent",
    "sync",
    "tmpcopyup",
];

/// Words for the mount and all below it: what a mount without flags has then, and the one with all of them. They
/// change what they name and nothing else.
const RECURSIVE: [(&str, &str, &str); 18] = [
    ("ratime", "rw,relatime", "ro,nosuid,nodev,noexec,nodiratime,relatime"),
    ("rdev", "rw,relatime", "ro,nosuid,noexec,noatime,nodiratime"),
    ("rdiratime", "rw,relatime", "ro,nosuid,nodev,noexec,noatime"),
    ("rexec", "rw,relatime", "ro,nosuid,nodev,noatime,nodiratime"),
    ("rnoatime", "rw,noatime", ALL_FLAGS),
    ("rnodev", "rw,nodev,relatime", ALL_FLAGS),
    ("rnodiratime", "rw,nodiratime,relatime", ALL_FLAGS),
    ("rnoexec", "rw,noexec,relatime", ALL_FLAGS),
    ("rnorelatime", "rw,relatime", ALL_FLAGS),
    ("rnostrictatime", "rw,relatime", "ro,nosuid,nodev,noexec,nodiratime,relatime"),
    ("rnosuid", "rw,nosuid,relatime", ALL_FLAGS),
    ("rnosymfollow", "rw,relatime,nosymfollow", "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"),
    ("rrelatime", "rw,relatime", "ro,nosuid,nodev,noexec,nodiratime,relatime"),
    ("rro", "ro,relatime", ALL_FLAGS),
    ("rrw", "rw,relatime", "rw,nosuid,nodev,noexec,noatime,nodiratime"),
    ("rstrictatime", "rw", "ro,nosuid,nodev,noexec,nodiratime"),
    ("rsuid", "rw,relatime", "ro,nodev,noexec,noatime,nodiratime"),
    ("rsymfollow", "rw,relatime", ALL_FLAGS),
];

const ALL_FLAGS: &str = "ro,nosuid,nodev,noexec,noatime,nodiratime";

/// Words that have tests of their own in `mounts`.
const ELSEWHERE: [&str; 6] = ["bind", "copy-symlink", "idmap", "rbind", "remount", "ridmap"];

fn words() -> Vec<&'static str> {
    let tables = [&SETTING[..], &PROPAGATION[..], &SUPERBLOCK[..]].concat();
    let pairs = CLEARING.iter().map(|(word, _)| *word).chain(RECURSIVE.iter().map(|(word, ..)| *word));
    tables.into_iter().chain(pairs).collect()
}

/// Mount point to its options, its propagation and its superblock's options.
type Seen = BTreeMap<String, String>;

/// All of them in one container of `program`; `before_5_12` is without mount_setattr(2).
fn seen(program: &Path, words: &[&str], before_5_12: bool) -> Seen {
    let bundle = Bundle::sh("cat /proc/self/mountinfo");
    let (flags, shared) = (bundle.outside("flags"), bundle.outside("shared"));
    let bundle = bundle.edit(|config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        for &word in words {
            let mut add = |top: &str, kind: &str, source: &Path, options: &[&str]| {
                mounts.push(json!({"destination": format!("/{top}/{word}"), "type": kind, "source": source,
                    "options": options}));
            };
            add("new", "tmpfs", Path::new("t"), &[word]);
            if word != "tmpcopyup" {
                add("flags", "bind", &flags, &["bind", word]);
                add("shared", "bind", &shared, &["rbind", word]);
            }
        }
    });
    let c = Container::new(bundle);
    let line = r#"mount -t tmpfs -o ro,nosuid,nodev,noexec,noatime,nodiratime s "$0/flags"
        mount -t tmpfs s "$0/shared" && mount --make-shared "$0/shared" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", line]).arg(c.bundle.path()).arg(program);
    command.arg("--root").arg(c.root()).args(["run", "--bundle"]).arg(c.bundle.path()).arg(&c.id);
    let out = if before_5_12 {
        let fails = |call: &Call| call.name == "mount_setattr";
        let verdict =
            move |call: &Call| if fails(call) { Verdict::Fail(libc::ENOSYS) } else { Verdict::Pass };
        supervised(&mut command, verdict).0.wait()
    } else {
        run(&mut command)
    };
    assert_eq!(out.code, 0, "{}: {}", program.display(), out.err);
    out.out.lines().map(describe).collect()
}

fn describe(line: &str) -> (String, String) {
    let fields: Vec<&str> = line.split(' ').collect();
    let end = fields.iter().position(|field| *field == "-").expect("a separator");
    // Peer groups are numbered as they come.
    let tags = fields[6..end].iter().map(|tag| tag.split(':').next().unwrap_or_default());
    let tags: Vec<&str> = tags.collect();
    (fields[4].to_owned(), format!("{} [{}] {}", fields[5], tags.join(" "), fields[end + 3]))
}

fn without_superblock(seen: &str) -> &str {
    seen.split(' ').next().unwrap_or_default()
}

#[test]
fn every_word_of_runc_s() {
    if runw_only("another runtime to compare itself with") {
        return;
    }
    let ours = seen(runtime(), &words(), false);
    let mut wrong = Vec::new();
    let mut expect = |at: String, want: &str, got: &str| {
        if want != got {
            wrong.push(format!("{at}: {got}, not {want}"));
        }
    };
    for (word, want) in CLEARING {
        expect(format!("/flags/{word}"), want, without_superblock(&ours[&format!("/flags/{word}")]));
    }
    for (word, plain, flags) in RECURSIVE {
        for (top, want) in [("new", plain), ("shared", plain), ("flags", flags)] {
            expect(format!("/{top}/{word}"), want, without_superblock(&ours[&format!("/{top}/{word}")]));
        }
    }
    expect("/new/defaults".to_owned(), "rw,relatime", without_superblock(&ours["/new/defaults"]));
    for word in SUPERBLOCK.iter().filter(|word| **word != "tmpcopyup") {
        expect(format!("/flags/{word}"), ALL_FLAGS, without_superblock(&ours[&format!("/flags/{word}")]));
    }
    if Path::new("/usr/bin/runc").exists() {
        // 1.1.5 gives `defaults` to the file system, and asks for some of the recursive words what no kernel grants.
        let other =
            |word: &&str| *word != "defaults" && RECURSIVE.iter().all(|(recursive, ..)| recursive != word);
        let known: Vec<&str> = words().into_iter().filter(other).collect();
        let runc = seen(Path::new("/usr/bin/runc"), &known, false);
        let clearing = CLEARING.iter().map(|(word, _)| *word);
        let alike = SETTING.into_iter().chain(PROPAGATION).map(|word| ("flags", word));
        let everywhere = SETTING.into_iter().chain(PROPAGATION).chain(SUPERBLOCK).chain(clearing);
        let everywhere = everywhere.flat_map(|word| [("new", word), ("shared", word)]);
        for (top, word) in alike.chain(everywhere) {
            let at = format!("/{top}/{word}");
            if let Some(theirs) = runc.get(&at) {
                expect(format!("{at} (runc)"), theirs, &ours[&at]);
            }
        }
    } else {
        skip("runc is not installed");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// mount(2) can say all of them but the recursive ones, which are refused then.
#[test]
fn without_mount_setattr_the_words_hold() {
    if runw_only("such a fallback") {
        return;
    }
    let clearing: Vec<&str> = CLEARING.iter().map(|(word, _)| *word).collect();
    let words = [&SETTING[..], &clearing].concat();
    let (old, new) = (seen(runtime(), &words, true), seen(runtime(), &words, false));
    let differ: Vec<_> = new.iter().filter(|(at, seen)| old.get(*at) != Some(seen)).collect();
    assert!(differ.is_empty(), "{differ:#?} are {old:#?}");
}

/// What `features` tells engines is what is tested here.
#[test]
fn the_words_are_those_of_features() {
    if runw_only("such words in features") {
        return;
    }
    let out = run(Command::new(runtime()).arg("features")).ok().out;
    let features: Value = serde_json::from_str(&out).expect("JSON");
    let told: Vec<&str> =
        features["mountOptions"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let mut tested = words();
    tested.extend(ELSEWHERE);
    tested.sort_unstable();
    assert_eq!(told, tested);
}

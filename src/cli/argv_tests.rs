//! The table of native-peers 1.1 to 1.3: every flag of runc and crun, in every spelling Go takes.

use super::super::{VERBS, top_command, verb_command};
use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn command(verb: &str) -> Command {
    match verb {
        "" => top_command(),
        verb => verb_command(VERBS.iter().find(|v| v.name == verb).unwrap()),
    }
}

fn read(verb: &str, line: &str) -> Result<Parsed, String> {
    let command = command(verb);
    let order = if verb.is_empty() { Order::GlobalsThenVerb } else { Order::of(&command) };
    parse(&command, order, &words(line))
}

fn strings(words: &[OsString]) -> Vec<&str> {
    words.iter().map(|word| word.to_str().unwrap()).collect()
}

/// verb | booleans | flags with a value and a value each
const TABLE: &[(&str, &str, &str)] = &[
    (
        "",
        "debug systemd-cgroup",
        "root=/r log=/l log-format=json log-level=debug cgroup-manager=systemd rootless=true",
    ),
    (
        "create",
        "no-pivot no-new-keyring no-subreaper",
        "b=/x bundle=/x f=/c config=/c console-socket=/s pidfd-socket=/s pid-file=/p preserve-fds=3",
    ),
    (
        "run",
        "no-pivot no-new-keyring no-subreaper d detach keep",
        "b=/x bundle=/x f=/c config=/c console-socket=/s pidfd-socket=/s pid-file=/p preserve-fds=3",
    ),
    (
        "exec",
        "d detach t tty no-new-privs ignore-paused no-subreaper",
        "console-socket=/s pidfd-socket=/s cwd=/c e=A=b env=A=b p=/p process=/p pid-file=/f apparmor=a preserve-fds=1 \
         u=1:2 user=1 g=5 additional-gids=5 process-label=l c=CAP_KILL cap=CAP_KILL cgroup=cpu:/x",
    ),
    ("kill", "a all r regex", ""),
    ("delete", "f force r regex", ""),
    ("list", "q quiet", "f=json format=json"),
    ("spec", "rootless", "b=/x bundle=/x f=/c file=/c"),
    ("state", "", ""),
    ("start", "", ""),
    ("pause", "", ""),
    ("resume", "", ""),
    ("ps", "", "f=json format=json"),
    ("events", "stats", "interval=100ms"),
    (
        "update",
        "",
        "r=- resources=/f blkio-weight=100 cpu-period=1000 cpu-quota=-1 cpu-share=2 cpu-burst=1 cpu-idle=1 \
         cpu-rt-period=1 cpu-rt-runtime=-1 cpuset-cpus=0-1 cpuset-mems=0 memory=64m memory-reservation=1.5GiB \
         memory-swap=-1 kernel-memory=1k kernel-memory-tcp=1k pids-limit=-1 l3-cache-schema=x mem-bw-schema=x",
    ),
    ("features", "", ""),
    (
        "checkpoint",
        "leave-running tcp-established tcp-skip-in-flight link-remap ext-unix-sk shell-job lazy-pages file-locks pre-dump \
         auto-dedup",
        "image-path=/i work-path=/w parent-path=../p status-fd=3 page-server=1.2.3.4:5 manage-cgroups-mode=soft \
         empty-ns=network network-lock=skip",
    ),
    (
        "restore",
        "tcp-established tcp-close ext-unix-sk shell-job file-locks d detach no-subreaper no-pivot auto-dedup lazy-pages",
        "b=/x bundle=/x console-socket=/s image-path=/i work-path=/w manage-cgroups-mode=ignore pid-file=/p \
         empty-ns=network network-lock=nftables lsm-profile=selinux:x lsm-mount-context=y",
    ),
    ("completion", "", ""),
    ("cache", "a all fuel", "f=json format=table size=64m"),
];

/// A verb that is not in the table is not held to anything.
#[test]
fn every_verb_is_in_the_table() {
    for verb in VERBS {
        assert!(TABLE.iter().any(|(name, ..)| *name == verb.name), "{}", verb.name);
    }
    // And every flag of ours is: one that no peer has is listed here.
    let ours = ["handler", "criu", "wasm", "log-level"];
    for (verb, booleans, valued) in TABLE {
        let names: Vec<&str> = booleans.split_whitespace().chain(valued.split_whitespace()).collect();
        let named = |long: &str| {
            names.iter().any(|name| {
                let name = name.split('=').next().unwrap_or(name);
                lookup(&command(verb), name).and_then(Arg::get_long) == Some(long)
            })
        };
        for arg in command(verb).get_arguments().filter_map(Arg::get_long) {
            assert!(named(arg) || ours.contains(&arg), "{verb} --{arg} is not in the table");
        }
    }
}

#[test]
fn every_flag_in_every_spelling() {
    let mut seen = 0;
    for (verb, booleans, valued) in TABLE {
        for name in booleans.split_whitespace() {
            let long = lookup(&command(verb), name).unwrap().get_long().unwrap().to_owned();
            for (spelling, on) in [
                (format!("-{name}"), true),
                (format!("--{name}"), true),
                (format!("--{name}=true"), true),
                (format!("-{name}=1"), true),
                (format!("--{name}=false"), false),
                (format!("--{name} --{name}=F"), false),
                (format!("--{name}=false -{name}"), true),
            ] {
                let parsed = read(verb, &spelling).unwrap();
                let want = if on { vec![format!("--{long}")] } else { Vec::new() };
                assert_eq!(strings(&parsed.flags[1..]), want, "{verb} {spelling}");
                seen += 1;
            }
            assert!(read(verb, &format!("--{name}=maybe")).unwrap_err().contains("invalid boolean value"));
        }
        for flag in valued.split_whitespace() {
            let (name, value) = flag.split_once('=').unwrap();
            let long = lookup(&command(verb), name).unwrap().get_long().unwrap().to_owned();
            for spelling in [
                format!("-{name}={value}"),
                format!("--{name}={value}"),
                format!("-{name} {value}"),
                format!("--{name} {value}"),
            ] {
                let parsed = read(verb, &spelling).unwrap();
                assert_eq!(strings(&parsed.flags[1..]), [format!("--{long}={value}")], "{verb} {spelling}");
                // And clap takes what came out.
                let line = parsed.flags.iter().cloned().chain(words("-- id id"));
                let count = command(verb).get_positionals().count();
                if !verb.is_empty() && count > 0 {
                    let line = line.take(parsed.flags.len() + 1 + count);
                    command(verb).try_get_matches_from(line).unwrap();
                }
                seen += 1;
            }
            assert_eq!(
                read(verb, &format!("--{name}")).unwrap_err(),
                format!("flag needs an argument: -{name}")
            );
            assert_eq!(read(verb, &format!("--{name}=")).unwrap().flags.len(), 1, "empty is unset");
        }
        assert_eq!(read(verb, "--nope").unwrap_err(), "flag provided but not defined: -nope");
    }
    assert!(seen > 300, "{seen}");
}

#[test]
fn words_and_flags() {
    // verb, line, flags, words
    for (verb, line, flags, rest) in [
        ("", "--root /r state --x id", "--root=/r", "state --x id"),
        ("", "--log-format json -- state", "--log-format=json", "state"),
        ("kill", "id KILL --all", "--all", "id KILL"),
        ("kill", "-a -- id -9", "--all", "id -9"),
        ("delete", "id -f", "--force", "id"),
        ("create", "--bundle -b id", "--bundle=-b", "id"),
        ("create", "-b/x id", "-b/x", "id"),
        ("run", "-dt", "!", ""),
        ("exec", "-dt id cmd", "-dt", "id cmd"),
        ("exec", "-tu 0 id", "!", ""),
        ("exec", "-t id cmd --flag -t --", "--tty", "id cmd --flag -t --"),
        ("exec", "id -- cmd -x", "", "id -- cmd -x"),
        ("exec", "-- id cmd", "", "id cmd"),
        ("exec", "-cap CAP_KILL id sh", "--cap=CAP_KILL", "id sh"),
        ("exec", "-e A=1 -e B=2 id sh", "--env=A=1 --env=B=2", "id sh"),
        ("exec", "--tty=no id sh", "", "id sh"),
        ("list", "-", "", "-"),
        ("ps", "-f json id", "--format=json", "id"),
        ("ps", "id -o pid,comm -f", "", "id -o pid,comm -f"),
        ("update", "id --memory -1", "--memory=-1", "id"),
        ("update", "-r - id", "--resources=-", "id"),
    ] {
        let parsed = read(verb, line);
        if flags == "!" {
            assert!(parsed.is_err(), "{verb} {line}");
            continue;
        }
        let parsed = parsed.unwrap();
        assert_eq!(strings(&parsed.flags[1..]).join(" "), flags, "{verb} {line}");
        assert_eq!(strings(&parsed.words).join(" "), rest, "{verb} {line}");
    }
}

#[test]
fn clap_leaves_the_command_of_exec_alone() {
    let command = command("exec");
    let line = words("exec --tty -- id -- cmd -x --env y --");
    let matches = command.try_get_matches_from(line).unwrap();
    let rest: Vec<&String> = matches.get_many("command").unwrap().collect();
    assert_eq!(rest, ["--", "cmd", "-x", "--env", "y", "--"]);
}

#[test]
fn help_and_version() {
    for (verb, line, want) in [
        ("", "-v", Asked::Version),
        ("", "-V", Asked::Version),
        ("", "--version", Asked::Version),
        ("", "-version", Asked::Version),
        ("", "--debug -h", Asked::Help),
        ("", "-help state", Asked::Help),
        ("", "--usage", Asked::Help),
        ("list", "--usage", Asked::Help),
        ("", "state -h", Asked::Run),
        ("state", "-h", Asked::Help),
        ("state", "x --help", Asked::Help),
        ("exec", "x sh --help", Asked::Run),
    ] {
        assert_eq!(read(verb, line).unwrap().asked, want, "{verb} {line}");
    }
}

#[test]
fn counts() {
    let count = |verb: &str, line: &str| check_count(verb, &command(verb), &words(line));
    assert!(count("state", "a").is_ok() && count("kill", "a").is_ok() && count("kill", "a KILL").is_ok());
    assert!(count("exec", "a b c d").is_ok() && count("features", "").is_ok());
    assert_eq!(count("state", "").unwrap_err(), "runw: \"state\" requires exactly 1 argument(s)");
    assert_eq!(count("state", "a b").unwrap_err(), "runw: \"state\" requires exactly 1 argument(s)");
    assert_eq!(count("exec", "").unwrap_err(), "runw: \"exec\" requires a minimum of 1 argument(s)");
    assert_eq!(count("kill", "a b c").unwrap_err(), "runw: \"kill\" requires a maximum of 2 argument(s)");
}

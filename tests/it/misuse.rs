//! Each verb asked for what is wrong, in each state a container can be in: one clear line with runc's words, runc's exit
//! status, and the container as it was.

use std::process::Stdio;

use serde_json::json;

use crate::harness::{Bundle, Container, Kind, Out, alive, differs, kind, nothing_left, run, until};

/// A row's answer: the exit status, and what is said. An empty text means that the call is right.
type Answer = (i32, &'static str);

const FINE: Answer = (0, "");
const ABSENT: Answer = (1, "container does not exist");
const ABSENT_EXEC: Answer = (255, "exec failed: container does not exist");
const NOT_RUNNING: Answer = (1, "container not running");
const STOPPED_EXEC: Answer = (255, "exec failed: cannot exec in a stopped container");
const PAUSED_EXEC: Answer = (255, "exec failed: cannot exec in a paused container");
const TAKEN: Answer = (1, "container with given ID already exists");

/// What is asked (`ID`, `BUNDLE` and `NOWHERE` are put in), and the answer while there is no such container, and while it
/// is created, running, paused, stopped. `None`: asked elsewhere, since it changes the state.
type Row = (&'static str, [Option<Answer>; 5]);

fn always(answer: Answer) -> [Option<Answer>; 5] {
    [Some(answer); 5]
}

/// Absent containers and stopped ones come first; what is asked for is read after.
fn living(absent: Answer, living: Answer, stopped: Answer) -> [Option<Answer>; 5] {
    [Some(absent), Some(living), Some(living), Some(living), Some(stopped)]
}

fn exec(answer: Answer) -> [Option<Answer>; 5] {
    let [created, running] = [Some(answer); 2];
    [Some(ABSENT_EXEC), created, running, None, Some(STOPPED_EXEC)]
}

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let cannot_start = [Some(ABSENT), None, Some((1, "cannot start an already running container")),
        Some((1, "cannot start a container in the paused state")), Some((1, "cannot start a container that has stopped"))];
    vec![
        ("state ID", [Some(ABSENT), Some(FINE), Some(FINE), Some(FINE), Some(FINE)]),
        ("state", always((1, "\"state\" requires exactly 1 argument(s)"))),
        ("state ID more", always((1, "\"state\" requires exactly 1 argument(s)"))),
        ("state --nosuch ID", always((1, "flag provided but not defined: -nosuch"))),
        ("start ID", cannot_start),
        ("start", always((1, "\"start\" requires exactly 1 argument(s)"))),
        ("kill ID TERM", [Some(ABSENT), None, None, None, Some(NOT_RUNNING)]),
        ("kill ID NOSUCH", living(ABSENT, (1, "unknown signal \"NOSUCH\""), (1, "unknown signal \"NOSUCH\""))),
        ("kill ID 99999", living(ABSENT, (1, ""), (1, ""))),
        ("kill", always((1, "\"kill\" requires a minimum of 1 argument(s)"))),
        ("pause ID", [Some(ABSENT), None, None, Some(NOT_RUNNING), Some(NOT_RUNNING)]),
        ("resume ID", [Some(ABSENT), None, None, None, Some((1, "container not paused"))]),
        ("exec ID true", [Some(ABSENT_EXEC), Some(FINE), Some(FINE), Some(PAUSED_EXEC), Some(STOPPED_EXEC)]),
        ("exec ID", exec((255, "exec failed: process args cannot be empty"))),
        ("exec", always((1, "\"exec\" requires a minimum of 1 argument(s)"))),
        ("exec --process NOWHERE ID", exec((255, "/nowhere"))),
        ("exec --user a:b ID true", exec((255, "exec failed: "))),
        ("exec --cwd relative ID true", exec((255, "absolute path"))),
        ("exec -e NOEQ ID true", exec((255, "invalid environment variable"))),
        ("exec -t -d ID true", exec((255, "without setting console socket"))),
        ("exec --console-socket NOWHERE ID true", exec((255, "cannot use console socket"))),
        ("ps ID", [Some(ABSENT), Some(FINE), Some(FINE), Some(FINE), Some(FINE)]),
        ("ps -f bad ID", living(ABSENT, (1, "invalid format option"), (1, "invalid format option"))),
        ("ps ID -o nosuchcolumn", living(ABSENT, (1, ""), (1, ""))),
        ("list -f bad", always((1, "invalid format option"))),
        ("list ID", always((1, "\"list\" requires exactly 0 argument(s)"))),
        ("events --stats ID", living(ABSENT, FINE, (1, "is not running"))),
        ("events --interval nonsense ID", always((1, "invalid value"))),
        ("events --interval 0s ID", living((1, ""), (1, "duration interval must be greater than 0"), (1, "duration interval must be greater than 0"))),
        ("update --pids-limit 5000 ID", living(ABSENT, FINE, NOT_RUNNING)),
        ("update --memory -5 ID", living((1, ""), (1, "invalid size: '-5'"), (1, "invalid size: '-5'"))),
        ("update --memory 1q ID", living((1, ""), (1, "1q"), (1, "1q"))),
        ("update --pids-limit x ID", always((1, "invalid value"))),
        ("update -r NOWHERE ID", living((1, ""), (1, "no such file or directory"), (1, ""))),
        ("update -r BROKEN ID", living((1, ""), (1, ""), (1, ""))),
        ("update --cpuset-cpus 9999 ID", living(ABSENT, (1, "9999"), NOT_RUNNING)),
        ("create -b BUNDLE ID", [None, Some(TAKEN), Some(TAKEN), Some(TAKEN), Some(TAKEN)]),
        ("create -b NOWHERE ID", always((1, "no such file or directory"))),
        ("create", always((1, "\"create\" requires exactly 1 argument(s)"))),
        ("run -b BUNDLE ID", [None, Some(TAKEN), Some(TAKEN), Some(TAKEN), Some(TAKEN)]),
        ("run --pid-file NOWHERE/x -b NOWHERE ID", always((1, "no such file or directory"))),
        ("restore --image-path images -b BUNDLE ID", [Some((1, "")), Some(TAKEN), Some(TAKEN), Some(TAKEN), Some(TAKEN)]),
        ("checkpoint --image-path images ID", [Some(ABSENT), Some((1, "")), None, None, Some((1, ""))]),
        ("delete ID", [Some(ABSENT), None, Some((1, "that is not stopped: running")), Some((1, "that is not stopped: ")), None]),
        ("delete", always((1, "\"delete\" requires exactly 1 argument(s)"))),
        ("features more", always((1, "\"features\" requires exactly 0 argument(s)"))),
        ("spec more", always((1, "\"spec\" requires exactly 0 argument(s)"))),
        ("nosuch", always(if kind() == Kind::Runc { (3, "nosuch") } else { (1, "nosuch") })),
    ]
}

/// What a call must not change: status, pid, limits, what is remembered.
fn picture(c: &Container) -> String {
    let limits = ["pids/pids.max", "memory/memory.limit_in_bytes", "cpuset/cpuset.cpus"].map(|file| {
        let (controller, name) = file.split_once('/').unwrap();
        std::fs::read_to_string(c.cgroup(controller).join(name)).unwrap_or_default()
    });
    let config = std::fs::read_to_string(c.root().join(&c.id).join("config.json")).unwrap_or_default();
    format!("{} {} {limits:?} {config}", c.status(), c.pid())
}

fn ask(c: &Container, line: &str) -> Out {
    let bundle = c.bundle.path().to_str().unwrap();
    let words: Vec<String> = line
        .split(' ')
        .map(|word| {
            let word = word.replace("BUNDLE", bundle).replace("NOWHERE", &format!("{bundle}/nowhere"));
            word.replace("BROKEN", &format!("{bundle}/broken.json")).replace("ID", &c.id)
        })
        .collect();
    run(c.command(&words).stdin(Stdio::null()).current_dir(bundle))
}

#[track_caller]
fn judge(line: &str, state: &str, (code, said): Answer, out: &Out) {
    assert_eq!(out.code, code, "{state}: {line}: {out:#?}");
    // A text log quotes its message.
    assert!(out.err.replace("\\\"", "\"").contains(said), "{state}: {line}: {said:?} is not in {out:#?}");
    if code != 0 && kind() == Kind::Runw {
        assert_eq!(out.err.trim_end().lines().count(), 1, "{state}: {line}: {out:#?}");
        assert!(out.out.is_empty(), "{state}: {line}: {out:#?}");
    }
}

#[test]
fn every_verb_refuses_what_is_wrong_in_every_state_and_harms_nothing() {
    if differs(Kind::Crun, "its own words") {
        return;
    }
    let bundle = Bundle::sh("exec sleep 1000").edit(|c| {
        c["linux"]["resources"]["pids"] = json!({"limit": 5000});
    });
    let mut c = Container::new(bundle);
    std::fs::write(c.bundle.path().join("broken.json"), r#"{"memory": {"limit": "x"}}"#).unwrap();
    for (line, answers) in rows() {
        if let Some(answer) = answers[0] {
            judge(line, "absent", answer, &ask(&c, line));
            nothing_left(&c);
        }
    }
    c.create();
    // So that remembered limits do not change with the first right update.
    c.call(&["update", "--pids-limit", "5000", &c.id]).ok();
    for (at, state) in ["created", "running", "paused", "stopped"].into_iter().enumerate() {
        match state {
            "running" => drop(c.start()),
            "paused" => drop(c.call(&["pause", &c.id]).ok()),
            "stopped" => {
                c.call(&["resume", &c.id]).ok();
                c.kill("KILL").ok();
                c.wait_stopped();
            }
            _ => {}
        }
        assert_eq!(c.status(), state);
        let (before, pid) = (picture(&c), c.pid());
        for (line, answers) in rows() {
            let Some(answer) = answers[at + 1] else { continue };
            judge(line, state, answer, &ask(&c, line));
            assert_eq!(picture(&c), before, "{state}: {line}");
            assert!(state == "stopped" || alive(pid), "{state}: {line}");
        }
    }
    c.delete().ok();
    nothing_left(&c);
}

#[test]
fn broken_json_on_standard_input_names_the_field_and_changes_nothing() {
    if differs(Kind::Crun, "its own words") {
        return;
    }
    let c = Container::up(
        Bundle::sh("exec sleep 1000").edit(|c| c["linux"]["resources"]["pids"] = json!({"limit": 50})),
    );
    let before = picture(&c);
    let feed = |words: &[&str], text: &str| {
        let words: Vec<&str> = words.iter().copied().chain([c.id.as_str()]).collect();
        crate::harness::spawn_with_stdin(&mut c.command(&words), text.as_bytes()).wait()
    };
    for (text, field) in [
        ("", ""),
        ("null", ""),
        ("[]", ""),
        ("{", ""),
        (r#"{"pids": {"limit": 60}"#, ""),
        (r#"{"pids": {"limit": "60"}}"#, "pids.limit"),
        (r#"{"memory": {"limit": 1.5}}"#, "memory.limit"),
        (r#"{"memory": {"limit": 99999999999999999999}}"#, "memory.limit"),
        (r#"{"cpu": {"shares": -1}}"#, "cpu.shares"),
        (r#"{"cpu": []}"#, "cpu"),
        ("{\"cpu\": {\"cpus\": \"\\u0000\"}}", "cpu"),
    ] {
        if kind() == Kind::Runc && ["null", ""].contains(&field) && text == "null" {
            continue; // Go reads it as nothing to do.
        }
        let out = feed(&["update", "-r", "-"], text);
        assert_eq!(out.code, 1, "{text}: {out:?}");
        if kind() == Kind::Runw {
            judge(text, "running", (1, field), &out);
        }
        assert_eq!(picture(&c), before, "{text}");
    }
    for (text, field) in
        [("", ""), ("{", ""), ("[]", ""), (r#"{"args": "true"}"#, "args"), (r#"{"args": ["true"]}"#, "cwd")]
    {
        let file = c.bundle.path().join("process.json");
        std::fs::write(&file, text).unwrap();
        let out = c.exec(&["--process", file.to_str().unwrap()], &[]);
        assert_eq!(out.code, 255, "{text}: {out:?}");
        if kind() == Kind::Runw {
            assert!(out.err.contains(field), "{text}: {out:?}");
        }
        assert_eq!(picture(&c), before, "{text}");
    }
    until("it still runs", || c.status() == "running");
}

//! Guests that mean harm: each ends within its container's limits, or by the operator's caps on compilation, while a
//! native neighbour goes on answering and nothing is left behind.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Bundle, Container, Out, nothing_left, run, runw_only, until};

/// A program that waits for its turn gets it within some milliseconds, whoever computes beside it; other tests run at
/// the same time, and so does the machine's own work. What must not be is a neighbour that waits for as long as the
/// hostile guest lives.
const LATENCY: Duration = Duration::from_millis(500);

/// A native container that repeats each line it is given.
struct Neighbour {
    container: Container,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Neighbour {
    fn up() -> Neighbour {
        let container = Container::new(Bundle::sparse(&["/bin/busybox", "cat"]));
        let mut command = container.run_command(&[]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run a neighbour");
        let (to, from) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
        let mut neighbour = Neighbour { container, child, to, from: BufReader::new(from) };
        neighbour.answer();
        neighbour
    }

    fn answer(&mut self) -> Duration {
        let asked = Instant::now();
        self.to.write_all(b"well?\n").expect("ask the neighbour");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the neighbour's answer");
        assert_eq!(line, "well?\n");
        asked.elapsed()
    }

    /// Asks until `done`, a little apart.
    fn answers(&mut self, mut done: impl FnMut(usize) -> bool) -> Vec<Duration> {
        let mut all = Vec::new();
        while all.is_empty() || !done(all.len()) {
            all.push(self.answer());
            std::thread::sleep(Duration::from_millis(2));
        }
        all.sort();
        all
    }

    /// Tells the latency before and during, and that the runtime itself still answers.
    fn judge(mut self, what: &str, before: &[Duration], during: &[Duration]) {
        let at = |all: &[Duration], percent: usize| all[(all.len() - 1) * percent / 100];
        eprintln!(
            "{what}: a neighbour answers in {:?} (95%: {:?}), before in {:?} ({:?})",
            at(during, 50),
            at(during, 95),
            at(before, 50),
            at(before, 95),
        );
        assert!(at(during, 95) < LATENCY, "{what}: {during:?}");
        assert_eq!(self.container.status(), "running", "{what}");
        drop(self.to);
        assert!(self.child.wait().expect("the neighbour's end").success(), "{what}");
    }
}

/// Half a CPU, 64 MiB, few descriptors and few processes.
fn limited(bundle: Bundle) -> Bundle {
    bundle.edit(|c| {
        c["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        c["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
        c["linux"]["resources"]["pids"] = json!({"limit": 32});
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 256, "soft": 256}]);
    })
}

fn text(code: &str) -> Bundle {
    let bundle = Bundle::new(&["/app.wat"]).edit(|c| c["annotations"]["run.oci.handler"] = json!("wasm"));
    std::fs::write(bundle.rootfs().join("app.wat"), code).expect("write a guest");
    bundle
}

/// A core module of WASI 0.1, with one page for strings and results.
fn core(body: &str) -> Bundle {
    text(&format!(
        r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory $strings (export "memory") 2)
        {body})"#
    ))
}

/// Runs it to its end beside a neighbour.
fn endure(what: &str, bundle: Bundle) -> Out {
    let mut neighbour = Neighbour::up();
    let before = neighbour.answers(|count| count == 50);
    let container = Container::new(limited(bundle));
    let mut running = container.spawn_run(&[]);
    let during = neighbour.answers(|_| running.child.try_wait().expect("wait").is_some());
    let out = running.wait();
    nothing_left(&container);
    neighbour.judge(what, &before, &during);
    out
}

/// A loop around `growth`, which leaves -1 when it was refused: status 7.
fn until_refused(declared: &str, growth: &str) -> Bundle {
    core(&format!(
        r#"{declared}
        (func (export "_start")
          (loop $more
            (if (i32.eq {growth} (i32.const -1)) (then (call $exit (i32.const 7))))
            (br $more)))"#
    ))
}

#[test]
fn a_busy_loop_leaves_the_neighbours_their_time_and_is_killed() {
    if runw_only("wasm") {
        return;
    }
    for signal in ["TERM", "KILL"] {
        let mut neighbour = Neighbour::up();
        let before = neighbour.answers(|count| count == 50);
        let container = Container::new(limited(core(r#"(func (export "_start") (loop $l (br $l)))"#)));
        let mut running = container.spawn_run(&[]);
        until("it runs", || container.call(&["state", &container.id]).out.contains("running"));
        let during = neighbour.answers(|count| count == 200);
        let asked = Instant::now();
        container.kill(signal).ok();
        let code = running.wait().code;
        assert_eq!(code, if signal == "TERM" { 143 } else { 137 });
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        nothing_left(&container);
        neighbour.judge("busy loop", &before, &during);
    }
}

#[test]
fn growth_without_end_is_refused_in_the_guest() {
    if runw_only("wasm") {
        return;
    }
    // Touched, or the kernel would not notice.
    let touched = r#"(local $page i32)
        (local.set $page (memory.grow $big (i32.const 1)))
        (if (i32.ne (local.get $page) (i32.const -1))
          (then (i32.store $big (i32.mul (local.get $page) (i32.const 65536)) (i32.const 1))))
        (local.get $page)"#;
    let memory = format!("(memory $big 0) (func $grow (result i32) {touched})");
    assert_eq!(endure("memory.grow", until_refused(&memory, "(call $grow)")).code, 7);

    let (mut memories, mut growth) = (String::new(), String::new());
    for n in 0..50 {
        write!(memories, "(memory $m{n} 0)").expect("write");
        // All of them take turns until the first is refused.
        write!(
            growth,
            "(if (i32.eq (memory.grow $m{n} (i32.const 16)) (i32.const -1)) (then (return (i32.const -1))))"
        )
        .expect("write");
    }
    let memories = format!("{memories} (func $grow (result i32) {growth} (i32.const 0))");
    assert_eq!(endure("50 memories", until_refused(&memories, "(call $grow)")).code, 7);

    let table = until_refused("(table $t 0 funcref)", "(table.grow $t (ref.null func) (i32.const 65536))");
    assert_eq!(endure("table.grow", table).code, 7);
}

/// 100 instances of one MiB each, where 64 MiB are allowed.
#[test]
fn instances_share_the_limit() {
    if runw_only("wasm") {
        return;
    }
    let instances: String = (0..100).map(|n| format!("(core instance $i{n} (instantiate $m))")).collect();
    let guest = text(&format!(
        r#"(component
        (core module $m (memory (export "memory") 16) (func (export "run") (result i32) i32.const 0))
        {instances}
        (func $run (result (result)) (canon lift (core func $i0 "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#
    ));
    let out = endure("instances", guest);
    assert!(out.code == 134 && out.err.contains("exceeds memory limits"), "{out:?}");
}

#[test]
fn recursion_without_end_is_a_trap() {
    if runw_only("wasm") {
        return;
    }
    let plain = r#"(func $f (call $f)) (func (export "_start") (call $f))"#;
    let locals = "(local i64)".repeat(500);
    let wide = format!(
        r#"(func $f (param i64) {locals} (local.set 1 (local.get 0)) (call $f (i64.add (local.get 1) (i64.const 1))))
        (func (export "_start") (call $f (i64.const 0)))"#
    );
    let indirect = r#"(type $none (func)) (table 1 funcref) (elem (i32.const 0) $f)
        (func $f (call_indirect (type $none) (i32.const 0)))
        (func (export "_start") (call $f))"#;
    for (what, body) in [("recursion", plain), ("wide frames", &wide), ("by table", indirect)] {
        let out = endure(what, core(body));
        assert_eq!(out.code, 134, "{what}: {out:?}");
        assert!(out.err.contains("call stack exhausted"), "{what}: {out:?}");
        assert!(out.err.len() < 64 << 10, "{what}: a backtrace of {} bytes", out.err.len());
    }
}

/// WASI's `nospc`, and what wasmtime says for EMFILE, of which WASI 0.2 has no name.
const NO_SPACE: i32 = 51;

fn on_a_small_tmpfs(body: &str) -> Bundle {
    let options = &["size=1m", "nr_inodes=64", "mode=1777"];
    core(body).mount("/t", "tmpfs", std::path::Path::new("tmpfs"), options)
}

#[test]
fn files_without_end_are_the_tmpfs_s_limit() {
    if runw_only("wasm") {
        return;
    }
    let flood = r#"(data (i32.const 0) "t/00000000")
        (global $n (mut i32) (i32.const 0))
        (func $name (local $at i32) (local $rest i32)
          (local.set $at (i32.const 9)) (local.set $rest (global.get $n))
          (loop $digit
            (i32.store8 (local.get $at) (i32.add (i32.const 48) (i32.rem_u (local.get $rest) (i32.const 10))))
            (local.set $rest (i32.div_u (local.get $rest) (i32.const 10)))
            (local.set $at (i32.sub (local.get $at) (i32.const 1)))
            (br_if $digit (i32.gt_s (local.get $at) (i32.const 1))))
          (global.set $n (i32.add (global.get $n) (i32.const 1))))
        (func (export "_start") (local $error i32)
          (loop $more
            (call $name)
            (local.set $error (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 10) (i32.const 1)
              (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 1024)))
            (if (local.get $error) (then (call $exit (local.get $error))))
            (br $more)))"#;
    assert_eq!(endure("files without end", on_a_small_tmpfs(flood)).code, NO_SPACE);

    let fill = r#"(data (i32.const 0) "t/big")
        (func (export "_start") (local $error i32)
          (local.set $error (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 1)
            (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 1024)))
          (if (local.get $error) (then (call $exit (i32.const 1))))
          (i32.store (i32.const 2048) (i32.const 4096)) (i32.store (i32.const 2052) (i32.const 65536))
          (loop $more
            (local.set $error (call $write (i32.load (i32.const 1024)) (i32.const 2048) (i32.const 1) (i32.const 2056)))
            (if (local.get $error) (then (call $exit (local.get $error))))
            (br $more)))"#;
    assert_eq!(endure("a disk that is filled", on_a_small_tmpfs(fill)).code, NO_SPACE);
}

#[test]
fn descriptors_without_end_are_an_error_in_the_guest() {
    if runw_only("wasm") {
        return;
    }
    let body = r#"(data (i32.const 0) "etc/group")
        (global $n (mut i32) (i32.const 0))
        (func (export "_start")
          (loop $more
            (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 9) (i32.const 0)
                (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 1024))
              ;; RLIMIT_NOFILE, less what is open anyway.
              (then (call $exit (i32.div_u (global.get $n) (i32.const 10)))))
            (global.set $n (i32.add (global.get $n) (i32.const 1)))
            (br $more)))"#;
    let code = endure("descriptors without end", core(body)).code;
    assert!((20..=25).contains(&code), "{code}");
}

/// Of a component that does the same until it is refused, with status 1, or trapped.
fn component(imports: &str, memory: &str, call: &str) -> Bundle {
    text(&format!(
        r#"(component
        {imports}
        (core module $memory (memory (export "memory") 1))
        (core instance $own (instantiate $memory))
        {memory}
        (core module $main
          (import "host" "call" (func $call {call}))
          (import "host" "memory" (memory 1))
          (func (export "run") (result i32) ENTRY))
        (core instance $program (instantiate $main
          (with "host" (instance (export "call" (func $call)) (export "memory" (memory $own "memory"))))))
        (func $run (result (result)) (canon lift (core func $program "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#
    ))
}

fn entry(bundle: Bundle, code: &str) -> Bundle {
    let path = bundle.rootfs().join("app.wat");
    let text = std::fs::read_to_string(&path).expect("the guest");
    std::fs::write(path, text.replace("ENTRY", code)).expect("write the guest");
    bundle
}

#[test]
fn sockets_without_end_are_an_error_in_the_guest() {
    if runw_only("wasm") {
        return;
    }
    let codes = "unknown access-denied not-supported invalid-argument out-of-memory timeout concurrency-conflict \
        not-in-progress would-block invalid-state new-socket-limit address-not-bindable address-in-use \
        remote-unreachable connection-refused connection-reset connection-aborted datagram-too-large \
        name-unresolvable temporary-resolver-failure permanent-resolver-failure";
    let codes: String = codes.split_whitespace().map(|code| format!("{code:?} ")).collect();
    let imports = format!(
        r#"(type $network (instance
          (type $codes (enum {codes})) (export "error-code" (type (eq $codes)))
          (type $families (enum "ipv4" "ipv6")) (export "ip-address-family" (type (eq $families)))))
        (import "wasi:sockets/network@0.2.0" (instance $network (type $network)))
        (alias export $network "error-code" (type $error))
        (alias export $network "ip-address-family" (type $family))
        (type $tcp (instance (export "tcp-socket" (type (sub resource)))))
        (import "wasi:sockets/tcp@0.2.0" (instance $tcp (type $tcp)))
        (alias export $tcp "tcp-socket" (type $socket))
        (type $make (instance
          (alias outer 1 $error (type $outer-error)) (export "error-code" (type $error (eq $outer-error)))
          (alias outer 1 $family (type $outer-family)) (export "ip-address-family" (type $family (eq $outer-family)))
          (alias outer 1 $socket (type $outer-socket)) (export "tcp-socket" (type $socket (eq $outer-socket)))
          (export "create-tcp-socket"
            (func (param "address-family" $family) (result (result (own $socket) (error $error)))))))
        (import "wasi:sockets/tcp-create-socket@0.2.0" (instance $make (type $make)))"#
    );
    let lower = r#"(core func $call
        (canon lower (func $make "create-tcp-socket") (memory (core memory $own "memory"))))"#;
    let guest = entry(
        component(&imports, lower, "(param i32 i32)"),
        "(loop $more (call $call (i32.const 0) (i32.const 64)) (br_if $more (i32.eqz (i32.load8_u (i32.const 64))))) \
         (i32.const 1)",
    );
    assert_eq!(endure("sockets without end", guest).code, 1);
}

#[test]
fn handles_that_are_never_dropped_end_the_guest() {
    if runw_only("wasm") {
        return;
    }
    let imports = r#"(type $poll (instance (export "pollable" (type (sub resource)))))
        (import "wasi:io/poll@0.2.0" (instance $poll (type $poll)))
        (alias export $poll "pollable" (type $pollable))
        (type $clock (instance
          (alias outer 1 $pollable (type $outer)) (export "pollable" (type $pollable (eq $outer)))
          (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
        (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock (type $clock)))"#;
    let lower = r#"(core func $call (canon lower (func $clock "subscribe-duration")))"#;
    let guest = entry(
        component(imports, lower, "(param i64) (result i32)"),
        "(loop $more (drop (call $call (i64.const 1))) (br $more)) (unreachable)",
    );
    let out = endure("handles without end", guest);
    // The table's own limit, or the container's.
    assert!(matches!(out.code, 134 | 137), "{out:?}");
}

/// Handles on a resource of the guest's own, which the host keeps though none of its functions is called.
#[test]
fn handles_of_the_guest_s_own_resources_are_counted() {
    if runw_only("wasm") {
        return;
    }
    let resource =
        "(type $own-resource (resource (rep i32))) (core func $call (canon resource.new $own-resource))";
    let dropping = "(core func $drop (canon resource.drop $own-resource))";
    let made = |body: &str| entry(component("", resource, "(param i32) (result i32)"), body);
    let out = endure(
        "resources without end",
        made("(loop $more (drop (call $call (i32.const 1))) (br $more)) (unreachable)"),
    );
    assert!(out.code == 134 && out.err.contains("handle"), "{out:?}");

    // As many as the annotation says, and those that are dropped do not count.
    let counted = |count: u32, limit: &str| {
        let body = format!(
            "(local $n i32) (loop $more (drop (call $call (i32.const 1))) \
            (local.set $n (i32.add (local.get $n) (i32.const 1))) \
            (br_if $more (i32.lt_u (local.get $n) (i32.const {count})))) (i32.const 0)"
        );
        let bundle = made(&body).edit(|c| c["annotations"]["dev.runw.limits.handles"] = json!(limit));
        Container::new(bundle).run().code
    };
    assert_eq!([counted(100, "200"), counted(300, "200"), counted(150_000, "200000")], [0, 134, 0]);
    let bundle = made(
        "(local $n i32) (loop $more (call $drop (call $call (i32.const 1))) \
        (local.set $n (i32.add (local.get $n) (i32.const 1))) \
        (br_if $more (i32.lt_u (local.get $n) (i32.const 300)))) (i32.const 0)",
    );
    let path = bundle.rootfs().join("app.wat");
    let text = std::fs::read_to_string(&path).expect("the guest");
    let text = text
        .replace(resource, &format!("{resource} {dropping}"))
        .replace(
            r#"(import "host" "memory""#,
            r#"(import "host" "drop" (func $drop (param i32))) (import "host" "memory""#,
        )
        .replace(
            r#"(export "call" (func $call))"#,
            r#"(export "call" (func $call)) (export "drop" (func $drop))"#,
        );
    std::fs::write(&path, text).expect("write the guest");
    let bundle = bundle.edit(|c| c["annotations"]["dev.runw.limits.handles"] = json!("200"));
    assert_eq!(Container::new(bundle).run().code, 0);
}

/// WASI 0.3: each has a handle, an unfinished call as well.
#[test]
fn streams_futures_and_calls_that_are_never_awaited_end_the_guest() {
    if runw_only("wasm") {
        return;
    }
    let guest = |imports: &str, lower: &str, kind: &str, call: &str| {
        text(&format!(
            r#"(component
            {imports}
            (core func $call ({lower}))
            (core module $app
              (import "host" "call" (func $call {kind}))
              (func (export "run") (result i32) (loop $more (drop {call}) (br $more)) (unreachable)))
            (core instance $app (instantiate $app (with "host" (instance (export "call" (func $call))))))
            (func $run async (result (result)) (canon lift (core func $app "run")))
            (instance $run (export "run" (func $run)))
            (export "wasi:cli/run@0.3.0" (instance $run)))"#
        ))
    };
    let clock = r#"(import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
        (export "wait-for" (func async (param "how-long" u64)))))"#;
    for (what, made) in [
        ("streams", guest("(type $t (stream u8))", "canon stream.new $t", "(result i64)", "(call $call)")),
        ("futures", guest("(type $t (future u8))", "canon future.new $t", "(result i64)", "(call $call)")),
        ("waitable sets", guest("", "canon waitable-set.new", "(result i32)", "(call $call)")),
    ] {
        let out = endure(what, made);
        assert!(out.code == 134 && out.err.contains("handle"), "{what}: {out:?}");
    }
    let calls = |limits: &str| {
        let lower = r#"canon lower (func $clock "wait-for") async"#;
        let call = "(call $call (i64.const 1000000000000))";
        guest(clock, lower, "(param i64) (result i32)", call)
            .edit(|c| c["annotations"]["dev.runw.limits.handles"] = json!(limits))
    };
    // The handles' limit, or before it the container's memory.
    let out = endure("calls", calls("1000"));
    assert!(out.code == 134 && out.err.contains("handle"), "{out:?}");
    assert!(matches!(endure("calls", calls("100000")).code, 134 | 137));
}

/// What a call hands over the host copies, here into three times as much.
#[test]
fn a_call_may_hand_over_no_more_than_the_limit() {
    if runw_only("wasm") {
        return;
    }
    let imports = r#"(type $http (instance
          (type $reasons (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
          (export "header-error" (type $header-error (eq $reasons)))
          (export "fields" (type $fields (sub resource)))
          (export "[static]fields.from-list" (func (param "entries" (list (tuple string (list u8))))
            (result (result (own $fields) (error $header-error)))))))
        (import "wasi:http/types@0.2.0" (instance $http (type $http)))"#;
    let lower = r#"(core func $call
        (canon lower (func $http "[static]fields.from-list") (memory (core memory $own "memory"))))"#;
    // 8 MiB of empty names with empty values.
    let body = "(drop (memory.grow (i32.const 200))) (call $call (i32.const 65536) (i32.const 524288) (i32.const 0)) \
        (i32.const 0)";
    let ended = |limit: &str| {
        let guest = entry(component(imports, lower, "(param i32 i32 i32)"), body);
        endure("a long list", guest.edit(|c| c["annotations"]["dev.runw.limits.memory"] = json!(limit)))
    };
    assert_eq!(ended("50000000").code, 0);
    let out = ended("16000000");
    assert!(out.code == 134 && out.err.contains("fuel"), "{out:?}");
}

#[test]
fn threads_are_refused_by_name() {
    if runw_only("wasm") {
        return;
    }
    let spawn = r#"(module (import "wasi" "thread-spawn" (func (param i32) (result i32)))
        (func (export "_start") (loop $l (drop (call 0 (i32.const 0))) (br $l))))"#;
    let shared = r#"(module (memory 1 1 shared) (func (export "_start")))"#;
    for (guest, word) in [(spawn, "thread-spawn"), (shared, "threads")] {
        let container = Container::new(text(guest));
        container.run().refused(&[word]);
        nothing_left(&container);
    }
}

#[test]
fn output_without_end_waits_for_its_reader_and_dies_with_it() {
    if runw_only("wasm") {
        return;
    }
    let body = r#"(func (export "_start")
          (i32.store (i32.const 0) (i32.const 4096)) (i32.store (i32.const 4) (i32.const 65536))
          (loop $more
            (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then (call $exit (i32.const 9))))
            (br $more)))"#;
    let mut neighbour = Neighbour::up();
    let before = neighbour.answers(|count| count == 50);
    let container = Container::new(limited(core(body)));
    let mut child = container.run_command(&[]).stdout(Stdio::piped()).spawn().expect("run");
    let mut output = child.stdout.take().expect("stdout");
    let reader = std::thread::spawn(move || {
        let taken = std::io::copy(&mut std::io::Read::take(&mut output, 64 << 20), &mut std::io::sink());
        taken.expect("read")
    });
    let during = neighbour.answers(|_| reader.is_finished());
    assert_eq!(reader.join().expect("the reader"), 64 << 20);
    // Its reader is gone: an error in the guest (SIGPIPE would be 141).
    assert_eq!(child.wait().expect("wait").code(), Some(9));
    nothing_left(&container);
    neighbour.judge("output without end", &before, &during);
}

mod compiling {
    //! Modules that are made to be expensive. Encoded by hand: what is measured is the compiler's child, so nothing
    //! of it belongs into the test.

    use super::*;

    fn leb(mut n: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while n > 0x7f {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    }

    fn sized(body: &[u8]) -> Vec<u8> {
        [&leb(body.len()), body].concat()
    }

    fn section(id: u8, body: &[u8]) -> Vec<u8> {
        [&[id][..], &sized(body)].concat()
    }

    /// All functions are of type () -> (); the first is `_start`.
    fn module(
        functions: usize,
        code: impl Fn(usize) -> Vec<u8>,
        between: &[Vec<u8>],
        after: &[Vec<u8>],
    ) -> Vec<u8> {
        let mut bytes = b"\0asm\x01\0\0\0".to_vec();
        bytes.extend(section(1, &[1, 0x60, 0, 0]));
        bytes.extend(section(3, &[leb(functions), vec![0; functions]].concat()));
        bytes.extend(between.concat());
        bytes.extend(section(7, b"\x01\x06_start\x00\x00"));
        let mut body = leb(functions);
        (0..functions).for_each(|n| body.extend(sized(&code(n))));
        bytes.extend(section(10, &body));
        bytes.extend(after.concat());
        bytes
    }

    fn function(locals: &[u8], code: &[u8]) -> Vec<u8> {
        [locals, code, &[0x0b]].concat()
    }

    const MIB: usize = 1 << 20;

    fn nested_blocks(depth: usize) -> Vec<u8> {
        module(1, |_| function(&[0], &[[0x02, 0x40].repeat(depth), vec![0x0b; depth]].concat()), &[], &[])
    }

    fn many_functions() -> Vec<u8> {
        // local.get 0, 30 times multiplied with itself: about 100 bytes each.
        let code = [&[0x20, 0][..], &[0x20, 0, 0x6c].repeat(30), &[0x1a]].concat();
        module(100_000, |_| function(&[1, 1, 0x7f], &code), &[], &[])
    }

    fn one_giant_function() -> Vec<u8> {
        let step = [0x20, 0, 0x20, 1, 0x6c, 0x20, 2, 0x6a, 0x21, 3, 0x20, 3, 0x21, 0];
        module(1, |_| function(&[1, 4, 0x7f], &step.repeat(7 * MIB / step.len())), &[], &[])
    }

    fn giant_data() -> Vec<u8> {
        let data = [&[1, 0, 0x41, 0, 0x0b][..], &sized(&vec![0xab; 10 * MIB])].concat();
        module(1, |_| function(&[0], &[]), &[section(5, &[1, 0, 160, 1])], &[section(11, &data)])
    }

    fn giant_br_tables() -> Vec<u8> {
        let table = [&[0x02, 0x40, 0x41, 0, 0x0e][..], &leb(60_000), &[0; 60_001], &[0x0b]].concat();
        module(100, |_| function(&[0], &table), &[], &[])
    }

    fn many_locals() -> Vec<u8> {
        let locals = [&[1][..], &leb(50_000), &[0x7e]].concat();
        module(20_000, |_| function(&locals, &[]), &[], &[])
    }

    fn recursive_types() -> Vec<u8> {
        // (rec (type (struct (field (ref null 0))))), 100,000 times: GC, which the engine has off.
        let one = [0x4e, 1, 0x5f, 1, 0x63, 0, 0];
        [b"\0asm\x01\0\0\0".to_vec(), section(1, &[leb(100_000), one.repeat(100_000)].concat())].concat()
    }

    fn many_types() -> Vec<u8> {
        let one = [0x60, 8, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0];
        let bytes = section(1, &[leb(1_000_000), one.repeat(1_000_000)].concat());
        [b"\0asm\x01\0\0\0".to_vec(), bytes].concat()
    }

    fn nested_components(depth: usize) -> Vec<u8> {
        const HEAD: &[u8] = b"\0asm\x0d\0\x01\0";
        (0..depth).fold(HEAD.to_vec(), |inner, _| [HEAD.to_vec(), section(4, &inner)].concat())
    }

    fn component_types() -> Vec<u8> {
        // Tuples of the one before, twice: 2^n if anybody unfolds them.
        let mut body = leb(2_000);
        body.extend([0x6f, 1, 0x7d]);
        for n in 0..1_999 {
            body.extend([&[0x6f, 2][..], &leb(n), &leb(n)].concat());
        }
        [b"\0asm\x0d\0\x01\0".to_vec(), section(7, &body)].concat()
    }

    /// With the operator's caps, and a cache, of this call alone. Says how much the cache holds afterwards.
    fn cold(container: &Container) -> (Out, usize) {
        let line = r#"set -e; d=$0
            mkdir $d/cache $d/upper; mount -t tmpfs -o mode=700 t $d/cache
            mkdir -p -m 700 /var/cache/runw; mount --bind $d/cache /var/cache/runw
            mount -t tmpfs t $d/upper; mkdir $d/upper/u $d/upper/w
            mkdir $d/upper/u/runw; cp $d/settings $d/upper/u/runw/config.json
            mount -t overlay -o lowerdir=/etc,upperdir=$d/upper/u,workdir=$d/upper/w t /etc
            set +e; "$@"; code=$?; ls $d/cache | grep -cE '^[0-9a-f]{64}$' > $d/entries; exit $code"#;
        let dir = tempfile::tempdir().expect("a directory");
        let settings = r#"{"wasm": {"compileDeadline": 5, "compileMemory": 268435456}}"#;
        std::fs::write(dir.path().join("settings"), settings).expect("settings");
        let command = container.run_command(&[]);
        let mut shell = Command::new("unshare");
        shell
            .args(["-m", "sh", "-c", line])
            .arg(dir.path())
            .arg(command.get_program())
            .args(command.get_args());
        let out = run(&mut shell);
        let entries = std::fs::read_to_string(dir.path().join("entries")).expect("entries");
        (out, entries.trim().parse().expect("a number"))
    }

    /// One line that says what was wrong with it, or a module that runs; bounded in time either way.
    fn bounded(what: &str, bytes: &[u8]) -> Out {
        let mut neighbour = Neighbour::up();
        let before = neighbour.answers(|count| count == 50);
        let bundle = Bundle::new(&["/app.wasm"]);
        std::fs::write(bundle.rootfs().join("app.wasm"), bytes).expect("write a module");
        let container = Container::new(limited(bundle));
        let begun = Instant::now();
        let (out, entries, during) = std::thread::scope(|scope| {
            let job = scope.spawn(|| cold(&container));
            let during = neighbour.answers(|_| job.is_finished());
            let (out, entries) = job.join().expect("the run");
            (out, entries, during)
        });
        let took = begun.elapsed();
        eprintln!(
            "{what}: {} bytes, status {} after {took:?}: {}",
            bytes.len(),
            out.code,
            out.err.trim_end()
        );
        // Five seconds of CPU time, and on the clock five times that; the machine does other things as well.
        assert!(took < Duration::from_secs(60), "{what}: {took:?}");
        if out.code == 0 {
            assert_eq!((entries, out.err.as_str()), (1, ""), "{what}");
        } else {
            out.refused(&[]);
            assert_eq!(out.err.lines().count(), 1, "{what}: {}", out.err);
            assert!(out.err.len() < 4096, "{what}: {}", out.err);
            // A module may be sound, and no program.
            assert_eq!(
                entries,
                usize::from(!out.err.contains("compile ")),
                "{what}: what stayed in the cache"
            );
        }
        nothing_left(&container);
        neighbour.judge(what, &before, &during);
        out
    }

    #[test]
    fn hostile_code_is_bounded_and_leaves_the_cache_as_it_was() {
        if runw_only("wasm") {
            return;
        }
        for (what, bytes) in [
            ("nested blocks", nested_blocks(2 * MIB)),
            ("100,000 functions", many_functions()),
            ("one function of 7 MiB", one_giant_function()),
            ("br_tables of 60,000", giant_br_tables()),
            ("50,000 locals in 20,000 functions", many_locals()),
            ("a million types", many_types()),
            ("nested components", nested_components(2_000)),
            ("types that unfold", component_types()),
        ] {
            bounded(what, &bytes);
        }
    }

    #[test]
    fn a_giant_data_segment_costs_what_it_holds() {
        if runw_only("wasm") {
            return;
        }
        assert_eq!(bounded("10 MiB of data", &giant_data()).code, 0);
    }

    #[test]
    fn recursive_types_are_refused() {
        if runw_only("wasm") {
            return;
        }
        bounded("recursive types", &recursive_types()).refused(&["app.wasm"]);
    }

    #[test]
    fn a_killed_compilation_leaves_no_cgroup() {
        if runw_only("wasm") {
            return;
        }
        let bundle = Bundle::new(&["/app.wasm"]);
        std::fs::write(bundle.rootfs().join("app.wasm"), one_giant_function()).expect("write a module");
        let container = Container::new(bundle);
        let mut child = container.run_command(&[]).stderr(Stdio::null()).spawn().expect("run");
        let place = |pid: u32| {
            let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten();
            let name = format!("runw-compile/{pid}");
            hierarchies.map(|one| one.path().join(&name)).any(|path| path.exists())
        };
        let own = child.id();
        until("it compiles", || place(own) || child.try_wait().expect("wait").is_some());
        child.kill().expect("kill");
        child.wait().expect("wait");
        // It dies with its parent, and the next who compiles sweeps what is left.
        let next = Container::new(Bundle::wasm("hello.wasm", &[]));
        run(&mut crate::harness::with_cache(&next.run_command(&[]), crate::harness::COLD)).ok();
        until("the cgroup goes", || !place(own));
    }
}

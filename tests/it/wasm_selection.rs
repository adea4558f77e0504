//! How wasm is chosen: docs/wasm.md's rules and what crun documents, row by row, with real containers.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Container, Out, guest, nothing_left, run, runtime, runw_only};

/// What argv[0] names.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// A module, by its name.
    Wasm,
    /// The same, without the name's ending and without the x bit.
    Unnamed,
    Component,
    Native,
    /// A native program whose name says wasm.
    Misnamed,
    /// wat, which ends with status 7.
    Text,
}

use Program::{Component, Misnamed, Native, Text, Unnamed, Wasm};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Guest,
    Process,
    /// One line with these words.
    Refused(&'static [&'static str]),
}

use Outcome::{Guest, Process, Refused};

/// The kernel knows no such format, as it would tell any native runtime.
const NOT_RUN: Outcome = Refused(&["exec"]);

/// Annotations, flags before the verb, the name runw is called by.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    annotations: &'static [(&'static str, &'static str)],
    flags: &'static [&'static str],
    called: Option<&'static str>,
}

fn says(annotations: &'static [(&'static str, &'static str)]) -> Said {
    Said { annotations, ..Said::default() }
}

fn flags(flags: &'static [&'static str]) -> Said {
    Said { flags, ..Said::default() }
}

fn called(name: &'static str) -> Said {
    Said { called: Some(name), ..Said::default() }
}

fn bundle(program: Program) -> Bundle {
    let put = |name: &str, from: &Path, mode: u32| {
        let bundle = Bundle::sparse(&[name]);
        let path = bundle.rootfs().join(&name[1..]);
        std::fs::copy(from, &path).expect("copy a program");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
        bundle
    };
    match program {
        Wasm => put("/app.wasm", &guest("hello.wasm"), 0o644),
        Unnamed => put("/app", &guest("hello.wasm"), 0o644),
        Component => put("/app.wasm", &guest("hello-component.wasm"), 0o644),
        Native => Bundle::sparse(&["/bin/echo", "native"]),
        Misnamed => {
            let bundle = Bundle::sparse(&["/busybox.wasm", "echo", "native"]);
            std::fs::copy("/bin/busybox", bundle.rootfs().join("busybox.wasm")).expect("copy busybox");
            bundle
        }
        Text => put("/app.wat", &guest("text.wat"), 0o755),
    }
}

fn start(said: &Said, bundle: Bundle) -> Out {
    let bundle = bundle.edit(|c| {
        for (key, value) in said.annotations {
            c["annotations"][*key] = json!(value);
        }
    });
    let container = Container::new(bundle);
    let names = tempfile::tempdir().expect("a directory");
    let binary = said.called.map_or_else(
        || runtime().to_owned(),
        |name| {
            symlink(runtime(), names.path().join(name)).expect("a link to runw");
            names.path().join(name)
        },
    );
    let ready = container.run_command(&[]);
    let out = run(Command::new(binary).args(said.flags).args(ready.get_args()));
    nothing_left(&container);
    out
}

#[track_caller]
fn check(said: Said, program: Program, wanted: Outcome) {
    let out = start(&said, bundle(program));
    let what = format!("{program:?} where {said:?}: {out:?}");
    match wanted {
        Guest if matches!(program, Text) => assert_eq!(out.code, 7, "{what}"),
        Guest => assert!(out.code == 0 && out.out.starts_with("hello from wasm"), "{what}"),
        Process => assert_eq!((out.code, out.out.as_str()), (0, "native\n"), "{what}"),
        Refused(words) => {
            assert_eq!(out.code, 1, "{what}");
            assert_eq!(out.err.lines().count(), 1, "{what}");
            assert!(words.iter().all(|word| out.err.contains(word)), "{what}");
        }
    }
}

#[track_caller]
fn table(rows: &[(Said, &[(Program, Outcome)])]) {
    if runw_only("wasm") {
        return;
    }
    for (said, cases) in rows {
        for (program, wanted) in *cases {
            check(*said, *program, *wanted);
        }
    }
}

#[test]
fn rule_1_a_sandbox_is_native_whatever_else_is_said() {
    table(&[
        (
            says(&[("io.kubernetes.cri.container-type", "sandbox"), ("run.oci.handler", "wasm")]),
            &[(Native, Process), (Wasm, NOT_RUN)],
        ),
        (
            says(&[
                ("io.kubernetes.cri-o.ContainerType", "sandbox"),
                ("module.wasm.image/variant", "compat"),
            ]),
            &[(Native, Process)],
        ),
        (
            says(&[("io.kubernetes.cri.container-type", "container"), ("run.oci.handler", "wasm")]),
            &[(Wasm, Guest)],
        ),
    ]);
}

#[test]
fn rule_2_run_oci_handler() {
    table(&[
        (
            says(&[("run.oci.handler", "wasm")]),
            &[
                (Wasm, Guest),
                (Unnamed, Guest),
                (Component, Guest),
                (Text, Guest),
                (Native, Refused(&["/bin/echo", "run.oci.handler=wasm"])),
                (Misnamed, Refused(&["/busybox.wasm", "run.oci.handler=wasm"])),
            ],
        ),
        (
            says(&[("run.oci.handler", "wasm-smart")]),
            &[
                (Wasm, Guest),
                (Unnamed, Guest),
                (Text, Guest),
                (Native, Process),
                (Misnamed, Refused(&["/busybox.wasm", "run.oci.handler=wasm-smart"])),
            ],
        ),
        (says(&[("run.oci.handler", "native")]), &[(Native, Process), (Misnamed, Process), (Wasm, NOT_RUN)]),
        (says(&[("run.oci.handler", "krun")]), &[(Native, Refused(&["run.oci.handler", "krun"]))]),
        // Before rule 3, 4 and 5.
        (
            says(&[
                ("run.oci.handler", "native"),
                ("module.wasm.image/variant", "compat"),
                ("org.opencontainers.image.os", "wasi"),
            ]),
            &[(Native, Process)],
        ),
        (
            Said { flags: &["--handler", "wasm"], ..says(&[("run.oci.handler", "native")]) },
            &[(Native, Process)],
        ),
    ]);
}

#[test]
fn rule_3_module_wasm_image_variant() {
    table(&[
        (
            says(&[("module.wasm.image/variant", "compat")]),
            &[
                (Wasm, Guest),
                (Unnamed, Guest),
                (Text, Guest),
                (Native, Refused(&["/bin/echo", "module.wasm.image/variant=compat"])),
            ],
        ),
        (
            says(&[("module.wasm.image/variant", "compat-smart")]),
            &[(Wasm, Guest), (Text, Guest), (Native, Process), (Misnamed, Refused(&["compat-smart"]))],
        ),
        // A word that crun does not know either: the file decides.
        (says(&[("module.wasm.image/variant", "x")]), &[(Wasm, Guest), (Native, Process), (Text, NOT_RUN)]),
    ]);
}

/// Kubernetes gives a pod's annotations to each of its containers, side-cars and init containers too.
#[test]
fn rule_3_compat_of_a_pod_breaks_no_native_container() {
    for kind in [
        &[("io.kubernetes.cri.container-type", "container"), ("module.wasm.image/variant", "compat")],
        &[("io.kubernetes.cri-o.ContainerType", "container"), ("module.wasm.image/variant", "compat")],
    ] {
        table(&[(says(kind), &[(Wasm, Guest), (Unnamed, Guest), (Text, Guest), (Native, Process)])]);
    }
}

#[test]
fn rule_4_the_handler_flag_and_the_name_runw_is_called_by() {
    let smart: &[(Program, Outcome)] = &[
        (Wasm, Guest),
        (Unnamed, Guest),
        (Component, Guest),
        (Native, Process),
        (Misnamed, Refused(&["/busybox.wasm"])),
        (Text, NOT_RUN),
    ];
    table(&[
        (flags(&["--handler", "wasm"]), smart),
        (flags(&["--handler", "wasm-smart"]), smart),
        (called("runw-wasm"), smart),
        (called("crun-wasm"), smart),
        (flags(&["--handler", "native"]), &[(Native, Process), (Wasm, NOT_RUN)]),
        (flags(&["--handler", "krun"]), &[(Native, Refused(&["invalid handler: krun"]))]),
        (Said { called: Some("crun-wasm"), ..flags(&["--handler", "native"]) }, &[(Misnamed, Process)]),
    ]);
}

#[test]
fn rule_5_what_the_image_s_platform_says() {
    let expected: &[(Program, Outcome)] = &[
        (Wasm, Guest),
        (Unnamed, Guest),
        (Native, Refused(&["/bin/echo", "is not WebAssembly, but annotation"])),
    ];
    const OS: &str = "org.opencontainers.image.os";
    const ARCH: &str = "org.opencontainers.image.architecture";
    table(&[
        (says(&[(OS, "wasi")]), expected),
        (says(&[(OS, "Wasip1")]), expected),
        (says(&[(OS, "wasip2")]), expected),
        (says(&[(OS, "wasip3")]), expected),
        (says(&[(ARCH, "wasm")]), expected),
        (says(&[(ARCH, "wasm32")]), expected),
        (says(&[(ARCH, "WASM64")]), expected),
        (says(&[("nerdctl/platform", "wasi/wasm")]), expected),
        (says(&[(OS, "wasi")]), &[(Text, Refused(&["/app.wat"]))]),
        (
            says(&[(OS, "linux"), (ARCH, "amd64"), ("nerdctl/platform", "linux/amd64")]),
            &[(Wasm, Guest), (Native, Process)],
        ),
        // After rule 4.
        (Said { flags: &["--handler", "native"], ..says(&[(OS, "wasi")]) }, &[(Native, Process)]),
    ]);
}

#[test]
fn rule_6_the_file_decides() {
    table(&[(
        Said::default(),
        &[
            (Wasm, Guest),
            (Unnamed, Guest),
            (Component, Guest),
            (Native, Process),
            (Misnamed, Process),
            (Text, NOT_RUN),
        ],
    )]);
    if runw_only("wasm") {
        return;
    }
    for head in [&b"\0asm\x0a\0\x01\0"[..], b"\0asm", b"\0asm\x02\0\0\0", b"no program\n"] {
        let bundle = Bundle::sparse(&["/app.wasm"]);
        let path = bundle.rootfs().join("app.wasm");
        std::fs::write(&path, head).expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod");
        start(&Said::default(), bundle).refused(&["exec"]);
    }
}

#[test]
fn a_program_on_path_is_chosen_as_execve_would() {
    if runw_only("wasm") {
        return;
    }
    let on_path = |mode: u32| {
        let bundle = Bundle::sparse(&["tool", "native"]).env(&["PATH=/first:/second"]);
        for dir in ["first", "second"] {
            std::fs::create_dir(bundle.rootfs().join(dir)).expect("mkdir");
        }
        let first = bundle.rootfs().join("first/tool");
        std::fs::copy(guest("hello.wasm"), &first).expect("copy");
        std::fs::set_permissions(&first, PermissionsExt::from_mode(mode)).expect("chmod");
        std::fs::write(bundle.rootfs().join("second/tool"), "#!/bin/sh\necho $1\n").expect("write");
        std::fs::set_permissions(bundle.rootfs().join("second/tool"), PermissionsExt::from_mode(0o755))
            .expect("chmod");
        start(&Said::default(), bundle).ok().out
    };
    assert_eq!(on_path(0o644), "native\n", "an executable file wins");
    assert_eq!(on_path(0o755), "hello from wasm (c)\n", "the first of two executable ones");
}

#[test]
fn a_name_after_the_number_sign_is_an_export_unless_it_is_a_file() {
    if runw_only("wasm") {
        return;
    }
    let code = |status: u32| {
        format!(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const 1)))
            (func (export "other") (call $exit (i32.const {status}))))"#
        )
    };
    let handler = says(&[("run.oci.handler", "wasm")]);
    let with = |name: &str, files: &[(&str, u32)]| {
        let bundle = Bundle::sparse(&[name]);
        for (file, status) in files {
            std::fs::write(bundle.rootfs().join(file), code(*status)).expect("write");
        }
        start(&handler, bundle)
    };
    assert_eq!(with("/app.wat", &[("app.wat", 5)]).code, 1);
    assert_eq!(with("/app.wat#other", &[("app.wat", 5)]).code, 5);
    assert_eq!(with("/app.wat#other", &[("app.wat", 5), ("app.wat#other", 6)]).code, 1, "_start of the file");
    with("/app.wat#missing", &[("app.wat", 5)]).refused(&["no export", "missing"]);
}

#[test]
fn native_code_serialized_by_wasmtime_and_files_too_large_are_refused() {
    if runw_only("wasm") {
        return;
    }
    let bundle = || Bundle::sparse(&["/app.wasm"]);
    for said in [Said::default(), says(&[("run.oci.handler", "wasm")]), called("runw-wasm")] {
        let one = bundle();
        std::fs::write(one.rootfs().join("app.wasm"), b"\x7fELF\x02\x01\x01\xc8\0\0\0\0\0\0\0\0\x00\0\0\0")
            .expect("write");
        start(&said, one).refused(&["/app.wasm", "serialized by wasmtime"]);
    }
    let one = bundle();
    let file = std::fs::File::create(one.rootfs().join("app.wasm")).expect("create");
    std::io::Write::write_all(&mut &file, b"\0asm\x01\0\0\0").expect("write");
    file.set_len((256 << 20) + 1).expect("a sparse file");
    start(&Said::default(), one).refused(&["/app.wasm", "largest module"]);
}

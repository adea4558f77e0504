use super::*;

#[test]
fn clap_agrees_with_every_definition() {
    top_command().debug_assert();
    for verb in VERBS {
        let command = verb_command(verb);
        assert_eq!(command.get_about().map(ToString::to_string).as_deref(), Some(verb.about));
        command.debug_assert();
    }
}

#[test]
fn json_is_gos() {
    assert_eq!(go_json("\"<a&b>\u{2028}ä\""), "\"\\u003ca\\u0026b\\u003e\\u2028ä\"");
}

#[test]
fn usage_errors_are_one_line_and_status_1() {
    for (line, want) in [
        ("runw nosuch", "no such command: nosuch"),
        ("runw restore --lsm-mount-context", "flag needs an argument: -lsm-mount-context"),
        ("runw --nosuch", "flag provided but not defined: -nosuch"),
        ("runw --root", "flag needs an argument: -root"),
        ("runw state", "runw: \"state\" requires exactly 1 argument(s)"),
        (
            "runw create --preserve-fds x id",
            "invalid value 'x' for '--preserve-fds <N>': invalid digit found in string",
        ),
        ("runw --log-format xx state id", "invalid log-format: xx"),
        (
            "runw --cgroup-manager xx state id",
            "invalid cgroup-manager: xx, expected cgroupfs, systemd or disabled",
        ),
    ] {
        let failure = main(line.split(' ').map(OsString::from).collect()).unwrap_err();
        assert_eq!((crate::error::line(&failure.error).as_str(), failure.status), (want, 1), "{line}");
    }
}

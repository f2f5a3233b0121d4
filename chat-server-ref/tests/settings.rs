//! The settings of the program, as an operator writes them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

/// Runs the program with a settings file and returns success, and what it printed.
fn run(settings: &str, arguments: &[&str]) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.toml");
    std::fs::write(&file, format!("data = {:?}\n{settings}", dir.path().join("data"))).unwrap();
    let program = env!("CARGO_BIN_EXE_chat-server-ref");
    let output = Command::new(program).arg("--config").arg(file).args(arguments).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

#[test]
fn a_misspelt_key_is_answered_with_the_nearest() {
    let rejected = |settings| {
        let (is_ok, printed) = run(settings, &["--print-config"]);
        assert!(!is_ok, "{printed}");
        printed.trim_end().to_owned()
    };
    assert!(rejected("lisen = \"127.0.0.1:1\"").ends_with("the nearest setting is `listen`"));
    assert!(rejected("retention = 3").ends_with("the nearest setting is `retention_days`"));
    assert!(!rejected("listen = 7").contains("nearest"), "the key is right, and its value is not");
}

#[test]
fn names_are_resolved() {
    let (_, printed) =
        run("listen = \"localhost:7001\"", &["--print-config", "--admin-listen", "localhost:7002"]);
    assert!(printed.contains("listen = \"127.0.0.1:7001\"\nadmin_listen = \"127.0.0.1:7002\""), "{printed}");
    for wrong in ["listen = \"localhost\"", "node_link_listen = \"no.such.name.invalid:1\""] {
        let (is_ok, printed) = run(wrong, &["--print-config"]);
        assert!(!is_ok && printed.contains("write host:port"), "{printed}");
    }
}

#[test]
fn printed_settings_read_back() {
    let (_, printed) = run("shards = 3", &["--print-config"]);
    let without_data: String =
        printed.lines().filter(|line| !line.starts_with("data =")).map(|line| format!("{line}\n")).collect();
    let (_, again) = run(&without_data, &["--print-config"]);
    let settings = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with("data =")).map(String::from).collect()
    };
    assert_eq!(settings(&printed), settings(&again));
    assert!(printed.contains("shards = 3"), "{printed}");
}

#[test]
fn open_registration_requires_loopback() {
    let public = "listen = \"0.0.0.0:7777\"\nauthorities = [\"chat.example:443\"]\nallow_plaintext = true\n";
    let (is_ok, printed) = run(public, &["check"]);
    assert!(is_ok, "{printed}");
    assert!(!printed.contains("none needed"), "off by default outside of loopback: {printed}");
    let (is_ok, printed) = run(&format!("{public}open_registration = true"), &["check"]);
    assert!(!is_ok && printed.contains("open registration"), "{printed}");
    let (_, local) = run("", &["check"]);
    assert!(local.contains("tokens: no secret yet"), "{local}");
}

#[test]
fn retention_is_a_year_at_most() {
    for (days, is_valid) in [(365, true), (366, false), (0, false)] {
        let (is_ok, printed) = run(&format!("retention_days = {days}"), &["check"]);
        assert!(
            is_ok == is_valid && printed.contains("retention") != is_valid,
            "an inbox is not read further back: {printed}"
        );
    }
}

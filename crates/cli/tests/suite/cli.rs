//! What the command says about itself.

use crate::harness::{App, Finished, finish, have, wisp};

fn run(arguments: &[&str]) -> Finished {
    let mut command = wisp();
    command.args(arguments).env("COLUMNS", "80");
    finish(command)
}

/// Help of 80 columns on standard output.
fn help(arguments: &[&str]) -> String {
    let finished = run(arguments);
    assert!(finished.status.success());
    assert_eq!(finished.stderr, "");
    for line in finished.stdout.lines() {
        assert!(line.chars().count() <= 80, "longer than 80 columns: {line}");
    }
    finished.stdout
}

#[test]
fn help_of_wisp() {
    insta::assert_snapshot!(help(&["--help"]));
}

#[test]
fn the_version_is_said() {
    let finished = run(&["--version"]);
    assert!(finished.status.success());
    assert_eq!(finished.stdout, format!("wisp {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_2_and_on_standard_error() {
    for arguments in [
        &[][..],
        &["no-such-command"],
        &["up", "--no-such-flag"],
        &["up", "--quiet", "--follow", "a"],
        &["up", "-e", "x"],
    ] {
        let finished = run(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}");
        assert_eq!(finished.stdout, "", "{arguments:?}");
        assert!(!finished.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_filter_for_messages_that_is_none_is_wrong_usage() {
    let mut command = wisp();
    command.arg("up").env("WISP_LOG", "wisp=loudest=1");
    let finished = finish(command);
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.stderr.contains("error[WISP-E0601]"), "{}", finished.stderr);
}

#[test]
fn settings_can_come_from_the_environment() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", r#"key_value_stores = ["extra"]"#)
        .file("config.toml", "[key_value_store.extra]\ntype = \"spin\"\n")
        .environment("RUNTIME_CONFIG_FILE", "config.toml")
        .environment("SPIN_LOG_DIR", "elsewhere")
        .environment("SPIN_MAX_INSTANCE_MEMORY", "16777216")
        .start();
    assert_eq!(app.ok("/kv/open", &[("store", "extra")]), true);
    assert!(!app.error("/memory", &[("mb", "32")]).is_empty());
    app.ok("/stdout", &[("line", "kept")]);
    let app = app.stop();
    assert_eq!(std::fs::read_to_string(app.path("elsewhere/rust-sdk7_stdout.txt")).unwrap(), "kept\n");

    // A flag wins over the environment.
    let app = app.arguments(["--log-dir", "flagged"]).start();
    app.ok("/stdout", &[("line", "kept")]);
    let app = app.stop();
    assert_eq!(std::fs::read_to_string(app.path("flagged/rust-sdk7_stdout.txt")).unwrap(), "kept\n");
}

#[test]
fn a_name_can_be_listened_on() {
    let app = App::new(
        "spin_manifest_version = 2\n[application]\nname = \"named\"\n\
         [[trigger.http]]\nroute = \"/...\"\nstatic_response = { body = \"here\" }\n",
    )
    .arguments(["--listen", "localhost:0"])
    .start();
    assert!(app.address().is_ipv4(), "people mean IPv4 by it: {}", app.address());
    assert_eq!(app.get("/").expect(), "here");
}

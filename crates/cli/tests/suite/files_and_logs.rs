//! What guests read from disk, and where their output goes.

use serde_json::json;

use crate::harness::{App, PROBES, available, have};

/// One guest with a folder at `/`.
fn with_files(guest: &str, files: &str) -> App {
    App::of(guest, files)
        .file("assets/a.txt", "the text of a")
        .file("assets/deep/b.txt", "the text of b")
        .file("assets/c.log", "the text of c")
        .file("secret.txt", "not for guests")
}

const PLACED: &str = r#"files = [{ source = "assets", destination = "/" }]"#;

#[test]
fn files_are_where_the_manifest_places_them() {
    for guest in available(&PROBES) {
        let app = with_files(guest, PLACED).start();
        assert_eq!(app.ok("/file", &[("path", "/a.txt")]), "the text of a", "{guest}");
        assert_eq!(app.ok("/file", &[("path", "deep/b.txt")]), "the text of b", "{guest}");
        assert_eq!(app.ok("/files", &[("path", "/")]), json!(["a.txt", "c.log", "deep"]), "{guest}");
    }
}

#[test]
fn patterns_keep_their_paths() {
    for guest in available(&["rust-sdk7", "rust-v1"]) {
        let app = with_files(guest, r#"files = ["assets/**/*.txt"]"#).start();
        assert_eq!(app.ok("/files", &[("path", "/assets")]), json!(["a.txt", "deep"]), "{guest}");
        assert_eq!(app.ok("/file", &[("path", "/assets/deep/b.txt")]), "the text of b", "{guest}");
    }
}

#[test]
fn excluded_files_are_not_there() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = with_files("rust-sdk7", "files = [\"assets/**/*\"]\nexclude_files = [\"**/*.log\"]").start();
    assert_eq!(app.ok("/files", &[("path", "/assets")]), json!(["a.txt", "deep"]));
    assert!(app.error("/file", &[("path", "/assets/c.log")]).contains("NotFound"));
}

#[test]
fn guests_see_nothing_else() {
    for guest in available(&PROBES) {
        let app = with_files(guest, PLACED).start();
        for path in ["/etc/passwd", "../secret.txt", "/../secret.txt", "/deep/../../secret.txt"] {
            let error = app.error("/file", &[("path", path)]);
            assert!(!error.is_empty(), "{guest}: {path}");
        }
        let bare = App::of(guest, "").start();
        assert!(
            !bare.error("/files", &[("path", "/")]).is_empty(),
            "{guest}: without files there is no folder"
        );
    }
}

#[test]
fn links_do_not_lead_out() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = with_files("rust-sdk7", PLACED);
    std::os::unix::fs::symlink(app.path("secret.txt"), app.path("assets/link.txt")).unwrap();
    // It is refused at the start, or not there, or not readable; what it leads to is not shown.
    let app = app.arguments(["--direct-mounts"]).start();
    let error = app.error("/file", &[("path", "/link.txt")]);
    assert!(!error.contains("not for guests"), "{error}");
}

#[test]
fn files_are_read_only() {
    for guest in available(&PROBES) {
        let app = with_files(guest, PLACED).start();
        for path in ["/a.txt", "/new.txt"] {
            let error = app.error("/write-file", &[("path", path), ("text", "changed")]);
            assert!(error.contains("PermissionDenied") || error.contains("ReadOnly"), "{guest}: {error}");
        }
        assert_eq!(app.ok("/file", &[("path", "/a.txt")]), "the text of a", "{guest}");
    }
}

#[test]
fn transient_writes_leave_the_source_alone() {
    for guest in available(&PROBES) {
        let app = with_files(guest, PLACED).arguments(["--allow-transient-write"]).start();
        assert_eq!(app.ok("/write-file", &[("path", "/a.txt"), ("text", "changed")]), true, "{guest}");
        assert_eq!(app.ok("/file", &[("path", "/a.txt")]), "changed", "{guest}");
        let source = std::fs::read_to_string(app.path("assets/a.txt")).unwrap();
        assert_eq!(source, "the text of a", "{guest}: the app's own folder");
    }
}

#[test]
fn direct_mounts_are_the_folder_itself() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = with_files("rust-sdk7", PLACED).arguments(["--direct-mounts"]).start();
    assert_eq!(app.ok("/file", &[("path", "/a.txt")]), "the text of a");
    std::fs::write(app.path("assets/a.txt"), "edited").unwrap();
    assert_eq!(app.ok("/file", &[("path", "/a.txt")]), "edited");
    assert!(app.error("/write-file", &[("path", "/a.txt")]).contains("Denied"), "and still read-only");
}

#[test]
fn files_that_are_missing_are_an_error_at_the_start() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let refused = App::of("rust-sdk7", r#"files = [{ source = "nothing", destination = "/" }]"#).refused();
    assert!(refused.stderr.contains("error[WISP-E0350]"), "{}", refused.stderr);
    let refused = App::of("rust-sdk7", r#"files = [{ source = "../..", destination = "/" }]"#).refused();
    assert!(refused.stderr.contains("error[WISP-E0351]"), "{}", refused.stderr);
}

#[test]
fn the_environment_is_the_manifests_and_the_flags() {
    for guest in available(&PROBES) {
        let app = App::of(guest, r#"environment = { COLOR = "green", SIZE = "small" }"#)
            .environment("NOT_FOR_GUESTS", "secret")
            .arguments(["--env", "SIZE=large", "-e", "EXTRA=a=b"])
            .start();
        let seen = app.get("/env").json();
        assert_eq!(seen, json!({ "COLOR": "green", "SIZE": "large", "EXTRA": "a=b" }), "{guest}");
    }
}

/// Two components of one guest.
fn two(guest: &str) -> App {
    App::new(&format!(
        r#"
        spin_manifest_version = 2
        [application]
        name = "two"
        [[trigger.http]]
        route = "/one/..."
        component = "one"
        [[trigger.http]]
        route = "/two/..."
        component = "two"
        [component.one]
        source = "{{{guest}}}"
        [component.two]
        source = "{{{guest}}}"
        "#
    ))
}

fn speak(app: &crate::harness::Running) {
    for component in ["one", "two"] {
        for stream in ["stdout", "stderr"] {
            app.ok(&format!("/{component}/{stream}"), &[("line", &format!("{component} says {stream}"))]);
        }
    }
}

#[test]
fn output_is_kept_and_shown_with_its_component() {
    for guest in available(&PROBES) {
        let mut app = two(guest).start();
        speak(&app);
        app.stdout.wait_for(|line| line == "[one] one says stdout");
        app.stdout.wait_for(|line| line == "[two] two says stdout");
        app.stderr.wait_for(|line| line == "[one] one says stderr");
        app.stderr.wait_for(|line| line == "[two] two says stderr");
        assert!(app.terminate().success(), "{guest}");
        for component in ["one", "two"] {
            for stream in ["stdout", "stderr"] {
                let path = app.path(&format!(".spin/logs/{component}_{stream}.txt"));
                let kept = std::fs::read_to_string(&path).unwrap();
                assert_eq!(kept, format!("{component} says {stream}\n"), "{guest}");
            }
        }
    }
}

#[test]
fn quiet_keeps_output_and_does_not_show_it() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let mut app = two("rust-sdk7").arguments(["--quiet"]).start();
    speak(&app);
    assert!(app.terminate().success());
    assert!(!app.stdout.text_at_end().contains("says"), "{}", app.stdout.text());
    assert!(!app.stderr.text_at_end().contains("says"), "{}", app.stderr.text());
    let kept = std::fs::read_to_string(app.path(".spin/logs/one_stdout.txt")).unwrap();
    assert_eq!(kept, "one says stdout\n");
}

#[test]
fn follow_shows_the_components_that_are_named() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let mut app = two("rust-sdk7").arguments(["--follow", "two"]).start();
    speak(&app);
    assert!(app.terminate().success());
    let shown = app.stdout.text_at_end();
    assert!(shown.contains("[two] two says stdout\n"), "{shown}");
    assert!(!shown.contains("one says"), "{shown}");
}

#[test]
fn logs_lie_where_they_are_told_to() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = two("rust-sdk7").arguments(["--log-dir", "elsewhere"]).start();
    speak(&app);
    let app = app.stop();
    let log = app.path("elsewhere/one_stdout.txt");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "one says stdout\n");
    assert!(!app.path(".spin/logs").exists());

    // A second start goes on where the first one ended, unless it is told not to.
    let app = app.start();
    speak(&app);
    let app = app.stop();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "one says stdout\none says stdout\n");
    let app = app.arguments(["--truncate-logs"]).start();
    speak(&app);
    drop(app.stop());

    let app = two("rust-sdk7").arguments(["--log-dir", ""]).start();
    speak(&app);
    app.stdout.wait_for_text("one says");
    let app = app.stop();
    assert!(!app.path(".spin/logs").exists());
}

#[test]
fn truncated_logs_begin_anew() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = two("rust-sdk7")
        .file(".spin/logs/one_stdout.txt", "from an earlier run\n")
        .arguments(["--truncate-logs"])
        .start();
    speak(&app);
    let app = app.stop();
    let log = std::fs::read_to_string(app.path(".spin/logs/one_stdout.txt")).unwrap();
    assert_eq!(log, "one says stdout\n");
}

#[test]
fn lines_of_requests_at_once_do_not_mix() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = two("rust-sdk7").start();
    let line = "x".repeat(500);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    app.ok("/one/stdout", &[("line", &line)]);
                }
            });
        }
    });
    let app = app.stop();
    let log = std::fs::read_to_string(app.path(".spin/logs/one_stdout.txt")).unwrap();
    assert_eq!(log.lines().count(), 100);
    assert!(log.lines().all(|kept| kept == line));
}

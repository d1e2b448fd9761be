//! SQLite databases, in every version of their interfaces.

use serde_json::json;

use crate::harness::{App, available, have};

/// Each guest and path that runs statements.
const WAYS: [(&str, &str); 7] = [
    ("rust-sdk5", "/sqlite"),
    ("rust-sdk5", "/sqlite3"),
    ("rust-sdk6", "/sqlite"),
    ("rust-sdk6", "/sqlite-blocking"),
    ("rust-sdk7", "/sqlite"),
    ("rust-sdk7", "/sqlite-blocking"),
    ("rust-v1", "/sqlite"),
];

const GRANTED: &str = r#"sqlite_databases = ["default"]"#;

const CREATE: (&str, &str) = ("sql", "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)");

fn ways() -> Vec<(&'static str, &'static str)> {
    WAYS.into_iter().filter(|(guest, _)| !available(&[*guest]).is_empty()).collect()
}

#[test]
fn statements_run_and_rows_come_back() {
    for (guest, path) in ways() {
        let app = App::of(guest, GRANTED).start();
        let answer = app.ok(
            path,
            &[
                CREATE,
                ("sql", "INSERT INTO t (name) VALUES ('one'), ('two')"),
                ("sql", "SELECT id, name AS label FROM t ORDER BY id"),
            ],
        );
        assert_eq!(answer["columns"], json!(["id", "label"]), "{guest} {path}");
        assert_eq!(answer["rows"], json!([[1, "one"], [2, "two"]]), "{guest} {path}");
        // Another instance, another connection.
        let answer = app.ok(path, &[("sql", "SELECT count(*) FROM t")]);
        assert_eq!(answer["rows"], json!([[2]]), "{guest} {path}");
    }
}

#[test]
fn values_keep_their_types() {
    for (guest, path) in ways() {
        if guest == "rust-v1" {
            continue;
        }
        let app = App::of(guest, GRANTED).start();
        let answer = app.ok(
            path,
            &[
                (
                    "sql",
                    "SELECT ?1, ?2, ?3, ?4, ?5, typeof(?1), typeof(?2), typeof(?3), typeof(?4), typeof(?5)",
                ),
                ("p", "i:-9223372036854775808"),
                ("p", "r:1.5"),
                ("p", "t:snow ☃"),
                ("p", "b:00ff10"),
                ("p", "n"),
            ],
        );
        assert_eq!(
            answer["rows"],
            json!([[
                i64::MIN, 1.5, "snow ☃", { "blob": "00ff10" }, null,
                "integer", "real", "text", "blob", "null"
            ]]),
            "{guest} {path}"
        );
    }
}

#[test]
fn changes_and_row_ids_are_told() {
    for (guest, path) in ways() {
        if guest == "rust-v1" || (guest, path) == ("rust-sdk5", "/sqlite") || path == "/sqlite-blocking" {
            continue;
        }
        let app = App::of(guest, GRANTED).start();
        let answer = app.ok(path, &[CREATE, ("sql", "INSERT INTO t VALUES (41, 'a'), (42, 'b')")]);
        assert_eq!(
            (&answer["changes"], &answer["last_insert_rowid"]),
            (&json!(2), &json!(42)),
            "{guest} {path}"
        );
    }
}

#[test]
fn a_database_that_is_not_granted_is_denied() {
    for (guest, path) in ways() {
        let app = App::of(guest, GRANTED)
            .file("runtime-config.toml", "[sqlite_database.other]\ntype = \"spin\"\npath = \"other.db\"\n")
            .arguments(["--runtime-config-file", "runtime-config.toml"])
            .start();
        for label in ["other", "no-such-label"] {
            let error = app.error(path, &[("db", label), ("sql", "SELECT 1")]);
            assert!(error.contains("AccessDenied"), "{guest} {path} {label}: {error}");
        }
    }
}

#[test]
fn errors_of_sql_are_io_with_sqlites_words() {
    for (guest, path) in ways() {
        let app = App::of(guest, GRANTED).start();
        for (statement, words) in [
            ("SELECT * FROM no_table", "no such table: no_table"),
            ("SELEC 1", "syntax error"),
            ("SELECT abs(-9223372036854775808)", "integer overflow"),
        ] {
            let error = app.error(path, &[("sql", statement)]);
            assert!(error.contains("Io("), "{guest} {path}: {error}");
            assert!(error.contains(words), "{guest} {path}: {error}");
        }
        app.ok(path, &[("sql", "SELECT 1")]);
    }
}

#[test]
fn files_cannot_be_attached() {
    for (guest, path) in ways() {
        let app = App::of(guest, GRANTED).start();
        let target = app.path("attached.db");
        for statement in [
            format!("ATTACH DATABASE '{}' AS other", target.display()),
            format!("VACUUM INTO '{}'", target.display()),
        ] {
            let error = app.error(path, &[("sql", &statement)]);
            assert!(error.contains("Io("), "{guest} {path}: {error}");
        }
        assert!(!target.exists(), "{guest} {path}");
    }
}

#[test]
fn connections_share_no_state() {
    for (guest, path) in ways() {
        let app = App::of(guest, GRANTED).start();
        app.ok(path, &[("sql", "CREATE TEMP TABLE mine (x)"), ("sql", "SELECT * FROM mine")]);
        let error = app.error(path, &[("sql", "SELECT * FROM mine")]);
        assert!(error.contains("no such table"), "{guest} {path}: {error}");
    }
}

#[test]
fn what_an_instance_leaves_open_is_rolled_back() {
    for (guest, path) in ways() {
        let app = App::of(guest, GRANTED).start();
        app.ok(path, &[CREATE]);
        app.ok(path, &[("sql", "BEGIN IMMEDIATE"), ("sql", "INSERT INTO t (name) VALUES ('never')")]);
        let answer = app.ok(path, &[("sql", "SELECT count(*) FROM t")]);
        assert_eq!(answer["rows"], json!([[0]]), "{guest} {path}");
        app.ok(path, &[("sql", "INSERT INTO t (name) VALUES ('free')")]);
    }
}

#[test]
fn every_version_sees_the_same_database() {
    let guests = available(&["rust-sdk5", "rust-sdk6", "rust-sdk7", "rust-v1"]);
    let Some(first) = guests.first() else { return };
    let app = App::of_each(&guests, GRANTED).start();
    app.ok(&format!("/{first}/sqlite"), &[CREATE]);
    for (number, guest) in guests.iter().enumerate() {
        let insert = format!("INSERT INTO t (name) VALUES ('{guest}')");
        let path = format!("/{guest}/sqlite");
        let answer = app.ok(&path, &[("sql", &insert), ("sql", "SELECT count(*) FROM t")]);
        assert_eq!(answer["rows"], json!([[number + 1]]), "{guest}");
    }
}

#[test]
fn rows_are_kept_over_restart_and_kill() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", GRANTED).start();
    app.ok("/sqlite", &[CREATE, ("sql", "INSERT INTO t (name) VALUES ('stopped')")]);
    let app = app.stop();
    assert!(app.path(".spin/sqlite_db.db").is_file(), "beside the manifest, under Spin's name");
    let app = app.start();
    app.ok("/sqlite", &[("sql", "INSERT INTO t (name) VALUES ('killed')")]);
    let app = app.kill().start();
    let answer = app.ok("/sqlite", &[("sql", "SELECT name FROM t ORDER BY id")]);
    assert_eq!(answer["rows"], json!([["stopped"], ["killed"]]));
}

#[test]
fn statements_can_be_run_from_the_command_line() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", GRANTED)
        .file(
            "seed.sql",
            "INSERT INTO t (name) VALUES ('from a file');\nINSERT INTO t (name) VALUES ('; too');\n",
        )
        .arguments(["--sqlite", "CREATE TABLE IF NOT EXISTS t (name TEXT)", "--sqlite", "@seed.sql"])
        .start();
    let answer = app.ok("/sqlite", &[("sql", "SELECT name FROM t ORDER BY rowid")]);
    assert_eq!(answer["rows"], json!([["from a file"], ["; too"]]));

    let refused = App::of("rust-sdk7", GRANTED).arguments(["--sqlite", "NONSENSE"]).refused();
    assert!(refused.stderr.contains("error[WISP-E0313]"), "{}", refused.stderr);
    let refused = App::of("rust-sdk7", GRANTED).arguments(["--sqlite", "@missing.sql"]).refused();
    assert!(refused.stderr.contains("error[WISP-E0502]"), "{}", refused.stderr);
}

#[test]
fn a_database_that_nothing_defines_fails_at_the_start() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let refused = App::of("rust-sdk7", r#"sqlite_databases = ["stats"]"#).refused();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.stderr.contains("error[WISP-E0310]: no SQLite database is configured for label `stats`"),
        "{}",
        refused.stderr
    );
}

#[test]
fn databases_are_apart() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", r#"sqlite_databases = ["default", "stats"]"#)
        .file("runtime-config.toml", "[sqlite_database.stats]\ntype = \"spin\"\npath = \"stats.db\"\n")
        .arguments(["--runtime-config-file", "runtime-config.toml"])
        .start();
    app.ok("/sqlite", &[("db", "stats"), CREATE]);
    let error = app.error("/sqlite", &[("sql", "SELECT * FROM t")]);
    assert!(error.contains("no such table"), "{error}");
    assert!(app.path("stats.db").is_file(), "beside the runtime configuration");
}

#[test]
fn writers_at_once_all_succeed() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", GRANTED).start();
    app.ok("/sqlite", &[CREATE]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    app.ok("/sqlite", &[("sql", "INSERT INTO t (name) VALUES ('x')")]);
                }
            });
        }
    });
    assert_eq!(app.ok("/sqlite", &[("sql", "SELECT count(*) FROM t")])["rows"], json!([[80]]));
}

//! Key-value stores, in every version of their interfaces.

use serde_json::json;

use crate::harness::{App, SDK_PROBES, available, have};

/// Every guest with key-value paths; the last one has `wasi:keyvalue`.
const GUESTS: [&str; 5] = ["rust-sdk5", "rust-sdk6", "rust-sdk7", "rust-v1", "rust-wit"];

const GRANTED: &str = r#"key_value_stores = ["default"]"#;

#[test]
fn keys_come_and_go() {
    let guests = available(&GUESTS);
    if guests.is_empty() {
        return;
    }
    for guest in guests {
        let app = App::of(guest, GRANTED).start();
        let key = |key: &'static str| [("key", key)];
        assert_eq!(app.ok("/kv/exists", &key("a")), false, "{guest}");
        match guest {
            "rust-v1" => assert_eq!(app.error("/kv/get", &key("a")), "Error::NoSuchKey"),
            _ => assert_eq!(app.ok("/kv/get", &key("a")), json!(null), "{guest}"),
        }
        assert_eq!(app.ok("/kv/set", &[("key", "a"), ("value", "one")]), true, "{guest}");
        assert_eq!(app.ok("/kv/get", &key("a")), "one", "{guest}");
        assert_eq!(app.ok("/kv/set", &[("key", "a"), ("value", "two")]), true, "{guest}");
        assert_eq!(app.ok("/kv/get", &key("a")), "two", "{guest}: it is replaced");
        assert_eq!(app.ok("/kv/exists", &key("a")), true, "{guest}");
        assert_eq!(app.ok("/kv/set", &[("key", "empty"), ("value", "")]), true, "{guest}");
        assert_eq!(app.ok("/kv/get", &key("empty")), "", "{guest}: empty is a value");
        assert_eq!(app.ok("/kv/set", &[("key", "Ünï/cødé ☃"), ("value", "☃")]), true, "{guest}");
        assert_eq!(app.ok("/kv/get", &key("Ünï/cødé ☃")), "☃", "{guest}");
        let listed = app.ok("/kv/list", &[]);
        let listed = if guest == "rust-wit" { &listed["keys"] } else { &listed };
        assert_eq!(*listed, json!(["a", "empty", "Ünï/cødé ☃"]), "{guest}");
        assert_eq!(app.ok("/kv/delete", &key("a")), true, "{guest}");
        assert_eq!(app.ok("/kv/exists", &key("a")), false, "{guest}");
        assert_eq!(app.ok("/kv/delete", &key("a")), true, "{guest}: deleting what is not there is no error");
    }
}

#[test]
fn every_version_sees_the_same_store() {
    let guests = available(&GUESTS);
    if guests.is_empty() {
        return;
    }
    let app = App::of_each(&guests, GRANTED).start();
    for writer in &guests {
        app.ok(&format!("/{writer}/kv/set"), &[("key", "who"), ("value", writer)]);
        for reader in &guests {
            assert_eq!(app.ok(&format!("/{reader}/kv/get"), &[("key", "who")]), *writer, "{reader}");
        }
    }
}

#[test]
fn large_values_are_kept() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, GRANTED).start();
        app.ok("/kv/set", &[("key", "large"), ("bytes", "3000000")]);
        let value = app.ok("/kv/get", &[("key", "large")]);
        assert_eq!(value.as_str().unwrap().len(), 3_000_000, "{guest}");
    }
}

#[test]
fn many_keys_are_listed() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, GRANTED).start();
        app.ok("/kv/set-many", &[("key", "k"), ("count", "2500"), ("value", "v")]);
        let listed = app.ok("/kv/list", &[]);
        assert_eq!(listed.as_array().unwrap().len(), 2500, "{guest}: more than a page");
    }
}

#[test]
fn a_label_that_is_not_granted_is_denied() {
    let guests = available(&GUESTS);
    if guests.is_empty() {
        return;
    }
    let config = "[key_value_store.other]\ntype = \"spin\"\npath = \"other.db\"\n";
    for guest in guests {
        let app = App::of(guest, GRANTED)
            .file("runtime-config.toml", config)
            .arguments(["--runtime-config-file", "runtime-config.toml"])
            .start();
        for label in ["other", "no-such-label", ""] {
            let error = app.error("/kv/open", &[("store", label)]);
            assert_eq!(error, denied(guest), "{guest}: {label}");
        }
        assert_eq!(app.ok("/kv/open", &[("store", "default")]), true, "{guest}");
    }
}

fn denied(guest: &str) -> &'static str {
    match guest {
        "rust-wit" => "\"Error::AccessDenied\"",
        _ => "Error::AccessDenied",
    }
}

#[test]
fn without_a_grant_there_is_no_store() {
    for guest in available(&GUESTS) {
        let app = App::of(guest, "").start();
        assert_eq!(app.error("/kv/get", &[("key", "a")]), denied(guest), "{guest}");
    }
}

#[test]
fn a_label_that_nothing_defines_fails_at_the_start() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let refused = App::of("rust-sdk7", r#"key_value_stores = ["sessions"]"#).refused();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(refused.stdout, "");
    assert_eq!(
        refused.stderr.lines().filter(|line| !line.starts_with("info")).collect::<Vec<_>>(),
        [
            "error[WISP-E0300]: no key-value store is configured for label `sessions`",
            "  hint: add [key_value_store.sessions] to the runtime configuration, or use one of `default`",
        ]
    );
}

#[test]
fn handles_are_bounded() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, GRANTED).start();
        assert_eq!(app.ok("/kv/open-many", &[("count", "256")]), 256, "{guest}");
        assert_eq!(app.error("/kv/open-many", &[("count", "257")]), "Error::StoreTableFull", "{guest}");
    }
}

#[test]
fn a_closed_store_is_invalid_in_spin_1() {
    for guest in available(&["rust-v1", "rust-v1-module"]) {
        let app = App::of(guest, GRANTED).start();
        app.ok("/kv/set", &[("key", "a"), ("value", "one")]);
        assert_eq!(app.error("/kv/use-closed", &[("key", "a")]), "Error::InvalidStore", "{guest}");
    }
}

#[test]
fn batches_of_wasi_keyvalue() {
    for guest in available(&["rust-wit"]) {
        let app = App::of(guest, GRANTED).start();
        app.ok("/kv/set-many", &[("key", "a"), ("key", "b"), ("value", "same")]);
        let values = app.ok("/kv/get-many", &[("key", "a"), ("key", "missing"), ("key", "b")]);
        assert_eq!(values, json!([["a", "same"], ["missing", null], ["b", "same"]]));
        app.ok("/kv/delete-many", &[("key", "a"), ("key", "missing")]);
        assert_eq!(
            app.ok("/kv/get-many", &[("key", "a"), ("key", "b")]),
            json!([["a", null], ["b", "same"]])
        );
    }
}

#[test]
fn atomics_of_wasi_keyvalue() {
    for guest in available(&["rust-wit"]) {
        let app = App::of(guest, GRANTED).start();
        assert_eq!(app.ok("/kv/increment", &[("key", "n"), ("delta", "5")]), 5);
        assert_eq!(app.ok("/kv/increment", &[("key", "n"), ("delta", "-2")]), 3);
        let swapped = app.ok("/kv/swap", &[("key", "s"), ("value", "mine")]);
        assert_eq!(swapped, json!({ "before": null, "swapped": true }));
        let failed = app.ok("/kv/swap", &[("key", "s"), ("value", "again"), ("meanwhile", "theirs")]);
        assert_eq!(failed, json!({ "before": "mine", "swapped": false, "now": "theirs" }));
        assert_eq!(app.ok("/kv/get", &[("key", "s")]), "theirs");
    }
}

#[test]
fn increments_at_once_all_count() {
    if !have(&["rust-wit"]) {
        return;
    }
    let app = App::of("rust-wit", GRANTED).start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut connection = app.connect();
                for _ in 0..25 {
                    connection.request("GET", "/kv/increment?key=n", &[], b"");
                    connection.response().ok();
                }
            });
        }
    });
    assert_eq!(app.ok("/kv/increment", &[("key", "n"), ("delta", "0")]), 200);
}

#[test]
fn values_are_kept_over_a_restart() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", GRANTED).start();
    app.ok("/kv/set", &[("key", "a"), ("value", "kept")]);
    let app = app.stop();
    assert!(app.path(".spin/sqlite_key_value.db").is_file(), "beside the manifest, under Spin's name");
    let app = app.start();
    assert_eq!(app.ok("/kv/get", &[("key", "a")]), "kept");
}

#[test]
fn an_acknowledged_value_survives_kill() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let mut app = App::of("rust-sdk7", GRANTED).start();
    for round in 0..5 {
        let value = format!("round {round}");
        for number in 0..10 {
            app.ok("/kv/set", &[("key", &format!("{round}-{number}")), ("value", &value)]);
        }
        // Right after the last answer.
        app = app.kill().start();
        for number in 0..10 {
            assert_eq!(app.ok("/kv/get", &[("key", &format!("{round}-{number}"))]), value.as_str());
        }
    }
    assert_eq!(app.ok("/kv/list", &[]).as_array().unwrap().len(), 50);
}

#[test]
fn state_lies_where_it_is_told_to() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", GRANTED).arguments(["--state-dir", "elsewhere"]).start();
    app.ok("/kv/set", &[("key", "a"), ("value", "kept")]);
    let app = app.stop();
    assert!(app.path("elsewhere/sqlite_key_value.db").is_file());
    assert!(!app.path(".spin").exists());
    assert_eq!(app.start().ok("/kv/get", &[("key", "a")]), "kept");

    let app = App::of("rust-sdk7", GRANTED).arguments(["--state-dir", ""]).start();
    app.ok("/kv/set", &[("key", "a"), ("value", "forgotten")]);
    assert_eq!(app.ok("/kv/get", &[("key", "a")]), "forgotten", "memory is shared by requests");
    let app = app.stop();
    assert!(!app.path(".spin").exists());
    assert_eq!(app.start().ok("/kv/get", &[("key", "a")]), json!(null));
}

#[test]
fn keys_can_be_set_from_the_command_line() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", GRANTED).arguments(["--key-value", "a=1", "--key-value", "b=x=y"]).start();
    assert_eq!(app.ok("/kv/get", &[("key", "a")]), "1");
    assert_eq!(app.ok("/kv/get", &[("key", "b")]), "x=y");
}

#[test]
fn stores_are_apart() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", r#"key_value_stores = ["default", "one", "two"]"#)
        .file(
            "runtime-config.toml",
            "[key_value_store.one]\ntype = \"spin\"\npath = \"shared.db\"\n\
             [key_value_store.two]\ntype = \"spin\"\n",
        )
        .arguments(["--runtime-config-file", "runtime-config.toml"])
        .start();
    for store in ["default", "one", "two"] {
        app.ok("/kv/set", &[("store", store), ("key", "name"), ("value", store)]);
    }
    for store in ["default", "one", "two"] {
        assert_eq!(app.ok("/kv/get", &[("store", store), ("key", "name")]), store);
    }
    assert!(app.path("shared.db").is_file(), "beside the runtime configuration");
    let app = app.stop().start();
    assert_eq!(app.ok("/kv/get", &[("store", "one"), ("key", "name")]), "one");
}

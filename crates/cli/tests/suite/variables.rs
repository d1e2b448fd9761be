//! Variables: where their values come from and who sees them.

use serde_json::json;

use crate::harness::{App, PROBES, available, have};

/// An app with a variable from each kind of place, and one guest.
fn app(guest: &str) -> App {
    App::new(&format!(
        r#"
        spin_manifest_version = 2
        [application]
        name = "variables"
        [variables]
        greeting = {{ default = "hello" }}
        place = {{ default = "world" }}
        secret_word = {{ default = "hush", secret = true }}
        [[trigger.http]]
        route = "/..."
        component = "probe"
        [component.probe]
        source = "{{{guest}}}"
        [component.probe.variables]
        greeting = "{{{{ greeting }}}}"
        sentence = "{{{{ greeting }}}}, {{{{place}}}}!"
        fixed = "as it is"
        "#
    ))
}

#[test]
fn values_come_from_the_manifest() {
    for guest in available(&PROBES) {
        let app = app(guest).start();
        for (name, value) in [("greeting", "hello"), ("sentence", "hello, world!"), ("fixed", "as it is")] {
            assert_eq!(app.ok("/variable", &[("name", name)]), value, "{guest}");
        }
    }
}

#[test]
fn what_is_not_declared_is_undefined() {
    for guest in available(&PROBES) {
        let app = app(guest).start();
        // The app has `place`, the component does not.
        for name in ["place", "no_such"] {
            let error = app.error("/variable", &[("name", name)]);
            // Spin 1 had no error for it.
            let expected = if guest == "rust-v1" { "Error::Provider(" } else { "Error::Undefined(" };
            assert!(error.starts_with(expected), "{guest}: {error}");
            assert!(error.contains(name), "{guest}: {error}");
        }
    }
}

#[test]
fn what_is_no_name_is_invalid() {
    for guest in available(&PROBES) {
        let app = app(guest).start();
        for name in ["invalid-name", "4x", "a!b", "", "a__b", "A"] {
            let error = app.error("/variable", &[("name", name)]);
            let expected = if guest == "rust-v1" { "Error::InvalidKey(" } else { "Error::InvalidName(" };
            assert!(error.starts_with(expected), "{guest}: {name}: {error}");
        }
    }
}

#[test]
fn wasi_config_has_the_same_values() {
    for guest in available(&["rust-wit"]) {
        let app = app(guest).start();
        assert_eq!(app.ok("/config/get", &[("key", "sentence")]), "hello, world!");
        for name in ["place", "no_such", "invalid-name", "4x"] {
            assert_eq!(app.ok("/config/get", &[("key", name)]), json!(null), "{name}");
        }
        assert_eq!(
            app.ok("/config/all", &[]),
            json!({ "greeting": "hello", "sentence": "hello, world!", "fixed": "as it is" })
        );
    }
}

#[test]
fn flags_set_values() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = app("rust-sdk7")
        .file("word.txt", "from a file")
        .file("more.json", r#"{ "secret_word": "from JSON" }"#)
        .file("more.toml", "secret_word = \"from TOML\"\n")
        .arguments(["--variable", "greeting=a=b", "--variable", "place=@word.txt"])
        .start();
    assert_eq!(app.ok("/variable", &[("name", "sentence")]), "a=b, from a file!");
    for file in ["more.json", "more.toml"] {
        let app = App::new(
            r#"
            spin_manifest_version = 2
            [application]
            name = "files"
            [variables]
            secret_word = { required = true, secret = true }
            [[trigger.http]]
            route = "/..."
            component = "probe"
            [component.probe]
            source = "{rust-sdk7}"
            variables = { word = "{{ secret_word }}" }
            "#,
        )
        .file("more.json", r#"{ "secret_word": "from a table" }"#)
        .file("more.toml", "secret_word = \"from a table\"\n")
        .arguments(["--variable", &format!("@{file}")])
        .start();
        assert_eq!(app.ok("/variable", &[("name", "word")]), "from a table", "{file}");
    }
}

#[test]
fn the_environment_sets_values() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let with_file = || app("rust-sdk7").file(".env", "SPIN_VARIABLE_GREETING=\"from .env\"\n");
    let app = with_file().start();
    assert_eq!(app.ok("/variable", &[("name", "greeting")]), "from .env");
    let app = with_file().environment("SPIN_VARIABLE_GREETING", "from the environment").start();
    assert_eq!(app.ok("/variable", &[("name", "greeting")]), "from the environment");
}

#[test]
fn the_first_provider_that_knows_a_value_wins() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let config = "[[variables_provider]]\ntype = \"static\"\nvalues = { greeting = \"configured\" }\n";
    let configured = || {
        app("rust-sdk7")
            .file("runtime-config.toml", config)
            .arguments(["--runtime-config-file", "runtime-config.toml"])
            .environment("SPIN_VARIABLE_GREETING", "from the environment")
            .environment("SPIN_VARIABLE_PLACE", "environment")
    };
    let app = configured().start();
    assert_eq!(app.ok("/variable", &[("name", "sentence")]), "configured, environment!");
    let app = configured().arguments(["--variable", "greeting=from the flag"]).start();
    assert_eq!(app.ok("/variable", &[("name", "sentence")]), "from the flag, environment!");
}

#[test]
fn the_environments_prefix_can_be_chosen() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let config = "[[variables_provider]]\ntype = \"env\"\nprefix = \"MINE\"\ndotenv_path = \"mine.env\"\n";
    let app = app("rust-sdk7")
        .file("runtime-config.toml", config)
        .file("mine.env", "MINE_PLACE=file\n")
        .arguments(["--runtime-config-file", "runtime-config.toml"])
        .environment("MINE_GREETING", "prefixed")
        .start();
    assert_eq!(app.ok("/variable", &[("name", "sentence")]), "prefixed, file!");
}

#[test]
fn a_required_variable_must_have_a_value() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = || {
        App::new(
            r#"
            spin_manifest_version = 2
            [application]
            name = "required"
            [variables]
            api_key = { required = true, secret = true }
            other = { required = true }
            [[trigger.http]]
            route = "/..."
            component = "probe"
            [component.probe]
            source = "{rust-sdk7}"
            variables = { key = "{{ api_key }}{{ other }}" }
            "#,
        )
    };
    let refused = app().refused();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(refused.stdout, "");
    assert!(
        refused
            .stderr
            .contains("error[WISP-E0320]: variables `api_key`, `other` are required and have no value"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("`--variable api_key=VALUE`"), "{}", refused.stderr);
    let app = app().arguments(["--variable", "api_key=k", "--variable", "other=o"]).start();
    assert_eq!(app.ok("/variable", &[("name", "key")]), "ko");
}

#[test]
fn a_refused_value_is_not_shown() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let refused = app("rust-sdk7").arguments(["--variable", "Not-A-Name=secret-value"]).refused();
    assert!(refused.stderr.contains("WISP-E032"), "{}", refused.stderr);
    assert!(refused.stderr.contains("Not-A-Name"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("secret-value"), "a value may be a secret: {}", refused.stderr);
}

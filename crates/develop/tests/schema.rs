//! The JSON schema of files of tests is checked in, so that editors can use it.
//! `WISP_UPDATE_SCHEMA=1 cargo test -p wisp-develop --test schema` writes it.

#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

use std::path::Path;

#[test]
fn checked_in_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tests-toml.schema.json");
    let schema = wisp_develop::test::schema();
    let current = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    if std::env::var_os("WISP_UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap();
    assert!(checked_in == current, "run this test with WISP_UPDATE_SCHEMA=1 to write the schema");
}

#[test]
fn schema_refuses_unknown_keys_and_says_what_known_ones_mean() {
    let schema = wisp_develop::test::schema();
    assert_eq!(schema["additionalProperties"], false);
    assert!(!schema.to_string().contains("\"null\""));
    let types = schema["$defs"].as_object().unwrap();
    assert!(types.len() > 8);
    for (name, definition) in types {
        for (key, property) in definition["properties"].as_object().into_iter().flatten() {
            assert!(property["description"].is_string(), "{name}.{key} has no description");
        }
    }
}

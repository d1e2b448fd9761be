//! The JSON schema of manifests is checked in, so that editors can use it.
//! `WISP_UPDATE_SCHEMA=1 cargo test -p wisp-manifest --test schema` writes it.

#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

use std::path::Path;

#[test]
fn checked_in_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/spin-toml.schema.json");
    let schema = wisp_manifest::manifest_schema();
    let current = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    if std::env::var_os("WISP_UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap();
    assert!(checked_in == current, "run this test with WISP_UPDATE_SCHEMA=1 to write the schema");
}

#[test]
fn schema_has_no_null_and_refuses_unknown_keys() {
    for schema in [wisp_manifest::manifest_schema(), wisp_manifest::runtime_config_schema()] {
        assert_eq!(schema["additionalProperties"], false);
        assert!(!schema.to_string().contains("\"null\""));
        assert!(!schema.to_string().contains("is_damaged"));
    }
    let manifest = wisp_manifest::manifest_schema();
    assert_eq!(manifest["required"], serde_json::json!(["spin_manifest_version", "application"]));
    assert_eq!(manifest["$defs"]["Component"]["required"], serde_json::json!(["source"]));
}

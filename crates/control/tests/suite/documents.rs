//! The OpenAPI document and the page of errors are what the code is.
//! `WISP_UPDATE_OPENAPI=1 cargo test -p wisp-control --test suite` writes the document.

use std::path::Path;

use wisp_control::Error;

#[test]
fn checked_in_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let current = format!("{}\n", wisp_control::openapi().to_pretty_json().unwrap());
    if std::env::var_os("WISP_UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == current, "run this test with WISP_UPDATE_OPENAPI=1 to write the document");
}

#[test]
fn every_error_is_explained() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let page = std::fs::read_to_string(page).unwrap();
    for number in 1..=Error::CODES_COUNT {
        let code = format!("WISP-E09{number:02}");
        assert!(page.contains(&format!("| `{code}` |")), "{code} is not in docs/errors.md");
    }
}

/// No error of the crate has a code beyond those that are counted.
#[test]
fn codes_are_counted() {
    assert_eq!(Error::Method.code(), format!("WISP-E09{:02}", Error::CODES_COUNT));
}

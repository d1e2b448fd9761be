//! A runtime configuration: whatever the text, it is understood, or becomes a
//! list of errors that can be shown.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wisp_manifest::RuntimeConfig;

fuzz_target!(|text: &str| {
    match RuntimeConfig::parse(Path::new("runtime-config.toml"), text) {
        Ok(checked) => assert!(!checked.warnings.has_errors()),
        Err(diagnostics) => {
            assert!(diagnostics.has_errors());
            assert!(diagnostics.render(true, 40).contains("WISP-E01"));
        }
    }
});

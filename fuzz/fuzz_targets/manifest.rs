//! A manifest: whatever the text, it becomes an app that makes sense, or a
//! list of errors that can be shown.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wisp_manifest::App;

fuzz_target!(|text: &str| {
    for profile in [None, Some("debug")] {
        match App::parse(Path::new("spin.toml"), text, profile) {
            Ok(checked) => {
                assert!(!checked.warnings.has_errors());
                checked.warnings.render(true, 80);
                let app = checked.value;
                for trigger in &app.triggers {
                    for component in trigger.kind.components() {
                        assert!(app.components.contains_key(component));
                    }
                }
                for trigger_type in app.trigger_types() {
                    app.components_for(trigger_type);
                }
            }
            Err(diagnostics) => {
                assert!(diagnostics.has_errors());
                assert!(diagnostics.render(false, 80).contains("error[WISP-E01"));
                assert!(!diagnostics.to_string().is_empty());
            }
        }
    }
});

//! A `spin.lock`, or what an image holds in its place.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wisp_manifest::LockedApp;

fuzz_target!(|json: &[u8]| {
    let path = Path::new("spin.lock");
    let Ok(locked) = LockedApp::parse(path, json) else { return };
    match locked.check(path) {
        Ok(checked) => {
            // What was read can be said again, and means the same.
            let again = LockedApp::new(&checked.value);
            assert!(again.check(path).is_ok(), "{}", String::from_utf8_lossy(&again.to_json()));
        }
        Err(problems) => assert!(problems.has_errors()),
    }
});

//! Bodies of the API, each read as every kind of request.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wisp_control::parse_any_body(bytes));

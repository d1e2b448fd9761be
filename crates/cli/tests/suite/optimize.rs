//! `wisp build --optimize`: smaller, quicker to start, and otherwise the same.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::Value;

use super::develop::{COPIED, Desk, times_hidden};
use crate::harness::{Served, guests_dir, have, skip};

/// A program of WASI preview 1 that computes for a while before it answers, unless
/// `wizer.initialize` has done so ahead.
fn slow_to_start(initializer: &str) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 256) "Content-Type: text/plain\n\nsum 0\n")
            (global $is_ready (mut i32) (i32.const 0))
            (func $prepare
                (local $left i32)
                (local.set $left (i32.const 40000000))
                (loop $again
                    (i32.store8 (i32.const 286)
                        (i32.add (i32.const 48)
                            (i32.rem_u (i32.add (i32.load8_u (i32.const 286)) (local.get $left)) (i32.const 10))))
                    (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
                (global.set $is_ready (i32.const 1)))
            (func (export "wizer.initialize") {initializer})
            (func (export "_start")
                (if (i32.eqz (global.get $is_ready)) (then (call $prepare)))
                (i32.store (i32.const 16) (i32.const 256))
                (i32.store (i32.const 20) (i32.const 32))
                (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))))"#
    ))
    .unwrap()
}

/// What a build says it did to the only component.
#[track_caller]
fn optimized(desk: &Desk, arguments: &[&str]) -> Value {
    let arguments: Vec<_> =
        ["build", "--optimize", "--format", "json"].iter().chain(arguments).copied().collect();
    let report: Value = serde_json::from_str(&desk.done("app", &arguments).stdout).unwrap();
    assert_eq!(report["optimized"].as_array().unwrap().len(), 1, "{report}");
    report["optimized"][0].clone()
}

/// What the app answers.
fn answer(desk: &Desk) -> (u16, String) {
    let served = Served::start(desk.command("app", &["up", "--listen", "127.0.0.1:0"])).unwrap();
    let response = served.get("/");
    (response.status, response.text())
}

/// Puts a `wasm-opt` before all others that runs these lines; `$output` is its output.
fn fake_optimizer(desk: &mut Desk, lines: &str) {
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'wasm-opt version 0'; exit; fi\n\
         for output; do :; done\n{lines}\n"
    );
    desk.write("bin/wasm-opt", script);
    fs::set_permissions(desk.path("bin/wasm-opt"), fs::Permissions::from_mode(0o755)).unwrap();
    desk.programs.insert(0, desk.path("bin"));
}

#[test]
fn a_start_up_is_taken_out_where_its_author_said_so() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/source.wasm", slow_to_start("(call $prepare)"));
    desk.done("app", &["build"]);
    let before = answer(&desk);
    let report = optimized(&desk, &[]);
    assert_eq!(report["snapshot"]["is_done"], true, "{report}");
    assert_eq!(report["refused"], Value::Null, "{report}");
    let us = |when: &str| report[when]["start_up_us"].as_f64().unwrap();
    // Forty million rounds of a loop are not to be missed.
    assert!(us("after") * 5.0 < us("before"), "{report}");
    assert_eq!(answer(&desk), before);
    // Nothing changed, so nothing is done, and what was done is told again.
    let again = desk.done("app", &["build", "--optimize", "--format", "json"]);
    assert!(again.stderr.contains("Unchanged: `copied`"), "{}", again.stderr);
    assert_eq!(serde_json::from_str::<Value>(&again.stdout).unwrap()["optimized"][0], report);
    // Without the flag the file is what the command makes.
    desk.done("app", &["build"]);
    assert_eq!(fs::read(desk.path("app/copied.wasm")).unwrap(), slow_to_start("(call $prepare)"));
}

#[test]
fn a_start_up_that_asks_the_world_stays_where_it_is() {
    let mut desk = Desk::new();
    fake_optimizer(&mut desk, "exit 7");
    desk.write("app/spin.toml", COPIED);
    desk.write("app/source.wasm", slow_to_start("(drop (call $random (i32.const 0) (i32.const 4)))"));
    let built = desk.done("app", &["build", "--optimize"]);
    let times_gone: String = built
        .stdout
        .lines()
        .filter(|line| !line.starts_with("  start-up"))
        .map(|line| format!("{line}\n"))
        .collect();
    insta::assert_snapshot!(format!("{}{times_gone}", times_hidden(&built.stderr)));
}

#[test]
fn what_an_optimizer_breaks_is_not_taken() {
    let mut desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    // Large enough to be given to it, and with something that it may leave out.
    let program = |start: &str, zeros: usize| {
        let zeros = "\\00".repeat(zeros);
        wat::parse_str(format!(
            r#"(module
                (import "wasi_snapshot_preview1" "fd_write"
                    (func $write (param i32 i32 i32 i32) (result i32)))
                (memory (export "memory") 1)
                (data (i32.const 256) "Content-Type: text/plain\n\nyes\n")
                (data (i32.const 1024) "{zeros}")
                (func (export "_start")
                    {start}
                    (i32.store (i32.const 16) (i32.const 256))
                    (i32.store (i32.const 20) (i32.const 30))
                    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))))"#
        ))
        .unwrap()
    };
    let source = program("(nop)", 8000);
    desk.write("app/source.wasm", &source);
    fake_optimizer(&mut desk, "echo nonsense > \"$output\"");
    let report = optimized(&desk, &[]);
    assert!(report["wasm_opt"]["note"].as_str().unwrap().contains("is not valid"), "{report}");
    assert_eq!(fs::read(desk.path("app/copied.wasm")).unwrap(), source);
    // Valid, and another program.
    desk.write("other.wasm", program("(unreachable)", 4000));
    let copy = format!("cp '{}' \"$output\"", desk.path("other.wasm").display());
    fake_optimizer(&mut desk, &copy);
    let report = optimized(&desk, &["--no-cache", "--strip", "nothing"]);
    assert!(report["refused"].as_str().unwrap().contains("it answers with 500"), "{report}");
    assert_eq!(report["before"]["size_bytes"], report["after"]["size_bytes"]);
    assert_eq!(fs::read(desk.path("app/copied.wasm")).unwrap(), source);
}

#[test]
fn components_become_smaller_and_answer_as_before() {
    if !have(&["rust-sdk7", "rust-wstd"]) {
        return;
    }
    if std::process::Command::new("wasm-opt").arg("--version").output().is_err() {
        skip("there is no `wasm-opt`; `cargo xtask setup --only servers` installs it");
        return;
    }
    for guest in ["rust-sdk7", "rust-wstd"] {
        let desk = Desk::new();
        desk.write("app/spin.toml", COPIED.replace("executor = { type = \"wagi\" }\n", ""));
        fs::copy(guests_dir().join(guest).with_extension("wasm"), desk.path("app/source.wasm")).unwrap();
        desk.done("app", &["build"]);
        let before = answer(&desk);
        let report = optimized(&desk, &["--strip", "all"]);
        assert_eq!(report["wasm_opt"]["is_done"], true, "{report}");
        let bytes = |when: &str| report[when]["size_bytes"].as_u64().unwrap();
        assert!(bytes("after") < bytes("before"), "{report}");
        assert_eq!(bytes("after"), fs::metadata(desk.path("app/copied.wasm")).unwrap().len());
        assert_eq!(answer(&desk), before, "{guest}");
    }
}

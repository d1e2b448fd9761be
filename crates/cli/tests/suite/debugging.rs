//! `wisp up --debug`, and what a trap says.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use super::develop::Desk;
use crate::harness::{Output, START_LIMIT, Served, guests_dir, have, skip};

/// How long a debugger may take to read the symbols of a debug build.
const DEBUGGER_LIMIT: Duration = Duration::from_secs(120);

/// A program in C. Tests name its lines.
const PROGRAM: &str = "#include <stdio.h>
#include <stdlib.h>

static int twice(int number) {
    int doubled = number * 2;
    return doubled;
}

int main(void) {
    const char *query = getenv(\"QUERY_STRING\");
    int answer = twice(21);
    if (query && query[0] == 'f') __builtin_trap();
    printf(\"Content-Type: text/plain\\n\\n%d\\n\", answer);
    return 0;
}
";

/// An app of that program, with its debug information; `None` where there is no compiler.
fn in_c() -> Option<Desk> {
    if !have(&["c-wagi"]) {
        return None;
    }
    let mut desk = Desk::new();
    desk.programs.push(guests_dir().join("tools/zig-bin"));
    desk.write("app/program.c", PROGRAM);
    desk.write(
        "app/spin.toml",
        r#"spin_manifest_version = 2
[application]
name = "debugged"
[[trigger.http]]
route = "/..."
component = "debugged"
executor = { type = "wagi" }
[component.debugged]
source = "program.wasm"
[component.debugged.build]
command = "zig cc -target wasm32-wasi -g -O0 -fno-sanitize=undefined -o program.wasm program.c"
"#,
    );
    desk.done("app", &["build"]);
    Some(desk)
}

/// A request whose answer nobody waits for.
fn ask(address: SocketAddr) -> TcpStream {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    connection
}

#[test]
fn gdb_stops_at_a_line_of_a_guest_and_shows_its_variables() {
    let Some(desk) = in_c() else { return };
    if Command::new("gdb").arg("--version").output().is_err() {
        skip("there is no `gdb`; `cargo xtask setup --only servers` installs it");
        return;
    }
    let script = "set pagination off\n\
                  set confirm off\n\
                  set breakpoint pending on\n\
                  handle SIGPIPE SIGSEGV nostop noprint pass\n\
                  break program.c:6\n\
                  run\n\
                  echo \\n== stopped\\n\n\
                  print number\n\
                  print doubled\n\
                  backtrace 2\n\
                  echo == over\\n\n\
                  kill\n\
                  quit\n";
    desk.write("script.gdb", script);
    let wisp = desk.command("app", &["up", "--debug", "--listen", "127.0.0.1:0"]);
    let mut gdb = Command::new("gdb");
    gdb.args(["--batch", "--nx", "--command"]).arg(desk.path("script.gdb")).arg("--args");
    gdb.arg(wisp.get_program()).args(wisp.get_args()).current_dir(desk.path("app"));
    for (name, value) in wisp.get_envs() {
        match value {
            Some(value) => gdb.env(name, value),
            None => gdb.env_remove(name),
        };
    }
    gdb.env_remove("DEBUGINFOD_URLS");
    let mut child = gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = Output::of(child.stdout.take().unwrap());
    let errors = Output::of(child.stderr.take().unwrap());
    let serving = output.try_wait_for(|line| line.contains("Serving http://"), START_LIMIT);
    let address = serving.and_then(|line| line.split_once("http://")?.1.parse().ok());
    let connection = address.map(ask);
    let is_over = output.try_wait_for(|line| line.contains("== over"), DEBUGGER_LIMIT).is_some();
    drop(connection);
    if !is_over {
        // It ends its own child, which it traces.
        drop(child.kill());
    }
    child.wait().unwrap();
    let text = output.text_at_end();
    assert!(is_over, "it does not stop:\n{text}{}", errors.text_at_end());
    let stopped = text.split_once("== stopped").unwrap().1;
    assert!(stopped.contains("$1 = 21") && stopped.contains("$2 = 42"), "{text}");
    assert!(stopped.contains("twice") && stopped.contains("program.c:6"), "{text}");
    assert!(stopped.contains("program.c:11"), "who called it is known: {text}");
}

#[test]
fn an_app_that_can_be_debugged_answers_as_any_other() {
    let Some(desk) = in_c() else { return };
    for arguments in [&["--debug"][..], &[], &["--debug"]] {
        let arguments: Vec<_> = ["up", "--listen", "127.0.0.1:0"].iter().chain(arguments).copied().collect();
        let served = Served::start(desk.command("app", &arguments)).unwrap();
        for _ in 0..3 {
            assert_eq!(served.get("/").text(), "42\n");
        }
    }
}

#[test]
fn the_backtrace_of_a_trap_has_names_and_lines() {
    let Some(desk) = in_c() else { return };
    let served = Served::start(desk.command("app", &["up", "--listen", "127.0.0.1:0"])).unwrap();
    assert_eq!(served.get("/?fail").status, 500);
    served.stderr.wait_for_text("main");
    served.stderr.wait_for_text("program.c:12");
}

#[test]
fn the_backtrace_of_a_program_without_debug_information_has_names() {
    let desk = Desk::new();
    let program = wat::parse_str(
        r#"(module
            (memory (export "memory") 1)
            (func $deep_down (unreachable))
            (func $on_the_way (call $deep_down))
            (func (export "_start") (call $on_the_way)))"#,
    );
    desk.write("program.wasm", program.unwrap());
    let manifest = "spin_manifest_version = 2\n[application]\nname = \"a\"\n[[trigger.http]]\n\
                    route = \"/...\"\ncomponent = \"a\"\nexecutor = { type = \"wagi\" }\n\
                    [component.a]\nsource = \"program.wasm\"\n";
    desk.write("spin.toml", manifest);
    let served = Served::start(desk.command(".", &["up", "--listen", "127.0.0.1:0"])).unwrap();
    assert_eq!(served.get("/").status, 500);
    served.stderr.wait_for_text("deep_down");
    served.stderr.wait_for_text("on_the_way");
}

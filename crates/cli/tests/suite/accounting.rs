//! What a request used, told to clients and in the log.

use crate::harness::{App, guest};

/// A figure of a `Server-Timing` header, in milliseconds.
fn timing(header: &str, name: &str) -> f64 {
    let entry = header.split(", ").find(|entry| entry.starts_with(&format!("{name};")));
    entry.and_then(|entry| entry.split_once("dur=")).unwrap().1.parse().unwrap()
}

#[test]
fn clients_are_told_what_their_request_took_if_the_operator_wants_that() {
    let name = "rust-sdk5";
    if guest(name).is_none() {
        return;
    }
    let app = App::of(name, "").arguments(["--server-timing"]).start();
    let response = app.get("/");
    let header = response.header("server-timing").unwrap().to_owned();
    let (total, cpu) = (timing(&header, "total"), timing(&header, "cpu"));
    let instantiate = timing(&header, "instantiate");
    assert!(instantiate > 0.0 && cpu > 0.0 && total >= instantiate && total >= cpu, "{header}");

    let app = App::of(name, "").start();
    assert_eq!(app.get("/").header("server-timing"), None);
}

#[test]
fn a_request_is_a_line_of_the_log_if_the_operator_wants_that() {
    if guest("rust-sdk5").is_none() {
        return;
    }
    let app = App::of("rust-sdk5", "").environment("WISP_LOG", "wisp::request=debug").start();
    app.request("POST", "/echo", &[], b"twelve bytes").expect();
    let line = app.stderr.wait_for_text("debug: request ");
    for expected in [
        " component=rust-sdk5",
        " status=200",
        " outcome=answered",
        " request_bytes=12",
        " response_bytes=12",
    ] {
        assert!(line.contains(expected), "{expected} in {line}");
    }
    let figure = |name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}=")).unwrap();
        rest.split(' ').next().unwrap().trim().parse::<u64>().unwrap()
    };
    assert!(figure("cpu_us") > 0 && figure("peak_memory_bytes") >= 65_536, "{line}");
    assert!(figure("total_us") >= figure("cpu_us"), "{line}");
}

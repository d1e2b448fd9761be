//! What guests reach: servers, each other, themselves; and what they do not.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::harness::{
    App, PROBES, Running, SDK_PROBES, Upstream, available, have, query, seen_header, tcp_echo, udp_echo,
};

const LOOPBACK: &str = r#"allowed_outbound_hosts = ["http://127.0.0.1:*"]"#;

/// What a probe says when a host is not allowed, by the interface it uses.
fn denied(guest: &str) -> &'static str {
    match guest {
        "rust-v1" => "destination-not-allowed",
        _ => "HttpRequestDenied",
    }
}

/// What the upstream was asked, as a guest's `/fetch` answers it.
fn upstream_saw(fetched: &Value) -> Value {
    serde_json::from_str(fetched["body"].as_str().expect("text")).expect("JSON")
}

#[test]
fn an_allowed_host_is_reached() {
    let upstream = Upstream::start();
    for guest in available(&PROBES) {
        let app = App::of(guest, LOOPBACK).start();
        let fetched = app.ok(
            "/fetch",
            &[
                ("url", &upstream.url("/there?a=1")),
                ("method", "POST"),
                ("body", "sent"),
                ("header", "x-mine:yes"),
            ],
        );
        assert_eq!(fetched["status"], 200, "{guest}");
        let cookies: Vec<_> = fetched["headers"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|pair| pair[0] == "set-cookie")
            .map(|pair| pair[1].clone())
            .collect();
        assert_eq!(cookies, [json!("a=1"), json!("b=2")], "{guest}");
        let saw = upstream_saw(&fetched);
        assert_eq!(saw["method"], "POST", "{guest}");
        assert_eq!(saw["target"], "/there?a=1", "{guest}");
        assert_eq!(saw["body"], "sent", "{guest}");
        assert_eq!(seen_header(&saw, "x-mine"), Some("yes"), "{guest}");
        assert_eq!(seen_header(&saw, "host"), Some(upstream.address.to_string().as_str()), "{guest}");
        let of_spin: Vec<_> = saw["headers"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|pair| pair[0].to_string().contains("spin-"))
            .collect();
        assert!(of_spin.is_empty(), "{guest}: {of_spin:?} concern nobody outside");
    }
}

#[test]
fn javascript_reaches_an_allowed_host() {
    if !have(&["js"]) {
        return;
    }
    let upstream = Upstream::start();
    let app = App::of("js", LOOPBACK).start();
    let fetched = app.ok("/fetch", &[("url", &upstream.url("/from-js"))]);
    assert_eq!(fetched["status"], 200);
    assert_eq!(upstream_saw(&fetched)["target"], "/from-js");
    let denied = app.error("/fetch", &[("url", "http://127.0.0.2:1/")]);
    assert!(!denied.is_empty());
}

#[test]
fn a_host_that_is_not_allowed_is_not_reached() {
    let upstream = Upstream::start();
    let port = upstream.address.port();
    for guest in available(&PROBES) {
        for (allowed, url) in [
            (String::new(), upstream.url("/")),
            ("allowed_outbound_hosts = []".into(), upstream.url("/")),
            (format!("allowed_outbound_hosts = [\"https://127.0.0.1:{port}\"]"), upstream.url("/")),
            (
                format!("allowed_outbound_hosts = [\"http://127.0.0.1:{}\"]", port.wrapping_add(1)),
                upstream.url("/"),
            ),
            (format!("allowed_outbound_hosts = [\"http://localhost:{port}\"]"), upstream.url("/")),
            ("allowed_outbound_hosts = [\"http://*.example.com\"]".into(), "http://example.com/".into()),
        ] {
            let app = App::of(guest, &allowed).start();
            let error = app.error("/fetch", &[("url", &url)]);
            assert!(error.contains(denied(guest)), "{guest} with {allowed}: {error}");
            // The refusal is explained to whoever runs the app.
            app.stderr.wait_for(|line| line.contains("WISP-E0330") && line.contains(guest));
        }
    }
    assert_eq!(upstream.accepted_count(), 0, "nothing was even tried");
}

#[test]
fn patterns_and_variables_allow_hosts() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let upstream = Upstream::start();
    let port = upstream.address.port();
    for entry in [
        "*://*:*".to_owned(),
        "http://*:*".into(),
        format!("http://127.0.0.0/8:{port}"),
        format!("http://127.0.0.1:{port}..{}", u32::from(port) + 1),
        "{{ upstream }}".into(),
        "http://{{ address }}".into(),
    ] {
        let app = App::new(&format!(
            r#"
            spin_manifest_version = 2
            [application]
            name = "patterns"
            [variables]
            upstream = {{ default = "http://127.0.0.1:{port}" }}
            address = {{ default = "127.0.0.1:{port}" }}
            [[trigger.http]]
            route = "/..."
            component = "probe"
            [component.probe]
            source = "{{rust-sdk7}}"
            allowed_outbound_hosts = ["{entry}"]
            "#
        ))
        .start();
        let fetched = app.ok("/fetch", &[("url", &upstream.url("/"))]);
        assert_eq!(fetched["status"], 200, "{entry}");
    }
}

#[test]
fn a_blocked_network_is_not_reached_although_it_is_allowed() {
    let upstream = Upstream::start();
    for guest in available(&PROBES) {
        for network in ["127.0.0.0/8", "private"] {
            let app = App::of(guest, r#"allowed_outbound_hosts = ["*://*:*"]"#)
                .file("config.toml", format!("[outbound_networking]\nblock_networks = [\"{network}\"]\n"))
                .arguments(["--runtime-config-file", "config.toml"])
                .start();
            let error = app.error("/fetch", &[("url", &upstream.url("/"))]);
            let expected = if guest == "rust-v1" { denied(guest) } else { "DestinationIpProhibited" };
            assert!(error.contains(expected), "{guest} {network}: {error}");
            // A name for a blocked address does not help.
            let url = format!("http://localhost:{}/", upstream.address.port());
            let error = app.error("/fetch", &[("url", &url)]);
            assert!(error.contains(expected), "{guest} {network}: {error}");
        }
    }
    assert_eq!(upstream.accepted_count(), 0);
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for guest in available(&PROBES) {
        let app = App::of(guest, LOOPBACK).start();
        let error = app.error("/fetch", &[("url", &format!("http://{free}/"))]);
        let expected = if guest == "rust-v1" { "request-error" } else { "ConnectionRefused" };
        assert!(error.contains(expected), "{guest}: {error}");
    }
}

#[test]
fn a_name_without_an_address_is_a_dns_error() {
    for guest in available(&PROBES) {
        let app = App::of(guest, r#"allowed_outbound_hosts = ["http://no-such-host.invalid"]"#).start();
        let error = app.error("/fetch", &[("url", "http://no-such-host.invalid/")]);
        let expected = if guest == "rust-v1" { "request-error" } else { "DnsError" };
        assert!(error.contains(expected), "{guest}: {error}");
    }
}

#[test]
fn connections_are_kept_for_the_next_request() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    for (config, is_pooled) in [("", true), ("[outbound_http]\nconnection_pooling = false\n", false)] {
        let upstream = Upstream::start();
        let app = App::of("rust-sdk7", LOOPBACK)
            .file("config.toml", config)
            .arguments(["--runtime-config-file", "config.toml"])
            .start();
        let mut connection = app.connect();
        for _ in 0..10 {
            connection.request("GET", &query("/fetch", &[("url", &upstream.url("/"))]), &[], b"");
            connection.response().ok();
        }
        let accepted_count = upstream.accepted_count();
        if is_pooled {
            assert!(accepted_count <= 2, "{accepted_count} connections for ten requests");
        } else {
            assert_eq!(accepted_count, 10);
        }
    }
}

#[test]
fn a_proxy_streams_both_bodies() {
    // The probe for SDK 5 reads all of one body before it begins with the other.
    for guest in available(&["rust-sdk6", "rust-sdk7"]) {
        let upstream = Upstream::start();
        let app = App::of(guest, LOOPBACK).start();
        let mut connection = app.connect();
        connection.head(
            "POST",
            &query("/proxy", &[("url", &upstream.url("/echo"))]),
            &[("transfer-encoding", "chunked")],
        );
        connection.send_chunk(b"piece 0");
        assert_eq!(connection.response_head().status, 200, "{guest}");
        for number in 0..4 {
            let expected = format!("piece {number}");
            let mut received = Vec::new();
            while received.len() < expected.len() {
                received.extend(connection.chunk().expect("more"));
            }
            assert_eq!(String::from_utf8_lossy(&received), expected, "{guest}");
            connection.send_chunk(format!("piece {}", number + 1).as_bytes());
        }
        connection.send_chunk(b"");
        let mut rest = Vec::new();
        while let Some(chunk) = connection.chunk() {
            rest.extend(chunk);
        }
        assert_eq!(rest, b"piece 4", "{guest}");
    }
}

#[test]
fn a_proxy_loses_nothing() {
    let upstream = Upstream::start();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, LOOPBACK).start();
        let response = app.request("POST", &query("/proxy", &[("url", &upstream.url("/echo"))]), &[], &sent);
        assert_eq!(response.status, 200, "{guest}");
        assert!(response.body == sent, "{guest}: {} of {} bytes", response.body.len(), sent.len());
    }
}

/// Two components, of which the second is private; `allowed` is what the first may reach.
fn chained(guest: &str, allowed: &str) -> Running {
    App::new(&format!(
        r#"
        spin_manifest_version = 2
        [application]
        name = "chained"
        [[trigger.http]]
        route = "/front/..."
        component = "front"
        [[trigger.http]]
        route = {{ private = true }}
        component = "back"
        [component.front]
        source = "{{{guest}}}"
        allowed_outbound_hosts = [{allowed}]
        [component.back]
        source = "{{rust-sdk7}}"
        "#
    ))
    .start()
}

#[test]
fn components_call_each_other_in_process() {
    for guest in available(&PROBES) {
        if !have(&["rust-sdk7"]) {
            return;
        }
        for allowed in [r#""http://back.spin.internal""#, r#""http://*.spin.internal""#] {
            let app = chained(guest, allowed);
            let fetched = app.ok(
                "/front/fetch",
                &[("url", "http://back.spin.internal/echo-request?a=1"), ("header", "x-mine:yes")],
            );
            assert_eq!(fetched["status"], 200, "{guest}");
            let seen: Value = serde_json::from_str(fetched["body"].as_str().unwrap()).unwrap();
            assert_eq!(seen_header(&seen, "x-mine"), Some("yes"), "{guest}");
            assert_eq!(seen_header(&seen, "spin-path-info"), Some("/echo-request"), "{guest}");
            assert_eq!(seen_header(&seen, "spin-client-addr"), Some("0.0.0.0:0"), "{guest}");
            assert_eq!(
                seen_header(&seen, "spin-full-url"),
                Some("http://back.spin.internal/echo-request?a=1"),
                "{guest}"
            );
            assert_eq!(seen_header(&seen, "host"), None, "{guest}: it is no host of the network");
        }
    }
}

#[test]
fn chaining_needs_permission() {
    for guest in available(&PROBES) {
        if !have(&["rust-sdk7"]) {
            return;
        }
        let app = chained(guest, r#""http://other.example""#);
        let error = app.error("/front/fetch", &[("url", "http://back.spin.internal/")]);
        assert!(error.contains(denied(guest)), "{guest}: {error}");
    }
}

#[test]
fn a_trap_in_a_chained_component_is_a_response_of_500() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = chained("rust-sdk7", r#""http://back.spin.internal""#);
    let fetched = app.ok("/front/fetch", &[("url", "http://back.spin.internal/trap")]);
    assert_eq!(fetched["status"], 500);
    app.stderr.wait_for(|line| line.contains("WISP-E0410") && line.contains("component=back"));
}

#[test]
fn chained_bodies_stream() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = chained("rust-sdk7", r#""http://back.spin.internal""#);
    let mut connection = app.connect();
    let target = query("/front/proxy", &[("url", "http://back.spin.internal/echo")]);
    connection.head("POST", &target, &[("transfer-encoding", "chunked")]);
    for number in 0..3 {
        connection.send_chunk(format!("piece {number}").as_bytes());
        if number == 0 {
            assert_eq!(connection.response_head().status, 200);
        }
        assert_eq!(connection.chunk().unwrap(), format!("piece {number}").as_bytes());
    }
}

#[test]
fn a_component_that_there_is_not_cannot_be_called() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", r#"allowed_outbound_hosts = ["http://*:*"]"#).start();
    let error = app.error("/fetch", &[("url", "http://nobody.spin.internal/")]);
    assert!(error.contains("Destination") || error.contains("Denied") || error.contains("Dns"), "{error}");
}

#[test]
fn an_app_can_call_itself() {
    for guest in available(&PROBES) {
        let app = App::of(guest, r#"allowed_outbound_hosts = ["http://self"]"#).start();
        for url in ["/echo-request?a=1", "http://self.alt/echo-request?a=1"] {
            let fetched = app.ok("/fetch", &[("url", url)]);
            assert_eq!(fetched["status"], 200, "{guest} {url}");
            let seen: Value = serde_json::from_str(fetched["body"].as_str().unwrap()).unwrap();
            assert_eq!(seen_header(&seen, "spin-matched-route"), Some("/..."), "{guest} {url}");
            assert_eq!(seen_header(&seen, "spin-client-addr"), Some("0.0.0.0:0"), "{guest} {url}");
        }
        let app = App::of(guest, LOOPBACK).start();
        for url in ["/echo-request", "http://self.alt/echo-request"] {
            let error = app.error("/fetch", &[("url", url)]);
            assert!(error.contains(denied(guest)), "{guest} {url}: {error}");
        }
    }
}

#[test]
fn tcp_goes_where_it_is_allowed_to() {
    let echo = tcp_echo();
    for guest in available(&PROBES) {
        let app = App::of(guest, &format!("allowed_outbound_hosts = [\"tcp://{echo}\"]")).start();
        let ask = [("addr", echo.to_string()), ("send", "hello over TCP".into())];
        let ask: Vec<_> = ask.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(app.ok("/tcp", &ask), "hello over TCP", "{guest}");
        let other = tcp_echo().to_string();
        let error = app.error("/tcp", &[("addr", &other)]);
        assert!(error.contains("PermissionDenied"), "{guest}: {error}");

        // Another protocol is another permission.
        let app = App::of(guest, &format!("allowed_outbound_hosts = [\"http://{echo}\"]")).start();
        let error = app.error("/tcp", &ask);
        assert!(error.contains("PermissionDenied"), "{guest}: {error}");

        let app = App::of(guest, r#"allowed_outbound_hosts = ["*://*:*"]"#)
            .file("config.toml", "[outbound_networking]\nblock_networks = [\"127.0.0.0/8\"]\n")
            .arguments(["--runtime-config-file", "config.toml"])
            .start();
        let error = app.error("/tcp", &ask);
        assert!(error.contains("PermissionDenied"), "{guest}: {error}");
    }
}

#[test]
fn udp_goes_where_it_is_allowed_to() {
    let echo = udp_echo().to_string();
    for guest in available(&PROBES) {
        let ask = [("addr", echo.as_str()), ("send", "hello over UDP")];
        let app = App::of(guest, r#"allowed_outbound_hosts = ["udp://*:*"]"#).start();
        assert_eq!(app.ok("/udp", &ask), "hello over UDP", "{guest}");
        let app = App::of(guest, r#"allowed_outbound_hosts = ["tcp://*:*"]"#).start();
        let error = app.error("/udp", &ask);
        assert!(error.contains("PermissionDenied"), "{guest}: {error}");
    }
}

#[test]
fn names_are_not_looked_up_for_guests() {
    for guest in available(&PROBES) {
        let app = App::of(guest, r#"allowed_outbound_hosts = ["*://*:*"]"#).start();
        let error = app.error("/dns", &[("host", "localhost")]);
        assert!(!error.is_empty(), "{guest}");
    }
}

#[test]
fn a_request_that_is_cancelled_ends_what_it_had_begun() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    // Accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let app = App::of("rust-sdk7", LOOPBACK).start();
    let mut connection = app.connect();
    connection.request("GET", &query("/fetch", &[("url", &url)]), &[], b"");
    let (outgoing, _) = silent.accept().unwrap();
    outgoing.set_read_timeout(Some(crate::harness::WAIT_LIMIT)).unwrap();
    let mut outgoing = std::io::BufReader::new(outgoing);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut outgoing, &mut line).unwrap();
    assert_eq!(line, "GET / HTTP/1.1\r\n");
    drop(connection);
    // The guest is gone, and with it its request.
    let mut rest = Vec::new();
    let end = std::io::Read::read_to_end(&mut outgoing, &mut rest);
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

//! Which route answers, what its guest sees, and what comes back.

use serde_json::{Value, json};

use crate::harness::{App, PROBES, Running, available, have, seen_header};

/// An app whose routes answer with their own names, without any guest.
fn named_routes(routes: &[&str]) -> Running {
    let mut manifest = "spin_manifest_version = 2\n[application]\nname = \"named\"\n".to_owned();
    for route in routes {
        manifest.push_str(&format!(
            "[[trigger.http]]\nroute = \"{route}\"\nstatic_response = {{ body = \"{route}\" }}\n"
        ));
    }
    App::new(&manifest).start()
}

/// Which of the routes answers a path; `404` if none does.
fn assert_routes(app: &Running, expected: &[(&str, &str)]) {
    for (path, route) in expected {
        let response = app.get(path);
        let answered = if response.status == 404 { "404".to_owned() } else { response.expect() };
        assert_eq!(&answered, route, "{path}");
    }
}

#[test]
fn exact_routes_beat_names_and_names_beat_wildcards() {
    let app = named_routes(&["/...", "/a/...", "/a/:name", "/a/b", "/a/b/...", "/a/:name/c", "/a/:x/..."]);
    assert_routes(
        &app,
        &[
            ("/", "/..."),
            ("/x", "/..."),
            ("/x/y/z", "/..."),
            ("/a", "/a/..."),
            ("/a/", "/a/..."),
            ("/a/b", "/a/b"),
            ("/a/z", "/a/:name"),
            ("/a/z/c", "/a/:name/c"),
            ("/a/z/d", "/a/:x/..."),
            ("/a/b/c/d", "/a/b/..."),
        ],
    );
}

#[test]
fn a_wildcard_matches_its_prefix_and_all_below() {
    let app = named_routes(&["/x/...", "/y/*"]);
    assert_routes(
        &app,
        &[
            ("/x", "/x/..."),
            ("/x/", "/x/..."),
            ("/x/y", "/x/..."),
            ("/x/y/", "/x/..."),
            ("/x?query", "/x/..."),
            ("/xy", "404"),
            ("/y/1/2", "/y/*"),
            ("/", "404"),
        ],
    );
}

#[test]
fn a_name_is_exactly_one_segment() {
    let app = named_routes(&["/users/:id", "/users/:id/posts/:post"]);
    assert_routes(
        &app,
        &[
            ("/users/7", "/users/:id"),
            ("/users", "404"),
            ("/users/7/posts", "404"),
            ("/users/7/posts/8", "/users/:id/posts/:post"),
            ("/users/7/posts/8/9", "404"),
        ],
    );
}

#[test]
fn a_slash_at_the_end_of_a_route_is_dropped_and_one_at_its_start_added() {
    let app = named_routes(&["/dir/", "bare"]);
    assert_eq!(app.get("/dir").expect(), "/dir/");
    assert_eq!(app.get("/bare").expect(), "bare");
}

#[test]
fn a_guest_is_told_how_it_was_reached() {
    let guests = available(&PROBES);
    if guests.is_empty() {
        return;
    }
    let mut manifest = "spin_manifest_version = 2\n[application]\nname = \"told\"\n".to_owned();
    for guest in &guests {
        manifest.push_str(&format!(
            "[[trigger.http]]\nroute = \"/{guest}/:user_id/x/:Second/...\"\ncomponent = \"{guest}\"\n\
             [component.{guest}]\nsource = \"{{{guest}}}\"\n"
        ));
    }
    let app = App::new(&manifest).start();
    let address = app.address();
    for guest in guests {
        let mut connection = app.connect();
        let client = connection.local_address();
        let target = format!("/{guest}/a%20b/x/8/echo-request?q=1&r=%2F");
        let sent = [
            ("spin-path-info", "/forged"),
            ("spin-client-addr", "6.6.6.6:6"),
            ("x-list", "one"),
            ("x-list", "two"),
            ("connection", "keep-alive"),
            ("x-empty", ""),
        ];
        connection.request("GET", &target, &sent, b"");
        let seen = connection.response().json();
        let route = format!("/{guest}/:user_id/x/:Second/...");
        let prefix = route.strip_suffix("/...").unwrap();
        let url = format!("http://{address}{target}");
        for (name, value) in [
            ("spin-path-info", "/echo-request"),
            ("spin-full-url", url.as_str()),
            ("spin-matched-route", &route),
            ("spin-base-path", "/"),
            ("spin-raw-component-route", &route),
            ("spin-component-route", prefix),
            ("spin-client-addr", &client.to_string()),
            ("spin-path-match-user-id", "a%20b"),
            ("spin-path-match-second", "8"),
            ("host", &address.to_string()),
            ("x-empty", ""),
        ] {
            assert_eq!(seen_header(&seen, name), Some(value), "{guest}: {name}");
        }
        assert_eq!(seen_header(&seen, "connection"), None, "{guest}: it concerns the connection alone");
        let headers = seen["headers"].as_array().unwrap();
        let listed: Vec<&Value> =
            headers.iter().filter(|pair| pair[0] == "x-list").map(|pair| &pair[1]).collect();
        assert_eq!(listed, ["one", "two"], "{guest}: repeated headers stay apart, in order");
        let of_the_host: Vec<&str> = headers
            .iter()
            .filter_map(|pair| pair[0].as_str())
            .filter(|name| !["x-list", "host", "x-empty"].contains(name))
            .collect();
        assert_eq!(of_the_host.len(), 9, "{guest}: each once, and nothing else: {of_the_host:?}");
    }
}

#[test]
fn path_info_keeps_its_slashes() {
    if !have(&["rust-wagi-p2"]) {
        return;
    }
    let app = App::new(
        r#"
        spin_manifest_version = 2
        [application]
        name = "slashes"
        [[trigger.http]]
        route = "/base/..."
        component = "program"
        executor = { type = "wagi" }
        [[trigger.http]]
        route = "/exact/:one"
        component = "program"
        executor = { type = "wagi" }
        [component.program]
        source = "{rust-wagi-p2}"
        "#,
    )
    .start();
    for (path, info, matched) in [
        ("/base", "", "/base/..."),
        ("/base/", "/", "/base/..."),
        ("/base/x", "/x", "/base/..."),
        ("/base/x/", "/x/", "/base/..."),
        ("/base/x/y?z", "/x/y", "/base/..."),
        ("/exact/7", "", "/exact/:one"),
    ] {
        let text = app.get(path).expect();
        assert!(text.contains(&format!("\nPATH_INFO={info}\n")), "{path}:\n{text}");
        assert!(text.contains(&format!("\nX_MATCHED_ROUTE={matched}\n")), "{path}:\n{text}");
    }
    assert!(app.get("/exact/7").expect().contains("\nHTTP_SPIN_PATH_MATCH_ONE=7\n"));
}

#[test]
fn a_guest_sees_the_whole_url() {
    for guest in available(&["rust-sdk6", "rust-sdk7"]) {
        let app = App::of(guest, "").start();
        let seen = app.get("/echo-request?a=1").json();
        assert_eq!(seen["uri"], format!("http://{}/echo-request?a=1", app.address()), "{guest}");
    }
}

#[test]
fn private_components_have_no_route() {
    if !have(&["rust-wstd"]) {
        return;
    }
    let app = App::new(
        r#"
        spin_manifest_version = 2
        [application]
        name = "private"
        [[trigger.http]]
        route = { private = true }
        component = "hidden"
        [[trigger.http]]
        route = "/seen"
        static_response = { status_code = 204 }
        [component.hidden]
        source = "{rust-wstd}"
        "#,
    )
    .start();
    assert_eq!(app.get("/").status, 404);
    assert_eq!(app.get("/hidden").status, 404);
    assert_eq!(app.get("/seen").status, 204);
    assert!(!app.stdout.text().contains("hidden"), "{}", app.stdout.text());
}

#[test]
fn static_responses_are_the_manifests() {
    let app = App::new(
        r#"
        spin_manifest_version = 2
        [application]
        name = "static"
        [[trigger.http]]
        route = "/full"
        static_response = { status_code = 418, headers = { x-one = "1", content-type = "text/plain" }, body = "short and stout" }
        [[trigger.http]]
        route = "/plain"
        static_response = {}
        "#,
    )
    .start();
    let full = app.get("/full");
    assert_eq!((full.status, full.text().as_str()), (418, "short and stout"));
    let mut headers = full.header_lines();
    headers.sort();
    assert_eq!(headers, ["content-length: 15", "content-type: text/plain", "x-one: 1"]);
    let plain = app.get("/plain");
    assert_eq!((plain.status, plain.text().as_str()), (200, ""));
    assert_eq!(plain.header_lines(), ["content-length: 0"]);
}

#[test]
fn reserved_paths_belong_to_the_platform() {
    let manifest = r#"
        spin_manifest_version = 2
        [application]
        name = "reserved"
        version = "4.5.6"
        [[trigger.http]]
        route = "/..."
        static_response = { body = "the app" }
        "#;
    let app = App::new(manifest).start();
    let health = app.get("/.well-known/spin/health");
    assert_eq!((health.status, health.text().as_str()), (200, "OK"));
    assert_eq!(app.get("/.well-known/spin/info").json(), json!({ "name": "reserved", "version": "4.5.6" }));
    let other = app.get("/.well-known/spin/other");
    assert_eq!((other.status, other.body.len()), (404, 0));
    assert_eq!(app.get("/.well-known/spin/").status, 404);
    assert_eq!(app.get("/.well-known/spin").expect(), "the app", "without the slash it is not reserved");
    assert_eq!(app.get("/.well-known/spinning").expect(), "the app");

    let nameless = App::new(&manifest.replace("version = \"4.5.6\"", "")).start();
    assert_eq!(nameless.get("/.well-known/spin/info").json(), json!({ "name": "reserved" }));
}

#[test]
fn what_no_route_matches_is_404_with_nothing_in_it() {
    let app = named_routes(&["/a"]);
    let response = app.get("/b");
    assert_eq!((response.status, response.body.len()), (404, 0));
    assert_eq!(response.header_lines(), ["content-length: 0"]);
}

#[test]
fn a_trap_is_500_with_nothing_in_it() {
    for guest in available(&PROBES) {
        let app = App::of(guest, "").start();
        let mut connection = app.connect();
        connection.request("GET", "/trap", &[], b"");
        let response = connection.response();
        assert_eq!((response.status, response.body.len()), (500, 0), "{guest}");
        assert_eq!(response.header_lines(), ["content-length: 0"], "{guest}");
        connection.request("GET", "/", &[], b"");
        assert_eq!(connection.response().status, 200, "{guest}: the connection goes on");
    }
}

#[test]
fn a_response_has_the_guests_headers_and_no_others() {
    let guests = available(&["rust-sdk5", "rust-sdk6", "rust-sdk7", "rust-v1", "rust-v1-module", "rust-wit"]);
    if guests.is_empty() {
        return;
    }
    let app = App::of_each(&guests, "").start();
    for guest in guests {
        let response = app.get(&format!("/{guest}/headers?header=x-empty:&header=cache-control:no-store"));
        assert_eq!(response.expect(), "headers\n", "{guest}");
        assert_eq!(response.headers_named("date").len(), 1, "{guest}");
        let (framing, mut of_guest): (Vec<_>, Vec<_>) = response
            .header_lines()
            .into_iter()
            .partition(|line| line.starts_with("content-length:") || line.starts_with("transfer-encoding:"));
        of_guest.sort();
        assert_eq!(
            of_guest,
            [
                "cache-control: no-store",
                "set-cookie: a=1",
                "set-cookie: b=2",
                "x-empty: ",
                "x-one: 1",
                "x-two: a",
                "x-two: b",
            ],
            "{guest}"
        );
        assert!(
            framing == ["content-length: 8"] || framing == ["transfer-encoding: chunked"],
            "{guest}: {framing:?}"
        );
        assert_eq!(
            response.headers_named("set-cookie"),
            ["a=1", "b=2"],
            "{guest}: in the order they were set"
        );
    }
}

#[test]
fn statuses_are_the_guests() {
    let guests = available(&PROBES);
    if guests.is_empty() {
        return;
    }
    let app = App::of_each(&guests, "").start();
    for guest in guests {
        for status in [200, 201, 204, 304, 404, 418, 503, 599] {
            let mut connection = app.connect();
            connection.request("GET", &format!("/{guest}/status?code={status}"), &[], b"");
            let response = connection.response();
            assert_eq!((response.status, response.body.len()), (status, 0), "{guest}");
            assert_eq!(response.header("retry-after"), None, "{guest}: nothing is added to the guest's 503");
            if status == 204 {
                assert_eq!(response.header("content-length"), None, "{guest}: 204 has no length");
            }
            connection.request("GET", &format!("/{guest}/"), &[], b"");
            assert_eq!(connection.response().status, 200, "{guest}: after {status} the connection goes on");
        }
    }
}

#[test]
fn head_is_answered_without_a_body() {
    let guests = available(&PROBES);
    if guests.is_empty() {
        return;
    }
    let app = App::of_each(&guests, "").start();
    for guest in guests {
        let mut connection = app.connect();
        connection.request("HEAD", &format!("/{guest}/headers"), &[], b"");
        let response = connection.response();
        assert_eq!(response.status, 200, "{guest}");
        assert_eq!(response.header("x-one"), Some("1"), "{guest}");
        // Were there a body, it would be read as the next response.
        connection.request("GET", &format!("/{guest}/"), &[], b"");
        assert_eq!(connection.response().expect(), "Hello from a probe\n", "{guest}");
    }
}

#[test]
fn every_method_reaches_a_guest() {
    let guests = available(&["rust-sdk5", "rust-sdk6", "rust-sdk7"]);
    if guests.is_empty() {
        return;
    }
    let app = App::of_each(&guests, "").start();
    for guest in guests {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE"] {
            let seen = app.request(method, &format!("/{guest}/echo-request"), &[], b"").json();
            assert_eq!(seen["method"].as_str().unwrap().to_uppercase(), method, "{guest}");
        }
    }
}

#[test]
fn guests_of_spin_1_know_seven_methods() {
    for guest in available(&["rust-v1", "rust-v1-module"]) {
        let app = App::of(guest, "").start();
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let seen = app.request(method, "/echo-request", &[], b"").json();
            let name = seen["method"].as_str().unwrap();
            assert!(name.to_uppercase().ends_with(method), "{guest}: {name}");
        }
        for method in ["TRACE", "PURGE"] {
            let refused = app.request(method, "/echo-request", &[], b"");
            assert_eq!((refused.status, refused.body.len()), (405, 0), "{guest}: {method}");
        }
        let nothing = app.get("/no-body");
        assert_eq!((nothing.status, nothing.body.len()), (204, 0), "{guest}");
    }
}

#[test]
fn a_guest_of_spin_1_sees_path_and_query() {
    for guest in available(&["rust-v1", "rust-v1-module"]) {
        let app = App::of(guest, "").start();
        let seen = app.request("POST", "/echo-request?a=1", &[], b"text").json();
        assert_eq!(seen["uri"], "/echo-request?a=1", "{guest}");
        assert_eq!(seen["body"], "text", "{guest}");
        assert_eq!(seen["params"], json!([]), "{guest}");
    }
}

#[test]
fn a_header_that_is_no_text_is_refused() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", "").start();
    let mut connection = app.connect();
    connection.send(b"GET / HTTP/1.1\r\nhost: a\r\nx-latin: caf\xe9\r\n\r\n");
    let response = connection.response();
    assert_eq!(response.status, 400);
    connection.send("GET / HTTP/1.1\r\nhost: a\r\nx-text: café\r\n\r\n");
    assert_eq!(connection.response().status, 200, "UTF-8 is text");
}

#[test]
fn the_host_must_be_one_and_the_same() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", "").start();
    for (case, head, status) in [
        ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
        ("two hosts", "GET http://a.example/ HTTP/1.1\r\nhost: b.example\r\n\r\n", 400),
        ("the same host twice", "GET http://a.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n", 200),
        ("no host name", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        ("a name for the host", "GET / HTTP/1.1\r\nhost: a.example:8080\r\n\r\n", 200),
    ] {
        let mut connection = app.connect();
        connection.send(head);
        assert_eq!(connection.response().status, status, "{case}");
    }
    let mut connection = app.connect();
    connection.send("GET /echo-request HTTP/1.1\r\nhost: a.example:8080\r\n\r\n");
    let seen = connection.response().json();
    assert_eq!(seen_header(&seen, "spin-full-url"), Some("http://a.example:8080/echo-request"));
    assert_eq!(seen_header(&seen, "host"), Some("a.example:8080"));
}

#[test]
fn what_is_no_http_is_refused() {
    let app = named_routes(&["/..."]);
    for nonsense in
        ["nonsense\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}"]
    {
        let mut connection = app.connect();
        connection.send(nonsense);
        connection.stream().shutdown(std::net::Shutdown::Write).unwrap();
        match connection.try_response() {
            Ok(response) => assert_eq!(response.status, 400, "{nonsense:?}"),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{nonsense:?}: {error}")
            }
        }
    }
    assert_eq!(app.get("/").status, 200, "it goes on");
}

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let app = named_routes(&["/a", "/b"]);
    let mut connection = app.connect();
    // Both before the first answer.
    connection.send("GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(connection.response().expect(), "/a");
    assert_eq!(connection.response().expect(), "/b");
    connection.head("GET", "/a", &[("connection", "close")]);
    assert_eq!(connection.response().expect(), "/a");
    assert!(connection.is_closed());
}

#[test]
fn a_request_of_http_1_0_is_answered_and_closed() {
    let app = named_routes(&["/a"]);
    let mut connection = app.connect();
    connection.send("GET /a HTTP/1.0\r\nhost: x\r\n\r\n");
    assert_eq!(connection.response().expect(), "/a");
    assert!(connection.is_closed());
}

#[test]
fn sizes_are_bounded() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", "")
        .arguments(["--max-request-body", "1000", "--http1-max-buf-size", "8192"])
        .start();
    let at_limit = app.request("POST", "/discard", &[], &[b'x'; 1000]);
    assert_eq!(at_limit.ok(), 1000);
    assert_eq!(app.request("POST", "/discard", &[], &[b'x'; 1001]).status, 413);

    // Without a length it shows only while the guest reads.
    let mut connection = app.connect();
    connection.head("POST", "/discard", &[("transfer-encoding", "chunked")]);
    connection.send_chunk(&[b'x'; 600]);
    connection.send_chunk(&[b'x'; 600]);
    connection.send_chunk(b"");
    let refused = connection.response();
    assert!(refused.status == 413 || refused.text().contains("error"), "{refused:?}");

    let long = "y".repeat(10_000);
    let mut connection = app.connect();
    connection.head("GET", "/", &[("x-long", &long)]);
    assert_eq!(connection.response().status, 431);
}

#[test]
fn a_client_can_ask_whether_to_send_its_body() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", "").start();
    let mut connection = app.connect();
    connection.head("POST", "/discard", &[("content-length", "4"), ("expect", "100-continue")]);
    // The answer to the question comes before the body is sent.
    let mut line = [0; 12];
    std::io::Read::read_exact(&mut connection.stream(), &mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 100");
    let mut rest = [0; 13];
    std::io::Read::read_exact(&mut connection.stream(), &mut rest).unwrap();
    connection.send("body");
    assert_eq!(connection.response().ok(), 4);
}

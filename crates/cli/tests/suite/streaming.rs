//! Bodies while they are on their way: in both directions, with back-pressure,
//! with trailers, and when one side goes away.

use std::{
    io::{self, Read as _, Write as _},
    time::Duration,
};

use http_body::Frame;
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::harness::{
    App, Client, Connection, PROBES, Running, SDK_PROBES, available, body, channel, empty, have, runtime,
    seen_header,
};

/// More than all buffers between a client and a guest hold together: those of
/// the kernel take some megabytes each way on loopback.
const UNREAD_LIMIT_BYTES: usize = 48 << 20;

/// How long nothing must move before it counts as standing still.
const STANDSTILL: Duration = Duration::from_millis(1500);

#[test]
fn bodies_stream_in_both_directions() {
    for guest in available(&["rust-sdk5", "rust-sdk6", "rust-sdk7", "rust-wstd", "js"]) {
        let app = App::of(guest, "").start();
        let mut connection = app.connect();
        connection.head("POST", "/echo", &[("transfer-encoding", "chunked")]);
        connection.send_chunk(b"piece 0");
        let head = connection.response_head();
        assert_eq!(head.status, 200, "{guest}");
        assert!(head.is_chunked(), "{guest}");
        // Each piece comes back before the next one is sent.
        for number in 0..5 {
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
        assert_eq!(rest, b"piece 5", "{guest}");
    }
}

#[test]
fn a_response_begins_before_its_end_is_known() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        let mut connection = app.connect();
        connection.request("GET", "/stream?chunks=1000000&delay_ms=20", &[], b"");
        assert!(connection.response_head().is_chunked(), "{guest}");
        assert_eq!(connection.chunk().as_deref(), Some(&b"chunk 0\n"[..]), "{guest}");
        assert_eq!(connection.chunk().as_deref(), Some(&b"chunk 1\n"[..]), "{guest}");
    }
}

/// A guest that has ended when its response begins cannot add to it; one with streams has
/// ended by then if it did not wait for anything.
#[test]
fn a_response_that_is_all_there_says_how_long_it_is() {
    for guest in available(&["rust-sdk5", "rust-wstd", "rust-sdk7"]) {
        let app = App::of(guest, "").start();
        for path in ["/", "/big?bytes=1000"] {
            // The first one may be interrupted between its answer and its end: it is slow in a
            // debug build, and so are all that have streams.
            app.get(path).expect();
            let attempts_count = if guest == "rust-sdk7" { 5 } else { 1 };
            let response = (0..attempts_count)
                .map(|_| app.request("GET", path, &[], b""))
                .find(|response| response.header("content-length").is_some())
                .unwrap_or_else(|| panic!("{guest}: no length"));
            let length = response.body.len().to_string();
            assert_eq!(response.header("content-length"), Some(&*length), "{guest}: {:?}", response.headers);
            assert!(!response.is_chunked(), "{guest}");
            let head = app.request("HEAD", path, &[], b"");
            assert_eq!((head.status, head.body.len()), (200, 0), "{guest}");
        }
    }
}

#[test]
fn large_bodies_arrive_whole() {
    let guests = available(&PROBES);
    if guests.is_empty() {
        return;
    }
    let app = App::of_each(&guests, "").start();
    for guest in guests {
        let sent: Vec<u8> = (0..5_000_000_u32).map(|number| (number % 251) as u8).collect();
        let response = app.request("POST", &format!("/{guest}/echo"), &[], &sent);
        assert_eq!(response.status, 200, "{guest}");
        assert!(response.body == sent, "{guest}: {} of {} bytes", response.body.len(), sent.len());
        let big = app.get(&format!("/{guest}/big?bytes=3000000"));
        assert_eq!(big.body.len(), 3_000_000, "{guest}");
        assert!(big.body.starts_with(b"abcdefghijklmnopqrstuvwxyzabc"), "{guest}");
    }
}

/// Sends until nothing goes out any more; how much was taken.
fn send_until_standstill(connection: &mut Connection, limit_bytes: usize) -> usize {
    connection.stream().set_write_timeout(Some(STANDSTILL)).unwrap();
    let piece = vec![b'x'; 64 << 10];
    let mut taken_bytes = 0;
    while taken_bytes < limit_bytes {
        match connection.stream().write(&piece) {
            Ok(count) => taken_bytes += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => panic!("after {taken_bytes} bytes: {error}"),
        }
    }
    taken_bytes
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        let before_bytes = app.resident_bytes();
        let mut connection = app.connect();
        let length = UNREAD_LIMIT_BYTES.to_string();
        connection.head("POST", "/echo", &[("content-length", &length)]);
        let taken_bytes = send_until_standstill(&mut connection, UNREAD_LIMIT_BYTES);
        assert!(taken_bytes < UNREAD_LIMIT_BYTES, "{guest}: all {taken_bytes} bytes were taken");
        let grown_bytes = app.resident_bytes().saturating_sub(before_bytes);
        assert!(grown_bytes < 32 << 20, "{guest}: the process grew by {grown_bytes} bytes");

        // Once it reads, everything goes through.
        let mut writer = connection.stream().try_clone().unwrap();
        writer.set_write_timeout(Some(crate::harness::WAIT_LIMIT)).unwrap();
        let sender = std::thread::spawn(move || {
            let rest = vec![b'x'; UNREAD_LIMIT_BYTES - taken_bytes];
            writer.write_all(&rest).unwrap();
        });
        let response = connection.response();
        sender.join().unwrap();
        assert_eq!(response.body.len(), UNREAD_LIMIT_BYTES, "{guest}");
        assert!(response.body.iter().all(|byte| *byte == b'x'), "{guest}");
    }
}

#[test]
fn a_guest_waits_for_a_client_that_does_not_read() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        let before_bytes = app.resident_bytes();
        let mut connection = app.connect();
        connection.request("GET", "/stream?chunks=2000&bytes=65536", &[], b"");
        connection.response_head();
        let sent_all = app.stdout.try_wait_for(|line| line.contains("stream:"), STANDSTILL);
        assert_eq!(sent_all, None, "{guest}: 128 MiB went nowhere");
        let grown_bytes = app.resident_bytes().saturating_sub(before_bytes);
        assert!(grown_bytes < 32 << 20, "{guest}: the process grew by {grown_bytes} bytes");
        let mut length = 0;
        while let Some(chunk) = connection.chunk() {
            length += chunk.len();
        }
        assert_eq!(length, 2000 * 65536, "{guest}");
        app.stdout.wait_for_text("stream: sent all 2000 chunks");
    }
}

/// An app in which only one request runs at a time.
fn with_one_place(guest: &str) -> Running {
    App::of(guest, "").arguments(["--max-instances", "1", "--max-wait", "30s"]).start()
}

#[test]
fn a_guest_ends_when_its_reader_goes_away() {
    for guest in available(&SDK_PROBES) {
        let app = with_one_place(guest);
        let mut connection = app.connect();
        connection.request("GET", "/stream?chunks=1000000&delay_ms=5", &[], b"");
        connection.response_head();
        connection.chunk();
        drop(connection);
        // The only place is free again: the guest does not send its million chunks.
        assert_eq!(app.get("/").status, 200, "{guest}");
        assert!(!app.stdout.text().contains("sent all"), "{guest}");
    }
}

#[test]
fn a_guest_ends_when_nobody_waits_for_its_answer() {
    for guest in available(&SDK_PROBES) {
        let app = with_one_place(guest);
        let mut connection = app.connect();
        connection.request("GET", "/sleep?ms=3600000", &[], b"");
        connection.stream().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let nothing = connection.stream().read(&mut [0; 1]).unwrap_err();
        assert!(
            matches!(nothing.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            "{guest}: {nothing}"
        );
        drop(connection);
        assert_eq!(app.get("/").status, 200, "{guest}: the place is free again");
    }
}

#[test]
fn a_guest_ends_when_its_client_stops_sending_for_good() {
    for guest in available(&SDK_PROBES) {
        let app = with_one_place(guest);
        let mut connection = app.connect();
        connection.head("POST", "/discard", &[("content-length", "1000")]);
        connection.send("only a part");
        drop(connection);
        assert_eq!(app.get("/").status, 200, "{guest}");
    }
}

#[test]
fn a_trap_while_sending_cuts_the_response_off() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        let mut connection = app.connect();
        connection.request("GET", "/trap-mid-body", &[], b"");
        let head = connection.response_head();
        assert_eq!(head.status, 200, "{guest}: it was sent before the trap");
        assert_eq!(connection.chunk().as_deref(), Some(&b"the first half\n"[..]), "{guest}");
        let end = connection.try_chunk();
        assert!(end.is_err(), "{guest}: the end must not look like one: {end:?}");
        app.stderr.wait_for_text("deliberate_trap");

        runtime().block_on(async {
            let mut client = Client::h2c(app.address()).await;
            let request =
                http::Request::get(format!("http://{}/trap-mid-body", app.address())).body(empty()).unwrap();
            let response = client.send(request).await.unwrap();
            assert_eq!(response.status(), 200, "{guest}");
            let end = response.into_body().collect().await;
            assert!(end.is_err(), "{guest}: the stream must be reset");
        });
    }
}

#[test]
fn trailers_of_a_request_reach_the_guest() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        let expected = json!({ "body": "hello", "trailers": [["x-sum", "42"]] });

        let mut connection = app.connect();
        connection.head(
            "POST",
            "/request-trailers",
            &[("transfer-encoding", "chunked"), ("trailer", "x-sum")],
        );
        connection.send_chunk(b"hello");
        connection.send("0\r\nx-sum: 42\r\n\r\n");
        assert_eq!(connection.response().ok(), expected, "{guest}: HTTP/1.1");

        runtime().block_on(async {
            let mut client = Client::h2c(app.address()).await;
            let (sender, body) = channel();
            let request =
                http::Request::post(format!("http://{}/request-trailers", app.address())).body(body).unwrap();
            let send = async {
                sender.send(Frame::data("hello".into())).await.unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("x-sum", http::HeaderValue::from_static("42"));
                sender.send(Frame::trailers(trailers)).await.unwrap();
                drop(sender);
            };
            let (response, ()) = futures::join!(client.send(request), send);
            let answer = response.unwrap().into_body().collect().await.unwrap().to_bytes();
            let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!(answer["ok"], expected, "{guest}: HTTP/2");
        });
    }
}

#[test]
fn trailers_of_a_response_reach_the_client() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        let mut connection = app.connect();
        connection.request("GET", "/trailers", &[("te", "trailers")], b"");
        let response = connection.response();
        assert_eq!(response.expect(), "a body before its trailers\n", "{guest}");
        assert_eq!(response.trailers, [("x-checksum".to_owned(), "abc123".to_owned())], "{guest}: HTTP/1.1");

        runtime().block_on(async {
            let mut client = Client::h2c(app.address()).await;
            let request =
                http::Request::get(format!("http://{}/trailers", app.address())).body(empty()).unwrap();
            let response = client.send(request).await.unwrap().into_body().collect().await.unwrap();
            let trailers = response.trailers().unwrap();
            assert_eq!(trailers["x-checksum"], "abc123", "{guest}: HTTP/2");
            assert_eq!(response.to_bytes(), "a body before its trailers\n", "{guest}");
        });
    }
}

#[test]
fn http_2_without_tls_is_known_by_its_preface() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        let address = app.address();
        runtime().block_on(async {
            let mut client = Client::h2c(address).await;
            let request = http::Request::post(format!("http://{address}/echo-request?a=1"))
                .header("x-mine", "yes")
                .body(body(b"text"))
                .unwrap();
            let response = client.send(request).await.unwrap();
            assert_eq!(response.version(), http::Version::HTTP_2);
            let seen = response.into_body().collect().await.unwrap().to_bytes();
            let seen: serde_json::Value = serde_json::from_slice(&seen).unwrap();
            assert_eq!(seen["method"].as_str().unwrap().to_uppercase(), "POST", "{guest}");
            assert_eq!(seen_header(&seen, "x-mine"), Some("yes"), "{guest}");
            let url = format!("http://{address}/echo-request?a=1");
            assert_eq!(seen_header(&seen, "spin-full-url"), Some(url.as_str()), "{guest}");

            // Streams of one connection do not wait for each other.
            let mut request = async |path: &str| {
                let request = http::Request::get(format!("http://{address}{path}")).body(empty()).unwrap();
                client.send(request).await
            };
            let slow = request("/stream?chunks=1000000&delay_ms=10").await.unwrap();
            let quick = request("/").await.unwrap();
            assert_eq!(
                quick.into_body().collect().await.unwrap().to_bytes(),
                "Hello from a probe\n",
                "{guest}"
            );
            let mut slow = slow.into_body();
            let frame = slow.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "chunk 0\n", "{guest}");
        });
    }
}

#[test]
fn http_2_streams_in_both_directions() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        runtime().block_on(async {
            let mut client = Client::h2c(app.address()).await;
            let (sender, body) = channel();
            let request = http::Request::post(format!("http://{}/echo", app.address())).body(body).unwrap();
            sender.send(Frame::data("piece 0".into())).await.unwrap();
            let mut response = client.send(request).await.unwrap().into_body();
            for number in 0..3 {
                let frame = response.frame().await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), format!("piece {number}"), "{guest}");
                sender.send(Frame::data(format!("piece {}", number + 1).into())).await.unwrap();
            }
        });
    }
}

#[test]
fn a_reset_stream_ends_its_guest() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = with_one_place("rust-sdk7");
    runtime().block_on(async {
        let mut client = Client::h2c(app.address()).await;
        let mut request = async |path: &str| {
            let request =
                http::Request::get(format!("http://{}{path}", app.address())).body(empty()).unwrap();
            client.send(request).await
        };
        let mut endless = request("/stream?chunks=1000000&delay_ms=5").await.unwrap().into_body();
        endless.frame().await.unwrap().unwrap();
        drop(endless);
        // The connection stays; the stream's place is free.
        assert_eq!(request("/").await.unwrap().status(), 200);
    });
}

/// An app that serves TLS with a certificate of its own.
fn with_tls(guest: &str) -> Running {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    App::of(guest, "")
        .file("certificate.pem", certified.cert.pem())
        .file("key.pem", certified.signing_key.serialize_pem())
        .arguments(["--tls-cert", "certificate.pem", "--tls-key", "key.pem"])
        .start()
}

#[test]
fn tls_serves_the_version_that_was_agreed_on() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = with_tls("rust-sdk7");
    let address = app.address();
    assert!(app.stdout.text().starts_with(&format!("Serving https://{address}\n")), "{}", app.stdout.text());
    runtime().block_on(async {
        for (offered, is_http2) in
            [(&["h2", "http/1.1"][..], true), (&["h2"], true), (&["http/1.1"], false), (&[], false)]
        {
            let mut client = Client::tls(address, offered).await;
            assert_eq!(client.is_http2(), is_http2, "{offered:?}");
            let mut request = http::Request::get("/echo-request").header("host", "localhost:1234");
            if is_http2 {
                request = http::Request::get("https://localhost:1234/echo-request");
            }
            let response = client.send(request.body(empty()).unwrap()).await.unwrap();
            let seen = response.into_body().collect().await.unwrap().to_bytes();
            let seen: serde_json::Value = serde_json::from_slice(&seen).unwrap();
            assert_eq!(
                seen_header(&seen, "spin-full-url"),
                Some("https://localhost:1234/echo-request"),
                "{offered:?}"
            );
        }
    });
}

#[test]
fn tls_does_not_answer_plain_requests() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = with_tls("rust-sdk7");
    let mut connection = app.connect();
    connection.request("GET", "/", &[], b"");
    assert!(connection.try_response().is_err());
    runtime().block_on(async {
        assert!(Client::tls(app.address(), &["h2"]).await.is_http2(), "and goes on");
    });
}

//! Many requests at once: nobody is cut off, and who finds no room is told so.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use tokio::{net::TcpStream, task::JoinSet};

use crate::harness::{App, WAIT_LIMIT, alone, empty, have};

/// Connections of the big test.
const CONNECTIONS_COUNT: usize = 1_000;

/// How long they keep on asking.
const LOAD_TIME: Duration = Duration::from_secs(10);

/// What came back, by kind.
#[derive(Debug, Default)]
struct Outcomes {
    ok: AtomicUsize,
    unavailable: AtomicUsize,
    other: AtomicUsize,
    cut_off: AtomicUsize,
    refused: AtomicUsize,
}

impl Outcomes {
    fn count(counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// `ok`, `unavailable`, `other`, `cut_off`, `refused`.
    fn get(&self) -> [usize; 5] {
        [&self.ok, &self.unavailable, &self.other, &self.cut_off, &self.refused]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Both ends of a thousand connections need descriptors.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Asks again and again on one connection until told to stop, by us or by the server.
async fn ask(address: SocketAddr, path: &'static str, outcomes: &Outcomes, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = TcpStream::connect(address).await else {
            Outcomes::count(&outcomes.refused);
            return;
        };
        let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
            Outcomes::count(&outcomes.cut_off);
            return;
        };
        let connection = tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            if sender.ready().await.is_err() {
                break;
            }
            let request = http::Request::get(path).header("host", "load").body(empty()).unwrap();
            let Ok(response) = sender.send_request(request).await else {
                Outcomes::count(&outcomes.cut_off);
                return;
            };
            let status = response.status().as_u16();
            let retry_after = response.headers().contains_key("retry-after");
            let closes = response.headers().get("connection").is_some_and(|value| value == "close");
            if response.into_body().collect().await.is_err() {
                Outcomes::count(&outcomes.cut_off);
                return;
            }
            Outcomes::count(match status {
                200 => &outcomes.ok,
                503 if retry_after => &outcomes.unavailable,
                _ => &outcomes.other,
            });
            if closes {
                return;
            }
        }
        connection.abort();
    }
}

#[test]
fn a_thousand_connections_are_all_served() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let _alone = alone();
    raise_descriptor_limit();
    let app = App::of("rust-sdk7", "").start();
    let address = app.address();
    let outcomes = Arc::new(Outcomes::default());
    let stop = Arc::new(AtomicBool::new(false));
    threads().block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS_COUNT {
            let (outcomes, stop) = (outcomes.clone(), stop.clone());
            clients.spawn(async move { ask(address, "/sleep?ms=500", &outcomes, &stop).await });
        }
        tokio::time::sleep(LOAD_TIME).await;
        stop.store(true, Ordering::Relaxed);
        let ended = tokio::time::timeout(WAIT_LIMIT, async { while clients.join_next().await.is_some() {} });
        ended.await.expect("every request is answered");
    });
    let [ok, unavailable, other, cut_off, refused] = outcomes.get();
    eprintln!("{ok} answers on {CONNECTIONS_COUNT} connections in {LOAD_TIME:?}");
    assert_eq!([unavailable, other, cut_off, refused], [0; 4], "{outcomes:?}");
    assert!(ok >= CONNECTIONS_COUNT, "{outcomes:?}");
}

#[test]
fn who_finds_no_room_is_told_when_to_come_back() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let _alone = alone();
    let app = App::of("rust-sdk7", "")
        .arguments(["--max-instances", "50", "--max-waiting-requests", "10", "--max-wait", "60s"])
        .start();
    // All 50 places are taken: each of these has begun and does not end by itself.
    let mut running: Vec<_> = (0..50)
        .map(|_| {
            let mut connection = app.connect();
            connection.request("GET", "/stream?chunks=1000000&delay_ms=50", &[], b"");
            assert_eq!(connection.response_head().status, 200);
            connection
        })
        .collect();
    // Ten of these wait, whichever are first.
    let mut asking: Vec<_> = (0..150)
        .map(|_| {
            let mut connection = app.connect();
            connection.request("GET", "/", &[], b"");
            connection
        })
        .collect();
    let mut refused_count = 0;
    asking.retain_mut(|connection| {
        connection.stream().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let Ok(response) = connection.try_response() else { return true };
        assert_eq!((response.status, response.body.len()), (503, 0));
        assert_eq!(response.header("retry-after"), Some("1"));
        refused_count += 1;
        false
    });
    assert_eq!((refused_count, asking.len()), (140, 10));
    running.clear();
    for mut connection in asking {
        connection.stream().set_read_timeout(Some(WAIT_LIMIT)).unwrap();
        assert_eq!(connection.response().status, 200, "it was its turn");
    }
}

#[test]
fn waiting_has_an_end() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", "").arguments(["--max-instances", "1", "--max-wait", "300ms"]).start();
    let mut running = app.connect();
    running.request("GET", "/stream?chunks=1000000&delay_ms=50", &[], b"");
    running.response_head();
    let before = Instant::now();
    let refused = app.get("/");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert!(before.elapsed() >= Duration::from_millis(300), "it waited: {:?}", before.elapsed());
}

#[test]
fn connections_are_bounded() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", "").arguments(["--max-connections", "2"]).start();
    let mut first = app.connect();
    let mut second = app.connect();
    for connection in [&mut first, &mut second] {
        connection.request("GET", "/", &[], b"");
        assert_eq!(connection.response().status, 200);
    }
    let mut third = app.connect();
    third.request("GET", "/", &[], b"");
    third.stream().set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(third.try_response().is_err(), "it waits");
    drop(first);
    third.stream().set_read_timeout(Some(WAIT_LIMIT)).unwrap();
    assert_eq!(third.response().status, 200);
}

#[test]
fn sigterm_under_load_fails_no_request() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let _alone = alone();
    raise_descriptor_limit();
    let mut app = App::of("rust-sdk7", "").start();
    let address = app.address();
    let outcomes = Arc::new(Outcomes::default());
    let stop = Arc::new(AtomicBool::new(false));
    threads().block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..200 {
            let (outcomes, stop) = (outcomes.clone(), stop.clone());
            clients.spawn(async move { ask(address, "/sleep?ms=50", &outcomes, &stop).await });
        }
        // In the middle of it: a thousand answers have been given.
        let end = Instant::now() + WAIT_LIMIT;
        while outcomes.ok.load(Ordering::Relaxed) < 1_000 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        app.signal(Signal::TERM);
        let ended = tokio::time::timeout(WAIT_LIMIT, async { while clients.join_next().await.is_some() {} });
        ended.await.expect("every client is told to close");
    });
    let status = app.wait();
    let [ok, unavailable, other, cut_off, refused] = outcomes.get();
    eprintln!("{ok} answers; {refused} connections refused after the signal");
    assert_eq!([unavailable, other, cut_off], [0; 3], "{outcomes:?}");
    assert!(ok >= 1_000, "{outcomes:?}");
    assert!(status.success(), "{status}");
}

#[test]
fn a_response_that_has_begun_is_finished_after_sigterm() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let mut app = App::of("rust-sdk7", "").start();
        let mut connection = app.connect();
        connection.request("GET", "/stream?chunks=40&delay_ms=50", &[], b"");
        connection.response_head();
        assert_eq!(connection.chunk().as_deref(), Some(&b"chunk 0\n"[..]));
        app.signal(signal);
        app.stderr.wait_for_text("stopping");
        let mut last = Vec::new();
        while let Some(chunk) = connection.chunk() {
            last = chunk;
        }
        assert_eq!(last, b"chunk 39\n");
        assert!(app.wait().success());
    }
}

#[test]
fn nobody_is_waited_for_longer_than_the_grace_period() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let mut app = App::of("rust-sdk7", "").arguments(["--grace-period", "1s"]).start();
    let mut connection = app.connect();
    connection.request("GET", "/stream?chunks=1000000&delay_ms=50", &[], b"");
    connection.response_head();
    let before = Instant::now();
    assert!(app.terminate().success());
    assert!(before.elapsed() < Duration::from_secs(15), "{:?}", before.elapsed());
    assert!(app.stderr.text_at_end().contains("WISP-E0414"), "{}", app.stderr.text());
    let cut_off = loop {
        match connection.try_chunk() {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(cut_off.is_err(), "the end must not look like one");
}

#[test]
fn a_second_signal_ends_at_once() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let mut app = App::of("rust-sdk7", "").start();
    let mut connection = app.connect();
    connection.request("GET", "/stream?chunks=1000000&delay_ms=50", &[], b"");
    connection.response_head();
    app.signal(Signal::INT);
    app.stderr.wait_for_text("stopping");
    app.signal(Signal::INT);
    assert_eq!(app.wait().code(), Some(1));
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let mut app = App::new(
        "spin_manifest_version = 2\n[application]\nname = \"idle\"\n\
         [[trigger.http]]\nroute = \"/...\"\nstatic_response = { body = \"here\" }\n",
    )
    .start();
    let mut connection = app.connect();
    connection.request("GET", "/", &[], b"");
    assert_eq!(connection.response().expect(), "here");
    let silent = app.connect();
    let before = Instant::now();
    assert!(app.terminate().success());
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    assert!(connection.is_closed());
    drop(silent);
}

//! What one request leaves behind for another: nothing, unless its author asked
//! for it. What one component does to another: nothing.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use crate::harness::{App, PROBES, Running, SDK_PROBES, available, have};

#[test]
fn each_request_has_an_instance_of_its_own() {
    let guests = available(&["rust-sdk5", "rust-sdk6", "rust-sdk7", "rust-v1", "rust-v1-module", "rust-wit"]);
    if guests.is_empty() {
        return;
    }
    let app = App::of_each(&guests, "").start();
    for guest in guests {
        let mut connection = app.connect();
        for _ in 0..5 {
            connection.request("GET", &format!("/{guest}/count"), &[], b"");
            assert_eq!(connection.response().expect(), "1", "{guest}");
        }
    }
}

/// Counts of requests in a row on one connection, hence on one thread.
fn counts(app: &Running, number: usize) -> Vec<String> {
    let mut connection = app.connect();
    (0..number)
        .map(|_| {
            connection.request("GET", "/count", &[], b"");
            connection.response().expect()
        })
        .collect()
}

#[test]
fn an_instance_is_reused_where_the_author_asks_for_it() {
    for guest in available(&SDK_PROBES) {
        let reuse =
            format!("[component.{guest}.tool.wisp]\nreuse = {{ max_requests = 3, idle_timeout = \"60s\" }}");
        let app = App::of(guest, &reuse).start();
        assert_eq!(counts(&app, 7), ["1", "2", "3", "1", "2", "3", "1"], "{guest}");
    }
}

#[test]
fn the_operator_can_ask_for_reuse() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "")
            .arguments(["--max-instance-reuse-count", "2", "--idle-instance-timeout", "60s"])
            .start();
        assert_eq!(counts(&app, 4), ["1", "2", "1", "2"], "{guest}");
    }
}

#[test]
fn an_idle_instance_is_dropped() {
    for guest in available(&SDK_PROBES) {
        let reuse = format!("[component.{guest}.tool.wisp]\nreuse = {{ idle_timeout = \"1ms\" }}");
        let app = App::of(guest, &reuse).start();
        let mut connection = app.connect();
        let end = Instant::now() + crate::harness::WAIT_LIMIT;
        let mut has_begun_anew = false;
        let mut last = 0_u64;
        while !has_begun_anew && Instant::now() < end {
            connection.request("GET", "/count", &[], b"");
            let count = connection.response().expect().parse().unwrap();
            has_begun_anew = last > 0 && count <= last;
            last = count;
            thread::yield_now();
        }
        assert!(has_begun_anew, "{guest}: {last} requests");
    }
}

#[test]
fn an_instance_that_trapped_is_not_reused() {
    for guest in available(&SDK_PROBES) {
        let reuse = format!("[component.{guest}.tool.wisp]\nreuse = {{ idle_timeout = \"60s\" }}");
        let app = App::of(guest, &reuse).start();
        let mut connection = app.connect();
        let mut get = |path: &str| {
            connection.request("GET", path, &[], b"");
            connection.response()
        };
        assert_eq!(get("/count").expect(), "1", "{guest}");
        assert_eq!(get("/count").expect(), "2", "{guest}");
        assert_eq!(get("/trap").status, 500, "{guest}");
        assert_eq!(get("/count").expect(), "1", "{guest}");
    }
}

#[test]
fn a_trap_is_logged_with_its_component_and_its_backtrace() {
    for guest in available(&PROBES) {
        let app = App::of(guest, "").start();
        assert_eq!(app.get("/trap").status, 500, "{guest}");
        let line = app.stderr.wait_for_text("error[WISP-E0410]: the component trapped");
        assert!(line.contains(&format!("component={guest}")), "{guest}: {line}");
        app.stderr.wait_for_text("deliberate_trap");
        app.stderr.wait_for_text("this guest was asked to trap");
        assert_eq!(app.get("/").status, 200, "{guest}: it goes on");
    }
}

#[test]
fn a_guest_that_exits_harms_nobody() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        assert_eq!(app.get("/exit?code=3").status, 500, "{guest}");
        assert_eq!(app.get("/").status, 200, "{guest}");
    }
}

#[test]
fn others_are_served_while_guests_loop() {
    for guest in available(&PROBES) {
        if !have(&["rust-sdk7"]) {
            return;
        }
        let app = App::new(&format!(
            r#"
            spin_manifest_version = 2
            [application]
            name = "loops"
            [[trigger.http]]
            route = "/loop/..."
            component = "loop"
            [[trigger.http]]
            route = "/other/..."
            component = "other"
            [component.loop]
            source = "{{{guest}}}"
            [component.loop.tool.wisp]
            limits = {{ request_timeout = "3s" }}
            [component.other]
            source = "{{rust-sdk7}}"
            "#
        ))
        .start();
        // More than there are threads.
        let threads = thread::available_parallelism().unwrap().get();
        let mut looping: Vec<_> = (0..threads * 2).map(|_| app.connect()).collect();
        for connection in &mut looping {
            connection.request("GET", "/loop/spin", &[], b"");
        }
        for _ in 0..10 {
            assert_eq!(app.get("/other/").status, 200, "{guest}");
        }
        for connection in &mut looping {
            let response = connection.response();
            assert_eq!((response.status, response.body.len()), (504, 0), "{guest}");
        }
        let line = app.stderr.wait_for_text("WISP-E0412");
        assert!(line.contains("component=loop") && line.contains("3s"), "{guest}: {line}");
    }
}

#[test]
fn guests_compute_on_a_machine_that_others_keep_busy() {
    let guest = PROBES[0];
    if !have(&[guest]) {
        return;
    }
    let limits = format!("[component.{guest}.tool.wisp]\nlimits = {{ cpu_time = \"100ms\" }}");
    let app = App::of(guest, &limits).environment("WISP_LOG", "wisp_trigger=debug").start();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Of usual priority, which leaves threads without a claim nothing to speak of.
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let response = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| app.get("/spin").status));
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(response.unwrap(), 504);
    });
    app.stderr.wait_for_text("crew=Entitled");
    app.stderr.wait_for_text("WISP-E0415");
}

#[test]
fn the_operator_limits_the_time_of_a_request() {
    for guest in available(&PROBES) {
        let app = App::of(guest, "").arguments(["--request-timeout", "500ms"]).start();
        let before = Instant::now();
        assert_eq!(app.get("/spin").status, 504, "{guest}");
        assert!(before.elapsed().as_secs() < 20, "{guest}: {:?}", before.elapsed());
        assert_eq!(app.get("/block?ms=60000").status, 504, "{guest}: asleep in the host");
        assert_eq!(app.get("/").status, 200, "{guest}");
    }
}

#[test]
fn the_limit_on_time_cuts_a_response_off() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::of("rust-sdk7", "").arguments(["--request-timeout", "500ms"]).start();
    let mut connection = app.connect();
    connection.request("GET", "/stream?chunks=1000000&delay_ms=10", &[], b"");
    assert_eq!(connection.response_head().status, 200);
    let end = loop {
        match connection.try_chunk() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end must not look like one"),
            Err(error) => break error,
        }
    };
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof, "{end}");
}

#[test]
fn memory_is_bounded() {
    for guest in available(&PROBES) {
        let app = App::of(guest, "").arguments(["--max-instance-memory", "33554432"]).start();
        assert_eq!(app.ok("/memory", &[("mb", "8")]), 8 << 20, "{guest}");
        assert!(!app.error("/memory", &[("mb", "64")]).is_empty(), "{guest}");
        assert_eq!(app.get("/").status, 200, "{guest}");
        let by_author = format!("[component.{guest}.tool.wisp]\nlimits = {{ memory_bytes = 16777216 }}");
        let app = App::of(guest, &by_author).start();
        assert!(!app.error("/memory", &[("mb", "32")]).is_empty(), "{guest}");
    }
}

#[test]
fn one_components_limit_on_requests_is_its_own() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let app = App::new(
        r#"
        spin_manifest_version = 2
        [application]
        name = "narrow"
        [[trigger.http]]
        route = "/narrow/..."
        component = "narrow"
        [[trigger.http]]
        route = "/wide/..."
        component = "wide"
        [component.narrow]
        source = "{rust-sdk7}"
        [component.narrow.tool.wisp]
        limits = { max_concurrent_requests = 1 }
        [component.wide]
        source = "{rust-sdk7}"
        "#,
    )
    .start();
    let mut long = app.connect();
    long.request("GET", "/narrow/stream?chunks=1000000&delay_ms=5", &[], b"");
    long.response_head();
    let mut waiting = app.connect();
    waiting.request("GET", "/narrow/", &[], b"");
    assert_eq!(app.get("/wide/").status, 200, "the other one is not concerned");
    drop(long);
    assert_eq!(waiting.response().status, 200, "it was only waiting");
}

#[test]
fn memory_of_one_request_is_not_seen_by_the_next() {
    for guest in available(&SDK_PROBES) {
        let app = App::of(guest, "").start();
        // Fills slots of the pool with something, then looks at what a fresh instance has.
        let mut connection = app.connect();
        for _ in 0..3 {
            connection.request("GET", "/memory?mb=16", &[], b"");
            assert_eq!(connection.response().ok(), 16 << 20, "{guest}");
            connection.request("GET", "/count", &[], b"");
            assert_eq!(connection.response().expect(), "1", "{guest}");
        }
    }
}

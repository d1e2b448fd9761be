//! What a guest can do to others that means to: nothing.
//!
//! Each attacker runs in a process with a neighbour. While it does its worst, the
//! neighbour is asked, and answers; the attacker's own requests end as they should.

use std::{
    fs,
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Apps, Connection, Response, Serving, guest, manifest_of};

const ATTACKER: &str = "attacker.example";
const NEIGHBOUR: &str = "neighbour.example";

/// The guest of the neighbour, and of attacks that need a library.
const GUEST: &str = "rust-sdk5";

/// How long the neighbour's answers may take. Far more than they do, and less than the
/// attackers' limits would make them take if they had to wait for those.
const PATIENCE: Duration = Duration::from_secs(20);

/// A manifest of one component, which is called as a command.
fn manifest(limits: &str) -> String {
    format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"attacker\"\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"attacker\"\n\
         executor = {{ type = \"wagi\" }}\n\
         [component.attacker]\n\
         source = \"attacker.wasm\"\n\
         [component.attacker.tool.wisp.limits]\n\
         {limits}\n"
    )
}

/// Two apps: a neighbour, and an attacker of this text.
fn apps(text: &str, limits: &str) -> Option<Apps> {
    guest(GUEST)?;
    let apps = Apps::new();
    apps.put(NEIGHBOUR, &manifest_of(GUEST, "1", ""));
    let folder = apps.version("attack", &manifest(limits));
    fs::write(folder.join("attacker.wasm"), wat::parse_str(text).unwrap()).unwrap();
    apps.link(ATTACKER, "attack");
    Some(apps)
}

/// The same, where a probe with these limits attacks.
fn probes(limits: &str) -> Option<Apps> {
    guest(GUEST)?;
    let apps = Apps::new();
    apps.put(NEIGHBOUR, &manifest_of(GUEST, "1", ""));
    let settings = format!("[component.{GUEST}.tool.wisp.limits]\n{limits}");
    apps.put(ATTACKER, &manifest_of(GUEST, "1", &settings));
    Some(apps)
}

/// Asks the neighbour for as long as an attack takes, and once more.
fn neighbour_answers<T: Send>(serving: &Serving, attack: impl FnOnce() -> T + Send) -> T {
    assert_eq!(serving.get(NEIGHBOUR, "/").expect(), "Hello from a probe\n");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut connection = serving.connect();
            let mut is_last = false;
            while !is_last {
                is_last = is_over.load(Ordering::Acquire);
                let start = Instant::now();
                let response = connection.ask(NEIGHBOUR, "GET", "/");
                assert_eq!(response.expect(), "Hello from a probe\n");
                assert!(start.elapsed() < PATIENCE, "the neighbour waited for {:?}", start.elapsed());
            }
        });
        // An attack that fails its own assertions must not keep the neighbour going.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        is_over.store(true, Ordering::Release);
        neighbour.join().unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The attacker's responses when it is asked several times at once.
fn attack(serving: &Serving, count: usize, target: &str) -> Vec<Response> {
    thread::scope(|scope| {
        let asking: Vec<_> = (0..count).map(|_| scope.spawn(|| serving.get(ATTACKER, target))).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    })
}

/// Attacks with a text; each request ends with this status, and the log says this code.
fn ends_with(text: &str, limits: &str, status: u16, code: &str) {
    let Some(apps) = apps(text, limits) else { return };
    // Compiling gives way to everything else on the machine, which may be busy.
    let serving = apps.serve(&["--max-wait", "60s"]);
    let responses = neighbour_answers(&serving, || attack(&serving, 8, "/"));
    for response in responses {
        assert_eq!(response.status, status, "{}", serving.stderr.text());
    }
    let line = serving.stderr.wait_for_text(&format!("[{code}]"));
    assert!(line.contains(" component=attacker"), "{line}");
}

#[test]
fn a_handler_that_never_ends_uses_up_its_cpu_time() {
    ends_with(
        r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#,
        "cpu_time = \"100ms\"",
        504,
        "WISP-E0415",
    );
}

#[test]
fn a_start_that_never_ends_uses_up_its_cpu_time() {
    ends_with(
        r#"(module
            (memory (export "memory") 1)
            (func $start (loop (br 0)))
            (start $start)
            (func (export "_start")))"#,
        "cpu_time = \"100ms\"",
        504,
        "WISP-E0415",
    );
}

#[test]
fn who_takes_all_memory_gets_what_it_may_have() {
    // Writes to each page, so that it is there.
    ends_with(
        r#"(module
            (memory (export "memory") 1)
            (func (export "_start")
                (loop $more
                    (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))
                    unreachable)))"#,
        "memory_bytes = 67108864",
        500,
        "WISP-E0416",
    );
}

#[test]
fn all_instances_together_have_what_the_node_may_have() {
    let Some(apps) = probes("") else { return };
    let serving = apps.serve(&["--max-memory", "200000000"]);
    // The attacker may have as much as it leaves free: half of it.
    let memory = |host: &str, mib: u32| serving.get(host, &format!("/memory?mb={mib}"));
    memory(ATTACKER, 80).ok();
    // This guest looks whether it gets what it asks for.
    neighbour_answers(&serving, || memory(ATTACKER, 160)).error();
    memory(NEIGHBOUR, 80).ok();
    serving.wait_until("memory is given back", |serving| serving.metric("wisp_reserved_memory_bytes") == 0.0);
}

#[test]
fn who_takes_all_table_elements_gets_what_it_may_have() {
    ends_with(
        r#"(module
            (memory (export "memory") 1)
            (table $table 1 funcref)
            (func (export "_start")
                (loop $more
                    (br_if $more
                        (i32.ne (table.grow $table (ref.null func) (i32.const 100)) (i32.const -1)))
                    unreachable)))"#,
        "table_elements = 5000",
        500,
        "WISP-E0417",
    );
}

#[test]
fn who_calls_itself_without_end_runs_out_of_stack() {
    ends_with(
        r#"(module
            (memory (export "memory") 1)
            (func $deeper (param i32) (result i32)
                (i32.add (local.get 0) (call $deeper (i32.add (local.get 0) (i32.const 1)))))
            (func (export "_start") (drop (call $deeper (i32.const 0)))))"#,
        "cpu_time = \"5s\"",
        500,
        "WISP-E0410",
    );
}

/// A command as a component, which has a resource with a destructor.
fn with_resource(run: &str, destructor: &str) -> String {
    format!(
        r#"(component
            (core module $destructor (func (export "destructor") (param i32) {destructor}))
            (core instance $destructor (instantiate $destructor))
            (type $thing (resource (rep i32) (dtor (core func $destructor "destructor"))))
            (core func $new (canon resource.new $thing))
            (core func $drop (canon resource.drop $thing))
            (core module $main
                (import "" "new" (func $new (param i32) (result i32)))
                (import "" "drop" (func $drop (param i32)))
                (func (export "run") (result i32) {run}))
            (core instance $main (instantiate $main
                (with "" (instance (export "new" (func $new)) (export "drop" (func $drop))))))
            (func $run (result (result)) (canon lift (core func $main "run")))
            (instance $run (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $run)))"#
    )
}

#[test]
fn who_takes_millions_of_handles_gets_what_it_may_have() {
    let endless = "(loop $more (drop (call $new (i32.const 1))) (br $more)) unreachable";
    ends_with(&with_resource(endless, ""), "max_handles = 100000\ncpu_time = \"30s\"", 500, "WISP-E0410");
}

#[test]
fn a_destructor_that_traps_ends_its_request() {
    let once = "(call $drop (call $new (i32.const 1))) (i32.const 0)";
    ends_with(&with_resource(once, "unreachable"), "cpu_time = \"5s\"", 500, "WISP-E0410");
}

/// A command that prints each of these texts so many times, one after the other.
fn prints(texts: &[(&str, u32)]) -> String {
    // For each text: where it lies and how long it is, in sixteen bytes of their own;
    // the texts themselves lie behind.
    let (mut data, mut code, mut at) = (String::new(), String::new(), 4096);
    for (number, (text, count)) in texts.iter().enumerate() {
        let (vector, length) = (number * 16, text.len());
        data.push_str(&format!("(data (i32.const {at}) \"{}\")", text.replace('\n', "\\n")));
        code.push_str(&format!(
            "(i32.store (i32.const {vector}) (i32.const {at}))
             (i32.store (i32.const {}) (i32.const {length}))
             (local.set $left (i32.const {count}))
             (loop $more
                (drop (call $write (i32.const 1) (i32.const {vector}) (i32.const 1) (i32.const 1024)))
                (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))",
            vector + 4,
        ));
        at += length;
    }
    format!(
        "(module
            (import \"wasi_snapshot_preview1\" \"fd_write\"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export \"memory\") 4)
            {data}
            (func (export \"_start\") (local $left i32) {code}))"
    )
}

#[test]
fn huge_headers_do_not_leave_the_process() {
    let header = format!("x-long: {}\n", "y".repeat(4_000));
    let text = prints(&[(&header, 100), ("content-type: text/plain\n\n", 1)]);
    ends_with(&text, "cpu_time = \"5s\"", 500, "WISP-E0419");
}

#[test]
fn an_endless_response_is_cut_off() {
    let Some(apps) = probes("response_body_bytes = 1000000\nrequest_timeout = \"20s\"") else { return };
    let serving = apps.serve(&[]);
    neighbour_answers(&serving, || {
        let mut connection = serving.connect();
        connection.send(format!(
            "GET /stream?chunks=1000000&delay_ms=0&bytes=65536 HTTP/1.1\r\nhost: {ATTACKER}\r\n\r\n"
        ));
        assert_eq!(connection.response_head().status, 200);
        let mut length = 0;
        while let Ok(Some(chunk)) = connection.try_chunk() {
            length += chunk.len();
        }
        assert!((100_000..=1_000_000).contains(&length), "{length}");
    });
    serving.stderr.wait_for_text("[WISP-E0418]");

    assert_eq!(serving.get(ATTACKER, "/big?bytes=1000000").text().len(), 1_000_000);
}

#[test]
fn a_response_that_is_known_to_be_too_long_does_not_begin() {
    let text = prints(&[("content-type: text/plain\n\n", 1), (&"y".repeat(4_000), 300)]);
    ends_with(&text, "response_body_bytes = 1000000", 500, "WISP-E0418");
}

#[test]
fn a_request_that_is_never_read_stays_with_its_client() {
    let Some(apps) = probes("cpu_time = \"300ms\"") else { return };
    let serving = apps.serve(&[]);
    let before = resident_bytes(&serving);
    neighbour_answers(&serving, || {
        // More than all buffers on the way hold.
        let body = vec![b'x'; 64 << 20];
        let mut connection = serving.connect();
        connection.send(format!(
            "POST /spin HTTP/1.1\r\nhost: {ATTACKER}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        ));
        // The server may close before it has taken all of it.
        drop(connection.stream().write_all(&body));
        if let Ok(response) = connection.try_response() {
            assert_eq!(response.status, 504);
        }
        serving.stderr.wait_for_text("[WISP-E0415]");
    });
    let grown = resident_bytes(&serving).saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes");
}

fn resident_bytes(serving: &Serving) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
    let bytes = serving.metric("process_resident_memory_bytes") as u64;
    bytes
}

#[test]
fn a_request_that_is_too_long_is_refused() {
    let Some(apps) = probes("request_body_bytes = 1000") else { return };
    let serving = apps.serve(&[]);
    let post = |length: usize| {
        let mut connection = serving.connect();
        let body = "x".repeat(length);
        connection.send(format!(
            "POST /echo HTTP/1.1\r\nhost: {ATTACKER}\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        connection.response().status
    };
    assert_eq!((post(1000), post(1001)), (200, 413));
}

#[test]
fn a_client_that_goes_away_takes_its_guests_along() {
    let Some(apps) = probes("cpu_time = \"1h\"") else { return };
    let serving = apps.serve(&[]);
    neighbour_answers(&serving, || {
        let connections: Vec<Connection> = (0..50)
            .map(|_| {
                let mut connection = serving.connect();
                connection.send(format!("GET /spin HTTP/1.1\r\nhost: {ATTACKER}\r\n\r\n"));
                connection
            })
            .collect();
        serving.wait_until("all of them run", |serving| serving.metric("wisp_running_requests") >= 50.0);
        drop(connections);
        serving.wait_until("none of them runs", |serving| serving.metric("wisp_running_requests") < 5.0);
    });
    let cancelled =
        format!("wisp_requests_total{{app=\"{ATTACKER}\",component=\"{GUEST}\",outcome=\"cancelled\"}}");
    serving.wait_until("they are accounted for", |serving| {
        serving.admin("GET", "/metrics").expect().contains(&format!("{cancelled} 50\n"))
    });
}

#[test]
fn a_thousand_computing_requests_take_no_more_than_their_places() {
    let Some(apps) = probes("cpu_time = \"1h\"") else { return };
    let serving = apps.serve(&["--max-instances", "40", "--max-waiting-requests", "40"]);
    let mut connections: Vec<Connection> = (0..60)
        .map(|_| {
            let mut connection = serving.connect();
            connection.send(format!("GET /spin HTTP/1.1\r\nhost: {ATTACKER}\r\n\r\n"));
            connection
        })
        .collect();
    // Half of the places, and half of the places to wait: the others are refused.
    neighbour_answers(&serving, || {
        serving.wait_until("it has its places", |serving| serving.metric("wisp_running_requests") >= 20.0);
        serving.wait_until("others wait", |serving| serving.metric("wisp_waiting_requests") >= 20.0);
        let refused = serving.get(ATTACKER, "/");
        assert_eq!(refused.status, 503);
        assert_eq!(refused.header("retry-after"), Some("1"));
    });
    connections.clear();
}

#[test]
fn who_computes_waits_for_one_app_and_not_for_all_of_its_requests() {
    let Some(apps) = probes("cpu_time = \"1h\"") else { return };
    // Some tenths of a second of work.
    let work = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\1a\00\00\00")
        (data (i32.const 16) "content-type: text/plain\0a\0a")
        (func (export "_start") (local $left i64)
            (local.set $left (i64.const 300000000))
            (loop $more
                (br_if $more (i64.ne (local.tee $left (i64.sub (local.get $left) (i64.const 1))) (i64.const 0))))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;
    let folder = apps.version("work", &manifest(""));
    fs::write(folder.join("attacker.wasm"), wat::parse_str(work).unwrap()).unwrap();
    apps.link("worker.example", "work");
    let serving = apps.serve(&["--server-timing"]);
    let attacking: Vec<Connection> = (0..50)
        .map(|_| {
            let mut connection = serving.connect();
            connection.send(format!("GET /spin HTTP/1.1\r\nhost: {ATTACKER}\r\n\r\n"));
            connection
        })
        .collect();
    serving.wait_until("all of them run", |serving| serving.metric("wisp_running_requests") >= 50.0);
    let response = neighbour_answers(&serving, || serving.get("worker.example", "/"));
    assert_eq!(response.status, 200);
    let timing = response.header("server-timing").unwrap();
    let ms = |name: &str| -> f64 {
        let (_, rest) = timing.split_once(&format!("{name};dur=")).unwrap();
        rest.split(',').next().unwrap().parse().unwrap()
    };
    assert!(ms("cpu") > 10.0, "{timing}");
    // In one line with fifty others it would wait for all but a fiftieth of its time.
    assert!(ms("queue") < ms("total") * 0.9, "{timing}");
    drop(attacking);
}

#[test]
fn guests_of_wasi_0_3_use_up_their_cpu_time_as_well() {
    let name = "rust-sdk7";
    if guest(name).is_none() || guest(GUEST).is_none() {
        return;
    }
    let apps = Apps::new();
    apps.put(NEIGHBOUR, &manifest_of(GUEST, "1", ""));
    let settings = format!("[component.{name}.tool.wisp.limits]\ncpu_time = \"100ms\"");
    apps.put(ATTACKER, &manifest_of(name, "1", &settings));
    let serving = apps.serve(&[]);
    for response in neighbour_answers(&serving, || attack(&serving, 8, "/spin")) {
        assert_eq!(response.status, 504);
    }
    serving.stderr.wait_for_text("[WISP-E0415]");
}

#[test]
fn logs_are_cut_where_a_request_says_too_much() {
    let Some(apps) = probes("log_bytes = 1000") else { return };
    let serving = apps.serve(&[]);
    let line = "z".repeat(400);
    neighbour_answers(&serving, || {
        serving.get(ATTACKER, &format!("/stdout?line={line}")).expect();
        serving.get(ATTACKER, &format!("/stdout?line={}", line.repeat(3))).expect();
        // What was dropped is said where the log goes on.
        serving.get(ATTACKER, "/stdout?line=after").expect();
    });
    let path = apps.path("logs").join(ATTACKER).join(format!("{GUEST}_stdout.txt"));
    serving.wait_until("the log says so", |_| {
        fs::read_to_string(&path).is_ok_and(|text| text.contains("1 lines were dropped here (WISP-E0356)"))
    });
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches(&line).count(), 1, "{text}");
    assert!(text.contains("after\n"), "{text}");
}

/// A core module of one function that takes the compiler long.
fn slow_to_compile() -> Vec<u8> {
    let line = "(local.set 0 (i32.add (i32.mul (local.get 0) (local.get 1)) (i32.const 77)))
                (local.set 1 (i32.xor (local.get 0) (i32.rotl (local.get 1) (i32.const 5))))
                (if (i32.eqz (local.get 1)) (then (local.set 0 (call $long (local.get 1) (local.get 0)))))\n";
    let text = format!(
        "(module
            (memory (export \"memory\") 1)
            (func $long (param i32 i32) (result i32) {} (local.get 0))
            (func (export \"_start\") (drop (call $long (i32.const 1) (i32.const 2)))))",
        line.repeat(40_000)
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn who_takes_long_to_compile_keeps_nobody_waiting() {
    if guest(GUEST).is_none() {
        return;
    }
    let apps = Apps::new().own_cache();
    apps.put(NEIGHBOUR, &manifest_of(GUEST, "1", ""));
    let folder = apps.version("attack", &manifest(""));
    fs::write(folder.join("attacker.wasm"), slow_to_compile()).unwrap();
    // Compiled first, so that the neighbour is not what takes longer than it may.
    let serving = apps.serve(&["--no-prepare", "--max-compile-time", "60s"]);
    assert_eq!(serving.get(NEIGHBOUR, "/").expect(), "Hello from a probe\n");
    drop(serving);

    apps.link(ATTACKER, "attack");
    let serving = apps.serve(&["--no-prepare", "--max-compile-time", "200ms", "--max-wait", "60s"]);
    let response = neighbour_answers(&serving, || serving.get(ATTACKER, "/"));
    assert!(response.status >= 500, "{}", response.status);
    serving.stderr.wait_for_text("WISP-E0210");
    assert_eq!(serving.get(NEIGHBOUR, "/").expect(), "Hello from a probe\n");
}

#[test]
fn who_is_too_large_is_not_even_read() {
    let Some(apps) = apps("(module (memory (export \"memory\") 1) (func (export \"_start\")))", "") else {
        return;
    };
    let serving = apps.serve(&["--no-prepare", "--max-source-bytes", "20"]);
    assert!(serving.get(ATTACKER, "/").status >= 500);
    serving.stderr.wait_for_text("WISP-E0208");
}

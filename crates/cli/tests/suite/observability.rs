//! Traces, metrics and logs: what a collector gets, what people are shown.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    App, Apps, Cloud, Collector, Connection, Upstream, attribute, attributes, finish, guest, have, json_of,
    manifest_of, query, seen_header,
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT_SPAN_ID: &str = "00f067aa0ba902b7";

fn traceparent() -> String {
    format!("00-{TRACE_ID}-{CLIENT_SPAN_ID}-01")
}

/// An app that exports to this collector.
fn exporting(app: App, collector: &Collector, path: &str) -> App {
    collector.environment(path).into_iter().fold(app, |app, (name, value)| app.environment(name, &value))
}

#[test]
fn a_trace_goes_on_from_the_client_through_the_guest_to_the_server_that_it_asks() {
    let Some(collector) = Collector::start() else { return };
    if !have(&["rust-sdk5"]) {
        return;
    }
    let upstream = Upstream::start();
    let settings = format!("allowed_outbound_hosts = [\"http://{}\"]", upstream.address);
    let app = exporting(App::of("rust-sdk5", &settings), &collector, "").start();
    let target = query("/fetch", &[("url", &upstream.url("/seen?secret=7"))]);
    let headers =
        [("traceparent", traceparent()), ("tracestate", "a=1".to_owned()), ("baggage", "user=7".to_owned())];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = app.request("GET", &target, &headers, b"");
    assert_eq!(answer.status, 200, "{}", answer.text());

    let server = collector.span("server span", |span| {
        span["kind"] == "SPAN_KIND_SERVER" && attributes(span, &[("url.path", "/fetch")])
    });
    assert_eq!(server["traceId"], TRACE_ID);
    assert_eq!(server["parentSpanId"], CLIENT_SPAN_ID);
    assert_eq!(server["name"], "GET /...");
    assert_eq!(server["traceState"], "a=1");
    for (name, value) in [
        ("wisp.app", "of-one"),
        ("wisp.component", "rust-sdk5"),
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", "/..."),
        ("url.scheme", "http"),
        ("server.address", "127.0.0.1"),
        ("client.address", "127.0.0.1"),
        ("wisp.outcome", "answered"),
    ] {
        assert_eq!(attribute(&server, name), Some(value.into()), "{name}: {server}");
    }
    let figure = |name: &str| attribute(&server, name).unwrap().as_str().unwrap().parse::<u64>().unwrap();
    assert!(figure("wisp.cpu_ns") > 0 && figure("wisp.instantiate_ns") > 0, "{server}");
    assert!(figure("wisp.wait_ns") > 0 && figure("wisp.peak_memory_bytes") >= 65_536, "{server}");
    assert!(figure("http.response.body.size") > 0, "{server}");

    let of_server = |span: &Value| span["parentSpanId"] == server["spanId"];
    let client = collector.span("client span", |span| span["kind"] == "SPAN_KIND_CLIENT" && of_server(span));
    assert_eq!(attribute(&client, "url.full"), Some(upstream.url("/seen").into()));
    assert_eq!(attribute(&client, "http.response.status_code"), Some("200".into()));
    collector.span("instantiation", |span| span["name"] == "instantiate" && of_server(span));

    // What the other server saw names the span of its request as the parent.
    let seen: Value = serde_json::from_str(answer.ok()["body"].as_str().unwrap()).unwrap();
    let expected = format!("00-{TRACE_ID}-{}-01", client["spanId"].as_str().unwrap());
    assert_eq!(seen_header(&seen, "traceparent"), Some(expected.as_str()));
    assert_eq!(seen_header(&seen, "tracestate"), Some("a=1"));
    assert_eq!(seen_header(&seen, "baggage"), Some("user=7"));
}

#[test]
fn a_guest_sees_its_own_place_in_the_trace_and_what_the_client_decided_holds() {
    let Some(collector) = Collector::start() else { return };
    if !have(&["rust-sdk5"]) {
        return;
    }
    let app = exporting(App::of("rust-sdk5", ""), &collector, "").start();
    let seen = |headers: &[(&str, &str)]| {
        let seen = app.request("GET", "/echo-request", headers, b"").json();
        seen_header(&seen, "traceparent").unwrap_or_else(|| panic!("no place: {seen}")).to_owned()
    };
    let unsampled = format!("00-{TRACE_ID}-{CLIENT_SPAN_ID}-00");
    let inside = seen(&[("traceparent", &unsampled)]);
    assert!(inside.starts_with(&format!("00-{TRACE_ID}-")) && inside.ends_with("-00"), "{inside}");
    assert!(!inside.contains(CLIENT_SPAN_ID), "{inside}");
    let fresh = seen(&[("traceparent", "nonsense")]);
    assert!(!fresh.contains(TRACE_ID) && fresh.ends_with("-01"), "{fresh}");
    // The second one is exported, so the first one would have been.
    let span_id = fresh.split('-').nth(2).unwrap().to_owned();
    collector.span("span of the second request", |span| span["spanId"] == span_id);
    let is_unsampled = |sent: &Value| sent["signal"] == "traces" && sent.to_string().contains(TRACE_ID);
    let spans: Vec<_> = collector.received().into_iter().filter(is_unsampled).collect();
    assert_eq!(spans, Vec::<Value>::new());
}

#[test]
fn without_an_export_headers_pass_as_they_are() {
    if !have(&["rust-sdk5"]) {
        return;
    }
    let app = App::of("rust-sdk5", "").start();
    let seen = app.request("GET", "/echo-request", &[("traceparent", &traceparent())], b"").json();
    assert_eq!(seen_header(&seen, "traceparent"), Some(traceparent().as_str()));
    let seen = app.get("/echo-request").json();
    assert_eq!(seen_header(&seen, "traceparent"), None);
}

#[test]
fn requests_between_components_are_parts_of_one_trace() {
    let Some(collector) = Collector::start() else { return };
    if !have(&["rust-sdk5", "rust-sdk6"]) {
        return;
    }
    let settings = "allowed_outbound_hosts = [\"http://*.spin.internal\"]";
    let app = exporting(App::of_each(&["rust-sdk5", "rust-sdk6"], settings), &collector, "").start();
    let target = query("/rust-sdk5/chain", &[("url", "http://rust-sdk6.spin.internal/headers")]);
    let answer = app.request("GET", &target, &[("traceparent", &traceparent())], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let is_of = |span: &Value, component: &str, kind: &str| {
        span["kind"] == kind && attributes(span, &[("wisp.component", component)])
    };
    let outer = collector.span("outer", |span| is_of(span, "rust-sdk5", "SPAN_KIND_SERVER"));
    let between = collector.span("between", |span| is_of(span, "rust-sdk5", "SPAN_KIND_CLIENT"));
    let inner = collector.span("inner", |span| is_of(span, "rust-sdk6", "SPAN_KIND_SERVER"));
    assert_eq!(between["parentSpanId"], outer["spanId"]);
    assert_eq!(inner["parentSpanId"], between["spanId"]);
    assert_eq!(inner["traceId"], TRACE_ID);
}

#[test]
fn lines_requests_and_messages_are_records_with_their_trace() {
    let Some(collector) = Collector::start() else { return };
    if !have(&["rust-sdk5"]) {
        return;
    }
    let app = exporting(App::of("rust-sdk5", ""), &collector, "").start();
    let headers = [("traceparent", traceparent())];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    app.request("GET", &query("/stdout", &[("line", "a line of the guest")]), &headers, b"").expect();
    let is_text = |record: &Value, text: &str| {
        record["body"]["stringValue"].as_str().is_some_and(|body| body.contains(text))
    };
    let line = collector.record("line", |record| is_text(record, "a line of the guest"));
    assert_eq!(line["traceId"], TRACE_ID);
    let expected = [("wisp.app", "of-one"), ("wisp.component", "rust-sdk5"), ("log.iostream", "stdout")];
    assert!(attributes(&line, &expected), "{line}");

    let request = collector.record("request", |record| is_text(record, "GET /stdout 200 "));
    assert_eq!(request["traceId"], TRACE_ID);
    assert_eq!(request["spanId"], line["spanId"]);
    assert!(attributes(&request, &[("wisp.outcome", "answered")]), "{request}");

    assert_eq!(app.request("GET", "/trap", &headers, b"").status, 500);
    let message = collector.record("message", |record| is_text(record, "the component trapped"));
    assert_eq!(message["traceId"], TRACE_ID);
    assert!(attributes(&message, &[("wisp.app", "of-one"), ("wisp.code", "WISP-E0410")]), "{message}");
    assert_eq!(message["severityText"], "ERROR");
}

#[test]
fn metrics_are_those_of_prometheus_and_of_the_conventions() {
    let Some(collector) = Collector::start() else { return };
    if !have(&["rust-sdk5"]) {
        return;
    }
    let apps = Apps::new();
    apps.put("shop.example", &manifest_of("rust-sdk5", "1", ""));
    let environment = collector.environment("");
    let serving = apps.serve_with(&[], |command| {
        command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        command.env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
        command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=7");
    });
    for _ in 0..3 {
        serving.get("shop.example", "/").expect();
    }
    assert_eq!(serving.get("shop.example", "/status?code=503").status, 503);
    let of_app = |point: &Value| attributes(point, &[("wisp.app", "shop.example")]);
    let is_status = |point: &Value, status: &str| {
        of_app(point) && attributes(point, &[("http.response.status_code", status)])
    };
    let durations = collector
        .point("http.server.request.duration", |point| is_status(point, "200") && point["count"] == "3");
    let expected = [("http.request.method", "GET"), ("http.route", "/..."), ("url.scheme", "http")];
    assert!(attributes(&durations, &expected), "{durations}");
    assert_eq!(durations["explicitBounds"].as_array().unwrap().len(), 15);
    collector.point("http.server.request.duration", |point| {
        is_status(point, "503") && attributes(point, &[("error.type", "503")])
    });
    collector.point("wisp.requests", |point| {
        of_app(point) && attributes(point, &[("wisp.outcome", "answered")]) && point["asInt"] == "4"
    });
    let cpu = collector.point("wisp.cpu", of_app);
    assert!(cpu["asDouble"].as_f64().unwrap() > 0.0, "{cpu}");
    collector.point("wisp.apps.mapped", |point| point["asInt"] == "1");
    collector.point("wisp.load.count", |point| point["asInt"] == "1");

    let text = serving.admin("GET", "/metrics").expect();
    let labels = "app=\"shop.example\",component=\"rust-sdk5\"";
    assert!(text.contains(&format!("wisp_request_duration_seconds_count{{{labels}}} 4\n")), "{text}");
    assert!(text.contains("wisp_telemetry_dropped_total{signal=\"traces\"} 0\n"), "{text}");
    let sent = collector.wait_for("metrics", |sent| (sent["signal"] == "metrics").then(|| sent.clone()));
    assert_eq!(sent["headers"]["x-key"], "7");
    let resource = &sent["data"]["resourceMetrics"][0]["resource"];
    let expected = [("service.name", "wisp-serve"), ("deployment.environment.name", "test")];
    assert!(attributes(resource, &expected), "{resource}");
}

#[test]
fn no_request_fails_or_waits_because_nobody_takes_what_is_exported() {
    let Some(collector) = Collector::start() else { return };
    if !have(&["rust-sdk5"]) {
        return;
    }
    for path in ["/refuse", "/stall"] {
        let app = exporting(App::of("rust-sdk5", ""), &collector, path)
            .environment("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
            .environment("OTEL_BSP_MAX_QUEUE_SIZE", "8")
            .environment("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4");
        let mut app = app.start();
        let mut connection = app.connect();
        for number in 0..200 {
            connection.request("GET", "/", &[], b"");
            assert_eq!(connection.response().status, 200, "{path}: {number}");
        }
        let warning = app.stderr.wait_for_text("warning[WISP-E0605]: traces cannot be exported: ");
        let cause = if path == "/refuse" { "the collector answers 503" } else { "no answer within 300ms" };
        assert!(warning.contains(cause), "{warning}");
        assert!(app.terminate().success(), "{}", app.stderr.text());
        let said =
            app.stderr.lines().iter().filter(|line| line.contains("traces cannot be exported")).count();
        assert_eq!(said, 1, "{}", app.stderr.text());
    }
}

#[test]
fn what_waits_is_sent_at_the_end() {
    let Some(collector) = Collector::start() else { return };
    if !have(&["rust-sdk5"]) {
        return;
    }
    let app = App::of("rust-sdk5", "")
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint(""))
        .environment("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .environment("OTEL_BLRP_SCHEDULE_DELAY", "3600000")
        .environment("OTEL_METRIC_EXPORT_INTERVAL", "3600000");
    let mut app = app.start();
    app.get("/").expect();
    assert!(app.terminate().success(), "{}", app.stderr.text());
    collector.span("span", |span| span["kind"] == "SPAN_KIND_SERVER");
    collector.record("record", |record| attributes(record, &[("url.path", "/")]));
    collector.point("wisp.requests", |point| point["asInt"] == "1");
}

#[test]
fn what_a_guest_reports_itself_is_part_of_its_requests_trace() {
    let Some(collector) = Collector::start() else { return };
    let name = "rust-wit";
    if guest(name).is_none() {
        return;
    }
    let upstream = Upstream::start();
    let settings = format!("allowed_outbound_hosts = [\"http://{}\"]", upstream.address);
    let app = exporting(App::of(name, &settings), &collector, "").start();
    let target = query("/otel", &[("url", &upstream.url("/seen"))]);
    let answer = app.request("GET", &target, &[("traceparent", &traceparent())], b"");
    let outer = answer.ok();
    let server = collector.span("server", |span| span["kind"] == "SPAN_KIND_SERVER");
    assert_eq!(outer["trace"], TRACE_ID);
    assert_eq!(outer["span"], server["spanId"]);
    let own = collector.span("the guest's own", |span| span["name"] == "work of the guest");
    assert_eq!(own["parentSpanId"], server["spanId"]);
    let expected = [("wisp.app", "of-one"), ("wisp.component", name), ("count", "7")];
    assert!(attributes(&own, &expected), "{own}");
    assert_eq!(own["events"][0]["name"], "half way");
    // What it asked for meanwhile is part of its span.
    let client = collector.span("client", |span| span["kind"] == "SPAN_KIND_CLIENT");
    assert_eq!(client["parentSpanId"], own["spanId"]);
    let record =
        collector.record("record", |record| record["body"]["stringValue"] == "a record of the guest");
    assert_eq!(record["traceId"], TRACE_ID);
    assert_eq!(record["severityText"], "WARN");
}

#[test]
fn what_the_environment_asks_for_and_does_not_exist_is_refused() {
    let app = App::of("tiny", "").environment("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1");
    let refused = app.environment("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").refused();
    assert!(refused.stderr.contains("error[WISP-E0602]"), "{}", refused.stderr);
    assert!(refused.stderr.contains("http/protobuf"), "{}", refused.stderr);
}

/// An app with a guest, for a cloud.
fn guest_app(cloud: &Cloud, name: &str) -> std::path::PathBuf {
    cloud.app(
        name,
        &manifest_of("rust-sdk5", "1", "").replace("name = \"rust-sdk5\"", &format!("name = \"{name}\"")),
    )
}

#[test]
fn a_record_of_a_request_says_what_it_used_and_leads_to_its_lines() {
    if !have(&["rust-sdk5"]) {
        return;
    }
    let cloud = Cloud::new();
    let running = cloud.start();
    let ada = cloud.operator(&running, "crew");
    ada.deploy(&guest_app(&cloud, "shop"), &[]);
    let mut connection = Connection::open(running.address);
    let host = ada.host("shop");
    let target = query("/stdout", &[("line", "hello log")]);
    let headers = [("host", host.as_str()), ("traceparent", &traceparent())];
    let response = connection.try_request("POST", &target, &headers, b"twelve bytes").unwrap();
    assert_eq!(response.status, 200);
    let id = response.header("x-request-id").unwrap().to_owned();
    running.get(&host, "/").expect();

    let logs = |more: &[&str]| {
        let mut arguments = vec!["logs", "shop", "--request", &id];
        arguments.extend(more);
        let finished = finish(ada.wisp(&arguments));
        assert!(finished.status.success(), "{}", finished.stderr);
        finished.stdout
    };
    let text = logs(&["--format", "json"]);
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_stream =
        |stream: &str| records.iter().find(|record| record["stream"] == stream).unwrap_or(&Value::Null);
    assert_eq!(records.len(), 2, "{text}");
    assert_eq!(of_stream("stdout")["text"], "hello log");
    let request = of_stream("request");
    for record in &records {
        assert_eq!(record["request"], id.as_str());
        assert_eq!(record["trace"], TRACE_ID);
        assert_eq!(record["component"], "rust-sdk5");
    }
    let fields = &request["fields"];
    assert_eq!((&fields["status"], &fields["outcome"]), (&200.into(), &"answered".into()), "{request}");
    let figure = |name: &str| fields[name].as_u64().unwrap_or_else(|| panic!("{name}: {request}"));
    assert!(figure("cpu_us") > 0 && figure("cpu_us") <= figure("duration_us"), "{request}");
    assert!(figure("instantiate_us") > 0 && figure("peak_memory_bytes") >= 65_536, "{request}");
    assert!(figure("wait_us") <= figure("duration_us"), "{request}");
    let _ = (figure("request_bytes"), figure("response_bytes"), figure("queue_us"));
    let plain = logs(&[]);
    let line = plain.lines().find(|line| line.contains(" request ")).unwrap();
    assert!(line.contains("POST /stdout 200 ") && line.ends_with(" ms CPU"), "{line}");
}

#[test]
fn top_counts_what_was_asked_for_and_shows_a_team_its_own_apps_only() {
    if !have(&["rust-sdk5"]) {
        return;
    }
    let cloud = Cloud::new();
    let running = cloud.start();
    let ada = cloud.operator(&running, "crew");
    let other = ada.in_team("others");
    ada.deploy(&guest_app(&cloud, "shop"), &[]);
    ada.deploy(&cloud.static_app("quiet", "nothing"), &[]);
    other.deploy(&guest_app(&cloud, "elsewhere"), &[]);
    for _ in 0..5 {
        running.get(&ada.host("shop"), "/").expect();
    }
    assert_eq!(running.get(&ada.host("shop"), "/status?code=500").status, 500);
    running.get(&other.host("elsewhere"), "/").expect();

    let top = |who: &crate::harness::Person, more: &[&str]| {
        let mut arguments = vec!["top", "--once", "--interval", "100ms", "--format", "json"];
        arguments.extend(more);
        let finished = finish(who.wisp(&arguments));
        assert!(finished.status.success(), "{}", finished.stderr);
        serde_json::from_str::<Value>(&finished.stdout).unwrap()
    };
    let apps = |rows: &Value| -> Vec<String> {
        rows.as_array().unwrap().iter().map(|row| row["app"].as_str().unwrap().to_owned()).collect()
    };
    let rows = top(&ada, &["--sort", "name"]);
    assert_eq!(apps(&rows), ["crew/quiet", "crew/shop"]);
    let shop = &rows[1];
    assert_eq!((&shop["requests_count"], &shop["failed_count"]), (&6.into(), &1.into()), "{shop}");
    assert_eq!(shop["state"], "warm");
    assert!(shop["cpu_ns"].as_u64().unwrap() > 0, "{shop}");
    let buckets = shop["durations"].as_array().unwrap();
    assert_eq!(buckets.iter().map(|bucket| bucket["count"].as_u64().unwrap()).sum::<u64>(), 6);
    assert_eq!(shop["requests_per_s"], 0.0, "nothing came in between");
    assert_eq!(apps(&top(&ada, &["shop"])), ["crew/shop"]);
    assert_eq!(apps(&top(&other, &[])), ["others/elsewhere"]);
    assert_eq!(
        apps(&top(&ada, &["--all", "--sort", "name"])),
        ["crew/quiet", "crew/shop", "others/elsewhere"]
    );

    // Somebody who is no operator sees neither another team nor all of them.
    let stranger =
        ada.of_team("POST", "tokens", Some(&serde_json::json!({ "name": "ci", "scopes": ["apps:read"] })));
    let mut stranger_of_team = ada.clone();
    stranger_of_team.token = stranger["secret"].as_str().unwrap().to_owned();
    assert_eq!(apps(&top(&stranger_of_team, &[])), ["crew/quiet", "crew/shop"]);
    for path in ["/api/v1/usage", "/api/v1/teams/others/usage", "/api/v1/teams/nobody/usage"] {
        let refused = stranger_of_team.ask("GET", path, None);
        assert!([403, 404].contains(&refused.status), "{path}: {}", refused.text());
        assert!(!refused.text().contains("elsewhere"));
    }
    let missing = |path: &str| json_of(&stranger_of_team.ask("GET", path, None));
    assert_eq!(missing("/api/v1/teams/others/usage"), missing("/api/v1/teams/nobody/usage"));

    let text = finish(ada.wisp(&["top", "--once", "--interval", "100ms"])).stdout;
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("2 apps") && text.contains("quiet") && text.contains("req/s"), "{text}");
}

#[test]
fn top_shows_the_apps_of_a_folder_to_its_operator() {
    if !have(&["rust-sdk5"]) {
        return;
    }
    let apps = Apps::new();
    apps.put("shop.example", &manifest_of("rust-sdk5", "1", ""));
    let serving = apps.serve(&[]);
    for _ in 0..4 {
        serving.get("shop.example", "/").expect();
    }
    let mut command = crate::harness::wisp();
    command.args(["top", "--once", "--interval", "100ms", "--format", "json"]);
    command.args(["--admin", &serving.admin.to_string()]);
    let rows: Value = serde_json::from_str(&finish(command).stdout).unwrap();
    assert_eq!(rows[0]["app"], "shop.example");
    assert_eq!(rows[0]["requests_count"], 4);
    assert!(rows[0]["at_ms"].as_u64().unwrap() > Duration::from_secs(1 << 30).as_millis() as u64);
}

//! Probe guest for `wasi:keyvalue`, `wasi:config` and `wasi:otel`, which no Spin SDK wraps.
//!
//! `guests/README.md` lists what each path does.

mod bindings {
    wit_bindgen::generate!({ world: "imports", path: "wit", generate_all });
}

use bindings::wasi::clocks::wall_clock::Datetime;
use bindings::wasi::config::store as config;
use bindings::wasi::keyvalue::atomics::{self, Cas, CasError};
use bindings::wasi::keyvalue::{batch, store};
use bindings::wasi::otel::types::{InstrumentationScope, KeyValue};
use bindings::wasi::otel::{logs, tracing};
use probe::{Reply, Target, bytes_to_json};
use serde_json::{Map, Value as Json, json};
use wstd::http::{Body, Client, Error, Request, Response};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path_info = request.headers().get("spin-path-info").and_then(|value| value.to_str().ok());
    let target = Target::new(&request.uri().to_string(), path_info);
    let reply = match target.path.as_str() {
        "/config/get" => Reply::outcome(config::get(target.get_or("key", "")).map(Json::from)),
        "/config/all" => Reply::outcome(config::get_all().map(|pairs| {
            pairs.into_iter().map(|(key, value)| (key, Json::String(value))).collect::<Map<_, _>>().into()
        })),
        "/otel" => Reply::outcome(otel(&target).await),
        "/otel-flood" => {
            for _ in 0..target.number("count", 1) {
                let span = begin(&tracing::outer_span_context());
                end(span, &tracing::outer_span_context(), "flood", Vec::new());
            }
            Reply::text(200, "reported\n")
        }
        path if path.starts_with("/kv/") => Reply::outcome(key_value(&target)),
        path => probe::serve(&target).unwrap_or_else(|| Reply::not_found(path)),
    };
    let mut builder = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        builder = builder.header(name, value);
    }
    Ok(builder.body(reply.body.into())?)
}

/// Sends a request within a span of its own, and reports that and a record.
async fn otel(target: &Target) -> Result<Json, String> {
    let outer = tracing::outer_span_context();
    let span = begin(&outer);
    let request = Request::get(target.get_or("url", "")).body(Body::empty()).map_err(|error| error.to_string())?;
    let mut response = Client::new().send(request).await.map_err(|error| error.to_string())?;
    response.body_mut().contents().await.map_err(|error| error.to_string())?;
    logs::on_emit(&logs::LogRecord {
        timestamp: Some(now()),
        observed_timestamp: None,
        severity_text: None,
        severity_number: Some(13),
        body: Some("\"a record of the guest\"".to_owned()),
        attributes: None,
        event_name: None,
        resource: None,
        instrumentation_scope: None,
        trace_id: Some(span.trace_id.clone()),
        span_id: Some(span.span_id.clone()),
        trace_flags: Some(span.trace_flags),
    });
    let half_way =
        tracing::Event { name: "half way".to_owned(), time: now(), attributes: Vec::new() };
    end(span, &outer, "work of the guest", vec![half_way]);
    Ok(json!({ "trace": outer.trace_id, "span": outer.span_id }))
}

fn begin(outer: &tracing::SpanContext) -> tracing::SpanContext {
    let (high, low) = wasi_random();
    let trace_id = if outer.is_remote { outer.trace_id.clone() } else { format!("{high:016x}{low:016x}") };
    let context = tracing::SpanContext {
        trace_id,
        span_id: format!("{:016x}", high | 1),
        trace_flags: tracing::TraceFlags::SAMPLED,
        is_remote: false,
        trace_state: Vec::new(),
    };
    tracing::on_start(&context);
    context
}

fn end(span: tracing::SpanContext, outer: &tracing::SpanContext, name: &str, events: Vec<tracing::Event>) {
    let pair = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.to_owned() };
    tracing::on_end(&tracing::SpanData {
        span_context: span,
        parent_span_id: outer.span_id.clone(),
        span_kind: tracing::SpanKind::Internal,
        name: name.to_owned(),
        start_time: now(),
        end_time: now(),
        attributes: vec![pair("count", "7"), pair("wisp.app", "\"somebody else\"")],
        events,
        links: Vec::new(),
        status: tracing::Status::Ok,
        instrumentation_scope: InstrumentationScope {
            name: "guest".to_owned(),
            version: None,
            schema_url: None,
            attributes: Vec::new(),
        },
        dropped_attributes: 0,
        dropped_events: 0,
        dropped_links: 0,
    });
}

fn now() -> Datetime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Datetime { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() }
}

/// Two numbers that nobody else has.
fn wasi_random() -> (u64, u64) {
    use std::hash::{BuildHasher as _, RandomState};
    (RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}

fn key_value(target: &Target) -> Result<Json, String> {
    let bucket = store::open(target.get_or("store", "default")).map_err(describe)?;
    let key = target.get_or("key", "key");
    let value = target.get_or("value", "").as_bytes();
    let keys: Vec<String> = target.all("key").map(str::to_owned).collect();
    Ok(match target.path.as_str() {
        "/kv/open" => json!(true),
        "/kv/get" => optional(bucket.get(key).map_err(describe)?),
        "/kv/set" => done(bucket.set(key, value).map_err(describe)?),
        "/kv/delete" => done(bucket.delete(key).map_err(describe)?),
        "/kv/exists" => json!(bucket.exists(key).map_err(describe)?),
        "/kv/list" => {
            let answer = bucket.list_keys(target.get("cursor")).map_err(describe)?;
            let mut keys = answer.keys;
            keys.sort();
            json!({ "keys": keys, "cursor": answer.cursor })
        }
        "/kv/get-many" => {
            let values = batch::get_many(&bucket, &keys).map_err(describe)?;
            values.into_iter().map(|(key, value)| json!([key, optional(value)])).collect()
        }
        "/kv/set-many" => {
            let pairs: Vec<_> = keys.into_iter().map(|key| (key, value.to_vec())).collect();
            done(batch::set_many(&bucket, &pairs).map_err(describe)?)
        }
        "/kv/delete-many" => done(batch::delete_many(&bucket, &keys).map_err(describe)?),
        "/kv/increment" => {
            let delta = target.get_or("delta", "1").parse().unwrap_or(1);
            json!(atomics::increment(&bucket, key, delta).map_err(describe)?)
        }
        "/kv/swap" => swap(&bucket, key, value, target.get("meanwhile"))?,
        other => Json::String(format!("this guest has no {other}")),
    })
}

/// Compare and swap; `meanwhile` is written between the two, so that the swap
/// must fail and give back a handle that sees the value in the way.
fn swap(bucket: &store::Bucket, key: &str, value: &[u8], meanwhile: Option<&str>) -> Result<Json, String> {
    let cas = Cas::new(bucket, key).map_err(describe)?;
    let before = optional(cas.current().map_err(describe)?);
    if let Some(text) = meanwhile {
        bucket.set(key, text.as_bytes()).map_err(describe)?;
    }
    match atomics::swap(cas, value) {
        Ok(()) => Ok(json!({ "before": before, "swapped": true })),
        Err(CasError::CasFailed(cas)) => {
            let now = optional(cas.current().map_err(describe)?);
            Ok(json!({ "before": before, "swapped": false, "now": now }))
        }
        Err(CasError::StoreError(error)) => Err(describe(error)),
    }
}

fn describe(error: store::Error) -> String {
    format!("{error:?}")
}

fn optional(value: Option<Vec<u8>>) -> Json {
    value.map_or(Json::Null, |bytes| bytes_to_json(&bytes))
}

fn done((): ()) -> Json {
    json!(true)
}

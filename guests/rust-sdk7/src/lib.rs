//! Probe guest for WASI 0.3 and the asynchronous Spin interfaces.
//!
//! `guests/README.md` lists what each path does.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use probe::{Reply, Target, bytes_to_json, from_hex, pattern, to_hex};
use serde_json::{Value as Json, json};
use spin_sdk::http::{self, HeaderMap, HeaderName, HeaderValue, Request};
use spin_sdk::http_service;
use spin_sdk::key_value::Store;
use spin_sdk::sqlite::wit::sqlite::Connection as BlockingConnection;
use spin_sdk::sqlite::{Connection, Value};
use spin_sdk::variables;
use spin_sdk::wasip3::clocks::monotonic_clock;
use spin_sdk::wasip3::spawn;

type AnyError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, AnyError>;
type Response = http::Response<Body>;

/// How many frames may wait between the task that makes a body and the one
/// that sends it: one, so that back-pressure reaches the maker.
const FRAMES_IN_FLIGHT: usize = 1;

#[http_service]
async fn handle(request: Request) -> Response {
    let path_info = request.headers().get("spin-path-info").and_then(|value| value.to_str().ok());
    let target = Target::new(&request.uri().to_string(), path_info);
    match target.path.as_str() {
        "/echo" => echo(request),
        "/echo-request" => reply(echo_request(&request)),
        "/discard" => discard(request).await,
        "/request-trailers" => request_trailers(request).await,
        "/trailers" => trailers(),
        "/sleep" => {
            sleep(target.number("ms", 100)).await;
            reply(Reply::text(200, "awake\n"))
        }
        "/stream" => stream(&target),
        "/trap-mid-body" => trap_mid_body(),
        "/fetch" | "/chain" => reply(Reply::outcome(fetch(&target, request).await)),
        "/proxy" => proxy(&target, request).await,
        "/variable" => {
            let value = variables::get(target.get_or("name", "")).await;
            reply(Reply::outcome(value.map(Json::from)))
        }
        path if path.starts_with("/kv/") => reply(key_value(&target).await),
        "/sqlite" => reply(Reply::outcome(sqlite(&target).await)),
        "/sqlite-blocking" => reply(Reply::outcome(sqlite_blocking(&target))),
        path => {
            let answer = probe::serve(&target).unwrap_or_else(|| Reply::not_found(path));
            reply(answer)
        }
    }
}

fn reply(reply: Reply) -> Response {
    let body = Full::new(Bytes::from(reply.body)).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = http::StatusCode::from_u16(reply.status).expect("a valid status");
    for (name, value) in reply.headers {
        response.headers_mut().append(header_name(&name), header_value(&value));
    }
    response
}

fn header_name(name: &str) -> HeaderName {
    name.parse().expect("a valid header name")
}

fn header_value(value: &str) -> HeaderValue {
    value.parse().expect("a valid header value")
}

/// A body that is made while it is sent, and the end to put frames into.
fn channel() -> (mpsc::Sender<Result<Frame<Bytes>, AnyError>>, Response) {
    let (sender, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
    (sender, Response::new(StreamBody::new(receiver).boxed_unsync()))
}

async fn sleep(milliseconds: u64) {
    monotonic_clock::wait_for(Duration::from_millis(milliseconds).as_nanos() as u64).await;
}

fn headers_to_json(headers: &HeaderMap) -> Json {
    headers.iter().map(|(name, value)| json!([name.as_str(), bytes_to_json(value.as_bytes())])).collect()
}

fn echo_request(request: &Request) -> Reply {
    Reply::json(&json!({
        "method": request.method().as_str(),
        "uri": request.uri().to_string(),
        "headers": headers_to_json(request.headers()),
    }))
}

/// Sends the request's body back, frame by frame, as it arrives.
fn echo(request: Request) -> Response {
    let content_type = request.headers().get("content-type").cloned();
    let body = request.into_body().map_err(|error| AnyError::from(format!("{error:?}")));
    let mut response = Response::new(body.boxed_unsync());
    if let Some(value) = content_type {
        response.headers_mut().insert("content-type", value);
    }
    response
}

/// Reads the whole body and answers how long it was.
async fn discard(request: Request) -> Response {
    let mut body = request.into_body();
    let mut length = 0_u64;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => length += frame.data_ref().map_or(0, |data| data.len() as u64),
            Err(error) => return reply(Reply::outcome::<_>(Err(error))),
        }
    }
    reply(Reply::json(&json!({ "ok": length })))
}

async fn request_trailers(request: Request) -> Response {
    reply(Reply::outcome(request.into_body().collect().await.map(|body| {
        let trailers = body.trailers().map_or(Json::Null, headers_to_json);
        json!({ "trailers": trailers, "body": bytes_to_json(&body.to_bytes()) })
    })))
}

fn trailers() -> Response {
    let (mut sender, mut response) = channel();
    response.headers_mut().insert("trailer", header_value("x-checksum"));
    spawn(async move {
        let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"a body before its trailers\n")))).await;
        let mut fields = HeaderMap::new();
        fields.insert("x-checksum", header_value("abc123"));
        let _ = sender.send(Ok(Frame::trailers(fields))).await;
    });
    response
}

/// `chunks` pieces of `bytes` bytes with a pause of `delay_ms` before each but
/// the first; says on stdout when it is done or when nobody listens any more.
fn stream(target: &Target) -> Response {
    let (mut sender, response) = channel();
    let chunks = target.number("chunks", 3);
    let delay_ms = target.number("delay_ms", 0);
    let length = target.get("bytes").map(|_| target.number("bytes", 0) as usize);
    spawn(async move {
        for number in 0..chunks {
            if number > 0 && delay_ms > 0 {
                sleep(delay_ms).await;
            }
            let data = length.map_or_else(|| format!("chunk {number}\n").into_bytes(), pattern);
            if sender.send(Ok(Frame::data(Bytes::from(data)))).await.is_err() {
                println!("stream: the reader went away at chunk {number}");
                return;
            }
        }
        println!("stream: sent all {chunks} chunks");
    });
    response
}

fn trap_mid_body() -> Response {
    let (mut sender, response) = channel();
    spawn(async move {
        let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"the first half\n")))).await;
        sleep(50).await;
        probe::deliberate_trap();
    });
    response
}

/// Builds the outbound request that the query describes.
fn outbound<B>(target: &Target, method: http::Method, body: B) -> Result<http::Request<B>, String> {
    let mut builder = http::Request::builder().method(method).uri(target.get_or("url", ""));
    for (name, value) in target.headers() {
        builder = builder.header(name, value);
    }
    builder.body(body).map_err(|error| error.to_string())
}

async fn fetch(target: &Target, _request: Request) -> Result<Json, String> {
    let method = target.get_or("method", "GET").parse().map_err(|_| "no such method".to_owned())?;
    let body = Full::new(Bytes::from(target.get_or("body", "").to_owned()));
    let response = http::send(outbound(target, method, body)?).await.map_err(|error| format!("{error:?}"))?;
    let status = response.status().as_u16();
    let headers = headers_to_json(response.headers());
    let body = response.into_body().collect().await.map_err(|error| format!("{error:?}"))?;
    let trailers = body.trailers().map(headers_to_json);
    Ok(json!({
        "status": status,
        "headers": headers,
        "body": bytes_to_json(&body.to_bytes()),
        "trailers": trailers,
    }))
}

/// Sends the incoming body on and the answer's body back, both as they come.
async fn proxy(target: &Target, request: Request) -> Response {
    let method = request.method().clone();
    let body = request.into_body().map_err(|error| AnyError::from(format!("{error:?}"))).boxed_unsync();
    let outgoing = match outbound(target, method, body) {
        Ok(outgoing) => outgoing,
        Err(error) => return reply(Reply::outcome(Err(error))),
    };
    match http::send(outgoing).await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let body = body.map_err(|error| AnyError::from(format!("{error:?}"))).boxed_unsync();
            let mut answer = Response::new(body);
            *answer.status_mut() = parts.status;
            answer
        }
        Err(error) => reply(Reply::outcome(Err(error))),
    }
}

async fn key_value(target: &Target) -> Reply {
    Reply::outcome(key_value_outcome(target).await)
}

async fn key_value_outcome(target: &Target) -> Result<Json, spin_sdk::key_value::Error> {
    let label = target.get_or("store", "default");
    let key = target.get_or("key", "key");
    if target.path == "/kv/open-many" {
        let mut stores = Vec::new();
        for _ in 0..target.number("count", 1) {
            stores.push(Store::open(label).await?);
        }
        return Ok(json!(stores.len()));
    }
    let store = Store::open(label).await?;
    Ok(match target.path.as_str() {
        "/kv/open" => json!(true),
        "/kv/get" => store.get(key).await?.map_or(Json::Null, |value| bytes_to_json(&value)),
        "/kv/set" => {
            let value = match target.get("bytes") {
                Some(_) => pattern(target.number("bytes", 0) as usize),
                None => target.get_or("value", "").as_bytes().to_vec(),
            };
            store.set(key, value).await?;
            json!(true)
        }
        "/kv/set-many" => {
            for number in 0..target.number("count", 1) {
                store.set(format!("{key}{number}"), target.get_or("value", "")).await?;
            }
            json!(true)
        }
        "/kv/delete" => {
            store.delete(key).await?;
            json!(true)
        }
        "/kv/exists" => json!(store.exists(key).await?),
        "/kv/list" => {
            let mut keys = store.get_keys().await.collect().await?;
            keys.sort();
            json!(keys)
        }
        "/kv/increment" => {
            let text = store.get(key).await?.unwrap_or_default();
            let count = String::from_utf8_lossy(&text).parse().unwrap_or(0_u64) + 1;
            store.set(key, count.to_string()).await?;
            json!(count)
        }
        other => Json::String(format!("this guest has no {other}")),
    })
}

async fn sqlite(target: &Target) -> Result<Json, spin_sdk::sqlite::Error> {
    let connection = Connection::open(target.get_or("db", "default")).await?;
    let mut answer = Json::Null;
    for statement in target.all("sql") {
        let parameters: Vec<Value> = target.all("p").map(parameter).collect();
        let result = connection.execute(statement, parameters).await?;
        let columns = result.columns().to_vec();
        let rows: Vec<Json> = result
            .collect()
            .await?
            .iter()
            .map(|row| row.values.iter().map(value_to_json).collect::<Json>())
            .collect();
        answer = json!({
            "columns": columns,
            "rows": rows,
            "changes": connection.changes().await,
            "last_insert_rowid": connection.last_insert_rowid().await,
        });
    }
    Ok(answer)
}

/// The same over the functions that `spin:sqlite@3.0.0` has. The conversions are
/// there because the SDKs differ in whether these take borrowed arguments.
fn sqlite_blocking(target: &Target) -> Result<Json, spin_sdk::sqlite::Error> {
    let connection = BlockingConnection::open(target.get_or("db", "default").into())?;
    let mut answer = Json::Null;
    for statement in target.all("sql") {
        let parameters: Vec<Value> = target.all("p").map(parameter).collect();
        let result = connection.execute(statement.into(), parameters.as_slice().into())?;
        let rows: Vec<Json> =
            result.rows.iter().map(|row| row.values.iter().map(value_to_json).collect::<Json>()).collect();
        answer = json!({
            "columns": result.columns,
            "rows": rows,
            "changes": connection.changes(),
            "last_insert_rowid": connection.last_insert_rowid(),
        });
    }
    Ok(answer)
}

/// `i:5`, `r:1.5`, `t:text`, `b:00ff`, `n`.
fn parameter(text: &str) -> Value {
    match text.split_once(':') {
        Some(("i", number)) => Value::Integer(number.parse().unwrap_or_default()),
        Some(("r", number)) => Value::Real(number.parse().unwrap_or_default()),
        Some(("b", digits)) => Value::Blob(from_hex(digits)),
        Some(("t", text)) => Value::Text(text.to_owned()),
        _ => Value::Null,
    }
}

fn value_to_json(value: &Value) -> Json {
    match value {
        Value::Integer(number) => json!(number),
        Value::Real(number) => json!(number),
        Value::Text(text) => json!(text),
        Value::Blob(bytes) => json!({ "blob": to_hex(bytes) }),
        Value::Null => Json::Null,
    }
}

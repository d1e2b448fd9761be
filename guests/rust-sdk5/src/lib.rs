//! Probe guest for WASI 0.2 and the Spin interfaces of `fermyon:spin@2.0.0`.
//!
//! `guests/README.md` lists what each path does.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use probe::{Reply, Target, bytes_to_json, from_hex, pattern, to_hex};
use serde_json::{Value as Json, json};
use spin_sdk::http::{
    self, ErrorCode, Fields, IncomingRequest, IncomingResponse, Method, OutgoingBody, OutgoingResponse,
    RequestBuilder, ResponseOutparam,
};
use spin_sdk::key_value::Store;
use spin_sdk::wit::wasi::http0_2_0::types::IncomingBody;
use spin_sdk::{http_component, sqlite, sqlite3, variables};

#[http_component]
async fn handle(request: IncomingRequest, out: ResponseOutparam) {
    let headers = request.headers().entries();
    let path_info = headers
        .iter()
        .find(|(name, _)| name == "spin-path-info")
        .and_then(|(_, value)| std::str::from_utf8(value).ok());
    let target = Target::new(&request.uri(), path_info);
    let reply = match target.path.as_str() {
        "/echo" => return echo(request, &headers, out).await,
        "/trailers" => return trailers(out),
        "/stream" => return stream(&target, out).await,
        "/trap-mid-body" => return trap_mid_body(out).await,
        "/proxy" => return proxy(&target, request, out).await,
        "/echo-request" => Reply::json(&json!({
            "method": request.method().to_string(),
            "uri": request.uri(),
            "headers": headers_to_json(&headers),
        })),
        "/discard" => Reply::outcome(discard(request).await),
        "/request-trailers" => Reply::outcome(request_trailers(request)),
        "/sleep" => {
            std::thread::sleep(Duration::from_millis(target.number("ms", 100)));
            Reply::text(200, "awake\n")
        }
        "/fetch" | "/chain" => Reply::outcome(fetch(&target).await),
        "/variable" => Reply::outcome(variables::get(target.get_or("name", "")).map(Json::from)),
        path if path.starts_with("/kv/") => Reply::outcome(key_value(&target)),
        "/sqlite" => Reply::outcome(sqlite_2(&target)),
        "/sqlite3" => Reply::outcome(sqlite_3(&target)),
        path => probe::serve(&target).unwrap_or_else(|| Reply::not_found(path)),
    };
    let fields: Vec<_> = reply.headers.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
    let response = OutgoingResponse::new(Fields::from_list(&fields).expect("valid header fields"));
    response.set_status_code(reply.status).expect("a valid status");
    if let Err(error) = out.set_with_body(response, reply.body).await {
        eprintln!("the answer was not taken: {error}");
    }
}

fn headers_to_json(headers: &[(String, Vec<u8>)]) -> Json {
    headers.iter().map(|(name, value)| json!([name, bytes_to_json(value)])).collect()
}

/// Sends the request's body back, piece by piece, as it arrives.
async fn echo(request: IncomingRequest, headers: &[(String, Vec<u8>)], out: ResponseOutparam) {
    let content_type: Vec<_> = headers.iter().filter(|(name, _)| name == "content-type").cloned().collect();
    let response = OutgoingResponse::new(Fields::from_list(&content_type).expect("valid header fields"));
    let mut body = response.take_body();
    out.set(response);
    let mut incoming = std::pin::pin!(request.into_body_stream());
    while let Some(Ok(piece)) = incoming.next().await {
        if body.send(piece).await.is_err() {
            println!("echo: the reader went away");
            return;
        }
    }
}

/// Reads the whole body and answers how long it was.
async fn discard(request: IncomingRequest) -> Result<Json, String> {
    let mut incoming = std::pin::pin!(request.into_body_stream());
    let mut length = 0;
    while let Some(piece) = incoming.next().await {
        length += piece.map_err(|error| error.to_debug_string())?.len();
    }
    Ok(json!(length))
}

fn request_trailers(request: IncomingRequest) -> Result<Json, String> {
    let body = request.consume().map_err(|()| "the body was taken".to_owned())?;
    let stream = body.stream().map_err(|()| "the stream was taken".to_owned())?;
    let mut bytes = Vec::new();
    while let Ok(piece) = stream.blocking_read(64 * 1024) {
        bytes.extend(piece);
    }
    drop(stream);
    let trailers = IncomingBody::finish(body);
    trailers.subscribe().block();
    let trailers = match trailers.get() {
        Some(Ok(Ok(Some(fields)))) => headers_to_json(&fields.entries()),
        Some(Ok(Ok(None))) => Json::Null,
        other => return Err(format!("{other:?}")),
    };
    Ok(json!({ "trailers": trailers, "body": bytes_to_json(&bytes) }))
}

fn trailers(out: ResponseOutparam) {
    let announced = [("trailer".to_owned(), b"x-checksum".to_vec())];
    let response = OutgoingResponse::new(Fields::from_list(&announced).expect("valid header fields"));
    let body = response.body().expect("the body, once");
    out.set(response);
    {
        let stream = body.write().expect("the stream, once");
        stream.blocking_write_and_flush(b"a body before its trailers\n").expect("a reader");
    }
    let fields = [("x-checksum".to_owned(), b"abc123".to_vec())];
    OutgoingBody::finish(body, Some(Fields::from_list(&fields).expect("valid trailers")))
        .expect("trailers are taken");
}

/// `chunks` pieces of `bytes` bytes with a pause of `delay_ms` before each but
/// the first; says on stdout when it is done or when nobody listens any more.
async fn stream(target: &Target, out: ResponseOutparam) {
    let chunks = target.number("chunks", 3);
    let delay_ms = target.number("delay_ms", 0);
    let length = target.get("bytes").map(|_| target.number("bytes", 0) as usize);
    let response = OutgoingResponse::new(Fields::new());
    let mut body = response.take_body();
    out.set(response);
    for number in 0..chunks {
        if number > 0 && delay_ms > 0 {
            std::thread::sleep(Duration::from_millis(delay_ms));
        }
        let data = length.map_or_else(|| format!("chunk {number}\n").into_bytes(), pattern);
        if body.send(data).await.is_err() {
            println!("stream: the reader went away at chunk {number}");
            return;
        }
    }
    println!("stream: sent all {chunks} chunks");
}

async fn trap_mid_body(out: ResponseOutparam) {
    let response = OutgoingResponse::new(Fields::new());
    let mut body = response.take_body();
    out.set(response);
    let _ = body.send(b"the first half\n".to_vec()).await;
    std::thread::sleep(Duration::from_millis(50));
    probe::deliberate_trap();
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "PATCH" => Method::Patch,
        "HEAD" => Method::Head,
        "OPTIONS" => Method::Options,
        other => Method::Other(other.to_owned()),
    }
}

async fn fetch(target: &Target) -> Result<Json, String> {
    let mut builder = RequestBuilder::new(method(target.get_or("method", "GET")), target.get_or("url", ""));
    builder.headers(target.headers());
    if let Some(body) = target.get("body") {
        builder.body(body.to_owned());
    }
    let response: IncomingResponse = http::send(builder.build()).await.map_err(|error| match error {
        http::SendError::Http(code) => format!("{code:?}"),
        other => other.to_string(),
    })?;
    let status = response.status();
    let headers = headers_to_json(&response.headers().entries());
    let body = response.into_body().await.map_err(|error| error.to_debug_string())?;
    Ok(json!({ "status": status, "headers": headers, "body": bytes_to_json(&body) }))
}

/// Sends the incoming body on and the answer's body back, both as they come.
async fn proxy(target: &Target, request: IncomingRequest, out: ResponseOutparam) {
    match send_on(target, request).await {
        Ok(incoming) => {
            let response = OutgoingResponse::new(Fields::new());
            response.set_status_code(incoming.status()).expect("a valid status");
            let mut body = response.take_body();
            out.set(response);
            let mut pieces = std::pin::pin!(incoming.take_body_stream());
            while let Some(Ok(piece)) = pieces.next().await {
                if body.send(piece).await.is_err() {
                    return;
                }
            }
        }
        Err(error) => {
            let body = json!({ "error": format!("{error:?}") }).to_string();
            let _ = out.set_with_body(OutgoingResponse::new(Fields::new()), body.into_bytes()).await;
        }
    }
}

async fn send_on(target: &Target, request: IncomingRequest) -> Result<IncomingResponse, ErrorCode> {
    let outgoing = http::OutgoingRequest::new(Fields::new());
    let url = target.get_or("url", "");
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let scheme = if scheme == "https" { http::Scheme::Https } else { http::Scheme::Http };
    let invalid = |()| ErrorCode::HttpRequestUriInvalid;
    outgoing.set_method(&request.method()).map_err(invalid)?;
    outgoing.set_scheme(Some(&scheme)).map_err(invalid)?;
    outgoing.set_authority(Some(authority)).map_err(invalid)?;
    outgoing.set_path_with_query(Some(path)).map_err(invalid)?;
    let mut body = outgoing.take_body();
    let answer = http::send::<_, IncomingResponse>(outgoing);
    let copy = async {
        let mut pieces = std::pin::pin!(request.into_body_stream());
        while let Some(Ok(piece)) = pieces.next().await {
            if body.send(piece).await.is_err() {
                break;
            }
        }
        drop(body);
    };
    let (answer, ()) = futures::future::join(answer, copy).await;
    answer.map_err(|error| match error {
        http::SendError::Http(code) => code,
        other => ErrorCode::InternalError(Some(other.to_string())),
    })
}

fn key_value(target: &Target) -> Result<Json, spin_sdk::key_value::Error> {
    let label = target.get_or("store", "default");
    let key = target.get_or("key", "key");
    if target.path == "/kv/open-many" {
        let mut stores = Vec::new();
        for _ in 0..target.number("count", 1) {
            stores.push(Store::open(label)?);
        }
        return Ok(json!(stores.len()));
    }
    let store = Store::open(label)?;
    Ok(match target.path.as_str() {
        "/kv/open" => json!(true),
        "/kv/get" => store.get(key)?.map_or(Json::Null, |value| bytes_to_json(&value)),
        "/kv/set" => {
            let value = match target.get("bytes") {
                Some(_) => pattern(target.number("bytes", 0) as usize),
                None => target.get_or("value", "").as_bytes().to_vec(),
            };
            store.set(key, &value)?;
            json!(true)
        }
        "/kv/set-many" => {
            for number in 0..target.number("count", 1) {
                store.set(&format!("{key}{number}"), target.get_or("value", "").as_bytes())?;
            }
            json!(true)
        }
        "/kv/delete" => {
            store.delete(key)?;
            json!(true)
        }
        "/kv/exists" => json!(store.exists(key)?),
        "/kv/list" => {
            let mut keys = store.get_keys()?;
            keys.sort();
            json!(keys)
        }
        "/kv/increment" => {
            let text = store.get(key)?.unwrap_or_default();
            let count = String::from_utf8_lossy(&text).parse().unwrap_or(0_u64) + 1;
            store.set(key, count.to_string().as_bytes())?;
            json!(count)
        }
        other => Json::String(format!("this guest has no {other}")),
    })
}

/// The two SQLite interfaces have the same types under different names.
macro_rules! sqlite_guest {
    ($function:ident, $module:ident, $extra:expr) => {
        fn $function(target: &Target) -> Result<Json, $module::Error> {
            let connection = $module::Connection::open(target.get_or("db", "default"))?;
            let mut answer = Json::Null;
            for statement in target.all("sql") {
                let parameters: Vec<_> = target
                    .all("p")
                    .map(|text| match text.split_once(':') {
                        Some(("i", number)) => $module::Value::Integer(number.parse().unwrap_or_default()),
                        Some(("r", number)) => $module::Value::Real(number.parse().unwrap_or_default()),
                        Some(("b", digits)) => $module::Value::Blob(from_hex(digits)),
                        Some(("t", text)) => $module::Value::Text(text.to_owned()),
                        _ => $module::Value::Null,
                    })
                    .collect();
                let result = connection.execute(statement, &parameters)?;
                let rows: Vec<Json> = result
                    .rows
                    .iter()
                    .map(|row| {
                        row.values
                            .iter()
                            .map(|value| match value {
                                $module::Value::Integer(number) => json!(number),
                                $module::Value::Real(number) => json!(number),
                                $module::Value::Text(text) => json!(text),
                                $module::Value::Blob(bytes) => json!({ "blob": to_hex(bytes) }),
                                $module::Value::Null => Json::Null,
                            })
                            .collect::<Json>()
                    })
                    .collect();
                answer = json!({ "columns": result.columns, "rows": rows });
                let extra: fn(&$module::Connection, &mut Json) = $extra;
                extra(&connection, &mut answer);
            }
            Ok(answer)
        }
    };
}

sqlite_guest!(sqlite_2, sqlite, |_, _| {});
sqlite_guest!(sqlite_3, sqlite3, |connection, answer| {
    answer["changes"] = json!(connection.changes());
    answer["last_insert_rowid"] = json!(connection.last_insert_rowid());
});

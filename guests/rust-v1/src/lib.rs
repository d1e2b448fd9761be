//! Probe guest for the unversioned `fermyon:spin` interfaces of Spin 1.
//!
//! Built twice: as a component (WASI 0.2) and as a core module (WASI preview 1
//! with the component's type in a custom section), which the host has to turn
//! into a component itself. `guests/README.md` lists what each path does.

mod bindings {
    wit_bindgen::generate!({ world: "guest", path: "wit" });
}

use bindings::exports::fermyon::spin::inbound_http::{Guest, Request, Response};
use bindings::fermyon::spin::http_types::{Method, Request as OutboundRequest};
use bindings::fermyon::spin::{config, http, key_value, sqlite};
use probe::{Reply, Target, bytes_to_json, to_hex};
use serde_json::{Value as Json, json};

struct Probe;

bindings::export!(Probe with_types_in bindings);

impl Guest for Probe {
    fn handle_request(request: Request) -> Response {
        let path_info = request.headers.iter().find(|(name, _)| name == "spin-path-info");
        let target = Target::new(&request.uri, path_info.map(|(_, value)| value.as_str()));
        let reply = match target.path.as_str() {
            "/echo" => Reply::text(200, request.body.unwrap_or_default()),
            "/echo-request" => Reply::json(&json!({
                "method": format!("{:?}", request.method),
                "uri": request.uri,
                "headers": request.headers,
                "params": request.params,
                "body": request.body.as_deref().map(bytes_to_json),
            })),
            "/no-body" => return Response { status: 204, headers: None, body: None },
            "/fetch" | "/chain" => Reply::outcome(fetch(&target)),
            "/variable" => Reply::outcome(config::get_config(target.get_or("name", "")).map(Json::from)),
            path if path.starts_with("/kv/") => Reply::outcome(key_values(&target)),
            "/sqlite" => Reply::outcome(query(&target)),
            path => probe::serve(&target).unwrap_or_else(|| Reply::not_found(path)),
        };
        Response { status: reply.status, headers: Some(reply.headers), body: Some(reply.body) }
    }
}

fn fetch(target: &Target) -> Result<Json, http::HttpError> {
    let response = http::send_request(&OutboundRequest {
        method: if target.get("body").is_some() { Method::Post } else { Method::Get },
        uri: target.get_or("url", "").to_owned(),
        headers: target.headers(),
        params: Vec::new(),
        body: target.get("body").map(|text| text.as_bytes().to_vec()),
    })?;
    Ok(json!({
        "status": response.status,
        "headers": response.headers,
        "body": response.body.as_deref().map(bytes_to_json),
    }))
}

fn key_values(target: &Target) -> Result<Json, key_value::Error> {
    let store = key_value::open(target.get_or("store", "default"))?;
    let key = target.get_or("key", "key");
    let answer = match target.path.as_str() {
        "/kv/open" => json!(true),
        "/kv/get" => bytes_to_json(&key_value::get(store, key)?),
        "/kv/set" => {
            key_value::set(store, key, target.get_or("value", "").as_bytes())?;
            json!(true)
        }
        "/kv/delete" => {
            key_value::delete(store, key)?;
            json!(true)
        }
        "/kv/exists" => json!(key_value::exists(store, key)?),
        "/kv/list" => {
            let mut keys = key_value::get_keys(store)?;
            keys.sort();
            json!(keys)
        }
        "/kv/use-closed" => {
            key_value::close(store);
            bytes_to_json(&key_value::get(store, key)?)
        }
        other => Json::String(format!("this guest has no {other}")),
    };
    key_value::close(store);
    Ok(answer)
}

fn query(target: &Target) -> Result<Json, sqlite::Error> {
    let connection = sqlite::open(target.get_or("db", "default"))?;
    let mut answer = Json::Null;
    for statement in target.all("sql") {
        let result = sqlite::execute(connection, statement, &[])?;
        let rows: Vec<Json> = result
            .rows
            .iter()
            .map(|row| {
                row.values
                    .iter()
                    .map(|value| match value {
                        sqlite::Value::Integer(number) => json!(number),
                        sqlite::Value::Real(number) => json!(number),
                        sqlite::Value::Text(text) => json!(text),
                        sqlite::Value::Blob(bytes) => json!({ "blob": to_hex(bytes) }),
                        sqlite::Value::Null => Json::Null,
                    })
                    .collect::<Json>()
            })
            .collect();
        answer = json!({ "columns": result.columns, "rows": rows });
    }
    sqlite::close(connection);
    Ok(answer)
}

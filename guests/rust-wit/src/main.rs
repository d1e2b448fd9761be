//! Probe guest for `wasi:keyvalue` and `wasi:config`, which no Spin SDK wraps.
//!
//! `guests/README.md` lists what each path does.

mod bindings {
    wit_bindgen::generate!({ world: "imports", path: "wit", generate_all });
}

use bindings::wasi::config::store as config;
use bindings::wasi::keyvalue::atomics::{self, Cas, CasError};
use bindings::wasi::keyvalue::{batch, store};
use probe::{Reply, Target, bytes_to_json};
use serde_json::{Map, Value as Json, json};
use wstd::http::{Body, Error, Request, Response};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path_info = request.headers().get("spin-path-info").and_then(|value| value.to_str().ok());
    let target = Target::new(&request.uri().to_string(), path_info);
    let reply = match target.path.as_str() {
        "/config/get" => Reply::outcome(config::get(target.get_or("key", "")).map(Json::from)),
        "/config/all" => Reply::outcome(config::get_all().map(|pairs| {
            pairs.into_iter().map(|(key, value)| (key, Json::String(value))).collect::<Map<_, _>>().into()
        })),
        path if path.starts_with("/kv/") => Reply::outcome(key_value(&target)),
        path => probe::serve(&target).unwrap_or_else(|| Reply::not_found(path)),
    };
    let mut builder = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        builder = builder.header(name, value);
    }
    Ok(builder.body(reply.body.into())?)
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

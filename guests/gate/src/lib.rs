//! Middleware of WASI 0.3.
//!
//! Requests are handed on, and their responses get one more header `x-gate: passed`.
//! Those for `/gate` are answered here: the header `x-color` has the environment
//! variable `COLOR`, or `none`; `x-count` how often this instance was asked.

mod bindings {
    wit_bindgen::generate!({ world: "gate", path: "wit", generate_all });
}

use std::{
    env,
    sync::atomic::{AtomicU32, Ordering},
};

use bindings::{
    exports::wasi::http::handler::Guest,
    wasi::http::{
        handler,
        types::{ErrorCode, Fields, Request, Response},
    },
    wit_future,
};

static COUNT: AtomicU32 = AtomicU32::new(0);

struct Gate;

bindings::export!(Gate with_types_in bindings);

impl Guest for Gate {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        if path.starts_with("/gate") {
            return Ok(own_answer());
        }
        let response = handler::handle(request).await?;
        let status = response.get_status_code();
        let headers = response.get_headers().clone();
        add(&headers, "x-gate", "passed");
        let (received, result) = wit_future::new(|| Ok(()));
        let (body, trailers) = Response::consume_body(response, result);
        drop(received);
        let (response, _sent) = Response::new(headers, Some(body), trailers);
        let _ = response.set_status_code(status);
        Ok(response)
    }
}

fn own_answer() -> Response {
    let headers = Fields::new();
    let color = env::var("COLOR").unwrap_or_else(|_| "none".to_owned());
    add(&headers, "x-color", &color);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    add(&headers, "x-count", &count.to_string());
    let (ended, trailers) = wit_future::new(|| Ok(None));
    drop(ended);
    let (response, _sent) = Response::new(headers, None, trailers);
    response
}

fn add(headers: &Fields, name: &str, value: &str) {
    headers.append(name, value.as_bytes()).expect("a header may be added");
}

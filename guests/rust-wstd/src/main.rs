//! A plain `wasi:http` component: no Spin SDK, no Spin interface.

use wstd::http::{Body, Error, Request, Response};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    match request.uri().path() {
        "/echo" => Ok(Response::new(request.into_body())),
        path => {
            let text = format!("Hello from plain wasi:http, you asked for {path}\n");
            Ok(Response::builder().header("content-type", "text/plain").body(text.into())?)
        }
    }
}

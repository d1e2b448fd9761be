use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::http_service;

#[http_service]
async fn hello(request: Request) -> impl IntoResponse {
    match request.uri().path().trim_matches('/') {
        "" => "Hello, world!\n".to_owned(),
        name => format!("Hello, {name}!\n"),
    }
}

use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::http_service;

/// Answers every request that the manifest's route leads here.
#[http_service]
async fn handle(_request: Request) -> impl IntoResponse {
    "Hello from {{project-name}}!\n".to_owned()
}

use wstd::http::{Body, Error, Request, Response};

/// Answers every request that the manifest's route leads here.
#[wstd::http_server]
async fn main(_request: Request<Body>) -> Result<Response<Body>, Error> {
    Ok(Response::new("Hello from {{project-name}}!\n".to_owned().into()))
}

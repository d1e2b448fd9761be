//! `wisp api`: a request to the server's API.

use std::io::{Read as _, Write as _};

use clap::Args;
use futures::StreamExt as _;
use reqwest::Method;

use crate::{
    client::{Client, ServerFlags, block_on},
    error::Error,
    output,
};

/// Send a request to the server's API.
///
/// The answer is printed as it is. `docs/openapi.json` describes the API; a server gives its
/// own at `/api/v1/openapi.json`.
#[derive(Args)]
pub(crate) struct Api {
    /// GET, POST, PUT, PATCH or DELETE.
    method: String,

    /// The path below `/api/v1`, such as `teams?limit=10`.
    path: String,

    /// The body; `-` is standard input.
    #[arg(long, short, value_name = "JSON")]
    data: Option<String>,

    /// Carry it out once, however often it is sent with this key.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    #[command(flatten)]
    server: ServerFlags,
}

impl Api {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let wrong = |flag, value: &str, message: String, hint| Error::Flag {
            flag,
            value: value.to_owned(),
            message,
            hint,
        };
        let method = Method::from_bytes(self.method.to_uppercase().as_bytes()).map_err(|error| {
            wrong("METHOD", &self.method, error.to_string(), "use a method such as `GET`")
        })?;
        let path = self.path.trim_start_matches('/');
        let path = path.strip_prefix("api/v1/").unwrap_or(path);
        let url = client
            .server()
            .join(&format!("api/v1/{path}"))
            .map_err(|error| wrong("PATH", &self.path, error.to_string(), "use a path such as `teams`"))?;
        // Nothing but the server gets the token.
        if url.origin() != client.server().origin() {
            return Err(wrong(
                "PATH",
                &self.path,
                "it leads elsewhere".to_owned(),
                "use a path such as `teams`",
            ));
        }
        let body = match self.data.as_deref() {
            Some("-") => {
                let mut text = Vec::new();
                std::io::stdin()
                    .read_to_end(&mut text)
                    .map_err(|cause| Error::Read { path: "/dev/stdin".into(), cause })?;
                Some(text)
            }
            data => data.map(|data| data.as_bytes().to_vec()),
        };
        block_on(async {
            let mut request = client.request(method, url);
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body);
            }
            if let Some(key) = &self.idempotency_key {
                request = request.header("idempotency-key", key);
            }
            let mut data = client.finish(request).await?.bytes_stream();
            let mut last = None;
            while let Some(piece) = data.next().await {
                let piece = piece.map_err(|error| Error::Answer(error.to_string()))?;
                last = piece.last().copied().or(last);
                // A reader that has gone away is no error of the command.
                drop(std::io::stdout().lock().write_all(&piece));
            }
            if last.is_some_and(|last| last != b'\n') {
                output::data("\n");
            }
            Ok(())
        })
    }
}

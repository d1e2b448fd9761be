//! Sends what the exporters wrote: their HTTP client.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;

use super::batch::Health;
use crate::Error;

/// The longest answer that is read. A collector has little to say.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// How long connecting may take: less than the usual limit for all of an export.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The HTTP client of one signal's exporter.
pub(super) struct Client {
    client: reqwest::Client,
    /// Exporters run on threads that are not Tokio's.
    handle: Handle,
    timeout: Duration,
    health: Arc<Health>,
}

impl Client {
    pub(super) fn new(handle: Handle, timeout: Duration, health: Arc<Health>) -> Result<Self, Error> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("wisp/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Exporter { message: error.to_string() })?;
        Ok(Self { client, handle, timeout, health })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl HttpClient for Client {
    fn send_bytes<'client, 'sent>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sent>>
    where
        'client: 'sent,
        Self: 'sent,
    {
        let client = self.client.clone();
        let timeout = self.timeout;
        let sending = self.handle.spawn(async move {
            match tokio::time::timeout(timeout, send(&client, request)).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {timeout:?}").into()),
            }
        });
        Box::pin(async move {
            let result = match sending.await {
                Ok(result) => result,
                Err(error) => Err(error.into()),
            };
            match &result {
                Ok(response) if response.status().is_success() => {}
                Ok(response) => self.health.set_cause(format!("the collector answers {}", response.status())),
                Err(error) => self.health.set_cause(with_causes(&**error)),
            }
            result
        })
    }
}

async fn send(client: &reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let request = reqwest::Request::try_from(request.map(reqwest::Body::from))?;
    let mut response = client.execute(request).await.map_err(reqwest::Error::without_url)?;
    let mut answer = Response::new(());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer has more than {MAX_ANSWER_BYTES} bytes").into());
        }
        body.extend_from_slice(&piece);
    }
    Ok(answer.map(|()| body.freeze()))
}

/// An error with what led to it: the first level of a failed connection says nothing.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

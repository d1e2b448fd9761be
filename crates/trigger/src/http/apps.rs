//! Which app answers a request.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use tokio_util::task::TaskTracker;

use super::{HttpApp, admission::RETRY_AFTER_S, body::ResponseBody};

/// The apps behind a server.
pub trait Apps: Send + Sync + 'static {
    /// The app that answers a request with this URI and these headers. Called once a
    /// request, by every worker: it neither blocks nor waits for another app. The
    /// request keeps what it found until its end.
    fn find(&self, uri: &Uri, headers: &HeaderMap) -> Found;

    /// Drops instances that were idle for too long; tells how soon that is worth doing
    /// again.
    fn sweep(&self) -> Duration;

    /// The guests that go on after their response, to wait for at the end.
    fn tracker(&self) -> &TaskTracker;
}

/// What was found for a request.
pub enum Found {
    /// This app answers.
    App(Arc<HttpApp>),
    /// An app may answer, but it has to be loaded.
    Wait(BoxFuture<'static, Result<Arc<HttpApp>, Refusal>>),
    /// No app answers.
    Refused(Refusal),
}

/// Why no app answers a request. The client learns the code and the message, which
/// are not to tell more than clients may know.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status of the response.
    pub status: StatusCode,
    /// A stable code.
    pub code: &'static str,
    /// What is wrong, in a sentence.
    pub message: &'static str,
}

/// How often idle instances are looked for when no app has some.
pub const IDLE_SWEEP: Duration = Duration::from_secs(1);

/// One app for every host.
pub struct OneApp {
    app: RwLock<Arc<HttpApp>>,
    tracker: TaskTracker,
}

impl OneApp {
    /// `tracker` is the one that the app was built with.
    pub fn new(app: Arc<HttpApp>, tracker: TaskTracker) -> Self {
        Self { app: RwLock::new(app), tracker }
    }

    /// Puts another version in the app's place, for requests that come from now on;
    /// returns the one before.
    pub fn replace(&self, app: Arc<HttpApp>) -> Arc<HttpApp> {
        std::mem::replace(&mut *self.app.write().unwrap_or_else(PoisonError::into_inner), app)
    }

    fn app(&self) -> Arc<HttpApp> {
        self.app.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Apps for OneApp {
    fn find(&self, _uri: &Uri, _headers: &HeaderMap) -> Found {
        Found::App(self.app())
    }

    fn sweep(&self) -> Duration {
        self.app().sweep().unwrap_or(IDLE_SWEEP)
    }

    fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }
}

impl Refusal {
    pub(super) fn response(&self) -> http::Response<ResponseBody> {
        let mut response =
            http::Response::new(ResponseBody::full(format!("{}: {}\n", self.code, self.message)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}

/// The host name of a request, without the port, as the client wrote it.
pub fn host_name<'request>(uri: &'request Uri, headers: &'request HeaderMap) -> Option<&'request [u8]> {
    let authority = match uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => headers.get(header::HOST)?.as_bytes(),
    };
    // An address in brackets has colons of its own.
    let end = match authority.first() {
        Some(b'[') => authority.iter().position(|byte| *byte == b']').map_or(authority.len(), |end| end + 1),
        _ => authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len()),
    };
    Some(&authority[..end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn the_host_is_the_authority_or_the_header_without_a_port() {
        let found = |uri: &str, host: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert(header::HOST, HeaderValue::from_static(host));
            }
            let uri: Uri = uri.parse().unwrap();
            host_name(&uri, &headers).map(|host| String::from_utf8_lossy(host).into_owned())
        };
        assert_eq!(found("/a", Some("A.example:8080")).as_deref(), Some("A.example"));
        assert_eq!(found("http://b.example:1/a", None).as_deref(), Some("b.example"));
        assert_eq!(found("/", Some("[::1]:3000")).as_deref(), Some("[::1]"));
        assert_eq!(found("/", Some("")).as_deref(), Some(""));
        assert_eq!(found("/", None), None);
    }
}

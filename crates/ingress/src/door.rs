//! Answers that are given before an app is looked for.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::{Certificates, HostName};

/// Which requests by `http` are led to `https`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The port of `https`, as clients reach it.
    pub https_port: u16,
    /// Also hosts below `localhost`, for which clients have to trust the local authority.
    pub includes_localhost: bool,
}

/// Answers challenges of an authority, and leads clients to `https`.
#[derive(Clone, Debug)]
pub struct Door {
    certificates: Certificates,
    redirect: Option<Redirect>,
}

impl Door {
    /// A door that leads to `https` if asked to.
    pub fn new(certificates: Certificates, redirect: Option<Redirect>) -> Self {
        Self { certificates, redirect }
    }

    /// The answer to a request, if it is not for an app. `host` is without a port, as the
    /// client wrote it; `path` goes on with the query.
    pub fn answer(&self, is_tls: bool, host: Option<&[u8]>, path: &str) -> Option<Response<Bytes>> {
        if is_tls {
            return None;
        }
        if let Some(answer) = self.certificates.challenge_response(path) {
            let mut response = Response::new(answer.into());
            let octets = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, octets);
            return Some(response);
        }
        self.redirect.as_ref()?.answer(host?, path)
    }
}

impl Redirect {
    fn answer(&self, host: &[u8], path: &str) -> Option<Response<Bytes>> {
        // What is no name of a host has no certificate.
        let host = HostName::new(std::str::from_utf8(host).ok()?).ok()?;
        if !self.includes_localhost && host.is_within("localhost") {
            return None;
        }
        let path = if path.starts_with('/') { path } else { "/" };
        let location = match self.https_port {
            443 => format!("https://{host}{path}"),
            port => format!("https://{host}:{port}{path}"),
        };
        let mut response = Response::new(Bytes::new());
        // Unlike 301, it keeps the method and the body.
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(header::LOCATION, HeaderValue::try_from(location).ok()?);
        Some(response)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn clients_are_led_to_https_except_on_this_machine() {
        let door = |https_port, includes_localhost| {
            let certificates = Certificates::builder().build().unwrap();
            Door::new(certificates, Some(Redirect { https_port, includes_localhost }))
        };
        let location = |door: &Door, host: &str, path: &str| {
            let response = door.answer(false, Some(host.as_bytes()), path)?;
            assert_eq!(response.status(), StatusCode::PERMANENT_REDIRECT);
            Some(response.headers()[header::LOCATION].to_str().unwrap().to_owned())
        };
        let usual = door(443, false);
        assert_eq!(location(&usual, "Shop.example", "/a?b=c").as_deref(), Some("https://shop.example/a?b=c"));
        assert_eq!(location(&usual, "shop.example", "*").as_deref(), Some("https://shop.example/"));
        assert_eq!(location(&usual, "a.localhost", "/"), None);
        assert_eq!(location(&usual, "127.0.0.1", "/"), None);
        assert!(usual.answer(true, Some(b"shop.example"), "/").is_none());
        assert!(usual.answer(false, None, "/").is_none());
        let other = door(8443, true);
        assert_eq!(location(&other, "a.localhost", "/").as_deref(), Some("https://a.localhost:8443/"));
        let none = Door::new(Certificates::builder().build().unwrap(), None);
        assert_eq!(location(&none, "shop.example", "/"), None);
    }
}

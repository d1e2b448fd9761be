//! What clients get: the specification's errors and headers.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::json;

use super::access::Denial;
use crate::{Digest, Error};

/// Which content a response is about.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Which manifest a pushed one is about.
pub(super) const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// How a list was filtered.
pub(super) const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The name of an upload, for clients that cannot read it from its address.
pub(super) const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// That this is a registry, for old clients.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What is asked for by whoever sends no credentials.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"wisp\", charset=\"UTF-8\"");

/// The specification's codes, as far as they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    /// Not among the specification's: the fault is ours.
    Unknown,
}

/// A refusal.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: Code,
    pub(super) message: String,
    /// What the error is about.
    pub(super) detail: serde_json::Value,
    pub(super) headers: Vec<(HeaderName, String)>,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown | Self::BlobUploadUnknown | Self::ManifestUnknown | Self::NameUnknown => {
                StatusCode::NOT_FOUND
            }
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            status: code.status(),
            code,
            message: message.into(),
            detail: serde_json::Value::Null,
            headers: Vec::new(),
        }
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn with_detail(self, detail: serde_json::Value) -> Self {
        Self { detail, ..self }
    }

    pub(super) fn repository_unknown() -> Self {
        Self::new(Code::NameUnknown, "there is no such repository")
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Unknown => Self::new(Code::Unauthorized, "sign in with a name and a token"),
            Denial::Hidden => Self::repository_unknown(),
            Denial::Forbidden => Self::new(Code::Denied, "you may not do this here"),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Damaged { expected, found } => {
                Self::new(Code::DigestInvalid, "the content is not what its digest says")
                    .with_detail(json!({ "expected": expected, "found": found }))
            }
            Error::TooMuch { what, limit } => {
                Self::new(Code::SizeInvalid, format!("{what} is more than the limit of {limit}"))
                    .with_status(StatusCode::PAYLOAD_TOO_LARGE)
            }
            Error::NoBlob { digest } => {
                // Collected between the question and the answer, or lost.
                tracing::warn!(%digest, "the registry has no content for a row that was just there");
                Self::new(Code::BlobUnknown, "there is no such blob")
            }
            Error::Ended => Self::new(Code::BlobUploadInvalid, "the request ended before its content did"),
            error => {
                tracing::error!(code = error.code(), "the registry: {error}");
                Self::new(Code::Unknown, "the registry has a problem; its operator can read which")
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code.as_str(), "message": self.message });
        if !self.detail.is_null() {
            error["detail"] = self.detail;
        }
        let mut response = json_response(self.status, "application/json", &json!({ "errors": [error] }));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        for (name, value) in self.headers {
            put(&mut response, name, &value);
        }
        response
    }
}

/// A response without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

/// A response that says where something is now.
pub(super) fn created(location: &str, digest: &Digest) -> Response {
    let mut response = empty(StatusCode::CREATED);
    put(&mut response, http::header::LOCATION, location);
    put(&mut response, CONTENT_DIGEST, &digest.to_string());
    response
}

pub(super) fn json_response(
    status: StatusCode,
    media_type: &'static str,
    body: &serde_json::Value,
) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

/// Adds a header. What cannot be one comes from names that were checked, so it is none.
pub(super) fn put(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

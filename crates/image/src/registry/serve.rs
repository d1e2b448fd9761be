//! The distribution API: from requests to what they ask for.

use std::collections::BTreeMap;
use std::ops::Range;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LINK, LOCATION, RANGE};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::Registry;
use super::access::{Action, Credentials};
use super::answer::{
    CONTENT_DIGEST, Code, FILTERS_APPLIED, Refusal, SUBJECT, UPLOAD_ID, created, empty, json_response, put,
};
use super::index::{Deleted, ManifestRow, PutManifest};
use super::names::{Reference, Subject, is_repository};
use crate::Digest;
use crate::format::{IMAGE_INDEX, MAX_MANIFEST_BYTES};

/// Tags on a page, and how many come where no number is asked for.
const MAX_TAGS_COUNT: usize = 1_000;

/// Referrers on a page: with their annotations they stay far below the largest
/// manifest, which is what clients expect such a list to be.
const MAX_REFERRERS_COUNT: usize = 200;

/// What a manifest may name: the most that is known is some hundred layers.
const MAX_CONTENTS_COUNT: usize = 10_000;

/// Annotations of a manifest that are kept to be listed. Larger ones are only in the
/// manifest itself.
const MAX_ANNOTATIONS_BYTES: usize = 16 * 1024;

/// The name of a registry's API in addresses.
const BASE: &str = "/v2";

type Answer = Result<Response, Refusal>;

pub(super) fn router(registry: Registry) -> Router {
    Router::new()
        .route(BASE, any(handle))
        .route("/v2/", any(handle))
        .route("/v2/{*rest}", any(handle))
        .with_state(registry)
}

async fn handle(State(registry): State<Registry>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let response = match answer(&registry, parts, body).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    if !is_head {
        return response;
    }
    let (parts, _) = response.into_parts();
    Response::from_parts(parts, Body::empty())
}

async fn answer(registry: &Registry, parts: Parts, body: Body) -> Answer {
    let credentials = Credentials::of(&parts.headers);
    let path = parts.uri.path().strip_prefix(BASE).unwrap_or_default();
    let Some(subject) = Subject::of(path) else {
        registry.0.access.authenticate(&credentials).await?;
        return Err(Refusal::new(Code::Unsupported, "this is no address of the distribution API")
            .with_status(StatusCode::NOT_FOUND));
    };
    let Some(repository) = subject.repository() else {
        registry.0.access.authenticate(&credentials).await?;
        return match parts.method {
            Method::GET | Method::HEAD => Ok(json_response(StatusCode::OK, "application/json", &json!({}))),
            _ => Err(not_allowed()),
        };
    };
    if !is_repository(repository) {
        registry.0.access.authenticate(&credentials).await?;
        return Err(Refusal::new(Code::NameInvalid, "this is no name of a repository"));
    }
    let is_upload = matches!(subject, Subject::Uploads { .. } | Subject::Upload { .. });
    let action = match parts.method {
        // To look at an upload, or to end one, is part of pushing.
        _ if is_upload => Action::Push,
        Method::GET | Method::HEAD => Action::Pull,
        Method::DELETE => Action::Delete,
        _ => Action::Push,
    };
    registry.0.access.authorize(&credentials, repository, action).await?;
    let asked = Asked { registry, repository, parts: &parts, credentials: &credentials };
    match (&subject, &parts.method) {
        (Subject::Manifest { reference, .. }, &Method::GET | &Method::HEAD) => {
            asked.get_manifest(reference).await
        }
        (Subject::Manifest { reference, .. }, &Method::PUT) => asked.put_manifest(reference, body).await,
        (Subject::Manifest { reference, .. }, &Method::DELETE) => asked.delete_manifest(reference).await,
        (Subject::Blob { digest, .. }, &Method::GET | &Method::HEAD) => asked.get_blob(digest).await,
        (Subject::Blob { digest, .. }, &Method::DELETE) => asked.delete_blob(digest).await,
        (Subject::Uploads { .. }, &Method::POST) => asked.begin_upload(body).await,
        (Subject::Upload { id, .. }, &Method::GET) => asked.upload_status(id).await,
        (Subject::Upload { id, .. }, &Method::PATCH) => asked.append(id, body).await,
        (Subject::Upload { id, .. }, &Method::PUT) => asked.finish(id, body).await,
        (Subject::Upload { id, .. }, &Method::DELETE) => asked.cancel(id).await,
        (Subject::Tags { .. }, &Method::GET | &Method::HEAD) => asked.tags().await,
        (Subject::Referrers { digest, .. }, &Method::GET | &Method::HEAD) => asked.referrers(digest).await,
        _ => Err(not_allowed()),
    }
}

/// A request that may be answered.
struct Asked<'a> {
    registry: &'a Registry,
    repository: &'a str,
    parts: &'a Parts,
    credentials: &'a Credentials,
}

impl Asked<'_> {
    async fn get_manifest(&self, reference: &str) -> Answer {
        let unknown = || Refusal::new(Code::ManifestUnknown, "there is no such manifest");
        let reference = Reference::parse(reference).ok_or_else(unknown)?;
        let found = self.registry.manifest(self.repository, &reference).await?.ok_or_else(unknown)?;
        let size = found.bytes.len().to_string();
        let mut response = Response::new(Body::from(found.bytes));
        put(&mut response, CONTENT_TYPE, &found.media_type);
        put(&mut response, CONTENT_LENGTH, &size);
        put(&mut response, CONTENT_DIGEST, &found.digest.to_string());
        put(&mut response, ETAG, &format!("\"{}\"", found.digest));
        Ok(response)
    }

    async fn put_manifest(&self, reference: &str, body: Body) -> Answer {
        let invalid = |reason: &str| Refusal::new(Code::ManifestInvalid, reason);
        let reference = Reference::parse(reference)
            .ok_or_else(|| invalid("a manifest is named by a tag or by a SHA-256 digest"))?;
        let bytes = axum::body::to_bytes(body, MAX_MANIFEST_BYTES).await.map_err(|_| {
            Refusal::new(Code::SizeInvalid, format!("a manifest has at most {MAX_MANIFEST_BYTES} bytes"))
                .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        })?;
        let digest = Digest::of(&bytes);
        if let Reference::Digest(expected) = &reference {
            crate::blobs::verify(expected, digest)?;
        }
        let media_type = header(&self.parts.headers, CONTENT_TYPE);
        let row = read_manifest(digest, media_type, &bytes).map_err(invalid)?;
        let subject = row.subject;
        let tag = match reference {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) => None,
        };
        let outcome = {
            let _publishing = self.registry.0.publishing.read().await;
            self.registry.0.blobs.put_bytes(bytes).await?;
            let repository = self.repository.to_owned();
            self.registry.ask(move |index| index.put_manifest(&repository, &row, tag.as_deref())).await?
        };
        if let PutManifest::Missing(missing) = outcome {
            return Err(Refusal::new(
                Code::ManifestBlobUnknown,
                "the repository lacks what the manifest names",
            )
            .with_detail(json!({ "digests": missing })));
        }
        let mut response = created(&self.address(&format!("manifests/{digest}")), &digest);
        if let Some(subject) = subject {
            put(&mut response, SUBJECT, &subject.to_string());
        }
        Ok(response)
    }

    async fn delete_manifest(&self, reference: &str) -> Answer {
        let unknown = || Refusal::new(Code::ManifestUnknown, "there is no such manifest");
        let reference = Reference::parse(reference).ok_or_else(unknown)?;
        let repository = self.repository.to_owned();
        let deleted = self.registry.ask(move |index| match &reference {
            Reference::Tag(tag) => index.delete_tag(&repository, tag),
            Reference::Digest(digest) => index.delete_manifest(&repository, digest),
        });
        match deleted.await? {
            Deleted::Done => Ok(empty(StatusCode::ACCEPTED)),
            Deleted::NotThere | Deleted::InUse => Err(unknown()),
        }
    }

    async fn get_blob(&self, digest: &str) -> Answer {
        let digest = parse_digest(digest)?;
        let repository = self.repository.to_owned();
        let size = self.registry.ask(move |index| index.blob(&repository, &digest)).await?;
        let size = size.ok_or_else(blob_unknown)?;
        let range = match header(&self.parts.headers, RANGE).map(|text| parse_range(text, size)) {
            // What is not understood is ignored, as HTTP says.
            None | Some(Asks::All) => None,
            Some(Asks::Part(range)) => Some(range),
            Some(Asks::Nothing) => {
                return Err(Refusal::new(Code::SizeInvalid, "the blob has no such range")
                    .with_status(StatusCode::RANGE_NOT_SATISFIABLE)
                    .with_header(CONTENT_RANGE, format!("bytes */{size}")));
            }
        };
        let length = range.as_ref().map_or(size, |range| range.end - range.start);
        let body = match self.parts.method {
            Method::HEAD => Body::empty(),
            _ => Body::from_stream(self.registry.0.blobs.get(&digest, range.clone()).await?),
        };
        let mut response = Response::new(body);
        if let Some(range) = &range {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let shown = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            put(&mut response, CONTENT_RANGE, &shown);
        }
        put(&mut response, CONTENT_TYPE, "application/octet-stream");
        put(&mut response, CONTENT_LENGTH, &length.to_string());
        put(&mut response, CONTENT_DIGEST, &digest.to_string());
        put(&mut response, ETAG, &format!("\"{digest}\""));
        put(&mut response, ACCEPT_RANGES, "bytes");
        Ok(response)
    }

    async fn delete_blob(&self, digest: &str) -> Answer {
        let digest = parse_digest(digest)?;
        let repository = self.repository.to_owned();
        match self.registry.ask(move |index| index.delete_blob(&repository, &digest)).await? {
            Deleted::Done => Ok(empty(StatusCode::ACCEPTED)),
            Deleted::NotThere => Err(blob_unknown()),
            Deleted::InUse => {
                Err(Refusal::new(Code::Unsupported, "a manifest names this blob; delete it first"))
            }
        }
    }

    async fn begin_upload(&self, body: Body) -> Answer {
        let query = self.query();
        if let Some(digest) = query.get("mount") {
            let digest = parse_digest(digest)?;
            if let Some(from) = query.get("from")
                && self.mount(from, digest).await?
            {
                return Ok(created(&self.address(&format!("blobs/{digest}")), &digest));
            }
        } else if let Some(digest) = query.get("digest") {
            // All of it in one request.
            let digest = parse_digest(digest)?;
            self.registry.store(self.repository, &digest, super::uploads::body_stream(body)).await?;
            return Ok(created(&self.address(&format!("blobs/{digest}")), &digest));
        }
        let id = self.registry.begin_upload(self.repository).await?;
        Ok(self.upload_response(StatusCode::ACCEPTED, &id, 0))
    }

    /// Takes a blob over from another repository, if who asks may read it there.
    async fn mount(&self, from: &str, digest: Digest) -> Result<bool, Refusal> {
        if !is_repository(from) {
            return Ok(false);
        }
        let may_read = self.registry.0.access.authorize(self.credentials, from, Action::Pull).await;
        // Whether it is missing or hidden makes no difference to be seen.
        let (from, repository) = (from.to_owned(), self.repository.to_owned());
        Ok(self
            .registry
            .ask(move |index| {
                let found = index.blob(&from, &digest)?;
                let found = found.filter(|_| may_read.is_ok());
                if let Some(size) = found {
                    index.put_blob(&repository, &digest, size)?;
                }
                Ok(found.is_some())
            })
            .await?)
    }

    async fn upload_status(&self, id: &str) -> Answer {
        let (_busy, size) = self.registry.enter_upload(self.repository, id).await?;
        Ok(self.upload_response(StatusCode::NO_CONTENT, id, size))
    }

    async fn append(&self, id: &str, body: Body) -> Answer {
        let (busy, size) = self.registry.enter_upload(self.repository, id).await?;
        let expected = self.expected_size(id, size)?;
        let size = self.registry.append(&busy, size, expected, body).await?;
        Ok(self.upload_response(StatusCode::ACCEPTED, id, size))
    }

    async fn finish(&self, id: &str, body: Body) -> Answer {
        let query = self.query();
        let digest = query
            .get("digest")
            .ok_or_else(|| Refusal::new(Code::DigestInvalid, "say what was uploaded: `?digest=sha256:…`"))?;
        let digest = parse_digest(digest)?;
        let (busy, size) = self.registry.enter_upload(self.repository, id).await?;
        let expected = self.expected_size(id, size)?;
        let rest = match size {
            // Nothing came before: the body is the blob.
            0 if expected.is_none() => Some(body),
            _ => {
                self.registry.append(&busy, size, expected, body).await?;
                None
            }
        };
        self.registry.finish_upload(self.repository, id, &digest, rest).await?;
        Ok(created(&self.address(&format!("blobs/{digest}")), &digest))
    }

    async fn cancel(&self, id: &str) -> Answer {
        let (_busy, _) = self.registry.enter_upload(self.repository, id).await?;
        self.registry.end_upload(id).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// How much a request brings, if it says so. It must go on where the upload ended.
    fn expected_size(&self, id: &str, size: u64) -> Result<Option<u64>, Refusal> {
        let Some(range) = header(&self.parts.headers, CONTENT_RANGE) else { return Ok(None) };
        let range = range.strip_prefix("bytes ").unwrap_or(range);
        let range = range.split_once('/').map_or(range, |(range, _)| range);
        let parsed = range.split_once('-').and_then(|(start, end)| {
            let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
            let length = end.checked_sub(start)?.checked_add(1)?;
            Some((start, length))
        });
        let Some((start, length)) = parsed else {
            return Err(Refusal::new(Code::BlobUploadInvalid, "the range is like `0-1023`"));
        };
        if start != size {
            return Err(Refusal::new(Code::BlobUploadInvalid, format!("the upload goes on at {size}"))
                .with_status(StatusCode::RANGE_NOT_SATISFIABLE)
                .with_header(RANGE, shown_range(size))
                .with_header(LOCATION, self.address(&format!("blobs/uploads/{id}"))));
        }
        let declared: Option<u64> =
            header(&self.parts.headers, CONTENT_LENGTH).and_then(|length| length.parse().ok());
        if declared.is_some_and(|declared| declared != length) {
            return Err(Refusal::new(Code::SizeInvalid, "range and length of the content differ"));
        }
        Ok(Some(length))
    }

    fn upload_response(&self, status: StatusCode, id: &str, size: u64) -> Response {
        let mut response = empty(status);
        put(&mut response, LOCATION, &self.address(&format!("blobs/uploads/{id}")));
        put(&mut response, RANGE, &shown_range(size));
        put(&mut response, UPLOAD_ID, id);
        response
    }

    async fn tags(&self) -> Answer {
        let query = self.query();
        let limit = match query.get("n") {
            None => MAX_TAGS_COUNT,
            Some(text) => text
                .parse::<usize>()
                .map_err(|_| {
                    Refusal::new(Code::Unsupported, "`n` is a number").with_status(StatusCode::BAD_REQUEST)
                })?
                .min(MAX_TAGS_COUNT),
        };
        let last = query.get("last").cloned().unwrap_or_default();
        let repository = self.repository.to_owned();
        // One more than asked for, to know whether there are more.
        let found = self.registry.ask(move |index| index.tags(&repository, &last, limit + 1)).await?;
        let mut tags = found.ok_or_else(Refusal::repository_unknown)?;
        let has_more = tags.len() > limit;
        tags.truncate(limit);
        let body = json!({ "name": self.repository, "tags": tags });
        let mut response = json_response(StatusCode::OK, "application/json", &body);
        if let (true, Some(last)) = (has_more, tags.last()) {
            let next = self.address(&format!("tags/list?n={limit}&last={last}"));
            put(&mut response, LINK, &format!("<{next}>; rel=\"next\""));
        }
        Ok(response)
    }

    async fn referrers(&self, subject: &str) -> Answer {
        let digest = parse_digest(subject)?;
        let query = self.query();
        // Types have no spaces, but many have a plus, which not every client escapes.
        let artifact_type = query.get("artifactType").map(|found| found.replace(' ', "+"));
        let last = query.get("last").cloned().unwrap_or_default();
        let (repository, filter) = (self.repository.to_owned(), artifact_type.clone());
        let mut found = self
            .registry
            .ask(move |index| {
                index.referrers(&repository, &digest, filter.as_deref(), &last, MAX_REFERRERS_COUNT + 1)
            })
            .await?;
        let has_more = found.len() > MAX_REFERRERS_COUNT;
        found.truncate(MAX_REFERRERS_COUNT);
        let body = json!({ "schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": found });
        let mut response = json_response(StatusCode::OK, IMAGE_INDEX, &body);
        if artifact_type.is_some() {
            put(&mut response, FILTERS_APPLIED, "artifactType");
        }
        if let (true, Some(last)) = (has_more, found.last()) {
            let mut next = url::form_urlencoded::Serializer::new(String::new());
            if let Some(artifact_type) = &artifact_type {
                next.append_pair("artifactType", artifact_type);
            }
            next.append_pair("last", &last.digest.to_string());
            let next = self.address(&format!("referrers/{digest}?{}", next.finish()));
            put(&mut response, LINK, &format!("<{next}>; rel=\"next\""));
        }
        Ok(response)
    }

    /// An address in this repository.
    fn address(&self, rest: &str) -> String {
        format!("{BASE}/{}/{rest}", self.repository)
    }

    fn query(&self) -> BTreeMap<String, String> {
        let query = self.parts.uri.query().unwrap_or_default();
        url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }
}

/// What a manifest says, as far as a registry looks at it. Manifests of kinds that are
/// not known are taken too, if they are JSON.
fn read_manifest(
    digest: Digest,
    media_type: Option<&str>,
    bytes: &[u8],
) -> Result<ManifestRow, &'static str> {
    let manifest: serde_json::Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|_| "a manifest is a JSON object")?;
    let text = |key: &str| manifest.get(key).and_then(Value::as_str);
    let stated = text("mediaType");
    let media_type = media_type.map(|media_type| media_type.split(';').next().unwrap_or_default().trim());
    let media_type = match (media_type.filter(|found| !found.is_empty()), stated) {
        (Some(sent), Some(stated)) if sent != stated => {
            return Err("`Content-Type` and `mediaType` differ");
        }
        (Some(media_type), _) | (None, Some(media_type)) => media_type,
        (None, None) => return Err("say of which type it is in `Content-Type`"),
    };
    let config = manifest.get("config");
    let list = |key: &str| match manifest.get(key) {
        None | Some(Value::Null) => Ok(&[] as &[Value]),
        Some(Value::Array(items)) => Ok(items.as_slice()),
        Some(_) => Err("`layers` and `manifests` are lists"),
    };
    let mut contents = Vec::new();
    for descriptor in config.into_iter().chain(list("layers")?).chain(list("manifests")?) {
        let digest = descriptor.get("digest").and_then(Value::as_str).and_then(Digest::parse);
        let digest = digest.ok_or("each descriptor has a SHA-256 digest")?;
        // Layers that may not be distributed are fetched from elsewhere.
        let is_elsewhere =
            descriptor.get("urls").and_then(Value::as_array).is_some_and(|urls| !urls.is_empty());
        if !is_elsewhere {
            contents.push(digest);
        }
    }
    if contents.len() > MAX_CONTENTS_COUNT {
        return Err("it names too much");
    }
    let subject = match manifest.get("subject") {
        None | Some(Value::Null) => None,
        Some(subject) => {
            let digest = subject.get("digest").and_then(Value::as_str).and_then(Digest::parse);
            Some(digest.ok_or("`subject` has a SHA-256 digest")?)
        }
    };
    let config_type = config.and_then(|config| config.get("mediaType")).and_then(Value::as_str);
    let annotations = manifest.get("annotations").filter(|annotations| !annotations.is_null());
    let annotations: BTreeMap<String, String> = match annotations {
        Some(annotations) => {
            serde_json::from_value(annotations.clone()).map_err(|_| "`annotations` are strings")?
        }
        None => BTreeMap::new(),
    };
    let annotations_bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    Ok(ManifestRow {
        digest,
        size: bytes.len() as u64,
        media_type: media_type.to_owned(),
        artifact_type: text("artifactType").or(config_type).map(str::to_owned),
        subject,
        annotations: if annotations_bytes <= MAX_ANNOTATIONS_BYTES { annotations } else { BTreeMap::new() },
        contents,
    })
}

/// What `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asks {
    All,
    Part(Range<u64>),
    /// Something that is not there.
    Nothing,
}

fn parse_range(text: &str, size: u64) -> Asks {
    let Some(range) = text.strip_prefix("bytes=") else { return Asks::All };
    let Some((start, end)) = range.split_once('-') else { return Asks::All };
    let (start, end) = (start.trim(), end.trim());
    let range = match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => start..end.saturating_add(1).min(size),
        (Ok(start), Err(_)) if end.is_empty() => start..size,
        (Err(_), Ok(last)) if start.is_empty() => size.saturating_sub(last)..size,
        _ => return Asks::All,
    };
    if range.start < range.end { Asks::Part(range) } else { Asks::Nothing }
}

/// How much there is, as the specification writes it.
fn shown_range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    Digest::parse(text)
        .ok_or_else(|| Refusal::new(Code::DigestInvalid, "a digest is `sha256:` and 64 hexadecimal digits"))
}

fn blob_unknown() -> Refusal {
    Refusal::new(Code::BlobUnknown, "there is no such blob")
}

fn not_allowed() -> Refusal {
    Refusal::new(Code::Unsupported, "this cannot be done here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        assert_eq!(parse_range("bytes=0-0", 10), Asks::Part(0..1));
        assert_eq!(parse_range("bytes=2-", 10), Asks::Part(2..10));
        assert_eq!(parse_range("bytes=-3", 10), Asks::Part(7..10));
        assert_eq!(parse_range("bytes=-30", 10), Asks::Part(0..10));
        assert_eq!(parse_range("bytes=5-99", 10), Asks::Part(5..10));
        assert_eq!(parse_range("bytes=10-", 10), Asks::Nothing);
        assert_eq!(parse_range("bytes=-0", 10), Asks::Nothing);
        assert_eq!(parse_range("bytes=0-1,3-4", 10), Asks::All);
        assert_eq!(parse_range("bytes=3-2", 10), Asks::All);
        assert_eq!(parse_range("lines=1-2", 10), Asks::All);
    }
}

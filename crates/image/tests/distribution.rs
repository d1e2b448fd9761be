//! The requirements of the OCI distribution specification (1.1), one by one, against
//! the router. Each test is named after what it requires.

#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use wisp_image::format::{IMAGE_CONFIG, IMAGE_INDEX, IMAGE_MANIFEST};
use wisp_image::registry::{
    Access, Action, Credentials, Denial, GarbageOptions, Registry, RegistryLimits, RegistrySettings,
};
use wisp_image::{Blobs, Digest};

/// Everybody may do everything where the first part of a repository is their name.
/// `open/…` may be read, and not written to, by everybody who is somebody.
struct Teams(Mutex<HashMap<String, String>>);

impl Access for Teams {
    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<(), Denial>> {
        let team = self.team(credentials).map(drop);
        Box::pin(async move { team.ok_or(Denial::Unknown) })
    }

    fn authorize<'a>(
        &'a self,
        credentials: &'a Credentials,
        repository: &'a str,
        action: Action,
    ) -> BoxFuture<'a, Result<(), Denial>> {
        let answer = match self.team(credentials) {
            None => Err(Denial::Unknown),
            Some(team) if repository.split('/').next() == Some(&team) => Ok(()),
            Some(_) if repository.starts_with("open/") => match action {
                Action::Pull => Ok(()),
                Action::Push | Action::Delete => Err(Denial::Forbidden),
            },
            Some(_) => Err(Denial::Hidden),
        };
        Box::pin(async move { answer })
    }
}

impl Teams {
    fn team(&self, credentials: &Credentials) -> Option<String> {
        let token = match credentials {
            Credentials::Anonymous => return None,
            Credentials::Basic { password, .. } => password,
            Credentials::Bearer(token) => token,
        };
        self.0.lock().unwrap().get(token).cloned()
    }
}

/// A registry, and who asks it.
struct Box_ {
    folder: tempfile::TempDir,
    registry: Registry,
    router: Router,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no `{name}` in {:?}", self.headers))
            .to_str()
            .unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.json()["errors"][0]["code"], code);
        assert_eq!(self.header("content-type"), "application/json");
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

fn open(folder: &std::path::Path, limits: RegistryLimits) -> Registry {
    let teams = [("token-a", "a"), ("token-b", "b"), ("token-open", "open")];
    let teams = teams.iter().map(|(token, team)| ((*token).to_owned(), (*team).to_owned())).collect();
    let settings = RegistrySettings {
        blobs: Blobs::open(&folder.join("blobs")).unwrap(),
        database: folder.join("registry.db"),
        uploads: folder.join("uploads"),
        limits,
    };
    Registry::open(settings, Arc::new(Teams(Mutex::new(teams)))).unwrap()
}

impl Box_ {
    fn new() -> Self {
        Self::with(RegistryLimits::default())
    }

    fn with(limits: RegistryLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(folder.path(), limits);
        Self { router: registry.router(), registry, folder }
    }

    /// The same data, another process.
    fn reopened(self) -> Self {
        let registry = open(self.folder.path(), RegistryLimits::default());
        Self { router: registry.router(), registry, folder: self.folder }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn ask_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_vec())).unwrap()).await
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.ask_as("token-a", method, path, headers, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"").await
    }

    /// Pushes a blob in one request.
    async fn push(&self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        self.ask("POST", &path, &[], content).await.is(201);
        digest
    }

    async fn begin(&self, repository: &str) -> String {
        let answer = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"").await.is(202);
        answer.header("location").to_owned()
    }

    async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> Answer {
        let media_type = manifest["mediaType"].as_str().unwrap_or(IMAGE_MANIFEST).to_owned();
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.ask("PUT", &path, &[("content-type", &media_type)], manifest.to_string().as_bytes()).await
    }

    /// An image of one layer.
    async fn image(&self, repository: &str, content: &[u8]) -> Value {
        let layer = self.push(repository, content).await;
        let config = self.push(repository, b"{}").await;
        json!({
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": { "mediaType": IMAGE_CONFIG, "digest": config, "size": 2 },
            "layers": [{ "mediaType": "text/plain", "digest": layer, "size": content.len() }],
        })
    }
}

fn digest_of(manifest: &Value) -> Digest {
    Digest::of(manifest.to_string().as_bytes())
}

// Determining support

#[tokio::test]
async fn the_base_says_that_this_is_a_registry() {
    let registry = Box_::new();
    for path in ["/v2/", "/v2"] {
        registry.get(path).await.is(200);
    }
}

#[tokio::test]
async fn who_is_nobody_is_asked_for_credentials() {
    let registry = Box_::new();
    let digest = registry.push("a/app", b"content").await;
    for path in ["/v2/", &format!("/v2/a/app/blobs/{digest}"), "/v2/none/app/tags/list", "/v2/_catalog"] {
        for token in ["", "token-of-nobody"] {
            let answer = registry.ask_as(token, "GET", path, &[], b"").await;
            answer.refused(401, "UNAUTHORIZED");
            assert!(answer.header("www-authenticate").starts_with("Basic realm="));
        }
    }
}

#[tokio::test]
async fn credentials_are_a_name_with_a_token_or_a_token() {
    let registry = Box_::new();
    for (header, status) in [
        ("Basic YW55Ym9keTp0b2tlbi1h", 200),
        ("basic YW55Ym9keTp0b2tlbi1h", 200),
        ("Bearer token-a", 200),
        ("Basic dG9rZW4tYQ==", 401),
        ("Basic ====", 401),
        ("Bearer", 401),
        ("Digest x", 401),
    ] {
        let answer = registry.ask_as("", "GET", "/v2/", &[("authorization", header)], b"").await;
        assert_eq!(answer.status.as_u16(), status, "{header}");
    }
}

// Pulling

#[tokio::test]
async fn manifests_are_pulled_by_tag_and_by_digest() {
    let registry = Box_::new();
    let manifest = registry.image("a/app", b"content").await;
    let digest = digest_of(&manifest);
    registry.put_manifest("a/app", "1.0", &manifest).await.is(201);
    for reference in ["1.0".to_owned(), digest.to_string()] {
        for method in ["GET", "HEAD"] {
            let answer =
                registry.ask(method, &format!("/v2/a/app/manifests/{reference}"), &[], b"").await.is(200);
            assert_eq!(answer.header("content-type"), IMAGE_MANIFEST);
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert_eq!(answer.header("content-length"), manifest.to_string().len().to_string());
            let expected = if method == "GET" { manifest.to_string() } else { String::new() };
            assert_eq!(answer.body, expected);
        }
    }
}

#[tokio::test]
async fn what_does_not_exist_is_404_with_its_code() {
    let registry = Box_::new();
    let digest = Digest::of(b"nothing");
    registry.get("/v2/a/app/manifests/1.0").await.refused(404, "MANIFEST_UNKNOWN");
    registry.get(&format!("/v2/a/app/manifests/{digest}")).await.refused(404, "MANIFEST_UNKNOWN");
    registry.get(&format!("/v2/a/app/blobs/{digest}")).await.refused(404, "BLOB_UNKNOWN");
    registry.get("/v2/a/app/tags/list").await.refused(404, "NAME_UNKNOWN");
    registry.ask("HEAD", &format!("/v2/a/app/blobs/{digest}"), &[], b"").await.is(404);
    registry
        .get("/v2/a/app/blobs/uploads/0123456789abcdef0123456789abcdef")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    registry.get("/v2/a/app/things/1").await.refused(404, "UNSUPPORTED");
}

#[tokio::test]
async fn names_and_digests_are_checked() {
    let registry = Box_::new();
    registry.get("/v2/A/app/tags/list").await.refused(400, "NAME_INVALID");
    registry.get("/v2/a/../b/tags/list").await.refused(400, "NAME_INVALID");
    registry.get("/v2/a/app/blobs/sha256:0").await.refused(400, "DIGEST_INVALID");
    registry.get("/v2/a/app/blobs/md5:00").await.refused(400, "DIGEST_INVALID");
    registry.get("/v2/a/app/referrers/1.0").await.refused(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn blobs_are_pulled_whole_and_in_ranges() {
    let registry = Box_::new();
    let digest = registry.push("a/app", b"0123456789").await;
    let path = format!("/v2/a/app/blobs/{digest}");
    for method in ["GET", "HEAD"] {
        let answer = registry.ask(method, &path, &[], b"").await.is(200);
        assert_eq!(answer.header("content-length"), "10");
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.body, if method == "GET" { "0123456789" } else { "" });
    }
    for (range, content, shown) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-1", "9", "bytes 9-9/10"),
    ] {
        let answer = registry.ask("GET", &path, &[("range", range)], b"").await.is(206);
        assert_eq!(answer.body, content);
        assert_eq!(answer.header("content-range"), shown);
    }
    let answer = registry.ask("GET", &path, &[("range", "bytes=10-")], b"").await;
    answer.refused(416, "SIZE_INVALID");
    assert_eq!(answer.header("content-range"), "bytes */10");
}

#[tokio::test]
async fn the_empty_blob_is_a_blob() {
    let registry = Box_::new();
    let digest = registry.push("a/app", b"").await;
    assert_eq!(registry.get(&format!("/v2/a/app/blobs/{digest}")).await.is(200).body, "");
    let location = registry.begin("a/app").await;
    registry.ask("PUT", &format!("{location}?digest={digest}"), &[], b"").await.is(201);
}

// Pushing

#[tokio::test]
async fn a_blob_is_pushed_by_post_then_put() {
    let registry = Box_::new();
    let location = registry.begin("a/app").await;
    let digest = Digest::of(b"content");
    let answer = registry.ask("PUT", &format!("{location}?digest={digest}"), &[], b"content").await.is(201);
    let blob = answer.header("location").to_owned();
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    assert_eq!(registry.get(&blob).await.is(200).body, "content");
    // The upload is over.
    registry
        .ask("PUT", &format!("{location}?digest={digest}"), &[], b"content")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_blob_is_pushed_by_a_single_post() {
    let registry = Box_::new();
    let digest = registry.push("a/app", b"content").await;
    assert_eq!(registry.get(&format!("/v2/a/app/blobs/{digest}")).await.body, "content");
    let path = format!("/v2/a/app/blobs/uploads/?digest={digest}");
    registry.ask("POST", &path, &[], b"something else").await.refused(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn a_digest_that_is_wrong_is_refused_and_nothing_is_kept() {
    let registry = Box_::new();
    let location = registry.begin("a/app").await;
    registry
        .ask("PUT", &format!("{location}?digest=sha256:0"), &[], b"content")
        .await
        .refused(400, "DIGEST_INVALID");
    registry.ask("PUT", &location, &[], b"content").await.refused(400, "DIGEST_INVALID");
    let wrong = Digest::of(b"something else");
    registry
        .ask("PUT", &format!("{location}?digest={wrong}"), &[], b"content")
        .await
        .refused(400, "DIGEST_INVALID");
    registry.get(&format!("/v2/a/app/blobs/{wrong}")).await.refused(404, "BLOB_UNKNOWN");
    registry.get(&format!("/v2/a/app/blobs/{}", Digest::of(b"content"))).await.refused(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn chunks_are_uploaded_in_order() {
    let registry = Box_::new();
    let location = registry.begin("a/app").await;
    let chunk = async |range: &str, content: &[u8]| {
        registry.ask("PATCH", &location, &[("content-range", range)], content).await
    };
    let answer = chunk("0-3", b"0123").await.is(202);
    assert_eq!(answer.header("range"), "0-3");
    assert_eq!(answer.header("location"), location);
    // Out of order: where it goes on is said.
    for range in ["0-3", "5-8", "3-6"] {
        let answer = chunk(range, b"0123").await;
        answer.refused(416, "BLOB_UPLOAD_INVALID");
        assert_eq!(answer.header("range"), "0-3");
    }
    // Not as long as its range.
    chunk("4-9", b"45").await.refused(400, "SIZE_INVALID");
    chunk("4-4", b"45").await.refused(400, "SIZE_INVALID");
    chunk("nonsense", b"45").await.refused(400, "BLOB_UPLOAD_INVALID");
    chunk("4-5", b"45").await.is(202);
    let answer = registry.get(&location).await.is(204);
    assert_eq!(answer.header("range"), "0-5");
    let digest = Digest::of(b"01234567");
    // The last chunk may come with the end.
    let path = format!("{location}?digest={digest}");
    registry.ask("PUT", &path, &[("content-range", "6-7")], b"67").await.is(201);
    assert_eq!(registry.get(&format!("/v2/a/app/blobs/{digest}")).await.body, "01234567");
}

#[tokio::test]
async fn a_stream_is_uploaded_without_a_range() {
    let registry = Box_::new();
    let location = registry.begin("a/app").await;
    for piece in ["one", "two"] {
        registry.ask("PATCH", &location, &[], piece.as_bytes()).await.is(202);
    }
    let digest = Digest::of(b"onetwo");
    registry.ask("PUT", &format!("{location}?digest={digest}"), &[], b"").await.is(201);
    assert_eq!(registry.get(&format!("/v2/a/app/blobs/{digest}")).await.body, "onetwo");
}

#[tokio::test]
async fn an_upload_goes_on_after_a_connection_broke_and_after_a_restart() {
    let registry = Box_::new();
    let location = registry.begin("a/app").await;
    let pieces = [Ok(Bytes::from("0123")), Err(std::io::Error::other("the cable"))];
    let request = Request::builder()
        .method("PATCH")
        .uri(&location)
        .header("authorization", "Bearer token-a")
        .header("content-range", "0-7")
        .body(Body::from_stream(stream::iter(pieces)))
        .unwrap();
    registry.send(request).await.refused(400, "BLOB_UPLOAD_INVALID");
    let registry = registry.reopened();
    assert_eq!(registry.get(&location).await.is(204).header("range"), "0-3");
    registry.ask("PATCH", &location, &[("content-range", "4-7")], b"4567").await.is(202);
    let digest = Digest::of(b"01234567");
    registry.ask("PUT", &format!("{location}?digest={digest}"), &[], b"").await.is(201);
}

#[tokio::test]
async fn an_upload_is_cancelled() {
    let registry = Box_::new();
    let location = registry.begin("a/app").await;
    registry.ask("PATCH", &location, &[], b"content").await.is(202);
    registry.ask("DELETE", &location, &[], b"").await.is(204);
    registry.get(&location).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(std::fs::read_dir(registry.folder.path().join("uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn uploads_are_bounded_in_number_and_size() {
    let limits =
        RegistryLimits { max_blob_bytes: 10, max_repository_uploads_count: 2, ..RegistryLimits::default() };
    let registry = Box_::with(limits);
    let location = registry.begin("a/app").await;
    registry.begin("a/app").await;
    registry.ask("POST", "/v2/a/app/blobs/uploads/", &[], b"").await.refused(429, "TOOMANYREQUESTS");
    registry.begin("a/other").await;
    registry.ask("PATCH", &location, &[], b"12345678").await.is(202);
    registry.ask("PATCH", &location, &[], b"90x").await.refused(413, "SIZE_INVALID");
    assert_eq!(registry.get(&location).await.header("range"), "0-7");
    let digest = Digest::of(b"12345678901");
    let path = format!("/v2/a/app/blobs/uploads/?digest={digest}");
    registry.ask("POST", &path, &[], b"12345678901").await.refused(413, "SIZE_INVALID");
}

#[tokio::test]
async fn uploads_of_killed_clients_make_room() {
    let limits = RegistryLimits {
        max_repository_uploads_count: 2,
        max_upload_idle: Duration::ZERO,
        ..RegistryLimits::default()
    };
    let registry = Box_::with(limits);
    let first = registry.begin("a/app").await;
    let other = registry.begin("a/other").await;
    for _ in 0..3 {
        registry.begin("a/app").await;
    }
    registry.get(&first).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    registry.get(&other).await.is(204);
}

#[tokio::test]
async fn a_blob_is_mounted_from_where_one_may_read() {
    let registry = Box_::new();
    let digest = registry.push("a/one", b"content").await;
    let mount = async |token: &str, from: &str, to: &str| {
        registry
            .ask_as(token, "POST", &format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}"), &[], b"")
            .await
    };
    let answer = mount("token-a", "a/one", "a/two").await.is(201);
    assert_eq!(answer.header("location"), format!("/v2/a/two/blobs/{digest}"));
    assert_eq!(registry.get(&format!("/v2/a/two/blobs/{digest}")).await.is(200).body, "content");
    // Where it is not, where nothing is, and where one may not look: an upload begins.
    for from in ["a/three", "A", "b/one"] {
        let answer = mount("token-a", from, "a/four").await.is(202);
        assert!(answer.header("location").starts_with("/v2/a/four/blobs/uploads/"));
    }
    mount("token-b", "a/one", "b/one").await.is(202);
    registry
        .ask_as("token-b", "GET", &format!("/v2/b/one/blobs/{digest}"), &[], b"")
        .await
        .refused(404, "BLOB_UNKNOWN");
    // Without `from`, an upload begins too.
    registry.ask("POST", &format!("/v2/a/five/blobs/uploads/?mount={digest}"), &[], b"").await.is(202);
}

#[tokio::test]
async fn what_another_team_has_looks_as_if_it_did_not_exist() {
    let registry = Box_::new();
    let manifest = registry.image("a/app", b"content").await;
    registry.put_manifest("a/app", "1.0", &manifest).await.is(201);
    let blob = Digest::of(b"content");
    for path in [
        "tags/list".to_owned(),
        "manifests/1.0".to_owned(),
        format!("blobs/{blob}"),
        format!("manifests/{}", digest_of(&manifest)),
        format!("referrers/{blob}"),
    ] {
        let theirs = registry.ask_as("token-b", "GET", &format!("/v2/a/app/{path}"), &[], b"").await;
        let nobodys = registry.ask_as("token-b", "GET", &format!("/v2/none/app/{path}"), &[], b"").await;
        theirs.refused(404, "NAME_UNKNOWN");
        assert_eq!(theirs.body, nobodys.body, "{path}");
        assert_eq!(theirs.headers, nobodys.headers, "{path}");
    }
    // Their own repository does not have it either, until they push it.
    registry.ask_as("token-b", "HEAD", &format!("/v2/b/app/blobs/{blob}"), &[], b"").await.is(404);
    let path = "/v2/b/app/manifests/1.0";
    let headers = [("content-type", IMAGE_MANIFEST)];
    let answer = registry.ask_as("token-b", "PUT", path, &headers, manifest.to_string().as_bytes()).await;
    answer.refused(400, "MANIFEST_BLOB_UNKNOWN");
    let path = format!("/v2/b/app/blobs/uploads/?digest={blob}");
    registry.ask_as("token-b", "POST", &path, &[], b"content").await.is(201);
    registry.ask_as("token-b", "GET", &format!("/v2/b/app/blobs/{blob}"), &[], b"").await.is(200);
}

#[tokio::test]
async fn who_may_only_read_is_denied_to_push_and_delete() {
    let registry = Box_::new();
    let path = format!("/v2/open/app/blobs/uploads/?digest={}", Digest::of(b"content"));
    registry.ask_as("token-open", "POST", &path, &[], b"content").await.is(201);
    registry.ask("POST", &path, &[], b"content").await.refused(403, "DENIED");
    let blob = format!("/v2/open/app/blobs/{}", Digest::of(b"content"));
    registry.ask("GET", &blob, &[], b"").await.is(200);
    registry.ask("DELETE", &blob, &[], b"").await.refused(403, "DENIED");
}

#[tokio::test]
async fn a_manifest_is_pushed_by_tag_or_digest() {
    let registry = Box_::new();
    let manifest = registry.image("a/app", b"content").await;
    let digest = digest_of(&manifest);
    for reference in [digest.to_string(), "1.0".to_owned(), "1.0".to_owned()] {
        let answer = registry.put_manifest("a/app", &reference, &manifest).await.is(201);
        assert_eq!(answer.header("location"), format!("/v2/a/app/manifests/{digest}"));
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    }
    let other = registry.image("a/app", b"other").await;
    registry.put_manifest("a/app", &digest.to_string(), &other).await.refused(400, "DIGEST_INVALID");
    // A tag moves.
    registry.put_manifest("a/app", "1.0", &other).await.is(201);
    let answer = registry.get("/v2/a/app/manifests/1.0").await;
    assert_eq!(answer.header("docker-content-digest"), digest_of(&other).to_string());
    registry.get(&format!("/v2/a/app/manifests/{digest}")).await.is(200);
}

#[tokio::test]
async fn a_manifest_names_only_what_is_there() {
    let registry = Box_::new();
    let mut manifest = registry.image("a/app", b"content").await;
    let missing = Digest::of(b"missing");
    manifest["layers"][0]["digest"] = json!(missing);
    let answer = registry.put_manifest("a/app", "1.0", &manifest).await;
    answer.refused(400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(answer.json()["errors"][0]["detail"]["digests"], json!([missing]));
    // What is fetched from elsewhere need not be there.
    manifest["layers"][0]["urls"] = json!(["https://elsewhere.example/layer"]);
    registry.put_manifest("a/app", "1.0", &manifest).await.is(201);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_INDEX,
        "manifests": [{ "mediaType": IMAGE_MANIFEST, "digest": digest_of(&manifest), "size": 2 }],
    });
    registry.put_manifest("a/app", "list", &index).await.is(201);
    registry.put_manifest("a/other", "list", &index).await.refused(400, "MANIFEST_BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_manifest_that_is_none_is_refused() {
    let registry = Box_::new();
    let put = async |media_type: &str, content: &[u8]| {
        registry.ask("PUT", "/v2/a/app/manifests/1.0", &[("content-type", media_type)], content).await
    };
    for content in [
        "",
        "nonsense",
        "[]",
        "{\"config\":{}}",
        "{\"layers\":{}}",
        "{\"layers\":[{\"digest\":\"sha256:0\"}]}",
        "{\"mediaType\":\"another/type\"}",
        "{\"subject\":{}}",
        "{\"annotations\":{\"a\":1}}",
    ] {
        put(IMAGE_MANIFEST, content.as_bytes()).await.refused(400, "MANIFEST_INVALID");
    }
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(4 * 1024 * 1024));
    put(IMAGE_MANIFEST, large.as_bytes()).await.refused(413, "SIZE_INVALID");
    registry.ask("PUT", "/v2/a/app/manifests/1.0", &[], b"{}").await.refused(400, "MANIFEST_INVALID");
    put(IMAGE_MANIFEST, b"{}").await.is(201);
    registry
        .ask("PUT", "/v2/a/app/manifests/-x", &[("content-type", "a/b")], b"{}")
        .await
        .refused(400, "MANIFEST_INVALID");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever is sent as a manifest is taken or refused as the client's fault.
    #[test]
    fn any_manifest_is_taken_or_refused(
        text in "\\PC{0,60}",
        key in "mediaType|config|layers|manifests|subject|annotations|artifactType|schemaVersion",
        value in "(null|true|1|-1|1e300|\"\"|\"x\"|\\[\\]|\\{\\}|\\[1\\]|\\[\\{\\}\\]|\\{\"digest\":\"sha256:00\"\\})",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let registry = Box_::new();
            for body in [text.clone(), format!("{{\"{key}\":{value}}}")] {
                let headers = [("content-type", IMAGE_MANIFEST)];
                let answer = registry.ask("PUT", "/v2/a/app/manifests/1.0", &headers, body.as_bytes()).await;
                assert!(matches!(answer.status.as_u16(), 201 | 400), "{body}: {}", answer.status);
            }
        });
    }
}

#[tokio::test]
async fn the_type_of_a_manifest_is_what_its_pusher_said() {
    let registry = Box_::new();
    let headers = [("content-type", "application/vnd.example+json; charset=utf-8")];
    registry.ask("PUT", "/v2/a/app/manifests/odd", &headers, b"{\"any\":1}").await.is(201);
    let answer = registry.get("/v2/a/app/manifests/odd").await;
    assert_eq!(answer.header("content-type"), "application/vnd.example+json");
}

// Content discovery

#[tokio::test]
async fn tags_are_listed_in_order_and_in_pages() {
    let registry = Box_::new();
    let manifest = registry.image("a/app", b"content").await;
    let list = async |query: &str| registry.get(&format!("/v2/a/app/tags/list{query}")).await.is(200);
    assert_eq!(list("").await.json(), json!({ "name": "a/app", "tags": [] }));
    for tag in ["b", "a", "c", "B"] {
        registry.put_manifest("a/app", tag, &manifest).await.is(201);
    }
    assert_eq!(list("").await.json()["tags"], json!(["B", "a", "b", "c"]));
    let answer = list("?n=2").await;
    assert_eq!(answer.json()["tags"], json!(["B", "a"]));
    assert_eq!(answer.header("link"), "</v2/a/app/tags/list?n=2&last=a>; rel=\"next\"");
    let answer = list("?n=2&last=a").await;
    assert_eq!(answer.json()["tags"], json!(["b", "c"]));
    assert!(!answer.headers.contains_key("link"));
    assert_eq!(list("?n=0").await.json()["tags"], json!([]));
    // `last` need not exist.
    assert_eq!(list("?last=bb").await.json()["tags"], json!(["c"]));
    registry.get("/v2/a/app/tags/list?n=x").await.refused(400, "UNSUPPORTED");
}

#[tokio::test]
async fn referrers_are_listed_and_filtered() {
    let registry = Box_::new();
    let subject = registry.image("a/app", b"content").await;
    let subject_digest = digest_of(&subject);
    let empty = registry.get(&format!("/v2/a/app/referrers/{subject_digest}")).await.is(200);
    assert_eq!(empty.header("content-type"), IMAGE_INDEX);
    assert_eq!(empty.json(), json!({ "schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [] }));
    // The subject need not be there yet.
    let mut signature = registry.image("a/app", b"signature").await;
    signature["subject"] = json!({ "mediaType": IMAGE_MANIFEST, "digest": subject_digest, "size": 1 });
    signature["artifactType"] = json!("application/vnd.example.signature");
    signature["annotations"] = json!({ "by": "somebody" });
    let mut plain = registry.image("a/app", b"plain").await;
    plain["subject"] = signature["subject"].clone();
    for manifest in [&signature, &plain] {
        let answer = registry.put_manifest("a/app", &digest_of(manifest).to_string(), manifest).await.is(201);
        assert_eq!(answer.header("oci-subject"), subject_digest.to_string());
    }
    let answer = registry.put_manifest("a/app", "1.0", &subject).await.is(201);
    assert!(!answer.headers.contains_key("oci-subject"));

    let all = registry.get(&format!("/v2/a/app/referrers/{subject_digest}")).await.is(200);
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    assert!(!all.headers.contains_key("oci-filters-applied"));
    let path = format!("/v2/a/app/referrers/{subject_digest}?artifactType=application/vnd.example.signature");
    let filtered = registry.get(&path).await.is(200);
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(
        filtered.json()["manifests"],
        json!([{
            "mediaType": IMAGE_MANIFEST,
            "digest": digest_of(&signature),
            "size": signature.to_string().len(),
            "artifactType": "application/vnd.example.signature",
            "annotations": { "by": "somebody" },
        }])
    );
    // Where no type is given, it is the configuration's.
    let path = format!("/v2/a/app/referrers/{subject_digest}?artifactType={IMAGE_CONFIG}");
    assert_eq!(registry.get(&path).await.json()["manifests"][0]["digest"], json!(digest_of(&plain)));
    // Another repository has its own.
    let other = registry.get(&format!("/v2/a/other/referrers/{subject_digest}")).await.is(200);
    assert_eq!(other.json()["manifests"], json!([]));
}

// Content management

#[tokio::test]
async fn tags_manifests_and_blobs_are_deleted() {
    let registry = Box_::new();
    let manifest = registry.image("a/app", b"content").await;
    let (digest, blob) = (digest_of(&manifest), Digest::of(b"content"));
    for tag in ["1.0", "latest"] {
        registry.put_manifest("a/app", tag, &manifest).await.is(201);
    }
    let delete = async |path: &str| registry.ask("DELETE", &format!("/v2/a/app/{path}"), &[], b"").await;
    delete("manifests/1.0").await.is(202);
    delete("manifests/1.0").await.refused(404, "MANIFEST_UNKNOWN");
    registry.get("/v2/a/app/manifests/latest").await.is(200);
    delete(&format!("blobs/{blob}")).await.refused(405, "UNSUPPORTED");
    delete(&format!("manifests/{digest}")).await.is(202);
    // Its tags went with it.
    registry.get("/v2/a/app/manifests/latest").await.refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(registry.get("/v2/a/app/tags/list").await.json()["tags"], json!([]));
    delete(&format!("blobs/{blob}")).await.is(202);
    delete(&format!("blobs/{blob}")).await.refused(404, "BLOB_UNKNOWN");
    registry.get(&format!("/v2/a/app/blobs/{blob}")).await.refused(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn what_cannot_be_done_is_405() {
    let registry = Box_::new();
    for (method, path) in [
        ("POST", "/v2/"),
        ("PUT", "/v2/a/app/tags/list"),
        ("PATCH", "/v2/a/app/manifests/1.0"),
        ("PUT", &format!("/v2/a/app/blobs/{}", Digest::of(b""))),
        ("GET", "/v2/a/app/blobs/uploads/"),
    ] {
        registry.ask(method, path, &[], b"").await.refused(405, "UNSUPPORTED");
    }
}

// Ordinary clients

/// As `docker push` does it: asks for each layer, mounts what it knows from elsewhere,
/// streams the rest in one PATCH and ends it with an empty PUT; then the manifest, and
/// looks at it.
#[tokio::test]
async fn docker_pushes_and_pulls() {
    let registry = Box_::new();
    registry.ask_as("", "GET", "/v2/", &[], b"").await.refused(401, "UNAUTHORIZED");
    registry.ask("GET", "/v2/", &[], b"").await.is(200);
    let base = registry.push("a/base", b"base layer").await;
    let mut layers = Vec::new();
    for content in [&b"base layer"[..], b"own layer", b"{}"] {
        let digest = Digest::of(content);
        registry.ask("HEAD", &format!("/v2/a/app/blobs/{digest}"), &[], b"").await.is(404);
        let from = if digest == base { "a/base" } else { "a/none" };
        let path = format!("/v2/a/app/blobs/uploads/?from={from}&mount={digest}");
        let answer = registry.ask("POST", &path, &[], b"").await;
        if digest == base {
            assert_eq!(answer.is(201).header("docker-content-digest"), digest.to_string());
        } else {
            let answer = answer.is(202);
            assert!(!answer.header("docker-upload-uuid").is_empty());
            let location = answer.header("location").to_owned();
            let answer = registry.ask("PATCH", &location, &[], content).await.is(202);
            let location = answer.header("location").to_owned();
            registry.ask("PUT", &format!("{location}?digest={digest}"), &[], b"").await.is(201);
        }
        registry.ask("HEAD", &format!("/v2/a/app/blobs/{digest}"), &[], b"").await.is(200);
        layers.push(json!({ "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "digest": digest, "size": content.len() }));
    }
    let config = layers.pop().unwrap();
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
    let answer = registry.put_manifest("a/app", "latest", &manifest).await.is(201);
    let digest = answer.header("docker-content-digest").to_owned();
    let answer =
        registry.ask("HEAD", "/v2/a/app/manifests/latest", &[("accept", media_type)], b"").await.is(200);
    assert_eq!(answer.header("docker-content-digest"), digest);
    let answer = registry.get(&format!("/v2/a/app/manifests/{digest}")).await.is(200);
    assert_eq!(answer.header("content-type"), media_type);
    for layer in answer.json()["layers"].as_array().unwrap() {
        let blob =
            registry.get(&format!("/v2/a/app/blobs/{}", layer["digest"].as_str().unwrap())).await.is(200);
        assert_eq!(Digest::of(&blob.body).to_string(), layer["digest"].as_str().unwrap());
    }
}

/// As `oras push` and `oras attach` do it: asks, then POST and PUT with all of it; an
/// artifact of its own type with the empty configuration; and another one about it.
#[tokio::test]
async fn oras_pushes_attaches_and_discovers() {
    let registry = Box_::new();
    let upload = async |content: &[u8]| {
        let digest = Digest::of(content);
        registry.ask("HEAD", &format!("/v2/a/app/blobs/{digest}"), &[], b"").await.is(404);
        let location = registry.begin("a/app").await;
        let headers = [("content-type", "application/octet-stream")];
        registry.ask("PUT", &format!("{location}?digest={digest}"), &headers, content).await.is(201);
        digest
    };
    let empty = upload(b"{}").await;
    let artifact = |layer: Digest, artifact_type: &str| {
        json!({
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": artifact_type,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 },
            "layers": [{ "mediaType": "text/plain", "digest": layer, "size": 1 }],
        })
    };
    let hello = artifact(upload(b"hello").await, "application/vnd.example.hello");
    registry.ask("HEAD", "/v2/a/app/manifests/v1", &[], b"").await.is(404);
    registry.put_manifest("a/app", "v1", &hello).await.is(201);
    let mut about = artifact(upload(b"checked").await, "application/vnd.example.check+json");
    about["subject"] = json!({ "mediaType": IMAGE_MANIFEST, "digest": digest_of(&hello), "size": 1 });
    let answer = registry.put_manifest("a/app", &digest_of(&about).to_string(), &about).await.is(201);
    assert_eq!(answer.header("oci-subject"), digest_of(&hello).to_string());
    // With its plus escaped and, as some write it, not.
    for artifact_type in ["application/vnd.example.check%2Bjson", "application/vnd.example.check+json"] {
        let path = format!("/v2/a/app/referrers/{}?artifactType={artifact_type}", digest_of(&hello));
        let found = registry.get(&path).await.is(200).json();
        assert_eq!(found["manifests"][0]["digest"], json!(digest_of(&about)));
    }
    assert_eq!(registry.get("/v2/a/app/tags/list").await.json()["tags"], json!(["v1"]));
}

// What is ours

async fn stored(registry: &Box_) -> HashSet<Digest> {
    use futures::TryStreamExt as _;

    let found: Vec<_> = registry.registry.blobs().list().try_collect().await.unwrap();
    found.into_iter().map(|blob| blob.digest).collect()
}

#[tokio::test]
async fn garbage_is_what_nobody_names() {
    let registry = Box_::new();
    let kept = registry.image("a/app", b"kept").await;
    registry.put_manifest("a/app", "1.0", &kept).await.is(201);
    let untagged = registry.image("a/app", b"untagged").await;
    registry.put_manifest("a/app", &digest_of(&untagged).to_string(), &untagged).await.is(201);
    let lost = registry.push("a/app", b"lost").await;
    let location = registry.begin("a/app").await;
    // Content without any row: a process ended between the two.
    let torn = registry.registry.blobs().put_bytes("torn".into()).await.unwrap();
    let all = stored(&registry).await;

    let untagged_age = Some(Duration::ZERO);
    let options =
        GarbageOptions { dry_run: true, age: Duration::ZERO, untagged_age, ..GarbageOptions::default() };
    let dry = registry.registry.collect_garbage(options.clone()).await.unwrap();
    assert_eq!(stored(&registry).await, all, "a dry run removes nothing");
    registry.get(&format!("/v2/a/app/blobs/{lost}")).await.is(200);

    let hour = Duration::from_secs(3600);
    let young = GarbageOptions { age: hour, untagged_age: Some(hour), ..GarbageOptions::default() };
    let report = registry.registry.collect_garbage(young).await.unwrap();
    assert!(report.content.is_empty() && report.blobs.is_empty(), "what is young is kept: {report:?}");

    let kept = Arc::new(HashSet::from([("a/app".to_owned(), digest_of(&untagged))]));
    let keeping = GarbageOptions { kept, ..options.clone() };
    let without = registry.registry.collect_garbage(keeping).await.unwrap();
    assert_eq!(without.manifests, [], "somebody knows it by its digest");

    let report =
        registry.registry.collect_garbage(GarbageOptions { dry_run: false, ..options }).await.unwrap();
    let sorted =
        |content: &[(Digest, u64)]| content.iter().map(|(digest, _)| *digest).collect::<HashSet<_>>();
    let expected: HashSet<Digest> =
        [lost, torn, Digest::of(b"untagged"), digest_of(&untagged)].into_iter().collect();
    assert_eq!(sorted(&report.content), expected);
    assert_eq!(sorted(&dry.content), expected, "a dry run says what would go");
    assert_eq!(stored(&registry).await, all.difference(&expected).copied().collect());
    assert_eq!(report.manifests, [("a/app".to_owned(), digest_of(&untagged))]);
    registry.get("/v2/a/app/manifests/1.0").await.is(200);
    registry.get(&format!("/v2/a/app/blobs/{}", Digest::of(b"kept"))).await.is(200);
    // Uploads have an age of their own.
    registry.get(&location).await.is(204);
}

#[tokio::test]
async fn garbage_of_one_team_is_not_that_of_another() {
    let registry = Box_::new();
    let blob = registry.push("a/app", b"content").await;
    let path = format!("/v2/b/app/blobs/uploads/?digest={blob}");
    registry.ask_as("token-b", "POST", &path, &[], b"content").await.is(201);
    registry.registry.delete_repositories("a").await.unwrap();
    registry.get(&format!("/v2/a/app/blobs/{blob}")).await.refused(404, "BLOB_UNKNOWN");
    let manifest = json!({ "layers": [{ "digest": blob }] });
    let headers = [("content-type", "a/b")];
    let body = manifest.to_string();
    registry.ask_as("token-b", "PUT", "/v2/b/app/manifests/1", &headers, body.as_bytes()).await.is(201);
    let options = GarbageOptions { age: Duration::ZERO, ..GarbageOptions::default() };
    registry.registry.collect_garbage(options.clone()).await.unwrap();
    registry.ask_as("token-b", "GET", &format!("/v2/b/app/blobs/{blob}"), &[], b"").await.is(200);
    // Nobody is `b` any more.
    let owners = Some(Arc::new(HashSet::from(["a".to_owned()])));
    let report = registry.registry.collect_garbage(GarbageOptions { owners, ..options }).await.unwrap();
    assert_eq!(report.repositories, ["b/app"]);
    registry.ask_as("token-b", "GET", &format!("/v2/b/app/blobs/{blob}"), &[], b"").await.is(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn garbage_is_collected_beside_pushes() {
    let registry = Arc::new(Box_::new());
    let collecting = tokio::spawn({
        let registry = registry.registry.clone();
        async move {
            let options = GarbageOptions { age: Duration::from_secs(1), ..GarbageOptions::default() };
            loop {
                registry.collect_garbage(options.clone()).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let mut pushing = tokio::task::JoinSet::new();
    for pusher in 0..4 {
        let registry = registry.clone();
        pushing.spawn(async move {
            for number in 0..10 {
                // Some content is new, some is everybody's.
                let repository = format!("a/app-{pusher}");
                let manifest = loop {
                    let content = format!("{}", number % 3 * pusher);
                    let manifest = registry.image(&repository, content.as_bytes()).await;
                    let answer = registry.put_manifest(&repository, &format!("v{number}"), &manifest).await;
                    if answer.status == StatusCode::CREATED {
                        break manifest;
                    }
                    // On a busy machine a second passes, and what was pushed is garbage.
                    answer.refused(400, "MANIFEST_BLOB_UNKNOWN");
                };
                // What was acknowledged stays.
                for blob in [&manifest["config"]["digest"], &manifest["layers"][0]["digest"]] {
                    let path = format!("/v2/{repository}/blobs/{}", blob.as_str().unwrap());
                    registry.get(&path).await.is(200);
                }
            }
        });
    }
    pushing.join_all().await;
    collecting.abort();
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let registry = Box_::new();
    let manifest = registry.image("a/app", b"content").await;
    registry.put_manifest("a/app", "1.0", &manifest).await.is(201);
    let registry = registry.reopened();
    assert_eq!(registry.get("/v2/a/app/manifests/1.0").await.is(200).json(), manifest);
    registry.get(&format!("/v2/a/app/blobs/{}", Digest::of(b"content"))).await.is(200);
    assert_eq!(registry.get("/v2/a/app/tags/list").await.json()["tags"], json!(["1.0"]));
}

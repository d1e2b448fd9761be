//! A server with people on it, and what it takes to ask it.

use std::{path::Path, sync::Arc};

use axum::{Router, body::Body};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;
use wisp_control::{
    Control, ImageDescription, Repository, Settings,
    names::{AppName, Digest, TeamName},
    router,
};

use crate::machine::Machine;

/// A key that is always the same, so that data of one run opens in another.
pub(crate) const ENVELOPE_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// A value that must never be seen again.
pub(crate) const SECRET: &str = "the-value-of-a-secret";

pub(crate) const MANIFEST: &str = r#"spin_manifest_version = 2
[application]
name = "web"
[[trigger.http]]
route = "/..."
component = "web"
[component.web]
source = "web.wasm"
allowed_outbound_hosts = ["https://api.example.com"]
key_value_stores = ["default"]
sqlite_databases = ["default"]
"#;

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) machine: Arc<Machine>,
    pub(crate) control: Arc<Control>,
    pub(crate) router: Router,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: bytes::Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn ok(self) -> Self {
        assert!(self.status.is_success(), "{} {}", self.status, self.text());
        self
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_policy("").await
    }

    pub(crate) async fn with_policy(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("policy.toml"), policy).unwrap();
        Self::open(folder, Arc::new(Machine::default())).await
    }

    /// What is there after the process ended and began again.
    pub(crate) async fn restart(self) -> Self {
        let Self { folder, machine, .. } = self;
        *machine.stops_in.lock().unwrap() = None;
        Self::open(folder, machine).await
    }

    pub(crate) async fn open(folder: TempDir, machine: Arc<Machine>) -> Self {
        let control = Control::open(settings(folder.path()), Arc::clone(&machine) as _).await.unwrap();
        let router = router(Arc::clone(&control));
        Self { folder, machine, control, router }
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        let body = body.map(ToString::to_string).unwrap_or_default();
        self.send(method, path, token, &[], body).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: String,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// A sign-in by code that a client begins, by its address.
    pub(crate) async fn begin_device(&self, address: &str) -> Value {
        let mut request = Request::post("/api/v1/device").body(Body::from("{}")).unwrap();
        let peer = std::net::SocketAddr::new(address.parse().unwrap(), 1);
        request.extensions_mut().insert(wisp_control::Peer(peer));
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask(Method::GET, path, Some(token), None).await
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.ask(Method::POST, path, Some(token), Some(&body)).await
    }

    /// The operator, with a team.
    pub(crate) async fn operator(&self, team: &str) -> String {
        let link = self.control.sign_in_link().await.unwrap().unwrap();
        self.sign_in(&link, json!({ "user": "alice", "team": team })).await
    }

    /// Somebody by a link.
    pub(crate) async fn sign_in(&self, link: &str, mut body: Value) -> String {
        body["code"] = link.split_once("code=").unwrap().1.into();
        let answer = self.ask(Method::POST, "/api/v1/sign-in", None, Some(&body)).await.ok();
        answer.json()["secret"].as_str().unwrap().to_owned()
    }

    /// Somebody new in a team.
    pub(crate) async fn member(&self, owner: &str, team: &str, user: &str, role: &str) -> String {
        let path = format!("/api/v1/teams/{team}/invitations");
        let invitation = self.post(&path, owner, json!({ "role": role })).await.ok().json();
        self.sign_in(invitation["link"].as_str().unwrap(), json!({ "user": user })).await
    }

    /// Pushes an image of the usual manifest.
    pub(crate) fn push(&self, team: &str, app: &str, number: u8) -> String {
        self.push_manifest(team, app, number, MANIFEST)
    }

    pub(crate) fn push_manifest(&self, team: &str, app: &str, number: u8, manifest: &str) -> String {
        let digest = Digest::new(&format!("sha256:{}", hex::encode([number; 32]))).unwrap();
        let repository = Repository { team: TeamName::new(team).unwrap(), app: AppName::new(app).unwrap() };
        let description = ImageDescription::of_manifest(manifest).unwrap();
        self.machine.push(&repository, &digest, description);
        digest.to_string()
    }

    /// Makes an app and deploys it.
    pub(crate) async fn app(&self, token: &str, team: &str, app: &str) {
        self.post(&format!("/api/v1/teams/{team}/apps"), token, json!({ "name": app })).await.ok();
        let operation = self.deploy(token, team, app, 1).await;
        assert_eq!(operation["progress"], "done", "{operation}");
    }

    /// Deploys an image and waits for the end.
    pub(crate) async fn deploy(&self, token: &str, team: &str, app: &str, number: u8) -> Value {
        let image = self.push(team, app, number);
        let path = format!("/api/v1/teams/{team}/apps/{app}/releases");
        let operation = self.post(&path, token, json!({ "image": image })).await.ok().json();
        self.wait(token, team, &operation).await
    }

    /// Waits until an operation has ended.
    pub(crate) async fn wait(&self, token: &str, team: &str, operation: &Value) -> Value {
        let id = operation["id"].as_str().unwrap();
        loop {
            let path = format!("/api/v1/teams/{team}/operations/{id}?wait_ms=10000");
            let now = self.get(&path, token).await.ok().json();
            if now["progress"] != "running" {
                return now;
            }
        }
    }
}

pub(crate) fn settings(folder: &Path) -> Settings {
    Settings {
        state: folder.join("state.db"),
        envelope_key: folder.join("envelope"),
        envelope_key_text: Some(ENVELOPE_KEY.to_owned()),
        policy: Some(folder.join("policy.toml")).filter(|policy| policy.exists()),
        domain: "localhost".to_owned(),
        public_url: "http://localhost:3000".to_owned(),
    }
}

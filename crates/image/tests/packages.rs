//! Code from elsewhere: packages of a registry and downloads become files, each once, and
//! each what it was the first time.

#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::future::BoxFuture;
use http::{StatusCode, header};
use indexmap::IndexMap;
use serde_json::json;
use wisp_image::client::{Client, ClientSettings, ImageReference};
use wisp_image::format::{Descriptor, FILE, IMAGE_MANIFEST, ImageManifest, PLAIN_COMPONENT};
use wisp_image::packages::lock::{LOCK_FILE_NAME, Lock};
use wisp_image::packages::settings::PackageSettings;
use wisp_image::packages::{FetchedApp, Packages, is_needed};
use wisp_image::registry::{Access, Action, Credentials, Denial, Registry, RegistryLimits, RegistrySettings};
use wisp_image::{Blobs, Content, Digest, Error, Image, Layer};
use wisp_manifest::App;
use wisp_manifest::locked::LockedApp;
use wisp_manifest::model::{DependencySource, Source};

/// How artifacts of components say what they are.
const CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// A server, and what it was asked.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
    _serving: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

/// Lets everybody see `open/…`, and who has the password everything.
struct Password;

impl Access for Password {
    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<(), Denial>> {
        let is_known = matches!(credentials, Credentials::Basic { password, .. } if password == "secret");
        Box::pin(async move { if is_known { Ok(()) } else { Err(Denial::Unknown) } })
    }

    fn authorize<'a>(
        &'a self,
        credentials: &'a Credentials,
        repository: &'a str,
        _: Action,
    ) -> BoxFuture<'a, Result<(), Denial>> {
        match repository.starts_with("open/") {
            true => Box::pin(async { Ok(()) }),
            false => self.authenticate(credentials),
        }
    }
}

impl Server {
    async fn of(router: Router, folder: tempfile::TempDir) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let taken = asked.clone();
        let take_down = move |request: Request, next: Next| {
            let range = request.headers().get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
            let line = format!("{} {} {}", request.method(), request.uri(), range.unwrap_or_default());
            taken.lock().unwrap().push(line);
            next.run(request)
        };
        let router = router.layer(axum::middleware::from_fn(take_down));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, asked, _serving: serving, _folder: folder }
    }

    async fn registry() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = RegistrySettings {
            blobs: Blobs::open(&folder.path().join("blobs")).unwrap(),
            database: folder.path().join("registry.db"),
            uploads: folder.path().join("uploads"),
            limits: RegistryLimits::default(),
        };
        Self::of(Registry::open(settings, Arc::new(Password)).unwrap().router(), folder).await
    }

    /// Serves the files of a folder, by parts if asked to.
    async fn of_files(folder: tempfile::TempDir) -> Self {
        let router = Router::new().fallback(file).with_state(folder.path().to_owned());
        Self::of(router, folder).await
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Publishes a component as `wkg` does.
    async fn publish(&self, client: &Client, repository: &str, tag: &str, content: &[u8]) {
        self.publish_as(client, repository, tag, PLAIN_COMPONENT, content).await;
    }

    async fn publish_as(&self, client: &Client, repository: &str, tag: &str, kind: &str, content: &[u8]) {
        let layer = |media_type: &str, content: &[u8]| {
            let digest = Digest::of(content);
            let descriptor = Descriptor::new(media_type, digest, content.len() as u64);
            (digest, Layer { descriptor, content: Content::Bytes(content.to_vec().into()) })
        };
        let config = json!({ "architecture": "wasm", "os": "wasip2" }).to_string();
        let (config, component) = (layer(CONFIG, config.as_bytes()), layer(kind, content));
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(IMAGE_MANIFEST.to_owned()),
            artifact_type: None,
            config: config.1.descriptor.clone(),
            layers: vec![component.1.descriptor.clone()],
            annotations: Default::default(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let image = Image {
            digest: Digest::of(&manifest),
            manifest: manifest.into(),
            locked: LockedApp::new(&App::for_component_file(Path::new("a.wasm"))),
            layers: IndexMap::from([config, component]),
        };
        let reference: ImageReference = format!("{}/{repository}:{tag}", self.address).parse().unwrap();
        client.push(&image, &reference, &|_| {}).await.unwrap();
    }
}

async fn file(State(folder): State<PathBuf>, request: Request) -> Response {
    let Ok(content) = fs::read(folder.join(request.uri().path().trim_start_matches('/'))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = request.headers().get(header::RANGE).and_then(|range| range.to_str().ok());
    let start =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match start {
        None => content.into_response(),
        Some(start) if start >= content.len() => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            let rest = content[start..].to_vec();
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], rest).into_response()
        }
    }
}

/// A developer's machine: an app, a cache, settings.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        // A second time it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn client(&self) -> Client {
        Client::new(ClientSettings { cache: self.path("cache"), ..ClientSettings::default() }).unwrap()
    }

    fn forget(&self) {
        fs::remove_dir_all(self.path("cache")).unwrap();
    }

    fn app(&self, more: &str) -> App {
        let text = format!("spin_manifest_version = 2\n[application]\nname = \"a\"\n{more}");
        fs::write(self.path("spin.toml"), text).unwrap();
        App::read(&self.path("spin.toml"), None).unwrap().value
    }

    async fn fetch(&self, app: &App, settings: &str) -> Result<FetchedApp, Vec<Error>> {
        self.fetch_with(app, settings, Lock::read(self.folder.path()).unwrap()).await
    }

    async fn fetch_with(&self, app: &App, settings: &str, lock: Lock) -> Result<FetchedApp, Vec<Error>> {
        fs::write(self.path("settings.toml"), settings).unwrap();
        let settings = PackageSettings::read(&self.path("settings.toml")).unwrap();
        let fetched = Packages::new(self.client(), settings).unwrap().app(app, &lock).await?;
        lock.save().unwrap();
        Ok(fetched)
    }

    fn lock(&self) -> String {
        fs::read_to_string(self.path(LOCK_FILE_NAME)).unwrap()
    }
}

fn depending(on: &str) -> String {
    format!("[component.c]\nsource = \"c.wasm\"\n[component.c.dependencies]\n{on}\n")
}

/// What the file is that a dependency of `c` has become.
fn content(fetched: &FetchedApp, position: usize) -> Vec<u8> {
    match &fetched.app.components["c"].dependencies[position].source {
        DependencySource::Path(path) => fs::read(path).unwrap(),
        source => panic!("{source:?}"),
    }
}

fn only(errors: Vec<Error>) -> Error {
    let [error] = <[Error; 1]>::try_from(errors).unwrap();
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_version_that_fits_is_taken_and_stays() {
    let (registry, desk) = (Server::registry().await, Desk::new());
    let client = desk.client();
    // More than a page of tags, in the order of letters.
    for minor in 0..120 {
        let content = format!("1.{minor}");
        registry.publish(&client, "open/greet", &format!("1.{minor}.0"), content.as_bytes()).await;
    }
    for (tag, content) in
        [("2.0.0-rc.1", "candidate"), ("2.0.0", "2"), ("latest", "2"), ("1.500", "no version")]
    {
        registry.publish(&client, "open/greet", tag, content.as_bytes()).await;
    }
    let settings = format!("[namespace_registries]\nopen = \"{}\"\n", registry.address);
    let app = desk.app(&depending("\"open:greet/hello\" = \"^1.2\""));
    assert!(is_needed(&app));
    let fetched = desk.fetch(&app, &settings).await.unwrap();
    assert_eq!(content(&fetched, 0), b"1.119");
    assert!(!is_needed(&fetched.app));
    let pages = registry.asked().iter().filter(|line| line.contains("/tags/list")).count();
    assert!(pages >= 2, "{pages}");

    // The lock says so: nothing is asked, and with another cache only for that version.
    registry.publish(&client, "open/greet", "1.200.0", b"1.200").await;
    registry.asked();
    assert_eq!(content(&desk.fetch(&app, "").await.unwrap(), 0), b"1.119");
    assert_eq!(registry.asked(), Vec::<String>::new());
    desk.forget();
    assert_eq!(content(&desk.fetch(&app, "").await.unwrap(), 0), b"1.119");
    assert!(!registry.asked().iter().any(|line| line.contains("/tags/list")));
    assert!(desk.lock().contains("version = \"1.119.0\""), "{}", desk.lock());

    // Unless it is to be made anew.
    let anew = Lock::anew(desk.folder.path());
    assert_eq!(content(&desk.fetch_with(&app, &settings, anew).await.unwrap(), 0), b"1.200");
    assert!(desk.lock().contains("1.200.0") && !desk.lock().contains("1.119.0"));

    // Candidates are for who asks for them; one version needs no list.
    for (requirement, expected) in [(">=1", "2"), ("=2.0.0-rc.1", "candidate"), ("=1.7.0", "1.7")] {
        let app = desk.app(&depending(&format!("\"open:greet/hello\" = \"{requirement}\"")));
        registry.asked();
        assert_eq!(content(&desk.fetch(&app, &settings).await.unwrap(), 0), expected.as_bytes());
        let has_listed = registry.asked().iter().any(|line| line.contains("/tags/list"));
        assert_eq!(has_listed, requirement == ">=1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_under_a_version_is_refused() {
    let (registry, desk) = (Server::registry().await, Desk::new());
    let client = desk.client();
    registry.publish(&client, "open/greet", "1.0.0", b"the first").await;
    let on = format!("\"open:greet/hello\" = {{ version = \"1\", registry = \"{}\" }}", registry.address);
    let app = desk.app(&depending(&on));
    desk.fetch(&app, "").await.unwrap();
    registry.publish(&client, "open/greet", "1.0.0", b"the second").await;
    // Who has it does not notice.
    desk.fetch(&app, "").await.unwrap();
    desk.forget();
    let error = only(desk.fetch(&app, "").await.unwrap_err());
    assert_eq!(error.code(), "WISP-E0818");
    let text = error.to_string();
    assert!(text.starts_with("spin.toml:7: the dependency `open:greet/hello`: "), "{text}");
    assert!(text.contains(&Digest::of(b"the first").to_string()), "{text}");
    assert!(error.hint().unwrap().contains("--update"));
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_say_where_their_content_is() {
    let (registry, desk) = (Server::registry().await, Desk::new());
    let client = desk.client();
    let described = tempfile::tempdir().unwrap();
    let metadata = json!({
        "preferredProtocol": "oci",
        "oci": { "registry": registry.address, "namespacePrefix": "open/wasm/" },
    });
    fs::create_dir_all(described.path().join(".well-known/wasm-pkg")).unwrap();
    fs::write(described.path().join(".well-known/wasm-pkg/registry.json"), metadata.to_string()).unwrap();
    let front = Server::of_files(described).await;
    registry.publish(&client, "open/wasm/docs/greet", "1.0.0", b"prefixed").await;
    let app = desk.app(&depending("\"docs:greet/hello\" = \"1\""));
    let settings = format!("default_registry = \"{}\"\n", front.address);
    assert_eq!(content(&desk.fetch(&app, &settings).await.unwrap(), 0), b"prefixed");
    assert_eq!(front.asked(), ["GET /.well-known/wasm-pkg/registry.json "]);
    // The lock names the registry, not where its content is today.
    assert!(desk.lock().contains(&front.address), "{}", desk.lock());

    // Settings may say the same, and who one is.
    let signed_in: Client = Client::new(ClientSettings {
        cache: desk.path("cache"),
        credentials: Some({
            let store = wisp_image::credentials::CredentialStore::at(&desk.path("registries.json"));
            let login =
                wisp_image::credentials::Login { username: "somebody".into(), password: "secret".into() };
            store.set(&registry.address, login).unwrap();
            store
        }),
        ..ClientSettings::default()
    })
    .unwrap();
    registry.publish(&signed_in, "closed/greet", "1.0.0", b"closed").await;
    let app = desk.app(&depending("\"closed:greet/hello\" = \"1\""));
    let settings = format!(
        "[namespace_registries]\nclosed = {{ registry = \"closed.example\", metadata = {{ oci = {{ \
         registry = \"{}\" }} }} }}\n",
        registry.address
    );
    assert_eq!(only(desk.fetch(&app, &settings).await.unwrap_err()).code(), "WISP-E0812");
    let settings = format!(
        "{settings}[registry.\"closed.example\".oci]\nprotocol = \"http\"\n\
         auth = {{ username = \"somebody\", password = \"secret\" }}\n"
    );
    assert_eq!(content(&desk.fetch(&app, &settings).await.unwrap(), 0), b"closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_go_on_where_they_ended_and_are_verified() {
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 241) as u8).collect();
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("large.wasm"), &large).unwrap();
    let (server, desk) = (Server::of_files(files).await, Desk::new());
    let digest = Digest::of(&large);
    let url = format!("http://{}/large.wasm", server.address);
    let app = desk.app(&format!(
        "[[trigger.http]]\nroute = \"/\"\ncomponent = \"c\"\n\
         dependencies.middleware = [{{ url = \"{url}\", digest = \"{digest}\" }}]\n\
         [component.c]\nsource = {{ url = \"{url}\", digest = \"{digest}\" }}\n"
    ));
    let sources = |fetched: &FetchedApp| match &fetched.app.components["c"].source {
        Source::Path(path) => fs::read(path).unwrap(),
        source => panic!("{source:?}"),
    };
    // Named twice, asked for once.
    assert_eq!(sources(&desk.fetch(&app, "").await.unwrap()), large);
    assert_eq!(server.asked(), ["GET /large.wasm "]);
    assert_eq!(sources(&desk.fetch(&app, "").await.unwrap()), large);
    assert_eq!(server.asked(), Vec::<String>::new());
    assert!(!desk.path(LOCK_FILE_NAME).exists(), "the manifest has the digest");

    // What a killed download leaves, and what is of no use.
    let partial = desk.path("cache/partial").join(digest.hex());
    for (left, expected) in [
        (large[..1_000_000].to_vec(), vec!["GET /large.wasm bytes=1000000-"]),
        (large.clone(), vec!["GET /large.wasm bytes=3000000-"]),
        (vec![0; 1_000_000], vec!["GET /large.wasm bytes=1000000-", "GET /large.wasm "]),
        (vec![0; 4_000_000], vec!["GET /large.wasm bytes=4000000-", "GET /large.wasm "]),
    ] {
        fs::remove_dir_all(desk.path("cache/blobs")).unwrap();
        fs::write(&partial, left).unwrap();
        assert_eq!(sources(&desk.fetch(&app, "").await.unwrap()), large);
        assert_eq!(server.asked(), expected);
        assert!(!partial.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_said_all_at_once_with_its_lines() {
    let (registry, desk) = (Server::registry().await, Desk::new());
    let client = desk.client();
    registry.publish(&client, "open/greet", "1.0.0", b"greet").await;
    registry.publish_as(&client, "open/text", "1.0.0", FILE, b"text").await;
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("a.wasm"), "a").unwrap();
    let server = Server::of_files(files).await;
    let (host, digest) = (&registry.address, Digest::of(b"b"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = desk.app(&depending(&format!(
        "\"open:greet/a\" = {{ version = \"^2\", registry = \"{host}\" }}\n\
         \"open:none/a\" = {{ version = \"^2\", registry = \"{host}\" }}\n\
         \"open:text/a\" = {{ version = \"=1.0.0\", registry = \"{host}\" }}\n\
         \"some:body/a\" = \"1\"\n\
         \"some:one/a\" = {{ version = \"1\", registry = \"{closed}\" }}\n\
         \"url:one/a\" = {{ url = \"http://{}/a.wasm\", digest = \"{digest}\" }}\n\
         \"url:two/a\" = {{ url = \"http://{}/none.wasm\", digest = \"sha256:{:064}\" }}",
        server.address, server.address, 0
    )));
    let errors = desk.fetch(&app, "").await.unwrap_err();
    let said: Vec<_> = errors.iter().map(|error| (error.code(), error.to_string())).collect();
    for ((code, text), (expected, line, word)) in said.iter().zip([
        ("WISP-E0822", 7, "`^2`"),
        ("WISP-E0813", 8, "open/none"),
        ("WISP-E0823", 9, "no component"),
        ("WISP-E0819", 10, "`some:body`"),
        ("WISP-E0814", 11, "does not answer"),
        ("WISP-E0818", 12, "a.wasm"),
        ("WISP-E0817", 13, "status 404"),
    ]) {
        let is_as_expected =
            *code == expected && text.starts_with(&format!("spin.toml:{line}: ")) && text.contains(word);
        assert!(is_as_expected, "{expected} line {line} `{word}`: {code} {text}");
    }
    assert_eq!(said.len(), 7);
    assert!(errors[0].hint().unwrap().contains("1.0.0"));
    assert!(errors[3].hint().unwrap().contains("namespace_registries"));
    assert!(!desk.path(LOCK_FILE_NAME).exists());
}

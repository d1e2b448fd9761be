//! Images: packed, pushed, pulled and unpacked they are the app that went in.

#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Request;
use axum::middleware::Next;
use bytes::Bytes;
use futures::future::BoxFuture;
use proptest::prelude::*;
use serde_json::{Value, json};
use wisp_image::client::{CacheLimits, Client, ClientSettings, ImageReference};
use wisp_image::credentials::{CredentialStore, Login};
use wisp_image::format::{
    ARCHIVE, COMPONENT, Descriptor, FILE, IMAGE_CONFIG, IMAGE_MANIFEST, ImageManifest, LOCKED_APP,
    PLAIN_COMPONENT,
};
use wisp_image::registry::{Access, Action, Credentials, Denial, Registry, RegistryLimits, RegistrySettings};
use wisp_image::{Blobs, Content, Digest, Image, PackOptions, pack, unpack};
use wisp_manifest::App;

const MANIFEST: &str = r#"
spin_manifest_version = 2
[application]
name = "shop"
version = "1.0"
authors = ["A", "B"]
[[trigger.http]]
route = "/..."
component = "a"
[component.a]
source = "a.wasm"
files = ["static/**/*", { source = "large", destination = "/placed/large" }]
exclude_files = ["static/hidden*"]
environment = { MODE = "fast" }
[component.a.tool.wisp]
reuse = { max_requests = 3 }
limits = { memory_bytes = 1000000 }
[[trigger.http]]
route = "/b"
component = "b"
[component.b]
source = "b.wasm"
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn shop() -> Self {
        let folder = Self::new();
        folder.write("spin.toml", MANIFEST);
        folder.write("a.wasm", [b"\0asm a".as_slice(), &[7; 300]].concat());
        folder.write("b.wasm", [b"\0asm b".as_slice(), &[8; 300]].concat());
        folder.write("static/small.txt", "small");
        folder.write("static/empty", "");
        folder.write("static/deep/large.txt", vec![b'x'; 10_000]);
        folder.write("static/hidden.txt", "hidden");
        folder.write("large", vec![b'y'; 129]);
        folder
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn app(&self) -> App {
        App::read(self.path(), None).unwrap().value
    }

    fn blobs(&self) -> Blobs {
        Blobs::open(&self.path().join("blobs")).unwrap()
    }
}

fn packed(app: &App) -> Image {
    pack(app, &PackOptions::default()).unwrap()
}

/// Every file below a folder, and what is in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

#[test]
fn the_form_is_that_of_spin() {
    let image = packed(&Folder::shop().app());
    let manifest = image.manifest().unwrap();
    assert_eq!(manifest.media_type.as_deref(), Some(IMAGE_MANIFEST));
    assert_eq!(manifest.config.media_type, IMAGE_CONFIG);
    let types: Vec<&str> = manifest.layers.iter().map(|layer| layer.media_type.as_str()).collect();
    // The placed file and the large one; the small ones are in the locked app.
    assert_eq!(types, [COMPONENT, COMPONENT, FILE, FILE, LOCKED_APP]);
    assert_eq!(LOCKED_APP, "application/vnd.fermyon.spin.application.v1+config");
    assert_eq!(COMPONENT, "application/vnd.wasm.content.layer.v1+wasm");
    assert_eq!(FILE, "application/vnd.wasm.content.layer.v1+data");
    assert_eq!(ARCHIVE, "application/vnd.wasm.content.bundle.v1.tar+gzip");
    let annotations: Vec<(&str, &str)> =
        manifest.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(
        annotations,
        [
            ("org.opencontainers.image.authors", "A, B"),
            ("org.opencontainers.image.title", "shop"),
            ("org.opencontainers.image.version", "1.0"),
        ]
    );
    let Some(Content::Bytes(locked)) = image
        .layers
        .values()
        .find_map(|layer| (layer.descriptor.media_type == LOCKED_APP).then(|| layer.content.clone()))
    else {
        panic!("the locked app is in memory")
    };
    let locked: Value = serde_json::from_slice(&locked).unwrap();
    let files = locked["components"][0]["files"].as_array().unwrap();
    let paths: Vec<&str> = files.iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["placed/large", "static/deep/large.txt", "static/empty", "static/small.txt"]);
    assert_eq!(files[3]["inline"], "c21hbGw");
    assert_eq!(files[3]["digest"], json!(Digest::of(b"small")));
    assert!(files[1].get("inline").is_none());
    assert!(!locked.to_string().contains("spin.toml"), "no path of this machine");
}

#[test]
fn the_same_app_is_the_same_image() {
    let (one, other) = (Folder::shop(), Folder::shop());
    let image = packed(&one.app());
    assert_eq!(image.digest, packed(&other.app()).digest);
    assert_eq!(image.digest, packed(&one.app()).digest);
    let archives = PackOptions { archives: true, ..PackOptions::default() };
    assert_eq!(pack(&one.app(), &archives).unwrap().digest, pack(&other.app(), &archives).unwrap().digest);
    other.write("static/small.txt", "other");
    assert_ne!(image.digest, packed(&other.app()).digest);
    let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let annotated = pack(&one.app(), &PackOptions { annotations, ..PackOptions::default() }).unwrap();
    assert_ne!(image.digest, annotated.digest);
    assert_eq!(annotated.manifest().unwrap().annotations["a"], "b");
}

#[tokio::test]
async fn what_is_unpacked_is_what_was_packed() {
    let folder = Folder::shop();
    for archives in [false, true] {
        let image = pack(&folder.app(), &PackOptions { archives, ..PackOptions::default() }).unwrap();
        let has_archive = image.manifest().unwrap().layers.iter().any(|layer| layer.media_type == ARCHIVE);
        assert_eq!(has_archive, archives);
        let blobs = folder.blobs();
        image.put(&blobs).await.unwrap();
        let target = folder.path().join(format!("releases/{archives}"));
        let unpacked = unpack(&blobs, &image.digest, &target).await.unwrap();
        let a = Digest::of(&fs::read(folder.path().join("a.wasm")).unwrap()).hex();
        let b = Digest::of(&fs::read(folder.path().join("b.wasm")).unwrap()).hex();
        let mut found = files(&target);
        found.remove("spin.lock").unwrap();
        let names: Vec<String> = found.keys().cloned().collect();
        let mut expected = vec![
            format!("components/{a}.wasm"),
            format!("components/{b}.wasm"),
            "files/a/placed/large".to_owned(),
            "files/a/static/deep/large.txt".to_owned(),
            "files/a/static/empty".to_owned(),
            "files/a/static/small.txt".to_owned(),
        ];
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(found["files/a/static/deep/large.txt"], vec![b'x'; 10_000]);
        assert_eq!(found["files/a/static/empty"], b"");
        // The app is the same but for where its content is.
        let (before, after) = (folder.app(), unpacked.app);
        assert_eq!(format!("{:?}", before.triggers), format!("{:?}", after.triggers));
        assert_eq!(before.components["a"].wisp, after.components["a"].wisp);
        assert_eq!(before.components["a"].environment, after.components["a"].environment);
        assert_eq!(after.directory, target);
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), usize::from(archives) + 1);
        // Once more is nothing new, and what was unpacked packs to the same content.
        unpack(&blobs, &image.digest, &target).await.unwrap();
        let again = pack(
            &App::read(&target, None).unwrap().value,
            &PackOptions { archives, ..PackOptions::default() },
        );
        assert_eq!(again.unwrap().digest, image.digest);
    }
}

#[test]
fn many_files_are_archived() {
    let folder = Folder::shop();
    for number in 0..500 {
        folder.write(&format!("static/many/{number}"), format!("{number:0>200}"));
    }
    let image = packed(&folder.app());
    let manifest = image.manifest().unwrap();
    assert!(manifest.layers.iter().any(|layer| layer.media_type == ARCHIVE));
    assert!(manifest.layers.len() < 10);
    // Small files do not count.
    let folder = Folder::shop();
    for number in 0..500 {
        folder.write(&format!("static/many/{number}"), number.to_string());
    }
    assert_eq!(packed(&folder.app()).layers.len(), packed(&Folder::shop().app()).layers.len());
}

#[test]
fn what_cannot_be_packed_says_why() {
    let refused = |manifest: &str, files: &[&str]| {
        let folder = Folder::new();
        folder.write("spin.toml", format!("spin_manifest_version = 2\napplication.name = \"a\"\n{manifest}"));
        for file in files {
            folder.write(file, "content");
        }
        let error = pack(&folder.app(), &PackOptions::default()).unwrap_err();
        (error.code(), error.to_string(), error.hint())
    };
    let (code, message, hint) =
        refused("[component.a]\nsource = \"a.wasm\"\nbuild.command = \"make it\"\n", &[]);
    assert_eq!(code, "WISP-E0801");
    assert!(message.contains("`a`") && message.contains("a.wasm"), "{message}");
    assert_eq!(hint.unwrap(), "build it first: `make it`");
    let url = format!(
        "[component.a]\nsource = {{ url = \"https://a.example/a.wasm\", digest = \"{}\" }}\n",
        Digest::of(b"")
    );
    assert_eq!(refused(&url, &[]).0, "WISP-E0801");
    for entry in ["../secret", "missing.txt"] {
        let manifest = format!("[component.a]\nsource = \"a.wasm\"\nfiles = [\"{entry}\"]\n");
        assert_eq!(refused(&manifest, &["a.wasm"]).0, "WISP-E0801", "{entry}");
    }
}

/// Media types and contents.
type Layers<'a> = &'a [(&'a str, &'a [u8])];

/// An image of whatever layers, as somebody else may have made it.
async fn handmade(blobs: &Blobs, locked: Option<Value>, layers: Layers<'_>) -> Digest {
    let mut descriptors = Vec::new();
    for (media_type, content) in layers {
        let digest = blobs.put_bytes(Bytes::copy_from_slice(content)).await.unwrap();
        descriptors.push(Descriptor::new(media_type, digest, content.len() as u64));
    }
    let config_type = if locked.is_some() { LOCKED_APP } else { IMAGE_CONFIG };
    let config = locked.map_or_else(|| b"{}".to_vec(), |locked| locked.to_string().into_bytes());
    let config = blobs.put_bytes(config.into()).await.unwrap();
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(IMAGE_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(config_type, config, 2),
        layers: descriptors,
        annotations: BTreeMap::new(),
    };
    blobs.put_bytes(serde_json::to_vec(&manifest).unwrap().into()).await.unwrap()
}

fn locked(component: Value) -> Value {
    json!({
        "spin_lock_version": 0,
        "metadata": { "name": "a", "origin": "vnd.fermyon.origin-oci:somewhere" },
        "triggers": [{ "id": "t", "trigger_type": "http", "trigger_config": { "route": "/", "component": "a" } }],
        "components": [component],
    })
}

#[tokio::test]
async fn images_of_older_versions_have_the_app_as_their_configuration() {
    let folder = Folder::new();
    let blobs = folder.blobs();
    let component = json!({
        "id": "a",
        "source": { "content_type": "application/wasm", "digest": Digest::of(b"wasm") },
        "files": [{ "path": "/b.txt", "digest": Digest::of(b"file") }],
    });
    let image = handmade(&blobs, Some(locked(component)), &[(COMPONENT, b"wasm"), (FILE, b"file")]).await;
    // Empty files were filled, and marked.
    let mut manifest: Value = serde_json::from_slice(&blobs.read(&image, 10_000).await.unwrap()).unwrap();
    manifest["layers"][1]["annotations"] = json!({ "com.fermyon.spin.application.layer.isEmpty": "true" });
    let with_empty = blobs.put_bytes(manifest.to_string().into()).await.unwrap();
    let target = folder.path().join("with-empty");
    unpack(&blobs, &with_empty, &target).await.unwrap();
    assert_eq!(fs::read(target.join("files/a/b.txt")).unwrap(), b"");
    let target = folder.path().join("app");
    let app = unpack(&blobs, &image, &target).await.unwrap().app;
    assert_eq!(&*app.name, "a");
    assert_eq!(fs::read(target.join("files/a/b.txt")).unwrap(), b"file");
    assert!(!fs::read_to_string(target.join("spin.lock")).unwrap().contains("origin"));
}

#[tokio::test]
async fn a_plain_component_is_an_app() {
    let folder = Folder::new();
    let blobs = folder.blobs();
    let config = blobs.put_bytes("{\"component\":{}}".into()).await.unwrap();
    let wasm = blobs.put_bytes("wasm".into()).await.unwrap();
    let mut layer = Descriptor::new(PLAIN_COMPONENT, wasm, 4);
    layer.annotations.insert("org.opencontainers.image.title".into(), "hello.wasm".into());
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: None,
        artifact_type: None,
        config: Descriptor::new("application/vnd.wasm.config.v0+json", config, 2),
        layers: vec![layer],
        annotations: BTreeMap::new(),
    };
    let image = blobs.put_bytes(serde_json::to_vec(&manifest).unwrap().into()).await.unwrap();
    let app = unpack(&blobs, &image, &folder.path().join("app")).await.unwrap().app;
    assert_eq!(&*app.name, "hello");
    assert_eq!(app.http_triggers().count(), 1);
}

#[tokio::test]
async fn what_is_no_app_or_means_harm_leaves_nothing() {
    let folder = Folder::new();
    let blobs = folder.blobs();
    let wasm = json!({ "content_type": "application/wasm", "digest": Digest::of(b"wasm") });
    let with_files = |files: Value| locked(json!({ "id": "a", "source": wasm, "files": files }));
    let file = |path: &str| json!({ "path": path, "digest": Digest::of(b"file") });
    let inline = |path: &str| json!({ "path": path, "inline": "eA" });
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    archive.append_data(&mut header, "somewhere/else", b"file".as_slice()).unwrap();
    let mut archive = archive.into_inner().unwrap().finish().unwrap();
    let layers: [(&str, &[u8]); 2] = [(COMPONENT, b"wasm"), (FILE, b"file")];
    let cases: Vec<(Option<Value>, Layers<'_>, &str)> = vec![
        (None, &layers, "WISP-E0804"),
        (Some(json!([])), &layers, "WISP-E0101"),
        (Some(with_files(json!([file("../a")]))), &layers, "WISP-E0106"),
        (Some(with_files(json!([file("a/../b")]))), &layers, "WISP-E0106"),
        (Some(with_files(json!([file("./a")]))), &layers, "WISP-E0808"),
        (Some(with_files(json!([file("/")]))), &layers, "WISP-E0808"),
        (Some(with_files(json!([file("a"), inline("a")]))), &layers, "WISP-E0808"),
        (Some(with_files(json!([file("a"), inline("a/b")]))), &layers, "WISP-E0808"),
        (Some(with_files(json!([inline("a"), file("a/b")]))), &layers, "WISP-E0808"),
        (Some(with_files(json!([{ "path": "a", "source": "file:///etc/passwd" }]))), &layers, "WISP-E0804"),
        (
            Some(with_files(json!([{ "path": "a", "inline": "eA", "digest": Digest::of(b"y") }]))),
            &layers,
            "WISP-E0805",
        ),
        (Some(with_files(json!([file("a")]))), &layers[..1], "WISP-E0806"),
        (Some(with_files(json!([]))), &layers[1..], "WISP-E0806"),
        (Some(locked(json!({ "id": "../a", "source": wasm }))), &layers, "WISP-E0109"),
        (
            Some(locked(
                json!({ "id": "a", "source": { "content_type": "x", "source": "/etc/passwd", "digest": Digest::of(b"wasm") } }),
            )),
            &layers,
            "WISP-E0804",
        ),
    ];
    let target = folder.path().join("releases/app");
    for (locked, layers, code) in cases {
        let shown = format!("{locked:?} {layers:?}");
        let image = handmade(&blobs, locked, layers).await;
        let error = unpack(&blobs, &image, &target).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}: {shown}");
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 0, "{shown}");
    }
    // What an archive calls its files does not matter.
    let image =
        handmade(&blobs, Some(with_files(json!([file("a")]))), &[(COMPONENT, b"wasm"), (ARCHIVE, &archive)])
            .await;
    unpack(&blobs, &image, &target).await.unwrap();
    assert_eq!(fs::read(target.join("files/a/a")).unwrap(), b"file");
    fs::remove_dir_all(&target).unwrap();
    // A torn archive.
    archive.truncate(archive.len() / 2);
    let image =
        handmade(&blobs, Some(with_files(json!([file("a")]))), &[(COMPONENT, b"wasm"), (ARCHIVE, &archive)])
            .await;
    assert_eq!(unpack(&blobs, &image, &target).await.unwrap_err().code(), "WISP-E0804");
    // A blob that changed on disk.
    let image = handmade(&blobs, Some(with_files(json!([]))), &layers).await;
    let damaged = blobs.folder().join("sha256").join(Digest::of(b"wasm").hex());
    fs::OpenOptions::new().append(true).open(damaged).unwrap().write_all(b"!").unwrap();
    assert_eq!(unpack(&blobs, &image, &target).await.unwrap_err().code(), "WISP-E0805");
    assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 0);
}

proptest! {
    #[test]
    fn any_manifest_is_read_or_refused(text in "\\PC{0,200}", digest in "sha256:[0-9a-f]{60,66}") {
        let _ = ImageManifest::parse(text.as_bytes());
        let json = json!({
            "schemaVersion": 2,
            "config": { "mediaType": text, "digest": digest, "size": 1 },
            "layers": [],
        });
        let is_digest = Digest::parse(&digest).is_some();
        prop_assert_eq!(ImageManifest::parse(json.to_string().as_bytes()).is_ok(), is_digest);
    }
}

// Over the network

/// Lets in whoever has the password, and everybody to `open/…`.
struct Password;

impl Access for Password {
    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<(), Denial>> {
        let answer = match credentials {
            Credentials::Basic { password, .. } if password == "secret" => Ok(()),
            _ => Err(Denial::Unknown),
        };
        Box::pin(async move { answer })
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

/// A registry that listens, and counts what it is asked.
struct Server {
    address: String,
    sent_blobs: Arc<AtomicUsize>,
    _serving: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = RegistrySettings {
            blobs: Blobs::open(&folder.path().join("blobs")).unwrap(),
            database: folder.path().join("registry.db"),
            uploads: folder.path().join("uploads"),
            limits: RegistryLimits::default(),
        };
        let registry = Registry::open(settings, Arc::new(Password)).unwrap();
        let sent_blobs = Arc::new(AtomicUsize::new(0));
        let counter = sent_blobs.clone();
        let count = move |request: Request, next: Next| {
            let counter = counter.clone();
            async move {
                if request.method() == "PUT" && request.uri().path().contains("/blobs/uploads/") {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                next.run(request).await
            }
        };
        let router = registry.router().layer(axum::middleware::from_fn(count));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, sent_blobs, _serving: serving, _folder: folder }
    }

    fn reference(&self, rest: &str) -> ImageReference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

fn client(cache: &Path, credentials: Option<CredentialStore>) -> Client {
    // A second time it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(ClientSettings { cache: cache.to_owned(), credentials, ..ClientSettings::default() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pulled_is_what_was_pushed_and_nothing_is_sent_twice() {
    let server = Server::start().await;
    let folder = Folder::shop();
    let cache = Folder::new();
    let client = client(cache.path(), None);
    let image = packed(&folder.app());
    let reference = server.reference("open/shop:1.0");
    let steps = AtomicUsize::new(0);
    let count = |progress: wisp_image::client::Progress| {
        assert!(progress.done_count <= progress.total_count);
        steps.fetch_add(1, Ordering::Relaxed);
    };
    let pushed = client.push(&image, &reference, &count).await.unwrap();
    assert_eq!((pushed.sent_count, pushed.present_count), (image.layers.len(), 0));
    assert_eq!(pushed.sent_bytes, image.size());
    assert!(steps.load(Ordering::Relaxed) >= image.layers.len());
    let sent = server.sent_blobs.load(Ordering::Relaxed);
    assert_eq!(sent, image.layers.len());

    // The same app from another folder: not one blob.
    let again = client.push(&packed(&Folder::shop().app()), &reference, &|_| {}).await.unwrap();
    assert_eq!((again.sent_count, again.sent_bytes), (0, 0));
    assert_eq!(again.digest, image.digest);
    assert_eq!(server.sent_blobs.load(Ordering::Relaxed), sent);

    let pulled = client.pull(&reference, &|_| {}).await.unwrap();
    assert_eq!(pulled.digest, image.digest);
    assert_eq!((pulled.fetched_count, pulled.cached_count), (image.layers.len(), 0));
    for (digest, layer) in &image.layers {
        assert_eq!(client.blobs().info(digest).await.unwrap().unwrap().size, layer.descriptor.size);
    }
    let again = client.pull(&reference, &|_| {}).await.unwrap();
    assert_eq!((again.fetched_count, again.fetched_bytes), (0, 0));
    let by_digest = server.reference(&format!("open/shop@{}", image.digest));
    assert_eq!(client.inspect(&by_digest).await.unwrap().0, image.digest);
    unpack(client.blobs(), &pulled.digest, &cache.path().join("unpacked")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_killed_goes_on() {
    let server = Server::start().await;
    let folder = Folder::shop();
    let large: Vec<u8> = (0..10_000_000_u32).map(|number| (number % 241) as u8).collect();
    folder.write("a.wasm", &large);
    let cache = Folder::new();
    let client = client(cache.path(), None);
    let reference = server.reference("open/shop:1.0");
    client.push(&packed(&folder.app()), &reference, &|_| {}).await.unwrap();
    // What a killed pull leaves.
    let digest = Digest::of(&large);
    let partial = cache.path().join("partial").join(digest.hex());
    fs::write(&partial, &large[..6_000_000]).unwrap();
    let pulled = client.pull(&reference, &|_| {}).await.unwrap();
    assert_eq!(pulled.resumed_bytes, 6_000_000);
    assert!(pulled.fetched_bytes < 5_000_000, "{}", pulled.fetched_bytes);
    assert_eq!(client.blobs().read(&digest, large.len()).await.unwrap(), large);
    assert!(!partial.exists());
    // What it leaves may be damaged: then it is fetched anew, the next time.
    client.blobs().delete(&digest).await.unwrap();
    fs::write(&partial, vec![0; 6_000_000]).unwrap();
    assert_eq!(client.pull(&reference, &|_| {}).await.unwrap_err().code(), "WISP-E0805");
    let pulled = client.pull(&reference, &|_| {}).await.unwrap();
    assert_eq!(pulled.resumed_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_keeps_so_much() {
    let server = Server::start().await;
    let cache = Folder::new();
    client(cache.path(), None);
    let limits = CacheLimits { max_bytes: 25_000, max_unpacked_count: 2 };
    let settings = ClientSettings { cache: cache.path().to_owned(), limits, ..ClientSettings::default() };
    let client = Client::new(settings).unwrap();
    let mut digests = Vec::new();
    for number in 0..4 {
        let folder = Folder::shop();
        folder.write("a.wasm", vec![number; 8_000]);
        let reference = server.reference(&format!("open/shop:{number}"));
        client.push(&packed(&folder.app()), &reference, &|_| {}).await.unwrap();
        let pulled = client.pull(&reference, &|_| {}).await.unwrap();
        client.unpack(&pulled.digest).await.unwrap();
        digests.push(pulled.digest);
    }
    let unpacked = cache.path().join("unpacked");
    let kept: Vec<bool> = digests.iter().map(|digest| unpacked.join(digest.hex()).exists()).collect();
    assert_eq!(kept, [false, false, true, true]);
    let blobs: Vec<_> = futures::TryStreamExt::try_collect(client.blobs().list()).await.unwrap();
    let blobs: Vec<wisp_image::BlobInfo> = blobs;
    assert!(blobs.iter().map(|blob| blob.size).sum::<u64>() <= 25_000);
    // The newest image is complete.
    unpack(client.blobs(), &digests[3], &cache.path().join("again")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_one_is_decides() {
    let server = Server::start().await;
    let cache = Folder::new();
    let folder = Folder::shop();
    let image = packed(&folder.app());
    let reference = server.reference("team/shop:1.0");
    let store = CredentialStore::at(&cache.path().join("registries.json"));
    let client = client(cache.path(), Some(store.clone()));
    let error = client.push(&image, &reference, &|_| {}).await.unwrap_err();
    assert_eq!(error.code(), "WISP-E0812");
    assert!(error.hint().unwrap().contains("wisp registry login"));
    assert_eq!(client.pull(&reference, &|_| {}).await.unwrap_err().code(), "WISP-E0812");

    let wrong = client.check_login(&server.address, "somebody", "wrong").await.unwrap_err();
    assert_eq!(wrong.code(), "WISP-E0812");
    client.check_login(&server.address, "somebody", "secret").await.unwrap();
    store.set(&server.address, Login { username: "somebody".into(), password: "secret".into() }).unwrap();
    assert_eq!(client.pull(&reference, &|_| {}).await.unwrap_err().code(), "WISP-E0813");
    client.push(&image, &reference, &|_| {}).await.unwrap();
    client.pull(&reference, &|_| {}).await.unwrap();
    store.remove(&server.address).unwrap();
    assert_eq!(client.pull(&reference, &|_| {}).await.unwrap_err().code(), "WISP-E0812");
}

#[tokio::test]
async fn what_does_not_answer_says_so() {
    let cache = Folder::new();
    let client = client(cache.path(), None);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference = format!("{address}/team/shop:1.0").parse().unwrap();
    let error = client.pull(&reference, &|_| {}).await.unwrap_err();
    assert_eq!(error.code(), "WISP-E0814");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn references_have_a_host() {
    for text in [
        "localhost/a",
        "localhost:5000/team/app:1.0",
        "registry.example/app",
        "127.0.0.1:5000/a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ] {
        assert!(ImageReference::looks_like(text), "{text}");
    }
    for text in [
        "app",
        "apps/shop",
        "./registry.example/app",
        "../a",
        "spin.toml",
        "a.b",
        "a.b/",
        "/a.b/c",
        "a.b/UPPER",
    ] {
        assert!(!ImageReference::looks_like(text), "{text}");
    }
    let error = "shop:1.0".parse::<ImageReference>().unwrap_err();
    assert_eq!(error.code(), "WISP-E0811");
}

#[test]
fn every_code_is_in_the_docs() {
    let docs =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md")).unwrap();
    for number in 801..=816 {
        assert!(docs.contains(&format!("| `WISP-E0{number}` |")), "{number}");
    }
}

//! Code from elsewhere: an app whose parts are in a registry and at a URL is built, served
//! and packed like one whose parts lie beside it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
};

use wisp_image::{
    Content, Digest, Image, Layer,
    client::{Client, ClientSettings},
    format::{Descriptor, IMAGE_MANIFEST, ImageManifest, PLAIN_COMPONENT},
};

use crate::harness::{App, DockerRegistry, Finished, finish, guest, have, wisp};

/// How artifacts of components say what they are.
const CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// Publishes a component at a registry, as `wkg` does.
fn publish(registry: SocketAddr, repository: &str, version: &str, component: &[u8]) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let layer = |media_type: &str, content: &[u8]| {
        let digest = Digest::of(content);
        let descriptor = Descriptor::new(media_type, digest, content.len() as u64);
        (digest, Layer { descriptor, content: Content::Bytes(content.to_vec().into()) })
    };
    let config = layer(CONFIG, br#"{"architecture":"wasm","os":"wasip2"}"#);
    let component = layer(PLAIN_COMPONENT, component);
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(IMAGE_MANIFEST.to_owned()),
        artifact_type: None,
        config: config.1.descriptor.clone(),
        layers: vec![component.1.descriptor.clone()],
        annotations: std::collections::BTreeMap::new(),
    };
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let image = Image {
        digest: Digest::of(&manifest),
        manifest: manifest.into(),
        locked: wisp_manifest::LockedApp::new(&wisp_manifest::App::for_component_file(Path::new("a.wasm"))),
        layers: [config, component].into_iter().collect(),
    };
    let cache = tempfile::tempdir().unwrap();
    let settings = ClientSettings { cache: cache.path().to_owned(), ..ClientSettings::default() };
    let client = Client::new(settings).unwrap();
    let reference = format!("{registry}/{repository}:{version}").parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(client.push(&image, &reference, &|_| {})).unwrap();
}

/// Serves one file at every path, to whoever asks.
fn serve_file(content: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len());
            // Who goes away has had enough.
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content)));
        }
    });
    address
}

/// A component, and the same with something about it that nobody minds.
fn other_build(component: &[u8], text: &str) -> Vec<u8> {
    let mut other = component.to_vec();
    // A custom section: its length, the length of its name, and both.
    let name = format!("build-{text}");
    other.extend([0, u8::try_from(name.len() + 1).unwrap(), u8::try_from(name.len()).unwrap()]);
    other.extend(name.bytes());
    other
}

/// `wisp build` in an app's folder, with a cache of its own.
fn build(app: &App, cache: &str, arguments: &[&str]) -> Finished {
    let mut command = wisp();
    command.arg("build").args(arguments).arg("--skip-checks").current_dir(app.path(""));
    command.env("HOME", app.path("")).env("WISP_CACHE_DIR", app.path(cache)).env_remove("XDG_CONFIG_HOME");
    finish(command)
}

#[test]
fn a_dependency_of_a_registry_and_middleware_of_a_url_are_served() {
    if !have(&["js-asks", "asker", "python-sdk5", "gate"]) {
        return;
    }
    let Some(registry) = DockerRegistry::start() else { return };
    let asker = fs::read(guest("asker").unwrap()).unwrap();
    let gate = fs::read(guest("gate").unwrap()).unwrap();
    for version in ["1.0.0", "1.1.0", "2.0.0"] {
        publish(registry.address, "wisp/composed", version, &other_build(&asker, version));
    }
    let (digest, files) = (Digest::of(&gate), serve_file(gate));
    let app = App::new(&format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"from-elsewhere\"\n\
         [[trigger.http]]\n\
         route = \"/count\"\n\
         component = \"js-asks\"\n\
         [[trigger.http]]\n\
         route = \"/ask\"\n\
         component = \"js-asks\"\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"python\"\n\
         dependencies.middleware = [{{ url = \"http://{files}/gate.wasm\", digest = \"{digest}\" }}]\n\
         [component.js-asks]\n\
         source = \"{{js-asks}}\"\n\
         key_value_stores = [\"default\"]\n\
         [component.js-asks.dependencies]\n\
         \"wisp:composed/asker\" = \"^1\"\n\
         [component.python]\n\
         source = \"{{python-sdk5}}\"\n"
    ))
    .file(
        ".config/wasm-pkg/config.toml",
        format!("[namespace_registries]\nwisp = \"{}\"\n", registry.address),
    );

    let fetched = build(&app, "one", &[]);
    assert!(fetched.status.success(), "{}", fetched.stderr);
    let expected = format!("Fetched `wisp:composed` 1.1.0 of `{}`\n", registry.address);
    assert!(fetched.stderr.contains(&expected), "{}", fetched.stderr);
    assert!(fetched.stderr.contains(&format!("Fetched `http://{files}/gate.wasm`\n")), "{}", fetched.stderr);
    let lock = fs::read_to_string(app.path("wisp.lock")).unwrap();
    assert!(lock.contains("version = \"1.1.0\""), "{lock}");

    // A later build is the same, whatever is there by then, and needs nobody.
    publish(registry.address, "wisp/composed", "1.2.0", &other_build(&asker, "1.2.0"));
    let again = build(&app, "one", &[]);
    assert!(again.status.success() && !again.stderr.contains("Fetched"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(app.path("wisp.lock")).unwrap(), lock);
    let elsewhere = build(&app, "two", &[]);
    assert!(elsewhere.stderr.contains(&expected), "{}", elsewhere.stderr);
    // Somebody puts other content in its place.
    publish(registry.address, "wisp/composed", "1.1.0", &other_build(&asker, "evil"));
    let refused = build(&app, "three", &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("error[WISP-E0818]: spin.toml:18: "), "{}", refused.stderr);
    let updated = build(&app, "three", &["--update"]);
    assert!(updated.stderr.contains("1.2.0"), "{}", updated.stderr);

    // Served from the cache of the suite, into which it is fetched once more.
    let running = app.start();
    assert_eq!(running.get("/count").text(), "1");
    let denied = running.get("/ask?what=key-value").text();
    assert_eq!(denied, "error: Error::AccessDenied", "nothing is inherited");
    let through = running.get("/");
    assert_eq!(through.headers_named("x-gate"), ["passed"], "{}", through.text());
}

#[test]
fn an_app_of_parts_from_elsewhere_is_packed_whole() {
    let (Some(registry), Some(component)) = (DockerRegistry::start(), guest("rust-sdk7")) else { return };
    publish(registry.address, "shop/front", "1.0.0", &fs::read(component).unwrap());
    let app = App::new(&format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"packed\"\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"front\"\n\
         [component.front]\n\
         source = {{ registry = \"{}\", package = \"shop:front\", version = \"1.0.0\" }}\n",
        registry.address
    ));
    let reference = format!("{}/apps/packed:1.0", registry.address);
    let mut push = wisp();
    push.args(["registry", "push", &reference]).current_dir(app.path(""));
    push.env("HOME", app.path("")).env("WISP_CACHE_DIR", app.path("cache"));
    let pushed = finish(push);
    assert!(pushed.status.success(), "{}", pushed.stderr);
    assert!(app.path("wisp.lock").exists());
    // On another machine, from the image alone.
    let running = App::new("").arguments(["-f", &reference]).start();
    assert!(running.get("/").text().contains("Hello"));
}

#[test]
fn targets_may_be_elsewhere() {
    let (Some(registry), Some(component)) = (DockerRegistry::start(), guest("rust-sdk7")) else { return };
    // A component, where a package of WIT is expected.
    publish(registry.address, "our/cloud", "1.0.0", &fs::read(component).unwrap());
    let built = |definition: &str, hosts: &str| {
        let files = serve_file(definition.as_bytes().to_vec());
        let app = App::of(
            "rust-sdk7",
            &format!("targets = [{{ url = \"http://{files}/our-cloud.toml\" }}]\n{hosts}"),
        );
        let mut command = wisp();
        command.arg("build").current_dir(app.path("")).env("HOME", app.path(""));
        command.env("WISP_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("suite-cache"));
        command.env_remove("XDG_CONFIG_HOME");
        let finished = finish(command);
        let lock = fs::read_to_string(app.path("wisp.lock")).unwrap_or_default();
        assert!(lock.contains(&format!("url = \"http://{files}/our-cloud.toml\"")), "{lock}");
        finished
    };
    let world = "\"spin:up/http-trigger@4.1.0\"";
    let fits = built(&format!("[triggers.http]\nworlds = [{world}]\n"), "");
    assert!(fits.status.success(), "{}", fits.stderr);
    // Others of its app are for who has them, and what is to be had for those who need it.
    let chains = "allowed_outbound_hosts = [\"http://other.spin.internal\"]";
    let cannot = built(&format!("[triggers.http]\nworlds = [{world}]\n"), chains);
    assert!(cannot.stderr.contains("error[WISP-E1311]"), "{}", cannot.stderr);
    assert!(cannot.stderr.contains("`local_service_chaining`"), "{}", cannot.stderr);
    let can = format!("[triggers.http]\nworlds = [{world}]\ncapabilities = [\"local_service_chaining\"]\n");
    assert!(built(&can, chains).status.success());
    // Worlds of packages: of a registry that is named, or of none.
    let named = format!(
        "[triggers]\nhttp = [{{ registry = \"{}\", world = \"our:cloud/handler@1.0.0\" }}]\n",
        registry.address
    );
    let no_wit = built(&named, "");
    assert!(no_wit.stderr.contains("error[WISP-E1310]"), "{}", no_wit.stderr);
    assert!(no_wit.stderr.contains("is no package of WIT"), "{}", no_wit.stderr);
    let unknown = built("[triggers]\nhttp = [\"our:cloud/handler@1.0.0\"]\n", "");
    assert!(unknown.stderr.contains("no registry is known"), "{}", unknown.stderr);
}

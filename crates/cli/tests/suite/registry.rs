//! Apps as images: pushed, pulled, and served from a registry.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    App, DockerRegistry, Finished, OwnRegistry, START_LIMIT, finish, guest, have, skip, stalling_proxy, wisp,
};

/// Somebody's machine: a home, and an app in it.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("wisp-machine-").tempdir().unwrap())
    }

    /// An app of one component of this size. Nothing compiles it.
    fn with_app(size: usize) -> Self {
        let machine = Self::new();
        machine.write(
            "app/spin.toml",
            "spin_manifest_version = 2\n\
             [application]\n\
             name = \"shop\"\n\
             version = \"1.0\"\n\
             [[trigger.http]]\n\
             route = \"/...\"\n\
             component = \"shop\"\n\
             [component.shop]\n\
             source = \"shop.wasm\"\n\
             files = [\"static/**/*\"]\n\
             [component.shop.tool.wisp]\n\
             reuse = true\n",
        );
        let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
        machine.write("app/shop.wasm", content);
        machine.write("app/static/small.txt", "small");
        machine.write("app/static/large.txt", "large ".repeat(1000));
        machine
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = wisp();
        command.arg("registry").args(arguments).current_dir(self.0.path());
        command.env("HOME", self.0.path()).env_remove("XDG_CONFIG_HOME").env_remove("DOCKER_CONFIG");
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        finish(self.command(arguments))
    }

    /// What a command said as JSON.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.run(&[arguments, &["--format", "json"]].concat());
        assert!(finished.status.success(), "{arguments:?}:\n{}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], code: &str) {
        let finished = self.run(arguments);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}");
        assert!(finished.stderr.contains(&format!("error[{code}]")), "{}", finished.stderr);
    }
}

#[test]
fn an_app_goes_to_a_registry_and_comes_back() {
    let Some(registry) = DockerRegistry::start() else { return };
    let machine = Machine::with_app(100_000);
    let reference = format!("{}/team/shop:1.0", registry.address);
    let pushed = machine.json(&["push", &reference, "-f", "app", "--annotation", "stage=test"]);
    assert_eq!(pushed["blobs_present"], 0);
    assert_eq!(pushed["blobs_sent"], 4, "component, large file, locked app, configuration");
    let sent = registry.requests("\"PUT /v2/team/shop/blobs/uploads/");
    assert_eq!(sent, 4);

    // The same app once more: no blob is sent, and it is the same image.
    let again = machine.json(&["push", &reference, "-f", "app/spin.toml", "--annotation", "stage=test"]);
    assert_eq!((&again["blobs_sent"], &again["bytes_sent"]), (&Value::from(0), &Value::from(0)));
    assert_eq!(again["digest"], pushed["digest"]);
    assert_eq!(registry.requests("\"PUT /v2/team/shop/blobs/uploads/"), sent);

    let inspected = machine.json(&["inspect", &reference]);
    assert_eq!(inspected["digest"], pushed["digest"]);
    let manifest = &inspected["manifest"];
    assert_eq!(manifest["annotations"]["stage"], "test");
    assert_eq!(manifest["annotations"]["org.opencontainers.image.title"], "shop");
    let types: Vec<&str> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["mediaType"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.wasm.content.layer.v1+data",
            "application/vnd.fermyon.spin.application.v1+config",
        ]
    );
    let shown = machine.run(&["inspect", &reference]);
    assert!(shown.stdout.contains(pushed["digest"].as_str().unwrap()), "{}", shown.stdout);

    let other = Machine::new();
    let pulled = other.json(&["pull", &reference, "--output", "shop"]);
    assert_eq!(pulled["digest"], pushed["digest"]);
    assert_eq!(pulled["blobs_fetched"], 4);
    let files = other.path("shop/files/shop/static");
    let same = |one: &Path, two: &Path| fs::read(one).unwrap() == fs::read(two).unwrap();
    assert!(same(&files.join("small.txt"), &machine.path("app/static/small.txt")));
    assert!(same(&files.join("large.txt"), &machine.path("app/static/large.txt")));
    let component = fs::read_dir(other.path("shop/components")).unwrap().next().unwrap().unwrap().path();
    assert!(same(&component, &machine.path("app/shop.wasm")));
    // What came back is the same app: pushed again, it is the same content.
    let from_other = other.json(&["push", &reference, "-f", "shop", "--annotation", "stage=test"]);
    assert_eq!(from_other["digest"], pushed["digest"]);
    assert_eq!(other.json(&["pull", &reference])["blobs_fetched"], 0);
    other.refused(&["pull", &reference, "--output", "shop"], "WISP-E0802");
    other.refused(&["pull", &format!("{}/team/none:1.0", registry.address)], "WISP-E0813");
}

#[test]
fn an_app_may_be_built_before_it_is_pushed() {
    let Some(registry) = DockerRegistry::start() else { return };
    let machine = Machine::with_app(100);
    let manifest = fs::read_to_string(machine.path("app/spin.toml")).unwrap();
    let build = "[component.shop.build]\ncommand = \"echo built > shop.wasm\"\n";
    machine.write("app/spin.toml", manifest + build);
    let reference = format!("{}/team/built:1.0", registry.address);
    machine.json(&["push", &reference, "-f", "app", "--build"]);
    assert_eq!(fs::read_to_string(machine.path("app/shop.wasm")).unwrap(), "built\n");
    machine.json(&["pull", &reference, "-o", "pulled"]);
    machine.write("app/spin.toml", "no manifest");
    machine.refused(&["push", &reference, "-f", "app", "--build"], "WISP-E0101");
}

#[test]
fn a_pull_that_is_killed_goes_on() {
    const SIZE: usize = 8_000_000;
    let Some(registry) = DockerRegistry::start() else { return };
    let machine = Machine::with_app(SIZE);
    machine.json(&["push", &format!("{}/team/shop:1.0", registry.address), "-f", "app"]);

    let other = Machine::new();
    let proxy = stalling_proxy(registry.address, SIZE / 2);
    let mut pulling = other
        .command(&["pull", &format!("{proxy}/team/shop:1.0")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = other.path(".cache/wisp/registry/partial");
    // Small blobs may be there too, all or in part, or go while this looks at them.
    let sizes_of_partial = || -> Vec<u64> {
        let entries = fs::read_dir(&partial).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).collect()
    };
    let size_of_partial = || sizes_of_partial().iter().sum::<u64>();
    let end = Instant::now() + START_LIMIT;
    while size_of_partial() < SIZE as u64 / 4 {
        assert!(Instant::now() < end, "it does not begin");
        assert_eq!(pulling.try_wait().unwrap(), None, "it ends");
        std::thread::sleep(Duration::from_millis(5));
    }
    pulling.kill().unwrap();
    pulling.wait().unwrap();
    assert!(!other.path(".cache/wisp/registry/unpacked").exists());

    // Of a small blob that was all there but for its name, nothing is left to go on with.
    let (most, all) = (sizes_of_partial().into_iter().max().unwrap_or(0), size_of_partial());
    let pulled = other.json(&["pull", &format!("{}/team/shop:1.0", registry.address), "-o", "shop"]);
    let resumed = pulled["bytes_resumed"].as_u64().unwrap();
    assert!((most..=all).contains(&resumed), "{resumed} of {most} to {all}");
    assert!(pulled["bytes_fetched"].as_u64().unwrap() < SIZE as u64);
    let component = fs::read_dir(other.path("shop/components")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(component).unwrap(), fs::read(machine.path("app/shop.wasm")).unwrap());
}

#[test]
fn an_app_is_served_from_a_registry() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let Some(registry) = DockerRegistry::start() else { return };
    let machine = Machine::new();
    machine.write(
        "app/spin.toml",
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"shop\"\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"shop\"\n\
         [component.shop]\n\
         source = \"shop.wasm\"\n\
         files = [\"static/*\"]\n",
    );
    fs::copy(guest("rust-sdk7").unwrap(), machine.path("app/shop.wasm")).unwrap();
    machine.write("app/static/small.txt", "from the image");
    let reference = format!("{}/team/shop:1.0", registry.address);
    machine.json(&["push", &reference, "-f", "app"]);
    let app = App::new("").arguments(["-f", &reference]).start();
    assert_eq!(app.ok("/file", &[("path", "/static/small.txt")]), "from the image");
    drop(app);
    // Also where the registry is gone by now, its folder is an app like any other.
    machine.json(&["pull", &reference, "--output", "pulled"]);
    drop(registry);
    let folder = machine.path("pulled");
    let app = App::new("").arguments(["-f", folder.to_str().unwrap()]).start();
    assert_eq!(app.ok("/file", &[("path", "/static/small.txt")]), "from the image");
}

#[test]
fn a_registry_may_want_to_know_who_asks() {
    let registry = OwnRegistry::start("the password");
    let machine = Machine::with_app(1000);
    let (host, reference) = (registry.address.to_string(), format!("{}/team/shop:1.0", registry.address));
    machine.refused(&["push", &reference, "-f", "app"], "WISP-E0812");
    machine.refused(&["login", &host, "-u", "somebody", "-p", "a guess"], "WISP-E0812");
    machine.refused(&["push", &reference, "-f", "app"], "WISP-E0812");
    let finished = machine.run(&["login", &host, "-u", "somebody", "-p", "the password"]);
    assert!(finished.status.success(), "{}", finished.stderr);
    assert_eq!(finished.stdout, "");
    assert!(!finished.stderr.contains("the password"));
    assert_eq!(machine.json(&["push", &reference, "-f", "app"])["blobs_sent"], 4);
    assert_eq!(machine.json(&["push", &reference, "-f", "app"])["blobs_sent"], 0);
    assert_eq!(machine.json(&["pull", &reference])["blobs_fetched"], 4);
    assert!(machine.run(&["logout", &host]).status.success());
    machine.refused(&["pull", &reference], "WISP-E0812");
    // What `docker login` keeps will do.
    let auth = "c29tZWJvZHk6dGhlIHBhc3N3b3Jk";
    machine.write(".docker/config.json", format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"{auth}\"}}}}}}"));
    assert_eq!(machine.json(&["pull", &reference])["blobs_fetched"], 0);
}

/// skopeo is what Debian has of ordinary clients: it speaks to registries as Podman does.
#[test]
fn an_ordinary_client_moves_images_to_and_from_our_registry() {
    const PASSWORD: &str = "secret";
    let skopeo = |machine: &Machine, arguments: &[&str]| {
        let mut command = Command::new("skopeo");
        command
            .arg("--insecure-policy")
            .args(arguments)
            .current_dir(machine.path(""))
            .env("HOME", machine.path(""));
        finish(command)
    };
    if Command::new("skopeo").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip("the Debian package `skopeo` is not installed; `cargo xtask setup` does that");
        return;
    }
    let registry = OwnRegistry::start(PASSWORD);
    let machine = Machine::with_app(100_000);
    let host = registry.address.to_string();
    assert!(machine.run(&["login", &host, "-u", "somebody", "-p", PASSWORD]).status.success());
    let pushed = machine.json(&["push", &format!("{host}/team/shop:1.0"), "-f", "app"]);
    let (ours, theirs) =
        (format!("docker://{host}/team/shop:1.0"), format!("docker://{host}/other/shop:2.0"));
    let creds = format!("somebody:{PASSWORD}");
    for arguments in [
        &["inspect", "--tls-verify=false", "--creds", &creds, &ours][..],
        &[
            "copy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--src-creds",
            &creds,
            &ours,
            "oci:copy:1.0",
        ],
        &[
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            "--dest-creds",
            &creds,
            "oci:copy:1.0",
            &theirs,
        ],
    ] {
        let finished = skopeo(&machine, arguments);
        assert!(finished.status.success(), "{arguments:?}:\n{}", finished.stderr);
    }
    let pulled = machine.json(&["pull", &format!("{host}/other/shop:2.0")]);
    assert_eq!(pulled["digest"], pushed["digest"]);
    let list = ["list-tags", "--tls-verify=false", "--creds", &creds, &format!("docker://{host}/other/shop")];
    let tags: Value = serde_json::from_str(&skopeo(&machine, &list).stdout).unwrap();
    assert_eq!(tags["Tags"], serde_json::json!(["2.0"]));
    let finished = skopeo(&machine, &["delete", "--tls-verify=false", "--creds", &creds, &theirs]);
    assert!(finished.status.success(), "{}", finished.stderr);
    machine.refused(&["pull", &format!("{host}/other/shop:2.0")], "WISP-E0813");
    let finished = skopeo(&machine, &["inspect", "--tls-verify=false", "--creds", "somebody:wrong", &ours]);
    assert!(!finished.status.success());
}

#[test]
fn what_is_wrong_is_said() {
    let machine = Machine::with_app(10);
    for arguments in [
        &["push"][..],
        &["push", "shop:1.0"],
        &["pull", "registry.example/UPPER"],
        &["login", "registry.example", "-u", "a", "-p", "b", "--password-stdin"],
        &["login", "registry.example"],
        &["inspect", "-k"],
    ] {
        let finished = machine.run(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}:\n{}", finished.stderr);
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    machine.refused(&["pull", &format!("{closed}/team/shop:1.0")], "WISP-E0814");
    machine.refused(&["push", &format!("{closed}/team/shop:1.0"), "-f", "nowhere"], "WISP-E0121");
    fs::remove_file(machine.path("app/shop.wasm")).unwrap();
    machine.refused(&["push", &format!("{closed}/team/shop:1.0"), "-f", "app"], "WISP-E0801");
}

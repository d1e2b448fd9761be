//! The developer's loop, from `wisp new` to an app that answers.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    compiled_images::edited_js,
    harness::{Finished, Output, START_LIMIT, Served, finish, guests_dir, have, wisp},
};

/// A folder to work in, with settings of its own.
pub(crate) struct Desk {
    folder: TempDir,
    /// Folders of programs that go before those of the PATH.
    pub(super) programs: Vec<PathBuf>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::Builder::new().prefix("wisp-suite-").tempdir().unwrap(),
            programs: Vec::new(),
        }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// `wisp` in a folder of the desk.
    pub(crate) fn command(&self, folder: &str, arguments: &[&str]) -> Command {
        let mut command = wisp();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = self.programs.iter().cloned().chain(std::env::split_paths(&path));
        command
            .args(arguments)
            .current_dir(self.path(folder))
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("COLUMNS", "80")
            .env("XDG_DATA_HOME", self.path("data"))
            .env("WISP_REGISTRIES_FILE", self.path("registries.json"))
            .env("WISP_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("suite-cache"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GOTOOLCHAIN", "local")
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS");
        command
    }

    pub(crate) fn wisp(&self, folder: &str, arguments: &[&str]) -> Finished {
        finish(self.command(folder, arguments))
    }

    /// Runs it and expects it to do well.
    #[track_caller]
    pub(crate) fn done(&self, folder: &str, arguments: &[&str]) -> Finished {
        let finished = self.wisp(folder, arguments);
        assert!(finished.status.success(), "{arguments:?}\n{}{}", finished.stdout, finished.stderr);
        finished
    }

    /// Runs it and expects it to fail, with this exit code.
    #[track_caller]
    pub(crate) fn refused(&self, folder: &str, arguments: &[&str], code: i32) -> String {
        let finished = self.wisp(folder, arguments);
        assert_eq!(
            finished.status.code(),
            Some(code),
            "{arguments:?}\n{}{}",
            finished.stdout,
            finished.stderr
        );
        format!("{}{}", finished.stdout, finished.stderr)
            .replace(self.folder.path().to_str().unwrap(), "[DESK]")
    }
}

/// A program of WASI preview 1 that prints an answer, one of two by the hour of the day.
pub(crate) fn clock_program(day: &str, night: &str) -> Vec<u8> {
    let answer = |text: &str| format!("Content-Type: text/plain\n\n{text}\n");
    let (day, night) = (answer(day), answer(night));
    let data = |text: &str| text.replace('\n', "\\n");
    wat::parse_str(format!(
        r#"(module
            (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 256) "{}")
            (data (i32.const 1024) "{}")
            (func $say (param $address i32) (param $length i32)
                (i32.store (i32.const 16) (local.get $address))
                (i32.store (i32.const 20) (local.get $length))
                (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))))
            (func (export "_start")
                (drop (call $time (i32.const 0) (i64.const 1) (i32.const 0)))
                (i64.ge_u
                    (i64.rem_u (i64.div_u (i64.load (i32.const 0)) (i64.const 3600000000000)) (i64.const 24))
                    (i64.const 18))
                (if (then (call $say (i32.const 1024) (i32.const {})))
                    (else (call $say (i32.const 256) (i32.const {}))))))"#,
        data(&day),
        data(&night),
        night.len(),
        day.len()
    ))
    .unwrap()
}

/// A manifest with one command behind all routes, built by copying a file.
pub(crate) const COPIED: &str = r#"spin_manifest_version = 2

[application]
name = "copied"

[[trigger.http]]
route = "/..."
component = "copied"
executor = { type = "wagi" }

[component.copied]
source = "copied.wasm"

[component.copied.build]
command = "cp source.wasm copied.wasm"
watch = ["source.wasm"]
"#;

#[test]
fn templates_are_listed_for_people_and_programs() {
    let desk = Desk::new();
    insta::assert_snapshot!(desk.done(".", &["templates", "list"]).stdout);
    let list: serde_json::Value =
        serde_json::from_str(&desk.done(".", &["templates", "list", "--format", "json"]).stdout).unwrap();
    let rust = list.as_array().unwrap().iter().find(|template| template["id"] == "http-rust").unwrap();
    assert_eq!(rust["add"], true);
    assert_eq!(rust["parameters"][1]["name"], "http-path");
    let tagged = desk.done(".", &["templates", "list", "--tag", "wagi"]).stdout;
    assert_eq!(tagged.lines().count(), 4, "{tagged}");
}

#[test]
fn a_new_app_says_what_to_do_next_and_never_overwrites() {
    let desk = Desk::new();
    let made = desk.done(".", &["new", "hello", "-t", "redirect", "-v", "redirect-to=/elsewhere"]);
    assert_eq!(made.stdout, "");
    insta::assert_snapshot!(made.stderr, @r"
    Created `hello` from the template `redirect` in hello
      cd hello && wisp build --up
    ");
    insta::assert_snapshot!(desk.refused(".", &["new", "hello", "-t", "redirect"], 1));
    desk.done(".", &["new", "hello", "-t", "redirect", "--allow-overwrite"]);
    insta::assert_snapshot!(desk.refused(".", &["new", "hello", "-t", "no-such-template"], 2));
    insta::assert_snapshot!(desk.refused(".", &["new"], 2));
    insta::assert_snapshot!(desk.refused(".", &["new", "-t", "redirect"], 2));
    insta::assert_snapshot!(desk.refused(".", &["new", "1st", "-t", "redirect"], 2));
    insta::assert_snapshot!(desk.refused(".", &["new", "a", "-t", "redirect", "-v", "to=b"], 2));
    let status = ["new", "a", "-t", "redirect", "-v", "redirect-statuscode=200"];
    insta::assert_snapshot!(desk.refused(".", &status, 2));
    assert!(!desk.path("a").exists(), "nothing is written where something is wrong");
}

#[test]
fn components_are_added_to_an_app() {
    let desk = Desk::new();
    desk.done(".", &["new", "site", "-t", "http-empty", "--no-vcs"]);
    assert!(!desk.path("site/.gitignore").exists());
    desk.done("site", &["add", "moved", "-t", "redirect", "-v", "http-path=/old", "-v", "redirect-to=/new"]);
    desk.done("site", &["add", "Front Page", "-t", "http-c", "-v", "http-path=/..."]);
    let manifest = desk.read("site/spin.toml");
    assert!(manifest.contains("[component.front-page]"), "{manifest}");
    assert!(manifest.contains("workdir = \"Front Page\""), "{manifest}");
    insta::assert_snapshot!(desk.refused("site", &["add", "front-page", "-t", "http-c"], 2));
    insta::assert_snapshot!(desk.refused("site", &["add", "x", "-t", "http-empty"], 2));
    let served = Served::start(desk.command("site", &["up", "-c", "front-page", "--listen", "127.0.0.1:0"]));
    assert!(served.is_err(), "it was not built");
}

#[test]
fn templates_of_strangers_come_from_folders_and_repositories() {
    let desk = Desk::new();
    desk.write(
        "repository/templates/mine/metadata/spin-template.toml",
        "manifest_version = \"1\"\nid = \"mine\"\ndescription = \"Of my own\"\n\
         [parameters]\nwho = { type = \"string\", prompt = \"Who\" }\n",
    );
    let manifest = "spin_manifest_version = 2\n[application]\nname = \"{{ project-name | snake_case }}\"\n\
                    description = \"for {{ who }}\"\n";
    desk.write("repository/templates/mine/content/spin.toml", manifest);
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=a", "-c", "user.email=a@example.com"]).args(arguments);
        command.current_dir(desk.path("repository")).env("GIT_CONFIG_GLOBAL", "/dev/null");
        assert!(command.output().unwrap().status.success(), "{arguments:?}");
    };
    git(&["init", "--quiet", "--initial-branch", "main"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "--message", "templates"]);

    desk.done(".", &["new", "One App", "-t", "mine", "--from", "repository", "-v", "who=Ada"]);
    assert!(desk.read("One App/spin.toml").contains("name = \"one_app\""));
    let url = format!("file://{}", desk.path("repository").display());
    desk.write("values.toml", "who = \"Grace\"\n");
    let arguments =
        ["new", "two", "-t", "mine", "--from", &url, "--branch", "main", "--values-file", "values.toml"];
    desk.done(".", &arguments);
    assert!(desk.read("two/spin.toml").contains("for Grace"));
    insta::assert_snapshot!(desk.refused(".", &["new", "three", "-t", "mine", "--from", &url], 2));

    desk.done(".", &["templates", "install", "--git", &url]);
    assert!(desk.done(".", &["templates", "list"]).stdout.contains("Of my own"));
    assert!(desk.refused(".", &["templates", "install", "--git", &url], 1).contains("WISP-E1207"));
    desk.done(".", &["templates", "install", "--dir", "repository", "--upgrade"]);
    for (flag, archive) in [("-cf", "mine.tar"), ("-czf", "mine.tar.gz")] {
        let mut tar = Command::new("tar");
        tar.args([flag, archive, "repository"]).current_dir(desk.path(""));
        assert!(tar.output().unwrap().status.success());
        desk.done(".", &["templates", "install", "--tar", archive, "--upgrade"]);
    }
    desk.write("broken.tar.gz", "no archive");
    let broken = desk.refused(".", &["templates", "install", "--tar", "broken.tar.gz"], 1);
    assert!(broken.contains("WISP-E1203"), "{broken}");
    desk.done(".", &["new", "four", "-t", "mine", "-v", "who=Linus"]);
    desk.done(".", &["templates", "uninstall", "mine"]);
    assert!(desk.refused(".", &["templates", "uninstall", "mine"], 2).contains("WISP-E1201"));
    assert!(desk.refused(".", &["new", "a", "--from", "values.toml"], 1).contains("WISP-E1203"));
}

/// What a template makes is built, answers, and passes its own tests.
#[track_caller]
fn new_build_up_test(desk: &Desk, template: &str, target: &str, status: u16, contains: &str) {
    let built = desk.done("my-app", &["build"]);
    assert!(
        built.stderr.contains("Done in ") || built.stderr.contains("Nothing to build"),
        "{}",
        built.stderr
    );
    let served = Served::start(desk.command("my-app", &["up", "--listen", "127.0.0.1:0"])).unwrap();
    let response = served.get(target);
    assert_eq!(response.status, status, "{template}");
    assert!(response.text().contains(contains), "{template}: {}", response.text());
    let tested = desk.done("my-app", &["test"]);
    assert!(tested.stderr.contains(" 0 failed"), "{template}: {}{}", tested.stdout, tested.stderr);
}

fn make(desk: &Desk, template: &str) {
    desk.done(".", &["new", "my-app", "-t", template, "-a"]);
}

/// Rust's templates are built in a folder that is kept from run to run.
fn made_in_rust(template: &str) -> Option<Desk> {
    // Who has built this guest has the target.
    if !have(&["rust-sdk7"]) {
        return None;
    }
    let desk = Desk::new();
    make(&desk, template);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates").join(template);
    fs::create_dir_all(&target).unwrap();
    symlink(target, desk.path("my-app/target")).unwrap();
    Some(desk)
}

#[test]
fn the_template_of_a_redirect_answers() {
    let desk = Desk::new();
    make(&desk, "redirect");
    new_build_up_test(&desk, "redirect", "/", 302, "");
}

#[test]
fn the_template_in_rust_answers() {
    if let Some(desk) = made_in_rust("http-rust") {
        new_build_up_test(&desk, "http-rust", "/any", 200, "Hello from my-app!");
    }
}

#[test]
fn the_template_in_rust_without_an_sdk_answers() {
    if let Some(desk) = made_in_rust("http-rust-wasi") {
        new_build_up_test(&desk, "http-rust-wasi", "/any", 200, "Hello from my-app!");
    }
}

#[test]
fn the_template_of_a_static_site_serves_files() {
    let Some(desk) = made_in_rust("static-fileserver") else { return };
    desk.write("my-app/assets/deep/a page.txt", "text");
    new_build_up_test(&desk, "static-fileserver", "/", 200, "<h1>my-app</h1>");
    let served = Served::start(desk.command("my-app", &["up", "--listen", "127.0.0.1:0"])).unwrap();
    let page = served.get("/deep/a%20page.txt");
    assert_eq!((page.status, page.text().as_str()), (200, "text"));
    assert_eq!(page.header("content-type"), Some("text/plain; charset=utf-8"));
    let tag = page.header("etag").unwrap().to_owned();
    assert_eq!(served.request("GET", "/deep/a%20page.txt", &[("if-none-match", &tag)]).status, 304);
    assert_eq!(served.request("HEAD", "/deep/a%20page.txt", &[]).status, 200);
    assert_eq!(served.request("POST", "/", &[]).status, 405);
    for missing in ["/no", "/../spin.toml", "/%2e%2e/spin.toml", "/deep/%zz"] {
        assert_eq!(served.get(missing).status, 404, "{missing}");
    }
}

#[test]
fn the_template_in_c_answers() {
    if !have(&["c-wagi"]) {
        return;
    }
    let mut desk = Desk::new();
    desk.programs.push(guests_dir().join("tools/zig-bin"));
    make(&desk, "http-c");
    new_build_up_test(&desk, "http-c", "/any", 200, "Hello from my-app!");
}

#[test]
fn the_template_in_zig_answers() {
    if !have(&["c-wagi"]) {
        return;
    }
    let mut desk = Desk::new();
    desk.programs.push(guests_dir().join("tools/zig-bin"));
    make(&desk, "http-zig");
    new_build_up_test(&desk, "http-zig", "/any", 200, "Hello from my-app!");
}

#[test]
fn the_template_in_assemblyscript_answers() {
    if !have(&["as-wagi"]) {
        return;
    }
    let desk = Desk::new();
    make(&desk, "http-as");
    let guest = guests_dir().join("build/as-wagi");
    assert_eq!(packages(&desk.path("my-app/package.json")), packages(&guest.join("package.json")));
    symlink(guest.join("node_modules"), desk.path("my-app/node_modules")).unwrap();
    new_build_up_test(&desk, "http-as", "/any", 200, "Hello from my-app!");
}

/// The packages that a project names, with their versions.
fn packages(path: &Path) -> (serde_json::Value, serde_json::Value) {
    let package: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    (package["devDependencies"].clone(), package["dependencies"].clone())
}

#[test]
fn the_template_in_go_answers() {
    if !have(&["go-wagi"]) {
        return;
    }
    let mut desk = Desk::new();
    desk.programs.push(guests_dir().join("tools/go/bin"));
    make(&desk, "http-go");
    new_build_up_test(&desk, "http-go", "/any", 200, "Hello from my-app!");
}

#[test]
fn the_templates_in_javascript_and_typescript_answer() {
    if !have(&["js"]) {
        return;
    }
    for template in ["http-js", "http-ts"] {
        let desk = Desk::new();
        make(&desk, template);
        // The packages that the guest was built with: fetching them takes a minute.
        let guest = guests_dir().join("build/js");
        assert_eq!(packages(&desk.path("my-app/package.json")), packages(&guest.join("package.json")));
        symlink(guest.join("node_modules"), desk.path("my-app/node_modules")).unwrap();
        new_build_up_test(&desk, template, "/any", 200, "Hello from my-app!");
    }
}

#[test]
fn the_template_in_python_answers() {
    if !have(&["python-sdk5"]) {
        return;
    }
    let desk = Desk::new();
    make(&desk, "http-py");
    let pins = desk.read("my-app/requirements.txt");
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/python-sdk5/requirements.txt");
    assert_eq!(pins, fs::read_to_string(guest).unwrap(), "the guest and the template use the same tools");
    let environment = fs::read_dir(guests_dir().join("tools")).unwrap().find_map(|entry| {
        let folder = entry.unwrap().path();
        let packages = fs::read_dir(folder.join("lib")).ok()?.next()?.unwrap().path().join("site-packages");
        packages.join("spin_sdk-5.0.0.dist-info").is_dir().then_some(folder)
    });
    // Its tools look at where files really are, so a link to the folder will not do.
    link_files(&environment.unwrap(), &desk.path("my-app/.venv"));
    new_build_up_test(&desk, "http-py", "/any", 200, "Hello from my-app!");
}

/// A folder with the same files as another.
fn link_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, place) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            link_files(&path, &place);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path).unwrap(), place).unwrap();
        } else if fs::hard_link(&path, &place).is_err() {
            fs::copy(&path, &place).unwrap();
        }
    }
}

#[test]
fn a_build_shows_what_failed_and_skips_what_did_not_change() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    let failed = desk.refused("app", &["build"], 1);
    insta::assert_snapshot!(times_hidden(&failed));
    desk.write("app/source.wasm", clock_program("day", "night"));
    let built = desk.done("app", &["build"]).stderr;
    insta::assert_snapshot!(times_hidden(&built), @r"
    Building `copied`: cp source.wasm copied.wasm
    Built `copied` in [TIME]
    Done in [TIME]
    ");
    let unchanged = desk.done("app", &["build"]).stderr;
    insta::assert_snapshot!(times_hidden(&unchanged), @r"
    Unchanged: `copied`
    Done in [TIME]
    ");
    insta::assert_snapshot!(desk.refused("app", &["build", "-c", "other"], 2));
}

#[test]
fn a_build_names_imports_that_are_missing_and_grants_that_are() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let desk = Desk::new();
    let manifest = COPIED.replace("executor = { type = \"wagi\" }\n", "");
    desk.write("app/spin.toml", &manifest);
    fs::copy(guests_dir().join("rust-sdk7.wasm"), desk.path("app/source.wasm")).unwrap();
    let built = unwrapped(&desk.done("app", &["build"]).stderr);
    assert!(built.contains("imports key-value stores (`spin:key-value/key-value@3.0.0`)"), "{built}");
    assert!(
        built.contains("add `key_value_stores = [\"default\"]` below line 10 of the manifest"),
        "{built}"
    );
    let missing = wat::parse_str(
        "(component (import \"example:weather/report@1.0.0\" (instance (export \"today\" (func)))))",
    );
    desk.write("app/source.wasm", missing.unwrap());
    let refused = desk.refused("app", &["build"], 1);
    assert!(refused.contains("WISP-E04"), "{refused}");
    desk.done("app", &["build", "--skip-checks"]);
}

#[test]
fn a_build_may_serve_what_it_built() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/source.wasm", clock_program("same", "same"));
    let served =
        Served::start(desk.command("app", &["build", "--up", "--", "--listen", "127.0.0.1:0"])).unwrap();
    assert_eq!(served.get("/").text(), "same\n");
    drop(served);
    let served = Served::start(desk.command("app", &["up", "--build", "--listen", "127.0.0.1:0"])).unwrap();
    assert_eq!(served.get("/").text(), "same\n");
}

/// How often a new version is saved while requests come in.
const EDITS_COUNT: usize = 100;

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(5);

#[test]
fn a_hundred_edits_under_load_fail_no_request() {
    let desk = Desk::new();
    // Versions differ in their data only; both kinds are compiled anew for each.
    let is_component = have(&["tiny"]);
    let manifest =
        if is_component { COPIED.replace("executor = { type = \"wagi\" }\n", "") } else { COPIED.into() };
    desk.write("app/spin.toml", manifest);
    let tiny = is_component.then(|| fs::read(guests_dir().join("tiny.wasm")).unwrap());
    let program = |number: usize| match &tiny {
        None => clock_program(&format!("{number:010}"), &format!("{number:010}")),
        Some(tiny) => {
            let sentence = b"The number of this app is ";
            let start = tiny.windows(sentence.len()).position(|bytes| bytes == sentence).unwrap();
            let start = start + sentence.len();
            let mut program = tiny.clone();
            program[start..start + 10].copy_from_slice(format!("{number:010}").as_bytes());
            program
        }
    };
    desk.write("app/source.wasm", program(0));
    let served = Served::start(desk.command("app", &["watch", "--listen", "127.0.0.1:0"])).unwrap();
    served.stderr.wait_for_text("watching for edits");
    let (is_over, answered_count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (is_over, answered_count) = (is_over.clone(), answered_count.clone());
            let address = served.address;
            thread::spawn(move || {
                let mut connection = crate::harness::Connection::open(address);
                while !is_over.load(Ordering::Relaxed) {
                    connection.request("GET", "/", &[], b"");
                    let response = connection.response();
                    assert_eq!(response.status, 200);
                    assert!(response.text().trim().parse::<usize>().is_ok(), "{}", response.text());
                    answered_count.fetch_add(1, Ordering::Relaxed);
                    // A rate that leaves the machine something to build with.
                    thread::sleep(PAUSE);
                }
            })
        })
        .collect();
    for number in 1..=EDITS_COUNT {
        desk.write("app/source.wasm", program(number));
        let expected = format!("{number:010}");
        let end = std::time::Instant::now() + START_LIMIT;
        while served.get("/").text().trim() != expected {
            assert!(std::time::Instant::now() < end, "edit {number} is not served");
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for load in load {
        load.join().expect("no request fails");
    }
    assert!(answered_count.load(Ordering::Relaxed) >= EDITS_COUNT as u64);
    let mut swaps_ms: Vec<f64> = served
        .stderr
        .lines()
        .iter()
        .filter_map(|line| line.split_once(" building, ")?.1.strip_suffix(" ms to swap")?.parse().ok())
        .collect();
    assert_eq!(swaps_ms.len(), EDITS_COUNT, "{}", served.stderr.text());
    swaps_ms.sort_by(f64::total_cmp);
    eprintln!(
        "save to serving beyond the build: median {:.1} ms, slowest {:.1} ms; {} requests meanwhile",
        swaps_ms[EDITS_COUNT / 2],
        swaps_ms[EDITS_COUNT - 1],
        answered_count.load(Ordering::Relaxed)
    );
}

#[test]
fn an_edit_of_a_javascript_app_compiles_nothing() {
    let (Some(one), Some(other)) = (edited_js("Hello, first!\n"), edited_js("Hello, other!\n")) else {
        return;
    };
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED.replace("executor = { type = \"wagi\" }\n", ""));
    desk.write("app/source.wasm", one);
    let mut watch = desk.command("app", &["watch", "--listen", "127.0.0.1:0"]);
    // Where nothing is left of an earlier run.
    watch.env("WISP_CACHE_DIR", desk.path("cache"));
    let served = Served::start(watch).unwrap();
    served.stderr.wait_for_text("watching for edits");
    assert_eq!(served.get("/").text(), "Hello, first!\n");
    let before_count = served.stderr.lines().len();
    desk.write("app/source.wasm", other);
    served.stderr.wait_for_text("Serving source.wasm after");
    assert_eq!(served.get("/").text(), "Hello, other!\n");
    let lines = served.stderr.lines();
    let of_edit = lines[before_count..].join("\n");
    assert!(of_edit.contains("its code was compiled before"), "{of_edit}");
    assert!(!of_edit.contains("compiled in"), "{of_edit}");
}

#[test]
fn an_edit_that_does_not_build_leaves_the_version_before() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    let served = {
        // Nothing can be served at first.
        let mut command = desk.command("app", &["watch", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = Output::of(child.stderr.take().unwrap());
        stderr.wait_for_text("waiting for an edit");
        desk.write("app/source.wasm", clock_program("one", "one"));
        Served::of(child, stderr).unwrap()
    };
    assert_eq!(served.get("/").text(), "one\n");
    served.stderr.wait_for_text("watching for edits");
    desk.write("app/source.wasm", "no program");
    served.stderr.wait_for_text("the version before goes on");
    assert_eq!(served.get("/").text(), "one\n");
    // The manifest is taken in as well.
    desk.write("app/source.wasm", clock_program("two", "two"));
    served.stderr.wait_for_text("Serving source.wasm after");
    assert_eq!(served.get("/").text(), "two\n");
    desk.write("app/spin.toml", COPIED.replace("route = \"/...\"", "route = \"/only\""));
    served.stderr.wait_for_text("Serving spin.toml after");
    assert_eq!((served.get("/").status, served.get("/only").status), (404, 200));
}

#[test]
fn a_component_is_looked_into() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/copied.wasm", clock_program("day", "night"));
    let shown = desk.done("app", &["inspect", "--no-compile"]).stdout;
    insta::assert_snapshot!(shown);
    let shown = desk.done("app", &["inspect", "copied.wasm", "--format", "json"]).stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["kind"], "module");
    assert!(shown[0]["image"]["size_bytes"].as_u64().unwrap() > 1_000, "{shown}");
    insta::assert_snapshot!(desk.refused("app", &["inspect", "spin.tml"], 1));
    desk.write("app/text.wasm", "text");
    insta::assert_snapshot!(desk.refused("app", &["inspect", "text.wasm"], 1));
}

#[test]
fn the_doctor_finds_and_mends() {
    let desk = Desk::new();
    desk.write(
        "app/spin.toml",
        "spin_manifest_version = \"1\"\nname = \"old\"\nversion = \"1.0.0\"\n\
         trigger = { type = \"http\", base = \"/\" }\n\
         [[component]]\nid = \"old\"\nsource = \"old.wasm\"\n[component.trigger]\nroute = \"/...\"\n\
         [component.build]\ncommand = \"no-such-compiler\"\n",
    );
    desk.write("app/target/old.wasm", clock_program("a", "b"));
    let found = desk.refused("app", &["doctor"], 1);
    assert!(found.contains("the manifest is of version 1"), "{found}");
    assert!(found.contains("there is `target/old.wasm`: name it in `source`"), "{found}");
    desk.wisp("app", &["doctor", "--fix"]);
    assert!(desk.read("app/spin.toml").contains("spin_manifest_version = 2"));
    desk.wisp("app", &["doctor", "--fix"]);
    assert!(desk.read("app/spin.toml").contains("source = \"target/old.wasm\""));
    let report = desk.done("app", &["doctor", "--format", "json"]).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(
        report["fine"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains("version 2"))
    );
    assert!(desk.refused(".", &["doctor"], 1).contains("WISP-E1208"));
}

#[test]
fn shells_get_completions_and_readers_a_manual() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = desk.done(".", &["completions", shell]).stdout;
        assert!(script.contains("wisp") && script.contains("watch"), "{shell}");
        if shell == "bash" {
            desk.write("completions", script);
            let parsed = Command::new("bash").args(["-n"]).arg(desk.path("completions")).output().unwrap();
            assert!(parsed.status.success() && parsed.stderr.is_empty(), "{parsed:?}");
        }
    }
    assert!(desk.done(".", &["man"]).stdout.contains(".TH wisp 1"));
    desk.done(".", &["man", "--dir", "man"]);
    assert!(desk.read("man/wisp-new.1").contains("template"));
}

#[test]
fn a_program_of_the_path_is_a_command() {
    let mut desk = Desk::new();
    desk.write("bin/wisp-greet", "#!/bin/sh\necho \"hello $1\"\nexit 7\n");
    let mut permissions = fs::metadata(desk.path("bin/wisp-greet")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(desk.path("bin/wisp-greet"), permissions).unwrap();
    desk.programs.push(desk.path("bin"));
    let greeted = desk.wisp(".", &["greet", "--loudly"]);
    assert_eq!((greeted.status.code(), greeted.stdout.as_str()), (Some(7), "hello --loudly\n"));
    insta::assert_snapshot!(desk.refused(".", &["no-such-command"], 2));
}

/// A text in one line.
pub(crate) fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text without what differs from run to run.
pub(crate) fn times_hidden(text: &str) -> String {
    let mut hidden = String::new();
    // Whether something was compiled before depends on who ran when.
    let is_log = |line: &&str| line.starts_with("info: ") || line.starts_with("warning[");
    for line in text.lines().filter(|line| !is_log(line)) {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        for at in 1..words.len() {
            let is_number = words[at - 1].parse::<f64>().is_ok() && words[at - 1].contains('.');
            if words[at] == "s" && is_number {
                words[at - 1] = "[TIME]".into();
                words[at] = String::new();
            }
        }
        hidden.push_str(words.join(" ").replace("[TIME] ", "[TIME]").trim_end());
        hidden.push('\n');
    }
    hidden
}

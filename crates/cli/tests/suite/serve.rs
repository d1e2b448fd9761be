//! Many apps in one process: `wisp serve`.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Apps, Connection, Serving, have, manifest_of};

/// The guest of most tests: a probe of WASI 0.2.
const GUEST: &str = "rust-sdk5";

/// A manifest that needs no guest: it answers everything with a text.
fn static_manifest(text: &str) -> String {
    format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"static\"\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         static_response = {{ body = \"{text}\" }}\n"
    )
}

#[test]
fn requests_find_their_app_by_host() {
    let apps = Apps::new();
    apps.put("one.example", &static_manifest("one"));
    apps.put("two.example", &static_manifest("two"));
    let serving = apps.serve(&[]);
    let mut connection = serving.connect();
    for (host, text) in [
        ("one.example", "one"),
        ("two.example", "two"),
        ("ONE.Example", "one"),
        ("two.example:8080", "two"),
        ("one.example.", "one"),
    ] {
        assert_eq!(connection.ask(host, "GET", "/").expect(), text, "{host}");
    }
    let unknown = connection.ask("three.example", "GET", "/");
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().starts_with("WISP-E0709: "), "{}", unknown.text());

    connection.send("GET / HTTP/1.0\r\n\r\n");
    let hostless = connection.response();
    assert_eq!(hostless.status, 400);
    assert!(hostless.text().starts_with("WISP-E0712: "), "{}", hostless.text());
}

#[test]
fn apps_come_and_go_and_change_while_others_run() {
    let apps = Apps::new();
    apps.put("stays.example", &static_manifest("stays"));
    let serving = apps.serve(&[]);
    assert_eq!(serving.get("new.example", "/").status, 404);

    apps.put("new.example", &static_manifest("new"));
    serving.wait_until("it is there", |serving| serving.get("new.example", "/").status == 200);

    apps.version("v1", &static_manifest("v1"));
    apps.version("v2", &static_manifest("v2"));
    apps.link("linked.example", "v1");
    serving.wait_until("v1", |serving| serving.get("linked.example", "/").text() == "v1");
    apps.link("linked.example", "v2");
    serving.wait_until("v2", |serving| serving.get("linked.example", "/").text() == "v2");

    apps.remove("new.example");
    apps.remove("linked.example");
    for host in ["new.example", "linked.example"] {
        serving.wait_until("it is gone", |serving| serving.get(host, "/").status == 404);
    }
    assert_eq!(serving.get("stays.example", "/").expect(), "stays");
    assert_eq!(serving.health()["counts"]["registered"], 1);
}

/// Makes a version of an image, as a release is.
fn unpacked_version(apps: &Apps, name: &str, manifest: &str) {
    let source = apps.version(&format!("source-of-{name}"), manifest);
    let app = wisp_manifest::App::read(&source, None).unwrap().value;
    let image = wisp_image::pack(&app, &wisp_image::PackOptions::default()).unwrap();
    let blobs = wisp_image::Blobs::open(&apps.path("blobs")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        image.put(&blobs).await.unwrap();
        wisp_image::unpack(&blobs, &image.digest, &apps.path("versions").join(name)).await.unwrap();
    });
    fs::remove_dir_all(source).unwrap();
}

#[test]
fn an_unpacked_image_is_an_app_like_any_other() {
    let apps = Apps::new();
    apps.version("v1", &static_manifest("v1"));
    unpacked_version(&apps, "v2", &static_manifest("v2"));
    assert!(!apps.path("versions/v2/spin.toml").exists());
    apps.link("linked.example", "v1");
    let serving = apps.serve(&[]);
    assert_eq!(serving.get("linked.example", "/").expect(), "v1");
    apps.link("linked.example", "v2");
    serving.wait_until("v2", |serving| serving.get("linked.example", "/").text() == "v2");
    assert_eq!(serving.admin("POST", "/apps/linked.example/rollback").status, 200);
    assert_eq!(serving.get("linked.example", "/").expect(), "v1");
    if !have(&[GUEST]) {
        return;
    }
    let files = "files = [{ source = \"static\", destination = \"/\" }]";
    fs::create_dir_all(apps.path("versions/source-of-v3/static")).unwrap();
    fs::write(apps.path("versions/source-of-v3/static/a.txt"), "from the image").unwrap();
    unpacked_version(&apps, "v3", &manifest_of(GUEST, "3", files));
    apps.link("guest.example", "v3");
    serving.wait_until("v3", |serving| serving.get("guest.example", "/env").status == 200);
    assert_eq!(serving.version("guest.example"), "3");
    assert_eq!(serving.get("guest.example", "/file?path=/a.txt").ok(), "from the image");
}

#[test]
fn a_broken_app_harms_no_other() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new();
    apps.put("good.example", &manifest_of(GUEST, "1", ""));
    apps.put("no-toml.example", "this is not TOML");
    let missing = manifest_of(GUEST, "1", "").replace(".wasm", ".absent");
    apps.put("no-wasm.example", &missing);
    apps.put("no-code.example", &missing.replace(".absent", ".toml"));
    fs::create_dir(apps.path("apps/empty.example")).unwrap();
    fs::create_dir(apps.path("apps/Not A Host")).unwrap();
    fs::write(apps.path("apps/README"), "files are no apps").unwrap();
    let serving = apps.serve(&[]);
    for host in ["no-toml.example", "no-wasm.example", "no-code.example", "empty.example"] {
        let response = serving.get(host, "/");
        assert_eq!(response.status, 500, "{host}");
        assert!(response.text().starts_with("WISP-E0710: "), "{host}: {}", response.text());
        assert!(!response.text().contains("spin.toml"), "a client learns nothing of the inside");
    }
    assert_eq!(serving.version("good.example"), "1");

    serving.wait_until("all are prepared", |serving| serving.health()["counts"]["to_prepare"] == 0);
    let health = serving.health();
    assert_eq!(health["status"], "unhealthy");
    assert_eq!(health["apps"]["good.example"], "warm");
    let code_of = |host: &str| {
        let problems = health["unhealthy"].as_array().unwrap();
        let problem = problems.iter().find(|problem| problem["host"] == host).unwrap();
        assert!(!problem["reason"].as_str().unwrap().is_empty());
        problem["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(code_of("no-toml.example"), "WISP-E0101");
    assert_eq!(code_of("no-wasm.example"), "WISP-E0207");
    assert_eq!(code_of("empty.example"), "WISP-E0713");
    assert_eq!(health["rejected"][0]["name"], "Not A Host");
    assert_eq!(health["rejected"][0]["code"], "WISP-E0708");
    serving.stderr.wait_for_text("WISP-E0207");

    // Mended: the next change is taken up at once.
    apps.version("mended", &manifest_of(GUEST, "2", ""));
    apps.remove("no-wasm.example");
    apps.link("no-wasm.example", "mended");
    serving.wait_until("it is mended", |serving| serving.get("no-wasm.example", "/").status == 200);
}

#[test]
fn more_apps_are_served_than_may_be_mapped() {
    if !have(&["rust-sdk5", "rust-sdk7", "rust-wstd", "rust-sdk6"]) {
        return;
    }
    let apps = Apps::new();
    let guests = ["rust-sdk5", "rust-sdk7", "rust-wstd", "rust-sdk6"];
    for guest in guests {
        apps.put(&format!("{guest}.example"), &manifest_of(guest, guest, ""));
    }
    let serving = apps.serve(&["--max-mapped-apps", "2"]);
    for _ in 0..3 {
        for guest in guests {
            let response = serving.get(&format!("{guest}.example"), "/");
            assert!(response.expect().starts_with("Hello from "), "{guest}");
        }
    }
    assert!(serving.metric("wisp_evictions_total") >= 8.0);
    assert!(serving.metric("wisp_images_mapped") <= 2.0);
    assert_eq!(serving.health()["counts"]["registered"], 4);
}

#[test]
fn equal_components_share_one_image() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new();
    for number in 0..10 {
        apps.put(&format!("app-{number}.example"), &manifest_of(GUEST, &number.to_string(), ""));
    }
    let serving = apps.serve(&[]);
    for number in 0..10 {
        assert_eq!(serving.version(&format!("app-{number}.example")), number.to_string());
    }
    serving.wait_until("all are prepared", |serving| serving.health()["counts"]["to_prepare"] == 0);
    assert!(serving.metric("wisp_images_mapped") <= 1.0);
    assert_eq!(serving.metric("wisp_apps_mapped"), 10.0);
}

#[test]
fn many_requests_at_once_cause_one_load() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new().own_cache();
    apps.put("app.example", &manifest_of(GUEST, "1", ""));
    // Nothing is compiled: each request would have to.
    let serving = apps.serve(&["--no-prepare", "--max-wait", "240s"]);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(serving.version("app.example"), "1"));
        }
    });
    assert_eq!(serving.metric("wisp_load_seconds_count"), 1.0);
    let images = fs::read_dir(apps.path("cache")).unwrap();
    let images = images.filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "cwasm")
    });
    assert_eq!(images.count(), 1);
}

#[test]
fn a_request_that_waits_too_long_for_its_app_is_told_to_come_back() {
    if !have(&["python-sdk5"]) {
        return;
    }
    let _alone = crate::harness::alone();
    let apps = Apps::new().own_cache();
    apps.put("slow.example", &manifest_of("python-sdk5", "1", ""));
    apps.put("quick.example", &static_manifest("quick"));
    let serving = apps.serve(&["--no-prepare", "--max-wait", "1ms"]);
    let response = serving.get("slow.example", "/");
    assert_eq!(response.status, 503);
    assert_eq!(response.header("retry-after"), Some("1"));
    assert!(response.text().starts_with("WISP-E0711: "), "{}", response.text());
    assert_eq!(serving.get("quick.example", "/").expect(), "quick", "nobody else waits");
}

/// Asks for an app's version over and over, on one connection for each of four threads,
/// while `swap` changes it. Versions are numbers that only grow.
fn under_load(serving: &Serving, host: &str, swap: impl FnOnce()) -> usize {
    let is_over = AtomicBool::new(false);
    let answered_count = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = Connection::open(serving.address);
                let mut newest = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let answer = connection.ask(host, "GET", "/env").json();
                    let version: u32 = answer["VERSION"].as_str().unwrap().parse().unwrap();
                    assert_eq!(answer["AGAIN"], json!(version.to_string()), "a response of two versions");
                    assert!(version >= newest, "version {version} after {newest}");
                    newest = version;
                    answered_count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        swap();
        is_over.store(true, Ordering::Relaxed);
    });
    answered_count.into_inner()
}

#[test]
fn a_swap_under_load_fails_no_request_and_mixes_none() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new();
    for version in 1..=20_u32 {
        let text = version.to_string();
        let manifest = manifest_of(GUEST, &text, "")
            .replace(&format!("VERSION = \"{text}\""), &format!("VERSION = \"{text}\", AGAIN = \"{text}\""));
        apps.version(&text, &manifest);
    }
    apps.link("app.example", "1");
    let serving = apps.serve(&[]);
    assert_eq!(serving.version("app.example"), "1");
    let answered_count = under_load(&serving, "app.example", || {
        for version in 2..=20_u32 {
            let text = version.to_string();
            apps.link("app.example", &text);
            serving.wait_until("swapped", |serving| serving.version("app.example") == text);
        }
    });
    assert!(answered_count > 100, "{answered_count}");
    assert_eq!(serving.metric("wisp_swap_seconds_count"), 19.0);
    assert_eq!(serving.health()["counts"]["unhealthy"], 0);
}

#[test]
fn going_back_is_instant_and_stays() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new();
    for version in ["1", "2", "3"] {
        apps.version(version, &manifest_of(GUEST, version, ""));
    }
    apps.link("app.example", "1");
    let serving = apps.serve(&[]);
    // Files that have just changed may change again without it being seen: a version of
    // such files is loaded anew.
    let youngest = apps.path("versions/3/spin.toml");
    serving.wait_until("the files are old enough to be relied upon", |_| {
        let changed = fs::metadata(&youngest).unwrap().modified().unwrap();
        changed.elapsed().is_ok_and(|age| age > Duration::from_millis(200))
    });
    assert_eq!(serving.version("app.example"), "1");
    let refused = serving.admin("POST", "/apps/app.example/rollback");
    assert_eq!(refused.status, 409);
    assert!(refused.text().contains("WISP-E0716"), "{}", refused.text());

    apps.link("app.example", "2");
    serving.wait_until("swapped", |serving| serving.version("app.example") == "2");
    let report = serving.admin("POST", "/apps/app.example/rollback").json();
    assert!(report["took_us"].as_u64().unwrap() < 10_000, "{report}");
    assert_eq!(serving.version("app.example"), "1");
    assert_eq!(serving.facts("app.example")["rolled_back"], true);
    // A scan of the folder, which still says otherwise, does not undo it.
    serving.signal(Signal::HUP);
    serving.stderr.wait_for_text("after a scan of the folder");
    assert_eq!(serving.version("app.example"), "1");
    // A change does.
    apps.link("app.example", "3");
    serving.wait_until("swapped", |serving| serving.version("app.example") == "3");

    // A link that points back finds the version mapped.
    let loads = serving.metric("wisp_swap_seconds_count");
    apps.link("app.example", "1");
    serving.wait_until("back", |serving| serving.version("app.example") == "1");
    assert_eq!(serving.metric("wisp_swap_seconds_count"), loads, "nothing was loaded");
    assert_eq!(serving.metric("wisp_rollback_seconds_count"), 2.0);
}

#[test]
fn a_version_that_does_not_load_leaves_the_one_before() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new();
    apps.version("good", &manifest_of(GUEST, "good", ""));
    apps.version("bad", "spin_manifest_version = 2");
    apps.link("app.example", "good");
    let serving = apps.serve(&[]);
    assert_eq!(serving.version("app.example"), "good");
    apps.link("app.example", "bad");
    serving.stderr.wait_for_text("the version before goes on");
    assert_eq!(serving.version("app.example"), "good");
    let facts = serving.facts("app.example");
    assert_eq!(facts["healthy"], false);
    assert_eq!(facts["problem"]["code"], "WISP-E0103");
    assert_eq!(facts["problem"]["serves_version_before"], true);
    assert_eq!(serving.health()["apps"]["app.example"], "unhealthy");

    apps.version("better", &manifest_of(GUEST, "better", ""));
    apps.link("app.example", "better");
    serving.wait_until("swapped", |serving| serving.version("app.example") == "better");
    assert_eq!(serving.facts("app.example")["healthy"], true);
}

#[test]
fn a_version_that_fails_its_probe_is_not_taken() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new();
    let manifest = |version: &str, path: &str| {
        manifest_of(GUEST, version, &format!("[application.tool.wisp]\nprobe = \"{path}\""))
    };
    apps.version("1", &manifest("1", "/env"));
    apps.version("2", &manifest("2", "/trap"));
    apps.version("3", &manifest("3", "/"));
    apps.link("app.example", "1");
    let serving = apps.serve(&[]);
    serving.wait_until("probed once", |serving| serving.facts("app.example")["facts"]["probed"] == true);
    assert_eq!(serving.facts("app.example")["requests"]["answered"], 1);
    apps.link("app.example", "2");
    serving.stderr.wait_for_text("WISP-E0717");
    assert_eq!(serving.version("app.example"), "1");
    apps.link("app.example", "3");
    serving.wait_until("swapped", |serving| serving.version("app.example") == "3");

    let report = serving.admin("POST", "/apps/app.example/probe?path=/status?code=404").json();
    assert_eq!(report["status"], 404);
    let refused = serving.admin("POST", "/apps/app.example/probe?path=/trap");
    assert_eq!(refused.status, 502);
    assert!(refused.text().contains("WISP-E0717"), "{}", refused.text());
    assert_eq!(serving.admin("POST", "/apps/absent.example/probe").status, 404);
}

#[test]
fn health_knows_how_requests_end() {
    if !have(&[GUEST]) {
        return;
    }
    let apps = Apps::new();
    apps.put("app.example", &manifest_of(GUEST, "1", ""));
    let serving = apps.serve(&[]);
    serving.wait_until("it is prepared", |serving| serving.facts("app.example")["state"] == "ready");
    let facts = &serving.facts("app.example")["facts"];
    for fact in ["registered", "manifest_ok", "compiled", "image_verified", "links_resolve"] {
        assert_eq!(facts[fact], true, "{fact}, without a request");
    }
    assert_eq!(serving.metric("wisp_images_mapped"), 0.0);
    for _ in 0..5 {
        assert_eq!(serving.get("app.example", "/trap").status, 500);
    }
    let health = serving.health();
    assert_eq!(health["apps"]["app.example"], "unhealthy");
    assert_eq!(health["unhealthy"][0]["code"], "WISP-E0718");
    assert_eq!(serving.get("app.example", "/").status, 200);
    assert_eq!(serving.health()["apps"]["app.example"], "warm");
    assert_eq!(serving.health()["status"], "ok");
}

#[test]
fn apps_share_neither_stores_nor_logs() {
    if !have(&[GUEST]) {
        return;
    }
    for state in [&[][..], &["--state-dir", ""]] {
        let apps = Apps::new();
        let settings = "key_value_stores = [\"default\"]";
        for host in ["one.example", "two.example"] {
            apps.put(host, &manifest_of(GUEST, host, settings));
        }
        let mut serving = apps.serve(state);
        let ask = |host: &str, target: &str| serving.get(host, target).json()["ok"].clone();
        ask("one.example", "/kv/set?key=k&value=secret");
        assert_eq!(ask("one.example", "/kv/exists?key=k"), true);
        assert_eq!(ask("two.example", "/kv/exists?key=k"), false);
        serving.get("one.example", "/stdout?line=of-one").expect();
        serving.get("two.example", "/stdout?line=of-two").expect();
        assert!(serving.terminate().success());
        let log =
            |host: &str| fs::read_to_string(apps.path(&format!("logs/{host}/{GUEST}_stdout.txt"))).unwrap();
        assert_eq!(log("one.example"), "of-one\n");
        assert_eq!(log("two.example"), "of-two\n");
        let has_files = apps.path("state/one.example/sqlite_key_value.db").exists();
        assert_eq!(has_files, state.is_empty());
    }
}

#[test]
fn running_requests_may_finish_when_it_is_told_to_end() {
    if !have(&["rust-sdk7"]) {
        return;
    }
    let apps = Apps::new();
    apps.put("app.example", &manifest_of("rust-sdk7", "1", ""));
    let mut serving = apps.serve(&[]);
    let mut connection = serving.connect();
    assert_eq!(connection.ask("app.example", "GET", "/").status, 200);
    connection.send("GET /stream?chunks=5&delay_ms=100&bytes=10 HTTP/1.1\r\nhost: app.example\r\n\r\n");
    let head = connection.response_head();
    assert_eq!(head.status, 200);
    serving.signal(Signal::TERM);
    let mut chunks_count = 0;
    while let Some(chunk) = connection.chunk() {
        chunks_count += usize::from(!chunk.is_empty());
    }
    assert_eq!(chunks_count, 5);
    assert!(serving.wait().success());
}

#[test]
fn a_folder_that_is_none_is_an_error() {
    let apps = Apps::new();
    fs::remove_dir(apps.path("apps")).unwrap();
    let mut command = crate::harness::wisp();
    command.arg("serve").arg("--apps").arg(apps.path("apps")).args(["--listen", "127.0.0.1:0"]);
    let finished = crate::harness::finish(command);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("error[WISP-E0714]"), "{}", finished.stderr);
}

//! What nobody needs any more goes, and nothing else, also beside pushes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use crate::{
    compiled_images::edited_js,
    harness::{Cloud, Person, RunningCloud, START_LIMIT, finish, guest, have, json_of, manifest_of},
};

/// A guest that is small, for something to be compiled.
const GUEST: &str = "rust-sdk5";

/// Longer than anything stays that nobody needs.
const AGE: Duration = Duration::from_secs(3 * 86_400);

/// How often everything is garbage, and is deployed again while garbage is collected.
const ROUNDS_COUNT: usize = 3;

/// Makes everything in a data directory look as if nobody had touched it for days.
fn make_old(data: &Path) {
    let db = rusqlite::Connection::open(data.join("registry.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    let seconds = AGE.as_secs();
    db.execute_batch(&format!(
        "UPDATE blobs SET touched = touched - {seconds}; UPDATE manifests SET touched = touched - {seconds};"
    ))
    .unwrap();
    for folder in ["blobs/sha256", "releases", "images"] {
        for entry in fs::read_dir(data.join(folder)).unwrap() {
            let file = fs::File::open(entry.unwrap().path()).unwrap();
            file.set_modified(SystemTime::now() - AGE).unwrap();
        }
    }
}

fn clean(person: &Person, more: &[&str]) -> Value {
    let mut arguments = vec!["server", "clean", "--format", "json"];
    arguments.extend(more);
    let finished = finish(person.wisp(&arguments));
    assert!(finished.status.success(), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap()
}

/// How many there are of a kind.
fn count(report: &Value, kind: &str) -> u64 {
    let totals = report["totals"].as_array().unwrap().iter();
    totals.filter(|total| total["kind"] == kind).map(|total| total["count"].as_u64().unwrap()).sum()
}

fn remove(person: &Person, app: &str) {
    let removing = person.of_team("DELETE", &format!("apps/{app}"), None);
    assert_eq!(person.follow(&removing)["progress"], "done");
}

fn start(cloud: &Cloud) -> (RunningCloud, Person) {
    fs::write(cloud.path("wisp.toml"), "policy = \"policy.toml\"\n").unwrap();
    fs::write(cloud.path("policy.toml"), "[default.quotas]\nkept_releases = 1\n").unwrap();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    (running, person)
}

#[test]
fn what_releases_left_behind_is_shown_and_removed() {
    let cloud = Cloud::new();
    let (running, person) = start(&cloud);
    for text in ["one", "two", "three", "four"] {
        person.deploy(&cloud.static_app("site", text), &[]);
    }
    assert_eq!(count(&clean(&person, &["--dry-run"]), "manifest"), 0, "what is young stays");
    make_old(&cloud.path("data"));
    let asked = clean(&person, &["--dry-run"]);
    // Releases 1 and 2 were forgotten as the later ones came to serve.
    assert_eq!((count(&asked, "manifest"), count(&asked, "unpacked")), (2, 2), "{asked}");
    assert!(count(&asked, "blob") >= 4 && asked["bytes"].as_u64().unwrap() > 0, "{asked}");
    let unpacked = || fs::read_dir(cloud.path("data/releases")).unwrap().count();
    assert_eq!(unpacked(), 4, "it was only asked");
    let removed = clean(&person, &[]);
    assert_eq!(removed["totals"], asked["totals"]);
    assert_eq!(unpacked(), 2);
    assert_eq!(clean(&person, &[])["totals"], serde_json::json!([]));
    assert_eq!(running.get(&person.host("site"), "/").expect(), "four");
    let back = person.of_team("POST", "apps/site/rollback", Some(&serde_json::json!({})));
    assert_eq!(person.follow(&back)["progress"], "done");
    assert_eq!(running.get(&person.host("site"), "/").expect(), "three");
    // Not for those who do not operate the server.
    let stranger = person.stranger("mallory", "blog");
    let refused = finish(stranger.wisp(&["server", "clean"]));
    assert!(refused.stderr.contains("error[WISP-E0903]"), "{}", refused.stderr);
    running.stop();
    let running = cloud.start();
    assert_eq!(running.get(&person.host("site"), "/").expect(), "three");
    running.stop();
}

#[test]
fn nothing_that_a_deploy_needs_is_removed_beside_it() {
    let cloud = Cloud::new();
    let (running, person) = start(&cloud);
    let mut apps: Vec<(&str, &[&str])> =
        vec![("red", &["one", "two", "three"]), ("green", &["one", "four"]), ("blue", &["two", "five"])];
    let has_guest = have(&[GUEST]);
    if has_guest {
        apps.push(("guest", &["1"]));
    }
    let deploy = |person: &Person, app: &str, text: &str| {
        let folder = match app {
            "guest" => cloud.app("guest", &manifest_of(GUEST, text, "")),
            _ => cloud.static_app(app, text),
        };
        person.deploy(&folder, &["--app", app]);
        match app {
            "guest" => assert_eq!(running.get(&person.host(app), "/env").json()["VERSION"], text),
            _ => assert_eq!(running.get(&person.host(app), "/").expect(), text),
        }
    };
    for round in 0..=ROUNDS_COUNT {
        let is_over = Arc::new(AtomicBool::new(false));
        let collector = {
            let (is_over, person) = (is_over.clone(), person.clone());
            thread::spawn(move || {
                let mut removed_count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let report = json_of(&person.ask("POST", "/api/v1/garbage", None));
                    assert_eq!(report["is_removed"], true, "{report}");
                    removed_count += report["items"].as_array().unwrap().len();
                }
                removed_count
            })
        };
        thread::scope(|scope| {
            for (app, texts) in &apps {
                let (person, deploy) = (&person, &deploy);
                scope.spawn(move || texts.iter().for_each(|text| deploy(person, app, text)));
            }
        });
        is_over.store(true, Ordering::Relaxed);
        let removed_count = collector.join().unwrap();
        assert!(round == 0 || removed_count > 0, "there was nothing to remove beside the deploys");
        if round == ROUNDS_COUNT {
            break;
        }
        // All that was made is garbage, or looks like it, when the next round begins.
        for (app, _) in apps.iter().skip(1) {
            remove(&person, app);
        }
        make_old(&cloud.path("data"));
        let asked = clean(&person, &["--dry-run"]);
        assert!(count(&asked, "unpacked") > 1, "{asked}");
        assert_eq!(count(&asked, "compiled") > 0, has_guest, "{asked}");
    }
    running.stop();
    let running = cloud.start();
    assert_eq!(running.get(&person.host("red"), "/").expect(), "three");
    running.stop();
}

#[test]
fn code_that_apps_share_stays_as_long_as_one_of_them() {
    let (Some(one), Some(other)) = (edited_js("Hello, first!\n"), edited_js("Hello, other!\n")) else {
        return;
    };
    let cloud = Cloud::new();
    let (running, person) = start(&cloud);
    let codes = || -> Vec<PathBuf> {
        let paths = fs::read_dir(cloud.path("data/images")).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("code-")).collect()
    };
    let deploy = |app: &str, wasm: &[u8], text: &str| {
        let source = guest("js").unwrap().display().to_string();
        let folder = cloud.app(app, &manifest_of("js", "1", "").replace(&source, "app.wasm"));
        fs::write(folder.join("app.wasm"), wasm).unwrap();
        person.deploy(&folder, &["--app", app]);
        assert_eq!(running.get(&person.host(app), "/").expect(), text);
    };
    deploy("one", &one, "Hello, first!\n");
    let [code] = codes().try_into().expect("one file");
    let compiled = fs::metadata(&code).unwrap().modified().unwrap();
    deploy("other", &other, "Hello, other!\n");
    assert_eq!(codes(), std::slice::from_ref(&code));
    assert_eq!(fs::metadata(&code).unwrap().modified().unwrap(), compiled, "it was compiled once");

    remove(&person, "one");
    make_old(&cloud.path("data"));
    assert_eq!(count(&clean(&person, &[]), "compiled"), 1, "the image of the app that is gone");
    assert_eq!(codes(), std::slice::from_ref(&code));

    // What the control plane did not sign is neither run nor relied upon.
    running.stop();
    let mut altered = fs::read(&code).unwrap();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    fs::write(&code, altered).unwrap();
    let running = cloud.start();
    let end = Instant::now() + START_LIMIT;
    // It is compiled again; nobody waits for that longer than for any other start.
    while running.get(&person.host("other"), "/").status != 200 {
        assert!(Instant::now() < end, "{}", running.stderr.text());
    }
    assert_eq!(running.get(&person.host("other"), "/").expect(), "Hello, other!\n");
    running.stderr.wait_for_text("its checksum differs");

    remove(&person, "other");
    make_old(&cloud.path("data"));
    assert_eq!(count(&clean(&person, &[]), "compiled"), 2, "the other image, and the code");
    assert!(codes().is_empty());
    running.stop();
}

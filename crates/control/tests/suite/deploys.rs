//! Releases: how they come to serve, what happens when they cannot, and after `kill -9`.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use wisp_control::names::{AppId, ReleaseNumber};

use crate::world::{MANIFEST, SECRET, World};

const APP: &str = "/api/v1/teams/shop/apps/web";

async fn world() -> (World, String) {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    (world, alice)
}

async fn current(world: &World, token: &str) -> Value {
    world.get(APP, token).await.ok().json()["release"].clone()
}

fn steps(operation: &Value) -> Vec<(&str, &str)> {
    let steps = operation["steps"].as_array().unwrap().iter();
    steps.map(|step| (step["name"].as_str().unwrap(), step["progress"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_deploy_takes_its_steps_and_tells_how_long_each_took() {
    let (world, alice) = world().await;
    let operation = world.deploy(&alice, "shop", "web", 2).await;
    let names = ["validate", "compile", "provision", "migrate", "check", "swap", "drain"];
    assert_eq!(steps(&operation), names.map(|name| (name, "done")));
    assert!(operation["steps"].as_array().unwrap().iter().all(|step| step["duration_us"].is_u64()));
    assert_eq!(operation["url"], "http://web.shop.localhost:3000");
    assert_eq!(world.machine.released(AppId(1)), Some(ReleaseNumber(2)));
    let serving = world.machine.serving.lock().unwrap().get(&AppId(1)).unwrap().clone();
    assert_eq!(serving.links.len(), 2);
    assert_eq!(serving.hosts[0].as_str(), "web.shop.localhost");
    let releases = world.get(&format!("{APP}/releases?limit=1"), &alice).await.ok().json();
    assert_eq!(releases["items"][0]["number"], 2);
    let rest = format!("{APP}/releases?after={}", releases["next"].as_str().unwrap());
    assert_eq!(world.get(&rest, &alice).await.ok().json()["items"][0]["number"], 1);
}

#[tokio::test]
async fn a_failure_leaves_what_serves_and_says_where_and_why() {
    let (world, alice) = world().await;
    for (call, step) in [
        ("compile", "compile"),
        ("provision", "provision"),
        ("migrate", "migrate"),
        ("check", "check"),
        ("apply", "swap"),
    ] {
        *world.machine.fails_in.lock().unwrap() = Some(call);
        let operation = world.deploy(&alice, "shop", "web", 2).await;
        assert_eq!(operation["progress"], "failed");
        assert_eq!(operation["error"]["code"], "WISP-E9999");
        assert_eq!(operation["error"]["message"], format!("step `{step}` failed: {call} fails"));
        assert_eq!(operation["error"]["hint"], "stop the test");
        assert_eq!(current(&world, &alice).await, 1, "{step}");
        assert_eq!(world.machine.released(AppId(1)), Some(ReleaseNumber(1)), "{step}");
        let number = operation["release"].as_u64().unwrap();
        let release = world.get(&format!("{APP}/releases/{number}"), &alice).await.ok().json();
        assert_eq!(release["state"], if step == "swap" { "ready" } else { "failed" });
    }
    *world.machine.fails_in.lock().unwrap() = None;
    let operation = world.deploy(&alice, "shop", "web", 3).await;
    assert_eq!(operation["progress"], "done");
    assert_eq!(current(&world, &alice).await, operation["release"]);
}

#[tokio::test]
async fn what_was_begun_goes_on_after_the_process_ended() {
    for call in ["compile", "provision", "migrate", "check", "apply", "drain"] {
        let (world, alice) = world().await;
        world.machine.calls.lock().unwrap().clear();
        *world.machine.stops_in.lock().unwrap() = Some(call);
        let image = world.push("shop", "web", 2);
        let path = format!("{APP}/releases");
        let operation = world.post(&path, &alice, json!({ "image": image })).await.ok().json();
        while world.machine.calls.lock().unwrap().last() != Some(&call) {
            tokio::task::yield_now().await;
        }
        // What the process had promised until then:
        let second = world.post(&path, &alice, json!({ "image": image })).await;
        assert_eq!((second.status, second.code()), (StatusCode::CONFLICT, "WISP-E0906".to_owned()));
        let world = world.restart().await;
        let snapshot = world.control.snapshot().await.unwrap();
        assert_eq!(snapshot.deployments.len(), 1, "{call}");
        assert_eq!(world.control.resume().await.unwrap(), 1, "{call}");
        let ended = world.wait(&alice, "shop", &operation).await;
        assert_eq!(ended["progress"], "done", "{call}: {ended}");
        assert_eq!(current(&world, &alice).await, 2, "{call}");
        assert_eq!(world.machine.released(AppId(1)), Some(ReleaseNumber(2)), "{call}");
        assert_eq!(world.control.resume().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn other_variables_make_a_release_without_compiling() {
    let (world, alice) = world().await;
    world.machine.calls.lock().unwrap().clear();
    let change = json!({ "set": { "color": "red" } });
    let path = format!("{APP}/variables");
    let operation = world.ask(Method::PATCH, &path, Some(&alice), Some(&change)).await.ok().json();
    let operation = world.wait(&alice, "shop", &operation).await;
    assert_eq!((&operation["progress"], &operation["release"]), (&json!("done"), &json!(2)));
    assert!(!world.machine.calls.lock().unwrap().contains(&"compile"));
    let set = json!({ "set": { "password": SECRET } });
    let secrets = format!("{APP}/secrets");
    let operation = world.ask(Method::PATCH, &secrets, Some(&alice), Some(&set)).await.ok().json();
    world.wait(&alice, "shop", &operation).await;
    let serving = world.machine.serving.lock().unwrap().get(&AppId(1)).unwrap().clone();
    assert_eq!(**serving.variables["password"].open().unwrap(), *SECRET);
    assert!(serving.variables["password"].is_secret);
    assert!(!format!("{serving:?}").contains(SECRET));
    let shown = world.get(&path, &alice).await.ok();
    assert!(shown.text().contains("red") && shown.text().contains("password"));
    assert!(!shown.text().contains(SECRET));
    // A secret cannot be made plain by the back door.
    let plain = json!({ "set": { "password": "plain" } });
    let answer = world.ask(Method::PATCH, &path, Some(&alice), Some(&plain)).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    for entry in std::fs::read_dir(world.folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let is_there = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!is_there, "the secret is on the disk");
    }
}

#[tokio::test]
async fn going_back_brings_image_and_variables() {
    let (world, alice) = world().await;
    world.deploy(&alice, "shop", "web", 2).await;
    let change = json!({ "set": { "color": "red" } });
    let path = format!("{APP}/variables");
    let operation = world.ask(Method::PATCH, &path, Some(&alice), Some(&change)).await.ok().json();
    world.wait(&alice, "shop", &operation).await;
    let back = world.post(&format!("{APP}/rollback"), &alice, json!({})).await.ok().json();
    world.wait(&alice, "shop", &back).await;
    assert_eq!(current(&world, &alice).await, 2);
    assert!(world.machine.serving.lock().unwrap().get(&AppId(1)).unwrap().variables.is_empty());
    assert!(!world.get(&path, &alice).await.ok().text().contains("red"));
    let wrong = world.post(&format!("{APP}/rollback"), &alice, json!({ "release": 2 })).await;
    assert_eq!(wrong.status, StatusCode::CONFLICT);
    let wrong = world.post(&format!("{APP}/rollback"), &alice, json!({ "release": 99 })).await;
    assert_eq!(wrong.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_request_with_a_key_is_carried_out_once() {
    let (world, alice) = world().await;
    let image = world.push("shop", "web", 2);
    let path = format!("{APP}/releases");
    let body = json!({ "image": image }).to_string();
    let send = async |key: &'static str, body: String| {
        let headers = [("idempotency-key", key)];
        world.send(Method::POST, &path, Some(&alice), &headers, body).await
    };
    let first = send("one", body.clone()).await.ok();
    let again = send("one", body.clone()).await.ok();
    assert_eq!(first.json(), again.json());
    assert!(again.headers.contains_key("idempotency-replayed"));
    world.wait(&alice, "shop", &first.json()).await;
    assert_eq!(current(&world, &alice).await, 2);
    let other = json!({ "image": image, "note": "other" }).to_string();
    let reused = send("one", other).await;
    assert_eq!((reused.status, reused.code()), (StatusCode::UNPROCESSABLE_ENTITY, "WISP-E0910".to_owned()));
    let next = send("two", body).await.ok();
    assert_ne!(next.json()["id"], first.json()["id"]);
}

#[tokio::test]
async fn a_request_finds_its_operation_also_when_its_answer_was_lost() {
    let (world, alice) = world().await;
    world.machine.calls.lock().unwrap().clear();
    *world.machine.stops_in.lock().unwrap() = Some("compile");
    let image = world.push("shop", "web", 2);
    let path = format!("{APP}/releases");
    let body = json!({ "image": image }).to_string();
    let headers = [("idempotency-key", "one")];
    // As if the process had ended before the answer was kept: what is kept then was written
    // with the operation.
    let db = rusqlite::Connection::open(world.folder.path().join("state.db")).unwrap();
    db.execute_batch(
        "CREATE TRIGGER lose BEFORE UPDATE ON idempotency WHEN OLD.status = 0
         BEGIN SELECT RAISE(IGNORE); END",
    )
    .unwrap();
    let first = world.send(Method::POST, &path, Some(&alice), &headers, body.clone()).await.ok().json();
    let world = world.restart().await;
    world.control.resume().await.unwrap();
    let again = world.send(Method::POST, &path, Some(&alice), &headers, body).await.ok();
    assert_eq!(again.status, StatusCode::ACCEPTED);
    assert_eq!(again.json()["id"], first["id"]);
    assert_eq!(world.wait(&alice, "shop", &again.json()).await["progress"], "done");
    assert_eq!(current(&world, &alice).await, 2);
    let releases = world.get(&path, &alice).await.ok().json();
    assert_eq!(releases["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_policy_refuses_and_asks_with_both_lines() {
    let policy = "[default]\napprove = [\"outbound\"]\n[team.shop]\noutbound = [\"https://*.example.com\"]\n";
    let world = World::with_policy(policy).await;
    let alice = world.operator("shop").await;
    world.post("/api/v1/teams/shop/apps", &alice, json!({ "name": "web" })).await.ok();
    let evil = MANIFEST.replace("api.example.com", "evil.example");
    let image = world.push_manifest("shop", "web", 1, &evil);
    let plan = world.post(&format!("{APP}/plans"), &alice, json!({ "image": image })).await.ok().json();
    let refusal = "destination `https://evil.example` of component `web` (spin.toml:9) is not allowed by \
                   `[team.shop.outbound]` (policy.toml:4)";
    assert_eq!(plan["refused"], json!([refusal]));
    let refused = world.post(&format!("{APP}/releases"), &alice, json!({ "image": image })).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::UNPROCESSABLE_ENTITY, "WISP-E0908".to_owned()));
    let image = world.push("shop", "web", 2);
    let open = world.post(&format!("{APP}/releases"), &alice, json!({ "image": image })).await;
    assert_eq!(open.code(), "WISP-E0909");
    let plan = world.post(&format!("{APP}/plans"), &alice, json!({ "image": image })).await.ok().json();
    let key = plan["approvals"][0]["key"].clone();
    assert_eq!(key, "outbound https://api.example.com");
    assert_eq!(plan["new_resources"][0]["name"], "web.default");
    let body = json!({ "image": image, "approve": [key] });
    let operation = world.post(&format!("{APP}/releases"), &alice, body).await.ok().json();
    world.wait(&alice, "shop", &operation).await;
    // What was agreed to once is not asked again; what is gone is said.
    let image =
        world.push_manifest("shop", "web", 3, &MANIFEST.replace("sqlite_databases = [\"default\"]\n", ""));
    let plan = world.post(&format!("{APP}/plans"), &alice, json!({ "image": image })).await.ok().json();
    assert_eq!(plan["approvals"], json!([]));
    assert_eq!(plan["changes"], json!(["no longer uses sqlite database default"]));
    // A policy that is wrong changes nothing; one that is right is told to the machine.
    std::fs::write(world.folder.path().join("policy.toml"), "[default]\nx = 1\n").unwrap();
    assert_eq!(world.control.reload_policy().await.unwrap_err().code(), "WISP-E0921");
    std::fs::write(world.folder.path().join("policy.toml"), "[default]\noutbound = []\n").unwrap();
    world.control.reload_policy().await.unwrap();
    let serving = world.machine.serving.lock().unwrap().get(&AppId(1)).unwrap().clone();
    assert!(serving.grants.outbound.is_empty());
    let refused = world.post(&format!("{APP}/releases"), &alice, json!({ "image": image })).await;
    assert_eq!(refused.code(), "WISP-E0908");
}

#[tokio::test]
async fn variables_that_are_required_come_first() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.post("/api/v1/teams/shop/apps", &alice, json!({ "name": "web" })).await.ok();
    let manifest = MANIFEST.replace("[[trigger", "[variables]\nkey = { required = true }\n[[trigger");
    let image = world.push_manifest("shop", "web", 1, &manifest);
    let path = format!("{APP}/releases");
    let missing = world.post(&path, &alice, json!({ "image": image })).await;
    assert!(missing.text().contains("these variables have no value: key"), "{}", missing.text());
    let change = json!({ "set": { "key": "value" } });
    let set = world.ask(Method::PATCH, &format!("{APP}/variables"), Some(&alice), Some(&change)).await.ok();
    assert_eq!(set.status, StatusCode::NO_CONTENT);
    let operation = world.post(&path, &alice, json!({ "image": image })).await.ok().json();
    assert_eq!(world.wait(&alice, "shop", &operation).await["progress"], "done");
    let serving = world.machine.serving.lock().unwrap().get(&AppId(1)).unwrap().clone();
    assert_eq!(**serving.variables["key"].open().unwrap(), *"value");
}

#[tokio::test]
async fn what_the_manifest_calls_secret_is_one() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.post("/api/v1/teams/shop/apps", &alice, json!({ "name": "web" })).await.ok();
    // Nobody could know before the first deploy.
    let change = json!({ "set": { "key": SECRET } });
    let variables = format!("{APP}/variables");
    world.ask(Method::PATCH, &variables, Some(&alice), Some(&change)).await.ok();
    let manifest =
        MANIFEST.replace("[[trigger", "[variables]\nkey = { required = true, secret = true }\n[[trigger");
    let image = world.push_manifest("shop", "web", 1, &manifest);
    let path = format!("{APP}/releases");
    let operation = world.post(&path, &alice, json!({ "image": image })).await.ok().json();
    assert_eq!(world.wait(&alice, "shop", &operation).await["progress"], "done");
    let serving = world.machine.serving.lock().unwrap().get(&AppId(1)).unwrap().clone();
    assert!(serving.variables["key"].is_secret);
    let refused = world.ask(Method::PATCH, &variables, Some(&alice), Some(&change)).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    let path = format!("{APP}/secrets");
    let operation = world.ask(Method::PATCH, &path, Some(&alice), Some(&change)).await.ok().json();
    world.wait(&alice, "shop", &operation).await;
    assert!(!world.get(&variables, &alice).await.ok().text().contains(SECRET));
}

#[tokio::test]
async fn nodes_follow_a_stream_of_changes() {
    let (world, alice) = world().await;
    let mut follow = world.control.follow();
    let seen = *follow.borrow_and_update();
    world.deploy(&alice, "shop", "web", 2).await;
    assert!(follow.has_changed().unwrap());
    let changes = world.control.changes_after(seen, 10).await.unwrap();
    let [wisp_control::Change { number, kind: wisp_control::ChangeKind::Put(put) }] = changes.as_slice()
    else {
        panic!("{changes:?}");
    };
    assert!(*number > seen && put.release == ReleaseNumber(2));
    let removal = world.ask(Method::DELETE, APP, Some(&alice), None).await.ok().json();
    world.wait(&alice, "shop", &removal).await;
    let changes = world.control.changes_after(*number, 10).await.unwrap();
    assert!(
        matches!(changes.as_slice(), [wisp_control::Change { kind: wisp_control::ChangeKind::Remove(app), .. }] if app.id == AppId(1))
    );
    assert!(world.machine.serving.lock().unwrap().is_empty());
    assert_eq!(world.get(APP, &alice).await.status, StatusCode::NOT_FOUND);
    assert!(world.control.snapshot().await.unwrap().deployments.is_empty());
}

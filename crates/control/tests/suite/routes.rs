//! What every route keeps that the OpenAPI document has: lists have pages, a POST with an
//! `Idempotency-Key` is carried out once. A new route is looked at by itself.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{MANIFEST, SECRET, World};

const TEAM: &str = "/api/v1/teams/shop";

/// What makes a page.
const PAGE_PARAMETERS: [&str; 2] = ["limit", "after"];

fn document() -> Value {
    serde_json::from_str(&wisp_control::openapi().to_json().unwrap()).unwrap()
}

/// Every route, by the id of its operation: method, path, description.
fn routes() -> BTreeMap<String, (Method, String, Value)> {
    let mut routes = BTreeMap::new();
    for (path, methods) in document()["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let method = method.to_uppercase().parse().unwrap();
            routes.insert(id, (method, path.clone(), operation.clone()));
        }
    }
    routes
}

fn parameters(operation: &Value) -> Vec<&str> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters.map(|parameter| parameter["name"].as_str().unwrap()).collect()
}

fn fill(path: &str) -> String {
    [("{team}", "shop"), ("{app}", "web"), ("{resource}", "notes"), ("{host}", "a.shop.example")]
        .iter()
        .fold(path.to_owned(), |path, (parameter, value)| path.replace(parameter, value))
}

/// A server that has at least three of everything that there are lists of.
async fn full() -> (World, String) {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    for number in 2..=4 {
        assert_eq!(world.deploy(&alice, "shop", "web", number).await["progress"], "done");
    }
    for name in ["a", "b", "c"] {
        world.post("/api/v1/teams", &alice, json!({ "name": name })).await.ok();
        world.member(&alice, "shop", &format!("user-{name}"), "viewer").await;
        world.post(&format!("{TEAM}/apps"), &alice, json!({ "name": name })).await.ok();
        let store = json!({ "kind": "key-value", "name": name });
        world.post(&format!("{TEAM}/resources"), &alice, store).await.ok();
        let domain = json!({ "host": format!("{name}.shop.example") });
        world.post(&format!("{TEAM}/apps/web/domains"), &alice, domain).await.ok();
        let link = json!({ "resource": name });
        let path = format!("{TEAM}/apps/web/links/key-value/label-{name}");
        world.ask(Method::PUT, &path, Some(&alice), Some(&link)).await.ok();
        let token = json!({ "name": name, "scopes": [] });
        world.post("/api/v1/tokens", &alice, token.clone()).await.ok();
        world.post(&format!("{TEAM}/tokens"), &alice, token).await.ok();
    }
    let set = json!({ "set": { "a": "1", "b": "2", "c": "3" } });
    let path = format!("{TEAM}/apps/web/variables");
    let operation = world.ask(Method::PATCH, &path, Some(&alice), Some(&set)).await.ok().json();
    world.wait(&alice, "shop", &operation).await;
    let notes = json!({ "kind": "key-value", "name": "notes" });
    world.post(&format!("{TEAM}/resources"), &alice, notes).await.ok();
    for key in ["a", "b", "c"] {
        let path = format!("{TEAM}/key-value/notes/keys/{key}");
        world.ask(Method::PUT, &path, Some(&alice), Some(&json!("x"))).await.ok();
    }
    (world, alice)
}

#[tokio::test]
async fn every_list_has_pages() {
    let (world, alice) = full().await;
    let mut lists_count = 0;
    for (id, (method, path, operation)) in routes() {
        let answer = &operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
        if !answer.as_str().is_some_and(|name| name.contains("/Page_")) {
            let is_list = method == Method::GET && id.starts_with("list_") && id != "list_garbage";
            assert!(!is_list, "{id} is a list without pages");
            continue;
        }
        lists_count += 1;
        for parameter in PAGE_PARAMETERS {
            assert!(parameters(&operation).contains(&parameter), "{id} has no `{parameter}`");
        }
        let path = fill(&path);
        let all = world.get(&format!("{path}?limit=500"), &alice).await.ok().json();
        let all = all["items"].as_array().unwrap().clone();
        assert!(all.len() > 2, "make more for {id}: {all:?}");
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = world.get(&format!("{path}?limit=2{after}"), &alice).await.ok().json();
            let items = page["items"].as_array().unwrap();
            assert!((1..=2).contains(&items.len()), "{id}: {page}");
            seen.extend(items.iter().cloned());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(seen, all, "{id}: the pages together are the list");
        for wrong in ["limit=0", "limit=501", "limit=x"] {
            let refused = world.get(&format!("{path}?{wrong}"), &alice).await;
            assert_eq!(
                (refused.status, refused.code().as_str()),
                (StatusCode::BAD_REQUEST, "WISP-E0904"),
                "{id}"
            );
        }
    }
    assert!(lists_count >= 15, "{lists_count}");
}

/// What each POST is sent.
fn body_of(id: &str, image: &str) -> Value {
    match id {
        "create_team" => json!({ "name": "made" }),
        "create_app" => json!({ "name": "made" }),
        "create_token" | "create_team_token" => json!({ "name": "made", "scopes": [] }),
        "create_resource" => json!({ "kind": "sqlite", "name": "made" }),
        "add_domain" => json!({ "host": "made.example" }),
        "invite_member" => json!({ "role": "viewer" }),
        "make_plan" | "create_release" => json!({ "image": image }),
        "query" => json!({ "statement": "CREATE TABLE made (a)", "may_write": true }),
        "invite_user" | "own_link" | "rollback" | "verify_domain" | "remove_garbage" => json!({}),
        other => panic!("say in `body_of` what {other} is sent"),
    }
}

#[tokio::test]
async fn every_post_is_carried_out_once_by_its_key() {
    let (world, alice) = full().await;
    let image = world.push_manifest("shop", "web", 9, MANIFEST);
    world.machine.proven.lock().unwrap().insert("a.shop.example".to_owned());
    let database = json!({ "kind": "sqlite", "name": "notes" });
    world.post(&format!("{TEAM}/resources"), &alice, database).await.ok();
    let mut posts_count = 0;
    for (id, (method, path, operation)) in routes() {
        let is_for_everybody = operation["security"] == json!([{}]);
        let says_so = parameters(&operation).contains(&"Idempotency-Key");
        assert_eq!(says_so, method == Method::POST && !is_for_everybody, "{id}");
        if !says_so {
            continue;
        }
        posts_count += 1;
        let (path, body) = (fill(&path), body_of(&id, &image).to_string());
        let headers = [("idempotency-key", id.as_str())];
        let send = |body: String| world.send(Method::POST, &path, Some(&alice), &headers, body);
        let first = send(body.clone()).await;
        assert!(first.status.is_success(), "{id}: {} {}", first.status, first.text());
        assert!(!first.headers.contains_key("idempotency-replayed"), "{id}");
        let audit = |world: &World| {
            let db = rusqlite::Connection::open(world.folder.path().join("state.db")).unwrap();
            db.query_row("SELECT count(*) FROM audit", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        if first.status == StatusCode::ACCEPTED {
            world.wait(&alice, "shop", &first.json()).await;
        }
        let done_count = audit(&world);
        let again = send(body).await;
        assert_eq!(again.headers["idempotency-replayed"], "true", "{id}");
        assert_eq!((again.status, again.body), (first.status, first.body), "{id}");
        assert_eq!(audit(&world), done_count, "{id} was carried out twice");
        let other = send(json!({ "something": "else" }).to_string()).await;
        assert_eq!(
            (other.status, other.code().as_str()),
            (StatusCode::UNPROCESSABLE_ENTITY, "WISP-E0910"),
            "{id}"
        );
    }
    assert!(posts_count >= 13, "{posts_count}");
    // What is kept of the answers is sealed: they hold what is shown only once.
    let db = rusqlite::Connection::open(world.folder.path().join("state.db")).unwrap();
    let mut answers = db.prepare("SELECT answer FROM idempotency").unwrap();
    for answer in answers.query_map([], |row| row.get::<_, Option<Vec<u8>>>(0)).unwrap() {
        let answer = answer.unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("wisp_"), "a token in clear");
    }
    assert!(!world.get(&format!("{TEAM}/apps/web/variables"), &alice).await.text().contains(SECRET));
}

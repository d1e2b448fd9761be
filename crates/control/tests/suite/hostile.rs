//! Everybody who may not, against every route there is.
//!
//! The routes come from the OpenAPI document: a new one is tried by itself, and one that
//! nobody told this test how to call, or that lets somebody in whom it should not, fails it.
//! What is refused has to be refused in the same bytes by a server on which the thing in
//! question does not exist.

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use wisp_control::RegistryAction;

use crate::world::{Answer, SECRET, World};

/// Routes for everybody. Who adds one says so here.
const PUBLIC: [&str; 10] = [
    "begin_device",
    "device_page",
    "document",
    "finish_device",
    "health",
    "sign_in",
    "sign_in_page",
    "submit_device",
    "submit_sign_in",
    "version",
];

/// What everybody with a token may ask about themselves.
const ABOUT_ONESELF: [&str; 2] = ["list_teams", "whoami"];

/// What a person may do with their own tokens.
const ONES_OWN: [&str; 4] = ["create_token", "list_tokens", "own_link", "remove_token"];

/// What a viewer may do in the team.
const VIEWER_MAY: [&str; 16] = [
    "get_app",
    "get_operation",
    "get_release",
    "get_resource",
    "get_team",
    "list_apps",
    "list_domains",
    "list_links",
    "list_members",
    "list_operations",
    "list_releases",
    "list_resources",
    "list_variables",
    "logs",
    "team_usage",
    "whoami",
];

/// What the team has that no stranger may see.
const MARKERS: [&str; 5] = ["shop", "web", "vera", SECRET, "greeting"];

struct Route {
    id: String,
    method: Method,
    path: String,
    has_team: bool,
    body: String,
}

struct Places {
    operation: String,
    token: String,
    own_token: String,
}

/// A body that is right for each route that wants one.
fn body_of(id: &str, image: &str) -> Option<Value> {
    Some(match id {
        "invite_user" => json!({}),
        "create_team" => json!({ "name": "third" }),
        "set_role" => json!({ "role": "deployer" }),
        "invite_member" => json!({ "role": "viewer" }),
        "create_token" | "create_team_token" => json!({ "name": "made", "scopes": [] }),
        "create_app" => json!({ "name": "second" }),
        "change_variables" => json!({ "set": { "color": "red" } }),
        "change_secrets" => json!({ "set": { "password": "other" } }),
        "add_domain" => json!({ "host": "other.example" }),
        "make_plan" | "create_release" => json!({ "image": image }),
        "rollback" => json!({}),
        "create_resource" => json!({ "kind": "key-value", "name": "made" }),
        "change_resource" => json!({ "quota_bytes": 1000 }),
        "import" => json!({ "imported": "yes" }),
        "set_link" => json!({ "resource": "web.default" }),
        "set_key" => json!("value"),
        "query" => json!({ "statement": "SELECT 1" }),
        _ => return None,
    })
}

fn routes(places: &Places, image: &str) -> Vec<Route> {
    let document: Value = serde_json::from_str(&wisp_control::openapi().to_json().unwrap()).unwrap();
    let mut routes = Vec::new();
    for (template, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let is_public = operation["security"] == json!([{}]);
            assert_eq!(is_public, PUBLIC.contains(&id.as_str()), "is {id} for everybody?");
            if is_public {
                continue;
            }
            let wants_body = !operation["requestBody"].is_null();
            let body = body_of(&id, image);
            assert_eq!(wants_body, body.is_some(), "say in `body_of` what {id} is sent");
            let mut path = template.clone();
            let user = if id == "remove_user" { "alice" } else { "vera" };
            let token = if id == "remove_token" { &places.own_token } else { &places.token };
            let database = if id == "query" { "web.default" } else { "notes" };
            for (name, value) in [
                ("team", "shop"),
                ("app", "web"),
                ("release", "1"),
                ("operation", &places.operation),
                ("kind", "key-value"),
                ("resource", database),
                ("label", "default"),
                ("host", "www.shop.example"),
                ("key", "greeting"),
                ("user", user),
                ("token", token),
            ] {
                path = path.replace(&format!("{{{name}}}"), value);
            }
            assert!(!path.contains('{'), "say in `routes` what {path} stands for");
            routes.push(Route {
                method: method.to_uppercase().parse().unwrap(),
                has_team: template.contains("{team}"),
                body: body.map(|body| body.to_string()).unwrap_or_default(),
                id,
                path,
            });
        }
    }
    // Nothing is changed before it was read, or removed before it was used.
    let order = |route: &Route| {
        (route.method != Method::GET, route.method == Method::DELETE, usize::MAX - route.path.len())
    };
    routes.sort_by_key(order);
    routes
}

/// A server with a team that has everything.
async fn rich() -> (World, String, Places) {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.member(&alice, "shop", "vera", "viewer").await;
    let team = "/api/v1/teams/shop";
    world.app(&alice, "shop", "web").await;
    let set = json!({ "set": { "password": SECRET } });
    let path = format!("{team}/apps/web/secrets");
    let operation = world.ask(Method::PATCH, &path, Some(&alice), Some(&set)).await.ok().json();
    world.wait(&alice, "shop", &operation).await;
    world.post(&format!("{team}/apps/web/domains"), &alice, json!({ "host": "www.shop.example" })).await.ok();
    let store = json!({ "kind": "key-value", "name": "notes" });
    world.post(&format!("{team}/resources"), &alice, store).await.ok();
    let key = format!("{team}/key-value/notes/keys/greeting");
    world.ask(Method::PUT, &key, Some(&alice), Some(&json!("hello"))).await.ok();
    let body = json!({ "name": "ci", "scopes": ["apps:read"] });
    let token = world.post(&format!("{team}/tokens"), &alice, body.clone()).await.ok().json();
    let own = world.post("/api/v1/tokens", &alice, body).await.ok().json();
    let id = |token: &Value| token["id"].as_str().unwrap().to_owned();
    let places = Places { operation: id(&operation), token: id(&token), own_token: id(&own) };
    (world, alice, places)
}

/// A server on which the team exists, and nothing is in it.
async fn bare() -> (World, String) {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.member(&alice, "shop", "vera", "viewer").await;
    (world, alice)
}

/// A server that has never heard of the team.
async fn without() -> (World, String) {
    let world = World::new().await;
    let alice = world.operator("elsewhere").await;
    (world, alice)
}

/// Somebody with a team of their own.
async fn stranger(world: &World, alice: &str) -> String {
    let invitation = world.post("/api/v1/users", alice, json!({})).await.ok().json();
    let mallory = world.sign_in(invitation["link"].as_str().unwrap(), json!({ "user": "mallory" })).await;
    let team = json!({ "name": "other", "owner": "mallory" });
    world.post("/api/v1/teams", alice, team).await.ok();
    mallory
}

async fn token_with(world: &World, owner: &str, scopes: Value) -> String {
    let body = json!({ "name": "narrow", "scopes": scopes });
    let token = world.post("/api/v1/tokens", owner, body).await.ok().json();
    token["secret"].as_str().unwrap().to_owned()
}

/// A token of the owner that has expired.
async fn expired(world: &World, owner: &str) -> String {
    let body = json!({ "name": "old", "scopes": ["apps:read", "team:admin"] });
    let token = world.post("/api/v1/tokens", owner, body).await.ok().json();
    let db = rusqlite::Connection::open(world.folder.path().join("state.db")).unwrap();
    let changed = db.execute("UPDATE tokens SET expires_ms = 1 WHERE id = ?1", [token["id"].as_str()]);
    assert_eq!(changed.unwrap(), 1);
    token["secret"].as_str().unwrap().to_owned()
}

async fn ask(world: &World, route: &Route, token: Option<&str>) -> Answer {
    world.send(route.method.clone(), &route.path, token, &[], route.body.clone()).await
}

#[track_caller]
fn assert_same(route: &Route, there: &Answer, elsewhere: &Answer) {
    assert_eq!(there, elsewhere, "{} {} tells what is there", route.method, route.path);
}

#[tokio::test]
async fn a_stranger_finds_nothing() {
    let (there, alice, places) = rich().await;
    let mallory = stranger(&there, &alice).await;
    let (elsewhere, other_alice) = without().await;
    let other_mallory = stranger(&elsewhere, &other_alice).await;
    let image = there.push("shop", "web", 1);
    for route in routes(&places, &image) {
        let answer = ask(&there, &route, Some(&mallory)).await;
        let same = ask(&elsewhere, &route, Some(&other_mallory)).await;
        if route.has_team {
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{} {}", route.method, route.path);
            assert_same(&route, &answer, &same);
        } else if ABOUT_ONESELF.contains(&route.id.as_str()) || ONES_OWN.contains(&route.id.as_str()) {
            assert_eq!(answer.status, same.status, "{}", route.id);
            for marker in MARKERS {
                assert!(!answer.text().contains(marker), "{} tells of {marker}", route.id);
            }
        } else {
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{} {}", route.method, route.path);
            assert_same(&route, &answer, &same);
        }
    }
    for action in [RegistryAction::Pull, RegistryAction::Push] {
        let registry = |world: &World, token: String, team: &'static str, app: &'static str| {
            let control = std::sync::Arc::clone(&world.control);
            async move {
                let error = control.authorize_repository(&token, "", team, app, action).await.unwrap_err();
                (error.status(), error.to_string())
            }
        };
        let answer = registry(&there, mallory.clone(), "shop", "web").await;
        assert_eq!(answer.0, StatusCode::NOT_FOUND);
        assert_eq!(answer, registry(&there, mallory.clone(), "nobody", "web").await);
        assert_eq!(answer, registry(&elsewhere, other_mallory.clone(), "shop", "web").await);
    }
    let app = there.get("/api/v1/teams/shop/apps/web", &alice).await.ok().json();
    assert_eq!(app["release"], 2, "a stranger changed something: {app}");
}

#[tokio::test]
async fn nobody_and_who_comes_too_late_find_nothing() {
    let (there, alice, places) = rich().await;
    let late = expired(&there, &alice).await;
    let (elsewhere, other_alice) = without().await;
    let other_late = expired(&elsewhere, &other_alice).await;
    let image = there.push("shop", "web", 1);
    for route in routes(&places, &image) {
        for (token, other) in
            [(None, None), (Some(late.as_str()), Some(other_late.as_str())), (Some("wisp_x"), None)]
        {
            let answer = ask(&there, &route, token).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{} {}", route.method, route.path);
            assert_same(&route, &answer, &ask(&elsewhere, &route, other).await);
        }
    }
}

#[tokio::test]
async fn a_viewer_only_views() {
    let (there, alice, places) = rich().await;
    let vera = there.member(&alice, "shop", "vera2", "viewer").await;
    let (elsewhere, other_alice) = bare().await;
    let other_vera = elsewhere.member(&other_alice, "shop", "vera2", "viewer").await;
    let image = there.push("shop", "web", 1);
    for route in routes(&places, &image) {
        let answer = ask(&there, &route, Some(&vera)).await;
        let id = route.id.as_str();
        assert!(!answer.text().contains(SECRET), "{id} shows a secret");
        if VIEWER_MAY.contains(&id) || ABOUT_ONESELF.contains(&id) {
            assert!(answer.status.is_success(), "{id}: {} {}", answer.status, answer.text());
        } else if !ONES_OWN.contains(&id) {
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{} {}", route.method, route.path);
            assert_same(&route, &answer, &ask(&elsewhere, &route, Some(&other_vera)).await);
        }
    }
}

#[tokio::test]
async fn a_token_does_what_it_is_for() {
    let (there, alice, places) = rich().await;
    let narrow = token_with(&there, &alice, json!([])).await;
    let (elsewhere, other_alice) = bare().await;
    let other_narrow = token_with(&elsewhere, &other_alice, json!([])).await;
    let image = there.push("shop", "web", 1);
    for route in routes(&places, &image) {
        let answer = ask(&there, &route, Some(&narrow)).await;
        if ABOUT_ONESELF.contains(&route.id.as_str()) {
            continue;
        }
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{} {}", route.method, route.path);
        assert_same(&route, &answer, &ask(&elsewhere, &route, Some(&other_narrow)).await);
    }
}

/// That the others are refused means something: the owner is not.
#[tokio::test]
async fn the_owner_gets_through_everywhere() {
    let (there, alice, places) = rich().await;
    let image = there.push("shop", "web", 1);
    let mut refused = BTreeMap::new();
    let mut met = BTreeSet::new();
    for route in routes(&places, &image) {
        let answer = ask(&there, &route, Some(&alice)).await;
        // A conflict is about the thing itself, not about who asks.
        if !answer.status.is_success() && answer.status != StatusCode::CONFLICT {
            refused.insert(route.id.clone(), format!("{} {}", answer.status, answer.text()));
        }
        if answer.status == StatusCode::ACCEPTED {
            there.wait(&alice, "shop", &answer.json()).await;
        }
        met.insert(route.id);
    }
    assert!(refused.is_empty(), "{refused:#?}");
    for known in VIEWER_MAY.iter().chain(&ABOUT_ONESELF).chain(&ONES_OWN) {
        assert!(met.contains(*known), "{known} is no route any more");
    }
}

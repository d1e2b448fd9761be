//! What is kept, and what nobody needs any more.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::World;

const APP: &str = "/api/v1/teams/shop/apps/web";

async fn numbers(world: &World, token: &str) -> Vec<u64> {
    let releases = world.get(&format!("{APP}/releases"), token).await.ok().json();
    releases["items"].as_array().unwrap().iter().map(|one| one["number"].as_u64().unwrap()).collect()
}

/// The names of what is garbage.
fn names(report: &Value) -> Vec<String> {
    let items = report["items"].as_array().unwrap().iter();
    items
        .map(|item| format!("{} {}", item["kind"].as_str().unwrap(), item["name"].as_str().unwrap()))
        .collect()
}

fn manifest(number: u8) -> String {
    format!("manifest shop/web sha256:{}", hex::encode([number; 32]))
}

async fn back_to(world: &World, token: &str, release: u64) -> Value {
    let path = format!("{APP}/rollback");
    let operation = world.post(&path, token, json!({ "release": release })).await.ok().json();
    world.wait(token, "shop", &operation).await
}

#[tokio::test]
async fn so_many_releases_are_kept_and_each_can_be_gone_back_to() {
    let world = World::with_policy("[default.quotas]\nkept_releases = 2\n").await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    for number in 2..=5 {
        world.deploy(&alice, "shop", "web", number).await;
    }
    assert_eq!(numbers(&world, &alice).await, [5, 4, 3]);
    let garbage = "/api/v1/garbage";
    let asked = world.get(garbage, &alice).await.ok().json();
    let mut found = names(&asked);
    found.sort();
    assert_eq!(found, [manifest(1), manifest(2)]);
    assert_eq!((&asked["is_removed"], &asked["totals"][0]["count"]), (&json!(false), &json!(2)));
    let removed = world.post(garbage, &alice, json!({})).await.ok().json();
    assert_eq!((&removed["is_removed"], &removed["totals"]), (&json!(true), &asked["totals"]));
    assert_eq!(world.get(garbage, &alice).await.ok().json()["items"], json!([]));
    assert_eq!(back_to(&world, &alice, 3).await["progress"], "done");
    assert_eq!(numbers(&world, &alice).await, [5, 4, 3], "the one that serves is kept besides");

    // Fewer are kept from now on.
    std::fs::write(world.folder.path().join("policy.toml"), "[default.quotas]\nkept_releases = 1\n").unwrap();
    world.control.reload_policy().await.unwrap();
    let asked = world.get(garbage, &alice).await.ok().json();
    assert_eq!(names(&asked), ["release shop/web 4".to_owned(), manifest(4)]);
    assert_eq!(numbers(&world, &alice).await, [5, 4, 3], "it was only asked");
    world.post(garbage, &alice, json!({})).await.ok();
    assert_eq!(numbers(&world, &alice).await, [5, 3]);
    let gone = world.post(&format!("{APP}/rollback"), &alice, json!({ "release": 4 })).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert_eq!(back_to(&world, &alice, 5).await["progress"], "done");
    let audit = world.get("/api/v1/audit", &alice).await.ok().text();
    assert!(audit.contains("garbage.remove"), "{audit}");
}

#[tokio::test]
async fn releases_that_failed_do_not_pile_up() {
    let world = World::with_policy("[default.quotas]\nkept_releases = 1\n").await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    *world.machine.fails_in.lock().unwrap() = Some("compile");
    for number in 2..=4 {
        assert_eq!(world.deploy(&alice, "shop", "web", number).await["progress"], "failed");
    }
    assert_eq!(numbers(&world, &alice).await, [4, 1]);
    let found = names(&world.get("/api/v1/garbage", &alice).await.ok().json());
    assert_eq!(found.len(), 3, "what failed never serves, so nobody needs its image: {found:?}");
}

#[tokio::test]
async fn what_an_operation_is_about_is_kept() {
    let world = World::with_policy("[default.quotas]\nkept_releases = 2\n").await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    for number in 2..=3 {
        world.deploy(&alice, "shop", "web", number).await;
    }
    std::fs::write(world.folder.path().join("policy.toml"), "[default.quotas]\nkept_releases = 1\n").unwrap();
    world.control.reload_policy().await.unwrap();
    *world.machine.stops_in.lock().unwrap() = Some("drain");
    world.post(&format!("{APP}/rollback"), &alice, json!({ "release": 1 })).await.ok();
    while world.machine.calls.lock().unwrap().last() != Some(&"drain") {
        tokio::task::yield_now().await;
    }
    // Release 1 serves, 3 is what it would go back to; 2 is nobody's.
    world.post("/api/v1/garbage", &alice, json!({})).await.ok();
    let left = numbers(&world, &alice).await;
    assert!(left.contains(&1) && left.contains(&3), "{left:?}");
}

#[tokio::test]
async fn a_team_has_nothing_of_one_of_the_same_name() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    let made = json!({ "name": "blog" });
    world.post("/api/v1/teams", &alice, made.clone()).await.ok();
    let image = world.push("blog", "web", 7);
    world.ask(Method::DELETE, "/api/v1/teams/blog", Some(&alice), None).await.ok();
    world.post("/api/v1/teams", &alice, made).await.ok();
    world.post("/api/v1/teams/blog/apps", &alice, json!({ "name": "web" })).await.ok();
    let plan = world.post("/api/v1/teams/blog/apps/web/plans", &alice, json!({ "image": image })).await;
    assert_eq!(plan.status, StatusCode::NOT_FOUND, "{}", plan.text());
}

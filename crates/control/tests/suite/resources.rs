//! Resources, links, data and domains.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use wisp_control::names::AppId;

use crate::world::World;

const TEAM: &str = "/api/v1/teams/shop";

async fn world() -> (World, String) {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    (world, alice)
}

async fn ask(world: &World, token: &str, method: Method, path: &str, body: Value) -> crate::world::Answer {
    world.ask(method, &format!("{TEAM}{path}"), Some(token), Some(&body)).await
}

#[tokio::test]
async fn resources_outlive_apps_and_keep_their_data() {
    let (world, alice) = world().await;
    let key = "/key-value/web.default/keys/a%2Fb";
    ask(&world, &alice, Method::PUT, key, json!("one")).await.ok();
    let in_use = ask(&world, &alice, Method::DELETE, "/resources/key-value/web.default", json!({})).await;
    assert_eq!(in_use.status, StatusCode::CONFLICT);
    assert!(in_use.text().contains("app `web` has it under the label `default`"));
    let removal = ask(&world, &alice, Method::DELETE, "/apps/web", json!({})).await.ok().json();
    world.wait(&alice, "shop", &removal).await;
    assert_eq!(ask(&world, &alice, Method::GET, key, json!({})).await.ok().text(), "\"one\"");
    let keys = ask(&world, &alice, Method::GET, "/key-value/web.default/keys", json!({})).await.ok();
    assert_eq!(keys.json()["items"], json!(["a/b"]));
    // An app of the same name takes them up again.
    world.app(&alice, "shop", "web").await;
    let details = ask(&world, &alice, Method::GET, "/apps/web", json!({})).await.ok().json();
    assert_eq!(details["links"].as_array().unwrap().len(), 2);
    assert_eq!(ask(&world, &alice, Method::GET, key, json!({})).await.ok().text(), "\"one\"");
}

#[tokio::test]
async fn labels_lead_where_people_say() {
    let (world, alice) = world().await;
    let made = json!({ "kind": "key-value", "name": "shared", "quota_bytes": 1000 });
    ask(&world, &alice, Method::POST, "/resources", made.clone()).await.ok();
    let again = ask(&world, &alice, Method::POST, "/resources", made).await;
    assert_eq!((again.status, again.code()), (StatusCode::CONFLICT, "WISP-E0905".to_owned()));
    let link = "/apps/web/links/key-value/default";
    ask(&world, &alice, Method::PUT, link, json!({ "resource": "shared" })).await.ok();
    let resource_of = |world: &World| {
        let serving = world.machine.serving.lock().unwrap();
        let links = &serving.get(&AppId(serving.keys().map(|app| app.0).max().unwrap())).unwrap().links;
        links
            .iter()
            .map(|link| (link.resource.name.to_string(), link.resource.quota_bytes))
            .collect::<Vec<_>>()
    };
    assert!(resource_of(&world).contains(&("shared".to_owned(), 1000)));
    let renamed = json!({ "name": "common", "quota_bytes": 2000 });
    ask(&world, &alice, Method::PATCH, "/resources/key-value/shared", renamed).await.ok();
    assert!(resource_of(&world).contains(&("common".to_owned(), 2000)), "the machine was not told");
    let listed = ask(&world, &alice, Method::GET, "/resources?kind=key-value", json!({})).await.ok().json();
    assert_eq!(listed["items"][0]["name"], "common");
    assert_eq!(listed["items"][0]["links"], json!([{ "app": "web", "label": "default" }]));
    let next = ask(&world, &alice, Method::GET, "/resources?limit=2", json!({})).await.ok().json();
    let rest = format!("/resources?limit=2&after={}", next["next"].as_str().unwrap());
    assert_eq!(
        ask(&world, &alice, Method::GET, &rest, json!({})).await.ok().json()["items"][0]["kind"],
        "sqlite"
    );
    ask(&world, &alice, Method::DELETE, link, json!({})).await.ok();
    assert!(!resource_of(&world).iter().any(|(name, _)| name == "common"));
    let too_much = json!({ "quota_bytes": 1_u64 << 40 });
    let answer = ask(&world, &alice, Method::PATCH, "/resources/key-value/common", too_much).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::CONFLICT, "WISP-E0907".to_owned()));
    ask(&world, &alice, Method::DELETE, "/resources/key-value/common", json!({})).await.ok();
    let gone = ask(&world, &alice, Method::GET, "/resources/key-value/common", json!({})).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn data_goes_out_and_in() {
    let (world, alice) = world().await;
    ask(&world, &alice, Method::PUT, "/key-value/web.default/keys/a", json!("one")).await.ok();
    let out = ask(&world, &alice, Method::GET, "/resources/key-value/web.default/data", json!({})).await.ok();
    let made = json!({ "kind": "key-value", "name": "copy" });
    ask(&world, &alice, Method::POST, "/resources", made).await.ok();
    let path = format!("{TEAM}/resources/key-value/copy/data");
    world.send(Method::PUT, &path, Some(&alice), &[], out.text()).await.ok();
    let value = ask(&world, &alice, Method::GET, "/key-value/copy/keys/a", json!({})).await.ok();
    assert_eq!(value.text(), "\"one\"");
    let query = |statement: &str, may_write: bool| json!({ "statement": statement, "may_write": may_write });
    let sql = "/sqlite/web.default/query";
    let refused = ask(&world, &alice, Method::POST, sql, query("CREATE TABLE t (a)", false)).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    ask(&world, &alice, Method::POST, sql, query("CREATE TABLE t (a)", true)).await.ok();
    ask(&world, &alice, Method::POST, sql, query("INSERT INTO t VALUES (7)", true)).await.ok();
    let rows = ask(&world, &alice, Method::POST, sql, query("SELECT a FROM t", false)).await.ok().json();
    assert_eq!((&rows["columns"], &rows["rows"]), (&json!(["a"]), &json!([[7]])));
}

#[tokio::test]
async fn a_domain_is_whose_it_is() {
    let (world, alice) = world().await;
    world.post("/api/v1/teams", &alice, json!({ "name": "other" })).await.ok();
    world.post("/api/v1/teams/other/apps", &alice, json!({ "name": "web" })).await.ok();
    world.deploy(&alice, "other", "web", 1).await;
    let domain = json!({ "host": "www.example.com" });
    for team in ["shop", "other"] {
        let path = format!("/api/v1/teams/{team}/apps/web/domains");
        let added = world.post(&path, &alice, domain.clone()).await.ok().json();
        assert_eq!(added["is_verified"], false);
        assert_eq!(added["proof"]["cname"], format!("web.{team}.localhost"));
        assert_eq!(added["proof"]["txt_name"], "_wisp.www.example.com");
    }
    assert!(!world.control.serves_host("www.example.com").await.unwrap());
    assert!(world.control.serves_host("web.shop.localhost").await.unwrap());
    assert!(!world.control.serves_host("none.shop.localhost").await.unwrap());
    let verify = |team: &str| format!("/api/v1/teams/{team}/apps/web/domains/www.example.com/verify");
    let early = world.post(&verify("shop"), &alice, json!({})).await;
    assert_eq!(early.status, StatusCode::CONFLICT);
    assert!(early.text().contains("_wisp.www.example.com"));
    world.machine.proven.lock().unwrap().insert("www.example.com".to_owned());
    let leads_to = |world: &World| {
        let serving = world.machine.serving.lock().unwrap();
        let mut teams: Vec<String> = serving
            .values()
            .filter(|deployment| deployment.hosts.iter().any(|host| host.as_str() == "www.example.com"))
            .map(|deployment| deployment.app.team.to_string())
            .collect();
        teams.sort();
        teams
    };
    world.post(&verify("shop"), &alice, json!({})).await.ok();
    assert_eq!(leads_to(&world), ["shop"]);
    assert!(world.control.serves_host("www.example.com").await.unwrap());
    // DNS says otherwise now.
    world.post(&verify("other"), &alice, json!({})).await.ok();
    assert_eq!(leads_to(&world), ["other"]);
    let path = "/api/v1/teams/other/apps/web/domains/www.example.com";
    world.ask(Method::DELETE, path, Some(&alice), None).await.ok();
    assert!(leads_to(&world).is_empty());
    let own = json!({ "host": "x.shop.localhost" });
    let refused = world.post("/api/v1/teams/shop/apps/web/domains", &alice, own).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn certificates_are_kept_sealed() {
    let (world, _) = world().await;
    let control = &world.control;
    control.set_certificate("www.example.com", Some(b"a private key")).await.unwrap();
    let world = world.restart().await;
    let control = &world.control;
    assert_eq!(control.certificate("www.example.com").await.unwrap().unwrap(), b"a private key");
    assert_eq!(control.certificate_names().await.unwrap(), ["www.example.com"]);
    for name in ["state.db", "state.db-wal"] {
        let bytes = std::fs::read(world.folder.path().join(name)).unwrap();
        assert!(!bytes.windows(13).any(|window| window == b"a private key"), "{name}");
    }
    control.set_certificate("www.example.com", None).await.unwrap();
    assert!(control.certificate("www.example.com").await.unwrap().is_none());
}

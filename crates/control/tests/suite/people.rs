//! Ways in, roles, tokens, the audit log.

use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use wisp_control::RegistryAction;

use crate::world::World;

#[tokio::test]
async fn the_first_link_works_once() {
    let world = World::new().await;
    let link = world.control.sign_in_link().await.unwrap().unwrap();
    let second = world.control.sign_in_link().await.unwrap().unwrap();
    let code = |link: &str| link.split_once("code=").unwrap().1.to_owned();
    let body = json!({ "code": code(&link), "user": "eve" });
    let old = world.ask(Method::POST, "/api/v1/sign-in", None, Some(&body)).await;
    assert_eq!(old.code(), "WISP-E0914", "a new link ends the one before");
    let alice = world.sign_in(&second, json!({ "user": "alice", "team": "shop" })).await;
    let body = json!({ "code": code(&second), "user": "eve" });
    let again = world.ask(Method::POST, "/api/v1/sign-in", None, Some(&body)).await;
    assert_eq!((again.status, again.code()), (StatusCode::BAD_REQUEST, "WISP-E0914".to_owned()));
    assert!(world.control.sign_in_link().await.unwrap().is_none());
    let whoami = world.get("/api/v1/whoami", &alice).await.ok().json();
    assert_eq!((&whoami["user"], &whoami["is_operator"]), (&json!("alice"), &json!(true)));
    assert_eq!(whoami["teams"][0]["role"], "owner");
    let owner = json!({ "name": "other", "owner": "alice" });
    world.post("/api/v1/teams", &alice, owner).await.ok();
    let teams = world.get("/api/v1/teams", &alice).await.ok().json();
    assert_eq!((&teams["items"][0]["name"], &teams["items"][0]["role"]), (&json!("other"), &json!("owner")));
}

#[tokio::test]
async fn a_link_of_ones_own_signs_in_elsewhere() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    let link = world.post("/api/v1/sign-in-link", &alice, json!({})).await.ok().json();
    let elsewhere = world.sign_in(link["link"].as_str().unwrap(), json!({})).await;
    assert_ne!(elsewhere, alice);
    assert_eq!(world.get("/api/v1/whoami", &elsewhere).await.ok().json()["user"], "alice");
}

#[tokio::test]
async fn a_machine_signs_in_by_a_code_that_somebody_confirms() {
    let world = World::new().await;
    let link = world.control.sign_in_link().await.unwrap().unwrap();
    let code = link.split_once("code=").unwrap().1;
    let form = format!("code={code}&user=alice&team=shop");
    let signed_in = world.send(Method::POST, "/sign-in", None, &[], form).await.ok();
    let cookie = signed_in.headers[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let begun = json!({ "name": "<laptop>" });
    let begun = world.ask(Method::POST, "/api/v1/device", None, Some(&begun)).await.ok().json();
    let poll = json!({ "device_code": begun["device_code"] });
    let waiting = world.ask(Method::POST, "/api/v1/device/token", None, Some(&poll)).await;
    assert_eq!(waiting.code(), "WISP-E0913");
    let typed = begun["user_code"].as_str().unwrap().to_lowercase();
    let nobody = world.send(Method::POST, "/device", None, &[], format!("code={typed}&confirm=yes")).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    let with = |headers: Vec<(&'static str, String)>, body: String| {
        let world = &world;
        let cookie = cookie.clone();
        async move {
            let mut all: Vec<(&str, &str)> = vec![("cookie", &cookie)];
            all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
            world.send(Method::POST, "/device", None, &all, body).await
        }
    };
    let shown = with(vec![], format!("code={typed}")).await.ok();
    assert!(shown.text().contains("&lt;laptop&gt;"), "{}", shown.text());
    let confirm = format!("code={typed}&confirm=yes");
    let foreign = with(vec![("origin", "https://evil.example".to_owned())], confirm.clone()).await;
    assert_eq!(foreign.status, StatusCode::BAD_REQUEST);
    with(vec![("origin", "http://localhost:3000".to_owned())], confirm.clone()).await.ok();
    let token = world.ask(Method::POST, "/api/v1/device/token", None, Some(&poll)).await.ok().json();
    let token = token["secret"].as_str().unwrap();
    assert_eq!(world.get("/api/v1/whoami", token).await.ok().json()["user"], "alice");
    let again = world.ask(Method::POST, "/api/v1/device/token", None, Some(&poll)).await;
    assert_eq!(again.code(), "WISP-E0914");
    // The session says who somebody is, and may do nothing.
    let session = cookie.split_once('=').unwrap().1;
    assert_eq!(world.get("/api/v1/teams/shop/apps", session).await.status, StatusCode::FORBIDDEN);
    // Guessing comes to an end.
    let mut last = StatusCode::OK;
    for _ in 0..30 {
        last = with(vec![], "code=BBBB-BBBB".to_owned()).await.status;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn tokens_give_no_more_than_their_maker_has() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    let body = json!({ "name": "ci", "scopes": ["apps:read", "registry:push"] });
    let made = world.post("/api/v1/teams/shop/tokens", &alice, body).await.ok().json();
    let secret = made["secret"].as_str().unwrap();
    world.get("/api/v1/teams/shop/apps", secret).await.ok();
    let refused = world.post("/api/v1/teams/shop/apps", secret, json!({ "name": "web" })).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "WISP-E0903".to_owned()));
    assert!(refused.text().contains("apps:deploy"));
    // Neither for itself nor for the team does it make another.
    let wider = json!({ "name": "more", "scopes": ["apps:deploy"] });
    for path in ["/api/v1/tokens", "/api/v1/teams/shop/tokens"] {
        assert_eq!(world.post(path, secret, wider.clone()).await.status, StatusCode::FORBIDDEN);
    }
    for (action, is_allowed) in [(RegistryAction::Push, true), (RegistryAction::Pull, false)] {
        let allowed = world.control.authorize_repository(secret, "", "shop", "web", action).await;
        assert_eq!(allowed.is_ok(), is_allowed);
    }
    let owner_of_scopes = json!({ "name": "x", "scopes": ["server:admin"] });
    let too_much = world.post("/api/v1/teams/shop/tokens", &alice, owner_of_scopes).await;
    assert_eq!(too_much.status, StatusCode::FORBIDDEN);
    let id = made["id"].as_str().unwrap();
    let path = format!("/api/v1/teams/shop/tokens/{id}");
    world.ask(Method::DELETE, &path, Some(&alice), None).await.ok();
    assert_eq!(world.get("/api/v1/teams/shop/apps", secret).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn roles_change_and_a_team_keeps_an_owner() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    let bob = world.member(&alice, "shop", "bob", "viewer").await;
    let app = json!({ "name": "web" });
    let apps = "/api/v1/teams/shop/apps";
    assert_eq!(world.post(apps, &bob, app.clone()).await.status, StatusCode::FORBIDDEN);
    let role = json!({ "role": "deployer" });
    let path = "/api/v1/teams/shop/members/bob";
    world.ask(Method::PUT, path, Some(&alice), Some(&role)).await.ok();
    world.post(apps, &bob, app).await.ok();
    let own = "/api/v1/teams/shop/members/alice";
    let demoted = world.ask(Method::PUT, own, Some(&alice), Some(&role)).await;
    assert_eq!(demoted.status, StatusCode::CONFLICT);
    assert_eq!(world.ask(Method::DELETE, own, Some(&alice), None).await.status, StatusCode::CONFLICT);
    world.ask(Method::DELETE, path, Some(&alice), None).await.ok();
    assert_eq!(world.get(apps, &bob).await.status, StatusCode::NOT_FOUND);
    let audit = world.get("/api/v1/teams/shop/audit", &alice).await.ok().json();
    let entries = audit["items"].as_array().unwrap();
    let actions: Vec<_> = entries.iter().rev().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions,
        ["team.create", "invitation.create", "member.join", "member.change", "app.create", "member.remove"]
    );
    // Numbered within the team: what others do is not to be told from gaps.
    let numbers: Vec<_> = entries.iter().rev().map(|entry| entry["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    assert_eq!(entries[1]["who"], "bob");
    assert_eq!(entries[0]["who"], "alice");
}

#[tokio::test]
async fn pages_of_a_list_are_the_list() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    for number in 0..7 {
        world.post("/api/v1/teams/shop/apps", &alice, json!({ "name": format!("app-{number}") })).await.ok();
    }
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = world.get(&format!("/api/v1/teams/shop/apps?limit=3{after}"), &alice).await.ok().json();
        let items = page["items"].as_array().unwrap();
        names.extend(items.iter().map(|app| app["name"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(names, (0..7).map(|number| format!("app-{number}")).collect::<Vec<_>>());
    for wrong in ["limit=0", "limit=501", "limit=x"] {
        let answer = world.get(&format!("/api/v1/teams/shop/apps?{wrong}"), &alice).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "WISP-E0904".to_owned()));
    }
}

#[tokio::test]
async fn bodies_are_bounded_and_checked() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    let apps = "/api/v1/teams/shop/apps";
    for wrong in
        [json!({ "name": "Web" }), json!({ "nam": "web" }), json!([]), json!({ "name": "web", "x": 1 })]
    {
        let answer = world.post(apps, &alice, wrong).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "WISP-E0904".to_owned()));
    }
    let large = json!({ "name": "x".repeat(2 << 20) });
    let answer = world.post(apps, &alice, large).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::PAYLOAD_TOO_LARGE, "WISP-E0911".to_owned()));
    let method = world.ask(Method::PUT, apps, Some(&alice), None).await;
    assert_eq!((method.status, method.code()), (StatusCode::METHOD_NOT_ALLOWED, "WISP-E0923".to_owned()));
    let nowhere = world.get("/api/v1/nowhere", &alice).await;
    assert_eq!((nowhere.status, nowhere.code()), (StatusCode::NOT_FOUND, "WISP-E0902".to_owned()));
}

/// Whether a sign-in by code still waits.
async fn waits(world: &World, device: &Value) -> bool {
    let body = json!({ "device_code": device["device_code"] });
    let answer = world.ask(Method::POST, "/api/v1/device/token", None, Some(&body)).await;
    match answer.code().as_str() {
        "WISP-E0913" => true,
        "WISP-E0914" => false,
        other => panic!("{other}: {}", answer.text()),
    }
}

#[tokio::test]
async fn one_client_does_not_fill_the_list_of_sign_ins() {
    let world = World::new().await;
    let mine = world.begin_device("192.0.2.1").await;
    // All of one network of IPv6 are one.
    let mut theirs = Vec::new();
    for number in 0..60 {
        theirs.push(world.begin_device(&format!("2001:db8:0:1::{number}")).await);
    }
    assert!(waits(&world, &mine).await);
    let mut waiting_count = 0;
    for device in &theirs {
        waiting_count += usize::from(waits(&world, device).await);
    }
    assert_eq!(waiting_count, 50);
    let (oldest, newest) = (&theirs[0], &theirs[59]);
    assert!(!waits(&world, oldest).await && waits(&world, newest).await, "the oldest of their own go");
    assert!(waits(&world, &world.begin_device("2001:db8:0:2::1").await).await);
}

#[tokio::test]
async fn who_has_most_sign_ins_waiting_makes_room() {
    let world = World::new().await;
    let mine = world.begin_device("192.0.2.1").await;
    // As many clients as fill the list, one of them more than once.
    let db = rusqlite::Connection::open(world.folder.path().join("state.db")).unwrap();
    let far = u64::MAX >> 2;
    db.execute_batch(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4999)
         INSERT INTO device_sign_ins (device_hash, code_hash, name, expires_ms, origin)
         SELECT CAST('device ' || i AS BLOB), CAST('code ' || i AS BLOB), 'x', {far} + i, 'client ' || (i / 2)
         FROM n;"
    ))
    .unwrap();
    let next = world.begin_device("192.0.2.2").await;
    assert!(waits(&world, &mine).await && waits(&world, &next).await);
    let count: i64 = db.query_row("SELECT count(*) FROM device_sign_ins", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 5_000);
}

//! What a first version wrote opens in every later one.
//!
//! `golden/0001.sql` is what the first schema looked like with data in it, `0002.sql` the
//! second, and so on. They are never written again: a later schema gets a file of its own, by
//! `WISP_WRITE_GOLDEN=1 cargo test -p wisp-control --test suite golden`.

use std::{fmt::Write as _, fs, path::PathBuf, sync::Arc};

use http::Method;
use rusqlite::{Connection, types::ValueRef};
use serde_json::json;
use wisp_control::{Control, Error};

use crate::{
    machine::Machine,
    world::{SECRET, World, settings},
};

/// The schema that this version writes.
const CURRENT: u32 = 3;

fn golden(version: u32, extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{version:04}.{extension}"))
}

/// Everything in a database, as SQL.
fn dump(db: &Connection) -> String {
    let mut text = String::new();
    for name in ["user_version", "application_id"] {
        let value: i64 = db.pragma_query_value(None, name, |row| row.get(0)).unwrap();
        writeln!(text, "PRAGMA {name} = {value};").unwrap();
    }
    let mut objects = db
        .prepare(
            "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'
             ORDER BY type = 'index', rowid",
        )
        .unwrap();
    let objects: Vec<(String, String, String)> = objects
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (_, _, sql) in &objects {
        writeln!(text, "{sql};").unwrap();
    }
    let tables = objects.iter().filter(|(kind, ..)| kind == "table").map(|(_, name, _)| name.as_str());
    for table in tables.chain(["sqlite_sequence"]) {
        let mut rows = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cells: Vec<String> = (0..columns)
                .map(|index| match row.get_ref_unwrap(index) {
                    ValueRef::Null => "NULL".to_owned(),
                    ValueRef::Integer(number) => number.to_string(),
                    ValueRef::Real(number) => number.to_string(),
                    ValueRef::Text(text) => {
                        format!("'{}'", String::from_utf8_lossy(text).replace('\'', "''"))
                    }
                    ValueRef::Blob(bytes) => format!("x'{}'", hex::encode(bytes)),
                })
                .collect();
            writeln!(text, "INSERT INTO {table} VALUES ({});", cells.join(", ")).unwrap();
        }
    }
    text
}

async fn write_golden() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    let set = json!({ "set": { "password": SECRET } });
    let path = "/api/v1/teams/shop/apps/web/secrets";
    let operation = world.ask(Method::PATCH, path, Some(&alice), Some(&set)).await.ok().json();
    world.wait(&alice, "shop", &operation).await;
    let domain = json!({ "host": "www.example.com" });
    world.post("/api/v1/teams/shop/apps/web/domains", &alice, domain).await.ok();
    world.machine.proven.lock().unwrap().insert("www.example.com".to_owned());
    let verify = "/api/v1/teams/shop/apps/web/domains/www.example.com/verify";
    world.post(verify, &alice, json!({})).await.ok();
    world.member(&alice, "shop", "vera", "viewer").await;
    world.post("/api/v1/teams/shop/invitations", &alice, json!({ "role": "viewer" })).await.ok();
    world.ask(Method::POST, "/api/v1/device", None, Some(&json!({}))).await.ok();
    world.control.set_certificate("www.example.com", Some(b"a certificate")).await.unwrap();
    let body = json!({ "name": "ci", "scopes": ["apps:read"], "expires_in_seconds": 157_000_000 });
    let headers = [("idempotency-key", "golden")];
    let path = "/api/v1/teams/shop/tokens";
    let ci = world.send(Method::POST, path, Some(&alice), &headers, body.to_string()).await.ok().json();
    let db = Connection::open(world.folder.path().join("state.db")).unwrap();
    // The test is to work for longer than the tokens.
    db.execute("UPDATE tokens SET expires_ms = NULL", []).unwrap();
    fs::create_dir_all(golden(CURRENT, "sql").parent().unwrap()).unwrap();
    fs::write(golden(CURRENT, "sql"), dump(&db)).unwrap();
    let tokens = json!({ "alice": alice, "ci": ci["secret"] });
    fs::write(golden(CURRENT, "json"), format!("{tokens:#}\n")).unwrap();
}

#[tokio::test]
async fn what_every_version_wrote_opens() {
    if std::env::var_os("WISP_WRITE_GOLDEN").is_some() && !golden(CURRENT, "sql").exists() {
        write_golden().await;
    }
    for version in 1..=CURRENT {
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(golden(version, "sql")).unwrap();
        let db = Connection::open(folder.path().join("state.db")).unwrap();
        db.pragma_update(None, "foreign_keys", false).unwrap();
        db.execute_batch(&text).unwrap();
        drop(db);
        let tokens = fs::read(golden(version, "json")).unwrap();
        let tokens: serde_json::Value = serde_json::from_slice(&tokens).unwrap();
        let (alice, ci) = (tokens["alice"].as_str().unwrap(), tokens["ci"].as_str().unwrap());

        let world = World::open(folder, Arc::new(Machine::default())).await;
        let snapshot = world.control.snapshot().await.unwrap();
        let [web] = snapshot.deployments.as_slice() else { panic!("{snapshot:?}") };
        assert_eq!(**web.variables["password"].open().unwrap(), *SECRET);
        assert_eq!(
            web.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["web.shop.localhost", "www.example.com"]
        );
        assert_eq!(web.links.len(), 2);
        let certificate = world.control.certificate("www.example.com").await.unwrap().unwrap();
        assert_eq!(certificate, b"a certificate");
        let apps = world.get("/api/v1/teams/shop/apps", ci).await.ok().json();
        assert_eq!(apps["items"][0]["release"], 2);
        // It is not only read: what it holds goes on.
        let back = world.post("/api/v1/teams/shop/apps/web/rollback", alice, json!({})).await.ok().json();
        assert_eq!(world.wait(alice, "shop", &back).await["progress"], "done");
        let db = Connection::open(world.folder.path().join("state.db")).unwrap();
        let problems: i64 =
            db.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).unwrap();
        assert_eq!(problems, 0);
        // What is made anew has the same tables as what was brought up to date.
        let new = World::new().await;
        let tables = |db: &Connection| {
            let mut names = db.prepare("SELECT sql FROM sqlite_schema ORDER BY name").unwrap();
            let names: Vec<Option<String>> =
                names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
            names
        };
        let new = Connection::open(new.folder.path().join("state.db")).unwrap();
        assert_eq!(tables(&db), tables(&new));
    }
}

#[tokio::test]
async fn what_is_newer_or_of_somebody_else_is_left_alone() {
    let open = |folder: PathBuf| async move {
        Control::open(settings(&folder), Arc::new(Machine::default())).await.err().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join("state.db")).unwrap();
    db.execute_batch("CREATE TABLE other (a)").unwrap();
    assert_eq!(open(folder.path().to_owned()).await.code(), "WISP-E0915");
    db.pragma_update(None, "user_version", 99).unwrap();
    let error = open(folder.path().to_owned()).await;
    assert!(matches!(error, Error::Newer { found: 99, known } if known == i64::from(CURRENT)));
}

#[tokio::test]
async fn a_copy_has_what_was_acknowledged() {
    let world = World::new().await;
    let alice = world.operator("shop").await;
    world.app(&alice, "shop", "web").await;
    let folder = tempfile::tempdir().unwrap();
    world.control.copy_state_to(&folder.path().join("state.db")).await.unwrap();
    let copy = World::open(folder, Arc::new(Machine::default())).await;
    assert_eq!(copy.get("/api/v1/teams/shop/apps/web", &alice).await.ok().json()["release"], 1);
}

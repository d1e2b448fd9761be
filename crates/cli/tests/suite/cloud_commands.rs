//! The commands that ask a server, against a server.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::harness::{Cloud, Finished, Person, finish, wisp};

/// What a command that works says on standard output.
fn said(person: &Person, arguments: &[&str]) -> String {
    let finished = finish(person.wisp(arguments));
    assert!(finished.status.success(), "{arguments:?}: {}", finished.stderr);
    finished.stdout
}

fn json(person: &Person, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["--format", "json"]);
    serde_json::from_str(&said(person, &all)).unwrap()
}

fn refused(person: &Person, arguments: &[&str]) -> Finished {
    let finished = finish(person.wisp(arguments));
    assert_eq!(finished.status.code(), Some(1), "{arguments:?}: {}", finished.stdout);
    finished
}

/// The command line of somebody who has a home and nothing in the environment.
fn at_home(home: &Path, arguments: &[&str]) -> Command {
    let mut command = wisp();
    command.args(arguments).env("HOME", home).env_remove("XDG_CONFIG_HOME");
    for name in ["WISP_SERVER", "WISP_TOKEN", "WISP_TEAM"] {
        command.env_remove(name);
    }
    command
}

#[test]
fn signing_in_is_remembered_and_ended() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    let home = cloud.path("home-of-bob");
    let link = said(&person, &["team", "invite", "--role", "viewer"]);
    let server = format!("http://{}", running.address);
    let code = link.trim().split_once("code=").unwrap().1;
    let login = finish(at_home(&home, &["login", &server, "--link", code, "--user", "bob"]));
    assert!(login.status.success(), "{}", login.stderr);
    let file = home.join(".config/wisp/credentials.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let who = finish(at_home(&home, &["whoami"])).stdout;
    assert!(who.starts_with("bob on ") && who.contains("team shop (viewer)"), "{who}");
    assert_eq!(finish(at_home(&home, &["apps"])).stdout, "NAME  RELEASE  MADE  URL\n");
    let again = finish(at_home(&home, &["login", &server, "--link", code, "--user", "eve"]));
    assert!(again.stderr.contains("error[WISP-E0914]"), "{}", again.stderr);
    assert!(finish(at_home(&home, &["logout"])).status.success());
    let nowhere = finish(at_home(&home, &["apps"]));
    assert!(nowhere.stderr.contains("error[WISP-E0510]"), "{}", nowhere.stderr);
    running.stop();
}

#[test]
fn apps_are_shown_configured_and_removed() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("web", "hello"), &[]);
    assert_eq!(json(&person, &["apps"])[0]["release"], 1);
    said(&person, &["variables", "set", "web", "color=red", "size=2"]);
    let mut secret = person.wisp(&["secrets", "set", "web", "password"]);
    secret.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut secret = secret.spawn().unwrap();
    secret.stdin.take().unwrap().write_all(b"hidden\n").unwrap();
    assert!(secret.wait().unwrap().success());
    let listed = said(&person, &["variables", "list", "web"]);
    assert_eq!(listed, "NAME      VALUE\ncolor     red\npassword  (secret)\nsize      2\n");
    let releases = json(&person, &["releases", "web"]);
    assert_eq!(releases[0]["number"], 3);
    assert_eq!(json(&person, &["rollback", "web", "1"])["release"], 1);
    assert_eq!(said(&person, &["variables", "list", "web"]), "NAME  VALUE\n");
    let info = said(&person, &["info", "web"]);
    assert!(info.contains("  release    1\n") && info.contains("  health     serving\n"), "{info}");
    assert!(running.get(&person.host("web"), "/").text().ends_with("hello"));
    let logged = said(&person, &["logs", "web", "--last", "1"]);
    assert!(logged.contains(" request GET / 200"), "{logged}");
    let domain = said(&person, &["domains", "add", "web", "www.example.org"]);
    assert!(domain.contains("www.example.org CNAME web.shop.localhost\n"), "{domain}");
    assert!(refused(&person, &["rm", "web"]).stderr.contains("error[WISP-E0515]"));
    said(&person, &["rm", "web", "--yes"]);
    assert!(refused(&person, &["info", "web"]).stderr.contains("error[WISP-E0902]"));
    let done = said(&person, &["audit"]);
    assert!(
        done.contains("by ada from 127.0.0.1") && done.contains("app.remove") && !done.contains("hidden"),
        "{done}"
    );
    running.stop();
}

#[test]
fn commands_are_about_the_app_of_their_folder() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    // The name in a manifest is free text, and the one on the server is made of it.
    let folder = cloud.static_app("Web Shop", "hello");
    let here = |arguments: &[&str]| {
        let mut command = person.wisp(arguments);
        command.current_dir(&folder);
        let finished = finish(command);
        assert!(finished.status.success(), "{arguments:?}: {}", finished.stderr);
        finished.stdout
    };
    here(&["deploy", "--yes"]);
    assert!(here(&["info"]).starts_with("shop/web-shop\n"));
    here(&["variables", "set", "color=red", "size=2"]);
    assert_eq!(here(&["variables", "list"]), "NAME   VALUE\ncolor  red\nsize   2\n");
    assert_eq!(here(&["releases"]).lines().count(), 3);
    here(&["rollback"]);
    here(&["rollback", "2"]);
    let releases: Value = serde_json::from_str(&here(&["releases", "--format", "json"])).unwrap();
    assert_eq!(releases[0]["is_current"], true, "{releases}");
    assert!(here(&["domains", "add", "www.example.org"]).contains("www.example.org CNAME web-shop"));
    assert!(here(&["domains", "list"]).contains("www.example.org"));
    here(&["domains", "remove", "www.example.org"]);
    here(&["logs", "--last", "1"]);
    // A name comes first, and where there is no app one is needed.
    let other = person.wisp(&["info", "nope"]).current_dir(&folder).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("error[WISP-E0902]"));
    let mut nowhere = person.wisp(&["rollback"]);
    nowhere.current_dir(cloud.path(""));
    let refused = finish(nowhere);
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("error[WISP-E0520]"), "{}", refused.stderr);
    running.stop();
}

#[test]
fn data_is_looked_into_and_moved() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    said(&person, &["resources", "create", "key-value", "notes"]);
    said(&person, &["kv", "set", "notes", "a/b", "grüße"]);
    assert_eq!(said(&person, &["kv", "get", "notes", "a/b"]).trim_end(), "grüße");
    assert_eq!(said(&person, &["kv", "list", "notes", "--prefix", "a"]), "a/b\n");
    let file = cloud.path("notes.export");
    said(&person, &["resources", "export", "key-value", "notes", file.to_str().unwrap()]);
    said(&person, &["resources", "create", "key-value", "copy"]);
    said(&person, &["resources", "import", "key-value", "copy", file.to_str().unwrap(), "--yes"]);
    assert_eq!(said(&person, &["kv", "get", "copy", "a/b"]).trim_end(), "grüße");
    said(&person, &["resources", "create", "sqlite", "db"]);
    said(&person, &["sql", "db", "CREATE TABLE t (a, b)", "--write"]);
    said(&person, &["sql", "db", "INSERT INTO t VALUES (?, ?)", "7", "x", "--write"]);
    assert_eq!(said(&person, &["sql", "db", "SELECT * FROM t"]), "a\tb\n7\tx\n");
    let reads = refused(&person, &["sql", "db", "DELETE FROM t"]).stderr;
    assert!(reads.contains("error[WISP-E0314]") && reads.contains("`wisp sql --write`"), "{reads}");
    let wrong = refused(&person, &["sql", "db", "SELEKT 1"]).stderr;
    assert!(
        wrong.contains("error[WISP-E0313]") && wrong.contains("hint: correct the statement\n"),
        "{wrong}"
    );
    said(&person, &["resources", "rename", "key-value", "copy", "other"]);
    said(&person, &["resources", "remove", "key-value", "other", "--yes"]);
    let kinds = json(&person, &["resources", "list"]);
    assert_eq!(kinds.as_array().unwrap().len(), 2);
    let token = said(&person, &["token", "create", "ci", "--scope", "data:read", "--of-team"]);
    let mut narrow = person.clone();
    narrow.token = token.trim().to_owned();
    assert_eq!(said(&narrow, &["kv", "get", "notes", "a/b"]).trim_end(), "grüße");
    assert!(refused(&narrow, &["kv", "set", "notes", "a", "b"]).stderr.contains("error[WISP-E0903]"));
    let made = said(&person, &["api", "post", "teams/shop/apps", "-d", r#"{"name":"raw"}"#]);
    assert!(made.contains(r#""name":"raw""#), "{made}");
    running.stop();
}

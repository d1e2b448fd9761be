//! The cloud in one process: `wisp server` and `wisp deploy`.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{
    Authority, Cloud, Connection, Https, MovedClock, NameServer, Output, Person, RunningCloud, Upstream,
    WAIT_LIMIT, finish, have, json_of, manifest_of, query, try_request, wisp,
};

/// A guest that is small and has key-value stores and databases.
const GUEST: &str = "rust-sdk5";

/// How often the server is killed, unless `WISP_KILL_ROUNDS` says.
const KILL_ROUNDS_COUNT: usize = 24;

/// Clients that ask for an app all the time.
struct Load {
    is_over: Arc<AtomicBool>,
    answered_count: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Load {
    /// Asks for each of these hosts on a connection that stays, and on new ones.
    fn start(running: &RunningCloud, hosts: &[String]) -> Self {
        let clients = hosts.iter().flat_map(|host| [(host.clone(), true), (host.clone(), false)]);
        Self::of(clients.map(|(host, stays)| {
            let address = running.address;
            let mut connection = None;
            move || {
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => Connection::try_open(address).map_err(|error| format!("{host}: {error}"))?,
                };
                match open.try_request("GET", "/", &[("host", &host)], b"") {
                    Ok(response) if response.status == 200 => {
                        let stays = stays && response.header("connection") != Some("close");
                        connection = stays.then_some(open);
                        Ok(())
                    }
                    Ok(response) => Err(format!("{host}: {} {}", response.status, response.text())),
                    Err(error) => Err(format!("{host}: {error}")),
                }
            }
        }))
    }

    /// The same over TLS.
    fn start_tls(address: SocketAddr, hosts: &[String], trusted: &Arc<rustls::ClientConfig>) -> Self {
        let clients = hosts.iter().flat_map(|host| [(host.clone(), true), (host.clone(), false)]);
        Self::of(clients.map(|(host, stays)| {
            let trusted = trusted.clone();
            let mut connection = None;
            move || {
                let failed = |error: std::io::Error| format!("{host}: {error}");
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => Https::open(address, &host, &trusted).map_err(failed)?,
                };
                match open.get().map_err(failed)? {
                    (200, _, may_stay) => {
                        connection = (stays && may_stay).then_some(open);
                        Ok(())
                    }
                    (status, body, _) => Err(format!("{host}: {status} {body}")),
                }
            }
        }))
    }

    /// Clients that each ask again and again, whatever came of it the last time.
    fn of<C: FnMut() -> Result<(), String> + Send + 'static>(clients: impl Iterator<Item = C>) -> Self {
        let (is_over, answered_count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = clients
            .map(|mut ask| {
                let (is_over, answered_count) = (is_over.clone(), answered_count.clone());
                thread::spawn(move || {
                    let mut failed = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        match ask() {
                            Ok(()) => drop(answered_count.fetch_add(1, Ordering::Relaxed)),
                            Err(error) => failed.push(error),
                        }
                    }
                    failed
                })
            })
            .collect();
        Self { is_over, answered_count, threads }
    }

    /// Waits until so many more requests were answered.
    fn go_on(&self, count: usize) {
        let wanted = self.answered_count.load(Ordering::Relaxed) + count;
        let end = Instant::now() + WAIT_LIMIT;
        while self.answered_count.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < end, "requests are not answered any more");
            thread::yield_now();
        }
    }

    /// Ends it; every request has to have been answered.
    fn end(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        let failed: Vec<String> =
            self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(failed.is_empty(), "{} requests failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
        self.answered_count.load(Ordering::Relaxed)
    }
}

/// An app with a guest that has a variable, a store and a database.
fn guest_manifest(version: &str) -> String {
    manifest_of(GUEST, version, "key_value_stores = [\"default\"]\nsqlite_databases = [\"default\"]")
}

/// Sets variables and waits until they serve.
fn configure(person: &Person, app: &str, set: &Value) -> Value {
    let begun = person.of_team("PATCH", &format!("apps/{app}/variables"), Some(&json!({ "set": set })));
    person.follow(&begun)
}

#[test]
fn settings_say_where_they_come_from() {
    let cloud = Cloud::new();
    fs::write(cloud.path("wisp.toml"), "domain = \"file.example\"\n[compile]\ncpu_s = 7\n").unwrap();
    let mut command = wisp();
    command
        .args(["server", "--print-config", "--listen", "127.0.0.1:0"])
        .current_dir(cloud.path(""))
        .env("HOME", cloud.path(""));
    let finished = finish(command);
    assert!(finished.status.success(), "{}", finished.stderr);
    let line = |name: &str| finished.stdout.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("domain").ends_with("# wisp.toml") && line("domain").contains("file.example"));
    assert!(line("listen =").ends_with("# --listen"));
    assert!(line("max_connections").ends_with("# default"));
    assert!(line("cpu_s").contains("= 7"));
}

#[test]
fn from_the_first_start_to_apps_of_two_teams_and_back_after_a_restart() {
    if !have(&[GUEST]) {
        return;
    }
    let cloud = Cloud::new();
    let running = cloud.start();
    let shop = cloud.operator(&running, "shop");
    let report = shop.deploy(&cloud.static_app("site", "hello"), &[]);
    assert_eq!(report["release"], 1);
    assert!(report["url"].as_str().unwrap().starts_with("http://site.shop.localhost"), "{report}");
    assert_eq!(running.get(&shop.host("site"), "/").expect(), "hello");

    // Another team has an app of the same name, and stores of its own.
    let blog = shop.in_team("blog");
    for (team, value) in [(&shop, "of the shop"), (&blog, "of the blog")] {
        let folder = cloud.app(&format!("guest-{value}"), &guest_manifest("1"));
        let report = team.deploy(&folder, &["--app", "guest"]);
        let steps: Vec<&str> =
            report["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
        for step in ["pack", "push", "plan", "compile", "provision", "check", "swap", "drain"] {
            assert!(steps.contains(&step), "{steps:?}");
        }
        let path = format!("/kv/set?key=k&value={}", value.replace(' ', "%20"));
        running.get(&team.host("guest"), &path).ok();
    }
    for (team, value) in [(&shop, "of the shop"), (&blog, "of the blog")] {
        assert_eq!(running.get(&team.host("guest"), "/kv/get?key=k").ok(), value);
    }
    assert_eq!(running.get("guest.nobody.localhost", "/").status, 404);
    assert!(running.get("localhost", "/api/v1/version").json()["version"].is_string());

    // An app that is deployed once more without a change is quick.
    let started = Instant::now();
    let again = shop.deploy(&cloud.path("apps/guest-of the shop"), &["--app", "guest"]);
    eprintln!("an unchanged app was deployed in {:?}: {again}", started.elapsed());
    assert_eq!(again["release"], 2);
    assert_eq!(
        running.get(&shop.host("guest"), "/kv/get?key=k").ok(),
        "of the shop",
        "data outlives a release"
    );

    // What was asked of the app is in its log, by the id that the client was told.
    let response = running.get(&shop.host("site"), "/some/page");
    let id = response.header("x-request-id").unwrap().to_owned();
    let log = shop.ask("GET", &format!("/api/v1/teams/shop/apps/site/logs?request={id}"), None);
    assert!(log.text().contains("/some/page"), "{}", log.text());
    let of_others = blog.ask("GET", &format!("/api/v1/teams/blog/apps/guest/logs?request={id}"), None);
    assert!(!of_others.text().contains("/some/page"), "{}", of_others.text());

    running.stop();
    let running = cloud.start();
    for (team, value) in [(&shop, "of the shop"), (&blog, "of the blog")] {
        assert_eq!(running.get(&team.host("guest"), "/kv/get?key=k").ok(), value);
    }
    assert_eq!(running.get(&shop.host("site"), "/").expect(), "hello");
    assert!(!running.stderr.text().contains("sign-in?code="), "there is somebody who can sign in");
    running.stop();
}

#[test]
fn changes_under_load_fail_no_request() {
    if !have(&[GUEST]) {
        return;
    }
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.app("guest", &guest_manifest("1")), &["--app", "guest"]);
    person.deploy(&cloud.static_app("site", "one"), &[]);
    let load = Load::start(&running, &[person.host("guest"), person.host("site")]);
    load.go_on(50);

    person.deploy(&cloud.app("guest", &guest_manifest("2")), &["--app", "guest"]);
    assert_eq!(running.get(&person.host("guest"), "/env").json()["VERSION"], "2");
    load.go_on(50);
    person.deploy(&cloud.static_app("site", "two"), &[]);
    assert_eq!(running.get(&person.host("site"), "/").expect(), "two");
    load.go_on(50);
    for app in ["guest", "site"] {
        let begun = person.of_team("POST", &format!("apps/{app}/rollback"), Some(&json!({})));
        assert_eq!(person.follow(&begun)["progress"], "done");
        load.go_on(50);
    }
    assert_eq!(running.get(&person.host("guest"), "/env").json()["VERSION"], "1");
    assert_eq!(running.get(&person.host("site"), "/").expect(), "one");
    let count = load.end();
    assert!(count > 200, "{count}");
    running.stop();
}

#[test]
fn a_server_that_takes_over_from_another_fails_no_request() {
    let cloud = Cloud::new();
    let mut running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("site", "one"), &[]);
    let load = Load::start(&running, &[person.host("site")]);
    load.go_on(50);
    for text in ["two", "three"] {
        // The same address, while the one before still answers.
        let successor = cloud.take_over();
        running.wait();
        running = successor;
        load.go_on(50);
        person.deploy(&cloud.static_app("site", text), &[]);
        assert_eq!(running.get(&person.host("site"), "/").expect(), text);
        load.go_on(50);
    }
    load.end();
    running.stop();
    let running = cloud.start();
    assert_eq!(running.get(&person.host("site"), "/").expect(), "three");
    running.stop();
}

#[test]
fn two_servers_do_not_share_a_data_directory_by_accident() {
    let cloud = Cloud::new();
    let running = cloud.start();
    // It answers, so it waits for a successor, too.
    assert_eq!(running.get("nobody.localhost", "/").status, 404);
    let second = |more: &[&str]| {
        let mut command = wisp();
        command
            .args(["server", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(cloud.path("data"))
            .args(more)
            .env("HOME", cloud.path(""));
        finish(command).stderr
    };
    let refused = second(&[]);
    assert!(refused.contains("error[WISP-E1115]") && refused.contains("--take-over"), "{refused}");
    assert_eq!(running.get("nobody.localhost", "/").status, 404, "it goes on");
    // One that cannot ask for the sockets does not take anything by force.
    fs::remove_file(cloud.path("data/handover.sock")).unwrap();
    let refused = second(&["--take-over"]);
    assert!(refused.contains("error[WISP-E1118]"), "{refused}");
    running.stop();
    // Where there is nobody to take over from, it is a start like any other.
    let running = cloud.take_over();
    assert_eq!(running.get("nobody.localhost", "/").status, 404);
    running.stop();
}

#[test]
fn a_domain_added_under_load_leads_to_its_app_once_it_is_proven() {
    let cloud = Cloud::new();
    let dns = NameServer::start();
    fs::write(cloud.path("wisp.toml"), format!("dns = \"{}\"\n", dns.address)).unwrap();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("site", "hello"), &[]);
    let load = Load::start(&running, &[person.host("site")]);
    load.go_on(20);
    let domain = person.of_team("POST", "apps/site/domains", Some(&json!({ "host": "www.shop.example" })));
    assert_eq!(running.get("www.shop.example", "/").status, 404);
    let verify = "apps/site/domains/www.shop.example/verify";
    let refused = person.ask("POST", &format!("/api/v1/teams/shop/{verify}"), None);
    assert!(refused.text().contains("www.shop.example") || refused.status >= 400, "{}", refused.text());
    assert_eq!(running.get("www.shop.example", "/").status, 404, "it is not proven");
    let proof = &domain["proof"];
    dns.set(proof["txt_name"].as_str().unwrap(), proof["txt_value"].as_str().unwrap());
    person.of_team("POST", verify, None);
    assert_eq!(running.get("www.shop.example", "/").expect(), "hello");
    load.go_on(20);
    person.deploy(&cloud.static_app("site", "changed"), &[]);
    assert_eq!(running.get("WWW.shop.example", "/").expect(), "changed", "it follows the app");
    person.of_team("DELETE", "apps/site/domains/www.shop.example", None);
    assert_eq!(running.get("www.shop.example", "/").status, 404);
    load.end();
    running.stop();
}

#[test]
fn an_app_that_is_asked_too_often_is_refused_and_others_are_not() {
    let cloud = Cloud::new();
    fs::write(cloud.path("wisp.toml"), "[rates]\napp_requests_per_s = 5\n").unwrap();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    for app in ["busy", "quiet"] {
        person.deploy(&cloud.static_app(app, app), &[]);
    }
    let refused =
        (0..100).map(|_| running.get(&person.host("busy"), "/")).find(|response| response.status != 200);
    let refused = refused.expect("a hundred requests are more than five a second");
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(running.get(&person.host("quiet"), "/").expect(), "quiet");
    running.stop();
}

#[test]
fn an_app_reaches_no_private_network_unless_the_policy_opens_it() {
    if !have(&[GUEST]) {
        return;
    }
    let upstream = Upstream::start();
    let cloud = Cloud::new();
    fs::write(cloud.path("wisp.toml"), "policy = \"policy.toml\"\n").unwrap();
    fs::write(cloud.path("policy.toml"), "[default]\n").unwrap();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    let manifest = manifest_of(GUEST, "1", "allowed_outbound_hosts = [\"http://*:*\"]");
    person.deploy(&cloud.app("guest", &manifest), &["--app", "guest"]);
    // By address, and by a name that leads there.
    let port = upstream.address.port();
    let fetch = |host: &str| {
        let url = format!("http://{host}:{port}/");
        running.get(&person.host("guest"), &query("/fetch", &[("url", &url)])).json()
    };
    for host in ["127.0.0.1", "localhost"] {
        assert!(fetch(host)["error"].is_string(), "{host}: {}", fetch(host));
    }
    fs::write(cloud.path("policy.toml"), "[default]\nopen_networks = [\"127.0.0.0/8\"]\n").unwrap();
    running.signal(rustix::process::Signal::HUP);
    let end = Instant::now() + WAIT_LIMIT;
    while fetch("127.0.0.1")["ok"]["status"] != 200 {
        assert!(Instant::now() < end, "the policy is not read again: {}", fetch("127.0.0.1"));
    }
    running.stop();
}

#[test]
fn the_policy_says_what_is_behind_a_label() {
    if !have(&[GUEST]) {
        return;
    }
    let cloud = Cloud::new();
    fs::write(cloud.path("wisp.toml"), "policy = \"policy.toml\"\n").unwrap();
    let shared = "[default.backends.key_value_store.default]\ntype = \"spin\"\npath = \"shared.db\"\n";
    fs::write(cloud.path("policy.toml"), shared).unwrap();
    let running = cloud.start();
    let shop = cloud.operator(&running, "shop");
    let blog = shop.in_team("blog");
    for team in [&shop, &blog] {
        let finished = team.try_deploy(&cloud.app("guest", &guest_manifest("1")), &["--app", "guest"]);
        assert!(finished.status.success(), "{}", finished.stderr);
        assert!(finished.stderr.contains("the operator's file `"), "{}", finished.stderr);
    }
    // What one writes the other reads: the operator wants it so.
    running.get(&shop.host("guest"), "/kv/set?key=k&value=shared").ok();
    assert_eq!(running.get(&blog.host("guest"), "/kv/get?key=k").ok(), "shared");
    assert!(cloud.path("shared.db").is_file());
    let made = shop.of_team("GET", "resources", None).to_string();
    assert!(
        !made.contains("key-value") && made.contains("sqlite"),
        "only the database is the team's: {made}"
    );
    // A label that leads nowhere here is refused, and both lines are named.
    let far = "[default.backends.key_value_store.default]\ntype = \"redis\"\nurl = \"redis://localhost\"\n";
    fs::write(cloud.path("policy.toml"), format!("# far away\n{far}")).unwrap();
    running.signal(rustix::process::Signal::HUP);
    let end = Instant::now() + WAIT_LIMIT;
    let refused = loop {
        let tried = shop.try_deploy(&cloud.app("guest", &guest_manifest("2")), &["--app", "guest"]);
        if !tried.status.success() {
            break tried;
        }
        assert!(Instant::now() < end, "the policy is not read again");
    };
    let expected = [
        "error[WISP-E0908]: key-value store `default` of component `rust-sdk5` (spin.toml:",
        ") is of type `redis` by `[default.backends.key_value_store.default]` (policy.toml:2)",
    ];
    assert!(expected.iter().all(|part| refused.stderr.contains(part)), "{}", refused.stderr);
    running.stop();
}

#[test]
fn migrations_come_with_a_release_and_are_applied_once() {
    if !have(&[GUEST]) {
        return;
    }
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    let manifest = guest_manifest("1") + "[application.tool.wisp]\nmigrations = \"sql\"\n";
    let folder = cloud.app("guest", &manifest);
    fs::create_dir(folder.join("sql")).unwrap();
    let first =
        "CREATE TABLE carts (id INTEGER PRIMARY KEY, item TEXT); INSERT INTO carts (item) VALUES ('tea');";
    fs::write(folder.join("sql/001-carts.sql"), first).unwrap();
    let rows = || {
        let asked = json!({ "statement": "SELECT * FROM carts" });
        person.of_team("POST", "sqlite/guest.default/query", Some(&asked))
    };
    for _ in 0..2 {
        person.deploy(&folder, &["--app", "guest"]);
        assert_eq!(rows()["rows"], json!([[1, "tea"]]));
    }
    fs::write(folder.join("sql/002-price.sql"), "ALTER TABLE carts ADD COLUMN price INTEGER DEFAULT 3;")
        .unwrap();
    fs::write(folder.join("sql/003-broken.sql"), "INSERT INTO nowhere VALUES (1);").unwrap();
    let refused = person.try_deploy(&folder, &["--app", "guest"]);
    assert!(refused.stderr.contains("003-broken.sql"), "{}", refused.stderr);
    assert_eq!(rows()["columns"], json!(["id", "item"]), "nothing of it was applied");
    fs::remove_file(folder.join("sql/003-broken.sql")).unwrap();
    person.deploy(&folder, &["--app", "guest"]);
    assert_eq!(rows()["rows"], json!([[1, "tea", 3]]));
    running.stop();
}

#[test]
fn a_log_is_followed_until_the_server_ends() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("site", "hello"), &[]);
    let mut command = person.wisp(&["logs", "site", "--follow"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = Output::of(child.stdout.take().unwrap());
    // It may begin to follow after the first request; then it finds that one in the log.
    running.get(&person.host("site"), "/first");
    lines.wait_for_text("/first");
    running.get(&person.host("site"), "/second");
    lines.wait_for_text("/second");
    let started = Instant::now();
    running.stop();
    assert!(started.elapsed() < Duration::from_secs(20), "it waits for who follows: {:?}", started.elapsed());
    drop(child.kill());
    drop(child.wait());
}

#[test]
fn every_app_has_a_certificate_of_the_local_authority() {
    let cloud = Cloud::new();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fs::write(cloud.path("wisp.toml"), format!("listen_tls = \"{address}\"\n")).unwrap();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    let report = person.deploy(&cloud.static_app("site", "hello"), &[]);
    let url = report["url"].as_str().unwrap();
    assert_eq!(url, format!("https://site.shop.localhost:{}", address.port()));
    let authority = cloud.path("data/keys/local-authority/local-ca.pem");
    let curl = |url: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--cacert"]).arg(&authority).arg(url);
        command.output().unwrap()
    };
    let answer = curl(url);
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        "hello",
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    let version = curl(&format!("https://localhost:{}/api/v1/version", address.port()));
    assert!(String::from_utf8_lossy(&version.stdout).contains("\"domain\""));
    // A host that is nobody's is led to `https` as well; below `localhost` nobody is.
    assert_eq!(running.get("www.shop.example", "/").status, 308);
    assert_eq!(running.get(&person.host("site"), "/").expect(), "hello");
    running.stop();
}

#[test]
fn an_authority_issues_certificates_for_apps_and_for_no_other_host() {
    let cloud = Cloud::new();
    let https = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Some(authority) = Authority::start(&cloud.path(""), cloud.address().port(), https.port()) else {
        return;
    };
    let settings = format!("listen_tls = \"{https}\"\ndomain = \"cloud.example\"\n{}", authority.settings);
    fs::write(cloud.path("wisp.toml"), settings).unwrap();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("site", "hello"), &[]);
    let root = cloud.path("root.pem");
    fs::write(&root, authority.root()).unwrap();
    let ask = |host: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--cacert"]).arg(&root);
        command.args(["--resolve", &format!("{host}:{}:127.0.0.1", https.port())]);
        command.arg(format!("https://{host}:{}/", https.port())).output().unwrap()
    };
    let answer = ask("site.shop.cloud.example");
    let stderr = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "hello", "{stderr}\n{}", running.stderr.text());
    for stranger in ["other.shop.cloud.example", "www.stranger.example"] {
        assert!(!ask(stranger).status.success(), "{stranger}");
    }
    // It is kept: the next start asks nobody.
    running.stop();
    drop(authority);
    let running = cloud.start();
    assert_eq!(String::from_utf8_lossy(&ask("site.shop.cloud.example").stdout), "hello");
    running.stop();
}

#[test]
fn certificates_renewed_under_load_fail_no_request() {
    let cloud = Cloud::new();
    let https = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Some(authority) = Authority::start(&cloud.path(""), cloud.address().port(), https.port()) else {
        return;
    };
    let Some(clock) = MovedClock::new(&cloud.path("")) else { return };
    let settings = format!("listen_tls = \"{https}\"\ndomain = \"cloud.example\"\n{}", authority.settings);
    fs::write(cloud.path("wisp.toml"), settings).unwrap();
    let running = cloud.start_in(&clock.environment());
    let person = cloud.operator(&running, "shop");
    let apps = ["one", "two"];
    for app in apps {
        person.deploy(&cloud.static_app(app, app), &[]);
    }
    let trusted = Https::trusting(&authority.root());
    let hosts = apps.map(|app| format!("{app}.shop.cloud.example"));
    let certificates =
        || hosts.clone().map(|host| Https::open(https, &host, &trusted).unwrap().certificate());
    let status = || person.of_team("GET", "apps/one", None)["certificate"].clone();
    assert_eq!(status()["state"], "missing", "nobody has asked for it: {}", status());
    let first = certificates();
    let (shown, renews_ms) = (status(), status()["renews_ms"].as_u64().unwrap());
    assert_eq!(shown["state"], "valid", "{shown}");
    let load = Load::start_tls(https, &hosts, &trusted);
    load.go_on(50);
    clock.show(Authority::LIFE_DAYS * 2 / 3);
    let end = Instant::now() + WAIT_LIMIT;
    while certificates().iter().zip(&first).any(|(now, first)| now == first) {
        assert!(Instant::now() < end, "it is not renewed: {}\n{}", status(), running.stderr.text());
        load.go_on(10);
    }
    load.go_on(50);
    let count = load.end();
    assert!(count > 110, "{count}");
    assert!(status()["renews_ms"].as_u64().unwrap() > renews_ms, "{}", status());
    running.stop();
}

#[test]
fn why_a_domain_has_no_certificate_is_told() {
    let cloud = Cloud::new();
    let https = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Nobody listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dns = NameServer::start();
    let settings = format!(
        "listen_tls = \"{https}\"\ndns = \"{}\"\n[acme]\ndirectory_url = \"https://{nowhere}/dir\"\n",
        dns.address
    );
    fs::write(cloud.path("wisp.toml"), settings).unwrap();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("site", "hello"), &[]);
    let domain = person.of_team("POST", "apps/site/domains", Some(&json!({ "host": "www.shop.example" })));
    let proof = &domain["proof"];
    dns.set(proof["txt_name"].as_str().unwrap(), proof["txt_value"].as_str().unwrap());
    let listed = || {
        let finished = finish(person.wisp(&["domains", "list", "site"]));
        assert!(finished.status.success(), "{}", finished.stderr);
        finished.stdout
    };
    let line = |state: &str| format!("DOMAIN            STATE     CERTIFICATE\nwww.shop.example  {state}\n");
    assert_eq!(listed(), "DOMAIN            STATE         CERTIFICATE\nwww.shop.example  not verified\n");
    person.of_team("POST", "apps/site/domains/www.shop.example/verify", None);
    assert_eq!(listed(), line("verified  when first asked for"));
    let other = rcgen::generate_simple_self_signed(vec!["other.example".into()]).unwrap().cert.pem();
    Https::open(https, "www.shop.example", &Https::trusting(&other)).err().unwrap();
    let told = listed();
    assert!(told.contains("verified  none, tried again in "), "{told}");
    assert!(told.contains("\nwww.shop.example (WISP-E1006, ") && told.contains("\n  hint: "), "{told}");
    let info = finish(person.wisp(&["info", "site"])).stdout;
    assert!(info.contains("  https      local authority\n"), "{info}");
    running.stop();
}

#[test]
fn secrets_reach_the_app_and_no_file() {
    if !have(&[GUEST]) {
        return;
    }
    const SECRET: &str = "c0rrect-h0rse-battery-staple";
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    let manifest = manifest_of(GUEST, "1", "variables = { token = \"{{ token }}\" }")
        + "[variables]\ntoken = { required = true, secret = true }\n";
    person.of_team("POST", "apps", Some(&json!({ "name": "guest" })));
    person.of_team("PATCH", "apps/guest/secrets", Some(&json!({ "set": { "token": SECRET } })));
    person.deploy(&cloud.app("guest", &manifest), &["--app", "guest"]);
    let path = "/variable?name=token";
    assert_eq!(running.get(&person.host("guest"), path).ok(), SECRET);
    let shown = person.of_team("GET", "apps/guest/variables", None);
    assert!(!shown.to_string().contains(SECRET), "{shown}");
    running.kill();
    let mut folders = vec![cloud.path("data")];
    let mut files_count = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                files_count += 1;
                let is_in_it = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
                assert!(!is_in_it, "{}", path.display());
            }
        }
    }
    assert!(files_count > 8, "{files_count}");
    let running = cloud.start();
    assert_eq!(running.get(&person.host("guest"), path).ok(), SECRET);
    running.stop();
}

#[test]
fn a_release_that_does_not_work_changes_nothing() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("site", "works"), &[]);
    let manifest = "spin_manifest_version = 2\n[application]\nname = \"site\"\n\
                    [[trigger.http]]\nroute = \"/...\"\ncomponent = \"c\"\n\
                    [component.c]\nsource = \"c.wasm\"\n";
    let folder = cloud.app("broken", manifest);
    fs::write(folder.join("c.wasm"), b"\0asm\x0d\0\x01\0nonsense").unwrap();
    let refused = person.try_deploy(&folder, &[]);
    assert!(!refused.status.success());
    assert!(
        refused.stderr.contains("WISP-E0202") && refused.stderr.contains("compile"),
        "{}",
        refused.stderr
    );
    assert_eq!(running.get(&person.host("site"), "/").expect(), "works");
    running.stop();
}

#[test]
fn what_compiles_for_ever_or_eats_memory_ends_its_own_deploy_only() {
    let manifest = "spin_manifest_version = 2\n[application]\nname = \"bomb\"\n\
                    [[trigger.http]]\nroute = \"/...\"\ncomponent = \"c\"\n\
                    [component.c]\nsource = \"c.wasm\"\n";
    // One function of many blocks: whatever the compiler does with it takes long.
    let blocks =
        "(if (local.get 0) (then (local.set 0 (i32.add (local.get 0) (local.get 1)))))".repeat(150_000);
    let module = format!("(component (core module (func (export \"f\") (param i32 i32) {blocks})))");
    let bomb = wat::parse_str(module).unwrap();
    for limits in ["cpu_s = 1", "memory_bytes = 90_000_000"] {
        let cloud = Cloud::new();
        fs::write(cloud.path("wisp.toml"), format!("[compile]\n{limits}\n")).unwrap();
        let running = cloud.start();
        let person = cloud.operator(&running, "shop");
        person.deploy(&cloud.static_app("site", "works"), &[]);
        let folder = cloud.app("bomb", manifest);
        fs::write(folder.join("c.wasm"), &bomb).unwrap();
        let deploying = {
            let person = person.clone();
            thread::spawn(move || person.try_deploy(&folder, &[]))
        };
        while !deploying.is_finished() {
            assert_eq!(running.get(&person.host("site"), "/").expect(), "works");
        }
        let refused = deploying.join().unwrap();
        assert!(!refused.status.success());
        assert!(refused.stderr.contains("WISP-E1102"), "{limits}: {}", refused.stderr);
        assert!(refused.stderr.contains("compile.*"), "the hint: {}", refused.stderr);
        running.stop();
    }
}

#[test]
fn a_server_killed_at_any_point_has_all_that_it_acknowledged_and_nothing_half_made() {
    let rounds_count = match std::env::var("WISP_KILL_ROUNDS") {
        Ok(count) => count.parse().unwrap(),
        Err(_) => KILL_ROUNDS_COUNT,
    };
    let cloud = Cloud::new();
    let mut running = cloud.start();
    let mut person = cloud.operator(&running, "shop");
    let apps = ["one", "two"];
    for app in apps {
        person.deploy(&cloud.static_app(app, &format!("{app} 0")), &[]);
    }
    // A store to write to, which nobody but this test uses.
    let made = person.of_team("POST", "resources", Some(&json!({ "kind": "key-value", "name": "counters" })));
    assert_eq!(made["name"], "counters");
    let path = "/api/v1/teams/shop/key-value/counters/keys";
    let mut written = 0_u64;
    for round in 1..=rounds_count {
        // What each writer was told before the server was gone.
        let is_gone = Arc::new(AtomicBool::new(false));
        let deploys: Vec<_> = apps
            .iter()
            .map(|app| {
                let folder = cloud.static_app(app, &format!("{app} {round}"));
                let (person, app) = (person.clone(), (*app).to_owned());
                thread::spawn(move || {
                    let finished = person.try_deploy(&folder, &["--app", &app]);
                    finished.status.success()
                })
            })
            .collect();
        let writer = {
            let (is_gone, address, token) = (is_gone.clone(), person.address(), person.token.clone());
            thread::spawn(move || {
                let mut acknowledged = written;
                while !is_gone.load(Ordering::Relaxed) {
                    let next = acknowledged + 1;
                    let key = format!("{path}/k{next}");
                    match try_request(address, Some(&token), "PUT", &key, Some(&json!(next))) {
                        Some(response) if response.status < 300 => acknowledged = next,
                        Some(response) => panic!("{}: {}", response.status, response.text()),
                        None => {}
                    }
                }
                acknowledged
            })
        };
        // At another point of each round: from right away to after the deploys.
        let moment = Duration::from_millis((round as u64 * 7_919) % 900);
        let end = Instant::now() + moment;
        while Instant::now() < end {
            thread::yield_now();
        }
        running.kill();
        is_gone.store(true, Ordering::Relaxed);
        written = writer.join().unwrap();
        let acknowledged: Vec<bool> = deploys.into_iter().map(|deploy| deploy.join().unwrap()).collect();

        running = cloud.start();
        person = person.at(&running);
        if written > 0 {
            let found = person.ask("GET", &format!("{path}/k{written}"), None);
            assert_eq!(found.text(), written.to_string(), "round {round}: an acknowledged write is gone");
        }
        for (app, was_acknowledged) in apps.iter().zip(acknowledged) {
            settle(&person, app);
            let answer = running.get(&person.host(app), "/").expect();
            let (of, number) = answer.split_once(' ').unwrap();
            let number: usize = number.parse().unwrap();
            assert_eq!(of, *app);
            if was_acknowledged {
                assert_eq!(number, round, "an acknowledged deploy of `{app}` is gone");
            }
            let details = person.of_team("GET", &format!("apps/{app}"), None);
            let releases = person.of_team("GET", &format!("apps/{app}/releases?limit=500"), None);
            let current: Vec<&Value> = releases["items"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|one| one["is_current"] == true)
                .collect();
            assert_eq!(current.len(), 1, "{releases}");
            assert_eq!(current[0]["number"], details["release"]);
            assert_eq!(current[0]["state"], "ready");
        }
    }
    running.stop();
    let scratch = fs::read_dir(cloud.path("data/scratch")).unwrap().count();
    assert_eq!(scratch, 0, "what was half made is gone");
}

/// Waits until no operation of an app runs: a server that was killed goes on with it.
fn settle(person: &Person, app: &str) {
    let end = Instant::now() + WAIT_LIMIT;
    loop {
        let details = person.of_team("GET", &format!("apps/{app}"), None);
        let Some(id) = details["operation"].as_str() else { return };
        assert!(Instant::now() < end, "operation {id} of `{app}` does not end");
        person.ask("GET", &format!("/api/v1/teams/shop/operations/{id}?wait_ms=2000"), None);
    }
}

#[test]
fn a_backup_made_under_load_has_what_was_acknowledged_before_it() {
    if !have(&[GUEST]) {
        return;
    }
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.app("guest", &guest_manifest("1")), &["--app", "guest"]);
    person.deploy(&cloud.static_app("site", "hello"), &[]);
    running.get(&person.host("guest"), "/kv/set?key=before&value=yes").ok();
    let load = Load::start(&running, &[person.host("guest"), person.host("site")]);
    load.go_on(20);
    let file = cloud.path("backup.tar");
    let mut command = wisp();
    command.arg("backup").arg(&file).arg("--data-dir").arg(cloud.path("data")).env("HOME", cloud.path(""));
    let finished = finish(command);
    assert!(finished.status.success(), "{}", finished.stderr);
    load.end();
    running.get(&person.host("guest"), "/kv/set?key=after&value=yes").ok();
    running.stop();

    let (data, address) = cloud.beside("restored");
    let mut command = wisp();
    command.arg("restore").arg(&file).arg("--data-dir").arg(&data).env("HOME", cloud.path(""));
    let finished = finish(command);
    assert!(finished.status.success(), "{}", finished.stderr);
    let running = cloud.start_on(&data, address);
    assert_eq!(running.get(&person.host("site"), "/").expect(), "hello");
    assert_eq!(running.get(&person.host("guest"), "/kv/get?key=before").ok(), "yes");
    assert_eq!(running.get(&person.host("guest"), "/kv/get?key=after").ok(), Value::Null);
    let person = person.at(&running);
    assert_eq!(
        json_of(&person.ask("GET", "/api/v1/teams/shop/apps", None))["items"].as_array().unwrap().len(),
        2
    );
    running.stop();
}

#[test]
fn a_changed_variable_serves_without_a_build() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    person.deploy(&cloud.static_app("site", "hello"), &[]);
    let load = Load::start(&running, &[person.host("site")]);
    load.go_on(20);
    for colour in ["red", "blue"] {
        assert_eq!(configure(&person, "site", &json!({ "colour": colour }))["progress"], "done");
        load.go_on(20);
    }
    load.end();
    let known = person.of_team("GET", "apps/site/variables", None);
    assert!(known.to_string().contains("blue"), "{known}");
    running.stop();
}

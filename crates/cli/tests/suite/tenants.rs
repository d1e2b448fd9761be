//! What a team can learn of another one: nothing.
//!
//! A stranger who has a team of their own asks for everything that another team has, and for
//! things of the same kind that never were. What comes back has to be the same, byte for byte.
//! Routes of the API come from its own document: a new one is tried by itself.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Cloud, Connection, NameServer, Person, Response, RunningCloud, json_of};

/// The methods that are tried on every address of the registry.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// The type of an image's manifest.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// As many hexadecimal digits in a row are an id that nobody could know before.
const ID_DIGITS_COUNT: usize = 16;

/// As many digits in a row are a time in milliseconds.
const TIME_DIGITS_COUNT: usize = 12;

/// A name in a request.
struct Name {
    /// How it is written: `<placeholder>`.
    placeholder: &'static str,
    /// What it stands for at the other team.
    there: String,
    /// What has the same length and never was.
    nowhere: String,
}

/// Something that is asked for.
#[derive(Clone, Debug, Default)]
struct Probe {
    method: String,
    /// Of an app; the API's otherwise.
    host: Option<String>,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

/// What came back, with what differs from answer to answer left out.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    headers: Vec<String>,
    body: String,
}

/// Somebody who asks.
struct Asking<'world> {
    running: &'world RunningCloud,
    token: Option<&'world str>,
    names: &'world [Name],
}

impl Probe {
    fn new(method: &str, path: impl Into<String>) -> Self {
        Self { method: method.to_owned(), path: path.into(), ..Self::default() }
    }

    fn at_host(host: &str) -> Self {
        Self { host: Some(host.to_owned()), ..Self::new("GET", "/") }
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn body(self, body: impl ToString) -> Self {
        Self { body: body.to_string(), ..self }
    }
}

impl Asking<'_> {
    /// Asks for what is there and for what never was; returns the status of both answers.
    #[track_caller]
    fn assert_same(&self, probe: &Probe) -> u16 {
        let there = self.ask(probe, |name| &name.there);
        let nowhere = self.ask(probe, |name| &name.nowhere);
        assert_eq!(there, nowhere, "{probe:?} tells what is there");
        there.status
    }

    /// The same for what may not be there.
    #[track_caller]
    fn assert_missing(&self, probe: &Probe) {
        assert_eq!(self.assert_same(probe), 404, "{probe:?}");
    }

    fn ask(&self, probe: &Probe, stands_for: fn(&Name) -> &String) -> Seen {
        let fill = |text: &str| {
            self.names.iter().fold(text.to_owned(), |text, name| {
                text.replace(&format!("<{}>", name.placeholder), stands_for(name))
            })
        };
        let host = fill(probe.host.as_deref().unwrap_or("localhost"));
        let mut headers = vec![("host".to_owned(), host)];
        headers.extend(self.token.map(|token| ("authorization".to_owned(), format!("Bearer {token}"))));
        headers.extend(probe.headers.iter().map(|(name, value)| ((*name).to_owned(), fill(value))));
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (path, body) = (fill(&probe.path), fill(&probe.body));
        let mut connection = Connection::open(self.running.address);
        let answer = connection.try_request(&probe.method, &path, &headers, body.as_bytes());
        let answer = answer.unwrap_or_else(|error| panic!("{probe:?}: {error}"));
        let shown = |text: &str| {
            let text = self
                .names
                .iter()
                .fold(text.to_owned(), |text, name| text.replace(&name.nowhere, &name.there));
            without_ids(&text)
        };
        Seen {
            status: answer.status,
            headers: answer.header_lines().iter().map(|line| shown(line)).collect(),
            body: shown(&answer.text()),
        }
    }
}

/// A text with `#` in the place of ids and times.
fn without_ids(text: &str) -> String {
    let (mut shown, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let digits = |is_digit: fn(&char) -> bool| rest.chars().take_while(is_digit).count();
        let (hex, decimal) = (digits(char::is_ascii_hexdigit), digits(char::is_ascii_digit));
        let length = match () {
            () if hex >= ID_DIGITS_COUNT => hex,
            () if decimal >= TIME_DIGITS_COUNT => decimal,
            () => 0,
        };
        match length {
            0 => shown.push(first),
            _ => shown.push('#'),
        }
        rest = &rest[length.max(first.len_utf8())..];
    }
    shown
}

/// An id of the same form that nobody gave.
fn other_id(id: &str) -> String {
    let (prefix, digits) = id.split_once(':').map_or(("", id), |(prefix, digits)| (prefix, digits));
    let turned = digits.chars().map(|digit| match digit.to_digit(16) {
        Some(value) => char::from_digit(15 - value, 16).unwrap(),
        None => digit,
    });
    let colon = if prefix.is_empty() { "" } else { ":" };
    format!("{prefix}{colon}{}", turned.collect::<String>())
}

fn registry(person: &Person, method: &str, path: &str, body: Option<&Value>) -> Response {
    let answer = person.ask(method, path, body);
    assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    answer
}

/// Gives a team one of each thing, and says what they are called.
fn furnish(cloud: &Cloud, running: &RunningCloud, dns: &NameServer, ada: &Person) -> Vec<Name> {
    let image = ada.deploy(&cloud.static_app("site", "hello"), &[])["image"].as_str().unwrap().to_owned();
    ada.of_team("POST", "apps", Some(&json!({ "name": "draft" })));
    ada.deploy(&cloud.static_app("gone", "it was here"), &[]);
    let removing = ada.of_team("DELETE", "apps/gone", None);
    assert_eq!(ada.follow(&removing)["progress"], "done");
    let own = json!({ "host": "www.shop.example" });
    let domain = ada.of_team("POST", "apps/site/domains", Some(&own));
    dns.set(domain["proof"]["txt_name"].as_str().unwrap(), domain["proof"]["txt_value"].as_str().unwrap());
    ada.of_team("POST", "apps/site/domains/www.shop.example/verify", None);
    ada.of_team("POST", "apps/site/domains", Some(&json!({ "host": "claimed.example" })));
    ada.of_team("POST", "resources", Some(&json!({ "kind": "key-value", "name": "notes" })));
    ada.of_team("POST", "resources", Some(&json!({ "kind": "sqlite", "name": "ledger" })));
    ada.of_team("PUT", "key-value/notes/keys/greeting", Some(&json!("a text of ada's")));
    let token = ada.of_team("POST", "tokens", Some(&json!({ "name": "ci", "scopes": ["apps:read"] })));
    let operations = ada.of_team("GET", "apps/site/operations", None);
    let operation = operations["items"][0]["id"].as_str().unwrap();

    let manifest = registry(ada, "GET", &format!("/v2/shop/site/manifests/{image}"), None);
    let parsed = json_of(&manifest);
    let blob = parsed["layers"][0]["digest"].as_str().unwrap();
    let bearer = format!("Bearer {}", ada.token);
    let mut connection = Connection::open(running.address);
    let headers = [("authorization", bearer.as_str()), ("content-type", MANIFEST_TYPE)];
    let tagged = connection.try_request("PUT", "/v2/shop/site/manifests/alpha-one", &headers, &manifest.body);
    assert_eq!(tagged.unwrap().status, 201);
    let begun = registry(ada, "POST", "/v2/shop/site/blobs/uploads/", None);
    let upload = begun.header("location").unwrap().rsplit('/').next().unwrap().to_owned();
    let answer = running.get(&ada.host("site"), "/");
    let request = answer.header("x-request-id").unwrap();
    let device = json_of(&ada.ask("POST", "/api/v1/device", Some(&json!({}))));
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "the-key-of-ada")];
    let keyed = connection.try_request("POST", "/api/v1/teams/shop/apps", &headers, br#"{"name":"keyed"}"#);
    assert_eq!(keyed.unwrap().status, 201);

    let name = |placeholder, there: &str, nowhere: &str| {
        assert_eq!(there.len(), nowhere.len());
        Name { placeholder, there: there.to_owned(), nowhere: nowhere.to_owned() }
    };
    let id = |placeholder, there: &str| name(placeholder, there, &other_id(there));
    vec![
        name("team", "shop", "ship"),
        name("app", "site", "sits"),
        name("draft", "draft", "drift"),
        name("gone", "gone", "gane"),
        name("domain", "www.shop.example", "www.ship.example"),
        name("claimed", "claimed.example", "clammed.example"),
        name("store", "notes", "nodes"),
        name("database", "ledger", "lodger"),
        name("key", "greeting", "greeding"),
        name("user", "ada", "ida"),
        name("tag", "alpha-one", "alpha-two"),
        name("idempotency", "the-key-of-ada", "the-key-of-ida"),
        name("fresh", "one-more", "two-more"),
        name("code", device["user_code"].as_str().unwrap(), "BCDF-GHJK"),
        id("operation", operation),
        id("token", token["id"].as_str().unwrap()),
        id("request", request),
        id("image", &image),
        id("blob", blob),
        id("upload", &upload),
    ]
}

/// Bodies that are right for routes that want more than `{}`.
fn body_of(operation: &str) -> Value {
    match operation {
        "make_plan" | "create_release" => json!({ "image": "<image>" }),
        "set_link" => json!({ "resource": "<store>" }),
        "add_domain" => json!({ "host": "<domain>" }),
        "create_resource" => json!({ "kind": "key-value", "name": "<store>" }),
        "create_app" => json!({ "name": "<app>" }),
        "query" => json!({ "statement": "SELECT 1" }),
        "change_variables" | "change_secrets" => json!({ "set": { "a": "b" } }),
        "set_role" | "invite_member" => json!({ "role": "viewer" }),
        "create_token" => json!({ "name": "made", "scopes": [], "team": "<team>" }),
        "create_team_token" => json!({ "name": "made", "scopes": [] }),
        "create_team" => json!({ "name": "<team>" }),
        "change_resource" => json!({ "quota_bytes": 1_000 }),
        _ => json!({}),
    }
}

/// Every route of the API that is for somebody, about another team's things: below that team,
/// and below the stranger's own.
fn routes(document: &Value) -> Vec<(Probe, bool)> {
    let mut probes = Vec::new();
    for (template, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            if operation["security"] == json!([{}]) {
                continue;
            }
            let id = operation["operationId"].as_str().unwrap();
            let path = [
                ("{release}", "1"),
                ("{operation}", "<operation>"),
                ("{kind}", "key-value"),
                ("{resource}", if id == "query" { "<database>" } else { "<store>" }),
                ("{label}", "default"),
                ("{host}", "<domain>"),
                ("{key}", "<key>"),
                ("{user}", "<user>"),
                ("{token}", "<token>"),
            ]
            .iter()
            .fold(template.clone(), |path, (parameter, name)| path.replace(parameter, name));
            let probe = |team: &str, app: &str| {
                let path = path.replace("{team}", team).replace("{app}", app);
                assert!(!path.contains('{'), "say in `routes` what {path} stands for");
                Probe::new(&method.to_uppercase(), path).body(body_of(id))
            };
            if !template.contains("{team}") {
                probes.push((probe("", ""), false));
                continue;
            }
            probes.push((probe("<team>", "<app>"), true));
            probes.push((probe("blog", "<app>"), false));
            // What is below an app of their own.
            let is_below = template.contains("{app}") && template.matches('{').count() > 2;
            if is_below {
                probes.push((probe("blog", "mine"), false));
            }
        }
    }
    // What makes something comes last: it is there for the stranger then.
    let makes = |probe: &Probe| match probe.method.as_str() {
        "GET" => 0,
        "POST" => 2,
        _ => 1,
    };
    probes.sort_by_key(|(probe, _)| makes(probe));
    probes
}

/// Everything that the registry could be asked for.
fn registry_probes() -> Vec<(Probe, bool)> {
    let mut probes = Vec::new();
    let naming_a_blob = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": "application/json", "digest": "<blob>", "size": 2 },
        "layers": [],
    });
    let addresses = |repository: &str| {
        [
            "manifests/<image>",
            "manifests/<tag>",
            "blobs/<blob>",
            "blobs/<image>",
            "blobs/uploads/",
            "blobs/uploads/?mount=<blob>&from=<team>/<app>",
            "blobs/uploads/?mount=<blob>&from=blog/mine",
            "blobs/uploads/?mount=<blob>",
            "blobs/uploads/<upload>",
            "blobs/uploads/<upload>?digest=<blob>",
            "tags/list",
            "tags/list?n=1&last=<tag>",
            "referrers/<image>",
            "referrers/<image>?artifactType=application/json",
        ]
        .map(|rest| format!("/v2/{repository}/{rest}"))
    };
    for (repository, is_hidden) in [("<team>/<app>", true), ("<team>/<draft>", true), ("blog/mine", false)] {
        for address in addresses(repository) {
            for method in METHODS {
                let probe = Probe::new(method, &address).header("content-type", MANIFEST_TYPE);
                let probe = match address.contains("/manifests/") && method == "PUT" {
                    true => probe.body(&naming_a_blob),
                    false => probe,
                };
                probes.push((probe, is_hidden));
            }
        }
    }
    // By a tag, a manifest is not refused for its digest.
    let tagged = Probe::new("PUT", "/v2/blog/mine/manifests/latest")
        .header("content-type", MANIFEST_TYPE)
        .body(&naming_a_blob);
    probes.push((tagged, false));
    for path in ["/v2/", "/v2/_catalog", "/v2/<team>", "/v2/<team>/<app>"] {
        probes.push((Probe::new("GET", path), false));
    }
    probes
}

#[test]
fn what_another_team_has_looks_like_what_never_was() {
    let cloud = Cloud::new();
    let dns = NameServer::start();
    fs::write(cloud.path("wisp.toml"), format!("dns = \"{}\"\n", dns.address)).unwrap();
    let running = cloud.start();
    let ada = cloud.operator(&running, "shop");
    let mallory = ada.stranger("mallory", "blog");
    let names = furnish(&cloud, &running, &dns, &ada);
    mallory.deploy(&cloud.static_app("mine", "of mallory"), &[]);
    let nobody = Asking { running: &running, token: None, names: &names };
    let stranger = Asking { token: Some(&mallory.token), ..nobody };

    // What is about everybody names nobody.
    for path in
        ["/metrics", "/api/v1/metrics", "/api/v1/whoami", "/api/v1/teams", "/api/v1/teams/blog/audit", "/v2/"]
    {
        let told = mallory.ask("GET", path, None).text();
        for name in ["shop", "site", "draft", "notes", "greeting"] {
            assert!(!told.contains(&format!("\"{name}\"")) && !told.contains("shop/"), "{path}: {told}");
        }
    }

    let document = json_of(&ada.ask("GET", "/api/v1/openapi.json", None));
    let mut tried_count = 0;
    for (probe, is_hidden) in routes(&document).into_iter().chain(registry_probes()) {
        if is_hidden {
            stranger.assert_missing(&probe);
        } else {
            stranger.assert_same(&probe);
        }
        assert_eq!(nobody.assert_same(&probe), 401, "{probe:?}");
        tried_count += 1;
    }
    assert!(tried_count > 300, "{tried_count}");

    // Hosts: of an app without a release, of one that is gone, of a domain that is only claimed.
    for host in ["<draft>.<team>.localhost", "<gone>.<team>.localhost", "<claimed>", "<app>.<team>.example"] {
        nobody.assert_missing(&Probe::at_host(host));
        stranger.assert_missing(&Probe::at_host(host));
    }
    // Logs, also those that go on.
    for query in ["follow=true", "contains=hello", "request=<request>"] {
        stranger.assert_missing(&Probe::new("GET", format!("/api/v1/teams/<team>/apps/<app>/logs?{query}")));
    }
    let own = Probe::new("GET", "/api/v1/teams/blog/apps/mine/logs?request=<request>");
    assert_eq!(stranger.assert_same(&own), 200);
    // An idempotency key belongs to a token.
    let keyed = Probe::new("POST", "/api/v1/teams/blog/apps").header("idempotency-key", "<idempotency>");
    assert_eq!(stranger.assert_same(&keyed.body(json!({ "name": "<fresh>" }))), 201);
    // Ways in: a code that somebody waits for is no device's, and no page shows it to nobody.
    let finish = Probe::new("POST", "/api/v1/device/token").body(json!({ "device_code": "<code>" }));
    assert_eq!(nobody.assert_same(&finish), 400);
    let form = Probe::new("POST", "/device").header("content-type", "application/x-www-form-urlencoded");
    nobody.assert_same(&form.body("code=<code>"));
    nobody.assert_same(&Probe::new("POST", "/api/v1/sign-in").body(json!({ "code": "<token>" })));

    // None of it did anything.
    assert_eq!(running.get(&ada.host("site"), "/").expect(), "hello");
    assert_eq!(running.get("www.shop.example", "/").expect(), "hello");
    let site = ada.of_team("GET", "apps/site", None);
    assert_eq!((&site["release"], &site["domains"][1]["is_verified"]), (&json!(1), &json!(true)));
    assert_eq!(ada.of_team("GET", "key-value/notes/keys/greeting", None), "a text of ada's");
    let tags = json_of(&registry(&ada, "GET", "/v2/shop/site/tags/list", None));
    assert_eq!(tags["tags"], json!(["alpha-one"]));
    let upload = names.iter().find(|name| name.placeholder == "upload").unwrap();
    registry(&ada, "GET", &format!("/v2/shop/site/blobs/uploads/{}", upload.there), None);
    running.stop();
}

/// Middle of what was measured, in microseconds.
fn median_us(mut measured: Vec<Duration>) -> u128 {
    measured.sort_unstable();
    measured[measured.len() / 2].as_micros()
}

/// What another team has is answered like what nobody has. With `WISP_TIMING_ROUNDS=200`, alone
/// and with `--nocapture`, it also says how long either takes: figures in `docs/server.md`.
#[test]
fn content_of_others_is_answered_like_none() {
    let rounds_count: usize =
        std::env::var("WISP_TIMING_ROUNDS").ok().and_then(|count| count.parse().ok()).unwrap_or(6);
    let cloud = Cloud::new();
    let running = cloud.start();
    let ada = cloud.operator(&running, "shop");
    let mallory = ada.stranger("mallory", "blog");
    // Connections that stay: what is measured is the answer.
    let mut connections = [&ada, &mallory]
        .map(|person| (Connection::open(running.address), format!("Bearer {}", person.token)));
    let mut ask = |who: usize, method: &str, path: &str, body: &[u8]| {
        let (connection, bearer) = &mut connections[who];
        let headers = [("host", "localhost"), ("authorization", bearer.as_str())];
        let began = Instant::now();
        let answer = connection.try_request(method, path, &headers, body).unwrap();
        (began.elapsed(), answer)
    };
    let digest = |content: &[u8]| wisp_image::Digest::of(content).to_string();
    let mut number = 0_u64;
    let mut content = |size: usize| {
        number += 1;
        let mut content = number.to_le_bytes().repeat(size.div_ceil(8));
        content.truncate(size);
        content
    };
    let push = |repository: &str, digest: &str| format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    for (what, size, divisor) in [("64 KiB", 64 << 10, 1), ("16 MiB", 16 << 20, 6)] {
        let (mut head, mut mount, mut upload) =
            (<[Vec<_>; 2]>::default(), <[Vec<_>; 2]>::default(), <[Vec<_>; 2]>::default());
        for round in 0..rounds_count.div_ceil(divisor) {
            let (known, unknown) = (content(size), content(size));
            let (_, pushed) = ask(0, "POST", &push("shop/site", &digest(&known)), &known);
            assert_eq!(pushed.status, 201, "{}", pushed.text());
            // Each is the first as often as the other.
            let mut asked = [(0, &known), (1, &unknown)];
            asked.rotate_left(round % 2);
            for (index, content) in asked {
                let digest = digest(content);
                let (took, answer) = ask(1, "HEAD", &format!("/v2/blog/mine/blobs/{digest}"), b"");
                assert_eq!(answer.status, 404);
                head[index].push(took);
                let path = format!("/v2/blog/mine/blobs/uploads/?mount={digest}&from=shop/site");
                let (took, answer) = ask(1, "POST", &path, b"");
                assert_eq!(answer.status, 202);
                mount[index].push(took);
                ask(1, "DELETE", answer.header("location").unwrap(), b"");
                let (took, answer) = ask(1, "POST", &push("blog/mine", &digest), content);
                assert_eq!(answer.status, 201);
                upload[index].push(took);
            }
        }
        for (action, [known, unknown]) in [("HEAD", head), ("mount", mount), ("upload", upload)] {
            eprintln!(
                "{what} {action}: {} us another's, {} us nobody's",
                median_us(known),
                median_us(unknown)
            );
        }
    }
    running.stop();
}

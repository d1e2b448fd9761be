//! What each command says: its help, its success and its failure, as files to look at.
//!
//! All of it without colour and at 80 columns. What differs from run to run is masked; a
//! word that is longer than a line (a URL, a path, a digest) may stand out.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use super::develop::{COPIED, Desk, clock_program};
use crate::harness::{Cloud, Finished, OwnRegistry, Person, finish, wisp};

/// What fits everywhere.
const WIDTH_COLUMNS: usize = 80;

/// Words from this length on cannot be broken, and are no sentence.
const LONG_WORD_COLUMNS: usize = 30;

/// A hexadecimal number of so many digits is a digest or an id.
const MIN_DIGEST_COLUMNS: usize = 12;

/// Letters and digits of so many are a secret.
const MIN_SECRET_COLUMNS: usize = 24;

/// Lines that are wider than what fits, or coloured.
fn unfit(text: &str) -> Vec<&str> {
    let is_unfit = |line: &&str| {
        let is_wide = line.chars().count() > WIDTH_COLUMNS;
        let has_long_word = line.split([' ', '(', '`']).any(|word| word.chars().count() >= LONG_WORD_COLUMNS);
        is_wide && !has_long_word || line.contains('\u{1b}')
    };
    text.lines().filter(is_unfit).collect()
}

/// The help of a command, and of those below it.
fn helps(command: &[&str], all: &mut Vec<(String, String)>) {
    let mut asked = wisp();
    asked.args(command).arg("--help").env("COLUMNS", "80");
    let finished = finish(asked);
    let name = format!("wisp {}", command.join(" ")).trim_end().to_owned();
    assert!(finished.status.success() && finished.stderr.is_empty(), "{name}: {}", finished.stderr);
    for line in finished.stdout.lines() {
        assert!(line.chars().count() <= WIDTH_COLUMNS, "{name}: longer than 80 columns: {line}");
    }
    let commands = finished.stdout.lines().skip_while(|line| *line != "Commands:").skip(1);
    let below: Vec<_> = commands
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    all.push((name, finished.stdout));
    for name in &below {
        let command: Vec<_> = command.iter().copied().chain([name.as_str()]).collect();
        helps(&command, all);
    }
}

#[test]
fn every_command_has_help() {
    let mut all = Vec::new();
    helps(&[], &mut all);
    // A file for each command that a person knows, those below it in the same.
    let names: BTreeSet<_> = all.iter().filter_map(|(name, _)| name.split(' ').nth(1)).collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let of_name = |(full, _): &&(String, String)| full.split(' ').nth(1) == Some(name);
        let texts: Vec<_> =
            all.iter().filter(of_name).map(|(full, text)| format!("===== {full}\n{text}")).collect();
        insta::assert_snapshot!(format!("help_{name}"), texts.join("\n"));
    }
}

/// What was asked and said, one command after the other.
#[derive(Default)]
struct Transcript {
    text: String,
    /// What stands for texts that differ from run to run.
    masks: Vec<(String, &'static str)>,
    /// Lines that are wider than what fits, or coloured.
    unfit: Vec<String>,
}

impl Transcript {
    fn masking(masks: Vec<(String, &'static str)>) -> Self {
        Self { masks, ..Self::default() }
    }

    fn add(&mut self, arguments: &[&str], finished: &Finished) {
        let asked = format!("$ wisp {}", arguments.join(" "));
        let is_script = matches!(arguments, ["completions", _] | ["man"]);
        for text in [&finished.stderr, &finished.stdout].into_iter().take(if is_script { 1 } else { 2 }) {
            self.unfit.extend(unfit(text).into_iter().map(|line| format!("{asked}: {line}")));
        }
        let code = match finished.status.code() {
            Some(0) => String::new(),
            code => format!("[exit code {}]\n", code.map_or("none".to_owned(), |code| code.to_string())),
        };
        // What was compiled when is not the command's.
        let lines = |text: &str| -> String {
            text.lines().filter(|line| !line.starts_with("info: ")).map(|line| format!("{line}\n")).collect()
        };
        let out = match arguments {
            // A script and a manual: which commands there are is what changes.
            ["completions", _] => of_commands(&finished.stdout),
            ["man"] => headed(&finished.stdout),
            ["doctor"] => of_the_app(&finished.stdout),
            _ => finished.stdout.clone(),
        };
        let said = format!("{}{}{code}\n", lines(&out), lines(&finished.stderr));
        self.text.push_str(&self.masked(&format!("{asked}\n{said}")));
    }

    fn masked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (known, mask) in &self.masks {
            text = text.replace(known, mask);
        }
        text.lines().map(|line| format!("{}\n", masked(line))).collect()
    }
}

/// The lines of completions for fish that complete commands.
fn of_commands(script: &str) -> String {
    let is_command = |line: &&str| line.contains("wisp_needs_command") && line.contains(" -a ");
    script.lines().filter(is_command).map(|line| format!("{line}\n")).collect()
}

/// What the doctor says of the app, and not of the machine.
fn of_the_app(report: &str) -> String {
    let is_of_machine = |line: &&str| line.contains("wasm-opt") || line.contains(" port ");
    report.lines().filter(|line| !is_of_machine(line)).map(|line| format!("{line}\n")).collect()
}

/// The headings of a page of the manual, and what its synopsis and its commands are.
fn headed(page: &str) -> String {
    let is_heading =
        |line: &&str| line.starts_with(".SH") || line.starts_with(".TH") || line.starts_with("wisp");
    page.lines().filter(is_heading).map(|line| format!("{line}\n")).collect()
}

/// A line without digests, secrets, dates and measured times, and without the spaces that
/// align them.
fn masked(line: &str) -> String {
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let mut parts: Vec<String> = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let is_inside = rest.starts_with(is_word);
        let end = rest.find(|character| is_word(character) != is_inside).unwrap_or(rest.len());
        parts.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    for part in &mut parts {
        let has_digit = part.bytes().any(|byte| byte.is_ascii_digit());
        if has_digit && part.len() >= MIN_DIGEST_COLUMNS && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            *part = "[HEX]".into();
        } else if has_digit && part.len() >= MIN_SECRET_COLUMNS {
            *part = "[SECRET]".into();
        }
    }
    // `2026-11-20`, `20:10:59`, `0.25`.
    for (separator, first_columns, mask) in
        [("-", Some(4), "[DATE]"), (":", Some(2), "[TIME]"), (".", None, "[N]")]
    {
        let mut at = 0;
        while at + 2 < parts.len() {
            let fits = first_columns.is_none_or(|columns| parts[at].len() == columns);
            let begins = is_number(&parts[at]) && fits || parts[at] == mask;
            // An address is no number.
            let is_alone = separator != "."
                || (at == 0 || parts[at - 1] != ".")
                    && parts.get(at + 3).is_none_or(|next| !next.starts_with('.'));
            let goes_on = parts[at + 1] == separator && is_number(parts[at + 2].trim_end_matches('Z'));
            if begins && goes_on && is_alone {
                parts.splice(at..=at + 2, [mask.to_owned()]);
            } else {
                at += 1;
            }
        }
    }
    let line = parts.concat();
    let indent = line.len() - line.trim_start().len();
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    for at in 0..words.len() {
        let next = words.get(at + 1).map_or("", String::as_str);
        // How long ago, how long still, and what is counted in units that vary.
        let is_age = words[at].len() > 1 && is_number(words[at].trim_end_matches(['s', 'm', 'h', 'd']));
        if is_age && (next == "ago" || words[at].ends_with('d')) {
            words[at] = "[AGE]".into();
        } else if is_number(&words[at]) && ["ms", "s", "files", "MiB"].contains(&next.trim_end_matches(',')) {
            words[at] = "[N]".into();
        }
    }
    format!("{}{}", &line[..indent], words.join(" "))
}

/// Each of these as this person; returns what was said.
fn as_person(person: &Person, folder: &Path, transcript: &mut Transcript, commands: &[&[&str]]) {
    for arguments in commands {
        let mut command = person.wisp(arguments);
        command.current_dir(folder).env("COLUMNS", "80");
        transcript.add(arguments, &finish(command));
    }
}

#[test]
fn commands_that_ask_a_server() {
    let cloud = Cloud::new();
    let running = cloud.start();
    let person = cloud.operator(&running, "shop");
    cloud.static_app("web", "hello");
    // From the cloud's folder, so that no line is as long as its path.
    let (web, nothing, export, backup, data) = ("apps/web", "nothing", "notes.export", "backup.tar", "data");
    let dead = "http://127.0.0.1:9";
    let port = running.address.port().to_string();
    let mut transcript = Transcript::masking(vec![
        (cloud.path("").display().to_string(), "[FOLDER]/"),
        (format!(":{port}"), ":[PORT]"),
        (person.token.clone(), "[TOKEN]"),
    ]);
    as_person(
        &person,
        &cloud.path(""),
        &mut transcript,
        &[
            &["whoami"],
            &["team", "list"],
            &["team", "create", "tools"],
            &["team", "create", "No Name"],
            &["team", "members"],
            &["team", "remove", "tools"],
            &["team", "remove", "tools", "--yes"],
            &["apps"],
            &["deploy", "--from", nothing],
            &["deploy", "--yes", "--from", web],
            &["deploy", "--yes", "--from", web],
            &["apps"],
            &["info", "web"],
            &["info", "nope"],
            &["info"],
            &["logs", "web", "--request", "nope"],
            &["variables", "set", "web", "color=red"],
            &["variables", "set", "web", "NO=1"],
            &["variables", "list", "web"],
            &["variables", "set", "web"],
            &["variables", "list", "nope"],
            &["variables", "unset", "web", "size"],
            &["variables", "unset", "web", "color"],
            &["secrets", "set", "web", "password"],
            &["secrets", "set", "web", "NO"],
            &["secrets", "unset", "web", "password"],
            &["secrets", "unset", "web", "password"],
            &["releases", "web"],
            &["releases", "nope"],
            &["rollback", "web", "1"],
            &["rollback", "web", "99"],
            &["domains", "list", "web"],
            &["domains", "add", "web", "www.example.org"],
            &["domains", "add", "web", "not a host"],
            &["domains", "add", "web"],
            &["domains", "list", "nope"],
            &["domains", "verify", "web", "other.example.org"],
            &["domains", "remove", "web", "other.example.org"],
            &["domains", "remove", "web", "www.example.org"],
            &["resources", "create", "key-value", "notes"],
            &["resources", "create", "key-value", "notes"],
            &["resources", "list"],
            &["resources", "info", "key-value", "notes"],
            &["resources", "list", "--server", dead],
            &["resources", "info", "key-value", "nope"],
            &["resources", "link", "key-value", "notes", "--app", "nope"],
            &["resources", "link", "key-value", "notes", "--app", "web"],
            &["resources", "unlink", "key-value", "--app", "web"],
            &["resources", "unlink", "key-value", "--app", "web"],
            &["resources", "quota", "key-value", "notes", "1000000"],
            &["resources", "quota", "key-value", "nope", "1000000"],
            &["kv", "set", "notes", "a", "1"],
            &["kv", "get", "notes", "a"],
            &["kv", "get", "notes", "b"],
            &["kv", "list", "notes"],
            &["kv", "delete", "notes", "a"],
            &["kv", "list", "nope"],
            &["kv", "set", "nope", "a", "1"],
            &["kv", "delete", "nope", "a"],
            &["resources", "export", "key-value", "notes", export],
            &["resources", "export", "key-value", "nope", "other.export"],
            &["resources", "import", "key-value", "nope", export, "--yes"],
            &["resources", "import", "key-value", "notes", export, "--yes"],
            &["resources", "rename", "key-value", "notes", "words"],
            &["resources", "rename", "key-value", "notes", "words"],
            &["resources", "create", "sqlite", "db"],
            &["sql", "db", "CREATE TABLE t (a, b)", "--write"],
            &["sql", "db", "SELECT 1 AS one, 'x' AS two"],
            &["sql", "db", "SELEKT 1"],
            &["sql", "nope", "SELECT 1"],
            &["resources", "remove", "sqlite", "db"],
            &["resources", "remove", "sqlite", "db", "--yes"],
            &["token", "create", "ci", "--scope", "data:read", "--of-team"],
            &["token", "create", "ci", "--scope", "everything"],
            &["token", "list"],
            &["token", "list", "--server", dead],
            &["token", "remove", "nope"],
            &["logs", "nope"],
            &["audit"],
            &["audit", "--server", dead],
            &["api", "get", "teams/nope"],
            &["api", "get", "teams/shop/apps/web/variables"],
            &["top", "--server", dead],
            &["top", "--once", "--interval", "100ms"],
            &["server", "clean"],
            &["server", "clean", "--server", dead],
            &["team", "invite", "--role", "king"],
            &["team", "role", "nobody", "viewer"],
            &["team", "remove-member", "nobody"],
            &["team", "use", "nope"],
            &["team", "list", "--server", dead],
            &["team", "members", "--server", dead],
            &["whoami", "--server", dead],
            &["rm", "web"],
            &["rm", "web", "--yes"],
            &["rm", "web", "--yes"],
            &["backup", backup, "--data-dir", data],
            &["backup", backup, "--data-dir", data],
            &["restore", nothing, "--data-dir", data],
            &["restore", backup, "--data-dir", "restored"],
            &["login", dead],
            &["apps", "--server", dead],
        ],
    );
    // Somebody joins, from another home.
    let invite = person.wisp(&["team", "invite", "--role", "viewer"]);
    let invited = finish(invite);
    let (link, code) = (invited.stdout.trim().to_owned(), invited.stdout.trim().rsplit('=').next().unwrap());
    transcript.masks.push((link.clone(), "[LINK]"));
    transcript.masks.push((code.to_owned(), "[CODE]"));
    transcript.add(&["team", "invite", "--role", "viewer"], &invited);
    let server = format!("http://{}", running.address);
    let at_home = |arguments: &[&str]| {
        let mut command = wisp();
        command.args(arguments).env("HOME", cloud.path("home-of-bob")).env("COLUMNS", "80");
        for name in ["XDG_CONFIG_HOME", "WISP_SERVER", "WISP_TOKEN", "WISP_TEAM"] {
            command.env_remove(name);
        }
        finish(command)
    };
    for arguments in [&["login", &server, "--link", code, "--user", "bob"][..], &["team", "use", "shop"]] {
        transcript.add(arguments, &at_home(arguments));
    }
    as_person(
        &person,
        &cloud.path(""),
        &mut transcript,
        &[&["team", "role", "bob", "deployer"], &["team", "remove-member", "bob"]],
    );
    let made = person.wisp(&["token", "create", "ci", "--scope", "apps:read", "--format", "json"]);
    let made: serde_json::Value = serde_json::from_str(&finish(made).stdout).unwrap();
    let id = made["id"].as_str().unwrap().to_owned();
    as_person(&person, &cloud.path(""), &mut transcript, &[&["token", "remove", &id]]);
    transcript.add(&["logout"], &at_home(&["logout"]));
    let broken = cloud.path("home-of-bob/.config/wisp/credentials.json");
    fs::write(broken, "nonsense").unwrap();
    transcript.masks.push((cloud.path("home-of-bob").display().to_string(), "[HOME]"));
    transcript.add(&["logout"], &at_home(&["logout"]));
    running.stop();
    insta::assert_snapshot!(transcript.text);
    assert!(transcript.unfit.is_empty(), "{:#?}", transcript.unfit);
}

/// Each of these in a folder of the desk.
fn at_desk(desk: &Desk, folder: &str, transcript: &mut Transcript, commands: &[&[&str]]) {
    for arguments in commands {
        transcript.add(arguments, &desk.wisp(folder, arguments));
    }
}

#[test]
fn commands_that_ask_nobody() {
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    let mut transcript = Transcript::masking(vec![(desk.path("").display().to_string(), "[DESK]/")]);
    let listen = ["--listen", "127.0.0.1:0"];
    at_desk(
        &desk,
        "app",
        &mut transcript,
        &[
            &["up", listen[0], listen[1]],
            &["up", "--listen", "nowhere"],
            &["up", "--from", "nothing.toml"],
            &["up", "--no-such-flag"],
            &["watch", "--from", "nothing.toml"],
            &["test"],
            &["inspect"],
            &["doctor", "--from", "nothing.toml"],
            &["add"],
            &["templates", "install"],
            &["templates", "install", "--dir", "nothing"],
            &["templates", "uninstall", "nothing"],
            &["registry", "push", "localhost:9/a/b:1"],
            &["registry", "push", "Not A Reference"],
            &["registry", "pull", "localhost:9/a/b:1"],
            &["registry", "inspect", "localhost:9/a/b:1"],
            &["registry", "login", "localhost:9", "-u", "ada", "-p", "secret"],
            &["registry", "logout", "localhost:9"],
            &["serve"],
            &["serve", "--apps", "nothing"],
            &["server", "--listen", "nowhere"],
            &["completions", "no-shell"],
            &["man", "--dir", "spin.toml"],
            &["no-such-command"],
            &["build"],
            &["new", "static-site", "."],
        ],
    );
    insta::assert_snapshot!(transcript.text);
    assert!(transcript.unfit.is_empty(), "{:#?}", transcript.unfit);
}

#[test]
fn commands_that_make_something() {
    let desk = Desk::new();
    let registry = OwnRegistry::start("secret");
    let host = registry.address.to_string();
    let image = format!("{host}/team/copied:1.0");
    let mut transcript = Transcript::masking(vec![
        (desk.path("").display().to_string(), "[DESK]/"),
        (host.clone(), "[REGISTRY]"),
    ]);
    desk.write("app/spin.toml", COPIED);
    desk.write("app/source.wasm", clock_program("a day", "a night"));
    let test = "[[test]]\nname = \"it answers\"\nrequest = \"GET /\"\nexpect = { status = 200 }\n";
    desk.write("app/tests/one.toml", test);
    desk.write(
        "mine/metadata/spin-template.toml",
        "manifest_version = \"1\"\nid = \"mine\"\ndescription = \"Mine\"\n",
    );
    desk.write("mine/content/spin.toml", COPIED);
    // Logins are kept in the desk's home.
    desk.write("home/.keep", "");
    at_desk(
        &desk,
        ".",
        &mut transcript,
        &[
            &["templates", "list"],
            &["templates", "install", "--dir", "mine"],
            &["templates", "uninstall", "mine"],
            &["new", "hello", "-t", "redirect", "-v", "redirect-to=/elsewhere", "--no-vcs"],
            &["new", "hello", "-t", "redirect", "-v", "redirect-to=/elsewhere", "--no-vcs"],
        ],
    );
    at_desk(
        &desk,
        "hello",
        &mut transcript,
        &[&["add", "old", "-t", "redirect", "-v", "http-path=/old", "-v", "redirect-to=/new"]],
    );
    at_desk(
        &desk,
        "app",
        &mut transcript,
        &[
            &["build"],
            &["test"],
            &["doctor"],
            &["inspect", "--no-compile"],
            &["registry", "login", &host, "-u", "ada", "-p", "secret"],
            &["registry", "push", &image],
            &["registry", "inspect", &image],
            &["registry", "pull", &image, "--cache-dir", "cache"],
            &["registry", "logout", &host],
            &["registry", "login", &host, "-u", "ada", "-p", "a guess"],
            &["completions", "fish"],
            &["man"],
            &["man", "--dir", "man"],
        ],
    );
    desk.write("registries.json", "nonsense");
    at_desk(&desk, "app", &mut transcript, &[&["registry", "logout", &host]]);
    desk.write("broken/spin.toml", "x");
    at_desk(&desk, "broken", &mut transcript, &[&["build"]]);
    insta::assert_snapshot!(transcript.text);
    assert!(transcript.unfit.is_empty(), "{:#?}", transcript.unfit);
}

/// Commands that serve until they are ended: what they say then is tested where they serve.
const ENDLESS: [&str; 3] = ["serve", "up", "watch"];

/// Commands that only fail where everything does.
const UNFAILING: [&str; 1] = ["templates list"];

/// Those that need what a test has not: a name in DNS that leads here.
const UNSUCCESSFUL: [&str; 1] = ["domains verify"];

#[test]
fn every_command_has_a_golden_success_and_failure() {
    let mut all = Vec::new();
    helps(&[], &mut all);
    let names: Vec<&str> = all.iter().filter_map(|(name, _)| name.strip_prefix("wisp ")).collect();
    // What has commands below it is none.
    let is_leaf = |name: &&&str| !names.iter().any(|other| other.starts_with(&format!("{name} ")));
    let leaves: BTreeSet<&str> = names.iter().filter(is_leaf).copied().collect();
    let (mut successes, mut failures) = (BTreeSet::new(), BTreeSet::new());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/snapshots");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_str().unwrap().starts_with("suite__golden__commands_") {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        for said in text.split("\n$ wisp ").skip(1) {
            let asked = format!("{} ", said.lines().next().unwrap());
            let of = leaves.iter().filter(|name| asked.starts_with(&format!("{name} ")));
            let kind = if said.contains("\n[exit code ") { &mut failures } else { &mut successes };
            kind.extend(of.copied());
        }
    }
    let lacks = |known: &BTreeSet<&str>, not: &[&str]| -> Vec<String> {
        let lacking = leaves.iter().filter(|name| !known.contains(**name) && !not.contains(name));
        lacking.map(ToString::to_string).collect()
    };
    let exempt: Vec<&str> = ENDLESS.iter().chain(&UNSUCCESSFUL).copied().collect();
    assert_eq!(lacks(&successes, &exempt), Vec::<String>::new(), "no golden file shows these succeed");
    assert_eq!(lacks(&failures, &UNFAILING), Vec::<String>::new(), "no golden file shows these fail");
}

#[test]
fn what_differs_is_masked_and_nothing_else() {
    assert_eq!(masked("  made   2026-11-20 20:10:59"), "  made [DATE] [TIME]");
    assert_eq!(masked("Done in 0.1 s"), "Done in [N] s");
    assert_eq!(masked("done in 45 ms, made 3s ago"), "done in [N] ms, made [AGE] ago");
    assert_eq!(masked("release 12 of 127.0.0.1:9"), "release 12 of 127.0.0.1:9");
    assert_eq!(masked("sha256:0123456789abcdef"), "sha256:[HEX]");
    assert_eq!(masked("deployed"), "deployed");
}

#[test]
fn nothing_is_coloured_where_nobody_wants_that() {
    let mut command = Command::new("script");
    // A terminal, and a person who does not like colours.
    let wisp = wisp();
    let asked = format!("{} up --from nothing.toml", wisp.get_program().display());
    command.args(["-qec", &asked, "/dev/null"]).env("NO_COLOR", "1").env("COLUMNS", "80");
    let Ok(output) = command.output() else {
        crate::harness::skip("there is no `script` to make a terminal with");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("error[WISP-E"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    drop(fs::remove_file("typescript"));
}

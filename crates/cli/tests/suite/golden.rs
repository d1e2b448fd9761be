//! What each command says: its help, its success and its failure, as files to look at.
//!
//! All of it without colour and at 80 columns. What differs from run to run is masked; a
//! word that is longer than a line (a URL, a path, a digest) may stand out.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use super::develop::{COPIED, Desk};
use crate::harness::{Cloud, Finished, Person, finish, wisp};

/// What fits everywhere.
const WIDTH_COLUMNS: usize = 80;

/// Commands that print tables with more facts in a row than fit.
const WIDE_TABLES: [&[&str]; 2] = [&["audit"], &["token", "list"]];

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
        let is_table = WIDE_TABLES.contains(&arguments);
        for text in [&finished.stdout, &finished.stderr].into_iter().skip(usize::from(is_table)) {
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
        let said = format!("{}{}{code}\n", lines(&finished.stdout), lines(&finished.stderr));
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
            &["variables", "set", "web", "color=red"],
            &["variables", "set", "web", "NO=1"],
            &["variables", "list", "web"],
            &["variables", "unset", "web", "size"],
            &["secrets", "unset", "web", "password"],
            &["releases", "web"],
            &["releases", "nope"],
            &["rollback", "web", "1"],
            &["rollback", "web", "99"],
            &["domains", "list", "web"],
            &["domains", "add", "web", "www.example.org"],
            &["domains", "add", "web", "not a host"],
            &["domains", "remove", "web", "other.example.org"],
            &["resources", "create", "key-value", "notes"],
            &["resources", "create", "key-value", "notes"],
            &["resources", "list"],
            &["resources", "info", "key-value", "notes"],
            &["resources", "link", "key-value", "notes", "--app", "nope"],
            &["kv", "set", "notes", "a", "1"],
            &["kv", "get", "notes", "a"],
            &["kv", "get", "notes", "b"],
            &["kv", "list", "notes"],
            &["kv", "delete", "notes", "a"],
            &["kv", "list", "nope"],
            &["resources", "export", "key-value", "notes", export],
            &["resources", "import", "key-value", "nope", export, "--yes"],
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
            &["token", "remove", "nope"],
            &["logs", "nope"],
            &["audit"],
            &["api", "get", "teams/nope"],
            &["rm", "web"],
            &["rm", "web", "--yes"],
            &["rm", "web", "--yes"],
            &["backup", backup, "--data-dir", data],
            &["backup", backup, "--data-dir", data],
            &["restore", nothing, "--data-dir", data],
            &["logout"],
            &["login", dead],
            &["apps", "--server", dead],
        ],
    );
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
        ],
    );
    insta::assert_snapshot!(transcript.text);
    assert!(transcript.unfit.is_empty(), "{:#?}", transcript.unfit);
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

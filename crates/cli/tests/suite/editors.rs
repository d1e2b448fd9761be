//! What editors know of manifests and tests: the same as `wisp`.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use super::develop::{COPIED, Desk, clock_program};
use crate::harness::{Finished, finish, guests_dir, skip};

/// A file of this repository.
fn source(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(source(path)).unwrap()).unwrap()
}

/// A snippet with its defaults, as somebody has it who only presses the tab key.
fn expanded(snippet: &Value) -> String {
    let lines: Vec<&str> =
        snippet["body"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let mut text = lines.join("\n");
    while let Some(start) = text.find("${") {
        let end = start + text[start..].find('}').unwrap();
        let (_, default) = text[start + 2..end].split_once(':').unwrap();
        text = format!("{}{default}{}", &text[..start], &text[end + 1..]);
    }
    text
}

#[test]
fn snippets_make_manifests_and_tests_that_wisp_takes() {
    let snippets = json("editors/vscode/snippets/spin.json");
    let snippets = snippets.as_object().unwrap();
    assert!(snippets.len() >= 5);
    for (name, snippet) in snippets {
        let desk = Desk::new();
        let head = "spin_manifest_version = 2\n[application]\nname = \"a\"\n";
        let expanded = expanded(snippet);
        // Triggers stand by themselves, permissions in a component.
        let text = match expanded.starts_with("[[") {
            true => format!("{head}{expanded}\n"),
            false => COPIED.replacen("[component.copied]\n", &format!("[component.copied]\n{expanded}\n"), 1),
        };
        desk.write("app/spin.toml", &text);
        desk.write("app/copied.wasm", clock_program("a", "b"));
        let said = desk.wisp("app", &["doctor"]);
        let said = format!("{}{}", said.stdout, said.stderr);
        assert!(!said.contains("WISP-E01"), "{name}:\n{text}\n{said}");
        assert!(said.contains("version 2"), "{name}:\n{text}\n{said}");
    }

    let snippets = json("editors/vscode/snippets/tests.json");
    let desk = Desk::new();
    desk.write("app/spin.toml", COPIED);
    desk.write("app/copied.wasm", clock_program("a", "b"));
    let bodies: Vec<String> = snippets.as_object().unwrap().values().map(expanded).collect();
    desk.write("app/tests/all.toml", bodies.join("\n"));
    assert!(desk.done("app", &["test", "--list"]).stdout.contains("it answers"));
}

#[test]
fn the_extension_names_files_that_it_has() {
    let package = json("editors/vscode/package.json");
    let contributed = &package["contributes"];
    let paths = contributed["snippets"].as_array().unwrap().iter().map(|snippet| &snippet["path"]);
    let urls = contributed["tomlValidation"].as_array().unwrap().iter().map(|schema| &schema["url"]);
    let packed: Vec<&str> =
        package["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    for path in paths.chain(urls) {
        let path = path.as_str().unwrap().strip_prefix("./").unwrap();
        let is_there = source("editors/vscode").join(path).is_file() || source("docs").join(path).is_file();
        assert!(is_there, "{path}");
        assert!(packed.contains(&path), "{path} is not packed");
    }
}

/// taplo, which is what most editors check TOML with, in a folder.
fn taplo(folder: &Path, arguments: &[&str]) -> Option<Finished> {
    let program = guests_dir().join("tools/taplo/node_modules/.bin/taplo");
    if !program.exists() {
        skip("taplo is not installed; `cargo xtask setup` does that");
        return None;
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env("RUST_LOG", "info");
    Some(finish(command))
}

#[test]
fn taplo_checks_manifests_against_the_schema() {
    let folder = source("");
    let Some(linted) = taplo(&folder, &["lint"]) else { return };
    assert!(linted.status.success(), "{}", linted.stderr);

    // As `editors/README.md` says for an app of one's own.
    let desk = Desk::new();
    fs::create_dir_all(desk.path("app")).unwrap();
    for schema in ["spin-toml.schema.json", "tests-toml.schema.json"] {
        fs::copy(source("docs").join(schema), desk.path("app").join(schema)).unwrap();
    }
    let readme = fs::read_to_string(source("editors/README.md")).unwrap();
    let (_, settings) = readme.split_once("```toml\n").unwrap();
    desk.write("app/taplo.toml", settings.split_once("```").unwrap().0);
    desk.write("app/tests/one.toml", "[[test]]\nname = \"a\"\nrequest = \"GET /\"\n");
    desk.write("app/spin.toml", COPIED);
    let folder = desk.path("app");
    let right = taplo(&folder, &["lint"]).unwrap();
    assert!(right.status.success(), "{}", right.stderr);
    desk.write("app/spin.toml", COPIED.replace("name = \"copied\"", "name = \"copied\"\ncolour = \"red\""));
    let wrong = taplo(&folder, &["lint"]).unwrap();
    assert!(!wrong.status.success() && wrong.stderr.contains("'colour' was unexpected"), "{}", wrong.stderr);
    desk.write("app/spin.toml", COPIED);
    desk.write("app/tests/one.toml", "[[test]]\nname = 3\n");
    let wrong = taplo(&folder, &["lint"]).unwrap();
    assert!(!wrong.status.success() && wrong.stderr.contains("one.toml"), "{}", wrong.stderr);
}

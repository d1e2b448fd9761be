//! What people are told about a manifest or runtime configuration that is
//! wrong: every file in `malformed/` has its messages in `snapshots/`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::allow_attributes, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use wisp_manifest::{App, Diagnostics, LockedApp, RuntimeConfig};

/// The width of a terminal.
const WIDTH_COLUMNS: usize = 100;

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(directory);
    let entries = std::fs::read_dir(directory).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// The problems of a file, and the name of its snapshot.
fn problems_of(path: &Path) -> (String, Diagnostics) {
    let text = std::fs::read_to_string(path).unwrap();
    let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
    if path.parent().unwrap().ends_with("malformed_runtime_config") {
        let problems = match RuntimeConfig::parse(Path::new("runtime-config.toml"), &text) {
            Ok(checked) => checked.warnings,
            Err(problems) => problems,
        };
        return (format!("runtime-config-{stem}"), problems);
    }
    let profile = (stem == "profile").then_some("production");
    let problems = match App::parse(Path::new("spin.toml"), &text, profile) {
        Ok(checked) => checked.warnings,
        Err(problems) => problems,
    };
    (stem, problems)
}

fn all_files() -> Vec<PathBuf> {
    [files("malformed"), files("malformed_runtime_config")].concat()
}

#[test]
fn messages() {
    for path in all_files() {
        let (name, problems) = problems_of(&path);
        assert!(!problems.is_empty(), "{name} has no problem");
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, problems.render(false, WIDTH_COLUMNS));
        });
    }
}

#[test]
fn every_code_has_an_example_and_is_documented() {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let all: Vec<Diagnostics> = all_files().iter().map(|path| problems_of(path).1).collect();
    seen.extend(all.iter().flat_map(Diagnostics::iter).map(|problem| problem.code()));
    let missing_file = App::read(Path::new("does/not/exist.toml"), None).unwrap_err();
    seen.extend(missing_file.iter().map(|problem| problem.code()));
    let too_many = App::parse(Path::new("spin.toml"), &too_many_components(), None).unwrap_err();
    seen.extend(too_many.iter().map(|problem| problem.code()));
    let newer = br#"{"spin_lock_version":9,"triggers":[],"components":[]}"#;
    let newer = LockedApp::parse(Path::new("spin.lock"), newer).unwrap();
    let newer = newer.check(Path::new("spin.lock")).unwrap_err();
    seen.extend(newer.iter().map(|problem| problem.code()));
    let expected: Vec<String> = (101..=125).map(|number| format!("WISP-E0{number}")).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);

    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for code in expected {
        assert!(docs.contains(&format!("### {code}:")), "{code} is not in docs/errors.md");
    }
}

fn too_many_components() -> String {
    let mut text = "spin_manifest_version = 2\n\n[application]\nname = \"shop\"\n".to_owned();
    for number in 0..=wisp_manifest::MAX_COMPONENTS_COUNT {
        text.push_str(&format!("[component.c{number}]\nsource = \"a.wasm\"\n"));
    }
    text
}

#[test]
fn limits() {
    let problems = App::parse(Path::new("spin.toml"), &too_many_components(), None).unwrap_err();
    insta::assert_snapshot!(problems.render(false, WIDTH_COLUMNS), @r"
    error[WISP-E0122]: components: 1025 are more than the limit of 1024
     --> spin.toml:1:1
      |
    1 | spin_manifest_version = 2
      | ^
    hint: split the app into several
    ");
}

#[test]
fn files_that_cannot_be_read() {
    let problems = App::read(Path::new("does/not/exist.toml"), None).unwrap_err();
    insta::assert_snapshot!(problems.render(false, WIDTH_COLUMNS), @r"
    error[WISP-E0121]: cannot read `does/not/exist.toml`: there is no such file
    hint: name a manifest or its directory, or change into it
    ");
    let large = " ".repeat(usize::try_from(wisp_manifest::MAX_TEXT_BYTES).unwrap() + 1);
    let problems = App::parse(Path::new("spin.toml"), &large, None).unwrap_err();
    insta::assert_snapshot!(problems.render(false, WIDTH_COLUMNS), @"error[WISP-E0121]: cannot read `spin.toml`: it has more than 1048576 bytes");
}

#[test]
fn colors_change_nothing_but_colors() {
    for path in all_files() {
        let (name, problems) = problems_of(&path);
        let colored = problems.render(true, WIDTH_COLUMNS);
        let mut plain = String::new();
        for (index, piece) in colored.split('\u{1b}').enumerate() {
            match index {
                0 => plain.push_str(piece),
                _ => plain.push_str(piece.split_once('m').unwrap().1),
            }
        }
        assert!(colored.contains("\u{1b}[1;3"), "{name}");
        assert_eq!(plain, problems.render(false, WIDTH_COLUMNS), "{name}");
    }
}

/// The same problems through miette, which others may want to print with.
#[test]
fn miette_knows_the_place() {
    let text = "spin_manifest_version = 2\n[application]\nname = 3\n";
    let problems = App::parse(Path::new("spin.toml"), text, None).unwrap_err();
    let problem = problems.iter().next().unwrap();
    let mut rendered = String::new();
    miette::NarratableReportHandler::new().render_report(&mut rendered, problem).unwrap();
    assert!(rendered.contains("`application.name`: expected a string, found an integer"));
    assert!(rendered.contains("label at line 3, column 8"), "{rendered}");
    assert!(rendered.contains("WISP-E0104"), "{rendered}");
}

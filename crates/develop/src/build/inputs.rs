//! The files that a component is made of.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use glob::{MatchOptions, Pattern};
use wisp_manifest::model::Build;

/// Folders that tools fill, wherever they are: never sources.
const TOOL_FOLDERS: [&str; 10] = [
    ".git",
    ".spin",
    ".venv",
    ".zig-cache",
    "__pycache__",
    "node_modules",
    "target",
    "venv",
    "zig-cache",
    "zig-out",
];

/// Files of a component that are looked at. Hashing so many takes less than a second;
/// what has more is built each time.
const MAX_FILES_COUNT: usize = 20_000;

/// Bytes of a component that are looked at.
const MAX_BYTES: u64 = 512 << 20;

/// Patterns are matched as a shell would.
const MATCH: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// The digest of each file, by path.
pub(super) type Snapshot = BTreeMap<PathBuf, [u8; 32]>;

/// Which files of a component call for another build when they change.
#[derive(Clone, Debug)]
pub(crate) struct WatchPatterns {
    folder: PathBuf,
    /// All that is not a tool's, if there are none.
    patterns: Vec<Pattern>,
    outputs: Vec<PathBuf>,
}

impl WatchPatterns {
    /// `folder` is where the commands run, `outputs` what they make.
    pub(crate) fn new(build: &Build, folder: PathBuf, outputs: Vec<PathBuf>) -> Self {
        let patterns = build.watch.iter().filter_map(|pattern| Pattern::new(pattern).ok()).collect();
        Self { folder, patterns, outputs }
    }

    /// Where to watch.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a file is one of them.
    pub(crate) fn matches(&self, path: &Path) -> bool {
        let Ok(inner) = path.strip_prefix(&self.folder) else { return false };
        if self.outputs.iter().any(|output| output == path) {
            return false;
        }
        if self.patterns.is_empty() {
            return !is_of_tool(inner) && !is_draft(inner);
        }
        self.patterns.iter().any(|pattern| pattern.matches_path_with(inner, MATCH))
    }
}

/// What is in a folder that only tools write to.
pub(crate) fn is_of_tool(path: &Path) -> bool {
    path.components().any(|part| TOOL_FOLDERS.iter().any(|folder| part.as_os_str() == *folder))
}

/// What editors write beside a file while it is open.
fn is_draft(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with('~') || name.starts_with(".#") || name.ends_with(".swp") || name == "4913"
}

/// All files of a folder but tools' and `outputs`, with the digests of their content.
/// `None` if they are too many, or cannot be read.
pub(super) fn snapshot(folder: &Path, outputs: &[PathBuf]) -> Option<Snapshot> {
    let mut files = Vec::new();
    list(folder, outputs, &mut files).ok()?;
    let mut size_bytes = 0;
    let mut snapshot = Snapshot::new();
    for path in files {
        size_bytes += fs::metadata(&path).ok()?.len();
        if size_bytes > MAX_BYTES {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(&path).ok()?).ok()?;
        snapshot.insert(path, hasher.finalize().into());
    }
    Some(snapshot)
}

fn list(folder: &Path, outputs: &[PathBuf], files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if !TOOL_FOLDERS.iter().any(|tool| name == *tool) {
                list(&path, outputs, files)?;
            }
        } else if path.is_file() && !outputs.contains(&path) {
            if files.len() >= MAX_FILES_COUNT {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            files.push(path);
        }
    }
    Ok(())
}

/// Whether sources lie where [`snapshot`] does not see them, as far as the files of
/// known tools say.
pub(super) fn reach_outside(folder: &Path, snapshot: &Snapshot) -> bool {
    let marks: [(&str, &[&str]); 4] = [
        ("Cargo.toml", &["\"../", "\"/", "workspace = true"]),
        ("package.json", &["\"file:..", "\"link:..", "\"workspace:"]),
        ("go.mod", &["=> ../", "=> /"]),
        ("requirements.txt", &["../", "-e "]),
    ];
    snapshot.keys().any(|path| {
        let name = path.file_name().unwrap_or_default();
        let Some((_, marks)) = marks.iter().find(|(known, _)| name == *known) else { return false };
        let text = fs::read_to_string(path).unwrap_or_default();
        // A workspace within the folder is seen as a whole.
        let is_inner = path.parent() != Some(folder);
        marks.iter().any(|mark| text.contains(mark) && !(is_inner && mark.starts_with("workspace")))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn patterns_are_relative_to_the_folder_and_outputs_never_match() {
        let build = |watch: &[&str]| Build {
            commands: vec!["true".into()],
            workdir: None,
            watch: watch.iter().map(ToString::to_string).collect(),
        };
        let of =
            |watch: &[&str]| WatchPatterns::new(&build(watch), "/app".into(), vec!["/app/a.wasm".into()]);
        let patterns = of(&["src/**/*.rs", "Cargo.toml"]);
        for (path, expected) in [
            ("/app/src/lib.rs", true),
            ("/app/src/deep/er.rs", true),
            ("/app/Cargo.toml", true),
            ("/app/src/lib.txt", false),
            ("/app/inner/Cargo.toml", false),
            ("/else/src/lib.rs", false),
        ] {
            assert_eq!(patterns.matches(Path::new(path)), expected, "{path}");
        }
        let everything = of(&[]);
        for (path, expected) in [
            ("/app/any/thing.txt", true),
            ("/app/a.wasm", false),
            ("/app/target/debug/x", false),
            ("/app/web/node_modules/x.js", false),
            ("/app/.thing.swp", false),
        ] {
            assert_eq!(everything.matches(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_snapshot_has_the_content_of_sources_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["src/a", "target/b", "src/node_modules/c", "out.wasm"] {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), "x").unwrap();
        }
        let one = snapshot(folder.path(), &[path("out.wasm")]).unwrap();
        assert_eq!(one.keys().collect::<Vec<_>>(), [&path("src/a")]);
        fs::write(path("src/a"), "y").unwrap();
        assert_ne!(one, snapshot(folder.path(), &[path("out.wasm")]).unwrap());
    }
}

//! An app folder: a `spin.toml` and sources that its build commands turn into
//! WebAssembly. Guests and examples are both built this way, in a copy of the
//! folder, so that a checkout stays as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::chore::{Chore, Failure, Result, at, run_quietly, say, without_cargo_variables};
use crate::tools::Environment;

/// What a toolchain leaves in a source folder: neither copied nor hashed.
const LEFTOVERS: [&str; 7] = ["target", "node_modules", "build", "dist", "__pycache__", ".spin", "spin.lock"];

/// The part of a manifest that building needs.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    component: BTreeMap<String, Component>,
}

#[derive(Deserialize)]
struct Component {
    source: PathBuf,
    build: Option<Build>,
}

#[derive(Deserialize)]
struct Build {
    command: Commands,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Commands {
    One(String),
    Several(Vec<String>),
}

impl Manifest {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("spin.toml");
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        toml::from_str(&text).map_err(|error| Failure::new(format!("`{}`: {error}", path.display())))
    }

    /// The build commands of all components, in the manifest's order of names.
    pub(crate) fn commands(&self) -> Vec<String> {
        let builds = self.component.values().filter_map(|component| component.build.as_ref());
        builds
            .flat_map(|build| match &build.command {
                Commands::One(command) => vec![command.clone()],
                Commands::Several(commands) => commands.clone(),
            })
            .collect()
    }

    /// The file that the only component of a guest is built into.
    pub(crate) fn source(&self) -> Option<&Path> {
        self.component.values().map(|component| component.source.as_path()).next()
    }

    fn sources(&self) -> impl Iterator<Item = &Path> {
        self.component.values().map(|component| component.source.as_path())
    }
}

/// Copies the app in `source` to `into` and runs its build commands there.
/// Does nothing where the same sources have been built before.
pub(crate) fn build(chore: &Chore, source: &Path, into: &Path) -> Result<()> {
    let manifest = Manifest::read(source)?;
    let stamp = into.join(".built-from");
    let digest = digest(source)?;
    let is_built = fs::read_to_string(&stamp).is_ok_and(|text| text == digest);
    if is_built && manifest.sources().all(|file| into.join(file).exists()) {
        say(&format!("{}: unchanged since it was built", source.display()));
        return Ok(());
    }
    copy(source, into)?;
    let commands = manifest.commands();
    let environment = Environment::for_commands(chore, source, &commands)?;
    for text in &commands {
        let mut command = Command::new("sh");
        command.args(["-c", text]).current_dir(into);
        without_cargo_variables(&mut command);
        // The app's own target folder is where its manifest looks.
        command.env_remove("CARGO_TARGET_DIR");
        environment.apply(&mut command)?;
        run_quietly(&mut command)?;
    }
    for file in manifest.sources().map(|file| into.join(file)) {
        if !file.exists() {
            return Err(Failure::new(format!("the build made no `{}`", file.display())));
        }
    }
    fs::write(&stamp, digest).map_err(at(&stamp))
}

/// The digest of all sources in a folder: names and contents.
pub(crate) fn digest(folder: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files(folder)? {
        hash.update(path.to_string_lossy().as_bytes());
        hash.update([0]);
        let bytes = fs::read(folder.join(&path)).map_err(at(&path))?;
        hash.update(bytes.len().to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hex::encode(hash.finalize()))
}

/// The folders of guests and examples that have a file of this name.
pub(crate) fn folders_with(chore: &Chore, name: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for parent in ["guests", "examples"] {
        let parent = chore.root.join(parent);
        found.extend(subfolders(&parent)?.into_iter().filter(|folder| folder.join(name).exists()));
    }
    Ok(found)
}

/// The folders in a folder, by name.
pub(crate) fn subfolders(parent: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(parent).map_err(at(parent))?;
    let mut folders: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

/// The sources in a folder, relative to it, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let current = folder.join(&relative);
        for entry in fs::read_dir(&current).map_err(at(&current))? {
            let entry = entry.map_err(at(&current))?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if LEFTOVERS.contains(&text.as_ref()) || text.ends_with(".wasm") {
                continue;
            }
            let path = relative.join(&name);
            if entry.path().is_dir() {
                waiting.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn copy(source: &Path, into: &Path) -> Result<()> {
    for file in files(source)? {
        let (from, to) = (source.join(&file), into.join(&file));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        // A file that has not changed keeps its time, or a toolchain that goes
        // by times would build everything again.
        let is_same = fs::read(&to).is_ok_and(|old| fs::read(&from).is_ok_and(|new| old == new));
        if !is_same {
            fs::copy(&from, &to).map_err(at(&from))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod unit_tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::*;

    #[test]
    fn build_commands_are_one_or_several() {
        let manifest: Manifest = toml::from_str(
            "[component.a]\nsource = 'a.wasm'\nbuild.command = 'one'\n\
             [component.b]\nsource = 'b.wasm'\nbuild.command = ['two', 'three']\n\
             [component.c]\nsource = 'c.wasm'\n",
        )
        .unwrap();
        assert_eq!(manifest.commands(), ["one", "two", "three"]);
        assert_eq!(manifest.source(), Some(Path::new("a.wasm")));
    }

    #[test]
    fn what_a_toolchain_leaves_behind_changes_no_digest() {
        let folder = std::env::temp_dir().join(format!("xtask-digest-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("main.c"), "int main;").unwrap();
        let before = digest(&folder).unwrap();
        fs::create_dir_all(folder.join("node_modules")).unwrap();
        fs::write(folder.join("node_modules/x"), "x").unwrap();
        fs::write(folder.join("main.wasm"), "x").unwrap();
        assert_eq!(digest(&folder).unwrap(), before);
        fs::write(folder.join("main.c"), "int other;").unwrap();
        assert_ne!(digest(&folder).unwrap(), before);
        fs::remove_dir_all(&folder).unwrap();
    }
}

//! `wisp doctor`: what keeps an app from being built and served on this machine.
//!
//! Each check looks at one thing and says what is wrong, how that shows, and what to do.
//! Where it can do that itself, a [`Problem`] has a [`Fix`]; nothing is changed before
//! somebody agrees.

mod manifest;
mod toolchains;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Serialize;
use wisp_manifest::{App, MANIFEST_FILE_NAME, model::Source};

use crate::{Error, template::replace_file};

/// Where `wisp up` listens unless it is told otherwise.
const USUAL_PORT: u16 = 3000;

/// Files that are looked through for one of the right name.
const MAX_SEARCHED_COUNT: usize = 50_000;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is as it should be, in a line each.
    pub fine: Vec<String>,
    /// What is not.
    pub problems: Vec<Problem>,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether the app cannot be built or served before it is mended.
    pub is_serious: bool,
    /// How it can be mended from here.
    #[serde(skip)]
    pub fix: Option<Fix>,
}

/// How something can be mended.
#[derive(Debug)]
pub enum Fix {
    /// Write another text to a file.
    Rewrite {
        /// The file.
        path: PathBuf,
        /// What it will hold.
        text: String,
    },
    /// Run a command.
    Run {
        /// The program and its arguments.
        command: Vec<String>,
    },
}

impl Fix {
    /// What it does, in a few words.
    pub fn title(&self) -> String {
        match self {
            Self::Rewrite { path, .. } => format!("rewrite `{}`", path.display()),
            Self::Run { command } => format!("run `{}`", command.join(" ")),
        }
    }

    /// Does it. A file that is rewritten is kept under a name with `.before` at its end.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Program`], or [`Error::Build`] if the command fails.
    pub fn apply(&self) -> Result<(), Error> {
        match self {
            Self::Rewrite { path, text } => {
                let mut kept = path.clone().into_os_string();
                kept.push(".before");
                fs::copy(path, &kept).map_err(Error::file("copy", path))?;
                replace_file(path, text)
            }
            Self::Run { command } => {
                let Some((program, arguments)) = command.split_first() else { return Ok(()) };
                let status = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .status()
                    .map_err(|cause| Error::Program { program: program.clone(), cause })?;
                if status.success() {
                    return Ok(());
                }
                Err(Error::Build {
                    component: "doctor".into(),
                    command: command.join(" "),
                    status: format!("ended with {status}"),
                })
            }
        }
    }
}

impl Findings {
    fn problem(&mut self, is_serious: bool, what: String, remedy: String, fix: Option<Fix>) {
        self.problems.push(Problem { what, remedy, is_serious, fix });
    }
}

/// Looks at an app and this machine.
///
/// # Errors
/// [`Error::File`] if there is no manifest.
pub fn examine(path: &Path) -> Result<Findings, Error> {
    let path = if path.is_dir() { path.join(MANIFEST_FILE_NAME) } else { path.to_owned() };
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let mut findings = Findings::default();
    if let Some(app) = manifest::examine(&path, &text, &mut findings) {
        toolchains::examine(&app, &mut findings);
        sources(&app, &path, &text, &mut findings);
        state(&app, &mut findings);
    }
    port(&mut findings);
    Ok(findings)
}

/// Whether each component's file is where the manifest says.
fn sources(app: &App, manifest: &Path, text: &str, findings: &mut Findings) {
    for component in app.components.values() {
        let Source::Path(source) = &component.source else { continue };
        let path = app.directory.join(source);
        let id = &component.id;
        if path.is_file() {
            findings.fine.push(format!("component `{id}`: `{}` is there", source.display()));
            continue;
        }
        let similar = similar_files(&app.directory, source);
        let what = format!("component `{id}`: there is no `{}`", source.display());
        match (&similar[..], &component.build) {
            ([similar], _) => {
                let similar = similar.display().to_string();
                let fix = with_source(text, id.as_str(), &similar)
                    .map(|text| Fix::Rewrite { path: manifest.to_owned(), text });
                findings.problem(true, what, format!("there is `{similar}`: name it in `source`"), fix);
            }
            (_, Some(_)) => findings.problem(
                false,
                what,
                "build it with `wisp build`; if it is not there afterwards, `source` is wrong".into(),
                None,
            ),
            (_, None) => findings.problem(
                true,
                what,
                "name the file in `source`, or say in `build` how it is made".into(),
                None,
            ),
        }
    }
}

/// Files of the same name elsewhere below the app, however words are separated in it.
fn similar_files(folder: &Path, source: &Path) -> Vec<PathBuf> {
    fn search(folder: &Path, wanted: &str, left: &mut usize, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return;
            }
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            // Cargo's `deps` holds a copy of everything.
            let is_copy = ["deps", "node_modules", ".git", "incremental"].contains(&&*name);
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !is_copy {
                    search(&path, wanted, left, found);
                }
            } else if name.replace('-', "_") == wanted {
                found.push(path);
            }
        }
    }
    let Some(wanted) = source.file_name().map(|name| name.to_string_lossy().replace('-', "_")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    search(folder, &wanted, &mut MAX_SEARCHED_COUNT.clone(), &mut found);
    found.into_iter().filter_map(|path| Some(path.strip_prefix(folder).ok()?.to_owned())).collect()
}

/// The manifest with another `source` of a component.
fn with_source(text: &str, component: &str, source: &str) -> Option<String> {
    let mut document: toml_edit::DocumentMut = text.parse().ok()?;
    let table = document.get_mut("component")?.get_mut(component)?.as_table_like_mut()?;
    table.insert("source", toml_edit::value(source));
    Some(document.to_string())
}

/// Whether stores and logs can be kept beside the app.
fn state(app: &App, findings: &mut Findings) {
    let folder = app.directory.join(".spin");
    let probe = folder.join(".doctor");
    let is_new = !folder.exists();
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&probe, ""));
    drop(fs::remove_file(&probe));
    if is_new {
        // Only if it is still empty.
        drop(fs::remove_dir(&folder));
    }
    match written {
        Ok(()) => findings.fine.push(format!("stores and logs can be kept in `{}`", folder.display())),
        Err(error) => findings.problem(
            true,
            format!("stores and logs cannot be kept in `{}`: {error}", folder.display()),
            "make the folder writable, or name another with `wisp up --state-dir`".into(),
            None,
        ),
    }
}

/// Whether `wisp up` could listen where it usually does.
fn port(findings: &mut Findings) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, USUAL_PORT));
    match TcpListener::bind(address) {
        Ok(_) => findings.fine.push(format!("port {USUAL_PORT} is free")),
        Err(error) => findings.problem(
            false,
            format!("`wisp up` cannot listen on {address}: {error}"),
            "end what listens there, or use `wisp up --find-free-port`".into(),
            None,
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_wrong_path_is_found_and_mended() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("spin.toml");
        let text = "# mine\nspin_manifest_version = 2\n[application]\nname = \"a\"\n\
                    [component.a]\nsource = \"target/my-a.wasm\"\n";
        fs::write(&manifest, text).unwrap();
        fs::create_dir_all(folder.path().join("target/wasm32-wasip2/release/deps")).unwrap();
        fs::write(folder.path().join("target/wasm32-wasip2/release/my_a.wasm"), "").unwrap();
        fs::write(folder.path().join("target/wasm32-wasip2/release/deps/my_a.wasm"), "").unwrap();
        let findings = examine(folder.path()).unwrap();
        let fixes: Vec<_> = findings.problems.iter().filter_map(|problem| problem.fix.as_ref()).collect();
        assert_eq!(fixes.len(), 1);
        fixes[0].apply().unwrap();
        let mended = fs::read_to_string(&manifest).unwrap();
        assert!(mended.starts_with("# mine\n"), "{mended}");
        assert!(mended.contains("source = \"target/wasm32-wasip2/release/my_a.wasm\""), "{mended}");
        assert_eq!(fs::read_to_string(folder.path().join("spin.toml.before")).unwrap(), text);
        assert!(examine(folder.path()).unwrap().problems.iter().all(|problem| problem.fix.is_none()));
    }
}

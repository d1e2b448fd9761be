//! What was built from what.
//!
//! For each job a small file below `.spin/build` keeps a key of everything that its
//! result depends on, and the digests of the files that came of it. The key is made of:
//! the content of all files in the job's folder (but those of tools), the commands, the
//! versions of the tools that they call, and the variables that compilers read. A job
//! whose sources reach outside of its folder, or are too many, has no key and is always
//! run: better slow than stale.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use blake3::Hasher;
use serde::{Deserialize, Serialize};
use wisp_manifest::App;

use super::{
    Job,
    inputs::{self, Snapshot},
};
use crate::optimize::Report;

/// Where the files lie, below the app's folder. Beside what else an app leaves.
const FOLDER: &str = ".spin/build";

/// Goes into each key: a key of another meaning is another key.
const VERSION: &str = "wisp build 2";

/// Programs that results depend on, and how to ask for their version.
const TOOLS: [(&str, &str); 9] = [
    ("cargo", "rustc --version --verbose"),
    ("npm", "node --version"),
    ("node", "node --version"),
    ("python3", "python3 --version"),
    ("componentize-py", "componentize-py --version"),
    ("go", "go version"),
    ("tinygo", "tinygo version"),
    ("zig", "zig version"),
    ("clang", "clang --version"),
];

/// Variables that compilers read.
const VARIABLES: [&str; 12] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CC",
    "CFLAGS",
    "CGO_ENABLED",
    "GOARCH",
    "GOFLAGS",
    "GOOS",
    "NODE_ENV",
    "PATH",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Versions of tools, asked for once.
#[derive(Default)]
pub(super) struct Tools(Mutex<BTreeMap<(String, PathBuf), String>>);

/// What is known about a job before it runs.
pub(super) struct Entry {
    path: PathBuf,
    /// `None` if the job's inputs are not known.
    now: Option<Inputs>,
    before: Option<Kept>,
    outputs: Vec<PathBuf>,
}

/// All that a job's result depends on, but the versions of its tools.
struct Inputs {
    key: Hasher,
    snapshot: Snapshot,
}

/// What is kept of a job that was run.
#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    key: String,
    /// The digests of the files that came of it, in the manifest's order.
    outputs: Vec<String>,
    /// What was done to them after they were built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reports: Vec<Report>,
}

impl Entry {
    /// `variant` says how what was built is treated, if it is.
    pub(super) fn of(app: &App, job: &Job, variant: Option<&str>) -> Self {
        let name = job.components.join("+");
        let path = app.directory.join(FOLDER).join(name).with_extension("json");
        let outputs: Vec<_> = job.outputs.iter().map(|(_, path)| path.clone()).collect();
        let before = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { now: Inputs::of(app, job, variant), path, before, outputs }
    }

    /// Whether nothing is different from when the job was run last.
    pub(super) fn is_current(&self, job: &Job, tools: &Tools) -> bool {
        let (Some(now), Some(before)) = (&self.now, &self.before) else { return false };
        now.key_with(job, tools) == before.key
            && digests(&self.outputs).is_some_and(|outputs| outputs == before.outputs)
    }

    /// What was done to what was built, when it was built last.
    pub(super) fn reports(&self) -> &[Report] {
        self.before.as_ref().map_or(&[], |before| &before.reports)
    }

    /// Remembers that the job was run. That it cannot be remembered does no harm. Reading
    /// what came of it takes some time: what is returned does that.
    pub(super) fn keep(
        self,
        app: &App,
        job: &Job,
        tools: &Tools,
        variant: Option<&str>,
        reports: Vec<Report>,
    ) -> Option<impl FnOnce() + Send + use<>> {
        // Tools add files (`Cargo.lock`), which belong to the inputs next time. Where a
        // file is another one than before, it may have been a person.
        let after = Inputs::of(app, job, variant);
        let inputs = match (self.now, after) {
            (Some(before), Some(after)) if before.has_only_grown_to(&after) => after,
            (Some(before), _) => before,
            (None, _) => {
                drop(fs::remove_file(&self.path));
                return None;
            }
        };
        let (key, path, outputs) = (inputs.key_with(job, tools), self.path, self.outputs);
        Some(move || {
            let Some(outputs) = digests(&outputs) else { return };
            let kept = Kept { key, outputs, reports };
            if let (Some(folder), Ok(text)) = (path.parent(), serde_json::to_vec(&kept))
                && let Err(error) = fs::create_dir_all(folder).and_then(|()| fs::write(&path, text))
            {
                tracing::debug!("a build is not remembered: {error}");
            }
        })
    }
}

impl Inputs {
    fn of(app: &App, job: &Job, variant: Option<&str>) -> Option<Self> {
        let mut outputs: Vec<_> = job.outputs.iter().map(|(_, path)| path.clone()).collect();
        // Components beside this one have nothing to do with it.
        outputs.extend(app.components.values().filter_map(|component| match &component.source {
            wisp_manifest::model::Source::Path(path) => Some(app.directory.join(path)),
            _ => None,
        }));
        let snapshot = inputs::snapshot(&job.workdir, &outputs)?;
        if inputs::reach_outside(&job.workdir, &snapshot) {
            return None;
        }
        let mut key = Hasher::new();
        let mut add = |part: &[u8]| add(&mut key, part);
        add(VERSION.as_bytes());
        for command in &job.commands {
            add(command.as_bytes());
        }
        if let Some(variant) = variant {
            add(variant.as_bytes());
        }
        for variable in VARIABLES {
            add(env::var_os(variable).unwrap_or_default().as_encoded_bytes());
        }
        for (path, digest) in &snapshot {
            add(path.strip_prefix(&job.workdir).unwrap_or(path).as_os_str().as_encoded_bytes());
            add(digest);
        }
        Some(Self { key, snapshot })
    }

    fn key_with(&self, job: &Job, tools: &Tools) -> String {
        let mut key = self.key.clone();
        for version in tools.versions(job) {
            add(&mut key, version.as_bytes());
        }
        key.finalize().to_hex().to_string()
    }

    fn has_only_grown_to(&self, after: &Self) -> bool {
        self.snapshot.iter().all(|(path, digest)| after.snapshot.get(path) == Some(digest))
    }
}

fn add(key: &mut Hasher, part: &[u8]) {
    key.update(&(part.len() as u64).to_le_bytes());
    key.update(part);
}

impl Tools {
    /// The versions of the programs that a job's commands call.
    pub(super) fn versions(&self, job: &Job) -> Vec<String> {
        let words: Vec<&str> = job
            .commands
            .iter()
            .flat_map(|command| command.split([' ', '\t', '&', ';', '|', '(', ')']))
            .filter_map(|word| word.rsplit('/').next())
            .collect();
        let called = TOOLS.iter().filter(|(program, _)| words.contains(program));
        called.map(|(_, ask)| self.version(ask, &job.workdir)).collect()
    }

    fn version(&self, ask: &str, workdir: &Path) -> String {
        let key = (ask.to_owned(), workdir.to_owned());
        if let Some(version) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return version.clone();
        }
        let output = Command::new("sh").args(["-c", ask]).current_dir(workdir).stdin(Stdio::null()).output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = version.unwrap_or_default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, version.clone());
        version
    }
}

fn digests(paths: &[PathBuf]) -> Option<Vec<String>> {
    let digest = |path: &PathBuf| {
        let mut hasher = Hasher::new();
        hasher.update_reader(fs::File::open(path).ok()?).ok()?;
        Some(hasher.finalize().to_hex().to_string())
    };
    paths.iter().map(digest).collect()
}

//! `wisp build --optimize`: what a build made, smaller and quicker to start.
//!
//! # What is done to a file
//!
//! 1. **Snapshot** (`snapshot`): its start-up runs here, once, where its author said that
//!    this is sound. What JavaScript's and Python's toolchains make is a snapshot already.
//! 2. **Strip**: debug information goes, and more if that is wanted. Names of functions
//!    stay unless they are not wanted: backtraces are made of them.
//! 3. **`wasm-opt`** (`binaryen`), if it is there, for each core module by itself; what is
//!    around them in a component stays as it is (`sections`).
//!
//! Then the result is validated, compiled and asked for an answer, as the file was before
//! (`measure`). What is not valid, does not answer or answers with another status is not
//! taken: the file stays as the build left it, and the report says why.
//!
//! # What is kept
//!
//! Results lie below `.spin/build/optimized`, named by all that they depend on: the file's
//! content, the settings, the version of `wasm-opt`. A file that is put in the place of
//! another is renamed over it, never written into: Cargo keeps hard links to what it made.

pub(crate) mod binaryen;
mod measure;
mod sections;
mod snapshot;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use wisp_manifest::App;

use crate::{Error, wasm::Wasm};

/// Where results are kept, below the app's folder.
const FOLDER: &str = ".spin/build/optimized";

/// Goes into each name: a result of another meaning has another name.
const VERSION: &str = "wisp optimize 1";

/// How many results are kept of an app: those of some components, before and after an edit.
/// One may have tens of megabytes.
const MAX_KEPT_COUNT: usize = 8;

/// Of how many bytes `.debug_info` and its like are told apart from other sections.
const DEBUG_PREFIXES: [&str; 3] = [".debug_", ".zdebug_", "reloc..debug_"];

/// Other custom sections that only debuggers read.
const DEBUG_SECTIONS: [&str; 2] = ["sourceMappingURL", "external_debug_info"];

/// Custom sections that hold names.
const NAME_SECTIONS: [&str; 2] = ["name", "component-name"];

/// The custom section that says which tools made a file.
const PRODUCERS_SECTION: &str = "producers";

/// What of a file is not wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strip {
    /// Everything is.
    Nothing,
    /// Debug information is not.
    #[default]
    Debug,
    /// Debug information and names are not: backtraces have numbers only.
    Names,
    /// Nothing is that a component runs without.
    All,
}

/// How files are optimized.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What of them is not wanted.
    pub strip: Strip,
    /// Where compiled images are kept; the one of `wisp up` saves compiling.
    pub image_dir: PathBuf,
}

/// What was done to a component's file, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The component's id.
    pub component: String,
    /// The file as the build left it.
    pub before: Facts,
    /// The file as it is now.
    pub after: Facts,
    /// Whether its start-up was taken out of it, or why not.
    pub snapshot: Step,
    /// What `wasm-opt` did.
    pub wasm_opt: Step,
    /// What was stripped.
    pub strip: Step,
    /// Why the file stayed as it was.
    pub refused: Option<String>,
    /// How long all this took.
    pub took_ms: u64,
}

/// What a file costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Its size.
    pub size_bytes: u64,
    /// From its mapped image to its first answer, with a new instance; `None` if no
    /// request reaches it.
    pub start_up_us: Option<f64>,
}

/// One of the things that may be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Whether it changed the file.
    pub is_done: bool,
    /// What it did, or why it did nothing.
    pub note: String,
}

impl Strip {
    /// What a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Debug => "debug",
            Self::Names => "names",
            Self::All => "all",
        }
    }

    fn wants(self, section: &str) -> bool {
        let is_debug = DEBUG_SECTIONS.contains(&section)
            || DEBUG_PREFIXES.iter().any(|prefix| section.starts_with(prefix));
        let has_names = NAME_SECTIONS.contains(&section);
        match self {
            Self::Nothing => true,
            Self::Debug => !is_debug,
            Self::Names => !is_debug && !has_names,
            Self::All => !is_debug && !has_names && section != PRODUCERS_SECTION,
        }
    }
}

impl Settings {
    /// All that results depend on beside the file.
    pub(crate) fn variant(&self) -> String {
        let tool = binaryen::version().unwrap_or_else(|| "no wasm-opt".into());
        format!("{VERSION}, strip {}, {tool}", self.strip.name())
    }
}

/// Optimizes the file of a component in its place.
///
/// # Errors
/// [`Error::File`], [`Error::Inspect`] if it is no WebAssembly. That something cannot be
/// optimized is none.
pub(crate) fn optimize(
    app: &App,
    component: &str,
    path: &Path,
    settings: &Settings,
) -> Result<Report, Error> {
    let started = Instant::now();
    let source = fs::read(path).map_err(Error::file("read", path))?;
    let kept = Kept::of(app, component, &source, settings);
    if let Some((wasm, report)) = kept.read() {
        if wasm != source {
            replace(path, &wasm)?;
        }
        return Ok(report);
    }
    let scratch = tempfile::tempdir().map_err(Error::file("make", std::env::temp_dir()))?;
    let described = Wasm::read(path)?;
    let mut report = Report {
        component: component.to_owned(),
        before: Facts { size_bytes: source.len() as u64, start_up_us: None },
        after: Facts { size_bytes: source.len() as u64, start_up_us: None },
        snapshot: Step { is_done: false, note: String::new() },
        wasm_opt: Step { is_done: false, note: String::new() },
        strip: Step { is_done: false, note: String::new() },
        refused: None,
        took_ms: 0,
    };
    let changed = changed(&source, &described.producers, settings, scratch.path(), &mut report)?;
    let result = scratch.path().join("result.wasm");
    fs::write(&result, &changed).map_err(Error::file("write", &result))?;
    let compared = compare(app, component, (path, &scratch.path().join("images")), (&result, settings));
    match compared {
        Ok(Compared { before, after }) => {
            report.before.start_up_us = before;
            report.after.start_up_us = after;
            report.after.size_bytes = changed.len() as u64;
        }
        Err((before, reason)) => {
            report.before.start_up_us = before;
            report.after = report.before;
            report.refused = Some(reason);
        }
    }
    report.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let result = if report.refused.is_none() { &changed } else { &source };
    kept.write(result, &report);
    if *result != source {
        // A build command that does nothing leaves what was made of its file before.
        Kept::of(app, component, result, settings).link(&kept);
        replace(path, result)?;
    }
    Ok(report)
}

/// Does one step after the other.
fn changed(
    source: &[u8],
    producers: &[String],
    settings: &Settings,
    scratch: &Path,
    report: &mut Report,
) -> Result<Vec<u8>, Error> {
    let mut wasm = source.to_owned();
    report.snapshot = match snapshot::initializer(&wasm) {
        None => Step { is_done: false, note: format!("not taken: {}", snapshot::why_not(producers)) },
        Some(initializer) => match snapshot::snapshot(&wasm, initializer) {
            Ok(taken) => {
                wasm = taken;
                Step { is_done: true, note: format!("`{initializer}` has run") }
            }
            Err(reason) => Step { is_done: false, note: format!("not taken: {reason}") },
        },
    };
    let bare = sections::retain_custom(&wasm, &|name| settings.strip.wants(name));
    let bare = bare.unwrap_or_else(|_| wasm.clone());
    let stripped_bytes = wasm.len().saturating_sub(bare.len());
    report.strip = Step {
        is_done: stripped_bytes > 0,
        note: match settings.strip {
            _ if stripped_bytes == 0 => "nothing",
            Strip::Nothing => "nothing",
            Strip::Debug => "debug information",
            Strip::Names => "debug information and names",
            Strip::All => "debug information, names and producers",
        }
        .into(),
    };
    wasm = bare;
    if binaryen::version().is_none() {
        let note = "not there: install Debian's or Homebrew's `binaryen`".into();
        report.wasm_opt = Step { is_done: false, note };
        return Ok(wasm);
    }
    let (optimized, done, complaints) = binaryen::optimize(&wasm, scratch)?;
    let count = done.smaller_count + done.same_count;
    let mut note = format!("{} of {count} core modules are smaller", done.smaller_count);
    if let Some(first) = complaints.first() {
        note.push_str(&format!("; {} stay as they were: {first}", complaints.len()));
    }
    report.wasm_opt = Step { is_done: done.smaller_count > 0, note };
    // Names of what is gone, and what it says of itself.
    let optimized =
        sections::retain_custom(&optimized, &|name| settings.strip.wants(name)).unwrap_or(optimized);
    Ok(optimized)
}

/// What start-ups take, where there are any.
struct Compared {
    before: Option<f64>,
    after: Option<f64>,
}

/// Asks both files; the error is what the first one takes, and what is wrong with the
/// second.
fn compare(
    app: &App,
    component: &str,
    (before, scratch_images): (&Path, &Path),
    (after, settings): (&Path, &Settings),
) -> Result<Compared, (Option<f64>, String)> {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    // The image of what will be gone is not worth keeping.
    let first = measure::start_up(app, component, before, scratch_images);
    let before = first.as_ref().ok().and_then(|asked| asked.map(|asked| us(asked.time)));
    let invalid = fs::read(after)
        .map_err(|error| error.to_string())
        .and_then(|wasm| binaryen::validate(&wasm))
        .err()
        .map(|message| format!("what came of it is not valid: {message}"));
    if let Some(message) = invalid {
        return Err((before, message));
    }
    let second = measure::start_up(app, component, after, &settings.image_dir);
    match (first, second) {
        (Ok(Some(first)), Ok(Some(second))) if first.status != second.status => {
            let message =
                format!("it answers with {} what it answered with {} before", second.status, first.status);
            Err((before, message))
        }
        (Ok(_), Ok(second)) => Ok(Compared { before, after: second.map(|second| us(second.time)) }),
        // It could not be asked before either.
        (Err(_), _) => Ok(Compared { before: None, after: None }),
        (Ok(_), Err(message)) => Err((before, format!("it does not run any more: {message}"))),
    }
}

/// The place of a result.
struct Kept {
    folder: PathBuf,
    name: String,
}

impl Kept {
    fn of(app: &App, component: &str, source: &[u8], settings: &Settings) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [settings.variant().as_bytes(), component.as_bytes(), source] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self { folder: app.directory.join(FOLDER), name: hasher.finalize().to_hex().to_string() }
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(&self.name).with_extension(extension)
    }

    fn read(&self) -> Option<(Vec<u8>, Report)> {
        let report = serde_json::from_slice(&fs::read(self.path("json")).ok()?).ok()?;
        Some((fs::read(self.path("wasm")).ok()?, report))
    }

    /// That it cannot be kept does no harm.
    fn write(&self, wasm: &[u8], report: &Report) {
        let written = fs::create_dir_all(&self.folder).and_then(|()| {
            // The report last: with it there is a whole result.
            fs::write(self.path("wasm"), wasm)?;
            fs::write(self.path("json"), serde_json::to_vec(report)?)
        });
        if let Err(error) = written {
            tracing::debug!("an optimized file is not kept: {error}");
        }
        self.forget_oldest();
    }

    /// The same result as another one.
    fn link(&self, other: &Self) {
        for extension in ["wasm", "json"] {
            drop(fs::hard_link(other.path(extension), self.path(extension)));
        }
    }

    fn forget_oldest(&self) {
        let modified = |path: &PathBuf| fs::metadata(path).and_then(|data| data.modified());
        let mut reports: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| Some((modified(&path).ok()?, path)))
            .collect();
        reports.sort_unstable();
        for (_, path) in reports.iter().rev().skip(MAX_KEPT_COUNT) {
            drop(fs::remove_file(path));
            drop(fs::remove_file(path.with_extension("wasm")));
        }
    }
}

/// Puts a file in the place of another, with its permissions.
fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let written = (|| {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".optimized-").tempfile_in(folder)?;
        file.write_all(content)?;
        file.as_file().set_permissions(fs::metadata(path)?.permissions())?;
        file.persist(path)?;
        Ok(())
    })();
    written.map_err(Error::file("replace", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_stripped_is_what_was_said() {
        for (strip, wanted) in [
            (Strip::Nothing, [true, true, true, true]),
            (Strip::Debug, [false, true, true, true]),
            (Strip::Names, [false, false, true, true]),
            (Strip::All, [false, false, false, true]),
        ] {
            let found = [".debug_info", "name", "producers", "component-type:a"];
            assert_eq!(found.map(|section| strip.wants(section)), wanted, "{strip:?}");
        }
    }

    #[test]
    fn results_are_kept_by_content_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("spin.toml");
        fs::write(&manifest, "spin_manifest_version = 2\n[application]\nname = \"a\"\n").unwrap();
        let app = App::read(&manifest, None).unwrap().value;
        let settings = Settings { strip: Strip::Debug, image_dir: folder.path().join("images") };
        let facts = Facts { size_bytes: 1, start_up_us: Some(2.5) };
        let step = Step { is_done: false, note: "no".into() };
        let report = Report {
            component: "a".into(),
            before: facts,
            after: facts,
            snapshot: step.clone(),
            wasm_opt: step.clone(),
            strip: step,
            refused: None,
            took_ms: 3,
        };
        let one = Kept::of(&app, "a", b"one", &settings);
        assert!(one.read().is_none());
        one.write(b"smaller", &report);
        assert_eq!(one.read(), Some((b"smaller".to_vec(), report.clone())));
        assert!(Kept::of(&app, "a", b"two", &settings).read().is_none());
        let other = Settings { strip: Strip::All, ..settings.clone() };
        assert!(Kept::of(&app, "a", b"one", &other).read().is_none());
        for number in 0..2 * MAX_KEPT_COUNT {
            Kept::of(&app, "a", number.to_string().as_bytes(), &settings).write(b"", &report);
        }
        let files_count = fs::read_dir(folder.path().join(FOLDER)).unwrap().count();
        assert_eq!(files_count, 2 * MAX_KEPT_COUNT);
    }
}

//! `wisp build`: an app's components from their sources.
//!
//! # Life of a build
//!
//! 1. Components that have the same commands in the same folder are one [`Job`]: a
//!    workspace is compiled once, however many components it has.
//! 2. Jobs run as soon as those they depend on are done, as many at a time as there are
//!    cores (`schedule`). Before a job runs, what the dependencies of its components offer
//!    is written down for it (`bindings`).
//! 3. A job whose inputs are what they were when it was run last is not run (`cache`).
//! 4. The file that the manifest names must be there afterwards. If that is wanted, it is
//!    made smaller and quicker ([`crate::optimize`]).
//!
//! What a command prints is kept, and shown if it fails.

mod bindings;
mod cache;
mod inputs;
mod schedule;

pub(crate) use inputs::{WatchPatterns, is_of_tool};

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use wisp_manifest::{
    App,
    model::{Component, DependencySource, HttpTarget, Source, TriggerKind},
};

use crate::{Error, optimize};

/// How much of a command's output is kept: its end, where compilers say what is wrong.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// How much less priority work has that nobody waits for (`nice`, which ends at 19).
const NICE: i32 = 19;

/// How an app is built.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Only these components; empty is all.
    pub only: Vec<String>,
    /// Run every command, whatever was done before.
    pub always: bool,
    /// The commands' output is shown on a terminal, so it may have colours.
    pub has_color: bool,
    /// Make what was built smaller and quicker to start.
    pub optimize: Option<optimize::Settings>,
    /// Do not write `spin-dependencies.wit`.
    pub skips_bindings: bool,
}

/// What is done for one or several components at once.
#[derive(Clone, Debug)]
pub struct Job {
    /// The components that come of it.
    pub components: Vec<String>,
    /// The commands, one after the other.
    pub commands: Vec<String>,
    /// Where they run.
    pub workdir: PathBuf,
    /// The files that come of it, each with its component.
    outputs: Vec<(String, PathBuf)>,
    /// Numbers of the jobs that come first.
    after: Vec<usize>,
}

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its commands ran.
    Built(Duration),
    /// Its inputs are what they were; nothing ran.
    Unchanged,
    /// It failed; the error is in the report.
    Failed(Duration),
    /// It was not tried, since one that it depends on failed.
    NotTried,
}

/// Is told how a build goes on, from several threads.
pub trait Progress: Sync {
    /// A job's commands begin to run.
    fn started(&self, job: &Job);

    /// A job has ended. `output` is what its commands printed, if it failed.
    fn ended(&self, job: &Job, outcome: Outcome, output: &str);

    /// What was built of a component is being made smaller.
    fn optimizing(&self, _component: &str) {}

    /// What came of that, now or when it was built last.
    fn optimized(&self, _report: &optimize::Report) {}
}

/// What was built is being remembered, while others use it: dropping this waits for that.
#[derive(Default)]
pub struct Remembering(Vec<JoinHandle<()>>);

impl Drop for Remembering {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            // Then it is built again next time.
            drop(thread.join());
        }
    }
}

/// Builds an app's components.
///
/// # Errors
/// Everything that went wrong: what does not depend on it is built all the same.
pub fn build(app: &App, settings: &Settings, progress: &dyn Progress) -> Result<Remembering, Vec<Error>> {
    let jobs = jobs(app, &settings.only).map_err(|error| vec![error])?;
    let (tools, remembering) = (cache::Tools::default(), Mutex::new(Remembering::default()));
    let variant = settings.optimize.as_ref().map(optimize::Settings::variant);
    let errors = schedule::run(
        &jobs,
        |job| {
            if !settings.skips_bindings {
                // Before it is looked at what changed: this is among it.
                write_bindings(app, job).inspect_err(|_| {
                    progress.ended(job, Outcome::Failed(Duration::ZERO), "");
                })?;
            }
            let known = cache::Entry::of(app, job, variant.as_deref());
            if !settings.always && known.is_current(job, &tools) {
                progress.ended(job, Outcome::Unchanged, "");
                known.reports().iter().for_each(|report| progress.optimized(report));
                return Ok(());
            }
            thread::scope(|scope| {
                // Some take longer to say their version than others to build.
                scope.spawn(|| {
                    give_way();
                    tools.versions(job)
                });
                job.run_now(settings.has_color, progress)
            })?;
            let mut reports = Vec::new();
            if let Some(settings) = &settings.optimize {
                for (component, path) in &job.outputs {
                    progress.optimizing(component);
                    let report = optimize::optimize(app, component, path, settings)?;
                    progress.optimized(&report);
                    reports.push(report);
                }
            }
            if let Some(remember) = known.keep(app, job, &tools, variant.as_deref(), reports) {
                let mut remembering = remembering.lock().unwrap_or_else(PoisonError::into_inner);
                remembering.0.push(thread::spawn(|| {
                    give_way();
                    remember();
                }));
            }
            Ok(())
        },
        |job| progress.ended(job, Outcome::NotTried, ""),
    );
    let remembering = remembering.into_inner().unwrap_or_else(PoisonError::into_inner);
    if errors.is_empty() { Ok(remembering) } else { Err(errors) }
}

/// Does the rest of this thread's work behind that which somebody waits for.
pub fn give_way() {
    // It works as well without.
    drop(wisp_engine::lower_priority(NICE));
}

/// Writes down what the dependencies of a job's components offer, for its commands.
///
/// # Errors
/// [`Error::File`], [`Error::Inspect`], [`Error::Composition`].
pub fn write_bindings(app: &App, job: &Job) -> Result<(), Error> {
    bindings::write(app, job)
}

/// Runs a job's commands, whatever was done before. Returns what they printed.
pub fn run(job: &Job, has_color: bool) -> (Result<(), Error>, String) {
    let mut output = String::new();
    for command in &job.commands {
        let result = run_command(command, &job.workdir, has_color, &mut output);
        let status = match result {
            Ok(status) if status.success() => continue,
            Ok(status) => match status.code() {
                Some(code) => format!("ended with code {code}"),
                None => format!("was ended ({status})"),
            },
            Err(cause) => return (Err(Error::Program { program: "sh".into(), cause }), output),
        };
        let component = job.components.join("`, `");
        return (Err(Error::Build { component, command: command.clone(), status }), output);
    }
    (Ok(()), output)
}

fn run_command(
    command: &str,
    workdir: &Path,
    has_color: bool,
    output: &mut String,
) -> std::io::Result<ExitStatus> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(workdir)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    if has_color {
        shell.env("CARGO_TERM_COLOR", "always").env("CLICOLOR_FORCE", "1").env("FORCE_COLOR", "1");
    }
    let mut child = shell.spawn()?;
    // It holds the pipe's other end, which would never end then.
    drop(shell);
    let mut kept = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * MAX_OUTPUT_BYTES {
            kept.drain(..kept.len() - MAX_OUTPUT_BYTES);
        }
    }
    output.push_str(&String::from_utf8_lossy(&kept));
    child.wait()
}

/// What there is to do for an app.
///
/// # Errors
/// [`Error::UnknownComponent`], [`Error::Circle`].
pub fn jobs(app: &App, only: &[String]) -> Result<Vec<Job>, Error> {
    if let Some(unknown) = only.iter().find(|only| !app.components.keys().any(|id| id.as_str() == *only)) {
        let known = app.components.keys().map(ToString::to_string).collect();
        return Err(Error::UnknownComponent { component: unknown.clone(), known });
    }
    let mut jobs: Vec<Job> = Vec::new();
    for component in app.components.values() {
        let id = component.id.to_string();
        let Some(build) = &component.build else { continue };
        if !only.is_empty() && !only.contains(&id) {
            continue;
        }
        let workdir = match &build.workdir {
            Some(workdir) => app.directory.join(workdir),
            None => app.directory.clone(),
        };
        let output = match &component.source {
            Source::Path(path) => Some((id.clone(), app.directory.join(path))),
            Source::Url { .. } | Source::Registry(_) => None,
        };
        match jobs.iter_mut().find(|job| job.commands == build.commands && job.workdir == workdir) {
            Some(job) => {
                job.components.push(id);
                job.outputs.extend(output);
            }
            None => jobs.push(Job {
                components: vec![id],
                commands: build.commands.clone(),
                workdir,
                outputs: output.into_iter().collect(),
                after: Vec::new(),
            }),
        }
    }
    let links: Vec<(usize, usize)> = dependencies(app)
        .filter_map(|(before, after)| {
            let of = |id: &str| jobs.iter().position(|job| job.components.iter().any(|known| known == id));
            Some((of(&before)?, of(&after)?))
        })
        .filter(|(before, after)| before != after)
        .collect();
    for (before, after) in links {
        jobs[after].after.push(before);
    }
    schedule::check(&jobs)?;
    Ok(jobs)
}

/// Pairs of components of which the second needs the first.
fn dependencies(app: &App) -> impl Iterator<Item = (String, String)> {
    let direct = app.components.values().flat_map(|component: &Component| {
        component.dependencies.values().filter_map(|dependency| match &dependency.source {
            DependencySource::Component(before) => Some((before.to_string(), component.id.to_string())),
            _ => None,
        })
    });
    let middleware = app.triggers.iter().flat_map(|trigger| {
        let TriggerKind::Http(http) = &trigger.kind else { return Vec::new() };
        let HttpTarget::Component { component, .. } = &http.target else { return Vec::new() };
        let sources = http.middleware.iter().filter_map(|middleware| match &middleware.source {
            DependencySource::Component(before) => Some((before.to_string(), component.to_string())),
            _ => None,
        });
        sources.collect()
    });
    direct.chain(middleware)
}

impl Job {
    /// A job that no manifest describes: of a component with tests.
    pub(crate) fn alone(name: String, commands: Vec<String>, workdir: PathBuf, output: PathBuf) -> Self {
        let outputs = vec![(name.clone(), output)];
        Self { components: vec![name], commands, workdir, outputs, after: Vec::new() }
    }

    /// Runs it, whatever was done before.
    pub(crate) fn run_now(&self, has_color: bool, progress: &dyn Progress) -> Result<(), Error> {
        progress.started(self);
        let started = Instant::now();
        let (result, output) = run(self, has_color);
        let result = result.and_then(|()| self.check_outputs());
        let (outcome, output) = match &result {
            Ok(()) => (Outcome::Built(started.elapsed()), ""),
            Err(_) => (Outcome::Failed(started.elapsed()), output.as_str()),
        };
        progress.ended(self, outcome, output);
        result
    }

    fn check_outputs(&self) -> Result<(), Error> {
        match self.outputs.iter().find(|(_, path)| !path.is_file()) {
            None => Ok(()),
            Some((component, path)) => {
                Err(Error::NotProduced { component: component.clone(), path: path.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::fs;

    use super::*;

    /// What happened, in order.
    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    impl Progress for Log {
        fn started(&self, _job: &Job) {}

        fn ended(&self, job: &Job, outcome: Outcome, output: &str) {
            let what = match outcome {
                Outcome::Built(_) => "built",
                Outcome::Unchanged => "unchanged",
                Outcome::Failed(_) => "failed",
                Outcome::NotTried => "not tried",
            };
            self.0.lock().unwrap().push(format!("{} {what}{}", job.components.join("+"), output.trim_end()));
        }
    }

    fn app(folder: &Path, components: &str) -> App {
        let text = format!("spin_manifest_version = 2\n[application]\nname = \"a\"\n{components}");
        App::parse(&folder.join("spin.toml"), &text, None).unwrap().value
    }

    fn log_of(app: &App, settings: &Settings) -> (Vec<String>, Vec<&'static str>) {
        let log = Log::default();
        let errors = build(app, settings, &log).err().unwrap_or_default();
        let mut lines = log.0.into_inner().unwrap();
        lines.sort();
        (lines, errors.iter().map(Error::code).collect())
    }

    #[test]
    fn what_did_not_change_is_not_built_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(folder.path().join("src/a.txt"), "one").unwrap();
        let app = app(
            folder.path(),
            "[component.a]\nsource = \"out/a.wasm\"\n\
             [component.a.build]\ncommand = \"mkdir -p out && cp src/a.txt out/a.wasm\"\n",
        );
        let settings = Settings::default();
        assert_eq!(log_of(&app, &settings).0, ["a built"]);
        assert_eq!(log_of(&app, &settings).0, ["a unchanged"]);
        fs::write(folder.path().join("src/a.txt"), "two").unwrap();
        assert_eq!(log_of(&app, &settings).0, ["a built"]);
        assert_eq!(log_of(&app, &settings).0, ["a unchanged"]);
        // Somebody else wrote to the output, or took it away.
        fs::write(folder.path().join("out/a.wasm"), "else").unwrap();
        assert_eq!(log_of(&app, &settings).0, ["a built"]);
        fs::remove_file(folder.path().join("out/a.wasm")).unwrap();
        assert_eq!(log_of(&app, &settings).0, ["a built"]);
        assert_eq!(log_of(&app, &Settings { always: true, ..settings }).0, ["a built"]);
    }

    #[test]
    fn sources_outside_of_the_folder_are_never_taken_for_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("own")).unwrap();
        fs::write(folder.path().join("own/Cargo.toml"), "[dependencies]\nlib = { path = \"../lib\" }\n")
            .unwrap();
        let app = app(
            folder.path(),
            "[component.a]\nsource = \"a.wasm\"\n\
             [component.a.build]\ncommand = \"echo > ../a.wasm\"\nworkdir = \"own\"\n",
        );
        assert_eq!(log_of(&app, &Settings::default()).0, ["a built"]);
        assert_eq!(log_of(&app, &Settings::default()).0, ["a built"]);
    }

    #[test]
    fn failures_show_their_output_and_stop_what_depends_on_them() {
        let folder = tempfile::tempdir().unwrap();
        let app = app(
            folder.path(),
            "[component.bad]\nsource = \"bad.wasm\"\n\
             [component.bad.build]\ncommand = \"echo out; echo err >&2; exit 3\"\n\
             [component.needs]\nsource = \"needs.wasm\"\n\
             [component.needs.build]\ncommand = \"touch needs.wasm\"\n\
             [component.needs.dependencies]\n\"a:b/c\" = { component = \"bad\" }\n\
             [component.lost]\nsource = \"elsewhere.wasm\"\n\
             [component.lost.build]\ncommand = \"true\"\n\
             [component.one]\nsource = \"one.wasm\"\n\
             [component.one.build]\ncommand = \"touch one.wasm two.wasm\"\n\
             [component.two]\nsource = \"two.wasm\"\n\
             [component.two.build]\ncommand = \"touch one.wasm two.wasm\"\n",
        );
        let (lines, mut codes) = log_of(&app, &Settings::default());
        codes.sort_unstable();
        assert_eq!(lines, ["bad failedout\nerr", "lost failed", "needs not tried", "one+two built"]);
        assert_eq!(codes, ["WISP-E1211", "WISP-E1212"]);
        let only = Settings { only: vec!["two".into()], ..Settings::default() };
        assert_eq!(log_of(&app, &only).0, ["two built"]);
        let unknown = Settings { only: vec!["three".into()], ..Settings::default() };
        assert_eq!(log_of(&app, &unknown).1, ["WISP-E1213"]);
    }

    #[test]
    fn what_is_needed_is_built_first_and_a_circle_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let component = |id: &str, command: &str, needs: &str| {
            format!(
                "[component.{id}]\nsource = \"{id}.wasm\"\n[component.{id}.build]\ncommand = \"{command}\"\n\
                 [component.{id}.dependencies]\n\"a:b/c\" = {{ component = \"{needs}\" }}\n"
            )
        };
        let last = "[component.c]\nsource = \"c.wasm\"\n[component.c.build]\ncommand = \"touch c.wasm\"\n";
        let chain = format!(
            "{}{}{last}",
            component("a", "cp b.wasm a.wasm", "b"),
            component("b", "cp c.wasm b.wasm", "c")
        );
        // These are no components, of which something could be written down.
        let settings = Settings { skips_bindings: true, ..Settings::default() };
        assert_eq!(log_of(&app(folder.path(), &chain), &settings).1, [""; 0]);
        assert_eq!(log_of(&app(folder.path(), &chain), &Settings::default()).1, ["WISP-E1219"]);
        let circle =
            format!("{}{}", component("a", "touch a.wasm", "b"), component("b", "touch b.wasm", "a"));
        let circle = app(folder.path(), &circle);
        assert_eq!(log_of(&circle, &Settings::default()).1, ["WISP-E1214"]);
    }
}

//! `wisp test`: tests of an app, against the app as it would be served.
//!
//! A test is written in a TOML file below `tests/` beside the manifest; docs/testing.md
//! is its reference. It loads the app anew, in the real engine, with a virtual world
//! around it:
//!
//! | instead of | there is |
//! | --- | --- |
//! | the machine's clock | one that stands still, until the test says otherwise |
//! | the network | the answers that the test has written down; any other call fails the test |
//! | stores and databases | empty ones in memory, with what the test puts there |
//! | variables | those of the test, else the manifest's defaults |
//!
//! Nothing else differs: routes, limits, permissions and executors are those of
//! `wisp up`.
//!
//! # Life of a test
//!
//! `file` reads all tests, each with the lines it stands on. [`run`] starts one runtime
//! for all of them; each of its threads takes a test, makes its world (`world`), loads
//! the app, sends the requests and compares (`check`). What differs becomes a
//! [`Failure`] with the line that is not met. `report` writes results for machines.

mod check;
mod file;
mod report;
mod world;

pub use report::{to_json, to_junit};

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use http::header;
use wisp_manifest::{
    App, RuntimeConfig,
    allowed_hosts::BlockedNetworks,
    id::VariableName,
    model::Limits,
    runtime_config::{KeyValueBackend, SqliteBackend},
};
use wisp_node::{AppSettings, Runtime, RuntimeSettings};

use self::{
    file::{Step, Test},
    world::World,
};
use crate::Error;

/// The folder of tests, beside the manifest.
const TESTS_DIR_NAME: &str = "tests";

/// How long one test may take, unless set otherwise.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// The largest response: it is held in memory to be compared.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// How much of what a component wrote is shown with a failure.
const MAX_SHOWN_BYTES: usize = 16 << 10;

/// How tests are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only tests whose file and name contain this.
    pub filter: Option<String>,
    /// How many at a time.
    pub jobs_count: usize,
    /// How long one may take.
    pub limit: Duration,
    /// Where compiled images are kept; the one of `wisp up` saves compiling.
    pub image_dir: Option<PathBuf>,
}

/// What became of a test.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The file that it stands in, relative to the folder of tests.
    pub file: PathBuf,
    /// The line that it begins on, from 1.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// How long it took.
    pub duration: Duration,
    /// What was not as expected; nothing if it passed.
    pub failures: Vec<Failure>,
    /// What else may explain a failure.
    pub note: Option<String>,
    /// What the app's components wrote to standard output and error.
    pub output: String,
}

/// Something that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The line of the file that is not met, from 1.
    pub line: usize,
    /// What is not as expected, and what was.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Names the tests of an app: file, line and name of each.
///
/// # Errors
/// [`Error::TestFile`] for a file that cannot be understood.
pub fn list(app: &App, filter: Option<&str>) -> Result<Vec<(PathBuf, usize, String)>, Error> {
    let tests = read(app, filter)?;
    Ok(tests.into_iter().map(|(file, test)| (file, test.line, test.name)).collect())
}

/// Runs an app's tests. `done` hears of each when it has ended, in no order; what is
/// returned is in the order of files and lines.
///
/// # Errors
/// [`Error::NoTests`], [`Error::TestFile`], or [`Error::Load`] if the engine does not
/// start. That a test fails is none.
pub fn run(app: &App, settings: &Settings, done: &(dyn Fn(&Outcome) + Sync)) -> Result<Vec<Outcome>, Error> {
    let tests = read(app, settings.filter.as_deref())?;
    if tests.is_empty() {
        let path = tests_dir(app);
        return Err(Error::NoTests { path, filter: settings.filter.clone() });
    }
    let logs = tempfile::tempdir().map_err(Error::file("make", std::env::temp_dir()))?;
    let runtime = Runtime::start(RuntimeSettings {
        image_dir: settings.image_dir.clone(),
        runtime_config: runtime_config(app),
        log_dir: Some(logs.path().to_owned()),
        follow: wisp_capability::wasi::logs::Follow::None,
        ..RuntimeSettings::default()
    })
    .map_err(|error| Error::Load(error.into()))?;
    let bench = Bench { app, runtime: &runtime, logs: logs.path(), limit: settings.limit };

    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(tests.len()));
    thread::scope(|scope| {
        for _ in 0..settings.jobs_count.clamp(1, tests.len()) {
            scope.spawn(|| {
                while let Some((file, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = bench.run(file, test);
                    done(&outcome);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
    Ok(outcomes)
}

/// All tests of an app whose file or name contains `filter`.
fn read(app: &App, filter: Option<&str>) -> Result<Vec<(PathBuf, Test)>, Error> {
    let folder = tests_dir(app);
    let mut paths = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(&folder).map_err(Error::file("read", &folder))? {
            let path = entry.map_err(Error::file("read", &folder))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let mut tests = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let name = path.strip_prefix(&folder).unwrap_or(&path).to_owned();
        for test in file::parse(&path, &text)? {
            let full_name = format!("{}: {}", name.display(), test.name);
            if filter.is_none_or(|filter| full_name.contains(filter)) {
                tests.push((name.clone(), test));
            }
        }
    }
    Ok(tests)
}

fn tests_dir(app: &App) -> PathBuf {
    // As people write it.
    let folder = app.directory.strip_prefix(".").unwrap_or(&app.directory);
    folder.join(TESTS_DIR_NAME)
}

/// Every label that a component names is a store in memory, and nothing outside of this
/// process can be reached.
fn runtime_config(app: &App) -> RuntimeConfig {
    let mut config = RuntimeConfig::default();
    for component in app.components.values() {
        for label in &component.key_value_stores {
            config.key_value_stores.insert(label.clone(), KeyValueBackend::Embedded { path: None });
        }
        for label in &component.sqlite_databases {
            let database = SqliteBackend::Embedded { path: None, allow_attach_file: false };
            config.sqlite_databases.insert(label.clone(), database);
        }
    }
    config.outbound_networking.blocked_networks =
        BlockedNetworks::parse(["0.0.0.0/0", "::/0"]).unwrap_or_default();
    config
}

/// What all tests have in common.
struct Bench<'run> {
    app: &'run App,
    runtime: &'run Runtime,
    logs: &'run Path,
    limit: Duration,
}

impl Bench<'_> {
    fn run(&self, file: &Path, test: &Test) -> Outcome {
        let started = Instant::now();
        // Names a folder of logs, so it is a number and not what a person wrote.
        let log_name = format!("{}-{}", file.display(), test.line).replace(['/', '.'], "-");
        let at_test = |message: String, hint: Option<String>| Failure { line: test.line, message, hint };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let world = Arc::new(World::new(test));
        let failures = match runtime {
            Err(error) => vec![at_test(format!("the test cannot start: {error}"), None)],
            Ok(runtime) => runtime.block_on(async {
                match tokio::time::timeout(self.limit, self.test(test, &world, &log_name)).await {
                    Ok(failures) => failures,
                    Err(_) => vec![at_test(
                        format!("the test was not over within {:?}", self.limit),
                        Some(
                            "a component may wait for something that never comes; `--limit` allows more"
                                .into(),
                        ),
                    )],
                }
            }),
        };
        let is_clock_worth_a_word = !failures.is_empty() && test.clock.is_none() && world.clock().was_read();
        let note = is_clock_worth_a_word.then(|| {
            format!(
                "a component asked for the time, which was {}; `clock = …` sets another",
                world::DEFAULT_CLOCK
            )
        });
        let output = if failures.is_empty() { String::new() } else { self.output_of(&log_name) };
        Outcome {
            file: file.to_owned(),
            line: test.line,
            name: test.name.clone(),
            duration: started.elapsed(),
            failures,
            note,
            output,
        }
    }

    async fn test(&self, test: &Test, world: &World, log_name: &str) -> Vec<Failure> {
        let state = Arc::new(self.runtime.state(None, true));
        let mut settings = AppSettings {
            direct_mounts: true,
            use_variables_providers: false,
            log_name: Some(log_name.to_owned()),
            ceilings: Limits { response_body_bytes: Some(MAX_RESPONSE_BYTES), ..Limits::default() },
            world: world.virtual_world(),
            ..AppSettings::default()
        };
        for (name, value) in &test.variables {
            match VariableName::new(name) {
                Ok(name) => settings.variables.push((name, value.clone().into())),
                Err(error) => {
                    let message = format!("`{name}` is no name for a variable: {error}");
                    return vec![Failure { line: test.line, message, hint: None }];
                }
            }
        }
        for (label, keys) in &test.key_values {
            for (key, value) in keys {
                settings.key_values.push((label.clone(), key.clone(), value.clone().into_bytes()));
            }
        }
        for (label, statements) in &test.sql {
            for statement in statements {
                settings.sql_statements.push((label.clone(), statement.clone()));
            }
        }
        let loaded = match self.runtime.load(self.app, &settings, &state, &Arc::default()).await {
            Ok(loaded) => loaded,
            Err(errors) => {
                let failure = |error: &wisp_node::Error| Failure {
                    line: test.line,
                    message: format!("the app cannot be loaded: {error} ({})", error.code()),
                    hint: match error {
                        wisp_node::Error::Capability(wisp_capability::Error::VariablesMissing { .. }) => {
                            Some("give it a value in the test: `variables = { NAME = \"…\" }`".into())
                        }
                        error => error.hint(),
                    },
                };
                return errors.0.iter().map(failure).collect();
            }
        };
        let mut failures = Vec::new();
        for step in &test.steps {
            if let Some(wait) = step.wait {
                world.clock().advance(wait);
            }
            failures.extend(self.step(step, &loaded.http).await);
        }
        failures.extend(world.failures(test));
        failures.extend(check::state(test, &state).await);
        failures
    }

    async fn step(&self, step: &Step, app: &wisp_trigger::http::HttpApp) -> Vec<Failure> {
        let request = &step.request;
        let mut built = http::Request::new(request.body.clone());
        *built.method_mut() = request.method.clone();
        *built.uri_mut() = request.uri.clone();
        *built.headers_mut() = request.headers.clone();
        if !request.body.is_empty() {
            built.headers_mut().insert(header::CONTENT_LENGTH, request.body.len().into());
        }
        let name = format!(
            "`{} {}`",
            request.method,
            request.uri.path_and_query().map_or("/", |path| path.as_str())
        );
        match app.ask(built).await {
            Ok(response) => check::response(&name, step, &response, self.app),
            Err(cut_off) => vec![Failure {
                line: request.line,
                message: format!("the answer to {name} began, but then {cut_off}"),
                hint: Some(
                    "the component failed while it was writing; what it wrote to its log is below".into(),
                ),
            }],
        }
    }

    /// What components wrote during a test.
    fn output_of(&self, log_name: &str) -> String {
        self.runtime.flush_logs();
        let mut text = String::new();
        let mut paths: Vec<_> = fs::read_dir(self.logs.join(log_name))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        paths.sort();
        for path in paths {
            text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
        }
        let start = text.len().saturating_sub(MAX_SHOWN_BYTES);
        let start = (start..text.len()).find(|start| text.is_char_boundary(*start)).unwrap_or(text.len());
        text.split_off(start)
    }
}

//! `wisp test`: tests of an app, against the app as it would be served.
//!
//! A test is written in a TOML file below `tests/` beside the manifest, or is one of those
//! that a component has which such a file names; docs/testing.md is its reference. It loads
//! the app anew, in the real engine, with a virtual world around it:
//!
//! | instead of | there is |
//! | --- | --- |
//! | the machine's clocks | one that stands still, until the test says otherwise or all sleep |
//! | random numbers | the same sequence in every run |
//! | the network | the answers that the test has written down or that were recorded; any other call fails the test |
//! | stores and databases | empty ones in memory, with what the test puts there |
//! | variables | those of the test, else the manifest's defaults |
//!
//! Nothing else differs: routes, limits, permissions and executors are those of
//! `wisp up`.
//!
//! # Life of a test
//!
//! `file` reads all tests, each with the lines it stands on; components are loaded and asked
//! for the names of theirs. [`run`] starts one runtime for all of them; each of its threads
//! takes a test, makes its world (`world`) and a bench with the app in it (`bench`). Then a
//! test of a file has its requests sent and their answers compared (`check`), one of a
//! component is run. What differs becomes a [`Failure`] with the line that is not met.
//! `report` writes results for machines, `recording` what was recorded.
//!
//! All of a test happens on one thread, whose idleness moves the test's clock: see
//! [`wisp_capability::VirtualTime`].

mod bench;
mod check;
mod difference;
mod file;
mod output;
mod recording;
mod report;
mod world;

pub use report::{to_json, to_junit};

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use http::header;
use wisp_capability::{test_component::TestComponent, wasi::logs::Follow};
use wisp_engine::{Compiler, EngineConfig};
use wisp_manifest::{
    App, RuntimeConfig,
    allowed_hosts::BlockedNetworks,
    runtime_config::{KeyValueBackend, SqliteBackend},
};
use wisp_node::{Runtime, RuntimeSettings};
use wisp_trigger::http::{CommonsSettings, HttpApp};

use self::{
    bench::{Bench, Common},
    file::{Secrets, Setup, Step, Test},
    output::Outputs,
    recording::{Censor, Exchange, Recording},
    world::World,
};
use crate::{Error, build};

/// The folder of tests, beside the manifest.
const TESTS_DIR_NAME: &str = "tests";

/// How long one test may take, unless set otherwise.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// How much of what a component wrote is shown with a failure.
const MAX_SHOWN_BYTES: usize = 16 << 10;

/// How many lines of a trap's backtrace are shown.
const MAX_BACKTRACE_LINES_COUNT: usize = 30;

/// How functions of Rust's own libraries begin in a backtrace.
const LIBRARY_FRAMES: [&str; 8] =
    ["std[", "core[", "alloc[", "std::", "core::", "alloc::", "__rustc[", "abort"];

/// The interface of components with tests, as WIT.
pub const WIT: &str = include_str!("../../../../wit/deps/wisp-test@0.1.0/test.wit");

/// How tests are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only tests whose file and name contain this.
    pub filter: Option<String>,
    /// How many at a time.
    pub jobs_count: usize,
    /// How long one may take.
    pub limit: Duration,
    /// Begin no other test once one has failed.
    pub fail_fast: bool,
    /// Let calls out, and write down what comes of them.
    pub record: bool,
    /// Where compiled images are kept; the one of `wisp up` saves compiling.
    pub image_dir: Option<PathBuf>,
    /// Which tiers code is made in that was not compiled yet.
    pub compiler: Compiler,
}

/// What became of all tests.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Those that ran, in the order of files and lines.
    pub outcomes: Vec<Outcome>,
    /// Those that did not, since another one had failed: their files and names.
    pub not_run: Vec<(PathBuf, String)>,
    /// The recordings that were written.
    pub recordings: Vec<PathBuf>,
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
    /// What else there is to say.
    pub notes: Vec<String>,
    /// What the app's components wrote to standard output and error.
    pub output: String,
    /// What the component wrote that tests the app.
    pub test_output: String,
    /// The calls that it recorded.
    recorded: Vec<Exchange>,
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

/// A test that can be run.
struct Case {
    /// Relative to the folder of tests.
    file: PathBuf,
    line: usize,
    name: String,
    secrets: Secrets,
    kind: Kind,
}

enum Kind {
    /// Requests and what is expected of their answers.
    Exchanges(Box<Test>),
    /// A test of a component.
    Component { component: Arc<TestComponent>, setup: Setup },
    /// A component whose tests cannot be known.
    Broken(Failure),
}

/// What the files of tests say, before components were asked for theirs.
struct Files {
    cases: Vec<Case>,
    components: Vec<(PathBuf, Secrets, file::TestComponent)>,
}

/// The JSON schema of a file of tests, for editors.
pub fn schema() -> serde_json::Value {
    file::schema()
}

/// Names the tests of an app: file, line and name of each.
///
/// # Errors
/// [`Error::TestFile`] for a file that cannot be understood, [`Error::Load`] if the engine
/// does not start, [`Error::TestComponent`] for a component that has no tests.
pub fn list(app: &App, settings: &Settings) -> Result<Vec<(PathBuf, usize, String)>, Error> {
    let files = read(app)?;
    let cases = match files.components.is_empty() {
        true => files.cases,
        false => cases(app, &start(app, settings)?, files),
    };
    let mut listed = Vec::new();
    for case in cases.into_iter().filter(|case| case.fits(settings.filter.as_deref())) {
        if let Kind::Broken(failure) = case.kind {
            return Err(Error::TestComponent { message: failure.message, hint: failure.hint });
        }
        listed.push((case.file, case.line, case.name));
    }
    Ok(listed)
}

/// Builds the components that have tests of an app; whether there are any.
///
/// # Errors
/// [`Error::TestFile`], and what goes wrong with any of them.
pub fn build(app: &App, has_color: bool, progress: &dyn build::Progress) -> Result<bool, Vec<Error>> {
    let files = read(app).map_err(|error| vec![error])?;
    let folder = tests_dir(app);
    let mut errors = Vec::new();
    let mut is_any = false;
    for (_, _, component) in files.components {
        let Some((commands, workdir)) = component.build else { continue };
        is_any = true;
        let workdir = workdir.map_or_else(|| folder.clone(), |workdir| folder.join(workdir));
        let output = folder.join(&component.source);
        let name = component.source.display().to_string();
        errors.extend(build::Job::alone(name, commands, workdir, output).run_now(has_color, progress).err());
    }
    if errors.is_empty() { Ok(is_any) } else { Err(errors) }
}

/// Runs an app's tests. `done` hears of each when it has ended, in no order; what is
/// returned is in the order of files and lines.
///
/// # Errors
/// [`Error::NoTests`], [`Error::TestFile`], [`Error::File`] for a recording, or
/// [`Error::Load`] if the engine does not start. That a test fails is none.
pub fn run(app: &App, settings: &Settings, done: &(dyn Fn(&Outcome) + Sync)) -> Result<Results, Error> {
    let files = read(app)?;
    let common = start(app, settings)?;
    let all = cases(app, &common, files);
    let (cases, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|case| case.fits(settings.filter.as_deref()));
    if cases.is_empty() {
        return Err(Error::NoTests { path: tests_dir(app), filter: settings.filter.clone() });
    }
    let next = AtomicUsize::new(0);
    let has_failed = AtomicBool::new(false);
    let outcomes = Mutex::new(Vec::with_capacity(cases.len()));
    thread::scope(|scope| {
        for _ in 0..settings.jobs_count.clamp(1, cases.len()) {
            scope.spawn(|| {
                while !(settings.fail_fast && has_failed.load(Ordering::Relaxed))
                    && let number = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(case) = cases.get(number)
                {
                    let outcome = case.run(&common, number, settings.limit);
                    has_failed.fetch_or(!outcome.failures.is_empty(), Ordering::Relaxed);
                    done(&outcome);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(number, _)| *number);
    let not_run = (0..cases.len()).filter(|number| outcomes.iter().all(|(ran, _)| ran != number));
    let not_run = not_run.map(|number| (cases[number].file.clone(), cases[number].name.clone()));
    let mut results = Results { not_run: not_run.collect(), ..Results::default() };
    results.outcomes = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    if settings.record {
        results.recordings = write_recordings(app, &cases, &others, &results.outcomes)?;
    }
    Ok(results)
}

/// Writes what tests have recorded; gives the files that hold something of these tests.
fn write_recordings(
    app: &App,
    cases: &[Case],
    others: &[Case],
    outcomes: &[Outcome],
) -> Result<Vec<PathBuf>, Error> {
    let mut files: Vec<&Path> =
        cases.iter().filter(|case| case.is_recorded()).map(|case| case.file.as_path()).collect();
    files.dedup();
    let mut written = Vec::new();
    for file in files {
        let of_file = || outcomes.iter().filter(|outcome| outcome.file == file);
        let recorded: Vec<_> = of_file().flat_map(|outcome| outcome.recorded.iter().cloned()).collect();
        let ran: Vec<_> = of_file().map(|outcome| outcome.name.as_str()).collect();
        // What a test recorded earlier stays, if it did not run now and exists still.
        let known = cases.iter().chain(others).filter(|case| case.file == file && case.is_recorded());
        let kept: Vec<_> = known.map(|case| case.name.as_str()).filter(|name| !ran.contains(name)).collect();
        let path = recording::path_of(&tests_dir(app), file);
        recording::write(&path, recorded, |test| kept.contains(&test))?;
        if path.is_file() {
            written.push(path);
        }
    }
    Ok(written)
}

/// Reads all files of tests of an app.
fn read(app: &App) -> Result<Files, Error> {
    let folder = tests_dir(app);
    let mut paths = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(&folder).map_err(Error::file("read", &folder))? {
            let path = entry.map_err(Error::file("read", &folder))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") && path.is_file() {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let mut files = Files { cases: Vec::new(), components: Vec::new() };
    for path in paths {
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let name = path.strip_prefix(&folder).unwrap_or(&path).to_owned();
        let file::TestFile { secrets, tests, components } = file::parse(&path, &text)?;
        files.cases.extend(tests.into_iter().map(|test| Case {
            file: name.clone(),
            line: test.line,
            name: test.name.clone(),
            secrets: secrets.clone(),
            kind: Kind::Exchanges(Box::new(test)),
        }));
        let components = components.into_iter();
        files.components.extend(components.map(|component| (name.clone(), secrets.clone(), component)));
    }
    Ok(files)
}

/// Starts what all tests share.
fn start(app: &App, settings: &Settings) -> Result<Arc<Common>, Error> {
    let outputs = Arc::new(Outputs::default());
    let runtime = Runtime::start(RuntimeSettings {
        engine: EngineConfig { compiler: settings.compiler, ..EngineConfig::default() },
        image_dir: settings.image_dir.clone(),
        runtime_config: runtime_config(app, settings.record),
        log_receiver: Some(outputs.clone()),
        follow: Follow::None,
        commons: CommonsSettings { compute_lane: false, ..CommonsSettings::default() },
        is_virtual: true,
        ..RuntimeSettings::default()
    })
    .map_err(|error| Error::Load(error.into()))?;
    Ok(Arc::new(Common { app: Arc::new(app.clone()), runtime, outputs, is_recording: settings.record }))
}

/// All tests in the order of files and lines; components are asked for theirs.
fn cases(app: &App, common: &Arc<Common>, files: Files) -> Vec<Case> {
    let Files { mut cases, components } = files;
    let folder = tests_dir(app);
    for (file, secrets, component) in components {
        let file::TestComponent { line, source, setup, .. } = component;
        let case =
            |name: String, kind| Case { file: file.clone(), line, name, secrets: secrets.clone(), kind };
        let broken = |message: String, hint: Option<String>| {
            case(source.display().to_string(), Kind::Broken(Failure { line, message, hint }))
        };
        let component = match bench::load(common, &folder.join(&source)) {
            Ok(component) => Arc::new(component),
            Err((message, hint)) => {
                cases.push(broken(message, hint));
                continue;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let names = match runtime {
            Ok(runtime) => {
                let named =
                    async { tokio::time::timeout(DEFAULT_LIMIT, bench::names(common, &component)).await };
                match runtime.block_on(named) {
                    Ok(named) => named.map_err(|trap| shown_trap(&trap.message, &trap.backtrace)),
                    Err(_) => Err(format!("it takes longer than {DEFAULT_LIMIT:?}")),
                }
            }
            Err(error) => Err(error.to_string()),
        };
        match names {
            Ok(names) => cases.extend(names.into_iter().map(|name| {
                let kind = Kind::Component { component: component.clone(), setup: setup.clone() };
                case(name, kind)
            })),
            Err(message) => {
                let message = format!("`{}` cannot name its tests: {message}", source.display());
                cases.push(broken(message, None));
            }
        }
    }
    // Tests of one component keep its order.
    cases.sort_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
    cases
}

/// The folder of an app's tests, which may not be there.
pub fn tests_dir(app: &App) -> PathBuf {
    // As people write it.
    let folder = app.directory.strip_prefix(".").unwrap_or(&app.directory);
    folder.join(TESTS_DIR_NAME)
}

/// Every label that a component names is a store in memory, and nothing outside of this
/// process can be reached unless calls are recorded.
pub(crate) fn runtime_config(app: &App, may_reach: bool) -> RuntimeConfig {
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
    if !may_reach {
        config.outbound_networking.blocked_networks =
            BlockedNetworks::parse(["0.0.0.0/0", "::/0"]).unwrap_or_default();
    }
    config
}

impl Results {
    /// How many tests passed.
    pub fn passed_count(&self) -> usize {
        self.outcomes.len() - self.failed_count()
    }

    /// How many tests failed.
    pub fn failed_count(&self) -> usize {
        self.outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count()
    }
}

impl Case {
    fn fits(&self, filter: Option<&str>) -> bool {
        filter.is_none_or(|filter| format!("{}: {}", self.file.display(), self.name).contains(filter))
    }

    fn setup(&self) -> Option<&Setup> {
        match &self.kind {
            Kind::Exchanges(test) => Some(&test.setup),
            Kind::Component { setup, .. } => Some(setup),
            Kind::Broken(_) => None,
        }
    }

    fn is_recorded(&self) -> bool {
        self.setup().is_some_and(|setup| setup.is_recorded)
    }

    fn run(&self, common: &Arc<Common>, number: usize, limit: Duration) -> Outcome {
        let started = Instant::now();
        // A name in logs, so it is a number and not what a person wrote.
        let log_name = format!("test-{number}");
        let mut outcome = Outcome {
            file: self.file.clone(),
            line: self.line,
            name: self.name.clone(),
            duration: Duration::ZERO,
            failures: Vec::new(),
            notes: Vec::new(),
            output: String::new(),
            test_output: String::new(),
            recorded: Vec::new(),
        };
        match self.bench(common, &log_name) {
            Ok(bench) => self.run_on(&Arc::new(bench), limit, &mut outcome),
            Err(failure) => outcome.failures.push(failure),
        }
        common.runtime.flush_logs();
        let output = common.outputs.take(&log_name);
        if !outcome.failures.is_empty() {
            outcome.output = output::end_of(output.of_app(), MAX_SHOWN_BYTES);
            outcome.test_output = output::end_of(output.of_test(), MAX_SHOWN_BYTES);
        }
        outcome.duration = started.elapsed();
        outcome
    }

    fn failure(&self, message: impl Into<String>) -> Failure {
        Failure { line: self.line, message: message.into(), hint: None }
    }

    /// The app in the world of this test.
    fn bench(&self, common: &Arc<Common>, log_name: &str) -> Result<Bench, Failure> {
        let (setup, outbound) = match &self.kind {
            Kind::Exchanges(test) => (&test.setup, test.outbound.as_slice()),
            Kind::Component { setup, .. } => (setup, [].as_slice()),
            Kind::Broken(failure) => return Err(failure.clone()),
        };
        let recording = self
            .recording(common, setup)
            .map_err(|error| Failure { hint: error.hint(), ..self.failure(error.to_string()) })?;
        let world = World::new(setup, outbound, recording);
        let bench = Bench::new(common, setup, world, log_name.to_owned(), self.line);
        bench.map_err(|message| self.failure(message))
    }

    fn recording(&self, common: &Common, setup: &Setup) -> Result<Recording, Error> {
        if !setup.is_recorded {
            return Ok(Recording::None);
        }
        let secret = common.app.variables.iter().filter(|(_, variable)| variable.secret);
        let values = secret.filter_map(|(name, _)| {
            let of_environment = common.is_recording.then(|| bench::from_environment(name.as_str()));
            of_environment.flatten().or_else(|| setup.variables.get(name.as_str()).cloned())
        });
        let censor = Censor::new(&self.secrets, values);
        if common.is_recording {
            let test = self.name.clone();
            return Ok(Recording::Recorded { test, exchanges: Vec::new(), bytes: 0, censor });
        }
        let path = recording::path_of(&tests_dir(&common.app), &self.file);
        let exchanges = recording::read(&path)?.into_iter().filter(|exchange| exchange.test == self.name);
        let exchanges = exchanges.map(|exchange| (exchange, false)).collect();
        Ok(Recording::Replayed { path, exchanges, censor })
    }

    fn run_on(&self, bench: &Arc<Bench>, limit: Duration, outcome: &mut Outcome) {
        let time = bench.world().time().clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || time.on_idle())
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                outcome.failures.push(self.failure(format!("the test cannot start: {error}")));
                return;
            }
        };
        let ran = runtime.block_on(async {
            tokio::time::timeout(limit, async {
                match &self.kind {
                    Kind::Exchanges(test) => self.exchanges(bench, test).await,
                    Kind::Component { component, .. } => self.component(bench, component).await,
                    Kind::Broken(failure) => vec![failure.clone()],
                }
            })
            .await
        });
        outcome.failures = ran.unwrap_or_else(|_| {
            let hint = "a component may wait for something that never comes; `--limit` allows more";
            vec![Failure {
                hint: Some(hint.into()),
                ..self.failure(format!("the test was not over within {limit:?}"))
            }]
        });
        let world = bench.world();
        let (recorded, is_all) = world.recorded();
        outcome.recorded = recorded;
        if !is_all {
            outcome.failures.push(self.failure("the calls of this test are too many or too large to record"));
        }
        let has_clock = self.setup().is_some_and(|setup| setup.clock.is_some());
        if !outcome.failures.is_empty() && !has_clock && world.time().was_read() {
            outcome.notes.push(format!(
                "a component asked for the time, which was {} at first; `clock = …` sets another",
                world::DEFAULT_CLOCK
            ));
        }
        if outcome.failures.is_empty() {
            outcome.notes.extend(world.stale());
        } else {
            outcome.notes.extend(world.unavailable());
        }
    }

    /// Runs a test that a file describes.
    async fn exchanges(&self, bench: &Arc<Bench>, test: &Test) -> Vec<Failure> {
        bench.fill(|settings| {
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
        });
        let app = match bench.http().await {
            Ok(app) => app,
            Err(failures) => return failures,
        };
        let mut failures = Vec::new();
        for step in &test.steps {
            if let Some(wait) = step.wait {
                bench.world().time().advance(wait);
            }
            failures.extend(self.step(step, &app, bench).await);
        }
        failures.extend(bench.world().failures(self.line, false));
        if let Some((line, calls)) = &test.then.outbound {
            failures.extend(bench.world().calls_in_order(*line, calls));
        }
        failures.extend(check::state(test, bench.state()).await);
        failures.extend(bench.check_output(test));
        failures
    }

    async fn step(&self, step: &Step, app: &HttpApp, bench: &Bench) -> Vec<Failure> {
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
            Ok(response) => check::response(&name, step, &response, bench.manifest()),
            Err(cut_off) => vec![Failure {
                line: request.line,
                message: format!("the answer to {name} began, but then {cut_off}"),
                hint: Some(
                    "the component failed while it was writing; what it wrote to its log is below".into(),
                ),
            }],
        }
    }

    /// Runs a test of a component.
    async fn component(&self, bench: &Arc<Bench>, component: &TestComponent) -> Vec<Failure> {
        let mut failures = match bench.run_component(component, &self.name).await {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(message)) => {
                let message =
                    if message.trim().is_empty() { "it failed, without words".into() } else { message };
                vec![self.failure(message)]
            }
            Err(trap) => {
                // How programs of most languages end when an assertion fails.
                let message = match trap.message.contains("`unreachable`") {
                    true => "it panicked, or an assertion failed; what it wrote is below",
                    false => &trap.message,
                };
                let message = format!("the test broke off: {}", shown_trap(message, &trap.backtrace));
                vec![self.failure(message)]
            }
        };
        failures.extend(bench.world().failures(self.line, true));
        failures
    }
}

/// A trap and where it happened: the message, and a line for each frame but those of
/// Rust's own libraries, which only say how a panic goes about it.
fn shown_trap(message: &str, backtrace: &[String]) -> String {
    let mut text = message.to_owned();
    let is_own = |line: &&String| match line.split_once('!') {
        Some((_, function)) => !LIBRARY_FRAMES.iter().any(|start| function.starts_with(start)),
        None => true,
    };
    let own: Vec<_> = backtrace.iter().filter(is_own).collect();
    for line in own.iter().take(MAX_BACKTRACE_LINES_COUNT) {
        text.push_str("\n  ");
        text.push_str(line.trim_start());
    }
    if own.len() > MAX_BACKTRACE_LINES_COUNT {
        text.push_str("\n  …");
    }
    text
}

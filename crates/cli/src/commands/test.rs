//! `wisp test`: tests of an app.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use wisp_develop::{
    Error as DevelopError,
    build::{Settings as BuildSettings, jobs},
    test::{self, DEFAULT_LIMIT, Outcome, Results, Settings},
    watch::{DEFAULT_DEBOUNCE, Watcher},
};
use wisp_manifest::{App, MANIFEST_FILE_NAME};

use super::{
    build::{build_app, build_tests},
    common::{CompilerFlag, Format, image_dir, parse_duration, unwrap_checked},
    packages::fetched,
};
use crate::{error::Error, output};

/// Test an app.
///
/// Runs the tests in `tests/*.toml` beside the manifest, and those of components that these
/// files name, against the app as it would be served: with a clock that stands, calls to
/// elsewhere answered as the test says, and stores of its own for each test.
/// docs/testing.md says how they are written.
#[derive(Args)]
pub(crate) struct Test {
    /// The app: a `spin.toml`, or a folder with one.
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".", alias = "from-file")]
    from: PathBuf,

    /// Test with this profile of the manifest.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Run only tests whose file or name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    /// Build the app, and components with tests, first.
    #[arg(long)]
    build: bool,

    /// Name the tests instead of running them.
    #[arg(long, conflicts_with = "record")]
    list: bool,

    /// Begin no other test once one has failed.
    #[arg(long)]
    fail_fast: bool,

    /// Let calls out that tests with `recorded = true` make, and write down what comes of
    /// them. Variables get their values from `SPIN_VARIABLE_NAME`, if it is set.
    #[arg(long)]
    record: bool,

    /// Build and test at first and after each edit, until it is ended.
    #[arg(long, conflicts_with_all = ["list", "record", "format", "junit"])]
    watch: bool,

    /// Print the interface of components with tests, as WIT, and do nothing else.
    #[arg(long)]
    wit: bool,

    /// How results are printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,

    /// Write results to this file too, as JUnit's XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    /// Tests at a time [default: as many as there are cores].
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    jobs: Option<u32>,

    /// How long one test may take [default: 60s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    limit: Option<Duration>,

    /// Where compiled components are kept [default: `wisp` in the user's cache folder].
    #[arg(long, value_name = "DIR", env = "WISP_CACHE_DIR", hide_env_values = true)]
    cache_dir: Option<PathBuf>,

    #[command(flatten)]
    compiler: CompilerFlag,
}

impl Test {
    pub(crate) fn run(&self) -> Result<(), Error> {
        if self.wit {
            output::data(test::WIT);
            return Ok(());
        }
        let app = self.app()?;
        if self.watch { self.run_at_edits(app) } else { self.run_once(&app) }
    }

    fn app(&self) -> Result<App, Error> {
        let app = unwrap_checked(App::read(&self.from, self.profile.as_deref()))?;
        fetched(app, self.cache_dir.as_deref())
    }

    /// Builds and tests, and again after each edit.
    fn run_at_edits(&self, mut app: App) -> Result<(), Error> {
        let manifest =
            if self.from.is_dir() { self.from.join(MANIFEST_FILE_NAME) } else { self.from.clone() };
        let mut watcher = Watcher::new(&app, &manifest, &jobs(&app, &[])?)?;
        watcher.also(&test::tests_dir(&app))?;
        let mut result = self.run_once(&app);
        loop {
            if let Err(error) = result {
                output::print_error(&error);
            }
            output::note("waiting for an edit");
            let Some(change) = watcher.next(DEFAULT_DEBOUNCE) else { return Ok(()) };
            result = match change.is_manifest {
                false => self.run_once(&app),
                true => self.app().and_then(|read| {
                    watcher.follow(&read, &manifest, &jobs(&read, &[])?)?;
                    app = read;
                    self.run_once(&app)
                }),
            };
        }
    }

    fn run_once(&self, app: &App) -> Result<(), Error> {
        if self.build || self.watch {
            let has_color = output::has_color();
            build_app(app, &BuildSettings { has_color, ..BuildSettings::default() })?;
            build_tests(app)?;
        }
        let settings = Settings {
            filter: self.filter.clone(),
            jobs_count: match self.jobs {
                Some(count) => usize::try_from(count).unwrap_or(1),
                None => std::thread::available_parallelism().map_or(1, usize::from),
            },
            limit: self.limit.unwrap_or(DEFAULT_LIMIT),
            fail_fast: self.fail_fast,
            record: self.record,
            image_dir: Some(image_dir(self.cache_dir.as_deref())),
            compiler: self.compiler.compiler.into(),
        };
        if self.list {
            return self.print_list(&test::list(app, &settings)?);
        }
        let started = std::time::Instant::now();
        let results = test::run(app, &settings, &|_| {})?;
        match self.format {
            Format::Json => output::data(&format!("{}\n", test::to_json(&results))),
            Format::Plain => print_results(&results, started.elapsed(), self.record),
        }
        if let Some(path) = &self.junit {
            let xml = test::to_junit(&app.name, &results);
            std::fs::write(path, xml).map_err(|cause| DevelopError::File {
                action: "write",
                path: path.clone(),
                cause,
            })?;
        }
        match results.failed_count() {
            0 => Ok(()),
            failed_count => {
                Err(DevelopError::TestsFailed { failed_count, count: results.outcomes.len() }.into())
            }
        }
    }

    fn print_list(&self, listed: &[(PathBuf, usize, String)]) -> Result<(), Error> {
        match self.format {
            Format::Plain => {
                for (file, line, name) in listed {
                    output::data(&format!("{}:{line}: {name}\n", file.display()));
                }
            }
            Format::Json => {
                let tests: Vec<_> = listed
                    .iter()
                    .map(|(file, line, name)| serde_json::json!({ "file": file, "line": line, "name": name }))
                    .collect();
                output::data(&format!("{}\n", serde_json::Value::from(tests)));
            }
        }
        Ok(())
    }
}

fn print_results(results: &Results, elapsed: Duration, was_recording: bool) {
    let text: String = results.outcomes.iter().map(shown).collect();
    output::data(&text);
    let not_run = match results.not_run.len() {
        0 => String::new(),
        count => format!(", {count} not run"),
    };
    output::note(&format!(
        "{} passed, {} failed{not_run} in {:.2} s",
        results.passed_count(),
        results.failed_count(),
        elapsed.as_secs_f64()
    ));
    for path in &results.recordings {
        output::note(&format!("recorded in {}", path.display()));
    }
    if was_recording && results.recordings.is_empty() {
        output::note("nothing was recorded: no test says `recorded = true`");
    }
}

/// A test as people read it.
fn shown(outcome: &Outcome) -> String {
    let name = format!("{}: {}", outcome.file.display(), outcome.name);
    let verdict = if outcome.failures.is_empty() { "ok   " } else { "FAIL " };
    let mut text = format!("{verdict} {name}\n");
    for failure in &outcome.failures {
        let (message, details) = match failure.message.split_once('\n') {
            Some((message, details)) => (message, details.trim_end()),
            None => (&*failure.message, ""),
        };
        let place = format!("tests/{}:{}", outcome.file.display(), failure.line);
        text.push_str(&output::wrapped(&format!("  {place}: {message}"), 4));
        for line in details.lines() {
            text.push_str(&format!("  {line}\n"));
        }
        if let Some(hint) = &failure.hint {
            text.push_str(&output::wrapped(&format!("    hint: {hint}"), 6));
        }
    }
    for note in &outcome.notes {
        text.push_str(&output::wrapped(&format!("  note: {note}"), 4));
    }
    for (who, written) in [("test", &outcome.test_output), ("app", &outcome.output)] {
        if !written.trim().is_empty() {
            text.push_str(&format!("  the {who} wrote:\n"));
            for line in written.trim_end().lines() {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    text
}

//! `wisp test`: tests of an app.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use wisp_develop::{
    Error as DevelopError,
    build::Settings as BuildSettings,
    test::{self, DEFAULT_LIMIT, Outcome, Settings},
};
use wisp_manifest::App;

use super::{
    build::build_app,
    common::{Format, image_dir, parse_duration, unwrap_checked},
};
use crate::{error::Error, output};

/// Test an app.
///
/// Runs the tests in `tests/*.toml` beside the manifest against the app as it would be
/// served: with a clock that stands, calls to elsewhere answered as the test says, and
/// stores of its own for each test. docs/testing.md says how they are written.
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

    /// Build the app first.
    #[arg(long)]
    build: bool,

    /// Name the tests instead of running them.
    #[arg(long)]
    list: bool,

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
}

impl Test {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let app = unwrap_checked(App::read(&self.from, self.profile.as_deref()))?;
        if self.list {
            for (file, line, name) in test::list(&app, self.filter.as_deref())? {
                output::data(&format!("{}:{line}: {name}\n", file.display()));
            }
            return Ok(());
        }
        if self.build {
            build_app(&app, &BuildSettings { has_color: output::has_color(), ..BuildSettings::default() })?;
        }
        let settings = Settings {
            filter: self.filter.clone(),
            jobs_count: match self.jobs {
                Some(count) => usize::try_from(count).unwrap_or(1),
                None => std::thread::available_parallelism().map_or(1, usize::from),
            },
            limit: self.limit.unwrap_or(DEFAULT_LIMIT),
            image_dir: Some(image_dir(self.cache_dir.as_deref())),
        };
        let started = std::time::Instant::now();
        let outcomes = test::run(&app, &settings, &|_| {})?;
        let failed_count = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
        match self.format {
            Format::Json => output::data(&format!("{}\n", test::to_json(&outcomes))),
            Format::Plain => {
                let text: String = outcomes.iter().map(shown).collect();
                output::data(&text);
                output::note(&format!(
                    "{} passed, {failed_count} failed in {:.2} s",
                    outcomes.len() - failed_count,
                    started.elapsed().as_secs_f64()
                ));
            }
        }
        if let Some(path) = &self.junit {
            let xml = test::to_junit(&app.name, &outcomes);
            std::fs::write(path, xml).map_err(|cause| DevelopError::File {
                action: "write",
                path: path.clone(),
                cause,
            })?;
        }
        if failed_count > 0 {
            return Err(DevelopError::TestsFailed { failed_count, count: outcomes.len() }.into());
        }
        Ok(())
    }
}

/// A test as people read it.
fn shown(outcome: &Outcome) -> String {
    let name = format!("{}: {}", outcome.file.display(), outcome.name);
    if outcome.failures.is_empty() {
        return format!("ok    {name}\n");
    }
    let mut text = format!("FAIL  {name}\n");
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
    if let Some(note) = &outcome.note {
        text.push_str(&output::wrapped(&format!("  note: {note}"), 4));
    }
    if !outcome.output.trim().is_empty() {
        text.push_str("  the app wrote:\n");
        for line in outcome.output.trim_end().lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

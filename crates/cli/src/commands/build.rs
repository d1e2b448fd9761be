//! `wisp build`: an app's components from their sources.

use std::{
    ffi::OsString,
    io::{IsTerminal as _, stderr},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use wisp_develop::{
    build::{self, Job, Outcome, Progress, Settings},
    test, verify,
};
use wisp_manifest::App;
use wisp_node::{Runtime, RuntimeSettings};

use super::{
    common::{image_dir, unwrap_checked},
    up::Up,
};
use crate::{error::Error, output};

/// How often the line of what is going on is drawn anew.
const SPINNER_PERIOD: Duration = Duration::from_millis(100);

/// Build an app's components.
///
/// Runs the `build` commands of the manifest, those first that others depend on, and
/// none whose inputs did not change. Then checks that everything that the components
/// import is there, and names what the manifest does not grant.
#[derive(Args)]
pub(crate) struct Build {
    /// The app: a `spin.toml`, or a folder with one.
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".", alias = "from-file")]
    from: PathBuf,

    /// Build only these components.
    #[arg(short, long, value_name = "ID")]
    component_id: Vec<String>,

    /// Build with this profile of the manifest.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Run every command, also where nothing changed.
    #[arg(long)]
    no_cache: bool,

    /// Do not check what the components import.
    #[arg(long)]
    skip_checks: bool,

    /// Serve the app when it is built.
    #[arg(short, long)]
    up: bool,

    /// Arguments of `wisp up`, after `--`.
    #[arg(last = true, requires = "up", value_name = "UP_ARGUMENTS")]
    up_arguments: Vec<OsString>,

    /// Known from Spin; there is nothing to skip.
    #[arg(long, hide = true)]
    skip_target_checks: bool,

    /// Known from Spin; there is nothing to skip.
    #[arg(long, hide = true)]
    skip_generate_wits: bool,
}

impl Build {
    pub(crate) fn run(&self) -> Result<(), Error> {
        // Wrong arguments are said before anything is built.
        let up = match self.up {
            true => Some(Up::parse(&self.from, self.profile.as_deref(), &self.up_arguments)),
            false => None,
        };
        let app = unwrap_checked(App::read(&self.from, self.profile.as_deref()))?;
        let settings = Settings {
            only: self.component_id.clone(),
            always: self.no_cache,
            has_color: output::has_color(),
        };
        build_app(&app, &settings)?;
        if !self.skip_checks && self.component_id.is_empty() {
            check(&app, &self.from)?;
        }
        match up {
            Some(up) => up.run(),
            None => Ok(()),
        }
    }
}

/// Builds an app and shows how that goes on.
pub(crate) fn build_app(app: &App, settings: &Settings) -> Result<(), Error> {
    let started = Instant::now();
    let progress = Shown::new();
    let result = build::build(app, settings, &progress);
    progress.clear();
    result.map_err(Error::Several)?;
    if app.components.values().all(|component| component.build.is_none()) {
        output::note("Nothing to build: no component has a `build` command");
    } else {
        output::note(&format!("Done in {}", seconds(started.elapsed())));
    }
    Ok(())
}

/// Builds the components that have tests of an app, and shows how that goes on.
pub(crate) fn build_tests(app: &App) -> Result<(), Error> {
    let progress = Shown::new();
    let result = test::build(app, output::has_color(), &progress);
    progress.clear();
    result.map(drop).map_err(Error::Several)
}

/// Links what was built, and names what is not granted.
fn check(app: &App, manifest: &Path) -> Result<(), Error> {
    if app.components.is_empty() {
        return Ok(());
    }
    let runtime = Runtime::start(RuntimeSettings {
        engine: super::up::default_engine(),
        image_dir: Some(image_dir(None)),
        ..RuntimeSettings::default()
    })?;
    verify::check_imports(&runtime, app).map_err(Error::Load)?;
    for missing in verify::not_granted(app, manifest) {
        let place = match missing.line {
            Some(line) => format!("line {line} of the manifest, `[component.{}]`", missing.component),
            None => format!("`[component.{}]`", missing.component),
        };
        output::warn(
            &format!(
                "component `{}` imports {} (`{}`), but is not granted any",
                missing.component,
                missing.capability.title(),
                missing.import
            ),
            &format!("if it uses them, add `{}` below {place}", missing.capability.grant()),
        );
    }
    Ok(())
}

/// What is shown of a build: lines for what ended, on a terminal one for what goes on.
pub(crate) struct Shown {
    spinner: Option<ProgressBar>,
    running: Mutex<Vec<String>>,
}

impl Shown {
    pub(crate) fn new() -> Self {
        let spinner = stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} Building {msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(SPINNER_PERIOD);
            spinner
        });
        Self { spinner, running: Mutex::default() }
    }

    fn clear(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }

    fn say(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    fn show_running(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut running);
        if let Some(spinner) = &self.spinner {
            spinner.set_message(running.join(", "));
        }
    }
}

impl Progress for Shown {
    fn started(&self, job: &Job) {
        let name = name(job);
        if self.spinner.is_none() {
            output::note(&format!("Building {name}: {}", job.commands.join(" && ")));
        }
        self.show_running(|running| running.push(name));
    }

    fn ended(&self, job: &Job, outcome: Outcome, printed: &str) {
        let name = name(job);
        self.show_running(|running| running.retain(|running| *running != name));
        match outcome {
            Outcome::Built(duration) => self.say(&format!("Built {name} in {}", seconds(duration))),
            Outcome::Unchanged => self.say(&format!("Unchanged: {name}")),
            Outcome::NotTried => self.say(&format!("Not tried: {name}, since it needs one that failed")),
            Outcome::Failed(duration) => {
                let printed = printed.trim_end();
                let printed = if printed.is_empty() { "" } else { &format!("\n{printed}") };
                self.say(&format!("Failed: {name} after {}{printed}", seconds(duration)));
            }
        }
    }
}

fn name(job: &Job) -> String {
    job.components.iter().map(|component| format!("`{component}`")).collect::<Vec<_>>().join(" and ")
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

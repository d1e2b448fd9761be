//! `wisp build`: an app's components from their sources.

use std::{
    ffi::OsString,
    io::{IsTerminal as _, stderr},
    path::PathBuf,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use wisp_develop::{
    build::{self, Job, Outcome, Progress, Remembering, Settings},
    optimize::{self, Report},
    test, verify,
};
use wisp_engine::EngineConfig;
use wisp_manifest::App;
use wisp_node::{Runtime, RuntimeSettings};

use super::{
    common::{CompilerFlag, Format, image_dir, unwrap_checked},
    packages::{Targets, fetched_anew},
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

    /// Make what was built smaller and quicker to start: run start-ups ahead where that is
    /// sound, strip debug information, call `wasm-opt`.
    #[arg(long)]
    optimize: bool,

    /// What `--optimize` takes away.
    #[arg(long, value_name = "WHAT", default_value = "debug", requires = "optimize")]
    strip: Strip,

    /// How it is printed what was done.
    #[arg(long, value_name = "FORMAT", default_value = "plain", conflicts_with = "up")]
    format: Format,

    /// Take packages in the newest versions that the manifest allows, whatever `wisp.lock`
    /// says.
    #[arg(long)]
    update: bool,

    /// Do not check what the components import.
    #[arg(long)]
    skip_checks: bool,

    /// Serve the app when it is built.
    #[arg(short, long)]
    up: bool,

    /// Arguments of `wisp up`, after `--`.
    #[arg(last = true, requires = "up", value_name = "UP_ARGUMENTS")]
    up_arguments: Vec<OsString>,

    /// Do not check whether the components fit the manifest's `targets`.
    #[arg(long)]
    skip_target_checks: bool,

    /// Do not write `spin-dependencies.wit` for components with dependencies.
    #[arg(long)]
    skip_generate_wits: bool,

    #[command(flatten)]
    compiler: CompilerFlag,
}

/// What is taken away of a component.
#[derive(Clone, Copy, ValueEnum)]
enum Strip {
    /// Nothing
    Nothing,
    /// Debug information; names of functions stay, for backtraces
    Debug,
    /// Debug information and names
    Names,
    /// The names of the tools that made it, too
    All,
}

impl Build {
    pub(crate) fn run(&self) -> Result<(), Error> {
        // Wrong arguments are said before anything is built.
        let up = match self.up {
            true => Some(Up::parse(&self.from, self.profile.as_deref(), &self.up_arguments)),
            false => None,
        };
        let app = unwrap_checked(App::read(&self.from, self.profile.as_deref()))?;
        let app = fetched_anew(app, None, self.update)?;
        let settings = Settings {
            only: self.component_id.clone(),
            always: self.no_cache,
            has_color: output::has_color(),
            optimize: self.optimize.then(|| optimize::Settings {
                strip: match self.strip {
                    Strip::Nothing => optimize::Strip::Nothing,
                    Strip::Debug => optimize::Strip::Debug,
                    Strip::Names => optimize::Strip::Names,
                    Strip::All => optimize::Strip::All,
                },
                image_dir: image_dir(None),
            }),
            skips_bindings: self.skip_generate_wits,
        };
        let summary = build_app(&app, &settings)?;
        match self.format {
            Format::Json => output::data(&format!("{}\n", serde_json::json!(summary))),
            Format::Plain => summary.optimized.iter().for_each(|report| output::data(&table(report))),
        }
        if !self.skip_checks && self.component_id.is_empty() {
            self.check(&app)?;
        }
        match up {
            Some(up) => up.run(),
            None => Ok(()),
        }
    }

    /// Links what was built, and names what is not granted. Nobody waits for optimized code
    /// here: `wisp up` has it made while it serves.
    fn check(&self, app: &App) -> Result<(), Error> {
        if app.components.is_empty() {
            return Ok(());
        }
        let runtime = Runtime::start(RuntimeSettings {
            engine: EngineConfig {
                compiler: self.compiler.compiler.into(),
                pooling: false,
                ..EngineConfig::default()
            },
            image_dir: Some(image_dir(None)),
            ..RuntimeSettings::default()
        })?;
        // That reads all files once more: behind the compiler.
        let (missing, checked) = wisp_engine::both(
            || {
                build::give_way();
                verify::not_granted(app, &self.from)
            },
            || verify::check_imports(&runtime, app).map_err(Error::Load),
        );
        checked?;
        if !self.skip_target_checks {
            verify::check_targets(&runtime, app, &Targets::new(app, self.update)).map_err(Error::Several)?;
        }
        for missing in missing {
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
}

/// What a build did.
#[derive(Default, Serialize)]
pub(crate) struct Summary {
    built: Vec<BuiltJob>,
    optimized: Vec<Report>,
    #[serde(skip)]
    remembering: Remembering,
}

/// Commands that were run, or did not have to.
#[derive(Serialize)]
struct BuiltJob {
    components: Vec<String>,
    is_unchanged: bool,
    /// How long the commands took.
    ms: f64,
}

/// Builds an app and shows how that goes on. Returns what was done.
pub(crate) fn build_app(app: &App, settings: &Settings) -> Result<Summary, Error> {
    let started = Instant::now();
    let progress = Shown::new();
    let result = build::build(app, settings, &progress);
    progress.clear();
    let remembering = result.map_err(Error::Several)?;
    if app.components.values().all(|component| component.build.is_none()) {
        output::note("Nothing to build: no component has a `build` command");
    } else {
        output::note(&format!("Done in {}", seconds(started.elapsed())));
    }
    let mut summary = progress.summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.remembering = remembering;
    summary.built.sort_by(|one, other| one.components.cmp(&other.components));
    summary.optimized.sort_by(|one, other| one.component.cmp(&other.component));
    Ok(summary)
}

/// What a component's file was and is.
fn table(report: &Report) -> String {
    let size = |facts: &optimize::Facts| output::bytes(facts.size_bytes);
    let start_up = |facts: &optimize::Facts| match facts.start_up_us {
        Some(us) if us < 1e3 => format!("{us:.0} us"),
        Some(us) => format!("{:.2} ms", us / 1e3),
        None => "not asked".into(),
    };
    let (before, after) = (&report.before, &report.after);
    let mut text = format!("component `{}`\n", report.component);
    for (name, before, after) in [
        ("", "before".to_owned(), "after".to_owned()),
        ("size", size(before), size(after)),
        ("start-up", start_up(before), start_up(after)),
    ] {
        text.push_str(&format!("  {name:<9} {before:>10} {after:>10}\n"));
    }
    let mut row = |name: &str, note: &str| {
        text.push_str(&output::wrapped(&format!("  {name:<9} {note}"), 12));
    };
    let Report { snapshot, strip, wasm_opt, refused, .. } = report;
    row("snapshot", &snapshot.note);
    row("stripped", &strip.note);
    row("wasm-opt", &wasm_opt.note);
    if let Some(reason) = refused {
        row("but", &format!("the file stays as it was: {reason}"));
    }
    text
}

/// Builds the components that have tests of an app, and shows how that goes on.
pub(crate) fn build_tests(app: &App) -> Result<(), Error> {
    let progress = Shown::new();
    let result = test::build(app, output::has_color(), &progress);
    progress.clear();
    result.map(drop).map_err(Error::Several)
}

/// What is shown of a build: lines for what ended, on a terminal one for what goes on.
pub(crate) struct Shown {
    spinner: Option<ProgressBar>,
    running: Mutex<Vec<String>>,
    summary: Mutex<Summary>,
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
        Self { spinner, running: Mutex::default(), summary: Mutex::default() }
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

    fn summary(&self) -> MutexGuard<'_, Summary> {
        self.summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        if let Outcome::Built(_) | Outcome::Unchanged = outcome {
            let ms = if let Outcome::Built(duration) = outcome { duration.as_secs_f64() * 1e3 } else { 0.0 };
            let is_unchanged = outcome == Outcome::Unchanged;
            self.summary().built.push(BuiltJob { components: job.components.clone(), is_unchanged, ms });
        }
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

    fn optimizing(&self, component: &str) {
        if self.spinner.is_none() {
            output::note(&format!("Optimizing `{component}`"));
        }
        self.show_running(|running| running.push(format!("`{component}`, smaller")));
    }

    fn optimized(&self, report: &Report) {
        let name = format!("`{}`, smaller", report.component);
        self.show_running(|running| running.retain(|running| *running != name));
        self.summary().optimized.push(report.clone());
    }
}

fn name(job: &Job) -> String {
    job.components.iter().map(|component| format!("`{component}`")).collect::<Vec<_>>().join(" and ")
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

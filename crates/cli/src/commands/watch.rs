//! `wisp watch`: serve an app, and each edit of it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use wisp_develop::{
    build::{self, Job, Settings},
    watch::{Change, DEFAULT_DEBOUNCE, Watcher},
};
use wisp_engine::FileIdentity;
use wisp_manifest::{App, MANIFEST_FILE_NAME};

use super::{
    build::build_app,
    common::unwrap_checked,
    packages::fetched,
    up::{Started, Up},
};
use crate::{error::Error, output};

/// Serve an app, and build and swap it in at each edit.
///
/// The listener stays open and no request is dropped: those that run keep the version
/// that they began with. An edit that does not build leaves the version before in place.
#[derive(Args)]
pub(crate) struct Watch {
    /// The app: a `spin.toml`, or a folder with one.
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".", alias = "from-file")]
    from: PathBuf,

    /// Build and serve with this profile of the manifest.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Clear the screen before each build.
    #[arg(short, long)]
    clear: bool,

    /// How long to wait for more of an edit, in milliseconds.
    #[arg(short, long, value_name = "MS", default_value_t = default_debounce_ms())]
    debounce: u64,

    /// Build nothing: serve what somebody else builds.
    #[arg(long)]
    skip_build: bool,

    /// Arguments of `wisp up`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "UP_ARGUMENTS")]
    up_arguments: Vec<OsString>,
}

fn default_debounce_ms() -> u64 {
    u64::try_from(DEFAULT_DEBOUNCE.as_millis()).unwrap_or(u64::MAX)
}

/// What is served, and how it came about.
struct Loop {
    manifest: PathBuf,
    profile: Option<String>,
    skips_build: bool,
    clears: bool,
    started: Arc<Started>,
    app: App,
    jobs: Vec<Job>,
    /// The files that the current version was loaded from, as they were.
    loaded: Vec<(PathBuf, Option<FileIdentity>)>,
    runtime: tokio::runtime::Runtime,
}

impl Watch {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let up = Up::parse(&self.from, self.profile.as_deref(), &self.up_arguments);
        let manifest =
            if self.from.is_dir() { self.from.join(MANIFEST_FILE_NAME) } else { self.from.clone() };
        let debounce = Duration::from_millis(self.debounce);
        let app = fetched(unwrap_checked(App::read(&manifest, self.profile.as_deref()))?, None)?;
        let jobs = self.jobs(&app)?;
        let mut watcher = Watcher::new(&app, &manifest, &jobs)?;
        let mut result = self.build(&app);
        while let Err(error) = result {
            // There is nothing to serve yet, but soon may be.
            output::print_error(&error);
            output::note("waiting for an edit");
            if watcher.next(debounce).is_none() {
                return Err(error);
            }
            result = self.build(&app);
        }
        let (started, loaded) = up.start()?;
        let mut edits = Loop {
            manifest,
            profile: self.profile.clone(),
            skips_build: self.skip_build,
            clears: self.clear,
            started: started.clone(),
            app,
            jobs,
            loaded,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Error::Start)?,
        };
        thread::Builder::new()
            .name("wisp-watch".into())
            .spawn(move || {
                while let Some(change) = watcher.next(debounce) {
                    edits.take_in(&change, &mut watcher);
                }
            })
            .map_err(Error::Start)?;
        output::note("watching for edits");
        started.serve()
    }

    fn jobs(&self, app: &App) -> Result<Vec<Job>, Error> {
        if self.skip_build { Ok(Vec::new()) } else { Ok(build::jobs(app, &[])?) }
    }

    fn build(&self, app: &App) -> Result<(), Error> {
        if self.skip_build {
            return Ok(());
        }
        build_app(app, &Settings { has_color: output::has_color(), ..Settings::default() }).map(drop)
    }
}

impl Loop {
    /// Makes of an edit what is served next, or says why not.
    fn take_in(&mut self, change: &Change, watcher: &mut Watcher) {
        if self.clears && (change.is_manifest || !change.jobs.is_empty()) {
            output::clear_screen();
        }
        if let Err(error) = self.try_take_in(change, watcher) {
            output::print_error(&error);
            output::note("the version before goes on");
        }
    }

    fn try_take_in(&mut self, change: &Change, watcher: &mut Watcher) -> Result<(), Error> {
        let build_started = Instant::now();
        let mut app = None;
        if change.is_manifest {
            let read = fetched(unwrap_checked(App::read(&self.manifest, self.profile.as_deref()))?, None)?;
            let jobs = if self.skips_build { Vec::new() } else { build::jobs(&read, &[])? };
            watcher.follow(&read, &self.manifest, &jobs)?;
            if !self.skips_build {
                build_app(&read, &Settings { has_color: output::has_color(), ..Settings::default() })?;
            }
            self.jobs = jobs;
            app = Some(read);
        } else {
            for number in &change.jobs {
                let Some(job) = self.jobs.get(*number) else { continue };
                build::write_bindings(&self.app, job)?;
                let (result, printed) = build::run(job, output::has_color());
                if let Err(error) = result {
                    output::note(printed.trim_end());
                    return Err(error.into());
                }
            }
        }
        let built = build_started.elapsed();
        // A build that changes nothing, or the noise of one that was taken in already.
        let is_same = |(path, identity): &(PathBuf, Option<FileIdentity>)| {
            FileIdentity::at(path).ok() == *identity && identity.is_some()
        };
        if app.is_none() && !change.is_of_files && self.loaded.iter().all(is_same) {
            if !change.jobs.is_empty() {
                output::note(&format!("Nothing new came of {}", self.shown(&change.path)));
            }
            return Ok(());
        }
        let app = app.unwrap_or_else(|| self.app.clone());
        self.loaded = self.runtime.block_on(self.started.swap(&app))?;
        self.app = app;
        let total = change.noticed.elapsed();
        let own = total.saturating_sub(built);
        output::note(&format!(
            "Serving {} after {} ms: {} ms building, {:.1} ms to swap",
            self.shown(&change.path),
            total.as_millis(),
            built.as_millis(),
            own.as_secs_f64() * 1e3,
        ));
        Ok(())
    }

    /// A path as people know it.
    fn shown(&self, path: &Path) -> String {
        let folder = std::path::absolute(&self.app.directory).unwrap_or_default();
        path.strip_prefix(&folder).unwrap_or(path).display().to_string()
    }
}

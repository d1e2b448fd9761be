//! Code that an app names and that is elsewhere: fetched before anything else is done.

use std::{
    cell::OnceCell,
    fs,
    path::{Path, PathBuf},
};

use reqwest::Url;
use wisp_develop::verify::{MAX_DEFINITION_BYTES, TargetSources, WorldPackage};
use wisp_image::packages::{
    Elsewhere, Fetched, FetchedApp, PackageRequest, Packages, is_needed, lock::Lock,
    settings::PackageSettings,
};
use wisp_manifest::{App, model::PackageName};

use super::{common::user_cache_dir, registry};
use crate::{error::Error, output};

/// Fetches what an app needs.
pub(crate) struct Fetcher {
    packages: Packages,
    lock: Lock,
    runtime: tokio::runtime::Runtime,
}

impl Fetcher {
    /// For an app. With `update` nothing is taken as the lock says.
    pub(crate) fn new(app: &App, cache_dir: Option<&Path>, update: bool) -> Result<Self, Error> {
        let from_environment = || std::env::var_os("WISP_CACHE_DIR").map(PathBuf::from);
        let cache = match cache_dir.map(Path::to_owned).or_else(from_environment) {
            Some(folder) => folder,
            None => user_cache_dir().join("wisp"),
        };
        let lock = match update {
            true => Lock::anew(&app.directory),
            false => Lock::read(&app.directory)?,
        };
        let packages = Packages::new(registry::client(false, &cache)?, PackageSettings::of_user()?)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Start)?;
        Ok(Self { packages, lock, runtime })
    }

    /// The app with all of its code here.
    pub(crate) fn app(&self, app: &App) -> Result<FetchedApp, Error> {
        let fetched = self.runtime.block_on(self.packages.app(app, &self.lock)).map_err(Error::Packages)?;
        for (elsewhere, found) in fetched.fetched.iter().filter(|(_, found)| found.is_new) {
            output::note(&format!("Fetched {}", described(elsewhere, found)));
        }
        self.save();
        Ok(fetched)
    }

    /// Keeps what was found. A folder that can only be read has what it has.
    fn save(&self) {
        if let Err(error) = self.lock.save() {
            let hint = "another build may find other versions of packages; make the folder writable";
            output::warn(&error.to_string(), hint);
        }
    }
}

/// Fetches what definitions of targets name, once they name something.
pub(crate) struct Targets<'a> {
    app: &'a App,
    update: bool,
    fetcher: OnceCell<Fetcher>,
}

impl<'a> Targets<'a> {
    pub(crate) fn new(app: &'a App, update: bool) -> Self {
        Self { app, update, fetcher: OnceCell::new() }
    }

    fn fetcher(&self) -> Result<&Fetcher, String> {
        if let Some(fetcher) = self.fetcher.get() {
            return Ok(fetcher);
        }
        let made = Fetcher::new(self.app, None, false).map_err(|error| error.to_string())?;
        if self.update {
            made.lock.forget_targets();
        }
        Ok(self.fetcher.get_or_init(|| made))
    }
}

impl TargetSources for Targets<'_> {
    fn definition(&self, url: &Url) -> Result<String, String> {
        let Fetcher { packages, lock, runtime } = self.fetcher()?;
        let content = runtime.block_on(packages.definition(url, lock, MAX_DEFINITION_BYTES));
        let content = content.map_err(|error| said(&error))?;
        self.fetcher()?.save();
        String::from_utf8(content).map_err(|_| "it is no text".to_owned())
    }

    fn package(&self, wanted: &WorldPackage) -> Result<Vec<u8>, String> {
        let Fetcher { packages, lock, runtime } = self.fetcher()?;
        let package = PackageName { namespace: wanted.namespace.clone(), name: wanted.name.clone() };
        let request = match &wanted.version {
            Some(version) => PackageRequest::exact(wanted.registry.clone(), package, version),
            None => {
                let requirement = PackageRequest::ANY_VERSION;
                PackageRequest { registry: wanted.registry.clone(), package, requirement }
            }
        };
        let fetched = runtime.block_on(packages.package(&request, lock)).map_err(|error| said(&error))?;
        self.fetcher()?.save();
        fs::read(&fetched.path).map_err(|error| error.to_string())
    }
}

/// An error in the words of another: with its hint, since the other has one of its own.
fn said(error: &wisp_image::Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}

/// The app with all of its code here.
pub(crate) fn fetched(app: App, cache_dir: Option<&Path>) -> Result<App, Error> {
    fetched_anew(app, cache_dir, false)
}

/// The same; with `update` in the newest versions that the manifest allows.
pub(crate) fn fetched_anew(app: App, cache_dir: Option<&Path>, update: bool) -> Result<App, Error> {
    match is_needed(&app) {
        true => Ok(Fetcher::new(&app, cache_dir, update)?.app(&app)?.app),
        false => Ok(app),
    }
}

/// What was fetched, for people.
pub(crate) fn described(elsewhere: &Elsewhere, found: &Fetched) -> String {
    match (elsewhere, &found.version) {
        (Elsewhere::Package(request), Some((version, registry))) => {
            format!("`{}` {version} of `{registry}`", request.package)
        }
        (elsewhere, _) => elsewhere.to_string(),
    }
}

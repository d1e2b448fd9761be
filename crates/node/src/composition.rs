//! Apps whose components are made of several: from what a manifest names to one file
//! for each component.
//!
//! A [`Composer`] takes an app and hands back the same app without dependencies and
//! without middleware: the source of each component that had any is a file that was
//! composed. Whoever loads, packs or checks the app needs to know nothing of them.
//!
//! # Life of a composed component
//!
//! 1. A plan is made: which files it takes, which permissions each part has. Other
//!    components of the app that it depends on are planned with *their* dependencies.
//! 2. The plan's key is a hash of the digests of all parts and of how they are put
//!    together. If there is a file of that name, that is all.
//! 3. Otherwise the parts are read, brought to the final interfaces as the engine does
//!    with any source ([`wisp_engine::normalize`]), composed, and written under another
//!    name, which is then changed.
//!
//! A composed file is used by whoever needs it and belongs to nobody. Those that nobody
//! has used for long, and the oldest of too many, are removed when others are written; what
//! is missing is made again.
//!
//! One component that several triggers start with different middleware becomes several:
//! the first keeps the name, others are called `NAME-v2`, `NAME-v3`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use indexmap::IndexMap;
use tempfile::{NamedTempFile, TempDir};
use wisp_compose::{Code, Dependency, Error as Cause, Middleware, Permissions};
use wisp_engine::{Digest, FileIdentity, normalize::normalize};
use wisp_manifest::{
    LOCKED_FILE_NAME, LockedApp,
    id::ComponentId,
    locate,
    model::{
        App, Component, DependencyName, DependencySource, HttpTarget, MiddlewareSource, Source, TriggerKind,
    },
};

use crate::{Error, Errors};

/// The folder of composed components, in the folder of compiled images.
const FOLDER_NAME: &str = "composed";

/// Digests of files that are remembered: those of a full node, four each.
const MAX_REMEMBERED_COUNT: usize = 400_000;

/// How long a composed component stays that nobody uses: somebody who comes back to an app
/// after a month waits some milliseconds.
const MAX_UNUSED_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How many composed components there may be: some for each app of a developer, at some
/// hundred kilobytes to ten megabytes.
const MAX_FILES_COUNT: usize = 1_000;

/// What was used lately stays, however many there are: somebody may be loading it.
const MIN_UNUSED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How old what is used may look. Each touch changes the file's identity, so that it is read
/// again.
const TOUCHED_AGE: Duration = Duration::from_secs(12 * 60 * 60);

/// After so many new components it is looked for old ones.
const CLEANING_COUNT: usize = 64;

/// The largest part: as large as what the engine takes by default.
const MAX_PART_BYTES: u64 = 256 << 20;

/// Composes the components of apps.
pub struct Composer {
    folder: PathBuf,
    /// The folder goes with it where nobody named one.
    _temporary: Option<TempDir>,
    digests: Mutex<HashMap<FileIdentity, Digest>>,
    /// What is in use here; none if the folder is not a cache.
    in_use: Option<Mutex<HashSet<PathBuf>>>,
    made_count: AtomicUsize,
}

/// An app without dependencies and middleware.
pub struct Composed<'app> {
    /// The app.
    pub app: Cow<'app, App>,
    /// The files that its components are made of, as they were.
    pub inputs: Vec<(PathBuf, Option<FileIdentity>)>,
}

/// Code, and what it is composed with.
struct Plan {
    label: String,
    path: PathBuf,
    identity: Option<FileIdentity>,
    digest: Digest,
    needs: Vec<Need>,
    /// Outermost first.
    middleware: Vec<Layer>,
}

struct Need {
    name: DependencyName,
    export: Option<String>,
    permissions: Permissions,
    plan: Plan,
}

struct Layer {
    permissions: Permissions,
    plan: Plan,
}

/// Whether an app has anything to compose.
pub fn is_needed(app: &App) -> bool {
    app.components.values().any(|component| !component.dependencies.is_empty())
        || app
            .triggers
            .iter()
            .any(|trigger| matches!(&trigger.kind, TriggerKind::Http(http) if !http.middleware.is_empty()))
}

impl<'app> Composed<'app> {
    /// An app that has nothing to compose.
    pub(crate) fn nothing(app: &'app App) -> Self {
        Self { app: Cow::Borrowed(app), inputs: Vec::new() }
    }

    /// The same, for longer.
    pub(crate) fn into_owned(self) -> Composed<'static> {
        Composed { app: Cow::Owned(self.app.into_owned()), inputs: self.inputs }
    }
}

impl Composer {
    /// Keeps what it composes below the folder of compiled images, or in a temporary
    /// folder for as long as it lives.
    ///
    /// # Errors
    /// [`Error::FilesFolder`].
    pub fn new(image_dir: Option<&Path>) -> Result<Self, Error> {
        let temporary = match image_dir {
            Some(_) => None,
            None => {
                let made = tempfile::Builder::new().prefix("wisp-composed-").tempdir();
                Some(made.map_err(|cause| Error::FilesFolder { cause })?)
            }
        };
        let folder = match (image_dir, &temporary) {
            (Some(folder), _) => folder.join(FOLDER_NAME),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => PathBuf::from(FOLDER_NAME),
        };
        let in_use = Some(Mutex::default());
        let made_count = AtomicUsize::new(0);
        Ok(Self { folder, _temporary: temporary, digests: Mutex::default(), in_use, made_count })
    }

    /// Keeps what it composes in this folder, for as long as somebody else wants.
    pub fn in_folder(folder: PathBuf) -> Self {
        let made_count = AtomicUsize::new(0);
        Self { folder, _temporary: None, digests: Mutex::default(), in_use: None, made_count }
    }

    /// Composes the components of an app, or only those named. Blocks.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn compose<'app>(&self, app: &'app App, only: &[String]) -> Result<Composed<'app>, Errors> {
        if !is_needed(app) {
            return Ok(Composed::nothing(app));
        }
        let planner = Planner { composer: self, app };
        let (mut made, mut inputs) = (app.clone(), Vec::new());
        let mut errors = Vec::new();
        let variants = variants(app, &mut errors);
        for (id, variants) in &variants {
            let is_wanted = only.is_empty() || only.iter().any(|only| only == id.as_str());
            let Some(component) = app.components.get(*id).filter(|_| is_wanted) else { continue };
            for (number, variant) in variants.iter().enumerate() {
                let is_composed = !component.dependencies.is_empty() || !variant.middleware.is_empty();
                if !is_composed && number == 0 {
                    continue;
                }
                let source = match is_composed {
                    true => planner.file(component, variant, &mut inputs).map(Source::Path),
                    false => Ok(component.source.clone()),
                };
                match source {
                    Ok(source) => replace(&mut made, variant_id(app, id, number), component, variant, source),
                    Err(error) => errors.push(*error),
                }
            }
        }
        if !errors.is_empty() {
            return Err(Errors(errors));
        }
        remove_parts(app, &mut made);
        inputs.sort_by(|(one, _), (other, _)| one.cmp(other));
        inputs.dedup_by(|(one, _), (other, _)| one == other);
        Ok(Composed { app: Cow::Owned(made), inputs })
    }

    /// The digest of a file's content; of one that was read before, without reading it.
    fn digest(&self, path: &Path) -> io::Result<(Digest, Option<FileIdentity>)> {
        let identity = FileIdentity::at(path)?;
        if let Some(digest) = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&identity) {
            return Ok((*digest, Some(identity)));
        }
        if identity.size_bytes() > MAX_PART_BYTES {
            return Err(io::Error::other(format!("it has more than {} MiB", MAX_PART_BYTES >> 20)));
        }
        let is_settled = identity.is_settled();
        let digest = Digest::of(&fs::read(path)?);
        if is_settled {
            let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
            if digests.len() >= MAX_REMEMBERED_COUNT {
                digests.clear();
            }
            digests.insert(identity, digest);
        }
        Ok((digest, Some(identity)))
    }

    /// The file of what a plan comes to.
    fn file(&self, plan: &Plan) -> Result<PathBuf, Cause> {
        let path = self.folder.join(format!("{}.wasm", Digest::of(plan.recipe().as_bytes())));
        if let Some(in_use) = &self.in_use {
            in_use.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
            touch(&path);
        }
        if path.exists() {
            return Ok(path);
        }
        let composed = plan.compose()?;
        let failed = |error: io::Error| Cause::Conflict {
            part: plan.label.clone(),
            message: format!("`{}` cannot be written: {error}", path.display()),
        };
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let mut file = NamedTempFile::new_in(&self.folder).map_err(failed)?;
        io::Write::write_all(&mut file, &composed).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        tracing::debug!(part = %plan.label, path = %path.display(), "composed");
        if let Some(in_use) = &self.in_use
            && self.made_count.fetch_add(1, Ordering::Relaxed).is_multiple_of(CLEANING_COUNT)
        {
            let in_use = in_use.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Err(error) = clean(&self.folder, &in_use, MAX_FILES_COUNT) {
                tracing::debug!("`{}` cannot be cleaned up: {error}", self.folder.display());
            }
        }
        Ok(path)
    }
}

/// Notes that a composed component is used, if it is there.
fn touch(path: &Path) {
    let touched = fs::File::open(path).and_then(|file| {
        let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > TOUCHED_AGE { file.set_modified(SystemTime::now()) } else { Ok(()) }
    });
    // A cache that can only be read is a cache; what is not there is made.
    if let Err(error) = touched {
        tracing::trace!("`{}` cannot be touched: {error}", path.display());
    }
}

/// Removes composed components that nobody has used for long, and the oldest of too many.
fn clean(folder: &Path, in_use: &HashSet<PathBuf>, max_count: usize) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // What is gone by now, somebody else has removed.
        let Ok(written) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
        found.push((written.elapsed().unwrap_or_default(), path));
    }
    found.sort();
    for (number, (age, path)) in found.iter().enumerate() {
        let is_garbage = *age > MAX_UNUSED_AGE || number >= max_count && *age > MIN_UNUSED_AGE;
        if is_garbage && !in_use.contains(path) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Composes the components of an app that was unpacked, in its folder: what is left is an
/// app without dependencies and middleware. Blocks.
///
/// # Errors
/// Everything that is wrong, for a person.
pub fn compose_folder(folder: &Path) -> Result<(), String> {
    const COMPONENTS: &str = "components";

    let path = folder.join(LOCKED_FILE_NAME);
    let read = App::read_file(&path, None).map_err(|problems| problems.render(false, 80))?;
    if !is_needed(&read.value) {
        return Ok(());
    }
    let components = folder.join(COMPONENTS);
    let composer = Composer::in_folder(components.clone());
    let composed = composer.compose(&read.value, &[]).map_err(|errors| errors.to_string())?;
    let mut app = composed.app.into_owned();
    let mut kept = Vec::new();
    for component in app.components.values_mut() {
        if let Source::Path(path) = &mut component.source {
            if let Ok(inside) = path.strip_prefix(folder) {
                *path = inside.to_owned();
            }
            kept.push(folder.join(&path));
        }
    }
    let failed = |error: io::Error| error.to_string();
    for entry in fs::read_dir(&components).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !kept.contains(&path) {
            fs::remove_file(path).map_err(failed)?;
        }
    }
    fs::write(&path, LockedApp::new(&app).to_json()).map_err(failed)
}

/// A component behind the same middleware, and the triggers that start it so.
struct Variant<'a> {
    middleware: &'a [MiddlewareSource],
    /// By their position in the app.
    triggers: Vec<usize>,
}

/// Puts a variant of a component in its place, and has its triggers start it.
fn replace(app: &mut App, id: ComponentId, component: &Component, variant: &Variant<'_>, source: Source) {
    let composed = Component {
        id: id.clone(),
        source,
        dependencies: IndexMap::new(),
        dependencies_inherit_configuration: false,
        ..component.clone()
    };
    app.components.insert(id.clone(), composed);
    for trigger in &variant.triggers {
        let kind = app.triggers.get_mut(*trigger).map(|trigger| &mut trigger.kind);
        match kind {
            Some(TriggerKind::Http(http)) => {
                http.middleware.clear();
                if let HttpTarget::Component { component, .. } = &mut http.target {
                    *component = id.clone();
                }
            }
            Some(TriggerKind::Redis(redis)) => redis.component = id.clone(),
            Some(TriggerKind::Other(other)) => other.component = Some(id.clone()),
            None => {}
        }
    }
}

/// How each component is started.
fn variants<'a>(app: &'a App, errors: &mut Vec<Error>) -> IndexMap<&'a ComponentId, Vec<Variant<'a>>> {
    let mut found: IndexMap<&ComponentId, Vec<Variant<'_>>> = IndexMap::new();
    for (position, trigger) in app.triggers.iter().enumerate() {
        let (component, middleware) = match &trigger.kind {
            TriggerKind::Http(http) => match &http.target {
                HttpTarget::Component { component, .. } => (Some(component), http.middleware.as_slice()),
                HttpTarget::Static(_) if http.middleware.is_empty() => continue,
                HttpTarget::Static(_) => {
                    errors.push(Error::Composition {
                        place: place(app, |text| locate::middleware(text, http_number(app, position), 0)),
                        cause: Box::new(Cause::NotMiddleware {
                            part: format!("the trigger `{}`", trigger.id),
                            message: "it answers by itself, so that nothing can stand in front of it".into(),
                        }),
                    });
                    continue;
                }
            },
            TriggerKind::Redis(redis) => (Some(&redis.component), &[][..]),
            TriggerKind::Other(other) => (other.component.as_ref(), &[][..]),
        };
        let Some(component) = component else { continue };
        let variants = found.entry(component).or_default();
        match variants.iter_mut().find(|known| known.middleware == middleware) {
            Some(known) => known.triggers.push(position),
            None => variants.push(Variant { middleware, triggers: vec![position] }),
        }
    }
    // Those that nothing starts are composed too: they may be packed, or called by others.
    for component in app.components.values() {
        found.entry(&component.id).or_insert_with(|| vec![Variant { middleware: &[], triggers: Vec::new() }]);
    }
    found
}

/// What a variant of a component is called.
fn variant_id(app: &App, id: &ComponentId, number: usize) -> ComponentId {
    if number == 0 {
        return id.clone();
    }
    let mut number = number + 1;
    loop {
        match ComponentId::new(&format!("{id}-v{number}")) {
            Ok(made) if !app.components.contains_key(&made) => return made,
            Ok(_) => number += 1,
            // An id with a suffix is one.
            Err(_) => return id.clone(),
        }
    }
}

/// Removes components that are only parts of others.
fn remove_parts(app: &App, composed: &mut App) {
    let dependencies = app.components.values().flat_map(|component| component.dependencies.values());
    let mut parts: Vec<&ComponentId> = Vec::new();
    let sources = dependencies.map(|dependency| &dependency.source);
    let middleware = app.triggers.iter().flat_map(|trigger| match &trigger.kind {
        TriggerKind::Http(http) => http.middleware.as_slice(),
        TriggerKind::Redis(_) | TriggerKind::Other(_) => &[],
    });
    for source in sources.chain(middleware.map(|middleware| &middleware.source)) {
        if let DependencySource::Component(id) = source {
            parts.push(id);
        }
    }
    let is_started = |id: &ComponentId| {
        app.triggers.iter().any(|trigger| match &trigger.kind {
            TriggerKind::Http(http) => {
                matches!(&http.target, HttpTarget::Component { component, .. } if component == id)
            }
            TriggerKind::Redis(redis) => redis.component == *id,
            TriggerKind::Other(other) => {
                other.component.as_ref() == Some(id)
                    || other.components.values().flatten().any(|known| known == id)
            }
        })
    };
    composed.components.retain(|id, _| !parts.contains(&id) || is_started(id));
}

/// The number of a trigger among those for HTTP.
fn http_number(app: &App, position: usize) -> usize {
    let before = app.triggers.iter().take(position);
    before.filter(|trigger| matches!(trigger.kind, TriggerKind::Http(_))).count()
}

/// Where something stands in the app's manifest, as messages say it.
fn place(app: &App, find: impl FnOnce(&str) -> Option<usize>) -> String {
    let line = fs::read_to_string(&app.file).ok().and_then(|text| find(&text));
    match line {
        Some(line) => {
            let name = app.file.file_name().unwrap_or_default().to_string_lossy();
            format!("{name}:{line}: ")
        }
        None => String::new(),
    }
}

/// Makes plans for the components of one app.
struct Planner<'a> {
    composer: &'a Composer,
    app: &'a App,
}

impl Planner<'_> {
    /// The composed file of a component.
    fn file(
        &self,
        component: &Component,
        variant: &Variant<'_>,
        inputs: &mut Vec<(PathBuf, Option<FileIdentity>)>,
    ) -> Result<PathBuf, Box<Error>> {
        let mut chain = Vec::new();
        let mut plan = self.component(component, format!("component `{}`", component.id), &mut chain)?;
        for (position, source) in variant.middleware.iter().enumerate() {
            let label = match &source.source {
                DependencySource::Component(id) => format!("the middleware `{id}`"),
                source => format!("the middleware {}", described(source)),
            };
            let layer = self
                .source(&source.source, label, &mut chain)
                .map_err(|cause| self.of_middleware(variant, position, cause))?;
            let permissions = Permissions::of(source.inherit.as_ref(), Permissions::none());
            plan.middleware.push(Layer { permissions, plan: layer });
        }
        plan.collect(inputs);
        self.composer.file(&plan).map_err(|cause| {
            let layer = plan.middleware.iter().position(|layer| layer.plan.label == cause.part());
            if let Some(position) = layer {
                return self.of_middleware(variant, position, cause.into());
            }
            let need = plan.needs.iter().find(|need| {
                need.plan.label == cause.part() || cause.dependency() == Some(need.name.to_string().as_str())
            });
            self.of(component, need.map(|need| need.name.to_string()).as_deref(), cause.into())
        })
    }

    /// The code of a component of the app, and what it depends on.
    fn component(
        &self,
        component: &Component,
        label: String,
        chain: &mut Vec<ComponentId>,
    ) -> Result<Plan, Box<Error>> {
        let read = |cause: io::Error, path: PathBuf| Error::Component {
            component: component.id.to_string(),
            cause: std::sync::Arc::new(wisp_engine::Error::Read { path, cause }),
        };
        let not_here =
            |place| Box::new(Error::UnsupportedSource { component: component.id.to_string(), place });
        let path = match &component.source {
            Source::Path(path) => self.app.directory.join(path),
            Source::Url { .. } => return Err(not_here("a URL")),
            Source::Registry(_) => return Err(not_here("a registry")),
        };
        let (digest, identity) = self.composer.digest(&path).map_err(|cause| read(cause, path.clone()))?;
        chain.push(component.id.clone());
        let mut needs = Vec::with_capacity(component.dependencies.len());
        let otherwise = match component.dependencies_inherit_configuration {
            true => Permissions::all(),
            false => Permissions::none(),
        };
        for (name, dependency) in &component.dependencies {
            let label = format!("the dependency `{name}` ({})", described(&dependency.source));
            let plan = self
                .source(&dependency.source, label, chain)
                .map_err(|cause| self.of(component, Some(&name.to_string()), cause))?;
            needs.push(Need {
                name: name.clone(),
                export: dependency.export.clone(),
                permissions: Permissions::of(dependency.inherit.as_ref(), otherwise.clone()),
                plan,
            });
        }
        chain.pop();
        Ok(Plan { label, path, identity, digest, needs, middleware: Vec::new() })
    }

    /// The code that a dependency or middleware names.
    fn source(
        &self,
        source: &DependencySource,
        label: String,
        chain: &mut Vec<ComponentId>,
    ) -> Result<Plan, Fault> {
        let elsewhere = |place: &str| {
            let message = format!("it is {place}, from where a node fetches nothing");
            Err(Cause::NotHere { part: label.clone(), message }.into())
        };
        let path = match source {
            DependencySource::Path(path) => self.app.directory.join(path),
            DependencySource::Component(id) => {
                if chain.contains(id) {
                    let chain: Vec<String> = chain.iter().chain([id]).map(|id| format!("`{id}`")).collect();
                    return Err(Cause::Cycle { part: label, chain: chain.join(" → ") }.into());
                }
                let Some(component) = self.app.components.get(id) else {
                    let message = format!("the app has no component `{id}`");
                    return Err(Cause::NotHere { part: label, message }.into());
                };
                return self.component(component, label, chain).map_err(Fault::Placed);
            }
            DependencySource::Url { .. } => return elsewhere("at a URL"),
            DependencySource::Registry { .. } => return elsewhere("in a registry of packages"),
        };
        let (digest, identity) = self.composer.digest(&path).map_err(|error| Cause::NotHere {
            part: label.clone(),
            message: format!("`{}` cannot be read: {error}", path.display()),
        })?;
        Ok(Plan { label, path, identity, digest, needs: Vec::new(), middleware: Vec::new() })
    }

    fn of(&self, component: &Component, dependency: Option<&str>, fault: Fault) -> Box<Error> {
        let cause = match fault {
            Fault::Placed(error) => return error,
            Fault::Cause(cause) => cause,
        };
        let id = component.id.as_str();
        let place = place(self.app, |text| match dependency {
            Some(dependency) => locate::dependency(text, id, dependency),
            None => locate::component(text, id),
        });
        Box::new(Error::Composition { place, cause: Box::new(cause) })
    }

    fn of_middleware(&self, variant: &Variant<'_>, position: usize, fault: Fault) -> Box<Error> {
        let cause = match fault {
            Fault::Placed(error) => return error,
            Fault::Cause(cause) => cause,
        };
        let trigger = variant.triggers.first().copied().unwrap_or(0);
        let place =
            place(self.app, |text| locate::middleware(text, http_number(self.app, trigger), position));
        Box::new(Error::Composition { place, cause: Box::new(cause) })
    }
}

/// What is wrong, and perhaps already where.
enum Fault {
    Cause(Cause),
    Placed(Box<Error>),
}

impl From<Cause> for Fault {
    fn from(cause: Cause) -> Self {
        Self::Cause(cause)
    }
}

fn described(source: &DependencySource) -> String {
    match source {
        DependencySource::Path(path) => format!("`{}`", path.display()),
        DependencySource::Component(id) => format!("component `{id}`"),
        DependencySource::Url { url, .. } => format!("`{url}`"),
        DependencySource::Registry { package, version, .. } => format!("`{package}` {version}"),
    }
}

impl Plan {
    /// All that the result depends on, as text.
    fn recipe(&self) -> String {
        let mut text = format!("{} {}\n", wisp_compose::FORMAT, self.digest);
        let permissions = |permissions: &Permissions| permissions.names().collect::<Vec<_>>().join(",");
        for need in &self.needs {
            let export = need.export.as_deref().unwrap_or_default();
            let inner = Digest::of(need.plan.recipe().as_bytes());
            text.push_str(&format!(
                "dependency {:?} {export:?} [{}] {inner}\n",
                need.name.to_string(),
                permissions(&need.permissions),
            ));
        }
        for layer in &self.middleware {
            let inner = Digest::of(layer.plan.recipe().as_bytes());
            text.push_str(&format!("middleware [{}] {inner}\n", permissions(&layer.permissions)));
        }
        text
    }

    fn compose(&self) -> Result<Vec<u8>, Cause> {
        let unreadable = |message: String| Cause::Unreadable { part: self.label.clone(), message };
        let source = fs::read(&self.path)
            .map_err(|error| unreadable(format!("`{}` cannot be read: {error}", self.path.display())))?;
        let component = normalize(&source).map_err(|error| unreadable(error.to_string()))?.component;
        if self.needs.is_empty() && self.middleware.is_empty() {
            return Ok(component.into_owned());
        }
        let needs = self.needs.iter().map(|need| need.plan.compose()).collect::<Result<Vec<_>, _>>()?;
        let layers =
            self.middleware.iter().map(|layer| layer.plan.compose()).collect::<Result<Vec<_>, _>>()?;
        let dependencies: Vec<Dependency<'_>> = self
            .needs
            .iter()
            .zip(&needs)
            .map(|(need, bytes)| Dependency {
                name: &need.name,
                code: Code { name: &need.plan.label, bytes },
                export: need.export.as_deref(),
                permissions: need.permissions.clone(),
            })
            .collect();
        let middleware: Vec<Middleware<'_>> = self
            .middleware
            .iter()
            .zip(&layers)
            .map(|(layer, bytes)| Middleware {
                code: Code { name: &layer.plan.label, bytes },
                permissions: layer.permissions.clone(),
            })
            .collect();
        wisp_compose::compose(&Code { name: &self.label, bytes: &component }, &dependencies, &middleware)
    }

    /// Adds all files that it takes.
    fn collect(&self, inputs: &mut Vec<(PathBuf, Option<FileIdentity>)>) {
        inputs.push((self.path.clone(), self.identity));
        self.needs.iter().for_each(|need| need.plan.collect(inputs));
        self.middleware.iter().for_each(|layer| layer.plan.collect(inputs));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_nobody_uses_goes_and_what_is_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let file = |name: &str, age: Duration| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            fs::File::open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
            path
        };
        let old_in_use = file("old-in-use.wasm", day * 40);
        file("old.wasm", day * 31);
        file("third.wasm", day * 3);
        file("second.wasm", day * 2);
        file("first.wasm", Duration::from_secs(60));
        let names = || {
            let mut names: Vec<_> = fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let in_use = HashSet::from([old_in_use.clone()]);
        clean(folder.path(), &in_use, 10).unwrap();
        assert_eq!(names(), ["first.wasm", "old-in-use.wasm", "second.wasm", "third.wasm"]);
        clean(folder.path(), &in_use, 2).unwrap();
        assert_eq!(names(), ["first.wasm", "old-in-use.wasm", "second.wasm"]);
        // However many there are, what was used lately stays.
        clean(folder.path(), &in_use, 0).unwrap();
        assert_eq!(names(), ["first.wasm", "old-in-use.wasm"]);
        // What is used is no longer old.
        touch(&old_in_use);
        clean(folder.path(), &HashSet::new(), 10).unwrap();
        assert_eq!(names(), ["first.wasm", "old-in-use.wasm"]);
    }
}

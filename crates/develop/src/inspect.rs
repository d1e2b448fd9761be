//! `wisp inspect`: what is in a component, or in each of an app.

use std::path::{Path, PathBuf};

use serde::Serialize;
use wisp_compose::{Permissions, permission};
use wisp_engine::{Engine, EngineConfig, ImageStore, Origin};
use wisp_manifest::{
    App, LOCKED_FILE_NAME, MANIFEST_FILE_NAME,
    id::ComponentId,
    model::{DependencySource, HttpRoute, HttpTarget, InheritConfiguration, Inheritable, Source},
};

use crate::{
    Error,
    wasm::{Capability, Wasm},
};

/// What was found out about a file.
#[derive(Clone, Debug, Serialize)]
pub struct Inspected {
    /// The component's id, where the file belongs to an app.
    pub component: Option<String>,
    /// The file.
    pub path: PathBuf,
    /// What it says about itself.
    #[serde(flatten)]
    pub wasm: Wasm,
    /// What it may ask for, each with the imports that say so.
    pub capabilities: Vec<Asked>,
    /// The native code that it becomes, if it was asked for.
    pub image: Option<Image>,
    /// The components that it leaves imports to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Part>,
    /// The components that stand in front of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub middleware: Vec<Chain>,
}

/// A component that is a part of another.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// The imports that it satisfies; none for middleware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imports: Option<String>,
    /// The export that it satisfies them with, where that is called otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// Where it is from, as the manifest says.
    #[serde(flatten)]
    pub from: From,
    /// The file that its code is in.
    pub path: Option<PathBuf>,
    /// What it may reach of that which the component may reach, as a manifest names it.
    pub inherits: Vec<&'static str>,
    /// What it imports and may not reach.
    pub denied: Vec<&'static str>,
    /// Its own parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Part>,
}

/// Where a part is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum From {
    /// A file.
    File,
    /// Another component of the app.
    Component {
        /// Its id.
        component: String,
    },
    /// A download.
    Url {
        /// From where.
        url: String,
        /// What it hashes to.
        digest: String,
    },
    /// A package.
    Package {
        /// Its name.
        package: String,
        /// Which versions will do.
        requirement: String,
        /// The one that was taken.
        version: Option<String>,
        /// The registry that it is from.
        registry: Option<String>,
        /// What it hashes to.
        digest: Option<String>,
    },
}

/// Middleware in front of a component, for one trigger.
#[derive(Clone, Debug, Serialize)]
pub struct Chain {
    /// The trigger's id.
    pub trigger: String,
    /// Its route.
    pub route: String,
    /// The first sees a request first.
    pub layers: Vec<Part>,
}

/// An app, and where those of its parts are that were elsewhere.
pub struct Parts<'a> {
    /// As the manifest says.
    pub app: &'a App,
    /// The same with all of its code here.
    pub fetched: &'a App,
    /// Which version of which registry, and which content, a part is that was elsewhere.
    pub found: &'a dyn Fn(&DependencySource) -> Option<Found>,
}

/// What a package was found to be.
pub struct Found {
    /// The version.
    pub version: Option<String>,
    /// The registry.
    pub registry: Option<String>,
    /// What it hashes to.
    pub digest: String,
}

/// Something that a component may ask for.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// What.
    pub capability: Capability,
    /// The imports that say so.
    pub imports: Vec<String>,
}

/// What becomes of a component when it is compiled.
#[derive(Clone, Debug, Serialize)]
pub struct Image {
    /// The size of what is mapped.
    pub size_bytes: u64,
    /// How much of it is code that other components may have in common with this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_code_bytes: Option<u64>,
    /// How long compiling took; `None` if it was there already.
    pub compile_ms: Option<f64>,
}

/// Looks into a file.
///
/// # Errors
/// [`Error::Inspect`] for what is no WebAssembly, [`Error::File`].
pub fn inspect_file(path: &Path, image_dir: Option<&Path>) -> Result<Inspected, Error> {
    one(None, path.to_owned(), engine(path, image_dir)?.as_ref())
}

/// Reads the manifest of an app that is to be looked into.
///
/// # Errors
/// [`Error::Inspect`].
pub fn read_app(path: &Path) -> Result<App, Error> {
    let read = App::read(path, None).map_err(|problems| Error::Inspect {
        path: path.to_owned(),
        message: format!("its manifest cannot be read:\n{}", problems.render(false, 80).trim_end()),
    })?;
    Ok(read.value)
}

/// Looks into every component of an app.
///
/// # Errors
/// As [`inspect_file`].
pub fn inspect_app(parts: &Parts<'_>, image_dir: Option<&Path>) -> Result<Vec<Inspected>, Error> {
    let engine = engine(&parts.app.file, image_dir)?;
    let mut inspected = Vec::new();
    for component in parts.fetched.components.values() {
        let Some(path) = parts.file(&component.source) else { continue };
        let mut one = one(Some(component.id.to_string()), path, engine.as_ref())?;
        one.dependencies = parts.dependencies(&component.id, &mut vec![&component.id]);
        one.middleware = parts.middleware(&component.id);
        inspected.push(one);
    }
    Ok(inspected)
}

fn engine(path: &Path, image_dir: Option<&Path>) -> Result<Option<Engine>, Error> {
    let Some(folder) = image_dir else { return Ok(None) };
    let refused = |error: wisp_engine::Error| Error::Inspect {
        path: path.to_owned(),
        message: format!("it cannot be compiled: {error}"),
    };
    let config = EngineConfig { pooling: false, ..EngineConfig::default() };
    let images = ImageStore::open(folder).map_err(refused)?;
    Ok(Some(Engine::new(&config, Some(images)).map_err(refused)?))
}

impl Parts<'_> {
    /// A file of the app, as people write it.
    fn file(&self, source: &Source) -> Option<PathBuf> {
        match source {
            Source::Path(path) => Some(self.folder().join(path)),
            Source::Url { .. } | Source::Registry(_) => None,
        }
    }

    fn folder(&self) -> &Path {
        let folder = &self.app.directory;
        folder.strip_prefix(".").unwrap_or(folder)
    }

    /// What a component depends on, and so on.
    fn dependencies<'p>(&'p self, id: &ComponentId, chain: &mut Vec<&'p ComponentId>) -> Vec<Part> {
        let both = self.app.components.get(id).zip(self.fetched.components.get(id));
        let Some((component, fetched)) = both else { return Vec::new() };
        let otherwise = match component.dependencies_inherit_configuration {
            true => Permissions::all(),
            false => Permissions::none(),
        };
        let mut found = Vec::new();
        for ((name, dependency), here) in component.dependencies.iter().zip(fetched.dependencies.values()) {
            let inherit = dependency.inherit.as_ref();
            let mut part = self.part(&dependency.source, &here.source, inherit, &otherwise, chain);
            part.imports = Some(name.to_string());
            part.export = dependency.export.clone();
            found.push(part);
        }
        found
    }

    fn middleware(&self, id: &ComponentId) -> Vec<Chain> {
        let triggers = self.app.http_triggers().zip(self.fetched.http_triggers());
        let of_component = triggers.filter(|((_, http), _)| {
            let is_of_it = matches!(&http.target, HttpTarget::Component { component, .. } if component == id);
            is_of_it && !http.middleware.is_empty()
        });
        let chains = of_component.map(|((trigger, http), (_, here))| Chain {
            trigger: trigger.to_string(),
            route: match &http.route {
                HttpRoute::Pattern(pattern) => pattern.to_string(),
                HttpRoute::Private => "private".to_owned(),
            },
            layers: http
                .middleware
                .iter()
                .zip(&here.middleware)
                .map(|(layer, here)| {
                    let none = Permissions::none();
                    self.part(&layer.source, &here.source, layer.inherit.as_ref(), &none, &mut Vec::new())
                })
                .collect(),
        });
        chains.collect()
    }

    fn part<'p>(
        &'p self,
        source: &'p DependencySource,
        here: &DependencySource,
        inherit: Option<&InheritConfiguration>,
        otherwise: &Permissions,
        chain: &mut Vec<&'p ComponentId>,
    ) -> Part {
        let found = (self.found)(source);
        let digest = found.as_ref().map(|found| found.digest.clone());
        let of_component = |id: &ComponentId| self.fetched.components.get(id).map(|known| &known.source);
        let (from, dependencies) = match source {
            DependencySource::Path(_) => (From::File, Vec::new()),
            DependencySource::Component(id) => {
                // A circle is refused by whoever composes.
                let dependencies = if chain.contains(&id) {
                    Vec::new()
                } else {
                    chain.push(id);
                    let dependencies = self.dependencies(id, chain);
                    chain.pop();
                    dependencies
                };
                (From::Component { component: id.to_string() }, dependencies)
            }
            DependencySource::Url { url, digest } => {
                (From::Url { url: url.to_string(), digest: digest.to_string() }, Vec::new())
            }
            DependencySource::Registry { registry, package, version } => {
                let (taken, of) = found.map_or((None, None), |found| (found.version, found.registry));
                let from = From::Package {
                    package: package.to_string(),
                    requirement: version.to_string(),
                    version: taken,
                    registry: of.or_else(|| registry.clone()),
                    digest,
                };
                (from, Vec::new())
            }
        };
        let path = match here {
            DependencySource::Path(path) => Some(self.folder().join(path)),
            DependencySource::Component(id) => of_component(id).and_then(|source| self.file(source)),
            DependencySource::Url { .. } | DependencySource::Registry { .. } => None,
        };
        let permissions = Permissions::of(inherit, otherwise.clone());
        let mut denied: Vec<&'static str> = Vec::new();
        // What cannot be read is said by whoever composes.
        if let Some(wasm) = path.as_ref().and_then(|path| Wasm::read(path).ok()) {
            let asked = wasm.imports.iter().filter_map(|import| permission(import));
            denied.extend(asked.filter(|asked| !permissions.has(*asked)).map(Inheritable::name));
            denied.sort_unstable();
            denied.dedup();
        }
        Part {
            imports: None,
            export: None,
            from,
            path,
            inherits: permissions.names().collect(),
            denied,
            dependencies,
        }
    }
}

/// Whether a path is that of an app, and not of a component.
pub fn is_app(path: &Path) -> bool {
    path.is_dir()
        || path.file_name().is_some_and(|name| name == LOCKED_FILE_NAME)
        || path.file_name().is_some_and(|name| name == MANIFEST_FILE_NAME)
        || path.extension().is_some_and(|extension| extension == "toml")
}

fn one(component: Option<String>, path: PathBuf, engine: Option<&Engine>) -> Result<Inspected, Error> {
    let wasm = Wasm::read(&path)?;
    let capabilities = wasm.capabilities().into_iter().map(|(capability, imports)| Asked {
        capability,
        imports: imports.into_iter().map(str::to_owned).collect(),
    });
    let capabilities = capabilities.collect();
    let image = match engine {
        None => None,
        Some(engine) => {
            let loaded = engine
                .load_file(&path)
                .map_err(|error| Error::Inspect { path: path.clone(), message: error.to_string() })?;
            Some(Image {
                size_bytes: loaded.image.image_bytes() + loaded.image.shared_code_bytes().unwrap_or(0),
                shared_code_bytes: loaded.image.shared_code_bytes(),
                compile_ms: match loaded.origin {
                    Origin::Compiled(duration) => Some(duration.as_secs_f64() * 1e3),
                    Origin::Mapped | Origin::Shared(_) => None,
                },
            })
        }
    };
    let (dependencies, middleware) = (Vec::new(), Vec::new());
    Ok(Inspected { component, path, wasm, capabilities, image, dependencies, middleware })
}

//! `wisp inspect`: what is in a component, or in each of an app.

use std::path::{Path, PathBuf};

use serde::Serialize;
use wisp_engine::{Engine, EngineConfig, ImageStore, Origin};
use wisp_manifest::{App, MANIFEST_FILE_NAME, model::Source};

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
    /// The size of the file that is mapped.
    pub size_bytes: u64,
    /// How long compiling took; `None` if it was there already.
    pub compile_ms: Option<f64>,
}

/// Looks into a file, or into every component of an app.
///
/// # Errors
/// [`Error::Inspect`] for what is no WebAssembly, [`Error::File`].
pub fn inspect(path: &Path, image_dir: Option<&Path>) -> Result<Vec<Inspected>, Error> {
    let files: Vec<(Option<String>, PathBuf)> = if is_app(path) {
        let app = App::read(path, None).map_err(|problems| Error::Inspect {
            path: path.to_owned(),
            message: format!("its manifest cannot be read:\n{}", problems.render(false, 80).trim_end()),
        })?;
        let app = app.value;
        let files = app.components.values().filter_map(|component| match &component.source {
            Source::Path(source) => {
                // As people write it.
                let folder = app.directory.strip_prefix(".").unwrap_or(&app.directory);
                Some((Some(component.id.to_string()), folder.join(source)))
            }
            Source::Url { .. } | Source::Registry(_) => None,
        });
        files.collect()
    } else {
        vec![(None, path.to_owned())]
    };
    let engine = match image_dir {
        None => None,
        Some(folder) => {
            let refused = |error: wisp_engine::Error| Error::Inspect {
                path: path.to_owned(),
                message: format!("it cannot be compiled: {error}"),
            };
            let config = EngineConfig { pooling: false, ..EngineConfig::default() };
            let images = ImageStore::open(folder).map_err(refused)?;
            Some(Engine::new(&config, Some(images)).map_err(refused)?)
        }
    };
    files.into_iter().map(|(component, path)| one(component, path, engine.as_ref())).collect()
}

fn is_app(path: &Path) -> bool {
    path.is_dir()
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
                size_bytes: loaded.image.image_bytes(),
                compile_ms: match loaded.origin {
                    Origin::Compiled(duration) => Some(duration.as_secs_f64() * 1e3),
                    Origin::Mapped => None,
                },
            })
        }
    };
    Ok(Inspected { component, path, wasm, capabilities, image })
}

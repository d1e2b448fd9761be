//! `spin-dependencies.wit`: what a component's dependencies offer, where its build
//! command finds it.

use std::{fs, path::PathBuf};

use wisp_compose::{
    Code,
    bindings::{FILE_NAME, Offer, wit},
};
use wisp_engine::normalize::normalize;
use wisp_manifest::{
    App,
    model::{DependencyName, DependencySource, Source},
};

use super::Job;
use crate::Error;

/// A dependency whose code is in a file.
struct Found<'a> {
    name: &'a DependencyName,
    export: Option<&'a str>,
    label: String,
    path: PathBuf,
}

/// Writes the file for the components of a job, if any of them has dependencies. One that
/// says the same already is left as it is, so that nothing is built again for it.
///
/// # Errors
/// [`Error::File`], [`Error::Inspect`], [`Error::Composition`].
pub(crate) fn write(app: &App, job: &Job) -> Result<(), Error> {
    let found = found(app, job);
    if found.is_empty() {
        return Ok(());
    }
    let mut components = Vec::with_capacity(found.len());
    for dependency in &found {
        let bytes = fs::read(&dependency.path).map_err(Error::file("read", &dependency.path))?;
        let component = normalize(&bytes)
            .map_err(|error| Error::Inspect { path: dependency.path.clone(), message: error.to_string() })?;
        components.push(component.component.into_owned());
    }
    let offers: Vec<Offer<'_>> = found
        .iter()
        .zip(&components)
        .map(|(dependency, bytes)| Offer {
            name: dependency.name,
            code: Code { name: &dependency.label, bytes },
            export: dependency.export,
        })
        .collect();
    let text = wit(&offers)?;
    let path = job.workdir.join(FILE_NAME);
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(&path, text).map_err(Error::file("write", path))
}

/// The dependencies of a job's components, each once.
fn found<'a>(app: &'a App, job: &Job) -> Vec<Found<'a>> {
    let mut found: Vec<Found<'_>> = Vec::new();
    let components = app.components.values();
    for component in components.filter(|known| job.components.iter().any(|id| id == known.id.as_str())) {
        for (name, dependency) in &component.dependencies {
            let source = match &dependency.source {
                DependencySource::Path(path) => Some(path),
                DependencySource::Component(id) => match &app.components.get(id).map(|other| &other.source) {
                    Some(Source::Path(path)) => Some(path),
                    _ => None,
                },
                // What is not here cannot be looked into.
                DependencySource::Url { .. } | DependencySource::Registry { .. } => None,
            };
            let Some(source) = source else { continue };
            let path = app.directory.join(source);
            if !found.iter().any(|known| known.name == name && known.path == path) {
                let label = format!("the dependency `{name}` (`{}`)", source.display());
                found.push(Found { name, export: dependency.export.as_deref(), label, path });
            }
        }
    }
    found
}

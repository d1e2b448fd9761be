//! Templates of apps and components.
//!
//! The format is Spin's: a folder with `metadata/spin-template.toml` and `content/`,
//! whose files are Liquid. A template is read as a whole ([`Template`]), from this
//! binary, a folder, a git repository, or what `wisp templates install` has kept
//! ([`Catalog`]). Then it is asked what it wants to know ([`Template::questions`]), and
//! its files are made in memory ([`Template::render`]); only when all of them are there
//! something is written ([`Project::write`]). So a template that fails leaves nothing.

mod catalog;
mod filters;
mod manifest;
mod project;

pub use catalog::{Catalog, Origin, uninstall};
pub use manifest::{Parameter, Question};
pub(crate) use project::replace as replace_file;
pub use project::{Project, Purpose, Request, parse_values};

use std::{borrow::Cow, path::PathBuf};

use indexmap::IndexMap;

use self::manifest::Metadata;

/// A template.
#[derive(Clone, Debug)]
pub struct Template {
    metadata: Metadata,
    /// Below `content/`.
    content: Vec<File>,
    /// Below `metadata/snippets/`, by name.
    snippets: IndexMap<String, String>,
    /// Below `metadata/partials/`, by name.
    partials: IndexMap<String, String>,
    origin: Origin,
    /// All of it, as it lies in its folder.
    files: Vec<File>,
}

/// A file of a template.
#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    bytes: Cow<'static, [u8]>,
    is_executable: bool,
}

impl Template {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.metadata.id
    }

    /// What it makes, in a few words.
    pub fn description(&self) -> &str {
        self.metadata.description.as_deref().unwrap_or_default()
    }

    /// Words to find it by.
    pub fn tags(&self) -> &[String] {
        &self.metadata.tags
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether it can make an app, or add a component to one.
    pub fn supports(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::New => self.metadata.new_application.supported.unwrap_or(true),
            Purpose::Add => match &self.metadata.add_component {
                Some(variant) => variant.supported.unwrap_or(true),
                None => false,
            },
        }
    }

    /// What it wants to know, apart from the name.
    pub fn questions(&self, purpose: Purpose) -> Vec<Question<'_>> {
        let skipped = self.metadata.variant(purpose).map(|variant| &variant.skip_parameters[..]);
        self.metadata
            .parameters
            .iter()
            .filter(|(name, _)| !skipped.is_some_and(|skipped| skipped.contains(name)))
            .map(|(name, parameter)| Question { name, parameter })
            .collect()
    }
}

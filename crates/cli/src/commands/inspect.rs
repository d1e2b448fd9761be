//! `wisp inspect`: what is in a component.

use std::path::{Path, PathBuf};

use clap::Args;
use wisp_develop::{
    inspect::{self, From, Inspected, Part, Parts},
    wasm::Kind,
};

use wisp_image::packages::{Elsewhere, is_needed};
use wisp_manifest::model::DependencySource;

use super::{
    common::{Format, image_dir},
    packages::Fetcher,
};
use crate::{
    error::Error,
    output::{self, bytes},
};

/// Show what is in a component, or in each of an app.
#[derive(Args)]
pub(crate) struct Inspect {
    /// A `.wasm` file, a `spin.toml`, or a folder with one.
    #[arg(default_value = ".")]
    path: PathBuf,

    /// Do not compile it to know the size of its compiled image.
    #[arg(long)]
    no_compile: bool,

    /// How it is printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,

    /// Where compiled components are kept [default: `wisp` in the user's cache folder].
    #[arg(long, value_name = "DIR", env = "WISP_CACHE_DIR", hide_env_values = true)]
    cache_dir: Option<PathBuf>,
}

impl Inspect {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let images = (!self.no_compile).then(|| image_dir(self.cache_dir.as_deref()));
        let inspected = match inspect::is_app(&self.path) {
            true => self.inspect_app(images.as_deref())?,
            false => vec![inspect::inspect_file(&self.path, images.as_deref())?],
        };
        match self.format {
            Format::Json => output::data(&format!("{}\n", serde_json::json!(inspected))),
            Format::Plain => {
                let texts: Vec<_> = inspected.iter().map(shown).collect();
                output::data(&texts.join("\n"));
            }
        }
        Ok(())
    }

    /// Looks into an app whose code may be elsewhere.
    fn inspect_app(&self, images: Option<&Path>) -> Result<Vec<Inspected>, Error> {
        let app = inspect::read_app(&self.path)?;
        let here = match is_needed(&app) {
            true => Some(Fetcher::new(&app, self.cache_dir.as_deref(), false)?.app(&app)?),
            false => None,
        };
        let found = |source: &DependencySource| {
            let found = here.as_ref()?.fetched.get(&Elsewhere::of_dependency(source)?)?;
            let (version, registry) = found.version.clone().unzip();
            Some(inspect::Found {
                version: version.map(|version| version.to_string()),
                registry,
                digest: found.digest.to_string(),
            })
        };
        let fetched = here.as_ref().map_or(&app, |here| &here.app);
        Ok(inspect::inspect_app(&Parts { app: &app, fetched, found: &found }, images)?)
    }
}

/// A part and its own, for people.
fn part(text: &mut String, part: &Part, name: &str, indent: usize) {
    let mut title = format!("{:indent$}{name}", "");
    if let Some(export) = &part.export {
        title.push_str(&format!(" (its export `{export}`)"));
    }
    text.push_str(&format!("{title}\n"));
    let mut row = |key: &str, value: &str| {
        let line = format!("{:indent$}  {key:<9} {value}", "");
        text.push_str(&output::wrapped(&line, indent + 12));
    };
    let path = part.path.as_ref().map(|path| path.display().to_string());
    let (from, digest) = match &part.from {
        From::File => (path.unwrap_or_default(), None),
        From::Component { component } => (format!("component `{component}`"), None),
        From::Url { url, digest } => (url.clone(), Some(digest)),
        From::Package { package, version, registry, requirement, digest } => {
            let version = version.as_ref().unwrap_or(requirement);
            let of = registry.as_ref().map_or(String::new(), |registry| format!(" of {registry}"));
            (format!("{package} {version}{of}"), digest.as_ref())
        }
    };
    let listed = |names: &[&str], nothing: &str| match names {
        [] => nothing.to_owned(),
        names => names.join(", "),
    };
    row("from", &from);
    if let Some(digest) = digest {
        row("digest", digest);
    }
    row("inherits", &listed(&part.inherits, "nothing"));
    row("denied", &listed(&part.denied, "nothing that it imports"));
    for inner in &part.dependencies {
        self::part(text, inner, inner.imports.as_deref().unwrap_or_default(), indent + 2);
    }
}

fn shown(inspected: &Inspected) -> String {
    let wasm = &inspected.wasm;
    let mut text = match &inspected.component {
        Some(component) => format!("component `{component}`: {}\n", inspected.path.display()),
        None => format!("{}\n", inspected.path.display()),
    };
    let mut row = |name: &str, value: String| text.push_str(&format!("  {name:<13} {value}\n"));
    let kind = match wasm.kind {
        Kind::Component => "component",
        Kind::Module => "core module, which becomes a component",
    };
    let flavor = if wasm.is_concurrent { ", asynchronous (WASI 0.3)" } else { "" };
    row("kind", format!("{kind}{flavor}"));
    row("size", format!("{}, {} core modules", bytes(wasm.size_bytes), wasm.modules_count));
    let sizes = &wasm.sizes;
    row("  code", bytes(sizes.code_bytes));
    row("  data", bytes(sizes.data_bytes));
    row("  custom", bytes(sizes.custom_bytes));
    row("  other", bytes(sizes.other_bytes));
    if let Some(image) = &inspected.image {
        let how = match image.compile_ms {
            Some(ms) => format!("compiled in {:.1} s", ms / 1e3),
            None => "compiled before".into(),
        };
        row("image", format!("{}, {how}", bytes(image.size_bytes)));
    }
    let or_unknown = |list: &[String]| if list.is_empty() { "not said".into() } else { list.join(", ") };
    row("languages", or_unknown(&wasm.languages));
    row("made by", or_unknown(&wasm.producers));
    let asked: Vec<_> = inspected.capabilities.iter().map(|asked| asked.capability.title()).collect();
    row(
        "may ask for",
        if asked.is_empty() { "nothing that must be granted".into() } else { asked.join(", ") },
    );
    if !inspected.dependencies.is_empty() {
        text.push_str("  composed of\n");
        for dependency in &inspected.dependencies {
            part(&mut text, dependency, dependency.imports.as_deref().unwrap_or_default(), 4);
        }
    }
    for chain in &inspected.middleware {
        text.push_str(&format!("  behind, for {}\n", chain.route));
        for (number, layer) in chain.layers.iter().enumerate() {
            part(&mut text, layer, &format!("middleware {}", number + 1), 4);
        }
    }
    for (title, names) in [("exports", &wasm.exports), ("imports", &wasm.imports)] {
        text.push_str(&format!("  {title}\n"));
        for name in names {
            text.push_str(&format!("    {name}\n"));
        }
    }
    text
}

//! `wisp inspect`: what is in a component.

use std::path::PathBuf;

use clap::Args;
use wisp_develop::{
    inspect::{self, Inspected},
    wasm::Kind,
};

use super::common::{Format, image_dir};
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
        let inspected = inspect::inspect(&self.path, images.as_deref())?;
        match self.format {
            Format::Json => output::data(&format!("{}\n", serde_json::json!(inspected))),
            Format::Plain => {
                let texts: Vec<_> = inspected.iter().map(shown).collect();
                output::data(&texts.join("\n"));
            }
        }
        Ok(())
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
    for (title, names) in [("exports", &wasm.exports), ("imports", &wasm.imports)] {
        text.push_str(&format!("  {title}\n"));
        for name in names {
            text.push_str(&format!("    {name}\n"));
        }
    }
    text
}

//! The `optimize` bench: the examples in JavaScript and Python as their toolchains make
//! them, and what `wisp build --optimize` makes of that. The figures are its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::error::Error;
use crate::peer::Sources;
use crate::report::{self, Conditions, Output, Table, progress};
use crate::start::Desk;

/// The examples.
const EXAMPLES: [&str; 2] = ["js-hello", "python-hello"];

/// What toolchains leave in a folder.
const LEFTOVERS: [&str; 5] = ["node_modules", "build", "dist", ".spin", "__pycache__"];

/// Options of the `optimize` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What is taken away, as `wisp build --strip` has it
    #[arg(long, default_value = "debug")]
    strip: String,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    output: Output,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    figures: BTreeMap<String, f64>,
    #[serde(flatten)]
    conditions: Conditions,
    examples: Vec<(String, Value)>,
}

/// Runs the bench.
///
/// # Errors
/// If an example does not build.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let wisp = options.sources.wisp()?;
    let mut examples = Vec::new();
    let mut figures = BTreeMap::new();
    for example in EXAMPLES {
        progress(&format!("{example}: built and optimized"));
        let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
        let app = folder.path().join("app");
        // `cargo xtask bench` starts this in the project's folder.
        copy(&Path::new("examples").join(example), &app)?;
        let desk = Desk { wisp: &wisp, cache: folder.path().join("cache"), data: folder.path().join("data") };
        let arguments = ["build", "--optimize", "--strip", &options.strip, "--format", "json"];
        let (output, _) = desk.run(&app, &arguments)?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .map_err(|cause| Error::Usage(format!("`wisp build` says no JSON: {cause}")))?;
        let report = said["optimized"][0].clone();
        for (figure, name) in [("size_bytes", "bytes"), ("start_up_us", "start_up")] {
            let of = |when: &str| report[when][figure].as_f64();
            if let (Some(before), Some(after)) = (of("before"), of("after")) {
                let name = format!("{}_{name}_after_over_before", example.replace('-', "_"));
                figures.insert(name, report::rounded(after / before));
            }
        }
        examples.push((example.to_owned(), report));
    }
    let figures = Figures { figures, conditions, examples };
    options.output.finish("optimize", &figures, &figures.text(), None)
}

/// Copies a folder of sources.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::writing(to))?;
    for entry in fs::read_dir(from).map_err(Error::reading(from))? {
        let entry = entry.map_err(Error::reading(from))?;
        let (path, place) = (entry.path(), to.join(entry.file_name()));
        if LEFTOVERS.iter().any(|leftover| entry.file_name() == *leftover) {
            continue;
        }
        if path.is_dir() {
            copy(&path, &place)?;
        } else {
            fs::copy(&path, &place).map_err(Error::reading(&path))?;
        }
    }
    Ok(())
}

impl Figures {
    fn text(&self) -> String {
        let titles = ["example", "", "MiB before", "after", "start-up ms before", "after"];
        let mut table = Table::new(&titles);
        let mut notes = String::new();
        for (example, report) in &self.examples {
            let of = |when: &str, figure: &str| report[when][figure].as_f64().unwrap_or_default();
            let mebibytes = |when| report::number(of(when, "size_bytes") / (1024.0 * 1024.0));
            let ms = |when| report::number(of(when, "start_up_us") / 1e3);
            table.push(vec![
                example.clone(),
                String::new(),
                mebibytes("before"),
                mebibytes("after"),
                ms("before"),
                ms("after"),
            ]);
            for step in ["snapshot", "wasm_opt", "strip"] {
                let note = report[step]["note"].as_str().unwrap_or_default();
                notes.push_str(&format!("- {example}, {}: {note}\n", step.replace('_', "-")));
            }
            if let Some(refused) = report["refused"].as_str() {
                notes.push_str(&format!("- {example} stays as it was: {refused}\n"));
            }
        }
        format!(
            "{}\nStart-up is from the mapped image to the answer, with an instance made for the request:\nthe \
             median of what `wisp build --optimize` measures itself.\n\n{}\n{notes}\n{}",
            report::preamble("What `wisp build --optimize` makes of examples", &self.conditions),
            table.markdown(),
            report::figures_table(&self.figures, &[]),
        )
    }
}

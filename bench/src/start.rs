//! The `start` bench: `wisp new`, `wisp build`, `wisp up` and the first answer, for each
//! template, beginning with an empty folder and empty caches of Wisp.
//!
//! What the language's own tools take is told apart: `wisp build` says how long the
//! commands ran. The rest is Wisp's own: making the files, digests of inputs, compiling to
//! native code, linking, starting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output as ProcessOutput, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{self, Client};
use crate::error::Error;
use crate::peer::Sources;
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::server::Plan;

/// The templates, in the order of the table.
const TEMPLATES: [&str; 11] = [
    "http-rust",
    "http-rust-wasi",
    "http-ts",
    "http-js",
    "http-py",
    "http-go",
    "http-c",
    "http-zig",
    "http-as",
    "static-fileserver",
    "redirect",
];

/// What Wisp itself may take for the smallest app of a language that is compiled.
const TARGETS: [(&str, Target); 1] = [("http_rust_own_ms", Target::AtMost(1000.0))];

/// How long the first answer may let itself be waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of the `start` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these templates
    #[arg(long, value_name = "TEMPLATE")]
    only: Vec<String>,
    /// Rounds for each template; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
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
    rounds: usize,
    templates: Vec<Row>,
}

/// What one template took.
#[derive(Serialize)]
struct Row {
    template: &'static str,
    new_ms: f64,
    build_ms: f64,
    /// The part of it in which the language's tools ran.
    tools_ms: f64,
    /// From the start of `wisp up` to the first bytes of an answer.
    up_ms: f64,
    status: u16,
}

impl Row {
    fn total_ms(&self) -> f64 {
        self.new_ms + self.build_ms + self.up_ms
    }

    fn own_ms(&self) -> f64 {
        self.total_ms() - self.tools_ms
    }
}

/// Runs the bench.
///
/// # Errors
/// If a template does not build or does not answer.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let wisp = options.sources.wisp()?;
    let is_wanted =
        |template: &&'static str| options.only.is_empty() || options.only.iter().any(|only| only == template);
    let mut rows = Vec::new();
    for template in TEMPLATES.into_iter().filter(is_wanted) {
        progress(&format!("{template}: from an empty folder to the first answer"));
        let rounds: Result<Vec<Row>, Error> = (0..options.rounds).map(|_| measure(&wisp, template)).collect();
        rows.extend(middle(rounds?));
    }
    let own =
        |row: &Row| (format!("{}_own_ms", row.template.replace('-', "_")), report::rounded(row.own_ms()));
    let (own, rounds) = (rows.iter().map(own).collect(), options.rounds);
    let figures = Figures { figures: own, conditions, rounds, templates: rows };
    options.output.finish("start", &figures, &figures.text(), None)
}

/// The round in the middle by what Wisp itself took.
fn middle(mut rounds: Vec<Row>) -> Option<Row> {
    rounds.sort_by(|one, other| one.own_ms().total_cmp(&other.own_ms()));
    let middle = rounds.len().checked_sub(1)? / 2;
    Some(rounds.swap_remove(middle))
}

fn measure(wisp: &Path, template: &'static str) -> Result<Row, Error> {
    let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
    let app = folder.path().join("my-app");
    let desk = Desk { wisp, cache: folder.path().join("cache"), data: folder.path().join("data") };
    let (_, new) =
        desk.run(folder.path(), &["new", "my-app", "--template", template, "--accept-defaults"])?;
    let (built, build) = desk.run(&app, &["build", "--format", "json"])?;
    let said: Value = serde_json::from_slice(&built.stdout)
        .map_err(|cause| Error::Usage(format!("`wisp build` says no JSON: {cause}")))?;
    let jobs = said["built"].as_array().into_iter().flatten();
    let tools_ms = jobs.filter_map(|job| job["ms"].as_f64()).fold(0.0, |sum, ms| sum + ms);
    let started = Instant::now();
    let server = desk.plan(&app).start()?;
    let wrong = |cause| Error::Answer { name: template.to_owned(), cause };
    let mut client = Client::open_with(server.address(), PATIENCE).map_err(wrong)?;
    let answer = client.fetch(&client::request("GET", "localhost", "/")).map_err(wrong)?;
    let up = answer.first_byte.saturating_duration_since(started);
    let status = answer.response.status;
    if status >= 400 {
        return Err(Error::Answer { name: template.to_owned(), cause: format!("it answers with {status}") });
    }
    let ms = |duration: Duration| report::rounded(duration.as_secs_f64() * 1e3);
    Ok(Row { template, new_ms: ms(new), build_ms: ms(build), tools_ms, up_ms: ms(up), status })
}

/// Where a person sits who has never used Wisp.
pub(crate) struct Desk<'desk> {
    pub(crate) wisp: &'desk Path,
    pub(crate) cache: PathBuf,
    pub(crate) data: PathBuf,
}

impl Desk<'_> {
    /// Runs `wisp` to its end.
    ///
    /// # Errors
    /// If it fails; what it says goes to standard error.
    pub(crate) fn run(&self, folder: &Path, arguments: &[&str]) -> Result<(ProcessOutput, Duration), Error> {
        let started = Instant::now();
        let output = Command::new(self.wisp)
            .args(arguments)
            .current_dir(folder)
            .env("WISP_CACHE_DIR", &self.cache)
            .env("XDG_DATA_HOME", &self.data)
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io(format!("cannot start `{}`", self.wisp.display())))?;
        let took = started.elapsed();
        if output.status.success() {
            return Ok((output, took));
        }
        progress(&String::from_utf8_lossy(&output.stderr));
        Err(Error::Command { command: format!("wisp {}", arguments.join(" ")), status: output.status })
    }

    fn plan(&self, app: &Path) -> Plan {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let arguments = ["up", "--listen", "127.0.0.1:0", "--cache-dir"].map(str::to_owned);
        Plan {
            name: "wisp up".to_owned(),
            program: self.wisp.to_owned(),
            arguments: arguments.into_iter().chain([text(&self.cache), "--from".into(), text(app)]).collect(),
            has_admin: false,
        }
    }
}

impl Figures {
    fn text(&self) -> String {
        let titles = [
            "template",
            "first answer",
            "new ms",
            "build ms",
            "of it tools",
            "up ms",
            "total ms",
            "Wisp's own ms",
        ];
        let mut table = Table::new(&titles);
        for row in &self.templates {
            let times = [row.new_ms, row.build_ms, row.tools_ms, row.up_ms, row.total_ms(), row.own_ms()]
                .map(report::number);
            table.push([row.template.to_owned(), row.status.to_string()].into_iter().chain(times).collect());
        }
        format!(
            "{}\nFrom an empty folder, with empty caches of Wisp: `wisp new my-app -t TEMPLATE -a`, \
             `wisp build`,\n`wisp up`, until the first bytes of an answer to `GET /`. Packages that the tools \
             fetch\n(npm, pip, cargo) count as theirs. The round in the middle of {} by Wisp's own time.\n\n{}\n{}",
            report::preamble("From nothing to the first answer", &self.conditions),
            self.rounds,
            table.markdown(),
            report::figures_table(&self.figures, &TARGETS),
        )
    }
}

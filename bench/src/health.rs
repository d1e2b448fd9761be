//! The `health` bench: what it costs to know how a hundred thousand apps are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;

use crate::error::Error;
use crate::fleet::Fleet;
use crate::guest::Guest;
use crate::peer::Sources;
use crate::report::{self, Conditions, Output, Table, Target};
use crate::serve::Setting;

/// What the figures are to be.
const TARGETS: [(&str, Target); 2] =
    [("sweep_cpu_ms", Target::AtMost(50.0)), ("continuous_core_share", Target::AtMost(0.001))];

/// Options of the `health` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Registered apps
    #[arg(long, default_value_t = 100_000)]
    count: usize,
    /// Sweeps over all of them
    #[arg(long, default_value_t = 10)]
    sweeps: usize,
    /// Seconds that nothing is asked
    #[arg(long, default_value_t = 20.0)]
    idle_seconds: f64,
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
    sweeps: Vec<Sweep>,
    apps: usize,
    idle_seconds: f64,
    #[serde(flatten)]
    conditions: Conditions,
}

/// One call that answers how all apps are.
#[derive(Serialize)]
struct Sweep {
    cpu_ms: f64,
    elapsed_ms: f64,
    response_bytes: usize,
}

/// Runs the bench.
///
/// # Errors
/// If something could not be built or started, or the server does not know all apps.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let wisp = options.sources.wisp()?;
    let files = options.sources.guests(&[Guest::Tiny])?;
    let fleet = Fleet::make(Guest::Tiny, files.first().map_or("".as_ref(), |file| file), options.count)?;
    let setting = Setting::of(&wisp, &fleet);
    setting.compile(&fleet)?;
    let node = setting.start()?;
    node.wait_until_prepared(options.count)?;
    let mut sweeps = Vec::with_capacity(options.sweeps);
    for _ in 0..options.sweeps {
        let (before, start) = (node.cpu()?, Instant::now());
        let response_bytes = node.health_text()?.len();
        let elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
        let cpu_ms = node.cpu()?.since(&before).total_ns as f64 / 1e6;
        sweeps.push(Sweep { cpu_ms, elapsed_ms, response_bytes });
    }
    let idle_time = Duration::from_secs_f64(options.idle_seconds);
    let idle = node.idle_core_share(idle_time)?;
    drop(node);
    let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
    let idle_empty = Setting::empty(&wisp, folder.path())?.start()?.idle_core_share(idle_time)?;
    let median = report::median(sweeps.iter().map(|sweep| sweep.cpu_ms).collect()).unwrap_or(0.0);
    let figures = Figures {
        figures: BTreeMap::from([
            ("sweep_cpu_ms".to_owned(), report::rounded(median)),
            ("continuous_core_share".to_owned(), idle),
            ("continuous_core_share_without_apps".to_owned(), idle_empty),
        ]),
        sweeps,
        apps: options.count,
        idle_seconds: options.idle_seconds,
        conditions,
    };
    options.output.finish("health", &figures, &figures.text(), None)
}

impl Figures {
    fn text(&self) -> String {
        let mut table = Table::new(&["sweep", "apps", "server CPU ms", "elapsed ms", "response KiB"]);
        for (index, sweep) in self.sweeps.iter().enumerate() {
            table.push(vec![
                (index + 1).to_string(),
                self.apps.to_string(),
                report::number(sweep.cpu_ms),
                report::number(sweep.elapsed_ms),
                report::number(sweep.response_bytes as f64 / 1024.0),
            ]);
        }
        format!(
            "{}- Terms: {} registered apps, idle for {} s\n\n{}\n{}",
            report::preamble("What knowing the health of all apps costs", &self.conditions),
            self.apps,
            self.idle_seconds,
            table.markdown(),
            report::figures_table(&self.figures, &TARGETS),
        )
    }
}

//! The `neighbour` bench: what an app notices of one that takes all it can get.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;

use crate::attack::{Attack, Kind};
use crate::client;
use crate::error::Error;
use crate::fleet;
use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::load;
use crate::pace::{self, Pace, Same};
use crate::peer::Sources;
use crate::plot::{Line, Panel, Plot};
use crate::process::Holding;
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::response::Expected;
use crate::serve::{Node, Setting};

/// The share of the machine that app A's requests use on the server.
const SHARE: f64 = 0.25;
/// Requests a second at which finding out how many use that share begins, how long one
/// try takes, and how many there are.
const FIRST_RATE: f64 = 5_000.0;
const CALIBRATION_TIME: Duration = Duration::from_secs(2);
const CALIBRATIONS_COUNT: usize = 3;
/// The host of the app that is to notice nothing.
const VICTIM: &str = "a.bench.test";
/// The host of the app that attacks.
const ATTACKER: &str = "attacker.bench.test";
/// The memory that an instance may have, in bytes: the machine of the bench must
/// survive all of the attacker's at once, even if nothing else limits it.
const INSTANCE_BYTES: u64 = 256 * 1024 * 1024;
/// What the attacker may do: it is granted what the attacks need.
const ATTACKER_SETTINGS: &str = "allowed_outbound_hosts = [\"*://127.0.0.1:*\"]\n";

/// Options of the `neighbour` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds that A is measured, alone and beside each attacker
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Seconds of A's load, and of the attack, before
    #[arg(long, default_value_t = 2.0)]
    warm_up_seconds: f64,
    /// A's connections
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// A's requests a second; as many as use a quarter of the machine unless told
    #[arg(long)]
    rate: Option<f64>,
    /// Rounds over all attackers; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Attack only in these ways
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// A further argument for `wisp serve`; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    serve_flag: Vec<String>,
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
    rows: Vec<Row>,
    rate: f64,
    cpu_us_per_request: f64,
    seconds: f64,
    rounds: usize,
    #[serde(flatten)]
    conditions: Conditions,
}

/// A beside one attacker, in the median round.
#[derive(Serialize)]
struct Row {
    attacker: String,
    p99_ratio: f64,
    errors: u64,
    alone: Latencies,
    attacked: Latencies,
    /// What the server used for everybody, in cores.
    cores_used: f64,
    resident_bytes: u64,
    #[serde(skip)]
    alone_ns: Histogram,
    #[serde(skip)]
    attacked_ns: Histogram,
}

/// A's latencies, from when each request was due.
#[derive(Clone, Copy, Serialize)]
struct Latencies {
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

/// A's load at one node.
struct Victim<'options> {
    options: &'options Options,
    pace: Pace,
    script: Same,
}

/// Runs the bench.
///
/// # Errors
/// If something could not be built or started, or A answers wrongly when it is alone.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let kinds = Kind::ALL
        .into_iter()
        .filter(|kind| options.only.is_empty() || options.only.iter().any(|name| name == kind.key()))
        .collect::<Vec<_>>();
    if kinds.is_empty() {
        return Err(Error::Usage("no attacker is left: `--only` names none that exists".to_owned()));
    }
    let conditions = Conditions::now();
    let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
    let files = options.sources.guests(&[Guest::RustP2, Guest::Attacker])?;
    let apps = folder.path().join("apps");
    for ((host, settings), file) in [(VICTIM, ""), (ATTACKER, ATTACKER_SETTINGS)].into_iter().zip(&files) {
        let wasm = std::fs::read(file).map_err(Error::reading(file))?;
        fleet::write_app(&apps.join(host), &wasm, settings)?;
    }
    let setting = Setting {
        wisp: options.sources.wisp()?,
        apps,
        images: folder.path().join("images"),
        flags: ["--max-instance-memory".to_owned(), INSTANCE_BYTES.to_string()]
            .into_iter()
            .chain(options.serve_flag.iter().cloned())
            .collect(),
    };
    let (cpu_us_per_request, rate) = calibrate(&setting, options)?;
    progress(&format!("A: {rate:.0} requests/s, {} µs each", report::number(cpu_us_per_request)));
    let mut rows = Vec::new();
    for kind in kinds {
        let mut rounds = Vec::with_capacity(options.rounds);
        for round in 0..options.rounds {
            let row = measure(&setting, options, rate, kind)?;
            progress(&format!(
                "round {} of {}: {}: p99 {} µs alone, {} µs attacked, {} errors",
                round + 1,
                options.rounds,
                row.attacker,
                report::number(row.alone.p99_us),
                report::number(row.attacked.p99_us),
                row.errors
            ));
            rounds.push(row);
        }
        rows.extend(middle(rounds).map(|row| (kind, row)));
    }
    let mut figures = BTreeMap::new();
    for (kind, row) in &rows {
        figures.insert(format!("{}_p99_ratio", kind.key()), report::rounded(row.p99_ratio));
        figures.insert(format!("{}_errors", kind.key()), row.errors as f64);
    }
    let rows = rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>();
    let worst = rows.iter().map(|row| row.p99_ratio).fold(0.0, f64::max);
    figures.insert("p99_ratio".to_owned(), report::rounded(worst));
    figures.insert("errors".to_owned(), rows.iter().map(|row| row.errors as f64).sum());
    let figures = Figures {
        figures,
        rows,
        rate,
        cpu_us_per_request,
        seconds: options.seconds,
        rounds: options.rounds,
        conditions,
    };
    options.output.finish("neighbour", &figures, &figures.text(), Some(&figures.plot()))
}

/// How many requests a second use A's share of the machine, and what one costs the
/// server then: more than in a closed loop, because it wakes up for each.
fn calibrate(setting: &Setting, options: &Options) -> Result<(f64, f64), Error> {
    let node = setting.start()?;
    node.wait_until_prepared(2)?;
    let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
    let script = Same { request: client::request("GET", VICTIM, "/"), expected: expected() };
    let mut rate = options.rate.unwrap_or(FIRST_RATE);
    let mut cpu_us = 0.0;
    for _ in 0..CALIBRATIONS_COUNT {
        let pace = Pace { address: node.address(), rate, connections: options.connections };
        let (began, before) = (Instant::now(), node.cpu()?);
        let window = pace::run(pace, &script, Duration::ZERO, CALIBRATION_TIME)?;
        let used_us = node.cpu()?.since(&before).total_ns as f64 / 1e3;
        if let Some(cause) = window.first_error {
            return Err(Error::Answer { name: VICTIM.to_owned(), cause });
        }
        cpu_us = used_us / window.latency_ns.count().max(1) as f64;
        if options.rate.is_none() {
            let cores_used = used_us / 1e6 / began.elapsed().as_secs_f64();
            rate = (rate * SHARE * cores / cores_used).floor();
        }
    }
    Ok((cpu_us, rate))
}

/// A alone and then beside an attacker, in one process.
fn measure(setting: &Setting, options: &Options, rate: f64, kind: Kind) -> Result<Row, Error> {
    let node = setting.start()?;
    node.wait_until_prepared(2)?;
    let pace = Pace { address: node.address(), rate, connections: options.connections };
    let script = Same { request: client::request("GET", VICTIM, "/"), expected: expected() };
    let victim = Victim { options, pace, script };
    let alone = victim.run()?;
    if let Some(cause) = &alone.first_error {
        let cause = format!("{} errors when it is alone, first: {cause}", alone.failures());
        return Err(Error::Answer { name: VICTIM.to_owned(), cause });
    }
    let attack = Attack::start(kind, node.address(), ATTACKER)?;
    let (before, began) = (node.cpu()?, Instant::now());
    let attacked = victim.run()?;
    let cores_used = node.cpu()?.since(&before).total_ns as f64 / 1e9 / began.elapsed().as_secs_f64();
    let Holding { resident_bytes, .. } = node.holding()?;
    drop(attack);
    if let Some(cause) = &attacked.first_error {
        progress(&format!("A's first error: {cause}"));
    }
    check_alive(&node)?;
    let latencies = |of: &Histogram| {
        let us = |share| of.quantile(share) as f64 / 1e3;
        Latencies { p50_us: us(0.5), p99_us: us(0.99), p999_us: us(0.999) }
    };
    let errors = attacked.failures();
    let (alone_ns, attacked_ns) = (alone.latency_ns, attacked.latency_ns);
    let (alone, beside) = (latencies(&alone_ns), latencies(&attacked_ns));
    Ok(Row {
        attacker: kind.title(),
        p99_ratio: beside.p99_us / alone.p99_us,
        errors,
        alone,
        attacked: beside,
        cores_used,
        resident_bytes,
        alone_ns,
        attacked_ns,
    })
}

/// That the server has survived.
fn check_alive(node: &Node) -> Result<(), Error> {
    node.first_byte(&mut None, VICTIM, &expected()).map(drop)
}

impl Victim<'_> {
    fn run(&self) -> Result<load::Window, Error> {
        pace::run(
            self.pace,
            &self.script,
            Duration::from_secs_f64(self.options.warm_up_seconds),
            Duration::from_secs_f64(self.options.seconds),
        )
    }
}

/// What A answers.
fn expected() -> Expected {
    Expected { status: 200, body: Guest::RustP2.body().as_bytes().to_vec() }
}

/// The round in the middle; but an error in any round is one.
fn middle(mut rounds: Vec<Row>) -> Option<Row> {
    let errors = rounds.iter().map(|row| row.errors).sum();
    rounds.sort_by(|left, right| left.p99_ratio.total_cmp(&right.p99_ratio));
    let index = rounds.len().checked_sub(1)? / 2;
    let mut row = rounds.swap_remove(index);
    row.errors = errors;
    Some(row)
}

impl Figures {
    /// What the figures are to be: the same for each attacker.
    fn targets(&self) -> Vec<(&str, Target)> {
        self.figures
            .keys()
            .map(|name| {
                let bound = if name.ends_with("errors") { 0.0 } else { 2.0 };
                (name.as_str(), Target::AtMost(bound))
            })
            .collect()
    }

    fn text(&self) -> String {
        let mut table = Table::new(&[
            "attacker",
            "A's p50 µs, alone and beside",
            "p99 µs, alone",
            "beside",
            "ratio",
            "p99.9 µs, alone",
            "beside",
            "A's errors",
            "cores used",
            "resident MiB",
        ]);
        for row in &self.rows {
            table.push(vec![
                row.attacker.clone(),
                format!("{}, {}", report::number(row.alone.p50_us), report::number(row.attacked.p50_us)),
                report::number(row.alone.p99_us),
                report::number(row.attacked.p99_us),
                report::number(row.p99_ratio),
                report::number(row.alone.p999_us),
                report::number(row.attacked.p999_us),
                row.errors.to_string(),
                report::number(row.cores_used),
                report::number(report::mebibytes(row.resident_bytes)),
            ]);
        }
        format!(
            "{}- Terms: A gets {} requests/s of {} µs server CPU, whether or not it keeps up; the round in the\n  \
             middle of {} by the ratio; {} s each\n\n\
             Latencies count from when a request was due.\n\n{}\n{}",
            report::preamble("What an app notices of its neighbour", &self.conditions),
            self.rate,
            report::number(self.cpu_us_per_request),
            self.rounds,
            self.seconds,
            table.markdown(),
            report::figures_table(&self.figures, &self.targets()),
        )
    }

    /// A panel for each attacker: A alone and beside it.
    fn plot(&self) -> Plot {
        let panels = self.rows.iter().map(|row| {
            Panel::tail(
                "A's latency, µs",
                vec![
                    Line::tail_us("A alone", &row.alone_ns),
                    Line::tail_us(&format!("A beside {}", row.attacker), &row.attacked_ns),
                ],
            )
        });
        Plot { title: "What an app notices of its neighbour".to_owned(), panels: panels.collect() }
    }
}

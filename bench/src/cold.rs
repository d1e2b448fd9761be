//! The `cold` bench: the first response of an app that is registered, compiled and
//! verified, but not mapped.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::client::Client;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::peer::Sources;
use crate::plot::{Line, Panel, Plot};
use crate::random::Random;
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::serve::{Node, Setting};

/// Requests to an app of its own before any is measured: the server's threads, its
/// pool and this client are warm then, and only the apps are cold.
const WARM_UP_COUNT: usize = 200;

/// What the figures are to be.
const TARGETS: [(&str, Target); 3] = [
    ("rust_p50_us", Target::AtMost(300.0)),
    ("rust_p99_us", Target::AtMost(1000.0)),
    ("js_p99_us", Target::AtMost(5000.0)),
];

/// Options of the `cold` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Distinct Rust apps
    #[arg(long, default_value_t = 2000)]
    rust_count: usize,
    /// Distinct JavaScript apps
    #[arg(long, default_value_t = 30)]
    js_count: usize,
    /// Processes, each of which answers one request for every app
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
    rows: Vec<Row>,
    rounds: usize,
    #[serde(flatten)]
    conditions: Conditions,
}

/// The first responses of the apps of one guest.
#[derive(Serialize)]
struct Row {
    guest: &'static str,
    apps: usize,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    max_us: f64,
    /// The same server and client with an app that is mapped.
    warm_p50_us: f64,
    #[serde(skip)]
    cold_ns: Histogram,
}

/// Runs the bench.
///
/// # Errors
/// If something could not be built or started, or an app answered wrongly.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let wisp = options.sources.wisp()?;
    let guests = [(Guest::RustP2, options.rust_count), (Guest::JavaScript, options.js_count)];
    let files = options.sources.guests(&guests.map(|(guest, _)| guest))?;
    let mut rows = Vec::new();
    let mut figures = BTreeMap::new();
    for ((guest, count), file) in guests.into_iter().zip(&files) {
        if count == 0 {
            continue;
        }
        let row = measure(&wisp, guest, file, count, options.rounds)?;
        let key = if guest == Guest::JavaScript { "js" } else { "rust" };
        figures.insert(format!("{key}_p50_us"), row.p50_us);
        figures.insert(format!("{key}_p99_us"), row.p99_us);
        rows.push(row);
    }
    let figures = Figures { figures, rows, rounds: options.rounds, conditions };
    options.output.finish("cold", &figures, &figures.text(), Some(&figures.plot()))
}

/// All rounds of one guest.
fn measure(wisp: &Path, guest: Guest, file: &Path, count: usize, rounds: usize) -> Result<Row, Error> {
    // One more, number 0, to warm up everything else with.
    let fleet = Fleet::make(guest, file, count + 1)?;
    let setting = Setting::of(wisp, &fleet);
    setting.compile(&fleet)?;
    fleet.warm_page_cache()?;
    let (mut cold_ns, mut warm_ns) = (Histogram::new(), Histogram::new());
    let mut random = Random::new(1);
    for round in 0..rounds {
        let node = setting.start()?;
        node.wait_until_prepared(fleet.count())?;
        node.check_mapped(0)?;
        let mut apps = (1..=count).collect::<Vec<_>>();
        random.shuffle(&mut apps);
        let mut client = None;
        for _ in 0..WARM_UP_COUNT {
            warm_ns.record(first_byte_ns(&node, &mut client, &fleet, 0)?);
        }
        for number in apps {
            cold_ns.record(first_byte_ns(&node, &mut client, &fleet, number)?);
        }
        progress(&format!(
            "round {} of {rounds}: {}: p99 {} µs so far",
            round + 1,
            guest.title(),
            report::number(cold_ns.quantile(0.99) as f64 / 1e3)
        ));
    }
    let us = |share| cold_ns.quantile(share) as f64 / 1e3;
    Ok(Row {
        guest: guest.title(),
        apps: count,
        p50_us: us(0.5),
        p90_us: us(0.9),
        p99_us: us(0.99),
        max_us: us(1.0),
        warm_p50_us: warm_ns.quantile(0.5) as f64 / 1e3,
        cold_ns,
    })
}

/// Nanoseconds until the first byte of an app's response.
fn first_byte_ns(
    node: &Node,
    client: &mut Option<Client>,
    fleet: &Fleet,
    number: usize,
) -> Result<u64, Error> {
    let elapsed = node.first_byte(client, &fleet.host(number), &fleet.expected(number))?;
    Ok(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

impl Figures {
    fn text(&self) -> String {
        let mut table =
            Table::new(&["guest", "apps", "p50 µs", "p90 µs", "p99 µs", "largest µs", "warm p50 µs"]);
        for row in &self.rows {
            let times = [row.p50_us, row.p90_us, row.p99_us, row.max_us, row.warm_p50_us].map(report::number);
            let mut cells = vec![row.guest.to_owned(), row.apps.to_string()];
            cells.extend(times);
            table.push(cells);
        }
        format!(
            "{}- Terms: {} processes, each app requested once in each\n\n\
             From the first byte of the request sent to the first byte of the response received, on a\n\
             connection that is kept. Each app is compiled, verified and in the page cache, but not mapped.\n\n\
             {}\n{}",
            report::preamble("The first response of an app", &self.conditions),
            self.rounds,
            table.markdown(),
            report::figures_table(&self.figures, &TARGETS),
        )
    }

    fn plot(&self) -> Plot {
        let lines = self.rows.iter().map(|row| Line::tail_us(row.guest, &row.cold_ns)).collect();
        Plot {
            title: "First response of an app that is not mapped".to_owned(),
            panels: vec![Panel::tail("time to the first byte, µs", lines)],
        }
    }
}

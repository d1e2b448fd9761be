//! The `density` bench: a hundred thousand apps in one process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tempfile::TempDir;

use crate::client::{self, Client};
use crate::error::Error;
use crate::fleet::Fleet;
use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::pace::{self, Pace, Script};
use crate::peer::Sources;
use crate::plot::{Line, Panel, Plot};
use crate::process::Holding;
use crate::random::{Random, Zipf};
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::serve::{Node, Setting};

/// Apps that are asked for their first response right after the start.
const FIRST_RESPONSES_COUNT: usize = 1000;
/// The exponent of the distribution of requests over apps.
const ZIPF_EXPONENT: f64 = 1.0;
/// Connections that the server is asked to allow: each takes a descriptor, of which
/// there are 20,000 by the usual limit, and so does a mapped image.
const MAX_CONNECTIONS_COUNT: usize = 1000;
/// Seconds of load before latencies count.
const WARM_UP_SECONDS: f64 = 2.0;

/// What the figures are to be.
const TARGETS: [(&str, Target); 2] =
    [("registered_bytes_per_app", Target::AtMost(1024.0)), ("zipf_errors", Target::AtMost(0.0))];

/// Options of the `density` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Registered apps
    #[arg(long, default_value_t = 100_000)]
    count: usize,
    /// Mapped apps, of those
    #[arg(long, default_value_t = 10_000)]
    mapped: usize,
    /// Seconds of load over all apps
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Requests a second of this load
    #[arg(long, default_value_t = 4000.0)]
    rate: f64,
    /// Connections of this load
    #[arg(long, default_value_t = 32)]
    connections: usize,
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
    states: Vec<State>,
    apps: usize,
    mapped_apps: usize,
    seconds: f64,
    rate: f64,
    #[serde(flatten)]
    conditions: Conditions,
    #[serde(skip)]
    first_ns: Histogram,
    #[serde(skip)]
    zipf_ns: Histogram,
}

/// What the server's process held at some point.
#[derive(Serialize)]
struct State {
    name: String,
    #[serde(flatten)]
    holding: Holding,
}

/// Requests over all apps of a fleet, a few of which get most of them.
struct Popularity<'fleet> {
    fleet: &'fleet Fleet,
    zipf: Zipf,
    /// The app at each rank: neighbours in popularity are none in the table.
    apps: Vec<usize>,
}

impl Script for Popularity<'_> {
    type Memory = ();

    fn exchange(&self, client: &mut Client, random: &mut Random, _: &mut ()) -> Result<bool, String> {
        let rank = self.zipf.rank(random);
        let number = self.apps.get(rank).copied().unwrap_or(0);
        let host = self.fleet.host(number);
        client
            .exchange(&client::request("GET", &host, "/"), &self.fleet.expected(number))
            .map(|received| received.keep_alive)
            .map_err(|cause| format!("{host}: {cause}"))
    }
}

/// Runs the bench.
///
/// # Errors
/// If something could not be built or started, or an app answered wrongly before
/// the load; what goes wrong under load is a figure.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let wisp = options.sources.wisp()?;
    let files = options.sources.guests(&[Guest::Tiny])?;
    let fleet = Fleet::make(Guest::Tiny, files.first().map_or("".as_ref(), |file| file), options.count)?;
    let mut setting = Setting::of(&wisp, &fleet);
    setting.flags = vec!["--max-connections".to_owned(), MAX_CONNECTIONS_COUNT.to_string()];
    setting.compile(&fleet)?;
    fleet.warm_page_cache()?;

    let empty = empty(&wisp)?;
    let mut states = vec![State { name: "no apps".to_owned(), holding: empty }];
    let mut figures = BTreeMap::new();
    let mut apps = (0..options.count).collect::<Vec<_>>();
    Random::new(1).shuffle(&mut apps);

    let node = setting.start()?;
    let mut starts_ms = vec![node.start().as_secs_f64() * 1e3];
    progress(&format!(
        "{} apps are registered after {:.0} ms",
        options.count,
        node.start().as_secs_f64() * 1e3
    ));
    node.wait_until_prepared(options.count)?;
    let registered = node.holding()?;
    states.push(State { name: format!("{} registered", options.count), holding: registered });
    figures.insert("registered_bytes_per_app".to_owned(), per_app(&registered, &empty, options.count));

    let first_count = FIRST_RESPONSES_COUNT.min(options.mapped);
    let first_ns = first_responses(&node, &fleet, apps.iter().take(first_count))?;
    figures.insert("first_response_p50_us".to_owned(), first_ns.quantile(0.5) as f64 / 1e3);
    figures.insert("first_response_p99_us".to_owned(), first_ns.quantile(0.99) as f64 / 1e3);
    first_responses(&node, &fleet, apps.iter().take(options.mapped).skip(first_count))?;
    node.check_mapped(options.mapped)?;
    let mapped = node.holding()?;
    states.push(State { name: format!("{} of them mapped", options.mapped), holding: mapped });
    figures.insert("mapped_bytes_per_app".to_owned(), per_app(&mapped, &registered, options.mapped));
    let count = options.mapped.max(1) as f64;
    let more = |of: fn(&Holding) -> u64| of(&mapped).saturating_sub(of(&registered)) as f64 / count;
    figures.insert(
        "mappings_per_mapped_app".to_owned(),
        report::rounded(more(|holding| holding.mappings_count)),
    );
    figures.insert(
        "descriptors_per_mapped_app".to_owned(),
        report::rounded(more(|holding| holding.descriptors_count)),
    );
    drop(node);

    let node = setting.start()?;
    starts_ms.push(node.start().as_secs_f64() * 1e3);
    node.wait_until_prepared(options.count)?;
    let pace = Pace { address: node.address(), rate: options.rate, connections: options.connections };
    let script = Popularity { fleet: &fleet, zipf: Zipf::new(options.count, ZIPF_EXPONENT), apps };
    let window = pace::run(
        pace,
        &script,
        Duration::from_secs_f64(WARM_UP_SECONDS),
        Duration::from_secs_f64(options.seconds),
    )?;
    states.push(State { name: "after the load".to_owned(), holding: node.holding()? });
    if let Some(cause) = &window.first_error {
        progress(&format!("{} errors under load, first: {cause}", window.failures()));
    }
    figures.insert("start_ms".to_owned(), report::median(starts_ms).map_or(0.0, report::rounded));
    figures.insert("zipf_errors".to_owned(), window.failures() as f64);
    figures.insert("zipf_requests".to_owned(), window.latency_ns.count() as f64);
    for (name, share) in [("zipf_p50_us", 0.5), ("zipf_p99_us", 0.99), ("zipf_p999_us", 0.999)] {
        figures.insert(name.to_owned(), window.latency_ns.quantile(share) as f64 / 1e3);
    }
    let figures = Figures {
        figures,
        states,
        apps: options.count,
        mapped_apps: options.mapped,
        seconds: options.seconds,
        rate: options.rate,
        conditions,
        first_ns,
        zipf_ns: window.latency_ns,
    };
    options.output.finish("density", &figures, &figures.text(), Some(&figures.plot()))
}

/// What a server without apps holds.
fn empty(wisp: &Path) -> Result<Holding, Error> {
    let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
    Setting::empty(wisp, folder.path())?.start()?.holding()
}

/// Asks each app once, one after the other, and times their first bytes.
fn first_responses<'apps>(
    node: &Node,
    fleet: &Fleet,
    apps: impl Iterator<Item = &'apps usize>,
) -> Result<Histogram, Error> {
    let mut latency_ns = Histogram::new();
    let mut client = None;
    for &number in apps {
        let elapsed = node.first_byte(&mut client, &fleet.host(number), &fleet.expected(number))?;
        latency_ns.record(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(latency_ns)
}

/// Resident bytes that `count` apps added.
fn per_app(with: &Holding, without: &Holding, count: usize) -> f64 {
    let bytes = with.resident_bytes.saturating_sub(without.resident_bytes);
    (bytes as f64 / count.max(1) as f64).round()
}

impl Figures {
    fn text(&self) -> String {
        let mut table = Table::new(&["state", "resident MiB", "anonymous MiB", "mappings", "descriptors"]);
        for State { name, holding } in &self.states {
            table.push(vec![
                name.clone(),
                report::number(report::mebibytes(holding.resident_bytes)),
                report::number(report::mebibytes(holding.anonymous_bytes)),
                holding.mappings_count.to_string(),
                holding.descriptors_count.to_string(),
            ]);
        }
        format!(
            "{}- Terms: {} apps, {} of them mapped; then {} requests/s over all of them for {} s, app n of them\n  \
             1/n as often as the first\n\n{}\n{}",
            report::preamble("A hundred thousand apps in one process", &self.conditions),
            self.apps,
            self.mapped_apps,
            self.rate,
            self.seconds,
            table.markdown(),
            report::figures_table(&self.figures, &TARGETS),
        )
    }

    fn plot(&self) -> Plot {
        Plot {
            title: format!("Requests over {} apps", self.apps),
            panels: vec![Panel::tail(
                "latency, µs",
                vec![
                    Line::tail_us("first response of an app", &self.first_ns),
                    Line::tail_us("Zipf load over all apps, from when it was due", &self.zipf_ns),
                ],
            )],
        }
    }
}

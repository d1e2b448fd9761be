//! The `swap` bench: an app's version is replaced a thousand times under load.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;

use crate::client::{self, Client};
use crate::error::Error;
use crate::fleet::{self, Fleet};
use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::pace::{self, Pace, Script};
use crate::peer::Sources;
use crate::plot::{Axis, Line, Panel, Plot};
use crate::random::Random;
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::serve::{Node, Setting};

/// The app's host.
const HOST: &str = "swapped.bench.test";
/// How long a new version may let itself be waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the one who swaps looks whether somebody saw the new version.
const LOOK: Duration = Duration::from_micros(200);

/// What the figures are to be.
const TARGETS: [(&str, Target); 3] = [
    ("failed", Target::AtMost(0.0)),
    ("mixed", Target::AtMost(0.0)),
    ("rollback_p99_ms", Target::AtMost(10.0)),
];

/// Options of the `swap` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Swaps from a version to the next
    #[arg(long, default_value_t = 1000)]
    swaps: usize,
    /// Rollbacks to the version before, each after one more swap
    #[arg(long, default_value_t = 100)]
    rollbacks: usize,
    /// Milliseconds from the first response of a version to the next swap
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
    /// Requests a second
    #[arg(long, default_value_t = 4000.0)]
    rate: f64,
    /// Connections
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
    rows: Vec<Row>,
    rate: f64,
    #[serde(flatten)]
    conditions: Conditions,
    #[serde(skip)]
    plot: Vec<(&'static str, Histogram)>,
    #[serde(skip)]
    swaps_ms: Vec<(f64, f64)>,
}

/// A distribution of times.
#[derive(Serialize)]
struct Row {
    what: &'static str,
    count: u64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// When which version was seen, by all connections.
struct Sightings {
    began: Instant,
    versions: Vec<Sighting>,
    /// Responses of a version older than one that the connection has seen, or of none.
    mixed: AtomicU64,
    /// Whether versions only go up at the moment.
    is_ordered: AtomicBool,
}

/// Nanoseconds since the load began.
struct Sighting {
    first_ns: AtomicU64,
    last_ns: AtomicU64,
}

impl Script for Sightings {
    /// The newest version that the connection has seen.
    type Memory = usize;

    fn exchange(&self, client: &mut Client, _: &mut Random, newest: &mut usize) -> Result<bool, String> {
        let was_ordered = self.is_ordered.load(Ordering::Acquire);
        let received = client.fetch(&client::request("GET", HOST, "/"))?;
        let now_ns = self.now_ns();
        let answer = received.response;
        if answer.status != 200 {
            return Err(format!("status {}", answer.status));
        }
        let version = std::str::from_utf8(&answer.body).ok().and_then(|text| text.parse::<usize>().ok());
        match version.and_then(|version| Some((version, self.versions.get(version)?))) {
            Some((version, sighting)) => {
                sighting.first_ns.fetch_min(now_ns, Ordering::Relaxed);
                sighting.last_ns.fetch_max(now_ns, Ordering::Relaxed);
                if was_ordered && version < *newest {
                    self.mixed.fetch_add(1, Ordering::Relaxed);
                }
                *newest = version;
            }
            None => {
                self.mixed.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(received.keep_alive)
    }
}

impl Sightings {
    fn new(count: usize) -> Self {
        let never = || Sighting { first_ns: AtomicU64::new(u64::MAX), last_ns: AtomicU64::new(0) };
        Self {
            began: Instant::now(),
            versions: (0..count).map(|_| never()).collect(),
            mixed: AtomicU64::new(0),
            is_ordered: AtomicBool::new(true),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When a version was seen first.
    fn first_ns(&self, version: usize) -> Option<u64> {
        let first = self.versions.get(version)?.first_ns.load(Ordering::Relaxed);
        (first != u64::MAX).then_some(first)
    }

    /// Waits until some connection has seen a version at or after a time.
    fn wait_for(&self, version: usize, since_ns: u64) -> Result<(), Error> {
        let started = Instant::now();
        while self.versions.get(version).is_some_and(|seen| seen.last_ns.load(Ordering::Relaxed) < since_ns) {
            if started.elapsed() > PATIENCE {
                let cause = format!("version {version} was not seen within {PATIENCE:?}");
                return Err(Error::Answer { name: HOST.to_owned(), cause });
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Forgets when a version was seen, to see it anew.
    fn forget(&self, version: usize) {
        if let Some(seen) = self.versions.get(version) {
            seen.first_ns.store(u64::MAX, Ordering::Relaxed);
            seen.last_ns.store(0, Ordering::Relaxed);
        }
    }
}

/// Who swaps: where the link is, and the versions it can point to.
struct Deployer<'run> {
    link: PathBuf,
    beside: PathBuf,
    versions: &'run Fleet,
    sightings: &'run Sightings,
    pause: Duration,
}

impl Deployer<'_> {
    /// Points the link to a version; when that was.
    fn deploy(&self, version: usize) -> Result<u64, Error> {
        let folder = self.versions.apps().join(self.versions.host(version));
        let since_ns = self.sightings.now_ns();
        fleet::point(&self.link, &folder, &self.beside)?;
        Ok(since_ns)
    }

    /// The same, and waits until it is seen and a while longer.
    fn swap(&self, version: usize) -> Result<u64, Error> {
        let since_ns = self.deploy(version)?;
        self.sightings.wait_for(version, since_ns)?;
        thread::sleep(self.pause);
        Ok(since_ns)
    }
}

/// Runs the bench.
///
/// # Errors
/// If something could not be built or started, or a version never came.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let wisp = options.sources.wisp()?;
    let files = options.sources.guests(&[Guest::Tiny])?;
    // A fleet is a folder of apps that differ by their number: here, of versions.
    let count = options.swaps + options.rollbacks + 1;
    let versions = Fleet::make(Guest::Tiny, files.first().map_or("".as_ref(), |file| file), count)?;
    Setting::of(&wisp, &versions).compile(&versions)?;
    let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
    let apps = folder.path().join("apps");
    std::fs::create_dir_all(&apps).map_err(Error::writing(&apps))?;
    let sightings = Sightings::new(count);
    let deployer = Deployer {
        link: apps.join(HOST),
        beside: folder.path().join("next"),
        versions: &versions,
        sightings: &sightings,
        pause: Duration::from_millis(options.pause_ms),
    };
    deployer.deploy(0)?;
    let node = Setting { wisp, apps, images: versions.images(), flags: Vec::new() }.start()?;
    node.wait_until_prepared(1)?;
    let pace = Pace { address: node.address(), rate: options.rate, connections: options.connections };
    let (window, (swaps_ns, rollbacks_ns)) =
        pace::run_beside(pace, &sightings, || swap_and_roll_back(options, &node, &deployer))?;
    if let Some(cause) = &window.first_error {
        progress(&format!("{} failed, first: {cause}", window.failures()));
    }
    let (mut first, mut last, mut rollback) = (Histogram::new(), Histogram::new(), Histogram::new());
    let mut swaps_ms = Vec::with_capacity(swaps_ns.len());
    for (index, &(since_ns, first_ns, last_old_ns)) in swaps_ns.iter().enumerate() {
        first.record(first_ns.saturating_sub(since_ns));
        last.record(last_old_ns.saturating_sub(since_ns));
        swaps_ms.push((index as f64, first_ns.saturating_sub(since_ns) as f64 / 1e6));
    }
    rollbacks_ns.iter().for_each(|&elapsed_ns| rollback.record(elapsed_ns));
    let ms = |of: &Histogram, share| of.quantile(share) as f64 / 1e6;
    let figures = BTreeMap::from(
        [
            ("failed", window.failures() as f64),
            ("mixed", sightings.mixed.load(Ordering::Relaxed) as f64),
            ("requests", window.latency_ns.count() as f64),
            ("swap_p50_ms", ms(&first, 0.5)),
            ("swap_p99_ms", ms(&first, 0.99)),
            ("last_old_p99_ms", ms(&last, 0.99)),
            ("rollback_p50_ms", ms(&rollback, 0.5)),
            ("rollback_p99_ms", ms(&rollback, 0.99)),
            ("request_p99_ms", ms(&window.latency_ns, 0.99)),
        ]
        .map(|(name, value)| (name.to_owned(), report::rounded(value))),
    );
    let plot = vec![
        ("to the first response of the new version", first),
        ("to the last response of the old one", last),
        ("rollback", rollback),
    ];
    let rows = plot.iter().map(|(what, of)| Row::of(what, of)).collect();
    let figures = Figures { figures, rows, rate: options.rate, conditions, plot, swaps_ms };
    options.output.finish("swap", &figures, &figures.text(), Some(&figures.plot()))
}

/// All swaps (when it was, when the new version was seen first and the old one last),
/// then all rollbacks (how long until the older version was seen), in nanoseconds.
type Outcome = (Vec<(u64, u64, u64)>, Vec<u64>);

fn swap_and_roll_back(options: &Options, node: &Node, deployer: &Deployer<'_>) -> Result<Outcome, Error> {
    let sightings = deployer.sightings;
    sightings.wait_for(0, 1)?;
    let mut swaps_ns = Vec::with_capacity(options.swaps);
    for version in 1..=options.swaps {
        swaps_ns.push((deployer.swap(version)?, version));
        if version % 100 == 0 {
            progress(&format!("{version} of {} swaps", options.swaps));
        }
    }
    let swaps_ns = swaps_ns
        .into_iter()
        .filter_map(|(since_ns, version)| {
            let old = sightings.versions.get(version - 1)?.last_ns.load(Ordering::Relaxed);
            Some((since_ns, sightings.first_ns(version)?, old))
        })
        .collect();
    let mut rollbacks_ns = Vec::with_capacity(options.rollbacks);
    // From here on, an older version after a newer one is what is asked for.
    sightings.is_ordered.store(false, Ordering::Release);
    let serving = options.swaps;
    for next in options.swaps + 1..=options.swaps + options.rollbacks {
        deployer.swap(next)?;
        sightings.forget(serving);
        let since_ns = sightings.now_ns();
        if !node.roll_back(HOST)? {
            let cause = "the version before is not mapped any more".to_owned();
            return Err(Error::Answer { name: HOST.to_owned(), cause });
        }
        sightings.wait_for(serving, since_ns)?;
        let first_ns = sightings.first_ns(serving).unwrap_or(u64::MAX);
        rollbacks_ns.push(first_ns.saturating_sub(since_ns));
        thread::sleep(deployer.pause);
    }
    Ok((swaps_ns, rollbacks_ns))
}

impl Row {
    fn of(what: &'static str, times_ns: &Histogram) -> Self {
        let ms = |share| times_ns.quantile(share) as f64 / 1e6;
        Self {
            what,
            count: times_ns.count(),
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p99_ms: ms(0.99),
            max_ms: ms(1.0),
        }
    }
}

impl Figures {
    fn text(&self) -> String {
        let mut table = Table::new(&["time", "count", "p50 ms", "p90 ms", "p99 ms", "largest ms"]);
        for row in &self.rows {
            let times = [row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms].map(report::number);
            let mut cells = vec![row.what.to_owned(), row.count.to_string()];
            cells.extend(times);
            table.push(cells);
        }
        format!(
            "{}- Terms: {} requests/s; a swap is a symbolic link renamed over another\n\n\
             Times from just before the rename, or before the operator's request.\n\n{}\n{}",
            report::preamble("Replacing an app under load", &self.conditions),
            self.rate,
            table.markdown(),
            report::figures_table(&self.figures, &TARGETS),
        )
    }

    fn plot(&self) -> Plot {
        let tails = self.plot.iter().map(|(what, times)| Line {
            name: (*what).to_owned(),
            points: times.tail().into_iter().map(|(value, share)| (value as f64 / 1e6, share)).collect(),
        });
        let over_time = Line {
            name: "to the first response of the new version".to_owned(),
            points: self.swaps_ms.clone(),
        };
        Plot {
            title: "Replacing an app under load".to_owned(),
            panels: vec![
                Panel::tail("time, ms", tails.collect()),
                Panel { x: Axis::linear("swap"), y: Axis::linear("time, ms"), lines: vec![over_time] },
            ],
        }
    }
}

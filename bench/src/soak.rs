//! The `soak` bench: mixed traffic while apps come, change and go. What grows?
//!
//! Memory is watched while all of that goes on. Whether descriptors or mappings leak
//! is found out at rest: after the warm-up and at the end, traffic stops, all apps are
//! removed, and what the process holds when it has let go of them is compared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;

use crate::client::{self, Client};
use crate::error::Error;
use crate::fleet::{self, Fleet};
use crate::guest::Guest;
use crate::pace::{self, Pace, Script};
use crate::peer::Sources;
use crate::plot::{Axis, Line, Panel, Plot};
use crate::process::Holding;
use crate::random::Random;
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::response::Expected;
use crate::serve::{Node, Setting};

/// Tiny apps that are there from the beginning to the end.
const STABLE_COUNT: usize = 200;
/// Folders of tiny apps that come and go, two for each of them.
const CHURN_COUNT: usize = 100;
/// Apps that may be mapped at once: fewer than there are, so that some are evicted all the time.
const MAPPED_COUNT: usize = 150;
/// Requests a second, and the connections that they come on.
const RATE: f64 = 400.0;
/// As many while it warms up: each slot of the pool keeps the pages that any of its
/// guests has made dirty, and it takes hundreds of thousands of requests until every
/// guest has been in every slot.
const WARM_UP_RATE: f64 = 2000.0;
const CONNECTIONS_COUNT: usize = 8;
/// Shares of the requests that the JavaScript and the Rust app get.
const JS_SHARE: f64 = 0.02;
const RUST_SHARE: f64 = 0.3;
/// The share of the time that warms up.
const WARM_UP_SHARE: f64 = 0.2;
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(500);
/// How often progress is reported.
const REPORT: Duration = Duration::from_secs(10);
/// How long a change may let itself be waited for, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(1);
/// How often a process at rest is looked at, and how often in a row it must hold the
/// same until it counts as at rest.
const REST_LOOK: Duration = Duration::from_millis(100);
const REST_COUNT: usize = 10;
/// The largest growth of memory that `--check` lets pass.
const GROWTH: f64 = 0.05;
/// Mappings that may be there at one rest and not at the other: memory of threads and
/// of the pool's slots. What leaks with each app that comes and goes would be thousands.
const MAPPINGS_SLACK: f64 = 50.0;
/// The hosts of the two large apps.
const RUST_HOST: &str = "rust.bench.test";
const JS_HOST: &str = "js.bench.test";

/// What the figures are to be.
const TARGETS: [(&str, Target); 4] = [
    ("resident_growth", Target::AtMost(GROWTH)),
    ("descriptor_growth", Target::AtMost(0.0)),
    ("mapping_growth", Target::AtMost(MAPPINGS_SLACK)),
    ("errors", Target::AtMost(0.0)),
];

/// Options of the `soak` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Minutes of traffic
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Fail if something grows
    #[arg(long)]
    check: bool,
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
    rests: Vec<Rest>,
    samples: Vec<Sample>,
    minutes: f64,
    #[serde(flatten)]
    conditions: Conditions,
}

/// What the process held at rest.
#[derive(Serialize)]
struct Rest {
    when: &'static str,
    #[serde(flatten)]
    holding: Holding,
}

/// What the process held at some time.
#[derive(Serialize)]
struct Sample {
    seconds: f64,
    #[serde(flatten)]
    holding: Holding,
}

/// The folder of apps, and where they come from.
struct Site<'run> {
    node: &'run Node,
    apps: PathBuf,
    beside: PathBuf,
    fleet: &'run Fleet,
    /// The apps that stay: a link, and the folder that it points to.
    stable: Vec<(PathBuf, PathBuf)>,
}

/// Traffic over the apps that stay.
struct Mix<'run>(&'run Fleet);

impl Script for Mix<'_> {
    type Memory = ();

    fn exchange(&self, client: &mut Client, random: &mut Random, _: &mut ()) -> Result<bool, String> {
        let share = random.share();
        let (host, expected) = if share < JS_SHARE {
            (JS_HOST.to_owned(), hello(Guest::JavaScript))
        } else if share < JS_SHARE + RUST_SHARE {
            (RUST_HOST.to_owned(), hello(Guest::RustP2))
        } else {
            let number = random.below(STABLE_COUNT);
            (stable_host(number), self.0.expected(number))
        };
        client
            .exchange(&client::request("GET", &host, "/"), &expected)
            .map(|received| received.keep_alive)
            .map_err(|cause| format!("{host}: {cause}"))
    }
}

/// Runs the bench.
///
/// # Errors
/// If something could not be built or started, a change never came, or with `--check`
/// something grew.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let files = options.sources.guests(&[Guest::Tiny, Guest::RustP2, Guest::JavaScript])?;
    let [tiny, rust, js] = files.as_slice() else {
        return Err(Error::Usage("not all guests have a file".to_owned()));
    };
    let wisp = options.sources.wisp()?;
    let fleet = Fleet::make(Guest::Tiny, tiny, STABLE_COUNT + 2 * CHURN_COUNT)?;
    Setting::of(&wisp, &fleet).compile(&fleet)?;
    let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
    let apps = folder.path().join("apps");
    std::fs::create_dir_all(&apps).map_err(Error::writing(&apps))?;
    let mut stable = Vec::with_capacity(STABLE_COUNT + 2);
    for (host, file) in [(RUST_HOST, rust), (JS_HOST, js)] {
        let wasm = std::fs::read(file).map_err(Error::reading(file))?;
        let app = folder.path().join("large").join(host);
        fleet::write_app(&app, &wasm, "")?;
        stable.push((apps.join(host), app));
    }
    for number in 0..STABLE_COUNT {
        stable.push((apps.join(stable_host(number)), fleet.apps().join(fleet.host(number))));
    }
    let setting = Setting {
        wisp,
        apps: apps.clone(),
        images: fleet.images(),
        flags: ["--max-mapped-apps".to_owned(), MAPPED_COUNT.to_string()].to_vec(),
    };
    let node = setting.start()?;
    let site = Site { node: &node, apps, beside: folder.path().join("next"), fleet: &fleet, stable };
    let figures = site.soak(options.minutes * 60.0, conditions)?;
    options.output.finish("soak", &figures, &figures.text(), Some(&figures.plot()))?;
    if options.check { figures.check() } else { Ok(()) }
}

impl Site<'_> {
    /// Everything from the warm-up to the end.
    fn soak(&self, seconds: f64, conditions: Conditions) -> Result<Figures, Error> {
        let began = Instant::now();
        let mut samples = Vec::new();
        let warm_up = seconds * WARM_UP_SHARE;
        let (warming, _) = self.load_for(warm_up, WARM_UP_RATE, began, &mut samples)?;
        let settled = self.rest()?;
        let warm_samples_count = samples.len();
        let (window, cycles) = self.load_for(seconds - warm_up, RATE, began, &mut samples)?;
        let end = self.rest()?;
        if let Some(cause) = warming.first_error.as_ref().or(window.first_error.as_ref()) {
            progress(&format!("{} errors, first: {cause}", warming.errors + window.errors));
        }
        let after = samples.get(warm_samples_count..).unwrap_or_default();
        let growth = |of: fn(&Holding) -> u64| of(&end) as f64 - of(&settled) as f64;
        let figures = BTreeMap::from(
            [
                ("resident_growth", resident_growth(after)),
                ("resident_growth_at_rest", end.resident_bytes as f64 / settled.resident_bytes as f64 - 1.0),
                ("descriptor_growth", growth(|holding| holding.descriptors_count)),
                ("mapping_growth", growth(|holding| holding.mappings_count)),
                ("cycles", cycles as f64),
                ("requests", (warming.latency_ns.count() + window.latency_ns.count()) as f64),
                ("errors", (warming.errors + window.errors) as f64),
                ("request_p99_ms", window.latency_ns.quantile(0.99) as f64 / 1e6),
            ]
            .map(|(name, value)| (name.to_owned(), report::rounded(value))),
        );
        let rests = vec![
            Rest { when: "after the warm-up", holding: settled },
            Rest { when: "at the end", holding: end },
        ];
        Ok(Figures { figures, rests, samples, minutes: seconds / 60.0, conditions })
    }

    /// Traffic and churn for some time; how many apps came and went.
    fn load_for(
        &self,
        seconds: f64,
        rate: f64,
        began: Instant,
        samples: &mut Vec<Sample>,
    ) -> Result<(crate::load::Window, usize), Error> {
        let pace = Pace { address: self.node.address(), rate, connections: CONNECTIONS_COUNT };
        for (link, folder) in &self.stable {
            fleet::point(link, folder, &self.beside)?;
        }
        self.node.wait_until_prepared(self.stable.len())?;
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        pace::run_beside(pace, &Mix(self.fleet), || {
            let (mut cycles, mut sampled, mut reported) = (0, Instant::now(), Instant::now());
            let mut client = None;
            while Instant::now() < end {
                self.cycle(cycles, &mut client)?;
                cycles += 1;
                if sampled.elapsed() >= SAMPLE {
                    sampled = Instant::now();
                    let seconds = began.elapsed().as_secs_f64();
                    samples.push(Sample { seconds, holding: self.node.holding()? });
                    if reported.elapsed() >= REPORT {
                        reported = Instant::now();
                        progress(&format!("{seconds:.0} s: {cycles} apps came and went"));
                    }
                }
            }
            Ok(cycles)
        })
    }

    /// One app comes, changes, goes back and goes.
    fn cycle(&self, cycle: usize, client: &mut Option<Client>) -> Result<(), Error> {
        let slot = cycle % CHURN_COUNT;
        let host = format!("churn-{slot:03}.bench.test");
        let [old, new] = [STABLE_COUNT + slot, STABLE_COUNT + CHURN_COUNT + slot];
        let link = self.apps.join(&host);
        let folder = |number| self.fleet.apps().join(self.fleet.host(number));
        fleet::point(&link, &folder(old), &self.beside)?;
        self.wait_for(client, &host, &self.fleet.expected(old))?;
        fleet::point(&link, &folder(new), &self.beside)?;
        self.wait_for(client, &host, &self.fleet.expected(new))?;
        if self.node.roll_back(&host)? {
            self.wait_for(client, &host, &self.fleet.expected(old))?;
        }
        fleet::remove(&link)?;
        self.wait_until_gone(client, &host)
    }

    /// Asks an app until it answers as it should.
    fn wait_for(&self, client: &mut Option<Client>, host: &str, expected: &Expected) -> Result<(), Error> {
        self.ask_until(client, host, |status, body| status == expected.status && body == expected.body)
    }

    /// Asks an app until there is none.
    fn wait_until_gone(&self, client: &mut Option<Client>, host: &str) -> Result<(), Error> {
        self.ask_until(client, host, |status, _| status == 404)
    }

    fn ask_until(
        &self,
        client: &mut Option<Client>,
        host: &str,
        is_it: impl Fn(u16, &[u8]) -> bool,
    ) -> Result<(), Error> {
        let wrong = |cause| Error::Answer { name: host.to_owned(), cause };
        let request = client::request("GET", host, "/");
        let began = Instant::now();
        loop {
            let open = match client {
                Some(open) => open,
                None => client.insert(Client::open(self.node.address()).map_err(wrong)?),
            };
            let received = open.fetch(&request).map_err(wrong)?;
            if !received.keep_alive {
                *client = None;
            }
            let answer = received.response;
            if is_it(answer.status, &answer.body) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                return Err(wrong(format!("after {PATIENCE:?} still status {}: {text}", answer.status)));
            }
            thread::sleep(LOOK);
        }
    }

    /// Takes all apps away, and says what the process holds when it has let go of them.
    fn rest(&self) -> Result<Holding, Error> {
        for (link, _) in &self.stable {
            fleet::remove(link)?;
        }
        let began = Instant::now();
        loop {
            let health = self.node.health()?;
            let (apps, images) = (health.counts.registered, health.images.mapped);
            if apps == 0 && images == 0 {
                break;
            }
            if began.elapsed() > PATIENCE {
                let cause = format!(
                    "{PATIENCE:?} after all apps went, {apps} are left and {images} images are mapped"
                );
                return Err(Error::Answer { name: "wisp serve".to_owned(), cause });
            }
            thread::sleep(REST_LOOK);
        }
        // Connections that were closed take a moment.
        let (mut before, mut same_count) = (self.node.holding()?, 0);
        while same_count < REST_COUNT && began.elapsed() < PATIENCE {
            thread::sleep(REST_LOOK);
            let now = self.node.holding()?;
            let is_same = (now.descriptors_count, now.mappings_count)
                == (before.descriptors_count, before.mappings_count);
            same_count = if is_same { same_count + 1 } else { 0 };
            before = now;
        }
        Ok(before)
    }
}

/// How much more memory the last tenth of the samples shows than the first, by their
/// medians: an image of 30 MB that is evicted for a moment is no change.
fn resident_growth(samples: &[Sample]) -> f64 {
    let tenth = (samples.len() / 10).max(1);
    let middle = |of: &[Sample]| {
        report::median(of.iter().map(|sample| sample.holding.resident_bytes as f64).collect())
    };
    let first = middle(samples.get(..tenth).unwrap_or(samples));
    let last = middle(samples.get(samples.len().saturating_sub(tenth)..).unwrap_or(samples));
    first.zip(last).map_or(0.0, |(first, last)| last / first - 1.0)
}

fn stable_host(number: usize) -> String {
    format!("stable-{number:03}.bench.test")
}

fn hello(guest: Guest) -> Expected {
    Expected { status: 200, body: guest.body().as_bytes().to_vec() }
}

impl Figures {
    /// That nothing grew.
    fn check(&self) -> Result<(), Error> {
        let missed = TARGETS
            .iter()
            .filter_map(|(name, target)| {
                let value = *self.figures.get(*name)?;
                (!target.is_met_by(value)).then(|| format!("{name} is {}", report::number(value)))
            })
            .collect::<Vec<_>>();
        if missed.is_empty() {
            Ok(())
        } else {
            Err(Error::Usage(format!("something grew: {}", missed.join(", "))))
        }
    }

    fn text(&self) -> String {
        let mut table = Table::new(&["at rest", "resident MiB", "anonymous MiB", "mappings", "descriptors"]);
        for Rest { when, holding } in &self.rests {
            table.push(vec![
                (*when).to_owned(),
                report::number(report::mebibytes(holding.resident_bytes)),
                report::number(report::mebibytes(holding.anonymous_bytes)),
                holding.mappings_count.to_string(),
                holding.descriptors_count.to_string(),
            ]);
        }
        format!(
            "{}- Terms: {} minutes, {RATE} requests/s over {STABLE_COUNT} tiny apps, a Rust and a JavaScript one, of\n  \
             which {MAPPED_COUNT} may be mapped; beside them apps come, change, go back and go without pause\n\n\
             Growth of memory: the last tenth of the samples over the first after the warm-up, by their\n\
             medians, less one.\n\
             Growth of descriptors and mappings: the difference at rest.\n\n{}\n{}",
            report::preamble("What grows", &self.conditions),
            report::number(self.minutes),
            table.markdown(),
            report::figures_table(&self.figures, &TARGETS),
        )
    }

    fn plot(&self) -> Plot {
        let panel = |label: &str, name: &str, of: fn(&Holding) -> f64| Panel {
            x: Axis::linear("time, s"),
            y: Axis::linear(label),
            lines: vec![Line {
                name: name.to_owned(),
                points: self.samples.iter().map(|sample| (sample.seconds, of(&sample.holding))).collect(),
            }],
        };
        Plot {
            title: "What a process holds while apps come, change and go".to_owned(),
            panels: vec![
                panel("memory, MiB", "resident memory", |holding| report::mebibytes(holding.resident_bytes)),
                panel("count", "mappings", |holding| holding.mappings_count as f64),
                panel("count", "descriptors", |holding| holding.descriptors_count as f64),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(resident_bytes: u64) -> Sample {
        let holding = Holding { resident_bytes, anonymous_bytes: 0, mappings_count: 0, descriptors_count: 0 };
        Sample { seconds: 0.0, holding }
    }

    #[test]
    fn growth_is_the_last_tenth_over_the_first() {
        let samples = (0..20).map(|index| sample(if index < 18 { 100 } else { 130 })).collect::<Vec<_>>();
        assert!((resident_growth(&samples) - 0.3).abs() < 1e-9);
        assert!(resident_growth(&[]).abs() < 1e-9);
        assert!(resident_growth(&[sample(7)]).abs() < 1e-9);
    }
}

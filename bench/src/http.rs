//! The `http` bench: what a request costs on each server.
//!
//! A round measures, guest by guest, a native server and then every way of
//! serving that guest, each in a fresh process. Ratios are taken between two
//! measurements of the same guest in the same round, so they are at most a
//! minute apart; what is reported is the median over the rounds. Every other
//! round goes backwards, so that a machine that drifts favours nobody.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tempfile::TempDir;

use crate::cpu::{self, Usage};
use crate::error::Error;
use crate::guest::{self, BODY, Guest};
use crate::load::{self, Load};
use crate::peer;
use crate::report::{self, Format, Table, progress};
use crate::response::Expected;
use crate::server::Plan;

/// After how many requests a reused instance is dropped, for every server: what
/// both Wisp and `wasmtime serve` (for WASI 0.3) do unless told otherwise.
const REUSE_COUNT: u32 = 128;

/// Options of the `http` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds that each server is measured in each round
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds that each server is warmed up before
    #[arg(long, default_value_t = 1.0)]
    warm_up_seconds: f64,
    /// Keep-alive connections, each with one request under way
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Rounds over all servers
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Load with a client that never sleeps, so that no server pays for waking it
    #[arg(long)]
    busy_client: bool,
    /// Measure only what these words are part of, as in `rust_p2/wisp`; native always
    #[arg(long, value_name = "WORDS", value_delimiter = ',')]
    only: Vec<String>,
    /// The `wisp` to measure; the one beside this program unless told
    #[arg(long, value_name = "FILE")]
    wisp: Option<PathBuf>,
    /// Folder of built guests; they are built unless this is given
    #[arg(long, value_name = "FOLDER")]
    guests: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write the table into this file as well
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// A way of serving a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// hyper without a guest.
    Native,
    /// `wisp up`.
    Wisp {
        /// Whether an instance serves more than one request.
        reused: bool,
    },
    /// `wasmtime serve`.
    Wasmtime {
        /// With [`peer::WASMTIME_TUNED_FLAGS`].
        tuned: bool,
        /// Whether an instance serves more than one request.
        reused: bool,
    },
}

/// A guest and a way of serving it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Contestant {
    guest: Guest,
    kind: Kind,
}

/// One measurement of one contestant.
#[derive(Clone, Debug, Serialize)]
struct Measurement {
    requests_per_second: f64,
    cpu_us_per_request: f64,
    user_us_per_request: f64,
    system_us_per_request: f64,
    p50_us: f64,
    p99_us: f64,
    resident_bytes: u64,
}

/// All measurements of one contestant; the middle one stands for them.
#[derive(Serialize)]
struct Row {
    guest: &'static str,
    server: &'static str,
    #[serde(flatten)]
    median: Measurement,
    cpu_over_native: Option<f64>,
    rounds: Vec<Measurement>,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    ratios: BTreeMap<String, f64>,
    rows: Vec<Row>,
    seconds: f64,
    connections: usize,
    rounds: usize,
    machine: String,
    load_average_before: String,
    wasmtime: String,
    wasmtime_tuned_flags: String,
}

/// What the servers are started from.
struct Stage {
    /// Manifests and compiled images of this run.
    folder: TempDir,
    wisp: PathBuf,
    wasmtime: PathBuf,
    /// By guest, for `wasmtime serve`.
    compiled: BTreeMap<Guest, PathBuf>,
}

/// Measurements by contestant, one for each round.
type Results = BTreeMap<Contestant, Vec<Measurement>>;

/// Runs the bench.
///
/// # Errors
/// If something could not be built, started or measured, or a server answered
/// wrongly even once.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let groups = groups(&options.only);
    if groups.is_empty() {
        return Err(Error::Usage(
            "nothing is left to measure: `--only` names nothing that exists".to_owned(),
        ));
    }
    let stage = Stage::set(options, &groups)?;
    let load_average_before = cpu::load_average();
    let (results, failures) = measure_all(&stage, &groups, options);
    let figures = Figures {
        ratios: ratios(&results),
        rows: groups.iter().flat_map(|(guest, kinds)| rows(*guest, kinds, &results)).collect(),
        seconds: options.seconds,
        connections: options.connections,
        rounds: options.rounds,
        machine: cpu::machine(),
        load_average_before,
        wasmtime: peer::version(&stage.wasmtime),
        wasmtime_tuned_flags: peer::WASMTIME_TUNED_FLAGS.join(" "),
    };
    let text = text(options, &figures);
    if let Some(path) = &options.save {
        report::save(path, &text)?;
    }
    report::print(options.format, &report::Result { bench: "http", figures }, &text)?;
    failures.into_iter().next().map_or(Ok(()), |(_, cause)| Err(cause))
}

impl Kind {
    /// The ways of serving a guest, in the order of the tables.
    fn of(guest: Guest) -> Vec<Self> {
        let wisp = |reused| Self::Wisp { reused };
        let wasmtime = |tuned, reused| Self::Wasmtime { tuned, reused };
        match guest {
            Guest::RustP2 | Guest::RustP3 => vec![
                Self::Native,
                wisp(false),
                wisp(true),
                wasmtime(false, false),
                wasmtime(true, false),
                wasmtime(false, true),
                wasmtime(true, true),
            ],
            // This guest refuses a second request on the same instance.
            Guest::JavaScript => {
                vec![Self::Native, wisp(false), wasmtime(false, false), wasmtime(true, false)]
            }
        }
    }

    /// What figures and `--only` call it.
    fn key(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Wisp { reused: false } => "wisp_fresh",
            Self::Wisp { reused: true } => "wisp_reused",
            Self::Wasmtime { tuned: false, reused: false } => "wasmtime_serve_fresh",
            Self::Wasmtime { tuned: true, reused: false } => "wasmtime_serve_tuned_fresh",
            Self::Wasmtime { tuned: false, reused: true } => "wasmtime_serve_reused",
            Self::Wasmtime { tuned: true, reused: true } => "wasmtime_serve_tuned_reused",
        }
    }

    /// What tables call it.
    fn title(self) -> &'static str {
        match self {
            Self::Native => "native hyper, no guest",
            Self::Wisp { reused: false } => "`wisp up`, fresh",
            Self::Wisp { reused: true } => "`wisp up`, reused",
            Self::Wasmtime { tuned: false, reused: false } => "`wasmtime serve`, fresh",
            Self::Wasmtime { tuned: true, reused: false } => "`wasmtime serve`, tuned, fresh",
            Self::Wasmtime { tuned: false, reused: true } => "`wasmtime serve`, reused",
            Self::Wasmtime { tuned: true, reused: true } => "`wasmtime serve`, tuned, reused",
        }
    }
}

impl Contestant {
    /// What progress and `--only` call it.
    fn id(self) -> String {
        format!("{}/{}", self.guest.key(), self.kind.key())
    }
}

/// What is measured, by guest; native goes with every guest that is.
fn groups(only: &[String]) -> Vec<(Guest, Vec<Kind>)> {
    let wanted = |guest, kind| {
        let id = Contestant { guest, kind }.id();
        only.is_empty() || only.iter().any(|words| id.contains(words.as_str()))
    };
    Guest::ALL
        .into_iter()
        .filter_map(|guest| {
            let all = Kind::of(guest);
            if !all.iter().any(|&kind| wanted(guest, kind)) {
                return None;
            }
            let kinds = all.into_iter().filter(|&kind| kind == Kind::Native || wanted(guest, kind)).collect();
            Some((guest, kinds))
        })
        .collect()
}

/// The groups in the order of this round.
fn in_order(groups: &[(Guest, Vec<Kind>)], round: usize) -> Vec<(Guest, Vec<Kind>)> {
    let mut groups = groups.to_vec();
    if round % 2 == 1 {
        groups.reverse();
        for (_, kinds) in &mut groups {
            kinds.reverse();
        }
    }
    groups
}

impl Stage {
    /// Builds what is missing and writes the manifests.
    fn set(options: &Options, groups: &[(Guest, Vec<Kind>)]) -> Result<Self, Error> {
        let guests = groups.iter().map(|(guest, _)| *guest).collect::<Vec<_>>();
        let sources = match &options.guests {
            Some(folder) => folder.clone(),
            None => guest::build(&guests)?,
        };
        let mut stage = Self {
            folder: TempDir::new().map_err(Error::io("cannot make a temporary folder"))?,
            wisp: PathBuf::new(),
            wasmtime: PathBuf::new(),
            compiled: BTreeMap::new(),
        };
        for (guest, kinds) in groups {
            let source = guest.file(&sources)?;
            for &kind in kinds {
                match kind {
                    Kind::Native => {}
                    Kind::Wisp { reused } => {
                        stage.wisp = match &options.wisp {
                            Some(path) => path.clone(),
                            None => peer::wisp()?,
                        };
                        stage.write_manifest(Contestant { guest: *guest, kind }, &source, reused)?;
                    }
                    Kind::Wasmtime { .. } => {
                        if stage.wasmtime.as_os_str().is_empty() {
                            stage.wasmtime = peer::wasmtime()?;
                        }
                        if !stage.compiled.contains_key(guest) {
                            let compiled = peer::wasmtime_compiled(&stage.wasmtime, *guest, &source)?;
                            stage.compiled.insert(*guest, compiled);
                        }
                    }
                }
            }
        }
        Ok(stage)
    }

    /// The folder of a contestant's manifest and state.
    fn app_folder(&self, contestant: Contestant) -> PathBuf {
        self.folder.path().join(format!("{}-{}", contestant.guest.key(), contestant.kind.key()))
    }

    /// Writes the app that `wisp up` serves.
    fn write_manifest(&self, contestant: Contestant, source: &Path, reused: bool) -> Result<(), Error> {
        let folder = self.app_folder(contestant);
        fs::create_dir_all(&folder).map_err(Error::writing(&folder))?;
        let copy = folder.join("hello.wasm");
        fs::copy(source, &copy).map_err(Error::writing(&copy))?;
        let path = folder.join("spin.toml");
        fs::write(&path, manifest(reused)).map_err(Error::writing(&path))
    }

    /// How to start a contestant.
    fn plan(&self, contestant: Contestant) -> Result<Plan, Error> {
        let name = contestant.id();
        match contestant.kind {
            Kind::Native => Ok(Plan {
                name,
                program: std::env::current_exe().map_err(Error::io("cannot find this program's file"))?,
                arguments: ["native", "--body", BODY].map(str::to_owned).to_vec(),
            }),
            Kind::Wisp { .. } => {
                let folder = self.app_folder(contestant).display().to_string();
                let arguments = ["up", "--from", folder.as_str(), "--listen", "127.0.0.1:0"];
                Ok(Plan {
                    name,
                    program: self.wisp.clone(),
                    arguments: arguments.map(str::to_owned).to_vec(),
                })
            }
            Kind::Wasmtime { tuned, reused } => {
                let compiled = self
                    .compiled
                    .get(&contestant.guest)
                    .ok_or_else(|| Error::Usage(format!("{name} was not compiled")))?;
                let count = if reused { REUSE_COUNT } else { 1 }.to_string();
                let mut arguments =
                    ["serve", "--allow-precompiled", "--addr", "127.0.0.1:0", "-S", "cli=y"].to_vec();
                if tuned {
                    arguments.extend_from_slice(peer::WASMTIME_TUNED_FLAGS);
                }
                arguments.extend(["--max-instance-reuse-count", &count]);
                let mut arguments = arguments.into_iter().map(str::to_owned).collect::<Vec<_>>();
                arguments.push(compiled.display().to_string());
                Ok(Plan { name, program: self.wasmtime.clone(), arguments })
            }
        }
    }
}

/// The manifest of the app that `wisp up` serves.
fn manifest(reused: bool) -> String {
    let reuse = if reused {
        format!("\n[component.hello.tool.wisp]\nreuse = {{ max_requests = {REUSE_COUNT} }}\n")
    } else {
        String::new()
    };
    format!(
        "spin_manifest_version = 2\n\n\
         [application]\nname = \"hello\"\n\n\
         [[trigger.http]]\nroute = \"/...\"\ncomponent = \"hello\"\n\n\
         [component.hello]\nsource = \"hello.wasm\"\n{reuse}"
    )
}

/// All rounds. A contestant that fails once has no figures and is not tried
/// again; why it failed is in the second value.
fn measure_all(
    stage: &Stage,
    groups: &[(Guest, Vec<Kind>)],
    options: &Options,
) -> (Results, BTreeMap<Contestant, Error>) {
    let mut results = Results::new();
    let mut failures = BTreeMap::new();
    for round in 0..options.rounds {
        for (guest, kinds) in in_order(groups, round) {
            for kind in kinds {
                let contestant = Contestant { guest, kind };
                if failures.contains_key(&contestant) {
                    continue;
                }
                let outcome = match measure(stage, contestant, options) {
                    Ok(measurement) => {
                        let cpu_us = report::number(measurement.cpu_us_per_request);
                        let rate = report::number(measurement.requests_per_second);
                        results.entry(contestant).or_default().push(measurement);
                        format!("{}: {cpu_us} µs, {rate} requests/s", contestant.id())
                    }
                    Err(cause) => {
                        results.remove(&contestant);
                        let text = format!("has no figures: {cause}");
                        failures.insert(contestant, cause);
                        text
                    }
                };
                progress(&format!("round {} of {}: {outcome}", round + 1, options.rounds));
            }
        }
    }
    (results, failures)
}

/// One measurement of one contestant, in a process that is started for it.
fn measure(stage: &Stage, contestant: Contestant, options: &Options) -> Result<Measurement, Error> {
    let server = stage.plan(contestant)?.start()?;
    let load = Load {
        address: server.address(),
        path: "/".to_owned(),
        expected: Expected { status: 200, body: BODY.as_bytes().to_vec() },
        connections: options.connections,
        is_busy: options.busy_client,
    };
    let wrong = |cause| Error::Answer { name: contestant.id(), cause };
    if let Some(cause) = load::probe(&load)? {
        return Err(wrong(cause));
    }
    let seconds = Duration::from_secs_f64;
    let (window, before, after) =
        load::run(&load, seconds(options.warm_up_seconds), seconds(options.seconds), || {
            Ok((cpu::Sample::of(server.pid())?, cpu::resident_bytes(server.pid())?))
        })?;
    if let Some(cause) = window.first_error {
        return Err(wrong(format!("{} times, first: {cause}", window.errors)));
    }
    let requests = window.latency_ns.count();
    if requests == 0 {
        return Err(wrong(format!("no request was answered in {:?}", window.elapsed)));
    }
    let Usage { total_ns, user_share } = after.0.since(&before.0);
    let cpu_us = total_ns as f64 / 1e3 / requests as f64;
    Ok(Measurement {
        requests_per_second: requests as f64 / window.elapsed.as_secs_f64(),
        cpu_us_per_request: cpu_us,
        user_us_per_request: cpu_us * user_share,
        system_us_per_request: cpu_us * (1.0 - user_share),
        p50_us: window.latency_ns.quantile(0.50) as f64 / 1e3,
        p99_us: window.latency_ns.quantile(0.99) as f64 / 1e3,
        resident_bytes: after.1,
    })
}

/// The median over the rounds of a ratio of two contestants of one round.
fn ratio(
    results: &Results,
    guest: Guest,
    over: Kind,
    under: Kind,
    value: impl Fn(&Measurement) -> f64,
) -> Option<f64> {
    let over = results.get(&Contestant { guest, kind: over })?;
    let under = results.get(&Contestant { guest, kind: under })?;
    let ratios = over.iter().zip(under).map(|(over, under)| value(over) / value(under)).collect();
    report::median(ratios).map(report::rounded)
}

/// The figures by name. Those of the Rust WASI 0.2 guest carry the names that
/// are followed over time; the same of another guest say which.
fn ratios(results: &Results) -> BTreeMap<String, f64> {
    let fresh = Kind::Wisp { reused: false };
    let reused = Kind::Wisp { reused: true };
    let wasmtime = |tuned, reused| Kind::Wasmtime { tuned, reused };
    let cpu = |measurement: &Measurement| measurement.cpu_us_per_request;
    let rps = |measurement: &Measurement| measurement.requests_per_second;
    let mut figures = BTreeMap::new();
    let mut put = |name: String, value: Option<f64>| {
        if let Some(value) = value {
            figures.insert(name, value);
        }
    };
    for guest in Guest::ALL {
        let key = guest.key();
        let named = |name: &str| match guest {
            Guest::RustP2 => name.to_owned(),
            Guest::RustP3 => format!("{name}_p3"),
            Guest::JavaScript => format!("js_{name}"),
        };
        let cpu_ratio = |over, under| ratio(results, guest, over, under, cpu);
        put(format!("{key}_fresh_cpu_over_native"), cpu_ratio(fresh, Kind::Native));
        put(format!("{key}_reused_cpu_over_native"), cpu_ratio(reused, Kind::Native));
        put(named("wasmtime_serve_cpu_over_fresh"), cpu_ratio(wasmtime(false, false), fresh));
        put(named("wasmtime_serve_tuned_cpu_over_fresh"), cpu_ratio(wasmtime(true, false), fresh));
        put(named("wasmtime_serve_reused_cpu_over_reused"), cpu_ratio(wasmtime(false, true), reused));
        put(named("wasmtime_serve_tuned_reused_cpu_over_reused"), cpu_ratio(wasmtime(true, true), reused));
        put(
            format!("{key}_rps_over_wasmtime_serve"),
            ratio(results, guest, fresh, wasmtime(false, false), rps),
        );
    }
    figures
}

/// The rows of one guest, in the order of the tables.
fn rows(guest: Guest, kinds: &[Kind], results: &Results) -> Vec<Row> {
    kinds
        .iter()
        .filter_map(|&kind| {
            let rounds = results.get(&Contestant { guest, kind })?.clone();
            let mut by_cpu = rounds.clone();
            by_cpu.sort_by(|left, right| left.cpu_us_per_request.total_cmp(&right.cpu_us_per_request));
            let median = by_cpu.get(by_cpu.len() / 2)?.clone();
            let cpu_over_native =
                ratio(results, guest, kind, Kind::Native, |measurement| measurement.cpu_us_per_request);
            Some(Row { guest: guest.title(), server: kind.title(), median, cpu_over_native, rounds })
        })
        .collect()
}

/// The table and what it takes to read it.
fn text(options: &Options, figures: &Figures) -> String {
    let mut table = Table::new(&[
        "guest",
        "server",
        "CPU µs/request",
        "user + system",
        "CPU over native",
        "requests/s",
        "p50 µs",
        "p99 µs",
        "resident MiB",
        "rounds' CPU",
    ]);
    for row in &figures.rows {
        let Measurement { user_us_per_request: user, system_us_per_request: system, .. } = row.median;
        let spread = |pick: fn(f64, f64) -> f64, start: f64| {
            report::number(row.rounds.iter().map(|round| round.cpu_us_per_request).fold(start, pick))
        };
        table.push(vec![
            row.guest.to_owned(),
            row.server.to_owned(),
            report::number(row.median.cpu_us_per_request),
            format!("{} + {}", report::number(user), report::number(system)),
            row.cpu_over_native.map(report::number).unwrap_or_default(),
            format!("{:.0}", row.median.requests_per_second),
            format!("{:.0}", row.median.p50_us),
            format!("{:.0}", row.median.p99_us),
            format!("{:.0}", row.median.resident_bytes as f64 / (1024.0 * 1024.0)),
            format!("{}–{}", spread(f64::min, f64::INFINITY), spread(f64::max, 0.0)),
        ]);
    }
    let mut command = format!(
        "cargo xtask bench http --seconds {} --connections {} --rounds {}",
        options.seconds, options.connections, options.rounds
    );
    if options.busy_client {
        command.push_str(" --busy-client");
    }
    if !options.only.is_empty() {
        command.push_str(&format!(" --only {}", options.only.join(",")));
    }
    let ratios =
        figures.ratios.iter().map(|(name, value)| format!("- `{name}`: {value:.2}\n")).collect::<String>();
    format!(
        "{}- Load average before: {}\n- Peer: {}; tuned means `{}`; reused means an instance serves {REUSE_COUNT} requests\n\n\
         CPU is the server process's; the row of the median round is shown, ratios are\n\
         medians over the rounds. See [the bench's README](../README.md) for how to read it.\n\n\
         {}\n## Ratios\n\n{ratios}",
        report::preamble("What a request costs", &command),
        figures.load_average_before,
        figures.wasmtime,
        figures.wasmtime_tuned_flags,
        table.markdown(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(cpu_us_per_request: f64) -> Measurement {
        Measurement {
            requests_per_second: 1e6 / cpu_us_per_request,
            cpu_us_per_request,
            user_us_per_request: 0.0,
            system_us_per_request: cpu_us_per_request,
            p50_us: 0.0,
            p99_us: 0.0,
            resident_bytes: 0,
        }
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let guest = Guest::RustP2;
        let mut results = Results::new();
        let mut put = |kind, values: [f64; 3]| {
            results.insert(Contestant { guest, kind }, values.map(measured).to_vec());
        };
        // The second round ran on a machine that was ten times slower.
        put(Kind::Native, [10.0, 100.0, 10.0]);
        put(Kind::Wisp { reused: false }, [20.0, 220.0, 30.0]);
        put(Kind::Wasmtime { tuned: false, reused: false }, [100.0, 880.0, 90.0]);
        let figures = ratios(&results);
        assert_eq!(figures.get("rust_p2_fresh_cpu_over_native"), Some(&2.2));
        assert_eq!(figures.get("wasmtime_serve_cpu_over_fresh"), Some(&4.0));
        assert_eq!(figures.get("rust_p2_reused_cpu_over_native"), None);
        assert_eq!(figures.get("rust_p2_rps_over_wasmtime_serve"), Some(&4.0));
    }

    #[test]
    fn every_guest_is_measured_beside_native() {
        assert_eq!(groups(&[]).len(), Guest::ALL.len());
        let some = groups(&["rust_p3/wisp".to_owned()]);
        let expected = vec![Kind::Native, Kind::Wisp { reused: false }, Kind::Wisp { reused: true }];
        assert_eq!(some, vec![(Guest::RustP3, expected)]);
        assert!(groups(&["nothing".to_owned()]).is_empty());
    }

    #[test]
    fn every_other_round_goes_backwards() {
        let groups = groups(&[]);
        assert_eq!(in_order(&groups, 2), groups);
        let mut back = in_order(&groups, 1);
        assert_ne!(back, groups);
        back = in_order(&back, 1);
        assert_eq!(back, groups);
    }

    #[test]
    fn only_the_reused_app_asks_for_reuse() {
        assert!(!manifest(false).contains("reuse"));
        assert!(manifest(true).parse::<toml::Table>().is_ok_and(|table| table.contains_key("component")));
    }
}

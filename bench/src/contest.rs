//! Several servers with the same guests, measured in rounds.
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
use crate::guest::{BODY, Guest};
use crate::load::{self, Load};
use crate::peer::{self, Sources};
use crate::process::{self, Holding};
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::response::Expected;
use crate::server::Plan;

/// After how many requests a reused instance is dropped, for every server: what
/// both Wisp and `wasmtime serve` (for WASI 0.3) do unless told otherwise.
const REUSE_COUNT: u32 = 128;
/// Size of a page of memory in bytes.
const PAGE_BYTES: u64 = 4096;

/// How a contest is run.
#[derive(clap::Args)]
pub(crate) struct Terms {
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
}

/// A way of serving a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// hyper without a guest.
    Native,
    /// `wisp up`.
    Wisp {
        /// Whether an instance serves more than one request.
        reused: bool,
        /// Without accounting, limits and fairness.
        unaccounted: bool,
    },
    /// `wisp up --new-instances`: no instance is rewound.
    WispNew,
    /// `wisp up`, with an app that does without the `spin-*` headers.
    WispPlain {
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
pub(crate) struct Contestant {
    /// The guest.
    pub(crate) guest: Guest,
    /// The way.
    pub(crate) kind: Kind,
}

/// Guests, and how each is served.
pub(crate) type Groups = Vec<(Guest, Vec<Kind>)>;

/// One measurement of one contestant.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Measurement {
    /// Responses a second.
    pub(crate) requests_per_second: f64,
    /// Time on a CPU for each of them.
    pub(crate) cpu_us_per_request: f64,
    /// The part of it outside the kernel.
    pub(crate) user_us_per_request: f64,
    /// The part of it inside the kernel.
    pub(crate) system_us_per_request: f64,
    /// Pages touched for the first time, or again after they were given back.
    pub(crate) minor_faults_per_request: f64,
    /// Pages that the first request of a process left in memory of its own: an
    /// instance's dirty pages, where the server keeps them for the next one.
    pub(crate) pages_after_first_request: u64,
    /// As the load generator sees it.
    pub(crate) p50_us: f64,
    /// As the load generator sees it.
    pub(crate) p99_us: f64,
    /// Of the server's process at the end.
    pub(crate) resident_bytes: u64,
}

/// All measurements of one contestant; the middle one stands for them.
#[derive(Serialize)]
pub(crate) struct Row {
    guest: &'static str,
    server: &'static str,
    #[serde(flatten)]
    median: Measurement,
    cpu_over_native: Option<f64>,
    rounds: Vec<Measurement>,
}

/// Measurements by contestant, one for each round.
pub(crate) type Results = BTreeMap<Contestant, Vec<Measurement>>;

/// What was measured and how, as `--format json` prints it.
#[derive(Serialize)]
pub(crate) struct Record {
    rows: Vec<Row>,
    seconds: f64,
    connections: usize,
    rounds: usize,
    #[serde(flatten)]
    conditions: Conditions,
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

/// Options of a bench that is a contest.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    output: Output,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    ratios: BTreeMap<String, f64>,
    #[serde(flatten)]
    record: Record,
}

/// A bench that is a contest.
pub(crate) struct Contest<'bench> {
    pub(crate) name: &'bench str,
    pub(crate) title: &'bench str,
    pub(crate) groups: Groups,
    pub(crate) ratios: fn(&Results) -> BTreeMap<String, f64>,
    /// What the figures are to be.
    pub(crate) targets: &'bench [(&'bench str, Target)],
}

impl Contest<'_> {
    /// Runs the bench.
    ///
    /// # Errors
    /// If something could not be built, started or measured, or a server answered
    /// wrongly even once.
    pub(crate) fn run(self, options: &Options) -> Result<(), Error> {
        let (results, record, failure) = run(&options.terms, &options.sources, self.groups)?;
        let figures = Figures { ratios: (self.ratios)(&results), record };
        let text = format!(
            "{}{}",
            figures.record.text(self.title),
            report::figures_table(&figures.ratios, self.targets)
        );
        options.output.finish(self.name, &figures, &text, None)?;
        failure.map_or(Ok(()), Err)
    }
}

/// Measures these guests, served in these ways.
///
/// # Errors
/// If something cannot be built or nothing is left to measure. A contestant that
/// fails once has no figures and is not tried again; the first one's error is in
/// the last value.
fn run(terms: &Terms, sources: &Sources, all: Groups) -> Result<(Results, Record, Option<Error>), Error> {
    let groups = terms.wanted(all);
    if groups.is_empty() {
        return Err(Error::Usage(
            "nothing is left to measure: `--only` names nothing that exists".to_owned(),
        ));
    }
    let stage = Stage::set(sources, &groups)?;
    let conditions = Conditions::now();
    let (results, failures) = measure_all(&stage, &groups, terms);
    let record = Record {
        rows: groups.iter().flat_map(|(guest, kinds)| rows(*guest, kinds, &results)).collect(),
        seconds: terms.seconds,
        connections: terms.connections,
        rounds: terms.rounds,
        conditions,
        wasmtime: peer::version(&stage.wasmtime),
        wasmtime_tuned_flags: peer::WASMTIME_TUNED_FLAGS.join(" "),
    };
    Ok((results, record, failures.into_values().next()))
}

impl Kind {
    /// What figures and `--only` call it.
    fn key(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Wisp { reused: false, unaccounted: false } => "wisp_fresh",
            Self::Wisp { reused: true, unaccounted: false } => "wisp_reused",
            Self::Wisp { reused: false, unaccounted: true } => "wisp_unaccounted_fresh",
            Self::Wisp { reused: true, unaccounted: true } => "wisp_unaccounted_reused",
            Self::WispNew => "wisp_new",
            Self::WispPlain { reused: false } => "wisp_plain_fresh",
            Self::WispPlain { reused: true } => "wisp_plain_reused",
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
            Self::Wisp { reused: false, unaccounted: false } => "`wisp up`, fresh",
            Self::Wisp { reused: true, unaccounted: false } => "`wisp up`, reused",
            Self::Wisp { reused: false, unaccounted: true } => "`wisp up`, unaccounted, fresh",
            Self::Wisp { reused: true, unaccounted: true } => "`wisp up`, unaccounted, reused",
            Self::WispNew => "`wisp up --new-instances`",
            Self::WispPlain { reused: false } => "`wisp up`, no `spin-*` headers, fresh",
            Self::WispPlain { reused: true } => "`wisp up`, no `spin-*` headers, reused",
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

impl Terms {
    /// What `--only` leaves of all groups; native goes with every guest that is left.
    fn wanted(&self, all: Groups) -> Groups {
        let is_wanted = |guest, kind| {
            let id = Contestant { guest, kind }.id();
            self.only.is_empty() || self.only.iter().any(|words| id.contains(words.as_str()))
        };
        all.into_iter()
            .filter(|(guest, kinds)| kinds.iter().any(|&kind| is_wanted(*guest, kind)))
            .map(|(guest, mut kinds)| {
                kinds.retain(|&kind| kind == Kind::Native || is_wanted(guest, kind));
                (guest, kinds)
            })
            .collect()
    }
}

/// The groups in the order of this round.
fn in_order(groups: &[(Guest, Vec<Kind>)], round: usize) -> Groups {
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
    fn set(sources: &Sources, groups: &[(Guest, Vec<Kind>)]) -> Result<Self, Error> {
        let guests = groups.iter().map(|(guest, _)| *guest).collect::<Vec<_>>();
        let files = sources.guests(&guests)?;
        let mut stage = Self {
            folder: TempDir::new().map_err(Error::io("cannot make a temporary folder"))?,
            wisp: PathBuf::new(),
            wasmtime: PathBuf::new(),
            compiled: BTreeMap::new(),
        };
        for ((guest, kinds), file) in groups.iter().zip(&files) {
            for &kind in kinds {
                match kind {
                    Kind::Native => {}
                    Kind::Wisp { .. } | Kind::WispNew | Kind::WispPlain { .. } => {
                        stage.wisp = sources.wisp()?;
                        stage.write_manifest(Contestant { guest: *guest, kind }, file)?;
                    }
                    Kind::Wasmtime { .. } => {
                        if stage.wasmtime.as_os_str().is_empty() {
                            stage.wasmtime = peer::wasmtime()?;
                        }
                        if !stage.compiled.contains_key(guest) {
                            let compiled = peer::wasmtime_compiled(&stage.wasmtime, *guest, file)?;
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
    fn write_manifest(&self, contestant: Contestant, source: &Path) -> Result<(), Error> {
        let folder = self.app_folder(contestant);
        fs::create_dir_all(&folder).map_err(Error::writing(&folder))?;
        let copy = folder.join("hello.wasm");
        fs::copy(source, &copy).map_err(Error::writing(&copy))?;
        let path = folder.join("spin.toml");
        fs::write(&path, manifest(contestant)).map_err(Error::writing(&path))
    }

    /// How to start a contestant.
    fn plan(&self, contestant: Contestant) -> Result<Plan, Error> {
        let name = contestant.id();
        let own = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (program, arguments) = match contestant.kind {
            Kind::Native => {
                let program =
                    std::env::current_exe().map_err(Error::io("cannot find this program's file"))?;
                (program, own(&["native", "--body", BODY]))
            }
            Kind::Wisp { .. } | Kind::WispNew | Kind::WispPlain { .. } => {
                let folder = self.app_folder(contestant).display().to_string();
                let mut arguments = ["up", "--from", folder.as_str(), "--listen", "127.0.0.1:0"].to_vec();
                arguments.extend(["--compiler", "optimized"]);
                match contestant.kind {
                    Kind::Wisp { unaccounted: true, .. } => arguments.push("--no-accounting"),
                    Kind::WispNew => arguments.push("--new-instances"),
                    _ => {}
                }
                (self.wisp.clone(), own(&arguments))
            }
            Kind::Wasmtime { tuned, reused } => {
                let compiled = self
                    .compiled
                    .get(&contestant.guest)
                    .ok_or_else(|| Error::Usage(format!("{name} was not compiled")))?
                    .display()
                    .to_string();
                let count = if reused { REUSE_COUNT } else { 1 }.to_string();
                let mut arguments =
                    ["serve", "--allow-precompiled", "--addr", "127.0.0.1:0", "-S", "cli=y"].to_vec();
                if tuned {
                    arguments.extend_from_slice(peer::WASMTIME_TUNED_FLAGS);
                }
                arguments.extend(["--max-instance-reuse-count", &count, &compiled]);
                (self.wasmtime.clone(), own(&arguments))
            }
        };
        Ok(Plan { name, program, arguments, has_admin: false })
    }
}

/// The manifest of the app that `wisp up` serves. The Python SDKs link all
/// interfaces of Spin, used or not; none asks for a permission.
fn manifest(Contestant { guest, kind }: Contestant) -> String {
    let mut settings = String::new();
    if let Kind::Wisp { reused: true, .. } | Kind::WispPlain { reused: true } = kind {
        settings.push_str(&format!("reuse = {{ max_requests = {REUSE_COUNT} }}\n"));
    }
    if let Kind::WispPlain { .. } = kind {
        settings.push_str("spin_headers = false\n");
    }
    if !settings.is_empty() {
        settings.insert_str(0, "\n[component.hello.tool.wisp]\n");
    }
    format!(
        "# {}\nspin_manifest_version = 2\n\n\
         [application]\nname = \"hello\"\n\n\
         [[trigger.http]]\nroute = \"/...\"\ncomponent = \"hello\"\n\n\
         [component.hello]\nsource = \"hello.wasm\"\n{settings}",
        guest.title()
    )
}

/// All rounds. A contestant that fails once has no figures and is not tried
/// again; why it failed is in the second value.
fn measure_all(
    stage: &Stage,
    groups: &[(Guest, Vec<Kind>)],
    terms: &Terms,
) -> (Results, BTreeMap<Contestant, Error>) {
    let mut results = Results::new();
    let mut failures = BTreeMap::new();
    for round in 0..terms.rounds {
        for (guest, kinds) in in_order(groups, round) {
            for kind in kinds {
                let contestant = Contestant { guest, kind };
                if failures.contains_key(&contestant) {
                    continue;
                }
                let outcome = match measure(stage, contestant, terms) {
                    Ok(measurement) => {
                        let cpu_us = report::number(measurement.cpu_us_per_request);
                        let rate = report::number(measurement.requests_per_second);
                        results.entry(contestant).or_default().push(measurement);
                        format!("{}: {cpu_us} µs, {rate} requests/s", contestant.id())
                    }
                    Err(cause) => {
                        results.remove(&contestant);
                        let text = format!("{} has no figures: {cause}", contestant.id());
                        failures.insert(contestant, cause);
                        text
                    }
                };
                progress(&format!("round {} of {}: {outcome}", round + 1, terms.rounds));
            }
        }
    }
    (results, failures)
}

/// One measurement of one contestant, in a process that is started for it.
fn measure(stage: &Stage, contestant: Contestant, terms: &Terms) -> Result<Measurement, Error> {
    let server = stage.plan(contestant)?.start()?;
    let body = match contestant.kind {
        Kind::Native => BODY,
        Kind::Wisp { .. } | Kind::WispNew | Kind::WispPlain { .. } | Kind::Wasmtime { .. } => {
            contestant.guest.body()
        }
    };
    let load = Load {
        address: server.address(),
        host: server.address().to_string(),
        path: "/".to_owned(),
        expected: Expected { status: 200, body: body.as_bytes().to_vec() },
        connections: terms.connections,
        is_busy: terms.busy_client,
    };
    let wrong = |cause| Error::Answer { name: contestant.id(), cause };
    let before_any = Holding::of(server.pid())?;
    if let Some(cause) = load::probe(&load)? {
        return Err(wrong(cause));
    }
    let after_one = Holding::of(server.pid())?;
    let seconds = Duration::from_secs_f64;
    let (window, before, after) =
        load::run(&load, seconds(terms.warm_up_seconds), seconds(terms.seconds), || {
            Ok((cpu::Sample::of(server.pid())?, process::minor_faults(server.pid())?))
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
        minor_faults_per_request: after.1.saturating_sub(before.1) as f64 / requests as f64,
        pages_after_first_request: after_one.anonymous_bytes.saturating_sub(before_any.anonymous_bytes)
            / PAGE_BYTES,
        p50_us: window.latency_ns.quantile(0.50) as f64 / 1e3,
        p99_us: window.latency_ns.quantile(0.99) as f64 / 1e3,
        resident_bytes: Holding::of(server.pid())?.resident_bytes,
    })
}

/// The median over the rounds of a ratio of two contestants of one round.
pub(crate) fn ratio(
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

impl Record {
    /// The head and the table of the result.
    pub(crate) fn text(&self, title: &str) -> String {
        let mut table = Table::new(&[
            "guest",
            "server",
            "CPU µs/request",
            "user + system",
            "CPU over native",
            "faults/request",
            "pages after one",
            "requests/s",
            "p50 µs",
            "p99 µs",
            "resident MiB",
            "rounds' CPU",
        ]);
        for row in &self.rows {
            let median = &row.median;
            let spread = |pick: fn(f64, f64) -> f64, start: f64| {
                report::number(row.rounds.iter().map(|round| round.cpu_us_per_request).fold(start, pick))
            };
            let (user, system) = (median.user_us_per_request, median.system_us_per_request);
            table.push(vec![
                row.guest.to_owned(),
                row.server.to_owned(),
                report::number(median.cpu_us_per_request),
                format!("{} + {}", report::number(user), report::number(system)),
                row.cpu_over_native.map(report::number).unwrap_or_default(),
                report::number(median.minor_faults_per_request),
                median.pages_after_first_request.to_string(),
                format!("{:.0}", median.requests_per_second),
                format!("{:.0}", median.p50_us),
                format!("{:.0}", median.p99_us),
                format!("{:.0}", report::mebibytes(median.resident_bytes)),
                format!("{}–{}", spread(f64::min, f64::INFINITY), spread(f64::max, 0.0)),
            ]);
        }
        format!(
            "{}- Terms: {} rounds, {} s a measurement, {} connections\n\
             - Peer: {}; tuned means `{}`; reused means an instance serves {REUSE_COUNT} requests\n\n\
             CPU is the server process's; the row of the median round is shown, ratios are\n\
             medians over the rounds. See [the bench's README](../README.md) for how to read it.\n\n{}\n",
            report::preamble(title, &self.conditions),
            self.rounds,
            self.seconds,
            self.connections,
            self.wasmtime,
            self.wasmtime_tuned_flags,
            table.markdown(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Groups {
        let wisp = |reused| Kind::Wisp { reused, unaccounted: false };
        let kinds = || vec![Kind::Native, wisp(false), wisp(true)];
        vec![(Guest::RustP2, kinds()), (Guest::RustP3, kinds())]
    }

    fn terms(only: &str) -> Terms {
        Terms {
            seconds: 1.0,
            warm_up_seconds: 1.0,
            connections: 1,
            rounds: 1,
            busy_client: false,
            only: vec![only.to_owned()],
        }
    }

    #[test]
    fn native_goes_with_every_guest_that_is_measured() {
        let expected =
            vec![(Guest::RustP3, vec![Kind::Native, Kind::Wisp { reused: false, unaccounted: false }])];
        assert_eq!(terms("rust_p3/wisp_fresh").wanted(groups()), expected);
        assert_eq!(terms("wisp").wanted(groups()), groups());
        assert!(terms("nothing").wanted(groups()).is_empty());
    }

    #[test]
    fn every_other_round_goes_backwards() {
        let groups = groups();
        assert_eq!(in_order(&groups, 2), groups);
        let mut back = in_order(&groups, 1);
        assert_ne!(back, groups);
        back = in_order(&back, 1);
        assert_eq!(back, groups);
    }

    #[test]
    fn only_the_reused_app_asks_for_reuse() {
        let manifest = |guest, kind| manifest(Contestant { guest, kind });
        let usual = manifest(Guest::RustP2, Kind::Wisp { reused: false, unaccounted: false });
        assert!(!usual.contains("reuse") && !usual.contains("spin_headers"));
        for kind in [Kind::Wisp { reused: true, unaccounted: false }, Kind::WispPlain { reused: true }] {
            let table = manifest(Guest::Python, kind).parse::<toml::Table>();
            let reuse = |table: &toml::Table| table["component"]["hello"]["tool"]["wisp"]["reuse"].is_table();
            assert!(table.as_ref().is_ok_and(reuse));
        }
        assert!(manifest(Guest::RustP2, Kind::WispPlain { reused: false }).contains("spin_headers = false"));
    }
}

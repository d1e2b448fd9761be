//! The `deploy` bench: many apps of many teams are deployed to one `wisp server`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{self, Client};
use crate::error::Error;
use crate::fleet::Fleet;
use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::peer::Sources;
use crate::plot::{Line, Panel, Plot};
use crate::report::{self, Conditions, Output, Table, Target, progress};
use crate::serve::{CLOUD_NAME, Cloud};

/// What the figures are to be.
const TARGETS: [(&str, Target); 1] = [("failed", Target::AtMost(0.0))];
/// Where the control plane answers.
const DOMAIN: &str = "localhost";
/// How often somebody looks at what they have while others deploy.
const LOOK: Duration = Duration::from_millis(20);
/// How often progress is reported, in apps.
const REPORT_COUNT: usize = 100;

/// Options of the `deploy` bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Apps that are deployed
    #[arg(long, default_value_t = 1_000)]
    count: usize,
    /// Teams that they belong to
    #[arg(long, default_value_t = 20)]
    teams: usize,
    /// Deploys at once
    #[arg(long, default_value_t = 4)]
    at_once: usize,
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
    apps: usize,
    teams: usize,
    at_once: usize,
    #[serde(flatten)]
    conditions: Conditions,
    #[serde(skip)]
    deploy_ns: Histogram,
    #[serde(skip)]
    api_ns: Histogram,
}

/// A server, and who may use it.
struct Access {
    wisp: PathBuf,
    address: SocketAddr,
    token: String,
    /// Where the command line keeps what it knows.
    home: PathBuf,
}

/// What deploying came to.
struct Deployed {
    deploy_ns: Histogram,
    api_ns: Histogram,
    elapsed: Duration,
    failed: usize,
}

/// Runs the bench.
///
/// # Errors
/// If something could not be built or started, or the API answers wrongly.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let conditions = Conditions::now();
    let wisp = options.sources.wisp()?;
    let files = options.sources.guests(&[Guest::Tiny])?;
    let fleet = Fleet::make(Guest::Tiny, files.first().map_or("".as_ref(), |file| file), options.count)?;
    let folder = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
    let data = folder.path().join("data");
    let cloud = Cloud::start(&wisp, &data)?;
    let home = folder.path().join("home");
    fs::create_dir_all(&home).map_err(Error::writing(&home))?;
    let access = Access { token: sign_in(&cloud)?, wisp: wisp.clone(), address: cloud.address(), home };
    for number in 1..options.teams.max(1) {
        access.ask("POST", "/api/v1/teams", Some(&json!({ "name": team(number) })), 201)?;
    }
    let deployed = deploy(options, &access, &fleet)?;
    let mut failed = deployed.failed + wrong_answers(options, access.address, &fleet);
    // As a power cut would.
    drop(cloud);
    let cloud = Cloud::start(&wisp, &data)?;
    let restart_ms = cloud.start_time().as_secs_f64() * 1e3;
    failed += wrong_answers(options, cloud.address(), &fleet);
    let state_bytes = state_bytes(&data)?;
    drop(cloud);
    let ms = |histogram: &Histogram, share| histogram.quantile(share) as f64 / 1e6;
    let values = [
        ("deploys_per_s", options.count as f64 / deployed.elapsed.as_secs_f64()),
        ("deploy_p50_ms", ms(&deployed.deploy_ns, 0.5)),
        ("deploy_p99_ms", ms(&deployed.deploy_ns, 0.99)),
        ("api_p50_ms", ms(&deployed.api_ns, 0.5)),
        ("api_p99_ms", ms(&deployed.api_ns, 0.99)),
        ("state_bytes_per_app", state_bytes as f64 / options.count.max(1) as f64),
        ("restart_ms", restart_ms),
        ("failed", failed as f64),
    ];
    let figures = Figures {
        figures: values.into_iter().map(|(name, value)| (name.to_owned(), report::rounded(value))).collect(),
        apps: options.count,
        teams: options.teams,
        at_once: options.at_once,
        conditions,
        deploy_ns: deployed.deploy_ns,
        api_ns: deployed.api_ns,
    };
    options.output.finish("deploy", &figures, &figures.text(), Some(&figures.plot()))
}

/// The first person signs in, and has the first team.
fn sign_in(cloud: &Cloud) -> Result<String, Error> {
    let code = cloud.sign_in_code()?;
    let body = json!({ "code": code, "user": "bench", "team": team(0) });
    let answer = exchange(cloud.address(), None, "POST", "/api/v1/sign-in", Some(&body), 201)?;
    let secret = answer.get("secret").and_then(Value::as_str);
    secret.map(str::to_owned).ok_or_else(|| wrong("the sign-in has no secret".to_owned()))
}

/// Deploys every app of the fleet by `wisp deploy`, some at once, while somebody else looks
/// at what there is.
fn deploy(options: &Options, access: &Access, fleet: &Fleet) -> Result<Deployed, Error> {
    let (next, is_done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let deployed = Mutex::new((Histogram::new(), 0));
    let began = Instant::now();
    let api_ns = thread::scope(|scope| {
        let looking = scope.spawn(|| look(access, &is_done));
        let deployers = (0..options.at_once.max(1)).map(|_| {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= options.count {
                        break;
                    }
                    let started = Instant::now();
                    let outcome = access.deploy(options, fleet, number);
                    let took_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    let mut deployed = deployed.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(()) => deployed.0.record(took_ns),
                        Err(cause) => {
                            deployed.1 += 1;
                            progress(&format!("app {number}: {cause}"));
                        }
                    }
                    drop(deployed);
                    if number % REPORT_COUNT == REPORT_COUNT - 1 {
                        progress(&format!("{} apps, {:.0} s", number + 1, began.elapsed().as_secs_f64()));
                    }
                }
            })
        });
        for deployer in deployers.collect::<Vec<_>>() {
            let _ = deployer.join();
        }
        is_done.store(true, Ordering::Relaxed);
        looking.join().unwrap_or_else(|_| Err(wrong("whoever looked at the API stopped".to_owned())))
    })?;
    let elapsed = began.elapsed();
    let (deploy_ns, failed) = deployed.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Deployed { deploy_ns, api_ns, elapsed, failed })
}

/// Asks for a page of a team's apps again and again; how long each answer took.
fn look(access: &Access, is_done: &AtomicBool) -> Result<Histogram, Error> {
    let mut took_ns = Histogram::new();
    let path = format!("/api/v1/teams/{}/apps", team(0));
    while !is_done.load(Ordering::Relaxed) {
        let started = Instant::now();
        access.ask("GET", &path, None, 200)?;
        took_ns.record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        thread::sleep(LOOK);
    }
    Ok(took_ns)
}

/// How many apps do not answer their number at their host.
fn wrong_answers(options: &Options, address: SocketAddr, fleet: &Fleet) -> usize {
    let mut client = None;
    let mut wrong_count = 0;
    for number in 0..options.count {
        let host = format!("{}.{}.{DOMAIN}", app(number), team(number % options.teams.max(1)));
        let ask = |client: &mut Option<Client>| {
            let open = match client {
                Some(open) => open,
                None => client.insert(Client::open(address)?),
            };
            open.exchange(&client::request("GET", &host, "/"), &fleet.expected(number))
        };
        match ask(&mut client) {
            Ok(received) if received.keep_alive => {}
            Ok(_) => client = None,
            Err(cause) => {
                progress(&format!("{host}: {cause}"));
                client = None;
                wrong_count += 1;
            }
        }
    }
    wrong_count
}

impl Access {
    /// Runs `wisp deploy` for an app.
    fn deploy(&self, options: &Options, fleet: &Fleet, number: usize) -> Result<(), String> {
        let output = Command::new(&self.wisp)
            .arg("deploy")
            .arg("--from")
            .arg(fleet.apps().join(fleet.host(number)))
            .args(["--app", &app(number), "--team", &team(number % options.teams.max(1))])
            .args(["--server", &format!("http://{}", self.address), "--token", &self.token])
            .args(["--yes", "--format", "json"])
            .env("HOME", &self.home)
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null())
            .output()
            .map_err(|cause| format!("`wisp deploy` cannot be started: {cause}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>, status: u16) -> Result<Value, Error> {
        exchange(self.address, Some(&self.token), method, path, body, status)
    }
}

/// One request to the API, on a connection of its own.
fn exchange(
    address: SocketAddr,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&Value>,
    status: u16,
) -> Result<Value, Error> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {DOMAIN}\r\n{token}content-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = Client::open(address)
        .and_then(|mut client| client.fetch(request.as_bytes()))
        .map_err(|cause| wrong(format!("{method} {path}: {cause}")))?
        .response;
    if answer.status != status {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(wrong(format!("{method} {path}: status {}: {text}", answer.status)));
    }
    serde_json::from_slice(&answer.body).map_err(|cause| wrong(format!("{method} {path}: {cause}")))
}

/// What the control plane keeps of all apps, in bytes.
fn state_bytes(data: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    for name in ["state.db", "state.db-wal"] {
        let path = data.join(name);
        match fs::metadata(&path) {
            Ok(facts) => bytes += facts.len(),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {}
            Err(cause) => return Err(Error::reading(&path)(cause)),
        }
    }
    Ok(bytes)
}

fn team(number: usize) -> String {
    format!("team-{number:02}")
}

fn app(number: usize) -> String {
    format!("app-{number:04}")
}

fn wrong(cause: String) -> Error {
    Error::Answer { name: CLOUD_NAME.to_owned(), cause }
}

impl Figures {
    fn text(&self) -> String {
        let mut table = Table::new(&["", "count", "p50 ms", "p90 ms", "p99 ms", "largest ms"]);
        for (name, took_ns) in [("`wisp deploy`", &self.deploy_ns), ("a page of apps", &self.api_ns)] {
            let ms = |share| report::number(took_ns.quantile(share) as f64 / 1e6);
            table.push(vec![
                name.to_owned(),
                took_ns.count().to_string(),
                ms(0.5),
                ms(0.9),
                ms(0.99),
                ms(1.0),
            ]);
        }
        format!(
            "{}- Terms: {} distinct apps of {} teams, each by a `wisp deploy` of its own, {} at once; each is\n  \
             compiled; then every app is asked for its answer, the server killed and started again, and\n  \
             every app asked once more\n\n{}\n{}",
            report::preamble("Deploying to one server", &self.conditions),
            self.apps,
            self.teams,
            self.at_once,
            table.markdown(),
            report::figures_table(&self.figures, &TARGETS),
        )
    }

    fn plot(&self) -> Plot {
        let panel = |label: &str, name: &str, took_ns| Panel::tail(label, vec![Line::tail_us(name, took_ns)]);
        Plot {
            title: "Deploying to one server".to_owned(),
            panels: vec![
                panel("deploy, µs", "`wisp deploy`", &self.deploy_ns),
                panel("API, µs", "a page of apps", &self.api_ns),
            ],
        }
    }
}

//! `wisp serve`: many apps in one process, and its operator's listener.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use tempfile::TempDir;

use crate::client::{self, Client};
use crate::cpu;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::process::Holding;
use crate::report::progress;
use crate::response::{Answer, Expected};
use crate::server::{Plan, Server};

/// The status of a rollback to a version that there is none of.
const NOTHING_BEFORE: u16 = 409;

/// The name that errors and progress give it.
const NAME: &str = "wisp serve";
/// How often a server is asked whether all of its apps are prepared.
const ASK_MS: u64 = 500;
/// How long the operator's listener may take: what it says about a hundred thousand apps
/// while others are compiled on a busy machine.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(60);
/// How often the number of prepared apps is reported.
const REPORT_MS: u64 = 10_000;
/// How long a server may go without having prepared one more app: a compiler
/// needs some 10 s for a JavaScript guest on a busy machine.
const STALL_MS: u64 = 120_000;

/// The name that errors give a cloud.
pub(crate) const CLOUD_NAME: &str = "wisp server";
/// What comes before the code that the first person signs in with.
const SIGN_IN_CODE: &str = "/sign-in?code=";
/// How long a new server may take to print it after it has said where it serves.
const SIGN_IN_PATIENCE: Duration = Duration::from_secs(10);
/// How often its output is looked at until then.
const SIGN_IN_LOOK: Duration = Duration::from_millis(10);

/// A running `wisp server`; it is killed when this is dropped.
pub(crate) struct Cloud {
    server: Server,
}

/// What to serve and how.
pub(crate) struct Setting {
    /// The program.
    pub(crate) wisp: PathBuf,
    /// The folder of apps.
    pub(crate) apps: PathBuf,
    /// Where compiled images are kept.
    pub(crate) images: PathBuf,
    /// Further arguments.
    pub(crate) flags: Vec<String>,
}

/// A running `wisp serve`; it is ended when this is dropped.
pub(crate) struct Node {
    server: Server,
    admin: SocketAddr,
    /// Stores and logs of the apps, for as long as it runs.
    _state: TempDir,
}

/// What `GET /health` says.
#[derive(Deserialize)]
pub(crate) struct Health {
    /// How many apps are how.
    pub(crate) counts: Counts,
    /// Compiled images.
    pub(crate) images: Images,
    /// What is wrong with which app.
    unhealthy: Vec<Problem>,
}

/// How many apps are how.
#[derive(Deserialize)]
pub(crate) struct Counts {
    /// All of them.
    pub(crate) registered: usize,
    /// Those that are compiled, verified and linked.
    pub(crate) prepared: usize,
    /// Those that are mapped.
    pub(crate) mapped: usize,
}

/// Compiled images in memory.
#[derive(Deserialize)]
pub(crate) struct Images {
    /// How many are mapped.
    pub(crate) mapped: usize,
}

/// What is wrong with an app.
#[derive(Deserialize)]
struct Problem {
    host: String,
    reason: String,
}

impl Cloud {
    /// Starts a server on a data directory, on a free port.
    ///
    /// # Errors
    /// If it does not serve.
    pub(crate) fn start(wisp: &Path, data: &Path) -> Result<Self, Error> {
        let arguments = ["server", "--listen", "127.0.0.1:0", "--data-dir", &data.display().to_string()];
        let plan = Plan {
            name: CLOUD_NAME.to_owned(),
            program: wisp.to_owned(),
            arguments: arguments.map(str::to_owned).to_vec(),
            has_admin: false,
        };
        Ok(Self { server: plan.start()? })
    }

    /// Where it answers requests.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How long it took from the start of the process until it said that it serves.
    pub(crate) fn start_time(&self) -> Duration {
        self.server.start()
    }

    /// The code that a new server prints for its first person.
    ///
    /// # Errors
    /// If it prints none.
    pub(crate) fn sign_in_code(&self) -> Result<String, Error> {
        let deadline = Instant::now() + SIGN_IN_PATIENCE;
        loop {
            let text = self.server.output();
            let code = text.split_once(SIGN_IN_CODE).and_then(|(_, rest)| {
                let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric())?;
                rest.get(..end)
            });
            match code {
                Some(code) => return Ok(code.to_owned()),
                None if Instant::now() > deadline => {
                    let cause = "it prints no link to sign in with".to_owned();
                    return Err(Error::Answer { name: CLOUD_NAME.to_owned(), cause });
                }
                None => thread::sleep(SIGN_IN_LOOK),
            }
        }
    }
}

impl Setting {
    /// How to serve a fleet.
    pub(crate) fn of(wisp: &Path, fleet: &Fleet) -> Self {
        Self { wisp: wisp.to_owned(), apps: fleet.apps(), images: fleet.images(), flags: Vec::new() }
    }

    /// How to serve no app at all, from below an empty folder.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn empty(wisp: &Path, folder: &Path) -> Result<Self, Error> {
        let (apps, images) = (folder.join("apps"), folder.join("images"));
        for folder in [&apps, &images] {
            fs::create_dir_all(folder).map_err(Error::writing(folder))?;
        }
        Ok(Self { wisp: wisp.to_owned(), apps, images, flags: Vec::new() })
    }

    /// Starts the server and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn start(&self) -> Result<Node, Error> {
        let state = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
        let folder = |path: &Path| path.display().to_string();
        let mut arguments = vec!["serve".to_owned()];
        for (flag, value) in [
            ("--apps", folder(&self.apps)),
            ("--image-dir", folder(&self.images)),
            ("--state-dir", folder(&state.path().join("state"))),
            ("--log-dir", folder(&state.path().join("logs"))),
            ("--listen", "127.0.0.1:0".to_owned()),
            ("--admin", "127.0.0.1:0".to_owned()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments.extend_from_slice(&self.flags);
        let plan = Plan { name: NAME.to_owned(), program: self.wisp.clone(), arguments, has_admin: true };
        let server = plan.start()?;
        let admin = server
            .admin()
            .ok_or_else(|| Error::Usage(format!("{NAME} did not say where its operator's listener is")))?;
        Ok(Node { server, admin, _state: state })
    }

    /// Starts a server, waits until it has compiled all apps of the fleet that it
    /// serves, and ends it: the next one only has to verify.
    ///
    /// # Errors
    /// If it does not serve, or does not get on with compiling.
    pub(crate) fn compile(&self, fleet: &Fleet) -> Result<(), Error> {
        progress(&format!("seeing to it that {} apps are compiled", fleet.count()));
        let began = SystemTime::now();
        let node = self.start()?;
        let is_done = AtomicBool::new(false);
        let next = AtomicUsize::new(fleet.count());
        thread::scope(|scope| {
            // A server compiles ahead in one thread, from the first app on. Whoever
            // asks for an app has it compiled too: so, from the last one on.
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    let mut client = None;
                    while !is_done.load(Ordering::Relaxed) {
                        let number = next.fetch_sub(1, Ordering::Relaxed);
                        let Some(number) = number.checked_sub(1) else { break };
                        // If it takes too long, somebody else has it compiled.
                        let host = fleet.host(number);
                        if node.first_byte(&mut client, &host, &fleet.expected(number)).is_err() {
                            client = None;
                        }
                    }
                });
            }
            let result = node.wait_until_prepared(fleet.count());
            is_done.store(true, Ordering::Relaxed);
            result
        })?;
        fleet.remove_old_images(began)
    }
}

impl Node {
    /// The id of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Where it answers requests.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How long it took from the start of the process until it said that it serves.
    pub(crate) fn start(&self) -> Duration {
        self.server.start()
    }

    /// What its process holds now.
    pub(crate) fn holding(&self) -> Result<Holding, Error> {
        Holding::of(self.pid())
    }

    /// What its process has used so far.
    pub(crate) fn cpu(&self) -> Result<cpu::Sample, Error> {
        cpu::Sample::of(self.pid())
    }

    /// The share of a core that it uses while nothing is asked of it.
    ///
    /// # Errors
    /// If its process has ended.
    pub(crate) fn idle_core_share(&self, duration: Duration) -> Result<f64, Error> {
        let (before, start) = (self.cpu()?, Instant::now());
        // Not to wait for something, but to do nothing.
        thread::sleep(duration);
        Ok(self.cpu()?.since(&before).total_ns as f64 / 1e9 / start.elapsed().as_secs_f64())
    }

    /// The health of all apps, as it came.
    pub(crate) fn health_text(&self) -> Result<Vec<u8>, Error> {
        Ok(self.ask("GET", "/health")?.body)
    }

    /// The health of all apps.
    pub(crate) fn health(&self) -> Result<Health, Error> {
        let text = self.health_text()?;
        serde_json::from_slice(&text)
            .map_err(|cause| self.wrong(format!("`/health` is not as expected: {cause}")))
    }

    /// Waits until all `count` apps are compiled and verified.
    ///
    /// # Errors
    /// If one cannot be, or it does not get on.
    pub(crate) fn wait_until_prepared(&self, count: usize) -> Result<(), Error> {
        let (mut last, mut changed, mut reported) = (0, Instant::now(), Instant::now());
        loop {
            let Health { counts, unhealthy, .. } = self.health()?;
            if let Some(Problem { host, reason }) = unhealthy.first() {
                return Err(Error::Answer { name: host.clone(), cause: reason.clone() });
            }
            let prepared = counts.prepared;
            if prepared >= count {
                return Ok(());
            }
            if prepared != last {
                (last, changed) = (prepared, Instant::now());
            } else if changed.elapsed() > Duration::from_millis(STALL_MS) {
                let registered = counts.registered;
                return Err(self.wrong(format!(
                    "{prepared} of {count} apps are prepared ({registered} registered), and no more for {STALL_MS} ms"
                )));
            }
            if reported.elapsed() > Duration::from_millis(REPORT_MS) {
                progress(&format!("{prepared} of {count} apps are prepared"));
                reported = Instant::now();
            }
            thread::sleep(Duration::from_millis(ASK_MS));
        }
    }

    /// Checks how many apps are mapped.
    ///
    /// # Errors
    /// If there are more or fewer than `count`.
    pub(crate) fn check_mapped(&self, count: usize) -> Result<(), Error> {
        match self.health()?.counts.mapped {
            mapped if mapped == count => Ok(()),
            mapped => Err(self.wrong(format!("{mapped} apps are mapped instead of {count}"))),
        }
    }

    /// Goes back to an app's version before. False if there is none that is still mapped:
    /// others may have needed its room.
    ///
    /// # Errors
    /// If it says that it did not for another reason.
    pub(crate) fn roll_back(&self, host: &str) -> Result<bool, Error> {
        let path = format!("/apps/{host}/rollback");
        let answer = self.exchange("POST", &path)?;
        match answer.status {
            NOTHING_BEFORE => Ok(false),
            _ => self.check("POST", &path, answer).map(|_| true),
        }
    }

    /// Sends a request to an app, on a connection that may have to be opened first, and
    /// says how long its first byte took.
    ///
    /// # Errors
    /// If the response is not as expected.
    pub(crate) fn first_byte(
        &self,
        client: &mut Option<Client>,
        host: &str,
        expected: &Expected,
    ) -> Result<Duration, Error> {
        let wrong = |cause| Error::Answer { name: host.to_owned(), cause };
        let open = match client {
            Some(open) => open,
            None => client.insert(Client::open(self.address()).map_err(wrong)?),
        };
        let request = client::request("GET", host, "/");
        let sent = Instant::now();
        let received = open.exchange(&request, expected).map_err(wrong)?;
        if !received.keep_alive {
            *client = None;
        }
        Ok(received.first_byte.saturating_duration_since(sent))
    }

    /// Asks the operator's listener; whatever is not a success is an error.
    fn ask(&self, method: &str, path: &str) -> Result<Answer, Error> {
        let answer = self.exchange(method, path)?;
        self.check(method, path, answer)
    }

    fn exchange(&self, method: &str, path: &str) -> Result<Answer, Error> {
        let ask = || {
            let mut client = Client::open_with(self.admin, OPERATOR_PATIENCE)?;
            let host = self.admin.to_string();
            client.fetch(&client::request(method, &host, path))
        };
        Ok(ask().map_err(|cause| self.wrong(format!("{method} {path}: {cause}")))?.response)
    }

    fn check(&self, method: &str, path: &str, answer: Answer) -> Result<Answer, Error> {
        match answer.status {
            200..=299 => Ok(answer),
            status => {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                Err(self.wrong(format!("{method} {path}: status {status}: {text}")))
            }
        }
    }

    fn wrong(&self, cause: String) -> Error {
        Error::Answer { name: NAME.to_owned(), cause }
    }
}

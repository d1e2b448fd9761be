//! Apps to test with: where their guests are, how they start and end, what they
//! print.

mod authority;
mod cloud;
mod collector;
mod dns;
mod http1;
mod http2;
mod https;
mod output;
mod registries;
mod served;
mod serving;
mod upstream;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub(crate) use self::{
    authority::{Authority, MovedClock},
    cloud::{Cloud, Person, Running as RunningCloud, json_of, try_request},
    collector::{Collector, attribute, attributes},
    dns::NameServer,
    http1::{Connection, Response, query, seen_header},
    http2::{Client, body, channel, empty, runtime},
    https::Https,
    output::Output,
    registries::{DockerRegistry, OwnRegistry, stalling_proxy},
    served::Served,
    serving::{Apps, Serving, manifest_of},
    upstream::{Upstream, tcp_echo, udp_echo},
};

/// How long an app may take to start: a debug build compiles the largest guests
/// for most of a minute on a machine that is busy with other tests.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(240);

/// How long a line of output, the end of a process or a response may take.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// More than any sentence is long.
const UNWRAPPED_COLUMNS: &str = "10000";

/// The guests that do one thing per path, in every version of the interfaces.
pub(crate) const PROBES: [&str; 4] = ["rust-sdk5", "rust-sdk6", "rust-sdk7", "rust-v1"];

/// The probes that can do everything: those of SDKs that are still maintained.
pub(crate) const SDK_PROBES: [&str; 3] = ["rust-sdk5", "rust-sdk6", "rust-sdk7"];

/// An app that is not running: a folder, and how `wisp up` is to be called.
pub(crate) struct App {
    folder: TempDir,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    cache_dir: PathBuf,
    guests: Vec<String>,
}

/// An app that is running. Ends with the test, whatever happens.
pub(crate) struct Running {
    child: Child,
    address: SocketAddr,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    app: Option<App>,
}

/// A `wisp` that has ended.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Where a guest is, if it was built.
pub(crate) fn guest(name: &str) -> Option<PathBuf> {
    let path = guests_dir().join(name).with_extension("wasm");
    if path.is_file() {
        return Some(path);
    }
    skip(&format!("the guest `{name}` is not built; `cargo xtask guests` does that"));
    None
}

/// Says that a test cannot run here. In CI it has to.
pub(crate) fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {why}");
    eprintln!("SKIPPED: {test}: {why}");
    if let Some(list) = std::env::var_os("WISP_SKIPPED_FILE") {
        let mut list = fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        writeln!(list, "{test}: {why}").unwrap();
    }
}

/// Whether all of these guests were built.
pub(crate) fn have(names: &[&str]) -> bool {
    names.iter().all(|name| guest(name).is_some())
}

/// Those of these guests that were built.
pub(crate) fn available(names: &[&'static str]) -> Vec<&'static str> {
    names.iter().copied().filter(|name| guest(name).is_some()).collect()
}

pub(crate) fn guests_dir() -> PathBuf {
    match std::env::var_os("WISP_GUESTS_DIR") {
        Some(folder) => folder.into(),
        // Cargo gives tests `tmp` in its target folder; guests land beside it.
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guests"),
    }
}

/// Holds back the other tests that need the machine for themselves.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// An app of its own folder. `{NAME}` in the manifest stands for the path of a guest.
    pub(crate) fn new(manifest: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("wisp-suite-").tempdir().unwrap();
        let mut text = manifest.to_owned();
        let mut guests = Vec::new();
        for entry in fs::read_dir(guests_dir()).into_iter().flatten() {
            let path = entry.unwrap().path();
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            let placeholder = format!("{{{name}}}");
            if path.extension().is_some_and(|extension| extension == "wasm") && text.contains(&placeholder) {
                text = text.replace(&placeholder, path.to_str().unwrap());
                guests.push(name.to_owned());
            }
        }
        // Every test takes locks in the same order.
        guests.sort();
        if !text.is_empty() {
            fs::write(folder.path().join("spin.toml"), text).unwrap();
        }
        Self {
            folder,
            arguments: Vec::new(),
            environment: Vec::new(),
            cache_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("suite-cache"),
            guests,
        }
    }

    /// One guest behind all routes; `settings` are lines of its component.
    pub(crate) fn of(guest: &str, settings: &str) -> Self {
        Self::new(&format!(
            "spin_manifest_version = 2\n\
             [application]\n\
             name = \"of-one\"\n\
             [[trigger.http]]\n\
             route = \"/...\"\n\
             component = \"{guest}\"\n\
             [component.{guest}]\n\
             source = \"{{{guest}}}\"\n\
             {settings}\n"
        ))
    }

    /// Several guests, each behind `/NAME/...`; `settings` are lines of every component.
    pub(crate) fn of_each(guests: &[&str], settings: &str) -> Self {
        let mut manifest =
            "spin_manifest_version = 2\n[application]\nname = \"of-each\"\nversion = \"1.2.3\"\n".to_owned();
        for guest in guests {
            manifest.push_str(&format!(
                "[[trigger.http]]\n\
                 route = \"/{guest}/...\"\n\
                 component = \"{guest}\"\n\
                 [component.{guest}]\n\
                 source = \"{{{guest}}}\"\n\
                 {settings}\n"
            ));
        }
        Self::new(&manifest)
    }

    /// Adds a file to the app's folder.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Adds arguments of `wisp up`.
    pub(crate) fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps compiled images apart from those of other tests.
    pub(crate) fn own_cache(mut self) -> Self {
        self.cache_dir = self.path("cache");
        self
    }

    /// A path in the app's folder.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn command(&self) -> Command {
        let mut command = wisp();
        command.arg("up");
        if !self.arguments.iter().any(|argument| argument == "--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command
            .args(&self.arguments)
            .current_dir(self.folder.path())
            .env("WISP_CACHE_DIR", &self.cache_dir)
            .env("HOME", self.folder.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `wisp up` until it says where it serves.
    pub(crate) fn start(self) -> Running {
        // Only one test compiles a guest; others that need it wait for the image.
        let locks: Vec<_> = self.guests.iter().map(|guest| first_use(guest, &self.cache_dir)).collect();
        let mut compiled: Vec<_> =
            locks.iter().map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let held: Vec<_> = compiled.extract_if(.., |is_compiled| !**is_compiled).collect();
        drop(compiled);

        let mut child = self.command().spawn().unwrap();
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        let is_ready = |line: &str| line.starts_with("Serving ") || line.starts_with('{');
        let Some(line) = stdout.try_wait_for(is_ready, START_LIMIT) else {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the app does not start:\n{}{}", stdout.text_at_end(), stderr.text_at_end());
        };
        for mut is_compiled in held {
            *is_compiled = true;
        }
        let url = match line.strip_prefix("Serving ") {
            Some(url) => url.to_owned(),
            None => {
                serde_json::from_str::<serde_json::Value>(&line).unwrap()["url"].as_str().unwrap().to_owned()
            }
        };
        let (_, address) = url.split_once("://").unwrap();
        Running { child, address: address.parse().unwrap(), stdout, stderr, app: Some(self) }
    }

    /// Runs `wisp up`, which is expected to refuse.
    pub(crate) fn refused(&self) -> Finished {
        let finished = finish(self.command());
        assert!(!finished.status.success(), "it started, then ended well:\n{}", finished.stderr);
        finished
    }
}

/// `wisp` without settings of whoever runs the tests. `WISP_SUITE_BINARY` names
/// another build of it, such as an optimised one.
pub(crate) fn wisp() -> Command {
    let binary = std::env::var_os("WISP_SUITE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_wisp").into());
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let is_setting = ["SPIN_", "WISP_", "OTEL_"].iter().any(|prefix| text.starts_with(prefix));
        if is_setting || text == "RUNTIME_CONFIG_FILE" || text == "XDG_CACHE_HOME" || text == "COLUMNS" {
            command.env_remove(&name);
        }
    }
    // What is compiled in one test is there for all, and nothing is compiled beside them.
    // `WISP_SUITE_COMPILER=baseline` runs them on code that is not optimized.
    let compiler = std::env::var_os("WISP_SUITE_COMPILER").unwrap_or_else(|| "optimized".into());
    command.env("WISP_COMPILER", compiler);
    // Most tests look for a part of a sentence, wherever lines end.
    command.env("COLUMNS", UNWRAPPED_COLUMNS);
    command
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command) -> Finished {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = Output::of(child.stdout.take().unwrap());
    let stderr = Output::of(child.stderr.take().unwrap());
    // Whoever serves does not end by itself.
    let serves = stdout.try_wait_for(|line| line.starts_with("Serving "), START_LIMIT).is_some();
    let status = if serves { None } else { wait(&mut child, START_LIMIT) };
    let Some(status) = status else {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("it does not end:\n{}{}", stdout.text_at_end(), stderr.text_at_end());
    };
    Finished { status, stdout: stdout.text_at_end(), stderr: stderr.text_at_end() }
}

/// Waits for the end of a process. Its output has usually ended before, so there
/// is little to wait for, and no call of the standard library that waits with a
/// limit.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A lock per guest and cache; it holds whether the guest's image is in the cache.
fn first_use(guest: &str, cache: &Path) -> Arc<Mutex<bool>> {
    type Locks = Mutex<HashMap<(String, PathBuf), Arc<Mutex<bool>>>>;
    static LOCKS: LazyLock<Locks> = LazyLock::new(Locks::default);
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    locks.entry((guest.to_owned(), cache.to_owned())).or_default().clone()
}

impl Running {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// A path in the app's folder.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.app.as_ref().unwrap().path(path)
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    /// One request on a connection of its own.
    pub(crate) fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut connection = self.connect();
        connection.request(method, target, headers, body);
        connection.response()
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// What a probe answered to a path with these parameters: its `ok`.
    pub(crate) fn ok(&self, path: &str, parameters: &[(&str, &str)]) -> serde_json::Value {
        self.get(&query(path, parameters)).ok()
    }

    /// What a probe answered to a path with these parameters: its `error`.
    pub(crate) fn error(&self, path: &str, parameters: &[(&str, &str)]) -> String {
        self.get(&query(path, parameters)).error()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        match wait(&mut self.child, WAIT_LIMIT) {
            Some(status) => status,
            None => panic!("it does not end:\n{}{}", self.stdout.text(), self.stderr.text()),
        }
    }

    /// Asks the process to end and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Ends the process in order, to start it again.
    pub(crate) fn stop(mut self) -> App {
        let status = self.terminate();
        assert!(status.success(), "{status}:\n{}", self.stderr.text());
        self.app.take().unwrap()
    }

    /// Ends the process as a power cut would, to start it again.
    pub(crate) fn kill(mut self) -> App {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.app.take().unwrap()
    }

    /// The memory that the process holds.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process_id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!(
                "--- standard output\n{}--- standard error\n{}",
                self.stdout.text(),
                self.stderr.text()
            );
        }
    }
}

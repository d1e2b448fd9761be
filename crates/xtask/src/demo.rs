//! `cargo xtask demo`: every example, built by its own toolchain, served by `wisp up`,
//! and then deployed to a cloud, which goes on to run.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;

use crate::app;
use crate::chore::{Chore, Failure, Result, at, cargo, output, say};
use crate::readme::{Promise, promises};
use crate::tools;

/// How long `wisp up` may take until it serves. The first start compiles the
/// app: a Python guest of 25 MB takes about half a minute on two slow cores.
const START_TIMEOUT: Duration = Duration::from_secs(300);

/// The team that the examples are deployed for.
const TEAM: &str = "demo";

/// How often to look whether all servers still run.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct Options {
    /// Compare what the examples answer with their READMEs, then end
    #[arg(long)]
    check: bool,
    /// Build wisp optimised; takes many minutes the first time
    #[arg(long)]
    release: bool,
    /// The port of the first example; the others follow, and the cloud
    #[arg(long, default_value_t = 3000)]
    first_port: u16,
    /// The examples to serve; all of them unless given
    names: Vec<String>,
}

/// An example that is being served.
struct Served {
    name: String,
    folder: PathBuf,
    address: String,
    promises: Vec<Promise>,
    _server: Server,
}

/// A running `wisp`, which ends when this is dropped.
struct Server {
    child: Child,
}

/// `cargo xtask demo`.
pub(crate) fn run(chore: &mut Chore, options: &Options) -> Result<()> {
    let examples = examples(chore, &options.names)?;
    chore.step("C compilers and curl", |_| tools::basics())?;
    let mut built = Vec::new();
    for (name, folder) in examples {
        let into = chore.target.join("examples").join(&name);
        match chore.step(format!("example {name}"), |chore| build(chore, &folder, &into)) {
            Ok(()) => built.push((name, folder, into)),
            Err(failure) => {
                failure.report();
                chore.skip(format!("example {name}"), failure.message());
            }
        }
    }
    let wisp = chore.step("wisp itself", |chore| build_wisp(chore, options.release))?;
    let mut served = Vec::new();
    for ((name, folder, into), port) in built.into_iter().zip(options.first_port..) {
        // Every demo starts from an empty state, or its counters would not
        // answer what the README says.
        let state = into.join(".spin");
        if state.exists() {
            fs::remove_dir_all(&state).map_err(at(&state))?;
        }
        served.push(chore.step(format!("wisp up for {name}"), |_| serve(&wisp, name, &folder, &into, port))?);
    }
    let broken = chore.step("answers as the READMEs promise them", |_| {
        let mut broken = Vec::new();
        for example in &served {
            broken.extend(check_promises(&example.name, &example.address, &example.promises)?);
        }
        Ok(broken)
    })?;
    if !broken.is_empty() {
        return Err(Failure::new(format!(
            "{} answers differ from their README:\n{}",
            broken.len(),
            broken.join("\n")
        )));
    }
    let apps: Vec<_> =
        served.drain(..).map(|example| (example.name, example.folder, example.promises)).collect();
    let port = options.first_port;
    let mut cloud = chore.step("wisp server", |chore| Cloud::start(chore, &wisp, port))?;
    let mut deployed = Vec::new();
    for (name, folder, promises) in apps {
        deployed.push(
            chore
                .step(format!("wisp deploy for {name}"), |_| cloud.deploy(&wisp, name, &folder, promises))?,
        );
    }
    let broken = chore.step("the same answers from the cloud", |_| {
        let mut broken = Vec::new();
        for app in &deployed {
            broken.extend(check_promises(&app.name, &app.address, &app.promises)?);
        }
        Ok(broken)
    })?;
    say(&cloud.table(&wisp, &deployed));
    if !broken.is_empty() {
        return Err(Failure::new(format!(
            "{} answers of the cloud differ from a README:\n{}",
            broken.len(),
            broken.join("\n")
        )));
    }
    if options.check {
        return Ok(());
    }
    say("Press Ctrl-C to stop.");
    cloud.wait()
}

/// A running `wisp server`, and somebody who is signed in to it.
struct Cloud {
    address: String,
    config: PathBuf,
    server: Server,
}

/// An example in the cloud.
struct Deployed {
    name: String,
    address: String,
    promises: Vec<Promise>,
}

impl Cloud {
    /// Starts a server on an empty data directory and signs in.
    fn start(chore: &Chore, wisp: &Path, port: u16) -> Result<Self> {
        let folder = chore.target.join("demo-cloud");
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(at(&folder))?;
        }
        let (data, config) = (folder.join("data"), folder.join("config"));
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(wisp);
        command.arg("server").arg("--data-dir").arg(&data).args(["--listen", &address]);
        say(&format!("$ wisp server --data-dir {} --listen {address}", data.display()));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(format!("cannot run `{}`: {error}", wisp.display())))?;
        let stderr = child.stderr.take().ok_or_else(|| Failure::new("no stderr to read"))?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
                say(&format!("[server] {line}"));
                let word = line.split_whitespace().find(|word| word.contains("/sign-in?code="));
                if let Some(link) = word {
                    // Nobody listens any more after the first time.
                    let _ = sender.send(link.trim_matches('\'').to_owned());
                }
            }
        });
        let mut server = Server { child };
        server.wait_until_it_serves("the cloud")?;
        let link = receiver
            .recv_timeout(START_TIMEOUT)
            .map_err(|_| Failure::new("`wisp server` does not say how to sign in"))?;
        let cloud = Self { address: format!("localhost:{port}"), config, server };
        let login = ["login", link.as_str(), "--user", "demo", "--new-team", TEAM];
        output(cloud.command(wisp).args(login))?;
        Ok(cloud)
    }

    /// The command line as whoever signed in.
    fn command(&self, wisp: &Path) -> Command {
        let mut command = Command::new(wisp);
        command.env("XDG_CONFIG_HOME", &self.config);
        command
    }

    fn deploy(&self, wisp: &Path, name: String, folder: &Path, promises: Vec<Promise>) -> Result<Deployed> {
        say(&format!("$ wisp deploy -f {} --app {name}", folder.display()));
        let mut command = self.command(wisp);
        command.args(["deploy", "--yes", "--app", &name, "-f"]).arg(folder);
        let url = output(&mut command)?;
        let address = url.trim().trim_start_matches("http://").to_owned();
        Ok(Deployed { name, address, promises })
    }

    fn table(&self, wisp: &Path, deployed: &[Deployed]) -> String {
        let mut text = format!("\nThe cloud runs at http://{}:\n", self.address);
        for app in deployed {
            let command = app
                .promises
                .first()
                .map_or_else(String::new, |promise| promise.command.replace("localhost:3000", &app.address));
            let _ = writeln!(text, "  {:<14} http://{:<40} {command}", app.name, app.address);
        }
        let _ = writeln!(
            text,
            "\nDeploy an app of your own:\n  export XDG_CONFIG_HOME={}\n  alias wisp={}\n  wisp new hello \
             --template http-rust && cd hello\n  wisp deploy --build",
            self.config.display(),
            wisp.display()
        );
        text
    }

    /// Runs until the server ends by itself. Ctrl-C reaches it and this program alike.
    fn wait(&mut self) -> Result<()> {
        loop {
            let status = self.server.child.try_wait().map_err(|error| Failure::new(error.to_string()))?;
            if let Some(status) = status {
                return Err(Failure::new(format!("`wisp server` ended: {status}")));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// The examples, by name, and their folders.
fn examples(chore: &Chore, names: &[String]) -> Result<Vec<(String, PathBuf)>> {
    let mut examples: Vec<_> = app::subfolders(&chore.root.join("examples"))?
        .into_iter()
        .filter(|folder| folder.join("spin.toml").exists())
        .filter_map(|folder| Some((folder.file_name()?.to_string_lossy().into_owned(), folder)))
        .collect();
    if let Some(unknown) = names.iter().find(|name| !examples.iter().any(|(known, _)| known == *name)) {
        let known: Vec<_> = examples.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Failure::new(format!("there is no example `{unknown}`"))
            .hint(format!("the examples are {}", known.join(", "))));
    }
    examples.retain(|(name, _)| names.is_empty() || names.contains(name));
    Ok(examples)
}

/// Builds an example. The Rust ones compile into one folder, so that the SDK
/// is compiled once for all of them.
fn build(chore: &Chore, source: &Path, into: &Path) -> Result<()> {
    if source.join("Cargo.toml").exists() {
        let shared = chore.target.join("examples/rust-target");
        fs::create_dir_all(&shared).map_err(at(&shared))?;
        fs::create_dir_all(into).map_err(at(into))?;
        let link = into.join("target");
        if !link.exists() {
            std::os::unix::fs::symlink(&shared, &link).map_err(at(&link))?;
        }
    }
    app::build(chore, source, into)
}

/// Builds `wisp` and says where it is. The profile for development compiles
/// the engine optimised too, and takes a fraction of the time of a release.
/// The features of dependencies are settled for the whole workspace, as they
/// are for tests and lints, or cargo would compile the engine once more.
fn build_wisp(chore: &Chore, is_release: bool) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--workspace", "--bin", "wisp"]).current_dir(&chore.root);
    if is_release {
        command.arg("--release");
    }
    crate::chore::run(&mut command)?;
    Ok(chore.target.join(if is_release { "release" } else { "debug" }).join("wisp"))
}

fn serve(wisp: &Path, name: String, source: &Path, folder: &Path, port: u16) -> Result<Served> {
    let readme = source.join("README.md");
    let promises = promises(&fs::read_to_string(&readme).map_err(at(&readme))?);
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(wisp);
    command.arg("up").arg("-f").arg(folder).args(["--listen", &address]);
    say(&format!("$ wisp up -f {} --listen {address}", folder.display()));
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(format!("cannot run `{}`: {error}", wisp.display())))?;
    let mut server = Server { child };
    server.wait_until_it_serves(&name)?;
    Ok(Served { name, folder: folder.to_owned(), address, promises, _server: server })
}

impl Server {
    /// Waits for the line that says so. The output is read on a thread of its
    /// own for as long as the server runs, or it would one day block.
    fn wait_until_it_serves(&mut self, name: &str) -> Result<()> {
        let stdout = self.child.stdout.take().ok_or_else(|| Failure::new("no stdout to read"))?;
        let (sender, receiver) = mpsc::channel();
        let name_of_app = name.to_owned();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                say(&format!("[{name_of_app}] {line}"));
                if line.starts_with("Serving http") {
                    // Nobody listens any more after the first time.
                    let _ = sender.send(());
                }
            }
        });
        receiver.recv_timeout(START_TIMEOUT).map_err(|error| {
            let why = match error {
                mpsc::RecvTimeoutError::Timeout => "did not serve in time",
                mpsc::RecvTimeoutError::Disconnected => "ended before it served",
            };
            Failure::new(format!("`wisp up` for {name} {why}"))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has no state that a kill could harm, and may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the README's commands and hands back what differs.
fn check_promises(name: &str, address: &str, promises: &[Promise]) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for promise in promises {
        let command = promise.command_for(address);
        let printed = output(Command::new("sh").args(["-c", &command]))
            .unwrap_or_else(|failure| failure.message().to_owned());
        if promise.is_kept_by(&printed) {
            say(&format!("as promised by {name}: {}", promise.command));
        } else {
            broken.push(format!(
                "{}: {}\n  promised: {:?}\n  answered: {printed:?}",
                name, promise.command, promise.answer
            ));
        }
    }
    if promises.is_empty() {
        return Err(Failure::new(format!("the README of {name} shows no curl command")));
    }
    Ok(broken)
}

/// As the last step of `cargo xtask ci`.
pub(crate) fn check(chore: &mut Chore) -> Result<()> {
    // A port that a developer's own `wisp up` does not use.
    run(chore, &Options { check: true, release: false, first_port: 3900, names: Vec::new() })
}

//! `wisp registry`: apps as images, to and from registries.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;
use wisp_develop::build::Settings as BuildSettings;
use wisp_image::{
    Digest, PackOptions,
    client::{Client, ClientSettings, ImageReference, Progress},
    credentials::{CredentialStore, Login},
    format::ImageManifest,
};
use wisp_manifest::App;

use super::build::build_app;
use super::common::{composed, parse_pair, unwrap_checked, user_cache_dir};
use super::packages::fetched;
use crate::{error::Error, output};

/// Where images are kept, below the cache folder.
const IMAGES: &str = "registry";

/// Push apps to registries as images, and pull them.
///
/// Images have the form that Spin gives them: what one pushes the other pulls.
#[derive(Args)]
pub(crate) struct Registry {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pack an app and push it.
    Push(Push),
    /// Pull an app into the cache, or into a folder.
    Pull(Pull),
    /// Keep who you are at a registry.
    Login(SignIn),
    /// Forget who you are at a registry.
    Logout(Logout),
    /// Show what an image consists of.
    Inspect(Inspect),
}

/// Pack an app and push it.
///
/// Only what the registry lacks is sent.
#[derive(Args)]
struct Push {
    /// Where to: `registry.example/team/app:1.0`.
    #[arg(value_name = "REFERENCE")]
    reference: ImageReference,

    /// The app: a `spin.toml`, a folder with one, or a `.wasm` file.
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".", alias = "file")]
    from: PathBuf,

    /// Read the components with this profile of the manifest.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Build the app first.
    #[arg(short, long)]
    build: bool,

    /// Compose components with their dependencies and middleware first.
    #[arg(
        long,
        value_name = "BOOL",
        alias = "composed",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    compose: bool,

    /// Annotate the image.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    annotation: Vec<(String, String)>,

    #[command(flatten)]
    connection: ConnectionFlags,

    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,
}

/// Pull an app into the cache, or into a folder.
#[derive(Args)]
struct Pull {
    /// Which image: `registry.example/team/app:1.0`.
    #[arg(value_name = "REFERENCE")]
    reference: ImageReference,

    /// Unpack it into this folder, which must not exist.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    #[command(flatten)]
    connection: ConnectionFlags,

    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,
}

/// Keep who you are at a registry.
///
/// The registry is asked whether it knows you first.
#[derive(Args)]
struct SignIn {
    /// The registry: `registry.example` or `localhost:5000`.
    #[arg(value_name = "REGISTRY")]
    registry: String,

    /// Your name there.
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,

    /// Your password or token. Others can see it while the command runs.
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,

    /// Read the password or token from standard input.
    #[arg(long)]
    password_stdin: bool,

    #[command(flatten)]
    connection: ConnectionFlags,
}

/// Forget who you are at a registry.
#[derive(Args)]
struct Logout {
    /// The registry.
    #[arg(value_name = "REGISTRY")]
    registry: String,
}

/// Show what an image consists of.
#[derive(Args)]
struct Inspect {
    /// Which image.
    #[arg(value_name = "REFERENCE")]
    reference: ImageReference,

    #[command(flatten)]
    connection: ConnectionFlags,

    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,
}

#[derive(Args)]
struct ConnectionFlags {
    /// Speak plain HTTP. Registries on this machine need no such flag.
    #[arg(short = 'k', long)]
    insecure: bool,

    /// Where what was pulled is kept [default: `wisp` in the user's cache folder].
    #[arg(long, value_name = "DIR", env = "WISP_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Plain,
    Json,
}

impl Registry {
    pub(crate) fn run(&self) -> Result<(), Error> {
        match &self.command {
            Command::Push(push) => push.run(),
            Command::Pull(pull) => pull.run(),
            Command::Login(login) => login.run(),
            Command::Logout(logout) => logout.run(),
            Command::Inspect(inspect) => inspect.run(),
        }
    }
}

impl Push {
    fn run(&self) -> Result<(), Error> {
        let started = Instant::now();
        let app = read_app(&self.from, self.profile.as_deref())?;
        let mut app = fetched(app, Some(&self.connection.cache()))?;
        if self.build {
            let settings = BuildSettings { has_color: output::has_color(), ..BuildSettings::default() };
            build_app(&app, &settings)?;
        }
        if self.compose {
            app = composed(&app)?;
        }
        let annotations: BTreeMap<String, String> = self.annotation.iter().cloned().collect();
        let image = wisp_image::pack(&app, &PackOptions { annotations, archives: false })?;
        let packed = started.elapsed();
        let client = self.connection.client()?;
        let bar = Bar::new("pushing");
        let pushed = block_on(client.push(&image, &self.reference, &|progress| bar.show(progress)))?;
        bar.finish();
        output::note(&format!(
            "Pushed {} ({} of {} blobs sent, {}) in {}",
            self.reference,
            pushed.sent_count,
            pushed.sent_count + pushed.present_count,
            HumanBytes(pushed.sent_bytes),
            shown(started.elapsed()),
        ));
        match self.format {
            Format::Plain => output::data(&format!("{}\n", pushed.digest)),
            Format::Json => output::data(&format!(
                "{}\n",
                json!({
                    "reference": self.reference.to_string(),
                    "digest": pushed.digest,
                    "blobs_sent": pushed.sent_count,
                    "blobs_present": pushed.present_count,
                    "bytes_sent": pushed.sent_bytes,
                    "pack_ms": milliseconds(packed),
                    "total_ms": milliseconds(started.elapsed()),
                })
            )),
        }
        Ok(())
    }
}

impl Pull {
    fn run(&self) -> Result<(), Error> {
        let started = Instant::now();
        let client = self.connection.client()?;
        let bar = Bar::new("pulling");
        let (pulled, folder) = block_on(async {
            let pulled = client.pull(&self.reference, &|progress| bar.show(progress)).await?;
            let unpacked = match &self.output {
                Some(folder) if folder.exists() => {
                    let cause = io::Error::from(io::ErrorKind::AlreadyExists);
                    return Err(wisp_image::Error::File { action: "create", path: folder.clone(), cause });
                }
                Some(folder) => wisp_image::unpack(client.blobs(), &pulled.digest, folder).await?,
                None => client.unpack(&pulled.digest).await?,
            };
            Ok((pulled, unpacked.folder))
        })?;
        bar.finish();
        let resumed = match pulled.resumed_bytes {
            0 => String::new(),
            bytes => format!(", {} from an earlier pull", HumanBytes(bytes)),
        };
        output::note(&format!(
            "Pulled {} ({} of {} blobs fetched, {}{resumed}) in {}",
            self.reference,
            pulled.fetched_count,
            pulled.fetched_count + pulled.cached_count,
            HumanBytes(pulled.fetched_bytes),
            shown(started.elapsed()),
        ));
        match self.format {
            Format::Plain => output::data(&format!("{}\n", folder.display())),
            Format::Json => output::data(&format!(
                "{}\n",
                json!({
                    "reference": self.reference.to_string(),
                    "digest": pulled.digest,
                    "folder": folder,
                    "blobs_fetched": pulled.fetched_count,
                    "blobs_cached": pulled.cached_count,
                    "bytes_fetched": pulled.fetched_bytes,
                    "bytes_resumed": pulled.resumed_bytes,
                    "total_ms": milliseconds(started.elapsed()),
                })
            )),
        }
        Ok(())
    }
}

impl SignIn {
    fn run(&self) -> Result<(), Error> {
        let username = match &self.username {
            Some(username) => username.clone(),
            None if io::stdin().is_terminal() => ask("Name")?,
            None => return Err(missing("--username")),
        };
        let password = match &self.password {
            Some(password) => password.clone(),
            None if self.password_stdin => {
                let mut line = String::new();
                let read = io::stdin().lock().read_line(&mut line);
                read.map_err(|cause| Error::Read { path: "standard input".into(), cause })?;
                line.trim_end_matches(['\r', '\n']).to_owned()
            }
            None if io::stdin().is_terminal() => {
                let asked = dialoguer::Password::new().with_prompt("Password or token").interact();
                asked.map_err(|dialoguer::Error::IO(cause)| Error::Read {
                    path: "the terminal".into(),
                    cause,
                })?
            }
            None => return Err(missing("--password-stdin")),
        };
        let registry = registry_host(&self.registry);
        let client = self.connection.client()?;
        block_on(client.check_login(registry, &username, &password))?;
        store()?.set(registry, Login { username, password })?;
        output::note(&format!("Signed in at {registry}"));
        Ok(())
    }
}

impl Logout {
    fn run(&self) -> Result<(), Error> {
        let registry = registry_host(&self.registry);
        match store()?.remove(registry)? {
            true => output::note(&format!("Signed out at {registry}")),
            false => output::note(&format!("You were not signed in at {registry}")),
        }
        Ok(())
    }
}

impl Inspect {
    fn run(&self) -> Result<(), Error> {
        let client = self.connection.client()?;
        let (digest, manifest) = block_on(client.inspect(&self.reference))?;
        match self.format {
            Format::Plain => output::data(&plain(&self.reference, &digest, &manifest)),
            Format::Json => {
                let report = json!({
                    "reference": self.reference.to_string(),
                    "digest": digest,
                    "manifest": manifest,
                });
                output::data(&format!("{report}\n"));
            }
        }
        Ok(())
    }
}

impl ConnectionFlags {
    fn client(&self) -> Result<Client, Error> {
        client(self.insecure, &self.cache())
    }

    fn cache(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(|| user_cache_dir().join("wisp"))
    }
}

/// Pulls an image and unpacks it into the cache, for `wisp up`.
pub(crate) fn pull_app(reference: &ImageReference, insecure: bool, cache: &Path) -> Result<App, Error> {
    let client = client(insecure, cache)?;
    let bar = Bar::new("pulling");
    let unpacked = block_on(async {
        let pulled = client.pull(reference, &|progress| bar.show(progress)).await?;
        client.unpack(&pulled.digest).await
    })?;
    bar.finish();
    Ok(unpacked.app)
}

pub(crate) fn client(insecure: bool, cache: &Path) -> Result<Client, Error> {
    let credentials = CredentialStore::of_user();
    let settings =
        ClientSettings { insecure, cache: cache.join(IMAGES), credentials, ..ClientSettings::default() };
    Ok(Client::new(settings)?)
}

/// Reads an app, or makes one for a bare component.
fn read_app(from: &Path, profile: Option<&str>) -> Result<App, Error> {
    let is_component = from.is_file() && from.extension().is_some_and(|extension| extension == "wasm");
    if is_component {
        return Ok(App::for_component_file(from));
    }
    unwrap_checked(App::read(from, profile))
}

fn store() -> Result<CredentialStore, Error> {
    CredentialStore::of_user().ok_or_else(|| {
        Error::Image(wisp_image::Error::Credentials {
            path: "registries.json".into(),
            reason: "you have no home folder".into(),
        })
    })
}

/// The host name in what people write.
fn registry_host(registry: &str) -> &str {
    let host = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://"));
    host.unwrap_or(registry).trim_end_matches('/')
}

fn ask(prompt: &str) -> Result<String, Error> {
    let asked = dialoguer::Input::new().with_prompt(prompt).interact_text();
    asked.map_err(|dialoguer::Error::IO(cause)| Error::Read { path: "the terminal".into(), cause })
}

fn missing(flag: &'static str) -> Error {
    Error::Flag {
        flag,
        value: String::new(),
        message: "it is needed where nobody can be asked".into(),
        hint: "give `--username NAME --password-stdin` and the password on standard input",
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, wisp_image::Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Start)?;
    Ok(runtime.block_on(work)?)
}

fn plain(reference: &ImageReference, digest: &Digest, manifest: &ImageManifest) -> String {
    let mut text = format!("{reference}\n{digest}\n");
    for (key, value) in &manifest.annotations {
        text.push_str(&format!("  {key} = {value}\n"));
    }
    let mut rows = vec![("config", &manifest.config)];
    rows.extend(manifest.layers.iter().map(|layer| ("layer", layer)));
    for (what, blob) in rows {
        text.push_str(&format!("{what} {} {} bytes\n  {}\n", blob.media_type, blob.size, blob.digest));
    }
    text
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn shown(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// A line of progress, where somebody looks at it.
struct Bar(ProgressBar);

impl Bar {
    fn new(what: &'static str) -> Self {
        // indicatif draws on standard error, and only on a terminal.
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {pos}/{len} blobs, {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        Self(bar)
    }

    fn show(&self, progress: Progress) {
        self.0.set_length(progress.total_count as u64);
        self.0.set_position(progress.done_count as u64);
        self.0.set_message(HumanBytes(progress.moved_bytes).to_string());
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

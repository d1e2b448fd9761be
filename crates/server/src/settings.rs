//! What the operator sets, and where each setting came from.
//!
//! Every setting has a default that works. `wisp.toml` goes over the defaults, flags go
//! over `wisp.toml`. [`Settings::to_toml`] writes all of them with where each came from,
//! in the form in which they are read again.

use std::{
    fmt::{self, Write as _},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use wisp_ingress::{AcmeSettings, Rate};

use crate::{CompileLimits, Error, LogLimits, Rates};

/// The name of the file of settings, in the folder that the server is started in.
pub const SETTINGS_FILE_NAME: &str = "wisp.toml";

/// The largest file of settings: far more than all settings with a page of comment each.
const FILE_BYTES: u64 = 1 << 20;

/// The longest host name that leaves room for an app's and a team's before it.
const DOMAIN_BYTES: usize = 170;

/// A setting and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file of settings.
    File(PathBuf),
    /// A flag.
    Flag(&'static str),
}

/// All settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All that the server keeps.
    pub data_dir: Setting<PathBuf>,
    /// Where it listens for `http`.
    pub listen: Setting<SocketAddr>,
    /// Where it listens for `https`, if anywhere.
    pub listen_tls: Setting<Option<SocketAddr>>,
    /// The host of the API; apps are at `APP.TEAM.DOMAIN`.
    pub domain: Setting<String>,
    /// Where the operator finds health and metrics, if anywhere.
    pub admin: Setting<Option<SocketAddr>>,
    /// The operator's policy, if there is one.
    pub policy: Setting<Option<PathBuf>>,
    /// Whom to ask about domains, if not the system's name servers.
    pub dns: Setting<Option<SocketAddr>>,
    /// Requests that run at once.
    pub max_instances: Setting<u32>,
    /// Requests that wait.
    pub max_waiting_requests: Setting<u32>,
    /// Connections open at once.
    pub max_connections: Setting<u32>,
    /// The largest request body.
    pub max_request_body_bytes: Setting<u64>,
    /// How long running requests may go on after a signal to stop.
    pub grace_period_s: Setting<u64>,
    /// CPU time of one compilation.
    pub compile_cpu_s: Setting<u64>,
    /// Time of one compilation on the clock.
    pub compile_time_s: Setting<u64>,
    /// Memory of one compilation.
    pub compile_memory_bytes: Setting<u64>,
    /// Requests to one app in a second; none is no bound.
    pub app_requests_per_s: Setting<Option<u32>>,
    /// Requests to all apps of one team in a second.
    pub team_requests_per_s: Setting<Option<u32>>,
    /// The directory of an authority that issues certificates (ACME).
    pub acme_directory_url: Setting<Option<String>>,
    /// Where it reaches the operator: `mailto:…`.
    pub acme_contact: Setting<Option<String>>,
    /// The certificate (PEM) that its own connection is verified with.
    pub acme_root_certificate: Setting<Option<PathBuf>>,
    /// What is kept of one app's log.
    pub log_bytes: Setting<u64>,
    /// For how long.
    pub log_age_s: Setting<u64>,
}

/// What was given on the command line; what is `None` was not.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<SocketAddr>,
    /// `--listen-tls`
    pub listen_tls: Option<SocketAddr>,
    /// `--domain`
    pub domain: Option<String>,
    /// `--admin`
    pub admin: Option<SocketAddr>,
    /// `--policy`
    pub policy: Option<PathBuf>,
}

/// The file of settings.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    listen_tls: Option<SocketAddr>,
    domain: Option<String>,
    admin: Option<SocketAddr>,
    policy: Option<PathBuf>,
    dns: Option<SocketAddr>,
    max_instances: Option<u32>,
    max_waiting_requests: Option<u32>,
    max_connections: Option<u32>,
    max_request_body_bytes: Option<u64>,
    grace_period_s: Option<u64>,
    #[serde(default)]
    compile: CompileTable,
    #[serde(default)]
    logs: LogTable,
    #[serde(default)]
    rates: RateTable,
    #[serde(default)]
    acme: AcmeTable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateTable {
    app_requests_per_s: Option<u32>,
    team_requests_per_s: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcmeTable {
    directory_url: Option<String>,
    contact: Option<String>,
    root_certificate: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompileTable {
    cpu_s: Option<u64>,
    time_s: Option<u64>,
    memory_bytes: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    max_bytes: Option<u64>,
    max_age_s: Option<u64>,
}

impl Settings {
    /// Puts settings together: from flags, from a file (the one that a flag names, else
    /// `wisp.toml` if it is there), from defaults.
    ///
    /// # Errors
    /// [`Error::SettingsFile`], [`Error::SettingsSyntax`] or [`Error::Setting`].
    pub fn read(flags: Flags) -> Result<Self, Error> {
        let named = flags.config.clone();
        let path = named.clone().unwrap_or_else(|| SETTINGS_FILE_NAME.into());
        let file = match (read_file(&path), named) {
            (Ok(file), _) => file,
            (Err(Error::SettingsFile { cause, .. }), None)
                if cause.kind() == std::io::ErrorKind::NotFound =>
            {
                File::default()
            }
            (Err(error), _) => return Err(error),
        };
        // Relative paths in the file begin where the file is.
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let beside = |named: Option<PathBuf>| named.map(|named| folder.join(named));
        let choose = Choose { path: &path };
        let settings = Self {
            data_dir: choose.of("--data-dir", flags.data_dir, beside(file.data_dir), default_data_dir()),
            listen: choose.of(
                "--listen",
                flags.listen,
                file.listen,
                SocketAddr::from(([127, 0, 0, 1], 3000)),
            ),
            listen_tls: choose.optional("--listen-tls", flags.listen_tls, file.listen_tls),
            domain: choose.of("--domain", flags.domain, file.domain, "localhost".into()),
            admin: choose.optional("--admin", flags.admin, file.admin),
            policy: choose.optional("--policy", flags.policy, beside(file.policy)),
            dns: choose.optional("", None, file.dns),
            max_instances: choose.of("", None, file.max_instances, 1_000),
            max_waiting_requests: choose.of("", None, file.max_waiting_requests, 1_000),
            max_connections: choose.of("", None, file.max_connections, 8_000),
            max_request_body_bytes: choose.of("", None, file.max_request_body_bytes, 1 << 30),
            grace_period_s: choose.of("", None, file.grace_period_s, 30),
            compile_cpu_s: choose.of("", None, file.compile.cpu_s, CompileLimits::DEFAULT.cpu_time.as_secs()),
            compile_time_s: choose.of("", None, file.compile.time_s, CompileLimits::DEFAULT.time.as_secs()),
            compile_memory_bytes: choose.of(
                "",
                None,
                file.compile.memory_bytes,
                CompileLimits::DEFAULT.memory_bytes,
            ),
            app_requests_per_s: choose.optional("", None, file.rates.app_requests_per_s),
            team_requests_per_s: choose.optional("", None, file.rates.team_requests_per_s),
            acme_directory_url: choose.optional("", None, file.acme.directory_url),
            acme_contact: choose.optional("", None, file.acme.contact),
            acme_root_certificate: choose.optional("", None, beside(file.acme.root_certificate)),
            log_bytes: choose.of("", None, file.logs.max_bytes, LogLimits::DEFAULT.max_bytes),
            log_age_s: choose.of("", None, file.logs.max_age_s, LogLimits::DEFAULT.max_age.as_secs()),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |setting: &'static str, origin: &Origin, message: &str| {
            Err(Error::Setting { setting, origin: origin.to_string(), message: message.into() })
        };
        let domain = &self.domain;
        let is_word = |word: &str| {
            !word.is_empty()
                && word.len() <= 63
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if domain.value.len() > DOMAIN_BYTES || !domain.value.split('.').all(is_word) {
            return wrong(
                "domain",
                &domain.origin,
                "it is no host name: use words of lower-case letters, digits and `-` with dots between them",
            );
        }
        for (setting, value, origin) in [
            ("max_instances", self.max_instances.value, &self.max_instances.origin),
            ("max_connections", self.max_connections.value, &self.max_connections.origin),
        ] {
            if value == 0 {
                return wrong(setting, origin, "it must be at least 1");
            }
        }
        if self.max_instances.value > 10_000 {
            return wrong("max_instances", &self.max_instances.origin, "it may be 10000 at most");
        }
        Ok(())
    }

    /// What one component may take to compile.
    pub fn compile_limits(&self) -> CompileLimits {
        CompileLimits {
            cpu_time: Duration::from_secs(self.compile_cpu_s.value),
            time: Duration::from_secs(self.compile_time_s.value),
            memory_bytes: self.compile_memory_bytes.value,
            ..CompileLimits::DEFAULT
        }
    }

    /// How often apps and teams may be asked: for a second's worth at once after a pause.
    pub fn rates(&self) -> Rates {
        let rate = |setting: &Setting<Option<u32>>| {
            let requests_per_s = std::num::NonZeroU32::new(setting.value?)?;
            Some(Rate { requests_per_s, burst_count: requests_per_s })
        };
        Rates { app: rate(&self.app_requests_per_s), team: rate(&self.team_requests_per_s) }
    }

    /// The authority that issues certificates, if one is named.
    pub fn acme(&self) -> Option<AcmeSettings> {
        let mut acme = AcmeSettings::new(self.acme_directory_url.value.clone()?);
        acme.contacts.extend(self.acme_contact.value.clone());
        acme.root_certificate.clone_from(&self.acme_root_certificate.value);
        Some(acme)
    }

    /// What is kept of apps' logs.
    pub fn log_limits(&self) -> LogLimits {
        LogLimits { max_bytes: self.log_bytes.value, max_age: Duration::from_secs(self.log_age_s.value) }
    }

    /// All settings with where each came from, as TOML.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        line(&mut text, "data_dir", &quoted(&self.data_dir, |path| path.display().to_string()));
        line(&mut text, "listen", &quoted(&self.listen, ToString::to_string));
        line(&mut text, "listen_tls", &optional(&self.listen_tls, ToString::to_string));
        line(&mut text, "domain", &quoted(&self.domain, Clone::clone));
        line(&mut text, "admin", &optional(&self.admin, ToString::to_string));
        line(&mut text, "policy", &optional(&self.policy, |path| path.display().to_string()));
        line(&mut text, "dns", &optional(&self.dns, ToString::to_string));
        line(&mut text, "max_instances", &number(&self.max_instances));
        line(&mut text, "max_waiting_requests", &number(&self.max_waiting_requests));
        line(&mut text, "max_connections", &number(&self.max_connections));
        line(&mut text, "max_request_body_bytes", &number(&self.max_request_body_bytes));
        line(&mut text, "grace_period_s", &number(&self.grace_period_s));
        text.push_str("\n[compile]\n");
        line(&mut text, "cpu_s", &number(&self.compile_cpu_s));
        line(&mut text, "time_s", &number(&self.compile_time_s));
        line(&mut text, "memory_bytes", &number(&self.compile_memory_bytes));
        text.push_str("\n[logs]\n");
        line(&mut text, "max_bytes", &number(&self.log_bytes));
        line(&mut text, "max_age_s", &number(&self.log_age_s));
        text.push_str("\n[rates]\n");
        line(&mut text, "app_requests_per_s", &optional_number(&self.app_requests_per_s));
        line(&mut text, "team_requests_per_s", &optional_number(&self.team_requests_per_s));
        text.push_str("\n[acme]\n");
        line(&mut text, "directory_url", &optional(&self.acme_directory_url, Clone::clone));
        line(&mut text, "contact", &optional(&self.acme_contact, Clone::clone));
        line(
            &mut text,
            "root_certificate",
            &optional(&self.acme_root_certificate, |path| path.display().to_string()),
        );
        text
    }
}

struct Choose<'path> {
    path: &'path Path,
}

impl Choose<'_> {
    fn of<T>(&self, name: &'static str, flag: Option<T>, file: Option<T>, default: T) -> Setting<T> {
        match (flag, file) {
            (Some(value), _) => Setting { value, origin: Origin::Flag(name) },
            (None, Some(value)) => Setting { value, origin: Origin::File(self.path.to_owned()) },
            (None, None) => Setting { value: default, origin: Origin::Default },
        }
    }

    fn optional<T>(&self, name: &'static str, flag: Option<T>, file: Option<T>) -> Setting<Option<T>> {
        self.of(name, flag.map(Some), file.map(Some), None)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Flag(flag) => formatter.write_str(flag),
        }
    }
}

fn read_file(path: &Path) -> Result<File, Error> {
    let failed = |cause| Error::SettingsFile { path: path.to_owned(), cause };
    if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    toml::from_str(&text)
        .map_err(|error| Error::SettingsSyntax { path: path.to_owned(), message: error.to_string() })
}

/// `wisp-data` in the user's data folder.
fn default_data_dir() -> PathBuf {
    let from =
        |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    from("XDG_DATA_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local").join("share")))
        .unwrap_or_else(std::env::temp_dir)
        .join("wisp-data")
}

/// A line of a setting; one that has no value is a comment.
fn line(text: &mut String, name: &str, (value, origin): &(Option<String>, String)) {
    let written = match value {
        Some(value) => format!("{name} = {value}"),
        None => format!("# {name} is not set"),
    };
    // Writing into a string does not fail.
    let _ = writeln!(text, "{written:<48} # {origin}");
}

fn quoted<T>(setting: &Setting<T>, text: impl FnOnce(&T) -> String) -> (Option<String>, String) {
    let value = toml::Value::String(text(&setting.value)).to_string();
    (Some(value), setting.origin.to_string())
}

fn optional<T>(setting: &Setting<Option<T>>, text: impl FnOnce(&T) -> String) -> (Option<String>, String) {
    let value = setting.value.as_ref().map(|value| toml::Value::String(text(value)).to_string());
    (value, setting.origin.to_string())
}

fn optional_number<T: fmt::Display>(setting: &Setting<Option<T>>) -> (Option<String>, String) {
    (setting.value.as_ref().map(ToString::to_string), setting.origin.to_string())
}

fn number<T: fmt::Display>(setting: &Setting<T>) -> (Option<String>, String) {
    (Some(setting.value.to_string()), setting.origin.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn read(text: &str, flags: Flags) -> Result<Settings, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SETTINGS_FILE_NAME);
        fs::write(&path, text).unwrap();
        Settings::read(Flags { config: Some(path), ..flags })
    }

    #[test]
    fn flags_go_over_the_file_and_the_file_over_defaults() {
        let flags = Flags { domain: Some("flag.example".into()), ..Flags::default() };
        let text = "domain = \"file.example\"\nlisten = \"127.0.0.1:1\"\n[compile]\ncpu_s = 7\n";
        let settings = read(text, flags).unwrap();
        assert_eq!(settings.domain.value, "flag.example");
        assert_eq!(settings.domain.origin, Origin::Flag("--domain"));
        assert_eq!(settings.listen.value.port(), 1);
        assert!(matches!(settings.listen.origin, Origin::File(_)));
        assert_eq!(settings.max_connections.origin, Origin::Default);
        assert_eq!(settings.compile_limits().cpu_time, Duration::from_secs(7));
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let settings = read("admin = \"127.0.0.1:2\"\n", Flags::default()).unwrap();
        let printed = settings.to_toml();
        assert!(printed.contains("# listen_tls is not set"), "{printed}");
        let again = read(&printed, Flags::default()).unwrap();
        assert_eq!(again.admin.value, settings.admin.value);
        assert_eq!(again.data_dir.value, settings.data_dir.value);
        assert_eq!(again.compile_limits(), settings.compile_limits());
        assert_eq!(again.log_limits(), settings.log_limits());
    }

    #[test]
    fn what_is_misspelt_or_impossible_is_refused() {
        let code = |text: &str| read(text, Flags::default()).unwrap_err().code().to_owned();
        assert_eq!(code("lisen = \"127.0.0.1:1\""), "WISP-E1105");
        assert_eq!(code("domain = \"Not a host\""), "WISP-E1106");
        assert_eq!(code("max_instances = 0"), "WISP-E1106");
        let missing = Flags { config: Some("/nonexistent/wisp.toml".into()), ..Flags::default() };
        assert_eq!(Settings::read(missing).unwrap_err().code(), "WISP-E1104");
    }
}

//! What several commands need.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use wisp_engine::{Compiler, EngineConfig};
use wisp_manifest::{App, Checked, Diagnostics, model::Limits};
use wisp_node::composition::Composer;
use wisp_trigger::http::{Ending, Listener, TlsFiles};

use crate::{error::Error, output};

/// Idle instances may fill slots of the pool beside running requests; this many
/// more slots than requests keep one from starving the other.
pub(crate) const SPARE_INSTANCES_COUNT: u32 = 128;

/// How what a command found out is printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Plain,
    Json,
}

/// Which code is made of a component that was not compiled yet, as people write it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompilerChoice {
    Tiered,
    Optimized,
    Baseline,
}

impl From<CompilerChoice> for Compiler {
    fn from(choice: CompilerChoice) -> Self {
        match choice {
            CompilerChoice::Tiered => Self::Tiered,
            CompilerChoice::Optimized => Self::Optimized,
            CompilerChoice::Baseline => Self::Baseline,
        }
    }
}

/// The flag of commands that compile and do not serve: for who tests Wisp.
#[derive(Args)]
pub(crate) struct CompilerFlag {
    #[arg(long, value_name = "WHICH", env = "WISP_COMPILER", default_value = "tiered", hide = true)]
    pub(crate) compiler: CompilerChoice,
}

/// Flags of both commands that serve: what nobody may exceed.
#[derive(Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct CeilingFlags {
    /// End a request that takes longer, such as `30s` or `500ms` [default: 1h].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    request_timeout: Option<Duration>,

    /// End a request that uses more CPU time [default: 60s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_cpu_time: Option<Duration>,

    /// Largest response body, in bytes [default: 10 GiB].
    #[arg(long, value_name = "BYTES")]
    max_response_body: Option<u64>,

    /// Memory of all instances together, in bytes, beyond the first 16 MiB of each
    /// [default: three quarters of the machine's].
    #[arg(long, value_name = "BYTES")]
    max_memory: Option<u64>,

    /// Largest `.wasm` file, in bytes [default: 256 MiB].
    #[arg(long, value_name = "BYTES")]
    max_source_bytes: Option<u64>,

    /// How long compiling a component may take [default: 5m].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_compile_time: Option<Duration>,
}

impl CeilingFlags {
    /// What components may have at most.
    pub(crate) fn ceilings(&self, memory_bytes: Option<u64>) -> Limits {
        Limits {
            memory_bytes,
            request_timeout: self.request_timeout,
            cpu_time: self.max_cpu_time,
            response_body_bytes: self.max_response_body,
            ..Limits::default()
        }
    }

    /// Memory of all instances together.
    pub(crate) fn max_memory_bytes(&self) -> u64 {
        self.max_memory
            .or_else(|| wisp_node::machine_memory_bytes().map(|bytes| bytes / 4 * 3))
            .unwrap_or(u64::MAX)
    }

    /// An engine with these limits, and as it is by default otherwise.
    pub(crate) fn engine(&self) -> EngineConfig {
        let mut config = EngineConfig::default();
        config.max_source_bytes = self.max_source_bytes.unwrap_or(config.max_source_bytes);
        config.max_compile_time = self.max_compile_time.unwrap_or(config.max_compile_time);
        config
    }
}

/// Resolves at SIGTERM or Ctrl-C. A second one ends the process at once.
pub(crate) async fn stop_signal() -> Ending {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be received: the server ends without grace");
        return std::future::pending().await;
    };
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    output::note("stopping; running requests may finish, a second signal ends them");
    tokio::spawn(async move {
        next().await;
        std::process::exit(1);
    });
    Ending::Stop
}

/// Takes the address to serve, with TLS if there is a certificate for it.
pub(crate) fn listener(
    address: SocketAddr,
    find_free_port: bool,
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<Listener, wisp_trigger::Error> {
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Some(TlsFiles { certificate: certificate.clone(), key: key.clone() }.load()?)
        }
        _ => None,
    };
    let listener = if find_free_port { Listener::bind_near(address)? } else { Listener::bind(address)? };
    Ok(match tls {
        Some(tls) => listener.tls(tls),
        None => listener,
    })
}

/// Shows what is worth a warning and goes on with what was read.
pub(crate) fn unwrap_checked<T>(checked: Result<Checked<T>, Diagnostics>) -> Result<T, Error> {
    let Checked { value, warnings } = checked.map_err(|problems| Error::Diagnostics(Box::new(problems)))?;
    if !warnings.is_empty() {
        output::print_diagnostics(&warnings);
    }
    Ok(value)
}

/// An address with a port. Names are looked up; IPv4 is preferred, since that is
/// what people mean by `localhost`.
pub(crate) fn parse_listen(flag: &'static str, text: &str) -> Result<SocketAddr, Error> {
    let wrong = |message: String| Error::Flag {
        flag,
        value: text.to_owned(),
        message,
        hint: "name an address and a port, such as `127.0.0.1:3000`, `localhost:8080` or `[::1]:0`",
    };
    let mut found: Vec<SocketAddr> =
        text.to_socket_addrs().map_err(|error| wrong(error.to_string()))?.collect();
    found.sort_by_key(|address| match address.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => 0,
        IpAddr::V4(_) => 1,
        IpAddr::V6(_) => 2,
    });
    found.into_iter().next().ok_or_else(|| wrong("the name has no address".into()))
}

pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

/// `10s`, `500ms`, `20us`, `5ns`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let number: u64 =
        number.parse().map_err(|_| "expected a number with a unit, such as `30s`".to_owned())?;
    match unit.trim() {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "us" => Ok(Duration::from_micros(number)),
        "ns" => Ok(Duration::from_nanos(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        other => Err(format!("unknown unit `{other}`; use m, s, ms, us or ns")),
    }
}

/// The user's cache folder, or a temporary one for users without a home.
pub(crate) fn user_cache_dir() -> PathBuf {
    let from =
        |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    from("XDG_CACHE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| std::env::temp_dir().join("wisp-cache"))
}

/// The user's data folder, or a temporary one for users without a home.
pub(crate) fn user_data_dir() -> PathBuf {
    let from =
        |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    from("XDG_DATA_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| std::env::temp_dir().join("wisp-data"))
}

/// Where compiled images are kept: in this folder, in that of `WISP_CACHE_DIR`, or in the
/// user's cache folder.
pub(crate) fn image_dir(cache_dir: Option<&Path>) -> PathBuf {
    let from_environment = || std::env::var_os("WISP_CACHE_DIR").map(PathBuf::from);
    match cache_dir.map(Path::to_owned).or_else(from_environment) {
        Some(folder) => folder,
        None => user_cache_dir().join("wisp"),
    }
    .join("images")
}

/// An app whose components were composed with their dependencies and middleware, to be
/// packed.
pub(crate) fn composed(app: &App) -> Result<App, Error> {
    let refused = |errors: wisp_node::Errors| Error::Load(errors);
    let composer = Composer::new(Some(&image_dir(None))).map_err(|error| refused(error.into()))?;
    Ok(composer.compose(app, &[]).map_err(refused)?.app.into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        assert!(parse_duration("s").is_err());
        assert!(parse_duration("5 fortnights").is_err());
        assert!(parse_duration("-1s").is_err());
    }

    #[test]
    fn localhost_is_ipv4() {
        assert_eq!(parse_listen("--listen", "localhost:80").unwrap(), "127.0.0.1:80".parse().unwrap());
        assert_eq!(parse_listen("--listen", "[::1]:0").unwrap(), "[::1]:0".parse().unwrap());
        assert!(parse_listen("--listen", "localhost").is_err());
    }
}

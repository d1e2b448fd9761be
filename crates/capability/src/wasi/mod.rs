//! WASI: environment, clocks, random numbers, files, standard streams, sockets.
//!
//! The interfaces themselves, 0.2 and 0.3, are Wasmtime's. This module decides
//! what a component finds behind them.
//!
//! A [`Grant`] is made once per component: it opens the component's directories
//! and its logs, so that an instance costs no system call. `Grant::context`
//! then puts together the context of one instance from what is already open; a
//! component without files, environment or logs pays for none of them.
//!
//! Sockets: a guest may connect where `tcp://` and `udp://` entries of its
//! `allowed_outbound_hosts` allow it, never listen, and never look up names
//! (it would learn addresses that it may not reach, and there is no rule that
//! could allow it).

pub mod files;
pub mod logs;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime_wasi::cli::{StdinStream, StdoutStream};
use wasmtime_wasi::clocks::HostWallClock;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsCtx};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder};

pub use logs::{
    Follow, LineSource, LogBudget, LogReceiver, LogSettings, LogSink, LogStream, Logs, StandardStream,
};

use crate::{Error, Flavor, Host, RequestLimits, outbound};

/// Registers all of WASI but HTTP: 0.2 always, 0.3 where it can run.
pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    if flavor.is_concurrent() {
        wasmtime_wasi::p3::add_to_linker(linker)?;
    }
    Ok(())
}

/// A directory of this machine that a component sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it lies on this machine.
    pub host: PathBuf,
    /// Where the guest sees it: an absolute path.
    pub guest: String,
}

/// What a component finds behind WASI.
#[derive(Default)]
pub struct Settings {
    /// Environment variables, in order.
    pub environment: Vec<(String, String)>,
    /// Arguments, beginning with the program's name.
    pub arguments: Vec<String>,
    /// Directories that the guest sees.
    pub mounts: Vec<Mount>,
    /// Whether the guest may change what is in its directories.
    pub may_write: bool,
    /// Where its standard output goes.
    pub stdout: LogSink,
    /// Where its standard error goes.
    pub stderr: LogSink,
    /// What time it is, if not the machine's.
    pub wall_clock: Option<Arc<dyn WallClock>>,
}

/// Says what time it is, in the place of the machine's clock.
pub trait WallClock: Send + Sync {
    /// The time since 1970.
    fn now(&self) -> Duration;
}

/// The same, as Wasmtime wants it.
struct OtherClock(Arc<dyn WallClock>);

impl HostWallClock for OtherClock {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        self.0.now()
    }
}

/// Environment, files and standard streams of a component.
#[derive(Default)]
pub struct Grant {
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    /// Directories that are open already; handles are shared, not reopened.
    filesystem: Option<WasiFilesystemCtx>,
    stdout: LogSink,
    stderr: LogSink,
    wall_clock: Option<Arc<dyn WallClock>>,
    /// The rules for sockets, where all instances can share them.
    sockets: OnceLock<WasiSocketsCtx>,
}

/// What one instance gets instead of what its component gets, or in addition.
#[derive(Default)]
pub struct Overrides {
    /// Environment variables after the component's own.
    pub environment: Vec<(String, String)>,
    /// Arguments instead of the component's, unless empty.
    pub arguments: Vec<String>,
    /// Standard input instead of an empty one.
    pub stdin: Option<Box<dyn StdinStream + Sync>>,
    /// Standard output instead of the component's log.
    pub stdout: Option<Box<dyn StdoutStream + Sync>>,
}

impl Grant {
    /// Opens what a component needs.
    ///
    /// # Errors
    /// [`Error::FilesAccess`] if a directory cannot be opened.
    pub fn new(component: &Arc<str>, settings: Settings) -> Result<Self, Error> {
        let filesystem = open_mounts(component, &settings.mounts, settings.may_write)?;
        Ok(Self {
            environment: settings.environment,
            arguments: settings.arguments,
            filesystem,
            stdout: settings.stdout,
            stderr: settings.stderr,
            wall_clock: settings.wall_clock,
            sockets: OnceLock::new(),
        })
    }

    /// Whether so much more is within the component's rate, which it then counts for.
    pub(crate) fn may_log(&self, bytes: usize) -> bool {
        self.stderr.is_within_rate(bytes)
    }

    /// Whether nothing of what guests write arrives anywhere.
    pub(crate) fn is_silent(&self) -> bool {
        self.stdout.is_discarding() && self.stderr.is_discarding()
    }

    /// The context of a fresh instance.
    pub(crate) fn context(
        &self,
        outbound: &outbound::Grant,
        limits: &RequestLimits,
        budget: Option<&Arc<LogBudget>>,
    ) -> WasiCtx {
        let mut context = if self.is_silent() && self.environment.is_empty() && self.arguments.is_empty() {
            WasiCtx::default()
        } else {
            let mut builder = WasiCtxBuilder::new();
            builder.envs(&self.environment).args(&self.arguments);
            builder.stdout(bounded(&self.stdout, budget)).stderr(bounded(&self.stderr, budget));
            builder.build()
        };
        self.complete(&mut context, outbound, limits);
        context
    }

    /// The context of a fresh instance that differs from the component's others.
    pub(crate) fn context_with(
        &self,
        outbound: &outbound::Grant,
        limits: &RequestLimits,
        budget: Option<&Arc<LogBudget>>,
        overrides: Overrides,
    ) -> WasiCtx {
        let mut builder = WasiCtxBuilder::new();
        builder.envs(&self.environment).envs(&overrides.environment);
        builder.args(if overrides.arguments.is_empty() { &self.arguments } else { &overrides.arguments });
        if let Some(stdin) = overrides.stdin {
            builder.stdin(stdin);
        }
        match overrides.stdout {
            Some(stdout) => builder.stdout(stdout),
            None => builder.stdout(bounded(&self.stdout, budget)),
        };
        builder.stderr(bounded(&self.stderr, budget));
        let mut context = builder.build();
        self.complete(&mut context, outbound, limits);
        context
    }

    /// Adds what instances share: open directories and the rules for sockets.
    fn complete(&self, context: &mut WasiCtx, outbound: &outbound::Grant, limits: &RequestLimits) {
        if let Some(filesystem) = &self.filesystem {
            *context.filesystem() = filesystem.clone();
        }
        if let Some(clock) = &self.wall_clock {
            let mut other = WasiCtxBuilder::new().wall_clock(OtherClock(clock.clone())).build();
            *context.clocks() = std::mem::take(other.clocks());
        }
        *context.sockets() = if outbound.may_connect() {
            // Permits are held per instance, so the rules are too.
            sockets(outbound.clone(), Some(HeldPermits::new(limits.outbound_connections_count)))
        } else {
            self.sockets.get_or_init(|| sockets(outbound.clone(), None)).clone()
        };
    }
}

fn bounded(sink: &LogSink, budget: Option<&Arc<LogBudget>>) -> LogSink {
    match budget {
        Some(budget) => sink.with_budget(budget),
        None => sink.clone(),
    }
}

/// Opens directories once; the result is cloned into every instance.
fn open_mounts(
    component: &Arc<str>,
    mounts: &[Mount],
    may_write: bool,
) -> Result<Option<WasiFilesystemCtx>, Error> {
    if mounts.is_empty() {
        return Ok(None);
    }
    let permissions = if may_write { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
    let mut builder = WasiCtxBuilder::new();
    for mount in mounts {
        builder.preopened_dir(&mount.host, &mount.guest, permissions).map_err(|cause| {
            Error::FilesAccess {
                component: component.clone(),
                action: "open",
                path: mount.host.clone(),
                cause: cause
                    .downcast::<io::Error>()
                    .unwrap_or_else(|other| io::Error::other(other.to_string())),
            }
        })?;
    }
    Ok(Some(builder.build().filesystem().clone()))
}

/// Permits of the connections that one instance opened. They are given back
/// with the instance: what happens to a single socket is not visible here.
#[derive(Clone)]
struct HeldPermits {
    permits: Arc<Mutex<Vec<outbound::Permit>>>,
    max_count: u32,
}

impl HeldPermits {
    fn new(max_count: u32) -> Self {
        Self { permits: Arc::default(), max_count }
    }

    /// Whether the instance may open one more connection, which it then has.
    fn take(&self, outbound: &outbound::Grant) -> bool {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        if u32::try_from(permits.len()).unwrap_or(u32::MAX) >= self.max_count {
            let component = outbound.component().clone();
            outbound.log(&Error::OutboundConnections { component, limit_count: self.max_count });
            return false;
        }
        match outbound.permit(outbound.limits().sockets()) {
            Ok(permit) => {
                permits.push(permit);
                true
            }
            Err(_) => false,
        }
    }
}

fn sockets(outbound: outbound::Grant, permits: Option<HeldPermits>) -> WasiSocketsCtx {
    let mut builder = WasiCtxBuilder::new();
    builder.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(false);
    builder.socket_addr_check(move |address, usage| {
        let is_allowed = is_socket_use_allowed(&outbound, permits.as_ref(), address, usage);
        let wait = match usage {
            SocketAddrUse::TcpConnect if is_allowed => outbound.connect_wait(),
            _ => Duration::ZERO,
        };
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            is_allowed
        }) as Pin<Box<dyn Future<Output = bool> + Send + Sync>>
    });
    builder.build().sockets().clone()
}

fn is_socket_use_allowed(
    outbound: &outbound::Grant,
    permits: Option<&HeldPermits>,
    address: SocketAddr,
    usage: SocketAddrUse,
) -> bool {
    // A client's socket is bound to any address and port by connecting it.
    let is_implicit_bind = address.ip().is_unspecified() && address.port() == 0;
    match usage {
        SocketAddrUse::TcpBind => is_implicit_bind,
        SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
        SocketAddrUse::TcpConnect => {
            if outbound.check_address("tcp", address).is_err() {
                return false;
            }
            let Some(permits) = permits else { return true };
            permits.take(outbound)
        }
        SocketAddrUse::UdpBind if is_implicit_bind => true,
        SocketAddrUse::UdpBind | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
            outbound.check_address("udp", address).is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use wisp_manifest::allowed_hosts::{AllowedHost, AllowedHosts, BlockedNetworks};

    use super::*;
    use crate::outbound::Limits;

    fn outbound(allowed: &[&str], limits: Limits) -> outbound::Grant {
        let allowed = allowed.iter().map(|entry| AllowedHost::parse(entry).unwrap()).collect();
        outbound::Grant::new("shop", AllowedHosts::new(allowed), BlockedNetworks::default(), limits)
    }

    fn is_allowed(outbound: &outbound::Grant, address: &str, usage: SocketAddrUse) -> bool {
        is_socket_use_allowed(outbound, None, address.parse().unwrap(), usage)
    }

    #[test]
    fn sockets_connect_where_they_may_and_never_listen() {
        let outbound = outbound(&["tcp://127.0.0.1:5000", "udp://127.0.0.1:53"], Limits::default());
        for (address, usage, expected) in [
            ("127.0.0.1:5000", SocketAddrUse::TcpConnect, true),
            ("127.0.0.1:5001", SocketAddrUse::TcpConnect, false),
            ("127.0.0.1:53", SocketAddrUse::TcpConnect, false),
            ("0.0.0.0:0", SocketAddrUse::TcpBind, true),
            ("127.0.0.1:5000", SocketAddrUse::TcpBind, false),
            ("0.0.0.0:80", SocketAddrUse::TcpBind, false),
            ("0.0.0.0:0", SocketAddrUse::TcpListen, false),
            ("127.0.0.1:5000", SocketAddrUse::TcpAccept, false),
            ("0.0.0.0:0", SocketAddrUse::UdpBind, true),
            ("127.0.0.1:53", SocketAddrUse::UdpBind, true),
            ("127.0.0.1:54", SocketAddrUse::UdpBind, false),
            ("127.0.0.1:53", SocketAddrUse::UdpSend, true),
            ("127.0.0.1:54", SocketAddrUse::UdpSend, false),
            ("127.0.0.1:54", SocketAddrUse::UdpReceive, false),
        ] {
            assert_eq!(is_allowed(&outbound, address, usage), expected, "{address} {usage:?}");
        }
    }

    #[test]
    fn connections_of_sockets_are_bounded_per_process_and_come_back_with_their_instance() {
        let outbound = outbound(&["tcp://127.0.0.1:*"], Limits::new(None, Some(2)));
        let address: SocketAddr = "127.0.0.1:5000".parse().unwrap();
        let connect = |permits: &HeldPermits| {
            is_socket_use_allowed(&outbound, Some(permits), address, SocketAddrUse::TcpConnect)
        };
        let (one, two) = (HeldPermits::new(9), HeldPermits::new(9));
        assert!(connect(&one) && connect(&two) && !connect(&two));
        drop(one);
        assert!(connect(&two));
    }

    #[test]
    fn connections_of_sockets_are_bounded_per_instance() {
        let outbound = outbound(&["tcp://127.0.0.1:*"], Limits::default());
        let address: SocketAddr = "127.0.0.1:5000".parse().unwrap();
        let permits = HeldPermits::new(2);
        let connect = || is_socket_use_allowed(&outbound, Some(&permits), address, SocketAddrUse::TcpConnect);
        assert!(connect() && connect() && !connect());
    }

    #[test]
    fn a_directory_that_is_missing_is_named() {
        let settings = Settings {
            mounts: vec![Mount { host: "/no/such/directory".into(), guest: "/".into() }],
            ..Settings::default()
        };
        let error = Grant::new(&"shop".into(), settings).err().unwrap();
        assert_eq!(error.code(), "WISP-E0354");
        assert!(error.to_string().contains("cannot open `/no/such/directory`"), "{error}");
    }

    #[test]
    fn everything_can_be_registered_in_both_flavors() {
        for flavor in [Flavor::Plain, Flavor::Concurrent] {
            let mut config = wasmtime::Config::new();
            config.concurrency_support(flavor.is_concurrent());
            config.wasm_component_model_async(flavor.is_concurrent());
            let mut linker = Linker::new(&wasmtime::Engine::new(&config).unwrap());
            add_to_linker(&mut linker, flavor).unwrap();
            crate::outbound_http::add_to_linker(&mut linker, flavor).unwrap();
        }
    }
}

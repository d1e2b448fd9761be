//! Which network destinations a component may reach.
//!
//! Every family that leaves the process (outbound HTTP, sockets, databases)
//! asks here, in the same three steps:
//!
//! 1. [`Grant::check`] the destination by name against the component's
//!    `allowed_outbound_hosts`: before anything is resolved, so that a refused
//!    name is not even looked up.
//! 2. [`Grant::filter`] the addresses that the name resolved to against the
//!    networks the operator blocks, and connect to *those* addresses: looking
//!    the name up again would let its owner swap the address in between.
//! 3. [`Grant::permit`] the connection, and keep the [`Permit`] as long as the
//!    connection lives.
//!
//! A refusal says which rule fired and how to change it. It is logged once per
//! component and destination, not on every call: a guest in a loop must not
//! fill the operator's disk.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wisp_manifest::allowed_hosts::{AllowedHosts, BlockedNetworks};

use crate::Error;

/// How many connections to the outside the process holds open at most when the
/// runtime configuration does not say. Far above what one app needs, and below
/// the number of ports that one address has towards one destination (about
/// 28,000), so that a runaway guest gets an error and not the whole machine.
pub const DEFAULT_MAX_TOTAL_CONNECTIONS_COUNT: usize = 16_384;

/// How many connections a second a component opens through sockets of its own, and how
/// many at once after a pause; more wait for their turn. A connection that was closed
/// keeps its port for a minute, and there are about 28,000 towards one destination: with
/// more than this a single guest takes them all, and the kernel spends its time looking
/// for one that is free. Connections of databases and of outbound HTTP are reused.
pub const MAX_SOCKET_CONNECTIONS_PER_S: u32 = 400;

/// How many different refused destinations are logged per component. A guest
/// can make up names without end; an operator needs to see the first few.
const LOGGED_REFUSALS_COUNT: usize = 64;

/// Length to which an address that a guest made up is cut in messages.
const SHOWN_ADDRESS_BYTES: usize = 256;

/// Which network destinations a component may reach. Cheap to clone.
#[derive(Clone)]
pub struct Grant {
    inner: Arc<Inner>,
}

struct Inner {
    component: Arc<str>,
    allowed: AllowedHosts,
    blocked: BlockedNetworks,
    limits: Limits,
    connecting: Pace,
    logged: Logged,
}

/// When the next connection may be opened.
struct Pace {
    start: Instant,
    /// When all that was allowed so far would have happened at an even pace, in
    /// nanoseconds from the start.
    even_ns: AtomicU64,
}

/// Where a guest wants to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Lower-case scheme, such as `https` or `redis`.
    pub scheme: String,
    /// Lower-case host name or IP address; IPv6 without its brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// A bound on the number of open connections, shared by all that it bounds.
#[derive(Clone)]
pub struct Limit {
    setting: &'static str,
    limit_count: usize,
    free: Arc<Semaphore>,
}

/// The bounds of `[outbound_networking]`; one per process.
#[derive(Clone)]
pub struct Limits {
    total: Limit,
    sockets: Option<Limit>,
}

/// The right to one open connection. Dropping it gives the right back.
#[derive(Debug)]
pub struct Permit {
    _total: OwnedSemaphorePermit,
    _family: Option<OwnedSemaphorePermit>,
}

/// Refusals that were logged already, as hashes of their destinations.
#[derive(Default)]
struct Logged {
    hasher: RandomState,
    seen: Mutex<HashSet<u64>>,
}

impl Pace {
    /// Takes the next turn; how long it is until then. One that is not used is lost.
    fn next(&self, now: Duration) -> Duration {
        const SECOND_NS: u64 = 1_000_000_000;
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let step_ns = SECOND_NS / u64::from(MAX_SOCKET_CONNECTIONS_PER_S);
        let next = |even_ns: u64| Some(even_ns.max(now_ns).saturating_add(step_ns));
        let (Ok(before_ns) | Err(before_ns)) =
            self.even_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        // A second's worth of them at once.
        Duration::from_nanos(before_ns.saturating_sub(now_ns.saturating_add(SECOND_NS - step_ns)))
    }
}

impl Grant {
    /// What `component` may reach.
    pub fn new(
        component: impl Into<Arc<str>>,
        allowed: AllowedHosts,
        blocked: BlockedNetworks,
        limits: Limits,
    ) -> Self {
        let inner = Inner {
            component: component.into(),
            allowed,
            blocked,
            limits,
            connecting: Pace { start: Instant::now(), even_ns: AtomicU64::new(0) },
            logged: Logged::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Id of the component that this is for.
    pub fn component(&self) -> &Arc<str> {
        &self.inner.component
    }

    /// The process's bounds on open connections.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Whether the component may reach a destination by name.
    ///
    /// # Errors
    /// [`Error::DestinationNotAllowed`], which is also logged, once.
    pub fn check(&self, destination: &Destination) -> Result<(), Error> {
        let Destination { scheme, host, port } = destination;
        if self.inner.allowed.allows(scheme, host, *port) {
            return Ok(());
        }
        Err(self.refuse(Error::DestinationNotAllowed {
            component: self.inner.component.clone(),
            destination: destination.to_string(),
            entry: destination.as_entry(),
        }))
    }

    /// Reads an address such as `redis://user:secret@cache:6379/0` and checks
    /// where it leads. `default_scheme` applies to an address without a scheme.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`] and [`Error::DestinationNotAllowed`].
    pub fn check_url(&self, address: &str, default_scheme: &str) -> Result<Destination, Error> {
        let destination =
            Destination::parse(address, default_scheme).map_err(|cause| Error::InvalidAddress {
                component: self.inner.component.clone(),
                address: shortened(address),
                cause,
            })?;
        self.check(&destination)?;
        Ok(destination)
    }

    /// Whether the component may reach an IP address directly: it must be
    /// allowed under `scheme` and not be in a blocked network.
    ///
    /// # Errors
    /// [`Error::DestinationNotAllowed`] and [`Error::NetworkBlocked`].
    pub fn check_address(&self, scheme: &str, address: SocketAddr) -> Result<(), Error> {
        let destination = Destination::of_address(scheme, address);
        self.check(&destination)?;
        self.filter(&destination, [address]).map(drop)
    }

    /// Whether the component may send requests within its own app: to the app's
    /// routes (`self`), or to the named component.
    ///
    /// # Errors
    /// [`Error::DestinationNotAllowed`].
    pub fn check_local(&self, scheme: &str, target: Option<&str>) -> Result<(), Error> {
        let destination = match target {
            Some(component) => format!("{scheme}://{component}.spin.internal"),
            None => format!("{scheme}://self"),
        };
        let allowed = match target {
            Some(component) => {
                let host = format!("{component}.spin.internal");
                let port = if scheme == "https" { 443 } else { 80 };
                self.inner.allowed.allows(scheme, &host, port)
            }
            // Nothing is sent, so either entry allows both; a relative URL has
            // no scheme at all.
            None => ["http", "https"].iter().any(|scheme| self.inner.allowed.allows_self(scheme)),
        };
        if allowed {
            return Ok(());
        }
        Err(self.refuse(Error::DestinationNotAllowed {
            component: self.inner.component.clone(),
            entry: destination.clone(),
            destination,
        }))
    }

    /// Those of the addresses that `destination` resolved to which are in no
    /// blocked network, in the same order.
    ///
    /// # Errors
    /// [`Error::NetworkBlocked`] if addresses were given and none is left.
    pub fn filter(
        &self,
        destination: &Destination,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Error> {
        let mut blocked = None;
        let mut open = Vec::new();
        for address in addresses {
            if self.inner.blocked.blocks(address.ip()) {
                blocked = Some(address.ip());
            } else {
                open.push(address);
            }
        }
        match blocked {
            Some(address) if open.is_empty() => Err(self.refuse(Error::NetworkBlocked {
                component: self.inner.component.clone(),
                destination: destination.to_string(),
                address,
            })),
            _ => Ok(open),
        }
    }

    /// Whether the component may open TCP connections by itself.
    pub(crate) fn may_connect(&self) -> bool {
        self.inner.allowed.allows_scheme("tcp")
    }

    /// How long the component has to wait until it opens one more connection by itself;
    /// see [`MAX_SOCKET_CONNECTIONS_PER_S`].
    pub(crate) fn connect_wait(&self) -> Duration {
        self.inner.connecting.next(self.inner.connecting.start.elapsed())
    }

    /// The right to open one more connection, under the process's bound and
    /// under the family's own if it has one.
    ///
    /// # Errors
    /// [`Error::ConnectionLimit`]: there is no waiting, since what would free
    /// a connection may be the very guest that waits.
    pub fn permit(&self, family: Option<&Limit>) -> Result<Permit, Error> {
        self.take_permit(family).map_err(|limit| {
            self.refuse(Error::ConnectionLimit {
                component: self.inner.component.clone(),
                setting: limit.setting,
                limit_count: limit.limit_count,
            })
        })
    }

    /// The same for a family that can make room and try again.
    pub(crate) fn try_permit(&self, family: Option<&Limit>) -> Option<Permit> {
        self.take_permit(family).ok()
    }

    /// Waits for room.
    pub(crate) async fn next_permit(&self, family: Option<&Limit>) -> Option<Permit> {
        let family = match family {
            Some(limit) => Some(limit.free.clone().acquire_owned().await.ok()?),
            None => None,
        };
        let total = self.inner.limits.total.free.clone().acquire_owned().await.ok()?;
        Some(Permit { _total: total, _family: family })
    }

    fn take_permit<'a>(&'a self, family: Option<&'a Limit>) -> Result<Permit, &'a Limit> {
        let family = match family {
            Some(limit) => Some(limit.try_take().ok_or(limit)?),
            None => None,
        };
        let total = &self.inner.limits.total;
        Ok(Permit { _total: total.try_take().ok_or(total)?, _family: family })
    }

    /// Logs a refusal unless its like was logged before, and gives it back.
    fn refuse(&self, error: Error) -> Error {
        self.log(&error);
        error
    }

    /// Logs a refusal unless its like was logged before.
    pub(crate) fn log(&self, error: &Error) {
        match self.inner.logged.note(error) {
            Noted::Repeated => {}
            Noted::New => {
                let hint = error.hint().unwrap_or_default();
                tracing::warn!(component = %self.inner.component, code = error.code(), hint, "{error}");
            }
            Noted::Last => {
                let hint = error.hint().unwrap_or_default();
                tracing::warn!(component = %self.inner.component, code = error.code(), hint, "{error}");
                tracing::warn!(
                    component = %self.inner.component,
                    "component `{}` was refused {LOGGED_REFUSALS_COUNT} different destinations; further ones \
                     are not logged",
                    self.inner.component,
                );
            }
        }
    }
}

impl Default for Grant {
    /// A component that may reach nothing.
    fn default() -> Self {
        Self::new("", AllowedHosts::default(), BlockedNetworks::default(), Limits::default())
    }
}

impl Destination {
    /// Where an address such as `redis://user:secret@cache:6379/0` leads.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn parse(address: &str, default_scheme: &str) -> Result<Self, &'static str> {
        let with_scheme;
        let address = if address.contains("://") {
            address
        } else {
            with_scheme = format!("{default_scheme}://{address}");
            &with_scheme
        };
        let url = url::Url::parse(address).map_err(|_| "it cannot be read as a URL")?;
        let host = match url.host() {
            Some(url::Host::Domain(name)) if !name.is_empty() => name.to_ascii_lowercase(),
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            _ => return Err("it names no host"),
        };
        // The rules know one name for this scheme.
        let scheme = match url.scheme() {
            "postgresql" => "postgres",
            scheme => scheme,
        };
        let port =
            url.port().or_else(|| default_port(scheme)).ok_or("it names no port, and its scheme has none")?;
        Ok(Self { scheme: scheme.into(), host, port })
    }

    /// An IP address and port under a scheme.
    pub fn of_address(scheme: &str, address: SocketAddr) -> Self {
        // An IPv4 address in IPv6 clothes is matched by rules for IPv4.
        let ip = address.ip().to_canonical();
        Self { scheme: scheme.into(), host: ip.to_string(), port: address.port() }
    }

    /// The entry of `allowed_outbound_hosts` that allows just this.
    fn as_entry(&self) -> String {
        if default_port(&self.scheme) == Some(self.port) {
            format!("{}://{}", self.scheme, Bracketed(&self.host))
        } else {
            self.to_string()
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}:{}", self.scheme, Bracketed(&self.host), self.port)
    }
}

/// Shows a host as it stands in a URL.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
            _ => formatter.write_str(self.0),
        }
    }
}

impl Limit {
    /// A bound that `setting` of the runtime configuration sets.
    pub fn new(setting: &'static str, limit_count: usize) -> Self {
        let limit_count = limit_count.min(Semaphore::MAX_PERMITS);
        Self { setting, limit_count, free: Arc::new(Semaphore::new(limit_count)) }
    }

    fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }
}

impl Limits {
    /// The bounds of `[outbound_networking]`, in number of open connections.
    pub fn new(max_total_count: Option<usize>, max_sockets_count: Option<usize>) -> Self {
        let total = max_total_count.unwrap_or(DEFAULT_MAX_TOTAL_CONNECTIONS_COUNT);
        Self {
            total: Limit::new("max_total_connections", total),
            sockets: max_sockets_count.map(|count| Limit::new("max_socket_connections", count)),
        }
    }

    /// The bound on connections that guests open through `wasi:sockets`.
    pub fn sockets(&self) -> Option<&Limit> {
        self.sockets.as_ref()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(None, None)
    }
}

enum Noted {
    New,
    /// New, and the last one that is told.
    Last,
    Repeated,
}

impl Logged {
    fn note(&self, error: &Error) -> Noted {
        // Codes tell kinds apart, destinations tell the rest: a blocked address
        // that changes with every lookup is still one refusal.
        let hash = match error {
            Error::DestinationNotAllowed { destination, .. } | Error::NetworkBlocked { destination, .. } => {
                self.hasher.hash_one((error.code(), destination))
            }
            other => self.hasher.hash_one(other.code()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= LOGGED_REFUSALS_COUNT || !seen.insert(hash) {
            Noted::Repeated
        } else if seen.len() == LOGGED_REFUSALS_COUNT {
            Noted::Last
        } else {
            Noted::New
        }
    }
}

/// The port that a scheme implies.
pub(crate) fn default_port(scheme: &str) -> Option<u16> {
    Some(match scheme {
        "http" => 80,
        "https" => 443,
        "postgres" => 5432,
        "mysql" => 3306,
        "redis" | "rediss" => 6379,
        "mqtt" => 1883,
        "mqtts" => 8883,
        _ => return None,
    })
}

fn shortened(address: &str) -> String {
    // Everything up to an `@` may be a password.
    let address = address.rsplit_once('@').map_or(address, |(_, rest)| rest);
    match address.char_indices().find(|(index, _)| *index >= SHOWN_ADDRESS_BYTES) {
        Some((index, _)) => format!("{}…", &address[..index]),
        None => address.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use wisp_manifest::allowed_hosts::AllowedHost;

    use super::*;

    #[test]
    fn connections_are_opened_at_a_pace_after_a_second_s_worth() {
        let pace = Pace { start: Instant::now(), even_ns: AtomicU64::new(0) };
        let per_second = u64::from(MAX_SOCKET_CONNECTIONS_PER_S);
        let now = Duration::from_secs(5);
        assert!((0..per_second).all(|_| pace.next(now).is_zero()), "a burst does not wait");
        let waits = (1..=per_second).map(|turn| (turn, pace.next(now)));
        for (turn, wait) in waits {
            assert_eq!(
                wait,
                Duration::from_secs(1) / MAX_SOCKET_CONNECTIONS_PER_S * u32::try_from(turn).unwrap()
            );
        }
        assert!(pace.next(now + Duration::from_secs(10)).is_zero(), "after a pause it begins anew");
    }

    fn grant(allowed: &[&str], blocked: &[&str], limits: Limits) -> Grant {
        let allowed = allowed.iter().map(|entry| AllowedHost::parse(entry).unwrap()).collect();
        let blocked = BlockedNetworks::parse(blocked.iter().copied()).unwrap();
        Grant::new("shop", AllowedHosts::new(allowed), blocked, limits)
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let grant = grant(&["https://example.com"], &[], Limits::default());
        grant.check_url("https://example.com/path", "https").unwrap();
        let error = grant.check_url("https://other.example.com:443/", "https").unwrap_err();
        assert_eq!(error.code(), "WISP-E0330");
        assert_eq!(
            error.to_string(),
            "component `shop` may not reach `https://other.example.com:443`: not in its `allowed_outbound_hosts`"
        );
        assert_eq!(
            error.hint().unwrap(),
            "add \"https://other.example.com\" to `allowed_outbound_hosts` of component `shop`"
        );
        let error = grant.check_url("http://[::1]:8080", "https").unwrap_err();
        assert!(error.hint().unwrap().contains("\"http://[::1]:8080\""), "{:?}", error.hint());
    }

    #[test]
    fn addresses_of_databases_are_understood() {
        for (address, default_scheme, expected) in [
            ("redis://user:secret@Cache:6380/0", "redis", "redis://cache:6380"),
            ("cache", "redis", "redis://cache:6379"),
            ("postgresql://u:p@db/app?sslmode=disable", "postgres", "postgres://db:5432"),
            ("mysql://db", "mysql", "mysql://db:3306"),
            ("mqtt://[::1]", "mqtt", "mqtt://[::1]:1883"),
        ] {
            assert_eq!(
                Destination::parse(address, default_scheme).unwrap().to_string(),
                expected,
                "{address}"
            );
        }
        for address in ["redis://", "", "odd://host", "redis://host:99999"] {
            assert!(Destination::parse(address, "redis").is_err(), "{address}");
        }
    }

    #[test]
    fn what_a_guest_made_up_is_shown_without_secrets_and_cut() {
        let grant = grant(&[], &[], Limits::default());
        let address = format!("redis://user:secret@{}:99999", "é".repeat(1000));
        let text = grant.check_url(&address, "redis").unwrap_err().to_string();
        assert!(!text.contains("secret"), "{text}");
        assert!(text.len() < 2 * SHOWN_ADDRESS_BYTES, "{}", text.len());
    }

    #[test]
    fn blocked_networks_win_over_allowed_names() {
        let grant = grant(&["*://*:*"], &["private"], Limits::default());
        let destination = grant.check_url("http://example.com", "http").unwrap();
        let public: SocketAddr = "93.184.216.34:80".parse().unwrap();
        let private: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert_eq!(grant.filter(&destination, [private, public]).unwrap(), [public]);
        let error = grant.filter(&destination, [private]).unwrap_err();
        assert_eq!(error.code(), "WISP-E0331");
        // IPv4 in IPv6 clothes.
        let error = grant.check_address("tcp", "[::ffff:10.0.0.1]:80".parse().unwrap()).unwrap_err();
        assert_eq!(error.code(), "WISP-E0331");
    }

    #[test]
    fn addresses_are_checked_under_their_scheme() {
        let grant = grant(&["tcp://127.0.0.0/8:5000..5002"], &[], Limits::default());
        grant.check_address("tcp", "127.0.0.1:5001".parse().unwrap()).unwrap();
        for (scheme, address) in
            [("tcp", "127.0.0.1:5002"), ("udp", "127.0.0.1:5001"), ("tcp", "128.0.0.1:5001")]
        {
            assert!(grant.check_address(scheme, address.parse().unwrap()).is_err(), "{scheme} {address}");
        }
    }

    #[test]
    fn requests_within_the_app_need_permission() {
        let to_self = grant(&["http://self"], &[], Limits::default());
        to_self.check_local("http", None).unwrap();
        to_self.check_local("https", None).unwrap();
        assert!(to_self.check_local("http", Some("cart")).is_err());
        let chained = grant(&["http://cart.spin.internal"], &[], Limits::default());
        chained.check_local("http", Some("cart")).unwrap();
        let error = chained.check_local("http", Some("stock")).unwrap_err();
        assert!(error.hint().unwrap().contains("\"http://stock.spin.internal\""));
        assert!(chained.check_local("http", None).is_err());
    }

    #[test]
    fn permits_are_bounded_and_come_back() {
        let grant = grant(&[], &[], Limits::new(Some(2), None));
        let family = Limit::new("max_connections", 1);
        let first = grant.permit(Some(&family)).unwrap();
        let error = grant.permit(Some(&family)).unwrap_err();
        assert!(error.to_string().contains("`max_connections` = 1"), "{error}");
        let second = grant.permit(None).unwrap();
        let error = grant.permit(None).unwrap_err();
        assert!(error.to_string().contains("`max_total_connections` = 2"), "{error}");
        drop((first, second));
        let _third = grant.permit(Some(&family)).unwrap();
    }

    #[test]
    fn refusals_are_logged_once_and_not_without_end() {
        let logged = Logged::default();
        let refusal = |number: usize| Error::DestinationNotAllowed {
            component: "shop".into(),
            destination: format!("http://host-{number}:80"),
            entry: String::new(),
        };
        assert!(matches!(logged.note(&refusal(1)), Noted::New));
        assert!(matches!(logged.note(&refusal(1)), Noted::Repeated));
        for number in 2..LOGGED_REFUSALS_COUNT {
            assert!(matches!(logged.note(&refusal(number)), Noted::New), "{number}");
        }
        assert!(matches!(logged.note(&refusal(LOGGED_REFUSALS_COUNT)), Noted::Last));
        assert!(matches!(logged.note(&refusal(LOGGED_REFUSALS_COUNT + 1)), Noted::Repeated));
    }
}

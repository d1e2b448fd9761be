//! Which network destinations a component asks to reach.
//!
//! An entry is `scheme://host[:port]`, with an optional `/` at its end:
//!
//! | part | forms |
//! | --- | --- |
//! | scheme | letters, or `*` for any |
//! | host | a name; `*` for any; `*.domain` for what is below a domain; `self` for the app's own routes; an IPv4 address; an IPv6 address in `[…]`; a network such as `10.0.0.0/8` or `[fc00::/7]` |
//! | port | a number; `a..b` for `a` up to but without `b`; `*` for any; nothing for the scheme's usual port |
//!
//! `http://ID.spin.internal` names a component of the same app, and
//! `http://*.spin.internal` all of them. `*` as a host includes `self` and
//! these. Names are compared without regard to case; nothing is resolved here,
//! so an entry with an address does not allow a name that leads to it.
//!
//! The operator's side, [`BlockedNetworks`], is about addresses only, and is
//! asked after a name has been resolved.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::id::{ComponentId, VariableName};
use crate::template::{ExpandError, Template};

/// The longest entry: a name of 253 bytes, a scheme and a port, twice over.
pub const MAX_ALLOWED_HOST_BYTES: usize = 512;

/// The most entries of one component: each request to the outside walks them.
pub const MAX_ALLOWED_HOSTS_COUNT: usize = 1024;

/// The most networks that an operator can block, for the same reason.
pub const MAX_BLOCKED_NETWORKS_COUNT: usize = 1024;

/// The domain under which the components of an app reach each other.
pub const INTERNAL_DOMAIN_SUFFIX: &str = ".spin.internal";

/// The host name by which a component reaches its own app.
pub const SELF_HOST: &str = "self.alt";

/// Everything that a component may reach: the union of its entries. Empty:
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    hosts: Vec<AllowedHost>,
}

/// One entry of [`AllowedHosts`].
#[derive(Clone, PartialEq, Eq)]
pub struct AllowedHost {
    source: String,
    scheme: SchemePattern,
    host: HostPattern,
    port: PortPattern,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SchemePattern {
    Any,
    /// In lower case.
    Exact(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    /// In lower case.
    Name(String),
    /// In lower case and with the dot: `.example.com`.
    Below(String),
    ToSelf,
    Network(IpNet),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PortPattern {
    Any,
    Exact(u16),
    /// The end may be one more than a port can be.
    Range(Range<u32>),
}

/// Which components of its own app a component asks to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chained {
    /// Whichever there are.
    Any,
    /// This one.
    Component(ComponentId),
}

/// Why a text is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowedHostError {
    /// The text is longer than [`MAX_ALLOWED_HOST_BYTES`].
    #[error("an allowed host has at most {MAX_ALLOWED_HOST_BYTES} bytes, this one has {length_bytes}")]
    TooLong {
        /// How long it is.
        length_bytes: usize,
    },
    /// No `://`.
    #[error("`{entry}` has no scheme")]
    NoScheme {
        /// The whole entry.
        entry: String,
    },
    /// The scheme is neither `*` nor letters.
    #[error("`{scheme}` is no scheme: use letters, or `*` for any")]
    Scheme {
        /// What stands before `://`.
        scheme: String,
    },
    /// Nothing stands between `://` and the port.
    #[error("`{entry}` has no host")]
    NoHost {
        /// The whole entry.
        entry: String,
    },
    /// Something follows the host and port.
    #[error("`{entry}` has a path, but permission is by host")]
    Path {
        /// The whole entry.
        entry: String,
    },
    /// A `*` that is not the whole host and not before its first dot.
    #[error("`{host}` has a `*` in a place where none may be")]
    Wildcard {
        /// The host.
        host: String,
    },
    /// Neither a name, an address nor a network.
    #[error("`{host}` is no host")]
    Host {
        /// What stands in the host's place.
        host: String,
    },
    /// Neither a number, a range nor `*`.
    #[error("`{port}` is no port: use a number, a range `a..b` that ends before `b`, or `*`")]
    Port {
        /// What stands in the port's place.
        port: String,
    },
    /// No port, and a scheme without a usual one.
    #[error("`{entry}` needs a port, since `{scheme}` has no usual one")]
    NoPort {
        /// The whole entry.
        entry: String,
        /// Its scheme.
        scheme: String,
    },
}

/// Why the entries of a component could not be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError<E> {
    /// A variable has no value, or the result is too long.
    #[error("allowed host `{template}`: {cause}")]
    Expand {
        /// The entry as written.
        template: String,
        /// What went wrong.
        cause: ExpandError<E>,
    },
    /// What came out is no entry.
    #[error("allowed host `{template}`: {cause}")]
    Invalid {
        /// The entry as written.
        template: String,
        /// What is wrong with it.
        cause: AllowedHostError,
    },
    /// More than [`MAX_ALLOWED_HOSTS_COUNT`] entries.
    #[error("a component has at most {MAX_ALLOWED_HOSTS_COUNT} allowed hosts")]
    TooMany,
}

impl AllowedHosts {
    /// Takes parsed entries.
    pub fn new(hosts: Vec<AllowedHost>) -> Self {
        Self { hosts }
    }

    /// Fills in the templates of a component's entries, leaves out those that
    /// come out empty, and parses the others.
    ///
    /// # Errors
    /// The first entry that cannot be filled in or parsed.
    pub fn resolve<V: AsRef<str>, E>(
        templates: &[Template],
        mut lookup: impl FnMut(&VariableName) -> Result<V, E>,
    ) -> Result<Self, ResolveError<E>> {
        if templates.len() > MAX_ALLOWED_HOSTS_COUNT {
            return Err(ResolveError::TooMany);
        }
        let mut hosts = Vec::with_capacity(templates.len());
        for template in templates {
            let entry = template
                .expand(&mut lookup)
                .map_err(|cause| ResolveError::Expand { template: template.source().to_owned(), cause })?;
            if entry.trim().is_empty() {
                continue;
            }
            hosts.push(
                AllowedHost::parse(&entry).map_err(|cause| ResolveError::Invalid {
                    template: template.source().to_owned(),
                    cause,
                })?,
            );
        }
        Ok(Self { hosts })
    }

    /// Whether anything at all is allowed under this scheme.
    pub fn allows_scheme(&self, scheme: &str) -> bool {
        self.hosts.iter().any(|host| match &host.scheme {
            SchemePattern::Any => true,
            SchemePattern::Exact(exact) => exact == scheme,
        })
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = &AllowedHost> {
        self.hosts.iter()
    }

    /// Whether a host, a name or an address with or without brackets, may be
    /// reached.
    pub fn allows(&self, scheme: &str, host: &str, port: u16) -> bool {
        self.hosts.iter().any(|entry| entry.allows(scheme, host, port))
    }

    /// Whether an address may be reached by a guest that gave the address and
    /// not a name.
    pub fn allows_ip(&self, scheme: &str, address: IpAddr, port: u16) -> bool {
        self.hosts.iter().any(|entry| entry.allows_ip(scheme, address, port))
    }

    /// Whether the component may send requests to its own app: relative ones,
    /// or to [`SELF_HOST`].
    pub fn allows_self(&self, scheme: &str) -> bool {
        self.hosts.iter().any(|entry| {
            entry.scheme.matches(scheme) && matches!(entry.host, HostPattern::ToSelf | HostPattern::Any)
        })
    }

    /// The components of the same app that the entries name. An entry that
    /// allows any host does not name any.
    pub fn chained(&self) -> impl Iterator<Item = Chained> {
        self.hosts.iter().filter_map(AllowedHost::chained)
    }
}

impl AllowedHost {
    /// Takes an entry apart; white space around it does not count.
    ///
    /// # Errors
    /// When it does not follow the grammar of this module.
    pub fn parse(entry: &str) -> Result<Self, AllowedHostError> {
        let entry = entry.trim();
        if entry.len() > MAX_ALLOWED_HOST_BYTES {
            return Err(AllowedHostError::TooLong { length_bytes: entry.len() });
        }
        let Some((scheme_text, rest)) = entry.split_once("://") else {
            return Err(AllowedHostError::NoScheme { entry: entry.to_owned() });
        };
        let scheme = SchemePattern::parse(scheme_text)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host_text, port_text) = split_host_and_port(entry, rest)?;
        let host = HostPattern::parse(entry, host_text)?;
        let port = match port_text {
            Some(port) => PortPattern::parse(port)?,
            None => match usual_port(scheme_text) {
                Some(port) => PortPattern::Exact(port),
                None => {
                    return Err(AllowedHostError::NoPort {
                        entry: entry.to_owned(),
                        scheme: scheme_text.to_owned(),
                    });
                }
            },
        };
        Ok(Self { source: entry.to_owned(), scheme, host, port })
    }

    /// The entry as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether this entry allows a host, a name or an address.
    pub fn allows(&self, scheme: &str, host: &str, port: u16) -> bool {
        if !self.scheme.matches(scheme) || !self.port.matches(port) {
            return false;
        }
        let unbracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match &self.host {
            HostPattern::Any => true,
            HostPattern::ToSelf => host.eq_ignore_ascii_case(SELF_HOST),
            HostPattern::Name(name) => host.eq_ignore_ascii_case(name),
            HostPattern::Below(suffix) => {
                host.len() > suffix.len()
                    && host
                        .get(host.len() - suffix.len()..)
                        .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
            }
            HostPattern::Network(network) => {
                unbracketed.parse::<IpAddr>().is_ok_and(|address| network.contains(&address.to_canonical()))
            }
        }
    }

    /// Whether this entry allows an address.
    pub fn allows_ip(&self, scheme: &str, address: IpAddr, port: u16) -> bool {
        self.scheme.matches(scheme)
            && self.port.matches(port)
            && match &self.host {
                HostPattern::Any => true,
                HostPattern::Network(network) => network.contains(&address.to_canonical()),
                HostPattern::Name(_) | HostPattern::Below(_) | HostPattern::ToSelf => false,
            }
    }

    /// Whether everything that `other` allows is allowed by this entry too.
    pub fn covers(&self, other: &Self) -> bool {
        self.scheme.covers(&other.scheme) && self.host.covers(&other.host) && self.port.covers(&other.port)
    }

    /// Whether it names nothing but the component's own app.
    pub fn is_own_app(&self) -> bool {
        matches!(self.host, HostPattern::ToSelf) || self.chained().is_some()
    }

    /// Which components of the same app it names, if that is what it does.
    pub fn chained(&self) -> Option<Chained> {
        match &self.host {
            HostPattern::Below(suffix) if suffix == INTERNAL_DOMAIN_SUFFIX => Some(Chained::Any),
            HostPattern::Name(name) => chained_component(name).map(Chained::Component),
            _ => None,
        }
    }
}

/// The component that a host name such as `hello.spin.internal` stands for.
pub fn chained_component(host: &str) -> Option<ComponentId> {
    let split = host.len().checked_sub(INTERNAL_DOMAIN_SUFFIX.len())?;
    let (component, suffix) = host.split_at_checked(split)?;
    match suffix.eq_ignore_ascii_case(INTERNAL_DOMAIN_SUFFIX) {
        true => ComponentId::new(component).ok(),
        false => None,
    }
}

/// The port of a scheme that is meant when none is written.
pub fn usual_port(scheme: &str) -> Option<u16> {
    const PORTS: [(&str, u16); 6] =
        [("http", 80), ("https", 443), ("mqtt", 1883), ("mysql", 3306), ("postgres", 5432), ("redis", 6379)];
    let mut known = PORTS.iter();
    known.find(|(name, _)| name.eq_ignore_ascii_case(scheme)).map(|(_, port)| *port)
}

/// What a manifest's `allowed_http_hosts` means as entries of
/// `allowed_outbound_hosts`. `with_databases`: the manifest is of version 1,
/// in which databases were not guarded.
///
/// # Errors
/// When an entry is not a host with an optional scheme and port.
pub fn translate_allowed_http_hosts<'a>(
    hosts: impl IntoIterator<Item = &'a str>,
    with_databases: bool,
) -> Result<Vec<String>, AllowedHostError> {
    const ALL: &str = "insecure:allow-all";
    let mut entries = Vec::new();
    if with_databases {
        entries.extend(["redis://*:*", "mysql://*:*", "postgres://*:*"].map(str::to_owned));
    }
    for host in hosts {
        let host = host.trim();
        if host == ALL {
            entries.extend(["http://*:*", "https://*:*"].map(str::to_owned));
            continue;
        }
        let translated = match host.contains("://") {
            true => vec![host.to_owned()],
            false => ["http", "https"].map(|scheme| format!("{scheme}://{host}")).to_vec(),
        };
        for entry in translated {
            AllowedHost::parse(&entry)?;
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Splits `host`, `host:port`, `[v6]:port` and `network/length:port`.
fn split_host_and_port<'a>(
    entry: &str,
    rest: &'a str,
) -> Result<(&'a str, Option<&'a str>), AllowedHostError> {
    if rest.starts_with('[') {
        let Some(end) = rest.find(']') else {
            return Err(AllowedHostError::Host { host: rest.to_owned() });
        };
        let (host, after) = rest.split_at(end + 1);
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None if after.starts_with('/') => Err(AllowedHostError::Path { entry: entry.to_owned() }),
            None => Err(AllowedHostError::Host { host: rest.to_owned() }),
        };
    }
    // A network of IPv6 addresses has colons before its slash.
    let (before_slash, after_slash) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if after_slash.is_empty() {
        return Ok(match before_slash.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (before_slash, None),
        });
    }
    if before_slash.parse::<IpAddr>().is_err() {
        return Err(AllowedHostError::Path { entry: entry.to_owned() });
    }
    Ok(match after_slash.split_once(':') {
        Some((length, port)) => (&rest[..before_slash.len() + length.len()], Some(port)),
        None => (rest, None),
    })
}

impl SchemePattern {
    fn parse(scheme: &str) -> Result<Self, AllowedHostError> {
        match scheme {
            "*" => Ok(Self::Any),
            _ if !scheme.is_empty() && scheme.chars().all(|letter| letter.is_ascii_alphabetic()) => {
                Ok(Self::Exact(scheme.to_ascii_lowercase()))
            }
            _ => Err(AllowedHostError::Scheme { scheme: scheme.to_owned() }),
        }
    }

    fn matches(&self, scheme: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact.eq_ignore_ascii_case(scheme),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        *self == Self::Any || self == other
    }
}

impl HostPattern {
    fn parse(entry: &str, host: &str) -> Result<Self, AllowedHostError> {
        let bad_host = || AllowedHostError::Host { host: host.to_owned() };
        match host {
            "" => return Err(AllowedHostError::NoHost { entry: entry.to_owned() }),
            "*" => return Ok(Self::Any),
            "self" | SELF_HOST => return Ok(Self::ToSelf),
            _ => {}
        }
        if let Some(inside) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            let network = inside.parse::<Ipv6Net>().map(IpNet::V6);
            let address = || inside.parse::<Ipv6Addr>().map(|address| single(address.into()));
            return network.or_else(|_| address()).map(Self::Network).map_err(|_| bad_host());
        }
        if host.contains('/') {
            return host.parse().map(Self::Network).map_err(|_| bad_host());
        }
        if let Ok(address) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Network(single(address.into())));
        }
        let (below, name) = match host.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, host),
        };
        if name.contains('*') {
            return Err(AllowedHostError::Wildcard { host: host.to_owned() });
        }
        if !is_host_name(name) {
            return Err(bad_host());
        }
        let name = name.to_ascii_lowercase();
        Ok(if below { Self::Below(format!(".{name}")) } else { Self::Name(name) })
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Below(suffix), Self::Name(name)) => name.len() > suffix.len() && name.ends_with(suffix),
            (Self::Below(suffix), Self::Below(other)) => other.ends_with(suffix),
            (Self::Network(network), Self::Network(other)) => network.contains(other),
            _ => self == other,
        }
    }
}

/// Letters of any script, digits, `-` and `_` with single dots between them.
fn is_host_name(name: &str) -> bool {
    // A dot at the end marks a name as complete.
    let name = name.strip_suffix('.').unwrap_or(name);
    name.split('.').all(|label| {
        !label.is_empty()
            && label.chars().all(|character| character.is_alphanumeric() || matches!(character, '-' | '_'))
    })
}

/// The network of a single address; one of IPv4 even if written as IPv6.
fn single(address: IpAddr) -> IpNet {
    IpNet::from(address.to_canonical())
}

impl PortPattern {
    fn parse(port: &str) -> Result<Self, AllowedHostError> {
        if port == "*" {
            return Ok(Self::Any);
        }
        let bad_port = || AllowedHostError::Port { port: port.to_owned() };
        let is_number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
        match port.split_once("..") {
            Some((start, end)) if is_number(start) && is_number(end) => {
                let start: u16 = start.parse().map_err(|_| bad_port())?;
                let end: u32 = end.parse().map_err(|_| bad_port())?;
                let last_end = u32::from(u16::MAX) + 1;
                match u32::from(start) < end && end <= last_end {
                    true => Ok(Self::Range(u32::from(start)..end)),
                    false => Err(bad_port()),
                }
            }
            None if is_number(port) => port.parse().map(Self::Exact).map_err(|_| bad_port()),
            _ => Err(bad_port()),
        }
    }

    fn matches(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => *exact == port,
            Self::Range(range) => range.contains(&u32::from(port)),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        let range = |pattern: &Self| match pattern {
            Self::Any => 0..u32::from(u16::MAX) + 1,
            Self::Exact(port) => u32::from(*port)..u32::from(*port) + 1,
            Self::Range(range) => range.clone(),
        };
        let (own, other) = (range(self), range(other));
        own.start <= other.start && other.end <= own.end
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.source)
    }
}

impl fmt::Debug for AllowedHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.source, formatter)
    }
}

/// Networks that no component may reach, whatever its manifest asks for:
/// `block_networks` of the runtime configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockedNetworks {
    networks: Vec<IpNet>,
    blocks_private: bool,
    /// Exceptions of `blocks_private`.
    open: Vec<IpNet>,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockedNetworkError {
    /// Neither an address, a network nor `private`.
    #[error("`{text}` is neither a network such as `10.0.0.0/8`, an address, nor `private`")]
    Network {
        /// What was given.
        text: String,
    },
    /// More than [`MAX_BLOCKED_NETWORKS_COUNT`] networks.
    #[error("at most {MAX_BLOCKED_NETWORKS_COUNT} networks can be blocked")]
    TooMany,
}

impl BlockedNetworks {
    /// Adds a network such as `10.0.0.0/8`, an address, or `private`: every
    /// network that is not part of the public internet.
    ///
    /// # Errors
    /// When it is none of these, or when there are too many.
    pub fn add(&mut self, text: &str) -> Result<(), BlockedNetworkError> {
        if self.networks.len() >= MAX_BLOCKED_NETWORKS_COUNT {
            return Err(BlockedNetworkError::TooMany);
        }
        if text == "private" {
            self.blocks_private = true;
            return Ok(());
        }
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(single));
        match network {
            Ok(network) => {
                self.networks.push(network.trunc());
                Ok(())
            }
            Err(_) => Err(BlockedNetworkError::Network { text: text.to_owned() }),
        }
    }

    /// Takes a list of what [`add`](Self::add) takes.
    ///
    /// # Errors
    /// The first one that it does not take.
    pub fn parse<'a>(networks: impl IntoIterator<Item = &'a str>) -> Result<Self, BlockedNetworkError> {
        let mut blocked = Self::default();
        networks.into_iter().try_for_each(|network| blocked.add(network))?;
        Ok(blocked)
    }

    /// Opens a network that `private` blocks. One that is blocked by its own name stays so.
    ///
    /// # Errors
    /// When there are too many.
    pub fn open(&mut self, network: IpNet) -> Result<(), BlockedNetworkError> {
        if self.open.len() >= MAX_BLOCKED_NETWORKS_COUNT {
            return Err(BlockedNetworkError::TooMany);
        }
        self.open.push(network.trunc());
        Ok(())
    }

    /// Whether an address may not be reached.
    ///
    /// An IPv6 address that carries an IPv4 address is blocked if either is:
    /// the network would deliver to the latter.
    pub fn blocks(&self, address: IpAddr) -> bool {
        let carried = match address {
            IpAddr::V6(address) => carried_ipv4(address).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let reached = carried.unwrap_or(address);
        let is_open = self.open.iter().any(|network| network.contains(&reached));
        [Some(address), carried].into_iter().flatten().any(|address| {
            (self.blocks_private && !is_open && !is_public(address))
                || self.networks.iter().any(|network| network.contains(&address))
        })
    }

    /// Whether nothing is blocked.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.blocks_private
    }
}

/// The IPv4 address within an IPv4-mapped, NAT64 or 6to4 address.
fn carried_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let four = |start: usize| {
        Some(Ipv4Addr::new(octets[start], octets[start + 1], octets[start + 2], octets[start + 3]))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] => four(12),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => four(12),
        [0x2002, ..] => four(2),
        _ => None,
    }
}

/// Whether an address is part of the public internet, after the registries of
/// special-purpose addresses (RFC 6890 and its updates). Multicast counts as
/// not public: no guest has a use for it that an operator would not know of.
fn is_public(address: IpAddr) -> bool {
    const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
    }
    const fn v6(start: [u16; 4], length: u8) -> Ipv6Net {
        let [a, b, c, d] = start;
        Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), length)
    }
    const SPECIAL_V4: [Ipv4Net; 15] = [
        v4(0, 0, 0, 0, 8),
        v4(10, 0, 0, 0, 8),
        v4(100, 64, 0, 0, 10),
        v4(127, 0, 0, 0, 8),
        v4(169, 254, 0, 0, 16),
        v4(172, 16, 0, 0, 12),
        v4(192, 0, 0, 0, 24),
        v4(192, 0, 2, 0, 24),
        v4(192, 88, 99, 0, 24),
        v4(192, 168, 0, 0, 16),
        v4(198, 18, 0, 0, 15),
        v4(198, 51, 100, 0, 24),
        v4(203, 0, 113, 0, 24),
        v4(224, 0, 0, 0, 4),
        v4(240, 0, 0, 0, 4),
    ];
    /// The only block that is handed out for global unicast.
    const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0], 3);
    const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 96);
    const SPECIAL_V6: [Ipv6Net; 3] =
        [v6([0x2001, 0, 0, 0], 23), v6([0x2001, 0xdb8, 0, 0], 32), v6([0x3fff, 0, 0, 0], 20)];
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => is_public(mapped.into()),
            None => {
                NAT64.contains(&address)
                    || (GLOBAL_V6.contains(&address)
                        && !SPECIAL_V6.iter().any(|network| network.contains(&address)))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn allows(entry: &str, scheme: &str, host: &str, port: u16) -> bool {
        AllowedHost::parse(entry).unwrap().allows(scheme, host, port)
    }

    #[test]
    fn what_entries_allow() {
        for (entry, scheme, host, port, expected) in [
            ("http://example.com", "http", "example.com", 80, true),
            ("http://example.com/", "http", "EXAMPLE.com", 80, true),
            ("HTTP://Example.com", "http", "example.com", 80, true),
            ("http://example.com", "https", "example.com", 80, false),
            ("http://example.com", "http", "example.com", 81, false),
            ("http://example.com", "http", "a.example.com", 80, false),
            ("https://example.com", "https", "example.com", 443, true),
            ("*://example.com:*", "anything", "example.com", 9, true),
            ("https://*.example.com", "https", "a.b.example.com", 443, true),
            ("https://*.example.com", "https", "example.com", 443, false),
            ("https://*.example.com", "https", ".example.com", 443, false),
            ("https://*.example.com", "https", "badexample.com", 443, false),
            ("https://*.example.com", "https", "é.example.com", 443, true),
            ("https://*:*", "https", "[::1]", 1, true),
            ("tcp://db:5000..5010", "tcp", "db", 5009, true),
            ("tcp://db:5000..5010", "tcp", "db", 5010, false),
            ("tcp://db:1..65536", "tcp", "db", 65535, true),
            ("redis://db", "redis", "db", 6379, true),
            ("mysql://db", "mysql", "db", 3306, true),
            ("postgres://db", "postgres", "db", 5432, true),
            ("mqtt://db", "mqtt", "db", 1883, true),
            ("tcp://127.0.0.0/24:80", "tcp", "127.0.0.9", 80, true),
            ("tcp://127.0.0.0/24:80", "tcp", "127.0.1.9", 80, false),
            ("tcp://127.0.0.0/24:80", "tcp", "localhost", 80, false),
            ("http://127.0.0.0/24", "http", "127.0.0.1", 80, true),
            ("http://127.0.0.0/24/", "http", "127.0.0.1", 80, true),
            ("http://[::1]", "http", "[::1]", 80, true),
            ("http://[::1]:8080", "http", "::1", 8080, true),
            ("http://[::1]:8080", "http", "[0:0:0:0:0:0:0:1]", 8080, true),
            ("http://[fc00::/7]:80", "http", "[fd00::1]", 80, true),
            ("http://fc00::/7:80", "http", "[fd00::1]", 80, true),
            ("tcp://10.0.0.1:1", "tcp", "::ffff:10.0.0.1", 1, true),
            ("http://self", "http", "self.alt", 80, true),
            ("http://self", "http", "example.com", 80, false),
            ("http://*.spin.internal", "http", "hello.spin.internal", 80, true),
            ("  http://example.com ", "http", "example.com", 80, true),
        ] {
            assert_eq!(allows(entry, scheme, host, port), expected, "{entry} {scheme}://{host}:{port}");
        }
    }

    #[test]
    fn addresses() {
        let hosts = AllowedHosts::resolve(
            &[Template::parse("tcp://10.0.0.0/8:80").unwrap(), Template::parse("udp://*:*").unwrap()],
            |_| Err::<&str, _>(()),
        )
        .unwrap();
        assert!(hosts.allows_ip("tcp", "10.1.2.3".parse().unwrap(), 80));
        assert!(hosts.allows_ip("tcp", "::ffff:10.1.2.3".parse().unwrap(), 80));
        assert!(!hosts.allows_ip("tcp", "11.1.2.3".parse().unwrap(), 80));
        assert!(hosts.allows_ip("udp", "11.1.2.3".parse().unwrap(), 53));
        assert!(hosts.allows_self("udp"));
        assert!(!hosts.allows_self("tcp"));
    }

    #[test]
    fn faults() {
        use AllowedHostError as E;
        let text = str::to_owned;
        for (entry, error) in [
            ("example.com", E::NoScheme { entry: text("example.com") }),
            ("insecure:allow-all", E::NoScheme { entry: text("insecure:allow-all") }),
            ("h2://a", E::Scheme { scheme: text("h2") }),
            ("://a", E::Scheme { scheme: text("") }),
            ("http://", E::NoHost { entry: text("http://") }),
            ("http://:80", E::NoHost { entry: text("http://:80") }),
            ("http://a/b", E::Path { entry: text("http://a/b") }),
            ("http://a:80/b", E::Path { entry: text("http://a:80/b") }),
            ("http://[::1]/b", E::Path { entry: text("http://[::1]/b") }),
            ("http://a.*", E::Wildcard { host: text("a.*") }),
            ("http://*.a.*", E::Wildcard { host: text("*.a.*") }),
            ("http://*a", E::Wildcard { host: text("*a") }),
            ("http://a b", E::Host { host: text("a b") }),
            ("http://a..b", E::Host { host: text("a..b") }),
            ("http://user@a", E::Host { host: text("user@a") }),
            ("http://[::1", E::Host { host: text("[::1") }),
            ("http://[a]", E::Host { host: text("[a]") }),
            ("http://1.2.3.4/33", E::Host { host: text("1.2.3.4/33") }),
            ("http://a:b", E::Port { port: text("b") }),
            ("http://a:65536", E::Port { port: text("65536") }),
            ("http://a:9..9", E::Port { port: text("9..9") }),
            ("http://a:9..", E::Port { port: text("9..") }),
            ("http://a:+1", E::Port { port: text("+1") }),
            ("http://a:", E::Port { port: text("") }),
            ("tcp://a", E::NoPort { entry: text("tcp://a"), scheme: text("tcp") }),
            ("*://a", E::NoPort { entry: text("*://a"), scheme: text("*") }),
        ] {
            assert_eq!(AllowedHost::parse(entry), Err(error), "{entry}");
        }
    }

    #[test]
    fn templates_are_filled_in_and_empty_ones_left_out() {
        let templates = ["https://{{ host }}", "{{ none }}"].map(|entry| Template::parse(entry).unwrap());
        let lookup = |name: &VariableName| match name.as_str() {
            "host" => Ok("example.com"),
            "none" => Ok(" "),
            _ => Err("undefined"),
        };
        let hosts = AllowedHosts::resolve(&templates, lookup).unwrap();
        assert_eq!(hosts.iter().count(), 1);
        assert!(hosts.allows("https", "example.com", 443));

        let templates = [Template::parse("{{ other }}").unwrap()];
        assert!(matches!(AllowedHosts::resolve(&templates, lookup), Err(ResolveError::Expand { .. })));
        let templates = [Template::parse("{{ host }}").unwrap()];
        assert!(matches!(AllowedHosts::resolve(&templates, lookup), Err(ResolveError::Invalid { .. })));
    }

    #[test]
    fn chained_components() {
        let chained = |entry: &str| AllowedHost::parse(entry).unwrap().chained();
        assert_eq!(chained("http://*.spin.internal"), Some(Chained::Any));
        assert_eq!(
            chained("http://hello.spin.internal"),
            Some(Chained::Component(ComponentId::new("hello").unwrap()))
        );
        assert_eq!(chained("http://hello.example"), None);
        assert_eq!(chained("http://*:*"), None);
        assert_eq!(chained_component("Hello.SPIN.internal"), ComponentId::new("Hello").ok());
        assert_eq!(chained_component(".spin.internal"), None);
    }

    #[test]
    fn version_one_hosts() {
        let translate =
            |hosts: &[&str], databases| translate_allowed_http_hosts(hosts.iter().copied(), databases);
        assert_eq!(translate(&["a.b:90"], false).unwrap(), ["http://a.b:90", "https://a.b:90"]);
        assert_eq!(translate(&["http://a"], false).unwrap(), ["http://a"]);
        assert_eq!(translate(&["insecure:allow-all"], false).unwrap(), ["http://*:*", "https://*:*"]);
        assert_eq!(
            translate(&["self"], true).unwrap(),
            ["redis://*:*", "mysql://*:*", "postgres://*:*", "http://self", "https://self"]
        );
        assert!(translate(&["a b"], false).is_err());
    }

    #[test]
    fn blocked_networks() {
        let blocked = BlockedNetworks::parse(["1.2.3.0/24", "private", "2600::1"]).unwrap();
        for (address, expected) in [
            ("1.2.3.4", true),
            ("1.2.4.4", false),
            ("::ffff:1.2.3.4", true),
            ("64:ff9b::1.2.3.4", true),
            ("64:ff9b::1.2.4.4", false),
            ("2002:0a00:0001::", true),
            ("127.0.0.1", true),
            ("10.9.8.7", true),
            ("172.32.0.1", false),
            ("169.254.169.254", true),
            ("224.0.0.1", true),
            ("255.255.255.255", true),
            ("8.8.8.8", false),
            ("::", true),
            ("::1", true),
            ("fe80::1", true),
            ("fd12::1", true),
            ("ff02::1", true),
            ("2001:db8::1", true),
            ("2606:4700::1111", false),
            ("2600::1", true),
        ] {
            assert_eq!(blocked.blocks(address.parse().unwrap()), expected, "{address}");
        }
        assert!(!BlockedNetworks::default().blocks("127.0.0.1".parse().unwrap()));
        assert!(BlockedNetworks::parse(["public"]).is_err());
        assert!(BlockedNetworks::parse(["1.2.3.4/40"]).is_err());
    }

    #[test]
    fn what_is_open_is_not_blocked_as_private() {
        let mut blocked = BlockedNetworks::parse(["private", "10.1.0.0/16"]).unwrap();
        blocked.open("10.0.0.0/8".parse().unwrap()).unwrap();
        for (address, expected) in
            [("10.2.0.1", false), ("::ffff:10.2.0.1", false), ("10.1.0.1", true), ("192.168.0.1", true)]
        {
            assert_eq!(blocked.blocks(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn what_entries_cover() {
        let entry = |text| AllowedHost::parse(text).unwrap();
        for (own, other, expected) in [
            ("https://*", "https://api.example.com", true),
            ("https://*", "https://api.example.com:8443", false),
            ("https://*:*", "https://api.example.com:1..9", true),
            ("*://*:*", "*://*:*", true),
            ("https://*:*", "*://*:*", false),
            ("https://*.example.com", "https://*.a.example.com", true),
            ("https://*.example.com", "https://example.com", false),
            ("https://*.example.com", "https://*", false),
            ("tcp://10.0.0.0/8:1..10", "tcp://10.1.0.0/16:9", true),
            ("tcp://10.1.0.0/16:9", "tcp://10.0.0.0/8:9", false),
        ] {
            assert_eq!(entry(own).covers(&entry(other)), expected, "{own} {other}");
        }
        assert!(entry("http://self").is_own_app() && entry("http://*.spin.internal").is_own_app());
        assert!(!entry("http://*").is_own_app());
    }

    proptest! {
        #[test]
        fn who_covers_allows(
            own in "(http|\\*)://(\\*|\\*\\.a|b\\.a|a|1\\.0\\.0\\.0/8):(\\*|8|8\\.\\.10)",
            other in "(http|\\*)://(\\*|\\*\\.a|b\\.a|a|1\\.2\\.0\\.0/16):(\\*|9|8\\.\\.10)",
            scheme in "(http|tcp)",
            host in "(c\\.b\\.a|b\\.a|a|1\\.2\\.3\\.4|1\\.3\\.3\\.4)",
            port in 7_u16..12,
        ) {
            let (own, other) = (AllowedHost::parse(&own).unwrap(), AllowedHost::parse(&other).unwrap());
            if own.covers(&other) && other.allows(&scheme, &host, port) {
                prop_assert!(own.allows(&scheme, &host, port));
            }
        }

        #[test]
        fn never_panics(
            entry in "(http|\\*|tcp)?(://)?(self|a|é|\\*|\\.|1\\.2\\.3\\.4|\\[|\\]|::|/|:|8|\\.\\.){0,6}",
            host in "(a|é|\\.|\\[|\\]|:|1){0,6}",
        ) {
            if let Ok(parsed) = AllowedHost::parse(&entry) {
                parsed.allows("http", &host, 80);
                parsed.chained();
                prop_assert_eq!(AllowedHost::parse(parsed.source()), Ok(parsed));
            }
        }
    }
}

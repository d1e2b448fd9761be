//! What the operator lets teams do: `policy.toml`.
//!
//! `[default]` holds for every team; `[team.NAME]` says otherwise for one, key by key. What
//! nobody says is allowed, except for networks that are not the public internet: those are
//! closed until a policy opens them. `docs/policy.md` explains each key.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;
use wisp_manifest::{
    RuntimeConfig,
    allowed_hosts::{AllowedHost, BlockedNetworks},
    model::{Limits, MAX_CPU_WEIGHT},
    runtime_config::{KeyValueBackend, SqliteBackend},
};

use crate::{
    description::line_of,
    error::{Error, Result},
    names::{Label, TeamName},
    platform::{GrantedFile, Grants, ResourceKind},
};

/// Largest policy file, in bytes: thousands of teams with rules of their own.
pub const MAX_POLICY_BYTES: usize = 4 << 20;

/// Entries of one list: each deploy walks them.
pub const MAX_ENTRIES_COUNT: usize = 1_000;

/// How a policy is called in messages when it came from nowhere.
const UNNAMED: &str = "policy.toml";

/// What the operator lets teams do.
#[derive(Clone, Debug)]
pub struct Policy {
    default: Arc<TeamPolicy>,
    teams: BTreeMap<TeamName, Arc<TeamPolicy>>,
}

/// What one team may do.
#[derive(Clone, Debug)]
pub struct TeamPolicy {
    /// Kinds of capabilities that apps may have. `None` is all.
    capabilities: Option<Listed<Capability>>,
    /// Kinds of triggers that apps may have. `None` is all.
    triggers: Option<Listed<String>>,
    /// Destinations that apps may reach. `None` is all.
    outbound: Option<Listed<AllowedHost>>,
    /// What somebody has to agree to when an app newly asks for it.
    approve: BTreeSet<Capability>,
    /// What may be used up.
    quotas: Quotas,
    /// What apps are granted.
    grants: Arc<Grants>,
    /// What is behind labels, where the policy says so.
    backends: BTreeMap<(ResourceKind, Label), Listed<Backend>>,
}

/// What the operator has put behind a label, in the place of a resource of the team.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Backend {
    /// A file of this machine.
    File(PathBuf),
    /// Something that this version cannot speak to: the name of its type.
    Unknown(&'static str),
}

/// A kind of thing that an app may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Network destinations.
    Outbound,
    /// Key-value stores.
    KeyValue,
    /// SQLite databases.
    Sqlite,
    /// Models.
    AiModels,
}

/// What a team may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Apps of a team.
    pub apps: u64,
    /// Resources of a team.
    pub resources: u64,
    /// Domains of an app.
    pub domains: u64,
    /// Bytes of a key-value store, unless it is given another quota; also the most that may be
    /// given.
    pub key_value_bytes: u64,
    /// The same of an SQLite database.
    pub sqlite_bytes: u64,
    /// Releases of an app that are kept to go back to, besides the one that serves; and as many
    /// of those that failed.
    pub kept_releases: u64,
}

/// A list of the policy, and where it stands.
#[derive(Clone, Debug)]
struct Listed<T> {
    entries: Vec<T>,
    place: Place,
}

/// A place in the policy file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    file: Arc<str>,
    table: Arc<str>,
    line: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    #[serde(default)]
    default: RawTeam,
    #[serde(default)]
    team: BTreeMap<String, RawTeam>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTeam {
    capabilities: Option<Spanned<Vec<Capability>>>,
    triggers: Option<Spanned<Vec<String>>>,
    outbound: Option<Spanned<Vec<Spanned<String>>>>,
    open_networks: Option<Vec<Spanned<String>>>,
    approve: Option<Vec<Capability>>,
    quotas: Option<RawQuotas>,
    limits: Option<RawLimits>,
    cpu_weight: Option<Spanned<u32>>,
    backends: Option<Spanned<toml::Table>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuotas {
    apps: Option<u64>,
    resources: Option<u64>,
    domains: Option<u64>,
    key_value_bytes: Option<u64>,
    sqlite_bytes: Option<u64>,
    kept_releases: Option<NonZeroU64>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    memory_bytes: Option<u64>,
    table_elements: Option<u32>,
    cpu_time: Option<Spanned<String>>,
    request_timeout: Option<Spanned<String>>,
    max_concurrent_requests: Option<u32>,
    request_body_bytes: Option<u64>,
    response_body_bytes: Option<u64>,
    max_handles: Option<u32>,
    max_outbound_requests: Option<u32>,
    max_outbound_connections: Option<u32>,
    log_bytes: Option<u64>,
    log_bytes_per_second: Option<u64>,
}

/// Reads one file and notes all that is wrong with it.
struct Reader<'t> {
    file: Arc<str>,
    directory: PathBuf,
    text: &'t str,
    problems: Vec<String>,
}

impl Default for Policy {
    /// What holds without a policy file.
    fn default() -> Self {
        let mut reader =
            Reader { file: UNNAMED.into(), directory: PathBuf::new(), text: "", problems: Vec::new() };
        let default = Arc::new(reader.team("default", &RawTeam::default()));
        Self { default, teams: BTreeMap::new() }
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            apps: 1_000,
            resources: 2_000,
            domains: 100,
            key_value_bytes: 1 << 30,
            sqlite_bytes: 1 << 30,
            // More than anybody goes back, and a bound on what a busy pipeline fills the disk with.
            kept_releases: 50,
        }
    }
}

impl Policy {
    /// Reads a policy from its text. `path` is how it is called in messages, and where
    /// relative paths in it start.
    ///
    /// # Errors
    /// Everything that is wrong with it, with lines.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let file: Arc<str> = path.file_name().map_or(UNNAMED.into(), |name| name.to_string_lossy().into());
        if text.len() > MAX_POLICY_BYTES {
            return Err(Error::Policy(vec![format!(
                "{file}: a policy has at most {MAX_POLICY_BYTES} bytes"
            )]));
        }
        let raw: RawPolicy = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            Error::Policy(vec![format!("{file}:{line}: {}", error.message())])
        })?;
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut reader = Reader { file, directory, text, problems: Vec::new() };
        let default = Arc::new(reader.team("default", &raw.default));
        let mut teams = BTreeMap::new();
        for (name, team) in &raw.team {
            match TeamName::new(name) {
                Ok(team_name) => {
                    let whole = team.clone().or(&raw.default);
                    teams.insert(team_name, Arc::new(reader.team(&format!("team.{name}"), &whole)));
                }
                Err(error) => reader.problems.push(format!("{}: {error}", reader.file)),
            }
        }
        match reader.problems.is_empty() {
            true => Ok(Self { default, teams }),
            false => Err(Error::Policy(reader.problems)),
        }
    }

    /// Reads a policy from a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, or that it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Policy(vec![format!("`{}` cannot be read: {error}", path.display())]))?;
        Self::parse(path, &text)
    }

    /// What a team may do.
    pub fn of(&self, team: &TeamName) -> &Arc<TeamPolicy> {
        self.teams.get(team).unwrap_or(&self.default)
    }
}

impl TeamPolicy {
    /// What apps are granted.
    pub fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }

    /// What may be used up.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Whether somebody has to agree when an app newly asks for this.
    pub fn needs_approval(&self, capability: Capability) -> bool {
        self.approve.contains(&capability)
    }

    /// What the policy says is behind a label, in words and with the place that says so. No
    /// resource is made for such a label.
    pub(crate) fn backend(&self, kind: ResourceKind, label: &str) -> Option<(String, &Place)> {
        let label = Label::new(label).ok()?;
        let Listed { entries, place } = self.backends.get(&(kind, label))?;
        let words = match entries.first()? {
            Backend::File(path) => format!("the operator's file `{}`", path.display()),
            Backend::Unknown(name) => format!("a backend of type `{name}`"),
        };
        Some((words, place))
    }

    /// The place that refuses a label, since what it puts behind it cannot be had, and what that
    /// is.
    pub(crate) fn refuses_label(&self, kind: ResourceKind, label: &str) -> Option<(&'static str, &Place)> {
        let label = Label::new(label).ok()?;
        let Listed { entries, place } = self.backends.get(&(kind, label))?;
        match entries.first()? {
            Backend::File(_) => None,
            Backend::Unknown(name) => Some((name, place)),
        }
    }

    /// The place that refuses a kind of capability.
    pub(crate) fn refuses(&self, capability: Capability) -> Option<&Place> {
        let listed = self.capabilities.as_ref()?;
        (!listed.entries.contains(&capability)).then_some(&listed.place)
    }

    /// The place that refuses a kind of trigger.
    pub(crate) fn refuses_trigger(&self, kind: &str) -> Option<&Place> {
        let listed = self.triggers.as_ref()?;
        (!listed.entries.iter().any(|entry| entry == kind)).then_some(&listed.place)
    }

    /// The place that refuses a destination. What is within the app itself is always allowed.
    pub(crate) fn refuses_destination(&self, asked: &AllowedHost) -> Option<&Place> {
        let listed = self.outbound.as_ref()?;
        let is_allowed = asked.is_own_app() || listed.entries.iter().any(|entry| entry.covers(asked));
        (!is_allowed).then_some(&listed.place)
    }
}

impl Quotas {
    /// How many bytes a resource may hold, unless it is given another quota.
    pub fn bytes_of(&self, kind: ResourceKind) -> u64 {
        match kind {
            ResourceKind::KeyValue => self.key_value_bytes,
            ResourceKind::Sqlite => self.sqlite_bytes,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "`[{}]` ({}:{})", self.table, self.file, self.line)
    }
}

impl Capability {
    /// The capability that a kind of resource is.
    pub fn of_resource(kind: ResourceKind) -> Self {
        match kind {
            ResourceKind::KeyValue => Self::KeyValue,
            ResourceKind::Sqlite => Self::Sqlite,
        }
    }

    /// The kind of resource that the capability is, if it is one.
    pub fn resource(self) -> Option<ResourceKind> {
        match self {
            Self::KeyValue => Some(ResourceKind::KeyValue),
            Self::Sqlite => Some(ResourceKind::Sqlite),
            Self::Outbound | Self::AiModels => None,
        }
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::KeyValue => "key-value",
            Self::Sqlite => "sqlite",
            Self::AiModels => "ai-models",
        }
    }
}

impl RawTeam {
    /// What this table says, and what the default says where it does not.
    fn or(self, default: &Self) -> Self {
        let default = default.clone();
        let limits = match (self.limits, default.limits) {
            (Some(own), Some(default)) => Some(own.or(default)),
            (own, default) => own.or(default),
        };
        let quotas = match (self.quotas, default.quotas) {
            (Some(own), Some(default)) => Some(own.or(default)),
            (own, default) => own.or(default),
        };
        let backends = match (self.backends, default.backends) {
            (Some(own), Some(default)) => Some(or_backends(own, default.into_inner())),
            (own, default) => own.or(default),
        };
        Self {
            capabilities: self.capabilities.or(default.capabilities),
            triggers: self.triggers.or(default.triggers),
            outbound: self.outbound.or(default.outbound),
            open_networks: self.open_networks.or(default.open_networks),
            approve: self.approve.or(default.approve),
            cpu_weight: self.cpu_weight.or(default.cpu_weight),
            backends,
            quotas,
            limits,
        }
    }
}

/// What a team says about labels, and what the default says about others.
fn or_backends(own: Spanned<toml::Table>, default: toml::Table) -> Spanned<toml::Table> {
    let span = own.span();
    let mut backends = own.into_inner();
    for (kind, labels) in default {
        match (backends.get_mut(&kind), labels) {
            (Some(toml::Value::Table(own)), toml::Value::Table(labels)) => {
                for (label, backend) in labels {
                    own.entry(label).or_insert(backend);
                }
            }
            // What is no table is refused by whoever reads it.
            (Some(_), _) => {}
            (None, labels) => drop(backends.insert(kind, labels)),
        }
    }
    Spanned::new(span, backends)
}

impl RawQuotas {
    fn or(self, default: Self) -> Self {
        Self {
            apps: self.apps.or(default.apps),
            resources: self.resources.or(default.resources),
            domains: self.domains.or(default.domains),
            key_value_bytes: self.key_value_bytes.or(default.key_value_bytes),
            sqlite_bytes: self.sqlite_bytes.or(default.sqlite_bytes),
            kept_releases: self.kept_releases.or(default.kept_releases),
        }
    }
}

impl RawLimits {
    fn or(self, default: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.or(default.memory_bytes),
            table_elements: self.table_elements.or(default.table_elements),
            cpu_time: self.cpu_time.or(default.cpu_time),
            request_timeout: self.request_timeout.or(default.request_timeout),
            max_concurrent_requests: self.max_concurrent_requests.or(default.max_concurrent_requests),
            request_body_bytes: self.request_body_bytes.or(default.request_body_bytes),
            response_body_bytes: self.response_body_bytes.or(default.response_body_bytes),
            max_handles: self.max_handles.or(default.max_handles),
            max_outbound_requests: self.max_outbound_requests.or(default.max_outbound_requests),
            max_outbound_connections: self.max_outbound_connections.or(default.max_outbound_connections),
            log_bytes: self.log_bytes.or(default.log_bytes),
            log_bytes_per_second: self.log_bytes_per_second.or(default.log_bytes_per_second),
        }
    }
}

impl Reader<'_> {
    fn team(&mut self, table: &str, raw: &RawTeam) -> TeamPolicy {
        let table: Arc<str> = table.into();
        let outbound = raw.outbound.as_ref().map(|listed| {
            let place = self.place(&table, "outbound", listed.span().start);
            self.check_count("outbound", listed.get_ref().len());
            let parsed = listed.get_ref().iter().filter_map(|entry| {
                let host = AllowedHost::parse(entry.get_ref());
                host.map_err(|error| self.problem(entry.span().start, &error)).ok()
            });
            Listed { entries: parsed.collect(), place }
        });
        let capabilities = raw.capabilities.as_ref().map(|listed| Listed {
            entries: listed.get_ref().clone(),
            place: self.place(&table, "capabilities", listed.span().start),
        });
        let triggers = raw.triggers.as_ref().map(|listed| {
            self.check_count("triggers", listed.get_ref().len());
            Listed {
                entries: listed.get_ref().clone(),
                place: self.place(&table, "triggers", listed.span().start),
            }
        });
        let backends = self.backends(&table, raw.backends.as_ref());
        let quotas = quotas(raw.quotas.unwrap_or_default());
        let files = backends.iter().filter_map(|((kind, label), listed)| match listed.entries.first()? {
            Backend::File(path) => Some(GrantedFile {
                kind: *kind,
                label: label.clone(),
                path: path.clone(),
                quota_bytes: quotas.bytes_of(*kind),
            }),
            Backend::Unknown(_) => None,
        });
        let grants = Grants {
            outbound: match &outbound {
                Some(listed) => listed.entries.iter().map(|entry| entry.source().to_owned()).collect(),
                None => vec!["*://*:*".to_owned()],
            },
            blocked_networks: self.blocked(raw.open_networks.as_deref().unwrap_or_default()),
            limits: raw.limits.as_ref().map(|limits| self.limits(limits)).unwrap_or_default(),
            cpu_weight: raw.cpu_weight.as_ref().and_then(|weight| self.cpu_weight(weight)),
            files: files.collect(),
        };
        TeamPolicy {
            capabilities,
            triggers,
            outbound,
            approve: raw.approve.iter().flatten().copied().collect(),
            quotas,
            grants: Arc::new(grants),
            backends,
        }
    }

    fn cpu_weight(&mut self, weight: &Spanned<u32>) -> Option<u32> {
        let value = *weight.get_ref();
        if (1..=MAX_CPU_WEIGHT).contains(&value) {
            return Some(value);
        }
        self.problem(
            weight.span().start,
            &format!("`cpu_weight` is from 1 to {MAX_CPU_WEIGHT}, not {value}"),
        );
        None
    }

    /// Everything but the public internet, without what is opened.
    fn blocked(&mut self, open: &[Spanned<String>]) -> BlockedNetworks {
        // `private` is a word that is always known.
        let mut blocked = BlockedNetworks::parse(["private"]).unwrap_or_default();
        for entry in open {
            let text = entry.get_ref();
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            match network {
                Ok(network) => {
                    if let Err(error) = blocked.open(network) {
                        self.problem(entry.span().start, &error);
                    }
                }
                Err(_) => self.problem(
                    entry.span().start,
                    &format!("`{text}` is neither a network such as `10.0.0.0/8` nor an address"),
                ),
            }
        }
        blocked
    }

    /// Backends are written as in a runtime configuration, and checked by the same rules. One of
    /// type `spin` without a path is the platform's own, as without a word about it.
    fn backends(
        &mut self,
        table: &Arc<str>,
        raw: Option<&Spanned<toml::Table>>,
    ) -> BTreeMap<(ResourceKind, Label), Listed<Backend>> {
        let Some(written) = raw else { return BTreeMap::new() };
        let start = written.span().start;
        for key in written.get_ref().keys() {
            if !matches!(key.as_str(), "key_value_store" | "sqlite_database") {
                let message = format!("unknown backend `{key}`: use `key_value_store` or `sqlite_database`");
                self.problem(start, &message);
                return BTreeMap::new();
            }
        }
        let name = self.directory.join(format!("{} backends", self.file));
        let parsed = match RuntimeConfig::parse(&name, &written.get_ref().to_string()) {
            Ok(checked) => checked.value,
            Err(problems) => {
                for problem in problems.iter() {
                    self.problem(start, &problem.rule);
                }
                return BTreeMap::new();
            }
        };
        let directory = self.directory.clone();
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| Backend::File(directory.join(path)));
        let stores = parsed.key_value_stores.iter().map(|(label, backend)| {
            let backend = match backend {
                KeyValueBackend::Embedded { path } => file(path),
                KeyValueBackend::Redis { .. } => Some(Backend::Unknown("redis")),
                KeyValueBackend::AzureCosmos { .. } => Some(Backend::Unknown("azure_cosmos")),
                KeyValueBackend::AwsDynamo { .. } => Some(Backend::Unknown("aws_dynamo")),
            };
            (ResourceKind::KeyValue, label, backend)
        });
        let databases = parsed.sqlite_databases.iter().map(|(label, backend)| {
            let backend = match backend {
                SqliteBackend::Embedded { path, .. } => file(path),
                SqliteBackend::Libsql { .. } => Some(Backend::Unknown("libsql")),
            };
            (ResourceKind::Sqlite, label, backend)
        });
        let mut backends = BTreeMap::new();
        for (kind, label, backend) in stores.chain(databases) {
            let Some(backend) = backend else { continue };
            let key = match kind {
                ResourceKind::KeyValue => "key_value_store",
                ResourceKind::Sqlite => "sqlite_database",
            };
            match Label::new(label.as_str()) {
                Ok(named) => {
                    let place = self.place_of_table(table, &format!("backends.{key}.{label}"), start);
                    backends.insert((kind, named), Listed { entries: vec![backend], place });
                }
                Err(error) => self.problem(start, &error),
            }
        }
        backends
    }

    /// The place of a table's head, of this team or of the default; another offset's if it is
    /// written in another way.
    fn place_of_table(&self, table: &Arc<str>, rest: &str, offset_bytes: usize) -> Place {
        let found = [&**table, "default"].into_iter().find_map(|table| {
            let name = format!("{table}.{rest}");
            let index = self.text.lines().position(|line| line.trim() == format!("[{name}]"))?;
            Some((name, u32::try_from(index + 1).unwrap_or(u32::MAX)))
        });
        match found {
            Some((name, line)) => Place { file: Arc::clone(&self.file), table: name.into(), line },
            None => self.place(table, rest, offset_bytes),
        }
    }

    fn limits(&mut self, raw: &RawLimits) -> Limits {
        Limits {
            memory_bytes: raw.memory_bytes,
            table_elements: raw.table_elements,
            cpu_time: self.duration(raw.cpu_time.as_ref()),
            request_timeout: self.duration(raw.request_timeout.as_ref()),
            max_concurrent_requests: raw.max_concurrent_requests,
            request_body_bytes: raw.request_body_bytes,
            response_body_bytes: raw.response_body_bytes,
            max_handles: raw.max_handles,
            max_outbound_requests: raw.max_outbound_requests,
            max_outbound_connections: raw.max_outbound_connections,
            log_bytes: raw.log_bytes,
            log_bytes_per_second: raw.log_bytes_per_second,
        }
    }

    fn duration(&mut self, raw: Option<&Spanned<String>>) -> Option<Duration> {
        let raw = raw?;
        let text = raw.get_ref();
        let digits_end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let unit_ms = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let found = number
            .parse::<u64>()
            .ok()
            .zip(unit_ms)
            .and_then(|(number, unit_ms)| number.checked_mul(unit_ms))
            .filter(|duration_ms| *duration_ms > 0)
            .map(Duration::from_millis);
        if found.is_none() {
            let message = format!("`{text}` is no duration: use a number and `ms`, `s`, `m` or `h`");
            self.problem(raw.span().start, &message);
        }
        found
    }

    fn check_count(&mut self, key: &str, count: usize) {
        if count > MAX_ENTRIES_COUNT {
            let file = &self.file;
            self.problems.push(format!("{file}: `{key}` has at most {MAX_ENTRIES_COUNT} entries"));
        }
    }

    fn problem(&mut self, offset_bytes: usize, what: &dyn std::fmt::Display) {
        let line = line_of(self.text, offset_bytes);
        let problem = format!("{}:{line}: {what}", self.file);
        // The default's lists are read again for every team that has none.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn place(&self, table: &Arc<str>, key: &str, offset_bytes: usize) -> Place {
        Place {
            file: Arc::clone(&self.file),
            table: format!("{table}.{key}").into(),
            line: line_of(self.text, offset_bytes),
        }
    }
}

fn quotas(raw: RawQuotas) -> Quotas {
    let usual = Quotas::default();
    Quotas {
        apps: raw.apps.unwrap_or(usual.apps),
        resources: raw.resources.unwrap_or(usual.resources),
        domains: raw.domains.unwrap_or(usual.domains),
        key_value_bytes: raw.key_value_bytes.unwrap_or(usual.key_value_bytes),
        sqlite_bytes: raw.sqlite_bytes.unwrap_or(usual.sqlite_bytes),
        // The one before is always kept: it is what a swap that fails goes back to.
        kept_releases: raw.kept_releases.map_or(usual.kept_releases, NonZeroU64::get),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a failed unwrap is a failed test")]

    use proptest::prelude::*;

    use super::*;

    const POLICY: &str = r#"[default]
outbound = ["https://*.example.com", "https://api.example.org"]
approve = ["outbound"]

[default.limits]
cpu_time = "10s"
memory_bytes = 1000

[default.backends.key_value_store.shared]
type = "spin"
path = "shared.db"

[default.backends.key_value_store.own]
type = "spin"

[default.backends.key_value_store.far]
type = "redis"
url = "redis://localhost:6379"

[team.shop.backends.key_value_store.later]
type = "spin"

[team.shop]
outbound = ["*://*:*"]
open_networks = ["10.1.0.0/16"]
cpu_weight = 400

[team.shop.limits]
memory_bytes = 2000
"#;

    fn team(policy: &Policy, name: &str) -> Arc<TeamPolicy> {
        Arc::clone(policy.of(&TeamName::new(name).unwrap()))
    }

    fn host(text: &str) -> AllowedHost {
        AllowedHost::parse(text).unwrap()
    }

    #[test]
    fn a_team_has_the_default_key_by_key() {
        let policy = Policy::parse(Path::new("/etc/wisp/policy.toml"), POLICY).unwrap();
        let (other, shop) = (team(&policy, "other"), team(&policy, "shop"));
        let place = other.refuses_destination(&host("https://evil.example")).unwrap();
        assert_eq!(place.to_string(), "`[default.outbound]` (policy.toml:2)");
        assert!(other.refuses_destination(&host("https://a.example.com")).is_none());
        assert!(other.refuses_destination(&host("http://self")).is_none());
        assert!(shop.refuses_destination(&host("https://evil.example")).is_none());
        assert!(shop.needs_approval(Capability::Outbound) && !shop.needs_approval(Capability::Sqlite));
        assert_eq!(shop.grants().limits.memory_bytes, Some(2000));
        assert_eq!((shop.grants().cpu_weight, other.grants().cpu_weight), (Some(400), None));
        assert_eq!(shop.grants().limits.cpu_time, Some(Duration::from_secs(10)));
        let (words, place) = shop.backend(ResourceKind::KeyValue, "shared").unwrap();
        assert_eq!(words, "the operator's file `/etc/wisp/shared.db`");
        assert_eq!(place.to_string(), "`[default.backends.key_value_store.shared]` (policy.toml:9)");
        assert_eq!(shop.grants().files[0].quota_bytes, 1 << 30);
        assert!(shop.refuses_label(ResourceKind::KeyValue, "shared").is_none());
        assert!(shop.backend(ResourceKind::KeyValue, "own").is_none(), "the platform's own");
        assert!(shop.backend(ResourceKind::Sqlite, "shared").is_none());
        let (kind, place) = shop.refuses_label(ResourceKind::KeyValue, "far").unwrap();
        assert_eq!((kind, place.line), ("redis", 16));
        let inside = "10.1.2.3".parse().unwrap();
        assert!(other.grants().blocked_networks.blocks(inside));
        assert!(!shop.grants().blocked_networks.blocks(inside));
    }

    #[test]
    fn without_a_file_only_private_networks_are_closed() {
        let policy = team(&Policy::default(), "any");
        assert!(policy.refuses_destination(&host("*://*:*")).is_none());
        assert!(policy.refuses(Capability::AiModels).is_none());
        assert!(policy.grants().blocked_networks.blocks("169.254.169.254".parse().unwrap()));
    }

    #[test]
    fn all_that_is_wrong_is_said_with_its_line() {
        let text = "[default]\noutbound = [\"x\"]\nopen_networks = [\"y\"]\n[default.limits]\ncpu_time = \"1\"\n[team.NO]\n[team.a]\ncpu_weight = 0\n";
        let all = Policy::parse(Path::new("policy.toml"), text).unwrap_err().to_string();
        for expected in [
            "policy.toml:2: ",
            "policy.toml:3: `y`",
            "policy.toml:5: `1` is no duration",
            "`NO`",
            "policy.toml:8: `cpu_weight`",
        ] {
            assert!(all.contains(expected), "{expected} is not in:\n{all}");
        }
        let unknown = Policy::parse(Path::new("policy.toml"), "[default]\n\noutbond = []\n").unwrap_err();
        assert!(unknown.to_string().starts_with("policy.toml:3: unknown field"), "{unknown}");
        assert!(Policy::parse(Path::new("p"), "[default.backends.redis]\n").is_err());
    }

    proptest! {
        #[test]
        fn what_is_allowed_is_covered_by_what_is_granted(
            rules in prop::collection::vec("(https|\\*)://(\\*|\\*\\.a|b\\.a):(\\*|443)", 0..4),
            asked in "(https|http|\\*)://(\\*|\\*\\.a|b\\.a|c\\.b\\.a):(\\*|443|80)",
            names in prop::collection::vec("(c\\.b\\.a|b\\.a|a|x)", 1..4),
        ) {
            let list = rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>().join(",");
            let policy =
                Policy::parse(Path::new("policy.toml"), &format!("[default]\noutbound = [{list}]")).unwrap();
            let team = team(&policy, "any");
            let asked = host(&asked);
            if team.refuses_destination(&asked).is_none() {
                for name in names {
                    let is_reached = asked.allows("https", &name, 443);
                    let is_granted =
                        team.grants().outbound.iter().any(|rule| host(rule).allows("https", &name, 443));
                    prop_assert!(!is_reached || is_granted);
                }
            }
        }

        #[test]
        fn never_panics(text in "(\\[(default|team\\.a)(\\.limits)?\\]\n)?([a-z_]{1,9} = (1|\"x\"|\\[\"[*:/a]{0,6}\"\\])\n){0,4}") {
            drop(Policy::parse(Path::new("policy.toml"), &text));
        }
    }
}

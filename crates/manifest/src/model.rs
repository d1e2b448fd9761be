//! The checked app: what a manifest means, free of how it was written.
//!
//! Everything here has been checked: ids exist, templates parse, routes are
//! routes. A reader of these types never has to ask whether a trigger's
//! component is there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indexmap::{IndexMap, IndexSet};

use crate::allowed_hosts::AllowedHost;
use crate::id::{ComponentId, Label, TriggerId, VariableName};
use crate::route::RoutePattern;
use crate::template::Template;

/// A table of which the manifest does not know the meaning, as it was written.
pub type FreeTable = serde_json::Map<String, serde_json::Value>;

/// What a manifest describes: components, triggers, variables.
#[derive(Clone, Debug)]
pub struct App {
    /// The app's name: free text.
    pub name: Arc<str>,
    /// The app's version, if it gives one: free text.
    pub version: Option<String>,
    /// What the app is for, in one line.
    pub description: Option<String>,
    /// Who wrote it.
    pub authors: Vec<String>,
    /// The host environments that its components are checked against when
    /// they are built.
    pub targets: Vec<Target>,
    /// The variables that an operator may set.
    pub variables: IndexMap<VariableName, Variable>,
    /// What starts components, in the order of the manifest.
    pub triggers: Vec<Trigger>,
    /// `[application.trigger.TYPE]`: settings that all triggers of a type
    /// share, for those types that this crate does not know.
    pub trigger_settings: IndexMap<String, FreeTable>,
    /// The components, in the order of the manifest; those that a trigger
    /// defines in place follow.
    pub components: IndexMap<ComponentId, Component>,
    /// Settings of Wisp for the whole app: `[application.tool.wisp]`.
    pub wisp: WispAppSettings,
    /// Tables of other tools, as they were written: `[application.tool.NAME]`.
    pub tools: IndexMap<String, FreeTable>,
    /// Where the manifest lies; relative paths in it start here.
    pub directory: PathBuf,
    /// The manifest itself, as it was named; empty for an app that was read from none.
    pub file: PathBuf,
    /// The profile that the components were read with.
    pub profile: Option<String>,
}

/// A variable of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its value when nobody sets one. Exactly one of this and
    /// [`required`](Self::required) is given.
    pub default: Option<String>,
    /// Whether the app cannot run before somebody sets it.
    pub required: bool,
    /// Whether its value must be kept out of messages and logs.
    pub secret: bool,
    /// What it is for.
    pub description: Option<String>,
}

/// Something that starts a component.
#[derive(Clone, Debug)]
pub struct Trigger {
    /// Its name, given or made from its component and type.
    pub id: TriggerId,
    /// What kind of event it waits for.
    pub kind: TriggerKind,
}

/// The kinds of events that start a component.
#[derive(Clone, Debug)]
pub enum TriggerKind {
    /// An HTTP request.
    Http(HttpTrigger),
    /// A message in a Redis channel.
    Redis(RedisTrigger),
    /// A kind that belongs to somebody else: its settings are not checked.
    Other(OtherTrigger),
}

/// Starts a component, or answers by itself, when an HTTP request comes in.
#[derive(Clone, Debug)]
pub struct HttpTrigger {
    /// Which requests it takes.
    pub route: HttpRoute,
    /// What answers them.
    pub target: HttpTarget,
    /// Components around the target that see each request first, outermost
    /// first. They are composed with it before it is compiled.
    pub middleware: Vec<MiddlewareSource>,
}

/// Which requests an HTTP trigger takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpRoute {
    /// Those whose path matches.
    Pattern(RoutePattern),
    /// None from outside, only those of other components of the same app.
    Private,
}

/// What answers the requests of an HTTP trigger.
#[derive(Clone, Debug)]
pub enum HttpTarget {
    /// A component.
    Component {
        /// Which one.
        component: ComponentId,
        /// How it is called.
        executor: Executor,
    },
    /// The same response each time; no component runs.
    Static(StaticResponse),
}

/// How the component of an HTTP trigger is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Executor {
    /// By whichever HTTP handler it exports.
    #[default]
    Http,
    /// As a command: request in environment and standard input, response on
    /// standard output.
    Wagi(WagiSettings),
}

/// Settings of [`Executor::Wagi`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WagiSettings {
    /// The command line, with `${SCRIPT_NAME}` and `${ARGS}` to be replaced.
    pub argv: String,
    /// The function that is called. Only `_start` works with every guest, and
    /// everything else is deprecated.
    pub entrypoint: String,
}

/// A response that is written in the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticResponse {
    /// The status, 100 to 999; 200 if none is given.
    pub status_code: u16,
    /// The headers, in the order of the manifest. Names and values have been
    /// checked to be HTTP's.
    pub headers: Vec<(String, String)>,
    /// The body, if any.
    pub body: Option<String>,
}

/// Starts a component when a message comes in through Redis.
#[derive(Clone, Debug)]
pub struct RedisTrigger {
    /// The component that handles the messages.
    pub component: ComponentId,
    /// The channel.
    pub channel: Template,
    /// The server: the trigger's own, or that of `[application.trigger.redis]`.
    pub address: Template,
}

/// A trigger of a type that this crate does not know.
#[derive(Clone, Debug)]
pub struct OtherTrigger {
    /// Its type: `[[trigger.TYPE]]`.
    pub trigger_type: String,
    /// Its component, if it has one.
    pub component: Option<ComponentId>,
    /// Its components by role: `components = { role = "id" }`.
    pub components: IndexMap<String, Vec<ComponentId>>,
    /// Its other settings, as they were written.
    pub table: FreeTable,
}

/// A component of the app.
#[derive(Clone, Debug)]
pub struct Component {
    /// Its name.
    pub id: ComponentId,
    /// Where its code comes from.
    pub source: Source,
    /// What it is for.
    pub description: Option<String>,
    /// The values that it reads through the variables interface.
    pub variables: IndexMap<VariableName, Template>,
    /// Its environment variables.
    pub environment: IndexMap<String, String>,
    /// The files that it sees.
    pub files: Vec<FileMount>,
    /// Patterns of files that it does not see although [`files`](Self::files)
    /// names them; relative to the manifest.
    pub exclude_files: Vec<String>,
    /// The network destinations it may reach. Those without variables have
    /// been checked; the others are when they are filled in, see
    /// [`AllowedHosts::resolve`](crate::allowed_hosts::AllowedHosts::resolve).
    pub allowed_outbound_hosts: Vec<Template>,
    /// Labels of the key-value stores it may open.
    pub key_value_stores: Vec<Label>,
    /// Labels of the SQLite databases it may open.
    pub sqlite_databases: Vec<Label>,
    /// Names of the models it may use.
    pub ai_models: Vec<String>,
    /// The host environments that it is checked against, if they are not the
    /// app's.
    pub targets: Option<Vec<Target>>,
    /// How it is built.
    pub build: Option<Build>,
    /// Which of its imports other components provide.
    pub dependencies: IndexMap<DependencyName, Dependency>,
    /// Whether all its dependencies may reach what it may reach, when they do
    /// not say so themselves.
    pub dependencies_inherit_configuration: bool,
    /// Settings of Wisp: `[component.ID.tool.wisp]`.
    pub wisp: WispComponentSettings,
    /// Tables of other tools, as they were written: `[component.ID.tool.NAME]`.
    pub tools: IndexMap<String, FreeTable>,
}

/// Where a component's code comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, relative to the manifest unless absolute.
    Path(PathBuf),
    /// A download.
    Url {
        /// From where.
        url: url::Url,
        /// What it must hash to.
        digest: Sha256Digest,
    },
    /// A package of a component registry.
    Registry(RegistryPackage),
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256Digest(pub [u8; 32]);

/// An exact version of a package in a component registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPackage {
    /// The registry's host name, if it is not the one configured for the
    /// package's namespace.
    pub registry: Option<String>,
    /// The package: `namespace:name`.
    pub package: PackageName,
    /// The version.
    pub version: semver::Version,
}

/// A package's name, `namespace:name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackageName {
    /// Who publishes it.
    pub namespace: String,
    /// What it is called there.
    pub name: String,
}

/// Files that a component sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileMount {
    /// All files that match, each where it lies relative to the manifest.
    Pattern(String),
    /// A file or directory, somewhere else.
    Placement {
        /// The file or directory, relative to the manifest unless absolute.
        source: PathBuf,
        /// Where the component sees it: an absolute path without `..`.
        destination: String,
    },
}

/// A host environment that components can be checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One of the catalogue: `name:version`.
    Named(String),
    /// A definition at a URL.
    Url(url::Url),
    /// A definition in a file, relative to the manifest unless absolute.
    Path(PathBuf),
}

/// How a component is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// The commands, run one after the other. At least one.
    pub commands: Vec<String>,
    /// Where they run, relative to the manifest.
    pub workdir: Option<PathBuf>,
    /// Patterns of files whose change calls for another build, relative to
    /// [`workdir`](Self::workdir).
    pub watch: Vec<String>,
}

/// The import that a dependency satisfies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DependencyName {
    /// An import without a package: `name`.
    Plain(String),
    /// All imports of a package, or one interface of it:
    /// `namespace:name[/interface][@version]`.
    Package {
        /// The package.
        package: PackageName,
        /// The interface, if only one is meant.
        interface: Option<String>,
        /// The version, if only imports that are compatible with it are meant.
        version: Option<semver::Version>,
    },
}

/// What satisfies an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Where the component that satisfies it comes from.
    pub source: DependencySource,
    /// The export of that component that is used, if it is not named as the
    /// import is.
    pub export: Option<String>,
    /// What of the depending component's permissions it has, if it says so
    /// itself.
    pub inherit: Option<InheritConfiguration>,
}

/// Where a dependency comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DependencySource {
    /// A package of a component registry.
    Registry {
        /// The registry's host name, if it is not the one configured.
        registry: Option<String>,
        /// The package; the one of the dependency's name unless given.
        package: PackageName,
        /// Which versions will do.
        version: semver::VersionReq,
    },
    /// A file, relative to the manifest unless absolute.
    Path(PathBuf),
    /// A download.
    Url {
        /// From where.
        url: url::Url,
        /// What it must hash to.
        digest: Sha256Digest,
    },
    /// Another component of the same app.
    Component(ComponentId),
}

/// What a dependency may reach of that which the component may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InheritConfiguration {
    /// Everything.
    All,
    /// Nothing.
    None,
    /// These.
    Some(Vec<Inheritable>),
}

/// A permission that a dependency may have from the component it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Inheritable {
    /// `ai_models`
    AiModels,
    /// `allowed_outbound_hosts`
    AllowedOutboundHosts,
    /// `environment`
    Environment,
    /// `files`
    Files,
    /// `key_value_stores`
    KeyValueStores,
    /// `sqlite_databases`
    SqliteDatabases,
    /// `variables`
    Variables,
}

/// A component that stands between a trigger and its component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MiddlewareSource {
    /// Where it comes from.
    pub source: DependencySource,
    /// What of the triggered component's permissions it has.
    pub inherit: Option<InheritConfiguration>,
}

/// What an author asks of Wisp for the whole app: `[application.tool.wisp]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WispAppSettings {
    /// Limits of every component that does not set its own.
    pub limits: Limits,
    /// The path of a request that shows whether a new version works.
    pub probe: Option<String>,
    /// The folder with SQL statements that a release brings, relative to the manifest.
    pub migrations: Option<PathBuf>,
}

/// What an author asks of Wisp for a component: `[component.ID.tool.wisp]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WispComponentSettings {
    /// Whether an instance may serve more than one request. Without it, no
    /// request ever sees what another left in memory.
    pub reuse: Option<Reuse>,
    /// Whether requests come without the `spin-*` headers, which guests of Spin expect.
    pub omits_spin_headers: bool,
    /// Limits, with those of the app filled in where it sets none.
    pub limits: Limits,
}

/// How an instance serves more than one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// After how many requests an instance is dropped.
    pub max_requests: u32,
    /// After how much time without a request an instance is dropped.
    pub idle_timeout: Duration,
}

/// The largest weight of an app where apps compete for the CPU: a hundred times the usual
/// one, 100.
pub const MAX_CPU_WEIGHT: u32 = 10_000;

/// Limits of a component. What is `None` is the operator's choice; what is
/// given can only tighten it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The largest memory of one instance, the sum of all of its memories.
    pub memory_bytes: Option<u64>,
    /// The most elements of one instance's tables together.
    pub table_elements: Option<u32>,
    /// The most CPU time of one request.
    pub cpu_time: Option<Duration>,
    /// The longest time from a request's start to its response's end.
    pub request_timeout: Option<Duration>,
    /// How many requests it handles at once; more wait.
    pub max_concurrent_requests: Option<u32>,
    /// The largest body of a request.
    pub request_body_bytes: Option<u64>,
    /// The largest body of a response.
    pub response_body_bytes: Option<u64>,
    /// How many handles an instance may have open.
    pub max_handles: Option<u32>,
    /// How many HTTP requests one request may send.
    pub max_outbound_requests: Option<u32>,
    /// How many of them may be under way at once.
    pub max_outbound_connections: Option<u32>,
    /// How much one request may write to the log.
    pub log_bytes: Option<u64>,
    /// How much the component may write to each of its logs in a second, in the long run.
    pub log_bytes_per_second: Option<u64>,
}

impl Inheritable {
    /// How a manifest names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AiModels => "ai_models",
            Self::AllowedOutboundHosts => "allowed_outbound_hosts",
            Self::Environment => "environment",
            Self::Files => "files",
            Self::KeyValueStores => "key_value_stores",
            Self::SqliteDatabases => "sqlite_databases",
            Self::Variables => "variables",
        }
    }
}

impl Reuse {
    /// [`max_requests`](Self::max_requests) when none is given: large enough
    /// that the cost of a fresh instance no longer shows, small enough that a
    /// leak does not.
    pub const DEFAULT_MAX_REQUESTS: u32 = 128;

    /// [`idle_timeout`](Self::idle_timeout) when none is given: bridges the
    /// gaps in steady traffic and gives memory back right after it.
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(1);
}

impl Default for Reuse {
    fn default() -> Self {
        Self { max_requests: Self::DEFAULT_MAX_REQUESTS, idle_timeout: Self::DEFAULT_IDLE_TIMEOUT }
    }
}

impl Limits {
    /// What holds where nobody says otherwise; `docs/limits.md` gives the reasons.
    /// Bodies of requests have the server's limit, concurrent requests the node's.
    pub const DEFAULT: Self = Self {
        memory_bytes: Some(1 << 32),
        table_elements: Some(1_000_000),
        cpu_time: Some(Duration::from_secs(60)),
        request_timeout: Some(Duration::from_secs(60 * 60)),
        max_concurrent_requests: None,
        request_body_bytes: None,
        response_body_bytes: Some(10 << 30),
        max_handles: Some(10_000),
        max_outbound_requests: Some(1_000),
        max_outbound_connections: Some(100),
        log_bytes: Some(16 << 20),
        log_bytes_per_second: Some(4 << 20),
    };

    /// These limits, with `defaults` where there are none.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        self.combine(defaults, Choice { of_u64: Option::or, of_u32: Option::or, of_time: Option::or })
    }

    /// These limits, tightened to `ceilings`.
    #[must_use]
    pub fn within(self, ceilings: Self) -> Self {
        self.combine(ceilings, Choice { of_u64: least, of_u32: least, of_time: least })
    }

    fn combine(self, other: Self, choice: Choice) -> Self {
        let Choice { of_u64, of_u32, of_time } = choice;
        Self {
            memory_bytes: of_u64(self.memory_bytes, other.memory_bytes),
            table_elements: of_u32(self.table_elements, other.table_elements),
            cpu_time: of_time(self.cpu_time, other.cpu_time),
            request_timeout: of_time(self.request_timeout, other.request_timeout),
            max_concurrent_requests: of_u32(self.max_concurrent_requests, other.max_concurrent_requests),
            request_body_bytes: of_u64(self.request_body_bytes, other.request_body_bytes),
            response_body_bytes: of_u64(self.response_body_bytes, other.response_body_bytes),
            max_handles: of_u32(self.max_handles, other.max_handles),
            max_outbound_requests: of_u32(self.max_outbound_requests, other.max_outbound_requests),
            max_outbound_connections: of_u32(self.max_outbound_connections, other.max_outbound_connections),
            log_bytes: of_u64(self.log_bytes, other.log_bytes),
            log_bytes_per_second: of_u64(self.log_bytes_per_second, other.log_bytes_per_second),
        }
    }
}

/// How one of two limits is chosen, for each type that limits have.
struct Choice {
    of_u64: fn(Option<u64>, Option<u64>) -> Option<u64>,
    of_u32: fn(Option<u32>, Option<u32>) -> Option<u32>,
    of_time: fn(Option<Duration>, Option<Duration>) -> Option<Duration>,
}

/// The smaller of two bounds, where either may be missing.
fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Default for WagiSettings {
    fn default() -> Self {
        Self { argv: "${SCRIPT_NAME} ${ARGS}".to_owned(), entrypoint: "_start".to_owned() }
    }
}

impl App {
    /// The HTTP triggers in the order of the manifest.
    pub fn http_triggers(&self) -> impl Iterator<Item = (&TriggerId, &HttpTrigger)> {
        self.triggers.iter().filter_map(|trigger| match &trigger.kind {
            TriggerKind::Http(http) => Some((&trigger.id, http)),
            _ => None,
        })
    }

    /// The types of triggers that the app has, in the order of the manifest.
    pub fn trigger_types(&self) -> IndexSet<&str> {
        self.triggers.iter().map(|trigger| trigger.kind.type_name()).collect()
    }

    /// The files with code that the manifest names: sources, dependencies, middleware;
    /// relative to [`directory`](Self::directory).
    pub fn code_files(&self) -> impl Iterator<Item = &Path> {
        let sources = self.components.values().filter_map(|component| match &component.source {
            Source::Path(path) => Some(path.as_path()),
            Source::Url { .. } | Source::Registry(_) => None,
        });
        let dependencies = self.components.values().flat_map(|component| component.dependencies.values());
        let middleware = self.http_triggers().flat_map(|(_, http)| &http.middleware);
        let others = dependencies
            .map(|dependency| &dependency.source)
            .chain(middleware.map(|middleware| &middleware.source))
            .filter_map(|source| match source {
                DependencySource::Path(path) => Some(path.as_path()),
                _ => None,
            });
        sources.chain(others)
    }

    /// The components that have to be loaded when triggers of this type run,
    /// in the order of the manifest: those that one of them starts. Those that
    /// are only reached by chaining have a trigger with a private route.
    ///
    /// A component that is only the middleware or dependency of another is
    /// not among them: it becomes part of the other before that is loaded.
    pub fn components_for(&self, trigger_type: &str) -> Vec<&Component> {
        let needed: IndexSet<&ComponentId> = self
            .triggers
            .iter()
            .filter(|trigger| trigger.kind.type_name() == trigger_type)
            .flat_map(|trigger| trigger.kind.components())
            .collect();
        self.components.values().filter(|component| needed.contains(&component.id)).collect()
    }
}

impl Component {
    /// Whether it may call other components of its app.
    pub fn calls_others(&self) -> bool {
        self.allowed_outbound_hosts.iter().any(|host| {
            let host = host.as_literal().and_then(|host| AllowedHost::parse(host).ok());
            host.is_some_and(|host| host.chained().is_some())
        })
    }
}

impl TriggerKind {
    /// The type as the manifest writes it: `[[trigger.TYPE]]`.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Http(_) => "http",
            Self::Redis(_) => "redis",
            Self::Other(other) => &other.trigger_type,
        }
    }

    /// The components that it starts.
    pub fn components(&self) -> Vec<&ComponentId> {
        match self {
            Self::Http(HttpTrigger { target: HttpTarget::Component { component, .. }, .. }) => {
                vec![component]
            }
            Self::Http(HttpTrigger { target: HttpTarget::Static(_), .. }) => Vec::new(),
            Self::Redis(redis) => vec![&redis.component],
            Self::Other(other) => other.component.iter().chain(other.components.values().flatten()).collect(),
        }
    }
}

impl Sha256Digest {
    /// Reads `sha256:` and 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(Self(digest))
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.namespace, self.name)
    }
}

impl fmt::Display for DependencyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(name) => formatter.write_str(name),
            Self::Package { package, interface, version } => {
                write!(formatter, "{package}")?;
                if let Some(interface) = interface {
                    write!(formatter, "/{interface}")?;
                }
                match version {
                    Some(version) => write!(formatter, "@{version}"),
                    None => Ok(()),
                }
            }
        }
    }
}

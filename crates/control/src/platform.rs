//! What the control plane needs of the machine that runs apps.
//!
//! The control plane decides *what* shall run; a [`Platform`] makes it so. It is an
//! interface because the control plane knows nothing of WebAssembly, and because the same
//! control plane will drive nodes in other processes.
//!
//! Every method is idempotent: after `kill -9` the control plane begins the step again of
//! which it does not know whether it was finished.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use wisp_manifest::{allowed_hosts::BlockedNetworks, model::Limits};
use zeroize::Zeroizing;

use crate::{
    description::ImageDescription,
    error::Error,
    model::{CertificateStatus, GarbageItem},
    names::{
        AppId, AppName, ChangeNumber, ConfigurationId, Digest, Host, Label, ReleaseNumber, ResourceId,
        TeamId, TeamName,
    },
    seal::Key,
};

/// Largest key of a key-value store that people may use through the API, in bytes. Longer ones
/// do not fit into an address.
pub const MAX_KEY_BYTES: usize = 1024;

/// What a step made of a machine came to.
pub type PlatformResult<T> = Result<T, PlatformError>;

/// Bytes that come one after the other.
pub type ByteStream = BoxStream<'static, Result<Bytes, PlatformError>>;

/// Log records that come one after the other.
pub type LogStream = BoxStream<'static, Result<LogRecord, PlatformError>>;

/// The machine that runs apps.
pub trait Platform: Send + Sync + 'static {
    /// What the image is and asks for. The digest has been pushed to `TEAM/APP`; what another
    /// repository holds does not exist here ([`PlatformError::not_found`]).
    fn describe_image<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, PlatformResult<ImageDescription>>;

    /// Makes everything of the image that can be made ahead of time: unpacks it, compiles and
    /// signs. What was done before takes no time.
    fn compile<'a>(&'a self, deployment: &'a Deployment) -> BoxFuture<'a, PlatformResult<()>>;

    /// Makes a resource if it is not there yet, and sets its quota.
    fn provision<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<()>>;

    /// Runs the SQL migrations of the release that were not run yet. Returns how many were.
    fn migrate<'a>(&'a self, deployment: &'a Deployment) -> BoxFuture<'a, PlatformResult<u64>>;

    /// The health gate: loads the release beside the one that serves and asks it for an
    /// answer, if it names a probe. Nobody's request reaches it yet.
    fn check<'a>(&'a self, deployment: &'a Deployment) -> BoxFuture<'a, PlatformResult<()>>;

    /// Makes a change of the stream true: the next request of the app meets it. Numbers only
    /// go up; a number that was seen, or an older one of the same app, is passed over.
    fn apply<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, PlatformResult<()>>;

    /// Waits until no request is on an older release of the app than this one, or for as long
    /// as `at_most`. Returns how many still are.
    fn drain<'a>(
        &'a self,
        app: &'a AppKey,
        release: ReleaseNumber,
        at_most: Duration,
    ) -> BoxFuture<'a, PlatformResult<u64>>;

    /// Removes a resource and all its data.
    fn destroy<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<()>>;

    /// Forgets what was kept of an app that is gone: logs, unpacked releases.
    fn forget<'a>(&'a self, app: &'a AppKey) -> BoxFuture<'a, PlatformResult<()>>;

    /// Forgets what was kept of a team that is gone, so that another one of its name has
    /// nothing of it: images.
    fn forget_team<'a>(&'a self, team: &'a TeamName) -> BoxFuture<'a, PlatformResult<()>>;

    /// What nobody needs any more: images that are not kept, and all that was made of them.
    /// Removes it, unless that is only asked for. What is being pushed or deployed meanwhile
    /// stays.
    fn collect_garbage<'a>(
        &'a self,
        kept: &'a Kept,
        is_only_asked: bool,
    ) -> BoxFuture<'a, PlatformResult<Vec<GarbageItem>>>;

    /// How many bytes a resource holds.
    fn usage<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<u64>>;

    /// The value of a key.
    fn key_value_get<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
    ) -> BoxFuture<'a, PlatformResult<Option<Bytes>>>;

    /// Sets a key.
    fn key_value_set<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
        value: Bytes,
    ) -> BoxFuture<'a, PlatformResult<()>>;

    /// Removes a key, if it is there.
    fn key_value_delete<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
    ) -> BoxFuture<'a, PlatformResult<()>>;

    /// At most `limit` keys that begin with `prefix` and come after `after`, in order.
    fn key_value_list<'a>(
        &'a self,
        resource: &'a Resource,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, PlatformResult<Vec<String>>>;

    /// Runs one SQL statement.
    fn sql<'a>(
        &'a self,
        resource: &'a Resource,
        statement: &'a SqlStatement,
    ) -> BoxFuture<'a, PlatformResult<SqlAnswer>>;

    /// All data of a resource, in a form that [`import`](Self::import) takes on any machine.
    fn export<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<ByteStream>>;

    /// Replaces all data of a resource, all of it or nothing.
    fn import<'a>(&'a self, resource: &'a Resource, data: ByteStream) -> BoxFuture<'a, PlatformResult<()>>;

    /// An app's log, oldest first; with `follow` it does not end.
    fn logs<'a>(&'a self, app: &'a AppKey, query: &'a LogQuery) -> BoxFuture<'a, PlatformResult<LogStream>>;

    /// Whether DNS says that the domain belongs to the app: it leads (CNAME) to one of the
    /// names, or its TXT record holds the value.
    fn proves_domain<'a>(&'a self, proof: &'a DomainProof) -> BoxFuture<'a, PlatformResult<bool>>;

    /// How a host stands with its certificate; nothing where there is no `https`.
    fn certificate<'a>(&'a self, host: &'a Host) -> BoxFuture<'a, PlatformResult<Option<CertificateStatus>>>;

    /// How the app is, for people: a word such as `serving`, and what is wrong if anything.
    fn health<'a>(&'a self, app: &'a AppKey) -> BoxFuture<'a, PlatformResult<AppHealth>>;

    /// What apps used since the machine started, and what each holds now. An app that never
    /// ran used nothing.
    fn measure<'a>(&'a self, apps: &'a [AppKey]) -> BoxFuture<'a, PlatformResult<Vec<AppUsage>>>;

    /// What keeps the machine from being well; empty if it is.
    fn ailments(&self) -> BoxFuture<'_, Vec<String>>;
}

/// Why the machine could not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PlatformError {
    /// What kind of answer this deserves.
    pub kind: PlatformErrorKind,
    /// The stable code of whoever noticed: `WISP-E0…`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What kind of answer a [`PlatformError`] deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformErrorKind {
    /// It is not there.
    NotFound,
    /// What was asked for is wrong, and will be the next time.
    Refused,
    /// A quota is used up.
    Quota,
    /// Something failed that may work the next time.
    Failed,
}

/// Where an app's images are pushed: `TEAM/APP`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    /// The team.
    pub team: TeamName,
    /// The app.
    pub app: AppName,
}

/// An app.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppKey {
    /// Its id, never given again.
    pub id: AppId,
    /// Its name.
    pub name: AppName,
    /// The id of its team.
    pub team_id: TeamId,
    /// The name of its team.
    pub team: TeamName,
}

/// A release with everything that it needs to run.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// The app.
    pub app: AppKey,
    /// The release's number.
    pub release: ReleaseNumber,
    /// The image.
    pub image: Digest,
    /// Which configuration it has; another id is another set of values.
    pub configuration: ConfigurationId,
    /// The values of the app's variables that somebody set.
    pub variables: BTreeMap<String, VariableValue>,
    /// The resources behind its labels.
    pub links: Vec<LinkedResource>,
    /// Where it answers: its own host first, then verified domains.
    pub hosts: Vec<Host>,
    /// What the operator grants.
    pub grants: Arc<Grants>,
}

/// A variable's value. A secret is sealed, and opened by whoever needs it for as long as they
/// do: there are many apps, and few of them are loaded.
#[derive(Clone)]
pub struct VariableValue {
    held: Held,
    /// Whether it must be kept out of messages and logs.
    pub is_secret: bool,
}

#[derive(Clone)]
enum Held {
    Plain(Arc<str>),
    Sealed { key: Arc<Key>, belongs_to: Box<str>, sealed: Arc<[u8]> },
}

/// A resource under a label of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedResource {
    /// The label that the manifest gives to it.
    pub label: Label,
    /// The resource.
    pub resource: Resource,
}

/// Something with data that the platform keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its id.
    pub id: ResourceId,
    /// What it is.
    pub kind: ResourceKind,
    /// The team it belongs to.
    pub team_id: TeamId,
    /// Its team's name.
    pub team: TeamName,
    /// Its name in the team.
    pub name: Label,
    /// How many bytes it may hold.
    pub quota_bytes: u64,
}

/// What a resource is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceKind {
    /// A key-value store.
    KeyValue,
    /// An SQLite database.
    Sqlite,
}

/// What the operator's policy grants to an app.
#[derive(Clone, Debug)]
pub struct Grants {
    /// Patterns of destinations, as in a manifest's `allowed_outbound_hosts`. What the manifest
    /// asks for was checked against them; variables may still lead elsewhere, so the machine
    /// checks again.
    pub outbound: Vec<String>,
    /// Addresses that it may not reach, also when a name leads there later: private networks
    /// and metadata services, unless the policy opens them.
    pub blocked_networks: BlockedNetworks,
    /// Ceilings of its components' limits.
    pub limits: Limits,
    /// Its part of the CPU where apps compete, relative to others'. `None` is the usual one.
    pub cpu_weight: Option<u32>,
    /// Labels behind which the operator has put a file of this machine, in the place of a
    /// resource of the team.
    pub files: Vec<GrantedFile>,
}

/// A store or database of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedFile {
    /// What it is.
    pub kind: ResourceKind,
    /// The label that manifests give to it.
    pub label: Label,
    /// The file. Whoever is granted it shares it with all others who are.
    pub path: PathBuf,
    /// How many bytes it may hold.
    pub quota_bytes: u64,
}

/// What is needed.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Images that releases are made of.
    pub images: HashSet<(Repository, Digest)>,
    /// All teams.
    pub teams: HashSet<TeamName>,
}

/// One step in the stream that tells nodes what to run.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its place in the stream.
    pub number: ChangeNumber,
    /// What changes.
    pub kind: ChangeKind,
}

/// What changes.
#[derive(Clone, Debug)]
pub enum ChangeKind {
    /// This is the app's release now, with these hosts, links and grants. Hosts that the app
    /// had before and that are not named lead to it no more.
    Put(Box<Deployment>),
    /// The app serves no more.
    Remove(AppKey),
}

/// What to show of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only what happened at this time or later, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Only what happened before, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// Only lines with this text in them.
    pub contains: Option<String>,
    /// Only what belongs to this request.
    pub request: Option<String>,
    /// Only the last so many records of what there is.
    pub last: Option<usize>,
    /// Go on with what happens from now on.
    pub follow: bool,
}

/// A line of an app's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogRecord {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Where it comes from: `stdout`, `stderr`, `request`, `platform`.
    pub stream: String,
    /// The component, if one wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// The request it belongs to, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The trace that the request is part of, in hexadecimal, if it is part of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// What was written.
    pub text: String,
    /// Figures of a request: `method`, `path`, `status`, `outcome`, `client`, times such as
    /// `duration_us`, `cpu_us`, `instantiate_us`, `wait_us` and `queue_us`,
    /// `peak_memory_bytes`, `request_bytes` and `response_bytes`.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

/// One SQL statement.
#[derive(Clone, Debug, PartialEq)]
pub struct SqlStatement {
    /// Its text.
    pub text: String,
    /// Values of its parameters: null, booleans, numbers and texts.
    pub parameters: Vec<serde_json::Value>,
    /// Whether it may change anything.
    pub may_write: bool,
    /// How many rows may come back at most.
    pub max_rows: usize,
}

/// What an SQL statement gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SqlAnswer {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows. Blobs are texts in base64.
    #[schema(value_type = Vec<Vec<Object>>)]
    pub rows: Vec<Vec<serde_json::Value>>,
    /// How many rows were changed.
    pub changed_rows: u64,
    /// Whether there were more rows than were asked for.
    pub is_truncated: bool,
}

/// How somebody shows that a domain is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainProof {
    /// The domain.
    pub host: Host,
    /// Names that its CNAME may lead to.
    pub targets: Vec<Host>,
    /// Where a TXT record is looked for: `_wisp.DOMAIN`.
    pub txt_name: String,
    /// What it has to say.
    pub txt_value: String,
}

/// How an app is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppHealth {
    /// One word: `serving`, `loading`, `failing`, `stopped`.
    pub state: String,
    /// What is wrong, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What an app used since the machine started, and what it holds now. Who looks twice sees
/// how fast it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppUsage {
    /// The app: `TEAM/APP`.
    pub app: String,
    /// When this was so, in milliseconds since 1970.
    pub at_ms: u64,
    /// One word: `registered`, `ready`, `mapped`, `warm`, `unhealthy`, `stopped`.
    pub state: String,
    /// Requests that its guests got, and those that were refused.
    pub requests_count: u64,
    /// Requests that were answered with a status of 500 or above.
    pub failed_count: u64,
    /// Requests that found no place.
    pub refused_count: u64,
    /// Requests whose clients went away first.
    pub cancelled_count: u64,
    /// CPU time of its guests, in nanoseconds.
    pub cpu_ns: u64,
    /// Time to make instances, in nanoseconds.
    pub instantiate_ns: u64,
    /// Time that guests waited for host calls or their clients, in nanoseconds.
    pub wait_ns: u64,
    /// Time that guests could have run while others had their turn, in nanoseconds.
    pub queue_ns: u64,
    /// Bytes of request bodies that guests took.
    pub request_bytes: u64,
    /// Bytes of response bodies that clients took.
    pub response_bytes: u64,
    /// The most linear memory that an instance had.
    pub peak_memory_bytes: u64,
    /// Memory of its instances now, beyond the first 16 MiB of each.
    pub reserved_memory_bytes: u64,
    /// Requests that run now, each in an instance of its own.
    pub running_count: u64,
    /// Requests that wait for a place now.
    pub waiting_count: u64,
    /// Requests by duration, the shortest first.
    pub durations: Vec<DurationBucket>,
}

/// Requests that took about as long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DurationBucket {
    /// None took longer, in microseconds; missing for those that took longer than all
    /// bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to_us: Option<u64>,
    /// How many took no longer than that, and longer than the bound before.
    pub count: u64,
}

/// Everything that shall run, for a node that begins.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last change that it contains.
    pub last: ChangeNumber,
    /// The apps that have a release.
    pub deployments: Vec<Deployment>,
}

impl PlatformError {
    /// It is not there.
    pub fn not_found(code: &str, message: impl Into<String>) -> Self {
        Self::new(PlatformErrorKind::NotFound, code, message)
    }

    /// What was asked for is wrong.
    pub fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::new(PlatformErrorKind::Refused, code, message)
    }

    /// Something failed.
    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::new(PlatformErrorKind::Failed, code, message)
    }

    /// With what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn new(kind: PlatformErrorKind, code: &str, message: impl Into<String>) -> Self {
        Self { kind, code: code.to_owned(), message: message.into(), hint: None }
    }
}

impl ResourceKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::KeyValue, Self::Sqlite];

    /// As it is written in addresses and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyValue => "key-value",
            Self::Sqlite => "sqlite",
        }
    }

    /// As people say it.
    pub fn noun(self) -> &'static str {
        match self {
            Self::KeyValue => "key-value store",
            Self::Sqlite => "sqlite database",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl VariableValue {
    /// A value that was never sealed.
    pub(crate) fn plain(value: &str, is_secret: bool) -> Self {
        Self { held: Held::Plain(value.into()), is_secret }
    }

    /// A secret as it is kept.
    pub(crate) fn sealed(key: Arc<Key>, belongs_to: String, sealed: Vec<u8>) -> Self {
        let held = Held::Sealed { key, belongs_to: belongs_to.into(), sealed: sealed.into() };
        Self { held, is_secret: true }
    }

    /// The value. What comes back is overwritten when it is dropped.
    ///
    /// # Errors
    /// [`Error::Sealed`] if it was altered.
    pub fn open(&self) -> Result<Zeroizing<String>, Error> {
        match &self.held {
            Held::Plain(value) => Ok(Zeroizing::new(value.to_string())),
            Held::Sealed { key, belongs_to, sealed } => {
                let bytes = key.open(belongs_to, sealed)?;
                let text = std::str::from_utf8(&bytes);
                let text = text.map_err(|_| Error::State("a variable is not UTF-8".to_owned()))?;
                Ok(Zeroizing::new(text.to_owned()))
            }
        }
    }
}

/// Secrets stay out of messages.
impl fmt::Debug for VariableValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.held {
            Held::Plain(value) if !self.is_secret => fmt::Debug::fmt(value, formatter),
            _ => formatter.write_str("(secret)"),
        }
    }
}

impl fmt::Display for AppKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.team, self.name)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.team, self.app)
    }
}

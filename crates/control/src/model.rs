//! What the control plane knows, as the API says it.
//!
//! The command line reads these types back, so that both sides mean the same. Times are
//! milliseconds since 1970.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    access::{Role, Scope},
    description::ImageDescription,
    names::{
        AppName, Digest, Host, Label, OperationId, ReleaseNumber, ResourceId, TeamName, TokenId, UserName,
    },
    platform::{AppHealth, ResourceKind},
};

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// What is on the page, in order.
    pub items: Vec<T>,
    /// What to send as `after` to get the next page; nothing if this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Team {
    /// Its name.
    pub name: TeamName,
    /// When it was made.
    pub created_ms: u64,
    /// What the one who asks is in it, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// A person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Their name.
    pub name: UserName,
    /// Whether they operate the server.
    pub is_operator: bool,
    /// Since when they are known.
    pub created_ms: u64,
}

/// Somebody in a team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// Their name.
    pub user: UserName,
    /// What they are in the team.
    pub role: Role,
}

/// A link that lets somebody in, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Invitation {
    /// The link. It is not shown again.
    pub link: String,
    /// When it stops working.
    pub expires_ms: u64,
}

/// A token, without what is secret of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// What its maker called it.
    pub name: Label,
    /// The team that it is for; nothing if it is for all teams of its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamName>,
    /// Who it stands for; nothing if for the team itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_ms: u64,
    /// When it stops working; never if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When it was used last, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_ms: Option<u64>,
}

/// A token that was just made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// What is known of it later.
    #[serde(flatten)]
    pub token: Token,
    /// What to send as `Authorization: Bearer …`. It is not shown again.
    pub secret: String,
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// The person, if the token is a person's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// Whether they operate the server.
    pub is_operator: bool,
    /// The token's id.
    pub token: TokenId,
    /// What the token may be used for.
    pub scopes: Vec<Scope>,
    /// The teams that it reaches.
    pub teams: Vec<Team>,
}

/// An app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppSummary {
    /// Its name.
    pub name: AppName,
    /// Its team.
    pub team: TeamName,
    /// The release that serves; nothing before the first deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    /// Where it answers.
    pub url: String,
    /// When it was made.
    pub created_ms: u64,
}

/// An app with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppDetails {
    /// The app.
    #[serde(flatten)]
    pub app: AppSummary,
    /// The image of the release that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// How it is.
    pub health: AppHealth,
    /// The certificate of its own host, where the server speaks `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// Its links.
    pub links: Vec<Link>,
    /// Its domains.
    pub domains: Vec<Domain>,
    /// The operation that runs, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

/// What a release came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseState {
    /// Its operation runs.
    Pending,
    /// It served, or serves.
    Ready,
    /// Its operation failed; it never served.
    Failed,
}

/// One immutable version of an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// Its number: 1, 2, 3 …
    pub number: ReleaseNumber,
    /// The image.
    pub image: Digest,
    /// The first release that had the same variables.
    pub configuration: ReleaseNumber,
    /// What it came to.
    pub state: ReleaseState,
    /// Whether it serves now.
    pub is_current: bool,
    /// When it was made.
    pub created_ms: u64,
    /// Who made it.
    pub created_by: String,
    /// What its maker said about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What its manifest asks for. Lists leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<ImageDescription>,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// Brings a new image to serve.
    Deploy,
    /// Brings the image that serves to serve with other variables.
    Configure,
    /// Goes back to an earlier release.
    Rollback,
    /// Removes an app.
    Remove,
}

/// How far an operation, or a step of it, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// It has not begun.
    Waiting,
    /// It runs.
    Running,
    /// It is done.
    Done,
    /// It failed.
    Failed,
}

/// Long work that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// The app it is about.
    pub app: AppName,
    /// The release it brings to serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    /// How far it has come.
    pub progress: Progress,
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// When it was asked for.
    pub created_ms: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Who asked for it.
    pub created_by: String,
    /// Where the app answers.
    pub url: String,
}

/// A step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What it is.
    pub name: String,
    /// How far it has come.
    pub progress: Progress,
    /// How long it took, in microseconds, once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// What is worth saying about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Why something was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The stable code: `docs/errors.md` explains it.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The body of every answer that refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorAnswer {
    /// Why.
    pub error: ErrorBody,
}

/// What a release would change, before it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The image it is about.
    pub image: Digest,
    /// The release that serves now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<ReleaseNumber>,
    /// What the app can do then and cannot now, or the other way round, in words.
    pub changes: Vec<String>,
    /// What the operator's policy does not allow, naming the lines.
    pub refused: Vec<String>,
    /// What somebody has to agree to.
    pub approvals: Vec<Approval>,
    /// Resources that will be made.
    pub new_resources: Vec<NewResource>,
    /// What the operator has put behind labels, in the place of resources of the team, in
    /// words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// Variables that have to be set first.
    pub missing_variables: Vec<String>,
}

/// Something that somebody has to agree to before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    /// What to send in `approve` to agree to it, such as `outbound https://api.example.com`.
    pub key: String,
    /// What it means.
    pub reason: String,
}

/// A resource that a release will make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewResource {
    /// What it is.
    pub kind: ResourceKind,
    /// The label that the manifest gives to it.
    pub label: Label,
    /// Its name in the team.
    pub name: Label,
}

/// Something with data that the platform keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceSummary {
    /// Its id, which stays when its name changes.
    pub id: ResourceId,
    /// What it is.
    pub kind: ResourceKind,
    /// Its name in the team.
    pub name: Label,
    /// How many bytes it may hold.
    pub quota_bytes: u64,
    /// How many it holds, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// When it was made.
    pub created_ms: u64,
    /// Which apps have it, under which label.
    pub links: Vec<ResourceLink>,
}

/// An app that has a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceLink {
    /// The app.
    pub app: AppName,
    /// The label that its manifest gives to it.
    pub label: Label,
}

/// A label of an app and the resource behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// What it is.
    pub kind: ResourceKind,
    /// The label.
    pub label: Label,
    /// The resource's name.
    pub resource: Label,
}

/// A variable of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value; never a secret's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether it is a secret.
    pub is_secret: bool,
}

/// A domain of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Domain {
    /// The domain.
    pub host: Host,
    /// Whether the team has shown that it is theirs. It leads to the app only then.
    pub is_verified: bool,
    /// What to put into DNS to show it.
    pub proof: DomainInstructions,
    /// Its certificate, once it is verified, where the server speaks `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// When it was added.
    pub created_ms: u64,
}

/// How a host stands with its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CertificateState {
    /// There is one.
    Valid,
    /// One of the server's own authority, which browsers have to be told to trust.
    Local,
    /// One is being obtained.
    Pending,
    /// None could be obtained the last time.
    Failing,
    /// None is asked for yet: a bound on what the authority is asked was reached.
    Paused,
    /// None was asked for: that happens when somebody first connects.
    Missing,
}

/// The certificate of a host, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateStatus {
    /// How it stands.
    pub state: CertificateState,
    /// Until when it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When a new one is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews_ms: Option<u64>,
    /// Why the last attempt was in vain; also while the one before still holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_ms: Option<u64>,
    /// Before when nobody is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_ms: Option<u64>,
}

/// What to put into DNS to show that a domain is one's own: either of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DomainInstructions {
    /// Where a CNAME of the domain has to lead.
    pub cname: Host,
    /// Where a TXT record is looked for.
    pub txt_name: String,
    /// What it has to say.
    pub txt_value: String,
}

/// Something that somebody did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Its number in the team, upwards.
    pub number: u64,
    /// When.
    pub at_ms: u64,
    /// Who.
    pub who: String,
    /// With which token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
    /// From where.
    pub from: String,
    /// What: `app.create`, `release.create` …
    pub action: String,
    /// To what.
    pub subject: String,
    /// What more there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What something is that nobody needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GarbageKind {
    /// A release beyond those that are kept of its app. It takes no room itself.
    Release,
    /// A repository of a team that is gone. Its content is counted as blobs.
    Repository,
    /// An image in the registry that no release is made of, and no tag names. Its content is
    /// counted as blobs.
    Manifest,
    /// Content that no image names.
    Blob,
    /// An upload that nobody went on with.
    Upload,
    /// An unpacked image that no release is made of.
    Unpacked,
    /// Native code that no release is made of, or that another version of the engine made.
    Compiled,
}

/// Something that nobody needs any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GarbageItem {
    /// What it is.
    pub kind: GarbageKind,
    /// Which one.
    pub name: String,
    /// How much room it takes on the disk.
    pub bytes: u64,
}

/// All garbage of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GarbageTotal {
    /// Which kind.
    pub kind: GarbageKind,
    /// How many there are.
    pub count: u64,
    /// How much room they take.
    pub bytes: u64,
}

/// What nobody needs any more, or needed before it was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GarbageReport {
    /// Whether it is gone.
    pub is_removed: bool,
    /// How much room all of it takes, or took.
    pub bytes: u64,
    /// By kind.
    pub totals: Vec<GarbageTotal>,
    /// The first of each kind, at most 1,000 together.
    pub items: Vec<GarbageItem>,
}

/// What the server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The version of Wisp.
    pub version: String,
    /// The version of the API's addresses.
    pub api: String,
    /// The domain below which apps answer.
    pub domain: String,
}

/// How the server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Whether all is well.
    pub is_well: bool,
}

/// How a sign-in by device code begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceSignIn {
    /// What to poll with. Nobody else may know it.
    pub device_code: String,
    /// What the person types on the page.
    pub user_code: String,
    /// The page.
    pub page: String,
    /// How often to poll, in seconds.
    pub interval_seconds: u64,
    /// When it is over.
    pub expires_ms: u64,
}

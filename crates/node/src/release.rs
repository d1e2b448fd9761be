//! Releases: what a control plane wants to be served.
//!
//! A change in the stream names a [`ReleaseId`], a few dozen bytes, and the table keeps
//! no more of it. What the release consists of (where its files are, values of its
//! variables, which stores its labels are linked to, what it may reach) a [`Releases`]
//! says when the release is loaded: secrets are in memory for as long as a version that
//! needs them is mapped, and never on disk in clear.
//!
//! # Life of a deploy
//!
//! 1. [`Node::stage`](crate::Node::stage) loads the release beside what serves, and asks
//!    it for its `probe` if the manifest names one. Nobody is answered by it yet, and if
//!    it fails nothing has happened.
//! 2. The control plane writes down that the release is the current one.
//! 3. [`Node::swap`](crate::Node::swap) stores the pointer: from then on requests get
//!    the new release. It costs microseconds, whatever the release is.
//! 4. [`Swapped::drained`] resolves when the last request has its answer that began with
//!    the release before. That one stays mapped, so that going back is 1 to 3 again
//!    with nothing to load.
//!
//! A node that starts gets the whole stream again as [`ChangeKind::Release`] changes and
//! loads each release when it is first asked for.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use indexmap::IndexMap;
use wisp_capability::resource::Resource;
use wisp_manifest::{
    allowed_hosts::{AllowedHost, BlockedNetworks},
    model::Limits,
};
use wisp_trigger::http::HttpApp;

use crate::{
    Error,
    entry::{Entry, Version},
    settings::VariableValue,
};

/// The shortest and the longest pause between two looks at whether a version is in use.
const DRAIN_LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Names a release of an app. Two that are equal are the same release: a release never
/// changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReleaseId {
    /// The app, by the name that its logs and accounts go by: `team/app`.
    pub app: Arc<str>,
    /// The release's number.
    pub number: u64,
    /// Tells apart what may change around a release: what its labels are linked to, what
    /// the operator grants.
    pub revision: u64,
}

/// Says what releases consist of.
pub trait Releases: Send + Sync + 'static {
    /// What a release consists of. Blocks; called on threads where that does no harm.
    ///
    /// # Errors
    /// [`Error::Release`].
    fn describe(&self, release: &ReleaseId) -> Result<Release, Error>;
}

/// What a release consists of.
pub struct Release {
    /// The folder with its manifest and sources. What is in it never changes.
    pub folder: PathBuf,
    /// Values of the app's variables.
    pub variables: Vec<VariableValue>,
    /// The key-value stores that labels are linked to.
    pub key_value_stores: IndexMap<String, Resource>,
    /// The databases that labels are linked to.
    pub sqlite_databases: IndexMap<String, Resource>,
    /// What its components may have at most.
    pub ceilings: Limits,
    /// Its part of the CPU where apps compete, relative to others'; `None` is the usual one.
    pub cpu_weight: Option<u32>,
    /// Destinations that the operator grants; what its manifest names beyond is refused.
    pub granted_hosts: Vec<AllowedHost>,
    /// Networks that it may not reach, whatever its manifest names.
    pub blocked_networks: BlockedNetworks,
}

/// A release that is loaded and works, and answers nobody yet.
pub struct Staged {
    pub(crate) entry: Arc<Entry>,
    pub(crate) version: Arc<Version>,
    pub(crate) release: ReleaseId,
    /// How long loading it and asking it took.
    pub took: Duration,
}

/// What a swap did.
#[must_use = "the release before may still be answering"]
pub struct Swapped {
    /// Not held on to: it may be unmapped while somebody still waits for its requests.
    replaced: Option<(Weak<Version>, Weak<HttpApp>)>,
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}#{}", self.app, self.number)
    }
}

impl Swapped {
    pub(crate) fn new(replaced: Option<&Arc<Version>>) -> Self {
        let weak = |version: &Arc<Version>| (Arc::downgrade(version), Arc::downgrade(&version.http));
        Self { replaced: replaced.map(weak) }
    }

    /// Resolves when all requests have their answers that began with the version that
    /// was replaced.
    pub async fn drained(&self) {
        let (mut pause, longest) = DRAIN_LOOKS;
        // Looked at from outside: a request that ends has nobody to tell, and need not.
        while !self.is_drained() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Whether all of them have.
    pub fn is_drained(&self) -> bool {
        self.in_use_count() == 0
    }

    /// How many requests are still being answered by the version that was replaced.
    pub fn in_use_count(&self) -> usize {
        let Some((version, http)) = &self.replaced else { return 0 };
        // The version itself has it, too, as long as it is mapped.
        http.strong_count().saturating_sub(version.strong_count().min(1))
    }
}

//! What tells a node which apps to run.

use std::path::PathBuf;

use crate::{HostName, ReleaseId};

/// One step in a stream of changes. Whoever sends the stream numbers it, upwards; a
/// node that sees a number again, or an older one, passes over it. So the stream may be
/// sent again from any point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place in the stream.
    pub number: u64,
    /// What changes.
    pub kind: ChangeKind,
}

/// What changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// An app is there, or its version may be another one than before.
    Put {
        /// Where it is reached.
        host: HostName,
        /// The folder with its manifest, or a symbolic link to it.
        folder: PathBuf,
    },
    /// A release is to answer at a host.
    Release {
        /// Where it is reached.
        host: HostName,
        /// Which release of which app.
        release: ReleaseId,
    },
    /// A host is another name for one that is there: what answers there answers here.
    Alias {
        /// Where it is reached, too.
        host: HostName,
        /// Where it is reached already.
        of: HostName,
    },
    /// An app is there no more.
    Remove {
        /// Where it was reached.
        host: HostName,
    },
}

impl ChangeKind {
    /// The host that the change is about.
    pub fn host(&self) -> &HostName {
        match self {
            Self::Put { host, .. }
            | Self::Release { host, .. }
            | Self::Alias { host, .. }
            | Self::Remove { host } => host,
        }
    }
}

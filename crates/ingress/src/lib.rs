//! Names, certificates and sockets: what stands between the internet and a node.
//!
//! This crate is for what a server on the internet needs before and beside its apps:
//! certificates for hosts that come and go, limits on who may ask how often, a log of
//! who asked, proof that a domain is its user's, and sockets that outlive a process. It
//! is not for answering requests, and knows neither apps nor the control plane: what it
//! has to know of them it is told by callbacks and traits.
//!
//! # The life of a name
//!
//! 1. Somebody adds a domain to an app. [`SystemResolver`] says what DNS says of it.
//! 2. [`RateLimits`] is told whose host it is.
//! 3. A client connects. The server asks [`Certificates::choose`] with what the client
//!    says first, and mostly has a configuration at once. For a host that is new, a
//!    certificate is obtained while the client waits (see [`acme`]); for `localhost` and
//!    what is below it, one is made on the spot by the [`LocalAuthority`].
//! 4. By `http`, [`Door`] answers the authority's challenges and leads clients to
//!    `https`.
//! 5. Each request takes a token from the buckets of its app and its team, and leaves a
//!    line in the [`AccessLog`].
//! 6. Certificates are renewed at two thirds of their lives, in the background, and kept
//!    in a [`CertificateStore`], where a restarted process finds them.
//! 7. The server is upgraded: its successor [takes over](handover) the sockets, and
//!    nobody notices.
//!
//! # Locks
//!
//! What every handshake or request asks for is found in a table (`table.rs`) that
//! threads remember: no lock is taken that another app's traffic could hold.

#![forbid(unsafe_code)]

mod access_log;
pub mod acme;
mod certificates;
mod clock;
mod door;
mod error;
pub mod handover;
mod host;
mod limits;
mod resolver;
mod table;

pub use access_log::{AccessLog, FileLimits, Line, MAX_FILE_AGE, MAX_FILE_BYTES, MAX_OLD_FILES_COUNT};
pub use acme::{AcmeSettings, Allowed, ChallengeKind, Failed, Standing};
pub use certificates::{
    CertificateFiles, CertificateStore, Certificates, CertificatesBuilder, Choice, LocalAuthority, Source,
    StoredCertificate,
};
pub use clock::{Clock, ManualClock, SystemClock};
pub use door::{Door, Redirect};
pub use error::Error;
pub use host::HostName;
pub use limits::{MAX_LIMITED_HOSTS_COUNT, Rate, RateLimits, TooMany, Whose};
pub use resolver::SystemResolver;

//! The control plane: teams, tokens, apps, releases, resources, and their HTTP API.
//!
//! This crate decides who may do what, and what shall run. It owns the state that says so
//! (`state/`), the operator's policy ([`policy`]), the secrets (`seal`), and the API
//! ([`router`]). It is not for how a component runs, where bytes of images lie or how names
//! get certificates: what it needs of the machine is behind the [`Platform`] trait, and it
//! knows nothing of who implements it.
//!
//! # The life of a release
//!
//! 1. An image has been pushed. `POST …/plans` asks the platform what it is
//!    ([`ImageDescription`]), and answers with the difference to the release that serves, in
//!    words; with what the policy refuses, naming the manifest's line and the policy's; and
//!    with what somebody has to agree to (`plan`).
//! 2. `POST …/releases` checks the same again and writes, in one transaction, the release
//!    (number, image, variables: immutable from here on) and an *operation* with its steps.
//! 3. A task takes the steps (`deploy`): validate, compile, provision, migrate, check, swap,
//!    drain. Before and after each it is written how far things have come, and every step may
//!    be taken twice: after `kill -9`, [`Control::resume`] goes on where things were. One
//!    operation of an app runs at a time.
//! 4. *Swap* is the moment of truth: one transaction points the app to the release and
//!    appends a numbered [`Change`] to the stream that nodes follow.
//! 5. Whatever fails before leaves the release that serves as it is. What fails while
//!    swapping points the app back.
//!
//! # What others may know
//!
//! Nothing. What somebody may not see is answered byte for byte like what is not there: a
//! team is looked for among the teams of the one who asks, everything else within the team,
//! and what a role or token may do is looked at before anything is looked for. A test plays a
//! stranger against every route that the OpenAPI document has.
//!
//! # Secrets at rest
//!
//! Tokens are kept as digests. Variables that are secret, answers that are kept for
//! idempotency keys, and certificates are sealed. Secrets of variables stay sealed in memory,
//! too: whoever runs a release opens them ([`VariableValue::open`]).

#![forbid(unsafe_code)]

pub mod access;
mod api;
mod control;
mod credential;
mod deploy;
mod description;
mod error;
mod garbage;
pub mod model;
pub mod names;
mod plan;
pub mod platform;
pub mod policy;
mod seal;
mod state;

pub use api::{Peer, openapi, parse_any_body, router};
pub use control::{Control, RegistryAction, Settings};
pub use credential::TOKEN_PREFIX;
pub use description::{
    Asked, ComponentDescription, ImageDescription, TriggerDescription, VariableDescription,
};
pub use error::{Error, Result};
pub use platform::{
    AppHealth, AppKey, AppUsage, ByteStream, Change, ChangeKind, Deployment, DomainProof, DurationBucket,
    GrantedFile, Grants, Kept, LinkedResource, LogQuery, LogRecord, LogStream, Platform, PlatformError,
    PlatformErrorKind, PlatformResult, Repository, Resource, ResourceKind, Snapshot, SqlAnswer, SqlStatement,
    VariableValue,
};
pub use policy::Policy;
pub use seal::ENVELOPE_KEY_VARIABLE;

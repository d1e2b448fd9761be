//! What calls guests.
//!
//! One module per trigger. A trigger waits for events of its kind, picks the
//! component that an event belongs to, runs an instance of it under the
//! component's limits, and carries the answer back.
//!
//! It is not for: deciding which apps a process runs, or what a component may
//! reach (its `Grants` come in finished), or reading manifests.
//!
//! # The HTTP trigger, from socket to guest
//!
//! | step | where |
//! | --- | --- |
//! | accept, share out to worker threads, TLS, HTTP/1.1 and 2 | [`http::Server`], `http/server.rs`, `http/tls.rs` |
//! | reserved paths, then the route | [`http::HttpApp`], `http/app.rs`; patterns are `wisp_manifest`'s |
//! | `spin-*` headers, full URL | `http/shape.rs` |
//! | wait for a place, or 503 | `http/admission.rs` |
//! | fresh instance, or one from the reuse pool | `http/component.rs`, `http/reuse.rs` |
//! | call the handler that the component exports | `http/executor/` |
//! | run it here, or on the compute lane | `http/guest.rs`, `http/compute.rs`, `http/share.rs` |
//! | stream the response while the guest keeps running | `http/body.rs` |
//! | enter what it used into the accounts | `http/guest.rs`, `http/account.rs` |
//!
//! A guest begins inside the task of its connection, and usually ends there: no
//! other thread takes part. One that computes for longer is moved to the compute
//! lane. Either way, when the client goes away hyper drops the response, which drops
//! the guest.
//!
//! [`http::Commons`] is what all apps of a process share; an [`http::Account`] is
//! what one of them used and holds.
#![forbid(unsafe_code)]

mod error;
pub mod http;

pub use error::Error;

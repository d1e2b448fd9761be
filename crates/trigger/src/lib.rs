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
//! | wait for a free instance, or 503 | `http/admission.rs` |
//! | fresh instance, or one from the reuse pool | `http/component.rs`, `http/reuse.rs` |
//! | call the handler that the component exports | `http/executor/` |
//! | stream the response while the guest keeps running | `http/body.rs` |
//!
//! The guest runs inside the task of its connection: no other thread takes part,
//! and when the client goes away hyper drops the response, which drops the guest.
#![forbid(unsafe_code)]

mod error;
pub mod http;

pub use error::Error;

//! The HTTP trigger.

mod admission;
mod app;
mod apps;
mod body;
mod component;
mod executor;
mod outcomes;
mod reuse;
mod server;
mod shape;
mod tls;

pub use admission::AdmissionLimits;
pub use app::{HttpApp, HttpAppBuilder};
pub use apps::{Apps, Found, IDLE_SWEEP, OneApp, Refusal, host_name};
pub use component::{ComponentLimits, ComponentSpec};
pub use outcomes::Outcomes;
pub use server::{Server, ServerConfig};
pub use tls::TlsFiles;

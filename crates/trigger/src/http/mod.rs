//! The HTTP trigger.

mod admission;
mod app;
mod body;
mod component;
mod executor;
mod reuse;
mod server;
mod shape;
mod tls;

pub use admission::AdmissionLimits;
pub use app::{HttpApp, HttpAppBuilder};
pub use component::{ComponentLimits, ComponentSpec};
pub use server::{Server, ServerConfig};
pub use tls::TlsFiles;

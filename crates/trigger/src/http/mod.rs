//! The HTTP trigger.

mod account;
mod admission;
mod app;
mod apps;
mod body;
mod commons;
mod component;
mod compute;
mod cores;
mod draft;
mod executor;
mod front;
mod gather;
mod guest;
mod listener;
mod outcomes;
mod quiet;
mod reuse;
mod server;
mod shape;
mod share;
mod starvation;
mod tls;
mod trace;

pub use account::{Account, DEFAULT_WEIGHT, DURATION_BOUNDS, Outcome, Sums};
pub use admission::AdmissionLimits;
pub use app::{CutOff, HttpApp, HttpAppBuilder};
pub use apps::{Apps, Found, IDLE_SWEEP, OneApp, Refusal, host_name};
pub use commons::{Commons, CommonsSettings};
pub use component::{ComponentLimits, ComponentSpec};
pub use front::{Access, Arrival, Decision, Front, Observer, Service, ServiceBody, Used};
pub use listener::Listener;
pub use outcomes::Outcomes;
pub use server::{Ending, Server, ServerConfig};
pub use tls::{FixedTls, SelectTls, TlsChoice, TlsFiles};

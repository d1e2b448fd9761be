//! What a test of an app puts in the place of the world outside.
//!
//! For: time that passes only when nothing else can happen ([`VirtualTime`]), numbers that
//! are the same in every run ([`VirtualRandom`]), and answers in the place of the network
//! ([`Script`]).
//!
//! Not for: anything that serves. Guests find time and random numbers here only through
//! linkers that were made for it
//! ([`Linkers::with_virtual_world`](crate::Linkers::with_virtual_world)), so that those of a
//! server carry nothing of it.

mod link;
mod random;
mod time;

use std::sync::Arc;

pub(crate) use self::link::add_to_linker;
pub use self::{
    random::VirtualRandom,
    time::{Busy, Sleep, VirtualTime},
};
use crate::{outbound_http::Script, wasi::WallClock};

/// What a test of an app puts in the place of the world outside. The default leaves
/// everything as it is.
#[derive(Clone, Default)]
pub struct VirtualWorld {
    /// Says what time it is, and wakes those who sleep.
    pub time: Option<Arc<VirtualTime>>,
    /// Where random numbers come from.
    pub random: Option<Arc<VirtualRandom>>,
    /// Answers HTTP requests of components.
    pub http: Option<Arc<dyn Script>>,
}

impl VirtualWorld {
    /// Says what time of day it is, if not the machine's.
    pub fn wall_clock(&self) -> Option<Arc<dyn WallClock>> {
        let time = self.time.clone()?;
        Some(time)
    }

    /// Time does not pass while this exists: something outside of the test's thread is
    /// being waited for.
    pub fn busy(&self) -> Option<Busy> {
        self.time.as_ref().map(Busy::new)
    }
}

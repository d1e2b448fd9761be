//! Wasmtime's engines: one for each flavor, and in each tier that is used.

use std::sync::OnceLock;

use crate::{EngineConfig, EngineKind, Error, Flavor, Tier};

/// The engines of a process. Those for optimized code are there from the start, the others
/// when something needs them first: most processes find everything optimized, and an engine
/// takes time, and address space for its pool.
pub(crate) struct Engines {
    config: EngineConfig,
    optimized: [wasmtime::Engine; Flavor::ALL.len()],
    baseline: [OnceLock<wasmtime::Engine>; Flavor::ALL.len()],
}

impl Engines {
    pub(crate) fn new(config: &EngineConfig) -> Result<Self, Error> {
        let [plain, concurrent, plain_snapshot, concurrent_snapshot] = Flavor::ALL.map(Flavor::optimized);
        Ok(Self {
            optimized: [
                config.engine(plain)?,
                config.engine(concurrent)?,
                config.engine(plain_snapshot)?,
                config.engine(concurrent_snapshot)?,
            ],
            baseline: Default::default(),
            config: config.clone(),
        })
    }

    pub(crate) fn optimized(&self, flavor: Flavor) -> &wasmtime::Engine {
        &self.optimized[flavor as usize]
    }

    /// The engine of a kind, which is made if need be.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it has to be made and cannot be.
    pub(crate) fn get(&self, kind: EngineKind) -> Result<&wasmtime::Engine, Error> {
        if kind.tier == Tier::Optimized {
            return Ok(self.optimized(kind.flavor));
        }
        let engine = &self.baseline[kind.flavor as usize];
        match engine.get() {
            Some(engine) => Ok(engine),
            None => {
                let made = self.config.engine(kind)?;
                // If somebody else was sooner, theirs is the one.
                Ok(engine.get_or_init(|| made))
            }
        }
    }

    /// Those that were made so far.
    pub(crate) fn all(&self) -> impl Iterator<Item = &wasmtime::Engine> {
        self.optimized.iter().chain(self.baseline.iter().filter_map(OnceLock::get))
    }
}

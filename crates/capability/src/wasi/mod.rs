//! Placeholder.

use wasmtime::component::Linker;

use crate::{Flavor, Host};

pub(crate) fn add_to_linker(_linker: &mut Linker<Host>, _flavor: Flavor) -> wasmtime::Result<()> {
    Ok(())
}

/// Environment, files and standard streams of a component.
#[derive(Default)]
pub struct Grant {}

impl Grant {
    pub(crate) fn context(&self, _outbound: &crate::outbound::Grant) -> wasmtime_wasi::WasiCtx {
        wasmtime_wasi::WasiCtx::builder().build()
    }
}

//! Placeholder.

use wasmtime::component::Linker;

use crate::{Flavor, Host};

pub(crate) fn add_to_linker(_linker: &mut Linker<Host>, _flavor: Flavor) -> wasmtime::Result<()> {
    Ok(())
}

/// What a component may reach of this family.
#[derive(Default)]
pub struct Grant {}

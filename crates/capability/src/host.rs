//! The data of one instance's store, and the linker that serves it.

use std::sync::Arc;

use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::{Grants, key_value, outbound_http, sqlite, unavailable, variables, wasi};

/// Which of the engine's two configurations a linker serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// Without component-model concurrency: cheaper calls, no `async func`,
    /// no WASI 0.3. Registering an asynchronous interface in it is an error.
    Plain,
    /// With component-model concurrency: everything.
    Concurrent,
}

/// The data of one instance's store.
pub struct Host {
    pub(crate) grants: Arc<Grants>,
    pub(crate) table: ResourceTable,
    pub(crate) wasi: WasiCtx,
    pub(crate) http: WasiHttpCtx,
    pub(crate) http_hooks: outbound_http::Hooks,
    /// Number of key-value handles that are open; see [`key_value`].
    pub(crate) key_value: key_value::State,
    pub(crate) sqlite: sqlite::State,
}

impl Host {
    /// The state of a fresh instance of a component with these grants.
    pub fn new(grants: Arc<Grants>) -> Self {
        Self {
            wasi: grants.wasi.context(&grants.outbound),
            http: WasiHttpCtx::new(),
            http_hooks: outbound_http::Hooks::new(&grants),
            key_value: key_value::State::default(),
            sqlite: sqlite::State::default(),
            table: ResourceTable::new(),
            grants,
        }
    }

    /// The same for an instance that differs from the component's others, such
    /// as a program that is run once with arguments and a captured output.
    pub fn with_overrides(grants: Arc<Grants>, overrides: wasi::Overrides) -> Self {
        let wasi = grants.wasi.context_with(&grants.outbound, overrides);
        Self { wasi, ..Self::new(grants) }
    }

    /// Says how many components have called each other to bring about the
    /// request that this instance serves.
    pub fn set_local_depth(&mut self, depth: outbound_http::LocalDepth) {
        self.http_hooks.set_depth(depth);
    }

    /// What this instance's component may reach.
    pub fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.http_hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Registers every interface that a guest may import.
///
/// # Errors
/// Only if an interface is registered twice, which is a defect of ours.
pub fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    wasi::add_to_linker(linker, flavor)?;
    outbound_http::add_to_linker(linker, flavor)?;
    variables::add_to_linker(linker, flavor)?;
    key_value::add_to_linker(linker, flavor)?;
    sqlite::add_to_linker(linker, flavor)?;
    unavailable::add_to_linker(linker, flavor)
}

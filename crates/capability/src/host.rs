//! The data of one instance's store, and the linker that serves it.

use std::sync::{Arc, OnceLock};

use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use wisp_engine::{Engine, Flavor, Limiter, MappedImage, Tier};

use crate::{Grants, key_value, otel, outbound_http, sqlite, unavailable, variables, virtual_world, wasi};

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
    pub(crate) unavailable: unavailable::State,
    /// What the request may still log; `None` if nothing it logs is kept.
    log_budget: Option<Arc<wasi::LogBudget>>,
    /// What the instance may allocate. Public for whoever makes the store, which
    /// must be told where to find it.
    pub limiter: Limiter,
}

/// Linkers for all kinds of engines, with everything that a guest may import.
pub struct Linkers {
    optimized: [Linker<Host>; Flavor::ALL.len()],
    /// Made when a component needs them.
    baseline: [OnceLock<Linker<Host>>; Flavor::ALL.len()],
    add: Add,
}

/// Adds to a linker what guests may import.
type Add = fn(&mut Linker<Host>, Flavor) -> wasmtime::Result<()>;

impl Host {
    /// The state of a fresh instance of a component with these grants.
    pub fn new(grants: Arc<Grants>) -> Self {
        let log_budget = log_budget(&grants);
        let wasi = grants.wasi.context(&grants.outbound, &grants.limits, log_budget.as_ref());
        Self::with_context(grants, wasi, log_budget)
    }

    fn with_context(grants: Arc<Grants>, wasi: WasiCtx, log_budget: Option<Arc<wasi::LogBudget>>) -> Self {
        Self {
            wasi,
            log_budget,
            http: WasiHttpCtx::new(),
            http_hooks: outbound_http::Hooks::new(&grants),
            key_value: key_value::State::default(),
            sqlite: sqlite::State::default(),
            unavailable: unavailable::State::default(),
            limiter: Limiter::default(),
            table: ResourceTable::new(),
            grants,
        }
    }

    /// The same for an instance that differs from the component's others, such
    /// as a program that is run once with arguments and a captured output.
    pub fn with_overrides(grants: Arc<Grants>, overrides: wasi::Overrides) -> Self {
        let log_budget = log_budget(&grants);
        let wasi = grants.wasi.context_with(&grants.outbound, &grants.limits, log_budget.as_ref(), overrides);
        Self::with_context(grants, wasi, log_budget)
    }

    /// The instance serves another request: what is bounded per request begins anew.
    pub fn begin_request(&mut self) {
        self.http_hooks.begin();
        if let Some(budget) = &self.log_budget {
            budget.begin(self.grants.limits.log_bytes);
        }
    }

    /// Says how many components have called each other to bring about the
    /// request that this instance serves.
    pub fn set_local_depth(&mut self, depth: outbound_http::LocalDepth) {
        self.http_hooks.set_depth(depth);
    }

    /// Whether the guest may write so much more to its log, which it then counts for.
    pub(crate) fn may_log(&self, bytes: usize) -> bool {
        self.log_budget.as_ref().is_none_or(|budget| budget.take(bytes)) && self.grants.wasi.may_log(bytes)
    }

    /// Bounds the handles that the guest may hold at once.
    pub fn set_max_handles(&mut self, count: usize) {
        self.table.set_max_capacity(count);
    }

    /// Whether the guest has given back every handle that it was given.
    pub fn holds_nothing(&self) -> bool {
        self.table.is_empty()
    }

    /// What this instance's component may reach.
    pub fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }
}

fn log_budget(grants: &Grants) -> Option<Arc<wasi::LogBudget>> {
    if grants.wasi.is_silent() {
        return None;
    }
    let budget = Arc::new(wasi::LogBudget::default());
    budget.begin(grants.limits.log_bytes);
    Some(budget)
}

impl Linkers {
    /// Fills the linkers. Takes about a millisecond; done once per process.
    ///
    /// # Errors
    /// Only if an interface is registered twice, which is a defect of ours.
    pub fn new(engine: &Engine) -> wasmtime::Result<Self> {
        Self::make(engine, add_to_linker)
    }

    /// The same, but guests find the clocks and random numbers of their
    /// [`VirtualWorld`](crate::VirtualWorld).
    ///
    /// # Errors
    /// As [`Linkers::new`].
    pub fn with_virtual_world(engine: &Engine) -> wasmtime::Result<Self> {
        Self::make(engine, |linker, flavor| {
            add_to_linker(linker, flavor)?;
            virtual_world::add_to_linker(linker, flavor)
        })
    }

    fn make(engine: &Engine, add: Add) -> wasmtime::Result<Self> {
        let linker = |flavor| filled(engine.wasmtime(flavor), flavor, add);
        let [plain, concurrent, plain_snapshot, concurrent_snapshot] = Flavor::ALL;
        Ok(Self {
            optimized: [
                linker(plain)?,
                linker(concurrent)?,
                linker(plain_snapshot)?,
                linker(concurrent_snapshot)?,
            ],
            baseline: Default::default(),
            add,
        })
    }

    /// The linker for a component.
    ///
    /// # Errors
    /// As [`Linkers::new`].
    pub fn of(&self, image: &MappedImage) -> wasmtime::Result<&Linker<Host>> {
        let flavor = image.kind.flavor;
        if image.kind.tier == Tier::Optimized {
            return Ok(&self.optimized[flavor as usize]);
        }
        let linker = &self.baseline[flavor as usize];
        match linker.get() {
            Some(linker) => Ok(linker),
            None => {
                let made = filled(image.component.engine(), flavor, self.add)?;
                Ok(linker.get_or_init(|| made))
            }
        }
    }
}

fn filled(engine: &wasmtime::Engine, flavor: Flavor, add: Add) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    add(&mut linker, flavor)?;
    Ok(linker)
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
pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    wasi::add_to_linker(linker, flavor)?;
    outbound_http::add_to_linker(linker, flavor)?;
    variables::add_to_linker(linker, flavor)?;
    key_value::add_to_linker(linker, flavor)?;
    sqlite::add_to_linker(linker, flavor)?;
    otel::add_to_linker(linker)?;
    unavailable::add_to_linker(linker, flavor)
}

//! The one place where Wasmtime is configured.
//!
//! Every figure here that is about speed was measured; `docs/performance.md`
//! says how. The order of importance: dirty-page scan with resident memory
//! (about twice the throughput of the defaults), the plain flavor for
//! components without concurrency (a third of the cost of a call), no
//! backtrace capture in Wasmtime's error type.

use std::sync::Arc;

use std::time::Duration;

use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, RegallocAlgorithm,
    Strategy, WasmBacktraceDetails,
};

use crate::{Error, memory};

/// Number of instances that may be alive at once, unless set otherwise.
///
/// The pool reserves address space for all of them (4 GiB each, 4 TiB in all)
/// and memory for none.
const DEFAULT_INSTANCES_COUNT: u32 = 1_000;

/// The largest source that is accepted. The largest real guests (Python with
/// scientific libraries) are about 60 MB.
const DEFAULT_SOURCE_BYTES: u64 = 256 << 20;

/// How long one component may take to compile. The largest real guests take some
/// seconds, and a minute on a busy machine.
const DEFAULT_COMPILE_TIME: Duration = Duration::from_secs(300);

/// Linear memory that a pool slot keeps mapped when its instance is dropped.
///
/// Pages the guest wrote to are found by the kernel's dirty-page scan and reset
/// in place instead of being unmapped and faulted in again. Only pages that were
/// dirtied stay resident; the figure bounds how far into the memory the scan
/// looks, and covers the heap of a JavaScript guest.
const LINEAR_MEMORY_KEEP_RESIDENT_BYTES: usize = 32 << 20;

/// Table memory that a pool slot keeps mapped. Required beside the above: with
/// tables unmapped at every reset most of the gain is lost.
///
/// Both only apply where the kernel has the scan (Linux 6.7): without it,
/// keeping memory resident means clearing all of it at every reset, which costs
/// more than unmapping.
const TABLE_KEEP_RESIDENT_BYTES: usize = 1 << 20;

/// How many slots are returned to the kernel at once when the dirty-page scan is
/// not available. With it there is next to nothing to return, and a batch would only
/// keep the slot whose memory is in the processor's caches from being used next.
const DECOMMIT_BATCH_COUNT: usize = 64;

/// Core modules in one component. Python guests have about 60.
const CORE_INSTANCES_PER_COMPONENT_COUNT: u32 = 200;

/// Linear memories in one component. Guests composed of several components have
/// one each.
const MEMORIES_PER_COMPONENT_COUNT: u32 = 32;

/// Tables in one component.
const TABLES_PER_COMPONENT_COUNT: u32 = 64;

/// Elements of one table: function pointers of a guest. The largest seen
/// (Python) has 15,000.
const TABLE_ELEMENTS_COUNT: usize = 100_000;

/// Bookkeeping of one instance, beside its memory and tables.
const INSTANCE_SIZE_BYTES: usize = 10 << 20;

/// Linear memory of one instance at most: all that 32-bit addresses reach.
pub(crate) const MAX_MEMORY_BYTES: usize = 1 << 32;

/// Stack for guest frames. Python's parser recurses deeply: 1 MiB is what
/// toolchains assume.
const WASM_STACK_BYTES: usize = 1 << 20;

/// The same for code of the baseline tier, which keeps in memory what optimized code keeps
/// in registers: a guest that recurses as deeply as it may must not notice.
const BASELINE_WASM_STACK_BYTES: usize = 4 << 20;

/// Stack for the host functions that guest frames call, on the same fiber.
const HOST_STACK_BYTES: usize = 1 << 20;

/// Which of the engine configurations a component runs on.
///
/// Two things are told apart. Bookkeeping for component-model concurrency costs a
/// third of a small request even when a guest does not use it, so components of
/// WASI 0.2 run on an engine without it. And a component that starts with megabytes
/// of data gets its memory from our own [pool](crate::MemoryPool), the others from
/// Wasmtime's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// Without component-model concurrency: no `async func`, streams or futures,
    /// hence no WASI 0.3.
    Plain,
    /// With component-model concurrency: everything.
    Concurrent,
    /// As [`Flavor::Plain`], for a memory that begins as a snapshot.
    PlainSnapshot,
    /// As [`Flavor::Concurrent`], for a memory that begins as a snapshot.
    ConcurrentSnapshot,
}

impl Flavor {
    /// All flavors, the more frequent first.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Concurrent, Self::PlainSnapshot, Self::ConcurrentSnapshot];

    /// A short name, used in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Concurrent => "concurrent",
            Self::PlainSnapshot => "plain-snapshot",
            Self::ConcurrentSnapshot => "concurrent-snapshot",
        }
    }

    /// Whether components may use `async func`, streams and futures.
    pub fn is_concurrent(self) -> bool {
        matches!(self, Self::Concurrent | Self::ConcurrentSnapshot)
    }

    /// The same for a memory that begins as a snapshot.
    pub(crate) fn with_snapshot(self) -> Self {
        match self {
            Self::Plain | Self::PlainSnapshot => Self::PlainSnapshot,
            Self::Concurrent | Self::ConcurrentSnapshot => Self::ConcurrentSnapshot,
        }
    }

    /// Whether memories begin as a snapshot.
    pub(crate) fn has_snapshot(self) -> bool {
        matches!(self, Self::PlainSnapshot | Self::ConcurrentSnapshot)
    }
}

/// How good code is, and how long it takes to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Made by Winch in a fifth of the time, and slower.
    Baseline,
    /// Made by Cranelift.
    Optimized,
}

/// Which engine code is for: two of different kinds cannot run each other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EngineKind {
    /// What the component needs.
    pub flavor: Flavor,
    /// What its code is like.
    pub tier: Tier,
}

impl Flavor {
    /// The engine with optimized code.
    pub(crate) fn optimized(self) -> EngineKind {
        EngineKind { flavor: self, tier: Tier::Optimized }
    }
}

/// Which tiers code is made in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compiler {
    /// Nothing runs that is not optimized.
    #[default]
    Optimized,
    /// What is large and was never compiled has baseline code at first: who loads it may
    /// have it [optimized](crate::Engine::optimize) later. Optimized code is used if it is
    /// there.
    Tiered,
    /// All code is of the baseline tier, unless it cannot be compiled so: for tests.
    Baseline,
}

impl Compiler {
    /// Whether this machine has the baseline tier. Winch is complete for no other processor.
    const HAS_BASELINE: bool = cfg!(target_arch = "x86_64");

    /// The tiers whose images are used, the preferred one first.
    pub(crate) fn tiers(self) -> &'static [Tier] {
        match self {
            Self::Tiered => &[Tier::Optimized, Tier::Baseline],
            Self::Optimized => &[Tier::Optimized],
            Self::Baseline => &[Tier::Baseline],
        }
    }

    /// The tier in which code is made that there is none of.
    pub(crate) fn tier(self, is_large: bool) -> Tier {
        match self {
            Self::Tiered if is_large => Tier::Baseline,
            Self::Baseline => Tier::Baseline,
            Self::Tiered | Self::Optimized => Tier::Optimized,
        }
    }
}

/// What may be set about the engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Which tiers code is made in.
    pub compiler: Compiler,
    /// Instances alive at once, per flavor without snapshot.
    pub max_instances_count: u32,
    /// Whether to allocate from a pool. Without it every instance maps and
    /// unmaps its own memory: slower, but the process reserves less address
    /// space.
    pub pooling: bool,
    /// Whether a used instance may be put back to its beginning for the next request,
    /// where that is possible. Otherwise each request has a new one.
    pub rewinds: bool,
    /// Compile for native debuggers: with the guests' debug information, and without
    /// optimization, so that each line and variable is somewhere. Instances are not
    /// rewound, since what is added for that has no lines.
    pub debug_info: bool,
    /// The largest source that is accepted.
    pub max_source_bytes: u64,
    /// How long one component may take to compile.
    pub max_compile_time: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            compiler: Compiler::default(),
            max_instances_count: DEFAULT_INSTANCES_COUNT,
            pooling: true,
            rewinds: true,
            debug_info: false,
            max_source_bytes: DEFAULT_SOURCE_BYTES,
            max_compile_time: DEFAULT_COMPILE_TIME,
        }
    }
}

impl EngineConfig {
    /// Which tiers code is made in, as far as that is possible: debuggers know nothing of
    /// baseline code.
    pub(crate) fn compiler(&self) -> Compiler {
        if Compiler::HAS_BASELINE && !self.debug_info { self.compiler } else { Compiler::Optimized }
    }

    /// Makes the engine of one kind.
    pub(crate) fn engine(&self, EngineKind { flavor, tier }: EngineKind) -> Result<wasmtime::Engine, Error> {
        let mut config = Config::new();
        let wasm_stack_bytes = match tier {
            Tier::Optimized => WASM_STACK_BYTES,
            Tier::Baseline => {
                config.strategy(Strategy::Winch);
                // Ways into functions that a table has are made by Cranelift, and half of all
                // work: there are thousands, of a few instructions each.
                config.cranelift_opt_level(OptLevel::None);
                config.cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
                // A tenth of an image, which nobody needs who has no lines: what has is
                // optimized at once.
                config.generate_address_map(false);
                BASELINE_WASM_STACK_BYTES
            }
        };
        config.wasm_component_model(true);
        if flavor.is_concurrent() {
            config.wasm_component_model_async(true);
        } else {
            config.concurrency_support(false);
        }
        config.epoch_interruption(true);
        config.max_wasm_stack(wasm_stack_bytes);
        config.async_stack_size(wasm_stack_bytes + HOST_STACK_BYTES);
        // Names of functions in a trap's backtrace come for free; file and line
        // only where a guest carries DWARF, and only when it traps.
        config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
        // For unwinders outside of Wasmtime, which are those of native debuggers: its own needs
        // frame pointers only. It would have to be made known at every load.
        config.native_unwind_info(self.debug_info);
        if self.debug_info {
            config.debug_info(true);
            config.cranelift_opt_level(OptLevel::None);
        }
        // Checks the compiler against itself; on by default in debug builds, where
        // it doubles the time that a Python guest takes.
        config.cranelift_debug_verifier(false);
        if flavor.has_snapshot() {
            config.memory_init_cow(false);
            config.with_host_memory(Arc::new(memory::Creator));
            config.with_host_stack(memory::StackPool::new());
            if memory::code::IS_USED {
                config.with_custom_code_memory(Some(Arc::new(memory::code::Publisher)));
            }
        } else if self.pooling {
            config.allocation_strategy(self.pool());
        }
        wasmtime::Engine::new(&config).map_err(|cause| Error::Configuration { cause })
    }

    fn pool(&self) -> InstanceAllocationStrategy {
        let count = self.max_instances_count;
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(count)
            // A component is several core modules: the guest, its adapters and
            // shims. Slots of core instances are a counter, not memory.
            .total_core_instances(count.saturating_mul(CORE_INSTANCES_PER_COMPONENT_COUNT))
            .total_memories(count)
            .total_tables(count.saturating_mul(2))
            .total_stacks(count)
            .total_gc_heaps(count)
            .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_COUNT)
            .max_memories_per_component(MEMORIES_PER_COMPONENT_COUNT)
            .max_tables_per_component(TABLES_PER_COMPONENT_COUNT)
            .max_component_instance_size(INSTANCE_SIZE_BYTES)
            .max_core_instance_size(INSTANCE_SIZE_BYTES)
            .table_elements(TABLE_ELEMENTS_COUNT)
            .max_memory_size(MAX_MEMORY_BYTES)
            .max_unused_warm_slots(count);
        if PoolingAllocationConfig::is_pagemap_scan_available() {
            pool.pagemap_scan(Enabled::Yes)
                .linear_memory_keep_resident(LINEAR_MEMORY_KEEP_RESIDENT_BYTES)
                .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES);
        } else {
            pool.decommit_batch_size(DECOMMIT_BATCH_COUNT);
        }
        InstanceAllocationStrategy::Pooling(pool)
    }
}

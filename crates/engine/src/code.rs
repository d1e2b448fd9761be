//! What is compiled of a component, apart from what its instances begin with.
//!
//! Toolchains of interpreters take a *snapshot*: they start the interpreter, let it read
//! the app's program, and write down its memory and its variables. The components of two
//! apps then differ in that and in nothing else: the code is the interpreter's. Compiling
//! it takes seconds; everything else about such a component takes a hundredth of that. So
//! the code of a large component is separated from its snapshot, compiled once, and kept
//! under the digest of what was compiled:
//!
//! | part of a component | where it is |
//! | --- | --- |
//! | data segments of its memory | in the image, as the memory's contents ([`crate::memory::snapshot`]) |
//! | the memory's size | in the image: how much larger it is than the code says |
//! | initial values of variables (mutable globals) | in the image; in the code they are zero |
//! | sections that say who made it | nowhere: they have no influence |
//! | exported functions of its core modules that it does not use itself ([`core_exports`]) | nowhere: nobody else can |
//! | all else, names of functions included | in the code |
//!
//! What is code and what is not follows from the component alone, so whoever compiles it
//! first makes no difference.
//!
//! # How variables get their values
//!
//! The function that puts them back ([`crate::rewind`]) reads the values from the first
//! bytes of the memory, where the engine puts them while that function runs and no other,
//! and from where it takes them away again. It is called once when an instance was made,
//! before any code of the guest's own runs: components in which that begins earlier, or
//! that cannot be rewound for another reason, keep the values in their code.

use std::{collections::HashSet, ops::Range};

use wasm_encoder::{
    Section as _,
    reencode::{Reencode as _, RoundtripReencoder},
};
use wasmparser::{ConstExpr, ExternalKind, MemoryType, Operator, Parser, Payload, TypeRef};

use crate::{Error, core_exports, memory::snapshot::WASM_PAGE_BYTES, normalize};

/// Code of at least this size (as WebAssembly, without the snapshot) is kept apart. What
/// is smaller compiles in less than half a second, and is mapped faster from one file
/// than from two.
pub(crate) const LEAST_SHARED_BYTES: usize = 1 << 20;

/// All initial values together, which are put into the memory's first page for a moment.
/// A Python guest has 2 KiB of them.
const MAX_VARIABLES_BYTES: usize = 32 << 10;

/// Sections that have no influence on what is compiled. Of those that are not here, some
/// have (names of functions, lines, hints), and the others make for code of its own.
const INERT_SECTIONS: [&str; 4] = ["component-name", "producers", "target_features", "dylink.0"];

/// A component's code, and what was taken out of it.
pub(crate) struct Code {
    pub(crate) component: Vec<u8>,
    pub(crate) beginning: Beginning,
}

/// What an instance begins with, beside the contents of its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// How much larger its memory is than its code says.
    pub(crate) extra_bytes: usize,
    /// The values of its variables, one after the other, as the code reads them.
    pub(crate) variables: Box<[u8]>,
}

/// A number that a global begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    I32(u32),
    I64(u64),
    F32(u32),
    F64(u64),
}

impl Number {
    /// The value of an expression that is nothing but a number.
    pub(crate) fn of(expression: &ConstExpr<'_>) -> Option<Self> {
        let mut operators = expression.get_operators_reader();
        let number = match operators.read().ok()? {
            Operator::I32Const { value } => Self::I32(value.cast_unsigned()),
            Operator::I64Const { value } => Self::I64(value.cast_unsigned()),
            Operator::F32Const { value } => Self::F32(value.bits()),
            Operator::F64Const { value } => Self::F64(value.bits()),
            _ => return None,
        };
        matches!(operators.read(), Ok(Operator::End)).then_some(number)
    }

    /// Its bytes, as they lie in memory.
    fn append_to(self, bytes: &mut Vec<u8>) {
        match self {
            Self::I32(bits) | Self::F32(bits) => bytes.extend_from_slice(&bits.to_le_bytes()),
            Self::I64(bits) | Self::F64(bits) => bytes.extend_from_slice(&bits.to_le_bytes()),
        }
    }

    pub(crate) fn size_bytes(self) -> u32 {
        match self {
            Self::I32(_) | Self::F32(_) => 4,
            Self::I64(_) | Self::F64(_) => 8,
        }
    }

    /// The instruction that reads one of its type from memory.
    pub(crate) fn load_opcode(self) -> u8 {
        match self {
            Self::I32(_) => 0x28,
            Self::I64(_) => 0x29,
            Self::F32(_) => 0x2a,
            Self::F64(_) => 0x2b,
        }
    }

    /// The expression for zero of its type.
    fn zero(self) -> &'static [u8] {
        match self {
            Self::I32(_) => &[0x41, 0, 0x0b],
            Self::I64(_) => &[0x42, 0, 0x0b],
            Self::F32(_) => &[0x43, 0, 0, 0, 0, 0x0b],
            Self::F64(_) => &[0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0x0b],
        }
    }
}

/// Separates the code of a component whose memory's contents were taken out, and which
/// is the only memory. With `takes_variables` their values are taken out too; `None` if
/// there are too many, or no place in the memory to put them.
///
/// # Errors
/// If the component is malformed.
pub(crate) fn separate(component: &[u8], takes_variables: bool) -> Result<Option<Code>, Error> {
    let Some(memory) = Memory::of(component)? else { return Ok(None) };
    let used = core_exports::used(component)?;
    let mut used = used.iter().flatten();
    let mut variables = Vec::new();
    let mut output = Vec::with_capacity(component.len());
    for section in normalize::sections(component) {
        let (payload, bytes) = section?;
        match payload {
            Payload::ModuleSection { unchecked_range, .. } => {
                let module = normalize::nested(bytes, &unchecked_range);
                let variables = takes_variables.then_some(&mut variables);
                let used = used.next();
                normalize::core_module(&mut output, |output| {
                    separate_module(module, memory.code_pages, used, variables, output)
                })?;
            }
            Payload::CustomSection(section) if INERT_SECTIONS.contains(&section.name()) => {}
            _ => output.extend_from_slice(bytes),
        }
    }
    if variables.len() > MAX_VARIABLES_BYTES || (!variables.is_empty() && memory.pages == 0) {
        return Ok(None);
    }
    let extra_pages = memory.pages.saturating_sub(memory.code_pages);
    let Ok(extra_bytes) = usize::try_from(extra_pages.saturating_mul(WASM_PAGE_BYTES)) else {
        return Ok(None);
    };
    let beginning = Beginning { extra_bytes, variables: variables.into() };
    Ok(Some(Code { component: output, beginning }))
}

/// The sizes of a component's memory.
struct Memory {
    /// Its size when an instance begins.
    pages: u64,
    /// What the code says instead: what modules that share it ask for at least.
    code_pages: u64,
}

impl Memory {
    fn of(component: &[u8]) -> Result<Option<Self>, Error> {
        let mut pages = None;
        let mut wanted_pages = 1;
        for section in normalize::sections(component) {
            let (Payload::ModuleSection { unchecked_range, .. }, bytes) = section? else { continue };
            for payload in Parser::new(0).parse_all(normalize::nested(bytes, &unchecked_range)) {
                match payload.map_err(normalize::invalid)? {
                    Payload::ImportSection(imports) => {
                        for import in imports.into_imports() {
                            if let TypeRef::Memory(memory) = import.map_err(normalize::invalid)?.ty {
                                wanted_pages = memory.initial.max(wanted_pages);
                            }
                        }
                    }
                    Payload::MemorySection(memories) => {
                        for memory in memories {
                            pages = Some(memory.map_err(normalize::invalid)?.initial);
                        }
                    }
                    // The rest has none.
                    Payload::CodeSectionStart { .. } => break,
                    _ => {}
                }
            }
        }
        Ok(pages.map(|pages| Self { pages, code_pages: wanted_pages.min(pages) }))
    }
}

/// Writes a module as it is compiled; values of variables are added to `variables`. Of the
/// functions that it exports, these are used; all that there are if that is not known.
fn separate_module(
    module: &[u8],
    code_pages: u64,
    used: Option<&HashSet<&str>>,
    mut variables: Option<&mut Vec<u8>>,
    output: &mut Vec<u8>,
) -> Result<(), Error> {
    let mut has_memory = false;
    output.extend_from_slice(&wasm_encoder::Module::HEADER);
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(normalize::invalid)?;
        let Some((id, range)) = payload.as_section() else { continue };
        let mut data = &module[range.clone()];
        let replaced;
        match payload {
            Payload::CustomSection(section) if INERT_SECTIONS.contains(&section.name()) => continue,
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let ty = import.map_err(normalize::invalid)?.ty;
                    has_memory |= matches!(ty, TypeRef::Memory(_));
                }
            }
            Payload::MemorySection(memories) => {
                has_memory = true;
                let mut section = wasm_encoder::MemorySection::new();
                for memory in memories {
                    let memory = memory.map_err(normalize::invalid)?;
                    section.memory(with_pages(memory, code_pages.min(memory.initial)));
                }
                // With its identifier and its size.
                section.append_to(output);
                continue;
            }
            Payload::ExportSection(exports) => {
                if let Some(used) = used {
                    let mut section = wasm_encoder::ExportSection::new();
                    for export in exports {
                        let export = export.map_err(normalize::invalid)?;
                        let is_function = matches!(export.kind, ExternalKind::Func | ExternalKind::FuncExact);
                        if !is_function || used.contains(export.name) {
                            let kind = RoundtripReencoder.export_kind(export.kind);
                            let kind = kind.map_err(normalize::invalid)?;
                            section.export(export.name, kind, export.index);
                        }
                    }
                    section.append_to(output);
                    continue;
                }
            }
            Payload::GlobalSection(globals) if has_memory => {
                if let Some(variables) = &mut variables {
                    let values: Vec<(Range<usize>, Number)> = globals
                        .into_iter()
                        .filter_map(|global| {
                            global.map_err(normalize::invalid).map(|global| variable(&global)).transpose()
                        })
                        .collect::<Result<_, _>>()?;
                    replaced = without_values(module, range, &values);
                    data = &replaced;
                    values.into_iter().for_each(|(_, number)| number.append_to(variables));
                }
            }
            _ => {}
        }
        wasm_encoder::RawSection { id, data }.append_to(output);
    }
    Ok(())
}

/// A global that instructions may set and that begins as a number: where the expression
/// for that is in its module, and the number.
pub(crate) fn variable(global: &wasmparser::Global<'_>) -> Option<(Range<usize>, Number)> {
    if !global.ty.mutable {
        return None;
    }
    Some((global.init_expr.get_binary_reader().range(), Number::of(&global.init_expr)?))
}

/// The contents of a section of globals in which these expressions are zero.
fn without_values(module: &[u8], section: Range<usize>, values: &[(Range<usize>, Number)]) -> Vec<u8> {
    let mut output = Vec::with_capacity(section.len());
    let mut copied_until = section.start;
    for (place, number) in values {
        output.extend_from_slice(&module[copied_until..place.start]);
        output.extend_from_slice(number.zero());
        copied_until = place.end;
    }
    output.extend_from_slice(&module[copied_until..section.end]);
    output
}

fn with_pages(memory: MemoryType, pages: u64) -> wasm_encoder::MemoryType {
    wasm_encoder::MemoryType {
        minimum: pages,
        maximum: memory.maximum,
        memory64: memory.memory64,
        shared: memory.shared,
        page_size_log2: memory.page_size_log2,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{
        fs,
        path::{Path, PathBuf},
        task::{Context, Poll, Waker},
    };

    use wasmtime::{
        Store,
        component::{Instance, Linker},
    };

    use super::*;
    use crate::{
        Compiler, Digest, Engine, EngineConfig, ImageStore, LentMemory, Limiter, LoadedComponent, Origin,
        Rewinder, SigningKey, Tier, compile_file, memory::snapshot,
    };

    /// What two components of one toolchain differ in.
    #[derive(Clone, Copy)]
    struct Snapshot {
        byte: u8,
        pages: u32,
        small: i32,
        large: i64,
        float: f64,
    }

    const ONE: Snapshot = Snapshot { byte: b'a', pages: 4, small: -7, large: 1 << 40, float: 0.5 };
    const OTHER: Snapshot = Snapshot { byte: b'b', pages: 9, small: 1_000_000, large: -1, float: -3.25 };

    /// A component that begins so, of a main module and one that shares its memory. What
    /// makes it large is a section that is only copied.
    fn source(Snapshot { byte, pages, small, large, float }: Snapshot, fields: &str) -> Vec<u8> {
        let padding = "x".repeat(LEAST_SHARED_BYTES);
        let data = char::from(byte).to_string().repeat(100);
        wat::parse_str(format!(
            r#"(component
                (@custom "producers" "made of {byte}")
                (@custom "padding" "{padding}")
                (core module $main
                    (memory (export "memory") {pages})
                    (data (i32.const 0) "{data}")
                    (global $constant i32 (i32.const 5))
                    (global $small (export "its-small") (mut i32) (i32.const {small}))
                    (global $function (mut funcref) (ref.null func))
                    (global $float (mut f64) (f64.const {float}))
                    {fields}
                    (func (export "size") (result i32) (memory.size))
                    (func (export "byte") (param i32) (result i32) (i32.load8_u (local.get 0)))
                    (func (export "small") (result i32) (global.get $small))
                    (func (export "float") (result f64) (global.get $float))
                    (func (export "change") (param i32)
                        (i32.store8 (local.get 0) (i32.const 1))
                        (global.set $small (i32.const 1))
                        (global.set $float (f64.const 1))))
                (core instance $instance (instantiate $main))
                (core module $adapter
                    (import "main" "memory" (memory 2))
                    (import "main" "its-small" (global $small (mut i32)))
                    (global $large (mut i64) (i64.const {large}))
                    (func (export "large") (result i64) (global.get $large))
                    (func (export "also-small") (result i32) (global.get $small)))
                (core instance $other (instantiate $adapter (with "main" (instance $instance))))
                (func (export "size") (result u32) (canon lift (core func $instance "size")))
                (func (export "byte") (param "at" u32) (result u32)
                    (canon lift (core func $instance "byte")))
                (func (export "small") (result s32) (canon lift (core func $instance "small")))
                (func (export "float") (result float64) (canon lift (core func $instance "float")))
                (func (export "change") (param "at" u32) (canon lift (core func $instance "change")))
                (func (export "large") (result s64) (canon lift (core func $other "large")))
                (func (export "also-small") (result s32) (canon lift (core func $other "also-small"))))"#
        ))
        .unwrap()
    }

    fn config() -> EngineConfig {
        EngineConfig { pooling: false, ..EngineConfig::default() }
    }

    fn engine(images: &Path) -> Engine {
        Engine::new(&config(), Some(ImageStore::open(images).unwrap())).unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(ready) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return ready;
            }
        }
    }

    struct Guest {
        store: Store<Limiter>,
        instance: Instance,
        memory: Option<LentMemory>,
    }

    impl Guest {
        fn new(loaded: &LoadedComponent) -> Self {
            let engine = loaded.component.engine();
            let limiter = Limiter::default().with_extra(loaded.extra_memory_bytes());
            let mut store = Store::new(engine, limiter);
            store.limiter(|limiter| limiter);
            store.set_epoch_deadline(1_000_000);
            let linker = Linker::new(engine);
            let instantiation = linker.instantiate_async(&mut store, &loaded.component);
            let (instance, memory) = run(loaded.memory.as_ref().unwrap().scope(instantiation));
            let (instance, memory) = (instance.unwrap(), memory.unwrap());
            run(memory.begin(&mut store, &instance)).unwrap();
            Self { store, instance, memory: Some(memory) }
        }

        fn number<R>(&mut self, name: &str) -> R
        where
            R: wasmtime::component::Lift + Send + Sync + 'static,
            (R,): wasmtime::component::ComponentNamedList + wasmtime::component::Lift,
        {
            let function = self.instance.get_typed_func::<(), (R,)>(&mut self.store, name).unwrap();
            run(function.call_async(&mut self.store, ())).unwrap().0
        }

        fn byte(&mut self, at: u32) -> u32 {
            let function = self.instance.get_typed_func::<(u32,), (u32,)>(&mut self.store, "byte").unwrap();
            run(function.call_async(&mut self.store, (at,))).unwrap().0
        }

        fn change(&mut self, at: u32) {
            let function = self.instance.get_typed_func::<(u32,), ()>(&mut self.store, "change").unwrap();
            run(function.call_async(&mut self.store, (at,))).unwrap();
        }

        fn assert_begins_with(&mut self, snapshot: Snapshot) {
            assert_eq!(self.number::<i32>("small"), snapshot.small);
            assert_eq!(self.number::<i32>("also-small"), snapshot.small);
            assert_eq!(self.number::<i64>("large"), snapshot.large);
            assert!((self.number::<f64>("float") - snapshot.float).abs() < f64::EPSILON);
            assert_eq!(self.number::<u32>("size"), snapshot.pages);
            for at in [0, 1, 50, 99] {
                assert_eq!(self.byte(at), u32::from(snapshot.byte), "at {at}");
            }
            assert_eq!(self.byte(100), 0);
            assert_eq!(self.byte((snapshot.pages << 16) - 1), 0);
        }
    }

    fn files(folder: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let images = paths.filter(|path| path.extension().is_some_and(|extension| extension == "cwasm"));
        images.partition(|path| ImageStore::is_shared_code(path))
    }

    #[test]
    fn code_is_compiled_once_and_each_component_begins_as_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path());
        let one = engine.load(&source(ONE, "")).unwrap();
        assert!(matches!(one.origin, Origin::Compiled(_)));
        assert_eq!(engine.mapped().images_count, 2, "its image and its code");
        let other = engine.load(&source(OTHER, "")).unwrap();
        assert!(matches!(other.origin, Origin::Shared(_)));
        assert_eq!(engine.mapped().images_count, 3);
        let (codes, images) = files(folder.path());
        assert_eq!((codes.len(), images.len()), (1, 2));
        for (loaded, snapshot) in [(&one, ONE), (&other, OTHER), (&one, ONE)] {
            Guest::new(loaded).assert_begins_with(snapshot);
        }
        drop((one, other));
        assert_eq!(engine.mapped().images_count, 0);
    }

    #[test]
    fn code_of_both_tiers_is_shared_and_the_optimized_one_is_preferred() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let engine = || {
            let images = ImageStore::open(path("images")).unwrap();
            Engine::new(&EngineConfig { compiler: Compiler::Tiered, ..config() }, Some(images)).unwrap()
        };
        let first = engine();
        let load = |engine: &Engine, snapshot: Snapshot, name: &str| {
            fs::write(path(name), source(snapshot, "")).unwrap();
            let loaded = engine.load_file(&path(name)).unwrap();
            Guest::new(&loaded).assert_begins_with(snapshot);
            loaded
        };
        let one = load(&first, ONE, "1.wasm");
        assert!(one.kind.tier == Tier::Baseline && matches!(one.origin, Origin::Compiled(_)));
        let other = load(&first, OTHER, "2.wasm");
        assert!(other.kind.tier == Tier::Baseline && matches!(other.origin, Origin::Shared(_)));
        let mut rewound = Guest::new(&other);

        let optimized = first.optimize(&path("2.wasm"), &other.digest).unwrap().unwrap();
        assert!(optimized.kind.tier == Tier::Optimized && matches!(optimized.origin, Origin::Compiled(_)));
        Guest::new(&optimized).assert_begins_with(OTHER);
        rewound.assert_begins_with(OTHER);
        let (codes, images) = files(&path("images"));
        assert_eq!((codes.len(), images.len()), (1, 2), "baseline code is gone");

        // In this process, and in one that finds the image of the first without its code.
        for engine in [first, engine()] {
            let third = load(&engine, Snapshot { byte: b'c', ..ONE }, "3.wasm");
            assert_eq!(third.kind.tier, Tier::Optimized);
            assert_eq!(load(&engine, OTHER, "2.wasm").kind.tier, Tier::Optimized);
        }
        let one = load(&engine(), ONE, "1.wasm");
        assert!(one.kind.tier == Tier::Optimized && matches!(one.origin, Origin::Shared(_)));
    }

    #[test]
    fn without_a_store_code_is_shared_as_long_as_it_is_used() {
        let engine = Engine::new(&config(), None).unwrap();
        let one = engine.load(&source(ONE, "")).unwrap();
        let other = engine.load(&source(OTHER, "")).unwrap();
        assert!(matches!((one.origin, other.origin), (Origin::Compiled(_), Origin::Shared(_))));
        Guest::new(&other).assert_begins_with(OTHER);
        drop((one, other));
        assert!(matches!(engine.load(&source(OTHER, "")).unwrap().origin, Origin::Compiled(_)));
    }

    #[test]
    fn an_instance_is_rewound_to_what_its_component_begins_with() {
        let in_each_tier = [Compiler::Optimized, Compiler::Baseline].into_iter().flat_map(|compiler| {
            let engine = Engine::new(&EngineConfig { compiler, ..config() }, None).unwrap();
            [ONE, OTHER].map(|snapshot| (engine.load(&source(snapshot, "")).unwrap(), snapshot))
        });
        for (loaded, snapshot) in in_each_tier {
            let mut guest = Guest::new(&loaded);
            let memory = guest.memory.take().unwrap();
            let mut rewinder =
                Rewinder::new(&mut guest.store, &guest.instance, memory, loaded.kind.flavor).unwrap();
            for at in [0, 7, 99, 5_000, 70_000] {
                guest.change(at);
                assert_eq!((guest.byte(at), guest.number::<i32>("small")), (1, 1));
                assert!(run(rewinder.rewind(&mut guest.store)));
                guest.assert_begins_with(snapshot);
            }
        }
    }

    #[test]
    fn a_memory_counts_with_all_that_it_begins_with() {
        let engine = Engine::new(&config(), None).unwrap();
        let loaded = engine.load(&source(OTHER, "")).unwrap();
        // The code says what the module asks for that shares the memory.
        assert_eq!(loaded.extra_memory_bytes(), 7 << 16);
        let limits = |pages: usize| crate::InstanceLimits {
            memory_bytes: pages << 16,
            ..crate::InstanceLimits::default()
        };
        for (pages, is_made) in [(8, false), (9, true)] {
            let limiter = Limiter::new(limits(pages), None).with_extra(loaded.extra_memory_bytes());
            let mut store = Store::new(loaded.component.engine(), limiter);
            store.limiter(|limiter| limiter);
            store.set_epoch_deadline(1_000_000);
            let linker = Linker::new(loaded.component.engine());
            let instantiation = linker.instantiate_async(&mut store, &loaded.component);
            let (instance, _) = run(loaded.memory.as_ref().unwrap().scope(instantiation));
            assert_eq!(instance.is_ok(), is_made, "{pages} pages");
        }
    }

    #[test]
    fn what_is_no_snapshot_makes_for_code_of_its_own() {
        let digest = |source: &[u8], takes_variables| {
            let extracted = snapshot::extract(source).unwrap().unwrap();
            Digest::of(&separate(&extracted.component, takes_variables).unwrap().unwrap().component)
        };
        let one = source(ONE, "");
        assert_eq!(digest(&one, true), digest(&source(OTHER, ""), true));
        assert_ne!(digest(&one, false), digest(&source(OTHER, ""), false), "variables are in the code");
        for fields in ["(func)", "(global i32 (i32.const 1))", "(global (mut externref) (ref.null extern))"] {
            assert_ne!(digest(&one, true), digest(&source(ONE, fields), true), "{fields}");
        }
        let text = |value| format!("(global i32 (i32.const {value}))");
        let (three, four) = (source(ONE, &text(3)), source(ONE, &text(4)));
        assert_ne!(digest(&three, true), digest(&four, true), "what instructions cannot set");
    }

    #[test]
    fn variables_stay_in_code_whose_instances_cannot_be_rewound() {
        let engine = Engine::new(&config(), None).unwrap();
        // As large as what profits without that.
        let data = format!(r#"(data (i32.const 65536) "{}")"#, "d".repeat(snapshot::LARGE_CONTENTS_BYTES));
        let fields = format!("{data} (func $start) (start $start)");
        let snapshot = Snapshot { pages: 20, ..ONE };
        let one = engine.load(&source(snapshot, &fields)).unwrap();
        assert!(!one.memory.as_ref().unwrap().can_rewind());
        let mut guest = Guest::new(&one);
        assert_eq!((guest.number::<i32>("small"), guest.byte(65_536)), (ONE.small, u32::from(b'd')));
        // Another size is another snapshot, another variable is other code.
        let larger = engine.load(&source(Snapshot { pages: 21, ..ONE }, &fields)).unwrap();
        assert!(matches!(larger.origin, Origin::Shared(_)));
        let other = engine.load(&source(Snapshot { small: 1, ..snapshot }, &fields)).unwrap();
        assert!(matches!(other.origin, Origin::Compiled(_)));
        assert_eq!(Guest::new(&other).number::<i32>("small"), 1);
    }

    #[test]
    fn altered_code_is_compiled_again() {
        let folder = tempfile::tempdir().unwrap();
        drop(engine(folder.path()).load(&source(ONE, "")).unwrap());
        let (codes, _) = files(folder.path());
        let mut bytes = fs::read(&codes[0]).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&codes[0], &bytes).unwrap();
        // Another process: neither the image with this code nor another one is loaded.
        let engine = engine(folder.path());
        let other = engine.load(&source(OTHER, "")).unwrap();
        assert!(matches!(other.origin, Origin::Compiled(_)));
        let one = engine.load(&source(ONE, "")).unwrap();
        assert!(matches!(one.origin, Origin::Mapped), "{:?}", one.origin);
        Guest::new(&one).assert_begins_with(ONE);
    }

    #[test]
    fn altered_values_of_variables_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(ONE, "");
        drop(engine(folder.path()).load(&source).unwrap());
        let (_, images) = files(folder.path());
        let sound = fs::read(&images[0]).unwrap();
        let first = ONE.small.to_le_bytes();
        let place = sound.windows(4).rposition(|bytes| bytes == first).unwrap();
        for position in (place..sound.len()).step_by(9) {
            let mut altered = sound.clone();
            altered[position] ^= 1;
            fs::write(&images[0], &altered).unwrap();
            let loaded = engine(folder.path()).load(&source).unwrap();
            assert!(matches!(loaded.origin, Origin::Shared(_)), "byte {position} altered");
        }
    }

    #[test]
    fn a_signed_store_lends_its_code_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = SigningKey::open(&path("image.key")).unwrap();
        let signed = ImageStore::open_signed(path("images"), key.verifying_key()).unwrap();
        let make = |snapshot, name: &str| {
            let (bytes, made) = (source(snapshot, ""), path(name));
            fs::write(path("source.wasm"), &bytes).unwrap();
            let image = compile_file(&config(), &path("source.wasm"), &made, Some(signed.folder())).unwrap();
            (image, Digest::of(&bytes), files(&made).0.len())
        };
        let loads = |digest: &Digest| {
            let store = ImageStore::open_signed(path("images"), key.verifying_key()).unwrap();
            store.has(digest, &Engine::new(&config(), None).unwrap())
        };
        let (image, one, codes_count) = make(ONE, "1");
        assert_eq!(codes_count, 1, "nobody has its code yet");
        assert!(signed.adopt(&image, &one, &key).unwrap());
        let (image, other, codes_count) = make(OTHER, "2");
        assert_eq!(codes_count, 0, "its code is lent");
        assert!(signed.adopt(&image, &other, &key).unwrap());
        assert!(loads(&one) && loads(&other));
        let code = signed.code_path_of(&image).unwrap();
        assert_eq!(files(signed.folder()).0, std::slice::from_ref(&code));

        // Sound in itself, and made by somebody else.
        let sound = fs::read(&code).unwrap();
        let stranger = SigningKey::open(&path("other.key")).unwrap();
        let theirs = ImageStore::open_signed(path("theirs"), stranger.verifying_key()).unwrap();
        let own = compile_file(&config(), &path("source.wasm"), &path("3"), None).unwrap();
        assert!(theirs.adopt(&own, &other, &stranger).unwrap());
        fs::copy(theirs.folder().join(code.file_name().unwrap()), &code).unwrap();
        assert!(!loads(&one) && !loads(&other));
        // Whoever takes in an image that relies on it removes it, and compiles it again.
        assert!(!signed.adopt(&image, &other, &key).unwrap());
        assert!(!code.exists());
        fs::write(&code, sound).unwrap();
        assert!(loads(&one) && loads(&other));
    }

    #[test]
    fn functions_that_the_component_does_not_use_are_not_exported() {
        let exports = |component: &[u8]| {
            let mut names = Vec::new();
            for payload in Parser::new(0).parse_all(component) {
                let Payload::ExportSection(exports) = payload.unwrap() else { continue };
                names.extend(exports.into_iter().map(|export| export.unwrap().name.to_owned()));
            }
            names
        };
        let source = source(ONE, r#"(func (export "unused")) (table (export "table") 1 funcref)"#);
        let code = separate(&source, true).unwrap().unwrap().component;
        let left: Vec<_> =
            exports(&source).into_iter().filter(|name| !exports(&code).contains(name)).collect();
        assert_eq!(left, ["unused"]);
    }

    #[test]
    fn garbled_input_does_no_harm() {
        let source = source(ONE, "");
        // The structure is at both ends; between them lies the padding.
        let (head, tail) = (60, 2_000);
        for position in (0..head).chain(source.len() - tail..source.len()) {
            for flip in [1, 0x80, 0xff] {
                let mut garbled = source.clone();
                garbled[position] ^= flip;
                if let Ok(Some(code)) = separate(&garbled, true) {
                    assert!(code.beginning.variables.len() <= MAX_VARIABLES_BYTES);
                }
            }
            let _ = separate(&source[..position], true);
        }
    }
}

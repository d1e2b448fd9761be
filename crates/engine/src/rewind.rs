//! Makes instances that can be put back to their beginning.
//!
//! A request must find an instance as if nobody had used it before. A new instance is
//! one way; to *rewind* a used one is another, which costs a fraction: what a guest
//! can change is put back to what it was right after instantiation. The guest cannot
//! tell the difference, because the following is all that a component consists of:
//!
//! | state | how it is put back |
//! | --- | --- |
//! | linear memory | the pages that were written to are copied back ([`crate::memory`]) |
//! | the memory's size | an instance whose memory grew is not rewound but dropped |
//! | globals | a function that is added to the component sets them to their initial values, which it has or which the engine gives it (see [`crate::code`]) |
//! | tables, dropped segments | components with an instruction that changes one are not rewound |
//! | what the host keeps for the instance | replaced by the caller |
//! | handles to the host's resources | those the guest did not give back stand for nothing any more; see below |
//! | tasks, streams, futures | an instance in which any is left is not rewound but dropped |
//! | back-pressure, threads, error contexts | components that can have any are not rewound |
//!
//! Whether tasks, streams or futures are left is known from the table in which Wasmtime
//! keeps all of them for a store. What the host does for one of them has an entry there
//! for as long as it goes on, so nothing of it reaches into the next request.
//!
//! A handle that a guest did not give back keeps its number. The resource it stood for
//! is gone with the host's state, every use is checked against the resources that the
//! new request has, and what could have known the number was put back to before it was
//! given. What remains of another request is that a number is taken. The caller bounds
//! how many become taken so, or drops instances that leave any.
//!
//! Nothing of the guest's own may run while it is instantiated (a *start function*),
//! or what it had asked the host for then, such as random numbers, would be the same
//! for every request. Such components are not rewound either; nor is an instance in
//! which a guest trapped, was cut off or ran out of time.

use std::ops::Range;

use wasm_encoder::{
    Alias, CanonicalFunctionSection, ComponentAliasSection, ComponentExportKind, ComponentExportSection,
    ComponentSection, ComponentTypeSection, Encode as _, ExportKind, InstanceSection, Module, ModuleArg,
    ModuleSection, Section as _,
};
use wasmparser::{
    BinaryReader, CanonicalFunction, FunctionBody, Instance, Operator, Parser, Payload, TypeRef,
    ValidPayload, Validator, WasmFeatures,
};
use wasmtime::{
    Store,
    component::{Instance as ComponentInstance, TypedFunc},
};

use crate::{
    Error, Flavor,
    code::{self, Number},
    instructions::{PREFIX, numbers_after},
    memory::LentMemory,
    normalize,
};

/// The function that puts globals back, in modules and in the component.
const REWIND: &str = "wisp-rewind";

/// Identifiers of sections in core modules.
mod section {
    pub(super) const CUSTOM: u8 = 0;
    pub(super) const TYPE: u8 = 1;
    pub(super) const FUNCTION: u8 = 3;
    pub(super) const EXPORT: u8 = 7;
    pub(super) const CODE: u8 = 10;
}

/// The instruction that sets an element of a table, whose number follows.
const TABLE_SET: u8 = 0x26;

/// What follows [`PREFIX`] in those that drop a segment or change a table: `data.drop`, `table.init`,
/// `elem.drop`, `table.copy`, `table.grow`, `table.fill`.
const CHANGE_WHAT_STAYS: [u32; 6] = [9, 12, 13, 14, 15, 17];

/// What is to be known about a core module.
#[derive(Default)]
struct Facts {
    types_count: u32,
    functions_count: u32,
    globals_count: u32,
    /// Globals that instructions may set.
    variables: Vec<Variable>,
    /// Whether it has the component's memory.
    has_memory: bool,
    /// Sections that a function must be added to and that exist.
    has_sections: bool,
}

/// A global that instructions may set.
struct Variable {
    global: u32,
    /// Where the expression for its initial value is.
    value: Range<usize>,
    /// What kind of number that is, if it is one.
    number: Option<Number>,
}

/// Where the function that puts globals back finds their initial values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitialValues {
    /// In the component.
    InCode,
    /// In the first bytes of the memory while it runs, as far as they were taken out of
    /// the component.
    InMemory,
}

/// How many of each there are at the end of a component.
struct Counts {
    modules: u32,
    core_instances: u32,
    core_functions: u32,
    types: u32,
    functions: u32,
}

/// Adds to a component the function that puts its globals back; `None` if its
/// instances cannot be rewound.
///
/// # Errors
/// If the component is malformed.
pub(crate) fn prepare(component: &[u8], values: InitialValues) -> Result<Option<Vec<u8>>, Error> {
    let mut next_bytes = (values == InitialValues::InMemory).then_some(0);
    let Some(counts) = counts(component)? else { return Ok(None) };
    let mut output = Vec::with_capacity(component.len() + 1024);
    // By module: whether it has the function. By instance: its module.
    let mut has_variables = Vec::new();
    let mut rewound = Vec::new();
    let mut core_instance = 0_u32;
    for section in normalize::sections(component) {
        let (payload, bytes) = section?;
        match payload {
            Payload::ModuleSection { unchecked_range, .. } => {
                let module = normalize::nested(bytes, &unchecked_range);
                let Some(facts) = facts(module)? else { return Ok(None) };
                has_variables.push(!facts.variables.is_empty());
                if facts.variables.is_empty() {
                    output.extend_from_slice(bytes);
                } else if facts.has_sections {
                    normalize::core_module(&mut output, |output| {
                        with_rewind(module, &facts, &mut next_bytes, output)
                    })?;
                } else {
                    return Ok(None);
                }
                continue;
            }
            Payload::ComponentSection { unchecked_range, .. } => {
                let nested = normalize::nested(bytes, &unchecked_range);
                for payload in Parser::new(0).parse_all(nested) {
                    // Wrappers that only rename things are everywhere; anything else
                    // is a composition.
                    if let Payload::ModuleSection { .. }
                    | Payload::InstanceSection(_)
                    | Payload::ComponentCanonicalSection(_) = payload.map_err(normalize::invalid)?
                    {
                        return Ok(None);
                    }
                }
            }
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    if let Instance::Instantiate { module_index, .. } =
                        instance.map_err(normalize::invalid)?
                        && has_variables.get(module_index as usize).copied().unwrap_or(false)
                    {
                        rewound.push(core_instance);
                    }
                    core_instance += 1;
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    let export = export.map_err(normalize::invalid)?;
                    // Resources of the guest's own would be state we do not see.
                    let is_type = export.kind == wasmparser::ComponentExternalKind::Type;
                    if is_type || export.name.name == REWIND {
                        return Ok(None);
                    }
                }
            }
            Payload::ComponentCanonicalSection(functions) => {
                for function in functions {
                    if leaves_state(&function.map_err(normalize::invalid)?) {
                        return Ok(None);
                    }
                }
            }
            _ => {}
        }
        output.extend_from_slice(bytes);
    }
    if core_instance != counts.core_instances {
        return Ok(None);
    }
    add_function(&mut output, &counts, &rewound);
    Ok(Some(output))
}

/// Whether a guest with this function may leave something behind that is neither in its
/// memory and globals nor seen by [`Rewinder::rewind`]. What is not known here may.
fn leaves_state(function: &CanonicalFunction) -> bool {
    use CanonicalFunction as F;
    !matches!(
        function,
        F::Lift { .. }
            | F::Lower { .. }
            | F::ResourceDrop { .. }
            | F::ResourceRep { .. }
            // A task's own context goes with the task.
            | F::ContextGet { .. }
            | F::ContextSet { .. }
            | F::TaskReturn { .. }
            | F::TaskCancel
            | F::ThreadYield { .. }
            | F::SubtaskDrop
            | F::SubtaskCancel { .. }
            | F::StreamNew { .. }
            | F::StreamRead { .. }
            | F::StreamWrite { .. }
            | F::StreamCancelRead { .. }
            | F::StreamCancelWrite { .. }
            | F::StreamDropReadable { .. }
            | F::StreamDropWritable { .. }
            | F::FutureNew { .. }
            | F::FutureRead { .. }
            | F::FutureWrite { .. }
            | F::FutureCancelRead { .. }
            | F::FutureCancelWrite { .. }
            | F::FutureDropReadable { .. }
            | F::FutureDropWritable { .. }
            | F::WaitableSetNew
            | F::WaitableSetWait { .. }
            | F::WaitableSetPoll { .. }
            | F::WaitableSetDrop
            | F::WaitableJoin
    )
}

/// Counts what a component defines; `None` if it has modules that are not its own.
fn counts(component: &[u8]) -> Result<Option<Counts>, Error> {
    // Bodies of functions are left to the compiler.
    let mut validator = Validator::new_with_features(WasmFeatures::all());
    let mut depth = 0_u32;
    let mut modules = 0;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(normalize::invalid)?;
        match &payload {
            Payload::ModuleSection { .. } => modules += u32::from(depth == 1),
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => {
                depth -= 1;
                if depth == 0 {
                    let Some(types) = validator.types(0) else { return Ok(None) };
                    let counts = Counts {
                        modules: types.module_count(),
                        core_instances: types.core_instance_count(),
                        core_functions: types.function_count(),
                        types: types.component_type_count(),
                        functions: types.component_function_count(),
                    };
                    return Ok(Some(counts).filter(|counts| counts.modules == modules));
                }
            }
            _ => {}
        }
        if let ValidPayload::Func(..) = validator.payload(&payload).map_err(normalize::invalid)? {
            continue;
        }
    }
    Ok(None)
}

/// Looks through a module; `None` if its instances cannot be rewound.
fn facts(module: &[u8]) -> Result<Option<Facts>, Error> {
    let mut facts = Facts::default();
    let (mut sections_count, mut tables_count, mut bodies) = (0, 0_u32, Vec::new());
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(normalize::invalid)?;
        if let Some((id, _)) = payload.as_section() {
            let is_needed = matches!(id, section::TYPE | section::FUNCTION | section::EXPORT | section::CODE);
            sections_count += u32::from(is_needed);
        }
        match payload {
            Payload::StartSection { .. } => return Ok(None),
            Payload::TypeSection(types) => {
                for group in types {
                    let count = group.map_err(normalize::invalid)?.types().len();
                    facts.types_count += u32::try_from(count).unwrap_or(u32::MAX);
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    match import.map_err(normalize::invalid)?.ty {
                        TypeRef::Func(_) | TypeRef::FuncExact(_) => facts.functions_count += 1,
                        TypeRef::Global(_) => facts.globals_count += 1,
                        TypeRef::Memory(_) => facts.has_memory = true,
                        TypeRef::Table(_) => tables_count = tables_count.saturating_add(1),
                        _ => {}
                    }
                }
            }
            Payload::TableSection(tables) => tables_count = tables_count.saturating_add(tables.count()),
            Payload::FunctionSection(functions) => facts.functions_count += functions.count(),
            Payload::MemorySection(_) => facts.has_memory = true,
            Payload::GlobalSection(globals) => {
                for global in globals {
                    let global = global.map_err(normalize::invalid)?;
                    if global.ty.mutable {
                        let number = code::variable(&global).map(|(_, number)| number);
                        let value = global.init_expr.get_binary_reader().range();
                        facts.variables.push(Variable { global: facts.globals_count, value, number });
                    }
                    facts.globals_count += 1;
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    if export.map_err(normalize::invalid)?.name == REWIND {
                        return Ok(None);
                    }
                }
            }
            Payload::CodeSectionEntry(body) => bodies.push(body),
            _ => {}
        }
    }
    facts.has_sections = sections_count == 4;
    for body in &bodies {
        if changes_what_stays(body, tables_count)? {
            return Ok(None);
        }
    }
    Ok(Some(facts))
}

/// Whether a function has an instruction that changes a table or drops a segment.
fn changes_what_stays(body: &FunctionBody<'_>, tables_count: u32) -> Result<bool, Error> {
    if !may_change_what_stays(body.as_bytes(), tables_count) {
        return Ok(false);
    }
    let mut operators = body.get_operators_reader().map_err(normalize::invalid)?;
    while !operators.eof() {
        match operators.read().map_err(normalize::invalid)? {
            Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. }
            | Operator::ElemDrop { .. }
            | Operator::DataDrop { .. } => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// Whether such an instruction may be among these bytes.
fn may_change_what_stays(body: &[u8], tables_count: u32) -> bool {
    numbers_after(body, PREFIX).any(|number| CHANGE_WHAT_STAYS.contains(&number))
        || numbers_after(body, TABLE_SET).any(|table| table < tables_count)
}

/// Writes a module with a function that sets its variables to their initial values. Those
/// that it finds in the memory begin at `next_bytes`.
fn with_rewind(
    module: &[u8],
    facts: &Facts,
    next_bytes: &mut Option<u32>,
    output: &mut Vec<u8>,
) -> Result<(), Error> {
    let mut body = vec![0]; // no locals
    for Variable { global, value, number } in &facts.variables {
        match (number, &mut *next_bytes) {
            // In the order in which `code::separate` took them out.
            (Some(number), Some(at_bytes)) if facts.has_memory => {
                body.extend_from_slice(&[0x41, 0, number.load_opcode(), 0]); // i32.const 0, load
                at_bytes.encode(&mut body);
                *at_bytes = at_bytes.saturating_add(number.size_bytes());
            }
            // A constant expression, without its end, is an instruction sequence.
            _ => body.extend_from_slice(&module[value.start..value.end.saturating_sub(1)]),
        }
        body.push(0x24); // global.set
        global.encode(&mut body);
    }
    body.push(0x0b); // end

    let mut function_type = Vec::new();
    function_type.extend_from_slice(&[0x60, 0, 0]);
    let mut function = Vec::new();
    facts.types_count.encode(&mut function);
    let mut export = Vec::new();
    REWIND.encode(&mut export);
    export.push(0x00); // a function
    facts.functions_count.encode(&mut export);
    let mut code = Vec::new();
    body.encode(&mut code);

    output.extend_from_slice(&Module::HEADER);
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(normalize::invalid)?;
        let Some((id, range)) = payload.as_section() else { continue };
        let contents = &module[range];
        match id {
            section::TYPE => append_entry(output, id, contents, &function_type)?,
            section::FUNCTION => append_entry(output, id, contents, &function)?,
            section::EXPORT => append_entry(output, id, contents, &export)?,
            section::CODE => append_entry(output, id, contents, &code)?,
            section::CUSTOM..=u8::MAX => {
                wasm_encoder::RawSection { id, data: contents }.append_to(output);
            }
        }
    }
    Ok(())
}

/// Writes a section that is a counted list, with one more entry at its end.
fn append_entry(output: &mut Vec<u8>, id: u8, contents: &[u8], entry: &[u8]) -> Result<(), Error> {
    let mut reader = BinaryReader::new(contents, 0);
    let count = reader.read_var_u32().map_err(normalize::invalid)?;
    let entries = &contents[reader.original_position()..];
    output.push(id);
    normalize::with_length(output, |output| {
        count.saturating_add(1).encode(output);
        output.extend_from_slice(entries);
        output.extend_from_slice(entry);
        Ok(())
    })
}

/// Adds a function that calls those of the core instances in `rewound`.
fn add_function(output: &mut Vec<u8>, counts: &Counts, rewound: &[u32]) {
    let calls_count = u32::try_from(rewound.len()).unwrap_or(u32::MAX);
    let mut add = |section: &dyn ComponentSection| section.append_to_component(output);

    let mut aliases = ComponentAliasSection::new();
    for instance in rewound {
        aliases.alias(Alias::CoreInstanceExport {
            instance: *instance,
            kind: ExportKind::Func,
            name: REWIND,
        });
    }
    if calls_count > 0 {
        add(&aliases);
    }
    add(&ModuleSection(&caller(calls_count)));
    let names: Vec<String> = (0..calls_count).map(|number| number.to_string()).collect();
    let mut instances = InstanceSection::new();
    let functions = counts.core_functions..counts.core_functions + calls_count;
    let calls: Vec<_> = names.iter().zip(functions).collect();
    instances
        .export_items(calls.into_iter().map(|(name, function)| (name.as_str(), ExportKind::Func, function)));
    instances.instantiate(counts.modules, [("", ModuleArg::Instance(counts.core_instances))]);
    add(&instances);
    let mut alias = ComponentAliasSection::new();
    alias.alias(Alias::CoreInstanceExport {
        instance: counts.core_instances + 1,
        kind: ExportKind::Func,
        name: REWIND,
    });
    add(&alias);
    let mut types = ComponentTypeSection::new();
    types.function().params::<[(&str, wasm_encoder::ComponentValType); 0], _>([]).result(None);
    add(&types);
    let mut functions = CanonicalFunctionSection::new();
    functions.lift(counts.core_functions + calls_count, counts.types, []);
    add(&functions);
    let mut exports = ComponentExportSection::new();
    exports.export(REWIND, ComponentExportKind::Func, counts.functions, None);
    add(&exports);
}

/// A module whose one function calls all that it imports.
fn caller(calls_count: u32) -> Module {
    let mut types = wasm_encoder::TypeSection::new();
    types.ty().function([], []);
    let mut imports = wasm_encoder::ImportSection::new();
    let mut function = wasm_encoder::Function::new([]);
    for number in 0..calls_count {
        imports.import("", &number.to_string(), wasm_encoder::EntityType::Function(0));
        function.instructions().call(number);
    }
    function.instructions().end();
    let mut functions = wasm_encoder::FunctionSection::new();
    functions.function(0);
    let mut exports = wasm_encoder::ExportSection::new();
    exports.export(REWIND, ExportKind::Func, calls_count);
    let mut code = wasm_encoder::CodeSection::new();
    code.function(&function);
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&functions).section(&exports).section(&code);
    module
}

/// Puts one instance back to its beginning, again and again.
pub struct Rewinder {
    memory: LentMemory,
    globals: TypedFunc<(), ()>,
    /// Entries of the store's table of tasks, streams and futures when the instance was
    /// new; `None` without concurrency.
    tasks_count: Option<usize>,
}

impl Rewinder {
    /// The name of the export that was added to components, which is none of theirs.
    pub const EXPORT: &str = REWIND;

    /// For an instance that was just made, in `store`, of a component of this flavor that
    /// can be rewound; `memory` is the one it was made with.
    ///
    /// # Errors
    /// If the component lacks the function that was added to it.
    pub fn new<T: 'static>(
        store: &mut Store<T>,
        instance: &ComponentInstance,
        mut memory: LentMemory,
        flavor: Flavor,
    ) -> wasmtime::Result<Self> {
        let globals = instance.get_typed_func(&mut *store, REWIND)?;
        memory.remember();
        let tasks_count = flavor.is_concurrent().then(|| store.concurrent_state_table_size());
        Ok(Self { memory, globals, tasks_count })
    }

    /// Rewinds the instance, which must have answered its call without an error; its
    /// store's data is the caller's to replace. Answers false if it
    /// cannot be rewound; then it must not be used again.
    pub async fn rewind<T: Send + 'static>(&mut self, store: &mut Store<T>) -> bool {
        if self.tasks_count.is_some_and(|count| count != store.concurrent_state_table_size()) {
            return false;
        }
        // The store is borrowed alone, so nobody runs in it or looks at its memory. The
        // values that the function reads are gone with the rest when that is restored.
        self.memory.lay_out_variables();
        self.globals.call_async(&mut *store, ()).await.is_ok() && self.memory.restore()
    }
}

impl LentMemory {
    /// Completes an instance that was just made with this memory in `store`: its globals
    /// get the values that it begins with, where its code does not have them. To be
    /// called before anything of the guest's runs.
    ///
    /// # Errors
    /// If the component lacks the function that was added to it, or that is interrupted.
    pub async fn begin<T: Send + 'static>(
        &self,
        store: &mut Store<T>,
        instance: &ComponentInstance,
    ) -> wasmtime::Result<()> {
        if !self.has_variables() {
            return Ok(());
        }
        let globals: TypedFunc<(), ()> = instance.get_typed_func(&mut *store, REWIND)?;
        // The store is borrowed alone, so nobody sees what its memory is used for.
        let before = self.before_variables();
        self.lay_out_variables();
        let called = globals.call_async(&mut *store, ()).await;
        self.put_back(&before);
        called
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::task::{Context, Poll, Waker};

    use wasmtime::component::{ComponentNamedList, Lift, Linker, Lower};

    use super::*;
    use crate::{Compiler, Engine, EngineConfig, LoadedComponent, OneThread};

    /// What is around the parts that a test is about.
    fn component(fields: &str, rest: &str) -> Vec<u8> {
        wat::parse_str(format!(
            r#"(component
                (core module $module
                    (memory (export "memory") 4)
                    (data (i32.const 100) "beginning")
                    (table (export "table") 2 funcref)
                    (func $nothing)
                    (elem declare func $nothing)
                    {fields})
                (core instance $instance (instantiate $module))
                {rest})"#
        ))
        .unwrap()
    }

    const GLOBALS: &str = r#"
        (global $small (mut i32) (i32.const -5))
        (global $large (mut i64) (i64.const 1234567890123))
        (global $float (mut f64) (f64.const 0.5))
        (global $function (mut funcref) (ref.null func))
        (func (export "change") (param i32)
            (i32.store8 (local.get 0) (i32.const 1))
            (global.set $small (i32.const 1))
            (global.set $large (i64.const 1))
            (global.set $float (f64.const 1))
            (global.set $function (ref.func $nothing)))
        (func (export "is-new") (param i32) (result i32)
            (i32.and
                (i32.and
                    (i32.and
                        (i32.eq (global.get $small) (i32.const -5))
                        (i64.eq (global.get $large) (i64.const 1234567890123)))
                    (i32.and
                        (f64.eq (global.get $float) (f64.const 0.5))
                        (ref.is_null (global.get $function))))
                (i32.eqz (i32.load8_u (local.get 0)))))
        (func (export "read") (param i32) (result i32) (i32.load8_u (local.get 0)))
        (func (export "grow") (result i32) (memory.grow (i32.const 1)))"#;

    const LIFTED: &str = r#"
        (func (export "change") (param "at" u32) (canon lift (core func $instance "change")))
        (func (export "is-new") (param "at" u32) (result u32) (canon lift (core func $instance "is-new")))
        (func (export "read") (param "at" u32) (result u32) (canon lift (core func $instance "read")))
        (func (export "grow") (result u32) (canon lift (core func $instance "grow")))"#;

    struct Guest {
        store: Store<()>,
        instance: ComponentInstance,
        rewinder: Rewinder,
        _loaded: LoadedComponent,
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(ready) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return ready;
            }
        }
    }

    impl Guest {
        fn new(source: &[u8]) -> Self {
            Self::of(Compiler::Optimized, source)
        }

        fn of(compiler: Compiler, source: &[u8]) -> Self {
            let config = EngineConfig { compiler, pooling: false, ..EngineConfig::default() };
            let loaded = Engine::new(&config, None).unwrap().load(source).unwrap();
            let memory = loaded.memory.as_ref().unwrap();
            assert!(memory.can_rewind());
            let engine = loaded.component.engine().clone();
            let mut store = Store::new(&engine, ());
            store.set_epoch_deadline(1_000_000);
            let linker = Linker::new(&engine);
            let (instance, lent) = run(memory.scope(linker.instantiate_async(&mut store, &loaded.component)));
            let instance = instance.unwrap();
            let rewinder = Rewinder::new(&mut store, &instance, lent.unwrap(), loaded.kind.flavor).unwrap();
            Self { store, instance, rewinder, _loaded: loaded }
        }

        fn call<P, R>(&mut self, name: &str, parameters: P) -> R
        where
            P: ComponentNamedList + Lower + Send + Sync,
            R: ComponentNamedList + Lift + Send + Sync + 'static,
        {
            let function = self.instance.get_typed_func::<P, R>(&mut self.store, name).unwrap();
            run(function.call_async(&mut self.store, parameters)).unwrap()
        }

        fn is_new(&mut self, at: u32) -> bool {
            self.call::<_, (u32,)>("is-new", (at,)).0 == 1
        }

        fn rewind(&mut self) -> bool {
            run(self.rewinder.rewind(&mut self.store))
        }
    }

    #[test]
    fn instructions_that_change_what_stays_are_found_among_others() {
        let finds = |instructions: &str, is_one: bool| {
            // Bytes that look like one: an immediate of `table.set` before a zero.
            let noise = "(drop (i32.const 38)) (drop (i32.const 0)) (drop (i32.const -4))";
            let source = component(&format!("(func {noise} {instructions} {noise})"), "");
            assert_eq!(prepare(&source, InitialValues::InCode).unwrap().is_none(), is_one, "{instructions}");
        };
        for instructions in [
            "",
            "(memory.copy (i32.const 0) (i32.const 1) (i32.const 2))",
            "(memory.fill (i32.const 0) (i32.const 1) (i32.const 2))",
            "(drop (i32.trunc_sat_f64_s (f64.const 1)))",
            "(drop (table.size 0)) (drop (table.get 0 (i32.const 0)))",
        ] {
            finds(instructions, false);
        }
        for instructions in [
            "(table.set 0 (i32.const 0) (ref.null func))",
            "(drop (table.grow 0 (ref.null func) (i32.const 1)))",
            "(table.fill 0 (i32.const 0) (ref.null func) (i32.const 1))",
            "(table.copy 0 0 (i32.const 0) (i32.const 0) (i32.const 1))",
        ] {
            finds(instructions, true);
        }
    }

    #[test]
    fn memory_and_globals_are_as_in_the_beginning() {
        for compiler in [Compiler::Optimized, Compiler::Baseline] {
            let mut guest = Guest::of(compiler, &component(GLOBALS, LIFTED));
            for at in (0..4_u32 << 16).step_by(10_007) {
                assert!(guest.is_new(at));
                guest.call::<_, ()>("change", (at,));
                assert!(!guest.is_new(at));
                assert!(guest.rewind());
                assert!(guest.is_new(at));
                assert_eq!(guest.call::<_, (u32,)>("read", (100_u32,)).0, u32::from(b'b'));
            }
        }
    }

    /// Lets the guest run on this thread, in a run that may have been on others.
    fn on(thread: &mut OneThread, mut work: impl FnMut()) {
        let context = &mut Context::from_waker(Waker::noop());
        assert!(thread.poll(std::pin::pin!(async { work() }), context).is_ready());
    }

    #[test]
    fn pages_that_are_known_to_be_dirty_are_not_all() {
        let mut guest = Guest::new(&component(GLOBALS, LIFTED));
        // Some pages are written to for the first time, some again.
        for at in (0..4_u32 << 16).step_by(10_007).chain((0..4_u32 << 16).step_by(7_001)) {
            on(&mut OneThread::default(), || {
                assert!(guest.is_new(at));
                guest.call::<_, ()>("change", (at,));
                assert!(guest.rewind());
                assert!(guest.is_new(at));
            });
        }
    }

    #[test]
    fn what_another_thread_wrote_is_no_fault_of_this_one() {
        let mut guest = Guest::new(&component(GLOBALS, LIFTED));
        let mut thread = OneThread::default();
        on(&mut thread, || assert!(guest.rewind()));
        let at = 3 << 16;
        std::thread::scope(|scope| {
            let elsewhere = || on(&mut thread, || guest.call::<_, ()>("change", (at,)));
            scope.spawn(elsewhere).join().unwrap();
        });
        on(&mut thread, || {
            assert!(guest.rewind());
            assert!(guest.is_new(at));
        });
    }

    #[test]
    fn a_memory_that_grew_cannot_be_rewound() {
        let mut guest = Guest::new(&component(GLOBALS, LIFTED));
        assert!(guest.rewind());
        guest.call::<_, (u32,)>("grow", ());
        assert!(!guest.rewind());
    }

    #[test]
    fn an_instance_that_leaves_a_stream_open_cannot_be_rewound() {
        let source = |canon: &str| {
            let source = format!(
                r#"(component
                    (type $bytes (stream u8))
                    (core func $new (canon stream.new $bytes))
                    {canon}
                    (core module $module
                        (import "" "new" (func $new (result i64)))
                        (memory (export "memory") 1)
                        (data (i32.const 100) "beginning")
                        (global $count (mut i32) (i32.const 0))
                        (func (export "count") (result i32)
                            (global.set $count (i32.add (global.get $count) (i32.const 1)))
                            (global.get $count))
                        (func (export "leave") (drop (call $new))))
                    (core instance $instance (instantiate $module
                        (with "" (instance (export "new" (func $new))))))
                    (func (export "count") (result u32) (canon lift (core func $instance "count")))
                    (func (export "leave") (canon lift (core func $instance "leave"))))"#
            );
            wat::parse_str(source).unwrap()
        };
        let mut guest = Guest::new(&source(""));
        for _ in 0..3 {
            assert_eq!(guest.call::<_, (u32,)>("count", ()).0, 1);
            assert_eq!(guest.call::<_, (u32,)>("count", ()).0, 2);
            assert!(guest.rewind());
        }
        guest.call::<_, ()>("leave", ());
        assert!(!guest.rewind());

        let is_prepared = |canon| prepare(&source(canon), InitialValues::InCode).unwrap().is_some();
        assert!(is_prepared(""));
        assert!(!is_prepared("(core func (canon backpressure.inc))"), "back-pressure that stays");
        assert!(!is_prepared("(core func (canon error-context.drop))"), "error contexts");
    }

    #[test]
    fn all_modules_are_put_back() {
        let other = r#"
            (core module $other
                (import "main" "memory" (memory 1))
                (data (i32.const 5000) "other")
                (global $count (mut i32) (i32.const 7))
                (func (export "count") (result i32)
                    (i32.store8 (i32.const 5000) (i32.const 0))
                    (global.set $count (i32.add (global.get $count) (i32.const 1)))
                    (global.get $count)))
            (core instance $counter (instantiate $other (with "main" (instance $instance))))
            (core instance $second (instantiate $other (with "main" (instance $instance))))
            (func (export "count") (result u32) (canon lift (core func $counter "count")))
            (func (export "count-second") (result u32) (canon lift (core func $second "count")))"#;
        let mut guest = Guest::new(&component(GLOBALS, &format!("{LIFTED}{other}")));
        for _ in 0..3 {
            assert_eq!(guest.call::<_, (u32,)>("read", (5000_u32,)).0, u32::from(b'o'));
            assert_eq!(guest.call::<_, (u32,)>("count", ()).0, 8);
            assert_eq!(guest.call::<_, (u32,)>("count", ()).0, 9);
            assert_eq!(guest.call::<_, (u32,)>("count-second", ()).0, 8);
            assert_eq!(guest.call::<_, (u32,)>("read", (5000_u32,)).0, 0);
            assert!(guest.rewind());
        }
    }

    #[test]
    fn components_with_state_that_cannot_be_put_back_are_left_alone() {
        let is_prepared = |fields: &str, rest: &str| {
            prepare(&component(fields, rest), InitialValues::InCode).unwrap().is_some()
        };
        assert!(is_prepared("", ""));
        let table = "(func (param i32) (table.set (local.get 0) (ref.func $nothing)))";
        assert!(!is_prepared(table, ""), "a table that changes");
        let grows = "(func (result i32) (table.grow (ref.null func) (i32.const 1)))";
        assert!(!is_prepared(grows, ""), "a table that grows");
        let drops = r#"(data $passive "x") (func (data.drop $passive))"#;
        assert!(!is_prepared(drops, ""), "a segment that is dropped");
        assert!(!is_prepared("(start $nothing)", ""), "a start function");
        let named = format!(r#"(func (export "{REWIND}"))"#);
        assert!(!is_prepared(&named, ""), "the name is taken in the module");
        let named = format!(r#"(import "f" (func $f)) (export "{REWIND}" (func $f))"#);
        assert!(!is_prepared("", &named), "the name is taken in the component");
        assert!(!is_prepared("", "(component (core module))"), "a composition");
        assert!(
            !is_prepared("", "(type $r (resource (rep i32))) (core func (canon resource.new $r))"),
            "resources of its own"
        );
    }

    #[test]
    fn garbled_input_does_no_harm() {
        let source = component(GLOBALS, LIFTED);
        for position in 0..source.len() {
            for flip in [1, 0x80, 0xff] {
                let mut garbled = source.clone();
                garbled[position] ^= flip;
                if let Ok(Some(prepared)) = prepare(&garbled, InitialValues::InCode) {
                    assert!(prepared.len() > garbled.len());
                }
            }
            let cut = prepare(&source[..position], InitialValues::InMemory);
            assert!(!matches!(cut, Ok(Some(prepared)) if prepared.is_empty()));
        }
    }
}

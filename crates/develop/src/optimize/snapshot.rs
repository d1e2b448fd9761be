//! Start-up once instead of for each instance: the initialiser runs here, and what it
//! leaves in memories and globals is what instances begin with.
//!
//! # When that is sound
//!
//! Only where the author said so, by exporting a function `wizer-initialize` (components)
//! or `wizer.initialize` (modules): nobody else knows that nothing in the start-up depends
//! on where and when it runs. And only if it then keeps to itself. Everything that a
//! component imports is a trap while it runs: an initialiser that asks for the time, random
//! numbers, a variable or a file is not snapshotted, since every instance would get what
//! was true here and now.

use std::time::{Duration, Instant};

use wasmparser::{Parser, Payload, ValType};
use wasmtime::{
    Engine as WasmtimeEngine, Error, Extern, Module, Result, Store, StoreLimits, StoreLimitsBuilder,
    UpdateDeadline, Val, bail,
    component::{Component, Instance as ComponentInstance, Lift, Linker as ComponentLinker, WasmList},
};
use wasmtime_wizer::{ComponentInstanceState, InstanceState, SnapshotVal, Wizer};
use wisp_engine::{Engine, EngineConfig, normalize::normalize};

use super::sections;

/// What an initialiser is called, in components and in modules.
const INITIALIZERS: [&str; 2] = ["wizer-initialize", "wizer.initialize"];

/// Where a module may have an entry point for after the initialiser, in the place of
/// `_start`.
const RESUME: &str = "wizer.resume";

/// How long an initialiser may run.
const MAX_DURATION: Duration = Duration::from_secs(60);

/// How large memories may become meanwhile: all of it will be in the file.
const MAX_MEMORY_BYTES: usize = 512 << 20;

/// Toolchains that snapshot what they make, as they call themselves in it.
const SNAPSHOTTING: [(&str, &str); 3] = [
    ("ComponentizeJS", "ComponentizeJS"),
    ("componentize-py", "componentize-py"),
    ("component-init-transform", "componentize-py"),
];

/// Why there is no initialiser to run.
pub(super) fn why_not(producers: &[String]) -> String {
    let is_by = |name: &str| producers.iter().any(|by| by == name || by.starts_with(&format!("{name} ")));
    match SNAPSHOTTING.iter().find(|(name, _)| is_by(name)) {
        Some((_, tool)) => format!("{tool} has taken one already"),
        None => format!("it exports no function `{}`", INITIALIZERS.join("` or `")),
    }
}

/// The initialiser that a file exports.
pub(super) fn initializer(wasm: &[u8]) -> Option<&'static str> {
    let mut depth = 0;
    let mut found = None;
    for payload in Parser::new(0).parse_all(wasm) {
        let mut is_initializer = |name: &str| {
            if let Some(known) = INITIALIZERS.iter().find(|known| **known == name) {
                found = Some(*known);
            }
        };
        match payload.ok()? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ExportSection(exports) if depth == 1 => {
                exports.into_iter().flatten().for_each(|export| is_initializer(export.name));
            }
            Payload::ComponentExportSection(exports) if depth == 1 => {
                exports.into_iter().flatten().for_each(|export| is_initializer(export.name.name));
            }
            _ => {}
        }
    }
    found
}

/// Runs the initialiser and returns the file that begins where it ended.
///
/// # Errors
/// Why the start-up cannot be taken out of it.
pub(super) fn snapshot(wasm: &[u8], initializer: &str) -> Result<Vec<u8>, String> {
    let engine = Engine::new(&EngineConfig { pooling: false, ..EngineConfig::default() }, None)
        .map_err(|error| error.to_string())?;
    let is_component = sections::is_component(wasm);
    // What is built for the release candidate of WASI 0.3 needs the same engine.
    let flavor = normalize(wasm).map_err(|error| error.to_string())?.flavor;
    let engine = engine.wasmtime(flavor);
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let taken = if is_component {
        runtime.block_on(of_component(engine, wasm, initializer))
    } else {
        runtime.block_on(of_module(engine, wasm, initializer))
    };
    taken.map_err(|error| format!("`{initializer}` {}", said(&error)))
}

/// The reason at the root: that is the import that was called, or the instruction.
fn said(error: &Error) -> String {
    let root = error.root_cause().to_string();
    match root.split_once("unknown import: ") {
        Some((_, import)) => {
            let import = import.split(" has not").next().unwrap_or(import);
            format!("calls {import}, whose answer is not the same everywhere")
        }
        None => format!("cannot be run ahead: {root}"),
    }
}

fn store(engine: &WasmtimeEngine) -> Store<StoreLimits> {
    let limits = StoreLimitsBuilder::new().memory_size(MAX_MEMORY_BYTES).trap_on_grow_failure(true).build();
    let mut store = Store::new(engine, limits);
    store.limiter(|limits| limits);
    let started = Instant::now();
    store.epoch_deadline_callback(move |_| {
        if started.elapsed() > MAX_DURATION {
            bail!("it was not over within {MAX_DURATION:?}");
        }
        Ok(UpdateDeadline::Continue(1))
    });
    store.set_epoch_deadline(1);
    store
}

async fn of_module(engine: &WasmtimeEngine, wasm: &[u8], initializer: &str) -> Result<Vec<u8>> {
    let mut wizer = Wizer::new();
    wizer.init_func(initializer);
    let (context, instrumented) = wizer.instrument(wasm)?;
    let module = Module::new(engine, &instrumented)?;
    if module.get_export(RESUME).is_some() {
        wizer.func_rename("_start", RESUME);
    }
    let mut store = store(engine);
    let mut linker = wasmtime::Linker::new(engine);
    linker.define_unknown_imports_as_traps(&module)?;
    let instance = linker.instantiate_async(&mut store, &module).await?;
    // Constructors of a library run before anything else of it.
    for name in ["_initialize", initializer] {
        if let Some(Extern::Func(function)) = instance.get_export(&mut store, name) {
            function.typed::<(), ()>(&store)?.call_async(&mut store, ()).await?;
        }
    }
    let mut state = ModuleState { store, instance, missing: None };
    let snapshot = wizer.snapshot(&context, &mut state).await?;
    match state.missing {
        Some(missing) => bail!("{missing} cannot be read"),
        None => Ok(snapshot),
    }
}

async fn of_component(engine: &WasmtimeEngine, wasm: &[u8], initializer: &str) -> Result<Vec<u8>> {
    let mut wizer = Wizer::new();
    wizer.init_func(initializer);
    let (context, instrumented) = wizer.instrument_component(wasm)?;
    let component = Component::new(engine, &instrumented)?;
    let mut store = store(engine);
    let mut linker = ComponentLinker::new(engine);
    linker.define_unknown_imports_as_traps(&component)?;
    let instance = linker.instantiate_async(&mut store, &component).await?;
    let function = instance.get_typed_func::<(), ()>(&mut store, initializer)?;
    function.call_async(&mut store, ()).await?;
    let mut state = ComponentState { store, instance, failure: None };
    let snapshot = wizer.snapshot_component(&context, &mut state).await?;
    match state.failure {
        Some(failure) => Err(failure),
        None => Ok(snapshot),
    }
}

/// A module whose initialiser has run.
struct ModuleState {
    store: Store<StoreLimits>,
    instance: wasmtime::Instance,
    /// What was asked for and is not there. It cannot be returned where it is noticed.
    missing: Option<String>,
}

impl InstanceState for ModuleState {
    async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
        let value = self.instance.get_global(&mut self.store, name).map(|global| global.get(&mut self.store));
        match value {
            Some(Val::I32(value)) => SnapshotVal::I32(value),
            Some(Val::I64(value)) => SnapshotVal::I64(value),
            Some(Val::F32(value)) => SnapshotVal::F32(value),
            Some(Val::F64(value)) => SnapshotVal::F64(value),
            Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
            _ => {
                self.missing = Some(format!("the global `{name}`"));
                SnapshotVal::I32(0)
            }
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        match self.instance.get_memory(&mut self.store, name) {
            Some(memory) => contents(memory.data(&self.store)),
            None => {
                self.missing = Some(format!("the memory `{name}`"));
                contents(&[]);
            }
        }
    }
}

/// A component whose initialiser has run.
struct ComponentState {
    store: Store<StoreLimits>,
    instance: ComponentInstance,
    /// Why something could not be read. It cannot be returned where it is noticed.
    failure: Option<Error>,
}

impl ComponentState {
    async fn call<R: Lift + Send + Sync + 'static>(&mut self, instance: &str, function: &str) -> Option<R> {
        let result = self.try_call(instance, function).await;
        result.map_err(|error| self.failure = Some(error)).ok()
    }

    async fn try_call<R: Lift + Send + Sync + 'static>(
        &mut self,
        instance: &str,
        function: &str,
    ) -> Result<R> {
        let Some((_, exports)) = self.instance.get_export(&mut self.store, None, instance) else {
            bail!("there is no `{instance}`");
        };
        let Some((_, function)) = self.instance.get_export(&mut self.store, Some(&exports), function) else {
            bail!("there is no `{function}`");
        };
        let function = self.instance.get_typed_func::<(), (R,)>(&mut self.store, function)?;
        Ok(function.call_async(&mut self.store, ()).await?.0)
    }
}

impl ComponentInstanceState for ComponentState {
    async fn call_func_ret_list_u8(
        &mut self,
        instance: &str,
        func: &str,
        contents: impl FnOnce(&[u8]) + Send,
    ) {
        match self.call::<WasmList<u8>>(instance, func).await {
            Some(list) => contents(list.as_le_slice(&self.store)),
            None => contents(&[]),
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.call(instance, func).await.unwrap_or_default()
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.call(instance, func).await.unwrap_or_default()
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.call::<f32>(instance, func).await.unwrap_or_default().to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.call::<f64>(instance, func).await.unwrap_or_default().to_bits()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// A module that says in a global and in its memory whether it was initialised.
    fn module(body: &str) -> Vec<u8> {
        wat::parse_str(format!(
            r#"(module
                (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
                (memory (export "memory") 1)
                (global $done (mut i32) (i32.const 0))
                (func (export "wizer.initialize") {body})
                (func (export "_start")
                    (if (i32.ne (global.get $done) (i32.load (i32.const 64))) (then (unreachable)))))"#
        ))
        .unwrap()
    }

    #[test]
    fn what_the_initializer_did_is_in_the_file_and_it_is_gone() {
        let wasm = module("(global.set $done (i32.const 7)) (i32.store (i32.const 64) (i32.const 7))");
        assert_eq!(initializer(&wasm), Some("wizer.initialize"));
        let taken = snapshot(&wasm, "wizer.initialize").unwrap();
        assert_eq!(initializer(&taken), None);
        let mut data = Vec::new();
        for payload in Parser::new(0).parse_all(&taken) {
            if let Payload::DataSection(section) = payload.unwrap() {
                data.extend(section.into_iter().map(|segment| segment.unwrap().data.to_owned()));
            }
        }
        assert!(data.iter().any(|data| data.contains(&7)), "{data:?}");
    }

    #[test]
    fn what_asks_the_world_is_refused() {
        let wasm = module("(drop (call $random (i32.const 0) (i32.const 8)))");
        let refused = snapshot(&wasm, "wizer.initialize").unwrap_err();
        assert!(refused.contains("random_get"), "{refused}");
        let endless = module("(unreachable)");
        assert!(snapshot(&endless, "wizer.initialize").unwrap_err().contains("cannot be run ahead"));
    }

    #[test]
    fn a_component_begins_where_its_initializer_ended() {
        let wasm = wat::parse_str(
            r#"(component
                (core module $m
                    (memory (export "memory") 1)
                    (global $count (mut i32) (i32.const 1))
                    (func (export "init") (global.set $count (i32.const 40)))
                    (func (export "get") (result i32) (global.get $count)))
                (core instance $i (instantiate $m))
                (func (export "wizer-initialize") (canon lift (core func $i "init")))
                (func (export "get") (result s32) (canon lift (core func $i "get"))))"#,
        )
        .unwrap();
        let taken = snapshot(&wasm, initializer(&wasm).unwrap()).unwrap();
        let engine = WasmtimeEngine::default();
        let component = Component::new(&engine, &taken).unwrap();
        let mut store = Store::new(&engine, ());
        let instance = ComponentLinker::new(&engine).instantiate(&mut store, &component).unwrap();
        let get = instance.get_typed_func::<(), (i32,)>(&mut store, "get").unwrap();
        assert_eq!(get.call(&mut store, ()).unwrap().0, 40);
    }

    #[test]
    fn who_has_a_snapshot_already_is_named() {
        assert!(why_not(&["ComponentizeJS 0.19.3".into()]).contains("ComponentizeJS has"));
        assert!(why_not(&["component-init-transform 0.2.0".into()]).contains("componentize-py has"));
        assert!(why_not(&["rustc 1.95.0".into()]).contains("exports no function"));
    }
}

//! `wasi:otel`: telemetry of a guest's own.
//!
//! Apart from the others because most of its functions cannot fail: what a
//! guest reports is dropped, and it is told that there is no span around it.

use wasmtime::component::{Linker, Val};

use crate::{Error, Host};

pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut tracing = linker.instance("wasi:otel/tracing@0.2.0-rc.2")?;
    tracing.func_new("on-start", |_, _, _, _| Ok(()))?;
    tracing.func_new("on-end", |_, _, _, _| Ok(()))?;
    tracing.func_new("outer-span-context", |_, _, _, results| {
        fill(results, no_span_context());
        Ok(())
    })?;
    linker.instance("wasi:otel/logs@0.2.0-rc.2")?.func_new("on-emit", |_, _, _, _| Ok(()))?;
    linker.instance("wasi:otel/metrics@0.2.0-rc.2")?.func_new("export", |_, _, _, results| {
        let error = Error::Unavailable { family: "otel" };
        let message = Val::String(format!("{error} [{}]", error.code()));
        fill(results, Val::Result(Err(Some(Box::new(message)))));
        Ok(())
    })
}

fn fill(results: &mut [Val], value: Val) {
    if let [result] = results {
        *result = value;
    }
}

/// What the trace context specification calls invalid: no span at all.
fn no_span_context() -> Val {
    let zeros = |digits: usize| Val::String("0".repeat(digits));
    Val::Record(vec![
        ("trace-id".into(), zeros(32)),
        ("span-id".into(), zeros(16)),
        ("trace-flags".into(), Val::Flags(vec![])),
        ("is-remote".into(), Val::Bool(false)),
        ("trace-state".into(), Val::List(vec![])),
    ])
}

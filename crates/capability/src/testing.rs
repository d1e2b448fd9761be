//! What the tests of several families share: grants, and guests that are
//! written as text.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

use std::sync::Arc;

use wasmtime::component::{Component, ComponentNamedList, Lift, Linker};
use wasmtime::{Config, Engine, Store};
use wisp_manifest::allowed_hosts::{AllowedHost, AllowedHosts, BlockedNetworks};

use crate::{Flavor, Grants, Host, outbound};

/// A linker with everything, for an engine as `flavor` stands for.
pub(crate) fn linker(flavor: Flavor) -> Linker<Host> {
    let mut config = Config::new();
    config.concurrency_support(flavor == Flavor::Concurrent);
    let mut linker = Linker::new(&Engine::new(&config).unwrap());
    crate::host::add_to_linker(&mut linker, flavor).unwrap();
    linker
}

/// Grants that allow some destinations and nothing else.
pub(crate) fn grants_to_reach(allowed_outbound_hosts: &[&str]) -> Grants {
    let hosts = allowed_outbound_hosts.iter().map(|host| AllowedHost::parse(host).unwrap()).collect();
    Grants {
        component: "hello".into(),
        outbound: outbound::Grant::new(
            "hello",
            AllowedHosts::new(hosts),
            BlockedNetworks::default(),
            outbound::Limits::default(),
        ),
        ..Grants::default()
    }
}

/// A component with one export, `call`, that takes a text and returns what the
/// host returns. It gives pointer and length of the text to the host's
/// functions, and the last of them writes its result to address 16.
#[derive(Clone, Copy, Default)]
pub(crate) struct Guest<'a> {
    /// Whether `call` is an `async func`, which it must be to wait for one.
    pub(crate) is_async: bool,
    /// The interface that it imports.
    pub(crate) interface: &'a str,
    /// The result of `call`, in which `$error` is the interface's error.
    pub(crate) result: &'a str,
    /// The cases of that error.
    pub(crate) error_cases: &'a str,
    /// The interface's exports, in which `$error` is its error.
    pub(crate) imports: &'a str,
    /// The functions that it calls: a name for use in `body`, the interface's
    /// name, and the type as a core function.
    pub(crate) functions: &'a [(&'a str, &'a str, &'a str)],
    /// The resources that it drops: a name for the function that does, and the
    /// resource's.
    pub(crate) drops: &'a [(&'a str, &'a str)],
    /// The calls, with `$address` and `$length` of the text.
    pub(crate) body: &'a str,
}

impl Guest<'_> {
    /// The component as text.
    fn text(&self) -> String {
        let Self { interface, result, error_cases, imports, body, .. } = self;
        let is_async = if self.is_async { "async" } else { "" };
        let mut lowered = String::new();
        let mut core_imports = String::new();
        let mut core_exports = String::new();
        for (name, full_name, core_type) in self.functions {
            lowered += &format!(
                r#"(alias export $host "{full_name}" (func $host-{name}))
                (core func ${name} (canon lower (func $host-{name})
                    (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))"#
            );
            core_imports += &format!(r#"(import "host" "{name}" (func ${name} {core_type}))"#);
            core_exports += &format!(r#"(export "{name}" (func ${name}))"#);
        }
        for (name, resource) in self.drops {
            lowered += &format!(
                r#"(alias export $host "{resource}" (type $dropped-{name}))
                (core func ${name} (canon resource.drop $dropped-{name}))"#
            );
            core_imports += &format!(r#"(import "host" "{name}" (func ${name} (param i32)))"#);
            core_exports += &format!(r#"(export "{name}" (func ${name}))"#);
        }
        format!(
            r#"(component
                (import "{interface}" (instance $host
                    (type $cases (variant {error_cases}))
                    (export "error" (type $error (eq $cases)))
                    {imports}))
                (core module $Libc
                    (memory (export "memory") 1)
                    (global $next (mut i32) (i32.const 1024))
                    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
                        (local $start i32)
                        (local.set $start
                            (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
                        (global.set $next (i32.add (local.get $start) (local.get 3)))
                        (local.get $start)))
                (core instance $libc (instantiate $Libc))
                {lowered}
                (core module $Main
                    (import "libc" "memory" (memory 1))
                    {core_imports}
                    (func (export "call") (param $address i32) (param $length i32) (result i32)
                        {body}
                        (i32.const 16)))
                (core instance $main (instantiate $Main (with "libc" (instance $libc)) (with "host" (instance {core_exports}))))
                (type $own-cases (variant {error_cases}))
                (export $error "error" (type $own-cases))
                (func (export "call") {is_async}
                    (param "text" string) (result {result})
                    (canon lift (core func $main "call")
                        (memory (core memory $libc "memory")) (realloc (core func $libc "realloc")))))"#
        )
    }

    /// Calls it in a fresh instance.
    pub(crate) async fn call<R>(&self, flavor: Flavor, grants: Grants, text: &str) -> R
    where
        (R,): ComponentNamedList + Lift + Send + Sync + 'static,
    {
        self.try_call(flavor, grants, text).await.unwrap()
    }

    /// Calls it in a fresh instance; the call may fail.
    pub(crate) async fn try_call<R>(&self, flavor: Flavor, grants: Grants, text: &str) -> wasmtime::Result<R>
    where
        (R,): ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let linker = linker(flavor);
        let component = Component::new(linker.engine(), self.text()).unwrap();
        let mut store = Store::new(linker.engine(), Host::new(Arc::new(grants)));
        let instance = linker.instantiate_async(&mut store, &component).await.unwrap();
        let call = instance.get_typed_func::<(&str,), (R,)>(&mut store, "call").unwrap();
        Ok(call.call_async(&mut store, (text,)).await?.0)
    }
}

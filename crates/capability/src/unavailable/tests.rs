#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

use std::sync::Arc;

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Lift};
use wasmtime::{Engine, Store};
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{LiftLowerAbi, ManglingAndAbi, Resolve};

use super::*;
use crate::testing::{Guest, grants_to_reach, linker};

/// A component that imports all that one of our worlds has.
fn imports_all_of(world: &str, engine: &Engine, merges_versions: bool) -> Component {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir("../../wit").unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = dummy_module(&resolve, world, ManglingAndAbi::Legacy(LiftLowerAbi::Sync));
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let component = ComponentEncoder::default()
        .merge_imports_based_on_semver(merges_versions)
        .module(&module)
        .unwrap()
        .encode()
        .unwrap();
    Component::new(engine, component).unwrap()
}

#[tokio::test]
async fn a_component_that_imports_everything_starts() {
    for (flavor, world) in [
        (Flavor::Plain, "variables"),
        (Flavor::Concurrent, "variables-concurrent"),
        (Flavor::Plain, "outbound-http"),
        (Flavor::Plain, "key-value"),
        (Flavor::Concurrent, "key-value-concurrent"),
        (Flavor::Plain, "sqlite"),
        (Flavor::Concurrent, "sqlite-concurrent"),
        (Flavor::Plain, "unavailable"),
        (Flavor::Concurrent, "unavailable-concurrent"),
        (Flavor::Plain, "plain"),
        (Flavor::Concurrent, "concurrent"),
    ] {
        let linker = linker(flavor);
        for merges_versions in [false, true] {
            let component = imports_all_of(world, linker.engine(), merges_versions);
            assert!(component.component_type().imports(linker.engine()).count() > 0, "{world}");
            let mut store = Store::new(linker.engine(), Host::new(Arc::default()));
            linker.instantiate_async(&mut store, &component).await.unwrap();
        }
    }
}

#[test]
fn an_engine_without_concurrency_refuses_what_it_must() {
    let linker = linker(Flavor::Plain);
    // An engine without concurrency cannot even compile `async func`; so ask
    // for a version that only a row for `Flavor::Concurrent` could serve.
    let component = Component::new(
        linker.engine(),
        r#"(component (import "spin:redis/redis@3.0.0" (instance
            (export "connection" (type (sub resource))))))"#,
    );
    assert!(linker.instantiate_pre(&component.unwrap()).is_err());
}

/// Every function of the table can say each refusal in the error of its own
/// interface.
#[test]
fn every_function_has_words_for_every_refusal() {
    let engine = linker(Flavor::Concurrent).engine().clone();
    let component = imports_all_of("concurrent", &engine, false);
    let mut asked = Vec::new();
    for (name, import) in component.component_type().imports(&engine) {
        let Some(interface) = INTERFACES.iter().find(|interface| interface.name == name) else { continue };
        let ComponentItem::ComponentInstance(instance) = import.ty else { panic!("{name}") };
        for (function, export) in instance.exports(&engine) {
            let ComponentItem::ComponentFunc(function_type) = export.ty else { continue };
            asked.push(format!("{name} {function}"));
            let Some(Type::Result(result)) = function_type.results().next() else {
                assert_eq!(function, "[constructor]connection-builder");
                continue;
            };
            let family = interface.family;
            let denied = Refusal::Denied { target: "there".into() };
            let denied = denied.in_terms_of(family, &result.err().unwrap()).unwrap();
            let unavailable = Refusal::Unavailable.in_terms_of(family, &result.err().unwrap()).unwrap();
            let variant = |case: &str, text: &str| {
                Val::Variant(case.into(), (!text.is_empty()).then(|| Box::new(Val::String(text.into()))))
            };
            let sorry = format!("{} is not available in this version of Wisp [WISP-E0360]", family.name());
            let not_permitted = "address there is not permitted";
            let (expect_denied, expect_unavailable) = match (family, name.contains('@')) {
                (Family::Redis, false) => (Val::Enum("error".into()), Val::Enum("error".into())),
                (Family::Redis, true) => (variant("invalid-address", ""), variant("other", &sorry)),
                (Family::Mysql | Family::Postgres, false) => {
                    (variant("connection-failed", not_permitted), variant("other-error", &sorry))
                }
                (Family::Mysql | Family::Postgres | Family::Mqtt, _) => {
                    (variant("connection-failed", not_permitted), variant("other", &sorry))
                }
                (Family::Llm, _) => {
                    assert!(format!("{denied:?}").contains("does not have access to use 'there'"));
                    (denied.clone(), variant("runtime-error", &sorry))
                }
            };
            assert_eq!((denied, unavailable), (expect_denied, expect_unavailable), "{name} {function}");
        }
    }
    let listed = INTERFACES.iter().flat_map(|interface| {
        let functions = interface.functions.iter().chain(interface.async_functions);
        functions.map(|function| format!("{} {function}", interface.name))
    });
    let mut listed: Vec<_> = listed.collect();
    asked.sort();
    listed.sort();
    assert_eq!(asked, listed);
}

#[test]
fn long_addresses_are_denied_without_a_closer_look() {
    let grants = grants_to_reach(&["*://*:*"]);
    let fits = format!("redis://cache/{}", "é".repeat(2000));
    assert_eq!(refuse(Family::Redis, &grants, &fits), Refusal::Unavailable);
    let long = format!("redis://cache/x{}", "é".repeat(4000));
    let Refusal::Denied { target } = refuse(Family::Redis, &grants, &long) else { panic!("not denied") };
    assert!(long.starts_with(&target) && target.len() == MAX_TARGET_BYTES - 1, "{}", target.len());
}

#[test]
fn a_script_hears_what_was_asked_for_but_no_password() {
    #[derive(Default)]
    struct Heard(std::sync::Mutex<Vec<String>>);

    impl crate::outbound_http::Script for Heard {
        fn answer(&self, _: &str, _: &http::Request<bytes::Bytes>) -> crate::outbound_http::Scripted {
            crate::outbound_http::Scripted::PassOn
        }

        fn passed_on(
            &self,
            _: &str,
            _: &http::Request<bytes::Bytes>,
            _: Option<&http::Response<bytes::Bytes>>,
        ) {
        }

        fn refused(&self, _: &str, _: &http::Method, _: &http::Uri) {}

        fn unavailable(&self, component: &str, family: &str, place: &str) {
            self.0.lock().unwrap().push(format!("{component} {family} {place}"));
        }
    }

    let heard = Arc::new(Heard::default());
    let mut grants = grants_to_reach(&["redis://cache.example"]);
    grants.world.http = Some(heard.clone());
    refuse(Family::Redis, &grants, "redis://user:hunter2@cache.example:6379");
    assert_eq!(*heard.0.lock().unwrap(), ["hello redis cache.example:6379"]);
}

#[test]
fn permission_comes_first() {
    let grants = Grants {
        ai_models: ["llama2-chat".to_owned()].into(),
        ..grants_to_reach(&[
            "redis://cache:6379",
            "mysql://db:3306",
            "postgres://db:5432",
            "postgres://[::1]:7",
            "mqtt://m:1883",
        ])
    };
    for (family, target) in [
        (Family::Redis, "redis://cache"),
        (Family::Redis, "redis://user:secret@cache:6379/0"),
        (Family::Mysql, "mysql://user:secret@db/name"),
        (Family::Postgres, "postgres://user:secret@db/name?sslmode=disable"),
        (Family::Postgres, "postgresql://db:5432"),
        (Family::Postgres, "host=db user=me password=secret"),
        (Family::Postgres, "user=me host=db,::1 port=5432,7"),
        (Family::Mqtt, "mqtt://m:1883"),
        (Family::Llm, "llama2-chat"),
    ] {
        assert_eq!(refuse(family, &grants, target), Refusal::Unavailable, "{family:?} {target}");
    }
    for (family, target) in [
        (Family::Redis, "redis://elsewhere"),
        (Family::Redis, "redis://cache:1"),
        (Family::Redis, "not an address"),
        (Family::Redis, ""),
        (Family::Redis, "mysql://db:3306"),
        (Family::Mysql, "mysql://cache:3306"),
        (Family::Postgres, "postgres://cache"),
        (Family::Postgres, "host=db port=7"),
        (Family::Postgres, "host=db,cache"),
        (Family::Postgres, "host=/run/postgresql"),
        (Family::Postgres, "user=me"),
        (Family::Postgres, ""),
        (Family::Mqtt, "mqtt://cache:1883"),
        (Family::Llm, "llama2"),
        (Family::Llm, ""),
    ] {
        let denied = Refusal::Denied { target: target.into() };
        assert_eq!(refuse(family, &grants, target), denied, "{family:?} {target}");
    }
}

/// What a guest gets when it calls: the name of the error's case and its text.
#[derive(wasmtime::component::ComponentType, Lift, Debug, PartialEq)]
#[component(variant)]
enum RedisError {
    #[component(name = "invalid-address")]
    InvalidAddress,
    #[component(name = "too-many-connections")]
    TooManyConnections,
    #[component(name = "type-error")]
    TypeError,
    #[component(name = "other")]
    Other(String),
}

/// As [`RedisError`], for PostgreSQL.
#[derive(wasmtime::component::ComponentType, Lift, Debug, PartialEq)]
#[component(variant)]
enum PostgresError {
    #[component(name = "connection-failed")]
    ConnectionFailed(String),
    #[component(name = "bad-parameter")]
    BadParameter(String),
    #[component(name = "value-conversion-failed")]
    ValueConversionFailed(String),
    #[component(name = "other")]
    Other(String),
}

/// The cases of [`PostgresError`].
const POSTGRES_ERROR_CASES: &str = r#"(case "connection-failed" string) (case "bad-parameter" string)
    (case "value-conversion-failed" string) (case "other" string)"#;

#[tokio::test]
async fn guests_get_the_refusals_of_redis() {
    let guest = Guest {
        interface: "fermyon:spin/redis@2.0.0",
        // A connection is a number as far as this guest is concerned.
        result: "(result u32 (error $error))",
        error_cases: r#"(case "invalid-address") (case "too-many-connections") (case "type-error")
            (case "other" string)"#,
        imports: r#"
            (export "connection" (type $connection (sub resource)))
            (export "[static]connection.open" (func
                (param "address" string) (result (result (own $connection) (error $error)))))"#,
        functions: &[("open", "[static]connection.open", "(param i32 i32 i32)")],
        body: "(call $open (local.get $address) (local.get $length) (i32.const 16))",
        ..Guest::default()
    };
    let async_imports = guest.imports.replace("(func", "(func async");
    let async_guest =
        Guest { is_async: true, interface: "spin:redis/redis@3.0.0", imports: &async_imports, ..guest };
    let sorry = "redis is not available in this version of Wisp [WISP-E0360]";
    for (guest, flavor) in
        [(&guest, Flavor::Plain), (&guest, Flavor::Concurrent), (&async_guest, Flavor::Concurrent)]
    {
        for (address, error) in [
            ("redis://cache", RedisError::Other(sorry.into())),
            ("redis://elsewhere", RedisError::InvalidAddress),
            ("nonsense", RedisError::InvalidAddress),
            ("", RedisError::InvalidAddress),
        ] {
            let grants = grants_to_reach(&["redis://cache:6379"]);
            let result: Result<u32, RedisError> = guest.call(flavor, grants, address).await;
            assert_eq!(result, Err(error), "{address}");
        }
    }
}

/// Also shows that an older version of the line is served, and that a builder
/// remembers its address.
#[tokio::test]
async fn guests_get_the_refusals_of_a_postgres_builder() {
    let guest = Guest {
        interface: "spin:postgres/postgres@4.1.0",
        result: "(result u32 (error $error))",
        error_cases: POSTGRES_ERROR_CASES,
        imports: r#"
            (export "connection" (type $connection (sub resource)))
            (export "connection-builder" (type $builder (sub resource)))
            (export "[constructor]connection-builder" (func
                (param "address" string) (result (own $builder))))
            (export "[method]connection-builder.build" (func
                (param "self" (borrow $builder)) (result (result (own $connection) (error $error)))))"#,
        functions: &[
            ("new", "[constructor]connection-builder", "(param i32 i32) (result i32)"),
            ("build", "[method]connection-builder.build", "(param i32 i32)"),
        ],
        body: "(call $build (call $new (local.get $address) (local.get $length)) (i32.const 16))",
        ..Guest::default()
    };
    let sorry = "postgres is not available in this version of Wisp [WISP-E0360]";
    let not_permitted = "address host=elsewhere is not permitted";
    for flavor in [Flavor::Plain, Flavor::Concurrent] {
        for (address, error) in [
            ("postgres://me:secret@db/x", PostgresError::Other(sorry.into())),
            ("host=elsewhere", PostgresError::ConnectionFailed(not_permitted.into())),
        ] {
            let grants = grants_to_reach(&["postgres://db:5432"]);
            let result: Result<u32, PostgresError> = guest.call(flavor, grants, address).await;
            assert_eq!(result, Err(error), "{address}");
        }
    }
}

#[tokio::test]
async fn a_guest_cannot_fill_the_host_with_builders() {
    let guest = Guest {
        interface: "spin:postgres/postgres@4.1.0",
        result: "(result u32 (error $error))",
        error_cases: POSTGRES_ERROR_CASES,
        imports: r#"
            (export "connection-builder" (type $builder (sub resource)))
            (export "[constructor]connection-builder" (func
                (param "address" string) (result (own $builder))))"#,
        functions: &[("new", "[constructor]connection-builder", "(param i32 i32) (result i32)")],
        drops: &[("drop-it", "connection-builder")],
        ..Guest::default()
    };
    let a_thousand_times = |what: &str| {
        format!(
            "(local $i i32)
            (loop $again
                ({what} (call $new (local.get $address) (local.get $length)))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 1000))))"
        )
    };
    let keeps = a_thousand_times("drop");
    let keeps = Guest { body: &keeps, ..guest };
    let result = keeps.try_call::<Result<u32, PostgresError>>(Flavor::Plain, Grants::default(), "x").await;
    let failure = format!("{:?}", result.unwrap_err());
    assert!(failure.contains("more than 64 connection builders"), "{failure}");

    let gives_back = a_thousand_times("call $drop-it");
    let gives_back = Guest { body: &gives_back, ..guest };
    let result =
        gives_back.try_call::<Result<u32, PostgresError>>(Flavor::Plain, Grants::default(), "x").await;
    assert_eq!(result.unwrap(), Ok(0), "it makes no other call");
}

//! Every backend against a model, limits, and what guests may open.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use tempfile::TempDir;

use super::host::{Error1, Error2};
use super::memory::MemoryStore;
use super::*;
use crate::Flavor;
use crate::testing::Guest;

#[derive(Clone, Debug)]
enum Operation {
    Get(String),
    Set(String, Vec<u8>),
    Delete(String),
    Exists(String),
    Keys(Option<String>),
    GetMany(Vec<String>),
    SetMany(Vec<(String, Vec<u8>)>),
    DeleteMany(Vec<String>),
    Increment(String, i64),
    Swap(String, Option<Vec<u8>>, Vec<u8>),
}

fn key() -> impl Strategy<Value = String> {
    // Few, so that operations meet; odd ones among them.
    prop::sample::select(vec!["", "a", "A", "ab", "a\0b", "ä", "\u{10ffff}", "number", "%", "'"])
        .prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..4),
        any::<i64>().prop_map(|number| number.to_le_bytes().to_vec()),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let keys = || prop::collection::vec(key(), 0..20);
    prop_oneof![
        key().prop_map(Operation::Get),
        (key(), value()).prop_map(|(key, value)| Operation::Set(key, value)),
        key().prop_map(Operation::Delete),
        key().prop_map(Operation::Exists),
        prop::option::of(key()).prop_map(Operation::Keys),
        keys().prop_map(Operation::GetMany),
        prop::collection::vec((key(), value()), 0..6).prop_map(Operation::SetMany),
        keys().prop_map(Operation::DeleteMany),
        (key(), any::<i64>()).prop_map(|(key, delta)| Operation::Increment(key, delta)),
        (key(), prop::option::of(value()), value())
            .prop_map(|(key, expected, value)| Operation::Swap(key, expected, value)),
    ]
}

/// Runs an operation and says what came of it, so that it can be compared.
async fn outcome(store: &dyn Store, operation: Operation) -> String {
    match operation {
        Operation::Get(key) => format!("{:?}", store.get(&key).await),
        Operation::Set(key, value) => format!("{:?}", store.set(key, value).await),
        Operation::Delete(key) => format!("{:?}", store.delete(key).await),
        Operation::Exists(key) => format!("{:?}", store.exists(&key).await),
        Operation::Keys(after) => format!("{:?}", store.keys(after).await),
        Operation::GetMany(keys) => format!("{:?}", store.get_many(keys).await),
        Operation::SetMany(entries) => format!("{:?}", store.set_many(entries).await),
        Operation::DeleteMany(keys) => format!("{:?}", store.delete_many(keys).await),
        Operation::Increment(key, delta) => format!("{:?}", store.increment(key, delta).await),
        Operation::Swap(key, expected, value) => format!("{:?}", store.swap(key, expected, value).await),
    }
}

/// The same on a map.
fn expected(model: &mut BTreeMap<String, Vec<u8>>, operation: Operation) -> String {
    let done = Ok::<(), StoreError>(());
    match operation {
        Operation::Get(key) => format!("{:?}", Ok::<_, StoreError>(model.get(&key))),
        Operation::Set(key, value) => {
            model.insert(key, value);
            format!("{done:?}")
        }
        Operation::Delete(key) => {
            model.remove(&key);
            format!("{done:?}")
        }
        Operation::Exists(key) => format!("{:?}", Ok::<_, StoreError>(model.contains_key(&key))),
        Operation::Keys(after) => {
            let keys: Vec<_> =
                model.keys().filter(|key| after.as_ref().is_none_or(|after| *key > after)).collect();
            format!("{:?}", Ok::<_, StoreError>(keys))
        }
        Operation::GetMany(keys) => {
            let entries: Vec<_> = keys.iter().map(|key| (key, model.get(key))).collect();
            format!("{:?}", Ok::<_, StoreError>(entries))
        }
        Operation::SetMany(entries) => {
            model.extend(entries);
            format!("{done:?}")
        }
        Operation::DeleteMany(keys) => {
            keys.iter().for_each(|key| drop(model.remove(key)));
            format!("{done:?}")
        }
        Operation::Increment(key, delta) => {
            let sum = add(model.get(&key).map(Vec::as_slice), delta);
            if let Ok(sum) = sum {
                model.insert(key, sum.to_le_bytes().to_vec());
            }
            format!("{sum:?}")
        }
        Operation::Swap(key, expected, value) => {
            let current = model.get(&key).cloned();
            let swap = if current == expected {
                model.insert(key, value);
                Swap::Done
            } else {
                Swap::Conflict(current)
            };
            format!("{:?}", Ok::<_, StoreError>(swap))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn backends_behave_like_a_map(operations in prop::collection::vec(operation(), 1..40)) {
        let directory = TempDir::new().unwrap();
        let path = crate::sqlite::file::create(&directory.path().join("store.db")).unwrap();
        let file = file::FileStore::new(file::Database::open(&path, u64::MAX).unwrap(), "default");
        let memory = MemoryStore::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut model = BTreeMap::new();
        for operation in operations {
            let expected = expected(&mut model, operation.clone());
            prop_assert_eq!(&runtime.block_on(outcome(&memory, operation.clone())), &expected);
            prop_assert_eq!(&runtime.block_on(outcome(&file, operation)), &expected);
        }
    }
}

fn in_memory() -> Stores {
    Stores::open(None, &IndexMap::new()).unwrap()
}

#[tokio::test]
async fn keys_come_in_pages() {
    let directory = TempDir::new().unwrap();
    for stores in [in_memory(), Stores::open(Some(directory.path()), &IndexMap::new()).unwrap()] {
        let store = stores.grant(&["default"]).unwrap().store("default").unwrap();
        let entries: Vec<_> =
            (0..2 * PAGE_MAX_COUNT + 1).map(|index| (format!("{index:05}"), vec![])).collect();
        store.set_many(entries.clone()).await.unwrap();
        let page = store.keys(None).await.unwrap();
        assert_eq!(page.len(), PAGE_MAX_COUNT);
        assert_eq!(store.keys(page.last().cloned()).await.unwrap()[0], format!("{PAGE_MAX_COUNT:05}"));
        assert_eq!(
            store.all_keys().await.unwrap(),
            entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn limits_are_refused_by_name() {
    let stores = in_memory();
    let store = stores.grant(&["default"]).unwrap().store("default").unwrap();
    let error = store.get(&"k".repeat(KEY_MAX_BYTES + 1)).await.unwrap_err();
    assert_eq!(error.0, "the key has 16385 bytes, the limit is 16384");
    let error = store.set("k".into(), vec![0; VALUE_MAX_BYTES + 1]).await.unwrap_err();
    assert_eq!(error.0, "the value has 67108865 bytes, the limit is 67108864");
    let error = store.get_many(vec![String::new(); BATCH_MAX_COUNT + 1]).await.unwrap_err();
    assert_eq!(error.0, "the list has 10001 keys, the limit is 10000");
    store.set("large".into(), vec![0; VALUE_MAX_BYTES]).await.unwrap();
    let error = store.get_many(vec!["large".into(); 3]).await.unwrap_err();
    assert_eq!(error.0, "the keys and values exceed the limit of 134217728 bytes");
    for index in 0..3 {
        let full = store.set(format!("large {index}"), vec![0; VALUE_MAX_BYTES]).await;
        assert_eq!(full.is_err(), index == 2, "{full:?}");
    }
}

#[tokio::test]
async fn set_many_in_memory_is_all_or_none() {
    let stores = in_memory();
    let store = stores.grant(&["default"]).unwrap().store("default").unwrap();
    store.set("a".into(), vec![1]).await.unwrap();
    for index in 0..3 {
        store.set(format!("large {index}"), vec![0; VALUE_MAX_BYTES]).await.unwrap();
    }
    let entries = vec![("a".into(), vec![2]), ("b".into(), vec![3]), ("c".into(), vec![0; VALUE_MAX_BYTES])];
    store.set_many(entries).await.unwrap_err();
    assert_eq!(store.get("a").await.unwrap(), Some(vec![1]));
    assert!(!store.exists("b").await.unwrap());
}

#[test]
fn labels_that_are_not_configured_are_refused() {
    let error = in_memory().grant(&["cache"]).err().unwrap();
    assert_eq!(error.code(), "WISP-E0300");
    assert_eq!(error.to_string(), "no key-value store is configured for label `cache`");
    assert_eq!(
        error.hint().unwrap(),
        "add [key_value_store.cache] to the runtime configuration, or use one of `default`"
    );
    let redis = IndexMap::from([("default".to_owned(), StoreConfig::Other { backend: "redis".into() })]);
    assert_eq!(Stores::open(None, &redis).err().unwrap().code(), "WISP-E0301");
}

#[tokio::test]
async fn labels_may_share_a_file_and_keys_are_kept() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("shared.db");
    let configs = ["one", "two"]
        .map(|label| (label.to_owned(), StoreConfig::Spin { path: Some(path.clone()) }))
        .into_iter()
        .collect();
    let stores = Stores::open(None, &configs).unwrap();
    stores.set("one", "key", b"1".to_vec()).await.unwrap();
    stores.set("two", "key", b"2".to_vec()).await.unwrap();
    drop(stores);
    let stores = Stores::open(None, &configs).unwrap();
    let grant = stores.grant(&["one", "two"]).unwrap();
    assert_eq!(grant.store("one").unwrap().get("key").await.unwrap(), Some(b"1".to_vec()));
    assert_eq!(grant.store("two").unwrap().get("key").await.unwrap(), Some(b"2".to_vec()));
    assert!(grant.store("default").is_none());
}

/// Prints what reads and writes cost:
/// `cargo test --release -p wisp-capability measure -- --ignored --nocapture`.
#[test]
#[ignore = "not a test: a measurement"]
#[expect(clippy::print_stdout, reason = "a measurement")]
fn measure() {
    use std::time::Instant;

    let directory = TempDir::new_in(std::env::current_dir().unwrap()).unwrap();
    let stores = Stores::open(Some(directory.path()), &IndexMap::new()).unwrap();
    let store = stores.grant(&["default"]).unwrap().store("default").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let entries = (0..10_000).map(|index| (format!("key {index}"), vec![1; 100])).collect();
        store.set_many(entries).await.unwrap();
        for concurrent in [1_usize, 2] {
            let start = Instant::now();
            let tasks: Vec<_> = (0..concurrent)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        for index in 0..50_000 {
                            store.get(&format!("key {}", index % 10_000)).await.unwrap().unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let each = start.elapsed().as_secs_f64() * 1e6 / 50_000.0;
            println!("get, {concurrent} tasks: {each:.2} us each");
        }
        let start = Instant::now();
        for _ in 0..10_000 {
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        }
        println!(
            "a hop to another thread and back: {:.2} us",
            start.elapsed().as_secs_f64() * 1e6 / 10_000.0
        );
        let start = Instant::now();
        for _ in 0..100 {
            store.all_keys().await.unwrap();
        }
        println!("list 10000 keys: {:.0} us", start.elapsed().as_secs_f64() * 1e6 / 100.0);
        for concurrent in [1_usize, 8, 64, 512] {
            let start = Instant::now();
            let sets = 20_000 / (512 / concurrent).clamp(1, 20);
            let tasks: Vec<_> = (0..concurrent)
                .map(|task| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        for index in 0..sets / concurrent {
                            store.set(format!("set {task} {index}"), vec![1; 100]).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let seconds = start.elapsed().as_secs_f64();
            println!("set, {concurrent} tasks: {:.0} per second", sets as f64 / seconds);
        }
    });
}

fn grants(labels: &[&str]) -> crate::Grants {
    crate::Grants { key_value: in_memory().grant(labels).unwrap(), ..crate::Grants::default() }
}

#[tokio::test]
async fn guests_open_what_they_are_granted() {
    let guest = Guest {
        interface: "fermyon:spin/key-value@2.0.0",
        result: "(result u32 (error $error))",
        error_cases: r#"(case "store-table-full") (case "no-such-store") (case "access-denied")
            (case "other" string)"#,
        imports: r#"
            (export "store" (type $store (sub resource)))
            (export "[static]store.open" (func
                (param "label" string) (result (result (own $store) (error $error)))))"#,
        functions: &[("open", "[static]store.open", "(param i32 i32 i32)")],
        body: "(call $open (local.get $address) (local.get $length) (i32.const 16))",
        ..Guest::default()
    };
    let async_imports = guest.imports.replace("(func", "(func async");
    let async_guest = Guest {
        is_async: true,
        interface: "spin:key-value/key-value@3.0.0",
        imports: &async_imports,
        ..guest
    };
    for (guest, flavor) in
        [(&guest, Flavor::Plain), (&guest, Flavor::Concurrent), (&async_guest, Flavor::Concurrent)]
    {
        let opened: Result<u32, Error2> = guest.call(flavor, grants(&["default"]), "default").await;
        assert!(opened.is_ok(), "{opened:?}");
        for label in ["", "other", "Default"] {
            let denied: Result<u32, Error2> = guest.call(flavor, grants(&["default"]), label).await;
            assert_eq!(denied, Err(Error2::AccessDenied));
        }
        let denied: Result<u32, Error2> = guest.call(flavor, grants(&[]), "default").await;
        assert_eq!(denied, Err(Error2::AccessDenied));
    }
    // One handle too many.
    let body = "(local $i i32)
        (loop $again
            (call $open (local.get $address) (local.get $length) (i32.const 16))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const COUNT))))";
    for (count, full) in [(HANDLES_MAX_COUNT, false), (HANDLES_MAX_COUNT + 1, true)] {
        let body = body.replace("COUNT", &count.to_string());
        let guest = Guest { body: &body, ..guest };
        let opened: Result<u32, Error2> = guest.call(Flavor::Plain, grants(&["default"]), "default").await;
        assert_eq!(opened == Err(Error2::StoreTableFull), full, "{count}: {opened:?}");
    }
}

fn unversioned(body: &str) -> Guest<'_> {
    Guest {
        interface: "fermyon:spin/key-value",
        result: "(result (list u8) (error $error))",
        error_cases: r#"(case "store-table-full") (case "no-such-store") (case "access-denied")
            (case "invalid-store") (case "no-such-key") (case "io" string)"#,
        imports: r#"
            (export "open" (func (param "name" string) (result (result u32 (error $error)))))
            (export "close" (func (param "store" u32)))
            (export "get" (func (param "store" u32) (param "key" string)
                (result (result (list u8) (error $error)))))
            (export "set" (func (param "store" u32) (param "key" string) (param "value" (list u8))
                (result (result (error $error)))))"#,
        functions: &[
            ("open", "open", "(param i32 i32 i32)"),
            ("close", "close", "(param i32)"),
            ("get", "get", "(param i32 i32 i32 i32)"),
            ("set", "set", "(param i32 i32 i32 i32 i32 i32)"),
        ],
        body,
        ..Guest::default()
    }
}

#[tokio::test]
async fn guests_of_the_unversioned_interface_use_numbers() {
    let get = "(call $get (i32.load (i32.const 20)) (local.get $address) (local.get $length) (i32.const 16))";
    let set = "(call $set (i32.load (i32.const 20)) (local.get $address) (local.get $length)
        (local.get $address) (local.get $length) (i32.const 32))";
    let open = "(call $open (local.get $address) (local.get $length) (i32.const 16))";
    let close = "(call $close (i32.load (i32.const 20)))";
    for (calls, expected) in [
        (vec![open, set, get], Ok(b"default".to_vec())),
        (vec![open, get], Err(Error1::NoSuchKey)),
        (vec![open, close, get], Err(Error1::InvalidStore)),
        (vec![get], Err(Error1::InvalidStore)),
    ] {
        let body = calls.join("\n");
        for flavor in [Flavor::Plain, Flavor::Concurrent] {
            let result: Result<Vec<u8>, Error1> =
                unversioned(&body).call(flavor, grants(&["default"]), "default").await;
            assert_eq!(result, expected, "{body}");
        }
    }
}

//! The host interfaces of key-value stores: every version, over [`Checked`].
//!
//! The versions differ in names, in how a handle looks and in their error types;
//! what they do is the same. So each operation is written once and
//! [`define`]d under the name and with the types of each version. That the
//! types match the WIT text is tested by linking components that import it.

use futures::stream;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, ComponentNamedList, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType,
};

use super::{Checked, HANDLES_MAX_COUNT, KeyAndValue, PAGE_MAX_COUNT, StoreError, Swap, VALUE_MAX_BYTES};
use crate::{Flavor, Host, pages};

/// Bytes of keys after which `wasi:keyvalue` ends a listing with a cursor. Spin
/// never does, so guests may ignore the cursor; this many keys are beyond what such a
/// guest is made for.
const LISTING_MAX_BYTES: usize = 4 << 20;

/// Bytes of values that the `cas` handles of one instance remember at a time:
/// a few of the largest.
const REMEMBERED_MAX_BYTES: usize = 2 * VALUE_MAX_BYTES;

/// What one instance holds of key-value stores.
#[derive(Default)]
pub(crate) struct State {
    /// Open handles in the resource table, stores and `cas` together.
    handles_count: usize,
    /// Bytes of values in `cas` handles.
    remembered_bytes: usize,
}

/// An open store, as a guest holds it.
pub(crate) struct Bucket {
    store: Checked,
}

/// A value that a guest looked at, waiting for its swap.
pub(crate) struct Cas {
    store: Checked,
    key: String,
    remembered: Option<Vec<u8>>,
}

/// Why a call failed; each version's error type is made from it.
enum Failure {
    TableFull,
    AccessDenied,
    InvalidHandle,
    NoSuchKey,
    Other(String),
}

/// The error of the unversioned interface.
#[derive(Debug, PartialEq, ComponentType, Lift, Lower)]
#[component(variant)]
pub(super) enum Error1 {
    #[component(name = "store-table-full")]
    StoreTableFull,
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "invalid-store")]
    InvalidStore,
    #[component(name = "no-such-key")]
    NoSuchKey,
    #[component(name = "io")]
    Io(String),
}

/// The error of versions 2 and 3.
#[derive(Debug, PartialEq, ComponentType, Lift, Lower)]
#[component(variant)]
pub(super) enum Error2 {
    #[component(name = "store-table-full")]
    StoreTableFull,
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

/// The error of `wasi:keyvalue`.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum WasiError {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<String>,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum CasError {
    #[component(name = "store-error")]
    StoreError(WasiError),
    #[component(name = "cas-failed")]
    CasFailed(Resource<Cas>),
}

impl From<StoreError> for Failure {
    fn from(cause: StoreError) -> Self {
        Self::Other(cause.0)
    }
}

impl From<Failure> for Error1 {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TableFull => Self::StoreTableFull,
            Failure::AccessDenied => Self::AccessDenied,
            Failure::InvalidHandle => Self::InvalidStore,
            Failure::NoSuchKey => Self::NoSuchKey,
            Failure::Other(cause) => Self::Io(cause),
        }
    }
}

impl From<Failure> for Error2 {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TableFull => Self::StoreTableFull,
            Failure::AccessDenied => Self::AccessDenied,
            Failure::InvalidHandle => Self::Other("the store is not open".into()),
            Failure::NoSuchKey => Self::Other("the key is not there".into()),
            Failure::Other(cause) => Self::Other(cause),
        }
    }
}

impl From<Failure> for WasiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TableFull => {
                Self::Other(format!("the instance has {HANDLES_MAX_COUNT} open handles, which is the limit"))
            }
            Failure::AccessDenied => Self::AccessDenied,
            Failure::InvalidHandle => Self::Other("the store is not open".into()),
            Failure::NoSuchKey => Self::Other("the key is not there".into()),
            Failure::Other(cause) => Self::Other(cause),
        }
    }
}

/// How a guest names an open store: an index in the unversioned interface, a
/// resource in all others. Both are places in the instance's resource table.
trait Handle: ComponentType + Lift + Send + Sync + 'static {
    fn place(&self) -> Resource<Bucket>;
}

impl Handle for u32 {
    fn place(&self) -> Resource<Bucket> {
        // The table checks that there is something, and that it is a store.
        Resource::new_borrow(*self)
    }
}

impl Handle for Resource<Bucket> {
    fn place(&self) -> Resource<Bucket> {
        Resource::new_borrow(self.rep())
    }
}

/// The parameters of a call on a store: a handle and the arguments.
trait Call: ComponentNamedList + Lift + Send + Sync + 'static {
    type Arguments: Send + 'static;

    fn split(self) -> (Resource<Bucket>, Self::Arguments);
}

impl<H: Handle> Call for (H,) {
    type Arguments = ();

    fn split(self) -> (Resource<Bucket>, ()) {
        (self.0.place(), ())
    }
}

impl<H: Handle, A> Call for (H, A)
where
    A: ComponentType + Lift + Send + Sync + 'static,
{
    type Arguments = (A,);

    fn split(self) -> (Resource<Bucket>, (A,)) {
        (self.0.place(), (self.1,))
    }
}

impl<H: Handle, A, B> Call for (H, A, B)
where
    A: ComponentType + Lift + Send + Sync + 'static,
    B: ComponentType + Lift + Send + Sync + 'static,
{
    type Arguments = (A, B);

    fn split(self) -> (Resource<Bucket>, (A, B)) {
        (self.0.place(), (self.1, self.2))
    }
}

/// A type that a host function returns.
trait Returned: ComponentType + Lower + Send + Sync + 'static {}

impl<T: ComponentType + Lower + Send + Sync + 'static> Returned for T {}

impl Host {
    fn open_store(&mut self, label: &str) -> Result<Resource<Bucket>, Failure> {
        let store = self.grants.key_value.store(label).ok_or(Failure::AccessDenied)?;
        self.push_handle(Bucket { store })
    }

    fn store(&self, place: &Resource<Bucket>) -> Result<Checked, Failure> {
        self.table.get(place).map(|bucket| bucket.store.clone()).map_err(|_| Failure::InvalidHandle)
    }

    fn push_handle<T: Send + 'static>(&mut self, handle: T) -> Result<Resource<T>, Failure> {
        if self.key_value.handles_count >= HANDLES_MAX_COUNT {
            return Err(Failure::TableFull);
        }
        let place = self.table.push(handle).map_err(|_| Failure::TableFull)?;
        self.key_value.handles_count += 1;
        Ok(place)
    }

    fn take_handle<T: Send + 'static>(&mut self, place: u32) -> Option<T> {
        let handle = self.table.delete(Resource::<T>::new_own(place)).ok()?;
        self.key_value.handles_count = self.key_value.handles_count.saturating_sub(1);
        Some(handle)
    }

    fn remember(
        &mut self,
        store: Checked,
        key: String,
        value: Option<Vec<u8>>,
    ) -> Result<Resource<Cas>, Failure> {
        let value_bytes = value.as_ref().map_or(0, Vec::len);
        if self.key_value.remembered_bytes + value_bytes > REMEMBERED_MAX_BYTES {
            return Err(Failure::Other(format!(
                "the values of open `cas` handles exceed the limit of {REMEMBERED_MAX_BYTES} bytes"
            )));
        }
        let place = self.push_handle(Cas { store, key, remembered: value })?;
        self.key_value.remembered_bytes += value_bytes;
        Ok(place)
    }

    fn forget(&mut self, place: u32) -> Option<Cas> {
        let cas = self.take_handle::<Cas>(place)?;
        let value_bytes = cas.remembered.as_ref().map_or(0, Vec::len);
        self.key_value.remembered_bytes = self.key_value.remembered_bytes.saturating_sub(value_bytes);
        Some(cas)
    }
}

/// Registers every version.
pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    add_unversioned(&mut linker.instance("fermyon:spin/key-value")?)?;
    add_version_2(&mut linker.instance("fermyon:spin/key-value@2.0.0")?)?;
    add_wasi_store(&mut linker.instance("wasi:keyvalue/store@0.2.0-draft2")?)?;
    add_wasi_batch(&mut linker.instance("wasi:keyvalue/batch@0.2.0-draft2")?)?;
    add_wasi_atomics(&mut linker.instance("wasi:keyvalue/atomics@0.2.0-draft2")?)?;
    if flavor.is_concurrent() {
        add_version_3(&mut linker.instance("spin:key-value/key-value@3.0.0")?)?;
    }
    Ok(())
}

/// What a guest gets for a call on a store.
async fn answer<E, R, F>(
    store: Result<Checked, Failure>,
    operation: impl FnOnce(Checked) -> F,
) -> wasmtime::Result<(Result<R, E>,)>
where
    E: From<Failure>,
    F: Future<Output = Result<R, Failure>>,
{
    let result = match store {
        Ok(store) => operation(store).await,
        Err(failure) => Err(failure),
    };
    Ok((result.map_err(E::from),))
}

/// Registers a function of a store that is no `async func`.
fn define<C, E, R, F>(
    instance: &mut LinkerInstance<'_, Host>,
    name: &str,
    operation: impl Fn(Checked, C::Arguments) -> F + Copy + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    C: Call,
    E: From<Failure> + Returned,
    R: Returned,
    F: Future<Output = Result<R, Failure>> + Send + 'static,
{
    instance.func_wrap_async(name, move |store: StoreContextMut<'_, Host>, call: C| {
        let (place, arguments) = call.split();
        let store = store.data().store(&place);
        Box::new(answer::<E, R, F>(store, move |store| operation(store, arguments)))
    })
}

/// Registers a function of a store that is an `async func`.
fn define_concurrent<C, E, R, F>(
    instance: &mut LinkerInstance<'_, Host>,
    name: &str,
    operation: impl Fn(Checked, C::Arguments) -> F + Copy + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    C: Call,
    E: From<Failure> + Returned,
    R: Returned,
    F: Future<Output = Result<R, Failure>> + Send + 'static,
{
    instance.func_wrap_concurrent(name, move |accessor: &Accessor<Host>, call: C| {
        let (place, arguments) = call.split();
        let store = accessor.with(|mut access| access.get().store(&place));
        Box::pin(answer::<E, R, F>(store, move |store| operation(store, arguments)))
    })
}

fn define_open<E: From<Failure> + Returned>(
    instance: &mut LinkerInstance<'_, Host>,
    name: &str,
) -> wasmtime::Result<()> {
    instance.func_wrap(name, |mut store: StoreContextMut<'_, Host>, (label,): (String,)| {
        Ok((store.data_mut().open_store(&label).map_err(E::from),))
    })
}

fn define_store(instance: &mut LinkerInstance<'_, Host>, name: &str) -> wasmtime::Result<()> {
    instance.resource(name, ResourceType::host::<Bucket>(), |mut store, place| {
        store.data_mut().take_handle::<Bucket>(place);
        Ok(())
    })
}

fn add_unversioned(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    instance.func_wrap("open", |mut store: StoreContextMut<'_, Host>, (label,): (String,)| {
        let opened = store.data_mut().open_store(&label);
        Ok((opened.map(|place| place.rep()).map_err(Error1::from),))
    })?;
    instance.func_wrap("close", |mut store: StoreContextMut<'_, Host>, (place,): (u32,)| {
        store.data_mut().take_handle::<Bucket>(place);
        Ok(())
    })?;
    define::<(u32, String), Error1, _, _>(instance, "get", |store, (key,)| async move {
        get(store, (key,)).await?.ok_or(Failure::NoSuchKey)
    })?;
    define::<(u32, String, Vec<u8>), Error1, _, _>(instance, "set", set)?;
    define::<(u32, String), Error1, _, _>(instance, "delete", delete)?;
    define::<(u32, String), Error1, _, _>(instance, "exists", exists)?;
    define::<(u32,), Error1, _, _>(instance, "get-keys", all_keys)
}

fn add_version_2(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    define_store(instance, "store")?;
    define_open::<Error2>(instance, "[static]store.open")?;
    define::<(Resource<Bucket>, String), Error2, _, _>(instance, "[method]store.get", get)?;
    define::<(Resource<Bucket>, String, Vec<u8>), Error2, _, _>(instance, "[method]store.set", set)?;
    define::<(Resource<Bucket>, String), Error2, _, _>(instance, "[method]store.delete", delete)?;
    define::<(Resource<Bucket>, String), Error2, _, _>(instance, "[method]store.exists", exists)?;
    define::<(Resource<Bucket>,), Error2, _, _>(instance, "[method]store.get-keys", all_keys)
}

fn add_version_3(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    define_store(instance, "store")?;
    instance.func_wrap_concurrent(
        "[static]store.open",
        |accessor: &Accessor<Host>, (label,): (String,)| {
            let opened = accessor.with(|mut access| access.get().open_store(&label));
            Box::pin(async move { Ok((opened.map_err(Error2::from),)) })
        },
    )?;
    define_concurrent::<(Resource<Bucket>, String), Error2, _, _>(instance, "[method]store.get", get)?;
    define_concurrent::<(Resource<Bucket>, String, Vec<u8>), Error2, _, _>(
        instance,
        "[method]store.set",
        set,
    )?;
    define_concurrent::<(Resource<Bucket>, String), Error2, _, _>(instance, "[method]store.delete", delete)?;
    define_concurrent::<(Resource<Bucket>, String), Error2, _, _>(instance, "[method]store.exists", exists)?;
    instance.func_wrap_concurrent(
        "[method]store.get-keys",
        |accessor: &Accessor<Host>, (place,): (Resource<Bucket>,)| {
            Box::pin(async move {
                let ends = accessor.with(|mut access| {
                    let store = access.get().store(&place);
                    pages::ends(access, key_pages(store))
                })?;
                Ok((ends,))
            })
        },
    )
}

fn add_wasi_store(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    define_store(instance, "bucket")?;
    define_open::<WasiError>(instance, "open")?;
    define::<(Resource<Bucket>, String), WasiError, _, _>(instance, "[method]bucket.get", get)?;
    define::<(Resource<Bucket>, String, Vec<u8>), WasiError, _, _>(instance, "[method]bucket.set", set)?;
    define::<(Resource<Bucket>, String), WasiError, _, _>(instance, "[method]bucket.delete", delete)?;
    define::<(Resource<Bucket>, String), WasiError, _, _>(instance, "[method]bucket.exists", exists)?;
    define::<(Resource<Bucket>, Option<String>), WasiError, _, _>(
        instance,
        "[method]bucket.list-keys",
        |store, (cursor,)| async move {
            let mut keys: Vec<String> = Vec::new();
            let mut total_bytes = 0;
            loop {
                let page = store.keys(keys.last().cloned().or_else(|| cursor.clone())).await?;
                let is_last = page.len() < PAGE_MAX_COUNT;
                total_bytes += page.iter().map(String::len).sum::<usize>();
                keys.extend(page);
                if is_last {
                    return Ok(KeyResponse { keys, cursor: None });
                }
                if total_bytes > LISTING_MAX_BYTES {
                    let cursor = keys.last().cloned();
                    return Ok(KeyResponse { keys, cursor });
                }
            }
        },
    )
}

fn add_wasi_batch(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    define::<(Resource<Bucket>, Vec<String>), WasiError, Vec<KeyAndValue>, _>(
        instance,
        "get-many",
        |store, (keys,)| async move { Ok(store.get_many(keys).await?) },
    )?;
    define::<(Resource<Bucket>, Vec<(String, Vec<u8>)>), WasiError, (), _>(
        instance,
        "set-many",
        |store, (entries,)| async move { Ok(store.set_many(entries).await?) },
    )?;
    define::<(Resource<Bucket>, Vec<String>), WasiError, (), _>(
        instance,
        "delete-many",
        |store, (keys,)| async move { Ok(store.delete_many(keys).await?) },
    )
}

fn add_wasi_atomics(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    instance.resource("cas", ResourceType::host::<Cas>(), |mut store, place| {
        store.data_mut().forget(place);
        Ok(())
    })?;
    instance.func_wrap_async(
        "[static]cas.new",
        |mut store: StoreContextMut<'_, Host>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(
                async move { Ok((store.data_mut().new_cas(&bucket, key).await.map_err(WasiError::from),)) },
            )
        },
    )?;
    instance.func_wrap(
        "[method]cas.current",
        |store: StoreContextMut<'_, Host>, (cas,): (Resource<Cas>,)| {
            let cas = store.data().table.get(&cas)?;
            Ok((Ok::<_, WasiError>(cas.remembered.clone()),))
        },
    )?;
    instance.func_wrap_async(
        "swap",
        |mut store: StoreContextMut<'_, Host>, (cas, value): (Resource<Cas>, Vec<u8>)| {
            Box::new(async move { Ok((store.data_mut().swap(cas.rep(), value).await,)) })
        },
    )?;
    define::<(Resource<Bucket>, String, i64), WasiError, _, _>(
        instance,
        "increment",
        |store, (key, delta)| async move { Ok(store.increment(key, delta).await?) },
    )
}

impl Host {
    async fn new_cas(&mut self, bucket: &Resource<Bucket>, key: String) -> Result<Resource<Cas>, Failure> {
        let store = self.store(bucket)?;
        let value = store.get(&key).await?;
        self.remember(store, key, value)
    }

    async fn swap(&mut self, place: u32, value: Vec<u8>) -> Result<(), CasError> {
        let failed = |failure: Failure| CasError::StoreError(failure.into());
        let cas = self.forget(place).ok_or_else(|| failed(Failure::InvalidHandle))?;
        match cas.store.swap(cas.key.clone(), cas.remembered, value).await {
            Ok(Swap::Done) => Ok(()),
            Ok(Swap::Conflict(current)) => {
                let again = self.remember(cas.store, cas.key, current).map_err(failed)?;
                Err(CasError::CasFailed(again))
            }
            Err(cause) => Err(failed(cause.into())),
        }
    }
}

async fn get(store: Checked, (key,): (String,)) -> Result<Option<Vec<u8>>, Failure> {
    Ok(store.get(&key).await?)
}

async fn set(store: Checked, (key, value): (String, Vec<u8>)) -> Result<(), Failure> {
    Ok(store.set(key, value).await?)
}

async fn delete(store: Checked, (key,): (String,)) -> Result<(), Failure> {
    Ok(store.delete(key).await?)
}

async fn exists(store: Checked, (key,): (String,)) -> Result<bool, Failure> {
    Ok(store.exists(&key).await?)
}

async fn all_keys(store: Checked, (): ()) -> Result<Vec<String>, Failure> {
    Ok(store.all_keys().await?)
}

/// All keys, a page at a time.
fn key_pages(
    store: Result<Checked, Failure>,
) -> impl futures::Stream<Item = Result<Vec<String>, Error2>> + Send + 'static {
    enum Next {
        Page { store: Result<Checked, Failure>, after: Option<String> },
        End,
    }
    stream::unfold(Next::Page { store, after: None }, |next| async move {
        let Next::Page { store, after } = next else { return None };
        let page = match &store {
            Ok(store) => store.keys(after).await.map_err(Failure::from),
            Err(_) => Err(Failure::InvalidHandle),
        };
        let next = match &page {
            Ok(keys) if keys.len() == PAGE_MAX_COUNT => Next::Page { store, after: keys.last().cloned() },
            _ => Next::End,
        };
        Some((page.map_err(Error2::from), next))
    })
}

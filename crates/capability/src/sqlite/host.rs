//! The host interfaces of SQL databases: every version, over [`Connection`].
//!
//! The versions differ in names and in how a handle looks; their types are the
//! same. That these match the WIT text is tested by linking components that import it.

use futures::stream::{self, BoxStream, StreamExt as _};
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, ComponentType, Lift, Linker, LinkerInstance, Resource, ResourceType};

use super::connection::{Connection, Streamed};
use super::{CONNECTIONS_MAX_COUNT, Row, SqlError, Value};
use crate::{Flavor, Host, pages};

/// What one instance holds of SQL databases.
#[derive(Default)]
pub(crate) struct State {
    /// Open connections in the resource table.
    connections_count: usize,
}

/// How a guest names an open connection: an index in the unversioned interface,
/// a resource in all others. Both are places in the instance's resource table.
trait Handle: ComponentType + Lift + Send + Sync + 'static {
    fn place(&self) -> Resource<Connection>;
}

impl Handle for u32 {
    fn place(&self) -> Resource<Connection> {
        // The table checks that there is something, and that it is a
        // connection.
        Resource::new_borrow(*self)
    }
}

impl Handle for Resource<Connection> {
    fn place(&self) -> Resource<Connection> {
        Resource::new_borrow(self.rep())
    }
}

impl Host {
    fn open_database(&mut self, label: &str) -> Result<Resource<Connection>, SqlError> {
        let link = self.grants.sqlite.by_label.get(label).ok_or(SqlError::AccessDenied)?;
        let too_many = || {
            SqlError::Io(format!(
                "the instance has {CONNECTIONS_MAX_COUNT} open connections, which is the limit"
            ))
        };
        if self.sqlite.connections_count >= CONNECTIONS_MAX_COUNT {
            return Err(too_many());
        }
        let place = self.table.push(Connection::new(link.clone())).map_err(|_| too_many())?;
        self.sqlite.connections_count += 1;
        Ok(place)
    }

    fn connection(&self, place: &Resource<Connection>) -> Result<Connection, SqlError> {
        self.table.get(place).cloned().map_err(|_| SqlError::InvalidConnection)
    }

    fn close_database(&mut self, place: u32) {
        if self.table.delete(Resource::<Connection>::new_own(place)).is_ok() {
            self.sqlite.connections_count = self.sqlite.connections_count.saturating_sub(1);
        }
    }
}

/// Registers every version.
pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    add_unversioned(&mut linker.instance("fermyon:spin/sqlite")?)?;
    add_version_2(&mut linker.instance("fermyon:spin/sqlite@2.0.0")?)?;
    // The linker serves imports of @3.0.0 from it too.
    let mut version_3 = linker.instance("spin:sqlite/sqlite@3.1.0")?;
    add_version_2(&mut version_3)?;
    add_version_3_0(&mut version_3)?;
    if flavor.is_concurrent() {
        add_version_3_1(&mut version_3)?;
    }
    Ok(())
}

fn define_execute<H: Handle>(instance: &mut LinkerInstance<'_, Host>, name: &str) -> wasmtime::Result<()> {
    instance.func_wrap_async(
        name,
        |store: StoreContextMut<'_, Host>, (handle, statement, parameters): (H, String, Vec<Value>)| {
            let connection = store.data().connection(&handle.place());
            let busy = store.data().grants.world.busy();
            Box::new(async move {
                let _busy = busy;
                Ok((match connection {
                    Ok(connection) => connection.execute(statement, parameters).await,
                    Err(cause) => Err(cause),
                },))
            })
        },
    )
}

fn add_unversioned(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    instance.func_wrap("open", |mut store: StoreContextMut<'_, Host>, (label,): (String,)| {
        Ok((store.data_mut().open_database(&label).map(|place| place.rep()),))
    })?;
    instance.func_wrap("close", |mut store: StoreContextMut<'_, Host>, (place,): (u32,)| {
        store.data_mut().close_database(place);
        Ok(())
    })?;
    define_execute::<u32>(instance, "execute")
}

fn add_version_2(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    instance.resource("connection", ResourceType::host::<Connection>(), |mut store, place| {
        store.data_mut().close_database(place);
        Ok(())
    })?;
    instance.func_wrap(
        "[static]connection.open",
        |mut store: StoreContextMut<'_, Host>, (label,): (String,)| {
            Ok((store.data_mut().open_database(&label),))
        },
    )?;
    define_execute::<Resource<Connection>>(instance, "[method]connection.execute")
}

/// What 3.0.0 has beyond 2.0.0.
fn add_version_3_0(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "[method]connection.last-insert-rowid",
        |store: StoreContextMut<'_, Host>, (place,): (Resource<Connection>,)| {
            Ok((store.data().table.get(&place)?.last_insert_rowid(),))
        },
    )?;
    instance.func_wrap(
        "[method]connection.changes",
        |store: StoreContextMut<'_, Host>, (place,): (Resource<Connection>,)| {
            Ok((store.data().table.get(&place)?.changes_count(),))
        },
    )
}

/// What 3.1.0 has beyond 3.0.0.
fn add_version_3_1(instance: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    instance.func_wrap_concurrent(
        "[static]connection.open-async",
        |accessor: &Accessor<Host>, (label,): (String,)| {
            let opened = accessor.with(|mut access| access.get().open_database(&label));
            Box::pin(async move { Ok((opened,)) })
        },
    )?;
    instance.func_wrap_concurrent(
        "[method]connection.execute-async",
        |accessor: &Accessor<Host>,
         (place, statement, parameters): (Resource<Connection>, String, Vec<Value>)| {
            let (connection, busy) = accessor.with(|mut access| {
                let host = access.get();
                (host.connection(&place), host.grants.world.busy())
            });
            Box::pin(async move {
                let _busy = busy;
                let streamed = match connection {
                    Ok(connection) => connection.stream(statement, parameters).await,
                    Err(cause) => Err(cause),
                };
                let (columns, rows): (_, BoxStream<'static, Result<Vec<Row>, SqlError>>) = match streamed {
                    Ok(Streamed::Whole(result)) => (result.columns, stream::iter([Ok(result.rows)]).boxed()),
                    Ok(Streamed::Parts { columns, rows }) => (columns, rows.pages().boxed()),
                    Err(cause) => return Ok((Err(cause),)),
                };
                let (rows, result) = accessor.with(|access| pages::ends(access, rows))?;
                Ok((Ok((columns, rows, result)),))
            })
        },
    )?;
    instance.func_wrap_concurrent(
        "[method]connection.last-insert-rowid-async",
        |accessor: &Accessor<Host>, (place,): (Resource<Connection>,)| {
            let rowid =
                accessor.with(|mut access| Ok((access.get().table.get(&place)?.last_insert_rowid(),)));
            Box::pin(async move { rowid })
        },
    )?;
    instance.func_wrap_concurrent(
        "[method]connection.changes-async",
        |accessor: &Accessor<Host>, (place,): (Resource<Connection>,)| {
            let count = accessor.with(|mut access| Ok((access.get().table.get(&place)?.changes_count(),)));
            Box::pin(async move { count })
        },
    )
}

//! Interfaces that are linked and not available yet.
//!
//! For: guests that import the whole platform, as Python's do for a hello
//! world. They start, and find out only when they call what is not here. Such a call gets
//! the error of its own interface, and the permission question comes first: a
//! component that may not reach a server is told so, today as later.
//!
//! Not for: anything that works. A family that gets an implementation becomes
//! a module of its own with typed bindings, and its rows below go away.
//!
//! How: there is nothing to do with arguments except for the first, which says
//! where a call would go, and nothing to return except for an error. So one
//! function, [`answer`], serves all of them and takes the shape of its error
//! from the type that the guest imports; and one row in a table, [`INTERFACES`],
//! says what an interface is made of. Nobody gets to see a `connection`: the
//! methods are there because guests import them.
//!
//! Only the newest version of a semver line has a row, since the linker
//! serves the older ones from it. `spin:postgres@4.2.0` mixes `async func` with others: an
//! engine without component-model concurrency gets just those others, which is
//! what version 4.1.0 was.

#[cfg(test)]
mod tests;

use futures::future::ready;
use wasmtime::component::types::ComponentFunc;
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceAny, ResourceType, Type, Val};
use wasmtime::{AsContextMut, StoreContextMut, bail};

use crate::{Error, Flavor, Grants, Host};

/// One interface: what a guest may import of it.
struct Interface {
    name: &'static str,
    family: Family,
    resources: &'static [&'static str],
    functions: &'static [&'static str],
    /// Functions that are `async func`.
    async_functions: &'static [&'static str],
}

/// What an interface gives access to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llm,
    Mqtt,
    Mysql,
    Postgres,
    Redis,
}

/// Why a call is not served.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// The component may not use what it asked for: a server or a model.
    Denied {
        /// What it asked for.
        target: String,
    },
    /// It could, if this version had it.
    Unavailable,
}

/// Stands for a `connection`, of which there are none.
enum Connection {}

/// A `connection-builder`.
struct Builder {
    address: String,
}

/// What one instance holds of these interfaces.
#[derive(Default)]
pub(crate) struct State {
    builders_count: usize,
}

/// How many `connection-builder`s an instance may hold. A guest needs one for
/// each connection that it is about to open, which are a handful.
const MAX_BUILDERS_COUNT: usize = 64;

/// The longest address or model name that is looked at, and repeated in an
/// error. Far longer than any real one; a guest's text can be as large as its
/// memory.
const MAX_TARGET_BYTES: usize = 4096;

const INTERFACES: &[Interface] = &[
    Interface {
        name: "fermyon:spin/llm",
        family: Family::Llm,
        resources: &[],
        functions: LLM,
        async_functions: &[],
    },
    Interface {
        name: "fermyon:spin/llm@2.0.0",
        family: Family::Llm,
        resources: &[],
        functions: LLM,
        async_functions: &[],
    },
    Interface {
        name: "fermyon:spin/mqtt@2.0.0",
        family: Family::Mqtt,
        resources: &["connection"],
        functions: MQTT_CONNECTION,
        async_functions: &[],
    },
    Interface {
        name: "spin:mqtt/mqtt@3.0.0",
        family: Family::Mqtt,
        resources: &["connection"],
        functions: &[],
        async_functions: MQTT_CONNECTION,
    },
    Interface {
        name: "fermyon:spin/mysql",
        family: Family::Mysql,
        resources: &[],
        functions: &["query", "execute"],
        async_functions: &[],
    },
    Interface {
        name: "fermyon:spin/mysql@2.0.0",
        family: Family::Mysql,
        resources: &["connection"],
        functions: SQL_CONNECTION,
        async_functions: &[],
    },
    Interface {
        name: "spin:mysql/mysql@3.0.0",
        family: Family::Mysql,
        resources: &["connection"],
        functions: &[],
        async_functions: SQL_CONNECTION,
    },
    Interface {
        name: "fermyon:spin/postgres",
        family: Family::Postgres,
        resources: &[],
        functions: &["query", "execute"],
        async_functions: &[],
    },
    Interface {
        name: "fermyon:spin/postgres@2.0.0",
        family: Family::Postgres,
        resources: &["connection"],
        functions: SQL_CONNECTION,
        async_functions: &[],
    },
    Interface {
        name: "spin:postgres/postgres@3.0.0",
        family: Family::Postgres,
        resources: &["connection"],
        functions: SQL_CONNECTION,
        async_functions: &[],
    },
    Interface {
        name: "spin:postgres/postgres@4.2.0",
        family: Family::Postgres,
        resources: &["connection", "connection-builder"],
        functions: &[
            "[static]connection.open",
            "[method]connection.query",
            "[method]connection.execute",
            "[constructor]connection-builder",
            "[method]connection-builder.set-ca-root",
            "[method]connection-builder.build",
        ],
        async_functions: &[
            "[static]connection.open-async",
            "[method]connection.query-async",
            "[method]connection.execute-async",
            "[method]connection-builder.build-async",
        ],
    },
    Interface {
        name: "fermyon:spin/redis",
        family: Family::Redis,
        resources: &[],
        functions: &["publish", "get", "set", "incr", "del", "sadd", "smembers", "srem", "execute"],
        async_functions: &[],
    },
    Interface {
        name: "fermyon:spin/redis@2.0.0",
        family: Family::Redis,
        resources: &["connection"],
        functions: REDIS_CONNECTION,
        async_functions: &[],
    },
    Interface {
        name: "spin:redis/redis@3.0.0",
        family: Family::Redis,
        resources: &["connection"],
        functions: &[],
        async_functions: REDIS_CONNECTION,
    },
];

const LLM: &[&str] = &["infer", "generate-embeddings"];

const MQTT_CONNECTION: &[&str] = &["[static]connection.open", "[method]connection.publish"];

const SQL_CONNECTION: &[&str] =
    &["[static]connection.open", "[method]connection.query", "[method]connection.execute"];

const REDIS_CONNECTION: &[&str] = &[
    "[static]connection.open",
    "[method]connection.publish",
    "[method]connection.get",
    "[method]connection.set",
    "[method]connection.incr",
    "[method]connection.del",
    "[method]connection.sadd",
    "[method]connection.smembers",
    "[method]connection.srem",
    "[method]connection.execute",
];

pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    for interface in INTERFACES {
        let is_async_only = interface.functions.is_empty();
        if flavor.is_concurrent() || !is_async_only {
            add_interface(&mut linker.instance(interface.name)?, interface, flavor)?;
        }
    }
    Ok(())
}

fn add_interface(
    instance: &mut LinkerInstance<'_, Host>,
    interface: &'static Interface,
    flavor: Flavor,
) -> wasmtime::Result<()> {
    for resource in interface.resources {
        match *resource {
            "connection-builder" => {
                instance.resource(resource, ResourceType::host::<Builder>(), |mut store, rep| {
                    let host = store.data_mut();
                    host.table.delete(Resource::<Builder>::new_own(rep))?;
                    host.unavailable.builders_count -= 1;
                    Ok(())
                })?;
            }
            _ => instance.resource(resource, ResourceType::host::<Connection>(), |_, _| Ok(()))?,
        }
    }
    let family = interface.family;
    for function in interface.functions {
        instance.func_new(function, move |store, function_type, arguments, results| {
            answer(store, family, &function_type, arguments, results)
        })?;
    }
    if flavor.is_concurrent() {
        for function in interface.async_functions {
            instance.func_new_concurrent(function, move |accessor, function_type, arguments, results| {
                Box::pin(ready(accessor.with(|mut access| {
                    answer(access.as_context_mut(), family, &function_type, arguments, results)
                })))
            })?;
        }
    }
    Ok(())
}

/// Answers a call of any function in the table.
fn answer(
    mut store: StoreContextMut<'_, Host>,
    family: Family,
    function_type: &ComponentFunc,
    arguments: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    let (Some(result_type), [result]) = (function_type.results().next(), results) else {
        bail!("a function without a result is in the table of those that answer with an error");
    };
    match (result_type, arguments.first()) {
        (Type::Own(_), Some(Val::String(address))) => {
            let host = store.data_mut();
            if host.unavailable.builders_count == MAX_BUILDERS_COUNT {
                bail!("more than {MAX_BUILDERS_COUNT} connection builders at a time");
            }
            // One byte more than is looked at, so that too long stays too long.
            let builder = Builder { address: shortened(address, MAX_TARGET_BYTES + 1).to_owned() };
            let builder = host.table.push(builder)?;
            host.unavailable.builders_count += 1;
            *result = Val::Resource(ResourceAny::try_from_resource(builder, &mut store)?);
        }
        (Type::Result(result_type), argument) => {
            let refusal = match argument {
                Some(Val::String(target)) => refuse(family, &store.data().grants, target),
                Some(Val::Resource(handle)) if handle.ty() == ResourceType::host::<Builder>() => {
                    let builder = handle.try_into_resource::<Builder>(&mut store)?;
                    let host = store.data();
                    refuse(family, &host.grants, &host.table.get(&builder)?.address)
                }
                _ => Refusal::Unavailable,
            };
            let error = result_type.err().map(|error| refusal.in_terms_of(family, &error)).transpose()?;
            *result = Val::Result(Err(error.map(Box::new)));
        }
        _ => {
            bail!("a function whose result is no `result` is in the table of those that answer with an error")
        }
    }
    Ok(())
}

/// Why a call to `target` is not served: denied if it would be denied in a
/// version that has the family, too.
fn refuse(family: Family, grants: &Grants, target: &str) -> Refusal {
    if let Some(script) = &grants.world.http {
        // What is before the last `@` is a name and a password.
        let place = shortened(target, MAX_TARGET_BYTES).rsplit('@').next().unwrap_or_default();
        script.unavailable(&grants.component, family.name(), place);
    }
    if target.len() > MAX_TARGET_BYTES {
        return Refusal::Denied { target: shortened(target, MAX_TARGET_BYTES).to_owned() };
    }
    // An address of another family is malformed, even where that may be reached.
    let may_reach = |address: &str, schemes: &[&str]| {
        let destination = grants.outbound.check_url(address, schemes.first().copied().unwrap_or_default());
        destination.is_ok_and(|destination| schemes.contains(&destination.scheme.as_str()))
    };
    let may_use = match family {
        Family::Llm => grants.ai_models.iter().any(|model| **model == *target),
        Family::Mqtt => may_reach(target, &["mqtt", "mqtts"]),
        Family::Mysql => may_reach(target, &["mysql"]),
        Family::Postgres => {
            postgres_urls(target).is_some_and(|urls| urls.iter().all(|url| may_reach(url, &["postgres"])))
        }
        Family::Redis => may_reach(target, &["redis", "rediss"]),
    };
    match may_use {
        true => Refusal::Unavailable,
        false => Refusal::Denied { target: target.to_owned() },
    }
}

/// As much of the start of a text as fits into some bytes.
fn shortened(text: &str, limit_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(limit_bytes)]
}

/// The servers in an address of PostgreSQL, which is a URL or a list of
/// `key=value` pairs.
///
/// Good enough to ask for permission as long as nothing connects to the address:
/// it knows no quoted values.
fn postgres_urls(address: &str) -> Option<Vec<String>> {
    for scheme in ["postgres://", "postgresql://"] {
        if let Some(rest) = address.strip_prefix(scheme) {
            return Some(vec![format!("postgres://{rest}")]);
        }
    }
    let value = |key: &str| {
        address.split_whitespace().filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == key)
    };
    let (_, hosts) = value("host").or_else(|| value("hostaddr"))?;
    let ports: Vec<_> = value("port").map_or(vec!["5432"], |(_, ports)| ports.split(',').collect());
    let urls = hosts.split(',').enumerate().map(|(index, host)| {
        let port = ports.get(index).or(ports.last())?;
        let is_socket_file = host.is_empty() || host.starts_with('/');
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        (!is_socket_file).then(|| format!("postgres://{host}:{port}"))
    });
    urls.collect()
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Mqtt => "mqtt",
            Self::Mysql => "mysql",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }

    /// The case of the error that says that a permission is missing.
    fn denied_case(self) -> &'static str {
        match self {
            Self::Llm => "invalid-input",
            Self::Redis => "invalid-address",
            Self::Mqtt | Self::Mysql | Self::Postgres => "connection-failed",
        }
    }
}

impl Refusal {
    /// The text that comes with the error, where it has one.
    fn message(&self, family: Family) -> String {
        match self {
            Self::Denied { target } if family == Family::Llm => format!(
                "The component does not have access to use '{target}'. To give it access, add '{target}' to \
                 `ai_models` of the component in the manifest"
            ),
            Self::Denied { target } => format!("address {target} is not permitted"),
            Self::Unavailable => {
                let error = Error::Unavailable { family: family.name() };
                format!("{error} [{}]", error.code())
            }
        }
    }

    /// The refusal as a value of the error type that the guest expects.
    fn in_terms_of(&self, family: Family, error_type: &Type) -> wasmtime::Result<Val> {
        // The oldest Redis interface has an error that says nothing.
        if let Type::Enum(_) = error_type {
            return Ok(Val::Enum("error".into()));
        }
        let Type::Variant(variant) = error_type else {
            bail!("an error that is neither a variant nor an enum");
        };
        let names: &[&str] = match self {
            Self::Denied { .. } => &[family.denied_case()],
            Self::Unavailable => &["other", "other-error", "runtime-error"],
        };
        let Some(case) = variant.cases().find(|case| names.contains(&case.name)) else {
            bail!("an error without a case for {self:?}");
        };
        let payload = case.ty.is_some().then(|| Box::new(Val::String(self.message(family))));
        Ok(Val::Variant(case.name.to_owned(), payload))
    }
}

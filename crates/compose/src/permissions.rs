//! Which of a component's permissions another one shares, and which interfaces each of
//! them is about.

use std::collections::BTreeSet;

use wisp_manifest::model::{InheritConfiguration, Inheritable};

use crate::ExternName;

/// All that can be inherited.
const ALL: [Inheritable; 7] = [
    Inheritable::AiModels,
    Inheritable::AllowedOutboundHosts,
    Inheritable::Environment,
    Inheritable::Files,
    Inheritable::KeyValueStores,
    Inheritable::SqliteDatabases,
    Inheritable::Variables,
];

/// What a dependency may reach of that which the component it serves may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permissions(BTreeSet<Inheritable>);

impl Permissions {
    /// Everything.
    pub fn all() -> Self {
        Self(ALL.into())
    }

    /// Nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// What a manifest says. `otherwise` where it says nothing.
    pub fn of(inherit: Option<&InheritConfiguration>, otherwise: Self) -> Self {
        match inherit {
            None => otherwise,
            Some(InheritConfiguration::All) => Self::all(),
            Some(InheritConfiguration::None) => Self::none(),
            Some(InheritConfiguration::Some(some)) => Self(some.iter().copied().collect()),
        }
    }

    /// Whether this is among them.
    pub fn has(&self, permission: Inheritable) -> bool {
        self.0.contains(&permission)
    }

    /// Those that are among them, as a manifest names them.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied().map(Inheritable::name)
    }
}

/// The permission that an import needs; none for what every component has: clocks,
/// random numbers, standard output, and types.
///
/// These are the doors: interfaces by which a component comes to something. What is
/// done with it later (a file's descriptor, a socket, a request) is reached only through
/// them, and stays the host's.
pub fn permission(import: &str) -> Option<Inheritable> {
    let name = ExternName::parse(import);
    Some(match name.unversioned().as_str() {
        "fermyon:spin/key-value"
        | "spin:key-value/key-value"
        | "wasi:keyvalue/store"
        | "wasi:keyvalue/atomics"
        | "wasi:keyvalue/batch" => Inheritable::KeyValueStores,
        "fermyon:spin/sqlite" | "spin:sqlite/sqlite" => Inheritable::SqliteDatabases,
        "fermyon:spin/llm" => Inheritable::AiModels,
        "fermyon:spin/config"
        | "fermyon:spin/variables"
        | "spin:variables/variables"
        | "wasi:config/store" => Inheritable::Variables,
        "wasi:cli/environment" => Inheritable::Environment,
        "wasi:filesystem/preopens" => Inheritable::Files,
        "fermyon:spin/http"
        | "fermyon:spin/redis"
        | "spin:redis/redis"
        | "fermyon:spin/postgres"
        | "spin:postgres/postgres"
        | "fermyon:spin/mysql"
        | "spin:mysql/mysql"
        | "fermyon:spin/mqtt"
        | "spin:mqtt/mqtt"
        | "wasi:http/outgoing-handler"
        | "wasi:http/client"
        | "wasi:sockets/ip-name-lookup"
        | "wasi:sockets/tcp-create-socket"
        | "wasi:sockets/udp-create-socket"
        // Since 0.3 sockets are made where their types are; before, it had none.
        | "wasi:sockets/types" => Inheritable::AllowedOutboundHosts,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::path::Path;

    use wit_parser::{Resolve, WorldItem};

    use super::*;

    /// Interfaces of the host that need no permission.
    const FREE: [&str; 8] = [
        "fermyon:spin/http-types",
        "fermyon:spin/rdbms-types",
        "fermyon:spin/redis-types",
        "wasi:clocks/wall-clock",
        "wasi:otel/logs",
        "wasi:otel/metrics",
        "wasi:otel/tracing",
        "wasi:otel/types",
    ];

    #[test]
    fn every_interface_of_the_host_is_a_door_or_known_to_be_none() {
        let mut resolve = Resolve::default();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let (package, _) = resolve.push_dir(folder).unwrap();
        let mut doors_count = 0;
        for world in resolve.packages[package].worlds.values() {
            for (key, item) in &resolve.worlds[*world].imports {
                assert!(matches!(item, WorldItem::Interface { .. }));
                let name = resolve.name_world_key(key);
                let is_free = FREE.contains(&ExternName::parse(&name).unversioned().as_str());
                assert!(is_free != permission(&name).is_some(), "{name}");
                doors_count += usize::from(!is_free);
            }
        }
        assert!(doors_count > 20, "{doors_count}");
    }

    #[test]
    fn what_is_inherited_is_what_the_manifest_says() {
        let some = InheritConfiguration::Some(vec![Inheritable::Variables]);
        let some = Permissions::of(Some(&some), Permissions::all());
        assert!(some.has(Inheritable::Variables) && !some.has(Inheritable::Files));
        assert_eq!(
            Permissions::of(Some(&InheritConfiguration::None), Permissions::all()),
            Permissions::none()
        );
        assert_eq!(Permissions::of(None, Permissions::all()), Permissions::all());
        assert_eq!(Permissions::all().names().count(), ALL.len());
    }
}

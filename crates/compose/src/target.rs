//! Whether a component fits the environments that it is meant for.
//!
//! An environment says for each type of trigger which *worlds* a component may be of:
//! what it may import, and what it has to export. A component fits if one of them does.
//! Those of Spin are built in as far as this crate can say truthfully what is in them,
//! and so is Wisp's own; others are read from a file:
//!
//! ```toml
//! [triggers.http]
//! worlds = ["spin:up/http-trigger@4.1.0", { path = "wit", world = "my:host/handler@1.0.0" }]
//! ```
//!
//! A built-in world is compared by the names of interfaces and their versions, as the
//! host links them; a world from a folder of WIT by every function and type.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use semver::Version;
use serde::Deserialize;
use wit_parser::Resolve;

use crate::{Code, Error, ExternName, guarded, is_compatible};

/// Packages of interfaces, and the versions of them that a host has. An empty version is
/// a package without one.
type Packages = &'static [(&'static str, &'static [&'static str])];

/// What HTTP triggers of WASI 0.2 call.
const HANDLERS_P2: &[&str] = &[
    "wasi:http/incoming-handler@0.2.0",
    "wasi:http/incoming-handler@0.2.0-rc-2023-11-10",
    "wasi:http/incoming-handler@0.2.0-rc-2023-10-18",
    "fermyon:spin/inbound-http",
    "wasi:cli/run@0.2.0",
];
const HANDLER_P3_CANDIDATE: &str = "wasi:http/handler@0.3.0-rc-2026-03-15";
const HANDLER_P3: &str = "wasi:http/handler@0.3.0";

/// What redis triggers call.
const INBOUND_REDIS: &[&str] = &["fermyon:spin/inbound-redis"];
const INBOUND_REDIS_P3: &str = "spin:redis/inbound-redis@3.0.0";

const CANDIDATES_P2: [&str; 3] = ["0.2.0", "0.2.0-rc-2023-11-10", "0.2.0-rc-2023-10-18"];

/// What the line of Spin 3 has, as the worlds of its SDKs say.
const SPIN_3: Packages = &[
    ("wasi:cli", &CANDIDATES_P2),
    ("wasi:clocks", &CANDIDATES_P2),
    ("wasi:filesystem", &CANDIDATES_P2),
    ("wasi:http", &CANDIDATES_P2),
    ("wasi:io", &CANDIDATES_P2),
    ("wasi:random", &CANDIDATES_P2),
    ("wasi:sockets", &CANDIDATES_P2),
    ("wasi:config", &["0.2.0-draft-2024-09-27"]),
    ("wasi:keyvalue", &["0.2.0-draft2"]),
    ("fermyon:spin", &["", "2.0.0"]),
    ("spin:postgres", &["3.0.0", "4.0.0"]),
    ("spin:sqlite", &["3.0.0"]),
];

/// What Spin 4.0 adds.
const SPIN_4_0: Packages = &[
    ("wasi:cli", &["0.3.0-rc-2026-03-15"]),
    ("wasi:clocks", &["0.3.0-rc-2026-03-15"]),
    ("wasi:filesystem", &["0.3.0-rc-2026-03-15"]),
    ("wasi:http", &["0.3.0-rc-2026-03-15"]),
    ("wasi:random", &["0.3.0-rc-2026-03-15"]),
    ("wasi:sockets", &["0.3.0-rc-2026-03-15"]),
    ("spin:key-value", &["3.0.0"]),
    ("spin:mqtt", &["3.0.0"]),
    ("spin:redis", &["3.0.0"]),
    ("spin:variables", &["3.0.0"]),
];

/// What Spin 4.1 adds.
const SPIN_4_1: Packages = &[
    ("wasi:cli", &["0.3.0"]),
    ("wasi:clocks", &["0.3.0"]),
    ("wasi:filesystem", &["0.3.0"]),
    ("wasi:http", &["0.3.0"]),
    ("wasi:random", &["0.3.0"]),
    ("wasi:sockets", &["0.3.0"]),
    ("spin:mysql", &["3.0.0"]),
];

/// What Wisp has beside that.
const WISP: Packages = &[("wasi:otel", &["0.2.0-rc.2"])];

/// The environments that need no definition.
const BUILT_IN: [BuiltIn; 4] = [
    BuiltIn { name: "spin-up:3.4", world_version: "3.4.0", packages: &[SPIN_3], generation: 0 },
    BuiltIn { name: "spin-up:4.0", world_version: "4.0.0", packages: &[SPIN_3, SPIN_4_0], generation: 1 },
    BuiltIn {
        name: "spin-up:4.1",
        world_version: "4.1.0",
        packages: &[SPIN_3, SPIN_4_0, SPIN_4_1],
        generation: 2,
    },
    BuiltIn { name: "wisp", world_version: "", packages: &[SPIN_3, SPIN_4_0, SPIN_4_1, WISP], generation: 2 },
];

/// The largest definition of an environment.
pub const MAX_DEFINITION_BYTES: u64 = 64 << 10;

struct BuiltIn {
    name: &'static str,
    /// The version of the worlds `spin:up/…` that are this.
    world_version: &'static str,
    packages: &'static [Packages],
    /// 0: WASI 0.2; 1: and the candidate of 0.3; 2: and 0.3.
    generation: u8,
}

/// An environment that components are compared with.
#[derive(Clone, Debug)]
pub struct Environment {
    name: String,
    worlds: BTreeMap<String, Vec<World>>,
    /// For triggers that are not named.
    default: Option<Vec<World>>,
}

#[derive(Clone, Debug)]
enum World {
    BuiltIn(usize),
    Wit { folder: PathBuf, world: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    triggers: BTreeMap<String, Worlds>,
    default: Option<Vec<WorldReference>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Worlds {
    Only(Vec<WorldReference>),
    Table {
        worlds: Vec<WorldReference>,
        /// What a host must be able to do beside that: not a component's interface.
        #[serde(default)]
        #[expect(dead_code, reason = "read so that definitions that have it are understood")]
        capabilities: Vec<String>,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WorldReference {
    Named(String),
    Path { path: PathBuf, world: String },
    Registry { registry: String, world: String },
}

/// The names of the environments that need no definition.
pub fn built_in() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|known| known.name)
}

impl Environment {
    /// One that is built in.
    ///
    /// # Errors
    /// [`Error::Target`] if there is none of this name.
    pub fn named(name: &str) -> Result<Self, Error> {
        let known = BUILT_IN.iter().position(|known| known.name == name);
        let known = known.ok_or_else(|| Error::Target {
            target: name.to_owned(),
            message: "no environment of this name is built in".to_owned(),
        })?;
        let worlds = ["http", "redis"].map(|trigger| (trigger.to_owned(), vec![World::BuiltIn(known)]));
        Ok(Self { name: name.to_owned(), worlds: worlds.into(), default: Some(vec![World::BuiltIn(known)]) })
    }

    /// One that a text in TOML defines. Paths in it start at `folder`.
    ///
    /// # Errors
    /// [`Error::Target`] if it is malformed, or names worlds that are not known.
    pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Self, Error> {
        let wrong = |message: String| Error::Target { target: name.to_owned(), message };
        let definition: Definition =
            toml::from_str(text).map_err(|error| wrong(error.message().to_owned()))?;
        let world = |reference: WorldReference| match reference {
            WorldReference::Named(world) => {
                let version = ["http-trigger", "redis-trigger", "platform"]
                    .iter()
                    .find_map(|kind| world.strip_prefix(&format!("spin:up/{kind}@")));
                let known = version
                    .and_then(|version| BUILT_IN.iter().position(|known| known.world_version == version));
                known
                    .map(World::BuiltIn)
                    .ok_or_else(|| wrong(format!("nothing is known of the world `{world}`")))
            }
            WorldReference::Path { path, world } => Ok(World::Wit { folder: folder.join(path), world }),
            WorldReference::Registry { registry, world } => {
                Err(wrong(format!("the world `{world}` is in the registry `{registry}`, which is not asked")))
            }
        };
        let list = |references: Vec<WorldReference>| references.into_iter().map(world).collect();
        let mut worlds = BTreeMap::new();
        for (trigger, named) in definition.triggers {
            let (Worlds::Only(named) | Worlds::Table { worlds: named, .. }) = named;
            worlds.insert(trigger, list(named)?);
        }
        let default = definition.default.map(list).transpose()?;
        Ok(Self { name: name.to_owned(), worlds, default })
    }

    /// Whether a component that triggers of this type start would run there.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], which says what comes closest; [`Error::Unreadable`], and
    /// [`Error::Target`] if a world cannot be read.
    pub fn check(&self, code: &Code<'_>, trigger: &str) -> Result<(), Error> {
        let does_not_fit = |message: String| Error::DoesNotFit {
            part: code.name.to_owned(),
            target: self.name.clone(),
            message,
        };
        let worlds = self.worlds.get(trigger).or(self.default.as_ref());
        let worlds = worlds.ok_or_else(|| does_not_fit(format!("it has no trigger `{trigger}`")))?;
        let mut reason = format!("it has no world for the trigger `{trigger}`");
        for world in worlds {
            match self.check_world(world, code, trigger)? {
                None => return Ok(()),
                Some(why_not) => reason = why_not,
            }
        }
        Err(does_not_fit(reason))
    }

    /// Why a component is not of a world.
    fn check_world(&self, world: &World, code: &Code<'_>, trigger: &str) -> Result<Option<String>, Error> {
        match world {
            World::BuiltIn(position) => {
                let (resolve, id) = crate::read(code)?;
                let names = |keys: Vec<_>| -> Vec<String> {
                    keys.into_iter().map(|key| resolve.name_world_key(key)).collect()
                };
                let imports = names(resolve.worlds[id].imports.keys().collect());
                let exports = names(resolve.worlds[id].exports.keys().collect());
                Ok(BUILT_IN[*position].why_not(&imports, &exports, trigger))
            }
            World::Wit { folder, world } => {
                let wrong = |message: String| Error::Target { target: self.name.clone(), message };
                guarded(
                    || {
                        let mut resolve = Resolve::default();
                        let (package, _) = resolve
                            .push_path(folder)
                            .map_err(|error| wrong(format!("{}: {error:#}", folder.display())))?;
                        let world = resolve
                            .select_world(&[package], Some(world))
                            .map_err(|error| wrong(format!("{error:#}")))?;
                        Ok(wit_component::targets(&resolve, world, code.bytes)
                            .err()
                            .map(|error| error.root_cause().to_string()))
                    },
                    || wrong(format!("{} is malformed", folder.display())),
                )
            }
        }
    }
}

impl BuiltIn {
    fn has(&self, import: &str) -> bool {
        let name = ExternName::parse(import);
        let Some(package) = &name.package else { return false };
        let offered = self.packages.iter().copied().flatten().filter(|(offered, _)| offered == package);
        offered.flat_map(|(_, versions)| versions.iter()).any(|version| match &name.version {
            None => version.is_empty(),
            Some(wanted) => Version::parse(version).is_ok_and(|version| is_compatible(&version, wanted)),
        })
    }

    fn calls(&self, export: &str, trigger: &str) -> bool {
        let name = ExternName::parse(export);
        let fits = |handler: &str| ExternName::parse(handler).fits(&name);
        match trigger {
            "http" => {
                HANDLERS_P2.iter().any(|handler| fits(handler))
                    || (self.generation >= 1 && fits(HANDLER_P3_CANDIDATE))
                    || (self.generation >= 2 && fits(HANDLER_P3))
            }
            "redis" => {
                INBOUND_REDIS.iter().any(|handler| fits(handler))
                    || (self.generation >= 1 && fits(INBOUND_REDIS_P3))
            }
            // Others bring their own interfaces.
            _ => true,
        }
    }

    fn why_not(&self, imports: &[String], exports: &[String], trigger: &str) -> Option<String> {
        let missing: Vec<String> =
            imports.iter().filter(|import| !self.has(import)).map(|import| format!("`{import}`")).collect();
        if !missing.is_empty() {
            return Some(format!("it has no {}", missing.join(", ")));
        }
        if !exports.iter().any(|export| self.calls(export, trigger)) {
            return Some(format!("the component exports nothing that its {trigger} trigger calls"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    fn check(environment: &Environment, text: &str) -> Result<(), String> {
        let bytes = component(text);
        let code = Code { name: "component `a`", bytes: &bytes };
        environment.check(&code, "http").map_err(|error| error.to_string())
    }

    const P3: &str = r#"(component
        (import "wasi:clocks/types@0.3.0" (instance))
        (instance $handler)
        (export "wasi:http/handler@0.3.0" (instance $handler)))"#;

    #[test]
    fn versions_of_spin_are_told_apart() {
        assert_eq!(check(&Environment::named("spin-up:4.1").unwrap(), P3), Ok(()));
        let error = check(&Environment::named("spin-up:4.0").unwrap(), P3).unwrap_err();
        assert!(error.contains("`wasi:clocks/types@0.3.0`") && error.contains("spin-up:4.0"), "{error}");
        let error = check(&Environment::named("wisp").unwrap(), "(component)").unwrap_err();
        assert!(error.contains("exports nothing that its http trigger calls"), "{error}");
        let foreign = r#"(component (import "some:body/else" (instance)))"#;
        let error = check(&Environment::named("wisp").unwrap(), foreign).unwrap_err();
        assert!(error.contains("`some:body/else`"), "{error}");
        assert_eq!(Environment::named("spin-up:0.1").unwrap_err().code(), "WISP-E1310");
    }

    #[test]
    fn definitions_are_read_in_both_forms() {
        let folder = Path::new("nowhere");
        let text = "[triggers]\nhttp = [\"spin:up/http-trigger@3.4.0\", \"spin:up/http-trigger@4.1.0\"]\n";
        assert_eq!(check(&Environment::parse("mine", text, folder).unwrap(), P3), Ok(()));
        let text = "[triggers.http]\nworlds = [\"spin:up/http-trigger@3.4.0\"]\ncapabilities = [\"x\"]\n";
        assert!(check(&Environment::parse("mine", text, folder).unwrap(), P3).is_err());
        let text = "[triggers.redis]\nworlds = [\"spin:up/redis-trigger@4.1.0\"]\n";
        let error = check(&Environment::parse("mine", text, folder).unwrap(), P3).unwrap_err();
        assert!(error.contains("no trigger `http`"), "{error}");
        for wrong in ["[triggers]\nhttp = [\"a:b/c@1.0.0\"]\n", "x = 1\n", "["] {
            assert_eq!(Environment::parse("mine", wrong, folder).unwrap_err().code(), "WISP-E1310");
        }
    }

    #[test]
    fn worlds_of_ones_own_are_compared_by_their_functions() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wit");
        let text = "[triggers]\nhttp = [{ path = \"target\", world = \"test:target/handler\" }]\n";
        let environment = Environment::parse("mine", text, &folder).unwrap();
        let fits = r#"(component
            (import "greet" (func $greet (param "name" string) (result string)))
            (export "answer" (func $greet)))"#;
        assert_eq!(check(&environment, fits), Ok(()));
        let other = r#"(component
            (import "greet" (func $greet (param "name" u32) (result string)))
            (export "answer" (func $greet)))"#;
        assert!(check(&environment, other).is_err());
    }
}

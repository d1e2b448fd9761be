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
//! host links them; a world from a folder of WIT, or from a package of a registry, by every
//! function and type. This crate fetches nothing: whoever reads a definition hands it the
//! packages that it names.
//!
//! A definition may also say what a host can do beside interfaces (`capabilities`), and
//! which stores, databases and models there are (`[configuration]`); what a component needs
//! of that is in its manifest ([`Needs`]).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use semver::Version;
use serde::Deserialize;
use wit_parser::{
    Resolve,
    decoding::{DecodedWasm, decode},
};

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

/// What the environments can do that are built in.
const CAPABILITIES: [&str; 1] = ["local_service_chaining"];

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
    triggers: BTreeMap<String, Offer>,
    /// For triggers that are not named.
    default: Option<Offer>,
    configuration: Configuration,
}

/// What there is for a type of trigger.
#[derive(Clone, Debug)]
struct Offer {
    worlds: Vec<World>,
    /// `None` where the definition does not say.
    capabilities: Option<Vec<String>>,
}

/// What a component asks of its host that is no import.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// What the host must be able to do: `local_service_chaining`.
    pub capabilities: Vec<String>,
    /// Labels of key-value stores.
    pub key_value_stores: Vec<String>,
    /// Labels of SQLite databases.
    pub sqlite_databases: Vec<String>,
    /// Models.
    pub ai_models: Vec<String>,
}

/// A package of WIT that a definition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldPackage {
    /// The registry, if it is not the one of the user's settings.
    pub registry: Option<String>,
    /// The namespace of the package.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Its version, if only one will do.
    pub version: Option<Version>,
}

/// Has packages of WIT, as the components that they are written in, or says why not.
pub type WorldPackages<'a> = &'a dyn Fn(&WorldPackage) -> Result<Vec<u8>, String>;

#[derive(Clone, Debug)]
enum World {
    BuiltIn(usize),
    Wit { folder: PathBuf, world: String },
    Package { bytes: Arc<[u8]>, world: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    triggers: BTreeMap<String, Worlds>,
    default: Option<Worlds>,
    #[serde(default)]
    configuration: Configuration,
    /// Templates and plugins, which are no component's concern.
    #[serde(default, rename = "metadata")]
    _metadata: Option<toml::Table>,
}

/// Which of something there are; any if it is not said.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    key_value_stores: Option<Vec<String>>,
    sqlite_databases: Option<Vec<String>>,
    ai_models: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Worlds {
    Only(Vec<WorldReference>),
    Table {
        worlds: Vec<WorldReference>,
        /// What the host can do beside that: not a component's interface.
        #[serde(default)]
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
        let capabilities = CAPABILITIES.map(str::to_owned).to_vec();
        let offer = Offer { worlds: vec![World::BuiltIn(known)], capabilities: Some(capabilities) };
        Ok(Self {
            name: name.to_owned(),
            triggers: BTreeMap::new(),
            default: Some(offer),
            configuration: Configuration::default(),
        })
    }

    /// One that a text in TOML defines. Paths in it start at `folder`, packages come from
    /// `packages`.
    ///
    /// # Errors
    /// [`Error::Target`] if it is malformed, or names worlds that are not to be had.
    pub fn parse(name: &str, text: &str, folder: &Path, packages: WorldPackages<'_>) -> Result<Self, Error> {
        let wrong = |message: String| Error::Target { target: name.to_owned(), message };
        let definition: Definition =
            toml::from_str(text).map_err(|error| wrong(error.message().to_owned()))?;
        let package = |registry: Option<String>, world: String| {
            let name = ExternName::parse(&world);
            let unknown =
                || wrong(format!("`{world}` is no name of a world: `namespace:name/world@1.0.0` is"));
            let (namespace, package) =
                name.package.as_deref().and_then(|package| package.split_once(':')).ok_or_else(unknown)?;
            let wanted = WorldPackage {
                registry,
                namespace: namespace.to_owned(),
                name: package.to_owned(),
                version: name.version.clone(),
            };
            let bytes = packages(&wanted)
                .map_err(|reason| wrong(format!("the world `{world}` is not to be had: {reason}")))?;
            Ok(World::Package { bytes: bytes.into(), world })
        };
        let world = |reference: WorldReference| match reference {
            WorldReference::Named(world) => {
                let version = ["http-trigger", "redis-trigger", "platform"]
                    .iter()
                    .find_map(|kind| world.strip_prefix(&format!("spin:up/{kind}@")));
                let known = version
                    .and_then(|version| BUILT_IN.iter().position(|known| known.world_version == version));
                match known {
                    Some(known) => Ok(World::BuiltIn(known)),
                    None => package(None, world),
                }
            }
            WorldReference::Path { path, world } => Ok(World::Wit { folder: folder.join(path), world }),
            WorldReference::Registry { registry, world } => package(Some(registry), world),
        };
        let offer = |worlds: Worlds| {
            let (worlds, capabilities) = match worlds {
                Worlds::Only(worlds) => (worlds, None),
                Worlds::Table { worlds, capabilities } => (worlds, Some(capabilities)),
            };
            let worlds = worlds.into_iter().map(world).collect::<Result<_, Error>>()?;
            Ok::<_, Error>(Offer { worlds, capabilities })
        };
        let mut triggers = BTreeMap::new();
        for (trigger, worlds) in definition.triggers {
            triggers.insert(trigger, offer(worlds)?);
        }
        let default = definition.default.map(offer).transpose()?;
        Ok(Self { name: name.to_owned(), triggers, default, configuration: definition.configuration })
    }

    /// Whether a component that triggers of this type start would run there.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], which says what comes closest; [`Error::Unreadable`], and
    /// [`Error::Target`] if a world cannot be read.
    pub fn check(&self, code: &Code<'_>, trigger: &str, needs: &Needs) -> Result<(), Error> {
        let does_not_fit = |message: String| Error::DoesNotFit {
            part: code.name.to_owned(),
            target: self.name.clone(),
            message,
        };
        let offer = self.triggers.get(trigger).or(self.default.as_ref());
        let offer = offer.ok_or_else(|| does_not_fit(format!("it has no trigger `{trigger}`")))?;
        let mut reason = Some(format!("it has no world for the trigger `{trigger}`"));
        for world in &offer.worlds {
            reason = self.check_world(world, code, trigger)?;
            if reason.is_none() {
                break;
            }
        }
        match reason.or_else(|| self.missing(offer, needs)) {
            None => Ok(()),
            Some(reason) => Err(does_not_fit(reason)),
        }
    }

    /// What a component needs and is not there, beside interfaces.
    fn missing(&self, offer: &Offer, needs: &Needs) -> Option<String> {
        let Configuration { key_value_stores, sqlite_databases, ai_models } = &self.configuration;
        for (what, needed, offered) in [
            ("capability", &needs.capabilities, &offer.capabilities),
            ("key-value store", &needs.key_value_stores, key_value_stores),
            ("SQLite database", &needs.sqlite_databases, sqlite_databases),
            ("model", &needs.ai_models, ai_models),
        ] {
            let Some(offered) = offered else { continue };
            if let Some(missing) = needed.iter().find(|needed| !offered.contains(needed)) {
                return Some(format!("it has no {what} `{missing}`"));
            }
        }
        None
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
            World::Package { bytes, world } => {
                let wrong = |message: String| Error::Target { target: self.name.clone(), message };
                guarded(
                    || {
                        let decoded = decode(bytes)
                            .map_err(|error| wrong(format!("the package of `{world}`: {error:#}")))?;
                        let DecodedWasm::WitPackage(resolve, package) = decoded else {
                            return Err(wrong(format!("the package of `{world}` is no package of WIT")));
                        };
                        let world = resolve
                            .select_world(&[package], Some(world))
                            .map_err(|error| wrong(format!("{error:#}")))?;
                        Ok(wit_component::targets(&resolve, world, code.bytes)
                            .err()
                            .map(|error| error.root_cause().to_string()))
                    },
                    || wrong(format!("the package of `{world}` is malformed")),
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
        environment.check(&code, "http", &Needs::default()).map_err(|error| error.to_string())
    }

    fn parse(text: &str, folder: &Path) -> Result<Environment, Error> {
        Environment::parse("mine", text, folder, &|wanted| {
            Err(format!("nobody has {}:{}", wanted.namespace, wanted.name))
        })
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
        assert_eq!(check(&parse(text, folder).unwrap(), P3), Ok(()));
        let text = "[triggers.http]\nworlds = [\"spin:up/http-trigger@3.4.0\"]\ncapabilities = [\"x\"]\n";
        assert!(check(&parse(text, folder).unwrap(), P3).is_err());
        let text = "[triggers.redis]\nworlds = [\"spin:up/redis-trigger@4.1.0\"]\n";
        let error = check(&parse(text, folder).unwrap(), P3).unwrap_err();
        assert!(error.contains("no trigger `http`"), "{error}");
        for wrong in ["[triggers]\nhttp = [\"a:b/c@1.0.0\"]\n", "x = 1\n", "["] {
            assert_eq!(parse(wrong, folder).unwrap_err().code(), "WISP-E1310");
        }
    }

    #[test]
    fn worlds_of_ones_own_are_compared_by_their_functions() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wit");
        let text = "[triggers]\nhttp = [{ path = \"target\", world = \"test:target/handler\" }]\n";
        let environment = parse(text, &folder).unwrap();
        let fits = r#"(component
            (import "greet" (func $greet (param "name" string) (result string)))
            (export "answer" (func $greet)))"#;
        assert_eq!(check(&environment, fits), Ok(()));
        let other = r#"(component
            (import "greet" (func $greet (param "name" u32) (result string)))
            (export "answer" (func $greet)))"#;
        assert!(check(&environment, other).is_err());
    }

    #[test]
    fn worlds_of_packages_are_compared_too() {
        let mut resolve = Resolve::default();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wit/target");
        let (package, _) = resolve.push_path(&folder).unwrap();
        let bytes = wit_component::encode(&resolve, package).unwrap();
        let asked = std::cell::RefCell::new(Vec::new());
        let packages = |wanted: &WorldPackage| {
            asked.borrow_mut().push(wanted.clone());
            Ok(bytes.clone())
        };
        let text =
            "[triggers]\nhttp = [{ registry = \"registry.example\", world = \"test:target/handler\" }]\n";
        let environment = Environment::parse("mine", text, &folder, &packages).unwrap();
        let wanted = WorldPackage {
            registry: Some("registry.example".to_owned()),
            namespace: "test".to_owned(),
            name: "target".to_owned(),
            version: None,
        };
        assert_eq!(*asked.borrow(), [wanted]);
        let fits = r#"(component
            (import "greet" (func $greet (param "name" string) (result string)))
            (export "answer" (func $greet)))"#;
        assert_eq!(check(&environment, fits), Ok(()));
        let other = r#"(component
            (import "greet" (func $greet (param "name" u32) (result string)))
            (export "answer" (func $greet)))"#;
        assert!(check(&environment, other).unwrap_err().contains("mine"));
        // One without a registry is of the one that the settings name.
        Environment::parse(
            "mine",
            "[triggers]\nhttp = [\"test:target/handler@1.0.0\"]\n",
            &folder,
            &packages,
        )
        .unwrap();
        let last = asked.borrow().last().cloned().unwrap();
        assert_eq!((last.registry, last.version), (None, Some(Version::new(1, 0, 0))));
        let error = parse("[triggers]\nhttp = [\"no-name\"]\n", &folder).unwrap_err();
        assert!(error.to_string().contains("no name of a world"), "{error}");
        let error = parse("[triggers]\nhttp = [\"a:b/c@1.0.0\"]\n", &folder).unwrap_err();
        assert!(error.to_string().contains("nobody has a:b"), "{error}");
    }

    #[test]
    fn what_a_host_can_do_beside_interfaces_counts() {
        let folder = Path::new("nowhere");
        let world = "\"spin:up/http-trigger@4.1.0\"";
        let bytes = component(P3);
        let code = Code { name: "component `a`", bytes: &bytes };
        let check = |text: &str, needs: &Needs| {
            parse(text, folder).unwrap().check(&code, "http", needs).map_err(|error| error.to_string())
        };
        let chains = Needs { capabilities: vec!["local_service_chaining".to_owned()], ..Needs::default() };
        let with = |capabilities: &str| {
            format!("[triggers.http]\nworlds = [{world}]\ncapabilities = [{capabilities}]\n")
        };
        assert_eq!(check(&with("\"local_service_chaining\""), &chains), Ok(()));
        assert_eq!(check(&with(""), &Needs::default()), Ok(()));
        let error = check(&with(""), &chains).unwrap_err();
        assert!(error.contains("no capability `local_service_chaining`"), "{error}");
        // Where nothing is said, nothing is missing.
        assert_eq!(check(&format!("[triggers]\nhttp = [{world}]\n"), &chains), Ok(()));
        let built_in = Environment::named("spin-up:4.1").unwrap();
        assert_eq!(built_in.check(&code, "http", &chains), Ok(()));

        let stores = format!("{}[configuration]\nkey_value_stores = [\"default\"]\n", with(""));
        let needs = |label: &str| Needs { key_value_stores: vec![label.to_owned()], ..Needs::default() };
        assert_eq!(check(&stores, &needs("default")), Ok(()));
        let error = check(&stores, &needs("other")).unwrap_err();
        assert!(error.contains("no key-value store `other`"), "{error}");
        let models = Needs { ai_models: vec!["any".to_owned()], ..Needs::default() };
        assert_eq!(check(&stores, &models), Ok(()), "models are not restricted");
    }
}

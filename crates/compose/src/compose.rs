//! Puts components together.

use wac_graph::{
    CompositionGraph, EncodeOptions, NodeId, PackageId,
    types::{ItemKind, Package},
};
use wasmparser::{Chunk, Parser, ValidPayload, Validator, WasmFeatures};
use wisp_manifest::model::DependencyName;

use crate::{Error, ExternName, MAX_PARTS_COUNT, Permissions, deny, guarded, is_compatible};

/// The interfaces by which a component takes HTTP requests, and hands them on.
const HANDLERS: [&str; 2] = ["wasi:http/handler", "wasi:http/incoming-handler"];

/// A component's code.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// What it is called in messages: ``component `a` `` or `` `lib/a.wasm` ``.
    pub name: &'a str,
    /// The component; no core module.
    pub bytes: &'a [u8],
}

/// What satisfies imports of a component.
#[derive(Clone, Debug)]
pub struct Dependency<'a> {
    /// Which imports.
    pub name: &'a DependencyName,
    /// Its code.
    pub code: Code<'a>,
    /// The export that is used, where it is not called as the import is.
    pub export: Option<&'a str>,
    /// What it may reach of that which the component may reach.
    pub permissions: Permissions,
}

/// What stands in front of a component.
#[derive(Clone, Debug)]
pub struct Middleware<'a> {
    /// Its code.
    pub code: Code<'a>,
    /// What it may reach of that which the component may reach.
    pub permissions: Permissions,
}

/// Makes one component of `main`, what it depends on, and what stands in front of it,
/// outermost first.
///
/// # Errors
/// The first thing that is wrong.
pub fn compose(
    main: &Code<'_>,
    dependencies: &[Dependency<'_>],
    middleware: &[Middleware<'_>],
) -> Result<Vec<u8>, Error> {
    if dependencies.len() + middleware.len() >= MAX_PARTS_COUNT {
        return Err(Error::TooMany { part: main.name.to_owned(), limit: MAX_PARTS_COUNT });
    }
    let conflict = |message: String| Error::Conflict { part: main.name.to_owned(), message };
    guarded(
        || {
            let mut composition = Composition::new(main)?;
            for dependency in dependencies {
                composition.satisfy(dependency)?;
            }
            for middleware in middleware.iter().rev() {
                composition.put_in_front(middleware)?;
            }
            composition.encode()
        },
        || conflict("their types are malformed".to_owned()),
    )
}

/// The name of the export by which a component takes HTTP requests.
///
/// # Errors
/// [`Error::Unreadable`].
pub fn handler(code: &Code<'_>) -> Result<Option<String>, Error> {
    let (resolve, world) = crate::read(code)?;
    let mut exports = resolve.worlds[world].exports.keys().map(|key| resolve.name_world_key(key));
    Ok(exports.find(|export| is_handler(export)))
}

fn is_handler(name: &str) -> bool {
    HANDLERS.contains(&ExternName::parse(name).unversioned().as_str())
}

struct Composition<'a> {
    main: Code<'a>,
    graph: CompositionGraph,
    node: NodeId,
    package: PackageId,
    /// Dependencies that were instantiated already.
    shared: Vec<(Code<'a>, Permissions, NodeId, PackageId)>,
    /// What takes requests now, outermost: who it is, its instance, its export.
    front: Option<Front<'a>>,
    parts_count: usize,
}

struct Front<'a> {
    code: Code<'a>,
    node: NodeId,
    export: String,
}

impl<'a> Composition<'a> {
    fn new(main: &Code<'a>) -> Result<Self, Error> {
        let mut graph = CompositionGraph::new();
        let package = register(&mut graph, main, 0)?;
        let node = graph.instantiate(package);
        let export = exports(&graph, package).into_iter().find(|export| is_handler(export));
        let front = export.map(|export| Front { code: *main, node, export });
        Ok(Self { main: *main, graph, node, package, shared: Vec::new(), front, parts_count: 1 })
    }

    /// Wires the imports that a dependency is meant for to its exports.
    fn satisfy(&mut self, dependency: &Dependency<'a>) -> Result<(), Error> {
        let imports = imports(&self.graph, self.package);
        let wanted: Vec<&String> =
            imports.iter().filter(|import| is_meant(dependency.name, import)).collect();
        if wanted.is_empty() {
            return Err(Error::NothingToSatisfy {
                part: self.main.name.to_owned(),
                dependency: dependency.name.to_string(),
                imports: imports.into_iter().filter(|import| !is_of_host(import)).collect(),
            });
        }
        let known = self.shared.iter().find(|(code, permissions, ..)| {
            code.bytes == dependency.code.bytes && *permissions == dependency.permissions
        });
        let (node, package) = match known {
            Some((_, _, node, package)) => (*node, *package),
            None => {
                let (node, package) = self.instantiate(&dependency.code, &dependency.permissions)?;
                self.shared.push((dependency.code, dependency.permissions.clone(), node, package));
                (node, package)
            }
        };
        let offered = exports(&self.graph, package);
        for import in wanted {
            let asked = dependency.export.unwrap_or(import);
            let export = find(&offered, asked).ok_or_else(|| Error::NoExport {
                part: dependency.code.name.to_owned(),
                export: asked.to_owned(),
                dependency: dependency.name.to_string(),
                exports: offered.clone(),
            })?;
            self.wire(self.node, import, node, &export, &dependency.code)?;
        }
        Ok(())
    }

    /// Wires what takes requests now behind `middleware`.
    fn put_in_front(&mut self, middleware: &Middleware<'a>) -> Result<(), Error> {
        let part = middleware.code.name.to_owned();
        let not = |message: &str| Error::NotMiddleware { part: part.clone(), message: message.to_owned() };
        let Some(inner) = self.front.take() else {
            return Err(Error::NotMiddleware {
                part: self.main.name.to_owned(),
                message: "it takes no HTTP requests by an interface of `wasi:http`, so that nothing can \
                          stand in front of it"
                    .to_owned(),
            });
        };
        let (node, package) = self.instantiate(&middleware.code, &middleware.permissions)?;
        let wanted: Vec<String> =
            imports(&self.graph, package).into_iter().filter(|import| is_handler(import)).collect();
        if wanted.is_empty() {
            return Err(not("it imports no handler to hand requests on to"));
        }
        let export = exports(&self.graph, package)
            .into_iter()
            .find(|export| is_handler(export))
            .ok_or_else(|| not("it exports no handler that takes requests"))?;
        let offered = ExternName::parse(&inner.export);
        let import = wanted.iter().find(|import| ExternName::parse(import).fits(&offered));
        let import = import.ok_or_else(|| Error::HandlerMismatch {
            part,
            wanted: wanted.join("`, `"),
            inner: inner.code.name.to_owned(),
            offered: inner.export.clone(),
        })?;
        self.wire(node, import, inner.node, &inner.export, &inner.code)?;
        self.front = Some(Front { code: middleware.code, node, export });
        Ok(())
    }

    /// Instantiates a part, with what it may not reach answered by an adapter.
    fn instantiate(
        &mut self,
        code: &Code<'a>,
        permissions: &Permissions,
    ) -> Result<(NodeId, PackageId), Error> {
        let package = register(&mut self.graph, code, self.parts_count)?;
        self.parts_count += 1;
        let node = self.graph.instantiate(package);
        if let Some(bytes) = deny::adapter(code, permissions)? {
            let name = format!("what answers in place of the host for {}", code.name);
            let adapter = Code { name: &name, bytes: &bytes };
            let adapter_package = register(&mut self.graph, &adapter, self.parts_count)?;
            self.parts_count += 1;
            let adapter_node = self.graph.instantiate(adapter_package);
            for export in exports(&self.graph, adapter_package) {
                self.wire(node, &export, adapter_node, &export, &adapter)?;
            }
        }
        Ok((node, package))
    }

    fn wire(
        &mut self,
        to: NodeId,
        import: &str,
        from: NodeId,
        export: &str,
        exporter: &Code<'_>,
    ) -> Result<(), Error> {
        let mismatch = |message: String| Error::Mismatch {
            part: exporter.name.to_owned(),
            import: import.to_owned(),
            message,
        };
        let alias =
            self.graph.alias_instance_export(from, export).map_err(|error| mismatch(chain(&error)))?;
        self.graph.set_instantiation_argument(to, import, alias).map_err(|error| mismatch(chain(&error)))
    }

    /// Exports what the main component exports, requests going through the front.
    fn encode(mut self) -> Result<Vec<u8>, Error> {
        let conflict = |message: String| Error::Conflict { part: self.main.name.to_owned(), message };
        let mut outward: Vec<(NodeId, String)> = Vec::new();
        for export in exports(&self.graph, self.package) {
            match &self.front {
                Some(front) if is_handler(&export) => outward.push((front.node, front.export.clone())),
                _ => outward.push((self.node, export)),
            }
        }
        for (node, export) in outward {
            // Types alone say nothing to whoever runs it, and cannot be exported again.
            let alias =
                self.graph.alias_instance_export(node, &export).map_err(|error| conflict(chain(&error)))?;
            if !matches!(self.graph[alias].item_kind(), ItemKind::Type(_)) {
                self.graph.export(alias, export).map_err(|error| conflict(chain(&error)))?;
            }
        }
        let options = EncodeOptions { validate: false, ..EncodeOptions::default() };
        let composed = self.graph.encode(options).map_err(|error| conflict(chain(&error)))?;
        validate(&composed).map_err(conflict)?;
        Ok(composed)
    }
}

/// Makes a component known to the graph.
fn register(graph: &mut CompositionGraph, code: &Code<'_>, number: usize) -> Result<PackageId, Error> {
    let unreadable = |message: String| Error::Unreadable { part: code.name.to_owned(), message };
    let name = format!("part:number{number}");
    let package = Package::from_bytes(&name, None, code.bytes, graph.types_mut())
        .map_err(|error| unreadable(format!("{error:#}")))?;
    graph.register_package(package).map_err(|error| unreadable(chain(&error)))
}

fn imports(graph: &CompositionGraph, package: PackageId) -> Vec<String> {
    graph.types()[graph[package].ty()].imports.keys().cloned().collect()
}

fn exports(graph: &CompositionGraph, package: PackageId) -> Vec<String> {
    graph.types()[graph[package].ty()].exports.keys().cloned().collect()
}

/// The export of this name, or one that is compatible: the newest.
fn find(exports: &[String], name: &str) -> Option<String> {
    if let Some(exact) = exports.iter().find(|export| *export == name) {
        return Some(exact.clone());
    }
    let wanted = ExternName::parse(name);
    let fitting = exports.iter().map(|export| (ExternName::parse(export), export));
    let fitting = fitting.filter(|(export, _)| {
        // Written by a person, the version may be left out.
        export.fits(&wanted) || (wanted.version.is_none() && export.unversioned() == name)
    });
    fitting.max_by(|(one, _), (other, _)| one.version.cmp(&other.version)).map(|(_, export)| export.clone())
}

/// Whether a dependency of this name is meant to satisfy this import.
fn is_meant(dependency: &DependencyName, import: &str) -> bool {
    match dependency {
        DependencyName::Plain(plain) => plain == import,
        DependencyName::Package { package, interface, version } => {
            let import = ExternName::parse(import);
            import.package.as_deref() == Some(package.to_string().as_str())
                && interface.as_ref().is_none_or(|interface| *interface == import.interface)
                && match (version, &import.version) {
                    (None, _) => true,
                    (Some(wanted), Some(imported)) => is_compatible(wanted, imported),
                    (Some(_), None) => false,
                }
        }
    }
}

/// Whether an import is one that the host is there for.
fn is_of_host(import: &str) -> bool {
    ["wasi:", "spin:", "fermyon:"].iter().any(|namespace| import.starts_with(namespace))
}

/// Validates all but the bodies of functions: they were copied, and the compiler
/// validates them.
fn validate(mut component: &[u8]) -> Result<(), String> {
    let mut validator = Validator::new_with_features(WasmFeatures::all());
    let mut parser = Parser::new(0);
    let mut outer = Vec::new();
    loop {
        let chunk = parser.parse(component, true).map_err(|error| error.to_string())?;
        let Chunk::Parsed { payload, consumed } = chunk else {
            return Err("it ends too early".to_owned());
        };
        component = &component[consumed..];
        match validator.payload(&payload).map_err(|error| error.to_string())? {
            ValidPayload::Ok | ValidPayload::Func(..) => {}
            ValidPayload::Parser(nested) => outer.push(std::mem::replace(&mut parser, nested)),
            ValidPayload::End(_) => match outer.pop() {
                Some(parent) => parser = parent,
                None => return Ok(()),
            },
        }
    }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use wisp_manifest::model::PackageName;

    use super::*;

    fn package(name: &str, interface: Option<&str>, version: Option<&str>) -> DependencyName {
        let (namespace, name) = name.split_once(':').unwrap();
        DependencyName::Package {
            package: PackageName { namespace: namespace.to_owned(), name: name.to_owned() },
            interface: interface.map(str::to_owned),
            version: version.map(|version| version.parse().unwrap()),
        }
    }

    fn names(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
        let (resolve, world) = crate::read(&Code { name: "it", bytes }).unwrap();
        let world = &resolve.worlds[world];
        let name = |key| resolve.name_world_key(key);
        (world.imports.keys().map(name).collect(), world.exports.keys().map(name).collect())
    }

    /// Imports one interface and the host's variables, and exports `out`.
    fn main_of(import: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                (import "{import}" (instance $dependency
                    (export "add" (func (param "a" u32) (result u32)))))
                (import "fermyon:spin/variables@2.0.0" (instance
                    (export "get" (func (param "name" string) (result string)))))
                (alias export $dependency "add" (func $add))
                (export "out" (func $add)))"#
        );
        wat::parse_str(text).unwrap()
    }

    /// Exports an interface by way of the host's key-value stores.
    fn dependency_of(export: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                (import "fermyon:spin/key-value@2.0.0" (instance $store
                    (export "add" (func (param "a" u32) (result u32)))))
                (alias export $store "add" (func $add))
                (instance $offered (export "add" (func $add)))
                (export "{export}" (instance $offered)))"#
        );
        wat::parse_str(text).unwrap()
    }

    fn with<'a>(
        name: &'a DependencyName,
        bytes: &'a [u8],
        permissions: Permissions,
        export: Option<&'a str>,
    ) -> Dependency<'a> {
        Dependency { name, code: Code { name: "the dependency", bytes }, export, permissions }
    }

    fn composed(main: &[u8], dependencies: &[Dependency<'_>]) -> Result<Vec<u8>, Error> {
        compose(&Code { name: "component `a`", bytes: main }, dependencies, &[])
    }

    #[test]
    fn a_dependency_takes_an_imports_place() {
        let (main, bytes) = (main_of("a:b/sums@1.2.0"), dependency_of("a:b/sums@1.3.0"));
        let name = package("a:b", None, None);
        let whole = composed(&main, &[with(&name, &bytes, Permissions::all(), None)]).unwrap();
        let (imports, exports) = names(&whole);
        assert_eq!(imports, ["fermyon:spin/variables@2.0.0", "fermyon:spin/key-value@2.0.0"]);
        assert_eq!(exports, ["out"]);
        // What is not inherited is answered inside, and not asked of the host.
        let whole = composed(&main, &[with(&name, &bytes, Permissions::none(), None)]).unwrap();
        assert_eq!(names(&whole).0, ["fermyon:spin/variables@2.0.0"]);
    }

    #[test]
    fn names_choose_imports_and_exports() {
        let (main, bytes) = (main_of("a:b/sums@1.2.0"), dependency_of("x:y/z"));
        let all = Permissions::all;
        for name in [package("a:b", Some("sums"), None), package("a:b", Some("sums"), Some("1.0.0"))] {
            assert!(composed(&main, &[with(&name, &bytes, all(), Some("x:y/z"))]).is_ok(), "{name}");
            let error = composed(&main, &[with(&name, &bytes, all(), None)]).unwrap_err();
            assert_eq!(error.code(), "WISP-E1303");
            assert!(error.hint().unwrap().contains("`x:y/z`"), "{error:?}");
        }
        for name in [
            package("a:c", None, None),
            package("a:b", Some("other"), None),
            package("a:b", Some("sums"), Some("2.0.0")),
            DependencyName::Plain("sums".to_owned()),
        ] {
            let error = composed(&main, &[with(&name, &bytes, all(), Some("x:y/z"))]).unwrap_err();
            assert_eq!(error.code(), "WISP-E1302", "{name}");
            assert!(error.hint().unwrap().contains("`a:b/sums@1.2.0`"), "{error:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let main = main_of("a:b/sums@1.2.0");
        let name = package("a:b", None, None);
        let other = wat::parse_str(
            r#"(component
                (import "x" (func $f (param "a" string) (result u32)))
                (instance $offered (export "add" (func $f)))
                (export "a:b/sums@1.2.0" (instance $offered)))"#,
        )
        .unwrap();
        let error = composed(&main, &[with(&name, &other, Permissions::all(), None)]).unwrap_err();
        assert_eq!(error.code(), "WISP-E1304", "{error}");
        let error = composed(&main, &[with(&name, b"\0asm", Permissions::all(), None)]).unwrap_err();
        assert_eq!(error.code(), "WISP-E1301", "{error}");
        let bytes = dependency_of("a:b/sums@1.2.0");
        let many = vec![with(&name, &bytes, Permissions::all(), None); MAX_PARTS_COUNT];
        assert_eq!(composed(&main, &many).unwrap_err().code(), "WISP-E1309");
    }

    const HANDLER: &str = "wasi:http/handler@0.3.0";

    fn handler_of(export: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                (import "inner" (func $handle))
                (instance $handler (export "handle" (func $handle)))
                (export "{export}" (instance $handler))
                (export "other" (func $handle)))"#
        );
        wat::parse_str(text).unwrap()
    }

    fn layer_of(import: &str, more: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                (import "{import}" (instance $next (export "handle" (func))))
                {more}
                (alias export $next "handle" (func $handle))
                (instance $handler (export "handle" (func $handle)))
                (export "{import}" (instance $handler)))"#
        );
        wat::parse_str(text).unwrap()
    }

    fn in_front(main: &[u8], layers: &[&[u8]]) -> Result<Vec<u8>, Error> {
        let middleware: Vec<Middleware<'_>> = layers
            .iter()
            .map(|bytes| Middleware {
                code: Code { name: "the middleware", bytes },
                permissions: Permissions::none(),
            })
            .collect();
        compose(&Code { name: "component `a`", bytes: main }, &[], &middleware)
    }

    #[test]
    fn middleware_stands_in_front() {
        let environment = r#"(import "wasi:cli/environment@0.2.0"
            (instance (export "get-arguments" (func (result (list string))))))"#;
        let (main, layer) = (handler_of(HANDLER), layer_of(HANDLER, environment));
        let whole = in_front(&main, &[&layer, &layer]).unwrap();
        let (imports, exports) = names(&whole);
        assert_eq!(imports, ["inner"]);
        assert_eq!(exports, [HANDLER, "other"]);

        let old = "wasi:http/incoming-handler@0.2.3";
        assert!(in_front(&handler_of("wasi:http/incoming-handler@0.2.0"), &[&layer_of(old, "")]).is_ok());
        let error = in_front(&handler_of(old), &[&layer]).unwrap_err();
        assert_eq!(error.code(), "WISP-E1306");
        assert!(error.to_string().contains(old) && error.to_string().contains(HANDLER), "{error}");
        for (main, layer) in [(&main, &main), (&dependency_of("a:b/c"), &layer)] {
            assert_eq!(in_front(main, &[layer]).unwrap_err().code(), "WISP-E1305");
        }
    }

    #[test]
    fn garbled_parts_are_refused_and_do_not_panic() {
        let (main, bytes) = (main_of("a:b/sums@1.2.0"), dependency_of("a:b/sums@1.2.0"));
        let name = package("a:b", None, None);
        for position in 0..bytes.len() {
            let mut garbled = bytes.clone();
            garbled[position] ^= 0x55;
            // Some are components still; none may end the process.
            drop(composed(&main, &[with(&name, &garbled, Permissions::none(), None)]));
            drop(composed(&garbled, &[with(&name, &bytes, Permissions::none(), None)]));
        }
    }
}

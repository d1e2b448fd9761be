//! Which functions of its core modules a component uses.
//!
//! A library that was linked into a component exports all of its functions, of which the
//! component asks for a few. Each costs nevertheless: a way into it is compiled, and every
//! instance has an entry for it. Nothing outside of a component can ask for an export of a
//! core module.

use std::collections::HashSet;

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef,
    Instance, Parser, Payload,
};

use crate::{Error, normalize};

/// The names that are asked for of each core module of a component, in their order; `None`
/// if modules are used in another way than being instantiated by this component.
///
/// # Errors
/// If the component is malformed.
pub(crate) fn used(component: &[u8]) -> Result<Option<Vec<HashSet<&str>>>, Error> {
    let mut used: Vec<HashSet<&str>> = Vec::new();
    // By module: what it asks for, and of whom.
    let mut imports = Vec::new();
    // By core instance: its module, if it is one of a module.
    let mut instances: Vec<Option<usize>> = Vec::new();
    for section in normalize::sections(component) {
        let (payload, bytes) = section?;
        match payload {
            Payload::ModuleSection { unchecked_range, .. } => {
                used.push(HashSet::new());
                imports.push(imports_of(normalize::nested(bytes, &unchecked_range))?);
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    let Instance::Instantiate { module_index, args } =
                        instance.map_err(normalize::invalid)?
                    else {
                        instances.push(None);
                        continue;
                    };
                    let module = module_index as usize;
                    let Some(imports) = imports.get(module) else { return Ok(None) };
                    for argument in &args {
                        let Some(from) = instances.get(argument.index as usize) else { return Ok(None) };
                        let Some(from) = from.and_then(|from| used.get_mut(from)) else { continue };
                        let of_it = imports.iter().filter(|(asked, _)| *asked == argument.name);
                        from.extend(of_it.map(|(_, name)| *name));
                    }
                    instances.push(Some(module));
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases {
                    let alias = alias.map_err(normalize::invalid)?;
                    if is_of_module(&alias) {
                        return Ok(None);
                    }
                    if let ComponentAlias::CoreInstanceExport { instance_index, name, .. } = alias {
                        let Some(from) = instances.get(instance_index as usize) else { return Ok(None) };
                        if let Some(from) = from.and_then(|from| used.get_mut(from)) {
                            from.insert(name);
                        }
                    }
                }
            }
            Payload::ComponentSection { unchecked_range, .. } => {
                for payload in Parser::new(0).parse_all(normalize::nested(bytes, &unchecked_range)) {
                    let Payload::ComponentAliasSection(aliases) = payload.map_err(normalize::invalid)? else {
                        continue;
                    };
                    for alias in aliases {
                        if is_of_module(&alias.map_err(normalize::invalid)?) {
                            return Ok(None);
                        }
                    }
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances {
                    let passes_module = match instance.map_err(normalize::invalid)? {
                        ComponentInstance::Instantiate { args, .. } => {
                            args.iter().any(|argument| argument.kind == ComponentExternalKind::Module)
                        }
                        ComponentInstance::FromExports(exports) => {
                            exports.iter().any(|export| export.kind == ComponentExternalKind::Module)
                        }
                    };
                    if passes_module {
                        return Ok(None);
                    }
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports {
                    if let ComponentTypeRef::Module(_) = import.map_err(normalize::invalid)?.ty {
                        return Ok(None);
                    }
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    if export.map_err(normalize::invalid)?.kind == ComponentExternalKind::Module {
                        return Ok(None);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some(used))
}

fn imports_of(module: &[u8]) -> Result<Vec<(&str, &str)>, Error> {
    let mut found = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(normalize::invalid)? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(normalize::invalid)?;
                    found.push((import.module, import.name));
                }
            }
            // The rest has none.
            Payload::CodeSectionStart { .. } => break,
            _ => {}
        }
    }
    Ok(found)
}

/// Whether a module gets a second name.
fn is_of_module(alias: &ComponentAlias<'_>) -> bool {
    match alias {
        ComponentAlias::InstanceExport { kind, .. } => *kind == ComponentExternalKind::Module,
        ComponentAlias::Outer { kind, .. } => *kind == ComponentOuterAliasKind::CoreModule,
        ComponentAlias::CoreInstanceExport { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn names(text: &str) -> Option<Vec<Vec<String>>> {
        let component = wat::parse_str(text).unwrap();
        let sorted = |names: HashSet<&str>| {
            let mut names: Vec<_> = names.into_iter().map(str::to_owned).collect();
            names.sort();
            names
        };
        Some(used(&component).unwrap()?.into_iter().map(sorted).collect())
    }

    const LIBRARY: &str = r#"(core module $library
        (func (export "imported")) (func (export "aliased")) (func (export "unused")) (func (export "other")))"#;

    #[test]
    fn what_is_imported_or_aliased_is_used() {
        let found = names(&format!(
            r#"(component {LIBRARY}
                (core module $main
                    (import "library" "imported" (func))
                    (import "elsewhere" "unused" (func))
                    (func (export "run")))
                (core instance $library (instantiate $library))
                (alias core export $library "aliased" (core func $aliased))
                (core instance $elsewhere (export "unused" (func $aliased)))
                (core instance $main (instantiate $main
                    (with "library" (instance $library)) (with "elsewhere" (instance $elsewhere))))
                (func (export "run") (canon lift (core func $main "run"))))"#
        ));
        assert_eq!(found.unwrap(), [vec!["aliased", "imported"], vec!["run"]]);
    }

    #[test]
    fn all_instances_of_a_module_count() {
        let found = names(&format!(
            r#"(component {LIBRARY}
                (core instance $one (instantiate $library))
                (core instance $two (instantiate $library))
                (func (export "one") (canon lift (core func $one "imported")))
                (func (export "two") (canon lift (core func $two "other"))))"#
        ));
        assert_eq!(found.unwrap(), [["imported", "other"]]);
    }

    #[test]
    fn modules_that_go_elsewhere_are_not_judged() {
        for elsewhere in [
            r#"(export "library" (core module $library))"#,
            r#"(component $inner (alias outer 1 $library (core module)))"#,
            r#"(component $inner (import "m" (core module)))
               (instance (instantiate $inner (with "m" (core module $library))))"#,
            r#"(instance (export "m" (core module $library)))"#,
            r#"(import "m" (core module))"#,
        ] {
            assert!(names(&format!("(component {LIBRARY} {elsewhere})")).is_none(), "{elsewhere}");
        }
    }
}

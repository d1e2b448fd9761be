//! Whatever a toolchain produced → a component in terms of the final interfaces.
//!
//! Three things may be needed:
//!
//! - A **core module** is wrapped into a component: modules with WASI preview 1
//!   imports get the preview 1 adapter (for commands if they export `_start`, for
//!   libraries otherwise); modules with bindings of wit-bindgen carry their types
//!   in a custom section.
//! - A component built against the **release candidate** of WASI 0.3
//!   (`0.3.0-rc-2026-03-15`) gets its imports and exports renamed. The candidate's
//!   interfaces are the final ones under another name, so nothing else differs.
//! - The **flavor** is chosen: does the component need concurrency?
//!
//! # Why renaming is enough
//!
//! A guest may import the candidate and the final version of one interface side
//! by side (Python does) and names must be unique. The linker resolves an import
//! by semantic version: `@0.3.1` finds the `@0.3.0` that the host defines. So the
//! candidate's import becomes `@0.3.0` where that name is free and a later patch
//! version where it is not. Both then meet the same host functions and the same
//! resource types, with no wrapper component between them, and no cost when
//! running.

use std::{borrow::Cow, collections::HashSet, ops::Range};

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasm_encoder::reencode::{ReencodeComponent as _, RoundtripReencoder};
use wasmparser::{Encoding, Parser, Payload};

use crate::{Error, Flavor};

/// The version suffix of the release candidate that is adapted.
const RELEASE_CANDIDATE: &str = "@0.3.0-rc-2026-03-15";

/// The section of a component that holds a core module.
const CORE_MODULE_SECTION: u8 = 1;

/// Every WebAssembly file begins with this.
const WASM_MAGIC: &[u8; 4] = b"\0asm";

/// A component and the flavor that it needs.
#[derive(Debug)]
pub struct Normalized<'source> {
    /// The component; borrowed where the source was in order as it was.
    pub component: Cow<'source, [u8]>,
    /// The engine configuration to compile it for.
    pub flavor: Flavor,
}

/// Makes a component of `source` that names only interfaces that Wisp links.
///
/// # Errors
/// [`Error::NotWebAssembly`], [`Error::Invalid`], [`Error::Componentize`] or
/// [`Error::Adapt`], by the step that failed. Function bodies are not validated
/// here; compiling does that.
pub fn normalize(source: &[u8]) -> Result<Normalized<'_>, Error> {
    if !source.starts_with(WASM_MAGIC) {
        return Err(Error::NotWebAssembly { found: describe(source) });
    }
    let component =
        if Parser::is_core_wasm(source) { Cow::Owned(componentize(source)?) } else { Cow::Borrowed(source) };
    let names = Names::of(&component)?;
    let flavor = if names.need_concurrency() { Flavor::Concurrent } else { Flavor::Plain };
    let component = if names.have_release_candidate() {
        Cow::Owned(rename(&component, &names.imports)?)
    } else {
        component
    };
    Ok(Normalized { component, flavor })
}

/// Says what some bytes are that are not WebAssembly, for a message.
fn describe(source: &[u8]) -> String {
    let start = &source[..source.len().min(64)];
    if source.is_empty() {
        "it is empty".into()
    } else if start.starts_with(b"\x7fELF") {
        "it is a native executable or a compiled image".into()
    } else if start.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer; run `git lfs pull`".into()
    } else if start.starts_with(b"(module") || start.starts_with(b"(component") {
        "it is WebAssembly text; convert it with `wasm-tools parse`".into()
    } else if start.trim_ascii_start().starts_with(b"<") {
        "it is an HTML or XML page".into()
    } else {
        let begin: String = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("it begins with the bytes {begin} instead of 0061736d")
    }
}

pub(crate) fn invalid(error: impl std::fmt::Display) -> Error {
    Error::Invalid { message: error.to_string() }
}

/// Wraps a core module into a component.
fn componentize(module: &[u8]) -> Result<Vec<u8>, Error> {
    let mut is_command = false;
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::ExportSection(exports) = payload.map_err(invalid)? {
            for export in exports {
                is_command |= export.map_err(invalid)?.name == "_start";
            }
        }
    }
    let adapter = if is_command {
        WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER
    } else {
        WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER
    };
    wit_component::ComponentEncoder::default()
        .validate(false)
        .module(module)
        .and_then(|encoder| encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter))
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| Error::Componentize { message: format!("{error:#}") })
}

/// What a component imports and exports, and whether its types are asynchronous.
#[derive(Default)]
struct Names {
    imports: HashSet<String>,
    exports: HashSet<String>,
    asynchronous_types: bool,
}

impl Names {
    /// Reads the outermost component's names; nested modules are skipped. Of components
    /// in it, which a composition is made of, only what they need counts.
    fn of(component: &[u8]) -> Result<Self, Error> {
        let mut names = Self::default();
        let mut inner = Vec::new();
        names.read(component, true, &mut inner)?;
        while let Some(component) = inner.pop() {
            names.read(component, false, &mut inner)?;
        }
        Ok(names)
    }

    fn read<'bytes>(
        &mut self,
        component: &'bytes [u8],
        is_outermost: bool,
        inner: &mut Vec<&'bytes [u8]>,
    ) -> Result<(), Error> {
        for section in sections(component) {
            match section? {
                (Payload::ComponentImportSection(imports), _) if is_outermost => {
                    for import in imports {
                        self.imports.insert(import.map_err(invalid)?.name.name.to_owned());
                    }
                }
                (Payload::ComponentExportSection(exports), _) if is_outermost => {
                    for export in exports {
                        self.exports.insert(export.map_err(invalid)?.name.name.to_owned());
                    }
                }
                (Payload::ComponentSection { unchecked_range, .. }, bytes) => {
                    inner.push(nested(bytes, &unchecked_range));
                }
                (Payload::ComponentTypeSection(types), _) => {
                    for ty in types {
                        self.asynchronous_types |= is_asynchronous(&ty.map_err(invalid)?);
                    }
                }
                (Payload::ComponentCanonicalSection(functions), _) => {
                    for function in functions {
                        self.asynchronous_types |= is_concurrent_builtin(&function.map_err(invalid)?);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.imports.iter().chain(&self.exports)
    }

    fn have_release_candidate(&self) -> bool {
        self.all().any(|name| name.ends_with(RELEASE_CANDIDATE))
    }

    fn need_concurrency(&self) -> bool {
        // Interfaces of WASI 0.3 are only linked on the concurrent flavor, even
        // those without an asynchronous function.
        self.asynchronous_types || self.all().any(|name| name.starts_with("wasi:") && name.contains("@0.3."))
    }
}

/// Whether a type cannot exist without component-model concurrency.
fn is_asynchronous(ty: &wasmparser::ComponentType<'_>) -> bool {
    use wasmparser::{
        ComponentDefinedType, ComponentType, ComponentTypeDeclaration, InstanceTypeDeclaration,
    };
    match ty {
        ComponentType::Func(function) => function.async_,
        ComponentType::Defined(defined) => {
            matches!(defined, ComponentDefinedType::Stream(_) | ComponentDefinedType::Future(_))
        }
        ComponentType::Instance(declarations) => declarations.iter().any(|declaration| match declaration {
            InstanceTypeDeclaration::Type(ty) => is_asynchronous(ty),
            _ => false,
        }),
        ComponentType::Component(declarations) => declarations.iter().any(|declaration| match declaration {
            ComponentTypeDeclaration::Type(ty) => is_asynchronous(ty),
            _ => false,
        }),
        ComponentType::Resource { .. } => false,
    }
}

/// Whether a canonical function is more than a plain lift, lower or resource
/// operation.
fn is_concurrent_builtin(function: &wasmparser::CanonicalFunction) -> bool {
    use wasmparser::{CanonicalFunction, CanonicalOption};
    match function {
        CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => options
            .iter()
            .any(|option| matches!(option, CanonicalOption::Async | CanonicalOption::Callback(_))),
        CanonicalFunction::ResourceNew { .. }
        | CanonicalFunction::ResourceDrop { .. }
        | CanonicalFunction::ResourceRep { .. } => false,
        _ => true,
    }
}

/// The outermost component's payloads with the bytes of each: its sections, and
/// nested modules and components as a whole.
pub(crate) fn sections(component: &[u8]) -> impl Iterator<Item = Result<(Payload<'_>, &[u8]), Error>> {
    // The parser counts what is nested as read already; its bytes are passed over
    // here.
    let mut parser = Parser::new(0);
    let mut rest = component;
    let mut consumed_bytes = 0;
    let mut finished = false;
    std::iter::from_fn(move || {
        if finished {
            return None;
        }
        let parsed = parser.parse(rest, true).map_err(invalid).and_then(|chunk| match chunk {
            wasmparser::Chunk::Parsed { consumed, payload } => Ok((consumed, payload)),
            // Cannot happen with all data at hand; an error is better than a loop.
            wasmparser::Chunk::NeedMoreData(_) => Err(invalid("unexpected end")),
        });
        let (header_bytes, payload) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                finished = true;
                return Some(Err(error));
            }
        };
        let nested_bytes = match &payload {
            Payload::ModuleSection { unchecked_range, .. }
            | Payload::ComponentSection { unchecked_range, .. } => {
                unchecked_range.end - unchecked_range.start
            }
            _ => 0,
        };
        finished = matches!(payload, Payload::End(_));
        let Some(bytes) = rest.get(..header_bytes + nested_bytes) else {
            finished = true;
            return Some(Err(invalid(format!("unexpected end at offset {consumed_bytes:#x}"))));
        };
        rest = &rest[bytes.len()..];
        consumed_bytes += bytes.len();
        Some(Ok((payload, bytes)))
    })
}

/// What is nested in a section: its last bytes, as many as this range.
pub(crate) fn nested<'bytes>(section: &'bytes [u8], range: &Range<usize>) -> &'bytes [u8] {
    &section[section.len() - range.len()..]
}

/// Writes the section of a component that holds a core module.
pub(crate) fn core_module(
    output: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    output.push(CORE_MODULE_SECTION);
    with_length(output, write)
}

/// Writes something with its length before it, which takes as many bytes as any may: so
/// that it need not be written elsewhere first.
pub(crate) fn with_length(
    output: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    const LENGTH_BYTES: usize = 5;
    let start = output.len();
    output.extend_from_slice(&[0; LENGTH_BYTES]);
    write(output)?;
    let mut length = u32::try_from(output.len() - start - LENGTH_BYTES).map_err(invalid)?;
    for (number, byte) in output[start..start + LENGTH_BYTES].iter_mut().enumerate() {
        // LEB128: all but the last byte say that another one follows.
        let follows = if number < LENGTH_BYTES - 1 { 0x80 } else { 0 };
        *byte = length.to_le_bytes()[0] & 0x7f | follows;
        length >>= 7;
    }
    Ok(())
}

/// Renames the release candidate's imports and exports to final versions.
///
/// All other sections are copied as they are.
fn rename(component: &[u8], imports: &HashSet<String>) -> Result<Vec<u8>, Error> {
    let adapt = |error: &dyn std::fmt::Display| Error::Adapt { message: error.to_string() };
    let mut taken = imports.clone();
    let mut output = Vec::with_capacity(component.len());
    for section in sections(component) {
        let (payload, bytes) = section?;
        match payload {
            Payload::Version { encoding, .. } if encoding != Encoding::Component => {
                return Err(invalid("a component was expected"));
            }
            Payload::ComponentImportSection(imports) => {
                let mut renamed = wasm_encoder::ComponentImportSection::new();
                for import in imports {
                    let import = import.map_err(invalid)?;
                    let ty =
                        RoundtripReencoder.component_type_ref(import.ty).map_err(|error| adapt(&error))?;
                    let mut name = wasm_encoder::ComponentExternName::from(import.name);
                    if let Some(interface) = import.name.name.strip_suffix(RELEASE_CANDIDATE) {
                        name.name = free_version(interface, &mut taken).into();
                    }
                    renamed.import(name, ty);
                }
                append(&mut output, &renamed);
            }
            Payload::ComponentExportSection(exports) => {
                let mut renamed = wasm_encoder::ComponentExportSection::new();
                for export in exports {
                    let export = export.map_err(invalid)?;
                    let ty = export
                        .ty
                        .map(|ty| RoundtripReencoder.component_type_ref(ty))
                        .transpose()
                        .map_err(|error| adapt(&error))?;
                    let mut name = wasm_encoder::ComponentExternName::from(export.name);
                    if let Some(interface) = export.name.name.strip_suffix(RELEASE_CANDIDATE) {
                        name.name = format!("{interface}@0.3.0").into();
                    }
                    renamed.export(name, export.kind.into(), export.index, ty);
                }
                append(&mut output, &renamed);
            }
            _ => output.extend_from_slice(bytes),
        }
    }
    Ok(output)
}

/// A name for `interface` that the linker resolves to version 0.3.0 and that no
/// other import has.
fn free_version(interface: &str, taken: &mut HashSet<String>) -> String {
    let mut patch = 0_u32;
    loop {
        let name = format!("{interface}@0.3.{patch}");
        if taken.insert(name.clone()) {
            return name;
        }
        patch += 1;
    }
}

fn append(output: &mut Vec<u8>, section: &impl wasm_encoder::ComponentSection) {
    section.append_to_component(output);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    fn names_after(text: &str) -> (Vec<String>, Flavor) {
        let source = component(text);
        let normalized = normalize(&source).unwrap();
        wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all())
            .validate_all(&normalized.component)
            .unwrap();
        let names = Names::of(&normalized.component).unwrap();
        let mut all: Vec<String> = names.all().cloned().collect();
        all.sort();
        (all, normalized.flavor)
    }

    #[test]
    fn a_length_stands_before_what_was_written() {
        for written in [0, 1, 127, 128, 300_000] {
            let mut output = vec![7];
            with_length(&mut output, |output| {
                output.resize(output.len() + written, 1);
                Ok(())
            })
            .unwrap();
            let mut reader = wasmparser::BinaryReader::new(&output[1..], 0);
            assert_eq!(reader.read_var_u32().unwrap() as usize, written);
            assert_eq!((reader.bytes_remaining(), output[0]), (written, 7));
        }
    }

    #[test]
    fn a_component_without_concurrency_stays_as_it_is() {
        let source = component(r#"(component (import "wasi:random/random@0.2.3" (instance)))"#);
        let normalized = normalize(&source).unwrap();
        assert!(matches!(normalized.component, Cow::Borrowed(_)));
        assert_eq!(normalized.flavor, Flavor::Plain);
    }

    #[test]
    fn asynchronous_types_need_concurrency() {
        let (_, flavor) = names_after(r#"(component (import "a:b/c@1.0.0" (instance (type (stream u8)))))"#);
        assert_eq!(flavor, Flavor::Concurrent);
        let (_, flavor) =
            names_after(r#"(component (import "a:b/c@1.0.0" (instance (export "f" (func async)))))"#);
        assert_eq!(flavor, Flavor::Concurrent);
    }

    #[test]
    fn what_is_inside_a_composition_may_need_concurrency() {
        let (_, flavor) = names_after(
            r#"(component (component (component
                (import "f" (func async))
                (core func (canon lower (func 0) async)))))"#,
        );
        assert_eq!(flavor, Flavor::Concurrent);
        let (names, flavor) = names_after(r#"(component (component (import "inner" (func))))"#);
        assert!(names.is_empty());
        assert_eq!(flavor, Flavor::Plain);
    }

    #[test]
    fn interfaces_of_wasi_0_3_need_concurrency() {
        let (_, flavor) = names_after(r#"(component (import "wasi:random/random@0.3.0" (instance)))"#);
        assert_eq!(flavor, Flavor::Concurrent);
    }

    #[test]
    fn the_release_candidate_becomes_the_final_version() {
        let (names, flavor) = names_after(
            r#"(component
                (import "wasi:random/random@0.3.0-rc-2026-03-15" (instance $i))
                (core module $m)
                (export "wasi:http/handler@0.3.0-rc-2026-03-15" (instance $i)))"#,
        );
        assert_eq!(names, ["wasi:http/handler@0.3.0", "wasi:random/random@0.3.0"]);
        assert_eq!(flavor, Flavor::Concurrent);
    }

    #[test]
    fn both_versions_side_by_side_get_names_of_their_own() {
        let (names, _) = names_after(
            r#"(component
                (import "wasi:random/random@0.3.0-rc-2026-03-15" (instance))
                (import "wasi:random/random@0.3.0" (instance)))"#,
        );
        assert_eq!(names, ["wasi:random/random@0.3.0", "wasi:random/random@0.3.1"]);
    }

    #[test]
    fn other_release_candidates_are_left_alone() {
        let (names, _) =
            names_after(r#"(component (import "wasi:random/random@0.3.0-rc-2025-09-16" (instance)))"#);
        assert_eq!(names, ["wasi:random/random@0.3.0-rc-2025-09-16"]);
    }

    #[test]
    fn commands_and_libraries_become_components() {
        let command = component(
            r#"(module
                (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
                (memory (export "memory") 1)
                (func (export "_start") i32.const 0 call 0))"#,
        );
        let names = Names::of(&normalize(&command).unwrap().component).unwrap();
        assert!(names.exports.iter().any(|name| name.starts_with("wasi:cli/run@0.2")), "{:?}", names.exports);

        let library = component(r#"(module (memory (export "memory") 1))"#);
        assert!(normalize(&library).is_ok());
    }

    #[test]
    fn what_is_no_webassembly_is_said_to_be_so() {
        for (bytes, words) in [
            (&b""[..], "it is empty"),
            (b"\x7fELF\x02", "native executable"),
            (b"<!DOCTYPE html>", "HTML"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
            (b"(module)", "text"),
            (b"PK\x03\x04", "504b0304"),
        ] {
            let error = normalize(bytes).unwrap_err();
            assert_eq!(error.code(), "WISP-E0201");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn truncated_and_garbled_input_does_no_harm() {
        let whole = component(
            r#"(component
                (import "wasi:random/random@0.3.0-rc-2026-03-15" (instance $i))
                (core module $m (func))
                (export "e" (instance $i)))"#,
        );
        // Cut between two sections it is a smaller component; anywhere else it must
        // be refused, and nowhere may it panic.
        let refused = (0..whole.len()).filter(|length| normalize(&whole[..*length]).is_err()).count();
        assert!(refused > whole.len() / 2, "{refused} of {}", whole.len());
        for position in 0..whole.len() {
            let mut garbled = whole.clone();
            garbled[position] ^= 0xff;
            if let Ok(normalized) = normalize(&garbled) {
                assert!(!normalized.component.is_empty());
            }
        }
    }
}

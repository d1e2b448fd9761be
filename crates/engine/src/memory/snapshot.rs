//! Takes a memory's initial contents out of a component.
//!
//! A core module fills its memory with *data segments*. Those of the one large
//! memory of a component are laid out here as the memory would look after
//! instantiation, and removed from the module: whoever makes the memory must
//! provide the contents. The result behaves as the original does as long as
//!
//! - all segments lie at constant offsets inside the memory's initial size (one
//!   that does not would trap: such components are left alone),
//! - the module that defines the memory is instantiated once.

use std::ops::Range;

use wasm_encoder::Section as _;
use wasmparser::{BinaryReader, DataKind, Instance, Operator, Parser, Payload, TypeRef};

use super::page_bytes;
use crate::{
    Error,
    instructions::{PREFIX, numbers_after},
    normalize,
};

/// Components whose memory begins with at least this much data profit even if their
/// instances cannot be rewound. Below it Wasmtime's own pool is as good: such guests
/// write to few pages.
pub(crate) const LARGE_CONTENTS_BYTES: usize = 1 << 20;

/// The largest contents that are laid out, since they are written to disk whole: four
/// times what a Python guest with scientific libraries needs.
const MAX_CONTENTS_BYTES: usize = 256 << 20;

/// The size of a page of WebAssembly memory.
pub(crate) const WASM_PAGE_BYTES: u64 = 64 << 10;

/// A component without its memory's contents, and those contents.
pub(crate) struct Extracted {
    pub(crate) component: Vec<u8>,
    pub(crate) contents: Contents,
    /// How much of the contents came from data segments.
    pub(crate) data_bytes: usize,
}

/// What a memory begins with; whole pages.
pub(crate) struct Contents {
    pub(crate) bytes: Vec<u8>,
    /// Where they lie in the memory; all else is zero.
    pub(crate) address: usize,
}

/// The one memory of a component and where its data lies.
struct Found<'component> {
    module_index: u32,
    module: &'component [u8],
    initial_bytes: u64,
}

/// Takes the contents out; `None` if the component's memory is of another kind.
///
/// # Errors
/// Only if the component is malformed.
pub(crate) fn extract(component: &[u8]) -> Result<Option<Extracted>, Error> {
    let Some(found) = find(component)? else { return Ok(None) };
    let Some((contents, data_bytes)) = contents(&found)? else { return Ok(None) };
    let mut output = Vec::with_capacity(component.len());
    let mut module_index = 0;
    for section in normalize::sections(component) {
        let (payload, bytes) = section?;
        match payload {
            Payload::ModuleSection { .. } => {
                if module_index == found.module_index {
                    normalize::core_module(&mut output, |output| without_data(found.module, output))?;
                } else {
                    output.extend_from_slice(bytes);
                }
                module_index += 1;
            }
            _ => output.extend_from_slice(bytes),
        }
    }
    Ok(Some(Extracted { component: output, contents, data_bytes }))
}

/// Finds the only memory that a component defines, if its module is instantiated
/// exactly once.
fn find(component: &[u8]) -> Result<Option<Found<'_>>, Error> {
    let mut found: Option<Found<'_>> = None;
    let mut module_index = 0;
    let mut instantiated = Vec::new();
    for section in normalize::sections(component) {
        let (payload, bytes) = section?;
        match payload {
            Payload::ModuleSection { unchecked_range, .. } => {
                let module = normalize::nested(bytes, &unchecked_range);
                match memories(module)? {
                    Memories::None => {}
                    Memories::One { initial_bytes } if found.is_none() => {
                        found = Some(Found { module_index, module, initial_bytes });
                    }
                    Memories::One { .. } | Memories::Other => return Ok(None),
                }
                module_index += 1;
            }
            Payload::ComponentSection { unchecked_range, .. } => {
                // Wrappers that only rename things are everywhere; one that brings a
                // memory of its own makes this a composition.
                let nested = normalize::nested(bytes, &unchecked_range);
                for payload in Parser::new(0).parse_all(nested) {
                    if matches!(payload.map_err(normalize::invalid)?, Payload::MemorySection(_)) {
                        return Ok(None);
                    }
                }
            }
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    if let Instance::Instantiate { module_index, .. } =
                        instance.map_err(normalize::invalid)?
                    {
                        instantiated.push(module_index);
                    }
                }
            }
            // A core module that is imported or aliased shifts the numbers.
            Payload::ComponentImportSection(imports) => {
                for import in imports {
                    let ty = import.map_err(normalize::invalid)?.ty;
                    if matches!(ty, wasmparser::ComponentTypeRef::Module(_)) {
                        return Ok(None);
                    }
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases {
                    let is_module = match alias.map_err(normalize::invalid)? {
                        wasmparser::ComponentAlias::InstanceExport { kind, .. } => {
                            kind == wasmparser::ComponentExternalKind::Module
                        }
                        wasmparser::ComponentAlias::Outer { kind, .. } => {
                            kind == wasmparser::ComponentOuterAliasKind::CoreModule
                        }
                        wasmparser::ComponentAlias::CoreInstanceExport { .. } => false,
                    };
                    if is_module {
                        return Ok(None);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found.filter(|found| {
        instantiated.iter().filter(|instantiated| **instantiated == found.module_index).count() == 1
    }))
}

/// The memories that a module defines.
enum Memories {
    None,
    /// One of the usual kind.
    One {
        initial_bytes: u64,
    },
    /// Several, or of a kind that is not handled here.
    Other,
}

fn memories(module: &[u8]) -> Result<Memories, Error> {
    let mut memories = Memories::None;
    let mut has_imported = false;
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(normalize::invalid)? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let ty = import.map_err(normalize::invalid)?.ty;
                    has_imported |= matches!(ty, TypeRef::Memory(_));
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory.map_err(normalize::invalid)?;
                    let is_usual = !memory.memory64
                        && !memory.shared
                        && memory.page_size_log2.is_none()
                        && !has_imported;
                    memories = match memories {
                        Memories::None if is_usual => {
                            Memories::One { initial_bytes: memory.initial.saturating_mul(WASM_PAGE_BYTES) }
                        }
                        _ => Memories::Other,
                    };
                }
            }
            // The rest cannot define memories.
            Payload::CodeSectionStart { .. } => break,
            _ => {}
        }
    }
    Ok(memories)
}

/// The memory as its data segments fill it; `None` if one does not lie at a constant
/// place inside.
fn contents(found: &Found<'_>) -> Result<Option<(Contents, usize)>, Error> {
    let mut segments: Vec<(Range<u64>, &[u8])> = Vec::new();
    for payload in Parser::new(0).parse_all(found.module) {
        let Payload::DataSection(data) = payload.map_err(normalize::invalid)? else { continue };
        for segment in data {
            let segment = segment.map_err(normalize::invalid)?;
            let DataKind::Active { memory_index: 0, offset_expr } = segment.kind else {
                if matches!(segment.kind, DataKind::Passive) {
                    continue;
                }
                return Ok(None);
            };
            let mut operators = offset_expr.get_operators_reader();
            let (Ok(Operator::I32Const { value }), Ok(Operator::End)) = (operators.read(), operators.read())
            else {
                return Ok(None);
            };
            let start = u64::from(value.cast_unsigned());
            let end = start + segment.data.len() as u64;
            if end > found.initial_bytes {
                return Ok(None);
            }
            segments.push((start..end, segment.data));
        }
    }
    let page_bytes = page_bytes();
    segments.retain(|(range, _)| !range.is_empty());
    let start = segments.iter().map(|(range, _)| range.start).min().unwrap_or(0);
    let end = segments.iter().map(|(range, _)| range.end).max().unwrap_or(0);
    let (Ok(start), Ok(end)) = (usize::try_from(start), usize::try_from(end)) else { return Ok(None) };
    let address = start - start % page_bytes;
    let length_bytes = (end - address).max(1).next_multiple_of(page_bytes);
    if length_bytes > MAX_CONTENTS_BYTES {
        return Ok(None);
    }
    let data_bytes = segments.iter().map(|(_, data)| data.len()).sum();
    let mut bytes = vec![0; length_bytes];
    for (range, data) in segments {
        // In order: a later segment overwrites an earlier one.
        let start = usize::try_from(range.start).map_or(usize::MAX, |start| start - address);
        if let Some(place) = bytes.get_mut(start..start.saturating_add(data.len())) {
            place.copy_from_slice(data);
        }
    }
    Ok(Some((Contents { bytes, address }, data_bytes)))
}

/// The module without its active data segments.
///
/// A module whose instructions name segments keeps their number: an active segment
/// is dropped when its module has been instantiated, and is from then on the same as
/// a passive one without contents.
fn without_data(module: &[u8], output: &mut Vec<u8>) -> Result<(), Error> {
    let keeps_numbers = names_segments(module)?;
    let mut copied_until = 0;
    for payload in Parser::new(0).parse_all(module) {
        let (range, replacement) = match payload.map_err(normalize::invalid)? {
            Payload::DataCountSection { range, .. } if !keeps_numbers => (range, None),
            Payload::DataSection(data) => {
                let range = data.range();
                let mut emptied = wasm_encoder::DataSection::new();
                for segment in data.into_iter().filter(|_| keeps_numbers) {
                    let segment = segment.map_err(normalize::invalid)?;
                    let is_active = matches!(segment.kind, DataKind::Active { .. });
                    let contents = if is_active { &[] } else { segment.data };
                    emptied.passive(contents.iter().copied());
                }
                (range, Some(emptied).filter(|emptied| !emptied.is_empty()))
            }
            _ => continue,
        };
        // A section begins with its identifier and its size, before the range of its
        // contents.
        let size_bytes = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        let header_bytes = 1 + leb128_bytes(module, range.start, size_bytes)?;
        output.extend_from_slice(&module[copied_until..range.start - header_bytes]);
        if let Some(replacement) = replacement {
            replacement.append_to(output);
        }
        copied_until = range.end;
    }
    output.extend_from_slice(&module[copied_until..]);
    Ok(())
}

/// Whether an instruction names a data segment.
fn names_segments(module: &[u8]) -> Result<bool, Error> {
    let mut has_count = false;
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(normalize::invalid)? {
            Payload::DataCountSection { .. } => has_count = true,
            // Without the section above no instruction may name one.
            Payload::CodeSectionStart { .. } if !has_count => return Ok(false),
            Payload::CodeSectionEntry(body) if may_name_segments(body.as_bytes()) => {
                let mut operators = body.get_operators_reader().map_err(normalize::invalid)?;
                while !operators.eof() {
                    if let Operator::MemoryInit { .. } | Operator::DataDrop { .. } =
                        operators.read().map_err(normalize::invalid)?
                    {
                        return Ok(true);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Whether an instruction that names a data segment may be among these bytes:
/// `memory.init` and `data.drop`.
fn may_name_segments(body: &[u8]) -> bool {
    numbers_after(body, PREFIX).any(|number| matches!(number, 8 | 9))
}

/// How many bytes before `position` hold `value` as a LEB128 number: an encoder may
/// have used more than necessary.
fn leb128_bytes(module: &[u8], position: usize, value: u32) -> Result<usize, Error> {
    (1..=5)
        .find(|length| {
            position.checked_sub(*length).is_some_and(|start| {
                let mut reader = BinaryReader::new(&module[start..position], start);
                matches!(reader.read_var_u32(), Ok(read) if read == value) && reader.eof()
            })
        })
        .ok_or_else(|| normalize::invalid("the data section has no size"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// A component of one module with these fields, instantiated by these lines.
    fn component(fields: &str, instances: &str) -> Vec<u8> {
        wat::parse_str(format!("(component (core module $module {fields}) {instances})")).unwrap()
    }

    fn data(at: u32) -> String {
        format!(r#"(data (i32.const {at}) "{}")"#, "x".repeat(LARGE_CONTENTS_BYTES))
    }

    const ONCE: &str = "(core instance (instantiate $module))";

    fn is_extracted(component: &[u8]) -> bool {
        extract(component).unwrap().is_some()
    }

    #[test]
    fn the_data_moves_from_the_component_to_the_contents() {
        let source = component(&format!("(memory 32) {} (func)", data(70_001)), ONCE);
        let extracted = extract(&source).unwrap().unwrap();
        wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all())
            .validate_all(&extracted.component)
            .unwrap();
        assert!(extracted.component.len() < 1_000, "{}", extracted.component.len());
        assert_eq!(extracted.data_bytes, LARGE_CONTENTS_BYTES);
        let Contents { bytes, address } = extracted.contents;
        assert_eq!(address, 70_001 - 70_001 % page_bytes());
        let mut expected = vec![0; 70_001 - address];
        expected.resize(expected.len() + LARGE_CONTENTS_BYTES, b'x');
        expected.resize(expected.len().next_multiple_of(page_bytes()), 0);
        assert!(bytes == expected);
    }

    #[test]
    fn only_what_is_known_to_behave_the_same_is_touched() {
        let memory = |fields: &str| format!("(memory 32) {fields}");
        assert!(is_extracted(&component(&memory(&data(0)), ONCE)));

        let outside = format!("(memory 16) {}", data(1));
        assert!(!is_extracted(&component(&outside, ONCE)), "data past the initial size");
        let computed = memory(&data(0).replace("(i32.const 0)", "(offset global.get $base)"));
        let computed = format!("(global $base i32 (i32.const 0)) {computed}");
        assert!(!is_extracted(&component(&computed, ONCE)), "a computed offset");
        assert!(!is_extracted(&component(&memory(&data(0)), &ONCE.repeat(2))), "instantiated twice");
        assert!(!is_extracted(&component(&memory(&data(0)), "")), "never instantiated");
        let second = format!("{ONCE} (core module (memory 1))");
        assert!(!is_extracted(&component(&memory(&data(0)), &second)), "another memory");
        let nested = format!("{ONCE} (component (core module (memory 1)))");
        assert!(!is_extracted(&component(&memory(&data(0)), &nested)), "a nested memory");
        let wide = format!("(memory i64 32) {}", data(0).replace("i32", "i64"));
        assert!(!is_extracted(&component(&wide, ONCE)), "64-bit addresses");
    }

    #[test]
    fn garbled_input_does_no_harm() {
        let source = component(&format!("(memory 32) {} (func)", data(0)), ONCE);
        // The structure is at both ends; between them lies the data.
        for position in (0..200).chain(source.len() - 200..source.len()) {
            for flip in [1, 0x80, 0xff] {
                let mut garbled = source.clone();
                garbled[position] ^= flip;
                if let Ok(Some(extracted)) = extract(&garbled) {
                    assert!(extracted.contents.bytes.len() % page_bytes() == 0);
                }
            }
            let _ = extract(&source[..position]);
        }
    }
}

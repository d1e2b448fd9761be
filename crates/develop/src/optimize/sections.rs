//! WebAssembly files as what they are on disk: a list of sections, in which modules and
//! components lie within components.
//!
//! What is not to change is copied byte for byte, so that nothing is lost that this code
//! does not know.

use wasm_encoder::{RawSection, Section as _};
use wasmparser::{BinaryReader, Result};

/// The magic number and the version, before the first section.
const HEADER_BYTES: usize = 8;

/// What a component's header ends with; a module's ends otherwise.
const COMPONENT_VERSION: [u8; 4] = [0x0d, 0, 1, 0];

/// Identifiers of sections.
mod id {
    /// In modules and components.
    pub(super) const CUSTOM: u8 = 0;
    /// In components.
    pub(super) const CORE_MODULE: u8 = 1;
    /// In components.
    pub(super) const COMPONENT: u8 = 4;
}

/// Components may lie within components. The validator of the engine takes less.
const MAX_DEPTH: usize = 100;

/// One section.
struct Section<'bytes> {
    id: u8,
    /// What is in it, without its header.
    body: &'bytes [u8],
    /// All of it, as it is in the file.
    whole: &'bytes [u8],
}

/// A file in which `change` has replaced core modules; where it returns `None`, the module
/// stays.
pub(super) fn change_modules(
    wasm: &[u8],
    change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>,
) -> Result<Vec<u8>> {
    if !is_component(wasm) {
        return Ok(change(wasm).unwrap_or_else(|| wasm.to_owned()));
    }
    rewrite(wasm, 0, &mut |section, _| match section.id {
        id::CORE_MODULE => change(section.body).map_or(Fate::Keep, Fate::Replace),
        id::COMPONENT => Fate::Descend,
        _ => Fate::Keep,
    })
}

/// A file without the custom sections that `is_wanted` refuses by their name, in it and in
/// all that lies within.
pub(super) fn retain_custom(wasm: &[u8], is_wanted: &dyn Fn(&str) -> bool) -> Result<Vec<u8>> {
    rewrite(wasm, 0, &mut |section, is_component| match section.id {
        id::CUSTOM => match BinaryReader::new(section.body, 0).read_string() {
            Ok(name) if !is_wanted(name) => Fate::Drop,
            _ => Fate::Keep,
        },
        id::CORE_MODULE | id::COMPONENT if is_component => Fate::Descend,
        _ => Fate::Keep,
    })
}

/// Whether it is a component, and not a core module.
pub(super) fn is_component(wasm: &[u8]) -> bool {
    wasm.get(4..HEADER_BYTES) == Some(&COMPONENT_VERSION)
}

/// What becomes of a section.
enum Fate {
    Keep,
    Drop,
    Replace(Vec<u8>),
    /// It holds a file: what is in there is decided on section by section.
    Descend,
}

fn rewrite(wasm: &[u8], depth: usize, decide: &mut dyn FnMut(&Section<'_>, bool) -> Fate) -> Result<Vec<u8>> {
    let is_component = is_component(wasm);
    let mut output = Vec::with_capacity(wasm.len());
    let mut reader = BinaryReader::new(wasm, 0);
    output.extend_from_slice(reader.read_bytes(HEADER_BYTES)?);
    while !reader.eof() {
        let start = reader.current_position();
        let id = reader.read_u8()?;
        let size_bytes = reader.read_var_u32()? as usize;
        let body = reader.read_bytes(size_bytes)?;
        let section = Section { id, body, whole: &wasm[start..reader.current_position()] };
        let replaced = match decide(&section, is_component) {
            Fate::Descend if depth < MAX_DEPTH => rewrite(body, depth + 1, decide)?,
            Fate::Replace(body) => body,
            Fate::Drop => continue,
            Fate::Keep | Fate::Descend => {
                output.extend_from_slice(section.whole);
                continue;
            }
        };
        RawSection { id, data: &replaced }.append_to(&mut output);
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const NESTED: &str = r#"(component
        (core module $one (func (export "one")))
        (component
            (core module $two (func (export "two")))
            (core instance (instantiate 0)))
        (core instance (instantiate $one)))"#;

    #[test]
    fn what_is_not_changed_is_the_same_byte_for_byte() {
        let wasm = wat::parse_str(NESTED).unwrap();
        assert!(is_component(&wasm));
        let mut count = 0;
        let same = change_modules(&wasm, &mut |_| {
            count += 1;
            None
        });
        assert_eq!((same.unwrap(), count), (wasm.clone(), 2));
        assert_eq!(retain_custom(&wasm, &|_| true).unwrap(), wasm);
    }

    #[test]
    fn modules_are_replaced_wherever_they_lie() {
        let wasm = wat::parse_str(NESTED).unwrap();
        let other = wat::parse_str(r#"(module (func (export "other") (nop) (nop)))"#).unwrap();
        let changed = change_modules(&wasm, &mut |_| Some(other.clone())).unwrap();
        wasmparser::Validator::new().validate_all(&changed).unwrap();
        let mut seen = Vec::new();
        change_modules(&changed, &mut |module| {
            seen.push(module.to_owned());
            None
        })
        .unwrap();
        assert_eq!(seen, [other.clone(), other]);
    }

    #[test]
    fn names_are_dropped_and_nothing_else() {
        let wasm = wat::parse_str(NESTED).unwrap();
        let bare = retain_custom(&wasm, &|name| name != "name" && name != "component-name").unwrap();
        assert!(bare.len() < wasm.len());
        wasmparser::Validator::new().validate_all(&bare).unwrap();
        let holds = |wasm: &[u8], name: &[u8]| wasm.windows(name.len()).any(|bytes| bytes == name);
        assert!(holds(&wasm, b"\x04name") && !holds(&bare, b"\x04name"));
        assert!(holds(&bare, b"two"));
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let wasm = wat::parse_str(NESTED).unwrap();
        assert!(change_modules(&wasm[..wasm.len() - 1], &mut |_| None).is_err());
        assert!(retain_custom(b"\0asm", &|_| true).is_err());
    }
}

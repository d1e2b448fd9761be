//! Tells debuggers about compiled images, so that they find a guest's sources, lines and
//! variables in native code that is in no file they know.
//!
//! The protocol is GDB's *JIT compilation interface*, which LLDB speaks too: a linked list
//! of object files in memory behind a symbol that the debugger looks for, and a function
//! without content in which it keeps a breakpoint. An image is an object file almost: what
//! a debugger needs beside it are the addresses at which its code lies in this process.
//! They are entered into a copy.
//!
//! (Wasmtime can do the same, as a feature that would be compiled into every build. It
//! would add functions that follow a guest's pointers, `wasmtime_resolve_vmctx_memory`.)

use std::{
    ptr,
    sync::{Mutex, PoisonError},
};

use wasmtime::component::Component;

/// What was called last. From GDB's manual, *JIT Interface*.
mod action {
    pub(super) const NONE: u32 = 0;
    pub(super) const REGISTER: u32 = 1;
    pub(super) const UNREGISTER: u32 = 2;
}

/// The version of the protocol.
const VERSION: u32 = 1;

/// One object file. The layout is the protocol's.
#[repr(C)]
struct Entry {
    next: *mut Entry,
    previous: *mut Entry,
    file: *const u8,
    file_bytes: u64,
}

/// All of them. The layout is the protocol's.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

/// An image that debuggers know of, until this is dropped.
pub(crate) struct Registration {
    entry: Box<Entry>,
    /// What the entry points to.
    _file: Box<[u8]>,
}

/// Who holds it may change the list.
static LIST: Mutex<()> = Mutex::new(());

/// The beginning of the list; debuggers look for this name.
// SAFETY: the name is reserved for this purpose, and nothing else in this process defines
// it: Wasmtime does only with a feature that is not used.
#[unsafe(no_mangle)]
static mut __jit_debug_descriptor: Descriptor =
    Descriptor { version: VERSION, action: action::NONE, relevant: ptr::null_mut(), first: ptr::null_mut() };

/// Called after each change; debuggers keep a breakpoint here.
// SAFETY: as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn __jit_debug_register_code() {
    // SAFETY: there is no instruction. The compiler does not know that, and keeps the call.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) };
}

impl Registration {
    /// Tells debuggers about a component that was compiled with debug information; `None`
    /// if there is none in its image.
    pub(crate) fn of(component: &Component) -> Option<Self> {
        let range = component.image_range();
        let image_bytes = (range.end as usize).checked_sub(range.start as usize)?;
        // SAFETY: the range is that of the component's image, which is mapped and is not
        // written to as long as the component lives, and so until this function returns.
        let image = unsafe { std::slice::from_raw_parts(range.start, image_bytes) };
        let file = object_file::loaded_at(image, range.start as u64)?.into_boxed_slice();
        let mut entry = Box::new(Entry {
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
            file: file.as_ptr(),
            file_bytes: file.len() as u64,
        });
        let _lock = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = &raw mut __jit_debug_descriptor;
        // SAFETY: all entries of the list are alive, since each takes itself out when it is
        // dropped, and only who holds the lock reads or writes any of this. Debuggers do
        // while the process stands still.
        unsafe {
            entry.next = (*descriptor).first;
            if !entry.next.is_null() {
                (*entry.next).previous = &raw mut *entry;
            }
            (*descriptor).first = &raw mut *entry;
            tell(descriptor, &raw mut *entry, action::REGISTER);
        }
        Some(Self { entry, _file: file })
    }
}

/// # Safety
/// The lock of the list is held, and the entry is alive.
unsafe fn tell(descriptor: *mut Descriptor, entry: *mut Entry, action: u32) {
    // SAFETY: the descriptor is that of this process; the caller holds the lock.
    unsafe {
        (*descriptor).relevant = entry;
        (*descriptor).action = action;
        __jit_debug_register_code();
        (*descriptor).action = action::NONE;
        (*descriptor).relevant = ptr::null_mut();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _lock = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = &raw mut __jit_debug_descriptor;
        let entry = &raw mut *self.entry;
        // SAFETY: as in `Registration::of`.
        unsafe {
            match (*entry).previous {
                previous if previous.is_null() => (*descriptor).first = (*entry).next,
                previous => (*previous).next = (*entry).next,
            }
            if !(*entry).next.is_null() {
                (*(*entry).next).previous = (*entry).previous;
            }
            tell(descriptor, entry, action::UNREGISTER);
        }
    }
}

// SAFETY: its pointers are followed only by who holds the lock of the list.
unsafe impl Send for Registration {}
// SAFETY: a shared reference gives access to nothing.
unsafe impl Sync for Registration {}

/// The little of ELF (64 bits, little-endian) that is needed. Places are those of the
/// specification, *System V Application Binary Interface*, chapter 4.
mod object_file {
    /// What the file begins with: the magic number, 64 bits, little-endian.
    const START: &[u8] = b"\x7fELF\x02\x01";
    const HEADER_BYTES: usize = 64;
    const SECTION_HEADER_BYTES: usize = 64;
    const PROGRAM_HEADER_BYTES: usize = 56;
    const SYMBOL_BYTES: usize = 24;
    const RELOCATION_BYTES: usize = 24;
    /// A section of relocations with addends.
    const SHT_RELA: u32 = 4;
    /// A file that can be loaded.
    const ET_DYN: u16 = 3;
    /// A part of it that is loaded.
    const PT_LOAD: u32 = 1;
    /// Relocations that stand for an address of 64 bits: of x86-64, and of AArch64.
    const ABSOLUTE: [u64; 2] = [1, 257];

    /// A section, as its header says.
    struct Section {
        name: String,
        kind: u32,
        header: usize,
        start: usize,
        length: usize,
        /// For relocations: the section of symbols, and the one they are for.
        link: usize,
        info: usize,
    }

    /// A copy of an image, with the addresses at which its code is if the image begins at
    /// `base`; `None` if there is no debug information in it, or it is no such file.
    pub(super) fn loaded_at(image: &[u8], base: u64) -> Option<Vec<u8>> {
        if !image.starts_with(START) {
            return None;
        }
        let sections = sections(image)?;
        let text = sections.iter().find(|section| section.name == ".text")?;
        sections.iter().find(|section| section.name == ".debug_info")?;
        let address = base.checked_add(text.start as u64)?;
        let mut file = image.to_vec();
        for relocations in sections.iter().filter(|section| section.kind == SHT_RELA) {
            let (symbols, target) = (sections.get(relocations.link)?, sections.get(relocations.info)?);
            if target.name.starts_with(".debug_") {
                relocate(&mut file, image, (relocations, symbols, target), address)?;
            }
        }
        put(&mut file, text.header + 16, &address.to_le_bytes())?;
        // What is beside the code has no address of its own in there.
        for section in sections.iter().filter(|section| section.header != text.header) {
            put(&mut file, section.header + 8, &0_u64.to_le_bytes())?;
        }
        // LLDB goes by segments.
        let program = file.len();
        file.resize(program + PROGRAM_HEADER_BYTES, 0);
        put(&mut file, program, &PT_LOAD.to_le_bytes())?;
        put(&mut file, program + 8, &(text.start as u64).to_le_bytes())?;
        for (offset, value) in
            [(16, address), (24, address), (32, text.length as u64), (40, text.length as u64)]
        {
            put(&mut file, program + offset, &value.to_le_bytes())?;
        }
        put(&mut file, 16, &ET_DYN.to_le_bytes())?;
        put(&mut file, 32, &(program as u64).to_le_bytes())?;
        put(&mut file, 54, &u16::try_from(PROGRAM_HEADER_BYTES).ok()?.to_le_bytes())?;
        put(&mut file, 56, &1_u16.to_le_bytes())?;
        Some(file)
    }

    fn relocate(
        file: &mut [u8],
        image: &[u8],
        (relocations, symbols, target): (&Section, &Section, &Section),
        address: u64,
    ) -> Option<()> {
        let all = image.get(relocations.start..relocations.start.checked_add(relocations.length)?)?;
        for relocation in all.chunks_exact(RELOCATION_BYTES) {
            let info = u64_at(relocation, 8)?;
            if !ABSOLUTE.contains(&(info & 0xffff_ffff)) {
                continue;
            }
            let symbol = symbols.start + usize::try_from(info >> 32).ok()?.checked_mul(SYMBOL_BYTES)?;
            let value = address
                .wrapping_add(u64_at(image, symbol.checked_add(8)?)?)
                .wrapping_add(u64_at(relocation, 16)?);
            let place = target.start.checked_add(usize::try_from(u64_at(relocation, 0)?).ok()?)?;
            put(file, place, &value.to_le_bytes())?;
        }
        Some(())
    }

    fn sections(image: &[u8]) -> Option<Vec<Section>> {
        let at = |offset: usize| usize::try_from(u64_at(image, offset)?).ok();
        let (table, count, names) =
            (at(40)?, usize::from(u16_at(image, 60)?), usize::from(u16_at(image, 62)?));
        if image.len() < HEADER_BYTES || usize::from(u16_at(image, 58)?) != SECTION_HEADER_BYTES {
            return None;
        }
        let header = |number: usize| table.checked_add(number.checked_mul(SECTION_HEADER_BYTES)?);
        let names = at(header(names)? + 24)?;
        let sections = (0..count).map(|number| {
            let header = header(number)?;
            let name = image.get(names.checked_add(u32_at(image, header)? as usize)?..)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                kind: u32_at(image, header + 4)?,
                header,
                start: at(header + 24)?,
                length: at(header + 32)?,
                link: u32_at(image, header + 40)? as usize,
                info: u32_at(image, header + 44)? as usize,
            })
        });
        sections.collect()
    }

    fn put(file: &mut [u8], place: usize, value: &[u8]) -> Option<()> {
        file.get_mut(place..place.checked_add(value.len())?)?.copy_from_slice(value);
        Some(())
    }

    fn u64_at(bytes: &[u8], place: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*bytes.get(place..)?.first_chunk()?))
    }

    fn u32_at(bytes: &[u8], place: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*bytes.get(place..)?.first_chunk()?))
    }

    fn u16_at(bytes: &[u8], place: usize) -> Option<u16> {
        Some(u16::from_le_bytes(*bytes.get(place..)?.first_chunk()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_no_image_is_none() {
            assert_eq!(loaded_at(b"", 0), None);
            assert_eq!(loaded_at(b"\x7fELF\x02\x01 and then nothing of it", 0), None);
            let mut claims = START.to_vec();
            claims.resize(256, 0xff);
            assert_eq!(loaded_at(&claims, 0), None);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::{Engine, EngineConfig};

    #[test]
    fn only_images_with_debug_information_are_told_about() {
        let wasm = wat::parse_str(
            "(component (core module $m (func (export \"f\") (nop))) (core instance (instantiate $m)))",
        )
        .unwrap();
        let config = EngineConfig { pooling: false, ..EngineConfig::default() };
        let plain = Engine::new(&config, None).unwrap();
        assert!(Registration::of(&plain.load(&wasm).unwrap().component).is_none());
        let engine = Engine::new(&EngineConfig { debug_info: true, ..config }, None).unwrap();
        let loaded = engine.load(&wasm).unwrap();
        let one = Registration::of(&loaded.component).unwrap();
        let other = Registration::of(&loaded.component).unwrap();
        // The newest is first, and whoever goes is taken out wherever it is.
        // SAFETY: nobody else has registered an image of this test's engine; the lock keeps
        // others from changing the list.
        let first = || unsafe {
            let _lock = LIST.lock().unwrap();
            let descriptor = &raw const __jit_debug_descriptor;
            (*descriptor).first.cast_const()
        };
        assert_eq!(first(), &raw const *other.entry);
        drop(one);
        assert_eq!(first(), &raw const *other.entry);
        drop(other);
        assert_ne!(first(), ptr::null(), "the engine's own one is left");
    }
}

//! Compiled images in memory, mapped by us.
//!
//! Wasmtime can map an image by its file's name. But what is mapped must be the file that
//! was verified, which is open already: to open it once more, by a name that leads through
//! `/proc`, to map it for writing and to take that back take time that a first response
//! waits for, and it would stay open. So we map images ourselves, and Wasmtime is given
//! addresses.
//!
//! # Life of a mapping
//!
//! mapped for reading, and entered by its address → Wasmtime reads it and has its code made
//! executable ([`Publisher`]) → used by the component and what was made of it → the last of
//! them is dropped, Wasmtime takes the code back, and the mapping is taken out and
//! unmapped.

use std::{
    collections::BTreeMap,
    fs::File,
    ptr::NonNull,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::mm::{MprotectFlags, mprotect};
use wasmtime::{CustomCodeMemory, Engine, component::Component};

use super::{page_bytes, pool::Mapping};

/// Whether images are mapped from here. On other processors Wasmtime sees to it that their
/// instruction caches follow.
pub(crate) const IS_USED: bool = cfg!(target_arch = "x86_64");

/// All images that are mapped from here, by their addresses.
static MAPPED: Mutex<BTreeMap<usize, Mapped>> = Mutex::new(BTreeMap::new());

/// A mapping, and its number: an address may belong to another mapping later.
struct Mapped {
    mapping: Mapping,
    number: u64,
}

/// Makes code executable, for all engines whose images are mapped from here.
pub(crate) struct Publisher;

/// Maps an image and makes a component of it.
///
/// # Safety
/// The file's first `image_bytes` are an image that a compiler of this engine's version
/// and configuration made, without information for unwinding; nobody writes to the file.
///
/// # Errors
/// What the operating system or Wasmtime says.
pub(crate) unsafe fn map(engine: &Engine, file: &File, image_bytes: usize) -> Result<Component, String> {
    static NEXT: AtomicU64 = AtomicU64::new(0);

    let mapping = Mapping::read_only(file, 0, image_bytes).map_err(|error| error.to_string())?;
    let address = mapping.addresses().start;
    let image = NonNull::new(mapping.pointer(0)).ok_or("it is mapped nowhere")?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    mapped().insert(address, Mapped { mapping, number });
    // SAFETY: the bytes are what the caller says. They stay mapped until the last user of
    // the component is gone: only `unpublish_executable` unmaps them, which is called when
    // Wasmtime drops what owns the code, and the removal below, after which there is none.
    let component =
        unsafe { Component::deserialize_raw(engine, NonNull::slice_from_raw_parts(image, image_bytes)) };
    component.map_err(|error| {
        // It is gone already if Wasmtime had published it. Another image may lie there since.
        let mut mapped = mapped();
        if mapped.get(&address).is_some_and(|found| found.number == number) {
            mapped.remove(&address);
        }
        error.to_string()
    })
}

impl CustomCodeMemory for Publisher {
    fn required_alignment(&self) -> usize {
        page_bytes()
    }

    fn publish_executable(&self, code: *const u8, code_bytes: usize) -> wasmtime::Result<()> {
        // SAFETY: Wasmtime calls this with code that it was given or made and that nobody
        // runs yet.
        unsafe { mprotect(code.cast_mut().cast(), code_bytes, MprotectFlags::READ | MprotectFlags::EXEC) }?;
        Ok(())
    }

    /// Called when nothing is left of a component. (It would also be called by debuggers
    /// that set breakpoints inside of Wasmtime, which is compiled without.)
    fn unpublish_executable(&self, code: *const u8, _: usize) -> wasmtime::Result<()> {
        let found = {
            let mut mapped = mapped();
            let address = mapped.range(..=code.addr()).next_back().map(|(address, _)| *address);
            address
                .filter(|address| mapped[address].mapping.addresses().contains(&code.addr()))
                .and_then(|address| mapped.remove(&address))
        };
        // Unmapped here, when others can go on.
        drop(found);
        Ok(())
    }
}

fn mapped() -> MutexGuard<'static, BTreeMap<usize, Mapped>> {
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{fs, io::Write as _, path::Path};

    use super::*;
    use crate::{EngineConfig, Flavor};

    const SOURCE: &str = r#"(component
        (core module $module (func (export "answer") (result i32) (i32.const 42)))
        (core instance $instance (instantiate $module))
        (func (export "answer") (result u32) (canon lift (core func $instance "answer"))))"#;

    fn engine() -> Engine {
        EngineConfig { pooling: false, ..EngineConfig::default() }
            .engine(Flavor::PlainSnapshot.optimized())
            .unwrap()
    }

    fn is_mapped(path: &Path) -> bool {
        fs::read_to_string("/proc/self/maps").unwrap().contains(path.to_str().unwrap())
    }

    fn call(component: &Component) -> u32 {
        let engine = component.engine();
        let mut store = wasmtime::Store::new(engine, ());
        store.set_epoch_deadline(1_000_000);
        let instance = wasmtime::component::Linker::new(engine).instantiate(&mut store, component).unwrap();
        let answer = instance.get_typed_func::<(), (u32,)>(&mut store, "answer").unwrap();
        answer.call(&mut store, ()).unwrap().0
    }

    #[test]
    fn an_image_is_mapped_for_as_long_as_its_component_lives() {
        let engine = engine();
        let image = engine.precompile_component(&wat::parse_str(SOURCE).unwrap()).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        // SAFETY: the bytes are this engine's own.
        let map = || unsafe { map(&engine, file.as_file(), image.len()) }.unwrap();
        let (one, other) = (map(), map());
        assert_eq!((call(&one), call(&other)), (42, 42));
        let another_user = one.clone();
        drop(one);
        assert_eq!(call(&another_user), 42);
        drop(another_user);
        assert!(is_mapped(file.path()), "the other is still there");
        assert_eq!(call(&other), 42);
        drop(other);
        assert!(!is_mapped(file.path()));
    }

    #[test]
    fn what_is_no_image_is_refused_and_unmapped() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 5_000]).unwrap();
        // SAFETY: Wasmtime reads its own header first and refuses what has none.
        assert!(unsafe { map(&engine(), file.as_file(), 5_000) }.is_err());
        assert!(!is_mapped(file.path()));
    }
}

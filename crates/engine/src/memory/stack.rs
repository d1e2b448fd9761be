//! Stacks for guests whose memory comes from here.
//!
//! Wasmtime takes stacks from its pool or from us, and its pool comes together with
//! its memories.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use wasmtime::{StackCreator, StackMemory};

use super::{page_bytes, pool::Mapping};

/// Stacks kept for the next instance. More than run at once on the cores of a
/// machine are rarely of use.
const MAX_IDLE_COUNT: usize = 256;

/// Makes stacks and keeps those that are no longer used.
pub(crate) struct StackPool {
    idle: Mutex<Vec<Mapping>>,
    this: Weak<Self>,
}

/// A stack that is in use.
struct Stack {
    mapping: Option<Mapping>,
    pool: Weak<StackPool>,
}

impl StackPool {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self { idle: Mutex::default(), this: this.clone() })
    }
}

// SAFETY: each stack is a mapping of its own, used by one instance at a time, page
// aligned, with a page below it that cannot be accessed. Stacks are not cleared
// between uses: guests cannot read what they did not write on them.
unsafe impl StackCreator for StackPool {
    fn new_stack(&self, size_bytes: usize, zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let length_bytes = size_bytes.next_multiple_of(page_bytes()) + page_bytes();
        let idle = if zeroed {
            None
        } else {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.pop().filter(|stack| stack.length_bytes() == length_bytes)
        };
        let mapping = match idle {
            Some(mapping) => mapping,
            None => {
                let mapping = Mapping::reserve(length_bytes)?;
                mapping.make_accessible(page_bytes()..length_bytes)?;
                mapping
            }
        };
        Ok(Box::new(Stack { mapping: Some(mapping), pool: self.this.clone() }))
    }
}

impl Stack {
    fn addresses(&self) -> Range<usize> {
        self.mapping.as_ref().map_or(0..0, Mapping::addresses)
    }
}

// SAFETY: the first page is never made accessible, the rest is the stack.
unsafe impl StackMemory for Stack {
    fn top(&self) -> *mut u8 {
        self.mapping.as_ref().map_or(std::ptr::null_mut(), |mapping| mapping.pointer(mapping.length_bytes()))
    }

    fn range(&self) -> Range<usize> {
        let addresses = self.addresses();
        addresses.start + page_bytes()..addresses.end
    }

    fn guard_range(&self) -> Range<*mut u8> {
        match &self.mapping {
            Some(mapping) => mapping.pointer(0)..mapping.pointer(page_bytes()),
            None => std::ptr::null_mut()..std::ptr::null_mut(),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let (Some(mapping), Some(pool)) = (self.mapping.take(), self.pool.upgrade()) {
            let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MAX_IDLE_COUNT {
                idle.push(mapping);
            }
        }
    }
}

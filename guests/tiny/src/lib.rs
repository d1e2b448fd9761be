//! Answers every request with its number, and is as small as a component with
//! `wasi:http` can be: a bench compiles a hundred thousand of it.
//!
//! The number is part of the data: other digits written over these ten make
//! another app. Nothing is ever allocated, neither by the guest nor by the host
//! on its behalf: no argument and no result that it receives is a list.
#![no_std]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::unreachable;
use core::panic::PanicInfo;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

/// The number, and before it a sentence to find it by.
static SENTENCE: [u8; 36] = *b"The number of this app is 0000000000";

/// Where in the sentence the number begins.
const NUMBER_START: usize = 26;

struct Tiny;

impl Guest for Tiny {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().ok();
        ResponseOutparam::set(out, Ok(response));
        let Some(body) = body else { return };
        if let Ok(stream) = body.write() {
            let number = SENTENCE.get(NUMBER_START..).unwrap_or_default();
            // A client that went away is nothing that a guest could do about.
            let _ = stream.blocking_write_and_flush(number);
        }
        let _ = OutgoingBody::finish(body, None);
    }
}

wasip2::http::proxy::export!(Tiny);

/// An allocator for a program that allocates nothing: bindings name one.
struct Nothing;

// SAFETY: it never hands out memory, which is how an allocator says that there is
// none left, so there is none to be freed either.
unsafe impl GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _pointer: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Nothing = Nothing;

/// The canonical ABI asks for it where lists are received; none are.
#[unsafe(no_mangle)]
extern "C" fn cabi_realloc(_old: *mut u8, _old_bytes: usize, _align: usize, _new_bytes: usize) -> *mut u8 {
    unreachable()
}

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    unreachable()
}

//! The standard library takes the keys of its hash maps from the system's random numbers, and other libraries take the seeds of
//! theirs from there. Here they are the same in every run, so that the same work takes the same instructions.
#![allow(unsafe_code)]

use std::ffi::{c_uint, c_void};

/// Stands in for that of the C library.
///
/// # Safety
/// `buffer` has room for `length` bytes, as the C library asks for.
// SAFETY: it has the name and the signature of the C library's function, and does what that does, but for the chance.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    // SAFETY: the caller has room for so many bytes.
    unsafe { std::ptr::write_bytes(buffer.cast::<u8>(), 0x5a, length) };
    // No buffer is longer than that.
    length as isize
}

//! The C functions that compiled code calls by itself. What would be a loop is assembly (`nacre_bytes`) or volatile, or the compiler turns it into
//! a call to itself.

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { nacre_bytes::copy(to, from, len) }
    to
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { nacre_bytes::copy_overlapping(to, from, len) }
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise. C passes the byte as an `int`.
    unsafe { nacre_bytes::fill(to, byte as u8, len) }
    to
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut at = 0;
    // SAFETY: reads inside both blocks; volatile, so that this loop does not become a call to itself.
    unsafe {
        while at + 8 <= len
            && a.add(at).cast::<u64>().read_unaligned() == b.add(at).cast::<u64>().read_unaligned()
        {
            at += 8;
        }
        while at < len {
            let (x, y) = (a.add(at).read_volatile(), b.add(at).read_volatile());
            if x != y {
                return i32::from(x) - i32::from(y);
            }
            at += 1;
        }
    }
    0
}

/// # Safety
/// As C's `bcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, len) }
}

/// # Safety
/// As C's `strlen`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller's promise: a zero byte ends it.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Named by precompiled `core`; with `panic = "abort"` nothing calls it.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() {}

/// See [`rust_eh_personality`].
#[unsafe(no_mangle)]
pub extern "C" fn _Unwind_Resume() -> ! {
    crate::arch::exit(nacre_abi::hypercall::ExitReason::Panic)
}

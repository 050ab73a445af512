//! What the guest image's `memcpy`, `memmove` and `memset` do: all that tenants' and the agent's bytes are copied by.
//!
//! In vectors of 16 bytes, which every x86-64 processor has, in steps of 64. The ends of a block are copied by vectors that overlap what the steps
//! copied, so no length needs a loop over bytes. `rep movsb`, which is one instruction and as fast where both sides are aligned,
//! takes 10 to 20 times as long on AMD's Zen 3 when the destination is not a multiple of 64 (measured: 1.9 GB/s instead of 40, 60 ns for 8
//! bytes instead of 3); and hardly anything a service copies is.
//!
//! The loops are assembly: a compiler would turn them into calls to `memcpy`.
#![cfg_attr(not(test), no_std)]

use core::arch::asm;
use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_set1_epi8, _mm_storeu_si128};
use core::sync::atomic::{AtomicU64, Ordering};

type Vector = __m128i;
const VECTOR: usize = size_of::<Vector>();
/// Bytes of one step.
const STEP: usize = 4 * VECTOR;
const STEP_WORDS: usize = STEP / 8;
/// From this length on `rep stosb` is faster than a loop: 1.7 times at 64 KiB.
const LONG_FILL: usize = 2048;

/// Copies `len` bytes.
///
/// # Safety
/// As C's `memcpy`: `len` bytes can be read from `from` and written to `to`, and the two do not overlap.
#[inline]
pub unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise is more than is asked.
    unsafe { copy_up(to, from, len) }
}

/// Copies `len` bytes, which may overlap.
///
/// # Safety
/// As C's `memmove`: `len` bytes can be read from `from` and written to `to`.
#[inline]
pub unsafe fn copy_overlapping(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise; copied upwards only if no byte is written before it is read.
    unsafe {
        match (to as usize).wrapping_sub(from as usize) < len {
            true => copy_down(to, from, len),
            false => copy_up(to, from, len),
        }
    }
}

/// Writes bytes to words that somebody else may read or write meanwhile, in little-endian order, without any order among them. As many as
/// both have; the rest of the bytes of a word that is not whole is left.
pub fn store_words(words: &[AtomicU64], bytes: &[u8]) {
    let (chunks, _) = bytes.as_chunks::<8>();
    let count = words.len().min(chunks.len());
    let whole = count - count % STEP_WORDS;
    // SAFETY: both have `whole` words, and both slices lie apart, as one is mutable memory of others and the other is not. What
    // happens to the words meanwhile is between instructions of assembly, which promise nothing of it.
    unsafe { copy_steps(words.as_ptr().cast_mut().cast(), chunks.as_ptr().cast(), whole * 8) }
    for (word, chunk) in words[whole..count].iter().zip(&chunks[whole..count]) {
        word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
}

/// Reads bytes from words that somebody else may write meanwhile, in little-endian order, each byte once. As many as both have.
pub fn load_words(bytes: &mut [u8], words: &[AtomicU64]) {
    let (chunks, _) = bytes.as_chunks_mut::<8>();
    let count = words.len().min(chunks.len());
    let whole = count - count % STEP_WORDS;
    // SAFETY: as in `store_words`.
    unsafe { copy_steps(chunks.as_mut_ptr().cast(), words.as_ptr().cast(), whole * 8) }
    for (chunk, word) in chunks[whole..count].iter_mut().zip(&words[whole..count]) {
        *chunk = word.load(Ordering::Relaxed).to_le_bytes();
    }
}

/// Makes `len` bytes equal to `byte`.
///
/// # Safety
/// As C's `memset`: `len` bytes can be written to `to`.
#[inline]
pub unsafe fn fill(to: *mut u8, byte: u8, len: usize) {
    let (word, vector) = (u64::from(byte) * 0x0101_0101_0101_0101, splat(byte));
    // SAFETY: the caller's promise, and the lengths that the arms say.
    unsafe {
        match len {
            0 => {}
            1 => to.write(byte),
            2..4 => store_ends(to, len, word as u16),
            4..8 => store_ends(to, len, word as u32),
            8..16 => store_ends(to, len, word),
            16..=32 => store_ends(to, len, vector),
            33..=STEP => store_ends(to, len, [vector; 2]),
            LONG_FILL.. => asm!(
                "rep stosb",
                inout("rcx") len => _, inout("rdi") to => _, in("al") byte,
                options(nostack, preserves_flags)
            ),
            _ => {
                asm!(
                    "2:",
                    "movups [{to}], {vector}",
                    "movups [{to} + 16], {vector}",
                    "movups [{to} + 32], {vector}",
                    "movups [{to} + 48], {vector}",
                    "add {to}, 64",
                    "cmp {to}, {end}",
                    "jb 2b",
                    to = inout(reg) to => _, end = in(reg) to.add(len - STEP), vector = in(xmm_reg) vector,
                    options(nostack)
                );
                to.add(len - STEP).cast::<[Vector; 4]>().write_unaligned([vector; 4]);
            }
        }
    }
}

fn splat(byte: u8) -> Vector {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_set1_epi8(byte.cast_signed()) }
}

/// Writes `value` to both ends of `len` bytes.
///
/// # Safety
/// `len` bytes can be written, and a `T` has no more.
#[inline]
unsafe fn store_ends<T: Copy>(to: *mut u8, len: usize, value: T) {
    // SAFETY: the caller's promise.
    unsafe {
        to.cast::<T>().write_unaligned(value);
        to.add(len - size_of::<T>()).cast::<T>().write_unaligned(value);
    }
}

/// Copies both ends of `len` bytes. Everything is read before anything is written.
///
/// # Safety
/// As [`copy_overlapping`], and a `T` has from half of `len` to `len` bytes.
#[inline]
unsafe fn copy_ends<T: Copy>(to: *mut u8, from: *const u8, len: usize) {
    let last = len - size_of::<T>();
    // SAFETY: the caller's promise.
    unsafe {
        let (head, tail) = (from.cast::<T>().read_unaligned(), from.add(last).cast::<T>().read_unaligned());
        to.cast::<T>().write_unaligned(head);
        to.add(last).cast::<T>().write_unaligned(tail);
    }
}

/// Copies up to [`STEP`] bytes.
///
/// # Safety
/// As [`copy_overlapping`].
#[inline]
unsafe fn copy_short(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise, and the lengths that the arms say.
    unsafe {
        match len {
            0 => {}
            1 => to.write(from.read()),
            2..4 => copy_ends::<u16>(to, from, len),
            4..8 => copy_ends::<u32>(to, from, len),
            8..16 => copy_ends::<u64>(to, from, len),
            16..=32 => copy_ends::<Vector>(to, from, len),
            _ => copy_vectors(to, from, len),
        }
    }
}

/// Copies 32 to 64 bytes.
///
/// # Safety
/// As [`copy_overlapping`].
#[inline]
unsafe fn copy_vectors(to: *mut u8, from: *const u8, len: usize) {
    let last = len - 2 * VECTOR;
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b] = [0, VECTOR].map(|at| _mm_loadu_si128(from.add(at).cast()));
        let [c, d] = [0, VECTOR].map(|at| _mm_loadu_si128(from.add(last + at).cast()));
        _mm_storeu_si128(to.cast(), a);
        _mm_storeu_si128(to.add(VECTOR).cast(), b);
        _mm_storeu_si128(to.add(last).cast(), c);
        _mm_storeu_si128(to.add(last + VECTOR).cast(), d);
    }
}

/// Copies `len` bytes, rounded up to whole steps, from the first to the last. Each byte is read once.
///
/// # Safety
/// As [`copy_overlapping`] for that many bytes, and no step writes what a later one reads.
#[inline]
unsafe fn copy_steps(to: *mut u8, from: *const u8, len: usize) {
    if len == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "2:",
            "movups {a}, [{from}]",
            "movups {b}, [{from} + 16]",
            "movups {c}, [{from} + 32]",
            "movups {d}, [{from} + 48]",
            "add {from}, 64",
            "movups [{to}], {a}",
            "movups [{to} + 16], {b}",
            "movups [{to} + 32], {c}",
            "movups [{to} + 48], {d}",
            "add {to}, 64",
            "cmp {to}, {end}",
            "jb 2b",
            from = inout(reg) from => _, to = inout(reg) to => _, end = in(reg) to.wrapping_add(len),
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            options(nostack)
        );
    }
}

/// Copies from the first byte to the last: `to` may overlap `from` if it lies before it.
///
/// # Safety
/// As [`copy_overlapping`], with that.
#[inline]
unsafe fn copy_up(to: *mut u8, from: *const u8, len: usize) {
    if len <= STEP {
        // SAFETY: the caller's promise.
        return unsafe { copy_short(to, from, len) };
    }
    let last = len - STEP;
    // SAFETY: the caller's promise. The last 64 bytes are read before a step can write to them; each step reads its 64 before it
    // writes as many that lie no higher, and there is one as long as it begins before `last`.
    unsafe {
        let tail: [Vector; 4] = from.add(last).cast::<[Vector; 4]>().read_unaligned();
        copy_steps(to, from, last);
        to.add(last).cast::<[Vector; 4]>().write_unaligned(tail);
    }
}

/// Copies from the last byte to the first: `to` may overlap `from` if it lies behind it.
///
/// # Safety
/// As [`copy_overlapping`], with that.
#[inline]
unsafe fn copy_down(to: *mut u8, from: *const u8, len: usize) {
    if len <= STEP {
        // SAFETY: the caller's promise.
        return unsafe { copy_short(to, from, len) };
    }
    // SAFETY: as in `copy_up`, the other way round.
    unsafe {
        let head: [Vector; 4] = from.cast::<[Vector; 4]>().read_unaligned();
        asm!(
            "2:",
            "movups {a}, [{from} - 16]",
            "movups {b}, [{from} - 32]",
            "movups {c}, [{from} - 48]",
            "movups {d}, [{from} - 64]",
            "sub {from}, 64",
            "movups [{to} - 16], {a}",
            "movups [{to} - 32], {b}",
            "movups [{to} - 48], {c}",
            "movups [{to} - 64], {d}",
            "sub {to}, 64",
            "cmp {to}, {end}",
            "ja 2b",
            from = inout(reg) from.add(len) => _, to = inout(reg) to.add(len) => _, end = in(reg) to.add(STEP),
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            options(nostack)
        );
        to.cast::<[Vector; 4]>().write_unaligned(head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: usize = 5000;

    fn bytes(seed: u8) -> Vec<u8> {
        (0..ROOM).map(|at| (at * 7 + at / 251) as u8 ^ seed).collect()
    }

    /// Every length up to a few steps at every alignment, then some long ones.
    fn ranges() -> impl Iterator<Item = (usize, usize, usize)> {
        let short = (0..300).flat_map(|len| (0..18).map(move |at| (len, at, 17 - at)));
        let long = [511, 1024, 2047, 2048, 2049, 4096].into_iter().map(|len| (len, 64, 37));
        short.chain(long)
    }

    #[test]
    fn copies_are_exact_and_write_nothing_else() {
        for (len, from, to) in ranges() {
            let (source, mut target) = (bytes(1), bytes(2));
            let mut expected = target.clone();
            expected[to..to + len].copy_from_slice(&source[from..from + len]);
            // SAFETY: inside both.
            unsafe { copy(target.as_mut_ptr().add(to), source.as_ptr().add(from), len) };
            assert!(target == expected, "{len} bytes from {from} to {to}");
        }
    }

    #[test]
    fn fills_are_exact_and_write_nothing_else() {
        for (len, at, _) in ranges() {
            let mut target = bytes(3);
            let mut expected = target.clone();
            expected[at..at + len].fill(0xa5);
            // SAFETY: inside it.
            unsafe { fill(target.as_mut_ptr().add(at), 0xa5, len) };
            assert!(target == expected, "{len} bytes at {at}");
        }
    }

    #[test]
    fn words_hold_the_bytes_in_order() {
        for count in (0..40).chain([500]) {
            let source = bytes(5);
            let words: Vec<AtomicU64> = (0..count + 1).map(|_| AtomicU64::new(7)).collect();
            store_words(&words[..count], &source[3..]);
            assert_eq!(words[count].load(Ordering::Relaxed), 7, "{count} words");
            let mut back = vec![9; count * 8 + 5];
            load_words(&mut back, &words[..count]);
            assert!(back[..count * 8] == source[3..3 + count * 8], "{count} words");
            assert_eq!(back[count * 8..], [9; 5]);
            // Fewer bytes than words.
            let mut some = vec![9; count * 8];
            load_words(&mut some[..count * 8 / 2], &words);
            assert!(some[..count * 8 / 2 / 8 * 8] == source[3..3 + count * 8 / 2 / 8 * 8]);
        }
    }

    proptest! {
        #[test]
        fn overlapping_copies_are_as_if_by_way_of_another_buffer(
            from in 0usize..600, to in 0usize..600, len in 0usize..4000,
        ) {
            let mut moved = bytes(4);
            let mut expected = moved.clone();
            expected.copy_within(from..from + len, to);
            let start = moved.as_mut_ptr();
            // SAFETY: inside it.
            unsafe { copy_overlapping(start.add(to), start.add(from), len) };
            prop_assert!(moved == expected);
        }
    }
}

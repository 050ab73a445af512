//! Checked access to the program's linear memory.
//!
//! Every pointer and length that the program passes goes through here. Nothing needs to be aligned; whatever
//! does not lie wholly inside the memory is `EFAULT`. Records are copied out before they are used.

use alloc::vec::Vec;

use crate::types::Errno;

/// The most buffers one vectored call may name (`IOV_MAX` of wasi-libc).
pub(crate) const IOV_MAX: u32 = 1024;
/// The most bytes one call moves, Linux' `MAX_RW_COUNT`: a signed 32-bit length can say it.
pub(crate) const MAX_TRANSFER: u32 = 0x7fff_f000;
/// Vectors up to this length need no allocation.
const INLINE: usize = 8;

/// The bytes at `ptr..ptr + len`.
pub(crate) fn bytes(memory: &[u8], ptr: u32, len: u32) -> Result<&[u8], Errno> {
    let start = usize::try_from(ptr).map_err(|_| Errno::Fault)?;
    let len = usize::try_from(len).map_err(|_| Errno::Fault)?;
    memory.get(start..start.checked_add(len).ok_or(Errno::Fault)?).ok_or(Errno::Fault)
}

/// The bytes at `ptr..ptr + len`, to be written.
pub(crate) fn bytes_mut(memory: &mut [u8], ptr: u32, len: u32) -> Result<&mut [u8], Errno> {
    let start = usize::try_from(ptr).map_err(|_| Errno::Fault)?;
    let len = usize::try_from(len).map_err(|_| Errno::Fault)?;
    memory.get_mut(start..start.checked_add(len).ok_or(Errno::Fault)?).ok_or(Errno::Fault)
}

/// Checks that a result of `len` bytes fits at `ptr`, before anything with an effect is done.
pub(crate) fn check(memory: &[u8], ptr: u32, len: u32) -> Result<(), Errno> {
    bytes(memory, ptr, len).map(|_| ())
}

/// Copies `data` to `ptr`.
pub(crate) fn put(memory: &mut [u8], ptr: u32, data: &[u8]) -> Result<(), Errno> {
    let len = u32::try_from(data.len()).map_err(|_| Errno::Fault)?;
    bytes_mut(memory, ptr, len)?.copy_from_slice(data);
    Ok(())
}

/// Writes a little-endian u32.
pub(crate) fn put_u32(memory: &mut [u8], ptr: u32, value: u32) -> Result<(), Errno> {
    put(memory, ptr, &value.to_le_bytes())
}

/// Writes a little-endian u64.
pub(crate) fn put_u64(memory: &mut [u8], ptr: u32, value: u64) -> Result<(), Errno> {
    put(memory, ptr, &value.to_le_bytes())
}

/// A string argument.
///
/// # Errors
/// `EFAULT` outside the memory, `EILSEQ` not UTF-8.
pub(crate) fn string(memory: &[u8], ptr: u32, len: u32) -> Result<&str, Errno> {
    core::str::from_utf8(bytes(memory, ptr, len)?).map_err(|_| Errno::Ilseq)
}

/// A copied and checked vector of buffers: reading into one buffer can't change where the next one is.
pub(crate) struct IoVecs {
    inline: [(u32, u32); INLINE],
    heap: Vec<(u32, u32)>,
    len: usize,
}

impl IoVecs {
    /// Copies `count` `(pointer, length)` pairs from `ptr` and checks that all of them lie in the memory. Their
    /// sum is cut to [`MAX_TRANSFER`].
    ///
    /// # Errors
    /// `EINVAL` for more than [`IOV_MAX`], `EFAULT`, `ENOMEM`.
    pub fn load(memory: &[u8], ptr: u32, count: u32) -> Result<Self, Errno> {
        if count > IOV_MAX {
            return Err(Errno::Inval);
        }
        let table = bytes(memory, ptr, count * 8)?;
        let mut out = Self { inline: [(0, 0); INLINE], heap: Vec::new(), len: 0 };
        let count = count as usize;
        if count > INLINE {
            out.heap.try_reserve_exact(count).map_err(|_| Errno::Nomem)?;
        }
        let mut left = MAX_TRANSFER;
        for pair in table.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *pair;
            let (ptr, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
            check(memory, ptr, len)?;
            let len = len.min(left);
            left -= len;
            if count > INLINE {
                out.heap.push((ptr, len));
            } else if let Some(slot) = out.inline.get_mut(out.len) {
                *slot = (ptr, len);
            }
            out.len += 1;
        }
        Ok(out)
    }

    /// The buffers, as (pointer, length in bytes).
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let inline = if self.heap.is_empty() { self.inline.get(..self.len) } else { None };
        inline.unwrap_or(&self.heap).iter().copied()
    }
}

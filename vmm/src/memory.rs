//! The memory of a CVM as the host sees it.
//!
//! [`LaunchMemory`] can be written; [`seal`](LaunchMemory::seal) turns it into [`PrivateMemory`], which has no way to read
//! or write a byte. That the host does not look into a running CVM is a property of these types, also on machines
//! whose processor would not prevent it. [`SharedMemory`] is the window both sides use.
#![allow(unsafe_code)]

use crate::launch::Run;
use memmap2::{Advice, MmapMut, MmapOptions};
use nacre_abi::LARGE_PAGE_BYTES;
use nacre_abi::layout::RAM_GPA;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU64;

/// An anonymous mapping that starts at a multiple of a large page.
struct Aligned {
    map: MmapMut,
    lead: usize,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: u64) -> io::Result<Aligned> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let map = MmapOptions::new().len(bytes + LARGE_PAGE_BYTES as usize).no_reserve_swap().map_anon()?;
        let lead = map.as_ptr().align_offset(LARGE_PAGE_BYTES as usize);
        // Without huge pages (a kernel built so) everything works, slower.
        let _ = map.advise_range(Advice::HugePage, lead, bytes);
        Ok(Aligned { map, lead, bytes })
    }

    fn address(&self) -> u64 {
        self.map.as_ptr() as u64 + self.lead as u64
    }

    /// All of it in steps, as offsets into the mapping and lengths: for what takes long and makes every thread of this process wait that maps
    /// memory, and all that touch new memory after it.
    fn steps(&self) -> impl Iterator<Item = (usize, usize)> {
        let step = LARGE_PAGE_BYTES as usize;
        (0..self.bytes).step_by(step).map(move |at| (self.lead + at, step.min(self.bytes - at)))
    }
}

/// Private memory before launch.
pub struct LaunchMemory(Aligned);

impl LaunchMemory {
    /// Zeroed memory, committed when it is touched.
    ///
    /// # Errors
    /// The kernel's, if it has no address space or memory left.
    pub fn new(bytes: u64) -> io::Result<LaunchMemory> {
        Aligned::new(bytes).map(LaunchMemory)
    }

    /// Puts a run of a launch in its place.
    ///
    /// # Panics
    /// If it lies outside: launches are made for their memory.
    pub fn write(&mut self, run: &Run<'_>) {
        let start = self.0.lead + (run.address - RAM_GPA) as usize;
        assert!(start + run.content.len() <= self.0.lead + self.0.bytes, "a run outside of the memory");
        self.0.map[start..start + run.content.len()].copy_from_slice(&run.content);
    }

    /// Ends the host's access.
    pub fn seal(self) -> PrivateMemory {
        PrivateMemory(self.0)
    }
}

/// Private memory of a launched CVM. Its bytes can't be reached from here.
pub struct PrivateMemory(Aligned);

impl PrivateMemory {
    /// Where it is mapped, for the kernel's memory slot only.
    pub(crate) fn slot_address(&self) -> u64 {
        self.0.address()
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes as u64
    }

    /// Gives `bytes` bytes at the guest-physical address `start` back to the kernel, on the guest's request. The content
    /// is lost.
    ///
    /// # Errors
    /// If the range is not whole large pages of this memory.
    pub fn release(&self, start: u64, bytes: u64) -> io::Result<()> {
        let offset = start
            .checked_sub(RAM_GPA)
            .filter(|offset| offset.checked_add(bytes).is_some_and(|end| end <= self.bytes()));
        let valid = |value: u64| value.is_multiple_of(LARGE_PAGE_BYTES);
        let Some(offset) = offset.filter(|offset| valid(*offset) && valid(bytes)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not large pages of this CVM"));
        };
        // SAFETY: the range is inside the mapping, and no reference to its bytes exists: nobody but the guest uses them.
        unsafe {
            self.0.map.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                self.0.lead + offset as usize,
                bytes as usize,
            )
        }
    }

    /// Makes the kernel commit all of it now, without changing a byte.
    ///
    /// # Errors
    /// The kernel's, if it has not so much; some of it may be committed then.
    pub fn commit(&self) -> io::Result<()> {
        self.0.steps().try_for_each(|(at, bytes)| self.0.map.advise_range(Advice::PopulateWrite, at, bytes))
    }

    /// Bytes that the kernel has committed for it, from `/proc/self/smaps`; `None` if that can't be read.
    pub fn resident_bytes(&self) -> Option<u64> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        resident_in(&smaps, self.0.map.as_ptr() as u64, self.0.map.len() as u64)
    }
}

impl Drop for PrivateMemory {
    fn drop(&mut self) {
        for (at, bytes) in self.0.steps() {
            // SAFETY: the range is inside the mapping, and nobody uses its bytes any more. Should it fail, unmapping does it all.
            let _ =
                unsafe { self.0.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, at, bytes) };
        }
    }
}

/// Sum of the `Rss` of all mappings inside `start..start + bytes`.
fn resident_in(smaps: &str, start: u64, bytes: u64) -> Option<u64> {
    let (mut inside, mut total_kib) = (false, 0);
    for line in smaps.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        if let Some((low, high)) = range
            && let (Ok(low), Ok(high)) = (u64::from_str_radix(low, 16), u64::from_str_radix(high, 16))
        {
            inside = low < start + bytes && high > start;
        } else if inside && let Some(rss) = line.strip_prefix("Rss:") {
            total_kib += rss.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?;
        }
    }
    Some(total_kib * 1024)
}

/// The shared window.
pub struct SharedMemory(Aligned);

impl SharedMemory {
    /// A zeroed window.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(bytes: u64) -> io::Result<SharedMemory> {
        Aligned::new(bytes).map(SharedMemory)
    }

    /// Where it is mapped, for the kernel's memory slot.
    pub(crate) fn slot_address(&self) -> u64 {
        self.0.address()
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes as u64
    }

    /// Its words. The guest changes them at any time.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long as this value, aligned, initialised (zero pages), and only ever accessed through
        // atomics, here and in the guest.
        unsafe { std::slice::from_raw_parts(self.0.address() as *const AtomicU64, self.0.bytes / 8) }
    }
}

/// The parts of `data` in two ranges of bytes, for the kernel.
fn parts(data: &[AtomicU64], ranges: &[Range<usize>; 2]) -> [libc::iovec; 2] {
    ranges.each_ref().map(|range| {
        assert!(range.start <= range.end && range.end <= data.len() * 8, "a range outside of the window");
        libc::iovec {
            iov_base: (data.as_ptr() as usize + range.start) as *mut libc::c_void,
            iov_len: range.len(),
        }
    })
}

fn retried(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Writes bytes of the window to a descriptor; returns how many.
///
/// # Errors
/// The kernel's.
pub fn write_from(fd: RawFd, data: &[AtomicU64], ranges: &[Range<usize>; 2]) -> io::Result<usize> {
    let parts = parts(data, ranges);
    // SAFETY: the kernel reads memory of the window, which is there as long as `data`, whatever the guest does to it meanwhile.
    retried(|| unsafe { libc::writev(fd, parts.as_ptr(), 2) })
}

/// Reads bytes from a descriptor into the window; returns how many, 0 at its end.
///
/// # Errors
/// The kernel's.
pub fn read_into(fd: RawFd, data: &[AtomicU64], ranges: &[Range<usize>; 2]) -> io::Result<usize> {
    let parts = parts(data, ranges);
    // SAFETY: the kernel writes to memory of the window, which is atomics: anybody may change it at any time.
    retried(|| unsafe { libc::readv(fd, parts.as_ptr(), 2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_released_in_large_pages_only() {
        let mut memory = LaunchMemory::new(8 << 20).unwrap();
        memory.write(&Run { address: RAM_GPA + (4 << 20), content: vec![7; 1 << 20].into(), bytes: 1 << 20 });
        let memory = memory.seal();
        assert_eq!(memory.slot_address() % LARGE_PAGE_BYTES, 0);
        let before = memory.resident_bytes().unwrap();
        assert!(before >= 1 << 20);
        for (start, bytes) in [
            (0, 1 << 21),
            (RAM_GPA, 4096),
            (RAM_GPA, 1 << 40),
            (u64::MAX, 1 << 21),
            (RAM_GPA + (8 << 20), 1 << 21),
        ] {
            assert!(memory.release(start, bytes).is_err(), "{start:#x} {bytes:#x}");
        }
        memory.release(RAM_GPA + (4 << 20), 2 << 20).unwrap();
        assert!(memory.resident_bytes().unwrap() < before);
    }

    #[test]
    fn resident_memory_is_summed_over_the_parts_of_a_mapping() {
        let smaps = "1000-3000 rw-p 0 00:00 0\nSize: 8 kB\nRss:    4 kB\n3000-5000 rw-p 0 00:00 0\nRss:    8 kB\n9000-a000 r--p 0 00:00 0\nRss:  4 kB\n";
        assert_eq!(resident_in(smaps, 0x1000, 0x4000), Some(12 << 10));
    }
}

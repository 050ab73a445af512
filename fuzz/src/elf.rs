//! Small ELF executables from parameters (System V gABI, chapters 4 and 5), mostly like a guest image.

use arbitrary::Arbitrary;

const EHDR_BYTES: usize = 64;
const PHDR_BYTES: usize = 56;
/// Where guest images are linked; offsets below are added to it.
const BASE: u64 = 0x40_0000;
const LARGE: u64 = 2 << 20;

/// A segment of type `PT_LOAD`.
#[derive(Arbitrary, Debug)]
pub struct Segment {
    /// Large pages between the segment before and this one.
    gap: u8,
    /// Offset in its large page.
    offset: u16,
    /// Bytes in the file.
    content: u16,
    /// Bytes in memory beyond those, in units of 64.
    zeros: u16,
    flags: Flags,
}

#[derive(Arbitrary, Debug)]
enum Flags {
    Read,
    ReadWrite,
    ReadExecute,
    Any(u32),
}

/// What the file says.
#[derive(Arbitrary, Debug)]
pub struct Parameters {
    segments: Vec<Segment>,
    /// Number of the segment that has the entry point, and offset in it.
    entry: (u8, u16),
}

impl Parameters {
    /// The file.
    #[must_use]
    pub fn file(&self) -> Vec<u8> {
        let segments = &self.segments[..self.segments.len().min(16)];
        let mut headers = Vec::new();
        let mut content = Vec::new();
        let first = EHDR_BYTES + segments.len() * PHDR_BYTES;
        let (mut page, mut entry) = (BASE, BASE);
        for (number, segment) in segments.iter().enumerate() {
            page += u64::from(segment.gap % 8) * LARGE;
            let (address, bytes) = (page + u64::from(segment.offset), u64::from(segment.content));
            let memory = bytes + u64::from(segment.zeros) * 64;
            if number == usize::from(self.entry.0) % segments.len() {
                entry = address + u64::from(self.entry.1);
            }
            let flags: u32 = match segment.flags {
                Flags::Read => 4,
                Flags::ReadWrite => 6,
                Flags::ReadExecute => 5,
                Flags::Any(flags) => flags,
            };
            headers.extend(1_u32.to_le_bytes());
            headers.extend(flags.to_le_bytes());
            for word in [(first + content.len()) as u64, address, address, bytes, memory, 4096] {
                headers.extend(word.to_le_bytes());
            }
            content.extend((0..segment.content).map(|at| (at as u8).wrapping_add(number as u8) | 1));
            page = (address + memory).next_multiple_of(LARGE);
        }
        let mut file = header(entry, segments.len() as u16);
        file.extend(headers);
        file.extend(content);
        file
    }
}

/// The file header of a 64-bit little-endian x86-64 executable, program headers behind it.
fn header(entry: u64, segments: u16) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [entry, EHDR_BYTES as u64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [EHDR_BYTES as u16, PHDR_BYTES as u16, segments, 64, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

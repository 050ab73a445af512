//! Sizes of CVMs and of things, for messages.

/// Smallest memory of a CVM, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Largest memory of a CVM, in bytes.
pub const MAX_MEMORY_BYTES: u64 = 64 << 30;

/// Binary units and the power of two each stands for.
pub const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// A size for people: the largest binary unit that divides it, or tenths of one.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} bytes");
    };
    let whole = bytes >> shift;
    let tenths = (u128::from(bytes - (whole << shift)) * 10) >> shift;
    if bytes.is_multiple_of(1 << shift) {
        format!("{whole}{letter}iB")
    } else {
        format!("{whole}.{tenths}{letter}iB")
    }
}

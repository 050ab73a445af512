//! Size classes of small blocks, and which class a layout has.

/// Bytes of a slab: all its blocks are of one class.
pub const SLAB_BYTES: u64 = 64 << 10;

/// Size classes.
pub const CLASSES: usize = 38;

/// Block size of each class in bytes: steps of a quarter of a power of two, then what divides a slab without much waste.
/// Multiples of 16, from 1 KiB on of 256.
pub const SIZES: [u32; CLASSES] = [
    16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280,
    1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 10752, 13056, 16384, 21760, 32768,
    65536,
];

/// Largest block of a class.
pub const SMALL_MAX: u64 = SIZES[CLASSES - 1] as u64;

/// Blocks in a slab of a class.
pub const fn blocks(class: usize) -> u64 {
    SLAB_BYTES / SIZES[class] as u64
}

/// Words of a slab's bitmap.
pub const fn words(class: usize) -> usize {
    blocks(class).div_ceil(64) as usize
}

/// The bits of one word of a slab's bitmap that stand for blocks.
pub const fn word_mask(class: usize, word: usize) -> u64 {
    let rest = blocks(class) - word as u64 * 64;
    if rest >= 64 { u64::MAX } else { (1 << rest) - 1 }
}

/// 2^24 / (size / 16), rounded up: multiplication instead of a division.
const RECIPROCALS: [u32; CLASSES] = {
    let mut table = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        table[class] = (1u32 << 24).div_ceil(SIZES[class] / 16);
        class += 1;
    }
    table
};

/// The number of the block that starts `offset` bytes into a slab of a class.
pub fn block_at(class: usize, offset: u64) -> u64 {
    // Exact: the offset is a multiple of the size, and the rounding adds less than 2^12 / 2^24.
    (offset / 16 * u64::from(RECIPROCALS[class])) >> 24
}

/// Smallest class for sizes up to 1 KiB, by 16 bytes, and up to 64 KiB, by 256.
const FINE: [u8; 65] = table(16);
const COARSE: [u8; 257] = table(256);

const fn table<const N: usize>(unit: u32) -> [u8; N] {
    let mut table = [0; N];
    let mut index = 0;
    while index < N {
        let mut class = 0;
        while SIZES[class] < index as u32 * unit {
            class += 1;
        }
        table[index] = class as u8;
        index += 1;
    }
    table
}

/// The class for blocks of `bytes` bytes at a multiple of `align` (a power of two); `None` if they are too large.
pub fn class_for(bytes: u64, align: u64) -> Option<usize> {
    if align > 16 {
        return class_for_aligned(bytes, align);
    }
    if bytes <= 1024 {
        Some(FINE[bytes.div_ceil(16) as usize] as usize)
    } else if bytes <= SMALL_MAX {
        Some(COARSE[bytes.div_ceil(256) as usize] as usize)
    } else {
        None
    }
}

/// Slabs begin at multiples of their length, so a block is aligned as its size is.
#[cold]
fn class_for_aligned(bytes: u64, align: u64) -> Option<usize> {
    (0..CLASSES).find(|class| {
        let size = u64::from(SIZES[*class]);
        size >= bytes && size.is_multiple_of(align)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_ordered_aligned_and_fill_a_slab() {
        for class in 0..CLASSES {
            let size = SIZES[class];
            assert!(class == 0 || SIZES[class - 1] < size);
            assert_eq!(size % 16, 0);
            assert!(size <= 1024 || size.is_multiple_of(256), "{size} is not in the coarse table exactly");
            assert!(
                SLAB_BYTES - blocks(class) * u64::from(size) <= SLAB_BYTES / 16,
                "{size} wastes much of a slab"
            );
            assert!(words(class) <= 64);
        }
    }

    #[test]
    fn every_layout_gets_the_smallest_class_that_holds_it() {
        for bytes in 0..=SMALL_MAX {
            let class = class_for(bytes, 1).unwrap();
            assert!(u64::from(SIZES[class]) >= bytes);
            assert!(class == 0 || u64::from(SIZES[class - 1]) < bytes, "{bytes} bytes in class {class}");
        }
        assert_eq!(class_for(SMALL_MAX + 1, 1), None);
    }

    #[test]
    fn aligned_layouts_get_aligned_blocks() {
        for align in (5..=16).map(|shift| 1u64 << shift) {
            for bytes in [1, 17, 100, 4096, 5000, 65536] {
                let size = u64::from(SIZES[class_for(bytes, align).unwrap()]);
                assert!(size >= bytes && size.is_multiple_of(align));
            }
        }
        assert_eq!(class_for(16, 1 << 17), None);
    }

    #[test]
    fn block_numbers_are_exact() {
        for (class, size) in SIZES.iter().enumerate() {
            for block in 0..blocks(class) {
                assert_eq!(block_at(class, block * u64::from(*size)), block);
            }
        }
    }
}

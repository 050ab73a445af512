//! The boot information page: launch parameters, written into private memory before launch and measured with it.
//!
//! What the host may choose freely at run time (clock rate, time of day) is *not* here but in the control page of the
//! shared [`window`](crate::window), where it is a hint.

use crate::layout::{LaunchParams, Layout, LayoutError};

/// First word of the page: "NACREBI" and a version byte.
pub const MAGIC: u64 = u64::from_le_bytes(*b"NACREBI\x01");

/// Bytes of the encoded form, at the start of the page.
pub const ENCODED_BYTES: usize = 48;

/// The decoded page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// The layout, recomputed from the parameters in the page.
    pub layout: Layout,
    /// Bytes of the page-table pool that the launcher used for the first page tables, from the pool's start.
    pub tables_used_bytes: u64,
}

/// Why a boot information page is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// The magic is wrong: the page is not one of this version.
    Magic,
    /// The parameters are impossible.
    Layout(LayoutError),
    /// More page tables are in use than there are.
    Tables,
}

impl BootInfo {
    /// The bytes to put at the start of the page: little-endian words magic, ABI version and vCPUs, memory, image,
    /// tables used, zero.
    pub fn encode(&self) -> [u8; ENCODED_BYTES] {
        let LaunchParams { vcpus, memory_bytes, image_bytes } = self.layout.params;
        let words = [
            MAGIC,
            crate::ABI_VERSION as u64 | (vcpus as u64) << 32,
            memory_bytes,
            image_bytes,
            self.tables_used_bytes,
            0,
        ];
        let mut bytes = [0; ENCODED_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`BootInfoError`] when the bytes do not describe a possible launch of this version.
    pub fn decode(bytes: &[u8; ENCODED_BYTES]) -> Result<BootInfo, BootInfoError> {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            u64::from_le_bytes(word)
        };
        if word(0) != MAGIC || word(1) as u32 != crate::ABI_VERSION {
            return Err(BootInfoError::Magic);
        }
        let params =
            LaunchParams { vcpus: (word(1) >> 32) as u32, memory_bytes: word(2), image_bytes: word(3) };
        let layout = Layout::new(params).map_err(BootInfoError::Layout)?;
        let tables_used_bytes = word(4);
        if tables_used_bytes > layout.table_pool_bytes || tables_used_bytes % crate::PAGE_BYTES != 0 {
            return Err(BootInfoError::Tables);
        }
        Ok(BootInfo { layout, tables_used_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip() {
        let params = LaunchParams { vcpus: 5, memory_bytes: 1 << 30, image_bytes: 8 << 20 };
        let info = BootInfo { layout: Layout::new(params).unwrap(), tables_used_bytes: 40960 };
        assert_eq!(BootInfo::decode(&info.encode()), Ok(info));
    }

    #[test]
    fn refuses_what_no_launcher_writes() {
        let params = LaunchParams { vcpus: 5, memory_bytes: 1 << 30, image_bytes: 8 << 20 };
        let good = BootInfo { layout: Layout::new(params).unwrap(), tables_used_bytes: 40960 }.encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            BootInfo::decode(&bytes)
        };
        assert_eq!(with(0, 0), Err(BootInfoError::Magic));
        assert_eq!(with(8, 99), Err(BootInfoError::Magic));
        assert_eq!(with(12, 0), Err(BootInfoError::Layout(LayoutError::Vcpus)));
        assert_eq!(with(32, 1), Err(BootInfoError::Tables));
        assert_eq!(with(39, 1), Err(BootInfoError::Tables));
    }
}

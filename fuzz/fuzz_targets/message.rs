//! Message headers, enumerations and counters, as either side decodes them from the shared window.
//!
//! Input: raw bytes. Checked: no panic; whatever is accepted encodes to the very same bytes, so no two encodings mean the
//! same and nothing the sender said is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_abi::VcpuId;
use nacre_abi::hypercall::{self, ExitReason};
use nacre_abi::message::{ExitKind, GuestStats, HEADER_WORDS, Header, Kind, TreeKind};

fuzz_target!(|data: &[u8]| {
    for chunk in data.as_chunks::<{ HEADER_WORDS * 8 }>().0 {
        let mut words = [0; HEADER_WORDS];
        for (word, bytes) in words.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        if let Some(header) = Header::decode(words) {
            assert_eq!(header.encode(), words);
        }
        let number = words[0] as u32;
        assert!(Kind::from_number(number as u16).is_none_or(|kind| kind as u16 == number as u16));
        assert!(TreeKind::from_number(number).is_none_or(|kind| kind as u32 == number));
        assert!(ExitKind::from_number(number).is_none_or(|kind| kind as u32 == number));
        assert_eq!(ExitReason::from_code(number).code(), number);
        if let Some(vcpu) = VcpuId::new(number) {
            assert_eq!((vcpu.index() as u32, vcpu.bit()), (number, 1 << number));
            assert!((hypercall::WAKE_BASE..=hypercall::LAST_PORT).contains(&hypercall::wake(vcpu)));
        }
    }
    if let Some(bytes) = data.first_chunk() {
        assert_eq!(GuestStats::decode(bytes).encode(), *bytes);
    }
});

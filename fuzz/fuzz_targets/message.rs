//! Message headers, enumerations, counters, and the requests and answers of calls, as either side decodes them from the shared window.
//!
//! Input: raw bytes. Checked: no panic; whatever is accepted encodes to the very same bytes, so no two encodings mean the
//! same and nothing the sender said is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_abi::VcpuId;
use nacre_abi::call::{AnswerHead, HEAD_BYTES, MAX_OUTPUT_BYTES, MAX_REQUEST_BYTES, RequestHead, Texts};
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
    if let Some(head) = RequestHead::decode(data, data.len() as u64) {
        assert!(head.request_bytes() == data.len() as u64 && head.request_bytes() <= MAX_REQUEST_BYTES);
        // The one number that is not taken as it is, but cut.
        assert!(head.max_output_bytes <= MAX_OUTPUT_BYTES);
        let (again, said) = (head.encode(), &data[..HEAD_BYTES]);
        assert!(again[..24] == said[..24] && again[32..] == said[32..]);
        let texts = &data[HEAD_BYTES..HEAD_BYTES + head.texts_bytes as usize];
        let all: usize = Texts::new(texts).map(|text| 4 + text.len()).sum();
        assert!(all <= texts.len());
    }
    if let Some(head) = AnswerHead::decode(data, data.len()) {
        assert_eq!(head.encode()[..], data[..HEAD_BYTES]);
        assert!(head.stdout_bytes.max(head.stderr_bytes) <= MAX_OUTPUT_BYTES);
    }
    if let Some(bytes) = data.first_chunk() {
        assert_eq!(GuestStats::decode(bytes).encode(), *bytes);
    }
});

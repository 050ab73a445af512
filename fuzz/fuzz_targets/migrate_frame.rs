//! Headers and control messages of migrations, as a relay, a source and a destination read them.
//!
//! Input: bytes that a stranger sent. Checked: no panic; what is accepted encodes to the same bytes, and is a frame of a length
//! that its kind can have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_migrate::message::Message;
use nacre_migrate::wire::{CONTROL_BYTES, HEADER_BYTES, Header, Kind, MAX_FRAME_BYTES};

fuzz_target!(|data: &[u8]| {
    if let Some(Ok(header)) = data.first_chunk::<HEADER_BYTES>().map(Header::decode) {
        assert_eq!(header.encode()[..], data[..HEADER_BYTES]);
        assert!(HEADER_BYTES + header.body_bytes <= MAX_FRAME_BYTES);
        let whole = data.len() == HEADER_BYTES + header.body_bytes;
        assert_eq!(Header::split(data).is_ok(), whole);
        if header.kind == Kind::Control && whole {
            let message = data[HEADER_BYTES..].first_chunk::<CONTROL_BYTES>().map(Message::decode);
            if let Some(Ok(message)) = message {
                assert_eq!(message.encode()[..], data[HEADER_BYTES..HEADER_BYTES + CONTROL_BYTES]);
            }
        }
    } else {
        assert!(Header::split(data).is_err());
    }
});

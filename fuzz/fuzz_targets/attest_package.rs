//! Packages, as a hostile node gives them to a guest that has the key: raw, and with headers that fit the body.
//!
//! Checked: no panic; nothing opens that was not sealed; what is sealed opens and any change of a byte does not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_attest::code::SignedCode;
use nacre_attest::package::{self, HEADER_BYTES, Header};

fuzz_target!(|data: &[u8]| {
    let key = [42; 32];
    if let Ok(header) = Header::parse(data) {
        assert_eq!(header.encode(), data[..HEADER_BYTES]);
        assert!(header.body_bytes() >= header.content_bytes);
    }
    // A seed is sealed with `key`.
    assert!(package::open_in_place(&[43; 32], &mut data.to_vec()).is_err());
    let code = SignedCode { compiler: [1; 32], signature: [2; 64], statement: vec![3; data.len() % 300] };
    let sealed = package::seal(&key, [4; 16], &code, data).expect("short");
    let mut opened = sealed.clone();
    let (found, range) = package::open_in_place(&key, &mut opened).expect("just sealed");
    assert!(found == code && opened[range] == *data);
    if let [a, b, flip, ..] = *data {
        let at = usize::from(u16::from_le_bytes([a, b])) % sealed.len();
        let mut changed = sealed.clone();
        changed[at] ^= flip | 1;
        assert!(package::open_in_place(&key, &mut changed.clone()).is_err());
    }
});

//! What hosts say to each other of a tenant that moved: frames of a tunnel, and rosters.
//!
//! Input: bytes that another host sent. Checked: no panic; a frame lies within the bytes; a roster that is accepted means the same when it is encoded and read
//! again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_vmm::tunnel::{Roster, frame};

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Ok(Some((_, length))) = frame::decode(rest) {
        assert!(length > 0 && length <= rest.len());
        rest = &rest[length..];
    }
    if let Ok(roster) = Roster::decode(data) {
        let again = Roster::decode(&roster.encode());
        assert!(again.is_ok_and(|again| again.encode() == roster.encode()));
    }
});

//! The bytes of a whole migration with fixed randomness, frame by frame. If this fails, read the version rule in `src/lib.rs`: a
//! change of bytes is a new version, and gets a file of its own.

mod support;

use nacre_migrate::crypto::X25519Pair as Suite;
use nacre_migrate::wire::Header;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use support::world::undisturbed;

const KNOWN: &str = include_str!("vectors-3.txt");

#[test]
fn the_bytes_are_those_of_version_3() {
    let mut text = String::new();
    for outstanding in [false, true] {
        for frame in undisturbed(outstanding, 1).sent {
            let (header, _) = Header::split(&frame).expect("it was sent");
            let hash =
                Sha256::digest(&frame)[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            writeln!(text, "{} {} {hash}", header.kind.name(), frame.len()).expect("it is a string");
        }
        writeln!(text).expect("it is a string");
    }
    assert!(text == KNOWN, "the bytes changed; they are now:\n{text}");
}

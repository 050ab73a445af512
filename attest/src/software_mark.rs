//! How everything that a software platform makes is marked, so that nobody takes it for genuine evidence: names and a
//! critical extension in each of its certificates (which other verifiers refuse because they don't know it), and the chip's
//! identity in each of its reports.

use der::asn1::ObjectIdentifier;
use sha2::{Digest, Sha256};

/// Common name of the intermediate authority; the root's begins with it.
pub const ISSUER: &str = "NACRE SOFTWARE PLATFORM - NOT CONFIDENTIAL";
/// Common name of the root.
pub const ROOT: &str = "NACRE SOFTWARE PLATFORM - NOT CONFIDENTIAL - ROOT";
/// What the chip's identity in a report begins with; 24 bytes of a hash of the node's name follow.
pub const CHIP_ID_PREFIX: &[u8; 40] = b"NACRE SOFTWARE PLATFORM NOT CONFIDENTIAL";
/// The critical extension. Its arc is the one for examples (RFC 5612): no vendor's processor has it.
pub const OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.32473.4711.1");
/// The extension's value: a UTF8String "not confidential".
pub const VALUE: &[u8] = b"\x0c\x10not confidential";

/// The chip identity of a node's software platform.
pub fn chip_id(node: &str) -> [u8; 64] {
    let hash: [u8; 32] = Sha256::digest(node.as_bytes()).into();
    let mut id = [0; 64];
    id[..40].copy_from_slice(CHIP_ID_PREFIX);
    id[40..].copy_from_slice(&hash[..24]);
    id
}

/// Whether a report's chip identity is a software platform's.
pub fn is_marked(chip_id: &[u8; 64]) -> bool {
    chip_id.starts_with(CHIP_ID_PREFIX)
}

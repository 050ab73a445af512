//! Signed statements about code, as a hostile node gives them to a guest.
//!
//! Checked: no panic; what is accepted encodes to the very same bytes; no compiler that is not listed is believed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_attest::code::{CodeStatement, SignedCode};
use nacre_attest::ed25519_dalek::SigningKey;
use nacre_attest::manifest::{Manifest, Mode};

fuzz_target!(|data: &[u8]| {
    if let Ok(statement) = CodeStatement::decode(data) {
        assert_eq!(statement.encode(), data);
    }
    if let Ok(signed) = SignedCode::decode(data) {
        assert_eq!(signed.encode(), data);
        let owner = SigningKey::from_bytes(&[77; 32]).verifying_key();
        let mut manifest = Manifest {
            version: 1,
            owner,
            compilers: vec![owner],
            brokers: Vec::new(),
            mode: Mode::Sealed,
            name: "fuzz".to_string(),
            migration: None,
        };
        assert!(signed.verify(&manifest).is_err());
        manifest.compilers.clear();
        assert!(signed.verify(&manifest).is_err());
    }
});

//! Tenants' manifests, as a hostile host gives them to a guest and a hostile node to a client.
//!
//! Checked: no panic; what is accepted encodes to the very same bytes; nothing is signed that was not; a file written from
//! it is read back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_attest::manifest::{Manifest, SignedManifest};

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::decode(data) {
        assert_eq!(manifest.encode(), data);
        let without = Manifest { migration: None, ..manifest };
        assert_eq!(Manifest::from_toml(&without.to_toml()), Ok(without));
        assert!(SignedManifest { manifest: data.to_vec(), signature: [1; 64] }.verify().is_err());
    }
    if let Ok(signed) = SignedManifest::decode(data) {
        assert_eq!(signed.encode(), data);
        if let Ok(manifest) = signed.verify() {
            assert_eq!(manifest.hash(), signed.hash());
        }
    }
});

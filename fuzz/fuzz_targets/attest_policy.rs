//! Policies: files in TOML, which people write and pass on, and the binary form, which a tenant's manifest carries.
//!
//! Checked: no panic; what is accepted encodes to the very same bytes; a file means what its binary form means; errors are
//! one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_attest::manifest::Manifest;
use nacre_attest::policy::Policy;

fuzz_target!(|data: &[u8]| {
    if let Ok(policy) = Policy::decode(data) {
        assert_eq!(policy.encode(), data);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Policy::from_toml(text) {
        Ok(policy) => assert_eq!(Policy::decode(&policy.encode()), Ok(policy)),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    if let Ok(manifest) = Manifest::from_toml(text) {
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }
});

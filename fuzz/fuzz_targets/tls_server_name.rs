//! The server name by which a client asks for evidence.
//!
//! Input: any text. Checked: no panic; a name that asks for a nonce is that nonce's name but for the case of letters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_tls::Nonce;

fuzz_target!(|name: &str| {
    if let Some(nonce) = Nonce::of_server_name(name) {
        assert_ne!(nonce, Nonce::ZERO);
        assert_eq!(nonce.server_name(), name.to_ascii_lowercase());
    }
});

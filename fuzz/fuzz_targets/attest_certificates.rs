//! Certificates and chains, as a hostile host or peer gives them: raw DER as leaf, below AMD's authority, and as authority
//! below AMD's root; and cut into a chain of its own.
//!
//! Checked: no panic; nothing leads to AMD's roots but the two genuine VCEKs among the seeds; names can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_attest::certificate::Certificate;
use nacre_attest::chain::{BUILT_IN, Chain};
use nacre_attest::tcb::Platform;

const GENUINE: &[u8] = include_bytes!("../../attest/tests/vectors/vcek_milan.der");
const GENUINE_TURIN: &[u8] = include_bytes!("../../attest/tests/vectors/vcek_turin.der");

fuzz_target!(|data: &[u8]| {
    if let Ok(certificate) = Certificate::parse(data) {
        assert_eq!(certificate.der(), data);
        for name in [&certificate.subject_name, &certificate.issuer_name] {
            assert!(!name.is_empty() && !name.chars().any(char::is_control));
        }
    }
    judge(&[data]);
    for built_in in BUILT_IN {
        judge(&[data, built_in.ask, built_in.ark]);
        judge(&[GENUINE, data, built_in.ark]);
        judge(&[GENUINE, built_in.ask, data]);
    }
    let (first, rest) = data.split_at(data.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    judge(&[first, second, third]);
});

fn judge(chain: &[&[u8]]) {
    if let Ok(found) = Chain::verify(chain) {
        let platform = found.platform;
        let genuine = match platform {
            Platform::Software => true,
            Platform::Milan => chain[0] == GENUINE,
            Platform::Turin => chain[0] == GENUINE_TURIN,
            Platform::Genoa => false,
        };
        assert!(genuine, "{platform}");
    }
}

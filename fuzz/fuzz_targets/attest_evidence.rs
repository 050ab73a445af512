//! Evidence, as a hostile node or peer gives it to a client or a guest.
//!
//! Checked: no panic; what is accepted encodes to the very same bytes; every rule is listed; an empty policy accepts none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_attest::claims::{Claims, Label, Role};
use nacre_attest::evidence::{Evidence, MAX_EVIDENCE_BYTES};
use nacre_attest::policy::Policy;
use nacre_attest::show;
use nacre_attest::verify::{Expect, rule, verify};

fuzz_target!(|data: &[u8]| {
    if let Ok(claims) = Claims::decode(data) {
        assert_eq!(claims.encode(), data);
    }
    let Ok(evidence) = Evidence::decode(data) else { return };
    assert!(data.len() <= MAX_EVIDENCE_BYTES);
    assert_eq!(evidence.encode(), data);
    let expect = Expect { nonce: evidence.claims.nonce, label: Label::Session, role: Role::Cvm, now: None };
    let verdict = verify(&evidence, &Policy::default(), &expect);
    assert!(!verdict.accepted());
    assert_eq!(verdict.rules.len(), rule::OF_REPORTS.len() + rule::OF_CLAIMS.len());
    let text = show::verdict_table(&verdict);
    assert!(text.lines().all(|line| !line.chars().any(char::is_control)));
    assert_eq!(show::verdict_json(&verdict)["accepted"], false);
});

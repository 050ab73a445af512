//! Attestation reports, as a hostile host or peer gives them: raw bytes, repaired in the fields that few inputs would get past,
//! or not.
//!
//! Checked: no panic; whatever is accepted encodes to the very same bytes; showing it never fails; no chain goes with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_attest::policy::Policy;
use nacre_attest::report::{REPORT_BYTES, Report, SIGNED_BYTES, signed_bytes};
use nacre_attest::show;
use nacre_attest::tcb::Platform;
use nacre_attest::verify::verify_report;

fuzz_target!(|data: &[u8]| {
    judge(data);
    let Some((&version, rest)) = data.split_first() else { return };
    let mut report = [0; REPORT_BYTES];
    let len = rest.len().min(SIGNED_BYTES);
    report[..len].copy_from_slice(&rest[..len]);
    report[..4].copy_from_slice(&[2 + version % 4, 0, 0, 0]);
    report[0x0a] |= 2;
    report[0x34..0x38].copy_from_slice(&[1, 0, 0, 0]);
    judge(&report);
});

fn judge(bytes: &[u8]) {
    let parsed = Report::parse(bytes);
    if let Ok(report) = &parsed {
        assert_eq!(report.encode()[..], *bytes);
        assert_eq!(Some(report.signed_bytes().as_slice()), signed_bytes(bytes));
        for platform in Platform::ALL.map(Some).into_iter().chain([None]) {
            let text = show::report_table(report, platform);
            assert!(text.lines().all(|line| !line.chars().any(char::is_control)));
        }
    }
    let verdict = verify_report::<&[u8]>(bytes, &[], &Policy::default(), Some(0));
    assert!(!verdict.accepted() && verdict.rules[0].passed == parsed.is_ok());
}

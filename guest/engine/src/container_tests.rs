//! Tests of the `.cwasm` container: round trips, damage of every byte, arbitrary input, compatibility.

use proptest::prelude::*;
use std::{string::ToString, vec::Vec};

use super::*;

fn sample(target: CpuTarget) -> (Header, Vec<u8>) {
    let payload = b"code".repeat(100);
    let header = Header::describe(b"source", &payload, target, true, 65536).unwrap();
    let file = [&header.encode()[..], &payload].concat();
    (header, file)
}

/// Writes the header's digest again, so that a test reaches the checks behind it.
fn reseal(file: &mut [u8]) {
    let digest = sha256(&file[..224]);
    file[224..256].copy_from_slice(&digest);
}

#[test]
fn round_trip() {
    for target in [CpuTarget::X86_64V3, CpuTarget::Native(CpuFeatures::from_bits(3).unwrap())] {
        let (header, file) = sample(target);
        assert_eq!(Header::parse(&file), Ok(header.clone()));
        assert_eq!(Header::parse(&file[..HEADER_LEN]), Ok(header.clone()), "the header is readable alone");
        let payload = header.payload(&file).unwrap();
        assert_eq!(payload.len() as u64, header.payload_len);
        header.check_payload(payload).unwrap();
        header.check_compatible(CpuFeatures::X86_64_V3).unwrap();
    }
}

#[test]
fn every_damaged_header_byte_is_found() {
    let (_, file) = sample(CpuTarget::X86_64V3);
    for at in 0..HEADER_LEN {
        let mut bad = file.clone();
        bad[at] ^= 0x10;
        assert!(Header::parse(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn every_truncation_is_found() {
    let (header, file) = sample(CpuTarget::X86_64V3);
    for len in 0..HEADER_LEN {
        assert!(Header::parse(&file[..len]).is_err(), "{len}");
    }
    for len in HEADER_LEN..file.len() {
        let found = header.payload(&file[..len]).unwrap_err();
        assert_eq!(found, CwasmError::WrongLength { need: file.len() as u64, have: len as u64 });
    }
}

#[test]
fn damaged_payload_is_found() {
    let (header, mut file) = sample(CpuTarget::X86_64V3);
    *file.last_mut().unwrap() ^= 1;
    let payload = header.payload(&file).unwrap();
    assert_eq!(header.check_payload(payload), Err(CwasmError::PayloadDamaged));
}

#[test]
fn impossible_fields_are_named() {
    let cases: [(usize, u8, &str); 9] = [
        (13, 0x20, "payload offset"),
        (21, 1, "payload length"),
        (128, 0, "CPU target"),
        (135, 1, "CPU features"),
        (136, 2, "CPU target"),
        (137, 2, "flags"),
        (140, 1, "reserved bytes"),
        (152, 7, "wasmtime version"),
        (200, 1, "reserved bytes"),
    ];
    for (at, value, name) in cases {
        let (_, mut file) = sample(CpuTarget::X86_64V3);
        file[at] = value;
        reseal(&mut file);
        assert_eq!(Header::parse(&file), Err(CwasmError::InvalidField(name)), "byte {at}");
    }
}

#[test]
fn other_builds_are_refused_with_the_remedy() {
    let (header, _) = sample(CpuTarget::X86_64V3);
    let mut other = header.clone();
    other.wasmtime_version = VersionText::decode(*b"47.0.1\0\0\0\0\0\0\0\0\0\0").unwrap();
    let error = other.check_compatible(CpuFeatures::X86_64_V3).unwrap_err();
    assert!(error.to_string().contains("compiled by wasmtime 47.0.1"), "{error}");

    let mut other = header;
    other.settings[5] ^= 1;
    assert_eq!(other.check_compatible(CpuFeatures::X86_64_V3), Err(CwasmError::Settings));
}

#[test]
fn missing_cpu_features_are_named() {
    let wide = CpuFeatures::probe(|name| !name.contains("vbmi"));
    let (header, _) = sample(CpuTarget::Native(wide));
    let host = CpuFeatures::probe(|name| name != "avx512f" && name != "avx512vl");
    assert_eq!(
        header.check_compatible(host).unwrap_err().to_string(),
        "compiled for a CPU with avx512f, avx512vl, which this host has not; \
         compile the program again without --cpu native"
    );
    let (header, _) = sample(CpuTarget::X86_64V3);
    let old = CpuFeatures::probe(|name| name != "avx2");
    assert!(header.check_compatible(old).unwrap_err().to_string().contains("lacks avx2"));
}

#[test]
fn payload_length_is_bounded() {
    assert_eq!(
        Header::describe(b"", b"", CpuTarget::X86_64V3, true, 0),
        Err(CwasmError::InvalidField("payload length"))
    );
    assert!(checked_payload_len(MAX_PAYLOAD_BYTES).is_ok());
    assert!(checked_payload_len(MAX_PAYLOAD_BYTES + 1).is_err());
    assert!(checked_payload_len(u64::MAX).is_err());
}

proptest! {
    /// Arbitrary bytes behind a right magic, version and digest never panic, and what is accepted is canonical.
    #[test]
    fn any_sealed_header_is_refused_or_canonical(mut bytes in prop::collection::vec(any::<u8>(), HEADER_LEN..600)) {
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
        reseal(&mut bytes);
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert_eq!(&header.encode()[..HEADER_LEN], &bytes[..HEADER_LEN]);
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Header::parse(&bytes).is_err());
    }

    /// What `parse` accepts survives a second round, whatever the fields hold.
    #[test]
    fn any_header_round_trips(
        payload_len in 1..=MAX_PAYLOAD_BYTES, source_len: u64, bits in 0u64..1 << 19, native: bool,
        is_command: bool, min_memory_bytes: u64, version in "[!-~]{1,16}", digests: [[u8; 32]; 3],
    ) {
        let mut text = [0; VERSION_LEN];
        text[..version.len()].copy_from_slice(version.as_bytes());
        let target = match native {
            true => CpuTarget::Native(CpuFeatures::from_bits(bits).unwrap()),
            false => CpuTarget::X86_64V3,
        };
        let [payload_sha256, source_sha256, settings] = digests;
        let wasmtime_version = VersionText::decode(text).unwrap();
        let header = Header {
            payload_len, payload_sha256, source_len, source_sha256, settings, target, is_command, min_memory_bytes,
            wasmtime_version,
        };
        prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
    }
}

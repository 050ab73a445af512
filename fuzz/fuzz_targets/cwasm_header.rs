//! The header of a `.cwasm`, read by the guest from code that its host sends.
//!
//! Input: raw bytes, or a header of ours with changed bytes, its digest made right again so that the checks behind it are
//! reached. Checked: no panic; an accepted header encodes to the same bytes; the payload it names has the length it says
//! and lies in the file.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_engine::container::{HEADER_LEN, Header, MAX_PAYLOAD_BYTES, sha256};
use nacre_engine::{CpuFeatures, CpuTarget};

#[derive(Debug, arbitrary::Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Changed { payload: Vec<u8>, native: Option<u64>, changes: Vec<(u8, u8)>, sealed: bool, cut: Option<u16> },
}

impl Input {
    fn file(self) -> Vec<u8> {
        let (payload, native, changes, sealed, cut) = match self {
            Input::Raw(bytes) => return bytes,
            Input::Changed { payload, native, changes, sealed, cut } => {
                (payload, native, changes, sealed, cut)
            }
        };
        let target = native.and_then(CpuFeatures::from_bits).map_or(CpuTarget::X86_64V3, CpuTarget::Native);
        let Ok(header) = Header::describe(b"source", &payload, target, true, 65536) else {
            return Vec::new();
        };
        let mut file = [&header.encode()[..], &payload].concat();
        for (at, value) in changes {
            file[usize::from(at)] = value;
        }
        if sealed {
            let digest = sha256(&file[..224]);
            file[224..HEADER_LEN].copy_from_slice(&digest);
        }
        file.truncate(cut.map_or(file.len(), usize::from));
        file
    }
}

fuzz_target!(|input: Input| {
    let file = input.file();
    let Ok(header) = Header::parse(&file) else { return };
    assert_eq!(header.encode()[..HEADER_LEN], file[..HEADER_LEN], "another header than was read");
    assert!((1..=MAX_PAYLOAD_BYTES).contains(&header.payload_len));
    assert!(header.wasmtime_version.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
    if let Err(error) = header.check_compatible(CpuFeatures::X86_64_V3) {
        assert!(!error.to_string().is_empty());
    }
    match header.payload(&file) {
        Ok(payload) => {
            assert_eq!(payload.len() as u64, header.payload_len);
            let fits = sha256(payload) == header.payload_sha256;
            assert_eq!(header.check_payload(payload).is_ok(), fits);
        }
        Err(_) => assert!((file.len() as u64) < header.file_len()),
    }
});

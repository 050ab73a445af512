//! The header of a `.cwasm`, read by the guest from code that its host sends.
//!
//! Input: the start of a file; with an odd first byte the header's digest is made right again, so that the checks behind
//! it are reached. Checked: no panic; an accepted header encodes to the same bytes; the payload it names has the length
//! it says and lies in the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_engine::CpuFeatures;
use nacre_engine::container::{HEADER_LEN, Header, MAX_PAYLOAD_BYTES, PAYLOAD_OFFSET, sha256};

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let mut file = rest.to_vec();
    if mode & 1 != 0 && file.len() >= HEADER_LEN {
        let digest = sha256(&file[..224]);
        file[224..HEADER_LEN].copy_from_slice(&digest);
    }
    if mode & 2 != 0 && file.len() >= HEADER_LEN {
        // Room for a payload, without making the fuzzer find 4 KiB of input.
        file.resize(PAYLOAD_OFFSET + rest.len(), 0);
    }
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
            assert_eq!(header.check_payload(payload).is_ok(), fits); panic!("REACHED");
        }
        Err(_) => assert!((file.len() as u64) < header.file_len()),
    }
});

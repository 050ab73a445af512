//! Plaintexts of sessions, as the other end may write them, and the messages that are not sealed.
//!
//! Input: raw bytes. Checked: no panic; whatever is accepted encodes to the very same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_session::{Command, Rejected, Reply, wire};

fuzz_target!(|data: &[u8]| {
    let Some((&tag, body)) = data.split_first() else { return };
    if let Ok(command) = Command::decode(tag, body) {
        assert_eq!(command.encode(), Ok((tag, body.to_vec())));
    }
    if let Ok(reply) = Reply::decode(data) {
        assert_eq!(reply.encode().as_deref(), Ok(data));
    }
    if let Some(rejected) = Rejected::decode(data) {
        assert_eq!(rejected.encode(), data);
    }
    if let Ok((session, evidence)) = wire::decode_offer(data) {
        assert_eq!(wire::offer(session, evidence).as_deref(), Some(data));
    }
    if let Ok(nonce) = wire::decode_evidence_request(data) {
        assert_eq!(wire::evidence_request(&nonce), data);
    }
    if let Some(bytes) = data.first_chunk()
        && let Ok(header) = wire::Header::decode(bytes)
    {
        assert_eq!(header.encode(), *bytes);
    }
});

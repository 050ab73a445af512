//! A pair of session ends, and messages that get past the first checks.

use nacre_session::wire::HEADER_BYTES;
use nacre_session::{ClaimsHash, ClientHandshake, ClientSession, Command, CvmSessions, Draft, SessionId};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

/// A CVM with one pending offer, and the client that accepted it.
pub fn offered(cvm: &mut CvmSessions, seed: u64) -> ClientSession {
    let rng = &mut ChaCha20Rng::seed_from_u64(seed);
    let (draft, claims) = (Draft::new(rng), ClaimsHash([7; 32]));
    let (id, public_key) = (draft.id(), *draft.public_key());
    cvm.publish(draft, claims, 0);
    ClientHandshake::new(rng).accept(id, &public_key, claims, rng).expect("the key is good")
}

/// The client's next request, of 352 bytes at most.
pub fn ask(client: &mut ClientSession) -> Vec<u8> {
    client.seal_request(&Command::Status).expect("it fits").bytes
}

/// The input as a message, after what its first byte says of the header was set right: 1 version, 2 kind, 4 length, 8 session,
/// 16 number, 32 the rest.
pub fn message(data: &[u8], kind: u8, session: SessionId, seq: u64) -> Vec<u8> {
    let Some((&right, data)) = data.split_first() else { return Vec::new() };
    let mut bytes = data.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    if right & 4 != 0 {
        let body = if kind == 3 { 304 } else { 272 };
        bytes.resize(HEADER_BYTES + body, 0xaa);
        bytes[4..8].copy_from_slice(&(body as u32).to_le_bytes());
    }
    if right & 1 != 0 {
        bytes[0] = 1;
    }
    if right & 2 != 0 {
        bytes[1] = kind;
    }
    if right & 8 != 0 {
        bytes[8..24].copy_from_slice(&session.0);
    }
    if right & 16 != 0 {
        bytes[24..32].copy_from_slice(&seq.to_le_bytes());
    }
    if right & 32 != 0 {
        bytes[2..4].fill(0);
    }
    bytes
}

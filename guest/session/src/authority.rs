//! Signatures of the manifest's owner or a key broker over one command at one place of one session.

use crate::ClaimsHash;
use crate::reply::Refusal;
use crate::wire::SessionId;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

const LABEL: &[u8; 17] = b"nacre authority 1";
/// Bytes of a signer's key and its signature.
pub(crate) const BYTES: usize = 32 + 64;

/// Where a command stands, so that its signature is good nowhere else.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub session: SessionId,
    pub claims: ClaimsHash,
    pub seq: u64,
}

impl Place {
    /// What is signed: label, session, claims, number, SHA-256 of (tag, body), all of fixed length.
    fn message(&self, tag: u8, body: &[u8]) -> [u8; LABEL.len() + 16 + 32 + 8 + 32] {
        let hash = Sha256::new().chain_update([tag]).chain_update(body).finalize();
        let mut message = [0; _];
        let mut rest = &mut message[..];
        for part in [&LABEL[..], &self.session.0, &self.claims.0, &self.seq.to_le_bytes(), &hash[..]] {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        message
    }

    pub(crate) fn sign(&self, tag: u8, body: &[u8], key: &SigningKey) -> [u8; BYTES] {
        let mut signed = [0; BYTES];
        signed[..32].copy_from_slice(key.verifying_key().as_bytes());
        signed[32..].copy_from_slice(&key.sign(&self.message(tag, body)).to_bytes());
        signed
    }

    /// Whose signature it is.
    pub(crate) fn verify(
        &self,
        tag: u8,
        body: &[u8],
        signed: &[u8; BYTES],
        allowed: &[[u8; 32]],
    ) -> Result<[u8; 32], Refusal> {
        let signer: &[u8; 32] = signed.first_chunk().expect("longer than a key");
        let signature: &[u8; 64] = signed.last_chunk().expect("longer than a signature");
        if !allowed.contains(signer) {
            return Err(Refusal::UnknownSigner);
        }
        let key = VerifyingKey::from_bytes(signer).map_err(|_| Refusal::UnknownSigner)?;
        let message = self.message(tag, body);
        let verified = key.verify_strict(&message, &Signature::from_bytes(signature));
        verified.map(|()| *signer).map_err(|_| Refusal::BadSignature)
    }
}

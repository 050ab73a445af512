//! Who the other end is: what its evidence has to say, and who decides.

use crate::wire::{End, MAX_EVIDENCE_BYTES, MigrationId, WORD_BYTES};
use nacre_attest::claims::{Claims, Label, Role};
use nacre_attest::evidence::Evidence;
use nacre_attest::manifest::Manifest;
use nacre_attest::policy::Policy;
use nacre_attest::verify::{Expect, Verifier, rule};

/// Bytes of the id in an end's claims: the migration id and the end's own nonce.
pub const CLAIMED_ID_BYTES: usize = 16 + WORD_BYTES;

/// What the evidence of one end binds, so that it is good for one migration, one end and one key. The label, which the report binds
/// too, ends in the protocol's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Which end.
    pub end: End,
    /// Its ephemeral public key.
    pub key: [u8; WORD_BYTES],
    /// The other end's nonce.
    pub nonce: [u8; WORD_BYTES],
    /// The migration id, then this end's own nonce.
    pub id: [u8; CLAIMED_ID_BYTES],
    /// The hash of the manifest that both ends were launched with.
    pub manifest: [u8; WORD_BYTES],
}

impl Binding {
    pub(crate) fn new(
        end: End,
        id: MigrationId,
        key: [u8; WORD_BYTES],
        nonces: &Nonces,
        manifest: [u8; WORD_BYTES],
    ) -> Binding {
        let (own, peer) = match end {
            End::Source => (nonces.source, nonces.destination),
            End::Destination => (nonces.destination, nonces.source),
        };
        let mut claimed = [0; CLAIMED_ID_BYTES];
        claimed[..16].copy_from_slice(&id.0);
        claimed[16..].copy_from_slice(&own);
        Binding { end, key, nonce: peer, id: claimed, manifest }
    }

    /// The claims that REPORT_DATA is the hash of, of an end that has loaded code with this list hash.
    pub fn claims(&self, code: [u8; 32]) -> Claims {
        Claims {
            label: Label::Migration,
            role: self.role(),
            key: self.key.to_vec(),
            nonce: self.nonce,
            id: self.id.to_vec(),
            manifest: self.manifest,
            code,
        }
    }

    fn role(&self) -> Role {
        match self.end {
            End::Source => Role::Source,
            End::Destination => Role::Destination,
        }
    }
}

/// The nonces of both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Nonces {
    pub source: [u8; WORD_BYTES],
    pub destination: [u8; WORD_BYTES],
}

/// Why a peer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PeerRefused {
    /// The manifest has no migration policy, or none that can be read.
    #[error("the manifest has no migration policy: nothing may move")]
    NoPolicy,
    /// What came is no evidence.
    #[error("what the peer sent is no evidence")]
    Format,
    /// The claims are not those of this end of this migration with this key.
    #[error("the peer's evidence is for another use: {0}")]
    Claims(&'static str),
    /// A destination has loaded code: it is not a fresh one.
    #[error("the destination has loaded code already: only a fresh one may receive")]
    NotFresh,
    /// A rule of the policy failed.
    #[error("the manifest's migration policy refuses the peer: rule {0}")]
    Rule(&'static str),
    /// No secret can be agreed with its public key.
    #[error("the peer's public key is invalid")]
    PublicKey,
}

/// Decides whether the other end may be one. It comes from the tenant's manifest, never from the host.
pub trait PeerPolicy {
    /// Judges a peer's evidence, which must prove exactly what `binding` says.
    ///
    /// # Errors
    /// Why it is refused.
    fn judge(&mut self, evidence: &[u8], binding: &Binding) -> Result<(), PeerRefused>;
}

/// The policy of a manifest, judged by `attest`.
pub struct ManifestPolicy {
    policy: Policy,
    verifier: Verifier,
}

impl ManifestPolicy {
    /// The migration policy of the manifest that this CVM was launched with.
    ///
    /// # Errors
    /// `NoPolicy`.
    pub fn new(manifest: &Manifest) -> Result<ManifestPolicy, PeerRefused> {
        let bytes = manifest.migration.as_deref().ok_or(PeerRefused::NoPolicy)?;
        let policy = Policy::decode(bytes).map_err(|_| PeerRefused::NoPolicy)?;
        Ok(ManifestPolicy { policy, verifier: Verifier::new() })
    }
}

impl PeerPolicy for ManifestPolicy {
    fn judge(&mut self, evidence: &[u8], binding: &Binding) -> Result<(), PeerRefused> {
        if evidence.len() > MAX_EVIDENCE_BYTES {
            return Err(PeerRefused::Format);
        }
        let evidence = Evidence::decode(evidence).map_err(|_| PeerRefused::Format)?;
        let claims = &evidence.claims;
        let expected = binding.claims(claims.code);
        let same = [
            ("label", claims.label == expected.label),
            ("role", claims.role == expected.role),
            ("key", claims.key == expected.key),
            ("nonce", claims.nonce == expected.nonce),
            ("migration id", claims.id == expected.id),
            ("manifest", claims.manifest == expected.manifest),
        ];
        if let Some((what, _)) = same.into_iter().find(|(_, same)| !same) {
            return Err(PeerRefused::Claims(what));
        }
        if binding.end == End::Destination && (claims.code != [0; 32] || !evidence.code.is_empty()) {
            return Err(PeerRefused::NotFresh);
        }
        let expect =
            Expect { nonce: binding.nonce, label: Label::Migration, role: binding.role(), now: None };
        let verdict = self.verifier.verify(&evidence, &self.policy, &expect);
        match verdict.failed().next() {
            Some(failed) => Err(PeerRefused::Rule(failed.name)),
            None if verdict.accepted() => Ok(()),
            None => Err(PeerRefused::Rule(rule::REPORT_FORMAT)),
        }
    }
}

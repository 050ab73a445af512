//! What makes a CVM worth a secret: whose it is, what it can prove, and the sessions of its clients. All of it is vCPU 0's; only
//! the tokens of single requests go to workers.
//!
//! * here: the tenant manifest, which decides once what code this CVM takes;
//! * [`evidence`]: reports that bind a key, for offers of sessions and for certificates;
//! * [`sessions`]: records of sessions, and what they ask for;
//! * [`packages`]: sealed code, from ciphertext to a module that can be called;
//! * [`logs`]: what services write, for their owner;
//! * [`tls`]: the key of TLS services, whose connections are the business of [`crate::sockets`].
//!
//! Nothing here waits for the host, and nothing of a sealed action leaves but sealed by its session.

pub mod evidence;
pub mod logs;
pub mod packages;
pub mod sessions;
pub mod tls;

use crate::arch::cpu;
use crate::console::fatal;
use crate::normal::NormalCell;
use alloc::vec::Vec;
use core::convert::Infallible;
use nacre_abi::hypercall::ExitReason;
use nacre_attest::manifest::{Manifest, ManifestError, Mode, SignedManifest};
use nacre_migrate::policy::ManifestPolicy;
use rand_core::{TryCryptoRng, TryRng};

/// Whose this CVM is.
static IDENTITY: NormalCell<Identity> =
    NormalCell::new(Identity { decided: false, took_plain_code: false, manifest: None });

struct Identity {
    /// Code was taken, or a manifest: it stays as it is.
    decided: bool,
    /// Code that nobody has signed was taken.
    took_plain_code: bool,
    manifest: Option<(SignedManifest, Manifest)>,
}

/// The tenant manifest came. It comes before anything else or never: a host that sends it late, or one that its owner did not
/// sign, has a CVM that ends.
pub fn take_manifest(body: &[u8]) {
    let read = || {
        let signed = SignedManifest::decode(body)?;
        Ok::<_, ManifestError>((signed.verify()?, signed))
    };
    let late = IDENTITY.with(|identity| core::mem::replace(&mut identity.decided, true));
    match read() {
        Ok(_) if late => refuse_launch(format_args!("the manifest came after code")),
        Ok((manifest, signed)) => {
            IDENTITY.with(|identity| identity.manifest = Some((signed, manifest)));
        }
        Err(error) => refuse_launch(format_args!("the manifest is no good: {error}")),
    }
}

fn refuse_launch(text: core::fmt::Arguments<'_>) -> ! {
    fatal(ExitReason::BadLaunch, text)
}

/// Whether this CVM takes code that nobody has signed. From the first question on no manifest is taken any more.
pub fn takes_plain_code() -> bool {
    IDENTITY.with(|identity| {
        identity.decided = true;
        let takes = identity.manifest.as_ref().is_none_or(|(_, manifest)| manifest.mode == Mode::Open);
        identity.took_plain_code |= takes;
        takes
    })
}

/// Whether this CVM has taken code, or could have.
pub fn has_taken_code() -> bool {
    IDENTITY.with(|identity| identity.took_plain_code) || packages::any()
}

/// SHA-256 of the manifest; zeros without one.
pub fn manifest_hash() -> [u8; 32] {
    with_manifest(|manifest| manifest.map_or([0; 32], |(signed, _)| signed.hash()))
}

/// Whether the manifest says where the tenant may go.
pub fn has_migration_policy() -> bool {
    with_manifest(|manifest| manifest.is_some_and(|(_, manifest)| manifest.migration.is_some()))
}

/// What judges the other end of a migration; `None` if nothing may move.
pub fn peer_policy() -> Option<ManifestPolicy> {
    with_manifest(|manifest| ManifestPolicy::new(&manifest?.1).ok())
}

/// Wipes every key of the tenant's here, after its tasks were parked for good: those of sessions and connections are in small
/// blocks of the heap, that of TLS services is the agent's.
pub fn extinguish() {
    tls::extinguish();
    crate::heap::wipe_small();
}

/// What a CVM says to whoever brings plain code into a sealed one.
pub const SEALED: &str = "sealed-cvm: this CVM takes only code that its owner's compilers have signed; deploy it sealed, with --manifest";

/// Looks at the manifest, if there is one.
fn with_manifest<R>(look: impl FnOnce(Option<&(SignedManifest, Manifest)>) -> R) -> R {
    IDENTITY.with(|identity| look(identity.manifest.as_ref()))
}

/// The keys whose commands are obeyed: the owner's and the brokers'. `None` unless this CVM is sealed.
fn authorities() -> Option<Vec<[u8; 32]>> {
    with_manifest(|manifest| {
        let (_, manifest) = manifest.filter(|(_, manifest)| manifest.mode == Mode::Sealed)?;
        let keys = core::iter::once(&manifest.owner).chain(&manifest.brokers);
        Some(keys.map(|key| key.to_bytes()).collect())
    })
}

/// The processor's generator, as key generation wants it. Ends the CVM if that fails.
pub struct Random;

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|word| word as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        cpu::fill_random(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
        cpu::fill_random(buffer);
        Ok(())
    }
}

impl TryCryptoRng for Random {}

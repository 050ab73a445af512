//! The key that this CVM's TLS services answer with. There is one per CVM, made when the first such service starts; the
//! evidence in its certificates binds it. The secret lies in the agent arena and stays in this CVM; what refers to it asks
//! for it at each signature.

use super::Random;
use crate::agent::{AgentCell, agent_static};
use crate::arch::cpu;
use crate::console::fatal;
use crate::once::Once;
use alloc::boxed::Box;
use nacre_abi::hypercall::ExitReason;
use nacre_tls::{Crypto, NoRandomness, TlsIdentity, TlsSecret};

agent_static! {
    static SECRET: AgentCell<TlsSecret> = AgentCell::new();
}

/// The public half.
static IDENTITY: Once<TlsIdentity> = Once::new();

/// The cryptography of all TLS connections.
pub static CRYPTO: Crypto = Crypto::new(&Random);

impl nacre_tls::Random for Random {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        // Ends the CVM if that fails.
        cpu::fill_random(bytes);
        Ok(())
    }
}

/// Copies the secret's bytes to `into`, if a service made it: the tenant's connections go on elsewhere, under seal. False if there is none.
pub fn export(into: &mut [u8; 32]) -> bool {
    SECRET.try_get().map(|secret| into.copy_from_slice(&*secret.expose())).is_some()
}

/// Takes the secret of the tenant that came.
pub fn import(bytes: &[u8; 32]) {
    if let Some(secret) = TlsSecret::from_bytes(bytes) {
        SECRET.set(secret);
    }
}

/// Wipes the secret: the tenant lives elsewhere.
pub fn extinguish() {
    SECRET.wipe();
}

/// The key; made if there is none. By vCPU 0.
pub fn identity() -> &'static TlsIdentity {
    if let Some(identity) = IDENTITY.get() {
        return identity;
    }
    let made = TlsSecret::generate(&CRYPTO).and_then(|secret| {
        SECRET.set(secret);
        TlsIdentity::of(|| SECRET.try_get())
    });
    match made {
        Ok(identity) => IDENTITY.get_or_set(Box::new(identity)),
        Err(error) => fatal(ExitReason::Panic, format_args!("{error}")),
    }
}

//! Where the secrets and ledgers of a migration lie: one place for each end of it, in the agent arena.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use nacre_migrate::policy::{Binding, PeerPolicy, PeerRefused};

/// The place of one end's vault.
pub struct VaultCell<V>(UnsafeCell<V>);

// SAFETY: what is in it is reached by a `Hold`, which vCPU 0 uses while it has all lanes (see `VaultCell::hold`), and by whoever has claimed a lane, in its
// part: never by two at once, but by different vCPUs one after the other, hence `Send`.
unsafe impl<V: Send> Sync for VaultCell<V> {}

impl<V> VaultCell<V> {
    /// With this in it.
    pub const fn new(vault: V) -> VaultCell<V> {
        VaultCell(UnsafeCell::new(vault))
    }

    /// The way to the vault.
    ///
    /// # Safety
    /// vCPU 0 alone has holds. It uses one at a time, and only while it has claimed all lanes, or none has anything to do.
    pub unsafe fn hold(&'static self) -> Hold<V> {
        Hold(self)
    }
}

/// The way to a vault.
pub struct Hold<V: 'static>(&'static VaultCell<V>);

impl<V> Deref for Hold<V> {
    type Target = V;

    fn deref(&self) -> &V {
        // SAFETY: nobody else is at it: whoever made the hold has promised that.
        unsafe { &*self.0.0.get() }
    }
}

impl<V> DerefMut for Hold<V> {
    fn deref_mut(&mut self) -> &mut V {
        // SAFETY: as above.
        unsafe { &mut *self.0.0.get() }
    }
}

/// Says no: outside of the handshake nobody is judged.
pub struct Nobody;

impl PeerPolicy for Nobody {
    fn judge(&mut self, _: &[u8], _: &Binding) -> Result<(), PeerRefused> {
        Err(PeerRefused::NoPolicy)
    }
}

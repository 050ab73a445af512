//! Statics of the agent arena.
//!
//! The tenant arena is everything a running task needs in another CVM; the agent arena is what stays: per-vCPU data, page
//! tables, rings, later keys. The linker puts `.data` and `.bss` (wasmtime's included) into the tenant arena;
//! a static of the agent's must be declared with [`agent_static!`], which puts it into a section of its own.
//! A test of the built image checks that no static of an agent module is anywhere else.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

/// Declares statics of the agent arena.
macro_rules! agent_static {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$attribute])* #[unsafe(link_section = ".agent")] $visibility static $name: $type = $value;)*
    };
}
pub(crate) use agent_static;

/// A value that vCPU 0 sets once at boot, before any other vCPU runs.
pub struct AgentCell<T> {
    set: AtomicBool,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: it is written once, before `set` is released; afterwards only shared references are given out.
unsafe impl<T: Sync> Sync for AgentCell<T> {}

impl<T> AgentCell<T> {
    /// A cell without a value.
    pub const fn new() -> AgentCell<T> {
        AgentCell { set: AtomicBool::new(false), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Sets the value.
    ///
    /// # Panics
    /// If it is set already.
    pub fn set(&self, value: T) -> &T {
        assert!(!self.set.load(Ordering::Acquire), "agent cell set twice");
        // SAFETY: nobody has a reference yet, and only vCPU 0 runs.
        unsafe { (*self.value.get()).write(value) };
        self.set.store(true, Ordering::Release);
        self.get()
    }

    /// Overwrites the value with zeros; it counts as not set any more. Nobody uses it, and nobody ever will.
    pub fn wipe(&self) {
        self.set.store(false, Ordering::SeqCst);
        // SAFETY: the storage of the value, to which nobody holds a reference, by the caller's promise.
        unsafe { core::ptr::write_bytes(self.value.get().cast::<u8>(), 0, size_of::<T>()) }
        core::hint::black_box(self.value.get());
    }

    /// The value.
    ///
    /// # Panics
    /// If it is not set yet: a mistake in the order of the boot.
    pub fn get(&self) -> &T {
        self.try_get().expect("agent cell used before boot set it")
    }

    /// The value, if it is set.
    pub fn try_get(&self) -> Option<&T> {
        // SAFETY: `set` says that it was written, and it never changes again.
        self.set.load(Ordering::Acquire).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }
}

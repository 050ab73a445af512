//! [`SharedEpoch`]: the epoch that compiled code looks at, on the shared page, where the host too can raise it.
//!
//! The engine counts its epoch in private memory, and a task's deadline is a value of that counter. What compiled code compares
//! with its deadline is the word on the page instead: a copy of the counter that the guest keeps up, and that the host sets to
//! [`EPOCH_NOW`](nacre_abi::elastic::EPOCH_NOW) when it takes a CPU away. The task then comes to its safe point within one
//! pass of its loop, without any thread of the host's or vCPU of the guest's being woken for it (decision 0011).
//!
//! The word is a hint like all words of that page. Compiled code compares it and does nothing else with it, so whatever the host
//! writes, the worst is a safe point that comes too often or too late; vCPU 0 looks after those that are late.

use crate::link;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
use nacre_abi::elastic::ElasticWord;
use wasmtime::{Engine, Func, Store};
use wasmtime_environ::{PtrSize, VMCONTEXT_MAGIC};

/// Pointers of compiled code are as long as ours.
const POINTER: u8 = size_of::<usize>() as u8;

/// One engine's epoch.
pub struct SharedEpoch {
    word: ElasticWord,
    /// The engine's own counter; null until its first instance has shown where it is.
    counter: AtomicPtr<AtomicU64>,
}

impl SharedEpoch {
    /// The epoch of an engine that has no instance yet.
    pub const fn new(word: ElasticWord) -> SharedEpoch {
        SharedEpoch { word, counter: AtomicPtr::new(null_mut()) }
    }

    fn counter(&self) -> Option<&'static AtomicU64> {
        // SAFETY: not null means: set by `share` to the counter of an engine that lives as long as the guest.
        unsafe { self.counter.load(Ordering::SeqCst).as_ref() }
    }

    /// What compiled code looks at.
    fn shared(&self) -> &'static AtomicU64 {
        link::window().elastic().place(self.word)
    }

    /// All running Wasm of this engine reaches a safe point soon.
    pub fn bump(&self, engine: &Engine) {
        engine.increment_epoch();
        // Either this sees the counter that `share` has found, or `share` sees what was added.
        fence(Ordering::SeqCst);
        self.publish();
    }

    fn publish(&self) {
        if let Some(counter) = self.counter() {
            self.shared().fetch_max(counter.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    /// Makes the page's word follow the counter again after the host has raised it. At every safe point, before the look at what
    /// the host wants: whoever takes the host's sign away bumps, so that all others see it too.
    pub fn settle(&self, engine: &Engine) {
        let Some(counter) = self.counter() else { return };
        let (shared, own) = (self.shared(), counter.load(Ordering::SeqCst));
        let seen = shared.load(Ordering::SeqCst);
        if seen > own {
            // If it has changed meanwhile, somebody else does the same.
            let _ = shared.compare_exchange(seen, own, Ordering::SeqCst, Ordering::SeqCst);
            self.bump(engine);
        }
    }

    /// Makes the instance that defines `function` look at the page from its next call on. A function that its instance has
    /// imported changes nothing.
    pub fn share<T: 'static>(&self, function: &Func, store: &mut Store<T>) {
        let func_ref = function.to_raw(&mut *store).cast::<u8>();
        // SAFETY: a `VMFuncRef`, laid out as the same version of the engine says.
        let context =
            unsafe { func_ref.add(usize::from(POINTER.vm_func_ref().vmctx())).cast::<NonNull<u8>>().read() };
        // SAFETY: all contexts begin with their kind.
        if unsafe { context.cast::<u32>().read() } != VMCONTEXT_MAGIC {
            return;
        }
        // SAFETY: an instance's context, in which the epoch's place is fixed. It lives as long as the store, and nobody else
        // looks at it while we have the store.
        let pointer = unsafe {
            context.add(usize::from(POINTER.vmctx_epoch_ptr())).cast::<Option<NonNull<AtomicU64>>>().as_mut()
        };
        let shared = NonNull::from(self.shared());
        let Some(own) = pointer.filter(|own| *own != shared) else { return };
        if self.counter.load(Ordering::Relaxed) != own.as_ptr() {
            self.counter.store(own.as_ptr(), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            self.publish();
        }
        *pointer = Some(shared);
    }
}

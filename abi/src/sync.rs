//! Atomics: the real ones; loom's where a protocol is being model-checked (`--cfg loom`); or, where it is run under a
//! scheduler that stops threads at any step (`--cfg stepped`), real ones that call [`set_step`]'s function first.

#[cfg(not(any(loom, stepped)))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(any(loom, stepped)))]
pub(crate) use nacre_bytes::{load_words, store_words};
#[cfg(stepped)]
pub use stepped::*;

/// Word by word, so that whoever explores interleavings sees each.
#[cfg(any(loom, stepped))]
pub(crate) fn store_words(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
}

/// The same.
#[cfg(any(loom, stepped))]
pub(crate) fn load_words(bytes: &mut [u8], words: &[AtomicU64]) {
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.load(Ordering::Relaxed).to_le_bytes();
    }
}

#[cfg(stepped)]
mod stepped {
    pub use core::sync::atomic::Ordering;
    use std::sync::OnceLock;

    static STEP: OnceLock<fn()> = OnceLock::new();

    /// What is called before each atomic operation of this crate and of those that use its atomics. The first call counts.
    pub fn set_step(step: fn()) {
        let _ = STEP.set(step);
    }

    fn step() {
        if let Some(step) = STEP.get() {
            step();
        }
    }

    /// A fence, after a step. One thread runs at a time, so nothing is left to order.
    pub fn fence(_: Ordering) {
        step();
    }

    macro_rules! stepped {
        ($name:ident, $value:ty, $($method:ident),*) => {
            /// An atomic whose operations are steps.
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub struct $name(core::sync::atomic::$name);

            impl $name {
                /// As the standard one's.
                pub const fn new(value: $value) -> Self {
                    Self(core::sync::atomic::$name::new(value))
                }

                /// As the standard one's.
                pub fn load(&self, order: Ordering) -> $value {
                    step();
                    self.0.load(order)
                }

                /// As the standard one's.
                pub fn store(&self, value: $value, order: Ordering) {
                    step();
                    self.0.store(value, order);
                }

                $(
                    /// As the standard one's.
                    pub fn $method(&self, value: $value, order: Ordering) -> $value {
                        step();
                        self.0.$method(value, order)
                    }
                )*

                /// As the standard one's.
                ///
                /// # Errors
                /// The value that was there instead.
                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    step();
                    self.0.compare_exchange(current, new, success, failure)
                }
            }
        };
    }

    stepped!(AtomicU64, u64, swap, fetch_add, fetch_sub, fetch_or, fetch_and, fetch_max);
    stepped!(AtomicU8, u8, swap);
    stepped!(AtomicBool, bool, swap);
}

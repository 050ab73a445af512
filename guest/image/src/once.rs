//! [`Once`]: a value that is set at most once and then shared. [`HandOver`]: one that goes from hand to hand. Without a lock: nobody
//! waits for who sets it.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

/// A place for a value that is set at most once.
pub struct Once<T> {
    value: AtomicPtr<T>,
    owns: PhantomData<T>,
}

impl<T: Send + Sync> Once<T> {
    /// Nothing yet.
    pub const fn new() -> Once<T> {
        Once { value: AtomicPtr::new(null_mut()), owns: PhantomData }
    }

    /// The value, if it is set.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: not null means: set by `get_or_set` from a box, which only the drop of `self` frees.
        unsafe { self.value.load(Ordering::Acquire).as_ref() }
    }

    /// Sets the value unless there is one; returns the one that is there.
    pub fn get_or_set(&self, value: Box<T>) -> &T {
        let new = Box::into_raw(value);
        match self.value.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: from a box that nobody frees before the drop of `self`.
            Ok(_) => unsafe { &*new },
            Err(first) => {
                // SAFETY: `new` came from a box a moment ago and was given to nobody; `first` as in `get`.
                unsafe {
                    drop(Box::from_raw(new));
                    &*first
                }
            }
        }
    }
}

impl<T> Once<T> {
    /// Takes away what is there, as a word: until [`attach`](Self::attach) there is nothing.
    pub fn detach(&self) -> u64 {
        self.value.swap(null_mut(), Ordering::AcqRel) as u64
    }

    /// Puts back what [`detach`](Self::detach) took, here or where the tenant's arena came to.
    ///
    /// # Safety
    /// `word` is what `detach` returned, and what it refers to is there as it was.
    pub unsafe fn attach(&self, word: u64) {
        self.value.store(word as *mut T, Ordering::Release);
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        let value = *self.value.get_mut();
        if !value.is_null() {
            // SAFETY: from a box, and with `self` the last way to it goes.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}

/// A value on its way from one vCPU to another: put in by one, taken out by the other.
pub struct HandOver<T> {
    value: AtomicPtr<T>,
    owns: PhantomData<T>,
}

// SAFETY: it gives nobody a reference, only the value itself.
unsafe impl<T: Send> Sync for HandOver<T> {}

impl<T: Send> HandOver<T> {
    /// Nothing.
    pub const fn new() -> HandOver<T> {
        HandOver { value: AtomicPtr::new(null_mut()), owns: PhantomData }
    }

    /// Puts a value in; what was there is dropped.
    pub fn put(&self, value: Box<T>) {
        let old = self.value.swap(Box::into_raw(value), Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: put in by this function, and the swap gave it to us alone.
            drop(unsafe { Box::from_raw(old) });
        }
    }

    /// Takes the value out.
    pub fn take(&self) -> Option<Box<T>> {
        let old = self.value.swap(null_mut(), Ordering::AcqRel);
        // SAFETY: as in `put`.
        (!old.is_null()).then(|| unsafe { Box::from_raw(old) })
    }
}

impl<T> Drop for HandOver<T> {
    fn drop(&mut self) {
        let value = *self.value.get_mut();
        if !value.is_null() {
            // SAFETY: as in `put`.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}

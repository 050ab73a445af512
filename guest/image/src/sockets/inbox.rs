//! [`Inbox`]: what is on its way from vCPU 0 to the task that owns connections: messages about them, and evidence.
//!
//! A stack: vCPU 0 pushes, the task takes all at once and turns them round. Neither ever waits for the other. Every
//! allocation can fail: the host decides how much it sends.

use alloc::alloc::{Layout, alloc, dealloc};
use core::marker::PhantomData;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

struct Node<T> {
    next: *mut Node<T>,
    message: T,
}

/// The messages that wait.
pub struct Inbox<T> {
    newest: AtomicPtr<Node<T>>,
    owns: PhantomData<Node<T>>,
}

// SAFETY: nodes belong to the inbox until `take_all` gives them to one caller; messages may be sent.
unsafe impl<T: Send> Sync for Inbox<T> {}
// SAFETY: see above.
unsafe impl<T: Send> Send for Inbox<T> {}

impl<T> Inbox<T> {
    /// An empty one.
    pub const fn new() -> Inbox<T> {
        Inbox { newest: AtomicPtr::new(null_mut()), owns: PhantomData }
    }

    /// Puts a message in; false if there is no memory for it.
    pub fn push(&self, message: T) -> bool {
        // SAFETY: the layout of a node is not empty.
        let node = unsafe { alloc(Layout::new::<Node<T>>()) }.cast::<Node<T>>();
        if node.is_null() {
            return false;
        }
        let mut newest = self.newest.load(Ordering::Relaxed);
        // SAFETY: just allocated with this layout, and nobody else knows it.
        unsafe { node.write(Node { next: newest, message }) };
        loop {
            match self.newest.compare_exchange_weak(newest, node, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => newest = now,
            }
            // SAFETY: the exchange failed, so it is still ours alone.
            unsafe { (*node).next = newest };
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.newest.load(Ordering::Acquire).is_null()
    }

    /// All messages that wait, oldest first.
    pub fn take_all(&self) -> Taken<T> {
        let mut newest = self.newest.swap(null_mut(), Ordering::AcqRel);
        let mut oldest: *mut Node<T> = null_mut();
        while let Some(node) = NonNull::new(newest) {
            // SAFETY: the swap gave the whole chain to us alone.
            newest = unsafe { core::mem::replace(&mut (*node.as_ptr()).next, oldest) };
            oldest = node.as_ptr();
        }
        Taken(oldest)
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

/// Messages taken out of an [`Inbox`].
pub struct Taken<T>(*mut Node<T>);

impl<T> Iterator for Taken<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let node = NonNull::new(self.0)?;
        // SAFETY: the chain is ours alone; the node was allocated with this layout and is read and freed once.
        unsafe {
            let Node { next, message } = node.as_ptr().read();
            dealloc(node.as_ptr().cast(), Layout::new::<Node<T>>());
            self.0 = next;
            Some(message)
        }
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

//! Standard input of a program: bytes from vCPU 0 to whichever of the program's tasks reads.
//!
//! A ring with one producer. Readers copy first and then move the place up to which is consumed; who was overtaken by
//! another reader copies again. No lock: a reader that is stopped keeps nobody from anything.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use nacre_abi::message::STREAM_WINDOW_BYTES;
use nacre_mm::address_space::MapError;

/// Standard input.
pub struct Input {
    ring: Vec<AtomicU8>,
    /// Bytes that came so far: the offset of the next one.
    received: AtomicU64,
    consumed: AtomicU64,
    /// Up to where the host was told that they are consumed.
    credited: AtomicU64,
    ended: AtomicBool,
}

/// What a reader got.
pub struct Taken {
    /// Bytes.
    pub bytes: usize,
    /// What the host is to be told: up to where all is consumed.
    pub credit: Option<u64>,
}

impl Input {
    /// An empty one.
    ///
    /// # Errors
    /// [`MapError`] if there is no memory.
    pub fn new() -> Result<Input, MapError> {
        let mut ring = Vec::new();
        ring.try_reserve_exact(STREAM_WINDOW_BYTES as usize).map_err(|_| MapError::OutOfMemory)?;
        ring.resize_with(STREAM_WINDOW_BYTES as usize, AtomicU8::default);
        let zero = || AtomicU64::new(0);
        Ok(Input {
            ring,
            received: zero(),
            consumed: zero(),
            credited: zero(),
            ended: AtomicBool::new(false),
        })
    }

    fn place(&self, offset: u64) -> &AtomicU8 {
        &self.ring[(offset % STREAM_WINDOW_BYTES) as usize]
    }

    /// Bytes from the host at `offset`, at most as many as were promised room; others are dropped. Called by vCPU 0 only.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let received = self.received.load(Ordering::Relaxed);
        let room = STREAM_WINDOW_BYTES.saturating_sub(received - self.consumed.load(Ordering::Acquire));
        if offset != received || bytes.len() as u64 > room {
            return;
        }
        for (offset, byte) in (received..).zip(bytes) {
            self.place(offset).store(*byte, Ordering::Relaxed);
        }
        self.received.store(received + bytes.len() as u64, Ordering::Release);
    }

    /// Nothing more comes. Called by vCPU 0 only.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Bytes that can be read, 0 at the end; `None` if there are none yet.
    pub fn readable(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::Acquire);
        let consumed = self.consumed.load(Ordering::Acquire);
        match self.received.load(Ordering::Acquire).saturating_sub(consumed) {
            0 if !ended => None,
            bytes => Some(bytes),
        }
    }

    /// Reads; `None` if there is nothing yet.
    pub fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            let consumed = self.consumed.load(Ordering::Acquire);
            let there = self.received.load(Ordering::Acquire).saturating_sub(consumed);
            let bytes = (buffer.len() as u64).min(there);
            if there == 0 && !ended && !buffer.is_empty() {
                return None;
            }
            for (offset, to) in (consumed..consumed + bytes).zip(&mut *buffer) {
                *to = self.place(offset).load(Ordering::Relaxed);
            }
            let now = consumed + bytes;
            // What was copied is still ours: the producer overwrites only what is consumed.
            if self.consumed.compare_exchange(consumed, now, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                let credited = self.credited.load(Ordering::Relaxed);
                let due = now.saturating_sub(credited) >= STREAM_WINDOW_BYTES / 4
                    && self
                        .credited
                        .compare_exchange(credited, now, Ordering::Relaxed, Ordering::Relaxed)
                        .is_ok();
                return Some(Taken { bytes: bytes as usize, credit: due.then_some(now) });
            }
        }
    }
}

//! Messages between host and guest: sending from any thread, and one thread that reads the guest's rings.
//!
//! The reader tells the guest whether it is awake (a guest rings no doorbell for nothing), looks at all rings once more
//! before it sleeps, and never waits for anybody else: whoever consumes a program's output does so from a queue whose
//! length the guest's stream windows bound.

use crate::vcpu::Shared;
use nacre_abi::message::Header;
use nacre_abi::ring::{Consumer, Corrupt, Producer};
use nacre_abi::window::{ControlWord, Window};
use nacre_abi::{VcpuId, window};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use vmm_sys_util::eventfd::EventFd;

/// A window into the shared memory of `shared`; the memory lives as long as that.
pub fn window_of(shared: &Shared) -> Window<'_> {
    Window::new(shared.machine.shared().words(), shared.vcpus.len() as u32).expect("the layout gives the window its size")
}

/// Writes the host's words of the control page, before launch.
pub fn prepare(window: &Window<'_>, tsc_khz: u64, tsc: u64) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for (word, value) in [
        (ControlWord::Magic, window::MAGIC),
        (ControlWord::AbiVersion, u64::from(nacre_abi::ABI_VERSION)),
        (ControlWord::TscKhz, tsc_khz),
        (ControlWord::WallClockNs, wall.as_nanos() as u64),
        (ControlWord::WallClockTsc, tsc),
    ] {
        window.set_control(word, value);
    }
}

/// Sends messages to the guest, from any thread.
pub struct Sender {
    shared: Arc<Shared>,
    /// Where the ring ends; the producer is made anew from it at each use, because it borrows the shared memory.
    producer: Mutex<ProducerState>,
    room: Condvar,
}

/// The producer's own indices.
type ProducerState = nacre_abi::ring::ProducerState;

/// The CVM has ended; nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CVM has ended")]
pub struct Ended;

impl Sender {
    /// The sender of a new CVM.
    pub fn new(shared: Arc<Shared>) -> Sender {
        Sender { shared, producer: Mutex::default(), room: Condvar::new() }
    }

    /// Longest body of one message.
    pub const MAX_BODY: usize = window::TO_GUEST_BYTES as usize / 4;

    /// Sends one message, waiting for room if the ring is full.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn send(&self, header: Header, body: &[u8]) -> Result<(), Ended> {
        let window = window_of(&self.shared);
        let mut state = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.shared.stop.load(Ordering::SeqCst) {
                return Err(Ended);
            }
            let mut producer = Producer::resume(window.to_guest(), *state);
            let mut sent = producer.send(header, body);
            if sent.is_err() {
                // Say that somebody waits, then look once more: the guest looks in the other order.
                window.set_control(ControlWord::HostWantsRoom, 1);
                fence(Ordering::SeqCst);
                sent = producer.send(header, body);
            }
            *state = producer.state();
            if sent.is_ok() {
                window.set_control(ControlWord::HostWantsRoom, 0);
                drop(state);
                self.wake_if_parked(&window);
                return Ok(());
            }
            self.wake_if_parked(&window);
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake_if_parked(&self, window: &Window<'_>) {
        // The guest says that it parks before it looks at the ring for the last time.
        fence(Ordering::SeqCst);
        if window.control(ControlWord::NormalParked) != 0 {
            let _ = self.shared.vcpus[VcpuId::NORMAL.index()].wake.write(1);
        }
    }

    /// The guest rang: whoever waits for room looks again. Also called when the CVM ends.
    pub fn notify(&self) {
        // Taking the lock orders this after a waiter's look at the ring.
        drop(self.producer.lock().unwrap_or_else(PoisonError::into_inner));
        self.room.notify_all();
    }
}

/// Reads the guest's rings until the CVM stops; calls `handle` for each message with its copied body.
///
/// # Errors
/// [`Corrupt`] if the guest broke a ring.
pub fn read_rings(
    shared: &Shared,
    doorbell: &EventFd,
    sender: &Sender,
    mut handle: impl FnMut(Header, &[u8]),
) -> Result<(), Corrupt> {
    let window = window_of(shared);
    let mut rings: Vec<Consumer<'_>> = (0..shared.vcpus.len() as u32)
        .filter_map(|vcpu| window.to_host(VcpuId::new(vcpu)?))
        .map(Consumer::new)
        .collect();
    let mut body = vec![0; window::TO_HOST_BYTES as usize];
    window.set_control(ControlWord::HostAwake, 1);
    loop {
        let mut any = false;
        for ring in &mut rings {
            while let Some(incoming) = ring.receive()? {
                let header = incoming.header();
                let len = incoming.copy_body(0, &mut body);
                incoming.finish();
                handle(header, &body[..len]);
                any = true;
            }
        }
        if any {
            continue;
        }
        window.set_control(ControlWord::HostAwake, 0);
        fence(Ordering::SeqCst);
        if !rings.iter().any(Consumer::has_message) {
            if shared.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            // Blocks until the guest rings or the CVM is stopped.
            let _ = doorbell.read();
            sender.notify();
        }
        window.set_control(ControlWord::HostAwake, 1);
    }
}

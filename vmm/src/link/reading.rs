//! The thread that reads a guest's rings.

use super::{Sender, window_of};
use crate::last_words::LastWords;
use crate::socket::Relay;
use crate::vcpu::Shared;
use nacre_abi::message::{Header, Kind};
use nacre_abi::migrate::MoveEvent;
use nacre_abi::ring::{Consumer, Corrupt};
use nacre_abi::window::ControlWord;
use nacre_abi::{VcpuId, window};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// How long the reader looks for an answer that is expected before it sleeps: about what its wake costs, and the doorbell.
const READER_SPIN: Duration = Duration::from_micros(50);
/// After so many looks in vain it sleeps at once, but for each 32nd time: answers take longer.
const VAIN_LOOKS: u32 = 4;

/// Looks for a message for as long as it is worth. Others that want this CPU go first.
fn spin_for_message(rings: &[Consumer<'_>], shared: &Shared, vain: &mut u32) -> bool {
    *vain = vain.wrapping_add(1);
    if *vain > VAIN_LOOKS && !vain.is_multiple_of(32) {
        return false;
    }
    let begin = Instant::now();
    while begin.elapsed() < READER_SPIN && !shared.stop.load(Ordering::Relaxed) {
        if rings.iter().any(Consumer::has_message) {
            *vain = 0;
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Messages read from one ring before the next one's turn.
const MESSAGES_PER_LOOK: usize = 64;

/// A guest may leave some messages about connections without a doorbell, if it thinks that it has more to say soon: for this
/// long after the last one the rings are looked at this often.
const LINGER: Duration = Duration::from_millis(10);
const LINGER_LOOK_MS: i32 = 1;

/// What a message was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A connection.
    Connection,
    /// Anything else.
    Other,
}

/// Whether a message is to be seen after everything that was sent before it, also over other rings.
fn is_after_all_else(header: Header) -> bool {
    match header.kind {
        Kind::ProgramExited | Kind::MigrateCommit => true,
        Kind::MigrateEvent => header.stream == MoveEvent::Parked as u32,
        _ => false,
    }
}

/// Reads the guest's rings until the CVM stops; calls `handle` for each message with its copied body. Between two looks it
/// moves what the sockets of `relay` have. While `expects` says that answers are on their way, it looks for them for a short
/// time before it sleeps.
///
/// # Errors
/// [`Corrupt`] if the guest broke a ring.
pub fn read_rings(
    shared: &Shared,
    doorbell: &EventFd,
    sender: &Sender,
    relay: &mut Relay,
    expects: impl Fn() -> bool,
    mut handle: impl FnMut(Header, &[u8]) -> Traffic,
) -> Result<(), Corrupt> {
    let window = window_of(shared);
    let mut rings: Vec<Consumer<'_>> = (0..shared.vcpus.len() as u32)
        .filter_map(|vcpu| window.to_host(VcpuId::new(vcpu)?))
        .map(Consumer::new)
        .collect();
    let mut body = vec![0; window::TO_HOST_BYTES as usize];
    let (mut traffic, mut lingering_since) = (false, None);
    window.set_control(ControlWord::HostAwake, 1);
    let (mut vain, mut last_words, count) = (0, LastWords::default(), rings.len());
    loop {
        let mut any = false;
        for (number, ring) in rings.iter_mut().enumerate() {
            // Bounded, so that a guest that floods one ring cannot keep the others, or the end, from being seen.
            for _ in 0..MESSAGES_PER_LOOK {
                let Some(incoming) = ring.receive()? else {
                    last_words.seen_empty(number);
                    break;
                };
                let header = incoming.header();
                let len = incoming.copy_body(0, &mut body);
                incoming.finish();
                any = true;
                sender.counters.received.fetch_add(1, Ordering::Relaxed);
                let is_last = is_after_all_else(header);
                if !(is_last && last_words.keep(header, &body[..len], number, count)) {
                    traffic |= handle(header, &body[..len]) == Traffic::Connection;
                }
            }
        }
        while let Some((header, body)) = last_words.next() {
            handle(header, &body);
        }
        sender.flush();
        let more = relay.turn();
        sender.kick();
        if (any || more || last_words.any()) && !shared.stop.load(Ordering::SeqCst) {
            if !relay.is_empty() {
                relay.wait(0);
            }
            if sender.is_awaited() {
                sender.notify();
            }
            continue;
        }
        if expects() && spin_for_message(&rings, shared, &mut vain) {
            continue;
        }
        window.set_control(ControlWord::HostAwake, 0);
        fence(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        if !rings.iter().any(Consumer::has_message) {
            if std::mem::take(&mut traffic) {
                lingering_since = Some(Instant::now());
            }
            lingering_since = lingering_since.filter(|since: &Instant| since.elapsed() < LINGER);
            sender.counters.sleeps.fetch_add(1, Ordering::Relaxed);
            // Blocks until the guest rings, a socket has something or the CVM is stopped.
            match lingering_since {
                Some(_) => drop(relay.wait(LINGER_LOOK_MS)),
                None if relay.is_empty() => drop(doorbell.read()),
                None => drop(relay.wait(-1)),
            }
            sender.notify();
        }
        window.set_control(ControlWord::HostAwake, 1);
    }
}

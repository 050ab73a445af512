//! TCP connections of a program, as messages on the rings: numbers, offsets, flow control. Both sides use these types.
//!
//! ```text
//! H SocketOpen(limit, peer)            the host may send at once, up to INITIAL_LIMIT
//!                                      G SocketAccepted(limit) | SocketRefused
//! both SocketData(offset)*             both SocketCredit(limit): the receiver has consumed, and takes more
//! both SocketEnd(offset)               half-close
//! both SocketClose(offset) | SocketReset     the sender's last word about this number
//! ```
//!
//! **Offsets.** Both directions count bytes from 0 and each piece says where it belongs. The guest writes from the ring
//! of whichever vCPU its task is on, so the host puts pieces in order; a `SocketEnd` or `SocketClose` takes effect when
//! everything before its offset has come. The host has one ring: there a piece that is not the next one is an error.
//!
//! **Credit.** What a sender may have on the way is bounded by a *limit* on the cost of all it ever sent; a message costs its
//! bytes and [`MESSAGE_COST`], because that is what the receiver keeps for it: a stream of one-byte messages may not take more
//! memory than one of long ones. Limits only rise; a lower one is late and ignored.
//!
//! **Numbers.** The host chooses them: a slot below [`MAX_CONNECTIONS`] and a generation. It uses a slot again, with the next
//! generation, only after it has sent its last word and has got the guest's, so neither side can still mean the old one.
//! What names a number that its receiver does not know, or that had its last word, is ignored.
//!
//! **Lies.** Whatever breaks these rules ends that connection with an error and changes nothing else.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a message costs beside its bytes.
pub const MESSAGE_COST: u64 = 64;

/// Up to what cost the host may send before the guest has said a limit.
pub const INITIAL_LIMIT: u64 = 16 << 10;

/// The window of a connection: how much cost a receiver lets the sender have on the way, if it has the memory.
pub const WINDOW: u64 = 256 << 10;

/// A limit this far beyond what was sent is a lie.
const MAX_AHEAD: u64 = 1 << 40;

/// Longest body of one `SocketData` message: short enough that no connection keeps others off a ring for long.
pub const MAX_DATA: usize = 32 << 10;

/// Connections that a program has at most.
pub const MAX_CONNECTIONS: u32 = 1 << SLOT_BITS;

/// Connections that wait to be accepted at most.
pub const BACKLOG: usize = 1024;

/// Bits of a number that say the slot.
pub const SLOT_BITS: u32 = 14;

/// A connection's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u32);

impl ConnectionId {
    /// The number of a slot and a generation, of which the low bits count.
    pub const fn new(slot: u32, generation: u32) -> ConnectionId {
        ConnectionId(slot & (MAX_CONNECTIONS - 1) | generation << SLOT_BITS)
    }

    /// The slot, below [`MAX_CONNECTIONS`].
    pub const fn slot(self) -> u32 {
        self.0 & (MAX_CONNECTIONS - 1)
    }

    /// The number of the slot's next connection.
    pub const fn next(self) -> ConnectionId {
        ConnectionId::new(self.slot(), (self.0 >> SLOT_BITS).wrapping_add(1))
    }
}

/// Why the guest refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The program does not listen, or no more.
    NotListening = 0,
    /// As many connections wait to be accepted, or are open, as can be.
    Full = 1,
    /// There is no memory for it.
    NoMemory = 2,
}

impl Refusal {
    /// The reason with this number, if there is one.
    pub const fn from_number(number: u64) -> Option<Refusal> {
        match number {
            0 => Some(Refusal::NotListening),
            1 => Some(Refusal::Full),
            2 => Some(Refusal::NoMemory),
            _ => None,
        }
    }
}

/// The other side broke the rules of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The sending half of a connection: where its stream is, and how much more it may carry.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    offset: u64,
    cost: u64,
    limit: u64,
    ended: bool,
}

impl Sending {
    /// A stream at its start, with this limit.
    pub const fn new(limit: u64) -> Sending {
        Sending { offset: 0, cost: 0, limit, ended: false }
    }

    /// Bytes sent so far.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Nothing more is sent.
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Bytes that the next message can carry.
    pub fn room(&self) -> usize {
        let left = self.limit.saturating_sub(self.cost).saturating_sub(MESSAGE_COST);
        left.min(MAX_DATA as u64) as usize
    }

    /// Takes `len` bytes, at most [`room`](Self::room), for a message; returns their offset.
    pub fn take(&mut self, len: usize) -> u64 {
        let at = self.offset;
        self.offset += len as u64;
        self.cost += len as u64 + MESSAGE_COST;
        at
    }

    /// The receiver's limit is this; whether that lets more be sent.
    ///
    /// # Errors
    /// [`Broken`] if it is no limit that an honest receiver says.
    pub fn raise(&mut self, limit: u64) -> Result<bool, Broken> {
        if limit > self.cost.saturating_add(MAX_AHEAD) {
            return Err(Broken);
        }
        let more = limit > self.limit;
        self.limit = self.limit.max(limit);
        Ok(more)
    }

    /// Ends the stream; where, unless it was ended before.
    pub fn end(&mut self) -> Option<u64> {
        (!core::mem::replace(&mut self.ended, true)).then_some(self.offset)
    }
}

/// The flow control of a receiving half. Where pieces belong is the owner's part.
#[derive(Clone, Copy, Debug)]
pub struct Receiving {
    cost: u64,
    limit: u64,
}

impl Receiving {
    /// Nothing received; the sender was told this limit.
    pub const fn new(limit: u64) -> Receiving {
        Receiving { cost: 0, limit }
    }

    /// The limit that the sender was told.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// A piece of `len` bytes has come.
    ///
    /// # Errors
    /// [`Broken`] if it is beyond the limit, empty or too long.
    pub fn charge(&mut self, len: usize) -> Result<(), Broken> {
        let cost = self.cost.saturating_add(len as u64 + MESSAGE_COST);
        if len == 0 || len > MAX_DATA || cost > self.limit {
            return Err(Broken);
        }
        self.cost = cost;
        Ok(())
    }

    /// The limit to tell the sender now, if it is worth a message: `held` is the cost of what is kept of what came,
    /// `window` how much may be on the way.
    pub fn credit(&mut self, held: u64, window: u64) -> Option<u64> {
        let limit = self.cost.saturating_sub(held).saturating_add(window);
        let due = limit.saturating_sub(self.limit) >= (window / 4).max(1);
        if due {
            self.limit = limit;
        }
        due.then_some(limit)
    }
}

/// Bytes of an encoded address.
pub const ADDRESS_BYTES: usize = 20;

/// An address as the body of `SocketOpen`: family (4 or 6), a zero, the port (big-endian), 16 bytes of address.
pub fn encode_address(address: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes[0] = 4;
            bytes[4..8].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes[0] = 6;
            bytes[4..].copy_from_slice(&ip.octets());
        }
    }
    bytes
}

/// Reads what [`encode_address`] wrote; `None` if it is nothing of the kind.
pub fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    let bytes: &[u8; ADDRESS_BYTES] = bytes.try_into().ok()?;
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let (four, all) = (bytes[4..].first_chunk::<4>()?, bytes[4..].first_chunk::<16>()?);
    match (bytes[0], bytes[1]) {
        (4, 0) => Some(SocketAddr::new(Ipv4Addr::from(*four).into(), port)),
        (6, 0) => Some(SocketAddr::new(Ipv6Addr::from(*all).into(), port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_name_slot_and_generation() {
        let first = ConnectionId::new(77, 0);
        assert_eq!((first.slot(), first.next().slot()), (77, 77));
        assert_ne!(first, first.next());
        let last = ConnectionId::new(MAX_CONNECTIONS - 1, u32::MAX);
        assert_eq!(last.next(), ConnectionId::new(MAX_CONNECTIONS - 1, 0));
    }

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in ["127.0.0.1:80", "[::1]:65535", "[2001:db8::7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(decode_address(&encode_address(address)), Some(address));
        }
        assert_eq!(decode_address(&[0; ADDRESS_BYTES]), None);
        assert_eq!(decode_address(b"4"), None);
    }

    proptest! {
        /// A sender that keeps to the limits it is told never breaks the receiver's rules, and never waits for ever
        /// for a receiver that consumes.
        #[test]
        fn honest_sides_agree(
            wishes in prop::collection::vec((1usize..70_000, 0u64..200_000), 1..200),
            window in INITIAL_LIMIT..2 * WINDOW,
        ) {
            let mut sending = Sending::new(window);
            let mut receiving = Receiving::new(window);
            let mut held = 0;
            for (wish, eats) in wishes {
                let len = wish.min(sending.room());
                if len > 0 {
                    sending.take(len);
                    prop_assert_eq!(receiving.charge(len), Ok(()));
                    held += len as u64 + MESSAGE_COST;
                }
                held -= held.min(eats);
                if let Some(limit) = receiving.credit(held, window) {
                    prop_assert_eq!(sending.raise(limit), Ok(true));
                }
                prop_assert!(held > 0 || sending.room() > 0);
                prop_assert!(receiving.limit() <= receiving.cost + window);
            }
        }

        /// Whatever a sender does, what a receiver lets in is bounded by what it gave credit for.
        #[test]
        fn a_greedy_sender_is_stopped(pieces in prop::collection::vec(0usize..40_000, 1..300)) {
            let mut receiving = Receiving::new(WINDOW);
            let let_in: u64 =
                pieces.iter().filter(|len| receiving.charge(**len).is_ok()).map(|len| *len as u64 + MESSAGE_COST).sum();
            prop_assert!(let_in <= WINDOW);
        }
    }

    #[test]
    fn credit_that_overflows_is_a_lie() {
        let mut sending = Sending::new(INITIAL_LIMIT);
        assert_eq!(sending.raise(u64::MAX), Err(Broken));
        assert_eq!(sending.raise(1), Ok(false));
        assert_eq!(sending.room(), INITIAL_LIMIT as usize - 64);
        assert_eq!((sending.end(), sending.end()), (Some(0), None));
    }
}

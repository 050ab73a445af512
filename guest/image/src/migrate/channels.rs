//! The channels of a migration at this end: their pipes in the window, and the agent memory in which frames are put together and taken
//! apart. All of it is set aside at launch, so a CVM whose tenant has used up everything can still move it.

use crate::arch;
use crate::memory;
use core::sync::atomic::{Ordering, fence};
use nacre_abi::hypercall::{self, PipeNews};
use nacre_abi::layout::{AGENT_VA, Layout};
use nacre_abi::migrate::{
    CONTROL_FRAME_BYTES, FIRST_LANE, FRAME_BYTES, MoveEvent, REQUEST_BYTES, ledger_bytes,
};
use nacre_abi::pipe::{Pipe, PipeReader, PipeWord, PipeWriter};
use nacre_migrate::Slot;
use nacre_migrate::channel::{Channel, ChannelError};
use nacre_migrate::wire::{Connection, LaneId};

/// The number of the control channel.
pub const CONTROL: u32 = 0;
/// The number of the demand channel.
pub const DEMAND: u32 = 1;

/// Which way content travels: who sends it needs the large buffer for what goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Content goes out.
    Away,
    /// Content comes in.
    Here,
}

/// A channel, and its number.
pub struct Port {
    number: u32,
    /// What came is no frame: nothing more is taken from it before it begins again.
    broken: bool,
    channel: Channel<'static>,
}

/// The agent memory of one migration. There is one at a time.
pub struct AgentMemory {
    at: u64,
    end: u64,
}

impl AgentMemory {
    /// All of it.
    ///
    /// # Safety
    /// Nothing of an earlier migration is in use any more.
    pub unsafe fn new(layout: &Layout) -> AgentMemory {
        let at = AGENT_VA + layout.migrate_offset;
        AgentMemory { at, end: at + layout.migrate_bytes }
    }

    fn take<T>(&mut self, count: usize) -> &'static mut [T] {
        let start = self.at.next_multiple_of(64);
        self.at = start + (count * size_of::<T>()) as u64;
        assert!(self.at <= self.end, "the layout sets too little aside for migrations");
        // SAFETY: inside the memory that the layout sets aside, mapped for good, handed out once; bytes and slots may have
        // any value.
        unsafe { core::slice::from_raw_parts_mut(start as *mut T, count) }
    }

    /// Slots for the ledgers of so many lanes.
    pub fn slots(
        &mut self,
        layout: &Layout,
        lanes: usize,
    ) -> impl Iterator<Item = &'static mut [Slot]> + use<> {
        let bytes = ledger_bytes(layout.params.memory_bytes) as usize;
        let all = self.take::<Slot>(bytes / size_of::<Slot>());
        let each = all.len() / lanes;
        all.chunks_exact_mut(each).take(lanes)
    }

    /// A channel of this migration. The host has emptied its pipes before it began; something may have come since.
    pub fn port(&mut self, number: u32, way: Way) -> Port {
        let (long, short) = match number {
            CONTROL => (CONTROL_FRAME_BYTES, CONTROL_FRAME_BYTES),
            _ => (FRAME_BYTES, REQUEST_BYTES),
        };
        let (long, short) = (self.take(long as usize), self.take(short as usize));
        let (incoming, outgoing) = match way {
            Way::Away => (short, long),
            Way::Here => (long, short),
        };
        let [to_guest, to_host] = pipes(number);
        let channel = Channel::new(PipeReader::new(to_guest), PipeWriter::new(to_host), incoming, outgoing);
        Port { number, broken: false, channel }
    }
}

/// The number of a lane's channel.
pub fn of_lane(lane: usize) -> u32 {
    FIRST_LANE + lane as u32
}

/// The pipes of a channel: to the guest, and to the host.
pub fn pipes(number: u32) -> [Pipe<'static>; 2] {
    super::window().pipes(number).unwrap_or_else(|| unreachable!("a channel that the layout has"))
}

/// Whether something came on a channel, as far as its indices say.
pub fn has_news(number: u32) -> bool {
    let [to_guest, _] = pipes(number);
    to_guest.get(PipeWord::Written).wrapping_sub(to_guest.get(PipeWord::Read)) >= 8
}

/// Whether there is room to write, as far as the indices say.
pub fn has_room(number: u32) -> bool {
    let [_, to_host] = pipes(number);
    to_host.get(PipeWord::Written).wrapping_sub(to_host.get(PipeWord::Read)) < to_host.capacity()
}

/// Lets the host wake vCPU 0 for what comes, or for room: said before one looks for the last time.
pub fn announce_sleep(number: u32, for_room: bool) {
    let [to_guest, to_host] = pipes(number);
    to_guest.set(PipeWord::ReaderWaits, 1);
    if for_room {
        to_host.set(PipeWord::WriterWaits, 1);
    }
}

impl Port {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The connection whose frames it carries after the hand-over.
    pub fn connection(&self) -> Connection {
        match self.number {
            CONTROL => Connection::Control,
            DEMAND => Connection::Demand,
            number => {
                LaneId::new((number - FIRST_LANE) as usize).map_or(Connection::Demand, Connection::Fetch)
            }
        }
    }

    /// The channel.
    pub fn channel(&mut self) -> &mut Channel<'static> {
        &mut self.channel
    }

    /// The next frame, if it is there whole; lets the host know of the room that makes.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn receive(&mut self) -> Result<Option<&mut [u8]>, ChannelError> {
        if !self.has_news() {
            return Ok(None);
        }
        let number = self.number;
        let received = self.channel.receive();
        self.broken = received.is_err();
        let received = received?;
        let [to_guest, _] = pipes(number);
        fence(Ordering::SeqCst);
        if to_guest.get(PipeWord::WriterWaits) != 0 && to_guest.swap(PipeWord::WriterWaits, 0) != 0 {
            arch::hypercall(hypercall::pipe(number, PipeNews::Room), 0);
        }
        Ok(received)
    }

    /// Writes what waits as far as there is room, and lets the host know; returns whether anything went.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        if self.channel.flush()? == 0 {
            return Ok(false);
        }
        let [_, to_host] = pipes(self.number);
        fence(Ordering::SeqCst);
        if to_host.get(PipeWord::ReaderWaits) != 0 && to_host.swap(PipeWord::ReaderWaits, 0) != 0 {
            arch::hypercall(hypercall::pipe(self.number, PipeNews::Written), 0);
        }
        Ok(true)
    }

    /// What came is not what the other end has sent: takes nothing more before it begins again, and tells the host, who can make another connection.
    pub fn give_up(&mut self) {
        self.broken = true;
        super::tell(MoveEvent::Spoiled, u64::from(self.number), &[]);
    }

    /// Whether something came that can be taken.
    pub fn has_news(&self) -> bool {
        !self.broken && has_news(self.number)
    }

    /// Begins again with empty pipes.
    pub fn reset(&mut self) {
        self.broken = false;
        self.channel.reset();
    }

    /// Appends a frame; false if there is no room for it.
    #[must_use]
    pub fn push(&mut self, frame: &[u8]) -> bool {
        self.channel.push(frame)
    }
}

/// Bytes of memory that the layout gives to migrations of this CVM.
pub fn layout() -> &'static Layout {
    memory::layout()
}

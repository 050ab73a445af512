//! Messages between host and guest: sending from any thread, and one thread that reads the guest's rings.
//!
//! The reader tells the guest whether it is awake (a guest rings no doorbell for nothing), looks at all rings once more
//! before it sleeps, and never waits for anybody else: whoever consumes a program's output does so from a queue whose
//! length the guest's stream windows bound.

mod moving;
mod reading;

pub use reading::{Traffic, read_rings};

use crate::memory::SharedMemory;
use crate::socket::Outlet;
use crate::tunnel::concern::Concern;
use crate::vcpu::Shared;
use nacre_abi::elastic::{EPOCH_NOW, EPOCHS, ElasticWord, PAGE_VERSION};
use nacre_abi::message::Header;
use nacre_abi::ring::{Producer, ProducerState};
use nacre_abi::window::{ControlWord, Window};
use nacre_abi::{VcpuId, window};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{SystemTime, UNIX_EPOCH};
use vmm_sys_util::eventfd::EventFd;

/// A window into the shared memory of `shared`; the memory lives as long as that.
pub fn window_of(shared: &Shared) -> Window<'_> {
    Window::new(shared.machine.shared().words(), shared.vcpus.len() as u32, shared.lanes)
        .expect("the layout gives the window its size")
}

/// Writes the host's words of the control page, and of the shared page what the CPU manager does not, before launch.
pub fn prepare(window: &Window<'_>, tsc_khz: u64, tsc: u64, spin_limit_ns: u64) {
    window.elastic().set(ElasticWord::Version, PAGE_VERSION);
    window.elastic().set(ElasticWord::SpinLimit, spin_limit_ns);
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

/// What of a CVM its sender uses. It holds on to none of the CVM's private memory: a tenant that moved leaves a sender behind.
pub struct Doorway {
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) vcpus: u32,
    pub(crate) lanes: u32,
    pub(crate) stop: Arc<AtomicBool>,
    /// Wakes vCPU 0.
    pub(crate) wake: EventFd,
}

impl Doorway {
    /// That of this CVM.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn new(shared: &Shared) -> io::Result<Doorway> {
        Ok(Doorway {
            memory: shared.machine.shared_memory(),
            vcpus: shared.vcpus.len() as u32,
            lanes: shared.lanes,
            stop: shared.stop.clone(),
            wake: shared.vcpus[VcpuId::NORMAL.index()].wake.try_clone()?,
        })
    }

    pub(crate) fn window(&self) -> Window<'_> {
        Window::new(self.memory.words(), self.vcpus, self.lanes)
            .expect("the layout gives the window its size")
    }
}

/// Where messages go.
#[derive(Default)]
enum Way {
    /// To the guest.
    #[default]
    Guest,
    /// Nowhere for now: the tenant is about to leave, or to arrive.
    Held(Held),
    /// To where the tenant is.
    Away(Arc<dyn Outlet>),
}

/// Why messages are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The tenant may leave; so many of the posted messages go with it ([`Sender::hold`]).
    Leaving(usize),
    /// It will run here soon ([`Sender::expect_tenant`]).
    Arriving,
}

/// Sends messages to the guest, from any thread. When the tenant moves, they are [held](Self::hold) and then go back to the guest
/// ([`go_on`](Self::go_on)), or to where the tenant is ([`leave`](Self::leave)). What concerns the migration itself always goes to the guest.
pub struct Sender {
    door: Doorway,
    /// Where the ring ends; the producer is made anew from it at each use, because it borrows the shared memory.
    producer: Mutex<SenderState>,
    room: Condvar,
    /// Messages that wait in [`SenderState::posted`].
    posted: AtomicUsize,
    /// Messages went out for which the guest was not woken yet.
    quiet: AtomicBool,
    counters: Counters,
}

#[derive(Default)]
struct SenderState {
    /// The producer's own indices.
    producer: ProducerState,
    /// Threads that wait for room.
    waiting: usize,
    /// The same for tasks of an executor.
    wakers: Vec<Waker>,
    /// Messages for which nobody waits: the thread that reads the rings sends them when there is room.
    posted: VecDeque<(Header, Vec<u8>)>,
    /// Bytes of them.
    posted_bytes: usize,
    /// Where all of them go.
    way: Way,
}

impl SenderState {
    fn wants_room(&self) -> bool {
        self.waiting != 0 || !self.wakers.is_empty() || !self.posted.is_empty()
    }
}

/// Messages for which nobody waits may take so many bytes in all, beyond the ring; more are refused.
pub const MAX_POSTED_BYTES: usize = 8 << 20;

/// What has gone between host and guest, for the costs of a call.
#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    wakes: AtomicU64,
    sleeps: AtomicU64,
}

/// What has gone between host and guest since the launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Messages to the guest.
    pub sent: u64,
    /// Messages from it.
    pub received: u64,
    /// Times vCPU 0 was woken for a message: writes of an event descriptor.
    pub wakes: u64,
    /// Times the thread that reads the rings slept until the guest rang.
    pub sleeps: u64,
}

/// Why nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The CVM has ended.
    #[error("the CVM has ended")]
    Ended,
    /// A body is longer than a message can have: an argument, a variable or a path of the program.
    #[error("{0} bytes are too long for one argument, variable or path; 256 KiB is the limit")]
    TooLong(usize),
    /// So much waits to be sent already that no more is taken.
    #[error(
        "the guest is behind: {MAX_POSTED_BYTES} bytes wait for it already; try again when a call has ended"
    )]
    Full,
    /// The tenant is in another CVM.
    #[error("the tenant has moved to another CVM")]
    Moved,
}

impl Sender {
    /// The sender of a new CVM.
    pub fn new(door: Doorway) -> Sender {
        Sender {
            door,
            producer: Mutex::default(),
            room: Condvar::new(),
            posted: AtomicUsize::new(0),
            quiet: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// Longest body of one message.
    pub const MAX_BODY: usize = window::TO_GUEST_BYTES as usize / 4;

    /// Sends one message, waiting for room if the ring is full.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&self, header: Header, body: &[u8]) -> Result<(), SendError> {
        self.send_noting(header, body, || ())
    }

    /// The same; `note` is called once it is sent, before anybody can hold messages.
    ///
    /// # Errors
    /// [`SendError`].
    pub(crate) fn send_noting(
        &self,
        header: Header,
        body: &[u8],
        note: impl FnOnce(),
    ) -> Result<(), SendError> {
        if body.len() > Self::MAX_BODY {
            return Err(SendError::TooLong(body.len()));
        }
        let window = self.door.window();
        let mut state = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.try_send(&window, &mut state, header, body)? {
            // Say that somebody waits, then look once more: the guest looks in the other order.
            state.waiting += 1;
            window.set_control(ControlWord::HostWantsRoom, 1);
            fence(Ordering::SeqCst);
            let sent = self.try_send(&window, &mut state, header, body)?;
            self.wake_if_parked(&window);
            if !sent {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting -= 1;
            if !state.wants_room() {
                window.set_control(ControlWord::HostWantsRoom, 0);
            }
            if sent {
                note();
                return Ok(());
            }
        }
        note();
        drop(state);
        self.wake_if_parked(&window);
        Ok(())
    }

    /// Sends if there is room, and else has `waker` woken when there may be. Never waits, and does not wake the guest: see
    /// [`kick`](Self::kick).
    ///
    /// # Errors
    /// [`SendError`].
    pub fn try_post(&self, header: Header, body: &[u8], waker: &Waker) -> Result<bool, SendError> {
        let window = self.door.window();
        let mut state = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Way::Away(there) = &state.way {
            // With the lock held: nobody takes that way away meanwhile.
            let sent = there.try_post(header, body, waker);
            there.kick();
            return sent;
        }
        self.send_posted(&window, &mut state)?;
        if state.posted.is_empty() && self.try_send(&window, &mut state, header, body)? {
            self.quiet.store(true, Ordering::Release);
            return Ok(true);
        }
        state.wakers.push(waker.clone());
        window.set_control(ControlWord::HostWantsRoom, 1);
        fence(Ordering::SeqCst);
        // If it works now the waker is woken in vain.
        self.send_posted(&window, &mut state)?;
        let sent = state.posted.is_empty() && self.try_send(&window, &mut state, header, body)?;
        // Sending what was posted may have said that nobody waits.
        window.set_control(ControlWord::HostWantsRoom, 1);
        self.wake_if_parked(&window);
        Ok(sent)
    }

    /// Sends a short message whose number something else bounds, now or when there is room. Never waits, and does not wake the
    /// guest: see [`kick`](Self::kick).
    ///
    /// # Errors
    /// [`SendError::Ended`].
    pub fn post_quietly(&self, header: Header, body: &[u8]) -> Result<(), SendError> {
        let window = self.door.window();
        let mut state = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        self.send_posted(&window, &mut state)?;
        if self.may_go(&state, header) && self.try_send(&window, &mut state, header, body)? {
            self.quiet.store(true, Ordering::Release);
            return Ok(());
        }
        state.posted_bytes += body.len();
        state.posted.push_back((header, body.to_vec()));
        self.posted.fetch_add(1, Ordering::Relaxed);
        self.send_posted(&window, &mut state)?;
        self.wake_if_parked(&window);
        Ok(())
    }

    /// Whether a message may go ahead of what waits: nothing does, or it concerns the migration.
    fn may_go(&self, state: &SenderState, header: Header) -> bool {
        state.posted.is_empty() || Concern::of(header.kind) == Concern::Migration
    }

    /// Wakes the guest if it sleeps, for what was posted quietly since the last time.
    pub fn kick(&self) {
        if self.quiet.load(Ordering::Relaxed) && self.quiet.swap(false, Ordering::AcqRel) {
            self.wake_if_parked(&self.door.window());
        }
    }

    /// Sends if there is room.
    fn try_send(
        &self,
        window: &Window<'_>,
        state: &mut SenderState,
        header: Header,
        body: &[u8],
    ) -> Result<bool, SendError> {
        match &state.way {
            Way::Guest => {}
            _ if Concern::of(header.kind) == Concern::Migration => {}
            Way::Held(_) if self.door.stop.load(Ordering::SeqCst) => return Err(SendError::Ended),
            Way::Held(_) => return Ok(false),
            Way::Away(there) if Concern::of(header.kind) == Concern::Origin => {
                there.post(header, body)?;
                there.kick();
                return Ok(true);
            }
            Way::Away(_) => return Err(SendError::Moved),
        }
        if self.door.stop.load(Ordering::SeqCst) {
            return Err(SendError::Ended);
        }
        let mut producer = Producer::resume(window.to_guest(), state.producer);
        let sent = producer.send(header, body);
        state.producer = producer.state();
        self.counters.sent.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
        Ok(sent.is_ok())
    }

    /// Sends messages in their order without ever waiting for the guest: what the ring has no room for is kept, and sent by
    /// the thread that reads the rings. All of them or none.
    ///
    /// # Errors
    /// [`SendError::Full`] if more than [`MAX_POSTED_BYTES`] wait already, unless `must`: for the few whose number something
    /// else bounds.
    pub fn post<'b>(
        &self,
        messages: impl IntoIterator<Item = (Header, &'b [u8])>,
        must: bool,
    ) -> Result<(), SendError> {
        let window = self.door.window();
        let mut state = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if state.posted_bytes > MAX_POSTED_BYTES && !must {
            return Err(SendError::Full);
        }
        for (header, body) in messages {
            if body.len() > Self::MAX_BODY {
                return Err(SendError::TooLong(body.len()));
            }
            if self.may_go(&state, header) && self.try_send(&window, &mut state, header, body)? {
                continue;
            }
            state.posted_bytes += body.len();
            state.posted.push_back((header, body.to_vec()));
            self.posted.fetch_add(1, Ordering::Relaxed);
        }
        self.send_posted(&window, &mut state)?;
        drop(state);
        self.wake_if_parked(&window);
        Ok(())
    }

    /// Sends what was posted, as far as there is room now. Called by the thread that reads the rings.
    pub fn flush(&self) {
        if self.posted.load(Ordering::Relaxed) != 0 {
            let window = self.door.window();
            let mut state = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
            // Else the CVM has ended, and nobody waits for them.
            let _ = self.send_posted(&window, &mut state);
            drop(state);
            self.wake_if_parked(&window);
        }
    }

    fn send_posted(&self, window: &Window<'_>, state: &mut SenderState) -> Result<(), SendError> {
        if state.posted.is_empty() || matches!(state.way, Way::Held(_)) {
            return Ok(());
        }
        // Said before the last look: the guest looks in the other order, and rings when it has made room.
        window.set_control(ControlWord::HostWantsRoom, 1);
        fence(Ordering::SeqCst);
        while let Some((header, body)) = state.posted.pop_front() {
            if !self.try_send(window, state, header, &body)? {
                state.posted.push_front((header, body));
                return Ok(());
            }
            state.posted_bytes -= body.len();
            self.posted.fetch_sub(1, Ordering::Relaxed);
        }
        if !state.wants_room() {
            window.set_control(ControlWord::HostWantsRoom, 0);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, SenderState> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has gone between host and guest so far.
    pub fn stats(&self) -> LinkStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            sent: count(&self.counters.sent),
            received: count(&self.counters.received),
            wakes: count(&self.counters.wakes),
            sleeps: count(&self.counters.sleeps),
        }
    }

    fn wake_if_parked(&self, window: &Window<'_>) {
        // The guest says that it parks before it looks at the ring for the last time.
        fence(Ordering::SeqCst);
        // Whoever takes the word back rings: one of many that send meanwhile.
        if window.control(ControlWord::NormalParked) != 0
            && window.swap_control(ControlWord::NormalParked, 0) != 0
        {
            self.counters.wakes.fetch_add(1, Ordering::Relaxed);
            let _ = self.door.wake.write(1);
        } else if self.door.vcpus == 1 {
            // Without workers it may compute: its task comes to a safe point, where it reads the ring.
            raise_epochs(window);
        }
    }

    /// Wakes the guest's vCPU 0 if it sleeps.
    pub(crate) fn wake_guest(&self) {
        self.wake_if_parked(&self.door.window());
    }

    /// The guest rang: whoever waits for room looks again. Also called when the CVM ends.
    pub fn notify(&self) {
        let window = self.door.window();
        // Taking the lock orders this after a waiter's look at the ring.
        let mut state = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.wants_room() {
            return;
        }
        let had_posted = !state.posted.is_empty();
        // If the CVM has ended, whoever is woken finds that out.
        let _ = self.send_posted(&window, &mut state);
        let wakers = std::mem::take(&mut state.wakers);
        if !state.wants_room() {
            window.set_control(ControlWord::HostWantsRoom, 0);
        }
        drop(state);
        if had_posted {
            self.wake_if_parked(&window);
        }
        self.room.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether anybody waits for room.
    fn is_awaited(&self) -> bool {
        self.door.window().control(ControlWord::HostWantsRoom) != 0
    }
}

/// Makes compiled code that runs now come to a safe point, at its next epoch check.
pub fn raise_epochs(window: &Window<'_>) {
    for epoch in EPOCHS {
        window.elastic().set(epoch, EPOCH_NOW);
    }
}

//! `poll_oneoff`: waiting for times, streams and files at once.
//!
//! All subscriptions are copied and turned into deadlines and interests first; then they are looked at, and while
//! none has happened the task parks in [`System::wait`] until something may have changed. There is no spinning. A service
//! polls thousands of sockets at once: each look at one is a few instructions, in memory that is used again.

use alloc::vec::Vec;

use crate::{
    ctx::{Call, Fail, WasiCtx, run},
    fdtable::Kind,
    memory,
    sockets::Readiness,
    system::{Clock, Interest, Stop, Stream, System},
    types::{
        EVENT_BYTES, Errno, Event, FD_READWRITE_HANGUP, SUBSCRIPTION_BYTES, SUBSCRIPTION_CLOCK_ABSTIME,
        clockid, eventtype, rights,
    },
};

/// The most subscriptions of one call.
const SUBSCRIPTION_LIMIT: u32 = 1 << 16;

/// What a subscription waits for.
#[derive(Clone, Copy, Debug)]
enum What {
    /// The monotonic clock reaches this.
    Monotonic(u64),
    /// The wall clock reaches this, however it is set meanwhile.
    Realtime(u64),
    Read(u32),
    Write(u32),
    /// It can't be waited for: an event with an error.
    Bad(u8, Errno),
}

#[derive(Clone, Copy, Debug)]
struct Subscription {
    userdata: u64,
    what: What,
}

/// Copies a field out of a record; the offsets are constants inside it.
fn field<const N: usize>(record: &[u8; SUBSCRIPTION_BYTES as usize], at: usize) -> [u8; N] {
    record.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// Decodes a `$subscription`: userdata u64 at 0, tag u8 at 8; for a clock its id u32 at 16, timeout u64 at 24,
/// precision u64 at 32, flags u16 at 40; for a descriptor its number u32 at 16.
fn decode(record: &[u8; SUBSCRIPTION_BYTES as usize], monotonic: u64) -> Result<Subscription, Errno> {
    let userdata = u64::from_le_bytes(field(record, 0));
    let [tag] = field(record, 8);
    let what = match tag {
        eventtype::CLOCK => {
            let timeout = u64::from_le_bytes(field(record, 24));
            let flags = u16::from_le_bytes(field(record, 40));
            if flags & !SUBSCRIPTION_CLOCK_ABSTIME != 0 {
                return Err(Errno::Inval);
            }
            match (u32::from_le_bytes(field(record, 16)), flags & SUBSCRIPTION_CLOCK_ABSTIME != 0) {
                (clockid::MONOTONIC, true) => What::Monotonic(timeout),
                (clockid::REALTIME, true) => What::Realtime(timeout),
                (clockid::MONOTONIC | clockid::REALTIME, false) => {
                    What::Monotonic(monotonic.saturating_add(timeout))
                }
                // CPU time stands still while the program waits.
                _ => What::Bad(tag, Errno::Inval),
            }
        }
        eventtype::FD_READ => What::Read(u32::from_le_bytes(field(record, 16))),
        eventtype::FD_WRITE => What::Write(u32::from_le_bytes(field(record, 16))),
        _ => return Err(Errno::Inval),
    };
    Ok(Subscription { userdata, what })
}

/// What looking at a subscription shows.
enum State {
    /// It happened: event type, error, bytes, hang-up.
    Ready(u8, Errno, u64, bool),
    /// Not before the monotonic clock reaches this.
    Until(u64),
    /// Not before this happens.
    On(Interest),
}

fn ready_clock(reached: bool, until: impl FnOnce() -> u64) -> State {
    if reached { State::Ready(eventtype::CLOCK, Errno::Success, 0, false) } else { State::Until(until()) }
}

fn look_at_stream(kind: u8, ready: Option<u64>, interest: Interest) -> State {
    match ready {
        Some(bytes) => State::Ready(kind, Errno::Success, bytes, bytes == 0),
        None => State::On(interest),
    }
}

/// Memory that polls use again.
#[derive(Default)]
pub(crate) struct Scratch {
    subs: Vec<Subscription>,
    interests: Vec<Interest>,
}

impl Scratch {
    /// Makes room for so many subscriptions.
    fn prepare(&mut self, count: u32) -> Result<(), Errno> {
        self.subs.clear();
        self.interests.clear();
        self.subs.try_reserve(count as usize).map_err(|_| Errno::Nomem)?;
        self.interests.try_reserve(count as usize).map_err(|_| Errno::Nomem)
    }
}

fn look_at_socket(kind: u8, ready: Option<Readiness>, interest: Interest) -> State {
    match ready {
        Some(Readiness { bytes, hangup }) => State::Ready(kind, Errno::Success, bytes, hangup),
        None => State::On(interest),
    }
}

impl<S: System> WasiCtx<S> {
    fn look(&self, what: What, monotonic: u64) -> State {
        match what {
            What::Monotonic(at) => ready_clock(monotonic >= at, || at),
            What::Realtime(at) => {
                let now = self.system.clock_ns(Clock::Realtime);
                ready_clock(now >= at, || monotonic.saturating_add(at.saturating_sub(now)))
            }
            What::Read(fd) => self.look_read(fd).unwrap_or_else(|error| bad(eventtype::FD_READ, error)),
            What::Write(fd) => self.look_write(fd).unwrap_or_else(|error| bad(eventtype::FD_WRITE, error)),
            What::Bad(kind, error) => bad(kind, error),
        }
    }

    fn look_read(&self, fd: u32) -> Result<State, Errno> {
        let descriptor = self.fds.get(fd)?;
        descriptor.need(rights::POLL_FD_READWRITE)?;
        match descriptor.kind {
            Kind::Stream { stream: stream @ Stream::Stdin, .. } => {
                let ready = self.system.stream_readable(stream);
                Ok(look_at_stream(eventtype::FD_READ, ready, Interest::Readable(stream)))
            }
            Kind::Socket(id) => {
                let ready = self.system.socket_readable(id);
                Ok(look_at_socket(eventtype::FD_READ, ready, Interest::SocketReadable(id)))
            }
            Kind::Listener => {
                let waiting = self.system.socket_acceptable();
                let ready = (waiting > 0).then_some(Readiness { bytes: waiting, hangup: false });
                Ok(look_at_socket(eventtype::FD_READ, ready, Interest::Acceptable))
            }
            Kind::File { node, position, read: true, .. } => {
                let left = self.fs.size(node)?.saturating_sub(position);
                Ok(State::Ready(eventtype::FD_READ, Errno::Success, left, left == 0))
            }
            _ => Err(Errno::Badf),
        }
    }

    fn look_write(&self, fd: u32) -> Result<State, Errno> {
        let descriptor = self.fds.get(fd)?;
        descriptor.need(rights::POLL_FD_READWRITE)?;
        match descriptor.kind {
            Kind::Stream { stream: stream @ (Stream::Stdout | Stream::Stderr), .. } => {
                let ready = self.system.stream_writable(stream);
                Ok(look_at_stream(eventtype::FD_WRITE, ready, Interest::Writable(stream)))
            }
            Kind::Socket(id) => {
                let ready = self.system.socket_writable(id);
                Ok(look_at_socket(eventtype::FD_WRITE, ready, Interest::SocketWritable(id)))
            }
            Kind::File { write: true, .. } => {
                Ok(State::Ready(eventtype::FD_WRITE, Errno::Success, u64::from(memory::MAX_TRANSFER), false))
            }
            _ => Err(Errno::Badf),
        }
    }
}

fn bad(kind: u8, error: Errno) -> State {
    State::Ready(kind, error, 0, false)
}

/// Waits until at least one subscription has happened, and writes an event for each that has, and their number.
/// What is wrong with one descriptor or clock is the error of its own event.
pub fn poll_oneoff<S: System>(
    c: &mut Call<'_, S>,
    subscriptions: u32,
    events: u32,
    nsubscriptions: u32,
    nevents: u32,
) -> Result<Errno, Stop> {
    run(|| {
        if nsubscriptions == 0 || nsubscriptions > SUBSCRIPTION_LIMIT {
            return Err(Errno::Inval.into());
        }
        memory::check(c.memory, nevents, 4)?;
        memory::check(c.memory, events, nsubscriptions * EVENT_BYTES)?;
        memory::check(c.memory, subscriptions, nsubscriptions * SUBSCRIPTION_BYTES)?;
        // Put back below, unless the program ends here.
        let mut scratch = core::mem::take(&mut c.ctx.poll);
        let polled = scratch
            .prepare(nsubscriptions)
            .map_err(Fail::from)
            .and_then(|()| poll(c, &mut scratch, subscriptions, events, nsubscriptions));
        c.ctx.poll = scratch;
        Ok(memory::put_u32(c.memory, nevents, polled?)?)
    })
}

/// Waits until a subscription has happened; returns how many have, whose events are written.
fn poll<S: System>(
    c: &mut Call<'_, S>,
    scratch: &mut Scratch,
    subscriptions: u32,
    events: u32,
    count: u32,
) -> Result<u32, Fail> {
    let start = c.ctx.system.clock_ns(Clock::Monotonic);
    let table = memory::bytes(c.memory, subscriptions, count * SUBSCRIPTION_BYTES)?;
    for record in table.as_chunks().0 {
        scratch.subs.push(decode(record, start)?);
    }
    let mut now = start;
    loop {
        let mut happened = 0_u32;
        let mut deadline: Option<u64> = None;
        scratch.interests.clear();
        c.ctx.system.socket_refresh();
        for sub in &scratch.subs {
            match c.ctx.look(sub.what, now) {
                State::Ready(kind, error, bytes, hangup) => {
                    let flags = if hangup { FD_READWRITE_HANGUP } else { 0 };
                    let event = Event { userdata: sub.userdata, error, kind, bytes, flags };
                    memory::put(c.memory, events + happened * EVENT_BYTES, &event.encode())?;
                    happened += 1;
                }
                State::Until(at) => deadline = Some(deadline.map_or(at, |deadline| deadline.min(at))),
                State::On(interest) => scratch.interests.push(interest),
            }
        }
        if happened > 0 {
            return Ok(happened);
        }
        c.ctx.system.wait(&scratch.interests, deadline)?;
        now = c.ctx.system.clock_ns(Clock::Monotonic);
    }
}

//! Moving a tenant from one CVM to another, as far as the host has a part in it: it begins and ends that, moves bytes between
//! guest and network ([`pipes`]), keeps the Commit until it is delivered, and gives the destination its memory. It sees
//! ciphertext only, and can do no more than to let a migration fail.
//!
//! ```text
//! source: Cvm::send_tenant(streams) ... MoveNews::Commit(..)  ->  whoever keeps it durably  ->  destination: Arrival::commit(..)
//! ```

mod background;
mod pipes;

use crate::cvm::{Cvm, CvmError};
use crate::link::{Sender, window_of};
use crate::vcpu::Shared;
use background::Background;
use nacre_abi::message::{Header, Kind, NO_PROGRAM};
pub use nacre_abi::migrate::{COMMIT_BYTES, MoveFailure, MoveMode, MoveProgress, MoveReport};
use nacre_abi::migrate::{FIRST_LANE, MoveEvent, MoveWord, SendOrder};
use pipes::{Bells, Relay};
use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The connections of one migration, between two hosts that know each other.
#[derive(Debug)]
pub struct Streams {
    /// What the guests say to each other.
    pub control: TcpStream,
    /// What tasks at the destination wait for.
    pub demand: TcpStream,
    /// Everything else: 1 to [`Cvm::lanes`] of them.
    pub lanes: Vec<TcpStream>,
}

impl Streams {
    fn into_channels(self) -> impl Iterator<Item = (u32, TcpStream)> {
        (0..).zip([self.control, self.demand].into_iter().chain(self.lanes))
    }
}

/// How a tenant is to move.
#[derive(Clone, Copy, Debug)]
pub struct MoveOptions {
    /// How.
    pub mode: MoveMode,
    /// Bytes per second that may be sent.
    pub bandwidth: Option<u64>,
    /// In `pre-copy`: how long sending while tasks are parked may take.
    pub downtime_goal: Duration,
    /// The tenant does not go before [`Moving::let_go`]: from [`MoveNews::Parked`] on there is something to be written down before.
    pub held: bool,
}

impl Default for MoveOptions {
    /// Hybrid, as fast as it goes.
    fn default() -> MoveOptions {
        let downtime_goal = Duration::from_millis(20);
        MoveOptions { mode: MoveMode::Hybrid, bandwidth: None, downtime_goal, held: false }
    }
}

/// What happens to a migration, at either end. What guests say in it are claims.
#[derive(Clone, Debug, PartialEq)]
pub enum MoveNews {
    /// Both ends know each other.
    Attested,
    /// Source: a round begins.
    Round(MoveProgress),
    /// Source: all tasks are parked, and everything they sent was read.
    Parked,
    /// The destination has everything that it needs to run, but for the Commit.
    Staged,
    /// Source: **the tenant is gone from here.** These bytes make the destination run it, and nothing else does; with them, the bytes that
    /// stayed outstanding.
    Commit(Box<[u8; COMMIT_BYTES]>, u64),
    /// The destination runs; at the destination with what it measured.
    Running(Option<MoveReport>),
    /// The destination has everything.
    Complete(MoveReport),
    /// It ended, and the tenant is where it was.
    Aborted(MoveFailure, String),
    /// A connection broke: if the tenant is gone from the source already, it has to be made again ([`Moving::rejoin`]); else the migration ends.
    Broken(u32, String),
}

/// Who is told.
type OnNews = Arc<dyn Fn(MoveNews) + Send + Sync>;

/// What a CVM has of migrations.
#[derive(Default)]
pub(crate) struct Migrations {
    bells: Mutex<HashMap<u32, Arc<Bells>>>,
    current: Mutex<Option<Current>>,
    /// Held while a connection takes the place of another, so that each time the guest empties its pipes once, and no relay is at them. Locked before
    /// `current`.
    rejoins: Mutex<()>,
}

struct Current {
    relays: HashMap<u32, Relay>,
    /// Threads that give way while tasks run at the source.
    background: Arc<Background>,
    /// Channels that wait for the guest's word that their pipes are empty.
    rejoining: HashMap<u32, TcpStream>,
    on_news: OnNews,
    /// The guest may still end it.
    may_abort: bool,
    /// It is over: nothing more is told.
    over: bool,
}

impl Migrations {
    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bells(&self, shared: &Shared, channel: u32) -> Result<Arc<Bells>, CvmError> {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bells) = bells.get(&channel) {
            return Ok(bells.clone());
        }
        let made = Arc::new(Bells::new(shared, channel)?);
        bells.insert(channel, made.clone());
        Ok(made)
    }

    /// Takes a message of the guest's; false if it is about something else.
    pub(crate) fn deliver(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sender: &Arc<Sender>,
        header: Header,
        body: &[u8],
    ) -> bool {
        match header.kind {
            Kind::MigrateEvent => {
                if let Some(event) = MoveEvent::from_number(header.stream) {
                    self.happened(sender, event, header.arg, body);
                }
            }
            Kind::MigrateCommit => {
                if let Ok(commit) = <[u8; COMMIT_BYTES]>::try_from(body) {
                    if let Some(current) = &mut *self.current() {
                        current.may_abort = false;
                    }
                    self.tell(MoveNews::Commit(Box::new(commit), header.arg));
                }
            }
            Kind::MigrateRejoined => self.rejoined(shared, sender, header.arg as u32),
            _ => return false,
        }
        true
    }

    fn tell(&self, news: MoveNews) {
        let on_news =
            self.current().as_ref().filter(|current| !current.over).map(|current| current.on_news.clone());
        if let Some(on_news) = on_news {
            on_news(news);
        }
    }

    fn happened(self: &Arc<Self>, sender: &Arc<Sender>, event: MoveEvent, arg: u64, body: &[u8]) {
        let report = || MoveReport::decode(body);
        let news = match event {
            MoveEvent::Attested => MoveNews::Attested,
            MoveEvent::Progress => match MoveProgress::decode(body) {
                Some(progress) => MoveNews::Round(progress),
                None => return,
            },
            MoveEvent::Parked => MoveNews::Parked,
            MoveEvent::Staged => MoveNews::Staged,
            MoveEvent::Running => MoveNews::Running(report()),
            MoveEvent::Complete => MoveNews::Complete(report().unwrap_or_default()),
            MoveEvent::Aborted => {
                let failure = MoveFailure::from_number(arg).unwrap_or(MoveFailure::Here);
                MoveNews::Aborted(failure, String::from_utf8_lossy(body).into_owned())
            }
            // It is on its way since the beginning.
            MoveEvent::NeedsMemory => return,
            MoveEvent::Spoiled => return self.spoiled(arg),
        };
        let is_last = matches!(news, MoveNews::Aborted(..) | MoveNews::Complete(_));
        if is_last || matches!(news, MoveNews::Parked | MoveNews::Staged) {
            self.hurry();
        }
        if matches!(news, MoveNews::Running(_)) {
            // What waited for the tenant comes first; at the source nothing does.
            sender.arrived();
        }
        self.tell(news);
        if is_last && let Some(current) = &mut *self.current() {
            current.over = true;
            // The guest's last words are in the pipes: the threads end when this is replaced or dropped.
        }
    }

    fn background(&self) -> Option<Arc<Background>> {
        self.current().as_ref().map(|current| current.background.clone())
    }

    /// From now on somebody waits for what is moved, or for its end.
    fn hurry(&self) {
        self.background().iter().for_each(|background| background.end());
    }

    /// The guest can't use a connection any more: it is as if it had broken.
    fn spoiled(&self, channel: u64) {
        let current = self.current();
        let relays = current.as_ref().filter(|current| !current.may_abort).map(|current| &current.relays);
        if let Some(relay) = u32::try_from(channel).ok().and_then(|channel| relays?.get(&channel)) {
            relay.hang_up();
        }
    }

    fn rejoined(self: &Arc<Self>, shared: &Arc<Shared>, sender: &Arc<Sender>, channel: u32) {
        let _alone = self.rejoins.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = self.current().as_mut().and_then(|current| current.rejoining.remove(&channel));
        if let Some(stream) = stream
            && let Err(error) = self.start_relay(shared, sender, channel, stream)
        {
            self.tell(MoveNews::Broken(channel, error.to_string()));
        }
    }

    fn start_relay(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sender: &Arc<Sender>,
        channel: u32,
        stream: TcpStream,
    ) -> Result<(), CvmError> {
        let bells = self.bells(shared, channel)?;
        let Some(background) = self.background() else { return Ok(()) };
        let this = Arc::downgrade(self);
        let (of_end, to_guest) = (shared.clone(), sender.clone());
        let on_end = move |channel, error: io::Error| {
            if let Some(this) = this.upgrade() {
                this.broken(&of_end, &to_guest, channel, &error);
            }
        };
        let relay = Relay::start(shared.clone(), sender.clone(), bells, channel, stream, background, on_end)
            .map_err(|error| CvmError::System { what: "threads for a migration", error })?;
        // What is dropped here waits for threads, which may wait for this lock.
        let unused = match &mut *self.current() {
            Some(current) => current.relays.insert(channel, relay),
            None => Some(relay),
        };
        drop(unused);
        Ok(())
    }

    fn broken(&self, shared: &Shared, sender: &Sender, channel: u32, error: &io::Error) {
        let over = self.current().as_ref().is_none_or(|current| current.over);
        if over {
            return;
        }
        if self.current().as_ref().is_some_and(|current| current.may_abort) {
            cancel(shared, sender);
        }
        self.tell(MoveNews::Broken(channel, error.to_string()));
    }

    /// Begins a migration: no other may be under way.
    fn begin(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sender: &Arc<Sender>,
        streams: Streams,
        on_news: OnNews,
    ) -> Result<(), CvmError> {
        let background = Arc::new(Background::new());
        let old = {
            let mut current = self.current();
            if current.as_ref().is_some_and(|current| !current.over) {
                return Err(CvmError::Migration(
                    "a migration is under way: wait for it, or cancel it".into(),
                ));
            }
            let new = Current {
                relays: HashMap::new(),
                background,
                rejoining: HashMap::new(),
                on_news,
                may_abort: true,
                over: false,
            };
            current.replace(new)
        };
        drop(old);
        window_of(shared).take_move_word(MoveWord::Rejoin);
        for (channel, stream) in streams.into_channels() {
            if let Some([to_guest, to_host]) = window_of(shared).pipes(channel) {
                to_guest.clear();
                to_host.clear();
            }
            self.start_relay(shared, sender, channel, stream)?;
        }
        Ok(())
    }

    /// Ends all threads.
    pub(crate) fn close(&self) {
        // Who gives way might take long to end.
        self.hurry();
        let current = self.current().take();
        drop(current);
    }
}

/// Commits all memory of a receiver, then tells its guest.
fn commit_memory(shared: Arc<Shared>, sender: Arc<Sender>) {
    let body = move || match shared.machine.private().commit() {
        Ok(()) => {
            let _ = sender.post([(Header::new(Kind::MigrateMemory, NO_PROGRAM), &[][..])], true);
        }
        Err(_) => cancel(&shared, &sender),
    };
    // Without a thread the guest waits, until the source's host gives up.
    let _ = std::thread::Builder::new().name("move-memory".into()).spawn(body);
}

/// Asks the guest to end it: by a word too, because a guest whose tenant is parked reads no messages.
fn cancel(shared: &Shared, sender: &Sender) {
    window_of(shared).set_move_word(MoveWord::Cancel, 1);
    let _ = sender.post([(Header::new(Kind::MigrateCancel, NO_PROGRAM), &[][..])], true);
    sender.wake_guest();
}

/// A migration at one of its ends.
pub struct Moving {
    shared: Arc<Shared>,
    sender: Arc<Sender>,
    migrations: Arc<Migrations>,
}

impl Moving {
    /// Asks for its end. The answer is [`MoveNews::Aborted`], unless it is too late.
    pub fn cancel(&self) {
        cancel(&self.shared, &self.sender);
    }

    /// Source: the tenant may go as soon as the destination is staged, if it was [held](MoveOptions::held).
    pub fn let_go(&self) {
        window_of(&self.shared).set_move_word(MoveWord::Hold, 0);
        self.sender.wake_guest();
    }

    /// Destination: the source's tasks are parked, as its host says. Until then the copying gives way to whatever else runs on this host.
    pub fn hurry(&self) {
        self.migrations.hurry();
    }

    /// Another connection in place of one that broke, after the tenant was gone from the source.
    pub fn rejoin(&self, channel: u32, stream: TcpStream) {
        let _alone = self.migrations.rejoins.lock().unwrap_or_else(PoisonError::into_inner);
        let (old, is_asked) = match &mut *self.migrations.current() {
            Some(current) => {
                let earlier = current.rejoining.insert(channel, stream);
                (current.relays.remove(&channel), earlier.is_some())
            }
            None => return,
        };
        drop(old);
        // The guest has not answered for an earlier stream: it will, and then this one is the channel's.
        if is_asked {
            return;
        }
        // By a word: a source that has parked its tenant reads no messages.
        window_of(&self.shared).set_move_bits(MoveWord::Rejoin, 1 << channel.min(u64::BITS - 1));
        self.sender.wake_guest();
    }

    /// Destination: gives the guest the Commit, as often as one likes.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn commit(&self, commit: &[u8; COMMIT_BYTES]) -> Result<(), CvmError> {
        if let Some(current) = &mut *self.migrations.current() {
            current.may_abort = false;
        }
        let message = (Header::new(Kind::MigrateCommit, NO_PROGRAM), &commit[..]);
        self.sender
            .post([message], true)
            .map_err(|_| CvmError::Ended("it ended before the Commit came".into()))
    }
}

impl Cvm {
    /// Lanes that a migration of this CVM can have.
    pub fn lanes(&self) -> usize {
        self.shared.lanes as usize
    }

    fn moving(&self) -> Moving {
        Moving {
            shared: self.shared.clone(),
            sender: self.sender.clone(),
            migrations: self.migrations.clone(),
        }
    }

    /// Begins one over these streams; returns the number of its lanes.
    fn begin_migration(
        &self,
        streams: Streams,
        on_news: impl Fn(MoveNews) + Send + Sync + 'static,
    ) -> Result<usize, CvmError> {
        let (lanes, most) = (streams.lanes.len(), self.lanes());
        if !(1..=most).contains(&lanes) {
            return Err(CvmError::Migration(format!("{lanes} lanes were given, 1 to {most} can be")));
        }
        self.migrations.begin(&self.shared, &self.sender, streams, Arc::new(on_news))?;
        Ok(lanes)
    }

    /// Moves the tenant to the CVM at the other end of the streams, which [receives](Cvm::receive_tenant). `on_news` is called from
    /// several threads, among them the one that reads the guest's rings, and must not wait for anything.
    ///
    /// # Errors
    /// [`CvmError::Migration`] if one is under way; [`CvmError::Ended`].
    pub fn send_tenant(
        &self,
        streams: Streams,
        options: MoveOptions,
        on_news: impl Fn(MoveNews) + Send + Sync + 'static,
    ) -> Result<Moving, CvmError> {
        let lanes = self.begin_migration(streams, on_news)?;
        window_of(&self.shared).set_move_word(MoveWord::Hold, options.held.into());
        let order = SendOrder {
            mode: options.mode,
            lanes: lanes as u32,
            bandwidth: options.bandwidth.unwrap_or(u64::MAX),
            downtime_goal_ns: options.downtime_goal.as_nanos() as u64,
        };
        self.send(Header::new(Kind::MigrateSend, NO_PROGRAM), &order.encode())?;
        Ok(self.moving())
    }

    /// Makes this CVM, which was launched with the tenant's manifest and has run nothing, receive a tenant. `bandwidth` is a first guess, in bytes
    /// per second.
    ///
    /// # Errors
    /// As [`Cvm::send_tenant`].
    pub fn receive_tenant(
        &self,
        streams: Streams,
        bandwidth: u64,
        on_news: impl Fn(MoveNews) + Send + Sync + 'static,
    ) -> Result<Moving, CvmError> {
        self.begin_migration(streams, on_news)?;
        self.send(Header::new(Kind::MigrateReceive, NO_PROGRAM).arg(bandwidth), &[])?;
        // Now, because when its guest asks for that, the tenant is parked.
        commit_memory(self.shared.clone(), self.sender.clone());
        Ok(self.moving())
    }
}

const _: () = assert!(FIRST_LANE == 2, "control and demand come before the lanes in `Streams`");

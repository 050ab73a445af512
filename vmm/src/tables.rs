//! [`Tables`]: what is known of the connections, calls and programs of one CVM, and how that parts when the tenant moves. They outlive the CVM for as
//! long as anybody waits for something: see [`crate::tunnel`].

use crate::calls::Calls;
use crate::events::{Mailboxes, ProgramId};
use crate::link::Sender;
use crate::socket::{Connections, Intake, Outlet, Relay};
use crate::tunnel::concern::Concern;
use crate::tunnel::link::{Link, LinkState, Taker};
use crate::tunnel::origin::{Door, Origin};
use crate::tunnel::roster::{OriginEntry, Phase, ProgramEntry, Roster};
use crate::tunnel::{Adopted, OriginId};
use nacre_abi::message::{Header, Kind, NO_PROGRAM, stream};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use vmm_sys_util::eventfd::EventFd;

/// What is known of one CVM.
pub struct Tables {
    /// Their name at other hosts.
    pub origin: OriginId,
    /// The way to the guest, wherever that is.
    pub(crate) sender: Arc<Sender>,
    /// Programs.
    pub(crate) mailboxes: Arc<Mailboxes>,
    /// Connections.
    pub(crate) connections: Arc<Connections>,
    /// Calls and modules.
    pub(crate) calls: Arc<Calls>,
    /// Clients' streams that are relayed.
    pub(crate) intake: Arc<Intake>,
    doorbell: Arc<EventFd>,
    next_program: AtomicU32,
    /// Tables of other CVMs, whose tenant is here.
    origins: Mutex<Vec<Arc<Origin>>>,
    /// The tenant is gone, and the link to where it is.
    left: AtomicBool,
    link: Mutex<Option<Arc<Link>>>,
    /// Somebody needs what stayed behind.
    wanted: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tables {
    /// Those of a new CVM, whose reader of rings waits for `doorbell`.
    ///
    /// # Errors
    /// The kernel's, if it gives no random numbers.
    pub fn new(sender: Arc<Sender>, max_tasks: u32, doorbell: Arc<EventFd>) -> io::Result<Arc<Tables>> {
        let mut origin = OriginId([0; 16]);
        getrandom::fill(&mut origin.0).map_err(io::Error::other)?;
        Ok(Arc::new(Tables {
            origin,
            sender,
            mailboxes: Arc::default(),
            connections: Arc::default(),
            calls: Arc::new(Calls::new(max_tasks)),
            intake: Arc::new(Intake::new(doorbell.clone())),
            doorbell,
            next_program: AtomicU32::new(0),
            origins: Mutex::default(),
            left: AtomicBool::new(false),
            link: Mutex::default(),
            wanted: AtomicBool::new(true),
        }))
    }

    /// A number for a new program.
    pub(crate) fn new_program(&self) -> ProgramId {
        ProgramId(self.next_program.fetch_add(1, Ordering::Relaxed))
    }

    /// Nobody follows a program any more. What else is of a tenant that has left stays.
    pub(crate) fn forget_program(&self, id: ProgramId) {
        self.mailboxes.remove(id);
        if !self.has_left() {
            self.connections.remove(id.0);
        }
    }

    /// Whether the tenant is gone.
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// The guest of this CVM says something: whether it was about a connection.
    pub(crate) fn hear(&self, header: Header, body: &[u8]) -> bool {
        if self.connections.receive(header, body) {
            return true;
        }
        if header.kind == Kind::ProgramExited {
            self.connections.program_over(header.program);
        }
        false
    }

    /// The guest, which is elsewhere, says something that concerns these tables; all else is none of their business.
    pub(crate) fn hear_from_afar(&self, header: Header, body: &[u8]) {
        match header.kind {
            Kind::ProgramExited => self.connections.program_over(header.program),
            Kind::CallDone | Kind::CallOutput => {
                self.calls.deliver(header, body);
                if !self.calls.awaits(header.program) {
                    // The number is free for the other host. If that is gone it has no use for it.
                    let _ = self.sender.post_quietly(Header::new(Kind::CallDone, header.program), &[]);
                }
            }
            Kind::ModuleLoaded => drop(self.calls.deliver(header, body)),
            _ => drop(self.connections.receive(header, body)),
        }
    }

    /// See [`Cvm::hold`](crate::Cvm::hold). The number of the next request for evidence is the caller's to fill in.
    pub(crate) fn hold(&self) -> Roster {
        self.connections.set_moving(true);
        self.calls.set_moving(true);
        let others = lock(&self.origins).clone();
        others.iter().for_each(|origin| origin.freeze(true));
        let goes_along =
            |header: &Header| matches!(Concern::of(header.kind), Concern::Origin | Concern::Program);
        let unread = self.sender.hold().into_iter().filter(|(header, _)| goes_along(header)).collect();
        let number = |of: &Origin| {
            let place = others.iter().position(|origin| origin.id == of.id)?;
            u16::try_from(place + 1).ok()
        };
        let programs = self.mailboxes.roster().into_iter().filter(|(id, ..)| id.0 != NO_PROGRAM);
        let programs = programs.map(|(id, phase, outputs, input)| ProgramEntry {
            number: id.0,
            phase,
            outputs,
            input,
            slots: self.connections.slots(id.0, number),
        });
        let (calls, modules, last_module) = self.calls.numbers();
        let mut origins = vec![OriginEntry { id: self.origin, link: LinkState::default(), calls, modules }];
        origins.extend(others.iter().map(|origin| OriginEntry {
            id: origin.id,
            link: origin.link().map(|link| link.export()).unwrap_or_default(),
            calls: self.calls.numbers_of(origin),
            modules: origin.modules(),
        }));
        Roster {
            origins,
            programs: programs.collect(),
            next_program: self.next_program.load(Ordering::Relaxed),
            last_module,
            next_evidence: 0,
            unread,
        }
    }

    /// See [`Cvm::go_on`](crate::Cvm::go_on).
    pub(crate) fn go_on(&self) {
        if self.has_left() {
            return;
        }
        self.sender.go_on();
        self.connections.set_moving(false);
        self.calls.set_moving(false);
        lock(&self.origins).iter().for_each(|origin| origin.freeze(false));
        self.sender.kick();
    }

    /// See [`Cvm::leave`](crate::Cvm::leave).
    pub(crate) fn leave(self: &Arc<Tables>) {
        if self.left.swap(true, Ordering::SeqCst) {
            return;
        }
        self.connections.set_moving(true);
        self.calls.set_moving(true);
        for origin in std::mem::take(&mut *lock(&self.origins)) {
            origin.part();
        }
        self.connections.drop_origins();
        self.calls.drop_origins();
        let link = self.new_link();
        self.sender.leave(link, || ());
        self.mailboxes.close();
    }

    /// A link to where the tenant goes, which nothing went over.
    fn new_link(self: &Arc<Tables>) -> Arc<Link> {
        let taker = Arc::new(FromAfar(Arc::downgrade(self)));
        let link = Link::new(self.origin, &LinkState::default(), taker);
        *lock(&self.link) = Some(link.clone());
        link
    }

    /// The tenant, which was back here, has left again: from here on these tables, which it left before, have a link to it. `waiting` is what goes
    /// over it first.
    pub(crate) fn leave_again(self: &Arc<Tables>, waiting: impl FnOnce(&Link)) {
        let link = self.new_link();
        self.sender.leave(link.clone(), || waiting(&link));
    }

    /// The tenant is back, in a CVM whose tables have these as `origin`; the host it comes from was so far with its end of the link.
    fn come_home(&self, origin: &Origin, there: &LinkState) {
        let Some((_, inward)) = origin.tables() else { return };
        let door = Arc::new(Door(inward.clone()));
        let Some(link) = lock(&self.link).take() else {
            return self.sender.leave(door, || ());
        };
        let next = link.stop_taking();
        for ((header, body), number) in there.unacknowledged.iter().zip(there.first_out..) {
            if number >= next {
                self.hear_from_afar(*header, body);
            }
        }
        // With nobody sending: what the other host had not taken, then all that follows.
        self.sender.leave(door.clone(), || {
            let LinkState { first_out, unacknowledged, .. } = link.export();
            for ((header, body), number) in unacknowledged.iter().zip(first_out..) {
                if number >= there.next_in {
                    let _ = door.post(*header, body);
                }
            }
        });
        link.close();
    }

    /// See [`Cvm::adopt`](crate::Cvm::adopt); `kept` are tables of this process. `None` if this CVM has anything of its own.
    pub(crate) fn adopt(self: &Arc<Tables>, roster: &Roster, kept: &[Arc<Tables>]) -> Option<Vec<Adopted>> {
        let is_fresh = self.next_program.load(Ordering::Relaxed) == 0
            && self.calls.numbers().2 == 0
            && lock(&self.origins).is_empty();
        if !is_fresh || self.has_left() {
            return None;
        }
        self.sender.expect_tenant();
        let here = Arc::downgrade(self);
        let origin = |entry: &OriginEntry| match kept.iter().find(|tables| tables.origin == entry.id) {
            Some(tables) => Origin::home(entry.id, &entry.modules, tables.clone(), &here),
            None => Origin::distant(entry.id, &entry.modules, &entry.link, &here),
        };
        let origins: Vec<Arc<Origin>> = roster.origins.iter().map(origin).collect();
        let calls = origins.iter().cloned().zip(roster.origins.iter().map(|entry| &entry.calls[..]));
        self.calls.adopt(calls.collect(), roster.last_module);
        self.next_program.store(roster.next_program, Ordering::Relaxed);
        *lock(&self.origins) = origins.clone();
        let mut newcomers = Vec::new();
        let mut after = Vec::new();
        for program in &roster.programs {
            if program.phase != Phase::Running {
                after.push(Header::new(Kind::ProgramDrop, program.number));
                continue;
            }
            let listens = program.slots.as_ref();
            listens.into_iter().for_each(|slots| self.connections.adopt(program.number, slots, &origins));
            for (number, output) in [stream::STDOUT, stream::STDERR].into_iter().zip(program.outputs) {
                after.push(Header::new(Kind::Credit, program.number).stream(number).arg(output.next));
            }
            let id = ProgramId(program.number);
            let events = self.mailboxes.adopt(id, program.outputs, program.input);
            newcomers.push(Adopted { id, events, listens: listens.is_some() });
        }
        let unread = roster
            .unread
            .iter()
            .filter(|(header, _)| matches!(Concern::of(header.kind), Concern::Origin | Concern::Program));
        let unread = unread.map(|(header, body)| (*header, &body[..]));
        // If the CVM has ended, nothing waits for an answer but what is told that.
        let _ = self.sender.post(unread.chain(after.into_iter().map(|header| (header, &[][..]))), true);
        for (origin, entry) in origins.iter().zip(&roster.origins) {
            if let Some((tables, _)) = origin.tables() {
                tables.come_home(origin, &entry.link);
            }
        }
        Some(newcomers)
    }

    /// Tables of other CVMs, whose tenant is here.
    pub(crate) fn origins(&self) -> Vec<Arc<Origin>> {
        lock(&self.origins).clone()
    }

    /// The link to where the tenant is.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        lock(&self.link).clone()
    }

    /// An origin will never be heard of again: the guest is told for it.
    pub(crate) fn lose(&self, id: OriginId) {
        let mut origins = lock(&self.origins);
        let Some(place) = origins.iter().position(|origin| origin.id == id) else { return };
        let origin = origins.remove(place);
        drop(origins);
        if let Some(link) = origin.link() {
            link.close();
        }
        let mut messages = self.connections.lose(&origin);
        messages.extend(self.calls.lose(&origin).into_iter().map(|call| Header::new(Kind::CallCancel, call)));
        let modules = origin.take_modules().into_iter();
        messages.extend(modules.map(|module| Header::new(Kind::ModuleDrop, module)));
        // If the CVM has ended nobody is to be told.
        let _ = self.sender.post(messages.into_iter().map(|header| (header, &[][..])), true);
    }

    /// Whether anybody still waits for something that stayed behind.
    pub(crate) fn is_needed(&self) -> bool {
        let drained = self.link().is_none_or(|link| link.is_drained());
        self.connections.open_here() != 0 || self.calls.any_in_flight() || !drained
    }

    /// After the end of the CVM: relays clients that stayed behind, until nobody needs that.
    pub(crate) fn relay_what_stays(&self, relay: &mut Relay) {
        while self.has_left() && self.wanted.load(Ordering::SeqCst) {
            let more = relay.turn();
            self.sender.kick();
            relay.wait(if more { 0 } else { -1 });
        }
    }

    /// Nobody needs what stayed behind.
    pub(crate) fn give_up(&self) {
        self.wanted.store(false, Ordering::SeqCst);
        let _ = self.doorbell.write(1);
        self.end();
        let link = lock(&self.link).take();
        link.into_iter().for_each(|link| link.close());
    }

    /// The CVM has ended: tells everybody who waits. A tenant that has left has not.
    pub(crate) fn end(&self) {
        if self.has_left() && self.wanted.load(Ordering::SeqCst) {
            return;
        }
        self.connections.close();
        self.sender.notify();
        self.mailboxes.close();
        self.calls.close();
        for origin in std::mem::take(&mut *lock(&self.origins)) {
            match (origin.link(), origin.tables()) {
                (Some(link), _) => link.close(),
                (_, Some((tables, _))) => tables.give_up(),
                (None, None) => {}
            }
        }
    }
}

/// Takes what comes from where the tenant is.
struct FromAfar(Weak<Tables>);

impl Taker for FromAfar {
    fn take(&self, header: Header, body: &[u8], _: &Waker) -> bool {
        if let Some(tables) = self.0.upgrade() {
            tables.hear_from_afar(header, body);
        }
        true
    }

    fn pause(&self) {}
}

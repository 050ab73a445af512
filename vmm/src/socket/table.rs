//! All connections of a CVM, by program and number, and what the guest's messages do to them.

use super::Peer;
use crate::tunnel::origin::Origin;
use crate::tunnel::roster::{SlotEntry, SlotUse};
use nacre_abi::message::{Header, Kind};
use nacre_abi::socket::{BACKLOG, ConnectionId, MAX_CONNECTIONS, Refusal};
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The program was not loaded as a service.
    #[error("the program does not listen: load it with `listens`")]
    NotListening,
    /// It is over, or the CVM is.
    #[error("the program has ended")]
    Ended,
    /// As many connections wait to be accepted as can.
    #[error("{BACKLOG} connections wait to be accepted: try again when the program has accepted some")]
    BacklogFull,
    /// As many are open as can be.
    #[error("the program has as many open connections as it can, {MAX_CONNECTIONS}: close some")]
    TooMany,
    /// The tenant is on its way to another CVM, or there.
    #[error("the program moves to another CVM: connect to it there")]
    Moved,
}

/// How many connections a program has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// That are open on either side.
    pub open: usize,
    /// Of those, not accepted yet.
    pub waiting: usize,
    /// Bytes from the program that nobody has read.
    pub kept_bytes: u64,
    /// Of those that are open: clients of other hosts, from before the tenant moved here.
    pub relayed: usize,
}

/// One slot of a program.
struct Slot {
    /// The number that is used, or the next one.
    id: ConnectionId,
    holder: Holder,
}

/// Who has a slot.
enum Holder {
    Nobody,
    Here(Arc<Peer>),
    There(Remote),
}

/// A connection of another host's.
struct Remote {
    origin: Arc<Origin>,
    accepted: bool,
    /// Who has said the last word.
    guest_done: bool,
    host_done: bool,
}

impl Remote {
    /// Follows a message of the guest's; whether it waits to be accepted no more.
    fn hear(&mut self, kind: Kind) -> bool {
        let last = matches!(kind, Kind::SocketClose | Kind::SocketReset | Kind::SocketRefused);
        self.guest_done |= last;
        let before = self.accepted;
        self.accepted |= last || kind == Kind::SocketAccepted;
        self.accepted != before
    }

    fn is_over(&self) -> bool {
        self.guest_done && self.host_done
    }
}

/// The connections of one program.
#[derive(Default)]
struct Service {
    slots: Vec<Slot>,
    /// Slots that are free, the one that has been so for longest first.
    free: VecDeque<u32>,
    waiting: usize,
    over: bool,
}

impl Service {
    fn claim(&mut self) -> Result<&mut Slot, ConnectError> {
        if self.over {
            return Err(ConnectError::Ended);
        }
        if self.waiting >= BACKLOG {
            return Err(ConnectError::BacklogFull);
        }
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None if self.slots.len() < MAX_CONNECTIONS as usize => {
                let slot = self.slots.len() as u32;
                self.slots.push(Slot { id: ConnectionId::new(slot, 0), holder: Holder::Nobody });
                slot
            }
            None => return Err(ConnectError::TooMany),
        };
        Ok(&mut self.slots[slot as usize])
    }

    fn release(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slots.get_mut(id.slot() as usize)
            && slot.id == id
            && !matches!(slot.holder, Holder::Nobody)
        {
            slot.holder = Holder::Nobody;
            slot.id = id.next();
            self.free.push_back(id.slot());
        }
    }

    fn find(&mut self, id: ConnectionId) -> Option<&mut Holder> {
        self.slots.get_mut(id.slot() as usize).filter(|slot| slot.id == id).map(|slot| &mut slot.holder)
    }

    fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.slots.iter().filter_map(|slot| match &slot.holder {
            Holder::Here(peer) => Some(peer),
            _ => None,
        })
    }

    fn remotes(&self) -> impl Iterator<Item = (ConnectionId, &Remote)> {
        self.slots.iter().filter_map(|slot| match &slot.holder {
            Holder::There(remote) => Some((slot.id, remote)),
            _ => None,
        })
    }
}

/// All connections of a CVM.
#[derive(Default)]
pub struct Connections {
    services: Mutex<HashMap<u32, Service>>,
    /// The tenant moves, or has moved: nothing new is opened. Changed with the lock held.
    moving: AtomicBool,
}

/// What becomes of what an origin says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destined {
    /// It goes to the guest.
    Guest,
    /// The guest has no use for it.
    Nobody,
}

/// A message of the guest's was about a connection, and what it was for.
enum Heard {
    Nobody,
    Here(Arc<Peer>),
    There(Arc<Origin>),
}

impl Connections {
    fn services(&self) -> MutexGuard<'_, HashMap<u32, Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A program can be connected to from here on.
    pub fn provide(&self, program: u32) {
        self.services().entry(program).or_default();
    }

    /// A number for a new connection; `make` makes it.
    pub(super) fn open(
        &self,
        program: u32,
        make: impl FnOnce(ConnectionId) -> Arc<Peer>,
    ) -> Result<Arc<Peer>, ConnectError> {
        let mut services = self.services();
        if self.moving.load(Ordering::Relaxed) {
            return Err(ConnectError::Moved);
        }
        let service = services.get_mut(&program).ok_or(ConnectError::NotListening)?;
        let slot = service.claim()?;
        let peer = make(slot.id);
        slot.holder = Holder::Here(peer.clone());
        service.waiting += 1;
        Ok(peer)
    }

    /// Both sides have said their last word about a number.
    pub(super) fn release(&self, program: u32, id: ConnectionId) {
        if let Some(service) = self.services().get_mut(&program) {
            service.release(id);
        }
    }

    /// Takes a message from the guest; whether it was one about a connection.
    pub fn receive(&self, header: Header, body: &[u8]) -> bool {
        let id = ConnectionId(header.stream);
        match header.kind {
            Kind::SocketAccepted
            | Kind::SocketRefused
            | Kind::SocketData
            | Kind::SocketEnd
            | Kind::SocketCredit
            | Kind::SocketClose
            | Kind::SocketReset => {}
            // Only the host opens any.
            Kind::SocketOpen => return true,
            _ => return false,
        }
        let peer = match self.addressee(header, id) {
            Heard::Here(peer) => peer,
            Heard::There(origin) => {
                origin.tell(header, body);
                return true;
            }
            Heard::Nobody => return true,
        };
        let effect = match header.kind {
            Kind::SocketAccepted => peer.accepted(header.arg),
            Kind::SocketData => peer.data(header.arg, body),
            Kind::SocketEnd => peer.ended(header.arg),
            Kind::SocketCredit => peer.credit(header.arg),
            Kind::SocketClose => peer.closed(header.arg),
            Kind::SocketReset => peer.reset(ErrorKind::ConnectionReset),
            _ => peer.reset(match Refusal::from_number(header.arg) {
                Some(Refusal::NoMemory) => ErrorKind::OutOfMemory,
                _ => ErrorKind::ConnectionRefused,
            }),
        };
        if effect.accepted || effect.finished {
            let mut services = self.services();
            if let Some(service) = services.get_mut(&header.program) {
                service.waiting -= usize::from(effect.accepted).min(service.waiting);
                if effect.finished {
                    service.release(id);
                }
            }
        }
        true
    }

    /// Whose a message of the guest's is; follows what it says about a connection of another host's.
    fn addressee(&self, header: Header, id: ConnectionId) -> Heard {
        let mut services = self.services();
        let Some(service) = services.get_mut(&header.program) else { return Heard::Nobody };
        let (origin, accepted, over) = match service.find(id) {
            Some(Holder::Here(peer)) => return Heard::Here(peer.clone()),
            // Nothing follows a last word but data that came over a slower ring.
            Some(Holder::There(remote)) if !remote.guest_done || header.kind == Kind::SocketData => {
                (remote.origin.clone(), remote.hear(header.kind), remote.is_over())
            }
            _ => return Heard::Nobody,
        };
        service.waiting -= usize::from(accepted).min(service.waiting);
        if over {
            service.release(id);
        }
        Heard::There(origin)
    }

    /// An origin says something about a connection: whether it is its own, and the guest has not said its last word. Nothing changes before
    /// [`sent`](Self::sent).
    pub(crate) fn may_send(&self, origin: &Origin, header: Header) -> Destined {
        let id = ConnectionId(header.stream);
        let mut services = self.services();
        match services.get_mut(&header.program).and_then(|service| service.find(id)) {
            Some(Holder::There(remote)) if remote.origin.id == origin.id && !remote.host_done => {
                if remote.guest_done { Destined::Nobody } else { Destined::Guest }
            }
            _ => Destined::Nobody,
        }
    }

    /// What an origin says about a connection went its way.
    pub(crate) fn sent(&self, origin: &Origin, header: Header) {
        let id = ConnectionId(header.stream);
        if !matches!(header.kind, Kind::SocketClose | Kind::SocketReset) {
            return;
        }
        let mut services = self.services();
        let Some(service) = services.get_mut(&header.program) else { return };
        if let Some(Holder::There(remote)) = service.find(id)
            && remote.origin.id == origin.id
        {
            remote.host_done = true;
            if remote.is_over() {
                service.release(id);
            }
        }
    }

    /// An origin is lost: what the guest is to be told of its connections. Its numbers are free once the guest has said its last word.
    pub(crate) fn lose(&self, origin: &Origin) -> Vec<Header> {
        let mut resets = Vec::new();
        for (program, service) in self.services().iter_mut() {
            let its = service.remotes().filter(|(_, remote)| remote.origin.id == origin.id);
            let its: Vec<ConnectionId> = its.map(|(id, _)| id).collect();
            for id in its {
                let Some(Holder::There(remote)) = service.find(id) else { continue };
                if !std::mem::replace(&mut remote.host_done, true) && !remote.guest_done {
                    resets.push(Header::new(Kind::SocketReset, *program).stream(id.0));
                }
                if remote.is_over() {
                    service.release(id);
                }
            }
        }
        resets
    }

    /// The tenant has left, and with it what other hosts have of it.
    pub(crate) fn drop_origins(&self) {
        for service in self.services().values_mut() {
            let numbers: Vec<ConnectionId> = service.remotes().map(|(id, _)| id).collect();
            numbers.into_iter().for_each(|id| service.release(id));
        }
    }

    /// Connections of an origin.
    pub(crate) fn relayed(&self, origin: &Origin) -> usize {
        let services = self.services();
        let remotes = services.values().flat_map(Service::remotes);
        remotes.filter(|(_, remote)| remote.origin.id == origin.id).count()
    }

    /// Connections whose clients are here.
    pub(crate) fn open_here(&self) -> usize {
        self.services().values().map(|service| service.peers().count()).sum()
    }

    /// Whether new ones may be opened.
    pub(crate) fn set_moving(&self, moving: bool) {
        let _services = self.services();
        self.moving.store(moving, Ordering::Relaxed);
    }

    /// The slots of a program, if it listens; `number` says which origin is which in a roster, whose first is this host.
    pub(crate) fn slots(
        &self,
        program: u32,
        number: impl Fn(&Origin) -> Option<u16>,
    ) -> Option<Vec<SlotEntry>> {
        let services = self.services();
        let entry = |slot: &Slot| {
            let taken = match &slot.holder {
                Holder::Nobody => None,
                Holder::Here(peer) => {
                    let [accepted, guest_done, host_done] = peer.progress();
                    Some(SlotUse { origin: 0, accepted, guest_done, host_done })
                }
                Holder::There(remote) => number(&remote.origin).map(|origin| SlotUse {
                    origin,
                    accepted: remote.accepted,
                    guest_done: remote.guest_done,
                    host_done: remote.host_done,
                }),
            };
            SlotEntry { id: slot.id, taken: taken.filter(|taken| !(taken.guest_done && taken.host_done)) }
        };
        services.get(&program).map(|service| service.slots.iter().map(entry).collect())
    }

    /// A program that listens comes from elsewhere with these slots, and `origins` that have them. The slots' numbers are those of their places.
    pub(crate) fn adopt(&self, program: u32, slots: &[SlotEntry], origins: &[Arc<Origin>]) {
        let mut service = Service::default();
        for (place, entry) in (0..).zip(slots) {
            let origin = entry.taken.and_then(|taken| Some((taken, origins.get(usize::from(taken.origin))?)));
            let holder = match origin {
                Some((taken, origin)) => {
                    service.waiting += usize::from(!taken.accepted);
                    Holder::There(Remote {
                        origin: origin.clone(),
                        accepted: taken.accepted,
                        guest_done: taken.guest_done,
                        host_done: taken.host_done,
                    })
                }
                None => {
                    service.free.push_back(place);
                    Holder::Nobody
                }
            };
            service.slots.push(Slot { id: entry.id, holder });
        }
        self.services().insert(program, service);
    }

    /// The program is over: what is open of it fails.
    pub fn program_over(&self, program: u32) {
        let (mut peers, mut origins) = (Vec::new(), Vec::new());
        if let Some(service) = self.services().get_mut(&program) {
            service.over = true;
            service.waiting = 0;
            peers.extend(service.peers().cloned());
            origins.extend(service.remotes().map(|(_, remote)| remote.origin.clone()));
            let numbers: Vec<ConnectionId> = service.remotes().map(|(id, _)| id).collect();
            numbers.into_iter().for_each(|id| service.release(id));
        }
        origins.sort_by_key(|origin| origin.id.0);
        origins.dedup_by_key(|origin| origin.id.0);
        origins.iter().for_each(|origin| origin.tell(Header::new(Kind::ProgramExited, program), &[]));
        for peer in peers {
            // Whose user has gone before nobody else gives back.
            if peer.reset(ErrorKind::ConnectionReset).finished {
                self.release(program, peer.id);
            }
        }
    }

    /// The program is forgotten.
    pub fn remove(&self, program: u32) {
        self.program_over(program);
        self.services().remove(&program);
    }

    /// The CVM is over.
    pub fn close(&self) {
        let programs: Vec<u32> = self.services().keys().copied().collect();
        programs.into_iter().for_each(|program| self.program_over(program));
    }

    /// How many connections a program has.
    pub fn stats(&self, program: u32) -> ConnectionStats {
        let services = self.services();
        let Some(service) = services.get(&program) else { return ConnectionStats::default() };
        let relayed = service.remotes().count();
        ConnectionStats {
            open: service.peers().count() + relayed,
            waiting: service.waiting,
            kept_bytes: service.peers().map(|peer| peer.kept()).sum(),
            relayed,
        }
    }
}

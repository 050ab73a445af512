//! All connections of a CVM, by program and number, and what the guest's messages do to them.

use super::Peer;
use nacre_abi::message::{Header, Kind};
use nacre_abi::socket::{BACKLOG, ConnectionId, MAX_CONNECTIONS, Refusal};
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
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
}

/// One slot of a program.
struct Slot {
    /// The number that is used, or the next one.
    id: ConnectionId,
    peer: Option<Arc<Peer>>,
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
                self.slots.push(Slot { id: ConnectionId::new(slot, 0), peer: None });
                slot
            }
            None => return Err(ConnectError::TooMany),
        };
        Ok(&mut self.slots[slot as usize])
    }

    fn release(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slots.get_mut(id.slot() as usize)
            && slot.id == id
            && slot.peer.take().is_some()
        {
            slot.id = id.next();
            self.free.push_back(id.slot());
        }
    }

    fn find(&self, id: ConnectionId) -> Option<Arc<Peer>> {
        self.slots.get(id.slot() as usize).filter(|slot| slot.id == id)?.peer.clone()
    }
}

/// All connections of a CVM.
#[derive(Default)]
pub struct Connections(Mutex<HashMap<u32, Service>>);

impl Connections {
    fn services(&self) -> MutexGuard<'_, HashMap<u32, Service>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let service = services.get_mut(&program).ok_or(ConnectError::NotListening)?;
        let slot = service.claim()?;
        let peer = make(slot.id);
        slot.peer = Some(peer.clone());
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
        let peer = self.services().get(&header.program).and_then(|service| service.find(id));
        let Some(peer) = peer else { return true };
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

    /// The program is over: what is open of it fails.
    pub fn program_over(&self, program: u32) {
        let mut peers = Vec::new();
        if let Some(service) = self.services().get_mut(&program) {
            service.over = true;
            service.waiting = 0;
            peers.extend(service.slots.iter().filter_map(|slot| slot.peer.clone()));
        }
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
        let peers = || service.slots.iter().filter_map(|slot| slot.peer.as_ref());
        ConnectionStats {
            open: peers().count(),
            waiting: service.waiting,
            kept_bytes: peers().map(|peer| peer.kept()).sum(),
        }
    }
}

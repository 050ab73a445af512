//! [`Origin`]: tables of another CVM whose tenant is here now, as this host sees them; and [`Inward`], the way from them to the guest, on which
//! is checked that an origin speaks of what is its own only.

use super::OriginId;
use super::concern::Concern;
use super::link::{Link, LinkState, Message, Taker};
use crate::link::SendError;
use crate::socket::{Destined, Outlet};
use crate::tables::Tables;
use nacre_abi::attest::SESSIONS;
use nacre_abi::message::{Header, Kind};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Wake, Waker};

/// Tables of another CVM.
pub struct Origin {
    /// Their name.
    pub id: OriginId,
    /// Modules that are theirs.
    modules: Mutex<HashSet<u32>>,
    far: Far,
}

/// Where they are.
enum Far {
    /// At another host.
    Link(Arc<Link>),
    /// In this process: the tenant is back.
    Home(Arc<Tables>, Arc<Inward>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Origin {
    /// Tables at another host, whose link goes on from `from`.
    pub(crate) fn distant(
        id: OriginId,
        modules: &[u32],
        from: &LinkState,
        here: &Weak<Tables>,
    ) -> Arc<Origin> {
        Arc::new_cyclic(|origin: &Weak<Origin>| {
            let taker = Arc::new(Inward::new(here.clone(), origin.clone()));
            let modules = Mutex::new(modules.iter().copied().collect());
            Origin { id, modules, far: Far::Link(Link::new(id, from, taker)) }
        })
    }

    /// Tables of this process.
    pub(crate) fn home(
        id: OriginId,
        modules: &[u32],
        tables: Arc<Tables>,
        here: &Weak<Tables>,
    ) -> Arc<Origin> {
        Arc::new_cyclic(|origin: &Weak<Origin>| {
            let inward = Arc::new(Inward::new(here.clone(), origin.clone()));
            Origin {
                id,
                modules: Mutex::new(modules.iter().copied().collect()),
                far: Far::Home(tables, inward),
            }
        })
    }

    /// The link to them, if they are elsewhere.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        match &self.far {
            Far::Link(link) => Some(link),
            Far::Home(..) => None,
        }
    }

    /// They, if they are in this process.
    pub(crate) fn tables(&self) -> Option<(&Arc<Tables>, &Arc<Inward>)> {
        match &self.far {
            Far::Home(tables, inward) => Some((tables, inward)),
            Far::Link(_) => None,
        }
    }

    /// The guest says something that concerns them. Never waits.
    pub(crate) fn tell(&self, header: Header, body: &[u8]) {
        match &self.far {
            // A link that is over has told that, and will be lost.
            Far::Link(link) => drop(link.post(header, body)),
            Far::Home(tables, _) => tables.hear_from_afar(header, body),
        }
    }

    /// Takes nothing that they say, until it is told to again: the tenant may leave.
    pub(crate) fn freeze(&self, frozen: bool) {
        match &self.far {
            Far::Link(link) => link.freeze(frozen),
            Far::Home(_, inward) => inward.freeze(frozen),
        }
    }

    /// The tenant has left: they follow it by themselves.
    pub(crate) fn part(&self) {
        match &self.far {
            Far::Link(link) => link.close(),
            Far::Home(tables, inward) => {
                tables.leave_again(|link| {
                    for (header, body) in std::mem::take(&mut lock(&inward.waiting).messages) {
                        let _ = link.post(header, &body);
                    }
                });
                let wakers = std::mem::take(&mut lock(&inward.waiting).wakers);
                wakers.into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Whether a module is theirs.
    pub(crate) fn has_module(&self, number: u32) -> bool {
        lock(&self.modules).contains(&number)
    }

    /// Their modules.
    pub(crate) fn modules(&self) -> Vec<u32> {
        let mut modules: Vec<u32> = lock(&self.modules).iter().copied().collect();
        modules.sort_unstable();
        modules
    }

    /// Takes their modules from them.
    pub(crate) fn take_modules(&self) -> HashSet<u32> {
        std::mem::take(&mut lock(&self.modules))
    }
}

/// The way from an origin to the guest. What the guest has no room for waits: at the origin's host if it came over a link, else here.
pub(crate) struct Inward {
    here: Weak<Tables>,
    origin: Weak<Origin>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    wakers: Vec<Waker>,
    frozen: bool,
}

impl Inward {
    pub(crate) fn new(here: Weak<Tables>, origin: Weak<Origin>) -> Inward {
        Inward { here, origin, waiting: Mutex::default() }
    }

    fn freeze(self: &Arc<Inward>, frozen: bool) {
        lock(&self.waiting).frozen = frozen;
        if !frozen {
            self.go_on();
        }
    }

    /// There may be room for what waits.
    fn go_on(self: &Arc<Inward>) {
        let mut waiting = lock(&self.waiting);
        self.flush(&mut waiting);
        let wakers = std::mem::take(&mut waiting.wakers);
        drop(waiting);
        self.pause();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Sends what waits, as far as there is room; whether nothing is left.
    fn flush(self: &Arc<Inward>, waiting: &mut Waiting) -> bool {
        if waiting.frozen {
            return false;
        }
        let waker = Waker::from(Arc::new(Flush(self.clone())));
        while let Some((header, body)) = waiting.messages.pop_front() {
            if !self.take(header, &body, &waker) {
                waiting.messages.push_front((header, body));
                return false;
            }
        }
        true
    }

    fn destination(&self, tables: &Tables, origin: &Origin, header: Header) -> Destined {
        let guest = |is: bool| if is { Destined::Guest } else { Destined::Nobody };
        match header.kind {
            Kind::CallStart => {
                let module = header.stream == SESSIONS || origin.has_module(header.stream);
                guest(module && tables.calls.is_of(origin, header.program))
            }
            Kind::CallData | Kind::CallCancel => guest(tables.calls.is_of(origin, header.program)),
            Kind::ModuleCreate | Kind::ModuleCode | Kind::ModuleLoad | Kind::ModuleDrop => {
                guest(origin.has_module(header.program))
            }
            Kind::SocketOpen
            | Kind::SocketData
            | Kind::SocketEnd
            | Kind::SocketCredit
            | Kind::SocketClose
            | Kind::SocketReset => tables.connections.may_send(origin, header),
            _ => Destined::Nobody,
        }
    }

    /// A message is on its way to the guest, or has been dropped because it has no use for it.
    fn sent(&self, tables: &Tables, origin: &Origin, header: Header) {
        match header.kind {
            Kind::CallDone => tables.calls.free(origin, header.program),
            Kind::ModuleDrop => drop(lock(&origin.modules).remove(&header.program)),
            _ => tables.connections.sent(origin, header),
        }
    }
}

impl Taker for Inward {
    fn take(&self, header: Header, body: &[u8], waker: &Waker) -> bool {
        let (Some(tables), Some(origin)) = (self.here.upgrade(), self.origin.upgrade()) else { return true };
        if Concern::of(header.kind) != Concern::Origin {
            return true;
        }
        let goes = match self.destination(&tables, &origin, header) {
            // If the CVM has ended, its tables tell everybody.
            Destined::Guest => tables.sender.try_post(header, body, waker).unwrap_or(true),
            Destined::Nobody => true,
        };
        if goes {
            self.sent(&tables, &origin, header);
        }
        goes
    }

    fn pause(&self) {
        if let Some(tables) = self.here.upgrade() {
            tables.sender.kick();
        }
    }
}

/// [`Inward`] for tables of the same process.
pub(crate) struct Door(pub(crate) Arc<Inward>);

impl Outlet for Door {
    fn try_post(&self, header: Header, body: &[u8], waker: &Waker) -> Result<bool, SendError> {
        let mut waiting = lock(&self.0.waiting);
        if self.0.flush(&mut waiting) && self.0.take(header, body, waker) {
            return Ok(true);
        }
        waiting.wakers.push(waker.clone());
        Ok(false)
    }

    fn post(&self, header: Header, body: &[u8]) -> Result<(), SendError> {
        let mut waiting = lock(&self.0.waiting);
        waiting.messages.push_back((header, body.to_vec()));
        self.0.flush(&mut waiting);
        Ok(())
    }

    fn kick(&self) {
        self.0.pause();
    }

    fn is_relayed(&self) -> bool {
        true
    }
}

/// Goes on with what waits when there may be room.
struct Flush(Arc<Inward>);

impl Wake for Flush {
    fn wake(self: Arc<Self>) {
        self.0.go_on();
    }
}

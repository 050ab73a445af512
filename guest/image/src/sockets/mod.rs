//! Sockets of programs that listen: from the host's messages to the task that owns the connections, and back.
//!
//! vCPU 0 only copies a message into the program's [`Inbox`] and, once for all messages of one look at the ring, wakes the
//! task if it waits. The table of connections (`nacre-sockets`) belongs to the program's main task alone: it
//! takes the inbox in when it polls, or when a call would have to wait. So there is no lock, and a
//! worker that the host stops holds up its own program only. All of it lies in the tenant arena.
//!
//! In front of a TLS service's table stands a [`tls::TlsTable`]; the program does not see which it has ([`connections`]).
//!
//! What is sent goes straight from linear memory to the ring of the vCPU that the task is on. The doorbell for it may
//! wait until the next poll or switch, see [`link::send_later`].

mod connections;
mod inbox;
mod secure;
mod tls;

use crate::arch::clock;
use crate::normal::NormalCell;
use crate::program::{GuestSystem, Program};
use crate::sealed;
use crate::{link, memory, task};
use alloc::boxed::Box;
use alloc::vec::Vec;
use connections::Connections;
use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use inbox::Inbox;
use nacre_abi::message::{Header, Kind};
use nacre_abi::ring::Incoming;
use nacre_abi::socket::{ConnectionId, MAX_DATA, MESSAGE_COST, Refusal};
use nacre_sockets::{Link, Message, Table};
use nacre_tls::Nonce;
use nacre_wasi::{Readiness, SocketError, SocketId};
use tls::TlsTable;

/// Windows of a program's connections may take this part of the memory that is free at its start, and no more than the next.
const BUDGET_SHARE: u64 = 8;
const BUDGET_BYTES: u64 = 256 << 20;

/// Tasks that have new messages and wait, by slot. vCPU 0's.
static NEWS: NormalCell<Vec<u32>> = NormalCell::new(Vec::new());

/// The sockets of one program.
pub struct Sockets {
    inbox: Inbox<Message>,
    /// Evidence for certificates, by nonce; `None` where there is none.
    evidence: Inbox<(Nonce, Option<Vec<u8>>)>,
    /// Some of it was dropped because there was no memory.
    evidence_lost: AtomicBool,
    /// Cost of what is in the inbox, and how much that may be.
    queued: AtomicU64,
    limit: AtomicU64,
    /// Messages were dropped because there was no room or no memory for them.
    lost: AtomicBool,
    /// The owner is about to sleep, or sleeps, until something comes.
    waiting: AtomicBool,
    /// Nobody takes anything in any more.
    over: AtomicBool,
    /// The slot of the task that has the table.
    owner: AtomicU32,
    table: OwnerCell,
}

/// The table: only the program's main task touches it.
struct OwnerCell(RefCell<Connections>);

// SAFETY: `Sockets::table` lets only the owner in, which is one task and runs on one vCPU at a time.
unsafe impl Sync for OwnerCell {}

const NO_TASK: u32 = u32::MAX;

/// Where the table's messages go.
struct ToHost(u32);

impl Link for ToHost {
    fn send(&mut self, kind: Kind, id: ConnectionId, arg: u64, body: &[u8]) {
        link::send_later(Header::new(kind, self.0).stream(id.0).arg(arg), body);
    }
}

impl Sockets {
    fn new(connections: impl FnOnce(u64) -> Connections) -> Sockets {
        let budget = (memory::available_bytes() / BUDGET_SHARE).min(BUDGET_BYTES);
        let table = connections(budget);
        Sockets {
            inbox: Inbox::new(),
            evidence: Inbox::new(),
            evidence_lost: AtomicBool::new(false),
            queued: AtomicU64::new(0),
            limit: AtomicU64::new(table.promised()),
            lost: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            over: AtomicBool::new(false),
            owner: AtomicU32::new(NO_TASK),
            table: OwnerCell(RefCell::new(table)),
        }
    }

    fn is_mine(&self) -> bool {
        task::running().is_some_and(|task| task.slot == self.owner.load(Ordering::Relaxed))
    }

    /// The table, for its owner.
    fn table(&self) -> &RefCell<Connections> {
        assert!(self.is_mine(), "only a program's main task has its sockets");
        &self.table.0
    }

    /// A message from the host. Called by vCPU 0 only.
    fn put(&self, header: Header, incoming: &Incoming<'_, '_>) {
        let len = header.len as usize;
        let cost = len as u64 + MESSAGE_COST;
        if len > MAX_DATA || self.over.load(Ordering::Relaxed) {
            return;
        }
        let mut body = Vec::new();
        let fits = self.queued.fetch_add(cost, Ordering::Relaxed) + cost
            <= self.limit.load(Ordering::Relaxed)
            && body.try_reserve_exact(len).is_ok();
        if fits {
            body.resize(len, 0);
            incoming.copy_body(0, &mut body);
        }
        let message = Message { kind: header.kind, id: ConnectionId(header.stream), arg: header.arg, body };
        if !fits || !self.inbox.push(message) {
            self.queued.fetch_sub(cost, Ordering::Relaxed);
            self.lost.store(true, Ordering::SeqCst);
        }
        self.tell();
    }

    /// Something has come: wakes the owner, if it waits. Called by vCPU 0 only.
    fn tell(&self) {
        // After the change; the owner says that it waits before its last look.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::Relaxed) {
            let owner = self.owner.load(Ordering::Relaxed);
            NEWS.with(
                |news| if news.try_reserve(1).is_ok() { news.push(owner) } else { task::unpark_slot(owner) },
            );
        }
    }

    /// Takes in what has come, and does for TLS what is due.
    fn take_in(&self, connections: &mut Connections, to_host: &mut ToHost) {
        self.take_messages(connections, to_host);
        if let Connections::Tls(table) = connections {
            self.drive(table, to_host);
        }
    }

    fn drive(&self, table: &mut TlsTable, to_host: &mut ToHost) {
        let now_ns = clock::monotonic_ns();
        for (nonce, evidence) in self.evidence.take_all() {
            table.evidence(nonce, evidence.as_deref(), now_ns);
        }
        if self.evidence_lost.load(Ordering::Relaxed) && self.evidence_lost.swap(false, Ordering::Relaxed) {
            table.evidence_lost(now_ns);
        }
        let nonces = table.drive(now_ns, to_host);
        if !nonces.is_empty() {
            let program = to_host.0;
            let questions: Vec<_> = task::on_normal(|| {
                nonces.into_iter().map(|nonce| sealed::evidence::enter_service(program, nonce)).collect()
            });
            questions.into_iter().for_each(sealed::evidence::ReportQuestion::send);
        }
    }

    fn take_messages(&self, table: &mut Connections, to_host: &mut ToHost) {
        if self.lost.load(Ordering::Relaxed) && self.lost.swap(false, Ordering::Relaxed) {
            table.break_all(to_host);
        }
        if self.inbox.is_empty() {
            return;
        }
        let mut cost = 0;
        for message in self.inbox.take_all() {
            cost += message.body.len() as u64 + MESSAGE_COST;
            table.receive(message, to_host);
        }
        self.queued.fetch_sub(cost, Ordering::Relaxed);
        self.limit.store(table.promised(), Ordering::Relaxed);
    }

    /// Whether something has come that the owner has not taken in.
    fn has_news(&self) -> bool {
        !self.inbox.is_empty()
            || self.lost.load(Ordering::Relaxed)
            || !self.evidence.is_empty()
            || self.evidence_lost.load(Ordering::Relaxed)
    }

    /// When something is due though nothing comes.
    fn next_ns(&self) -> Option<u64> {
        match &mut *self.table().borrow_mut() {
            Connections::Plain(_) => None,
            Connections::Tls(table) => table.next_ns(),
        }
    }

    /// Lets clients have what was sent to them, as long as there is time and the task may go on. A plain connection has nothing
    /// to send that its program has sent.
    fn linger(&self, orderly: bool, to_host: &mut ToHost) {
        let now_ns = clock::monotonic_ns();
        let until_ns = now_ns.saturating_add(tls::DEADLINE_NS);
        match &mut *self.table().borrow_mut() {
            Connections::Tls(table) if orderly => table.close_open(now_ns, to_host),
            connections => connections.unlisten(to_host),
        }
        loop {
            self.waiting.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let mut connections = self.table().borrow_mut();
            self.take_in(&mut connections, to_host);
            let lingers = matches!(&*connections, Connections::Tls(table) if table.lingers());
            drop(connections);
            if !lingers || clock::monotonic_ns() >= until_ns || task::check().is_err() {
                return;
            }
            link::flush();
            if !self.has_news() {
                task::park_until(self.next_ns().unwrap_or(until_ns).min(until_ns));
            }
        }
    }
}

/// Gives a program that is being loaded its sockets.
pub fn provide(program: &Program) {
    program.sockets.get_or_set(Box::new(Sockets::new(|budget| Connections::Plain(Table::new(budget)))));
}

/// The same for one whose clients speak TLS. By vCPU 0.
pub fn provide_tls(program: &Program) {
    let identity = sealed::tls::identity();
    let connections = |budget| Connections::Tls(Box::new(TlsTable::new(budget, identity)));
    program.sockets.get_or_set(Box::new(Sockets::new(connections)));
}

/// Evidence that a TLS service has asked for came, or there is none. By vCPU 0.
pub fn evidence(program: u32, nonce: Nonce, evidence: Option<Vec<u8>>) {
    let program = Program::find(program);
    let Some(sockets) = program.as_ref().and_then(|program| program.sockets.get()) else { return };
    if !sockets.over.load(Ordering::Relaxed) {
        if !sockets.evidence.push((nonce, evidence)) {
            sockets.evidence_lost.store(true, Ordering::SeqCst);
        }
        sockets.tell();
    }
}

/// The running task is about to run the program: it has the sockets from here on. Whether there are any.
pub fn begin(program: &Program) -> bool {
    let sockets = program.sockets.get();
    sockets.inspect(|sockets| sockets.owner.store(task::current().slot, Ordering::SeqCst)).is_some()
}

/// The program is over: closes its connections. Called by the task that had [`begin`]. If it ended otherwise than by its own wish,
/// clients that speak TLS see that their streams were cut.
pub fn end(program: &Program, orderly: bool) {
    let Some(sockets) = program.sockets.get().filter(|sockets| sockets.is_mine()) else { return };
    let mut to_host = ToHost(program.id);
    sockets.linger(orderly, &mut to_host);
    sockets.over.store(true, Ordering::SeqCst);
    let mut table = sockets.table().borrow_mut();
    // Who is still in the inbox is refused: nobody listens any more.
    sockets.take_messages(&mut table, &mut to_host);
    table.close_all(&mut to_host);
}

/// A message about a connection came. For the dispatcher.
pub fn receive(incoming: &Incoming<'_, '_>) {
    let header = incoming.header();
    let program = Program::find(header.program);
    match program.as_ref().and_then(|program| program.sockets.get()) {
        Some(sockets) if !sockets.over.load(Ordering::Relaxed) => sockets.put(header, incoming),
        _ if header.kind == Kind::SocketOpen => {
            let refused = Header::new(Kind::SocketRefused, header.program).stream(header.stream);
            link::send(refused.arg(Refusal::NotListening as u64), &[]);
        }
        _ => {}
    }
}

/// Wakes the tasks for which messages came. For the dispatcher, after it has read what there was.
pub fn wake_all() {
    NEWS.with(|news| news.drain(..).for_each(task::unpark_slot));
}

/// Called by a task that is about to sleep: whether it need not, because something came for it. Else what comes wakes it,
/// until [`awake`]. What came is taken in, whatever the task is going to wait for: left where it is it would keep the task from
/// sleeping, and from giving its vCPU up, for as long as that does not come.
pub fn news_before_sleep(program: &Program) -> bool {
    let Some(sockets) = program.sockets.get().filter(|sockets| sockets.is_mine()) else { return false };
    sockets.waiting.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let due = sockets.next_ns().is_some_and(|due_ns| due_ns <= clock::monotonic_ns());
    let news = sockets.has_news() || due;
    if news {
        sockets.take_in(&mut sockets.table().borrow_mut(), &mut ToHost(program.id));
    }
    news
}

/// When a task that sleeps is to look at its sockets again, though nothing comes.
pub fn next_ns(program: &Program) -> Option<u64> {
    program.sockets.get().filter(|sockets| sockets.is_mine())?.next_ns()
}

/// The task that slept is awake.
pub fn awake(program: &Program) {
    if let Some(sockets) = program.sockets.get().filter(|sockets| sockets.is_mine()) {
        sockets.waiting.store(false, Ordering::Relaxed);
    }
}

impl GuestSystem {
    /// Does something with the table; if it would block, once more with what has come meanwhile.
    fn with_table<R>(
        &self,
        mut act: impl FnMut(&mut Connections, &mut ToHost) -> Result<R, SocketError>,
    ) -> Result<R, SocketError> {
        let sockets = self.0.sockets.get().ok_or(SocketError::Reset)?;
        let (mut table, mut to_host) = (sockets.table().borrow_mut(), ToHost(self.0.id));
        match act(&mut table, &mut to_host) {
            Err(SocketError::WouldBlock) if sockets.has_news() => {
                sockets.take_in(&mut table, &mut to_host);
                act(&mut table, &mut to_host)
            }
            done => done,
        }
    }

    fn look<R>(&self, look: impl FnOnce(&Connections) -> R) -> Option<R> {
        Some(look(&self.0.sockets.get()?.table().borrow()))
    }
}

impl nacre_wasi::Sockets for GuestSystem {
    fn socket_refresh(&mut self) {
        // What was sent before this poll goes out now.
        link::flush();
        if let Some(sockets) = self.0.sockets.get().filter(|sockets| sockets.is_mine()) {
            sockets.take_in(&mut sockets.table().borrow_mut(), &mut ToHost(self.0.id));
        }
    }

    fn socket_accept(&mut self) -> Result<SocketId, SocketError> {
        self.with_table(|table, link| table.accept(link))
    }

    fn socket_acceptable(&self) -> u64 {
        self.look(Connections::acceptable).unwrap_or(0)
    }

    fn socket_unlisten(&mut self) {
        let _ = self.with_table(|table, link| {
            table.unlisten(link);
            Ok(())
        });
    }

    fn socket_recv(&mut self, id: SocketId, buf: &mut [u8]) -> Result<usize, SocketError> {
        self.with_table(|table, link| table.recv(id, buf, link))
    }

    fn socket_peek(&mut self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        self.with_table(|table, _| table.peek(id, skip, buf))
    }

    fn socket_send(&mut self, id: SocketId, buf: &[u8]) -> Result<usize, SocketError> {
        self.with_table(|table, link| table.send(id, buf, link))
    }

    fn socket_shutdown(&mut self, id: SocketId, read: bool, write: bool) {
        let _ = self.with_table(|table, link| {
            table.shutdown(id, read, write, link);
            Ok(())
        });
    }

    fn socket_close(&mut self, id: SocketId) {
        let _ = self.with_table(|table, link| {
            table.close(id, link);
            Ok(())
        });
    }

    fn socket_readable(&self, id: SocketId) -> Option<Readiness> {
        self.look(|table| table.readable(id)).flatten()
    }

    fn socket_writable(&self, id: SocketId) -> Option<Readiness> {
        self.look(|table| table.writable(id)).flatten()
    }
}

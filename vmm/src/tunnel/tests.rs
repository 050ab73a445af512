//! Tables against guests that are played here, each with a real window: moved, brought back, moved on, over streams that are cut anywhere.

mod links;

use super::concern::Concern;
use super::link::{LinkState, Taker};
use super::*;
use crate::events::{ProgramEvent, ProgramId};
use crate::link::{Doorway, SendError, Sender};
use crate::memory::SharedMemory;
use crate::program::Connector;
use crate::socket::{ConnectError, Connection, Outlet};
use crate::tunnel::Adopted;
use nacre_abi::call::{AnswerHead, HEAD_BYTES};
use nacre_abi::message::{ExitKind, Header, Kind, stream};
use nacre_abi::ring::Consumer;
use nacre_abi::socket::{ConnectionId, MESSAGE_COST, WINDOW};
use nacre_abi::window::{self, Window};
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// Longest wait for anything: then something hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const PROGRAM: u32 = 0;

/// A host with one CVM, whose guest is played by the test.
struct Host {
    tables: Arc<Tables>,
    /// What the guest has read of its ring.
    ring: Mutex<Consumer<'static>>,
}

type Said = (Kind, u32, u64, Vec<u8>);

/// What `look` finds, which somebody else is about to bring.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what} does not come");
        std::thread::yield_now();
    }
}

impl Host {
    fn new() -> Host {
        let memory = Arc::new(SharedMemory::new(window::bytes(2, 1)).unwrap());
        let window: &'static Arc<SharedMemory> = Box::leak(Box::new(memory.clone()));
        let window = Window::new(window.words(), 2, 1).unwrap();
        let wake = EventFd::new(0).unwrap();
        let door = Doorway { memory, vcpus: 2, lanes: 1, stop: Arc::default(), wake };
        let doorbell = Arc::new(EventFd::new(0).unwrap());
        let tables = Tables::new(Arc::new(Sender::new(door)), 256, doorbell).unwrap();
        Host { tables, ring: Mutex::new(Consumer::new(window.to_guest())) }
    }

    /// One whose program listens.
    fn serving() -> (Host, Connector) {
        let host = Host::new();
        let id = host.tables.new_program();
        assert_eq!(id, ProgramId(PROGRAM));
        drop(host.tables.mailboxes.open(id));
        host.tables.mailboxes.started(id);
        host.tables.connections.provide(id.0);
        let connector = host.connector();
        (host, connector)
    }

    fn connector(&self) -> Connector {
        let (sender, intake) = (self.tables.sender.clone(), self.tables.intake.clone());
        Connector::new(ProgramId(PROGRAM), sender, self.tables.connections.clone(), intake)
    }

    /// The next message that the guest reads, if there is one.
    fn try_read(&self) -> Option<Said> {
        let mut ring = self.ring.lock().unwrap();
        let incoming = ring.receive().unwrap()?;
        let header = incoming.header();
        let mut body = vec![0; header.len as usize];
        incoming.copy_body(0, &mut body);
        incoming.finish();
        drop(ring);
        self.tables.sender.notify();
        Some((header.kind, header.stream, header.arg, body))
    }

    fn read(&self) -> Said {
        wait_for("a message to the guest", || self.try_read())
    }

    fn kinds(&self) -> Vec<Kind> {
        std::iter::from_fn(|| self.try_read()).map(|(kind, ..)| kind).collect()
    }

    /// The guest says something about the program, or a call.
    fn says(&self, kind: Kind, number: u32, arg: u64, body: &[u8]) {
        self.hears(Header::new(kind, PROGRAM).stream(number).arg(arg), body);
    }

    fn hears(&self, header: Header, body: &[u8]) {
        let header = Header { len: body.len() as u32, ..header };
        if !self.tables.has_left()
            && !self.tables.hear(header, body)
            && !self.tables.calls.deliver(header, body)
        {
            self.tables.mailboxes.deliver(header, body);
        }
    }

    /// The tenant goes from here to `other`; what stays is joined to it, unless it is at home there.
    fn moves_to(&self, other: &Host, kept: &[&Kept]) -> (Kept, Vec<Adopted>) {
        let roster = Roster::decode(&self.tables.hold().encode()).unwrap();
        self.tables.leave();
        let left = Kept(self.tables.clone());
        let kept: Vec<Arc<Tables>> = kept.iter().map(|kept| kept.0.clone()).collect();
        let newcomers = other.tables.adopt(&roster, &kept).expect("it is fresh");
        assert_eq!(other.try_read(), None, "its guest would not see it");
        other.tables.sender.arrived();
        (left, newcomers)
    }
}

fn join(kept: &Kept, host: &Host) {
    let (here, there) = UnixStream::pair().unwrap();
    kept.attach(here, |_| ()).unwrap();
    accept_link(&host.tables, kept.origin(), there, Box::new(|_| ())).unwrap();
}

fn connect(connector: &Connector) -> Connection {
    connector.connect("127.0.0.1:9".parse().unwrap()).unwrap()
}

fn number(slot: u32) -> u32 {
    ConnectionId::new(slot, 0).0
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn write(connection: &mut Connection, bytes: &[u8]) -> Poll<Result<usize, ErrorKind>> {
    let mut context = Context::from_waker(Waker::noop());
    connection.poll_write(&mut context, bytes).map_err(|error| error.kind())
}

fn read(connection: &mut Connection) -> Poll<Result<Vec<u8>, ErrorKind>> {
    let mut buffer = vec![0; 1 << 20];
    let mut context = Context::from_waker(Waker::noop());
    let read = connection.poll_read(&mut context, &mut buffer).map_err(|error| error.kind());
    read.map_ok(|count| buffer[..count].to_vec())
}

/// What can be read, once something can.
fn read_soon(connection: &mut Connection) -> Result<Vec<u8>, ErrorKind> {
    wait_for("an answer", || match read(connection) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    })
}

#[test]
fn what_is_held_goes_on_in_order() {
    let (host, connector) = Host::serving();
    let mut one = connect(&connector);
    assert_eq!(write(&mut one, b"a"), Poll::Ready(Ok(1)));
    assert_eq!(host.read().0, Kind::SocketOpen);
    let roster = host.tables.hold();
    assert_eq!(roster.unread.len(), 1, "{:?}", roster.unread);
    let woken = Arc::new(Count::default());
    let waker = Waker::from(woken.clone());
    assert!(one.poll_write(&mut Context::from_waker(&waker), b"b").is_pending());
    assert_eq!(connector.connect("127.0.0.1:9".parse().unwrap()).unwrap_err(), ConnectError::Moved);
    one.shutdown_write();
    let (sender, (told, done)) = (host.tables.sender.clone(), mpsc::channel());
    // One that waits for room goes on too; what concerns the migration does not wait.
    let waits = std::thread::spawn(move || {
        told.send(sender.send(Header::new(Kind::StreamEnd, PROGRAM), b"")).unwrap();
    });
    host.tables.sender.post([(Header::new(Kind::MigrateCancel, 7), &b""[..])], true).unwrap();
    assert_eq!(host.kinds(), [Kind::SocketData, Kind::MigrateCancel]);
    assert!(done.try_recv().is_err());
    host.tables.go_on();
    assert_eq!(done.recv_timeout(PATIENCE), Ok(Ok(())));
    waits.join().unwrap();
    let mut kinds = host.kinds();
    // Who waits for room may go first.
    kinds.sort_by_key(|kind| *kind as u16);
    assert_eq!(kinds, [Kind::StreamEnd, Kind::SocketEnd]);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    // And it can be held again.
    assert!(host.tables.hold().unread.is_empty());
    host.tables.go_on();
    connect(&connector);
    assert_eq!(host.kinds(), [Kind::SocketOpen, Kind::SocketClose]);
}

#[test]
fn what_was_not_read_reaches_the_new_guest_once() {
    let ((a, connector), b) = (Host::serving(), Host::new());
    let mut connections = [connect(&connector), connect(&connector)];
    for (connection, text) in connections.iter_mut().zip([&b"one"[..], b"two"]) {
        assert_eq!(write(connection, text), Poll::Ready(Ok(3)));
    }
    assert_eq!((a.read().0, a.read().0), (Kind::SocketOpen, Kind::SocketOpen));
    // Posted beyond what the ring holds, too.
    let call = a.tables.calls.expect(10, |_| ()).unwrap();
    let long = vec![7; Sender::MAX_BODY];
    let pieces = (0..6u64).map(|at| (Header::new(Kind::CallData, call).arg(at), &long[..]));
    a.tables.sender.post(pieces, true).unwrap();
    let roster = a.tables.hold();
    assert_eq!(roster.unread.len(), 8);
    // Held from here on: it goes over the link.
    connections[0].shutdown_write();
    a.tables.leave();
    let kept = Kept(a.tables.clone());
    connections[1].shutdown_write();
    assert!(b.tables.adopt(&roster, &[]).is_some());
    b.tables.sender.arrived();
    join(&kept, &b);
    let said: Vec<Said> = (0..12).map(|_| b.read()).collect();
    let texts: Vec<_> = said[..2].iter().map(|(kind, stream, _, body)| (*kind, *stream, &body[..])).collect();
    assert_eq!(texts, [(Kind::SocketData, 0, &b"one"[..]), (Kind::SocketData, 1, b"two")]);
    let offsets: Vec<u64> = said[2..8].iter().map(|(_, _, arg, _)| *arg).collect();
    assert!(offsets.is_sorted() && said[2..8].iter().all(|(kind, ..)| *kind == Kind::CallData));
    let kinds: Vec<Kind> = said[8..].iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [Kind::Credit, Kind::Credit, Kind::SocketEnd, Kind::SocketEnd]);
    assert_eq!(b.try_read(), None);
    // The old guest's ring is as it was.
    assert_eq!(a.read().0, Kind::SocketData);
}

#[test]
fn a_relayed_connection_carries_both_ways_and_frees_its_number() {
    let ((a, connector), b) = (Host::serving(), Host::new());
    let mut connection = connect(&connector);
    assert_eq!(a.read().0, Kind::SocketOpen);
    a.says(Kind::SocketAccepted, 0, WINDOW, &[]);
    a.says(Kind::SocketData, 0, 0, b"before ");
    let (kept, newcomers) = a.moves_to(&b, &[]);
    join(&kept, &b);
    assert!(newcomers.len() == 1 && newcomers[0].listens);
    let credits: Vec<Kind> = (0..2).map(|_| b.read().0).collect();
    assert_eq!(credits, [Kind::Credit; 2]);
    b.says(Kind::SocketData, 0, 7, b"after");
    assert_eq!(kept.counts(), (1, 0));
    let mut said = Vec::new();
    while said.len() < 12 {
        said.extend(read_soon(&mut connection).unwrap());
    }
    assert_eq!(said, b"before after");
    // The guest gave so much credit, and not more.
    let (mut sent, bytes) = (0, vec![3; 1 << 20]);
    while let Poll::Ready(Ok(count)) = write(&mut connection, &bytes) {
        sent += count as u64;
    }
    let (mut got, mut cost) = (0, 0);
    while got < sent {
        let (kind, stream, at, body) = b.read();
        assert_eq!((kind, stream, at), (Kind::SocketData, 0, got));
        got += body.len() as u64;
        cost += body.len() as u64 + MESSAGE_COST;
    }
    assert!(cost <= WINDOW && cost + 2 * MESSAGE_COST > WINDOW, "{cost}");
    b.says(Kind::SocketCredit, 0, WINDOW + 1000, &[]);
    wait_for("credit", || write(&mut connection, &bytes).is_ready().then_some(()));
    assert_eq!(b.read().0, Kind::SocketData);
    // Half-closes both ways, then last words.
    connection.shutdown_write();
    assert_eq!(b.read().0, Kind::SocketEnd);
    b.says(Kind::SocketEnd, 0, 12, &[]);
    assert_eq!(read_soon(&mut connection), Ok(vec![]));
    assert_eq!(relayed(&b.tables)[0].connections, 1);
    let here = b.connector();
    assert_eq!((here.stats().open, here.stats().relayed, here.stats().waiting), (1, 1, 0));
    let own = connect(&here);
    assert_eq!(b.read().1, number(1), "the other slot is taken");
    b.says(Kind::SocketClose, 0, 12, &[]);
    wait_for("the last word", || connection.is_deaf().then_some(()));
    drop(connection);
    // The guest knows that number no more, but its host has to.
    wait_for("a free slot", || (here.stats().relayed == 0).then_some(()));
    let next = connect(&here);
    assert_eq!(b.read(), (Kind::SocketOpen, ConnectionId(number(0)).next().0, WINDOW, next_body()));
    wait_for("the end of what stayed behind", || kept.is_done().then_some(()));
    drop((own, next));
    assert_eq!((b.read().0, b.read().0), (Kind::SocketClose, Kind::SocketClose));
}

fn next_body() -> Vec<u8> {
    nacre_abi::socket::encode_address("127.0.0.1:9".parse().unwrap()).to_vec()
}

#[test]
fn resets_cross_and_the_end_of_the_program_ends_all() {
    let ((a, connector), b) = (Host::serving(), Host::new());
    let mut connections: Vec<Connection> = (0..4).map(|_| connect(&connector)).collect();
    assert_eq!(a.kinds().len(), 4);
    let (kept, _newcomers) = a.moves_to(&b, &[]);
    join(&kept, &b);
    assert_eq!(b.connector().stats().waiting, 4);
    assert_eq!((b.read().0, b.read().0), (Kind::Credit, Kind::Credit));
    connections.remove(0).reset();
    assert_eq!(b.read(), (Kind::SocketReset, 0, 0, vec![]));
    b.says(Kind::SocketReset, 0, 0, &[]);
    b.says(Kind::SocketReset, 1, 0, &[]);
    assert_eq!(read_soon(&mut connections[0]), Err(ErrorKind::ConnectionReset));
    b.says(Kind::SocketRefused, 2, 0, &[]);
    assert_eq!(read_soon(&mut connections[1]), Err(ErrorKind::ConnectionRefused));
    assert_eq!(b.connector().stats().waiting, 1);
    b.hears(Header::new(Kind::ProgramExited, PROGRAM).stream(ExitKind::Code as u32), &[]);
    assert_eq!(read_soon(&mut connections[2]), Err(ErrorKind::ConnectionReset));
    drop(connections);
    wait_for("the end of what stayed behind", || kept.is_done().then_some(()));
    assert_eq!((b.connector().stats().open, b.kinds()), (0, vec![]));
}

#[test]
fn what_is_neither_is_ignored() {
    let ((a, connector), b) = (Host::serving(), Host::new());
    let mut connection = connect(&connector);
    let call = a.tables.calls.expect(10, |_| ()).unwrap();
    assert_eq!(a.kinds(), [Kind::SocketOpen]);
    let (kept, _newcomers) = a.moves_to(&b, &[]);
    join(&kept, &b);
    let own = connect(&b.connector());
    assert_eq!(b.kinds(), [Kind::Credit, Kind::Credit, Kind::SocketOpen]);
    let kinds = (0..80).filter_map(Kind::from_number).filter(|kind| Concern::of(*kind) == Concern::Origin);
    for kind in kinds {
        for wrong in [ConnectionId(number(0)).next().0, number(9), u32::MAX] {
            // The number of the program is that of a call too.
            if !matches!(kind, Kind::CallDone | Kind::CallOutput) {
                b.says(kind, wrong, 0, b"lies");
            }
            b.hears(Header::new(kind, 77 + wrong % 3).stream(wrong).arg(u64::MAX), b"");
        }
        // Nor does the old guest have a say any more.
        a.says(kind, 0, 3, b"lies");
    }
    assert_eq!(b.tables.origins()[0].link().unwrap().export(), LinkState::default());
    // An origin speaks of what is its own, and of nothing else.
    let inward = origin::Inward::new(Arc::downgrade(&b.tables), Arc::downgrade(&b.tables.origins()[0]));
    for (kind, program, stream) in [
        (Kind::SocketReset, PROGRAM, number(1)),
        (Kind::SocketOpen, PROGRAM, number(5)),
        (Kind::SocketData, 9, number(0)),
        (Kind::CallCancel, call + 1, 0),
        (Kind::CallStart, call, 3),
        (Kind::CallDone, call + 1, 0),
        (Kind::ModuleDrop, 1, 0),
        (Kind::ProgramDrop, PROGRAM, 0),
        (Kind::StreamEnd, PROGRAM, 0),
        (Kind::MigrateCancel, PROGRAM, 0),
        (Kind::Manifest, PROGRAM, 0),
    ] {
        assert!(inward.take(Header::new(kind, program).stream(stream), b"", Waker::noop()), "{kind:?}");
        assert_eq!(b.try_read(), None, "{kind:?}");
    }
    assert!(inward.take(Header::new(Kind::CallCancel, call), b"", Waker::noop()));
    assert_eq!(b.read().0, Kind::CallCancel);
    b.says(Kind::SocketData, 0, 0, b"truth");
    assert_eq!(read_soon(&mut connection), Ok(b"truth".to_vec()));
    drop(own);
}

fn answer(text: &[u8]) -> Vec<u8> {
    let head = AnswerHead {
        kind: ExitKind::Code,
        code: 0,
        stdout_cut: false,
        stderr_cut: false,
        cold: false,
        in_pieces: false,
        text_bytes: 0,
        stdout_bytes: text.len() as u64,
        stderr_bytes: 0,
        cpu_ns: 0,
        queued_ns: 0,
        ran_ns: 0,
    };
    assert_eq!(head.encode().len(), HEAD_BYTES);
    [&head.encode()[..], text].concat()
}

fn call(host: &Host) -> (u32, Receiver<Vec<u8>>) {
    let (told, result) = mpsc::channel();
    (host.tables.calls.expect(100, move |result| told.send(result.stdout).unwrap()).unwrap(), result)
}

#[test]
fn a_call_under_way_is_answered_where_it_was_made() {
    let ((a, _), b) = (Host::serving(), Host::new());
    let ((first, one), (second, two)) = (call(&a), call(&a));
    let (kept, _newcomers) = a.moves_to(&b, &[]);
    join(&kept, &b);
    let (own, three) = call(&b);
    assert!(own != first && own != second && !kept.is_done());
    for (number, text) in [(second, &b"second"[..]), (own, b"own"), (first, b"first")] {
        b.hears(Header::new(Kind::CallDone, number), &answer(text));
    }
    let results = [one, two, three].map(|result| result.recv_timeout(PATIENCE).unwrap());
    assert_eq!(results, [b"first".to_vec(), b"second".to_vec(), b"own".to_vec()]);
    wait_for("free numbers", || (relayed(&b.tables)[0].calls == 0).then_some(()));
    let numbers: Vec<u32> = (0..3).map(|_| call(&b).0).collect();
    assert!(numbers.contains(&first) && numbers.contains(&second), "{numbers:?}");
    assert!(a.tables.calls.expect(1, |_| ()).is_err());
}

#[test]
fn a_program_is_followed_where_it_is() {
    let (a, b) = (Host::new(), Host::new());
    let ids: Vec<ProgramId> = (0..3).map(|_| a.tables.new_program()).collect();
    let events: Vec<_> = ids.iter().map(|id| a.tables.mailboxes.open(*id)).collect();
    a.tables.mailboxes.started(ids[0]);
    a.tables.mailboxes.started(ids[1]);
    let out = Header::new(Kind::StreamData, 0).stream(stream::STDOUT);
    a.hears(out, b"before");
    a.hears(Header::new(Kind::StreamEnd, 0).stream(stream::STDERR), b"");
    a.hears(Header::new(Kind::Credit, 0).stream(stream::STDIN).arg(2), b"");
    a.tables.mailboxes.input_sent(ids[0], 5, false);
    for stream in [stream::STDOUT, stream::STDERR] {
        a.hears(Header::new(Kind::StreamEnd, 1).stream(stream), b"");
    }
    a.hears(Header::new(Kind::ProgramExited, 1), b"");
    let stdin = Header::new(Kind::StreamData, 0).stream(stream::STDIN);
    a.tables.sender.send(stdin, b"input").unwrap();
    let (_kept, newcomers) = a.moves_to(&b, &[]);
    assert_eq!(newcomers.iter().map(|one| one.id).collect::<Vec<_>>(), [ids[0]]);
    let input = b.tables.mailboxes.input(ids[0]);
    assert_eq!((input.sent, input.consumed, input.ended), (5, 2, false));
    let said: Vec<Said> = (0..5).map(|_| b.read()).collect();
    assert_eq!(said[0], (Kind::StreamData, stream::STDIN, 0, b"input".to_vec()));
    assert_eq!(
        said[1],
        (Kind::Credit, stream::STDOUT, 6, vec![]),
        "what is read at the old host is paid for here"
    );
    assert_eq!([said[3].0, said[4].0], [Kind::ProgramDrop; 2]);
    assert_eq!(b.tables.new_program(), ProgramId(3));
    // At the old host nobody is told of an end, and nothing is said to the guest.
    assert!(matches!(events[0].recv(), Some(ProgramEvent::Output { end: 6, .. })));
    assert!(matches!(events[0].recv(), Some(ProgramEvent::InputCredit(2))));
    assert_eq!(events[0].recv(), None);
    assert_eq!(a.tables.sender.send(Header::new(Kind::ProgramDrop, 0), b""), Err(SendError::Moved));
    b.hears(out.arg(6), b"after");
    b.hears(Header::new(Kind::StreamEnd, 0).stream(stream::STDOUT).arg(11), b"");
    b.hears(Header::new(Kind::ProgramExited, 0).stream(ExitKind::Code as u32).arg(4), b"");
    let events = &newcomers[0].events;
    assert_eq!(events.recv(), Some(ProgramEvent::Output { stream: 1, bytes: b"after".to_vec(), end: 11 }));
    assert!(matches!(events.recv(), Some(ProgramEvent::Exited(_))));
    assert!(b.tables.adopt(&a.tables.hold(), &[]).is_none(), "it is not fresh");
}

#[test]
fn an_origin_that_is_lost_is_spoken_for() {
    let ((a, connector), b) = (Host::serving(), Host::new());
    let _connections: Vec<Connection> = (0..2).map(|_| connect(&connector)).collect();
    let (number, _result) = call(&a);
    assert_eq!(a.kinds().len(), 2);
    let (kept, _newcomers) = a.moves_to(&b, &[]);
    b.says(Kind::SocketClose, 0, 0, &[]);
    assert_eq!(b.kinds(), [Kind::Credit; 2]);
    b.tables.lose(kept.origin());
    assert_eq!(b.read(), (Kind::SocketReset, 1, 0, vec![]));
    assert_eq!(b.read().0, Kind::CallCancel);
    assert_eq!(b.connector().stats().relayed, 1, "the guest may still mean the other one");
    b.says(Kind::SocketReset, 1, 0, &[]);
    b.hears(Header::new(Kind::CallDone, number), b"");
    assert_eq!(b.connector().stats().open, 0);
    let (_, there) = UnixStream::pair().unwrap();
    assert!(accept_link(&b.tables, kept.origin(), there, Box::new(|_| ())).is_err());
}

/// A client that says numbers and a guest that says them back, wherever it is.
struct Echo {
    connection: Connection,
    said: u64,
    heard: u64,
    /// Bytes that the guest has said.
    echoed: u64,
}

impl Echo {
    fn say(&mut self) {
        assert_eq!(write(&mut self.connection, &self.said.to_le_bytes()), Poll::Ready(Ok(8)));
        self.said += 1;
    }

    /// The guest answers the next one, at `host`.
    fn answer(&mut self, host: &Host) {
        let body = loop {
            let (kind, _, at, body) = host.read();
            if kind == Kind::SocketData {
                assert_eq!(at, self.echoed);
                break body;
            }
        };
        assert_eq!(body, (self.echoed / 8).to_le_bytes());
        host.says(Kind::SocketData, 0, self.echoed, &body);
        self.echoed += 8;
    }

    fn hear(&mut self) {
        while self.heard < self.echoed {
            let text = read_soon(&mut self.connection).unwrap();
            for number in text.chunks(8) {
                assert_eq!(number, (self.heard / 8).to_le_bytes());
                self.heard += 8;
            }
        }
    }
}

fn echo(host: &Host, connector: &Connector) -> Echo {
    let connection = connect(connector);
    assert_eq!(host.read().0, Kind::SocketOpen);
    host.says(Kind::SocketAccepted, 0, WINDOW, &[]);
    Echo { connection, said: 0, heard: 0, echoed: 0 }
}

#[test]
fn a_tenant_that_moves_on_is_one_hop_away() {
    let ((a, connector), b, c) = (Host::serving(), Host::new(), Host::new());
    let mut echo = echo(&a, &connector);
    echo.say();
    let (a_left, _at_b) = a.moves_to(&b, &[]);
    echo.say();
    join(&a_left, &b);
    echo.answer(&b);
    echo.say();
    echo.answer(&b);
    assert_eq!(b.read().0, Kind::SocketData);
    let own = connect(&b.connector());
    assert_eq!(b.read().0, Kind::SocketOpen);
    b.says(Kind::SocketData, 0, echo.echoed, &2u64.to_le_bytes());
    echo.echoed += 8;
    for _ in 0..3 {
        echo.say();
    }
    wait_for("what A said, at B", || {
        let link = b.tables.origins()[0].link()?.export();
        (link.next_in == 5).then_some(())
    });
    let (b_left, _at_c) = b.moves_to(&c, &[]);
    echo.say();
    join(&b_left, &c);
    join(&a_left, &c);
    while echo.echoed < echo.said * 8 {
        echo.answer(&c);
    }
    echo.hear();
    assert_eq!((echo.said, relayed(&c.tables).len()), (7, 2));
    assert_eq!(c.connector().stats().relayed, 2);
    drop((echo, own));
    let last: Vec<Kind> = (0..2).map(|_| c.read().0).collect();
    assert_eq!(last, [Kind::SocketClose, Kind::SocketClose]);
    c.says(Kind::SocketClose, 0, 56, &[]);
    c.says(Kind::SocketClose, 1, 0, &[]);
    assert_eq!(c.connector().stats().open, 0);
    wait_for("the end at A", || (a_left.is_done() && b_left.is_done()).then_some(()));
}

#[test]
fn a_tenant_that_comes_back_needs_no_link() {
    let ((a, connector), b, again) = (Host::serving(), Host::new(), Host::new());
    let mut echo = echo(&a, &connector);
    let (a_left, _at_b) = a.moves_to(&b, &[]);
    join(&a_left, &b);
    echo.say();
    echo.answer(&b);
    // Some of it is at B, unread; some still here, because the stream is gone.
    echo.say();
    wait_for("what A said, at B", || (b.tables.origins()[0].link()?.export().next_in == 2).then_some(()));
    b.tables.origins()[0].freeze(true);
    echo.say();
    b.says(Kind::SocketCredit, 0, WINDOW + 8, &[]);
    let (b_left, _back) = b.moves_to(&again, &[&a_left]);
    echo.say();
    assert!(!a_left.is_distant() && b_left.is_done());
    while echo.echoed < echo.said * 8 {
        echo.answer(&again);
    }
    echo.hear();
    assert_eq!((echo.said, relayed(&again.tables)[1].connections), (4, 1));
    // An abort of the next move costs nothing.
    again.tables.hold();
    let held = write(&mut echo.connection, &echo.said.to_le_bytes());
    assert!(held.is_pending());
    again.tables.go_on();
    echo.say();
    echo.answer(&again);
    // And then to a third host.
    echo.say();
    let c = Host::new();
    let (again_left, _at_c) = again.moves_to(&c, &[&b_left]);
    assert!(a_left.is_distant());
    echo.say();
    join(&a_left, &c);
    join(&again_left, &c);
    while echo.echoed < echo.said * 8 {
        echo.answer(&c);
    }
    echo.hear();
    drop(echo);
    assert_eq!(c.read().0, Kind::SocketClose);
    c.says(Kind::SocketClose, 0, 56, &[]);
    wait_for("the end at A", || a_left.is_done().then_some(()));
}

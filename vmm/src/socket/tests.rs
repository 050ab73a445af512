//! Connections against a guest that is played here: honest, and not.

use super::*;
use nacre_abi::socket::{BACKLOG, INITIAL_LIMIT, MAX_DATA, Refusal};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Wake;
use vmm_sys_util::eventfd::EventFd;

/// The ring to the guest: keeps what was sent, and can be full.
#[derive(Default)]
struct Ring {
    sent: Mutex<Vec<(Header, Vec<u8>)>>,
    full: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
    kicks: AtomicUsize,
}

impl Ring {
    fn take(&self) -> Vec<(Header, Vec<u8>)> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    fn kinds(&self) -> Vec<Kind> {
        self.take().iter().map(|(header, _)| header.kind).collect()
    }

    fn make_room(&self) {
        self.full.store(false, Ordering::SeqCst);
        self.wakers.lock().unwrap().drain(..).for_each(Waker::wake);
    }
}

impl Outlet for Ring {
    fn try_post(&self, header: Header, body: &[u8], waker: &Waker) -> Result<bool, SendError> {
        if self.full.load(Ordering::SeqCst) {
            self.wakers.lock().unwrap().push(waker.clone());
            return Ok(false);
        }
        self.post(header, body).map(|()| true)
    }

    fn post(&self, header: Header, body: &[u8]) -> Result<(), SendError> {
        self.sent.lock().unwrap().push((header, body.to_vec()));
        Ok(())
    }

    fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct World {
    ring: Arc<Ring>,
    connections: Arc<Connections>,
    connector: Connector,
    woken: Arc<Count>,
}

impl World {
    fn new() -> World {
        let (ring, connections) = (Arc::new(Ring::default()), Arc::new(Connections::default()));
        let intake = Arc::new(Intake::new(Arc::new(EventFd::new(0).unwrap())));
        let connector = Connector::new(ProgramId(3), ring.clone(), connections.clone(), intake);
        connections.provide(3);
        World { ring, connections, connector, woken: Arc::default() }
    }

    fn connect(&self) -> Connection {
        self.connector.connect("[2001:db8::1]:7".parse().unwrap()).unwrap()
    }

    fn says(&self, connection: &Connection, kind: Kind, arg: u64, body: &[u8]) {
        let header = Header { len: body.len() as u32, ..connection.peer.header(kind).arg(arg) };
        assert!(self.connections.receive(header, body));
    }

    fn read(&self, connection: &mut Connection, len: usize) -> Poll<Result<Vec<u8>, ErrorKind>> {
        let waker = Waker::from(self.woken.clone());
        let mut buf = vec![0; len];
        connection
            .poll_read(&mut Context::from_waker(&waker), &mut buf)
            .map_ok(|count| buf[..count].to_vec())
            .map_err(|error| error.kind())
    }

    fn write(&self, connection: &mut Connection, bytes: &[u8]) -> Poll<Result<usize, ErrorKind>> {
        let waker = Waker::from(self.woken.clone());
        connection.poll_write(&mut Context::from_waker(&waker), bytes).map_err(|error| error.kind())
    }

    fn wakes(&self) -> usize {
        self.woken.0.swap(0, Ordering::SeqCst)
    }
}

#[test]
fn a_connection_from_its_opening_to_its_end() {
    let world = World::new();
    let mut connection = world.connect();
    let (open, body) = world.ring.take().remove(0);
    assert_eq!((open.kind, open.program, open.arg), (Kind::SocketOpen, 3, WINDOW));
    assert_eq!(nacre_abi::socket::decode_address(&body), Some("[2001:db8::1]:7".parse().unwrap()));
    assert_eq!(world.write(&mut connection, b"hello"), Poll::Ready(Ok(5)));
    assert!(!connection.is_accepted() && world.connector.stats().waiting == 1);
    world.says(&connection, Kind::SocketAccepted, WINDOW, &[]);
    assert!(connection.is_accepted() && world.connector.stats().waiting == 0);
    assert_eq!(world.read(&mut connection, 10), Poll::Pending);
    // The second piece comes first: nobody is woken for it.
    world.says(&connection, Kind::SocketEnd, 6, &[]);
    world.says(&connection, Kind::SocketData, 3, b"def");
    assert_eq!(world.wakes(), 0);
    world.says(&connection, Kind::SocketData, 0, b"abc");
    assert_eq!(world.wakes(), 1);
    assert_eq!(world.read(&mut connection, 4), Poll::Ready(Ok(b"abcd".to_vec())));
    assert_eq!(world.read(&mut connection, 4), Poll::Ready(Ok(b"ef".to_vec())));
    assert_eq!(world.read(&mut connection, 4), Poll::Ready(Ok(vec![])));
    assert_eq!(connection.offsets(), (5, 6));
    connection.shutdown_write();
    assert_eq!(world.write(&mut connection, b"x"), Poll::Ready(Err(ErrorKind::BrokenPipe)));
    world.says(&connection, Kind::SocketClose, 6, &[]);
    assert_eq!(world.ring.kinds(), [Kind::SocketData, Kind::SocketEnd]);
    drop(connection);
    // The guest had said its last word: there is nobody to tell.
    assert_eq!((world.ring.kinds(), world.connector.stats().open), (vec![], 0));
}

#[test]
fn a_number_is_used_again_only_after_both_last_words() {
    let world = World::new();
    let first = world.connect();
    let id = first.peer.id;
    drop(first);
    assert_eq!(world.ring.kinds(), [Kind::SocketOpen, Kind::SocketClose]);
    let second = world.connect();
    assert_ne!(second.peer.id.slot(), id.slot(), "the guest may still mean the first one");
    world.connections.receive(Header::new(Kind::SocketClose, 3).stream(id.0), &[]);
    let third = world.connect();
    assert_eq!((third.peer.id.slot(), third.peer.id), (id.slot(), id.next()));
    // What is late for the first one does not touch the third.
    world.connections.receive(Header::new(Kind::SocketReset, 3).stream(id.0), &[]);
    assert!(third.peer.state().stream.room().is_ok());
}

#[test]
fn writers_wait_for_credit_and_for_room() {
    let world = World::new();
    let mut connection = world.connect();
    let bytes = vec![1; 1 << 20];
    let first = INITIAL_LIMIT as usize - 64;
    assert_eq!(world.write(&mut connection, &bytes), Poll::Ready(Ok(first)));
    assert_eq!(world.write(&mut connection, &bytes), Poll::Pending);
    world.says(&connection, Kind::SocketAccepted, INITIAL_LIMIT + 100, &[]);
    assert_eq!(world.wakes(), 1);
    assert_eq!(world.write(&mut connection, &bytes), Poll::Ready(Ok(36)));
    world.says(&connection, Kind::SocketCredit, WINDOW, &[]);
    world.ring.full.store(true, Ordering::SeqCst);
    assert_eq!(world.write(&mut connection, &bytes), Poll::Pending);
    world.ring.make_room();
    assert_eq!(world.wakes(), 1);
    assert!(matches!(world.write(&mut connection, &bytes), Poll::Ready(Ok(count)) if count > MAX_DATA));
    let sent = world.ring.take();
    let mut at = 0;
    for (header, body) in sent.iter().filter(|(header, _)| header.kind == Kind::SocketData) {
        assert_eq!(header.arg, at);
        at += body.len() as u64;
    }
    assert_eq!(at, connection.offsets().0);
}

#[test]
fn what_breaks_the_rules_fails_that_connection_only() {
    let world = World::new();
    let mut other = world.connect();
    let lies: [(Kind, u64, Vec<u8>); 7] = [
        (Kind::SocketData, u64::MAX - 3, vec![0; 10]),
        (Kind::SocketData, WINDOW, vec![0; 10]),
        (Kind::SocketData, 0, vec![0; MAX_DATA + 1]),
        (Kind::SocketData, 0, vec![]),
        (Kind::SocketCredit, u64::MAX, vec![]),
        (Kind::SocketAccepted, u64::MAX, vec![]),
        (Kind::SocketEnd, 2, vec![]),
    ];
    for (kind, arg, body) in lies {
        let mut connection = world.connect();
        world.says(&connection, Kind::SocketData, 0, b"seen");
        world.ring.take();
        world.says(&connection, kind, arg, &body);
        assert_eq!(world.ring.kinds(), [Kind::SocketReset], "{kind:?} {arg}");
        assert_eq!(world.read(&mut connection, 9), Poll::Ready(Err(ErrorKind::ConnectionReset)));
        drop(connection);
        assert_eq!(world.ring.kinds(), []);
    }
    world.says(&other, Kind::SocketData, 0, b"fine");
    assert_eq!(world.read(&mut other, 9), Poll::Ready(Ok(b"fine".to_vec())));
}

#[test]
fn refusals_and_ends_are_told() {
    let world = World::new();
    let mut refused = world.connect();
    assert_eq!(world.read(&mut refused, 1), Poll::Pending);
    world.says(&refused, Kind::SocketRefused, Refusal::Full as u64, &[]);
    assert_eq!(world.wakes(), 1);
    assert_eq!(world.read(&mut refused, 1), Poll::Ready(Err(ErrorKind::ConnectionRefused)));
    let mut clients: Vec<Connection> = (0..BACKLOG).map(|_| world.connect()).collect();
    let again = world.connector.connect("127.0.0.1:1".parse().unwrap());
    assert_eq!(again.unwrap_err(), ConnectError::BacklogFull);
    // One closes in order before the program ends, and all it said can be read.
    world.says(&clients[0], Kind::SocketClose, 2, &[]);
    world.connections.program_over(3);
    world.says(&clients[0], Kind::SocketData, 0, b"ok");
    assert_eq!(world.read(&mut clients[0], 9), Poll::Ready(Ok(b"ok".to_vec())));
    assert_eq!(world.read(&mut clients[0], 9), Poll::Ready(Ok(vec![])));
    assert_eq!(world.read(&mut clients[1], 9), Poll::Ready(Err(ErrorKind::ConnectionReset)));
    let late = world.connector.connect("127.0.0.1:1".parse().unwrap());
    assert_eq!(late.unwrap_err(), ConnectError::Ended);
    drop((clients, refused));
    assert_eq!(world.connector.stats().open, 0);
    world.connections.remove(3);
    let gone = world.connector.connect("127.0.0.1:1".parse().unwrap());
    assert_eq!(gone.unwrap_err(), ConnectError::NotListening);
}

#[test]
fn a_client_that_went_first_is_gone_when_the_program_is() {
    let world = World::new();
    drop(world.connect());
    assert_eq!(world.connector.stats().open, 1, "its number is the guest's until it says its last word");
    world.connections.program_over(3);
    assert_eq!(world.connector.stats().open, 0);
}

#[test]
fn a_reader_gives_credit_and_a_greedy_guest_is_stopped() {
    let world = World::new();
    let mut connection = world.connect();
    let piece = vec![7; MAX_DATA];
    let mut sent = 0;
    for _ in 0..7 {
        world.says(&connection, Kind::SocketData, sent, &piece);
        sent += MAX_DATA as u64;
    }
    assert_eq!(world.connector.stats().kept_bytes, sent);
    world.ring.take();
    let mut got = 0;
    while let Poll::Ready(Ok(bytes)) = world.read(&mut connection, 10_000) {
        got += bytes.len() as u64;
    }
    assert_eq!(got, sent);
    let limits: Vec<u64> = world.ring.take().iter().map(|(header, _)| header.arg).collect();
    assert!(limits.is_sorted() && *limits.last().unwrap() <= sent + 7 * 64 + WINDOW && limits.len() <= 4);
    // Then it sends more than the last limit allows.
    for _ in 0..20 {
        world.says(&connection, Kind::SocketData, sent, &piece);
        sent += MAX_DATA as u64;
    }
    assert_eq!(world.read(&mut connection, 1), Poll::Ready(Err(ErrorKind::ConnectionReset)));
    assert_eq!(world.connector.stats().kept_bytes, 0);
}

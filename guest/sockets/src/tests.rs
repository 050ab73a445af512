//! The table against a host that is played here: honest, and not.

use super::*;
use nacre_abi::message::Kind;
use nacre_abi::socket::{
    BACKLOG, ConnectionId, INITIAL_LIMIT, MAX_DATA, Receiving, Refusal, Sending, WINDOW,
};
use nacre_wasi::{Readiness, SocketError, SocketId};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// What the guest said.
#[derive(Default)]
struct Said(Vec<(Kind, ConnectionId, u64, Vec<u8>)>);

impl Link for Said {
    fn send(&mut self, kind: Kind, id: ConnectionId, arg: u64, body: &[u8]) {
        self.0.push((kind, id, arg, body.to_vec()));
    }
}

impl Said {
    fn kinds(&mut self) -> Vec<Kind> {
        self.0.drain(..).map(|(kind, ..)| kind).collect()
    }
}

struct World {
    table: Table,
    said: Said,
}

impl World {
    fn new() -> World {
        World { table: Table::new(64 << 20), said: Said::default() }
    }

    fn hear(&mut self, kind: Kind, id: ConnectionId, arg: u64, body: &[u8]) {
        self.table.receive(Message { kind, id, arg, body: body.to_vec() }, &mut self.said);
    }

    fn open(&mut self, slot: u32) -> ConnectionId {
        let id = ConnectionId::new(slot, 0);
        self.hear(Kind::SocketOpen, id, WINDOW, &[0; 20]);
        id
    }

    fn accept(&mut self) -> Result<SocketId, SocketError> {
        self.table.accept(&mut self.said)
    }

    fn recv(&mut self, id: SocketId, len: usize) -> Result<Vec<u8>, SocketError> {
        let mut buf = vec![0; len];
        self.table.recv(id, &mut buf, &mut self.said).map(|count| buf[..count].to_vec())
    }
}

#[test]
fn a_connection_from_its_opening_to_its_end() {
    let mut world = World::new();
    let id = world.open(5);
    assert_eq!((world.table.acceptable(), world.said.kinds()), (1, vec![]));
    world.hear(Kind::SocketData, id, 0, b"early");
    let socket = world.accept().unwrap();
    assert_eq!(world.said.kinds(), [Kind::SocketAccepted]);
    assert_eq!(world.table.readable(socket), Some(Readiness { bytes: 5, hangup: false }));
    let mut two = [0; 2];
    assert_eq!((world.table.peek(socket, 3, &mut two), &two), (Ok(2), b"ly"));
    assert_eq!(world.recv(socket, 3), Ok(b"ear".to_vec()));
    assert_eq!(world.recv(socket, 9), Ok(b"ly".to_vec()));
    assert_eq!(world.recv(socket, 9), Err(SocketError::WouldBlock));
    assert_eq!(world.table.readable(socket), None);
    world.hear(Kind::SocketEnd, id, 5, &[]);
    assert_eq!(world.table.readable(socket), Some(Readiness { bytes: 0, hangup: true }));
    assert_eq!(world.recv(socket, 9), Ok(vec![]));
    assert_eq!(world.table.send(socket, b"bye", &mut world.said), Ok(3));
    world.table.shutdown(socket, false, true, &mut world.said);
    assert_eq!(world.table.send(socket, b"x", &mut world.said), Err(SocketError::Closed));
    world.table.close(socket, &mut world.said);
    let said: Vec<_> = world.said.0.iter().map(|(kind, _, arg, _)| (*kind, *arg)).collect();
    assert_eq!(said, [(Kind::SocketData, 0), (Kind::SocketEnd, 3), (Kind::SocketClose, 3)]);
    assert_eq!(world.table.live(), 0);
    // Its number means nothing any more.
    world.hear(Kind::SocketReset, id, 0, &[]);
    world.said.kinds();
    world.hear(Kind::SocketOpen, id.next(), WINDOW, &[]);
    assert_eq!(world.accept(), Ok(SocketId(5)));
}

#[test]
fn what_was_not_read_is_lost_with_a_reset() {
    let mut world = World::new();
    let id = world.open(0);
    let socket = world.accept().unwrap();
    world.hear(Kind::SocketData, id, 0, b"unread");
    world.said.kinds();
    world.table.close(socket, &mut world.said);
    assert_eq!(world.said.kinds(), [Kind::SocketReset]);
}

#[test]
fn who_reads_no_more_still_gives_credit() {
    let mut world = World::new();
    let id = world.open(0);
    let socket = world.accept().unwrap();
    world.table.shutdown(socket, true, false, &mut world.said);
    world.said.kinds();
    for at in 0..100 {
        world.hear(Kind::SocketData, id, at * 30_000, &[1; 30_000]);
    }
    assert!(world.said.kinds().iter().all(|kind| *kind == Kind::SocketCredit));
    assert_eq!(world.recv(socket, 9), Ok(vec![]));
}

#[test]
fn the_backlog_has_an_end() {
    let mut world = World::new();
    for slot in 0..BACKLOG as u32 {
        world.open(slot);
    }
    assert_eq!(world.said.kinds(), []);
    world.open(BACKLOG as u32);
    assert_eq!(world.said.0[0].2, Refusal::Full as u64);
    world.said.kinds();
    // One that fails before it is accepted is never seen.
    world.hear(Kind::SocketReset, ConnectionId::new(0, 0), 0, &[]);
    assert_eq!(world.accept(), Ok(SocketId(1)));
    world.said.kinds();
    world.table.unlisten(&mut world.said);
    assert_eq!(world.said.kinds(), vec![Kind::SocketRefused; BACKLOG - 2]);
    world.open(7);
    assert_eq!(world.said.0[0].2, Refusal::NotListening as u64);
}

#[test]
fn what_breaks_the_rules_fails_that_connection_only() {
    let lies: [(Kind, u64, usize); 9] = [
        (Kind::SocketData, 5, 1),
        (Kind::SocketData, 3, 1),
        (Kind::SocketData, u64::MAX, 1),
        (Kind::SocketData, 4, 0),
        (Kind::SocketData, 4, MAX_DATA + 1),
        (Kind::SocketEnd, 3, 0),
        (Kind::SocketClose, u64::MAX, 0),
        (Kind::SocketCredit, u64::MAX, 0),
        (Kind::SocketOpen, WINDOW, 0),
    ];
    for (kind, arg, len) in lies {
        let mut world = World::new();
        let (liar, other) = (world.open(0), world.open(1));
        let (one, two) = (world.accept().unwrap(), world.accept().unwrap());
        world.hear(Kind::SocketData, liar, 0, b"good");
        world.said.kinds();
        world.hear(kind, liar, arg, &vec![0; len]);
        assert_eq!(world.said.kinds(), [Kind::SocketReset], "{kind:?} {arg} {len}");
        assert_eq!(world.recv(one, 9), Err(SocketError::Reset));
        assert_eq!(world.table.send(one, b"x", &mut world.said), Err(SocketError::Reset));
        world.hear(Kind::SocketData, other, 0, b"fine");
        assert_eq!(world.recv(two, 9), Ok(b"fine".to_vec()));
        world.table.close(one, &mut world.said);
        assert_eq!(world.said.kinds(), [], "it had its last word");
    }
}

#[test]
fn bytes_after_the_end_are_a_lie_and_unknown_numbers_are_nothing() {
    let mut world = World::new();
    let id = world.open(0);
    let socket = world.accept().unwrap();
    world.said.kinds();
    world.hear(Kind::SocketData, id.next(), 0, b"x");
    world.hear(Kind::SocketReset, ConnectionId::new(9999, 1), 0, &[]);
    world.hear(Kind::ProgramStart, id, 0, &[]);
    assert_eq!((world.said.kinds(), world.table.live()), (vec![], 1));
    world.hear(Kind::SocketEnd, id, 0, &[]);
    world.hear(Kind::SocketData, id, 0, b"x");
    assert_eq!(world.said.kinds(), [Kind::SocketReset]);
    assert_eq!(world.recv(socket, 1), Err(SocketError::Reset));
}

#[test]
fn windows_are_shares_of_the_budget() {
    let mut world = World { table: Table::new(1 << 20), said: Said::default() };
    for slot in 0..32 {
        world.open(slot);
        world.accept().unwrap();
    }
    let limits: Vec<u64> = world.said.0.iter().map(|(_, _, limit, _)| *limit).collect();
    assert_eq!((limits[0], limits[31]), (WINDOW, 32 << 10));
    let mut world = World { table: Table::new(0), said: Said::default() };
    world.open(0);
    world.accept().unwrap();
    assert_eq!(world.said.0[0].2, INITIAL_LIMIT);
}

#[derive(Clone, Debug)]
enum Step {
    HostSends(usize),
    GuestReads(usize),
    GuestSends(usize),
    HostReads(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1usize..50_000).prop_map(Step::HostSends),
        (1usize..5).prop_map(Step::HostSends),
        (1usize..80_000).prop_map(Step::GuestReads),
        (1usize..300_000).prop_map(Step::GuestSends),
        (1usize..300_000).prop_map(Step::HostReads),
    ]
}

/// Byte number `at` of a stream.
fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

/// An honest host for one connection.
struct Host {
    out: Sending,
    flow: Receiving,
    received: Vec<u8>,
    kept: u64,
}

impl Host {
    fn hear(&mut self, said: &mut Said) {
        for (kind, _, arg, body) in said.0.drain(..) {
            match kind {
                Kind::SocketAccepted | Kind::SocketCredit => {
                    self.out.raise(arg).unwrap();
                }
                Kind::SocketData => {
                    self.flow.charge(body.len()).expect("the guest keeps to the limit");
                    assert_eq!(arg, self.received.len() as u64);
                    self.kept += body.len() as u64;
                    self.received.extend(body);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Between honest sides every byte arrives once and in order, both ways, and no more is kept than the window.
    #[test]
    fn bytes_arrive_once_and_in_order(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        let id = world.open(0);
        let socket = world.accept().unwrap();
        let mut host =
            Host { out: Sending::new(INITIAL_LIMIT), flow: Receiving::new(WINDOW), received: vec![], kept: 0 };
        let (mut read, mut sent) = (0u64, 0u64);
        for step in steps {
            host.hear(&mut world.said);
            match step {
                Step::HostSends(len) => {
                    let len = len.min(host.out.room());
                    let at = host.out.offset();
                    let body: Vec<u8> = (at..at + len as u64).map(byte).collect();
                    if len > 0 {
                        host.out.take(len);
                        world.hear(Kind::SocketData, id, at, &body);
                    }
                }
                Step::GuestReads(len) => match world.recv(socket, len) {
                    Ok(got) => {
                        prop_assert!(got.iter().zip(read..).all(|(got, at)| *got == byte(at)));
                        read += got.len() as u64;
                    }
                    Err(error) => prop_assert_eq!((error, read), (SocketError::WouldBlock, host.out.offset())),
                },
                Step::GuestSends(len) => {
                    let bytes: Vec<u8> = (sent..sent + len as u64).map(byte).collect();
                    match world.table.send(socket, &bytes, &mut world.said) {
                        Ok(count) => sent += count as u64,
                        Err(error) => prop_assert_eq!(error, SocketError::WouldBlock),
                    }
                }
                Step::HostReads(len) => {
                    host.kept = host.kept.saturating_sub(len as u64);
                    if let Some(limit) = host.flow.credit(host.kept, WINDOW) {
                        world.hear(Kind::SocketCredit, id, limit, &[]);
                    }
                }
            }
            let held = world.table.readable(socket).map_or(0, |ready| ready.bytes);
            prop_assert!(held <= WINDOW && held == host.out.offset() - read);
        }
        host.hear(&mut world.said);
        prop_assert_eq!(host.received.len() as u64, sent);
        prop_assert!(host.received.iter().zip(0..).all(|(got, at)| *got == byte(at)));
    }
}

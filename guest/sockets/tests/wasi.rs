//! The socket functions of WASI over the table, with a host that is played here: what a program sees.

use nacre_abi::message::Kind;
use nacre_abi::socket::{ConnectionId, WINDOW};
use nacre_sockets::{Link, Message, Table};
use nacre_wasi::abi::{eventtype, fdflags, filetype, rights};
use nacre_wasi::*;

/// What the guest said.
#[derive(Default)]
struct Said(Vec<(Kind, u64, Vec<u8>)>);

impl Link for Said {
    fn send(&mut self, kind: Kind, _: ConnectionId, arg: u64, body: &[u8]) {
        self.0.push((kind, arg, body.to_vec()));
    }
}

/// A kernel in which each wait lets the next of the host's messages in.
struct Kernel {
    table: Table,
    said: Said,
    coming: Vec<Message>,
    waits: Vec<Vec<Interest>>,
}

impl Kernel {
    fn hear(&mut self, kind: Kind, slot: u32, arg: u64, body: &[u8]) {
        let message = Message { kind, id: ConnectionId::new(slot, 0), arg, body: body.to_vec() };
        self.table.receive(message, &mut self.said);
    }

    fn later(&mut self, kind: Kind, slot: u32, arg: u64, body: &[u8]) {
        self.coming.push(Message { kind, id: ConnectionId::new(slot, 0), arg, body: body.to_vec() });
    }
}

impl Sockets for Kernel {
    fn socket_accept(&mut self) -> Result<SocketId, SocketError> {
        self.table.accept(&mut self.said)
    }
    fn socket_acceptable(&self) -> u64 {
        self.table.acceptable()
    }
    fn socket_unlisten(&mut self) {
        self.table.unlisten(&mut self.said);
    }
    fn socket_recv(&mut self, id: SocketId, buf: &mut [u8]) -> Result<usize, SocketError> {
        self.table.recv(id, buf, &mut self.said)
    }
    fn socket_peek(&mut self, id: SocketId, skip: u64, buf: &mut [u8]) -> Result<usize, SocketError> {
        self.table.peek(id, skip, buf)
    }
    fn socket_send(&mut self, id: SocketId, buf: &[u8]) -> Result<usize, SocketError> {
        self.table.send(id, buf, &mut self.said)
    }
    fn socket_shutdown(&mut self, id: SocketId, read: bool, write: bool) {
        self.table.shutdown(id, read, write, &mut self.said);
    }
    fn socket_close(&mut self, id: SocketId) {
        self.table.close(id, &mut self.said);
    }
    fn socket_readable(&self, id: SocketId) -> Option<Readiness> {
        self.table.readable(id)
    }
    fn socket_writable(&self, id: SocketId) -> Option<Readiness> {
        self.table.writable(id)
    }
}

impl System for Kernel {
    fn clock_ns(&self, _: Clock) -> u64 {
        1000 * self.waits.len() as u64
    }
    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }
    fn random(&mut self, buf: &mut [u8]) {
        buf.fill(0);
    }
    fn stream_read(&mut self, _: Stream, _: &mut [u8]) -> Result<usize, StreamError> {
        Ok(0)
    }
    fn stream_write(&mut self, _: Stream, buf: &[u8]) -> Result<usize, StreamError> {
        Ok(buf.len())
    }
    fn stream_readable(&self, _: Stream) -> Option<u64> {
        Some(0)
    }
    fn stream_writable(&self, _: Stream) -> Option<u64> {
        Some(1)
    }
    fn wait(&mut self, interest: &[Interest], deadline: Option<u64>) -> Result<(), Stop> {
        self.waits.push(interest.to_vec());
        if self.coming.is_empty() {
            // Nothing would ever happen, but for a deadline.
            return deadline.map(|_| ()).ok_or(Stop::Killed);
        }
        let message = self.coming.remove(0);
        self.table.receive(message, &mut self.said);
        Ok(())
    }
    fn yield_now(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

struct Program {
    ctx: WasiCtx<Kernel>,
    memory: Vec<u8>,
}

const LISTENER: u32 = 4;
const OUT: u32 = 64;
const FLAGS: u32 = 80;
const BYTES: u32 = 1024;

impl Program {
    fn new() -> Program {
        let kernel =
            Kernel { table: Table::new(1 << 20), said: Said::default(), coming: vec![], waits: vec![] };
        let mut fs = Fs::new(0).unwrap();
        fs.create_dir_all("/0", 0).unwrap();
        let builder = Builder::new().preopens(vec![("d".into(), "/0".into())]).listens(true);
        Program { ctx: builder.build(kernel, fs).unwrap(), memory: vec![0; 1 << 16] }
    }

    fn call(&mut self) -> Call<'_, Kernel> {
        Call { ctx: &mut self.ctx, memory: &mut self.memory }
    }

    fn kernel(&mut self) -> &mut Kernel {
        self.ctx.system_mut()
    }

    fn u32_at(&self, at: u32) -> u32 {
        u32::from_le_bytes(self.memory[at as usize..][..4].try_into().unwrap())
    }

    fn put(&mut self, at: u32, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            self.memory[at as usize + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// A program with one accepted connection, in slot 0.
    fn connected() -> (Program, u32) {
        let mut program = Program::new();
        program.kernel().hear(Kind::SocketOpen, 0, WINDOW, &[]);
        let fd = program.accept(0).unwrap();
        program.kernel().said.0.clear();
        (program, fd)
    }

    fn accept(&mut self, flags: u32) -> Result<u32, Errno> {
        match sock_accept(&mut self.call(), LISTENER, flags, OUT).unwrap() {
            Errno::Success => Ok(self.u32_at(OUT)),
            error => Err(error),
        }
    }

    /// Receives into two buffers, of 3 bytes and of the rest.
    fn recv(&mut self, fd: u32, len: u32, flags: u32) -> Result<Vec<u8>, Errno> {
        let first = len.min(3);
        self.put(0, &[BYTES, first, BYTES + first, len - first]);
        self.put(FLAGS, &[0xffff_ffff]);
        match sock_recv(&mut self.call(), fd, 0, 2, flags, OUT, FLAGS).unwrap() {
            Errno::Success => {
                assert_eq!(self.u32_at(FLAGS), 0xffff_0000);
                Ok(self.memory[BYTES as usize..][..self.u32_at(OUT) as usize].to_vec())
            }
            error => Err(error),
        }
    }

    fn send(&mut self, fd: u32, len: u32) -> Result<u32, Errno> {
        self.put(0, &[BYTES, len]);
        match sock_send(&mut self.call(), fd, 0, 1, 0, OUT).unwrap() {
            Errno::Success => Ok(self.u32_at(OUT)),
            error => Err(error),
        }
    }

    /// Polls these (tag, descriptor) and a clock; (tag, bytes, hang-up) of those that happened.
    fn poll(&mut self, wanted: &[(u8, u32)]) -> Vec<(u8, u64, bool)> {
        let (subs, events) = (2048u32, 8192u32);
        let mut records = vec![0; 48 * (wanted.len() + 1)];
        for (record, (tag, fd)) in records.chunks_exact_mut(48).zip(wanted) {
            record[8] = *tag;
            record[16..20].copy_from_slice(&fd.to_le_bytes());
        }
        let clock = &mut records[48 * wanted.len()..];
        (clock[16], clock[24]) = (1, 1);
        self.memory[subs as usize..][..records.len()].copy_from_slice(&records);
        let count = wanted.len() as u32 + 1;
        assert_eq!(poll_oneoff(&mut self.call(), subs, events, count, OUT), Ok(Errno::Success));
        let count = self.u32_at(OUT) as usize;
        let events = &self.memory[events as usize..][..32 * count];
        let decode = |event: &[u8]| {
            assert_eq!(event[8..10], [0; 2]);
            (event[10], u64::from_le_bytes(event[16..24].try_into().unwrap()), event[24] == 1)
        };
        events.chunks_exact(32).map(decode).collect()
    }
}

const READ: u8 = eventtype::FD_READ;
const WRITE: u8 = eventtype::FD_WRITE;

#[test]
fn the_listener_is_behind_the_directories() {
    let mut program = Program::new();
    assert_eq!(fd_prestat_get(&mut program.call(), LISTENER - 1, OUT), Ok(Errno::Success));
    assert_eq!(fd_prestat_get(&mut program.call(), LISTENER, OUT), Ok(Errno::Badf));
    assert_eq!(fd_fdstat_get(&mut program.call(), LISTENER, OUT), Ok(Errno::Success));
    assert_eq!(program.memory[OUT as usize], filetype::SOCKET_STREAM);
    assert_eq!(program.recv(LISTENER, 9, 0), Err(Errno::Notconn));
    assert_eq!(sock_shutdown(&mut program.call(), LISTENER, 1), Ok(Errno::Notconn));
    assert_eq!(fd_seek(&mut program.call(), LISTENER, 0, 0, OUT), Ok(Errno::Spipe));
}

#[test]
fn accepting_waits_unless_it_may_not() {
    let mut program = Program::new();
    program.kernel().later(Kind::SocketOpen, 3, WINDOW, &[]);
    let fd = program.accept(fdflags::NONBLOCK).unwrap();
    assert_eq!(program.kernel().waits, [vec![Interest::Acceptable]]);
    assert_eq!(program.recv(fd, 5, 0), Err(Errno::Again));
    assert_eq!(sock_accept(&mut program.call(), fd, 0, OUT), Ok(Errno::Inval));
    assert_eq!(fd_fdstat_set_flags(&mut program.call(), LISTENER, fdflags::NONBLOCK), Ok(Errno::Success));
    assert_eq!(program.accept(0), Err(Errno::Again));
    // Without the right to, which is inherited, nothing is received.
    let base = rights::SOCK_ACCEPT;
    assert_eq!(fd_fdstat_set_rights(&mut program.call(), LISTENER, base, 0), Ok(Errno::Success));
    program.kernel().hear(Kind::SocketOpen, 4, WINDOW, &[]);
    let powerless = program.accept(0).unwrap();
    assert_eq!(program.recv(powerless, 5, 0), Err(Errno::Notcapable));
    assert_eq!(program.send(powerless, 5), Err(Errno::Notcapable));
    assert_eq!(fd_close(&mut program.call(), LISTENER), Ok(Errno::Success));
    program.kernel().said.0.clear();
    program.kernel().hear(Kind::SocketOpen, 9, WINDOW, &[]);
    assert_eq!(program.kernel().said.0[0].0, Kind::SocketRefused);
}

#[test]
fn receiving_peeks_waits_and_ends() {
    let (mut program, fd) = Program::connected();
    program.kernel().later(Kind::SocketData, 0, 0, b"abcd");
    assert_eq!(program.recv(fd, 9, 1), Ok(b"abcd".to_vec()));
    assert_eq!(program.recv(fd, 2, 1), Ok(b"ab".to_vec()));
    assert_eq!(program.recv(fd, 2, 0), Ok(b"ab".to_vec()));
    program.kernel().later(Kind::SocketData, 0, 4, b"e");
    program.kernel().later(Kind::SocketData, 0, 5, b"fgh");
    assert_eq!(program.recv(fd, 5, 2), Ok(b"cdefg".to_vec()));
    program.kernel().later(Kind::SocketEnd, 0, 8, &[]);
    assert_eq!(program.recv(fd, 5, 2), Ok(b"h".to_vec()));
    assert_eq!(program.recv(fd, 5, 0), Ok(vec![]));
    assert_eq!(program.recv(fd, 5, 4), Err(Errno::Inval));
    program.put(0, &[BYTES, 5]);
    assert_eq!(fd_read(&mut program.call(), fd, 0, 1, OUT), Ok(Errno::Success));
    assert_eq!(program.u32_at(OUT), 0);
}

#[test]
fn sending_waits_for_credit_and_fails_where_nobody_reads() {
    let (mut program, fd) = Program::connected();
    program.memory.resize(1 << 20, 7);
    program.kernel().later(Kind::SocketCredit, 0, 2 * WINDOW, &[]);
    assert_eq!(program.send(fd, 300_000), Ok(300_000));
    assert_eq!(program.kernel().waits.len(), 1);
    assert_eq!(fd_fdstat_set_flags(&mut program.call(), fd, fdflags::NONBLOCK), Ok(Errno::Success));
    let rest = program.send(fd, 900_000).unwrap();
    assert!(rest > 200_000 && rest < 300_000);
    assert_eq!(program.send(fd, 1), Err(Errno::Again));
    assert_eq!(program.poll(&[(WRITE, fd)]), [(eventtype::CLOCK, 0, false)]);
    let sent: usize = program.kernel().said.0.iter().map(|(_, _, body)| body.len()).sum();
    assert_eq!(sent as u32, 300_000 + rest);
    program.kernel().hear(Kind::SocketClose, 0, 0, &[]);
    assert_eq!(program.send(fd, 1), Err(Errno::Pipe));
    program.put(0, &[BYTES, 1]);
    assert_eq!(fd_write(&mut program.call(), fd, 0, 1, OUT), Ok(Errno::Pipe));
    assert_eq!(program.poll(&[(WRITE, fd), (READ, fd)]), [(WRITE, 0, true), (READ, 0, true)]);
}

#[test]
fn resets_and_shutdowns() {
    let (mut program, fd) = Program::connected();
    assert_eq!(sock_shutdown(&mut program.call(), fd, 0), Ok(Errno::Inval));
    assert_eq!(sock_shutdown(&mut program.call(), fd, 2), Ok(Errno::Success));
    assert_eq!(program.send(fd, 1), Err(Errno::Pipe));
    assert_eq!(program.kernel().said.0[0].0, Kind::SocketEnd);
    program.kernel().hear(Kind::SocketData, 0, 0, b"x");
    program.kernel().hear(Kind::SocketReset, 0, 0, &[]);
    assert_eq!(program.recv(fd, 1, 0), Err(Errno::Connreset));
    assert_eq!(program.send(fd, 1), Err(Errno::Connreset));
    assert_eq!(fd_close(&mut program.call(), fd), Ok(Errno::Success));
    assert_eq!(program.recv(fd, 1, 0), Err(Errno::Badf));
}

#[test]
fn polls_see_what_is_there() {
    let (mut program, fd) = Program::connected();
    assert_eq!(program.poll(&[(READ, fd), (READ, LISTENER)]), [(eventtype::CLOCK, 0, false)]);
    program.kernel().hear(Kind::SocketOpen, 1, WINDOW, &[]);
    program.kernel().hear(Kind::SocketOpen, 2, WINDOW, &[]);
    program.kernel().hear(Kind::SocketData, 0, 0, b"four");
    let both = program.poll(&[(READ, fd), (READ, LISTENER)]);
    assert_eq!(both, [(READ, 4, false), (READ, 2, false)]);
    program.kernel().hear(Kind::SocketEnd, 0, 4, &[]);
    assert_eq!(program.poll(&[(READ, fd)]), [(READ, 4, true)]);
    assert_eq!(program.recv(fd, 9, 0), Ok(b"four".to_vec()));
    assert_eq!(program.poll(&[(READ, fd), (WRITE, fd)])[0], (READ, 0, true));
}

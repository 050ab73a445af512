//! Clients of an echo server, driven by one thread; and the native server, one thread with non-blocking sockets.

use crate::BenchError;
use nacre_vmm::program::Connector;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

fn system<T>(what: &'static str, result: io::Result<T>) -> Result<T, BenchError> {
    result.map_err(|error| BenchError::System { what, error })
}

/// Connected clients.
pub struct Clients {
    streams: Vec<TcpStream>,
}

impl Clients {
    /// Clients of a service.
    pub fn relayed(connector: &Connector, count: usize) -> Result<Self, BenchError> {
        let listener = system("a port", TcpListener::bind("127.0.0.1:0"))?;
        let address = system("a port", listener.local_addr())?;
        let connect = |_| {
            let client = TcpStream::connect(address)?;
            let (stream, peer) = listener.accept()?;
            connector.relay(stream, peer).map_err(io::Error::other)?;
            client.set_nodelay(true)?;
            Ok(client)
        };
        Ok(Self { streams: system("a connection", (0..count).map(connect).collect())? })
    }

    /// Clients of the native server.
    pub fn of(native: &Native, count: usize) -> Result<Self, BenchError> {
        let connect = |_| {
            let client = TcpStream::connect(native.address)?;
            client.set_nodelay(true)?;
            Ok(client)
        };
        Ok(Self { streams: system("a connection", (0..count).map(connect).collect())? })
    }

    /// Answers a second, when all clients have `depth` requests on the way at once, `rounds` times.
    pub fn requests_per_second(
        &mut self,
        depth: usize,
        bytes: usize,
        rounds: usize,
    ) -> Result<f64, BenchError> {
        let request = vec![b'r'; bytes * depth];
        let mut answer = request.clone();
        let begin = Instant::now();
        for _ in 0..rounds {
            for stream in &mut self.streams {
                system("a request", stream.write_all(&request))?;
            }
            for stream in &mut self.streams {
                system("an answer", stream.read_exact(&mut answer))?;
            }
        }
        let requests = self.streams.len() * depth * rounds;
        Ok(requests as f64 / begin.elapsed().as_secs_f64())
    }

    /// Time of one MiB, when so many bytes go there and back over the first client.
    pub fn nanoseconds_per_mib(&mut self, bytes: usize) -> Result<f64, BenchError> {
        let stream = &self.streams[0];
        let begin = Instant::now();
        let total = std::thread::scope(|scope| {
            scope.spawn(|| {
                let piece = vec![b'b'; 1 << 16];
                let mut stream = stream;
                for _ in 0..bytes / piece.len() {
                    stream.write_all(&piece)?;
                }
                stream.shutdown(Shutdown::Write)
            });
            let mut buffer = vec![0; 1 << 18];
            let (mut stream, mut total) = (stream, 0);
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(total),
                    count => total += count,
                }
            }
        });
        let mib = system("a bulk transfer", total)? as f64 / f64::from(1 << 20);
        Ok(begin.elapsed().as_nanos() as f64 / mib)
    }
}

/// The native echo server.
pub struct Native {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Native {
    /// Starts it.
    pub fn start() -> Result<Self, BenchError> {
        let listener = system("a port", TcpListener::bind("127.0.0.1:0"))?;
        let address = system("a port", listener.local_addr())?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::Builder::new().name("native".into()).spawn(move || serve(&listener, &seen));
        Ok(Self { address, over, thread: Some(system("a thread", thread)?) })
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes it.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What a client was sent and has not taken.
struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
    ended: bool,
}

fn serve(listener: &TcpListener, over: &AtomicBool) -> io::Result<()> {
    const LISTENER: u64 = u64::MAX;
    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(EventSet::IN, LISTENER))?;
    let mut peers: HashMap<u64, Peer> = HashMap::new();
    let mut events = vec![EpollEvent::default(); 256];
    let mut next = 0;
    while !over.load(Ordering::SeqCst) {
        let count = epoll.wait(-1, &mut events)?;
        for event in &events[..count] {
            if event.data() == LISTENER {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                let watch = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
                epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(watch, next))?;
                peers.insert(next, Peer { stream, buffer: Vec::new(), ended: false });
                next += 1;
            } else if let Some(peer) = peers.get_mut(&event.data())
                && !peer.pump()
            {
                peers.remove(&event.data());
            }
        }
    }
    Ok(())
}

impl Peer {
    /// Sends back what there is; whether it goes on.
    fn pump(&mut self) -> bool {
        let mut chunk = [0; 1 << 14];
        loop {
            while !self.buffer.is_empty() {
                match self.stream.write(&self.buffer) {
                    Ok(count) => drop(self.buffer.drain(..count)),
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
            if self.ended {
                return false;
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }
}

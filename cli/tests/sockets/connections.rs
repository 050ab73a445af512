//! A service in a CVM and clients that wait for it: [`Connection`]s driven by the thread that uses them.

use nacre_abi::message::stream;
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_vmm::program::{ConnectError, Connection, Exit, Program, ProgramEvent, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};
use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// Bytes as `chargen` sends them.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// A CVM for one service.
pub struct Service {
    cvm: Cvm,
    code: Vec<u8>,
    args: Vec<String>,
    listens: bool,
    /// What the program wrote and nobody expected yet.
    output: RefCell<Vec<u8>>,
}

impl Service {
    /// A CVM in which `apps/echo` can run with these arguments; `None` without KVM.
    pub fn start(workers: u32, args: &[&str]) -> Option<Service> {
        Service::start_with(workers, args, true)
    }

    /// The same, as a service or not.
    pub fn start_with(workers: u32, args: &[&str], listens: bool) -> Option<Service> {
        if let Err(error) = nacre_vmm::kvm::available() {
            nacre_tests::skip::skipped("connections", &error.to_string());
            return None;
        }
        let wasm = include_bytes!("../../../apps/echo/echo.wasm");
        let compiled = compile(&Module::parse(wasm, Entry::Command).unwrap(), Default::default()).unwrap();
        let config = CvmConfig { workers, memory_bytes: 512 << 20, ..CvmConfig::default() };
        Some(Service {
            cvm: Cvm::launch(config).unwrap(),
            code: compiled.file().to_vec(),
            args: std::iter::once("echo").chain(args.iter().copied()).map(String::from).collect(),
            listens,
            output: RefCell::default(),
        })
    }

    /// The program, started.
    pub fn program(&self) -> Program<'_> {
        let spec = ProgramSpec {
            code: &self.code,
            args: self.args.clone(),
            listens: self.listens,
            ..ProgramSpec::default()
        };
        let program = self.cvm.load(&spec).unwrap();
        program.start().unwrap();
        program
    }

    /// Waits for the end.
    pub fn exit(&self, program: &Program<'_>) -> Exit {
        loop {
            match program.next_event().unwrap() {
                ProgramEvent::Exited(exit) => {
                    let left = self.output.borrow();
                    assert!(left.is_empty(), "it wrote {}", String::from_utf8_lossy(&left));
                    return exit;
                }
                event => self.note(program, event),
            }
        }
    }

    fn note(&self, program: &Program<'_>, event: ProgramEvent) {
        if let ProgramEvent::Output { stream, bytes, end } = event {
            if stream == stream::STDERR {
                panic!("it wrote to standard error: {}", String::from_utf8_lossy(&bytes));
            }
            self.output.borrow_mut().extend_from_slice(&bytes);
            program.consumed(stream, end).unwrap();
        }
    }

    /// Waits until it has written this.
    pub fn expect_output(&self, program: &Program<'_>, text: &str) {
        while self.output.borrow().len() < text.len() {
            match program.next_event().unwrap() {
                ProgramEvent::Exited(exit) => panic!("it ended with {exit:?} before it wrote {text:?}"),
                event => self.note(program, event),
            }
        }
        let mut output = self.output.borrow_mut();
        let written: Vec<u8> = output.drain(..text.len()).collect();
        assert_eq!(String::from_utf8_lossy(&written), text);
    }

    /// Whether it has not said that it ended.
    pub fn is_running(&self, program: &Program<'_>) -> bool {
        program.events.try_recv().is_none()
    }

    /// Waits until both sides have done with all but so many connections.
    pub fn wait_until_open(&self, program: &Program<'_>, open: usize) {
        while program.connector().stats().open != open {
            std::thread::yield_now();
        }
    }

    /// One message there and back.
    pub fn exchange_stats(&self) {
        self.cvm.stats().unwrap();
    }

    /// Memory that the guest has promised and used.
    pub fn committed_bytes(&self) -> u64 {
        self.cvm.stats().unwrap().guest.committed_bytes
    }
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls until there is a result, parking in between.
fn wait<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A client that waits.
#[derive(Debug)]
pub struct Client(Arc<Mutex<Option<Connection>>>);

impl Client {
    /// Connects.
    pub fn try_connect(program: &Program<'_>) -> Result<Client, ConnectError> {
        let connection = program.connect("192.0.2.7:1234".parse().unwrap())?;
        Ok(Client(Arc::new(Mutex::new(Some(connection)))))
    }

    /// Connects, and nothing must be in the way.
    pub fn connect(program: &Program<'_>) -> Client {
        Client::try_connect(program).unwrap()
    }

    /// One for each direction.
    pub fn split(self) -> (Client, Client) {
        (Client(self.0.clone()), self)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Connection) -> R) -> R {
        act(self.0.lock().unwrap().as_mut().expect("not reset"))
    }

    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        wait(|context| self.with(|connection| connection.poll_read(context, buf)))
    }

    pub fn read_exact(&mut self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read(buf)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => buf = &mut buf[count..],
            }
        }
        Ok(())
    }

    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let (mut all, mut buf) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            match self.read(&mut buf)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buf[..count]),
            }
        }
    }

    pub fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = wait(|context| self.with(|connection| connection.poll_write(context, bytes)))?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Writes what goes now; `None` if nothing does.
    pub fn try_write(&mut self, bytes: &[u8]) -> Option<io::Result<usize>> {
        let mut context = Context::from_waker(Waker::noop());
        match self.with(|connection| connection.poll_write(&mut context, bytes)) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// Waits until something can be written, and writes nothing.
    pub fn wait_for_room(&mut self) {
        let mut first = true;
        wait(|context| {
            // The second poll comes after a wake.
            if !std::mem::replace(&mut first, false) {
                return Poll::Ready(());
            }
            self.with(|connection| connection.poll_write_room(context)).map(|_| ())
        });
    }

    pub fn shutdown_write(&self) {
        self.with(|connection| connection.shutdown_write());
    }

    pub fn offsets(&self) -> (u64, u64) {
        self.with(|connection| connection.offsets())
    }

    pub fn reset(self) {
        self.0.lock().unwrap().take().expect("not reset").reset();
    }
}

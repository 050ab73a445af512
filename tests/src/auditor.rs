//! Clients of the key-value service that write numbered records and know which of them were acknowledged; and what is found of these in
//! the end.

use crate::cluster::{PATIENCE, connect};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Records that are asked for at once.
const BATCH: usize = 200;
/// How long the service may take to answer when it is not known whether it is there.
const GLANCE: Duration = Duration::from_secs(5);

/// How a client uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// One for all records. It ends with the connection.
    Keeps,
    /// One for each record, to one address after another. What fails is in doubt, and the client goes on.
    Renews,
}

/// What a client was promised.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Its name: the first part of its keys.
    pub name: String,
    /// Numbers of the records whose writing was acknowledged. The value is the number.
    pub acknowledged: Vec<u64>,
    /// How it ended before its time, or what failed last.
    pub failure: Option<String>,
    /// How many failed.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    longest_ns: AtomicU64,
    over: AtomicBool,
    stream: Mutex<Option<TcpStream>>,
    changed: (Mutex<()>, Condvar),
}

impl Shared {
    fn note(&self, gap: Duration) {
        self.longest_ns.fetch_max(gap.as_nanos() as u64, Ordering::SeqCst);
        self.done.fetch_add(1, Ordering::SeqCst);
        self.tell();
    }

    /// A connection that can be ended from outside.
    fn connect(&self, address: SocketAddr) -> Result<BufReader<TcpStream>> {
        let stream = connect(address)?;
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
        Ok(BufReader::new(stream))
    }

    fn tell(&self) {
        let _guard = self.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.1.notify_all();
    }
}

/// A client at work.
#[derive(Debug)]
pub struct Auditor {
    shared: Arc<Shared>,
    thread: JoinHandle<Ledger>,
}

impl Auditor {
    /// Begins.
    pub fn start(name: &str, habit: Habit, addresses: Vec<SocketAddr>) -> Auditor {
        let shared = Arc::<Shared>::default();
        let (of_thread, name) = (shared.clone(), name.to_owned());
        let body = move || {
            let mut ledger = Ledger { name, ..Ledger::default() };
            match habit {
                Habit::Keeps => {
                    if let Err(error) = keep(&mut ledger, addresses[0], &of_thread) {
                        (ledger.failure, ledger.failures) = (Some(format!("{error:#}")), 1);
                    }
                }
                Habit::Renews => renew(&mut ledger, &addresses, &of_thread),
            }
            of_thread.over.store(true, Ordering::SeqCst);
            of_thread.tell();
            ledger
        };
        Auditor { shared, thread: std::thread::spawn(body) }
    }

    /// Waits until so many more records were acknowledged.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let target = self.shared.done.load(Ordering::SeqCst) + more;
        let waits =
            || self.shared.done.load(Ordering::SeqCst) < target && !self.shared.over.load(Ordering::SeqCst);
        let guard = self.shared.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.changed.1.wait_timeout_while(guard, PATIENCE, |()| waits());
        ensure!(!waited.unwrap_or_else(PoisonError::into_inner).1.timed_out(), "a client makes no progress");
        ensure!(!self.shared.over.load(Ordering::SeqCst), "a client has ended");
        Ok(())
    }

    /// The longest time between two acknowledgements since this was asked last.
    pub fn take_longest(&self) -> Duration {
        Duration::from_nanos(self.shared.longest_ns.swap(0, Ordering::SeqCst))
    }

    /// Ends it, and what it waits for; what it was promised until then.
    pub fn abandon(self) -> Result<Ledger> {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(stream) = &*self.shared.stream.lock().unwrap_or_else(PoisonError::into_inner) {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.end()
    }

    /// Ends it in order; what it was promised.
    pub fn end(self) -> Result<Ledger> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))
    }
}

/// Writes a record and hears that it is written.
fn write(stream: &mut BufReader<TcpStream>, name: &str, number: u64) -> Result<()> {
    stream.get_mut().write_all(format!("SET {name}{number} {number}\r\n").as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    ensure!(line == "+OK\r\n", "record {number} is answered by {line:?}");
    Ok(())
}

fn keep(ledger: &mut Ledger, address: SocketAddr, shared: &Shared) -> Result<()> {
    let mut stream = shared.connect(address)?;
    let mut last = Instant::now();
    for number in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        write(&mut stream, &ledger.name, number)?;
        ledger.acknowledged.push(number);
        shared.note(last.elapsed());
        last = Instant::now();
    }
    // An orderly end, both ways.
    stream.get_ref().shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    ensure!(rest.is_empty(), "something came that nobody asked for: {rest:?}");
    Ok(())
}

fn renew(ledger: &mut Ledger, addresses: &[SocketAddr], shared: &Shared) {
    for (number, &address) in (0..).zip(addresses.iter().cycle()) {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let begin = Instant::now();
        let once = || write(&mut shared.connect(address)?, &ledger.name, number);
        match once() {
            Ok(()) => {
                ledger.acknowledged.push(number);
                shared.note(begin.elapsed());
            }
            Err(error) => {
                (ledger.failure, ledger.failures) = (Some(format!("{error:#}")), ledger.failures + 1);
                // Where nobody listens a refusal costs nothing: leave the machine to others.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// What is found of a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Records that are there.
    pub present: u64,
    /// Records that were acknowledged and are not.
    pub missing: u64,
}

/// Reads back all records that were acknowledged.
///
/// # Errors
/// If the service does not answer, or something else than the record or nothing.
pub fn read_back(address: SocketAddr, ledgers: &[Ledger]) -> Result<Found> {
    let mut stream = BufReader::new(connect(address)?);
    let mut found = Found::default();
    for ledger in ledgers {
        for batch in ledger.acknowledged.chunks(BATCH) {
            let gets: String = batch.iter().map(|n| format!("GET {}{n}\r\n", ledger.name)).collect();
            stream.get_mut().write_all(gets.as_bytes())?;
            for number in batch {
                match bulk(&mut stream)? {
                    None => found.missing += 1,
                    Some(value) if value == number.to_string() => found.present += 1,
                    Some(value) => bail!("{}{number} is {value:?}", ledger.name),
                }
            }
        }
    }
    Ok(found)
}

fn bulk(stream: &mut BufReader<TcpStream>) -> Result<Option<String>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if line == "$-1\r\n" {
        return Ok(None);
    }
    let length: usize = line.trim_end().strip_prefix('$').context("a bulk reply")?.parse()?;
    let mut value = vec![0; length + 2];
    stream.read_exact(&mut value)?;
    value.truncate(length);
    Ok(Some(String::from_utf8(value)?))
}

/// One command's answer from whoever answers there, at once or not at all.
pub fn glance(address: SocketAddr, command: &str) -> Result<String> {
    let stream = TcpStream::connect_timeout(&address, GLANCE)?;
    stream.set_read_timeout(Some(GLANCE))?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "it hangs up");
    if line.starts_with('$') && line != "$-1\r\n" {
        line.clear();
        stream.read_line(&mut line)?;
    }
    Ok(line.trim_end().to_owned())
}

/// Whether the service answers there.
pub fn is_alive(address: SocketAddr) -> bool {
    glance(address, "PING").is_ok_and(|answer| answer == "+PONG")
}

/// Fills the service with records that hardly compress.
///
/// # Errors
/// If it does not take them.
pub fn fill(address: SocketAddr, bytes: usize) -> Result<()> {
    const PIECE: usize = 8 << 10;
    let mut stream = BufReader::new(connect(address)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..bytes / PIECE {
        let value: String = (0..PIECE / 16)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                format!("{state:016x}")
            })
            .collect();
        stream.get_mut().write_all(format!("SET filler{number} {value}\r\n").as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        ensure!(line == "+OK\r\n", "a filler is answered by {line:?}");
    }
    Ok(())
}

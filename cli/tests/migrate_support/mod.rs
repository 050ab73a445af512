//! What the tests of migrations share: two ends in one process, and what both tell.

use crate::sealed_support::World;
use nacre_abi::migrate::MoveMode;
use nacre_attest::manifest::Mode;
use nacre_vmm::Cvm;
use nacre_vmm::migration::{MoveNews, MoveOptions, Moving, Streams};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait for anything: then something hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

pub fn streams(lanes: usize) -> (Streams, Streams) {
    let (control, demand) = (pair(), pair());
    let (here, there) = (0..lanes).map(|_| pair()).unzip();
    (
        Streams { control: control.0, demand: demand.0, lanes: here },
        Streams { control: control.1, demand: demand.1, lanes: there },
    )
}

/// One migration: both ends, and what they tell.
pub struct Migration {
    pub source: Moving,
    pub destination: Moving,
    pub told_by_source: Receiver<MoveNews>,
    pub told_by_destination: Receiver<MoveNews>,
}

pub fn is_over(news: &MoveNews) -> bool {
    matches!(news, MoveNews::Complete(_) | MoveNews::Aborted(..))
}

impl Migration {
    pub fn begin(source: &Cvm, destination: &Cvm, mode: MoveMode) -> Migration {
        Migration::over(streams(source.lanes().min(destination.lanes())), source, destination, mode)
    }

    pub fn over(
        (here, there): (Streams, Streams),
        source: &Cvm,
        destination: &Cvm,
        mode: MoveMode,
    ) -> Migration {
        Migration::with((here, there), source, destination, MoveOptions { mode, ..MoveOptions::default() })
    }

    pub fn with(
        (here, there): (Streams, Streams),
        source: &Cvm,
        destination: &Cvm,
        options: MoveOptions,
    ) -> Migration {
        let (to_one, told_by_source) = channel();
        let (to_other, told_by_destination) = channel();
        let tell = move |news| drop(to_other.send(news));
        let destination = destination.receive_tenant(there, 1 << 30, tell).unwrap();
        let source = source.send_tenant(here, options, move |news| drop(to_one.send(news))).unwrap();
        Migration { source, destination, told_by_source, told_by_destination }
    }

    /// Follows it to its end, and hands the Commit over when the source is gone; `react` sees everything that the source tells, before
    /// that. Returns
    /// what was told at both ends.
    pub fn follow(&self, mut react: impl FnMut(&Migration, &MoveNews)) -> (Vec<MoveNews>, Vec<MoveNews>) {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        while !here.last().is_some_and(is_over) {
            let news = self.told_by_source.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                there.extend(self.told_by_destination.try_iter());
                panic!("nothing more after {here:?} and {there:?}")
            });
            react(self, &news);
            if let MoveNews::Commit(commit, _) = &news {
                self.destination.commit(commit).unwrap();
            }
            here.push(news);
        }
        while !there.last().is_some_and(is_over) {
            match self.told_by_destination.recv_timeout(PATIENCE) {
                Ok(news) => there.push(news),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the destination says nothing after {there:?}"),
            }
        }
        (here, there)
    }
}

/// A world whose manifest lets its tenant move to CVMs like its own.
pub fn movable_world(what: &str) -> Option<World> {
    let mut world = World::new(what, Mode::Open)?;
    world.manifest.migration = Some(world.policy().encode());
    Some(world)
}

/// Commands that a client has on their way at once.
pub const PIPELINE: u64 = 50;

/// How many numbered records a client has had acknowledged.
#[derive(Default)]
pub struct Progress {
    pub done: AtomicU64,
    pub stop: AtomicBool,
    changed: (Mutex<()>, Condvar),
}

impl Progress {
    /// Waits until so many more were acknowledged: the client makes progress.
    pub fn wait_for(&self, more: u64) {
        let target = self.done.load(Ordering::SeqCst) + more;
        let guard = self.changed.0.lock().unwrap();
        let waited = self
            .changed
            .1
            .wait_timeout_while(guard, PATIENCE, |()| self.done.load(Ordering::SeqCst) < target);
        assert!(!waited.unwrap().1.timed_out(), "a client's connection makes no progress");
    }
}

/// A client that writes numbered records over one connection until it is told to stop, and then reads all of them back: any error, any answer
/// that is lost or comes twice fails it.
pub fn auditor(stream: TcpStream, name: &'static str) -> (Arc<Progress>, JoinHandle<u64>) {
    let progress = Arc::new(Progress::default());
    let told = progress.clone();
    let body = move || {
        let (mut lines, mut stream) = (BufReader::new(stream.try_clone().unwrap()), stream);
        let mut line = String::new();
        let mut expect = |lines: &mut BufReader<TcpStream>, wanted: &str| {
            line.clear();
            lines.read_line(&mut line).unwrap();
            assert_eq!(line, wanted, "{name}");
        };
        let mut number = 0;
        while !told.stop.load(Ordering::SeqCst) {
            let batch: String = (number..number + PIPELINE)
                .map(|n| format!("SET {name}{n} v{n}\r\nINCR {name}\r\n"))
                .collect();
            stream.write_all(batch.as_bytes()).unwrap();
            for n in number..number + PIPELINE {
                expect(&mut lines, "+OK\r\n");
                expect(&mut lines, &format!(":{}\r\n", n + 1));
            }
            number += PIPELINE;
            told.done.store(number, Ordering::SeqCst);
            let _guard = told.changed.0.lock().unwrap();
            told.changed.1.notify_all();
        }
        for begin in (0..number).step_by(PIPELINE as usize) {
            let batch = begin..begin + PIPELINE;
            let gets: String = batch.clone().map(|n| format!("GET {name}{n}\r\n")).collect();
            stream.write_all(gets.as_bytes()).unwrap();
            for n in batch {
                expect(&mut lines, &format!("${}\r\n", n.to_string().len() + 1));
                expect(&mut lines, &format!("v{n}\r\n"));
            }
        }
        // An orderly end, both ways.
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(lines.read_to_end(&mut Vec::new()).unwrap(), 0);
        number
    };
    (progress, std::thread::spawn(body))
}

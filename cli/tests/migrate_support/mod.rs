//! What the tests of migrations share: two ends in one process, and what both tell.

use crate::sealed_support::World;
use nacre_abi::migrate::MoveMode;
use nacre_attest::manifest::Mode;
use nacre_vmm::Cvm;
use nacre_vmm::migration::{MoveNews, MoveOptions, Moving, Streams};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
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
        let (to_one, told_by_source) = channel();
        let (to_other, told_by_destination) = channel();
        let tell = move |news| drop(to_other.send(news));
        let destination = destination.receive_tenant(there, 1 << 30, tell).unwrap();
        let options = MoveOptions { mode, ..MoveOptions::default() };
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

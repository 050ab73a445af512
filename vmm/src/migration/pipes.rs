//! Moves bytes between the pipes of a migration's channels and their sockets: two threads for each channel, which know nothing of what they
//! move. It goes straight between the window and the socket, without a copy in between.
//!
//! A guest that breaks an index, or a socket that ends, costs that channel; whoever began the migration is told.

use super::background::{Background, Member};
use crate::link::{Sender, window_of};
use crate::vcpu::Shared;
use nacre_abi::hypercall::PipeNews;
use nacre_abi::migrate::FIRST_LANE;
use nacre_abi::pipe::{Pipe, PipeWord};
use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// For how long a thread looks for more before it sleeps: about what its wake costs.
const SPIN: Duration = Duration::from_micros(30);

/// The descriptors by which the guest tells of a channel's pipes. They are bound once per CVM.
pub struct Bells([EventFd; 2]);

impl Bells {
    /// Binds the ports of a channel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(shared: &Shared, channel: u32) -> Result<Bells, crate::CvmError> {
        let event = || {
            EventFd::new(EFD_CLOEXEC)
                .map_err(|error| crate::CvmError::System { what: "an event descriptor", error })
        };
        let bells = [event()?, event()?];
        for (news, bell) in [PipeNews::Written, PipeNews::Room].into_iter().zip(&bells) {
            shared.machine.bind_pipe(channel, news, bell)?;
        }
        Ok(Bells(bells))
    }

    fn ring(&self) {
        for bell in &self.0 {
            let _ = bell.write(1);
        }
    }
}

/// What both threads of a channel know.
struct Common {
    shared: Arc<Shared>,
    sender: Arc<Sender>,
    bells: Arc<Bells>,
    channel: u32,
    stream: TcpStream,
    background: Arc<Background>,
    stopping: AtomicBool,
}

impl Common {
    /// Lanes carry what nobody waits for while tasks run.
    fn join_background(&self) -> Option<Member<'_>> {
        (self.channel >= FIRST_LANE).then(|| self.background.join())
    }

    fn is_over(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.shared.stop.load(Ordering::SeqCst)
    }

    /// The other end of a pipe may sleep: it is woken if it said so.
    fn tell_guest(&self, pipe: &Pipe<'_>, waits: PipeWord) {
        fence(Ordering::SeqCst);
        if pipe.get(waits) != 0 && pipe.swap(waits, 0) != 0 {
            self.sender.wake_guest();
        }
    }

    /// Waits until `ready`, for the guest's word.
    fn wait(&self, pipe: &Pipe<'_>, waits: PipeWord, news: PipeNews, ready: impl Fn() -> bool) {
        let begin = Instant::now();
        while begin.elapsed() < SPIN {
            if ready() || self.is_over() {
                return;
            }
            std::thread::yield_now();
        }
        pipe.set(waits, 1);
        fence(Ordering::SeqCst);
        if !ready() && !self.is_over() {
            let _ = self.bells.0[news as usize].read();
        }
        pipe.set(waits, 0);
    }

    /// From the guest's pipe to the socket.
    fn send_all(&self) -> io::Result<()> {
        let window = window_of(&self.shared);
        let Some([_, pipe]) = window.pipes(self.channel) else { return Ok(()) };
        let mut background = self.join_background();
        let mut read = 0;
        while !self.is_over() {
            match pipe.filled(read).map_err(|_| broken())? {
                0 => {
                    self.wait(&pipe, PipeWord::ReaderWaits, PipeNews::Written, || pipe.filled(read) != Ok(0))
                }
                bytes => {
                    let ranges = pipe.ranges(read, bytes);
                    let sent = crate::memory::write_from(self.stream.as_raw_fd(), pipe.data(), &ranges)?;
                    read += sent as u64;
                    pipe.set(PipeWord::Read, read);
                    self.tell_guest(&pipe, PipeWord::WriterWaits);
                    background.iter_mut().for_each(|member| member.moved(sent));
                }
            }
        }
        Ok(())
    }

    /// From the socket to the guest's pipe.
    fn receive_all(&self) -> io::Result<()> {
        let window = window_of(&self.shared);
        let Some([pipe, _]) = window.pipes(self.channel) else { return Ok(()) };
        let mut background = self.join_background();
        let mut written = 0;
        while !self.is_over() {
            match pipe.room(written).map_err(|_| broken())? {
                0 => self.wait(&pipe, PipeWord::WriterWaits, PipeNews::Room, || pipe.room(written) != Ok(0)),
                room => {
                    let ranges = pipe.ranges(written, room);
                    let came = crate::memory::read_into(self.stream.as_raw_fd(), pipe.data(), &ranges)?;
                    if came == 0 {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    written += came as u64;
                    pipe.set(PipeWord::Written, written);
                    self.tell_guest(&pipe, PipeWord::ReaderWaits);
                    background.iter_mut().for_each(|member| member.moved(came));
                }
            }
        }
        Ok(())
    }
}

fn broken() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the guest broke a pipe")
}

/// One channel that is being moved. Dropping it ends both threads.
pub struct Relay {
    common: Arc<Common>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Begins to move a channel whose pipes are empty. `on_end` is called once, from another thread, when the channel has failed, and not
    /// when it is dropped.
    ///
    /// # Errors
    /// The kernel's, if it gives no threads.
    pub fn start(
        shared: Arc<Shared>,
        sender: Arc<Sender>,
        bells: Arc<Bells>,
        channel: u32,
        stream: TcpStream,
        background: Arc<Background>,
        on_end: impl Fn(u32, io::Error) + Send + Sync + 'static,
    ) -> io::Result<Relay> {
        stream.set_nodelay(true)?;
        let stopping = AtomicBool::new(false);
        let common = Arc::new(Common { shared, sender, bells, channel, stream, background, stopping });
        let on_end = Arc::new(on_end);
        let mut relay = Relay { common: common.clone(), threads: Vec::new() };
        for (name, run) in [
            ("move-out", Common::send_all as fn(&Common) -> io::Result<()>),
            ("move-in", Common::receive_all),
        ] {
            let (common, on_end) = (common.clone(), on_end.clone());
            let body = move || {
                // The first of the two to fail tells; the other one ends too.
                if let Err(error) = run(&common)
                    && !common.stopping.swap(true, Ordering::SeqCst)
                {
                    let _ = common.stream.shutdown(Shutdown::Both);
                    common.bells.ring();
                    on_end(common.channel, error);
                }
            };
            relay.threads.push(std::thread::Builder::new().name(format!("{name}-{channel}")).spawn(body)?);
        }
        Ok(relay)
    }

    /// Ends the connection, as if the other end had.
    pub fn hang_up(&self) {
        let _ = self.common.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.common.stopping.store(true, Ordering::SeqCst);
        let _ = self.common.stream.shutdown(Shutdown::Both);
        self.common.bells.ring();
        let own = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            let _ = thread.join();
        }
    }
}

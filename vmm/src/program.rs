//! Programs in a CVM: loading them, their streams, their end.

use crate::cvm::{Cvm, CvmError};
use crate::events::Mailboxes;
pub use crate::events::{Events, Exit, ProgramEvent, ProgramId};
use crate::link::{SendError, Sender};
pub use crate::socket::{ConnectError, Connection, Connector};
use crate::tunnel::Adopted;
use nacre_abi::attest::{CodeForm, PACKAGE_ID_BYTES};
use nacre_abi::message::{Header, Kind, ProgramOption, STREAM_WINDOW_BYTES, TreeKind, stream};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a program is started with.
#[derive(Clone, Debug, Default)]
pub struct ProgramSpec<'a> {
    /// The `.cwasm`, header included.
    pub code: &'a [u8],
    /// Arguments, `argv[0]` first.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Names of the directories it finds open. Directory number n has its tree at `/n` (see [`Program::tree_entry`]).
    pub preopens: Vec<String>,
    /// Which of its standard input, output and error are terminals.
    pub terminals: [bool; 3],
    /// How it runs.
    pub options: RunOptions,
    /// It is a service: it finds a listening socket behind its directories, as descriptor 3 if it has none.
    pub listens: bool,
}

/// How a program runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// How long it may take from its start.
    pub wall_limit: Option<Duration>,
    /// How much CPU time its main task may have.
    pub cpu_limit: Option<Duration>,
    /// The class of its tasks.
    pub priority: Priority,
}

/// Which of the tasks that could run do run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Before all others.
    High = 0,
    /// What has no class of its own.
    #[default]
    Normal = 1,
    /// When no other wants to.
    Low = 2,
}

impl RunOptions {
    /// As messages: which option, and its value.
    fn messages(&self) -> Vec<(ProgramOption, u64)> {
        let ns = |limit: Duration| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let mut messages = Vec::new();
        messages.extend(self.wall_limit.map(|limit| (ProgramOption::WallLimit, ns(limit))));
        messages.extend(self.cpu_limit.map(|limit| (ProgramOption::CpuLimit, ns(limit))));
        if self.priority != Priority::default() {
            messages.push((ProgramOption::Priority, self.priority as u64));
        }
        messages
    }
}

/// A program in a CVM.
pub struct Program<'c> {
    cvm: &'c Cvm,
    terminals: u64,
    /// Its number.
    pub id: ProgramId,
    /// What happens to it.
    pub events: Events,
}

/// One entry of a tree of files on its way in or out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// What it is.
    pub kind: TreeKind,
    /// Where: relative to the tree when it comes out, from the root of the guest's file system when it goes in.
    pub path: String,
    /// Where a symbolic link points.
    pub target: String,
    /// When it was changed last.
    pub modified: SystemTime,
}

impl TreeEntry {
    /// The entry that a message describes; `None` if it is not one.
    pub fn decode(header: Header, body: &[u8]) -> Option<TreeEntry> {
        let kind = TreeKind::from_number(header.stream)?;
        let text = std::str::from_utf8(body).ok()?;
        let (path, target) = text.split_once('\0').unwrap_or((text, ""));
        let modified = UNIX_EPOCH + Duration::from_nanos(header.arg);
        Some(TreeEntry { kind, path: path.into(), target: target.into(), modified })
    }
}

impl Cvm {
    /// Loads a program; [`Program::start`] runs it.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn load(&self, spec: &ProgramSpec<'_>) -> Result<Program<'_>, CvmError> {
        let (id, events) = self.new_program();
        let terminals = (0..).zip(spec.terminals).map(|(bit, is)| u64::from(is) << bit).sum();
        let program = Program { cvm: self, terminals, id, events };
        program.send(Kind::ProgramCreate, 0, spec.code.len() as u64, &[])?;
        for (number, piece) in spec.code.chunks(Sender::MAX_BODY).enumerate() {
            program.send(Kind::ProgramCode, 0, (number * Sender::MAX_BODY) as u64, piece)?;
        }
        for arg in &spec.args {
            program.send(Kind::ProgramArg, 0, 0, arg.as_bytes())?;
        }
        for (name, value) in &spec.env {
            program.send(Kind::ProgramEnv, 0, 0, format!("{name}={value}").as_bytes())?;
        }
        for (option, value) in spec.options.messages() {
            program.send(Kind::ProgramOption, option as u32, value, &[])?;
        }
        if spec.listens {
            self.provide_sockets(id);
            program.send(Kind::ProgramOption, ProgramOption::Listens as u32, 0, &[])?;
        }
        for (number, name) in spec.preopens.iter().enumerate() {
            let root = TreeEntry {
                kind: TreeKind::Directory,
                path: format!("/{number}"),
                target: String::new(),
                modified: SystemTime::now(),
            };
            program.tree_entry(&root)?;
            program.send(Kind::Preopen, 0, 0, name.as_bytes())?;
        }
        Ok(program)
    }
}

impl Cvm {
    /// Makes a program of the service that was installed from a package; [`Program::start`] runs it. What it is run with is the tenant's
    /// secret, and what it writes stays inside.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn load_service(
        &self,
        package: [u8; PACKAGE_ID_BYTES],
        options: RunOptions,
    ) -> Result<Program<'_>, CvmError> {
        let (id, events) = self.new_program();
        let program = Program { cvm: self, terminals: 0, id, events };
        program.send(Kind::ProgramCreate, CodeForm::Package as u32, 0, &package)?;
        for (option, value) in options.messages() {
            program.send(Kind::ProgramOption, option as u32, value, &[])?;
        }
        self.provide_sockets(id);
        program.send(Kind::ProgramOption, ProgramOption::Listens as u32, 0, &[])?;
        Ok(program)
    }
}

impl<'c> Program<'c> {
    /// A program that came with its tenant and runs in `cvm` already. It is ended when this is dropped, as any.
    pub fn adopted(cvm: &'c Cvm, adopted: Adopted) -> Program<'c> {
        Program { cvm, terminals: 0, id: adopted.id, events: adopted.events }
    }
}

impl Program<'_> {
    fn send(&self, kind: Kind, stream: u32, arg: u64, body: &[u8]) -> Result<(), CvmError> {
        self.cvm.send(Header::new(kind, self.id.0).stream(stream).arg(arg), body)
    }

    /// Brings in a file, directory or symbolic link, before the start. The bytes of a file follow by
    /// [`tree_data`](Self::tree_data).
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn tree_entry(&self, entry: &TreeEntry) -> Result<(), CvmError> {
        let since = entry.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let body = match entry.kind {
            TreeKind::Symlink => format!("{}\0{}", entry.path, entry.target),
            _ => entry.path.clone(),
        };
        self.send(Kind::TreeEntry, entry.kind as u32, since, body.as_bytes())
    }

    /// The next bytes of the file that was brought in last.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn tree_data(&self, bytes: &[u8]) -> Result<(), CvmError> {
        bytes.chunks(Sender::MAX_BODY).try_for_each(|piece| self.send(Kind::TreeData, 0, 0, piece))
    }

    /// Opens a connection to it, for a client at `peer`. See [`Connector::connect`].
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(&self, peer: SocketAddr) -> Result<Connection, ConnectError> {
        self.connector().connect(peer)
    }

    /// What opens connections to it, from any thread.
    pub fn connector(&self) -> Connector {
        self.cvm.connector(self.id)
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn start(&self) -> Result<(), CvmError> {
        let header = Header::new(Kind::ProgramStart, self.id.0).arg(self.terminals);
        let started = self.cvm.sender.send_noting(header, &[], || self.cvm.tables.mailboxes.started(self.id));
        started.map_err(|error| self.cvm.send_error(error))
    }

    /// Output of `stream` was dealt with up to `end`: the guest may send more.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn consumed(&self, stream: u32, end: u64) -> Result<(), CvmError> {
        self.cvm.consumed(self.id, stream, end)
    }

    /// Nobody reads `stream` any more.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn close_output(&self, stream: u32) -> Result<(), CvmError> {
        self.send(Kind::StreamClosed, stream, 0, &[])
    }

    /// Asks for the tree of files at a path of the guest's file system, after the end. Entries come as
    /// [`ProgramEvent::Message`]s until one of kind `TreeEnd`.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn request_export(&self, path: &str) -> Result<(), CvmError> {
        self.send(Kind::Export, 0, 0, path.as_bytes())
    }

    /// The next event.
    ///
    /// # Errors
    /// [`CvmError::Ended`] when there will be none.
    pub fn next_event(&self) -> Result<ProgramEvent, CvmError> {
        self.events.recv().ok_or_else(|| self.cvm.end_error())
    }

    /// A writer for its standard input, for another thread.
    pub fn stdin(&self) -> Stdin {
        let mailboxes = self.cvm.tables.mailboxes.clone();
        let input = mailboxes.input(self.id);
        let credit = Arc::new(Credit::default());
        credit.advance(input.consumed);
        Stdin { sender: self.cvm.sender(), mailboxes, program: self.id, sent: input.sent, credit }
    }

    /// Runs it to its end; returns how it ended and what it wrote to standard output and error.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn run_to_end(&self) -> Result<(Exit, Vec<u8>, Vec<u8>), CvmError> {
        self.start()?;
        self.wait_to_end()
    }

    /// The same for a program that was started.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn wait_to_end(&self) -> Result<(Exit, Vec<u8>, Vec<u8>), CvmError> {
        self.send(Kind::StreamEnd, stream::STDIN, 0, &[])?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next_event()? {
                ProgramEvent::Output { stream, bytes, end } => {
                    if stream == stream::STDOUT {
                        out.extend(bytes)
                    } else {
                        err.extend(bytes)
                    }
                    self.consumed(stream, end)?;
                }
                ProgramEvent::Exited(exit) => return Ok((exit, out, err)),
                ProgramEvent::InputCredit(_) | ProgramEvent::Message(..) => {}
            }
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // If the CVM has ended there is nothing to drop.
        let _ = self.send(Kind::ProgramDrop, 0, 0, &[]);
        self.cvm.forget_program(self.id);
    }
}

/// Standard input of a program.
pub struct Stdin {
    sender: Arc<Sender>,
    mailboxes: Arc<Mailboxes>,
    program: ProgramId,
    sent: u64,
    credit: Arc<Credit>,
}

/// How far the guest has consumed standard input.
#[derive(Default)]
pub struct Credit {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Credit {
    /// The guest has consumed up to `offset`.
    pub fn advance(&self, offset: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = state.0.max(offset);
        self.changed.notify_all();
    }

    /// The program is over: nobody waits any more.
    pub fn finish(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    /// Waits until some of the window is free after `sent` bytes; returns how much, 0 after the end.
    fn wait(&self, sent: u64) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let room = STREAM_WINDOW_BYTES.saturating_sub(sent.saturating_sub(state.0));
            if state.1 || room > 0 {
                return if state.1 { 0 } else { room };
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Stdin {
    /// Where to report [`ProgramEvent::InputCredit`] and the end of the program.
    pub fn credit(&self) -> Arc<Credit> {
        self.credit.clone()
    }

    /// Writes all of `bytes`, as fast as the program reads. False after the end of the program.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let room = self.credit.wait(self.sent) as usize;
            let (now, later) = bytes.split_at(bytes.len().min(room).min(Sender::MAX_BODY));
            let header = Header::new(Kind::StreamData, self.program.0).stream(stream::STDIN).arg(self.sent);
            let sent = self.sent + now.len() as u64;
            let note = || self.mailboxes.input_sent(self.program, sent, false);
            if room == 0 || self.sender.send_noting(header, now, note).is_err() {
                return false;
            }
            self.sent = sent;
            bytes = later;
        }
        true
    }

    /// Ends it.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn end(self) -> Result<(), SendError> {
        let header = Header::new(Kind::StreamEnd, self.program.0).stream(stream::STDIN).arg(self.sent);
        let note = || self.mailboxes.input_sent(self.program, self.sent, true);
        self.sender.send_noting(header, &[], note)
    }
}

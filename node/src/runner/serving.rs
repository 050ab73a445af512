//! A service's program in a CVM: started, followed by a thread of its own, ended. Like [`super::machine`] it knows the VMM.

use super::machine::{Ended, Machine, end_of};
use crate::names::PackageId;
use crate::outcome::End;
use nacre_compile::program::Program as Compiled;
use nacre_vmm::program::{Connector, ProgramEvent, ProgramId, ProgramSpec, RunOptions};
use nacre_vmm::tunnel::Adopted;
use nacre_vmm::{Cvm, CvmError};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Takes what a service writes: which stream, and bytes.
pub type Log = Arc<dyn Fn(u32, &[u8]) + Send + Sync>;

/// Where a service's code comes from.
pub enum ServiceCode {
    /// The node has compiled it.
    Open(Arc<Compiled>),
    /// It was installed from this package, by order of its owner.
    Sealed(PackageId),
}

/// A service's program that runs. Dropping it ends it.
pub struct Serving {
    /// Opens connections to it.
    pub connector: Connector,
    /// How it ended.
    pub ended: oneshot::Receiver<End>,
    cvm: Arc<Cvm>,
    id: ProgramId,
    moved: bool,
}

impl Serving {
    /// Its number in its CVM.
    #[must_use]
    pub fn program(&self) -> u32 {
        self.id.0
    }

    /// It has moved to another CVM, where it goes on.
    pub fn forget(mut self) {
        self.moved = true;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.moved {
            // One that has ended already is not there any more.
            self.cvm.end_program(self.id);
        }
    }
}

impl Machine {
    /// Starts a service. Blocks for as long as copying its code takes.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn serve(&self, program: ServiceCode, args: Vec<String>, log: Log) -> Result<Serving, Ended> {
        let cvm = self.cvm().clone();
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let (tell, ended) = oneshot::channel();
        let follow = move || {
            let end = match follow(&cvm, &program, args, &log, |connector, id| {
                // Who waits for it may have gone; then it is dropped, which ends the program.
                let _ = started.send((connector, id));
            }) {
                Ok(end) => end,
                Err(error) => End::Lost(error.to_string()),
            };
            let _ = tell.send(end);
        };
        let thread = std::thread::Builder::new().name("service".into()).spawn(follow);
        thread.map_err(|error| Ended(format!("the kernel gives no thread: {error}")))?;
        let begun = start.recv();
        let (connector, id) = begun.map_err(|_| Ended(self.cvm().end_error().to_string()))?;
        Ok(Serving { connector, ended, cvm: self.cvm().clone(), id, moved: false })
    }

    /// Goes on with a service's program that came with its tenant.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn go_on_serving(&self, program: Adopted, log: Log) -> Result<Serving, Ended> {
        let Adopted { id, events, .. } = program;
        let cvm = self.cvm().clone();
        let connector = cvm.connector(id);
        let (tell, ended) = oneshot::channel();
        let follow = move || {
            let next = || events.recv().ok_or_else(|| cvm.end_error());
            let consumed = |stream, end| cvm.consumed(id, stream, end);
            let end = follow_events(next, consumed, &log);
            let _ = tell.send(end.unwrap_or_else(|error| End::Lost(error.to_string())));
        };
        let thread = std::thread::Builder::new().name("service".into()).spawn(follow);
        thread.map_err(|error| Ended(format!("the kernel gives no thread: {error}")))?;
        Ok(Serving { connector, ended, cvm: self.cvm().clone(), id, moved: false })
    }
}

/// Starts a program and follows it to its end.
fn follow(
    cvm: &Cvm,
    program: &ServiceCode,
    args: Vec<String>,
    log: &Log,
    started: impl FnOnce(Connector, ProgramId),
) -> Result<End, CvmError> {
    let program = match program {
        ServiceCode::Open(program) => {
            cvm.load(&ProgramSpec { code: program.file(), args, listens: true, ..ProgramSpec::default() })?
        }
        ServiceCode::Sealed(package) => cvm.load_service(package.0, RunOptions::default())?,
    };
    program.start()?;
    // It has no standard input. This fails only when the CVM has ended, which shows below.
    let _ = program.stdin().end();
    started(program.connector(), program.id);
    follow_events(|| program.next_event(), |stream, end| program.consumed(stream, end), log)
}

/// Follows a program to its end; what it writes is told.
fn follow_events(
    next: impl Fn() -> Result<ProgramEvent, CvmError>,
    consumed: impl Fn(u32, u64) -> Result<(), CvmError>,
    log: &Log,
) -> Result<End, CvmError> {
    loop {
        match next()? {
            ProgramEvent::Output { stream, bytes, end } => {
                log(stream, &bytes);
                consumed(stream, end)?;
            }
            ProgramEvent::Exited(exit) => return Ok(end_of(exit)),
            ProgramEvent::InputCredit(_) | ProgramEvent::Message(..) => {}
        }
    }
}

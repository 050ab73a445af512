//! Modules: code that is brought into a CVM once.

use super::Calls;
use crate::cvm::{Cvm, CvmError};
use crate::events::Exit;
use crate::link::{SendError, Sender};
use nacre_abi::attest::CodeForm;
use nacre_abi::message::{Header, Kind};
use std::iter;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};

/// Longest code that [`Cvm::post_module`] takes: a part of what the ring holds.
pub const MAX_POSTED_CODE_BYTES: usize = 256 << 10;

/// Code in a CVM, which is gone when the last handle is dropped and the last call has ended. Clones share it.
#[derive(Clone)]
pub struct Module(Arc<Loaded>);

struct Loaded {
    sender: Arc<Sender>,
    calls: Arc<Calls>,
    number: u32,
    refused: Arc<OnceLock<Exit>>,
}

impl Module {
    /// Why the guest does not have it, once it has said so. Calls of it end in the same way.
    #[must_use]
    pub fn refused(&self) -> Option<&Exit> {
        self.0.refused.get()
    }

    /// Its number in the CVM.
    pub(super) fn number(&self) -> u32 {
        self.0.number
    }
}

/// A module whose load the guest has not told of.
pub(super) struct Loading {
    pub(super) refused: Arc<OnceLock<Exit>>,
    /// Wakes who waits for it, if anybody does.
    pub(super) waiter: Option<SyncSender<()>>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // If the CVM has ended there is nothing to drop. First the message: a roster may name a module too many, not one too few.
        let _ = self.sender.post([(Header::new(Kind::ModuleDrop, self.number), &[][..])], true);
        self.calls.state().present.remove(&self.number);
    }
}

/// The messages that bring a module.
fn module_messages(number: u32, form: CodeForm, code: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    let message = move |kind| Header::new(kind, number);
    let pieces = (0..).step_by(Sender::MAX_BODY).zip(code.chunks(Sender::MAX_BODY));
    iter::once((message(Kind::ModuleCreate).stream(form as u32).arg(code.len() as u64), &[][..]))
        .chain(pieces.map(move |(offset, piece)| (message(Kind::ModuleCode).arg(offset), piece)))
        .chain(iter::once((message(Kind::ModuleLoad), &[][..])))
}

impl Cvm {
    /// Brings compiled code (a `.cwasm`, header included) into the CVM once; all calls share it. Waits until it is loaded.
    /// Dropping the last handle unloads it.
    ///
    /// # Errors
    /// [`CvmError::Module`] if the guest refuses it, [`CvmError::Ended`].
    pub fn load_module(&self, code: &[u8]) -> Result<Module, CvmError> {
        self.bring_in(CodeForm::Plain, code)
    }

    /// Brings a sealed package into the CVM, which keeps it until the last handle is dropped. What is in it runs only by order of a
    /// session, and stays when the package goes.
    ///
    /// # Errors
    /// As [`load_module`](Self::load_module).
    pub fn load_package(&self, package: &[u8]) -> Result<Module, CvmError> {
        self.bring_in(CodeForm::Package, package)
    }

    fn bring_in(&self, form: CodeForm, code: &[u8]) -> Result<Module, CvmError> {
        let (waiter, loaded) = mpsc::sync_channel(1);
        let module = self.enter_module(Some(waiter))?;
        for (header, body) in module_messages(module.0.number, form, code) {
            self.send(header, body)?;
        }
        match (loaded.recv(), module.refused()) {
            (Ok(()), None) => Ok(module),
            (Ok(()), Some(refused)) => Err(CvmError::Module(refused.clone())),
            (Err(_), _) => Err(self.end_error()),
        }
    }

    /// The same without waiting for anything: calls can be made at once, the guest keeps them until the module is loaded. If it
    /// refuses the module they end so, and [`Module::refused`] says it. `None` if the code is longer than
    /// [`MAX_POSTED_CODE_BYTES`], or the guest is behind with reading.
    ///
    /// # Errors
    /// [`CvmError::Ended`].
    pub fn post_module(&self, code: &[u8]) -> Result<Option<Module>, CvmError> {
        if code.len() > MAX_POSTED_CODE_BYTES {
            return Ok(None);
        }
        let module = self.enter_module(None)?;
        match self.sender().post(module_messages(module.0.number, CodeForm::Plain, code), false) {
            Ok(()) => Ok(Some(module)),
            Err(SendError::Ended | SendError::Moved) => Err(self.end_error()),
            Err(SendError::Full | SendError::TooLong(_)) => {
                self.calls().state().loading.remove(&module.0.number);
                Ok(None)
            }
        }
    }

    /// A number for a module. Its drop takes back what is sent of it.
    fn enter_module(&self, waiter: Option<SyncSender<()>>) -> Result<Module, CvmError> {
        let calls = self.calls().clone();
        let mut state = calls.state();
        if state.closed {
            return Err(self.end_error());
        }
        if state.moving {
            return Err(CvmError::Moved);
        }
        state.modules = state.modules.wrapping_add(1);
        let (number, refused) = (state.modules, Arc::default());
        state.loading.insert(number, Loading { refused: Arc::clone(&refused), waiter });
        state.present.insert(number);
        drop(state);
        Ok(Module(Arc::new(Loaded { sender: self.sender(), calls, number, refused })))
    }
}

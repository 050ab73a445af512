//! Modules: code that the host brings in once and calls many times. The table is vCPU 0's; a call takes a share of the
//! module with it to its worker.

use crate::children::Loaded;
use crate::dispatcher::MAX_CODE_BYTES;
use crate::normal::NormalCell;
use crate::program::Code;
use crate::sealed::{self, packages};
use crate::task::{self, Begin, Spec};
use crate::{calls, link, wasm};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use nacre_abi::attest::CodeForm;
use nacre_abi::message::{ExitKind, Header, Kind, NO_PROGRAM};
use nacre_abi::ring::Incoming;

/// Modules that a CVM can have at once.
const MAX_MODULES: usize = 1 << 14;

/// All modules, by the host's number.
static MODULES: NormalCell<BTreeMap<u32, Entry>> = NormalCell::new(BTreeMap::new());

/// A module's way in.
enum Entry {
    /// Its code comes in pieces.
    Receiving(Code, CodeForm),
    /// A package, which is kept for the sessions.
    Package,
    /// A task loads it.
    Loading,
    /// It can be called.
    Ready(Arc<Loaded>),
}

/// A new module; takes the place of an older one with its number.
pub fn create(header: Header) {
    forget(header.program);
    let Some(form) = CodeForm::from_number(header.stream) else {
        return report(header.program, ExitKind::Error, "code comes in a form that this guest does not know");
    };
    if form == CodeForm::Plain && !sealed::takes_plain_code() {
        return report(header.program, ExitKind::Error, sealed::SEALED);
    }
    let room = MODULES.with(|modules| modules.len() < MAX_MODULES);
    let fits = (1..=MAX_CODE_BYTES).contains(&header.arg);
    match if room && fits { Code::new(header.arg).ok() } else { None } {
        Some(code) => {
            MODULES.with(|modules| modules.insert(header.program, Entry::Receiving(code, form)));
        }
        None if !room => {
            report(header.program, ExitKind::OutOfMemory, "the CVM has as many modules as it can")
        }
        None => report(
            header.program,
            ExitKind::OutOfMemory,
            "no memory for the module's code: give the CVM more with --memory",
        ),
    }
}

/// Says how a load went.
fn report(id: u32, kind: ExitKind, text: &str) {
    link::send(Header::new(Kind::ModuleLoaded, id).stream(kind as u32), text.as_bytes());
}

/// A piece of code, copied straight to where it will run. One that does not fit makes the load fail.
pub fn code(incoming: &Incoming<'_, '_>) {
    let header = incoming.header();
    let filled = MODULES.with(|modules| {
        let Some(Entry::Receiving(code, _)) = modules.get_mut(&header.program) else { return Ok(()) };
        code.fill(header.arg, u64::from(header.len), &mut |at, piece| {
            incoming.copy_body(at, piece);
        })
    });
    if let Err(error) = filled {
        forget(header.program);
        let (kind, text) = error.parts();
        report(header.program, kind, text);
    }
}

/// Loads a module whose code is complete, as a task of vCPU 0: all of it takes the engine's locks.
pub fn load(id: u32) {
    let code = MODULES.with(|modules| match modules.get_mut(&id) {
        Some(entry @ Entry::Receiving(..)) => match core::mem::replace(entry, Entry::Loading) {
            Entry::Receiving(code, form) => Some((code, form)),
            _ => None,
        },
        _ => None,
    });
    let Some((code, form)) = code else { return };
    if form == CodeForm::Package {
        return keep(id, code);
    }
    let entry = Box::new(move |begin| {
        // To its end: no worker is woken for it.
        task::enter_normal();
        let loaded = match begin {
            Begin::Now => wasm::load_module(code),
            _ => Err(wasm::Outcome::no_stack()),
        };
        finish(id, loaded);
    });
    match task::create(Spec::helper(NO_PROGRAM), entry) {
        Ok(task) => task::start_on_normal(&task),
        Err(_) => {
            forget(id);
            report(id, ExitKind::OutOfMemory, "there are as many tasks as the CVM can have");
        }
    }
}

/// Keeps a package until an order of a session names it.
fn keep(id: u32, code: Code) {
    match packages::arrived(id, code) {
        Ok(()) => {
            MODULES.with(|modules| modules.insert(id, Entry::Package));
            report(id, ExitKind::Code, "");
        }
        Err(text) => {
            forget(id);
            report(id, ExitKind::Error, &text);
        }
    }
}

fn finish(id: u32, loaded: Result<Loaded, wasm::Outcome>) {
    let loaded = loaded.map(Arc::new).map_err(wasm::Outcome::into_error);
    let new = loaded.as_ref().ok().cloned();
    // Dropped outside of the table: the end of a module's code takes the engine's locks.
    let unwanted = MODULES.with(|modules| match (modules.get_mut(&id), new) {
        (Some(entry @ Entry::Loading), Some(new)) => {
            *entry = Entry::Ready(new);
            None
        }
        (Some(Entry::Loading), None) => {
            modules.remove(&id);
            None
        }
        // The host has forgotten it meanwhile.
        (_, new) => new,
    });
    drop(unwanted);
    match loaded {
        Ok(loaded) => {
            calls::module_loaded(id, Ok(&loaded));
            report(id, ExitKind::Code, "");
        }
        // Who made calls hears first that there is no module for more of them.
        Err((kind, text)) => {
            report(id, kind, &text);
            calls::module_loaded(id, Err((kind, &text)));
        }
    }
}

/// What there is under a number.
pub enum Found {
    /// A module that can be called.
    Ready(Arc<Loaded>),
    /// It is being loaded: [`calls::module_loaded`] is told.
    Loading,
    /// Nothing that can be called.
    Nothing,
}

/// The module with this number.
pub fn find(id: u32) -> Found {
    MODULES.with(|modules| match modules.get(&id) {
        Some(Entry::Ready(loaded)) => Found::Ready(loaded.clone()),
        Some(Entry::Loading) => Found::Loading,
        Some(Entry::Receiving(..) | Entry::Package) | None => Found::Nothing,
    })
}

/// Forgets a module: its memory goes when its last call has ended.
pub fn forget(id: u32) {
    let old = MODULES.with(|modules| modules.remove(&id));
    if matches!(old, Some(Entry::Package)) {
        packages::forget(id);
    }
    drop(old);
}

//! One call of a module: a fresh instance in a store of its own, whose `_start` runs with the call's input.

use super::{Outcome, calls_runtime, instantiate, new_store, outcome, prepare, slots, start};
use crate::call_io::{CallSystem, Capture};
use crate::calls::Order;
use crate::children::Loaded;
use crate::program::Code;
use crate::system::TaskSystem;
use crate::{memory, task};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use nacre_abi::message::ExitKind;
use nacre_wasi::{Builder, Fs, WasiCtx};
use wasmtime::ResourceLimiter;

/// Bytes that one element of a table takes.
const TABLE_ELEMENT_BYTES: u64 = 8;

/// How much memory an instance may still have: linear memories and tables.
pub struct MemoryLimit {
    left: u64,
    /// What was taken last, which a failure gives back.
    last: u64,
    /// Something was refused.
    refused: bool,
}

impl MemoryLimit {
    /// So many bytes.
    pub fn new(bytes: u64) -> MemoryLimit {
        MemoryLimit { left: bytes, last: 0, refused: false }
    }

    fn take(&mut self, bytes: u64) -> bool {
        self.refused |= bytes > self.left;
        let taken = bytes <= self.left;
        if taken {
            self.left -= bytes;
            self.last = bytes;
        }
        taken
    }

    fn give_back(&mut self) {
        self.left = self.left.saturating_add(core::mem::take(&mut self.last));
        self.refused = true;
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, now: usize, then: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.take(then.saturating_sub(now) as u64))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back();
        Ok(())
    }

    fn table_growing(&mut self, now: usize, then: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.take((then.saturating_sub(now) as u64).saturating_mul(TABLE_ELEMENT_BYTES)))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back();
        Ok(())
    }
}

/// Loads a module whose code is complete, with all that would take the engine's locks at a call.
///
/// # Errors
/// Why it can't be called.
pub fn load_module(code: Code) -> Result<Loaded, Outcome> {
    task::on_normal(|| {
        let runtime = calls_runtime()
            .map_err(|error| Outcome::error(alloc::format!("the engine can't be made: {error:#}")))?;
        slots::with_images(|| prepare(runtime, code))
    })
}

/// Runs a call to its end. `done` is told how it went, what it wrote, and whether it was the first in its memory, while
/// the instance still exists: putting its memory back delays the next call, not this one's answer.
pub fn run_call(order: Order, done: impl FnOnce(&Outcome, Option<&[Capture; 2]>, bool)) {
    let stdin_at = order.stdin_at();
    let texts = texts(&order);
    let Order { module, head, options, request, .. } = order;
    let system = CallSystem::new(request, stdin_at, head.max_output_bytes);
    let made =
        texts.and_then(|texts| Ok((context(texts, system)?, calls_runtime().map_err(Outcome::error)?)));
    let (wasi, runtime) = match made {
        Ok(made) => made,
        Err(outcome) => return done(&outcome, None, false),
    };
    let mut store = new_store(runtime, wasi, None);
    store.data_mut().limit = MemoryLimit::new(head.memory_limit_bytes);
    store.limiter(|context| &mut context.limit);
    let (instance, cold) = module.slots.making(|| instantiate(&module.pre, &mut store));
    let ended = instance.and_then(|instance| start(&module, instance, &mut store));
    let mut outcome = outcome(ended, options);
    let context = store.data_mut();
    let failed =
        matches!(outcome.kind, ExitKind::Trap | ExitKind::Error) && task::current().stopped().is_none();
    if failed && context.limit.refused {
        outcome.kind = ExitKind::OutOfMemory;
        outcome.text = out_of_memory(head.memory_limit_bytes, &outcome.text);
    }
    let outputs = match context.wasi.system() {
        TaskSystem::Call(system) => Some(&system.outputs),
        TaskSystem::Program(_) => None,
    };
    done(&outcome, outputs, cold);
    // Before the module, whose code and images it uses.
    drop(store);
    drop(module);
    if cold {
        // It may have taken what is zeroed ahead; the answer is sent.
        memory::zero_ahead();
    }
}

fn out_of_memory(limit: u64, text: &str) -> String {
    let limit = match limit {
        u64::MAX => "the CVM's memory".to_string(),
        bytes => alloc::format!("its memory limit of {} MiB", bytes >> 20),
    };
    alloc::format!("out of memory: it needed more than {limit}; allow it more ({text})")
}

/// Arguments and variables.
type Texts = (Vec<String>, Vec<(String, String)>);

/// The texts of a request.
fn texts(order: &Order) -> Result<Texts, Outcome> {
    let malformed = || Outcome::error("an argument or variable is not as the request says");
    let mut texts = order.texts();
    let (mut args, mut env) = (Vec::new(), Vec::new());
    for _ in 0..order.head.args {
        args.push(copied(texts.next().ok_or_else(malformed)?)?);
    }
    for _ in 0..order.head.vars {
        let (name, value) = texts.next().and_then(|text| text.split_once('=')).ok_or_else(malformed)?;
        env.push((copied(name)?, copied(value)?));
    }
    if texts.is_empty() { Ok((args, env)) } else { Err(malformed()) }
}

/// A copy, if there is memory for it: the host chooses how long it is.
fn copied(text: &str) -> Result<String, Outcome> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len())
        .map_err(|_| Outcome::error("out of memory: none is left for the arguments"))?;
    copy.push_str(text);
    Ok(copy)
}

/// The WASI context of a call: no directories, its input, and room for its outputs.
fn context((args, env): Texts, system: CallSystem) -> Result<WasiCtx<TaskSystem>, Outcome> {
    let fs = Fs::new(0).map_err(Outcome::error)?;
    Builder::new().args(args).env(env).build(TaskSystem::Call(system), fs).map_err(Outcome::error)
}

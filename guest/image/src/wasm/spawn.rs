//! The host calls of module `nacre`: tasks that a program spawns (`docs/spawn.md`).
//!
//! Every pointer and length is the program's to choose: what does not lie in its linear memory is `EFAULT`, names and
//! records are copied before they are used, and every allocation whose size it decides can fail.

use super::{Context, wasi};
use crate::arch::clock;
use crate::children::{Child, Kids, Order};
use crate::{sched, task};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use nacre_abi::spawn::{FOREVER, MAX_MESSAGE_BYTES, MAX_NAME_BYTES, MODULE, Options, Report};
use nacre_wasi::{Errno, Stop};
use nacre_wval::{Limits, Priority};
use wasmtime::{Caller, Linker};

/// How a host call goes on: with an error number for the program, or with its end.
enum Fail {
    Errno(Errno),
    Stop,
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Fail {
        Fail::Errno(errno)
    }
}

/// Calls a function with the caller's linear memory and what it has spawned.
fn call(
    caller: &mut Caller<'_, Context>,
    function: impl FnOnce(&mut [u8], &mut Kids) -> Result<(), Fail>,
) -> wasmtime::Result<u32> {
    let memory = wasi::memory_of(caller)?;
    let (memory, context) = memory.data_and_store_mut(caller);
    // A call of a module is one task and cannot have others.
    let Some(kids) = &mut context.kids else { return Ok(u32::from(Errno::Notsup.raw())) };
    let called = function(memory, kids);
    wasi::share_normal_vcpu()?;
    match called {
        Ok(()) => Ok(u32::from(Errno::Success.raw())),
        Err(Fail::Errno(errno)) => Ok(u32::from(errno.raw())),
        Err(Fail::Stop) => Err(wasi::Stopped(Stop::Killed).into()),
    }
}

macro_rules! bind {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ident;)*) => {
        /// Defines every function of the module.
        pub fn link(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
            $(bind!(@one linker $name($($arg: $type),*) -> $result);)*
            Ok(())
        }
    };
    (@one $linker:ident $name:ident() -> count) => {
        $linker.func_wrap(MODULE, stringify!($name), || sched::$name())?;
    };
    (@one $linker:ident $name:ident($($arg:ident: $type:ty),*) -> errno) => {
        $linker.func_wrap(MODULE, stringify!($name), |mut caller: Caller<'_, Context>, $($arg: $type),*| {
            call(&mut caller, |memory, kids| $name(memory, kids, $($arg),*))
        })?;
    };
}

nacre_abi::for_each_nacre!(bind);

fn bytes(memory: &[u8], start: u32, len: u32) -> Result<&[u8], Errno> {
    let start = start as usize;
    memory.get(start..start + len as usize).ok_or(Errno::Fault)
}

fn bytes_mut(memory: &mut [u8], start: u32, len: u32) -> Result<&mut [u8], Errno> {
    let start = start as usize;
    memory.get_mut(start..start + len as usize).ok_or(Errno::Fault)
}

/// A copy, if there is memory for it.
fn copied(bytes: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| Errno::Nomem)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// The options at `at`, 0 for none: the class of the new task and its limits.
fn options(memory: &[u8], at: u32) -> Result<(Priority, Limits), Errno> {
    let options = if at == 0 {
        Options::default()
    } else {
        let record = bytes(memory, at, Options::BYTES as u32)?;
        record.first_chunk().and_then(Options::decode).ok_or(Errno::Inval)?
    };
    let class = (options.priority as usize).checked_sub(1).and_then(Priority::from_index);
    let wall_deadline_ns = match options.wall_limit_ns {
        0 => u64::MAX,
        limit => clock::monotonic_ns().saturating_add(limit),
    };
    let cpu_ns = if options.cpu_limit_ns == 0 { u64::MAX } else { options.cpu_limit_ns };
    Ok((class.unwrap_or(task::current().priority()), Limits { wall_deadline_ns, cpu_ns }))
}

/// Whether the module exports a function `name` that takes and returns an i32.
fn check_export(kids: &Kids, name: &str) -> Result<(), Errno> {
    let loaded = &kids.family.loaded;
    match loaded.is_task(name) {
        true => Ok(()),
        false if loaded.exports(name) => Err(Errno::Noexec),
        false => Err(Errno::Noent),
    }
}

#[expect(clippy::too_many_arguments, reason = "these are the parameters of the call, see docs/spawn.md")]
fn spawn(
    memory: &mut [u8],
    kids: &mut Kids,
    name: u32,
    name_len: u32,
    message: u32,
    message_len: u32,
    options_at: u32,
    handle: u32,
) -> Result<(), Fail> {
    bytes(memory, handle, 4)?;
    if name_len > MAX_NAME_BYTES {
        return Err(Errno::Nametoolong.into());
    }
    let name = core::str::from_utf8(bytes(memory, name, name_len)?).map_err(|_| Errno::Ilseq)?;
    if message_len > MAX_MESSAGE_BYTES {
        return Err(Errno::Msgsize.into());
    }
    let message = bytes(memory, message, message_len)?;
    let (priority, limits) = options(memory, options_at)?;
    check_export(kids, name)?;
    kids.family.hold(u64::from(message_len))?;
    let message = copied(message).inspect_err(|_| kids.family.release(u64::from(message_len)))?;
    let order = Order { name: String::from(name), message, priority, limits };
    let child = Child::spawn(&kids.family, order)?;
    let number = kids.enter(child)?;
    bytes_mut(memory, handle, 4)?.copy_from_slice(&number.to_le_bytes());
    Ok(())
}

fn join(memory: &mut [u8], kids: &mut Kids, handle: u32, timeout_ns: u64, report: u32) -> Result<(), Fail> {
    let child = Arc::clone(kids.get(handle)?);
    let report = bytes_mut(memory, report, Report::BYTES as u32)?;
    let deadline = (timeout_ns != FOREVER).then(|| clock::monotonic_ns().saturating_add(timeout_ns));
    loop {
        if let Some(ended) = child.ended(task::current().slot) {
            report.copy_from_slice(&ended.encode());
            return Ok(());
        }
        task::check().map_err(|_| Fail::Stop)?;
        match deadline {
            Some(deadline) if timeout_ns == 0 || clock::monotonic_ns() >= deadline => {
                return Err(Errno::Timedout.into());
            }
            Some(deadline) => task::park_until(deadline),
            None => task::park(),
        }
        task::check().map_err(|_| Fail::Stop)?;
    }
}

/// Copies what fits of `from`, from `offset` on, to `buffer`, and how much that is to `nread`.
fn read_part(
    memory: &mut [u8],
    from: &[u8],
    offset: u32,
    buffer: u32,
    len: u32,
    nread: u32,
) -> Result<(), Fail> {
    bytes(memory, nread, 4)?;
    let into = bytes_mut(memory, buffer, len)?;
    let rest = from.get(offset as usize..).unwrap_or_default();
    let count = rest.len().min(into.len());
    into[..count].copy_from_slice(&rest[..count]);
    bytes_mut(memory, nread, 4)?.copy_from_slice(&(count as u32).to_le_bytes());
    Ok(())
}

fn result_read(
    memory: &mut [u8],
    kids: &mut Kids,
    handle: u32,
    offset: u32,
    buffer: u32,
    len: u32,
    nread: u32,
) -> Result<(), Fail> {
    let child = kids.get(handle)?;
    read_part(memory, child.result().ok_or(Errno::Busy)?, offset, buffer, len, nread)
}

fn cancel(_: &mut [u8], kids: &mut Kids, handle: u32) -> Result<(), Fail> {
    kids.get(handle)?.cancel();
    Ok(())
}

fn drop(_: &mut [u8], kids: &mut Kids, handle: u32) -> Result<(), Fail> {
    Ok(kids.forget(handle)?)
}

fn message_read(
    memory: &mut [u8],
    kids: &mut Kids,
    offset: u32,
    buffer: u32,
    len: u32,
    nread: u32,
) -> Result<(), Fail> {
    // The main instance has no message.
    let message = kids.me.as_ref().map_or(&[][..], |me| &me.message);
    read_part(memory, message, offset, buffer, len, nread)
}

fn result_write(memory: &mut [u8], kids: &mut Kids, start: u32, len: u32) -> Result<(), Fail> {
    if len > MAX_MESSAGE_BYTES {
        return Err(Errno::Msgsize.into());
    }
    let new = bytes(memory, start, len)?;
    kids.family.hold(u64::from(len))?;
    let new = copied(new).inspect_err(|_| kids.family.release(u64::from(len)))?;
    let old = core::mem::replace(&mut kids.result, new);
    kids.family.release(old.len() as u64);
    Ok(())
}

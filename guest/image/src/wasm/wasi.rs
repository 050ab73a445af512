//! Binds the functions of WASI preview 1 to wasmtime.

use super::Context;
use crate::{sched, task, vcpu};
use core::fmt;
use nacre_abi::VcpuId;
use nacre_wasi::{Call, Errno, Stop};
use wasmtime::{Caller, Extern, Linker, Memory};

use crate::system::TaskSystem;

/// The module name programs import them from.
pub const MODULE: &str = "wasi_snapshot_preview1";

/// The error that carries the end of a program through its Wasm frames.
#[derive(Debug)]
pub struct Stopped(pub Stop);

impl fmt::Display for Stopped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the program ended: {:?}", self.0)
    }
}

impl core::error::Error for Stopped {}

/// The caller's linear memory.
pub fn memory_of(caller: &mut Caller<'_, Context>) -> wasmtime::Result<Memory> {
    match caller.data().memory {
        Some(memory) => Ok(memory),
        // A start function runs before the instance is known.
        None => match caller.get_export("memory") {
            Some(Extern::Memory(memory)) => Ok(memory),
            _ => Err(wasmtime::Error::msg("a WASI program must export its memory as \"memory\"")),
        },
    }
}

/// Calls a WASI function with the caller's linear memory.
fn call(
    caller: &mut Caller<'_, Context>,
    function: impl FnOnce(&mut Call<'_, TaskSystem>) -> Result<Errno, Stop>,
) -> wasmtime::Result<u32> {
    let memory = memory_of(caller)?;
    let (memory, context) = memory.data_and_store_mut(caller);
    let called = function(&mut Call { ctx: &mut context.wasi, memory });
    share_normal_vcpu()?;
    match called {
        Ok(errno) => Ok(u32::from(errno.raw())),
        Err(stop) => Err(Stopped(stop).into()),
    }
}

/// In a CVM without workers nobody can bring a running task to a safe point: there each host call is one when the slice
/// is over.
pub fn share_normal_vcpu() -> wasmtime::Result<()> {
    if vcpu::id() == VcpuId::NORMAL && sched::slice_is_over() {
        task::safe_point().map_err(|_| Stopped(Stop::Killed))?;
    }
    Ok(())
}

macro_rules! bind {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ident;)*) => {
        /// Defines every function of preview 1.
        pub fn link(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
            $(bind!(@one linker $name($($arg: $type),*) -> $result);)*
            Ok(())
        }
    };
    (@one $linker:ident $name:ident($($arg:ident: $type:ty),*) -> errno) => {
        $linker.func_wrap(MODULE, stringify!($name), |mut caller: Caller<'_, Context>, $($arg: $type),*| {
            call(&mut caller, |context| nacre_wasi::$name(context, $($arg),*))
        })?;
    };
    (@one $linker:ident $name:ident($($arg:ident: $type:ty),*) -> never) => {
        $linker.func_wrap(MODULE, stringify!($name), |mut caller: Caller<'_, Context>, $($arg: $type),*| {
            call(&mut caller, |context| nacre_wasi::$name(context, $($arg),*)).map(|_| ())
        })?;
    };
}

nacre_wasi::for_each_preview1!(bind);

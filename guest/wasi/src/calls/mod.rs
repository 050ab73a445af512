//! The functions of preview 1, one each, with the parameter types of the core signature (i32 as u32, i64 as u64).
//!
//! All of them return the error code for the program, or [`crate::Stop`] when the program ends. Result pointers are
//! checked before anything with an effect is done, so that `EFAULT` never follows half of an operation.

mod dir;
mod env;
mod fd;
mod io;
mod path;
mod poll;
mod sock;

pub use dir::*;
pub use env::*;
pub use fd::*;
pub use io::*;
pub use path::*;
pub(crate) use poll::Scratch;
pub use poll::*;
pub use sock::*;

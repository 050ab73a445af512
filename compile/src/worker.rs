//! Compiling in a process of its own, for modules that strangers send: the child's side.
//!
//! The parent starts its own binary again, writes the module to the child's standard input and reads the answer from its
//! standard output: one byte that says what follows ([`Answer`]), then a `.cwasm` or a sentence. The child limits its own
//! memory and CPU time before it looks at the module, so a module that makes the compiler explode ends the child and
//! nothing else.

use crate::{
    compiler::{CompileError, compile},
    module::{Entry, Module},
};
use nacre_engine::CpuTarget;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use std::io::{self, Read, Write};
use std::time::Duration;

/// What one compilation may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Address space of the child in bytes.
    pub memory_bytes: u64,
    /// CPU time of the child.
    pub cpu: Duration,
}

/// First byte of an answer: what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// A `.cwasm`.
    Program = b'P',
    /// A sentence: what is wrong with the module.
    Module = b'M',
    /// A sentence: what the compiler could not do.
    Compiler = b'C',
}

impl Answer {
    /// Takes an answer apart; `None` if it is none, as after the child's early death.
    #[must_use]
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (first, rest) = bytes.split_first()?;
        let answer =
            [Self::Program, Self::Module, Self::Compiler].into_iter().find(|a| *a as u8 == *first)?;
        Some((answer, rest))
    }
}

/// The child: reads a module from standard input, compiles it for any server CPU and writes the answer.
///
/// # Errors
/// If a limit can't be set, or the parent is gone.
pub fn serve(bounds: Bounds) -> io::Result<()> {
    // A parent that is killed takes its compilations with it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let limit = |bytes: u64| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::As, limit(bounds.memory_bytes))?;
    setrlimit(Resource::Cpu, limit(bounds.cpu.as_secs().max(1)))?;
    setrlimit(Resource::Core, limit(0))?;
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    let (kind, body) = answer(&bytes);
    let mut out = io::stdout().lock();
    out.write_all(&[kind as u8])?;
    out.write_all(&body)?;
    out.flush()
}

fn answer(bytes: &[u8]) -> (Answer, Vec<u8>) {
    let compiled = Module::parse(bytes, Entry::Command)
        .map_err(CompileError::from)
        .and_then(|module| compile(&module, CpuTarget::X86_64V3));
    match compiled {
        Ok(program) => (Answer::Program, program.file().to_vec()),
        Err(error @ CompileError::Module(_)) => (Answer::Module, error.to_string().into_bytes()),
        Err(error) => (Answer::Compiler, error.to_string().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart_and_nonsense_is_none() {
        assert_eq!(Answer::split(b"Pxyz"), Some((Answer::Program, b"xyz".as_slice())));
        assert_eq!(Answer::split(b"M"), Some((Answer::Module, b"".as_slice())));
        assert_eq!(Answer::split(b""), None);
        assert_eq!(Answer::split(b"\0x"), None);
    }

    #[test]
    fn a_bad_module_is_told_from_a_good_one() {
        let (kind, text) = answer(b"no module");
        assert_eq!(kind, Answer::Module);
        assert!(String::from_utf8(text).unwrap().contains("WebAssembly"));
        let good = wat::parse_str("(module (func (export \"_start\")))").unwrap();
        assert_eq!(answer(&good).0, Answer::Program);
    }
}

//! Every function of WASI preview 1, called by a hostile program.
//!
//! Input: calls with arguments that mostly hit something, and words and paths put into linear memory between them.
//! Checked: no panic and an answer; a wait is for something; after everything is closed and removed no inode and no block
//! is left, whatever was done before.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use nacre_fuzz::program::{Kernel, MEMORY_BYTES, Program};
use nacre_wasi::*;

/// Names in use and hostile ones.
const PATHS: [&str; 12] =
    ["f", "d", "d/l", "l/l", "d/../f", "../x", "/", ".", "l/l/l/l/f", "a/", "\u{e4}", "d/./l/../../../.."];
/// The longest sequence of calls.
const MAX_CALLS: usize = 400;
/// Bytes of file contents that may be allocated.
const LIMIT_BYTES: u64 = 4 << 20;

/// From the input to one of a parameter's type.
trait Argument: Sized {
    fn take(input: &mut Unstructured<'_>) -> Result<Self>;
}

/// Mostly descriptors, flags, pointers; sometimes anything.
impl Argument for u64 {
    fn take(input: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match input.arbitrary::<u8>()? % 16 {
            0..=4 => u64::from(input.arbitrary::<u8>()? % 8),
            5..=8 => u64::from(input.arbitrary::<u8>()? % 70),
            9..=11 => u64::from(input.arbitrary::<u8>()?) * 64,
            12 => MEMORY_BYTES as u64 - u64::from(input.arbitrary::<u8>()?),
            13 => u64::MAX,
            14 => 1 << (input.arbitrary::<u8>()? % 64),
            _ => input.arbitrary()?,
        })
    }
}

impl Argument for u32 {
    fn take(input: &mut Unstructured<'_>) -> Result<u32> {
        u64::take(input).map(|value| value as u32)
    }
}

type Function = fn(&mut Call<'_, Kernel>, &mut Unstructured<'_>) -> Result<core::result::Result<Errno, Stop>>;

macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $result:ident;)*) => {
        const FUNCTIONS: &[Function] = &[$(|_call, _input| {
            $(let $arg = <$ty as Argument>::take(_input)?;)*
            Ok($name(_call, $($arg),*))
        }),*];
    };
}
for_each_preview1!(functions);

fn step(program: &mut Program, input: &mut Unstructured<'_>) -> Result<()> {
    let which = input.arbitrary::<u8>()? as usize;
    if let Some(function) = FUNCTIONS.get(which) {
        // The answer does not matter; that there is one does.
        let _ = function(&mut program.call(), input)?;
        assert_eq!(program.memory.len(), MEMORY_BYTES);
        return Ok(());
    }
    let path = PATHS[input.arbitrary::<u8>()? as usize % PATHS.len()];
    let at = u32::from(input.arbitrary::<u8>()?) * 64;
    match which % 4 {
        0 => {
            program.put(at, path.as_bytes());
        }
        1 => {
            let word = u64::take(input)? | u64::take(input)? << 32;
            program.put(at + which as u32 % 8 * 8, &word.to_le_bytes());
        }
        // Right by chance these would be rare, and most functions need them.
        2 => drop(program.open(path, at % 128 == 0)),
        _ => drop(program.mkdir(path)),
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let mut program = Program::new(Fs::new(0).expect("memory for a root"));
    for (at, path) in PATHS.iter().enumerate() {
        program.put(at as u32 * 64, path.as_bytes());
    }
    let _ = (
        program.mkdir("d"),
        program.mkdir("l"),
        program.symlink("../f", "d/l"),
        program.symlink("../d", "l/l"),
    );
    let _ = program.open("f", true);
    program.ctx.fs_mut().set_limit(LIMIT_BYTES);
    let mut input = Unstructured::new(data);
    for _ in 0..MAX_CALLS {
        if input.is_empty() || step(&mut program, &mut input).is_err() {
            break;
        }
        assert!(program.ctx.fs().allocated_bytes() <= LIMIT_BYTES);
    }
    program.check_nothing_leaks();
});

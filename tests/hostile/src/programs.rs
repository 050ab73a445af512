//! The programs under attack (`work.wat`) and, computed here by independent code, what each must print and how it must end.

use crate::plan::Rng;
use anyhow::{Result, anyhow};
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_cli::program::Program as Code;
use nacre_vmm::program::Exit;

/// What a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Arithmetic over its memory.
    Compute,
    /// Short sleeps.
    Sleep,
    /// Grows its memory: zero when new, as written when old.
    Grow,
    /// Files written, renamed, read and removed.
    Files,
    /// More output than a stream's window, to both streams.
    Output,
    /// Standard input to standard output.
    Echo,
    /// What one client says to the client, as a service.
    Serve,
    /// A trap after some work.
    Trap,
}

impl Work {
    /// All of them.
    pub const ALL: [Work; 8] = [
        Work::Compute,
        Work::Sleep,
        Work::Grow,
        Work::Files,
        Work::Output,
        Work::Echo,
        Work::Serve,
        Work::Trap,
    ];

    /// Whether calls can do it: they have no files and no sockets.
    pub fn can_be_called(self) -> bool {
        !matches!(self, Work::Files | Work::Serve)
    }

    /// Whether its result depends on what is on a ring while it runs.
    pub fn reads_input(self) -> bool {
        matches!(self, Work::Echo | Work::Serve)
    }

    fn letter(self) -> char {
        match self {
            Work::Compute => 'c',
            Work::Sleep => 's',
            Work::Grow => 'g',
            Work::Files => 'f',
            Work::Output => 'o',
            Work::Echo => 'i',
            Work::Serve => 'v',
            Work::Trap => 't',
        }
    }
}

/// A program of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// What it does.
    pub work: Work,
    /// The number it does it with.
    pub number: u64,
    /// Whether it runs as calls of a module, one after another in the same memory, rather than as a program of its own.
    pub calls: bool,
}

/// How a program must end and what it must have written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The end; of a trap's text only what the trap is.
    pub exit: Exit,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// The exit code of a program that found everything right.
const FINE: u32 = 7;

/// Compiles the program that does all kinds of work.
///
/// # Errors
/// If it does not compile.
pub fn code() -> Result<Code> {
    let wasm = wat::parse_str(include_str!("work.wat"))?;
    let module = Module::parse(&wasm, Entry::Command).map_err(|error| anyhow!("{error}"))?;
    Ok(compile(&module, Default::default())?)
}

fn next(x: u64) -> u64 {
    x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)
}

fn mix(memory: &mut [u64], mut x: u64, count: u64) -> u64 {
    for _ in 0..count {
        x = next(x);
        let word = &mut memory[(x >> 40 & 0xffff) as usize];
        *word ^= x;
        x ^= word.rotate_left(5);
        x = x.wrapping_add(x / (x >> 33 | 1));
    }
    x
}

fn pattern(mut x: u64, bytes: usize, into: &mut Vec<u8>) -> u64 {
    into.clear();
    for _ in 0..bytes / 8 {
        x = next(x);
        into.extend(x.to_le_bytes());
    }
    x
}

impl Job {
    /// The argument that makes the program do this.
    pub fn argument(&self) -> String {
        format!("{}{:016x}", self.work.letter(), self.number)
    }

    /// What it reads from standard input, or from its client.
    pub fn input(&self) -> Vec<u8> {
        if !self.work.reads_input() {
            return Vec::new();
        }
        let mut rng = Rng::new(self.number);
        let len = 1000 + rng.below(200_000) as usize;
        (0..len).map(|_| rng.next() as u8).collect()
    }

    /// What must come out; what a client hears counts as standard output.
    pub fn expected(&self) -> Expected {
        let x = self.number;
        let (mut lines, mut stdout, mut stderr) = (Vec::new(), Vec::new(), Vec::new());
        let mut exit = Exit::Code(FINE);
        match self.work {
            Work::Compute => {
                let (mut memory, mut x, count) = (vec![0; 1 << 16], x, 50_000 + (x & 0x1ffff));
                for _ in 0..4 {
                    x = mix(&mut memory, x, count);
                    lines.push(x);
                }
            }
            Work::Sleep => lines.extend((0..8).scan(x, |x, _| {
                *x = next(*x);
                Some(*x)
            })),
            Work::Grow => lines.push(grown(x)),
            Work::Files => {
                let (mut x, mut block) = (x, Vec::new());
                for _ in 0..4 {
                    for _ in 0..8 {
                        x = pattern(x, 16384, &mut block);
                    }
                    lines.push(x);
                }
            }
            Work::Output => {
                let (mut x, mut block) = (x, Vec::new());
                for piece in 0..40 {
                    x = pattern(x, 16384, &mut block);
                    let part = &block[..(x >> 48 & 0x3fff) as usize];
                    if piece & 3 == 0 { stderr.extend(part) } else { stdout.extend(part) }
                }
            }
            Work::Echo | Work::Serve => stdout.extend(self.input().iter().map(|byte| byte ^ x as u8)),
            Work::Trap => {
                lines.push(mix(&mut vec![0; 1 << 16], x, 100_000));
                exit = Exit::Trap(TRAPS[(x & 3) as usize].into());
            }
        }
        for line in lines {
            stdout.extend(format!("{line:016x}\n").bytes());
        }
        Expected { exit, stdout, stderr }
    }
}

/// What the four traps are called, in the program's order.
const TRAPS: [&str; 4] = [
    "`unreachable` instruction executed",
    "integer divide by zero",
    "out of bounds memory access",
    "call stack exhausted",
];

fn grown(seed: u64) -> u64 {
    let mut x = seed;
    let pages: u64 = (0..24)
        .map(|_| {
            x = next(x);
            1 + (x >> 60)
        })
        .sum();
    (0..pages * 65536 / 64).fold(0, |y: u64, _| next(y.wrapping_add(seed)))
}

impl Expected {
    /// What is wrong with an end and outputs, if anything is.
    pub fn difference(&self, exit: &Exit, stdout: &[u8], stderr: &[u8]) -> Option<String> {
        let same_end = match (&self.exit, exit) {
            (Exit::Trap(what), Exit::Trap(text)) => text.contains(what.as_str()),
            (expected, exit) => expected == exit,
        };
        if !same_end {
            return Some(format!("it ended by {exit:?} instead of {:?}", self.exit));
        }
        [("standard output", &self.stdout, stdout), ("standard error", &self.stderr, stderr)]
            .into_iter()
            .find_map(|(name, expected, got)| {
                let at = expected
                    .iter()
                    .zip(got)
                    .position(|(a, b)| a != b)
                    .unwrap_or(expected.len().min(got.len()));
                let differs = expected.as_slice() != got;
                let lengths = (got.len(), expected.len());
                differs.then(|| format!("{name} differs at byte {at} ({} bytes of {})", lengths.0, lengths.1))
            })
    }
}
